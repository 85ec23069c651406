"""Methods that are means of the deltas, with the strengths as relative weights."""

from __future__ import annotations

import torch
from torch import Tensor

from ...errors import ArgumentError
from .inner import LENGTH, coordinates, directions, norm, shares, turned

#: Share of the strengths' absolute sum, up to which their sum is nothing.
CANCELLED = 1e-12
#: Shares of Newton's step that are tried: far from the end the whole of it goes too far.
SHORTER = tuple(0.5**halvings for halvings in range(12))


def average(_gram: Tensor, strengths: Tensor) -> Tensor:
    """The sum over the sum of the strengths.

    Raises:
        ArgumentError: The strengths cancel.
    """
    total = strengths.sum()
    if abs(total) <= CANCELLED * strengths.abs().sum():
        listed = ", ".join(f"{s:g}" for s in strengths.tolist())
        raise ArgumentError(
            f"method `average` divides by the sum of the strengths, and {listed} add up to 0; "
            "use method `sum`, or other strengths"
        )
    return strengths / total


def karcher(gram: Tensor, strengths: Tensor, iterations: float, tolerance: float) -> Tensor:
    """The Riemannian centre of mass of the directions, times the weighted mean of the norms.

    Karcher (1977), by fixed-point steps in the tangent space as in mergekit (arXiv:2603.04972). A
    zero delta has no direction but lowers the mean norm. Directions whose weighted sum is zero have
    no mean on the sphere: the result is then zero.
    """
    norms, cosines = directions(turned(gram, strengths))
    weights = shares(strengths)
    pulling = shares(strengths * (norms > 0))
    start = norm(pulling, cosines)
    if start <= LENGTH:
        return torch.zeros_like(strengths)
    mean = pulling / start
    for _ in range(int(iterations)):
        cosine = (cosines @ mean).clamp(-1, 1)
        angle = cosine.acos()
        # Straight across the sphere every way is the shortest: such a direction pulls nowhere.
        on_axis = angle.sin() < LENGTH
        pull = pulling * torch.where(on_axis, (cosine > 0).to(angle), angle / angle.sin())
        step = pull - (pull @ cosine) * mean
        length = norm(step, cosines)
        if length <= tolerance:
            break
        mean = length.cos() * mean + length.sin() / length * step
        mean = mean / norm(mean, cosines)
    return mean * strengths.sign() * (weights @ norms) / torch.where(norms > 0, norms, 1)


def geometric_median(
    gram: Tensor, strengths: Tensor, iterations: float, tolerance: float
) -> Tensor:
    """The point whose weighted sum of distances to the deltas is least; a zero delta is the origin.

    From the weighted mean by Newton's step or Weiszfeld's, whichever gains more, and by the step
    of Vardi and Zhang (2000, doi:10.1073/pnas.97.4.1423) away from an input that is met. An input
    that is the median itself is found at once: of two, the heavier. Where the median is not unique,
    it is the one that is reached from the mean: halfway between two inputs of one weight.
    """
    points = coordinates(turned(gram, strengths))
    weights = shares(strengths)
    corners = torch.eye(len(points), dtype=gram.dtype)
    size = points.norm(dim=1).amax()

    def pulls(ways: Tensor) -> tuple[Tensor, Tensor]:
        """Weight over distance of the inputs elsewhere, and the weight of those that are here."""
        distances = ways.norm(dim=1)
        apart = distances > LENGTH * size
        return torch.where(apart, weights / torch.where(apart, distances, 1), 0), weights * ~apart

    for corner, point in zip(corners, points, strict=True):
        pull, here = pulls(points - point)
        if (pull @ (points - point)).norm() < here.sum() * (1 - 1e-9):
            return corner * strengths.sign()
    at = weights @ points
    for _ in range(int(iterations)):
        ways = points - at
        pull, here = pulls(ways)
        force, held = pull @ ways, here.sum()
        if force.norm() <= held:
            break
        step = (1 - held / force.norm()) * force / pull.sum()
        if held == 0:
            units = ways / ways.norm(dim=1, keepdim=True).clamp(min=LENGTH * size)
            curvature = pull.sum() * (1 + 1e-9) * corners - (pull * units.mT) @ units
            newton = torch.linalg.solve(curvature, force)
            steps = torch.cat([step[None], newton.new_tensor(SHORTER)[:, None] * newton])
            distances = (ways - steps[:, None]).norm(dim=2)
            step = steps[(distances @ weights).argmin()]
        at = at + step
        if step.norm() <= tolerance * size:
            break
    pull, here = pulls(points - at)
    return shares(here if bool(here.any()) else pull) * strengths.sign()


def model_stock(gram: Tensor, strengths: Tensor) -> Tensor:
    """The weighted mean, drawn towards zero by how little the deltas agree.

    Jang et al. (2024, arXiv:2403.19522): for N deltas at the angle a the mean is multiplied by
    N cos(a) / (1 + (N - 1) cos(a)); cos(a) is the mean over all pairs, as in mergekit. A zero delta
    counts in the mean, but has no angle. Where deltas on average oppose each other they have nothing
    in common and the result is zero; the bare formula would grow without bound and change sign.
    """
    norms, cosines = directions(turned(gram, strengths))
    count = int((norms > 0).sum())
    if count < 2:
        return shares(strengths) * strengths.sign()
    cosine = (cosines.sum() - cosines.trace()) / (count * (count - 1))
    cosine = cosine.clamp(0, 1)
    ratio = count * cosine / (1 + (count - 1) * cosine)
    return ratio * shares(strengths) * strengths.sign()
