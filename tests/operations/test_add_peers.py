"""Methods of adding against PEFT's and mergekit's own, on the same tensors.

PEFT's `add_weighted_adapter` has TIES, DARE and magnitude pruning twice: `ties_svd` and so on work on whole
changes, as `scope=element` does, and are reproduced. Where the definitions part, tests say so:

- PEFT elects signs before it weighs the changes, the paper and ours after: only equal weights are the same;
- a draw of signs is plus in PEFT and in mergekit, and nothing in the paper;
- PEFT's masks are torch's: they are replaced by ours;
- without `_svd` PEFT does all this to the factors, up and down each for itself, which is no method on the change.

mergekit's are in `test_methods_peers.py` on tiles; here they are on what `add` is given.
"""

from __future__ import annotations

import pytest
import torch

from lorakit.lora_ops import Adapter, LoraLayer, Term, add
from lorakit.lora_ops.linalg.random_bits import random_bits, random_key

OUT, INTO = 40, 24
RANKS, ALPHAS = (4, 6, 3), (4.0, 3.0, 6.0)
NAME = "diffusion_model.input_blocks.1.1.proj_in"
SEED = 3


def factors() -> list[tuple[torch.Tensor, torch.Tensor]]:
    source = torch.Generator().manual_seed(1)
    return [
        (torch.randn(OUT, rank, generator=source), torch.randn(rank, INTO, generator=source))
        for rank in RANKS
    ]


def wholes() -> list[torch.Tensor]:
    return [
        up @ down * (alpha / rank)
        for (up, down), alpha, rank in zip(factors(), ALPHAS, RANKS, strict=True)
    ]


def ours(method: str, weights: list[float], rank: int = INTO, **parameters) -> torch.Tensor:
    """What `add` writes, multiplied out; every direction has room."""
    terms = [
        Term(
            Adapter({NAME: LoraLayer(up, down, alpha=alpha)}, {}, {}, "comfy"),
            {NAME: weight},
            str(at),
        )
        for at, ((up, down), alpha, weight) in enumerate(
            zip(factors(), ALPHAS, weights, strict=True)
        )
    ]
    summed, report = add(terms, rank, method=method, parameters={"scope": "element", **parameters})
    (layer,) = summed.layers.values()
    assert report.error < 1e-5
    up, down = layer.factors()
    return up @ down


def peft_s(kind: str, weights: list[float], density: float, sign: str = "total") -> torch.Tensor:
    """The change of PEFT's weighted adapter."""
    peft = pytest.importorskip("peft", reason="its sums are what is asked for")
    model, names = None, []
    for at, ((up, down), alpha) in enumerate(zip(factors(), ALPHAS, strict=True)):
        names.append(f"one{at}")
        config = peft.LoraConfig(r=up.shape[1], lora_alpha=alpha, target_modules=["0"])
        if model is None:
            plain = torch.nn.Sequential(torch.nn.Linear(INTO, OUT, bias=False))
            model = peft.get_peft_model(plain, config, adapter_name=names[0])
        else:
            model.add_adapter(names[-1], config)
        layer = model.base_model.model[0]
        with torch.no_grad():
            layer.lora_A[names[-1]].weight.copy_(down)
            layer.lora_B[names[-1]].weight.copy_(up)
    model.add_weighted_adapter(
        names,
        weights,
        "summed",
        combination_type=kind,
        svd_rank=INTO if kind.endswith("svd") else None,
        density=density,
        majority_sign_method=sign,
    )
    return layer.get_delta_weight("summed").detach()


