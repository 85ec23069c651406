"""Whatever is wrong with one companion of a weight: it is refused by the name of its layer, or read as it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from quantisers import DESCRIBED, LAYER, STORES, nf4, nvfp4, text
from safetensors.torch import save_file
from torch import Tensor

from lorakit.lora_ops.errors import QuantisedError
from lorakit.lora_ops.files import QuantisedSource, open_source, refuse_quantised

E4M3, E8M0 = torch.float8_e4m3fn, getattr(torch, "float8_e8m0fnu", torch.uint8)
ROWS, COLUMNS = 128, 256
WEIGHT = torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(0)).double()


def nested() -> dict[str, Tensor]:
    state = text(blocksize=64, dtype="bfloat16", shape=[ROWS, COLUMNS], nested_blocksize=256)
    return {
        **nf4(WEIGHT, 1.0),
        "weight.absmax": torch.zeros(512, dtype=torch.uint8),
        "weight.nested_absmax": torch.ones(2),
        "weight.nested_quant_map": torch.linspace(-1, 1, 256),
        "weight.quant_state.bitsandbytes__nf4": state,
    }


#: Tensors by their names after that of the layer.
FILES: dict[str, dict[str, Tensor]] = {
    **{name: store(WEIGHT, 1.0) for name, store in STORES.items()},
    "int4 in groups": {
        "weight": torch.zeros(ROWS, COLUMNS // 2, dtype=torch.int8),
        "weight_s_rel": torch.ones(ROWS, 16).to(E4M3),
        "weight_s_channel": torch.ones(ROWS),
        "weight_codebook": torch.linspace(-1, 1, 16),
        "weight_correction": torch.zeros(16, ROWS),
        "comfy_quant": text(format="asym_w4a8_int8"),
    },
    "int8 of bitsandbytes": {
        "weight": torch.zeros(ROWS, COLUMNS, dtype=torch.int8),
        "SCB": torch.ones(ROWS),
        "weight_format": torch.zeros((), dtype=torch.uint8),
    },
    "nf4, nested": nested(),
    "fp8 of kohya": {
        "weight": torch.zeros(ROWS, COLUMNS).to(E4M3),
        "scale_weight": torch.ones(ROWS, 4, 1),
        "scale_weight_tensor": torch.ones(()),
    },
    "nvfp4 with scales of columns": {
        **nvfp4(WEIGHT, 1.0),
        "pre_quant_scale": torch.ones(COLUMNS),
        "bias": torch.zeros(ROWS),
    },
}
#: Without which a weight is another or none, and is refused; all others may be missing.
OPTIONAL = {
    *("weight_codebook", "weight_correction", "weight_format", "pre_quant_scale", "bias"),
    "scale_weight_tensor",
}
SHAPES = [(), (1,), (0,), (3,), (128,), (256,), (128, 1), (1, 256), (128, 128), (128, 256)]
SHAPES += [(2, 128, 256), (1, 1, 1, 1), (256, 1), (0, 256)]
# In which scales may be stored: those of blocks in bytes, too.
SCALES = {torch.float32, torch.bfloat16, torch.float64, torch.uint8, E4M3, E8M0}
DTYPES = [torch.float32, torch.bfloat16, torch.float64, torch.int64, torch.int8, torch.uint8]
DTYPES += [torch.bool, E4M3, torch.float8_e5m2, torch.int32, E8M0]


def read(scheme: str, tensors: dict[str, Tensor], folder: Path) -> bool:
    """Whether it is read; all there is of it. False where it is refused by its name."""
    path = folder / "a.safetensors"
    named = {f"{LAYER}.{part}": tensor.contiguous() for part, tensor in tensors.items()}
    named["other.weight"] = torch.ones(2)
    save_file(named, path, DESCRIBED if scheme == "torchao" else None)
    with open_source(path) as source:
        words = ""
        try:
            refuse_quantised(source)
        except QuantisedError as error:
            words = str(error)
        if words:
            assert LAYER in words
            return False
        for key in source.keys():  # noqa: SIM118
            numbers = source.tensor(key)
            assert tuple(numbers.shape) == source.shape(key)
            if isinstance(source, QuantisedSource) and key in source.weights:
                assert source.reach(key, numbers).shape == numbers.shape
        return True


@pytest.mark.parametrize("scheme", FILES)
def test_a_companion_that_is_missing(scheme: str, tmp_path: Path) -> None:
    tensors = FILES[scheme]
    assert read(scheme, tensors, tmp_path)
    for part in tensors:
        rest = {name: tensor for name, tensor in tensors.items() if name != part}
        # Float8 without any scale is plain.
        is_plain = part == "weight_scale" and scheme.startswith("fp8")
        assert read(scheme, rest, tmp_path) == (part in OPTIONAL or is_plain), part


@pytest.mark.parametrize("scheme", FILES)
def test_a_companion_of_another_shape_or_dtype(scheme: str, tmp_path: Path) -> None:
    tensors = FILES[scheme]
    for part, tensor in tensors.items():
        others = [torch.ones(shape).to(tensor.dtype) for shape in SHAPES if shape != tensor.shape]
        others += [tensor.float().to(dtype) for dtype in DTYPES if dtype != tensor.dtype]
        taken = [other for other in others if read(scheme, {**tensors, part: other}, tmp_path)]
        if "scale" in part or "SCB" in part or "absmax" in part:
            assert {other.dtype for other in taken} <= {tensor.dtype, *SCALES}, part


@pytest.mark.parametrize(
    ("told", "reason"),
    [
        ("[]", "is no JSON object"),
        ("{", "is no JSON"),
        ("{}", "has no `layers`"),
        (json.dumps({"layers": {LAYER: 1}}), "has no settings for it"),
        (json.dumps({"layers": {LAYER: {"format": "nf3"}}}), "format 'nf3', which is not known"),
        (json.dumps({"layers": {LAYER: {"format": "nvfp4"}}}), "has no `.*weight_scale_2`"),
        (json.dumps({"layers": {LAYER: {"format": "float8_e5m2"}}}), "not float8_e5m2"),
    ],
)
def test_metadata_that_configures_wrongly(told: str, reason: str, tmp_path: Path) -> None:
    tensors = {f"{LAYER}.{part}": tensor for part, tensor in FILES["fp8 e4m3"].items()}
    path = tmp_path / "a.safetensors"
    save_file(tensors, path, {"_quantization_metadata": told})
    with open_source(path) as source, pytest.raises(QuantisedError, match=reason):
        refuse_quantised(source)


def test_float8_of_a_linear_layer_needs_its_scale(tmp_path: Path) -> None:
    """As in ComfyUI, where only the scale of a table of vectors is 1 if there is none."""
    for layer, is_read in (("model.embed_tokens", True), ("net.0", False)):
        tensors = {
            f"{layer}.weight": torch.ones(4, 8).to(E4M3),
            f"{layer}.comfy_quant": text(format="float8_e4m3fn"),
        }
        save_file(tensors, tmp_path / f"{layer}.safetensors")
        with open_source(tmp_path / f"{layer}.safetensors") as source:
            if is_read:
                refuse_quantised(source)
                assert torch.equal(source.tensor(f"{layer}.weight").float(), torch.ones(4, 8))
            else:
                with pytest.raises(QuantisedError, match=r"has no `net.0.weight_scale`"):
                    refuse_quantised(source)
