"""`--activations`, on the digits that ship with lorakit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from commands import DIGITS, lorakit_here
from safetensors.torch import load_file

from lorakit.examples.digits.sample import load_model
from lorakit.lora_ops import record

BASE, TUNED = (DIGITS / f"{side}.safetensors" for side in ("base", "tuned"))


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    model = load_model(load_file(TUNED))
    with record(model) as recorder, torch.inference_mode():
        prompts = model.prompt(torch.arange(2))
        for time in (1.0, 0.5, 0.1):
            model(torch.randn(2, 3, 16, 16), torch.full((2,), time), prompts)
    path = tmp_path_factory.mktemp("record") / "activations.safetensors"
    recorder.save(path)
    return path


def extracted(output: Path, *words: object) -> dict:
    made = lorakit_here(
        *("extract", BASE, TUNED, "-o", output, "--rank", "4", "--device", "cpu", "--json", "-"),
        *words,
    )
    assert made.status == 0, made.err
    return json.loads(made.out)


def test_every_layer_is_found_by_its_name_and_cut_by_its_output(tmp_path, recorded):
    plain = extracted(tmp_path / "plain.safetensors")
    found = extracted(tmp_path / "out.safetensors", "--activations", recorded)
    assert all("weighted" in layer for layer in found["layers"])
    assert len(found["layers"]) == 83
    assert found["weighted_error"] < found["error"]
    assert plain["error"] < found["error"]
    assert "weighted_error" not in plain
    verified = lorakit_here("verify", BASE, TUNED, tmp_path / "out.safetensors", "--json", "-")
    assert json.loads(verified.out)["error"] == pytest.approx(found["error"], rel=1e-4)


def test_the_table_has_both_errors(tmp_path, recorded):
    made = lorakit_here(
        *("extract", BASE, TUNED, "-o", tmp_path / "out.safetensors", "--rank", "4"),
        *("--device", "cpu", "--activations", recorded),
    )
    assert "of the layers' output, by the activations: relative error" in made.out
    told = lorakit_here("info", tmp_path / "out.safetensors")
    assert "activations.safetensors" in told.out


def test_a_lora_is_resized_by_its_output(tmp_path, recorded):
    """One that was trained, with kohya's names or others': each of its layers is found."""
    errors = {}
    for words in ((), ("--activations", recorded)):
        output = tmp_path / f"{len(words)}.safetensors"
        made = lorakit_here(
            *("resize", DIGITS / "lora.safetensors", "-o", output, "--rank", "3", "--json", "-"),
            *words,
        )
        assert made.status == 0, made.err
        errors[len(words)] = json.loads(made.out)
    assert all("weighted" in layer for layer in errors[2]["layers"])
    assert errors[2]["weighted_error"] < errors[2]["error"]
    assert errors[0]["error"] < errors[2]["error"]
    assert (
        "error of output"
        in lorakit_here(
            *("resize", DIGITS / "lora.safetensors", "-o", tmp_path / "table.safetensors"),
            *("--rank", "3", "--activations", recorded),
        ).out
    )


def test_a_folder_of_peft_is_cut_by_its_output_too(tmp_path, recorded):
    plain = extracted(tmp_path / "plain", "--format", "peft")
    found = extracted(tmp_path / "out", "--format", "peft", "--activations", recorded)
    assert all("weighted" in layer for layer in found["layers"])
    assert found["weighted_error"] < found["error"]
    assert plain["error"] < found["error"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--rank", "mean=8"), "is a budget"),
        (("--rank", "4", "--kind", "loha"), "kind `loha`"),
        (("--rank", "4", "--kind", "control-lora"), "does not go with a Control-LoRA"),
    ],
)
def test_what_does_not_combine_is_refused(tmp_path, recorded, words, message):
    output = tmp_path / "out.safetensors"
    made = lorakit_here("extract", BASE, TUNED, "-o", output, "--activations", recorded, *words)
    assert made.status != 0
    assert message in made.err
    assert not list(tmp_path.iterdir())
