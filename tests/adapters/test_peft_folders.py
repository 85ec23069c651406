"""Folders that PEFT writes are one adapter in every command, and what is written to a folder is one again."""

from __future__ import annotations

import json

import pytest
import torch
from click.testing import CliRunner
from peft_models import BESIDE, CONFIGS, WHERE, base_in, loaded, merged, trained
from safetensors.torch import load_file, save_file

from lorakit.cli import main

pytestmark = pytest.mark.filterwarnings("ignore")  # theirs


@pytest.fixture
def base(tmp_path):
    return base_in(tmp_path)


def run(*arguments):
    result = CliRunner().invoke(main, [str(one) for one in arguments])
    assert result.exit_code == 0, result.output
    return result.output


PROPORTIONAL = [
    name
    for name in (*CONFIGS, *BESIDE)
    if not any(part in name for part in ("PiSSA", "OLoRA", "DoRA", "alone"))
]


@pytest.mark.parametrize("name", PROPORTIONAL)
def test_a_folder_that_is_scaled_is_a_folder_of_peft(name, tmp_path):
    folder = trained(tmp_path / "adapter", (CONFIGS | BESIDE)[name]())
    run("scale", folder, "-o", tmp_path / "out", "-s", "0.3")
    names = {path.name for path in folder.iterdir()} - {"README.md"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names
    before, after = loaded(folder), loaded(tmp_path / "out")
    layers = {f"blocks.{at}.{layer}.weight" for at in "01" for layer in ("q", "up")}
    layers |= {key.replace("weight", "bias") for key in layers if name == "bias of up"}
    for key, change in before.items():
        expected = change * 0.3 if key in layers else change  # what is trained whole is carried
        torch.testing.assert_close(after[key], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["alpha above rank", "patterns", "rank-stabilised", "bias of up"])
@pytest.mark.parametrize("where", WHERE)
def test_a_folder_that_is_resized_is_one_adapter_and_stays_one(name, where, tmp_path):
    folder = trained(tmp_path / "adapter", CONFIGS[name]())
    text = run("resize", folder / WHERE[where], "-o", tmp_path / "out", "-r", "2")
    assert "4 layers" in text or "layers, relative error" in text
    before, after = loaded(folder), loaded(tmp_path / "out")
    for key, change in before.items():
        if key.startswith("blocks") and key.endswith("weight") and "norm" not in key:
            u, s, vh = torch.linalg.svd(change.double(), full_matrices=False)
            best = (u[:, :2] * s[:2]) @ vh[:2]
            torch.testing.assert_close(after[key].double(), best, rtol=1e-3, atol=1e-5)
        else:
            torch.testing.assert_close(after[key], change, rtol=1e-4, atol=1e-5)


def test_a_folder_of_dora_stays_dora(base, tmp_path):
    folder = trained(tmp_path / "adapter", CONFIGS["DoRA"]())
    run("resize", folder, "-o", tmp_path / "out", "-r", "4", "--base", base)
    before, after = merged(folder), merged(tmp_path / "out")
    for key, weight in before.items():
        torch.testing.assert_close(after[key], weight, rtol=1e-4, atol=1e-5)


def test_the_sum_of_folders_is_a_folder(tmp_path):
    one = trained(tmp_path / "one", CONFIGS["alpha above rank"]())
    two = trained(tmp_path / "two", CONFIGS["patterns"]())
    run("add", f"{one}:0.5", f"{two}:-1", "-o", tmp_path / "out")
    first, second, both = loaded(one), loaded(two), loaded(tmp_path / "out")
    for key, change in both.items():
        expected = first[key] * 0.5 - second[key]
        torch.testing.assert_close(change, expected, rtol=1e-4, atol=1e-5)


def test_folders_among_files_are_adapters_of_their_own(tmp_path):
    root = tmp_path / "loras"
    root.mkdir()
    folder = trained(root / "of peft", CONFIGS["alpha above rank"]())
    single = {key: one.clone() for key, one in load_file(folder / WHERE["file"]).items()}
    save_file(single, root / "single.safetensors")
    run("resize", root, "-o", tmp_path / "out", "-r", "4")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"of peft", "single.safetensors"}
    before, after = loaded(folder), loaded(tmp_path / "out" / "of peft")
    for key, change in before.items():
        torch.testing.assert_close(after[key], change, rtol=1e-4, atol=1e-5)


def test_a_conversion_to_peft_keeps_the_very_numbers(tmp_path):
    """In bf16 a folded scale would cost 2e-3; alpha and its patterns hold it."""
    folder = trained(tmp_path / "adapter", CONFIGS["patterns"]())
    weights = load_file(folder / WHERE["file"])
    narrow = {key: one.to(torch.bfloat16) for key, one in weights.items()}
    scales = {"blocks.0.q": 7 / 3, "blocks.1.q": 7 / 4, "blocks.0.up": 3 / 5, "blocks.1.up": 3 / 5}
    alphas = {
        f"base_model.model.{name}.alpha": torch.tensor(
            scale * len(weights[f"base_model.model.{name}.lora_A.weight"])
        )
        for name, scale in scales.items()
    }
    path = tmp_path / "file.safetensors"
    save_file(narrow | alphas, path)
    run("convert", path, "-o", tmp_path / "out", "--format", "peft")
    made = load_file(tmp_path / "out" / WHERE["file"])
    assert made.keys() == narrow.keys()
    assert all(torch.equal(made[key], one) for key, one in narrow.items())
    for key, change in loaded(tmp_path / "out").items():
        name = key.removesuffix(".weight")
        if name in scales:
            up, down = (narrow[f"base_model.model.{name}.lora_{one}.weight"] for one in "BA")
            expected = scales[name] * (up.float() @ down.float())
            torch.testing.assert_close(change, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["PiSSA", "OLoRA", "OLoRA, rank-stabilised"])
def test_what_began_in_the_weight_becomes_a_plain_folder(name, base, tmp_path):
    """Of twice the rank, as PEFT's own conversion gives it; it leaves the weight as it is."""
    folder, out = trained(tmp_path / "adapter", CONFIGS[name]()), tmp_path / "out"
    run("convert", folder, "-o", out, "--to", "lora", "--base", base, "--format", "peft")
    config = json.loads((out / "adapter_config.json").read_text())
    assert (config["r"], config["init_lora_weights"]) == (8, True)
    expected = merged(folder)
    for key, weight in merged(out).items():
        torch.testing.assert_close(weight, expected[key], rtol=1e-4, atol=1e-5)
