"""k-means of points of which only the inner products are known, all starts at once."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Labels = NDArray[np.int64]

# Starts, the best of which is taken, and the most steps of each; scikit-learn's.
_STARTS = 10
_STEPS = 300


def clustered(gram: Array, count: int, key: int) -> Labels:
    """Return the cluster of each point, by Lloyd's iterations from k-means++ starts; none is empty.

    A centre is the mean of its members, so that their inner products say all of it.

    Args:
        gram: (N, N), of the points.
        count: How many clusters, N at most.
        key: Of what is drawn by chance.
    """
    norms = gram.diagonal()
    apart = np.maximum(norms[:, None] + norms - 2 * gram, 0)
    labels = _filled(apart[:, _started(apart, count, key)].transpose(1, 0, 2))
    open_ = np.arange(_STARTS)
    for _ in range(_STEPS):
        moved = _filled(_distances(gram, labels[open_], count))
        changed = (moved != labels[open_]).any(1)
        if not changed.any():
            break
        labels[open_] = moved
        open_ = open_[changed]
    squares = np.take_along_axis(_distances(gram, labels, count), labels[:, :, None], 2)
    return labels[squares.sum((1, 2)).argmin()]


def _started(apart: Array, count: int, key: int) -> Labels:
    """Points to begin with (starts, count), each far from those before it by chance (Arthur & Vassilvitskii, 2007).

    Args:
        apart: Squared distances (N, N).
        count: How many.
        key: Of the chance.
    """
    source = np.random.Generator(np.random.Philox(key=key))
    chosen = np.empty((_STARTS, count), dtype=np.int64)
    drawn = np.empty((_STARTS, count))
    for start in range(_STARTS):
        chosen[start, 0] = source.integers(len(apart))
        drawn[start, 1:] = source.random(count - 1)
    nearest = apart[chosen[:, 0]]
    for step in range(1, count):
        sums = nearest.cumsum(1)
        total = sums[:, -1:]
        shares = np.where(total > 0, sums, np.arange(1, len(apart) + 1.0))
        at = (shares / shares[:, -1:] <= drawn[:, step, None]).sum(1)
        chosen[:, step] = np.minimum(at, len(apart) - 1)
        nearest = np.minimum(nearest, apart[chosen[:, step]])
    return chosen


def _distances(gram: Array, labels: Labels, count: int) -> Array:
    """Squared distances (S, N, count) from the means of clusters that are not empty."""
    members = (labels[:, :, None] == np.arange(count)).astype(np.float64)
    members /= members.sum(1, keepdims=True)
    inner = gram @ members
    own = (members * inner).sum(1, keepdims=True)
    return np.maximum(gram.diagonal()[:, None] + own - 2 * inner, 0)


def _filled(squares: Array) -> Labels:
    """The nearest centre of each point (S, N); a centre that has none takes the point farthest from its own."""
    labels = squares.argmin(2)
    count = squares.shape[2]
    for start, own in enumerate(labels):
        counts = np.bincount(own, minlength=count)
        for centre in np.flatnonzero(counts == 0):
            counts = np.bincount(own, minlength=count)
            far = np.take_along_axis(squares[start], own[:, None], 1)[:, 0]
            own[np.where(counts[own] > 1, far, -1.0).argmax()] = centre
    return labels
