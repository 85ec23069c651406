"""Extraction nodes with a kind, in ComfyUI's process: the adapter has that form, and its error is the true one."""

from __future__ import annotations

import comfy_host
import pytest
import torch
from keys.checkpoints import flux
from safetensors.torch import load_file, save_file

from lorakit.lora_ops import DictSource, decode

SHAPES = flux() | {f"{name}.in_layer.weight": (128, 256) for name in ("time_in", "guidance_in")}
KINDS = {
    "dora": {"kind": "dora"},
    "lokr": {"kind": "lokr", "factor": 4},
    "loha": {"kind": "loha", "factor": 4},  # which has no meaning there
    "locon-tucker": {"kind": "locon-tucker"},
}
TITLES = {"dora": "DoRA over LoRA", "lokr": "LoKr", "loha": "LoHa", "locon-tucker": "LoRA"}


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """By kind, the report and the tensors; and both checkpoints."""
    folder = tmp_path_factory.mktemp("kinds")
    generator = torch.Generator().manual_seed(0)
    base = {key: torch.randn(shape, generator=generator) * 0.1 for key, shape in SHAPES.items()}
    tuned = {
        key: one + 0.02 * torch.randn(one.shape, generator=generator) if "double" in key else one
        for key, one in base.items()
    }
    paths = {side: str(folder / f"{side}.safetensors") for side in ("base", "tuned")}
    for path, state in zip(paths.values(), (base, tuned), strict=True):
        save_file(state, path)
    found = {}
    with comfy_host.started() as host:
        for kind, options in KINDS.items():
            output = str(folder / f"{kind}.safetensors")
            question = {**paths, "loader": "diffusion_model", "te": {}, "output": output}
            options = {"rank": 4, "dtype": "fp32", **options}
            answer = host.ask("nodes_extract", {**question, "options": options})
            assert "error" not in answer, answer["error"]
            found[kind] = answer["report"], load_file(output)
    return found, base, tuned


@pytest.mark.parametrize("kind", KINDS)
def test_the_node_makes_that_kind(answers, kind):
    found, base, tuned = answers
    report, tensors = found[kind]
    layers = decode(DictSource(tensors)).layers
    assert {one.title for one in layers.values()} == {TITLES[kind]}
    left = change = 0.0
    for target, layer in layers.items():
        key = target.removeprefix("diffusion_model.") + ".weight"
        made = base[key].double() + layer.change(base[key], 1.0, torch.float64, "comfy")
        left += float((tuned[key].double() - made).square().sum())
        change += float((tuned[key] - base[key]).double().square().sum())
    error = (left / change) ** 0.5
    assert 0 < error < 1
    assert f"{error:.3f}"[:4] in report
