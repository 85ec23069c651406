"""Ranks by counting against ranks by sorting: the same bits."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lorakit.lora_ops.linalg.thresholds import RankSearch

FLOATS = st.floats(width=32, allow_nan=False) | st.sampled_from(
    [0.0, -0.0, 1e-45, -1e-40, 1.0, -1.0]
)


@settings(max_examples=100, deadline=None)
@given(st.lists(FLOATS, min_size=1, max_size=60), st.data())
def test_the_magnitude_of_a_rank_is_that_of_the_sorted_ones(values, data):
    tensors = torch.tensor([values, values[::-1]], dtype=torch.float32)
    ranks = data.draw(st.lists(st.integers(1, len(values)), min_size=2, max_size=4))
    cut = data.draw(st.integers(0, len(values)))
    search = RankSearch(torch.tensor([ranks, ranks[::-1]]))
    for left in (2, 1):
        assert search.passes == left
        parts = [list(tensors[:, part]) for part in (slice(cut, None), slice(0, cut))]
        search = search.settle(sum(search.count(part) for part in parts))
    assert search.passes == 0
    order = tensors[0].abs().sort(descending=True).values
    expected = torch.stack([order[[r - 1 for r in some]] for some in (ranks, ranks[::-1])])
    assert search.found.view(torch.int32).equal(expected.view(torch.int32))


def test_many_equal_numbers():
    # Half precision: a large tensor has thousands of each.
    tensor = torch.randn(300, 700, generator=torch.Generator().manual_seed(0)).half().float()
    ranks = [1, 2, 42_000, 105_000, 210_000]
    search = RankSearch(torch.tensor([ranks]))
    for _ in range(2):
        search = search.settle(sum(search.count([rows]) for rows in tensor.split(7)))
    order = tensor.abs().view(-1).sort(descending=True).values
    assert search.found[0].equal(order[[rank - 1 for rank in ranks]])
