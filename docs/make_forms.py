"""Compare forms of one truncation on the digits: `python docs/make_forms.py` prints the table of docs/activations.md.

The best change of a rank by a layer's output can be computed in several ways, which are equal on paper. Here each is run as
it was published, on inputs that the tuned digits had, in float64 and in float32, and held against the least error there is.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from lorakit.examples.digits.demo import BASE, TUNED, tensors_of
from lorakit.examples.digits.model import DigitModel
from lorakit.examples.digits.sample import load_model, sample_digits, starting_noise
from lorakit.lora_ops import open_source
from lorakit.lora_ops.linalg.moments import moment_of, weighted_factors
from lorakit.lora_ops.linalg.ranks.rules import RankRule

RANKS = (1, 4, 16)
FEW = 16
"""Rows of inputs, spread over the sampling, that are fewer than a layer is wide."""

CASES = ((False, False), (True, False), (True, True))
"""Whether a form is given few rows, and is measured on the others, too."""

Form = Callable[[Tensor, Tensor, int], Tensor]
"""From a change (out, in), the Gram matrix of the inputs (in, in) and a rank to the change of that rank."""


def coala(change: Tensor, gram: Tensor, rank: int) -> Tensor:
    """COALA, arXiv:2507.07580: U U^T D with the left vectors U of D L; L is never inverted."""
    squares, vectors = torch.linalg.eigh(gram)
    image = change @ (vectors * squares.clamp(min=0).sqrt())
    left = torch.linalg.svd(image, full_matrices=False)[0][:, :rank]
    return left @ (left.mT @ change)


def ours(change: Tensor, gram: Tensor, rank: int) -> Tensor:
    """What `extract` computes: COALA's form, with a thousandth of the mean on the diagonal."""
    up, down = weighted_factors(
        change, moment_of(gram=gram), RankRule("rank", float(rank)), exact=True
    )
    return up @ down


def svd_llm(change: Tensor, gram: Tensor, rank: int) -> Tensor:
    """SVD-LLM, arXiv:2403.07378: S of Cholesky, the SVD of D S, and S inverted out of it.

    Where there is no S, its authors' program lifts the diagonal by the least eigenvalue and 1e-6.
    """
    root, failed = torch.linalg.cholesky_ex(gram)
    if failed:
        lift = 1e-6 - torch.linalg.eigvalsh(gram)[0]
        root = torch.linalg.cholesky(gram + lift * torch.eye(len(gram)).to(gram))
    return _inverted(change, root, torch.linalg.inv(root), rank)


def eora(change: Tensor, gram: Tensor, rank: int) -> Tensor:
    """EoRA, arXiv:2410.21271: D in the eigenspace, Q' = Q sqrt(values), its SVD, and Q' inverted out of it.

    Its authors' program puts the least positive eigenvalue where there are negative ones.
    """
    squares, vectors = torch.linalg.eigh(gram)
    squares = torch.where(squares > 0, squares, squares[squares > 0].min())
    root = vectors * squares.sqrt()
    return _inverted(change, root, vectors.mT / squares.sqrt()[:, None], rank)


def _inverted(change: Tensor, root: Tensor, inverse: Tensor, rank: int) -> Tensor:
    u, s, vh = torch.linalg.svd(change @ root, full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ (vh[:rank] @ inverse)


FORMS: Mapping[str, Form] = {
    "COALA": coala,
    "COALA, 0.001 on the diagonal (here)": ours,
    "SVD-LLM": svd_llm,
    "EoRA": eora,
}


def excess(
    form: Form,
    change: Tensor,
    seen: Tensor,
    rank: int,
    dtype: torch.dtype,
    others: Tensor | None = None,
) -> float:
    """Return how much more than the least a form misses of the output, as a share of the whole output.

    Args:
        form: Of `FORMS`.
        change: (out, in), float64.
        seen: Inputs that the form is given, (n, in), float64.
        rank: Below that of the change.
        dtype: In which the Gram matrix is summed and the form computed.
        others: The inputs that it is measured on; None: those that it was given.

    Returns:
        Infinity where there is no result.
    """
    own = seen.to(dtype)
    try:
        found = form(change.to(dtype), own.mT @ own, rank).double()
    except RuntimeError:  # of torch.linalg: no decomposition
        return math.inf
    # R of X = Q R has the lengths of X, and no Gram matrix rounds it.
    triangle = torch.linalg.qr(seen if others is None else others, mode="r")[1].mT
    least = torch.linalg.svdvals(change @ triangle)[rank:].norm()
    missed = (change - found).matmul(triangle).norm()
    return float((missed - least) / change.matmul(triangle).norm())


def layers() -> dict[str, tuple[Tensor, Tensor]]:
    """Change (out, in) and inputs (n, in) of the digits' linear layers, float64; every 8th row of one sampling."""
    with open_source(BASE) as base, open_source(TUNED) as tuned:
        before, after = tensors_of(base), tensors_of(tuned)
    model = load_model(after)
    seen = _inputs(model)
    return {
        name: (after[f"{name}.weight"].double() - before[f"{name}.weight"].double(), rows)
        for name, rows in seen.items()
    }


def _inputs(model: DigitModel) -> dict[str, Tensor]:
    parts: dict[str, list[Tensor]] = {}

    def keep(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(_: nn.Module, given: tuple[Tensor, ...]) -> None:
            parts.setdefault(name, []).append(given[0].flatten(0, -2).double())

        return hook

    handles = [
        module.register_forward_pre_hook(keep(name))
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
    ]
    sample_digits(model, starting_noise(100))
    for handle in handles:
        handle.remove()
    return {name: torch.cat(own)[::8] for name, own in parts.items()}


def main() -> None:
    """Print the tables: over all layers and ranks."""
    known = layers()
    for title, dtype in (("float64", torch.float64), ("float32", torch.float32)):
        say(f"| {title} | all rows | {FEW} rows | {FEW}, on all |\n|---|---|---|---|")
        for name, form in FORMS.items():
            cells = [told(known, form, dtype, *case) for case in CASES]
            say(f"| {name} | {' | '.join(cells)} |")


def told(
    known: Mapping[str, tuple[Tensor, Tensor]],
    form: Form,
    dtype: torch.dtype,
    few: bool,
    held_out: bool,
) -> str:
    """A cell: the median and the worst of `excess`, and of how many there is no result."""
    found = [
        excess(
            form,
            change,
            rows[:: len(rows) // FEW] if few else rows,
            rank,
            dtype,
            rows if held_out else None,
        )
        for change, rows in known.values()
        for rank in RANKS
        if rank < min(change.shape)
    ]
    there = sorted(one for one in found if one < math.inf)
    failed = len(found) - len(there)
    both = (f"{one:.0e}" if one > 0 else "0" for one in (there[len(there) // 2], there[-1]))
    return ", ".join((*both, *([f"{failed} failed"] if failed else [])))


def say(line: str) -> None:
    """A line, as soon as it is known."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
