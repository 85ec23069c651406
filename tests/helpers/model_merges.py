"""Methods of merging two or three models, from their definitions, for one weight; nothing imports lorakit."""

from __future__ import annotations

import math

import torch


def inner(one, other):
    return float((one * other).sum())


def slerp(a, b, t):
    one, two = math.sqrt(inner(a, a)), math.sqrt(inner(b, b))
    angle = math.acos(min(1.0, inner(a, b) / (one * two)))
    arc = [math.sin((1 - t) * angle), math.sin(t * angle)]
    length = (1 - t) * one + t * two
    if angle < 1e-9:
        return (1 - t) * a + t * b
    return length * (arc[0] * a / one + arc[1] * b / two) / math.sin(angle)


def model_stock(a, b, c, _share):
    first, second = b - a, c - a
    norms = math.sqrt(inner(first, first) * inner(second, second))
    cosine = max(0.0, inner(first, second) / norms)
    return a + 2 * cosine / (1 + cosine) * (first + second) / 2


def orthogonalise(a, b, c, share):
    first, second = b - a, c - a
    return a + share * (second - inner(first, second) / inner(first, first) * first)


def energy(a, b, c, share):
    first, second = b - a, c - a
    one, two = math.sqrt(inner(first, first)), math.sqrt(inner(second, second))
    common = math.sqrt((one**2 + two**2) / 2)
    return a + share * (common * first / one + common * second / two)


def karcher(a, b, c, share):
    """Steps to the mean in the tangent space, until they vanish."""
    weights = [1 - 2 * share, share, share]
    norms = [math.sqrt(inner(one, one)) for one in (a, b, c)]
    units = [one / norm for one, norm in zip((a, b, c), norms, strict=True)]
    mean = sum(w * u for w, u in zip(weights, units, strict=True))
    mean = mean / math.sqrt(inner(mean, mean))
    for _ in range(50):
        step = torch.zeros_like(mean)
        for w, u in zip(weights, units, strict=True):
            cosine = max(-1.0, min(1.0, inner(mean, u)))
            across = u - cosine * mean
            length = math.sqrt(inner(across, across))
            step += w * math.acos(cosine) * across / length if length > 1e-12 else 0.0
        length = math.sqrt(inner(step, step))
        if length < 1e-13:
            break
        mean = math.cos(length) * mean + math.sin(length) * step / length
    return mean * sum(w * norm for w, norm in zip(weights, norms, strict=True))


def geometric_median(a, b, c, share):
    """Weiszfeld's steps, many of them."""
    points, weights = (a, b, c), [1 - 2 * share, share, share]
    at = sum(w * p for w, p in zip(weights, points, strict=True))
    for _ in range(2000):
        pull = [w / (p - at).norm() for w, p in zip(weights, points, strict=True)]
        at = sum(w * p for w, p in zip(pull, points, strict=True)) / sum(pull)
    return at


#: With how many models each is tried; the last argument is the share of B, and of C.
METHODS = {
    "weighted_sum": (lambda a, b, c, share: a + share * (b - a) + share * (c - a), 3),
    "add_difference": (lambda a, b, c, share: a + share * (b - c), 3),
    "slerp": (slerp, 2),
    "karcher": (karcher, 3),
    "geometric_median": (geometric_median, 3),
    "model_stock": (model_stock, 3),
    "orthogonalise": (orthogonalise, 3),
    "energy": (energy, 3),
}
