"""Layers of every kind as the tensors of a file, and what they do to a weight: float64 loops.

The loops are the definitions of the papers, in the storage that LyCORIS, kohya's scripts and PEFT
write. Nothing here imports lorakit.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

#: Shapes of the weights, by form.
WEIGHTS = {
    "linear": (8, 6),
    "conv1x1": (8, 6, 1, 1),
    "conv3x3": (8, 6, 3, 3),
    "conv3d": (8, 6, 2, 1, 3),
}

Tensors = dict[str, Tensor]


def numbers(*shape: int, seed: int = 0) -> Tensor:
    """Random float32 numbers of size 0.5 or so."""
    generator = torch.Generator().manual_seed(1000 * seed + sum(shape))
    return torch.randn(shape, generator=generator) * 0.5


def weight(form: str) -> Tensor:
    """A base weight."""
    return numbers(*WEIGHTS[form], seed=99)


def kinds(form: str) -> dict[str, Tensors]:
    """By name, the tensors of one layer of every kind for a weight of that form; suffix -> tensor."""
    out, into, *kernel = WEIGHTS[form]
    taps = math.prod(kernel)
    ones = [1] * len(kernel)
    alpha = {"alpha": torch.tensor(1.5)}
    found = {
        "lora": {
            "lora_up.weight": numbers(out, 2, *ones, seed=1),
            "lora_down.weight": numbers(2, into, *kernel, seed=2),
            **alpha,
        },
        "loha": {
            "hada_w1_a": numbers(out, 2, seed=3),
            "hada_w1_b": numbers(2, into * taps, seed=4),
            "hada_w2_a": numbers(out, 2, seed=5),
            "hada_w2_b": numbers(2, into * taps, seed=6),
            **alpha,
        },
        "loha of unequal ranks": {
            "hada_w1_a": numbers(out, 3, seed=3),
            "hada_w1_b": numbers(3, into * taps, seed=4),
            "hada_w2_a": numbers(out, 1, seed=5),
            "hada_w2_b": numbers(1, into * taps, seed=6),
            **alpha,
        },
        "loha of high rank": {
            "hada_w1_a": numbers(out, 4, seed=3),
            "hada_w1_b": numbers(4, into * taps, seed=4),
            "hada_w2_a": numbers(out, 4, seed=5),
            "hada_w2_b": numbers(4, into * taps, seed=6),
        },
        **{f"lokr {name}": tensors for name, tensors in _lokr(into, kernel).items()},
        "glora": {
            "a1.weight": numbers(into, 2, *ones, seed=7),
            "a2.weight": numbers(2, into, *ones, seed=8),
            "b1.weight": numbers(out, 2, *ones, seed=9),
            "b2.weight": numbers(2, into, *kernel, seed=10),
            **alpha,
        },
        "oft": {"oft_blocks": numbers(2, 4, 4, seed=11)},
        "oft, bounded": {"oft_blocks": numbers(2, 4, 4, seed=11), "alpha": torch.tensor(0.05)},
        "oft, bounded in vain": {
            "oft_blocks": numbers(2, 4, 4, seed=11),
            "alpha": torch.tensor(99.0),
        },
        "oft, rescaled": {
            "oft_blocks": numbers(4, 2, 2, seed=11),
            "rescale": 1 + numbers(out, 1, *ones, seed=12),
        },
        "boft": {"oft_blocks": numbers(2, 2, 4, 4, seed=13), "alpha": torch.tensor(0.0)},
        "boft, bounded": {
            "oft_blocks": numbers(3, 4, 2, 2, seed=13),
            "alpha": torch.tensor(0.1),
            "rescale": 1 + numbers(out, 1, *ones, seed=12),
        },
        "ia3": {
            "weight": numbers(*(out,) if not kernel else (1, out, *ones), seed=14),
            "on_input": torch.tensor(0),
        },
        "ia3 on the input": {
            "weight": numbers(*(into,) if not kernel else (1, into, *ones), seed=14),
            "on_input": torch.tensor(1),
        },
        "full": {"diff": numbers(out, into, *kernel, seed=15)},
        "set": {"set_weight": numbers(out, into, *kernel, seed=16)},
    }
    if taps > 1:
        found["lora, Tucker"] = {
            "lora_up.weight": numbers(out, 3, *ones, seed=1),
            "lora_down.weight": numbers(3, into, *ones, seed=2),
            "lora_mid.weight": numbers(3, 3, *kernel, seed=3),
            **alpha,
        }
        found["loha, Tucker"] = {
            "hada_w1_a": numbers(2, out, seed=3),
            "hada_w1_b": numbers(2, into, seed=4),
            "hada_t1": numbers(2, 2, *kernel, seed=5),
            "hada_w2_a": numbers(2, out, seed=6),
            "hada_w2_b": numbers(2, into, seed=7),
            "hada_t2": numbers(2, 2, *kernel, seed=8),
            **alpha,
        }
    else:
        found["glora, old"] = {
            "a1.weight": numbers(2, into, *ones, seed=7),
            "a2.weight": numbers(into, 2, *ones, seed=8),
            "b1.weight": numbers(2, into, *ones, seed=9),
            "b2.weight": numbers(out, 2, *ones, seed=10),
            **alpha,
        }
    rows = {"dora_scale": 1 + numbers(out, 1, *ones, seed=17).abs()}
    columns = {"dora_scale": 1 + numbers(1, into, *ones, seed=17).abs()}
    peft = 1 + numbers(*(1, out, *ones) if kernel else (out,), seed=17).abs()
    for name in ("lora", "loha", "lokr whole, thin", "glora"):
        found[f"{name}, DoRA"] = found[name] | rows
        found[f"{name}, DoRA on the input"] = found[name] | columns
    found["lora, DoRA of PEFT"] = found["lora"] | {"lora_magnitude_vector": peft}
    return found


def every_kind(prefix: str = "diffusion_model.") -> tuple[Tensors, Tensors]:
    """A LoRA file with a layer of each kind, and the weights that it is for."""
    found: Tensors = {}
    weights: Tensors = {}
    for at, layer in enumerate(kinds("linear").values()):
        module = f"{prefix}blocks.{at}.attn"
        weights[f"{module}.weight"] = weight("linear")
        found |= {f"{module}.{suffix}": one.clone() for suffix, one in layer.items()}
    return found, weights


def _lokr(into: int, kernel: list[int]) -> dict[str, Tensors]:
    """For 8 outputs: (2 or 4) * (4 or 2), and 2 * 3 or 3 * 2 inputs."""
    taps, half = math.prod(kernel), into // 2
    first = {
        "whole": {"lokr_w1": numbers(2, 2, seed=20)},
        "thin": {"lokr_w1_a": numbers(2, 1, seed=21), "lokr_w1_b": numbers(1, 2, seed=22)},
    }
    second = {
        "whole": {"lokr_w2": numbers(4, half, *kernel, seed=23)},
        "thin": {
            "lokr_w2_a": numbers(4, 2, seed=24),
            "lokr_w2_b": numbers(2, half * taps, seed=25),
        },
    }
    if taps > 1:
        second["Tucker"] = {
            "lokr_w2_a": numbers(2, 4, seed=26),
            "lokr_w2_b": numbers(2, half, seed=27),
            "lokr_t2": numbers(2, 2, *kernel, seed=28),
        }
    return {
        f"{a}, {b}": first[a] | second[b] | {"alpha": torch.tensor(3.0)}
        for a, b in itertools.product(first, second)
    }


# --- What each of them does to a weight ---------------------------------------------------------


def change(tensors: Mapping[str, Tensor], base: Tensor) -> np.ndarray:
    """What is added to the weight at strength 1, by the kind's paper; float64."""
    held = {name: tensor.double().numpy() for name, tensor in tensors.items()}
    flat = base.double().numpy().reshape(*base.shape[:2], -1)
    magnitude = held.pop("dora_scale", held.pop("lora_magnitude_vector", None))
    changed = _change(held, flat)
    if magnitude is not None:
        rows = magnitude.shape[0] == len(base) or "lora_magnitude_vector" in tensors
        merged = flat + changed
        changed = dora(merged, merged, magnitude.reshape(-1), rows) - flat
    return changed.reshape(base.shape)


