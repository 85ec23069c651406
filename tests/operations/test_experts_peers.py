"""Folders of PEFT with stacks of experts, read back: what PEFT merges is what is baked, verified and edited."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hugging_face import MODELS, loaded, pair_of, peft
from torch import Tensor, nn

from lorakit.lora_ops import (
    Ingredient,
    Report,
    add_files,
    bake_file,
    describe,
    extract_file,
    lint,
    open_source,
    plan_bake_file,
    plan_file,
    resize_file,
    scale_file,
    verify,
)
from lorakit.lora_ops.errors import ArgumentError, LayerShapeError, UnsupportedLayerError

pytestmark = pytest.mark.filterwarnings("ignore")

# Files with experts one by one, with renamed modules, and with stacks of (experts, in, out).
EXPERTS = ("qwen3 moe", "qwen2 moe", "mixtral", "gpt-oss")


def extracted(name: str, folder: Path, rank: str | int = 3, **options) -> Report:
    """The report of `ours`, made of `base` and `tuned`, which are made, too."""
    pair_of(name, folder)
    with open_source(folder / "base") as base, open_source(folder / "tuned") as tuned:
        plan = plan_file(base, tuned, rank, output=folder / "ours", format="peft", **options)
        return extract_file(plan, base, tuned, folder / "ours", format="peft")


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: one.detach().clone() for name, one in model.named_parameters()}


def merged(name: str, folder: Path, adapter: str = "ours") -> dict[str, Tensor]:
    """What PEFT merges, which finds all keys of the folder and misses none."""
    return weights(loaded(name, folder, adapter).merge_and_unload())


def plain(name: str, folder: Path) -> dict[str, Tensor]:
    return weights(type(MODELS[name]()).from_pretrained(folder))


def baked(name: str, folder: Path, adapter: str = "ours") -> dict[str, Tensor]:
    with open_source(folder / "base") as base, open_source(folder / adapter) as lora:
        plan = plan_bake_file(base, [Ingredient(lora)], output=folder / "baked")
        bake_file(plan, base, folder / "baked")
    return plain(name, folder / "baked")


def same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, one in wanted.items():
        torch.testing.assert_close(found[name], one, rtol=1e-6, atol=1e-7, msg=name)


@pytest.mark.parametrize("name", [*EXPERTS, "vit", "bert"])
def test_what_is_baked_is_what_peft_merges(name: str, tmp_path: Path) -> None:
    extracted(name, tmp_path, full_differences=True)
    found = baked(name, tmp_path)
    assert any(
        bool((one != found[key]).any()) for key, one in plain(name, tmp_path / "base").items()
    )
    same(found, merged(name, tmp_path))


@pytest.mark.parametrize("name", [*EXPERTS, "llama", "qwen2, tied", "vit"])
def test_each_layer_is_verified_to_the_error_of_the_extraction(name: str, tmp_path: Path) -> None:
    """Those that are saved whole, too; what PEFT has no place for is all that is not in the adapter."""
    report = extracted(name, tmp_path)
    with (
        open_source(tmp_path / "base") as base,
        open_source(tmp_path / "tuned") as tuned,
        open_source(tmp_path / "ours") as lora,
    ):
        found = verify(base, tuned, lora)
        assert not lint(lora).has_errors
    wanted = {one.target: one for one in report.layers}
    # A tied weight is in the folder under both of its names, and in the checkpoints once.
    assert {one.target for one in found.layers} == wanted.keys()
    for one in found.layers:
        assert one.norm == pytest.approx(wanted[one.target].norm, rel=1e-6)
        residual = wanted[one.target].residual
        assert one.residual == pytest.approx(residual, rel=1e-4, abs=1e-6), one.target
    assert {one.target for one in found.skips} == {one.target for one in report.skips}
    assert found.error == pytest.approx(report.error, rel=1e-5)


@pytest.mark.parametrize("name", ["qwen3 moe", "gpt-oss"])
def test_edits_write_stacks_that_peft_loads(name: str, tmp_path: Path) -> None:
    extracted(name, tmp_path)
    base, whole = plain(name, tmp_path / "base"), merged(name, tmp_path)
    with open_source(tmp_path / "ours") as lora, open_source(tmp_path / "ours") as again:
        scale_file(Ingredient(lora, 0.5), tmp_path / "half")
        resized = resize_file(lora, tmp_path / "small", "mean=2")
        add_files([Ingredient(lora), Ingredient(again, -0.25)], tmp_path / "sum")
    saved = ("embed_tokens", "lm_head")  # whole: they are what they are
    factored = [key for key in base if not any(one in key for one in saved)]
    assert sum(".experts." in key for key in factored) == (8 if name == "gpt-oss" else 4)
    for adapter, share in (("half", 0.5), ("sum", 0.75)):
        found = merged(name, tmp_path, adapter)
        for key in factored:
            wanted = base[key] + share * (whole[key] - base[key])
            torch.testing.assert_close(found[key], wanted, rtol=1e-5, atol=1e-6, msg=key)
    found = merged(name, tmp_path, "small")
    missed = sum(float((found[key] - whole[key]).square().sum()) for key in factored)
    assert len({one.rank for one in resized.layers}) > 1
    told = [one.residual for one in resized.layers] + [one.norm for one in resized.skips]
    assert missed == pytest.approx(sum(one**2 for one in told), rel=1e-3)
    assert missed > 0.01


@pytest.mark.parametrize("name", ["mixtral", "gpt-oss"])
@pytest.mark.parametrize("rslora", [False, True])
def test_a_folder_that_peft_made_is_read_as_it_merges_it(
    name: str, rslora: bool, tmp_path: Path
) -> None:
    """Parameters by the ends of their names, ranks by patterns on these, alphas of their own."""
    base, _ = pair_of(name, tmp_path)
    config = peft.LoraConfig(
        r=2,
        lora_alpha=3,
        use_rslora=rslora,
        target_modules=["q_proj"],
        target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
        rank_pattern={"mlp.experts.down_proj": 4, "layers.1.self_attn.q_proj": 1},
        alpha_pattern={"layers.0.mlp.experts.gate_up_proj": 5},
    )
    model = peft.get_peft_model(base, config)
    torch.manual_seed(3)
    with torch.no_grad():
        for key, one in model.named_parameters():
            if "lora_" in key:
                one.copy_(torch.randn_like(one) / 3)
    model.save_pretrained(tmp_path / "ours")
    with open_source(tmp_path / "ours") as lora:
        assert describe(lora).ranks == {1: 1, 2: 1 + 2 * 3, 4: 2 * 3}
        assert not lint(lora).has_errors
    found = baked(name, tmp_path)
    same(found, merged(name, tmp_path))
    same(found, weights(model.merge_and_unload()))


def test_a_configuration_that_is_not_of_the_factors_is_refused(tmp_path: Path) -> None:
    """Two parameters of a module nest, and only the model says whose wrapper is the outer one."""
    extracted("mixtral", tmp_path)
    path = tmp_path / "ours" / "adapter_config.json"
    text = path.read_text()
    for old, new, message in (
        ("experts.down_proj", "experts.other", "`gate_up_proj`, `other` of .*whose is not known"),
        ("experts.down_proj", "elsewhere.down_proj", "and the file no factors of it"),
        ('"r": 3', '"r": 4', "rank 4: these do not divide into experts"),
    ):
        path.write_text(text.replace(old, new))
        with open_source(tmp_path / "ours") as lora, open_source(tmp_path / "base") as base:
            with pytest.raises((UnsupportedLayerError, LayerShapeError), match=message):
                plan_bake_file(base, [Ingredient(lora)])
            assert lint(lora).has_errors
            assert describe(lora).format == "peft"


def test_what_cannot_be_done_with_stacks_is_refused_before_it_begins(tmp_path: Path) -> None:
    extracted("gpt-oss", tmp_path)
    with open_source(tmp_path / "ours") as lora:
        with pytest.raises(ArgumentError, match="reads from its folder alone; give the name of"):
            scale_file(Ingredient(lora, 0.5), tmp_path / "half.safetensors")
        with pytest.raises(ArgumentError, match=r"one rank for all.*give mean= or total_error="):
            resize_file(lora, tmp_path / "small", "size=9kB")
        with pytest.raises(UnsupportedLayerError, match=r"scale 0.5, and other experts of .* 1: "):
            scale_file(Ingredient(lora, 1.0, where=["*experts.down_proj.1=0.5"]), tmp_path / "odd")
    (tmp_path / "base" / "config.json").unlink()
    with (
        open_source(tmp_path / "ours") as lora,
        open_source(tmp_path / "base") as base,
        pytest.raises(ArgumentError, match="which of their axes is the input is not known"),
    ):
        plan_bake_file(base, [Ingredient(lora)])
    assert {one.name for one in tmp_path.iterdir()} == {"base", "tuned", "ours"}
