"""Depthwise convolutions, whose weights are (channels, 1, *kernel), in every kind that extract makes."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from checkpoints import source
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from lorakit.lora_ops import (
    Ingredient,
    bake_file,
    extract,
    extract_file,
    open_source,
    plan_bake_file,
    plan_file,
    verify,
)
from lorakit.lora_ops.operations.extract.kinds.table import FORMS

ROOT = "model.diffusion_model.blocks.0."
DEPTHWISE = {"short.weight": (24, 1, 4), "flat.weight": (24, 1, 3, 3), "wide.weight": (20, 1, 5, 5)}
SHAPES = {**DEPTHWISE, "deep.weight": (12, 1, 3, 3, 3), "one.weight": (16, 1, 1, 1)}
CONV = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}


def pair() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    draw = torch.Generator().manual_seed(7)
    shapes = {**SHAPES, "mlp.weight": (24, 16)}
    base = {ROOT + key: torch.randn(shape, generator=draw) for key, shape in shapes.items()}
    tuned = {key: one + torch.randn(one.shape, generator=draw) / 9 for key, one in base.items()}
    return base, tuned


def looped(weight: Tensor, input: Tensor) -> Tensor:
    """A depthwise convolution in float64, number by number."""
    kernel = weight.shape[2:]
    places = [size - one + 1 for size, one in zip(input.shape[1:], kernel, strict=True)]
    found = torch.zeros(len(weight), *places, dtype=torch.float64)
    for channel in range(len(weight)):
        for place in product(*map(range, places)):
            window = tuple(slice(at, at + one) for at, one in zip(place, kernel, strict=True))
            found[(channel, *place)] = (weight[channel, 0] * input[(channel, *window)]).sum()
    return found


@pytest.mark.parametrize("rank", [2, 4000])
@pytest.mark.parametrize("kind", FORMS)
def test_the_output_misses_what_the_report_says(kind: str, rank: int) -> None:
    """Each channel fed with one number alone at each place of its kernel: outputs are weights, one by one."""
    base, tuned = pair()
    adapter, report = extract(source(base), source(tuned), rank, kind=kind, dtype=torch.float32)
    told = {one.target: one for one in report.layers}
    assert len(told) == len(base)
    for key, shape in SHAPES.items():
        target = (ROOT + key).removeprefix("model.").removesuffix(".weight")
        layer, weight = adapter.layers[target], base[ROOT + key].double()
        made = weight + layer.change(weight, 1.0, torch.float64, "paper").reshape(shape)
        kernel = shape[2:]
        draw = torch.Generator().manual_seed(3)
        input = torch.randn(shape[0], *(one + 1 for one in kernel), generator=draw).double()
        found = looped(made, input)
        conv = CONV[len(kernel)](input.unsqueeze(0), made, groups=shape[0])[0]
        torch.testing.assert_close(conv, found)
        left = tuned[ROOT + key].double() - made
        assert told[target].shape == shape
        assert told[target].residual == pytest.approx(float(left.norm()), rel=1e-3, abs=1e-5), key
        if rank > 100 and kind not in ("loha", "lokr"):
            wanted = looped(tuned[ROOT + key].double(), input)
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", FORMS)
def test_the_file_is_baked_and_verified(kind: str, tmp_path) -> None:
    base, tuned = pair()
    save_file(base, tmp_path / "base.safetensors")
    save_file(tuned, tmp_path / "tuned.safetensors")
    with (
        open_source(tmp_path / "base.safetensors") as one,
        open_source(tmp_path / "tuned.safetensors") as two,
    ):
        plan = plan_file(one, two, 2, output=tmp_path / "lora.safetensors", kind=kind)
        report = extract_file(plan, one, two, tmp_path / "lora.safetensors")
        with open_source(tmp_path / "lora.safetensors") as lora:
            found = verify(one, two, lora)
            ready = plan_bake_file(one, [Ingredient(lora)], output=tmp_path / "baked.safetensors")
            bake_file(ready, one, tmp_path / "baked.safetensors")
    assert found.error == pytest.approx(report.error, rel=1e-4)
    squares = {one.target: one.residual**2 for one in report.layers}
    with open_source(tmp_path / "baked.safetensors") as made:
        for key in tuned:
            target = key.removeprefix("model.").removesuffix(".weight")
            left = (made.tensor(key) - tuned[key]).double().square().sum()
            assert float(left) == pytest.approx(squares[target], rel=1e-3, abs=1e-8), key
