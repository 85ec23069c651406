"""Running a method of merging as an engine does, tile by tile."""

from __future__ import annotations

import numpy as np
import torch

from lorakit.lora_ops.operations.methods import Element, Task, choose_method


def merge_tiles(
    name, terms, weights=None, *, base=None, rows=None, seed=3, key="w", survey=None, **parameters
):
    """The result of an element method on whole weights: a weight if there is a base, else a change.

    Args:
        name: Of the method.
        terms: Changes where the method takes changes, else weights; all of one shape.
        weights: Of the terms; 1 each by default.
        base: For methods that take weights; those that take changes do without.
        rows: Of a tile; all by default.
        seed: For random numbers.
        key: The weight's name.
        survey: What the whole model said.
        **parameters: Of the method.
    """
    work, parts = open_work(
        name,
        terms,
        weights,
        base=base,
        rows=rows,
        seed=seed,
        key=key,
        survey=survey,
        **parameters,
    )
    result = [work.combine(tiles.clone(), below, first).clone() for tiles, below, first in parts]
    return torch.cat(result).reshape(terms[0].shape)


def open_work(
    name, terms, weights=None, *, base=None, rows=None, seed=3, key="w", survey=None, **parameters
):
    """The work after all of its passes, and the tiles."""
    shape = tuple(terms[0].shape)
    chosen = choose_method(name, len(terms), True, parameters)
    assert isinstance(chosen.method.how, Element)
    weights = tuple(weights or [1.0] * len(terms))
    work = chosen.method.how.begin(Task(shape, weights, chosen.parameters, key, seed, survey))
    matrix = torch.stack([term.float().reshape(shape[0], -1) for term in terms])
    below = None if base is None else base.float().reshape(shape[0], -1)
    rows = rows if rows and len(shape) > 1 else shape[0]
    parts = [
        (matrix[:, at : at + rows], None if below is None else below[at : at + rows], at)
        for at in range(0, shape[0], rows)
    ]
    while work.passes:
        # Backwards, and added up in pairs: order and parts must not matter.
        found = [work.observe(*part) for part in reversed(parts)]
        work = work.settle(sum(found[::2]) + sum(found[1::2]))
    return work, parts


def cosine_loop(a, b, alpha, kind, legacy, bounds):
    """From the formulas of supermerger and of sd-mecha, one column at a time."""
    a, b = (tensor.double().numpy().reshape(len(tensor), -1) for tensor in (a, b))
    x, y = (t / np.linalg.norm(t, axis=0) for t in (a, b)) if kind == "a" else (a, b)
    columns = (x * y).sum(0) / np.linalg.norm(x, axis=0) / np.linalg.norm(y, axis=0)
    whole = (x * y).sum() / np.linalg.norm(x) / np.linalg.norm(y)
    if legacy == "mecha":
        k = (columns if kind == "a" else (columns + whole) / 2) - alpha
    else:
        k = ((columns + whole) / 2 - bounds[0]) / (bounds[1] - bounds[0])
        k = k - (abs(alpha) if kind == "a" else alpha)
    k = k.clip(0, 1)
    return k * a + (1 - k) * b


def supermergers_range(likenesses):
    """The least and greatest likeness over all weights, without a hundredth at either end."""
    known = np.concatenate(likenesses)
    known = known[known >= np.percentile(known, 1, method="midpoint")]
    known = known[known <= np.percentile(known, 99, method="midpoint")]
    return known.min(), known.max()
