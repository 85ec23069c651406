"""LoRAs into a checkpoint by methods on elements: `bake` by `merge`'s engine, against dense definitions and `add`."""

from __future__ import annotations

import pytest
import torch
from commands import lorakit_here
from kinds import kinds, numbers
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lorakit.lora_ops import ArgumentError, DictSource, Ingredient, Term, add, decode, merge
from lorakit.lora_ops.operations.merge.loras import BAKE_METHODS, recipe_of_loras

NAME, KEY = "diffusion_model.blocks.0.q", "model.diffusion_model.blocks.0.q.weight"
OUT, INTO = 24, 16
STRENGTHS = (0.7, 1.2, -0.5)


def lora(seed: int, rank: int = 3) -> dict[str, torch.Tensor]:
    up, down = numbers(OUT, rank, seed=seed), numbers(rank, INTO, seed=seed + 50)
    return {f"{NAME}.lora_B.weight": up, f"{NAME}.lora_A.weight": down}


LORAS = {f"style{seed}": lora(seed) for seed in (1, 2, 3)}
WEIGHT = numbers(OUT, INTO, seed=9)


def checkpoint() -> DictSource:
    return DictSource({KEY: WEIGHT, "model.diffusion_model.blocks.0.k.weight": WEIGHT + 1}, name="base")  # fmt: skip


def ingredients(names=tuple(LORAS)) -> list[Ingredient]:
    held = zip(names, LORAS.values(), STRENGTHS, strict=True)
    return [Ingredient(DictSource(one, name=name), s) for name, one, s in held]


def change(method: str, parameters=None, **options) -> torch.Tensor:
    recipe, sources, _ = recipe_of_loras(checkpoint(), options.pop("of", ingredients()), method, parameters, **options)  # fmt: skip
    return merge(recipe, sources)[0][KEY] - WEIGHT


def products() -> list[torch.Tensor]:
    return [
        s * one[f"{NAME}.lora_B.weight"] @ one[f"{NAME}.lora_A.weight"]
        for one, s in zip(LORAS.values(), STRENGTHS, strict=True)
    ]


def trimmed(whole: torch.Tensor, density: float) -> torch.Tensor:
    kept = int(density * whole.numel())
    return whole * (whole.abs() >= whole.abs().flatten().sort(descending=True).values[kept - 1])


def near(found: torch.Tensor, wanted: torch.Tensor) -> None:
    assert float((found - wanted).norm() / wanted.norm()) < 1e-5


@pytest.mark.parametrize("density", [0.2, 0.6])
def test_ties_is_the_definition_on_the_elements(density: float) -> None:
    kept = torch.stack([trimmed(one, density) for one in products()])
    agrees = (kept.sign() == kept.sum(0).sign()) & (kept != 0)
    near(change("ties", {"density": density}), (kept * agrees).sum(0) / agrees.sum(0).clamp(min=1))
    near(change("magnitude", {"density": density}), kept.sum(0))


@pytest.mark.parametrize("method", ["ties", "magnitude", "dare", "dare_ties", "della", "breadcrumbs", "sce"])  # fmt: skip
def test_it_is_add_s_at_the_scope_element_with_room_for_all(method: str) -> None:
    terms = [Term(decode(one.source), {NAME: one.strength}, one.source.name) for one in ingredients()]  # fmt: skip
    if method == "sce":  # of which add weighs by strengths what it has chosen
        terms = [Term(one.adapter, {}, one.name) for one in terms]
        of = [Ingredient(one.source) for one in ingredients()]
    else:
        of = ingredients()
    own = {"scope": "element", **({"seed": 5} if "d" in method[:2] else {})}
    summed, report = add(terms, INTO, method=method, parameters=own, dtype=torch.float32)
    assert report.error < 1e-5
    found = change(method, {"scope": "element"}, seed=5, of=of)
    up, down = summed.layers[NAME].factors()
    if method in ("dare", "dare_ties", "della"):  # masks are drawn by the name of what they are for
        assert found.count_nonzero() < found.numel()
        assert float((found - up @ down).norm() / found.norm()) < 2
    else:
        near(found, up @ down)


