"""Float8 with scales of every shape, against the definition; damaged ones, which are refused by name."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from lorakit.lora_ops.errors import QuantisedError
from lorakit.lora_ops.files import QuantisedSource, open_source, refuse_quantised
from lorakit.lora_ops.files.quantised.fp8 import widened

ROWS, COLUMNS = 6, 256
E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2


def codes(dtype: torch.dtype = E4M3, *shape: int) -> Tensor:
    return (torch.randn(shape or (ROWS, COLUMNS)) * 40).to(dtype)


def saved(tensors: Mapping[str, Tensor], folder: Path) -> Path:
    save_file(dict(tensors), folder / "a.safetensors")
    return folder / "a.safetensors"


@pytest.mark.parametrize("name", ["scale_weight", "weight_scale", "weight_scale_inv"])
@pytest.mark.parametrize("dtype", [E4M3, E5M2])
@pytest.mark.parametrize(
    ("shape", "rows", "columns"),
    [
        ((), ROWS, COLUMNS),
        ((1,), ROWS, COLUMNS),
        ((1, 1), ROWS, COLUMNS),
        ((ROWS,), 1, COLUMNS),
        ((ROWS, 1), 1, COLUMNS),
        ((ROWS, 4), 1, 64),
        ((ROWS, 4, 1), 1, 64),
        ((3, 2), 2, 128),
    ],
)
def test_scales_of_blocks(
    name: str, dtype: torch.dtype, shape: tuple[int, ...], rows: int, columns: int, tmp_path: Path
) -> None:
    stored, scales = codes(dtype), torch.rand(shape) + 0.1
    tensors = {"net.weight": stored, f"net.{name}": scales, "net.bias": torch.ones(ROWS)}
    spread = scales.reshape(ROWS // rows, COLUMNS // columns)
    spread = spread.repeat_interleave(rows, 0).repeat_interleave(columns, 1)
    with open_source(saved(tensors, tmp_path)) as source:
        found = source.tensor("net.weight")
        assert torch.equal(found, stored.float() * spread)
        assert sorted(source.keys()) == ["net.bias", "net.weight"]
        run = torch.empty(3, 50)
        source.read_into("net.weight", 333, run)
        assert torch.equal(run.flatten(), found.flatten()[333 : 333 + 150])
        # By the definition: from one storable number to the next.
        table = torch.arange(256).to(torch.uint8).view(dtype).double()
        table = table[table.isfinite()].unique()
        at = (
            (stored.double().abs().unsqueeze(-1) - table).abs().argmin(-1).clamp(max=len(table) - 2)
        )
        expected = (table[at + 1] - table[at]) * spread
        steps = source.grid("net.weight", found.double().abs())
        inner = stored.double().abs() < table[-1]
        assert torch.allclose(steps[inner], expected[inner], rtol=1e-6)
        part = source.grid("net.weight", found.double().abs()[2:4].flatten()[7:], 2 * COLUMNS + 7)
        assert torch.equal(part, steps[2:4].flatten()[7:])


@pytest.mark.parametrize("shape", [(3,), (3, 1), (3, 1, 1), (3, 4), (3, 4, 1), (12,), ()])
def test_experts_in_one_tensor(shape: tuple[int, ...], tmp_path: Path) -> None:
    """One scale for each, or for each of their rows."""
    stored, scales = codes(E4M3, 3, 4, 32), torch.rand(shape) + 0.1
    spread = scales.reshape(3, -1, 1) if shape else scales
    tensors = {"net.weight": stored, "net.weight_scale": scales}
    with open_source(saved(tensors, tmp_path)) as source:
        assert torch.equal(source.tensor("net.weight"), stored.float() * spread)
        steps = source.grid("net.weight", source.tensor("net.weight"))
        part = source.grid("net.weight", source.tensor("net.weight")[2], 2 * 4 * 32)
        assert torch.equal(part, steps[2])


def test_a_part_of_a_model_with_the_configuration_of_all(tmp_path: Path) -> None:
    tensors = {"net.weight": codes(), "net.weight_scale": torch.ones(())}
    layers = {name: {"format": "float8_e4m3fn"} for name in ("net", "other")}
    told = {"_quantization_metadata": json.dumps({"layers": layers})}
    save_file(tensors, tmp_path / "a.safetensors", told)
    with open_source(tmp_path / "a.safetensors") as source:
        assert list(source.keys()) == ["net.weight"]
        refuse_quantised(source)


def test_kohyas_second_scale(tmp_path: Path) -> None:
    tensors = {"net.weight": codes(), "net.scale_weight": torch.rand(ROWS, 4, 1)}
    tensors["net.scale_weight_tensor"] = torch.tensor(0.25)
    with open_source(saved(tensors, tmp_path)) as source:
        blocks = (
            tensors["net.weight"].float().view(ROWS, 4, 64) * tensors["net.scale_weight"] * 0.25
        )
        assert torch.equal(source.tensor("net.weight"), blocks.view(ROWS, COLUMNS))


def test_numbers_beside_a_scale_of_1_are_plain(tmp_path: Path) -> None:
    weight = torch.randn(ROWS, COLUMNS).bfloat16()
    tensors = {"net.weight": weight, "net.scale_weight": torch.ones(1)}
    with open_source(saved(tensors, tmp_path)) as source:
        assert list(source.keys()) == ["net.weight"]
        assert source.dtype("net.weight") == source.result_dtype("net.weight") == torch.bfloat16
        assert torch.equal(source.tensor("net.weight"), weight)


def test_sizes_and_dtypes(tmp_path: Path) -> None:
    tensors = {
        "net.weight": codes(),
        "net.weight_scale": torch.rand(ROWS),
        "net.input_scale": torch.tensor(0.5),
        "other.weight": codes(),
    }
    with open_source(saved(tensors, tmp_path)) as source:
        assert isinstance(source, QuantisedSource)
        assert source.stored_size("net.weight") == ROWS * COLUMNS + 4 * ROWS
        assert source.stored_size("other.weight") == ROWS * COLUMNS
        assert source.result_dtype("net.weight") == torch.bfloat16
        assert source.result_dtype("other.weight") == E4M3
        assert source.dtype_name("net.weight") == "F32"
        assert source.storage("other.weight") == "fp8 e4m3"


def test_it_travels(tmp_path: Path) -> None:
    tensors = {"net.weight": codes(), "net.weight_scale": torch.rand(ROWS)}
    with open_source(saved(tensors, tmp_path)) as source:
        other = pickle.loads(pickle.dumps(source))
        assert torch.equal(other.tensor("net.weight"), source.tensor("net.weight"))
        other.close()


def test_shards_and_folders(tmp_path: Path) -> None:
    """A weight and its scales may lie in two shards; a component of a folder keeps its prefix."""
    folder = tmp_path / "transformer"
    folder.mkdir()
    tensors = {"net.weight": codes(), "net.scale_weight": torch.rand(ROWS, 1)}
    index = {}
    for number, (key, tensor) in enumerate(tensors.items()):
        index[key] = f"part-{number}.safetensors"
        save_file({key: tensor}, folder / index[key])
    name = "diffusion_pytorch_model.safetensors.index.json"
    (folder / name).write_text(json.dumps({"weight_map": index}))
    expected = tensors["net.weight"].float() * tensors["net.scale_weight"]
    for path, prefix in ((folder / name, ""), (tmp_path, "transformer."), (folder, "transformer.")):
        with open_source(path) as source:
            assert list(source.keys()) == [f"{prefix}net.weight"]
            assert torch.equal(source.tensor(f"{prefix}net.weight"), expected)
            assert source.own_key(f"{prefix}net.weight") == "net.weight"
            assert [key for part in source.parts() for key in part] == list(source.keys())


@pytest.mark.parametrize("count", [0, 1, 256, 300_001])
@pytest.mark.parametrize("dtype", [E4M3, E5M2, torch.bfloat16])
def test_every_code_is_widened(count: int, dtype: torch.dtype) -> None:
    codes = torch.arange(count * dtype.itemsize).to(torch.uint8).view(dtype)
    found = widened(codes)
    assert torch.equal(
        found.view(torch.int32)[~codes.float().isnan()],
        codes.float().view(torch.int32)[~codes.float().isnan()],
    )
    assert torch.equal(found.isnan(), codes.float().isnan())
    finite = codes[codes.float().isfinite()]
    assert torch.equal(widened(finite), finite.float())
    assert widened(codes).data_ptr() != codes.data_ptr() or not count


def text(**settings: object) -> Tensor:
    return torch.tensor(list(json.dumps(settings).encode()), dtype=torch.uint8)


NVFP4 = {
    "net.weight": torch.zeros(16, 32, dtype=torch.uint8),
    "net.weight_scale": torch.zeros(128, 4, dtype=torch.uint8),
    "net.weight_scale_2": torch.ones(()),
    "net.comfy_quant": text(format="nvfp4"),
}
INT8 = {
    "net.weight": torch.zeros(4, 64, dtype=torch.int8),
    "net.weight_scale": torch.ones(4, 1),
    "net.comfy_quant": text(format="int8_tensorwise", convrot=True, convrot_groupsize=64),
}
STATE = "net.weight.quant_state.bitsandbytes__nf4"
NF4 = {
    "net.weight": torch.zeros(64, 1, dtype=torch.uint8),
    "net.weight.absmax": torch.ones(2),
    "net.weight.quant_map": torch.linspace(-1, 1, 16),
    STATE: text(quant_type="nf4", blocksize=64, dtype="bfloat16", shape=[2, 64]),
}
FP8 = {"net.weight": codes(E4M3, 4, 64), "net.weight_scale": torch.ones(())}


@pytest.mark.parametrize(
    ("tensors", "changed", "reason"),
    [
        (FP8, {"net.weight": None}, "the file has no `net.weight`"),
        (FP8, {"net.weight_scale": torch.ones(5)}, r"shape \[5\], which are no blocks"),
        (FP8, {"net.weight_scale": torch.ones(4, 5)}, r"shape \[4, 5\]"),
        (FP8, {"net.weight_scale": torch.ones(0)}, r"shape \[0\]"),
        (
            FP8,
            {"net.weight": torch.ones(4, 64)[:, :32].int()},
            "stored as int32, not float8_e4m3fn",
        ),
        (FP8, {"net.weight": torch.ones(4, 64), "net.weight_scale": torch.ones(1) * 2}, "is not 1"),
        (FP8, {"net.comfy_quant": text(format="float8_e5m2")}, "float8_e4m3fn, not float8_e5m2"),
        (
            FP8,
            {"net.comfy_quant": text(format="nf3")},
            "names the format 'nf3', which is not known",
        ),
        (FP8, {"net.comfy_quant": text()}, "names the format None"),
        (FP8, {"net.comfy_quant": torch.zeros(5)}, "is no text"),
        (FP8, {"net.comfy_quant": torch.zeros(5, dtype=torch.uint8)}, "is no JSON"),
        (FP8, {"net.comfy_quant": torch.tensor(list(b"[]"), dtype=torch.uint8)}, "no JSON object"),
        (NVFP4, {"net.weight_scale": None}, "the file has no `net.weight_scale`"),
        (NVFP4, {"net.weight_scale_2": None}, "the file has no `net.weight_scale_2`"),
        (NVFP4, {"net.weight_scale": NVFP4["net.weight_scale"][:16].clone()}, r"not \[128, 4\]"),
        (NVFP4, {"net.weight": torch.zeros(16, 31, dtype=torch.uint8)}, "no blocks of 16"),
        (NVFP4, {"net.bias": torch.zeros(17)}, r"told to have \[17, 64\]"),
        (NVFP4, {"net.pre_quant_scale": torch.zeros(17)}, r"shape \[17\], not \[64\]"),
        (
            NVFP4,
            {"net.comfy_quant": text(format="nvfp4", orig_shape=[16, "a"])},
            r"told to have \[16, 'a'\]",
        ),
        (INT8, {"net.weight_scale": torch.ones(3, 1)}, r"shape \[3, 1\]"),
        (
            INT8,
            {"net.comfy_quant": text(format="int8_tensorwise", convrot=True, convrot_groupsize=32)},
            "groups of 32, which must be a power of 4",
        ),
        (INT8, {"net.comfy_quant": text(format="int8_tensorwise", convrot=True)}, "groups of 256"),
        (INT8, {"net.comfy_quant": text(format="asym_w4a8_int8")}, "has no `net.weight_s_rel`"),
        (NF4, {"net.weight.absmax": None}, "the file has no `net.weight.absmax`"),
        (NF4, {"net.weight.absmax": torch.ones(3)}, r"shape \[3\], not \[2\]"),
        (NF4, {"net.weight": torch.zeros(63, 1, dtype=torch.uint8)}, "does not hold 128 numbers"),
        (NF4, {STATE: text(blocksize=64, dtype="bfloat16")}, "tells no shape"),
        (
            NF4,
            {"net.weight.absmax": torch.zeros(2, dtype=torch.uint8)},
            "no `net.weight.nested_abs",
        ),
    ],
)
def test_damaged_layers_are_refused_by_name(
    tensors: dict[str, Tensor], changed: dict[str, Tensor | None], reason: str, tmp_path: Path
) -> None:
    """They open, so that it can be said what they are; but they are no checkpoints."""
    sound = saved({**tensors, "other.weight": torch.ones(2)}, tmp_path)
    with open_source(sound) as source:
        assert isinstance(source, QuantisedSource)
        refuse_quantised(source)
    found = {k: t for k, t in {**tensors, **changed}.items() if t is not None}
    with open_source(saved({**found, "other.weight": torch.ones(2)}, tmp_path)) as source:
        with pytest.raises(QuantisedError, match=reason) as caught:
            refuse_quantised(source)
        assert "the weight of `net` cannot be decoded" in str(caught.value)
        assert "give the unquantised" in str(caught.value)
