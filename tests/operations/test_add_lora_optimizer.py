"""Methods of adding against those of ComfyUI-LoRA-Optimizer (1.6.2), on the same tensors.

It has no file of its own of definitions: what follows a published one, or ours, is reproduced, and where it parts a test
says how. Without a counterpart here are `normalize` (the sum over the root of the squared weights), `consensus`, TALL masks, its
rows that vote as one, and what sparsifies conflicts alone.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lora_optimizer import merging
from test_add_peers import INTO, NAME, SEED, factors, ours, same, wholes
from test_add_peers import our_masks as our_masks

from lorakit.lora_ops import Adapter, LoraLayer, Term, add

EQUAL, UNLIKE = [0.7] * 3, [0.7, -0.4, 1.3]


@pytest.fixture(scope="module")
def theirs() -> Any:
    return merging()


def whole(theirs: Any, mode: str, weights: list[float], **options: Any) -> torch.Tensor:
    """Their result, of the first changes, one for each weight."""
    pairs = [(one.clone(), weight) for one, weight in zip(wholes(), weights, strict=False)]
    return theirs._merge_diffs(pairs, mode, **options)


def plain(method: str, weights: list[float], **parameters: float) -> torch.Tensor:
    """What `add` writes of the first changes by a method of coefficients, multiplied out."""
    layers = [
        LoraLayer(up, down * (whole_.norm() / (up @ down).norm()))
        for (up, down), whole_ in zip(factors(), wholes(), strict=True)
    ]
    terms = [
        Term(Adapter({NAME: layer}, {}, {}, "comfy"), {NAME: weight}, str(at))
        for at, (layer, weight) in enumerate(zip(layers, weights, strict=False))
    ]
    summed, report = add(terms, method=method, parameters=parameters)
    assert report.error < 1e-5
    (layer,) = summed.layers.values()
    up, down = layer.factors()
    return up @ down


def apart(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("weights", [EQUAL, UNLIKE])
def test_sums(theirs: Any, weights: list[float]) -> None:
    same(plain("sum", weights), whole(theirs, "weighted_sum", weights))


def test_averages_of_weights_above_0(theirs: Any) -> None:
    """Below, it divides by the sum of magnitudes, which is no mean: two equal LoRAs at 1 and -0.5 would be a sixth."""
    weights = [0.7, 0.4, 1.3]
    same(plain("average", weights), whole(theirs, "weighted_average", weights))
    assert apart(plain("average", UNLIKE), whole(theirs, "weighted_average", UNLIKE)) > 0.1


@pytest.mark.parametrize("density", [0.2, 0.5])
def test_ties_of_equal_weights(theirs: Any, density: float) -> None:
    found = ours("ties", EQUAL, density=density)
    same(found, whole(theirs, "ties", EQUAL, density=density, majority_sign_method="total"))


def test_ties_by_frequency_where_there_is_no_draw(theirs: Any) -> None:
    wanted = whole(theirs, "ties", EQUAL, density=1.0, majority_sign_method="frequency")
    same(ours("ties", EQUAL, density=1, elect="count"), wanted)


def test_with_other_weights_it_elects_before_it_weighs(theirs: Any) -> None:
    """As PEFT, but that a strength below 0 turns the change around before, as in the definition."""
    weights = [2.0, 0.3, -1.0]
    wanted = whole(theirs, "ties", weights, density=1.0, majority_sign_method="total")
    assert apart(ours("ties", weights, density=1), wanted) > 0.1
    signed = torch.stack([one * (-1 if w < 0 else 1) for one, w in zip(wholes(), weights, strict=True)])  # fmt: skip
    agrees = signed.sign() == signed.sum(0).sign()
    sizes = torch.tensor(weights).abs()[:, None, None]
    same((signed * sizes * agrees).sum(0) / agrees.sum(0).clamp(min=1), wanted)


@pytest.mark.parametrize("weights", [EQUAL, UNLIKE])
@pytest.mark.usefixtures("our_masks")
def test_dare(theirs: Any, weights: list[float]) -> None:
    wanted = whole(theirs, "weighted_sum", weights, sparsification="dare", sparsification_density=0.5)  # fmt: skip
    same(ours("dare", weights, density=0.5, seed=SEED), wanted)


@pytest.mark.usefixtures("our_masks")
def test_dare_ties_of_equal_weights(theirs: Any) -> None:
    wanted = whole(theirs, "ties", EQUAL, sparsification="dare", sparsification_density=0.5, majority_sign_method="total")  # fmt: skip
    same(ours("dare_ties", EQUAL, density=0.5, seed=SEED, normalize="count"), wanted)


def test_della_s_probabilities_are_half_a_step_higher(
    theirs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of n elements in a row they end at density + epsilon / 2, and so their mean is epsilon / 2n above the density."""
    seen: list[torch.Tensor] = []

    def bernoulli(probabilities: torch.Tensor, **_: object) -> torch.Tensor:
        seen.append(probabilities)
        return torch.ones_like(probabilities)

    monkeypatch.setattr(torch, "bernoulli", bernoulli)
    theirs._della_sparsify(wholes()[0], 0.5, 0.3)
    ranks = wholes()[0].abs().argsort(dim=1).argsort(dim=1)
    steps = (ranks + 0.5 - INTO / 2) * (0.3 / INTO)  # ours
    torch.testing.assert_close(seen[0], 0.5 + steps + 0.15 / INTO)


