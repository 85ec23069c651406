"""A converted file against its source in the real ComfyUI: both must make one weight of another."""

from __future__ import annotations

from pathlib import Path

import comfy_host
import pytest
import torch
from kinds import kinds, weight
from safetensors.torch import load_file, save_file
from torch import Tensor

from lorakit.lora_ops.files import open_source
from lorakit.lora_ops.operations.convert.file import convert_file

NAMES = {
    "linear": (
        *("loha", "lokr whole, thin", "lokr thin, thin", "glora", "lora, DoRA", "loha, DoRA"),
        *("lora, DoRA on the input", "oft", "oft, bounded", "boft", "boft, bounded", "full", "set"),
    ),
    "conv3x3": (
        *("lora, Tucker", "loha", "loha, Tucker", "lokr thin, thin", "glora", "lora, DoRA"),
        *("oft", "boft, bounded", "full"),
    ),
}
CASES = [(form, name) for form, names in NAMES.items() for name in names]


def module(case: tuple[str, str]) -> str:
    return f"diffusion_model.blocks.{CASES.index(case)}.q"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Tensor]]:
    """What ComfyUI makes of the base by the source, and by what is converted from it."""
    folder = tmp_path_factory.mktemp("to_lora")
    source, base = folder / "source.safetensors", folder / "base.safetensors"
    tensors = {
        f"{module(case)}.{suffix}": one
        for case in CASES
        for suffix, one in kinds(case[0])[case[1]].items()
    }
    save_file(tensors, source)
    save_file({f"{module(case)}.weight": weight(case[0]) for case in CASES}, base)
    for name, options in {
        "converted": {"dora": "comfy", "rule": 64},
        "paper": {"dora": "paper", "rule": 64},
        "cut": {"dora": "comfy", "rule": 1},
    }.items():
        with open_source(source) as adapter, open_source(base) as checkpoint:
            convert_file(
                adapter, folder / f"{name}.safetensors", to="lora", base=checkpoint, **options
            )
    made = {}
    with comfy_host.started() as comfy:
        for name in ("source", "converted", "paper", "cut"):
            output = folder / f"{name} in ComfyUI.safetensors"
            question = {"base": base, "adapter": folder / f"{name}.safetensors", "output": output}
            failed = comfy.ask(
                "change_weights", {**{k: str(v) for k, v in question.items()}, "strengths": [1.0]}
            )
            assert failed == {}
            made[name] = load_file(Path(output))
    return made


@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_comfyui_makes_the_same_weight_of_both(case, weights):
    key = f"{module(case)}.0"
    torch.testing.assert_close(
        weights["converted"][key], weights["source"][key], rtol=1e-5, atol=1e-5
    )
    assert not torch.allclose(weights["source"][key], weight(case[0]), atol=1e-3)


@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_twin_at_rank_one_it_does_not(case, weights):
    key = f"{module(case)}.0"
    assert not torch.allclose(weights["cut"][key], weights["source"][key], atol=1e-3)


@pytest.mark.parametrize(
    "case", [("linear", "lora, DoRA"), ("linear", "oft, bounded")], ids=" ".join
)
def test_twin_by_the_paper_it_does_not_where_docs_kinds_says_so(case, weights):
    key = f"{module(case)}.0"
    assert not torch.allclose(weights["paper"][key], weights["source"][key], atol=1e-3)
