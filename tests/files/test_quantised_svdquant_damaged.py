"""What is wrong with a layer of Nunchaku's is refused by the layer's name, and so is every other model of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from nunchaku_models import FIRST, LAST, quantised, tiny, written
from safetensors.torch import save_file
from torch import Tensor

from lorakit.lora_ops.errors import QuantisedError
from lorakit.lora_ops.files import QuantisedSource, open_source, quantisation, refuse_quantised
from lorakit.lora_ops.source import DictSource

MODEL = tiny()
FILES = {
    floats: written(MODEL, quantised(MODEL, floats, fused=True, rank=16))
    for floats in (False, True)
}
#: Layers of each kind: fused rows, behind GELU, half of another, modulations.
LAYERS = [f"{FIRST}.{n}" for n in ("qkv_proj", "mlp_fc2", "norm1.linear")]
LAYERS += [f"{LAST}.{n}" for n in ("out_proj", "mlp_fc2")]
#: Without which the layer is another or none, and is refused; all others may be missing.
OPTIONAL = ("bias", "smooth_orig", "wtscale", "wcscales")
SHAPES = [(), (1,), (0,), (128,), (384,), (128, 1), (1, 128), (128, 128), (2, 128), (8, 384)]
SHAPES += [(0, 128), (128, 0), (128, 64, 1), (96, 64), (128, 24)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.int32, torch.int8]
DTYPES += [torch.uint8, torch.bool, torch.float8_e4m3fn, torch.float8_e5m2]


def read(tensors: dict[str, Tensor], layer: str, folder: Path) -> bool:
    """Whether it is read, with all that the layer has; False where it is refused by its name."""
    save_file(tensors, folder / "a.safetensors")
    with open_source(folder / "a.safetensors") as source:
        words = ""
        try:
            refuse_quantised(source)
        except QuantisedError as error:
            words = str(error)
        if words:
            assert f"`{layer}`" in words
            assert "(SVDQuant in " in words
            return False
        assert isinstance(source, QuantisedSource)
        for key, one in source.weights.items():
            if not any(part.startswith(f"{layer}.") for part in one.parts.values()):
                continue
            numbers = source.tensor(key)
            assert tuple(numbers.shape) == source.shape(key)
            assert source.reach(key, numbers).shape == numbers.shape
            assert source.stored_size(key) > 0
        return True


def parts(tensors: dict[str, Tensor], layer: str) -> list[str]:
    return [key for key in tensors if key.rpartition(".")[0] == layer]


def around(layer: str, floats: bool) -> dict[str, Tensor]:
    """A layer, with those that weights of it are made of, too."""
    halves = [f"{LAST}.out_proj", f"{LAST}.mlp_fc2"]
    layers = halves if layer in halves else [layer, f"{FIRST}.out_proj"]
    return {key: t for key, t in FILES[floats].items() if key.rpartition(".")[0] in layers}


@pytest.mark.parametrize("floats", [False, True])
@pytest.mark.parametrize("layer", LAYERS)
def test_a_tensor_that_is_missing(floats: bool, layer: str, tmp_path: Path) -> None:
    tensors = around(layer, floats)
    for part in parts(tensors, layer):
        rest = {key: tensor for key, tensor in tensors.items() if key != part}
        assert read(rest, layer, tmp_path) == part.endswith(OPTIONAL), part
    rest = {
        key: t
        for key, t in tensors.items()
        if key.rpartition(".")[2] not in ("lora_up", "lora_down")
    }
    assert read(rest, layer, tmp_path)


@pytest.mark.parametrize("layer", LAYERS)
def test_a_tensor_of_another_shape_or_dtype(layer: str, tmp_path: Path) -> None:
    tensors = around(layer, True)
    for part in parts(tensors, layer):
        for shape in SHAPES:
            other = torch.ones(shape).to(tensors[part].dtype)
            if shape != tensors[part].shape:
                is_scalar = part.endswith("wtscale") and shape == ()
                assert read({**tensors, part: other}, layer, tmp_path) == is_scalar, (part, shape)
        for dtype in DTYPES:
            same = {torch.int8: torch.uint8}.get(tensors[part].dtype, tensors[part].dtype)
            floats = (torch.float32, torch.bfloat16, torch.float16)
            taken = part.endswith("qweight") and dtype in (same, tensors[part].dtype)
            taken |= tensors[part].dtype == torch.bfloat16 and dtype in floats
            taken &= not (part.endswith(("wscales", "wzeros")) and dtype == torch.float32)
            taken |= dtype == tensors[part].dtype
            other = tensors[part].float().to(dtype)
            assert read({**tensors, part: other}, layer, tmp_path) == taken, (part, dtype)


def test_half_of_a_layer(tmp_path: Path) -> None:
    for name in ("out_proj", "mlp_fc2"):
        layer, other = f"{LAST}.{name}", {"out_proj": "mlp_fc2"}.get(name, "out_proj")
        rest = {k: t for k, t in FILES[False].items() if not k.startswith(f"{layer}.")}
        assert not read(rest, f"{LAST}.{other}", tmp_path)


@pytest.mark.parametrize(
    "layer",
    [
        "transformer_blocks.0.attn.qkv_proj",  # SANA
        "transformer_blocks.0.cross_attn.q_linear",
        "layers.3.attention.to_k",  # Z-Image, but for what is fused
        "noise_refiner.0.feed_forward.w2",
        "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_qkv",  # SDXL
        "single_transformer_blocks.0.attn.to_qkv_mlp_proj",  # Flux.2
        "single_transformer_blocks.0.norm1.linear",
        "transformer_blocks.0.norm.linear",
        "decoder.0.mlp_fc1",
    ],
)
def test_other_models(layer: str, tmp_path: Path) -> None:
    stored = {
        f"{layer}.{k.rpartition('.')[2]}": FILES[False][k] for k in parts(FILES[False], LAYERS[1])
    }
    save_file(stored, tmp_path / "a.safetensors")
    with open_source(tmp_path / "a.safetensors") as source:
        assert quantisation(source) == "SVDQuant"
        with pytest.raises(
            QuantisedError, match=rf"`{layer}`.*Flux\.1, Qwen-Image and Z-Image are read"
        ):
            refuse_quantised(source)


def test_a_lora_beside_modulations(tmp_path: Path) -> None:
    layer = LAYERS[2]
    more = {f"{layer}.lora_down": torch.ones(4, 128), f"{layer}.lora_up": torch.ones(768, 4)}
    assert not read({**FILES[False], **more}, layer, tmp_path)


def test_in_memory_it_is_refused() -> None:
    with pytest.raises(QuantisedError, match="SVDQuant in 15 layers"):
        refuse_quantised(DictSource(FILES[False]))


def test_text_encoders_in_awq_are_refused(tmp_path: Path) -> None:
    layer = "encoder.block.0.layer.0.SelfAttention.q"
    stored = {f"{layer}.qweight": torch.zeros(16, 64, dtype=torch.int16)}
    stored |= {f"{layer}.{k}": torch.ones(2, 64) for k in ("scales", "scaled_zeros")}
    save_file(stored, tmp_path / "a.safetensors")
    with (
        open_source(tmp_path / "a.safetensors") as source,
        pytest.raises(QuantisedError, match="packed integers"),
    ):
        refuse_quantised(source)
