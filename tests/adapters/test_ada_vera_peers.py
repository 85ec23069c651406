"""AdaLoRA and VeRA as PEFT saves them: baked as PEFT merges them, carried as they are, made into LoRA."""

from __future__ import annotations

import pytest
import torch
from click.testing import CliRunner
from peft_models import Model, base_in, loaded, merged, peft, trained
from safetensors.torch import load_file

from lorakit.cli import main

pytestmark = pytest.mark.filterwarnings("ignore")  # theirs

TARGETS = ["q", "up"]


def ada(**options):
    return peft.AdaLoraConfig(
        **{"init_r": 5, "lora_alpha": 7, "total_step": 100, "target_modules": TARGETS} | options
    )


CONFIGS = {
    "AdaLoRA": ada,
    "AdaLoRA, alpha 0": lambda: ada(lora_alpha=0),
    "VeRA": lambda: peft.VeraConfig(r=6, target_modules=TARGETS, d_initial=0.4),
}


def run(*arguments):
    result = CliRunner().invoke(main, [str(one) for one in arguments])
    assert result.exit_code == 0, result.output
    return result.output


def close(found, expected):
    assert found.keys() == expected.keys()
    for key, one in expected.items():
        torch.testing.assert_close(found[key], one, rtol=1e-4, atol=1e-5, msg=key)


@pytest.mark.parametrize("name", CONFIGS)
def test_it_is_baked_as_peft_merges_it(name, tmp_path):
    folder, base = trained(tmp_path / "adapter", CONFIGS[name]()), base_in(tmp_path)
    assert name.partition(",")[0] in run("info", folder)
    run("bake", base, folder, "-o", tmp_path / "baked.safetensors")
    expected = merged(folder)
    assert any(float(one.norm()) > 0.01 for one in loaded(folder).values())
    close(load_file(tmp_path / "baked.safetensors"), expected)


@pytest.mark.parametrize("name", CONFIGS)
def test_it_is_made_a_lora_that_changes_the_same(name, tmp_path):
    folder, base = trained(tmp_path / "adapter", CONFIGS[name]()), base_in(tmp_path)
    lora = tmp_path / "lora.safetensors"
    run("convert", folder, "-o", lora, "--to", "lora", "--base", base)
    assert all(".lora_A." in key or ".lora_B." in key or "alpha" in key for key in load_file(lora))
    run("bake", base, lora, "-o", tmp_path / "baked.safetensors")
    close(load_file(tmp_path / "baked.safetensors"), merged(folder))


@pytest.mark.parametrize("name", CONFIGS)
def test_a_folder_that_is_scaled_is_one_that_peft_loads(name, tmp_path):
    folder = trained(tmp_path / "adapter", CONFIGS[name]())
    run("scale", folder, "-o", tmp_path / "out", "-s", "0.5")
    close(loaded(tmp_path / "out"), {key: one * 0.5 for key, one in loaded(folder).items()})


@pytest.mark.parametrize("name", CONFIGS)
def test_a_resized_folder_is_a_lora_that_peft_loads(name, tmp_path):
    folder, base = trained(tmp_path / "adapter", CONFIGS[name]()), base_in(tmp_path)
    run("resize", folder, "-o", tmp_path / "out", "-r", "2", "--base", base)
    before, after = loaded(folder), loaded(tmp_path / "out")
    for key, change in before.items():
        u, s, vh = torch.linalg.svd(torch.atleast_2d(change).double(), full_matrices=False)
        best = ((u[:, :2] * s[:2]) @ vh[:2]).reshape(change.shape).float()
        torch.testing.assert_close(after[key], best, rtol=1e-3, atol=1e-4, msg=key)


def test_operations_on_adalora_need_no_base_and_those_on_vera_do(tmp_path):
    ada_, vera = (trained(tmp_path / name, CONFIGS[name]()) for name in ("AdaLoRA", "VeRA"))
    base, out = base_in(tmp_path), tmp_path / "out.safetensors"
    run("add", f"{ada_}:1", f"{ada_}:-0.5", "-o", tmp_path / "sum.safetensors")
    run("unbake", base, f"{ada_}:-1", "-o", out)
    close(load_file(out), merged(ada_))
    for asked in (
        ["add", f"{vera}:1", f"{vera}:1"],
        ["unbake", base, vera],
        ["resize", vera, "-r", "1"],
    ):
        found = CliRunner().invoke(main, [*map(str, asked), "-o", str(tmp_path / "no.safetensors")])
        assert found.exit_code == 1
        assert "is of kind VeRA" in found.output


def test_what_adalora_has_pruned_is_gone(tmp_path):
    """After its allocation the configuration lists what is left, and each layer has a rank of its own."""
    model = peft.get_peft_model(Model(), ada(target_r=2, tinit=1, tfinal=1, deltaT=1, total_step=6))
    torch.manual_seed(3)
    for step in range(1, 6):
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data.add_(torch.randn_like(parameter) * 0.1)
                parameter.grad = torch.randn_like(parameter)
        model.base_model.update_and_allocate(step)
    model.save_pretrained(tmp_path / "adapter")
    held = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert len({one.shape[0] for key, one in held.items() if key.endswith("lora_E")}) > 1
    base = base_in(tmp_path)
    run("bake", base, tmp_path / "adapter", "-o", tmp_path / "baked.safetensors")
    close(load_file(tmp_path / "baked.safetensors"), merged(tmp_path / "adapter"))


def test_vera_without_its_matrices_is_refused(tmp_path):
    config = peft.VeraConfig(r=6, target_modules=TARGETS, save_projection=False)
    folder, base = trained(tmp_path / "adapter", config), base_in(tmp_path)
    found = CliRunner().invoke(
        main, ["bake", str(base), str(folder), "-o", str(tmp_path / "b.safetensors")]
    )
    assert found.exit_code == 1
    assert "save_projection" in found.output
    assert not (tmp_path / "b.safetensors").exists()
