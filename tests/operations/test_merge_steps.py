"""Steps on steps: what each sees, what it costs, and layers that are made from a weight."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from baking import adapter, pair, randn, thin
from kinds import kinds, weight
from namings import both
from safetensors.torch import save_file

from lorakit.lora_ops import DictSource, bake, merge_file, open_source, plan_merge_file
from lorakit.lora_ops.errors import ArgumentError
from lorakit.lora_ops.models.architectures import UNET, architecture_named, parameters
from lorakit.lora_ops.models.differences import read_parameter
from lorakit.lora_ops.operations.merge import merge as merge_module
from lorakit.lora_ops.operations.merge.merge import merge
from lorakit.lora_ops.operations.merge.recipes.recipe import Recipe, RecipeFile, Step, Term

NAME = "diffusion_model.blocks.0.attn"
KEY = f"{NAME}.weight"
MODELS = {name: {KEY: randn(24, 18, seed=seed)} for seed, name in enumerate("ABCD")}
FILES = {name: RecipeFile(f"{name}.safetensors") for name in "ABCDLM"}


class Counted(DictSource):
    """A checkpoint that counts how often each tensor is read."""

    def __init__(self, tensors, name):
        super().__init__(tensors, name=name)
        self.reads: Counter[str] = Counter()

    def tensor(self, key):
        self.reads[key] += 1
        return super().tensor(key)

    def read_into(self, key, start, out):
        self.reads[key] += 1
        return super().read_into(key, start, out)


def sources(models=MODELS):
    return {name: Counted(tensors, name) for name, tensors in models.items()}


def chain(count, method, **parameters):
    """Each step adds B, C and D to what the one before gave."""
    terms = tuple(Term(name, weight=0.1) for name in "BCD")
    return [
        Step(f"s{at}", terms, method, f"s{at - 1}" if at else "A", seed=at, parameters=parameters)
        for at in range(count)
    ]


@pytest.mark.parametrize(
    ("method", "parameters"), [("sum", {}), ("ties", {}), ("sparse", {"sparsify": "dare"})]
)
def test_a_chain_is_its_steps_one_after_another_and_reads_each_file_once_a_pass(method, parameters):
    steps = chain(9, method, **parameters)
    opened = sources()
    out, _ = merge(Recipe(tuple(steps), FILES), opened)
    tensors = MODELS["A"]
    for step in steps:
        alone = Step("alone", step.terms, method, "A", seed=step.seed, parameters=parameters)
        tensors, _ = merge(Recipe((alone,), FILES), sources(MODELS | {"A": tensors}))
    assert not torch.equal(tensors[KEY], MODELS["A"][KEY])
    torch.testing.assert_close(out[KEY], tensors[KEY], rtol=1e-5, atol=1e-6)
    # The tensor is one tile; what is the last one that was read is remembered.
    assert all(one.reads[KEY] <= 3 for one in opened.values())


def test_a_chain_on_a_base_in_pieces_is_the_same_and_as_long():
    """Each step is computed for the whole weight once, however many pieces and steps ask for it."""
    models = {name: both(architecture_named("flux"), seed) for seed, name in enumerate("ABCD")}
    recipe = Recipe(tuple(chain(12, "ties")), FILES)
    native, foreign = (
        merge(recipe, {name: DictSource(one[at], name=name) for name, one in models.items()})[0]
        for at in (0, 1)
    )
    source = DictSource(foreign)
    for name, one in parameters(source).items():
        torch.testing.assert_close(read_parameter(source, one), native[name], rtol=1e-6, atol=1e-7)


def test_a_step_that_two_use_is_the_same_for_both():
    shared = Step("s", (Term("B", weight=0.5), Term("C", weight=0.5)), "ties", "A")
    last = Step("out", (Term("s", weight=0.25), Term("s", "D", weight=0.5)), "sum", "A")
    out, _ = merge(Recipe((shared, last), FILES), sources())
    s, _ = merge(Recipe((shared,), FILES), sources())
    a, d = MODELS["A"][KEY].double(), MODELS["D"][KEY].double()
    exact = a + 0.25 * (s[KEY].double() - a) + 0.5 * (s[KEY].double() - d)
    torch.testing.assert_close(out[KEY].double(), exact, rtol=1e-5, atol=1e-5)


NEED = [
    name
    for name, layer in kinds("linear").items()
    if any(word in name for word in ("dora", "oft", "boft", "norm", "glora", "ia3"))
]


@pytest.mark.parametrize("kind", NEED)
def test_a_layer_that_is_made_from_a_weight_is_made_from_that_of_its_step(kind):
    """As a user who writes the first step to a file, and adds the layer to that, has it."""
    base = weight("linear").float()
    other = base + 0.3 * torch.randn(base.shape, generator=torch.Generator().manual_seed(3))
    models = {"A": {KEY: base}, "B": {KEY: other}}
    layer = {f"{NAME}.{suffix}": one for suffix, one in kinds("linear")[kind].items()}
    lora = DictSource(layer, name="L")
    steps = (
        Step("mixed", (Term("B", weight=0.7),), "lerp", "A"),
        Step("out", (Term("L", weight=0.5),), "sum", "mixed"),
    )
    out, _ = merge(Recipe(steps, FILES), sources(models) | {"L": lora})
    mixed, _ = merge(Recipe(steps[:1], FILES), sources(models))
    expected, _ = bake(DictSource(mixed), [adapter(layer, 0.5)])
    torch.testing.assert_close(out[KEY], expected[KEY], rtol=1e-5, atol=1e-6)
    assert not torch.equal(expected[KEY], mixed[KEY])


def test_of_a_weight_in_pieces_too():
    """A DoRA of a fused projection needs all of it; the base has it cut in three."""
    flux = architecture_named("flux")
    models = {name: both(flux, seed) for seed, name in enumerate("AB")}
    qkv = f"{UNET}double_blocks.0.img_attn.qkv"
    shape = models["A"][0][f"{qkv}.weight"].shape
    layer = thin(qkv, shape, 2) | {f"{qkv}.dora_scale": randn(shape[0], 1, seed=7).abs() + 0.5}
    steps = (
        Step("mixed", (Term("B", weight=0.7),), "lerp", "A"),
        Step("out", (Term("L"),), "sum", "mixed"),
    )

    def natively(tensors):
        source = DictSource(tensors)
        return {name: read_parameter(source, one) for name, one in parameters(source).items()}

    found = [
        natively(
            merge(
                Recipe(steps, FILES),
                {name: DictSource(one[at], name=name) for name, one in models.items()}
                | {"L": DictSource(layer, name="L")},
            )[0]
        )[f"{qkv}.weight"]
        for at in (0, 1)
    ]
    plain = 0.3 * models["A"][0][f"{qkv}.weight"] + 0.7 * models["B"][0][f"{qkv}.weight"]
    assert not torch.allclose(found[0], plain)
    torch.testing.assert_close(found[1], found[0])


def test_without_a_weight_it_is_refused():
    dora = pair(NAME, randn(24, 2), randn(2, 18), dora_scale=torch.ones(24, 1))
    steps = (
        Step("changes", (Term("L"), Term("M")), "sum"),
        Step("out", (Term("changes", weight=0.5),), "sum", "A"),
    )
    lora = DictSource(thin(NAME, (24, 18)), name="M")
    opened = sources() | {"L": DictSource(dora, name="L"), "M": lora}
    with pytest.raises(ArgumentError, match=rf"step `changes`: layer `{NAME}` of `L`.*`base`"):
        merge(Recipe(steps, FILES), opened)
    out, _ = merge(Recipe(steps, FILES), opened | {"L": lora})
    # The same LoRA twice, at a half, is the LoRA.
    baked, _ = bake(DictSource(MODELS["A"]), [adapter(thin(NAME, (24, 18)))])
    torch.testing.assert_close(out[KEY], baked[KEY])


def test_a_step_takes_files_and_earlier_steps():
    for steps, said in (
        ((Step("m", (Term("B"),), base="m"),), "step `m`: base is `m`, which is not yet there"),
        (
            (Step("m", (Term("n"),), base="A"), Step("n", (Term("B"),), base="A")),
            "step `m`: term 1 is `n`, which is not yet there",
        ),
        ((), "the recipe has no step"),
    ):
        with pytest.raises(ArgumentError, match=said):
            merge(Recipe(steps), sources())


# --- Hundreds of steps ----------------------------------------------------------------------------


def test_two_hundred_steps_one_upon_the_other():
    steps = tuple(
        Step(f"s{at}", (Term("BCD"[at % 3], weight=0.01),), "lerp", f"s{at - 1}" if at else "A")
        for at in range(200)
    )
    out, _ = merge(Recipe(steps, FILES), sources())
    meant = MODELS["A"][KEY].double()
    for at in range(200):
        meant.lerp_(MODELS["BCD"[at % 3]][KEY].double(), 0.01)
    torch.testing.assert_close(out[KEY].double(), meant, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", ["lerp", "ties", "slerp"])
def test_more_than_can_be_computed_is_told_with_their_number(method):
    terms = (Term("B", weight=0.5), Term("C", weight=0.5))[: 1 if method == "lerp" else 2]
    steps = [Step(f"s{at}", terms, method, f"s{at - 1}" if at else "A") for at in range(2000)]
    beside = Step("beside", (Term("B"),), "lerp", "A")  # is not one of them
    recipe = Recipe((beside, *steps), FILES)
    with pytest.raises(ArgumentError, match="`s1999` stands on 1999 others"):
        merge(recipe, sources())


def test_what_only_computing_is_too_deep_for_leaves_no_file(tmp_path, monkeypatch):
    save_file(MODELS["A"], tmp_path / "a.safetensors")
    with open_source(tmp_path / "a.safetensors") as base:
        given = {**sources(), "A": base}
        plan = plan_merge_file(Recipe(tuple(chain(3, "ties")), FILES), given)

        def too_deep(*_args):
            raise RecursionError

        monkeypatch.setattr(merge_module, "compute", too_deep)
        with pytest.raises(ArgumentError, match="`s2` stands on 2 others"):
            merge_file(plan, tmp_path / "out.safetensors")
    assert [one.name for one in tmp_path.iterdir()] == ["a.safetensors"]
