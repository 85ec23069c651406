"""Folders of transformers' models, extracted into PEFT's: PEFT loads them, and the model is the tuned one."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from hugging_face import MODELS, loaded, outputs, pair_of
from safetensors.torch import load_file

from lorakit.lora_ops import Report, extract_file, open_source, plan_file

pytestmark = pytest.mark.filterwarnings("ignore")


def extracted(folder: Path, rank: str | int, **options) -> Report:
    """The report of `ours`, made of `base` and `tuned`."""
    with open_source(folder / "base") as base, open_source(folder / "tuned") as tuned:
        plan = plan_file(base, tuned, rank, output=folder / "ours", format="peft", **options)
        return extract_file(plan, base, tuned, folder / "ours", format="peft")


@pytest.mark.parametrize("name", MODELS)
def test_at_full_rank_the_model_says_what_the_tuned_one_says(name: str, tmp_path: Path) -> None:
    base, tuned = pair_of(name, tmp_path)
    report = extracted(tmp_path, 64, full_differences=True)
    assert report.error < 1e-5
    assert {skip.reason for skip in report.skips} <= {"unchanged"}
    with torch.no_grad():
        found, wanted = outputs(loaded(name, tmp_path), name), outputs(tuned, name)
        before = outputs(base, name)
    assert float((before - wanted).norm()) > 0.02
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_the_weights_that_peft_merges_miss_what_the_report_says(name: str, tmp_path: Path) -> None:
    """At a low rank each weight lies as far from the tuned one as its row of the report."""
    _, tuned = pair_of(name, tmp_path)
    report = extracted(tmp_path, 3)
    merged = dict(loaded(name, tmp_path).merge_and_unload().named_parameters())
    missed = {own: float((one - merged[own]).norm()) for own, one in tuned.named_parameters()}
    squares: dict[str, float] = dict.fromkeys(missed, 0.0)

    def named(target: str) -> str:
        own = target.removeprefix("text_encoders.transformer.")
        stack = own.rpartition(".")[0]  # of an expert
        return next(one for one in (own, f"{own}.weight", stack) if one in squares)

    for layer in report.layers:
        squares[named(layer.target)] += layer.residual**2
    for skip in report.skips:
        squares[named(skip.target)] += skip.norm**2
    assert len(report.layers) > 5
    for own, one in missed.items():
        assert one == pytest.approx(math.sqrt(squares[own]), rel=1e-3, abs=1e-5), own


def test_each_expert_has_a_change_of_its_own_rank(tmp_path: Path) -> None:
    """Experts of one stack whose ranks differ are stored at the largest; one that did not change has zeros."""
    base, _ = pair_of("gpt-oss", tmp_path)
    changed = dict(base.named_parameters())
    with torch.no_grad():
        stack = changed["model.layers.0.mlp.experts.down_proj"]
        for expert, rank in enumerate((1, 3)):
            stack[expert] += torch.randn(stack.shape[1], rank) @ torch.randn(rank, stack.shape[2])
    base.save_pretrained(tmp_path / "tuned")
    report = extracted(tmp_path, "energy=0.9999999")
    assert [layer.rank for layer in report.layers] == [1, 3]
    config = json.loads((tmp_path / "ours" / "adapter_config.json").read_text())
    assert config["target_parameters"] == ["model.layers.0.mlp.experts.down_proj"]
    assert (config["r"], config["target_modules"]) == (3, [])
    merged = dict(loaded("gpt-oss", tmp_path).merge_and_unload().named_parameters())
    torch.testing.assert_close(
        merged["model.layers.0.mlp.experts.down_proj"], stack, rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("name", ["llama", "mixtral"])
def test_shards_give_what_one_file_gives(name: str, tmp_path: Path) -> None:
    pair_of(name, tmp_path, max_shard_size="8KB")
    assert len(list((tmp_path / "tuned").glob("*.safetensors"))) > 2
    extracted(tmp_path, 3)
    whole = tmp_path / "whole"
    pair_of(name, whole)
    extracted(whole, 3)
    files = [at / "ours" / "adapter_model.safetensors" for at in (tmp_path, whole)]
    sharded, one = map(load_file, files)
    assert sharded.keys() == one.keys()
    assert all(torch.equal(one[key], sharded[key]) for key in one)