def test_slerp_is_the_arc_only_between_equal_norms(theirs: Any) -> None:
    """It takes the arc's factors on vectors that it did not bring to one length, and mends the norm alone."""
    first, second = (one / one.norm() for one in wholes()[:2])
    pairs = [(first, 0.6), (second, 0.4)]
    arc = theirs._merge_diffs([(one.clone(), w) for one, w in pairs], "slerp")
    angle = torch.acos((first * second).sum())
    wanted = (torch.sin(0.6 * angle) * first + torch.sin(0.4 * angle) * second) / angle.sin()
    same(arc, wanted)
    found = plain("slerp", [1.0, 1.0], t=0.4)  # the two as they are, of unequal norms
    crooked = whole(theirs, "slerp", [0.6, 0.4])
    assert float(found.norm()) == pytest.approx(float(crooked.norm()), rel=1e-4)
    cosine = float((found * crooked).sum() / found.norm() / crooked.norm())
    assert cosine < 0.999


def test_its_knots_changes_nothing(theirs: Any) -> None:
    """It projects onto the common directions and back: no method is at work in between."""
    aligned = theirs._knots_align([(one, 1.0) for one in wholes()])
    for (found, _), one in zip(aligned, wholes(), strict=True):
        assert apart(found, one) < 1e-4
    assert apart(ours("ties", EQUAL), plain("knots", EQUAL)) > 0.05, "which KnOTS with TIES is not"


def test_its_orthogonalised_keep_their_norms(theirs: Any) -> None:
    """Ours is what the last adds, at the size that it then has; its goes back to the size that it had."""
    first, second = wholes()[:2]
    (_, _), (turned, _) = theirs._do_orthogonalize([(first, 1.0), (second, 1.0)])
    rest = plain("orthogonalise", [1.0, 1.0])
    same(turned / turned.norm(), rest / rest.norm())
    assert float(turned.norm()) == pytest.approx(float(second.norm()), rel=1e-5)
    assert float(rest.norm()) < float(second.norm())


def test_what_it_saves_at_a_rank_is_as_near_as_ours(theirs: Any) -> None:
    total = torch.stack(wholes()).sum(0)
    up, down, alpha, *_ = theirs._compress_to_lowrank(total, 5)
    values = torch.linalg.svdvals(total)
    least = float(values[5:].norm() / values.norm())
    assert alpha == 5
    assert apart(up @ down, total) == pytest.approx(least, rel=1e-3)
