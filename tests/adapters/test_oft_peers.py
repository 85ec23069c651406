"""PEFT's OFT, and OneTrainer's: baked as PEFT merges it."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from training_models import model

from lorakit.lora_ops import DictSource, Ingredient, bake, convert, decode, describe, open_source
from lorakit.lora_ops.errors import LoraOpsError, UnsupportedLayerError

peft = pytest.importorskip("peft", reason="peft is not installed: pip install peft")
pytestmark = pytest.mark.filterwarnings("ignore")

CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def merged(folder, **options) -> dict[str, torch.Tensor]:
    config = peft.OFTConfig(target_modules=["attn.to_q", "attn.to_k"], **options)
    made = peft.get_peft_model(model(), config)
    torch.manual_seed(3)
    for name, one in made.named_parameters():
        if "oft_R" in name:
            nn.init.normal_(one, 0, 0.3)
    made.save_pretrained(folder / "adapter")
    return made.merge_and_unload().state_dict()


def base() -> DictSource:
    return DictSource(
        {f"diffusion_model.{name}": one for name, one in model().state_dict().items()}
    )


@pytest.mark.parametrize(
    "options",
    [
        {"r": 0, "oft_block_size": 4},
        {"r": 2, "oft_block_size": 0},
        {"r": 0, "oft_block_size": 4, "block_share": True},
        {"r": 0, "oft_block_size": 4, "use_cayley_neumann": False},
        {"r": 0, "oft_block_size": 4, "num_cayley_neumann_terms": 3},
        {"r": 0, "oft_block_size": 4, "num_cayley_neumann_terms": 8},
    ],
    ids=str,
)
def test_it_is_baked_as_peft_merges_it(options, tmp_path) -> None:
    expected = merged(tmp_path, **options)
    with open_source(tmp_path / "adapter") as adapter:
        assert describe(adapter).kind == "OFT of the inputs adapter"
        baked, report = bake(base(), [Ingredient(adapter)])
    assert len(report.layers) == 2
    assert (expected["attn.to_q.weight"] - model().attn.to_q.weight).abs().max() > 0.1
    for name, one in expected.items():
        torch.testing.assert_close(baked[f"diffusion_model.{name}"], one, **CLOSE)


def test_onetrainer_marks_what_is_scaled(tmp_path) -> None:
    """Its numbers are divided by 2 sqrt(size - 1) before they are used."""
    expected = merged(tmp_path, r=0, oft_block_size=4)
    held = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    tensors = {}
    for key, one in held.items():
        name = "diffusion_model." + key.removeprefix("base_model.model.").removesuffix(".weight")
        tensors[f"{name}.weight"] = one * 2 * 3**0.5
        tensors[f"{name}.scaled_oft"] = torch.tensor(True)
    save_file(tensors, tmp_path / "trainer.safetensors")
    with open_source(tmp_path / "trainer.safetensors") as adapter:
        baked, _ = bake(base(), [Ingredient(adapter)])
    for name, one in expected.items():
        torch.testing.assert_close(baked[f"diffusion_model.{name}"], one, **CLOSE)


def test_it_becomes_a_lora_with_the_base(tmp_path) -> None:
    expected = merged(tmp_path, r=0, oft_block_size=4)
    with open_source(tmp_path / "adapter") as source:
        adapter = decode(source)
        lora, _ = convert(adapter, to="lora", base=base(), rule="12")
    (target,) = (one for one in lora.layers if "to_q" in one)
    weight = model().attn.to_q.weight + lora.layers[target].delta()
    torch.testing.assert_close(weight, expected["attn.to_q.weight"], **CLOSE)


def test_what_is_not_certain_is_refused(tmp_path) -> None:
    merged(tmp_path, r=0, oft_block_size=4, coft=True)
    with (
        open_source(tmp_path / "adapter") as source,
        pytest.raises(UnsupportedLayerError, match="constrained OFT"),
    ):
        dict(decode(source).layers)
    merged(tmp_path, r=0, oft_block_size=4)
    with open_source(tmp_path / "adapter") as source:
        adapter = decode(source)
        for format in ("kohya", "comfy", "diffusers"):
            with pytest.raises(LoraOpsError):
                convert(adapter, format)