@pytest.fixture
def our_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.bernoulli draws, call by call, what ours draws for the terms."""
    calls = iter(range(100))

    def bernoulli(probabilities: torch.Tensor, **_: object) -> torch.Tensor:
        key = random_key(SEED, NAME, next(calls))
        bits = random_bits(key, 0, probabilities.numel()).view(probabilities.shape).float()
        return (bits + 32768 < (probabilities * 65536).ceil()).to(probabilities)

    monkeypatch.setattr(torch, "bernoulli", bernoulli)


def same(found: torch.Tensor, wanted: torch.Tensor) -> None:
    assert float((found - wanted).norm() / wanted.norm()) < 1e-5


@pytest.mark.parametrize("density", [0.2, 0.5, 1.0])
@pytest.mark.filterwarnings("ignore:The density")
def test_peft_s_ties_of_equal_weights(density: float) -> None:
    same(ours("ties", [0.7] * 3, density=density), peft_s("ties_svd", [0.7] * 3, density))


@pytest.mark.filterwarnings("ignore:The density")
def test_peft_s_majority_by_frequency_where_there_is_no_draw() -> None:
    """Of three that are kept whole one sign always wins."""
    wanted = peft_s("ties_svd", [1.0] * 3, 1.0, "frequency")
    same(ours("ties", [1.0] * 3, density=1, elect="count"), wanted)


@pytest.mark.parametrize("weights", [[1.0, 1.0, 1.0], [0.7, -0.4, 1.3]])
@pytest.mark.parametrize("density", [0.2, 0.5])
def test_peft_s_magnitude(weights: list[float], density: float) -> None:
    wanted = peft_s("magnitude_prune_svd", weights, density)
    same(ours("magnitude", weights, density=density), wanted)


@pytest.mark.parametrize("weights", [[1.0, 1.0, 1.0], [0.7, -0.4, 1.3]])
@pytest.mark.usefixtures("our_masks")
def test_peft_s_dare(weights: list[float]) -> None:
    wanted = peft_s("dare_linear_svd", weights, 0.5)
    same(ours("dare", weights, density=0.5, seed=SEED), wanted)


@pytest.mark.usefixtures("our_masks")
def test_peft_s_dare_ties_of_equal_weights() -> None:
    wanted = peft_s("dare_ties_svd", [0.7] * 3, 0.5)
    same(ours("dare_ties", [0.7] * 3, density=0.5, seed=SEED, normalize="count"), wanted)


def test_with_other_weights_peft_elects_before_it_weighs() -> None:
    weights = [2.0, 0.3, -1.0]
    found, wanted = ours("ties", weights, density=0.5), peft_s("ties_svd", weights, 0.5)
    assert float((found - wanted).norm() / wanted.norm()) > 0.1
    kept = torch.stack([trimmed(whole, 0.5) for whole in wholes()])
    weighed = kept * torch.tensor(weights)[:, None, None]
    for elects, theirs in ((kept, wanted), (weighed, found)):
        sign = elects.sum(0).sign()
        agrees = (elects.sign() == sign) & (elects != 0)
        same((weighed * agrees).sum(0) / agrees.sum(0).clamp(min=1), theirs)


def test_peft_s_ties_of_factors_is_no_ties_of_the_change() -> None:
    """Of equal ranks, which it takes alone: it has little to do with the plain sum either."""
    merge = pytest.importorskip("peft.utils.merge_utils", reason="PEFT's sums are asked for").ties
    source = torch.Generator().manual_seed(2)
    ups, downs = torch.randn(3, OUT, 4, generator=source), torch.randn(3, 4, INTO, generator=source)
    up, down = (merge(list(one), torch.ones(3), 0.5) for one in (ups, downs))
    plain, theirs = (ups @ downs).sum(0), up @ down
    cosine = float((plain * theirs).sum() / plain.norm() / theirs.norm())
    assert cosine < 0.6


def trimmed(whole: torch.Tensor, density: float) -> torch.Tensor:
    kept = int(density * whole.numel())
    bound = whole.abs().flatten().sort(descending=True).values[kept - 1]
    return whole * (whole.abs() >= bound)


MERGEKIT = {
    "ties": ("ties", {"normalize": True, "rescale": False}),
    "magnitude": ("breadcrumbs", {"normalize": False, "rescale": False}),
    "sce": ("sce", {}),
}


@pytest.mark.parametrize("method", MERGEKIT)
@pytest.mark.parametrize("density", [0.2, 0.5])
def test_mergekit_s_of_the_same_changes(method: str, density: float) -> None:
    registry = pytest.importorskip("mergekit.merge_methods.registry", reason="needs mergekit")
    from mergekit.merge_methods.base import PerInputValues, TensorGroup

    theirs, switches = MERGEKIT[method]
    weights = [0.7, 1.2, 0.5]
    group = TensorGroup.from_tensors([torch.zeros(OUT, INTO), *wholes()], base_index=0)

    def each(values: list[float]) -> object:
        return PerInputValues(dict(enumerate(values, 1)))

    given = {"weight": each(weights), "density": each([density] * 3), "lambda": 1.0}
    if method == "magnitude":
        given["gamma"] = each([0.0] * 3)
    if method == "sce":
        given, weights = {"select_topk": density}, [1.0] * 3
    wanted = registry.get(theirs).merge_group(group, int8_mask=False, **given, **switches)
    own = {} if method == "sce" else {"legacy": "mergekit"}
    same(ours(method, weights, density=density, **own), wanted)
