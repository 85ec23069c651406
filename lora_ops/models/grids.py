"""How far apart the numbers of a parameter are stored: `TensorSource.grid` and `reach`, in the model's places."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from ..linalg.rounding import Grid
from ..source import TensorSource
from .architectures import Parameter, Piece


def parameter_grid(source: TensorSource, parameter: Parameter) -> Grid:
    """Return the grid of a parameter, whose places are those of `read_parameter`."""
    return _placed(source.grid, parameter)


def parameter_reach(source: TensorSource, parameter: Parameter) -> Grid:
    """Return the reach of a parameter, whose places are those of `read_parameter`."""
    return _placed(source.reach, parameter)


def _placed(told: Callable[[str, Tensor, int], Tensor], parameter: Parameter) -> Grid:
    """What a source tells of the places of a tensor, in those of a parameter."""
    grid = _joined(told, parameter) if parameter.pieces else partial(told, parameter.key)
    stored = parameter.shape[::-1] if parameter.transposed else parameter.shape
    before = parameter.rows[0] * math.prod(stored[1:]) if parameter.rows else 0
    if not parameter.transposed:
        return lambda values, start: grid(values, before + start)

    def turned(values: Tensor, start: int) -> Tensor:
        run = slice(start, start + values.numel())
        around = values.new_zeros(math.prod(stored))
        around[run] = values.reshape(-1)
        found = grid(around.reshape(parameter.shape).mT.contiguous(), before)
        return found.mT.reshape(-1)[run].reshape(values.shape)

    return turned


def _lying(piece: Piece) -> Parameter:
    """Where a piece lies; one that is turned, by the rows of its matrix in a stack of them."""
    one = piece.parameter
    if not piece.turned or one.rows is None:
        return one
    width, height = one.shape[-2:]
    rows = (one.rows[0] * width, one.rows[1] * width)
    return replace(one, shape=(height, width), rows=rows, transposed=True)


def _joined(told: Callable[[str, Tensor, int], Tensor], parameter: Parameter) -> Grid:
    """The grid of a parameter that another program has in pieces."""
    runs: list[tuple[range, Grid, int]] = []  # which places have whose grid, from which place on
    end = 0
    for piece in parameter.pieces:
        grid, shape = _placed(told, _lying(piece)), piece.parameter.shape
        count = math.prod(shape)
        half = -(-shape[0] // 2) * math.prod(shape[1:]) if piece.swapped else 0
        for first, last in ((half, count), (0, half)):
            runs.append((range(end, end := end + last - first), grid, first))

    def joined(values: Tensor, start: int) -> Tensor:
        flat = values.reshape(-1)
        found = torch.empty(flat.shape, dtype=torch.float64, device=flat.device)
        for places, grid, first in runs:
            begin, stop = max(places.start, start), min(places.stop, start + len(flat))
            if begin < stop:
                part = slice(begin - start, stop - start)
                found[part] = grid(flat[part], first + begin - places.start)
        return found.reshape(values.shape)

    return joined
