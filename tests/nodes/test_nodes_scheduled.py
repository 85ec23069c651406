"""Schedule LoRAs on models however they are loaded and stored: the weights in use, and none of it left behind."""

from __future__ import annotations

import comfy_host
import pytest
import torch
from safetensors.torch import save_file
from tiny_flux import DTYPES, FORMATS, LAYERS, adapter, numbers

STATES = {"plain": [], "whole": ["whole"], "part": ["part"]}
MATRICES = {key: one for key, one in adapter().items() if not key.endswith("diff_b")}


@pytest.fixture(scope="module")
def host():
    with comfy_host.started() as started:
        yield started


@pytest.fixture(scope="module")
def ask(host, tmp_path_factory):
    """What the script finds of a checkpoint in a dtype."""
    folder = tmp_path_factory.mktemp("models")
    for name, dtype in DTYPES.items():
        save_file(numbers(1, dtype), folder / f"{name}.safetensors")

    def ask(base="fp32", lora=MATRICES, **question):
        save_file(lora, folder / "lora.safetensors")
        files = {name: str(folder / f"{name}.safetensors") for name in (base, "lora")}
        question |= {"files": {"base": files[base], "lora": files["lora"]}}
        return host.ask("nodes_scheduled", {"layers": LAYERS, **question})

    return ask


def check(found, within=0.0):
    """Each strength is in use where it is due, and nothing else, ever."""
    assert {key: due for key, (_, due) in found["distances"].items()} == {
        "1.0": len(LAYERS),
        "0.75": len(LAYERS),
        "0.0": 0,
    }, "a strength of 0 costs no function"
    assert all(distance <= within for distance, _ in found["distances"].values())
    assert (found["failed"], found["left"], found["same"]) == (True, 0, True)


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("base", ["fp32", "bf16"])
def test_weights_in_use_are_those_of_the_moment(ask, state, base):
    """On a model that has patches of its own: loaded whole, in part, not yet."""
    steps = [["lora", 0.5], STATES[state]] if STATES[state] else [["lora", 0.5]]
    check(ask(base, steps=steps))


@pytest.mark.parametrize("format", FORMATS)
def test_quantised_weights_are_changed_as_what_they_stand_for(ask, format):
    check(ask(format=format))


def test_weights_that_comfyui_gguf_keeps_quantised_are_changed_as_they_are_used(ask):
    check(ask(pack=str(comfy_host.find_gguf_pack())))


def test_numbers_that_stay_on_a_gpu_are_not_written_into(ask):
    """Under dynamic VRAM the host hands a function the very numbers that it keeps for the next step."""
    found = ask(resident=True)
    assert found["kept"] is True
    check(found)


def test_what_cannot_follow_is_said(ask):
    shaped = dict(MATRICES)
    name = f"diffusion_model.{LAYERS[0]}"
    shaped[f"{name}.reshape_weight"] = torch.tensor([512, 128])
    shaped[f"{name}.lora_up.weight"] = torch.ones(512, 4)
    found = ask(lora=shaped, layers=LAYERS[1:])
    assert "! 1 layer not applied: it changes the shape of its weight" in found["report"]


def test_progress_is_told_by_the_noise(host):
    """Within a step too, where a sampler asks for a level between two; for every schedule of the host's."""
    sigmas = [4.0, 3.0, 1.0, 0.0]
    asked = [5.0, 4.0, 3.5, 3.0, 2.0, 1.0, 0.5, 0.0]
    found = host.ask("nodes_progress", {"sigmas": sigmas, "asked": asked})
    thirds = [0.0, 0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0]
    assert found["steps"] == pytest.approx([one / 3 for one in thirds])
    assert len(found["noise"]) == 4
    for name, gone in found["noise"].items():
        assert gone == pytest.approx([0.0, 0.25, 0.5, 0.75, 0.999], abs=2e-3), name
        assert all(one >= at for one, at in zip(gone, [0.0, 0.25, 0.5, 0.75], strict=False)), name
