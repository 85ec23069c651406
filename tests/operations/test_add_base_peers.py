"""Sums of kinds that are made from the weight, against what lycoris-lora and peft make of it, each alone."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file
from test_kinds_peers import MODULES, effective, saved_by_peft, trained

from lorakit.lora_ops import DictSource, Ingredient, MemoryFile, Term, add, add_files, decode
from lorakit.lora_ops.files import open_source

MODULE = "diffusion_model.m"
MADE = [name for name in MODULES if "DoRA" in name or name.startswith(("glora", "oft", "boft", "ia3"))]  # fmt: skip


def one(name: str, form: str, strength: float = 1.0) -> tuple[Term, torch.Tensor, torch.Tensor]:
    """LyCORIS's module as an input, the weight, and what the module changes of it at that multiplier."""
    base, weight, module = trained(name, form)
    state = {f"{MODULE}.{key}": held.detach().clone() for key, held in module.state_dict().items()}
    module.multiplier = strength
    module.apply_to()
    change = effective(base, weight.shape).detach() - weight
    return Term(decode(DictSource(state, name=name)), {MODULE: strength}, name), weight, change


@pytest.mark.parametrize("form", ["linear", "conv3x3"])
@pytest.mark.parametrize("name", MADE)
def test_a_sum_is_that_of_the_changes_of_lycoris(name: str, form: str) -> None:
    first, weight, change = one(name, form)
    second, _, other = one("loha", form)
    second = Term(second.adapter, {MODULE: -0.5}, "loha")
    checkpoint = DictSource({f"{MODULE}.weight": weight})
    found, report = add([first, second], 65536, base=checkpoint, dtype=torch.float32)
    (layer,) = found.layers.values()
    wanted = change - 0.5 * other
    assert (layer.delta().reshape(wanted.shape) - wanted).norm() <= 1e-5 * wanted.norm()
    assert report.error < 1e-6


@pytest.mark.parametrize("name", ["glora", "oft", "boft", "ia3", "ia3 on the input"])
def test_a_strength_is_what_lycoris_calls_multiplier(name: str) -> None:
    """BOFT is not proportional to it. Of DoRA LyCORIS multiplies the quotient, ours the change; see docs/kinds.md."""
    first, weight, change = one(name, "linear", 0.4)
    second, _, other = one("loha", "linear")
    checkpoint = DictSource({f"{MODULE}.weight": weight})
    found, _ = add([first, second], 65536, base=checkpoint, dtype=torch.float32)
    (layer,) = found.layers.values()
    wanted = change + other
    assert (layer.delta() - wanted).norm() <= 1e-5 * wanted.norm()
    if name == "boft":
        _, _, full = one(name, "linear")
        assert (change - 0.4 * full).norm() > 0.01 * change.norm()


def test_a_sum_of_peft_s_dora_is_that_of_its_changes(tmp_path) -> None:
    peft = pytest.importorskip("peft", reason="its changes are what is asked for")
    folders = [tmp_path / "one", tmp_path / "two"]
    changes = []
    for folder in folders:
        folder.mkdir()
        base, theirs, _ = saved_by_peft("lora, DoRA", "linear", folder)
        changes.append(theirs.detach() - base.weight.detach())
    save_file({"diffusion_model.layer.weight": base.weight.detach()}, tmp_path / "base.safetensors")
    made = MemoryFile("sum")
    with (
        open_source(folders[0]) as first,
        open_source(folders[1]) as second,
        open_source(tmp_path / "base.safetensors") as checkpoint,
    ):
        ingredients = [Ingredient(first, 1.0), Ingredient(second, 0.5)]
        add_files(ingredients, made, 65536, base=checkpoint, dtype=torch.float32, format="comfy")
    (layer,) = decode(made).layers.values()
    wanted = changes[0] + 0.5 * changes[1]
    assert (layer.delta() - wanted).norm() <= 1e-5 * wanted.norm()
    assert peft.__version__ >= "0.14"


def test_peft_s_weighted_adapter_of_dora_is_no_sum_of_its_changes() -> None:
    """It adds up @ down of both, under magnitudes that neither has."""
    peft = pytest.importorskip("peft", reason="its sums are what is asked for")
    torch.manual_seed(0)
    plain = torch.nn.Sequential(torch.nn.Linear(24, 40, bias=False))
    weight, model = plain[0].weight.detach().clone(), None
    for name in ("one", "two"):
        config = peft.LoraConfig(r=4, lora_alpha=4, target_modules=["0"], use_dora=True)
        if model is None:
            model = peft.get_peft_model(plain, config, adapter_name=name)
        else:
            model.add_adapter(name, config)
    layer = model.base_model.model[0]
    pairs = {}
    with torch.no_grad():
        for name in ("one", "two"):
            layer.lora_A[name].weight.normal_()
            layer.lora_B[name].weight.normal_()
            layer.lora_magnitude_vector[name].weight.mul_(1 + torch.rand(40))
            pairs[name] = layer.lora_B[name].weight @ layer.lora_A[name].weight
    model.add_weighted_adapter(["one", "two"], [0.7, 0.5], "both", combination_type="svd", svd_rank=24)  # fmt: skip
    mixed = 0.7 * pairs["one"] + 0.5 * pairs["two"]
    torch.testing.assert_close(layer.get_delta_weight("both").detach(), mixed, atol=1e-4, rtol=1e-4)

    def change(name: str) -> torch.Tensor:
        turned = weight + pairs[name]
        size = layer.lora_magnitude_vector[name].weight.detach() / turned.norm(dim=1)
        return size[:, None] * turned - weight

    model.set_adapter("both")
    theirs = model(torch.eye(24)).mT.detach() - weight
    terms = [
        Term(
            decode(
                DictSource(
                    {
                        f"{MODULE}.lora_A.weight": layer.lora_A[name].weight.detach(),
                        f"{MODULE}.lora_B.weight": layer.lora_B[name].weight.detach(),
                        f"{MODULE}.lora_magnitude_vector": layer.lora_magnitude_vector[
                            name
                        ].weight.detach(),
                    }
                )
            ),
            {MODULE: strength},
            name,
        )
        for name, strength in (("one", 0.7), ("two", 0.5))
    ]
    found, _ = add(terms, 65536, base=DictSource({f"{MODULE}.weight": weight}), dtype=torch.float32)
    (ours,) = found.layers.values()
    wanted = 0.7 * change("one") + 0.5 * change("two")
    assert (ours.delta() - wanted).norm() <= 1e-5 * wanted.norm()
    assert (theirs - wanted).norm() > 0.2 * wanted.norm()
