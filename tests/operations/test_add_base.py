"""Sums of kinds that are made from the weight, against float64 loops, bake, and plain LoRAs of the same changes."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from adapters import written
from commands import lorakit_here
from kinds import WEIGHTS, change, kinds, numbers, rotated, weight
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lorakit.lora_ops import Adapter, DictSource, Ingredient, Term, add, bake, convert, decode
from lorakit.lora_ops.adapters.layers import innermost
from lorakit.lora_ops.errors import ArgumentError, TargetMismatchError, UnsupportedLayerError
from lorakit.lora_ops.operations.add import add as adding

MODULE = "diffusion_model.blocks.0.q"
KEY = "blocks.0.q.weight"
OF_BASE = [
    (form, name)
    for form in WEIGHTS
    for name in kinds(form)
    if "DoRA" in name or name.startswith(("glora", "oft", "boft", "ia3", "set"))
]
#: More than any of these weights has.
ALL = 64
STRENGTHS = (0.7, -0.4)


def tensors_of(form: str, name: str, module: str = MODULE) -> dict[str, torch.Tensor]:
    return {f"{module}.{suffix}": one for suffix, one in kinds(form)[name].items()}


def term(form: str, name: str, strength: float) -> Term:
    source = DictSource(tensors_of(form, name), name=name)
    return Term(decode(source), {MODULE: strength}, name)


def base(form: str = "linear") -> DictSource:
    return DictSource({KEY: weight(form)}, name="base")


def wanted(form: str, name: str, strength: float) -> np.ndarray:
    """What a kind adds at a strength, by the definition, in float64."""
    held = kinds(form)[name]
    if "oft_blocks" in held:
        told = {key: one.double().numpy() for key, one in held.items()}
        flat = weight(form).double().numpy().reshape(*weight(form).shape[:2], -1)
        bound = float(held.get("alpha", torch.zeros(()))) * len(flat)
        return rotated(told, flat, bound, strength).reshape(weight(form).shape) - weight(form).double().numpy()  # fmt: skip
    whole = change(held, weight(form))
    return whole if "set_weight" in held else strength * whole


def made(found: Adapter) -> np.ndarray:
    (layer,) = found.layers.values()
    up, down = innermost(layer).factors()
    return (up.double() @ down.double()).numpy()


def apart(found: np.ndarray, expected: np.ndarray) -> float:
    expected = expected.reshape(found.shape)
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize(("form", "name"), OF_BASE)
def test_a_sum_is_that_of_what_they_make_of_the_weight(form: str, name: str) -> None:
    terms = [term(form, name, STRENGTHS[0]), term(form, "lora", STRENGTHS[1])]
    expected = wanted(form, name, STRENGTHS[0]) + wanted(form, "lora", STRENGTHS[1])
    found, report = add(terms, ALL, base=base(form), dtype=torch.float32)
    assert apart(made(found), expected) < 2e-6
    assert report.error < 1e-6
    assert any("1 layer became LoRA" in note for note in report.notes)
    assert any("are added; ComfyUI applies one after another" in note for note in report.notes)
    turned, _ = add(terms[::-1], ALL, base=base(form), dtype=torch.float32)
    assert apart(made(turned), expected) < 2e-6, "in any order"


@pytest.mark.parametrize(("form", "name"), OF_BASE)
def test_it_is_what_bake_adds_to_the_checkpoint(form: str, name: str) -> None:
    """Of one more of the same at another strength, and beside a LoHa."""
    given = [(name, 0.5), ("loha", 1.5), (name, -1.2)]
    found, _ = add([term(form, *one) for one in given], ALL, base=base(form), dtype=torch.float32)
    wide = DictSource({KEY: weight(form).double()})
    inside, _ = bake(
        wide, [Ingredient(DictSource(tensors_of(form, one), name=one), s) for one, s in given]
    )
    expected = (inside[KEY] - weight(form).double()).numpy()
    assert apart(made(found), expected) < 2e-6
    assert apart(expected, sum(wanted(form, *one) for one in given)) < 1e-6
    turned, _ = bake(
        wide, [Ingredient(DictSource(tensors_of(form, one), name=one), s) for one, s in given[::-1]]
    )
    torch.testing.assert_close(inside[KEY], turned[KEY])


@pytest.mark.parametrize("rule", [1, 3, "error=0.4", "energy=0.8", "ratio=3", "knee"])
@pytest.mark.parametrize("name", ["lora, DoRA", "oft", "ia3 on the input"])
def test_at_a_rank_it_is_the_best_of_that_rank_and_the_rest_is_told(name: str, rule) -> None:
    terms = [term("linear", name, 0.7), term("linear", "lora", -0.4)]
    expected = wanted("linear", name, 0.7) + wanted("linear", "lora", -0.4)
    found, report = add(terms, rule, base=base(), dtype=torch.float32)
    (layer,) = report.layers
    s = np.linalg.svd(expected.reshape(len(expected), -1), compute_uv=False)
    least = math.sqrt(math.fsum(s[layer.rank :] ** 2) / math.fsum(s**2))
    assert report.error == pytest.approx(apart(made(found), expected), rel=1e-3, abs=1e-6)
    assert least - 1e-6 <= report.error <= least * 1.002 + 1e-6
    lost = [note for note in report.notes if "has no room in the rank" in note]
    assert bool(lost) == (report.error > 0.3)
    if rule in (1, 3):
        assert layer.rank == rule
    if rule == "error=0.4":
        assert report.error <= 0.4


@pytest.mark.parametrize("name", ["lora, DoRA", "oft, bounded"])
@pytest.mark.parametrize("method", ["average", "karcher", "geometric_median", "model_stock", "orthogonalise", "energy"])  # fmt: skip
def test_sums_with_found_coefficients_are_those_of_plain_loras_of_the_changes(
    name: str, method: str
) -> None:
    plain = [term("linear", one, s) for one, s in ((name, 0.6), ("lora", 0.9), ("loha", 0.3))]
    twins = list(plain)
    twins[0] = Term(_lowered(name, 0.6), {MODULE: 0.6}, name)
    found, report = add(plain, ALL, method=method, base=base(), dtype=torch.float32)
    expected, _ = add(twins, ALL, method=method, dtype=torch.float32)
    assert apart(made(found), made(expected)) < 1e-5
    if method == "average":
        total = 0.6 + 0.9 + 0.3
        dense = sum(wanted("linear", one, s) for one, s in ((name, 0.6), ("lora", 0.9), ("loha", 0.3)))  # fmt: skip
        assert apart(made(found), dense / total) < 1e-5
        assert report.layers[0].coefficients == pytest.approx((0.6 / total, 0.5, 0.3 / total))


def _lowered(name: str, strength: float) -> Adapter:
    """A LoRA of all directions whose change times the strength is that of the kind at it."""
    matrix = torch.from_numpy(wanted("linear", name, strength)) / strength
    eye = torch.eye(len(matrix))
    pair = {f"{MODULE}.lora_up.weight": eye, f"{MODULE}.lora_down.weight": matrix.float()}
    return decode(DictSource(pair, name="plain"))


@pytest.mark.parametrize("name", ["lora, DoRA", "oft", "boft", "set"])
@pytest.mark.parametrize(
    ("method", "given"),
    [("ties", {}), ("magnitude", {"density": 0.3}), ("dare", {"seed": 3}), ("sce", {"density": 0.5}),
     ("della", {}), ("breadcrumbs", {"gamma": 0.1})],
)  # fmt: skip
def test_methods_on_elements_take_them_too(name: str, method: str, given: dict) -> None:
    rest = [term("linear", "loha", 0.8), term("linear", "lora", 0.5)]
    asked = {"method": method, "parameters": {"scope": "element", **given}, "dtype": torch.float32}
    found, report = add([term("linear", name, 0.6), *rest], ALL, base=base(), **asked)
    expected, other = add([Term(_lowered(name, 0.6), {MODULE: 0.6}, name), *rest], ALL, **asked)
    assert apart(made(found), made(expected)) < 1e-5
    assert report.layers[0].cosine == pytest.approx(other.layers[0].cosine, abs=1e-5)


@pytest.mark.parametrize("method", ["ties", "tsv", "iso", "np", "knots", "ctm", "lego", "dare"])
def test_methods_of_factors_take_those_that_have_factors(method: str) -> None:
    """GLoRA is a product of two of its own; a DoRA changes the weight in all directions."""
    sides = {"a1": (6, 1), "a2": (1, 6), "b1": (8, 1), "b2": (1, 6)}
    small = {f"{MODULE}.{name}.weight": numbers(*size, seed=7) for name, size in sides.items()}
    glora = decode(DictSource(small, name="glora"))
    plain = tensors_of("linear", "lora")
    del plain[f"{MODULE}.alpha"]  # units and cores are of the factors as they stand
    pair = [Term(glora, {MODULE: 0.6}, "glora"), Term(decode(DictSource(plain)), {MODULE: 0.9})]
    found, _ = add(pair, method=method, base=base(), dtype=torch.float32)
    up, down = glora.layers[MODULE].factors_of(weight("linear"))
    factors = {f"{MODULE}.lora_up.weight": up, f"{MODULE}.lora_down.weight": down}
    twins = [Term(decode(DictSource(factors)), {MODULE: 0.6}), pair[1]]
    expected, _ = add(twins, method=method, dtype=torch.float32)
    assert apart(made(found), made(expected)) < 1e-4
    with pytest.raises(ArgumentError, match=rf"method `{method}` needs factors, and 1 weight, the first `{MODULE}` by a DoRA over LoRA.*`convert\("):  # fmt: skip
        add([term("linear", "lora, DoRA", 0.6), pair[1]], ALL, method=method, base=base())


def test_one_alone_becomes_the_lora_that_it_makes() -> None:
    found, report = add([term("linear", "lora, DoRA", 0.5)], 4, base=base(), dtype=torch.float32)
    lowered, other = convert(term("linear", "lora, DoRA", 1).adapter, to="lora", base=base(), rule=4, dtype=torch.float32)  # fmt: skip
    assert apart(made(found), 0.5 * made(lowered)) < 1e-4
    assert report.error == pytest.approx(other.error, rel=1e-4)


def test_the_convention_is_the_one_that_is_asked_for() -> None:
    pair = [term("linear", "lora, DoRA", 1.0), term("linear", "lora", 0.5)]
    paper, comfy = (made(add(pair, ALL, base=base(), dora=one, dtype=torch.float32)[0]) for one in ("paper", "comfy"))  # fmt: skip
    for found, convention in ((paper, "paper"), (comfy, "comfy")):
        ingredients = [Ingredient(DictSource(tensors_of("linear", n), name=n), s) for n, s in (("lora, DoRA", 1.0), ("lora", 0.5))]  # fmt: skip
        inside, _ = bake(DictSource({KEY: weight("linear").double()}), ingredients, dora=convention)
        assert apart(found, (inside[KEY] - weight("linear").double()).numpy()) < 2e-6
    assert apart(paper, comfy) > 0.05


def test_without_a_base_it_is_refused_by_name() -> None:
    pair = [term("linear", "lora, DoRA", 1.0), term("linear", "lora", 1.0)]
    with pytest.raises(
        UnsupportedLayerError, match=r"has DoRA magnitudes.*its checkpoint \(`base=`\)"
    ):
        add(pair, 4)
    with pytest.raises(TargetMismatchError, match=r"blocks\.0\.q"):
        add(pair, 4, base=DictSource({"blocks.9.q.weight": weight("linear")}, name="other"))


def test_what_has_no_form_smaller_than_the_weight_wants_a_rank(monkeypatch) -> None:
    pair = [term("linear", "lora, DoRA", 1.0), term("linear", "lora", 1.0)]
    exact, report = add(pair, base=base(), dtype=torch.float32)  # small enough to be held
    assert report.error < 1e-6
    assert report.layers[0].rank == 6
    assert apart(made(exact), wanted("linear", "lora, DoRA", 1) + wanted("linear", "lora", 1)) < 2e-6  # fmt: skip
    monkeypatch.setattr(adding, "_ROOM", 100)
    with pytest.raises(ArgumentError, match="is a DoRA over LoRA of 8 x 6 in one input"):
        add(pair, base=base())


def test_fused_and_split_projections_meet(tmp_path) -> None:
    """PEFT's DoRA of three projections, ComfyUI's LoRA of the one that they are in the checkpoint."""
    width, block = 12, "double_blocks.0.img_attn.qkv"
    held = {f"{block}.weight": numbers(3 * width, width, seed=5)}
    split = "transformer.transformer_blocks.0.attn"
    first, expected = {}, torch.zeros(3 * width, width, dtype=torch.float64)
    for at, name in enumerate(("to_q", "to_k", "to_v")):
        up, down = numbers(width, 2, seed=at), numbers(2, width, seed=at + 3)
        size = 1 + numbers(width, seed=at + 6).abs()
        first |= {f"{split}.{name}.lora_A.weight": down, f"{split}.{name}.lora_B.weight": up}
        first[f"{split}.{name}.lora_magnitude_vector"] = size
        rows = slice(at * width, (at + 1) * width)
        own = held[f"{block}.weight"][rows].double()
        turned = own + up.double() @ down.double()
        expected[rows] = 0.5 * (turned * (size.double() / turned.norm(dim=1))[:, None] - own)
    up, down = numbers(3 * width, 2, seed=20), numbers(2, width, seed=21)
    second = {f"diffusion_model.{block}.lora_A.weight": down, f"diffusion_model.{block}.lora_B.weight": up}  # fmt: skip
    expected += up.double() @ down.double()
    terms = [Term(decode(DictSource(one, name=str(at)))) for at, one in enumerate((second, first))]
    terms[1] = Term(terms[1].adapter, dict.fromkeys(terms[1].adapter.layers, 0.5), "split")
    found, _ = add(terms, ALL, base=DictSource(held, name="flux"), dtype=torch.float32)
    assert list(found.layers) == [f"diffusion_model.{block}"]
    assert apart(made(found), expected.numpy()) < 2e-6


def test_the_command_records_the_base_and_foretells(tmp_path) -> None:
    save_file({KEY: weight("linear")}, tmp_path / "base.safetensors")
    for name, kind in (("dora", "lora, DoRA"), ("style", "lora")):
        written(tmp_path / f"{name}.safetensors", tensors_of("linear", kind))
    output = tmp_path / "sum.safetensors"
    words = ("add", f"{tmp_path / 'dora.safetensors'}:0.7", f"{tmp_path / 'style.safetensors'}:-0.4", "-o", output)  # fmt: skip
    refused = lorakit_here(*words, "--rank", 3)
    assert refused.status == 1
    assert "--base" in refused.err
    told = (*words, "--rank", 3, "--base", tmp_path / "base.safetensors", "--dtype", "fp32")
    foretold = lorakit_here(*told, "--dry-run", "--json", "-")
    assert foretold.status == 0, foretold.err
    assert json.loads(foretold.out)["layers"][0]["rank_at_most"] == 3
    run = lorakit_here(*told)
    assert run.status == 0, run.err
    with safe_open(output, "pt") as file:
        record = str(file.metadata())
    assert "base.safetensors" in record
    assert "paper" in record
    held = load_file(output)
    scale = float(held[f"{MODULE}.alpha"]) / 3
    up, down = (held[f"{MODULE}.{one}.weight"].double() for one in ("lora_B", "lora_A"))
    expected = wanted("linear", "lora, DoRA", 0.7) + wanted("linear", "lora", -0.4)
    u, s, v = np.linalg.svd(expected, full_matrices=False)
    assert apart((scale * up @ down).numpy(), (u[:, :3] * s[:3]) @ v[:3]) < 1e-3
