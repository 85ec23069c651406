"""What must not be edited: each refused with what, where and the way out, and no file left behind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from adapters import EVERY_FORM, Part, module_name, tensors, written
from commands import contents, lorakit_here
from safetensors.torch import save_file
from torch import Tensor

from lorakit.lora_ops import errors, open_source
from lorakit.lora_ops.adapters.formats import decode
from lorakit.lora_ops.adapters.strengths.ingredient import Ingredient
from lorakit.lora_ops.inspect.compare import compare
from lorakit.lora_ops.operations.add.file import add_files
from lorakit.lora_ops.operations.resize.file import resize_file
from lorakit.lora_ops.operations.scale.file import scale_file

GOOD = tensors([Part(p.form, 4, 2.0, torch.float16, p.seed) for p in EVERY_FORM])
Q = module_name(Part().name, "kohya")
Do = Callable[[Path, Path], object]


def do_resize(bad: Path, _good: Path) -> object:
    with open_source(bad) as source:
        return resize_file(source, bad.with_name("x.safetensors"), 2)


def do_scale(bad: Path, _good: Path) -> object:
    with open_source(bad) as source:
        return scale_file(Ingredient(source, 0.5), bad.with_name("x.safetensors"))


def do_add(bad: Path, good: Path) -> object:
    with open_source(good) as one, open_source(bad) as other:
        given = [Ingredient(one), Ingredient(other, 0.5)]
        return add_files(given, bad.with_name("x.safetensors"))


def do_compare(bad: Path, good: Path) -> object:
    with open_source(good) as one, open_source(bad) as other:
        return compare(decode(one), decode(other), names=(one.name, other.name))


EDITS = {"resize": do_resize, "scale": do_scale, "add": do_add, "compare": do_compare}
every = pytest.mark.parametrize("do", EDITS.values(), ids=EDITS)
joining = pytest.mark.parametrize("do", [do_add, do_compare], ids=["add", "compare"])


@pytest.fixture
def good(tmp_path: Path) -> Path:
    return written(tmp_path / "good.safetensors", GOOD)


def refused(do: Do, good: Path, found: dict[str, Tensor], kind: type[Exception]) -> str:
    """The message; the folder is as it was."""
    bad = good.with_name("bad.safetensors")
    save_file({key: tensor.clone() for key, tensor in found.items()}, bad)
    before = contents(good.parent)
    with pytest.raises(kind) as caught:
        do(bad, good)
    assert contents(good.parent) == before
    return str(caught.value)


def without(module: str) -> dict[str, Tensor]:
    return {key: tensor for key, tensor in GOOD.items() if not key.startswith(module)}


@every
def test_the_good_one_is_not_refused(do: Do, good: Path) -> None:
    """The twin of everything here."""
    do(written(good.with_name("bad.safetensors"), GOOD), good)


# --- Numbers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("role", ["lora_up", "lora_down", "lora_mid"])
@every
def test_numbers_that_are_none(do: Do, role: str, value: float, good: Path) -> None:
    core = module_name("input_blocks.2.0.in_layers.2", "kohya")
    module = core if role == "lora_mid" else Q
    key = f"{module}.{role}.weight"
    damaged = GOOD[key].clone()
    damaged.view(-1)[3:5] = value
    message = refused(do, good, GOOD | {key: damaged}, errors.NonFiniteError)
    kinds = "2 NaN and 0 infinite" if value != value else "0 NaN and 2 infinite"
    role = role.removeprefix("lora_")
    assert (
        f"the {role} of layer `{module}` holds {kinds} values out of {damaged.numel()}" in message
    )
    assert "use another" in message
    if do in (do_add, do_compare):
        assert "bad.safetensors" in message, "of two files, which one"


@every
def test_an_alpha_that_is_none(do: Do, good: Path) -> None:
    message = refused(
        do, good, GOOD | {f"{Q}.alpha": torch.tensor(float("nan"))}, errors.NonFiniteError
    )
    assert f"layer `{Q}`" in message


@every
def test_factors_that_are_too_large_with_their_scale(do: Do, good: Path) -> None:
    huge = {f"{Q}.lora_up.weight": torch.full((40, 4), 1e30), f"{Q}.alpha": torch.tensor(1e12)}
    message = refused(do, good, GOOD | huge, errors.NonFiniteError)
    assert f"the change of layer `{Q}` is too large for float32" in message


def test_strengths_beyond_the_dtype(good: Path) -> None:
    """Where an alpha holds them there is no limit; without one fp16 ends at 65504."""
    found = {k.replace("lora_unet_", "base_model.model."): v for k, v in GOOD.items()}
    found = {k: v for k, v in found.items() if not k.endswith(".alpha")}
    bad = written(good.with_name("bad.safetensors"), found)
    for path, fits in ((good, True), (bad, False)):
        for run in ("scale", "add"):
            output = good.with_name(f"{run}-{fits}.safetensors")
            with open_source(path) as source:
                given = Ingredient(source, 1e6)
                if fits:
                    scale_file(given, output) if run == "scale" else add_files([given], output)
                    continue
                with pytest.raises(errors.NonFiniteError, match=r"do not fit float16.*`dtype=`"):
                    scale_file(given, output) if run == "scale" else add_files([given], output)
            assert not output.exists()


@every
def test_factors_of_integers(do: Do, good: Path) -> None:
    stored = {k: v.to(torch.int8) if k.startswith(Q) else v for k, v in GOOD.items()}
    message = refused(do, good, stored, errors.QuantisedError)
    assert f"layer `{Q}`" in message
    assert "use the file it was quantised from" in message


def test_every_layer_zero(good: Path) -> None:
    zero = {k: v if k.endswith(".alpha") else torch.zeros_like(v) for k, v in GOOD.items()}
    bad = written(good.with_name("bad.safetensors"), zero)
    before = contents(good.parent)
    with pytest.raises(errors.MismatchError, match=r"no layer is left \(5 layers changes? nothing"):
        do_resize(bad, good)
    with pytest.raises(errors.MismatchError, match=r"no layer is left \(5 layers changes? nothing"):
        do_add(bad, bad)
    assert contents(good.parent) == before
    do_add(bad, good)


# --- Kinds ---------------------------------------------------------------------------------------

T = torch.ones(4, 4)
KINDS = {
    "OFT": {".oft_diag": torch.ones(2, 4, 4)},
    "mixed": {".lora_up.weight": T, ".lora_down.weight": T, ".lokr_w1": T},
}


@pytest.mark.parametrize("kind", KINDS)
@every
def test_other_kinds_are_refused_with_their_names(do: Do, kind: str, good: Path) -> None:
    found = without(Q) | {Q + suffix: tensor for suffix, tensor in KINDS[kind].items()}
    message = refused(do, good, found, errors.UnsupportedLayerError)
    assert "bad.safetensors" in message
    assert f"layer `{Q}` is of kind {kind}" in message
    assert "which cannot be read as a LoRA layer; leave the file out, or bake it" in message


@every
def test_dora_is_refused(do: Do, good: Path) -> None:
    """Its change depends on the base weight; a sum of factors would be something else."""
    found = GOOD | {f"{Q}.dora_scale": torch.ones(40, 1)}
    message = refused(do, good, found, errors.UnsupportedLayerError)
    assert f"`{Q}`" in message
    assert "DoRA" in message
    if do in (do_add, do_compare):
        assert "bad.safetensors" in message, "of two files, which one"


# --- Files that are incomplete, or none ----------------------------------------------------------


@pytest.mark.parametrize("role", ["up", "down"])
@every
def test_half_a_layer(do: Do, role: str, good: Path) -> None:
    found = {k: v for k, v in GOOD.items() if k != f"{Q}.lora_{role}.weight"}
    message = refused(do, good, found, errors.LayerShapeError)
    assert f"layer `{Q}` has no {role} factor" in message


@every
def test_factors_that_do_not_fit(do: Do, good: Path) -> None:
    found = GOOD | {f"{Q}.lora_up.weight": torch.ones(40, 3)}
    message = refused(do, good, found, errors.LayerShapeError)
    assert (
        f"layer `{Q}`: up is (40, 3) and down is (4, 24): their ranks, 3 and 4, differ" in message
    )


@every
def test_an_alpha_of_two_numbers(do: Do, good: Path) -> None:
    message = refused(do, good, GOOD | {f"{Q}.alpha": torch.ones(2)}, errors.LayerShapeError)
    assert f"alpha `{Q}.alpha` is (2,), not one number" in message


@pytest.mark.parametrize(
    "found",
    [
        {},
        {"emb_params": torch.ones(2, 3)},
        {f"{Q}.alpha": torch.tensor(1.0)},
        {"model.diffusion_model.input_blocks.0.0.weight": torch.ones(4, 4, 3, 3)},
    ],
    ids=["empty", "embedding", "alpha of nothing", "checkpoint"],
)
@every
def test_a_file_without_layers(do: Do, found: dict[str, Tensor], good: Path) -> None:
    message = refused(do, good, found, errors.UnknownFormatError)
    assert "bad.safetensors" in message
    words = {
        "emb_params": "is an embedding, not a LoRA",
        "model.diffusion_model.input_blocks.0.0.weight": "is a checkpoint or a part of one",
    }
    unknown = f"none of {len(found)} keys belongs to a known adapter format"
    assert words.get(next(iter(found), ""), unknown) in message


@every
def test_a_file_cut_short(do: Do, good: Path) -> None:
    bad = good.with_name("bad.safetensors")
    bad.write_bytes(good.read_bytes()[:-5])
    before = contents(good.parent)
    with pytest.raises(errors.FormatError, match=r"bad\.safetensors"):
        do(bad, good)
    assert contents(good.parent) == before


# --- Files that do not belong together -----------------------------------------------------------


def model_layer(name: str, out: int, into: int) -> dict[str, Tensor]:
    return tensors([Part(module=name, shape=(out, into))])


KEYS = "input_blocks.4.1.transformer_blocks.0.attn2.to_k"
MODELS = {
    "Stable Diffusion 1": model_layer(KEYS, 640, 768),
    "Stable Diffusion 2": model_layer(KEYS, 640, 1024),
    "Stable Diffusion XL": model_layer(KEYS, 640, 2048),
    "Flux": model_layer("double_blocks.0.img_attn.qkv", 9216, 3072),
    "Wan": model_layer("blocks.0.cross_attn.q", 5120, 5120),
}
PAIRS = [(one, other) for one in MODELS for other in MODELS if one != other]


@pytest.mark.parametrize(("one", "other"), PAIRS)
@joining
def test_adapters_of_two_models(do: Do, one: str, other: str, tmp_path: Path) -> None:
    good = written(tmp_path / "good.safetensors", MODELS[one])
    message = refused(do, good, MODELS[other], errors.MismatchError)
    assert f"good.safetensors is for {one}" in message
    assert f"bad.safetensors for {other}" in message
    assert "do not belong to one model" in message


def test_the_wrong_one_is_found_wherever_it_stands(tmp_path: Path) -> None:
    """The first says nothing of its model: the other two are still for different ones."""
    unknown = model_layer("mystery.block.0.to_q", 8, 9)
    paths = [
        written(tmp_path / f"{name}.safetensors", found)
        for name, found in (
            ("u", unknown),
            ("sd1", MODELS["Stable Diffusion 1"]),
            ("f", MODELS["Flux"]),
        )
    ]
    for order in (paths, paths[::-1], [paths[1], paths[0], paths[2]]):
        run = lorakit_here("add", *order, "-o", tmp_path / "x.safetensors")
        assert run.status == 1
        assert "sd1.safetensors" in run.err
        assert "f.safetensors" in run.err
        assert not (tmp_path / "x.safetensors").exists()
    assert lorakit_here("add", *paths[:2], "-o", tmp_path / "x.safetensors").status == 0


@joining
def test_one_name_and_two_shapes(do: Do, good: Path) -> None:
    part = Part(rank=4, shape=(40, 32))
    message = refused(do, good, without(Q) | tensors([part]), errors.WeightShapeError)
    assert f"layer `{Q}`" in message
    assert "(40, 24)" in message
    assert "(40, 32)" in message
    assert "good.safetensors" in message or "bad.safetensors" in message


@joining
def test_a_kernel_of_another_size(do: Do, good: Path) -> None:
    """(out, in) and (out, in, 1, 1) are one weight; (out, in, 3, 3) is another."""
    name = module_name(EVERY_FORM[1].name, "kohya")
    part = Part("conv1x1", 4, shape=(24, 16, 3, 3))
    message = refused(do, good, without(name) | tensors([part]), errors.WeightShapeError)
    assert f"layer `{name}`" in message


# --- The command line says the same --------------------------------------------------------------


@pytest.mark.parametrize("word", ["resize", "scale", "add", "compare"])
def test_one_line_and_status_1(word: str, good: Path) -> None:
    bad = good.with_name("bad.safetensors")
    save_file(GOOD | {f"{Q}.lora_up.weight": torch.full((40, 4), torch.nan)}, bad)
    words = {
        "resize": [bad, "-r", "2"],
        "scale": [bad, "-s", "2"],
        "add": [good, bad],
        "compare": [good, bad],
    }[word]
    output = [] if word == "compare" else ["-o", good.with_name("x.safetensors")]
    before = contents(good.parent)
    run = lorakit_here(word, *words, *output)
    assert (run.status, run.out) == (1, "")
    assert run.err.startswith("Error: ")
    assert run.err.count("\n") == 1
    assert f"`{Q}` holds 160 NaN" in run.err
    assert contents(good.parent) == before
