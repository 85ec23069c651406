"""Models as sources: every weight as it takes effect, against float64 and the real ComfyUI's states."""

from __future__ import annotations

import comfy_host
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_flux import (
    DTYPES,
    FORMATS,
    STRENGTH,
    UNET,
    adapter,
    distance,
    numbers,
    rounded,
    stored,
    tuned,
)

STATES = {"plain": [], "whole": ["whole"], "part": ["part"]}
ROTATED = ("convrot_w4a4", "asym_w4a8_int8")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Checkpoints by name, and an adapter."""
    folder = tmp_path_factory.mktemp("models")
    states = {name: numbers(1, dtype) for name, dtype in DTYPES.items()}
    scaled = {
        name: weight.to(torch.float8_e4m3fn) if name.endswith("mlp.2.weight") else weight
        for name, weight in states["bf16"].items()
    }
    layers = [name.removesuffix(".weight") for name in scaled if name.endswith("mlp.2.weight")]
    old = {f"{layer}.scale_weight": torch.tensor(0.37) for layer in layers}
    states["scaled fp8"] = scaled | old | {"scaled_fp8": torch.empty(2).to(torch.float8_e4m3fn)}
    states |= {"other": numbers(2), "lora": adapter()}
    for name, state in states.items():
        save_file(state, folder / f"{name}.safetensors")
    return {name: str(folder / f"{name}.safetensors") for name in states}


@pytest.fixture(scope="module")
def host():
    with comfy_host.started() as started:
        yield started


@pytest.fixture
def read(host, files, tmp_path):
    """A model's weights as our nodes read them, and truths of the host's; nothing else may differ."""

    def ask(base="fp32", **question):
        output = str(tmp_path / "weights.safetensors")
        question |= {"files": {**files, "base": files[base]}, "output": output}
        answer = host.ask("nodes_weights", question)
        assert answer["same"], "reading changed the model"
        assert answer["wrong"] == []
        assert answer["dtypes"] == ["torch.float32"]
        found = load_file(output)
        kinds = {
            kind: {k.removeprefix(f"{kind} "): v for k, v in found.items() if k.startswith(kind)}
            for kind in ("read", "truth")
        }
        return kinds["read"], kinds["truth"]

    return ask


@pytest.mark.parametrize("base", DTYPES)
def test_plain_weights_are_what_the_file_has(read, files, base):
    found, _ = read(base)
    assert distance(found, stored(files[base])) == 0


def test_a_model_cast_to_fp8_by_the_loader_is_what_it_computes_with(read, files):
    found, _ = read("fp32", dtype="float8_e4m3fn")
    exact = rounded(stored(files["fp32"]), torch.float8_e4m3fn)
    assert distance(found, exact) == 0


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("base", ["fp32", "fp16", "fp8"])
def test_a_patched_model_is_what_takes_effect_before_rounding(read, files, base, state):
    steps = [["lora", STRENGTH], *([step] for step in STATES[state])]
    found, _ = read(base, steps=steps)
    exact = tuned(stored(files[base]))
    assert distance(found, exact) < 1e-6
    if base != "fp32":  # twin: rounded back to its storage it would be found out
        assert distance(rounded(exact, DTYPES[base]), exact) > 1e-5


@pytest.mark.parametrize("state", ["whole", "part"])
def test_the_model_beneath_is_unpatched_while_its_clone_is_loaded(read, files, state):
    found, _ = read(steps=[["lora", STRENGTH], *([step] for step in STATES[state]), ["clone"]])
    assert distance(found, stored(files["fp32"])) == 0


def test_one_parameter_of_two_names_is_read_under_both(read, files):
    found, _ = read(tied=True)
    exact = {UNET + name: one.double() for name, one in load_file(files["fp32"]).items()}
    exact |= {f"{UNET}again.{end}": exact[f"{UNET}img_in.{end}"] for end in ("weight", "bias")}
    assert distance(found, exact) == 0


def test_loras_stack(read, files):
    found, _ = read(steps=[["lora", STRENGTH], ["lora", -0.3], ["whole"]])
    assert distance(found, tuned(tuned(stored(files["fp32"])), -0.3)) < 1e-6


@pytest.mark.parametrize("before", [[], [["lora", STRENGTH], ["whole"]], [["lora", STRENGTH]]])
def test_hooks_are_no_part_of_a_model(read, files, before):
    found, _ = read(steps=[*before, ["hook"]])
    exact = stored(files["fp32"])
    assert distance(found, tuned(exact) if before else exact) < 1e-6


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("base", ["fp32", "bf16"])
def test_merged_models(read, files, base, state):
    one, other = stored(files[base]), stored(files["other"])
    loaded = [[step] for step in STATES[state]]
    for how, factors, given in (
        ("MergeSimple", (0.3, 0.7), [0.3]),
        ("Subtract", (1.5, -1.5), [1.5]),
        ("Add", (1.0, 1.0), []),
    ):
        found, _ = read(base, steps=[["lora", STRENGTH], ["merge", how, *given], *loaded])
        patched = tuned(one)
        exact = {key: factors[0] * patched[key] + factors[1] * other[key] for key in one}
        assert distance(found, exact) < 1e-6, how


def test_scaled_fp8_of_old(read, files):
    found, _ = read("scaled fp8")
    exact = stored(files["scaled fp8"])
    del exact[f"{UNET}scaled_fp8"]
    for key in [key for key in exact if key.endswith(".scale_weight")]:
        exact[key.replace("scale_weight", "weight")] *= exact.pop(key)
    assert distance(found, exact) < 1e-7


@pytest.mark.parametrize("format", [*FORMATS, *ROTATED])
@pytest.mark.parametrize("steps", [[], [["lora", STRENGTH]], [["lora", STRENGTH], ["whole"]]])
def test_quantised_weights_are_what_they_stand_for(read, files, format, steps):
    found, truth = read("fp32", format=format, steps=steps)
    assert set(truth) == {
        f"{UNET}double_blocks.0.{stream}_mlp.2.weight" for stream in ("img", "txt")
    }
    exact = stored(files["fp32"]) | {key: one.double() for key, one in truth.items()}
    for key in truth:  # it is quantised, and no worse than its format
        error = float((exact[key] - stored(files["fp32"])[key]).norm() / exact[key].norm())
        assert 1e-3 < error < 0.2
    assert distance(found, tuned(exact) if steps else exact) < 1e-6
