"""Two checkpoints compared: sizes, cosines and what is equal, against a loop in float64."""

from __future__ import annotations

import math

import pytest
import torch
from checkpoints import FLUX, MODELS, SD1, Tensors, grid, source, trained
from commands import tiny
from namings import TRANSLATED, both
from safetensors.torch import save_file

from lorakit.lora_ops import (
    DictSource,
    MergedSource,
    MismatchError,
    TargetMismatchError,
    compare_checkpoints,
    open_source,
    parse_line,
    plan_merge,
)
from lorakit.lora_ops.inspect import compare_checkpoints as module
from lorakit.lora_ops.models.architectures import architecture_named

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn)
UNET = "diffusion_model."
BLOCK = f"{UNET}input_blocks.1.1.transformer_blocks.0"


def norms(pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> tuple[float, float]:
    """Difference as a share of the first, and cosine, number by number from the definition."""
    first = second = apart = inner = 0.0
    for one, other in pairs:
        for a, b in zip(one.double().flatten(), other.double().flatten(), strict=True):
            x, y = float(a), float(b)
            first, second = first + x * x, second + y * y
            apart, inner = apart + (y - x) ** 2, inner + x * y
    return math.sqrt(apart / first), inner / math.sqrt(first * second)


def small(dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensors:
    return {key: one.to(dtype) for key, one in tiny(seed).items()}


@pytest.mark.parametrize("dtypes", [(one, other) for one in DTYPES for other in DTYPES])
def test_it_is_what_a_loop_gives(dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    one, other = (small(dtype) for dtype in dtypes)
    other = {key: (t.float() * 1.01).to(t.dtype) for key, t in other.items()}
    found = compare_checkpoints(DictSource(one), DictSource(other))
    assert [p.name for p in found.parameters] == [key.removeprefix("model.") for key in one]
    for parameter, key in zip(found.parameters, one, strict=True):
        size, cosine = norms([(one[key], other[key])])
        assert parameter.size == pytest.approx(size, rel=1e-5)
        assert 1 - parameter.cosine == pytest.approx(1 - cosine, abs=1e-9, rel=1e-4)
        assert parameter.shape == tuple(one[key].shape)
    size, cosine = norms([(one[key], other[key]) for key in one])
    assert found.total.size == pytest.approx(size, rel=1e-5)
    assert found.total.cosine == pytest.approx(cosine, abs=1e-8)


def test_a_small_change_has_a_cosine_that_is_not_one() -> None:
    """An inner product in float32 would call this 1, or more than 1."""
    one = {key: t.double() for key, t in small().items()}
    noise = small(seed=1)
    other = {key: t + 1e-5 * noise[key].double() for key, t in one.items()}
    found = compare_checkpoints(DictSource(one), DictSource(other))
    exact = [
        1 - (a / a.norm()).flatten() @ (b / b.norm()).flatten()
        for a, b in zip(one.values(), other.values(), strict=True)
    ]
    for parameter, apart in zip(found.parameters, exact, strict=True):
        assert 1 - parameter.cosine == pytest.approx(float(apart), rel=1e-3, abs=1e-15)
        assert parameter.cosine < 1
        assert not parameter.is_equal


def test_groups_are_their_members_together() -> None:
    one = grid(SD1, torch.float16)
    other = trained(one)
    found = compare_checkpoints(source(one), source(other))
    assert list(found.components()) == ["unet", "te", "vae"]
    assert list(found.blocks()) == ["BASE", "IN00", "IN01", "VAE"]
    within = {
        "unet": "model.diffusion_model.",
        "te": "cond_stage_model.",
        "vae": "first_stage_model.",
    }
    for component, prefix in within.items():
        pairs = [(one[key], other[key]) for key in one if key.startswith(prefix)]
        size, cosine = norms(pairs)
        group = found.components()[component]
        assert (group.count, group.equal) == (len(pairs), 0)
        assert group.size == pytest.approx(size, rel=1e-5)
        assert group.cosine == pytest.approx(cosine, abs=1e-6)
    block = "model.diffusion_model.input_blocks.1."
    size, _ = norms([(one[key], other[key]) for key in one if key.startswith(block)])
    assert found.blocks()["IN01"].size == pytest.approx(size, rel=1e-5)
    assert sum(group.count for group in found.blocks().values()) == found.total.count
    assert sum(group.count for group in found.kinds().values()) == found.total.count
    biases = [(one[key], other[key]) for key in one if key.endswith(".bias")]
    assert found.kinds()["bias"].size == pytest.approx(norms(biases)[0], rel=1e-5)


@pytest.mark.parametrize("model", MODELS)
def test_with_itself(model: str) -> None:
    one = grid(MODELS[model], torch.bfloat16)
    found = compare_checkpoints(source(one), source(dict(one)))
    assert found.equal == len(found.parameters)
    assert (found.total.size, found.total.cosine) == (0, 1)
    assert (found.only, found.reshaped, found.not_finite) == (((), ()), (), ())


def test_what_is_equal_is_equal_in_another_dtype() -> None:
    one = grid(FLUX, torch.float16)
    other = {key: tensor.double() for key, tensor in one.items()}
    other["img_in.weight"][3, 2] += 1e-12
    found = compare_checkpoints(source(one), source(other))
    assert [p.name for p in found.parameters if not p.is_equal] == [f"{UNET}img_in.weight"]
    assert {p.storages for p in found.parameters} == {("fp16", "fp64")}


def test_differences_whose_squares_are_nothing_are_differences() -> None:
    one = {key: tensor * 1e-30 for key, tensor in small().items()}
    other = {key: tensor * 1.5 for key, tensor in one.items()}
    found = compare_checkpoints(DictSource(one), DictSource(other))
    assert found.equal == 0
    assert found.total.size == pytest.approx(0.5, rel=1e-5)
    huge = {key: tensor * 1e30 for key, tensor in small().items()}
    found = compare_checkpoints(DictSource(huge), DictSource({k: -t for k, t in huge.items()}))
    assert (found.total.size, found.total.cosine) == pytest.approx((2, -1), rel=1e-6)
    assert found.not_finite == ()


def test_what_is_not_finite_is_named_and_in_no_sum() -> None:
    one, other = small(), {key: tensor * 2 for key, tensor in small().items()}
    bad = f"model.{BLOCK}.attn1.to_q.weight"
    other[bad] = other[bad].clone()
    other[bad][1, 1] = torch.inf
    found = compare_checkpoints(DictSource(one), DictSource(other))
    assert found.not_finite == (f"{BLOCK}.attn1.to_q.weight",)
    assert found.total.size == pytest.approx(1, rel=1e-6)
    assert (found.total.count, found.equal) == (len(one) - 1, 0)
    assert found.to_dict()["not_finite"] == [f"{BLOCK}.attn1.to_q.weight"]


def test_what_one_alone_has_or_has_in_another_shape() -> None:
    one, other = grid(SD1, torch.float16), trained(grid(SD1, torch.float16))
    del one["betas"]
    other["v_pred"] = torch.empty(0)
    wide = other.pop("model.diffusion_model.input_blocks.0.0.weight")
    other["model.diffusion_model.input_blocks.0.0.weight"] = wide.repeat(1, 2, 1, 1)
    for key in [key for key in other if key.startswith("first_stage_model.")]:
        del other[key]
    found = compare_checkpoints(source(one), source(other))
    assert found.only == (
        ("vae.decoder.conv_in.weight", "vae.decoder.conv_in.bias"),
        ("other.betas", "other.v_pred"),
    )
    assert found.reshaped == ((f"{UNET}input_blocks.0.0.weight", (320, 4, 3, 3), (320, 8, 3, 3)),)
    assert len(found.parameters) == len(one) - 3


def test_whole_numbers_and_schedules_are_equal_or_not_but_no_weights() -> None:
    key = "cond_stage_model.transformer.text_model.embeddings.position_ids"
    one = {**grid(SD1, torch.float16), key: torch.arange(77)[None]}
    other = {**one, key: one[key] + 1, "betas": one["betas"] + 1}
    found = compare_checkpoints(source(one), source(other))
    assert found.equal == len(one) - 2
    assert (found.total.size, found.total.count) == (0, len(one) - 2)
    apart = {p.name: p.difference for p in found.parameters if not p.is_equal}
    assert list(apart.values()) == pytest.approx([math.sqrt(10), math.sqrt(77)], rel=1e-3)


@pytest.mark.parametrize("architecture", TRANSLATED, ids=lambda one: one.name)
def test_a_model_of_diffusers_against_a_native_one(architecture) -> None:
    """What one has whole the other has in parts, turned, or with swapped halves."""
    native, foreign = both(architecture)
    found = compare_checkpoints(DictSource(native), DictSource(foreign))
    assert found.equal == len(found.parameters) == len(native)
    other, _ = both(architecture, seed=1)
    across = compare_checkpoints(DictSource(foreign), DictSource(other))
    plain = compare_checkpoints(DictSource(native), DictSource(other))
    assert {p.name: p.difference for p in across.parameters} == pytest.approx(
        {p.name: p.difference for p in plain.parameters}, rel=1e-6
    )


def test_a_folder_against_a_file(tmp_path) -> None:
    native, foreign = both(architecture_named("flux"))
    folder = tmp_path / "model"
    (folder / "transformer").mkdir(parents=True)
    (folder / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    bare = {key.removeprefix("transformer."): tensor for key, tensor in foreign.items()}
    save_file(bare, folder / "transformer" / "diffusion_pytorch_model.safetensors")
    file = tmp_path / "native.safetensors"
    save_file({key: tensor * 1.5 for key, tensor in native.items()}, file)
    with open_source(folder) as one, open_source(file) as other:
        found = compare_checkpoints(one, other)
    assert (found.only, len(found.parameters)) == (((), ()), len(native))
    assert found.total.size == pytest.approx(0.5, rel=1e-6)
    assert found.total.cosine == pytest.approx(1)


def test_pieces_are_those_of_the_whole(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    """Long weights are read a run at a time, rows of fused ones among them."""
    one = grid(MODELS["openclip"], torch.float16)
    other = trained(one)
    for name, tensors in (("one", one), ("other", other)):
        save_file(tensors, tmp_path / f"{name}.safetensors")
    whole = compare_checkpoints(source(one), source(other))
    monkeypatch.setattr(module, "_RUN", 37)
    with (
        open_source(tmp_path / "one.safetensors") as a,
        open_source(tmp_path / "other.safetensors") as b,
    ):
        found = compare_checkpoints(a, b)
    expected = {p.name: (p.difference, *p.norms) for p in whole.parameters}
    assert found.parameters
    assert expected.keys() == {p.name for p in found.parameters}
    for run in found.parameters:
        assert (run.difference, *run.norms) == pytest.approx(expected[run.name], rel=1e-5)


def test_a_merge_that_was_not_written() -> None:
    one, other = small(), small(seed=1)
    sources = {"A": DictSource(one, name="a"), "B": DictSource(other, name="b")}
    plan = plan_merge(parse_line("A + 0.25*(B - A)"), sources)
    found = compare_checkpoints(sources["A"], MergedSource(plan))
    whole = compare_checkpoints(sources["A"], sources["B"])
    assert found.total.size == pytest.approx(0.25 * whole.total.size, rel=1e-5)


def test_models_of_other_kinds_and_adapters_are_refused() -> None:
    flux, wan = (source(grid(MODELS[name], torch.float16), name) for name in ("flux", "wan"))
    with pytest.raises(TargetMismatchError, match="only 0 of"):
        compare_checkpoints(flux, wan)
    lora = {"a.lora_up.weight": torch.ones(4, 2), "a.lora_down.weight": torch.ones(2, 4)}
    with pytest.raises(MismatchError, match="style is an adapter"):
        compare_checkpoints(flux, DictSource(lora, name="style"))