def test_what_is_kept_whole_is_added_to_what_the_method_makes_of_the_others() -> None:
    rest = recipe_of_loras(checkpoint(), ingredients()[:2], "ties")
    wanted = merge(rest[0], rest[1])[0][KEY] - WEIGHT + products()[2]
    near(change("ties", keep_whole=[2]), wanted)
    known = ingredients(("style1", "style2", "lcm-lora"))
    near(change("ties", of=known), wanted)
    assert recipe_of_loras(checkpoint(), known, "ties")[2] == (
        "lcm-lora is added as it is, to what `ties` makes of the others",
    )
    near(change("ties", of=known, keep_whole=[]), change("ties"))
    with pytest.raises(ArgumentError, match="all is kept whole"):
        change("ties", keep_whole=[0, 1, 2])
    for place in (3, -1):
        with pytest.raises(ArgumentError, match="a place from 0 to 2"):
            change("ties", keep_whole=[place])


def test_kinds_that_are_made_from_the_weight_are_made_first() -> None:
    dora = {f"{NAME}.dora_scale": 1 + numbers(OUT, 1, seed=4).abs(), **LORAS["style1"]}
    turned = WEIGHT + products()[0] / STRENGTHS[0]
    first = 0.7 * (turned * dora[f"{NAME}.dora_scale"] / turned.norm(dim=1, keepdim=True) - WEIGHT)
    mixed = [Ingredient(DictSource(dora, name="dora"), 0.7), *ingredients()[1:]]
    kept = torch.stack([trimmed(one, 0.3) for one in (first, *products()[1:])])
    near(change("magnitude", {"density": 0.3}, of=mixed), kept.sum(0))
    assert "lora, DoRA" in kinds("linear")


@pytest.mark.parametrize(
    ("method", "given", "told"),
    [
        ("tsv", {}, "method `tsv` makes a LoRA, without loss; add the LoRAs by it first"),
        ("ties", {"scope": "core"}, "method `ties` at the scope `core` makes a LoRA"),
        ("karcher", {}, "method `karcher` makes a LoRA, without loss"),
        ("train_difference", {}, "unknown method `train_difference`"),
        ("tis", {}, "did you mean `ties`"),
    ],
)  # fmt: skip
def test_what_has_no_result_there_is_refused(method: str, given: dict, told: str) -> None:
    with pytest.raises(ArgumentError, match=told):
        change(method, given)
    assert "ties" in BAKE_METHODS


def test_the_command_is_the_merge_of_the_same_and_records_it(tmp_path) -> None:
    save_file({key: checkpoint().tensor(key) for key in checkpoint().keys()}, tmp_path / "base.safetensors")  # noqa: SIM118  # fmt: skip
    paths = []
    for name, held in LORAS.items():
        save_file(held, tmp_path / f"{name}.safetensors")
        paths.append(tmp_path / f"{name}.safetensors")
    terms = [f"{path}:{s}" for path, s in zip(paths, STRENGTHS, strict=True)]
    ours, theirs = tmp_path / "baked.safetensors", tmp_path / "merged.safetensors"
    asked = ("-m", "dare_ties,density=0.4", "--seed", 3)
    run = lorakit_here("bake", tmp_path / "base.safetensors", *terms, "-o", ours, *asked)
    assert run.status == 0, run.err
    other = lorakit_here("merge", "--base", tmp_path / "base.safetensors", *terms, "-o", theirs, *asked)  # fmt: skip
    assert other.status == 0, other.err
    found, wanted = load_file(ours), load_file(theirs)
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)
    with safe_open(ours, "pt") as file:
        assert "dare_ties" in str(file.metadata())
    again = lorakit_here("merge", ours, "--search", tmp_path, "-o", tmp_path / "again.safetensors")
    assert again.status == 0, again.err
    assert torch.equal(load_file(tmp_path / "again.safetensors")[KEY], found[KEY])
    words = ("bake", tmp_path / "base.safetensors", *terms, "-o", ours, "--force", "--dry-run")
    assert lorakit_here(*words, *asked).status == 0
    assert lorakit_here(*words, "-m", "ties", "--keep-whole", "style2").status == 0
    assert lorakit_here(*words, "--keep-whole", "style2").status == 2
    told = lorakit_here(*words, "-m", "knots")
    assert (told.status, "add the LoRAs by it first" in told.err) == (2, True)
