"""K-LoRA's comparison against its authors' program, step by step in float64 on dense matrices."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from lorakit.lora_ops import ArgumentError, UnsupportedLayerError
from lorakit.lora_ops.adapters.layers import DoraLayer, FullLayer, Layer, LohaLayer, LoraLayer
from lorakit.lora_ops.inspect.prevalence import Rivals, balance, prevalences, style_scale


def pair(out: int, into: int, rank: int, seed: int, size: float = 1.0) -> LoraLayer:
    generator = torch.Generator().manual_seed(seed)
    up, down = (torch.randn(*shape, generator=generator) for shape in ((out, rank), (rank, into)))
    return LoraLayer(size * up, down, torch.tensor(rank / 2.0))


def layers() -> list[tuple[LoraLayer, LoraLayer]]:
    """Of nine weights, sizes apart by as much as the style's scale goes through; one an outlier."""
    sizes = [0.3, 0.5, 0.7, 0.9, 1.1, 1.3, 1.6, 2.0, 40.0]
    return [
        (pair(24, 18 + at, 4, at, size), pair(24, 18 + at, 3, 100 + at))
        for at, size in enumerate(sizes)
    ]


def dense(layer: Layer) -> np.ndarray:
    """The change in float64."""
    if isinstance(layer, LoraLayer):
        up, down = layer.up.double().numpy(), layer.down.double().numpy()
        return up @ down * float(layer.alpha) / layer.down.shape[0]
    return layer.delta(torch.float64).numpy()


def authors(
    pairs: list[tuple[Layer, Layer]], progress: float, alpha: float, beta: float, star: bool
) -> list[bool]:
    """Whether the subject is taken, by weight: klora.py and utils.py, one number at a time."""
    ratios = [np.abs(dense(one)).sum() / np.abs(dense(other)).sum() for one, other in pairs]
    mean = sum(ratios) / len(ratios)
    kept = [ratio for ratio in ratios if ratio < 3 * mean]
    gamma = sum(kept) / len(kept)
    taken = []
    for one, other in pairs:
        count = one.rank * other.rank
        sums = []
        for layer in (one, other):
            ordered = sorted(np.abs(dense(layer)).flatten(), reverse=True)
            sums.append(sum(ordered[:count]))
        scale = alpha * progress + beta
        if star:
            scale = scale % alpha
        taken.append(scale == 0 or (sums[0] / gamma) / (sums[1] * scale) > 1)
    return taken


def chosen(
    pairs: list[tuple[Layer, Layer]], progress: float, alpha: float, beta: float, star: bool
) -> list[bool]:
    rivals = [Rivals(str(at), (one,), (other,)) for at, (one, other) in enumerate(pairs)]
    found = prevalences(rivals)
    gamma, scale = balance(found), style_scale(progress, alpha, beta, wraps=star)
    return [one.limit(gamma) > scale for one in found]


@pytest.mark.parametrize(("beta", "star"), [(0.5, False), (1.275, True)])
def test_the_choice_is_the_authors_at_every_step(beta: float, star: bool) -> None:
    pairs = [(one, other) for one, other in layers()]
    seen = set[bool]()
    steps = [
        [authors(pairs, at / 20, 1.5, beta, star), chosen(pairs, at / 20, 1.5, beta, star)]
        for at in range(20)
    ]
    for wanted, found in steps:
        assert found == wanted
        seen |= set(wanted)
    assert seen == {True, False}
    assert len({tuple(wanted) for wanted, _ in steps}) >= 4, "the choice changes with the progress"


def test_other_kinds_are_compared_by_what_they_change() -> None:
    generator = torch.Generator().manual_seed(5)
    w1a, w1b, w2a, w2b = (
        torch.randn(*shape, generator=generator) for shape in ((12, 2), (2, 10)) * 2
    )
    pairs: list[tuple[Layer, Layer]] = [
        (LohaLayer(w1a, w1b, w2a, w2b), pair(12, 10, 3, 1)),
        (pair(12, 10, 2, 3), pair(12, 10, 2, 4)),
    ]
    for at in range(6):
        assert chosen(pairs, at / 6, 1.5, 0.5, False) == authors(pairs, at / 6, 1.5, 0.5, False)


def test_rows_of_a_weight_are_compared_as_the_weight() -> None:
    """One adapter has query, key and value apart, the other has them as one."""
    parts = tuple(pair(8, 10, 2, seed) for seed in (1, 2, 3))
    (found,) = prevalences([Rivals("qkv", parts, (pair(24, 10, 3, 4),))])
    whole = np.abs(np.concatenate([dense(one) for one in parts])).flatten()
    assert found.rank == 3 * 2 * 3
    assert found.largest[0] == pytest.approx(np.sort(whole)[::-1][:18].sum(), rel=1e-6)
    assert found.whole[0] == pytest.approx(whole.sum(), rel=1e-6)


def test_a_small_weight_has_no_more_elements_than_it_has() -> None:
    (found,) = prevalences([Rivals("small", (pair(4, 3, 4, 1),), (pair(4, 3, 4, 2),))])
    assert found.rank == 12
    assert found.largest == pytest.approx(found.whole)


def test_zeros() -> None:
    zero, one = FullLayer(torch.zeros(6, 5)), pair(6, 5, 2, 1)
    found = prevalences([Rivals("a", (one,), (zero,)), Rivals("b", (one,), (one,))])
    assert balance(found) == pytest.approx(1.0)
    assert found[0].limit(1.0) == math.inf, "the subject, at any scale"
    for none in ([], prevalences([Rivals("a", (zero,), (one,))])):
        with pytest.raises(
            ArgumentError, match="in the weights that both change, and here are none"
        ):
            balance(none)


def test_what_is_made_from_the_weight_is_refused() -> None:
    dora = DoraLayer(pair(6, 5, 2, 1), torch.ones(6, 1))
    with pytest.raises(
        UnsupportedLayerError, match="layer `a`: what it changes depends on the base weight"
    ):
        prevalences([Rivals("a", (dora,), (pair(6, 5, 2, 2),))])
