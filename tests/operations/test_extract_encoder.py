"""A real encoder, wholly fine-tuned on a small task: the task's score returns with the rank."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from encoder_task import FOLDER, Task
from hugging_face import hf, peft

from lorakit.lora_ops import extract_file, open_source, plan_file

pytestmark = pytest.mark.filterwarnings("ignore")


def loaded(folder: Path) -> torch.nn.Module:
    """The encoder as it is shipped, with a head of random numbers, and the adapter on it."""
    torch.manual_seed(5)
    base = hf.BertForSequenceClassification.from_pretrained(FOLDER, num_labels=2)
    return peft.PeftModel.from_pretrained(base, folder)


def test_the_score_of_the_task_returns_with_the_rank(tmp_path: Path) -> None:
    task = Task()
    model = task.tuned()
    model.save_pretrained(tmp_path / "tuned")
    reached = task.score(model)
    assert reached > 0.9
    scores: dict[int, float] = {}
    errors: dict[int, float] = {}
    for rank in (1, 16):
        out = tmp_path / str(rank)
        with open_source(FOLDER) as base, open_source(tmp_path / "tuned") as tuned:
            plan = plan_file(base, tuned, rank, output=out, format="peft", embeddings="none")
            report = extract_file(plan, base, tuned, out, format="peft")
        scores[rank], errors[rank] = task.score(loaded(out)), report.error
    assert errors[16] < errors[1]
    assert scores[1] < 0.7  # a share of it that is as good as guessing
    assert scores[16] > 0.8
