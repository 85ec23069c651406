"""The singular values of an adapter's layers, against LAPACK on the changes multiplied out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from adapters import EVERY_FORM, Part, adapter, changes, read, tensors
from kinds import kinds
from oracles import singular_values
from torch import Tensor

from lorakit.lora_ops.errors import NonFiniteError, UnknownFormatError
from lorakit.lora_ops.inspect.spectra import Spectrum, kept, spectra
from lorakit.lora_ops.run.devices import place


def spectrum(*values: float, square: float | None = 1.0) -> Spectrum:
    s = torch.tensor(values, dtype=torch.float64)
    return Spectrum("a", "LoRA", len(values), square if square is None else float(s @ s), s)


def test_every_form_has_the_singular_values_of_its_change() -> None:
    found = spectra(adapter(EVERY_FORM))
    meant = changes(tensors(EVERY_FORM))
    assert {one.target for one in found} == meant.keys()
    for one in found:
        exact = singular_values(meant[one.target].flatten(1))[: len(one.s)]
        np.testing.assert_allclose(one.s.numpy(), exact, rtol=1e-5, atol=1e-6)
        assert one.square == pytest.approx(float(meant[one.target].square().sum()), rel=1e-6)
        assert one.rank == 6


def test_alpha_scales_them() -> None:
    (plain,), (scaled,) = (spectra(adapter([Part(alpha=alpha)])) for alpha in (None, 3.0))
    torch.testing.assert_close(scaled.s, plain.s / 2)


def test_batches_give_what_single_layers_give() -> None:
    many = [Part(seed=seed, module=f"input_blocks.{seed}.1.proj_in") for seed in range(5)]
    one_by_one = {one.target: one.s for one in spectra(adapter(many))}
    together = spectra(adapter(many), placement=place("cpu", memory=1 << 30))
    for one in together:
        torch.testing.assert_close(one.s, one_by_one[one.target])
    assert len(together) == 5


DORA = kinds("linear")["lora"] | {"dora_scale": torch.ones(8, 1)}


@pytest.mark.parametrize(
    ("held", "rank"), [(kinds("linear")["ia3"], 0), (kinds("linear")["oft"], 0), (DORA, 2)]
)
def test_what_is_made_from_the_base_has_none(held: dict[str, Tensor], rank: int) -> None:
    (one,) = spectra(read({f"diffusion_model.blocks.0.q.{key}": t for key, t in held.items()}))
    assert (one.square, len(one.s), one.rank) == (None, 0, rank)
    assert kept([one]).directions == ()


def test_a_full_difference_has_energy_and_no_directions() -> None:
    (one,) = spectra(read({"diffusion_model.blocks.0.q.diff": torch.full((3, 4), 2.0)}))
    assert one.square == pytest.approx(48)
    assert (len(one.s), one.rank) == (0, 0)


def test_progress_counts_all_layers() -> None:
    seen: list[tuple[int, int]] = []
    spectra(adapter(EVERY_FORM), progress=lambda done, total, _: seen.append((done, total)))
    assert seen == [(index + 1, 5) for index in range(5)]


def test_nan_is_an_error_and_so_is_nothing() -> None:
    broken = tensors([Part()])
    next(iter(broken.values()))[0, 0] = torch.nan
    with pytest.raises(NonFiniteError, match="NaN"):
        spectra(read(broken))
    with pytest.raises(UnknownFormatError, match="no layers"):
        spectra(replace(adapter([Part()]), layers={}))


def test_kept_is_what_a_resize_keeps() -> None:
    found = kept([spectrum(4, 3), spectrum(12, 5, 0)])
    assert found.directions == (1, 2, 3)
    assert found.whole == pytest.approx(((16 + 144) / (25 + 169), 1, 1))
    # Ninths of the way between two layers: linear between order statistics.
    low, high = sorted((16 / 25, 144 / 169))
    assert found.low[0] == pytest.approx(low + 0.1 * (high - low))
    assert found.high[0] == pytest.approx(low + 0.9 * (high - low))


def test_kept_leaves_out_what_has_no_directions() -> None:
    assert kept([spectrum(2.0), spectrum(0.0), spectrum(square=None)]).whole == (1, 1)
    assert kept([spectrum(0.0)]).directions == ()
    assert kept([]).directions == ()


@pytest.mark.parametrize("rank", [1, 2, 3, 64, 100, 128])
def test_kept_ends_at_the_largest_rank(rank: int) -> None:
    found = kept([spectrum(*range(rank, 0, -1))])
    assert (found.directions[0], found.directions[-1]) == (1, max(rank, 2))
    assert found.whole[-1] == 1
    assert list(found.whole) == sorted(found.whole)
