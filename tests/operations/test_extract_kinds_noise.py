"""The rank rule `noise` in every form: what stands above the rounding of storage is what is approximated."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
import torch
from stored_pairs import KEY, change, relative, stored, weight

from lorakit.lora_ops import extract, open_source
from lorakit.lora_ops.operations.extract.kinds.table import FORMS

SHAPE, RANK = (192, 160), 8


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Two checkpoints in float8, and what truly lies between them: a change of rank 8."""
    folder, start = tmp_path_factory.mktemp("stored"), weight(SHAPE)
    true = change(SHAPE, RANK, 0.04 * float(start.norm()))
    paths = (
        stored(start, "fp8_scaled", folder / "base.safetensors"),
        stored(start + true, "fp8_scaled", folder / "tuned.safetensors"),
    )
    with ExitStack() as stack:
        base, tuned = (stack.enter_context(open_source(path)) for path in paths)
        yield base, tuned, true


def made(pair, kind, rule):
    base, tuned, _ = pair
    adapter, report = extract(base, tuned, rule, kind=kind, dtype=torch.float32)
    (layer,) = adapter.layers.values()
    start = base.tensor(KEY).float()
    return layer, layer.change(start), report, start


@pytest.mark.parametrize("kind", list(FORMS))
def test_the_estimated_error_is_near_the_true_one(pair, kind):
    _, found, report, _ = made(pair, kind, "noise")
    (told,) = report.layers
    assert told.rounding is not None
    assert told.rounding.above == RANK
    assert report.estimated_error == pytest.approx(relative(found, pair[2]), rel=0.4)
    difference = pair[1].tensor(KEY).float() - pair[0].tensor(KEY).float()
    assert told.error == pytest.approx(relative(found, difference), rel=1e-4)


def test_dora_is_nearer_to_the_true_change_than_one_that_takes_the_rounding_too(pair):
    _, clean, _, _ = made(pair, "dora", "noise")
    _, plain, _, _ = made(pair, "dora", 64)
    assert relative(clean, pair[2]) < 0.8 * relative(plain, pair[2])


def test_a_loha_gets_half_as_many_directions(pair):
    layer, _, _, _ = made(pair, "loha", "noise")
    assert layer.w1_b.shape[0] == layer.w2_b.shape[0] == RANK // 2
    layer, _, _, _ = made(pair, "loha", "noise,max=4")
    assert layer.w1_b.shape[0] == 2


@pytest.mark.parametrize("kind", list(FORMS))
def test_without_a_rank_it_is_the_rule(pair, kind):
    _, _, report, _ = made(pair, kind, None)
    assert any("no rank was given" in note for note in report.notes)
    assert report.estimated_error is not None
