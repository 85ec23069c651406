"""Files that PEFT writes, alone and in their folder: its own merged weights against ours."""

from __future__ import annotations

import pytest
import torch
from peft_models import BESIDE, CONFIGS, WHERE, Model, base_in, lora, merged, peft, trained
from safetensors.torch import load_file, save_file

from lorakit.lora_ops import Ingredient, bake, compare, describe
from lorakit.lora_ops.adapters.formats import decode
from lorakit.lora_ops.errors import LoraOpsError, TargetMismatchError, UnsupportedLayerError
from lorakit.lora_ops.files import open_source
from lorakit.lora_ops.inspect.lint import lint
from lorakit.lora_ops.operations.add.file import add_files
from lorakit.lora_ops.operations.convert.file import convert_file
from lorakit.lora_ops.operations.resize.file import resize_file
from lorakit.terminal.wording import worded

pytestmark = pytest.mark.filterwarnings("ignore")  # theirs


@pytest.fixture
def base(tmp_path):
    return base_in(tmp_path)


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("name", [*CONFIGS, *BESIDE])
def test_bake_gives_the_weights_that_peft_merges(name, where, base, tmp_path):
    folder = trained(tmp_path / "adapter", (CONFIGS | BESIDE)[name]())
    with open_source(base) as model, open_source(folder / WHERE[where]) as adapter:
        made, _ = bake(model, [Ingredient(adapter)])
    expected = merged(folder)
    assert made.keys() == expected.keys()
    before = load_file(base)
    for key, weight in made.items():
        torch.testing.assert_close(weight, expected[key], rtol=1e-5, atol=2e-6)
    changed = {key for key in made if not torch.equal(before[key], made[key])}
    assert changed == {key for key in made if not torch.equal(before[key], expected[key])}
    assert changed


def as_lora(folder, base, output, **options):
    with open_source(base) as model, open_source(folder) as adapter:
        convert_file(adapter, output, to="lora", base=model, **options)
    return output


@pytest.mark.parametrize("name", ["PiSSA", "OLoRA", "OLoRA, rank-stabilised"])
def test_what_began_in_the_weight_is_a_lora_of_twice_the_rank(name, base, tmp_path):
    folder = trained(tmp_path / "adapter", CONFIGS[name]())
    output = as_lora(folder, base, tmp_path / "plain.safetensors")
    expected, before = merged(folder), Model().state_dict()
    with open_source(output) as plain:
        layers = dict(decode(plain).layers)
    assert len(layers) == 4
    for target, layer in layers.items():
        key = target.removeprefix("base_model.model.") + ".weight"
        assert layer.rank == 8
        torch.testing.assert_close(layer.delta(), expected[key] - before[key], rtol=1e-4, atol=1e-5)


def test_what_began_in_the_weight_is_no_lora_without_it(base, tmp_path):
    folder = trained(tmp_path / "adapter", CONFIGS["PiSSA"]())
    output = tmp_path / "out.safetensors"
    with open_source(folder) as adapter:
        for work in (
            lambda: convert_file(adapter, output, "peft"),
            lambda: resize_file(adapter, output, 2),
            lambda: add_files([Ingredient(adapter), Ingredient(adapter)], output),
            lambda: compare(decode(adapter), decode(adapter)),
        ):
            with pytest.raises(LoraOpsError, match="PiSSA"):
                work()
    assert not output.exists()


REFUSED = {
    "pissa_niter_4": lambda: lora(init_lora_weights="pissa_niter_4"),
    "use_bdlora": lambda: lora(
        use_bdlora=peft.tuners.lora.config.BdLoraConfig(
            target_modules_bd_a=["up"], target_modules_bd_b=["q"], nblocks=2
        )
    ),
    "kasa_config": lambda: lora(kasa_config=peft.tuners.lora.config.KasaConfig()),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_peft_makes_anew_or_otherwise_is_refused_by_name(name, base, tmp_path):
    folder = trained(tmp_path / "adapter", REFUSED[name]())
    for place in WHERE.values():
        with (
            open_source(base) as model,
            open_source(folder / place) as adapter,
            pytest.raises(UnsupportedLayerError, match=name),
        ):
            bake(model, [Ingredient(adapter)])


@pytest.mark.parametrize(("name", "scale"), [("alpha above rank", "2.5"), ("rank-stabilised", "5")])
def test_info_shows_the_scale_that_counts(name, scale, tmp_path):
    folder = trained(tmp_path / "adapter", CONFIGS[name]())
    for place in WHERE.values():
        with open_source(folder / place) as source:
            assert describe(source).alphas == {f"absent, scale {scale}": 4}


def test_info_shows_a_scale_of_0(tmp_path):
    with open_source(trained(tmp_path / "adapter", lora(lora_alpha=0))) as source:
        assert describe(source).alphas == {"absent, scale 0": 4}


def test_info_and_lint_say_what_began_in_the_weight(tmp_path):
    folder = trained(tmp_path / "adapter", CONFIGS["PiSSA"]())
    with open_source(folder / WHERE["file"]) as source:
        assert describe(source).kind == "LoRA adapter (PiSSA)"
        (found,) = [one for one in lint(source).findings if one.code == "base-changed"]
    assert "PiSSA" in found.message
    assert worded(found.cure).endswith("--to lora --base CHECKPOINT")
    assert len(found.where) == 4


def test_lora_ga_is_loaded_as_it_is_by_peft_and_said(base, tmp_path):
    """Trained on another weight, but that is in no file: PEFT adds the change to the weight it has."""
    ga = peft.tuners.lora.config.LoraGAConfig()
    folder = trained(tmp_path / "adapter", lora(init_lora_weights="lora_ga", lora_ga_config=ga))
    with open_source(base) as model, open_source(folder) as adapter:
        made, report = bake(model, [Ingredient(adapter)])
    for key, weight in merged(folder).items():
        torch.testing.assert_close(made[key], weight, rtol=1e-5, atol=2e-6)
    assert any("LoRA-GA" in note for note in report.notes)


def test_a_head_that_the_checkpoint_lacks_is_counted(base, tmp_path):
    folder = trained(tmp_path / "adapter", BESIDE["modules to save"]())
    headless = tmp_path / "headless.safetensors"
    save_file({k: t for k, t in load_file(base).items() if not k.startswith("head.")}, headless)
    with open_source(headless) as model, open_source(folder) as adapter:
        with pytest.raises(TargetMismatchError, match=r"2 of \d+ layers.*head"):
            bake(model, [Ingredient(adapter)])
        _, report = bake(model, [Ingredient(adapter)], allow_partial=True)
    weights = load_file(folder / WHERE["file"])
    lost = [weights[f"base_model.model.head.{one}"].norm().item() for one in ("weight", "bias")]
    assert sorted(one.norm for one in report.skips) == pytest.approx(sorted(lost))
    assert report.left_out > 0


def test_a_conversion_says_that_trained_biases_are_only_carried(base, tmp_path):
    folder = trained(tmp_path / "adapter", BESIDE["all biases"]())
    with open_source(base) as model, open_source(folder) as adapter:
        report = convert_file(adapter, tmp_path / "out.safetensors", "comfy", reference=model)
    assert any("6 trained parameters" in note and "PEFT alone" in note for note in report.notes)
