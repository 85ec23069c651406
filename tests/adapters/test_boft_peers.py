"""PEFT's BOFT: read, and baked as PEFT merges it."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from training_models import model

from lorakit.lora_ops import (
    DictSource,
    Ingredient,
    bake,
    compare,
    convert,
    decode,
    describe,
    open_source,
    verify,
)
from lorakit.lora_ops.adapters.layers import InputButterflyLayer
from lorakit.lora_ops.errors import LayerShapeError, LoraOpsError, UnsupportedLayerError
from lorakit.lora_ops.inspect.lint import lint

peft = pytest.importorskip("peft", reason="peft is not installed: pip install peft")
pytestmark = pytest.mark.filterwarnings("ignore")

CLOSE = {"rtol": 1e-4, "atol": 1e-5}
TARGETS = ["attn.to_q", "attn.to_k", "conv"]


class BlockDiagonals:
    """What PEFT's CUDA extension computes; without it, PEFT makes one stage of any number."""

    def forward(self, blocks: torch.Tensor) -> list[torch.Tensor]:
        return [torch.stack([torch.block_diag(*stage) for stage in blocks])]


def merged(folder, **options) -> dict[str, torch.Tensor]:
    """What PEFT's own merge gives of the adapter that it saves."""
    config = peft.BOFTConfig(target_modules=TARGETS, **options)
    made = peft.get_peft_model(model(), config)
    torch.manual_seed(3)
    for name, one in made.named_parameters():
        if "boft_" in name:
            nn.init.normal_(one, float("boft_s" in name), 0.5)
    made.save_pretrained(folder / "adapter")
    return made.merge_and_unload().state_dict()


def base() -> DictSource:
    return DictSource(
        {f"diffusion_model.{name}": one for name, one in model().state_dict().items()}
    )


def check(folder, expected, stages: int) -> None:
    with open_source(folder / "adapter") as adapter:
        assert describe(adapter).kind == "BOFT of the inputs adapter"
        layers = decode(adapter).layers.values()
        assert {len(layer.stages) for layer in layers} == {stages}
        baked, report = bake(base(), [Ingredient(adapter)])
    assert len(report.layers) == 3
    assert (expected["attn.to_q.weight"] - model().attn.to_q.weight).abs().max() > 0.1
    for name, one in expected.items():
        torch.testing.assert_close(baked[f"diffusion_model.{name}"], one, **CLOSE)


@pytest.mark.parametrize(
    "options",
    [
        {"boft_block_size": 4},
        {"boft_block_size": 3},
        {"boft_block_size": 0, "boft_block_num": 6},
        {"boft_block_size": 0, "boft_block_num": 1},
    ],
    ids=str,
)
def test_it_is_baked_as_peft_merges_it(options, tmp_path) -> None:
    check(tmp_path, merged(tmp_path, **options), 1)


@pytest.mark.parametrize(
    ("options", "stages"),
    [
        ({"boft_block_size": 2, "boft_n_butterfly_factor": 2}, 2),
        ({"boft_block_size": 6, "boft_n_butterfly_factor": 2}, 2),
        ({"boft_block_size": 0, "boft_block_num": 2, "boft_n_butterfly_factor": 2}, 2),
    ],
    ids=str,
)
def test_its_stages_are_those_of_peft(options, stages, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("peft.tuners.boft.layer.get_fbd_cuda", BlockDiagonals)
    check(tmp_path, merged(tmp_path, **options), stages)


@pytest.mark.parametrize(("size", "stages"), [(2, 4), (4, 3), (4, 4), (8, 3), (6, 3)])
def test_more_stages_than_the_small_model_has(size, stages, monkeypatch) -> None:
    monkeypatch.setattr("peft.tuners.boft.layer.get_fbd_cuda", BlockDiagonals)
    inputs = size * 2 ** (stages - 1) * 2
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(inputs, 5))
    weight = plain[0].weight.detach().clone()
    config = peft.BOFTConfig(
        target_modules=["0"], boft_block_size=size, boft_n_butterfly_factor=stages
    )
    made = peft.get_peft_model(plain, config)
    layer = made.base_model.model[0]
    for one in (layer.boft_R["default"], layer.boft_s["default"]):
        nn.init.normal_(one, 0.5, 0.5)
    ours = InputButterflyLayer(layer.boft_R["default"].detach(), layer.boft_s["default"].detach())
    change = ours.change(weight, dtype=torch.float64)
    expected = made.merge_and_unload()[0].weight.detach()
    torch.testing.assert_close((weight + change).float(), expected, **CLOSE)


def test_verify_finds_nothing_left(tmp_path) -> None:
    expected = merged(tmp_path, boft_block_size=4)
    tuned = DictSource({f"diffusion_model.{name}": one for name, one in expected.items()})
    with open_source(tmp_path / "adapter") as adapter:
        report = verify(base(), tuned, adapter)
    assert len(report.layers) == 3
    assert all(layer.residual <= 1e-5 * layer.norm for layer in report.layers)


def test_it_becomes_a_lora_with_the_base(tmp_path) -> None:
    expected = merged(tmp_path, boft_block_size=4)
    with open_source(tmp_path / "adapter") as source:
        lora, _ = convert(decode(source), to="lora", base=base(), rule="12")
    assert len(lora.layers) == 3
    for target, layer in lora.layers.items():
        key = target.removeprefix("base_model.model.") + ".weight"
        weight = model().state_dict()[key] + layer.delta().reshape(expected[key].shape)
        torch.testing.assert_close(weight, expected[key], **CLOSE)


def test_what_has_no_place_is_refused_by_name(tmp_path) -> None:
    merged(tmp_path, boft_block_size=4)
    with open_source(tmp_path / "adapter") as source:
        adapter = decode(source)
        for format in ("kohya", "comfy", "diffusers", "peft"):
            with pytest.raises(LoraOpsError):
                convert(adapter, format)
        with pytest.raises(UnsupportedLayerError, match="BOFT of the inputs"):
            compare(adapter, adapter)
        found = lint(source)
        assert all(verdict.count("left") == 3 for verdict in found.verdicts)


@pytest.mark.parametrize(
    ("odd", "match"),
    [
        ({"boft_R": torch.zeros(2, 3, 4, 4)}, "do not pair up 2 times"),
        ({"boft_R": torch.zeros(1, 3, 4, 5)}, "the last two alike"),
        ({"boft_s": torch.ones(3, 4)}, "one row of numbers"),
        ({"boft_s": None}, "no row_gains factor"),
    ],
    ids=lambda one: one if isinstance(one, str) else "",
)
def test_blocks_that_are_none_are_refused(odd, match, tmp_path) -> None:
    root = "base_model.model.attn.to_q."
    tensors = {"boft_R": torch.zeros(1, 3, 4, 4), "boft_s": torch.ones(12, 1)} | odd
    held = {root + key: one for key, one in tensors.items() if one is not None}
    save_file(held, tmp_path / "odd.safetensors")
    assert load_file(tmp_path / "odd.safetensors").keys() == held.keys()
    with (
        open_source(tmp_path / "odd.safetensors") as source,
        pytest.raises(LayerShapeError, match=match),
    ):
        bake(base(), [Ingredient(source)])
