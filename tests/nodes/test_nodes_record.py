"""What Record Activations gathers in the real ComfyUI, however the model is loaded, is a float64 loop's."""

from __future__ import annotations

import comfy_host
import pytest
from safetensors.torch import save_file
from tiny_flux import SHAPES, adapter, numbers

LINEAR = {
    f"diffusion_model.{name.removesuffix('.weight')}"
    for name, shape in SHAPES.items()
    if len(shape) == 2
}
EXACT = 1e-5


@pytest.fixture(scope="module")
def host():
    with comfy_host.started() as started:
        yield started


@pytest.fixture(scope="module")
def ask(host, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    states = {"fp32": numbers(1), "lora": adapter()}
    # as large as a trained model's, so that what it computes stays finite
    states["fp32"] = {name: one / max(one.shape) ** 0.5 for name, one in states["fp32"].items()}
    for name, state in states.items():
        save_file(state, folder / f"{name}.safetensors")
    files = {name: str(folder / f"{name}.safetensors") for name in states}
    return lambda **question: host.ask("nodes_record", {"files": files, **question})


@pytest.mark.parametrize("state", ["plain", "whole", "part", "bypass"])
def test_it_is_that_of_a_loop_over_the_same_inputs(ask, state):
    """Plain, patched in place, patched as each layer runs (low VRAM), and with paths beside the layers."""
    told = ask(state=state)
    assert told["same"], "recording changed what the model computes"
    assert told["finite"]
    assert told["far"] < EXACT
    assert set(told["recorded"]) == LINEAR
    assert told["layers"] == len(LINEAR) > 20
    assert told["calls"] == 2


@pytest.mark.parametrize("state", ["plain", "part"])
def test_nothing_stays_on_the_model(ask, state):
    """Neither hooks, also where a call fails, nor a wrapper on the model that came in."""
    told = ask(state=state)
    assert told["stopped"]
    assert told["hooks"] == [0, 0]
    assert told["wrappers"] == [0, 3]


@pytest.mark.parametrize("format", ["float8_e4m3fn", "nvfp4", "int8_tensorwise"])
def test_layers_of_quantised_weights_are_recorded(ask, format):
    """Which are of a class of the host's own."""
    told = ask(state="plain", format=format)
    assert set(told["recorded"]) == LINEAR
    assert told["same"]
    assert told["far"] < EXACT


def test_room_is_made_where_the_host_fills_a_gpu_ahead(ask):
    """Not for models whose weights come as they are used."""
    assert ask(room=True) == [[5, "cuda"], [7, "cuda"]]