def dora(
    measured: np.ndarray, changed: np.ndarray, magnitude: np.ndarray, rows: bool
) -> np.ndarray:
    """`changed`, each row (or column) of it times its magnitude over its length in `measured`."""
    result = np.empty_like(changed)
    for index, size in enumerate(magnitude):
        place = (index,) if rows else (slice(None), index)
        result[place] = changed[place] * size / math.sqrt(math.fsum(measured[place].ravel() ** 2))
    return result


def _change(held: dict[str, np.ndarray], base: np.ndarray) -> np.ndarray:
    if "diff" in held:
        return held["diff"].reshape(base.shape)
    if "set_weight" in held:
        return held["set_weight"].reshape(base.shape) - base
    alpha = held.get("alpha")
    for key, kind in (
        ("lora_up.weight", _lora),
        ("hada_w1_a", _loha),
        ("oft_blocks", _rotated),
        ("on_input", _ia3),
        ("a1.weight", _glora),
    ):
        if key in held:
            return kind(held, base, alpha)
    return _kron(held, base, alpha)


def _places(base: np.ndarray) -> Iterator[tuple[int, int, int]]:
    return itertools.product(*map(range, base.shape))


def _product(a: np.ndarray, b: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Sum of a[o, r] b[r, i, k] over r, one place after another."""
    a, b = a.reshape(len(a), -1), b.reshape(len(b), shape[1], -1)
    result = np.zeros(shape)
    for o, i, k in itertools.product(*map(range, shape)):
        result[o, i, k] = math.fsum(a[o, r] * b[r, i, k] for r in range(len(b)))
    return result


def _core(a: np.ndarray, core: np.ndarray, b: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Sum of a[p, o] core[p, q, k] b[q, i] over p and q."""
    core = core.reshape(*core.shape[:2], -1)
    result = np.zeros(shape)
    for o, i, k in itertools.product(*map(range, shape)):
        pairs = itertools.product(range(len(a)), range(len(b)))
        result[o, i, k] = math.fsum(a[p, o] * core[p, q, k] * b[q, i] for p, q in pairs)
    return result


def _lora(held: dict[str, np.ndarray], base: np.ndarray, alpha: np.ndarray | None) -> np.ndarray:
    up, down = held["lora_up.weight"], held["lora_down.weight"]
    scale = 1.0 if alpha is None else float(alpha) / len(down)
    if "lora_mid.weight" not in held:
        return scale * _product(up, down, base.shape)
    up, down = up.reshape(len(up), -1).T, down.reshape(len(down), -1)
    return scale * _core(up, held["lora_mid.weight"], down, base.shape)


def _loha(held: dict[str, np.ndarray], base: np.ndarray, alpha: np.ndarray | None) -> np.ndarray:
    scale = 1.0 if alpha is None else float(alpha) / len(held["hada_w1_b"])
    halves = []
    for n in "12":
        a, b = held[f"hada_w{n}_a"], held[f"hada_w{n}_b"]
        core = held.get(f"hada_t{n}")
        halves.append(_product(a, b, base.shape) if core is None else _core(a, core, b, base.shape))
    return scale * halves[0] * halves[1]


def _kron(held: dict[str, np.ndarray], base: np.ndarray, alpha: np.ndarray | None) -> np.ndarray:
    out, into, taps = base.shape
    scale = 1.0
    if "lokr_w1" in held:
        first = held["lokr_w1"]
    else:
        a, b = held["lokr_w1_a"], held["lokr_w1_b"]
        first = _product(a, b, (len(a), b.shape[1], 1))[..., 0]
        scale = float(alpha) / len(b)
    rows, columns = out // len(first), into // first.shape[1]
    if "lokr_w2" in held:
        second = held["lokr_w2"].reshape(rows, columns, taps)
    else:
        a, b, core = held["lokr_w2_a"], held["lokr_w2_b"], held.get("lokr_t2")
        shape = (rows, columns, taps)
        second = _product(a, b, shape) if core is None else _core(a, core, b, shape)
        scale = float(alpha) / len(b)
    result = np.zeros(base.shape)
    for o, i, k in _places(base):
        result[o, i, k] = first[o // rows, i // columns] * second[o % rows, i % columns, k]
    return scale * result


def _glora(held: dict[str, np.ndarray], base: np.ndarray, alpha: np.ndarray | None) -> np.ndarray:
    a1, a2, b1, b2 = (held[f"{name}.weight"] for name in ("a1", "a2", "b1", "b2"))
    if len(a1) < a1.shape[1]:
        a1, a2, b1, b2 = a2, a1, b2, b1
    into = base.shape[1]
    own = _product(a1, a2, (into, into, 1))[..., 0]
    result = _product(b1, b2, base.shape)
    for o, j, k in _places(base):
        result[o, j, k] += math.fsum(base[o, i, k] * own[i, j] for i in range(into))
    return result * (1.0 if alpha is None else float(alpha) / len(a2))


def _ia3(held: dict[str, np.ndarray], base: np.ndarray, alpha: np.ndarray | None) -> np.ndarray:
    gains, on_input = held["weight"].reshape(-1), bool(held["on_input"])
    result = np.zeros(base.shape)
    for o, i, k in _places(base):
        result[o, i, k] = base[o, i, k] * gains[i if on_input else o]
    return result


def rotation(block: np.ndarray) -> np.ndarray:
    """Cayley's transform of a skew-symmetric matrix."""
    eye = np.eye(len(block))
    return (eye + block) @ np.linalg.inv(eye - block)


def _rotated(held: dict[str, np.ndarray], base: np.ndarray, alpha: np.ndarray | None) -> np.ndarray:
    return rotated(held, base, 0.0 if alpha is None else float(alpha) * len(base)) - base


def rotated(
    held: Mapping[str, np.ndarray], base: np.ndarray, bound: float, strength: float = 1.0
) -> np.ndarray:
    """The weight with its outputs rotated, each stage, and rescale, blended with nothing at all."""
    blocks = held["oft_blocks"]
    skew = blocks - np.swapaxes(blocks, -1, -2)
    norm = math.sqrt(math.fsum(skew.ravel() ** 2))
    if 0 < bound < norm:
        skew = skew * bound / norm
    out, matrix = len(base), base.reshape(len(base), -1)
    size = blocks.shape[-1]
    for index, stage in enumerate(skew if skew.ndim == 4 else skew[None]):
        whole = np.zeros((out, out))
        for x, y in itertools.product(range(out), repeat=2):
            (block, row), (other, column) = (
                divmod(_paired(c, 2**index * size // 2) if skew.ndim == 4 else c, size)
                for c in (x, y)
            )
            if block == other:
                turned = rotation(stage[block])
                # OFT stores what is applied transposed; BOFT does not.
                whole[x, y] = turned[row, column] if skew.ndim == 4 else turned[column, row]
        matrix = (strength * whole + (1 - strength) * np.eye(out)) @ matrix
    if "rescale" in held:
        matrix = matrix * (1 + strength * (held["rescale"].reshape(-1, 1) - 1))
    return matrix.reshape(base.shape)


def _paired(channel: int, run: int) -> int:
    """Where a channel is, when neighbouring runs are shuffled into each other like cards."""
    pair, place = divmod(channel, 2 * run)
    which, inside = divmod(place, run)
    return pair * 2 * run + inside * 2 + which
