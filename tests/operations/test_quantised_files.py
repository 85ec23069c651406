"""Work on quantised files gives what it gives on the numbers that they stand for, to the bit."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from bits import assert_equal
from checkpoints import FLUX, grid
from commands import lorakit_here
from safetensors.torch import load_file, save_file
from torch import Tensor

from lorakit.lora_ops import (
    DictSource,
    FileSource,
    Ingredient,
    bake,
    extract,
    open_source,
    save_adapter,
    verify,
)
from lorakit.lora_ops.errors import MismatchError
from lorakit.lora_ops.operations.bake.file import bake_file, plan_bake_file
from lorakit.lora_ops.operations.merge.file import merge_file, plan_merge_file
from lorakit.lora_ops.operations.merge.merge import merge
from lorakit.lora_ops.operations.merge.recipes.expression import parse_line
from lorakit.lora_ops.operations.resize.importance import importance

BASE = {
    key: (
        torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed)) * 0.05
    ).bfloat16()
    for seed, (key, weight) in enumerate(grid(FLUX, torch.bfloat16).items())
}
KEYS = [k for k, w in BASE.items() if w.ndim == 2 and k.startswith("double_blocks")]
E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2


def tuned() -> dict[str, Tensor]:
    """The base and a change of rank 3, larger than any rounding below."""
    draw = torch.Generator().manual_seed(5)
    tensors = dict(BASE)
    for key in KEYS:
        (out, width), size = BASE[key].shape, BASE[key].float().std()
        change = torch.randn(out, 3, generator=draw) @ torch.randn(3, width, generator=draw)
        tensors[key] = (BASE[key].float() + 0.5 * size * change).bfloat16()
    return tensors


def config(**settings: object) -> Tensor:
    return torch.tensor(list(json.dumps(settings).encode()), dtype=torch.uint8)


def old_fp8(layer: str, weight: Tensor) -> dict[str, Tensor]:
    scale = weight.abs().max() / 448
    codes = (weight / scale).to(E4M3)
    return {
        f"{layer}.weight": codes,
        f"{layer}.scale_weight": scale,
        f"{layer}.scale_input": scale.clone(),
    }


def fp8_rows(layer: str, weight: Tensor) -> dict[str, Tensor]:
    scale = weight.abs().amax(1, keepdim=True) / 57344
    return {
        f"{layer}.weight": (weight / scale).to(E5M2),
        f"{layer}.weight_scale": scale,
        f"{layer}.comfy_quant": config(format="float8_e5m2"),
    }


def int8_rows(layer: str, weight: Tensor) -> dict[str, Tensor]:
    scale = weight.abs().amax(1, keepdim=True) / 127
    return {
        f"{layer}.weight": (weight / scale).round().to(torch.int8),
        f"{layer}.weight_scale": scale,
        f"{layer}.comfy_quant": config(format="int8_tensorwise"),
    }


STORES = {"old fp8": old_fp8, "fp8 by rows": fp8_rows, "int8 by rows": int8_rows}


def stored(tensors: dict[str, Tensor], store: str) -> dict[str, Tensor]:
    found = {key: tensor for key, tensor in tensors.items() if key not in KEYS}
    for key in KEYS:
        found |= STORES[store](key.removesuffix(".weight"), tensors[key].float())
    return found


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[dict[str, FileSource]]:
    """Base and tuned model in every storage; `base, int8 by rows` is one."""
    with ExitStack() as stack:
        found: dict[str, FileSource] = {}
        for side, tensors in (("base", BASE), ("tuned", tuned())):
            save_file(tensors, tmp_path / f"{side}, plain.safetensors")
            for store in STORES:
                save_file(stored(tensors, store), tmp_path / f"{side}, {store}.safetensors")
        for path in tmp_path.iterdir():
            found[path.stem] = stack.enter_context(open_source(path))
        yield found


def numbers(source: FileSource) -> DictSource:
    tensors = {key: source.tensor(key) for key in source.keys()}  # noqa: SIM118
    return DictSource(tensors, name=source.name)


@pytest.mark.parametrize(
    ("base", "other"),
    [
        ("plain", "old fp8"),
        ("fp8 by rows", "plain"),
        ("old fp8", "old fp8"),
        ("old fp8", "int8 by rows"),
        ("int8 by rows", "fp8 by rows"),
    ],
)
def test_extract_and_verify(
    opened: dict[str, FileSource], base: str, other: str, tmp_path: Path
) -> None:
    sides = opened[f"base, {base}"], opened[f"tuned, {other}"]
    found, report = extract(*sides, 4)
    expected, _ = extract(numbers(sides[0]), numbers(sides[1]), 4, dtype=torch.bfloat16)
    assert found.layers.keys() == expected.layers.keys()
    for target, one in found.layers.items():
        assert one.dtype == torch.bfloat16
        assert torch.equal(one.delta(torch.float32), expected.layers[target].delta(torch.float32))
    assert report.error is not None
    save_adapter(found, tmp_path / "lora.safetensors")
    with open_source(tmp_path / "lora.safetensors") as adapter:
        assert verify(*sides, adapter).error == pytest.approx(report.error, rel=1e-4)


@pytest.mark.parametrize("base", ["plain", *STORES])
@pytest.mark.parametrize("other", ["plain", *STORES])
def test_one_model_stored_in_two_ways_is_no_change(
    opened: dict[str, FileSource], base: str, other: str
) -> None:
    """Two quantisations of one model differ nearly everywhere, and nowhere by more than rounding."""
    sides = opened[f"base, {base}"], opened[f"base, {other}"]
    if base == other:
        return
    assert any(
        not torch.equal(sides[0].tensor(key).float(), sides[1].tensor(key).float()) for key in KEYS
    )
    with pytest.raises(MismatchError, match="only storage rounding differs"):
        extract(*sides, 4)
    # By the numbers alone it would be one.
    if "plain" not in (base, other):
        assert len(extract(numbers(sides[0]), numbers(sides[1]), 4)[0].layers) == len(KEYS)


def lora(model: FileSource, base: FileSource, folder: Path) -> FileSource:
    extracted, _ = extract(base, model, 3)
    save_adapter(extracted, folder / "lora.safetensors")
    return open_source(folder / "lora.safetensors")


@pytest.mark.parametrize("store", STORES)
def test_bake(opened: dict[str, FileSource], store: str, tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    model = opened[f"base, {store}"]
    with lora(opened["tuned, plain"], opened["base, plain"], tmp_path / "more") as adapter:
        ingredients = [Ingredient(adapter, 1.0)]
        output = tmp_path / "more" / "out.safetensors"
        plan = plan_bake_file(model, ingredients, output=output, dtype=torch.bfloat16)
        report = bake_file(plan, model, output)
        expected, _ = bake(numbers(model), ingredients, dtype=torch.bfloat16)
        found = load_file(output)
        assert found.keys() == BASE.keys()
        for key, tensor in found.items():
            assert tensor.dtype == torch.bfloat16
            assert_equal(tensor, expected[key])
    note = f"{len(KEYS)} weights stored as {model.storage(KEYS[0])} written as bf16"
    assert note in report.notes
    assert (found[KEYS[0]].float() - tuned()[KEYS[0]].float()).norm() < 0.1 * found[
        KEYS[0]
    ].float().norm()


def test_bake_by_the_command(opened: dict[str, FileSource], tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    lora(opened["tuned, plain"], opened["base, plain"], tmp_path / "more").close()
    model, out = tmp_path / "base, old fp8.safetensors", tmp_path / "more" / "out.safetensors"
    asked = ("-o", out, "--dtype", "bf16")
    done = lorakit_here("bake", model, tmp_path / "more" / "lora.safetensors", *asked)
    assert (done.status, done.err) == (0, "")
    assert {tensor.dtype for tensor in load_file(out).values()} == {torch.bfloat16}


def test_merge(opened: dict[str, FileSource], tmp_path: Path) -> None:
    recipe = parse_line("A + 0.5*(B - C)")
    models = {
        name: opened[which]
        for name, which in (
            ("A", "base, int8 by rows"),
            ("B", "tuned, old fp8"),
            ("C", "base, old fp8"),
        )
    }
    expected, _ = merge(recipe, {name: numbers(model) for name, model in models.items()})
    (tmp_path / "more").mkdir()
    output = tmp_path / "more" / "out.safetensors"
    written = recipe.with_output(dtype="bf16")
    merge_file(plan_merge_file(written, models, output=output), output, version="0")
    found = load_file(output)
    assert found.keys() == expected.keys()
    for key, tensor in found.items():
        assert tensor.dtype == torch.bfloat16
        assert_equal(tensor, expected[key].bfloat16())


def test_the_importance_of_layers(opened: dict[str, FileSource]) -> None:
    model = opened["base, int8 by rows"]
    names = [f"diffusion_model.{key.removesuffix('.weight')}" for key in KEYS]
    assert importance(names, model) == importance(names, numbers(model))


def test_a_folder_forgets_the_quantiser_of_what_is_decoded(tmp_path: Path) -> None:
    """Baked, a component is plain: its configuration must not say otherwise."""
    block = "transformer_blocks.0.attn.to_q"
    weight = torch.randn(48, 64)
    folder = tmp_path / "model"
    for part in ("transformer", "vae"):
        (folder / part).mkdir(parents=True)
        told = {"_class_name": "Any", "quantization_config": {"quant_method": "bitsandbytes"}}
        (folder / part / "config.json").write_text(json.dumps(told))
    (folder / "model_index.json").write_text("{}")
    tensors = int8_rows(block, weight) | {
        "transformer_blocks.0.norm1_context.linear.weight": torch.ones(4, 4)
    }
    save_file(tensors, folder / "transformer" / "diffusion_pytorch_model.safetensors")
    save_file(
        {"decoder.conv_in.weight": torch.ones(4, 4)},
        folder / "vae" / "diffusion_pytorch_model.safetensors",
    )
    up, down = torch.ones(48, 1), torch.ones(1, 64)
    factors = {f"transformer.{block}.lora_B.weight": up, f"transformer.{block}.lora_A.weight": down}
    save_file(factors, tmp_path / "lora.safetensors")
    with open_source(folder) as model, open_source(tmp_path / "lora.safetensors") as adapter:
        plan = plan_bake_file(model, [Ingredient(adapter, 1.0)], output=tmp_path / "out")
        bake_file(plan, model, tmp_path / "out")
    configs = [
        json.loads((tmp_path / "out" / p / "config.json").read_text())
        for p in ("transformer", "vae")
    ]
    assert configs[0] == {"_class_name": "Any"}
    assert "quantization_config" in configs[1], "its numbers are as they were"
    found = load_file(tmp_path / "out" / "transformer" / "diffusion_pytorch_model.safetensors")
    scale = tensors[f"{block}.weight_scale"]
    exact = tensors[f"{block}.weight"].float() * scale + 1
    assert torch.equal(found[f"{block}.weight"], exact.bfloat16())
    assert found.keys() == {f"{block}.weight", "transformer_blocks.0.norm1_context.linear.weight"}


def test_shards_stay_shards(tmp_path: Path) -> None:
    """A weight and its scale in two of them; what is written has the weight where it was."""
    block = "double_blocks.0.img_attn.qkv"
    weight = torch.randn(48, 64)
    tensors = old_fp8(block, weight) | {"double_blocks.0.img_attn.proj.bias": torch.ones(4)}
    names = {key: f"part-{number // 2}.safetensors" for number, key in enumerate(tensors)}
    for file in set(names.values()):
        save_file({k: t for k, t in tensors.items() if names[k] == file}, tmp_path / file)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": names}))
    factors = {
        f"{block}.lora_up.weight": torch.ones(48, 1),
        f"{block}.lora_down.weight": torch.ones(1, 64),
    }
    save_file(
        {f"diffusion_model.{k}": t for k, t in factors.items()}, tmp_path / "lora.safetensors"
    )
    output = tmp_path / "out.safetensors.index.json"
    with open_source(index) as model, open_source(tmp_path / "lora.safetensors") as adapter:
        plan = plan_bake_file(
            model, [Ingredient(adapter, 1.0)], output=output, dtype=torch.bfloat16
        )
        bake_file(plan, model, output)
    with open_source(output) as found:
        exact = tensors[f"{block}.weight"].float() * tensors[f"{block}.scale_weight"] + 1
        assert torch.equal(found.tensor(f"{block}.weight"), exact.bfloat16())
        assert sorted(map(len, found.parts())) == [1, 1]
