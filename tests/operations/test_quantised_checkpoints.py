"""Numbers stored with scales: every function takes them from files, and refuses them from memory."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from checkpoints import FLUX, grid
from safetensors.torch import save_file
from torch import Tensor, nn

from lorakit.lora_ops import (
    Adapter,
    DictSource,
    Ingredient,
    TensorSource,
    bake,
    convert,
    decode,
    extract,
    inject,
    open_source,
    plan_extraction,
    plan_file,
    resize,
    verify,
)
from lorakit.lora_ops.errors import LoraOpsError, QuantisedError
from lorakit.lora_ops.operations.bake.file import plan_bake_file
from lorakit.lora_ops.operations.bake.plan import plan_bake
from lorakit.lora_ops.operations.convert.file import convert_file
from lorakit.lora_ops.operations.resize.file import resize_file
from lorakit.lora_ops.operations.resize.importance import importance

BASE = grid(FLUX, torch.float32)
TARGETS = [
    key for key, weight in BASE.items() if weight.ndim == 2 and key.startswith("double_blocks")
]


def scaled_fp8(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """As ComfyUI's scaled fp8: each matrix divided by its largest number over 448."""
    stored = dict(tensors)
    for key in TARGETS:
        scale = tensors[key].abs().max() / 448
        stored[key] = (tensors[key] / scale).to(torch.float8_e4m3fn)
        stored[key.replace(".weight", ".scale_weight")] = scale
    return stored


def lora(dora: bool = False) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(1)
    tensors: dict[str, Tensor] = {}
    for key in TARGETS:
        name, (out, width) = f"diffusion_model.{key.removesuffix('.weight')}", BASE[key].shape
        tensors[f"{name}.lora_up.weight"] = torch.randn(out, 4, generator=draw) * 0.01
        tensors[f"{name}.lora_down.weight"] = torch.randn(4, width, generator=draw)
        if dora:
            tensors[f"{name}.dora_scale"] = BASE[key].norm(dim=1, keepdim=True)
    return tensors


def adapter(dora: bool = False) -> Adapter:
    return decode(DictSource(lora(dora)))


class Module(nn.Module):
    """A module with one weight of the checkpoint's."""

    def __init__(self) -> None:
        super().__init__()
        out, width = BASE[TARGETS[0]].shape
        self.layer = nn.Linear(width, out, bias=False)


def start_from(checkpoint: TensorSource) -> object:
    return inject(Module(), ["layer"], rank=2, init=f"svd_of={checkpoint.name}")


Call = Callable[[TensorSource, TensorSource, Path], object]
CALLS: dict[str, Call] = {
    "plan_extraction, base": lambda odd, plain, _: plan_extraction(odd, plain, 4),
    "plan_extraction, tuned": lambda odd, plain, _: plan_extraction(plain, odd, 4),
    "extract": lambda odd, plain, _: extract(odd, odd, 4),
    "plan_file": lambda odd, plain, out: plan_file(odd, plain, 4, output=out),
    "verify, base": lambda odd, plain, _: verify(odd, plain, DictSource(lora())),
    "verify, tuned": lambda odd, plain, _: verify(plain, odd, DictSource(lora())),
    "bake": lambda odd, _, __: bake(odd, [Ingredient(DictSource(lora()), 1.0)]),
    "plan_bake": lambda odd, _, __: plan_bake(odd, [Ingredient(DictSource(lora()), 1.0)]),
    "resize": lambda odd, _, __: resize(adapter(dora=True), 2, base=odd),
    "convert": lambda odd, _, __: convert(adapter(dora=True), to="lora", base=odd),
    "importance": lambda odd, _, __: importance(list(adapter().layers), odd),
    "convert_file": lambda odd, _, out: convert_file(
        DictSource(lora(dora=True)), out, to="lora", base=odd
    ),
    "resize_file, base": lambda odd, _, out: resize_file(
        DictSource(lora(dora=True)), out, 2, base=odd
    ),
    "resize_file, weights to compare with": lambda odd, _, out: resize_file(
        DictSource(lora()), out, "mean=2", relative_to=odd
    ),
}
FILES: dict[str, Call] = {
    "plan_bake_file": lambda odd, _, out: plan_bake_file(
        odd, [Ingredient(DictSource(lora()), 1.0)], output=out
    ),
    "inject": lambda odd, _, __: start_from(odd),
}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out.safetensors"


@pytest.mark.parametrize("name", CALLS)
def test_a_dict_of_scaled_numbers_is_refused(name: str, out: Path) -> None:
    with pytest.raises(QuantisedError, match=r"quantised \(scaled fp8 in \d+ layers.*unquantised"):
        CALLS[name](DictSource(scaled_fp8(BASE)), DictSource(BASE), out)
    assert not out.exists()


@pytest.mark.parametrize("name", {**CALLS, **FILES})
def test_a_file_of_scaled_numbers_is_what_it_stands_for(name: str, tmp_path: Path) -> None:
    """The same result as of a file of the numbers as float32, or the same objection to them."""
    stored = scaled_fp8(BASE)
    with open_source(saved(stored, tmp_path / "odd.safetensors")) as odd:
        plain = {key: odd.tensor(key) for key in odd.keys()}  # noqa: SIM118
        expected = {key: stored[key] for key in BASE}
        for key in TARGETS:
            scale = stored[key.replace(".weight", ".scale_weight")]
            expected[key] = stored[key].float() * scale
        assert plain.keys() == expected.keys()
        assert all(torch.equal(plain[key], expected[key]) for key in plain)
        (tmp_path / "plain").mkdir()
        (tmp_path / "plain" / "out").mkdir()
        (tmp_path / "out").mkdir()
        with open_source(saved(expected, tmp_path / "plain" / "odd.safetensors")) as same:
            calls = {**CALLS, **FILES}
            found = [
                told(partial(calls[name], one, DictSource(BASE)), Path(one.name).parent)
                for one in (odd, same)
            ]
            assert found[0] == found[1]
            assert "quantised" not in found[0]


@pytest.mark.parametrize("name", {**CALLS, **FILES})
def test_a_file_of_damaged_scales_is_refused(name: str, out: Path) -> None:
    stored = scaled_fp8(BASE)
    stored[TARGETS[1].replace(".weight", ".scale_weight")] = torch.ones(7)
    layer = TARGETS[1].removesuffix(".weight")
    words = (
        rf"quantised \(scaled fp8 in \d+ layers.*`{layer}` cannot be decoded.*has the shape \[7\]"
    )
    with (
        open_source(saved(stored, out.parent / "odd.safetensors")) as odd,
        pytest.raises(QuantisedError, match=words),
    ):
        {**CALLS, **FILES}[name](odd, DictSource(BASE), out)
    assert not out.exists()


def saved(tensors: dict[str, Tensor], path: Path) -> Path:
    save_file(tensors, path)
    return path


def told(call: Callable[[Path], object], folder: Path) -> str:
    """What comes of a call, as text: kind and error of a result, or the words of an objection."""
    try:
        found = call(folder / "out" / "out.safetensors")
        return f"done: {type(found).__name__} {getattr(found, 'error', '')}"
    except LoraOpsError as error:
        return f"{type(error).__name__}: {error.args[0]}".replace(str(folder), "")
