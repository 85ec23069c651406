"""Methods of merging checkpoints, by name.

Terms are the inputs but the base, each with a weight. Where published recipes speak of models A, B and
C, the base is A, the terms are B and C, and their numbers alpha and beta are the weights of B and C.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from . import linear
from .elements.cosines import CosineWork, survey
from .elements.differences import (
    Formula,
    FormulaWork,
    RowsWork,
    limit,
    multiply_difference,
    similarity,
    train_difference,
)
from .elements.selected import FusionWork, RamWork, SceWork
from .elements.smooth import SmoothWork
from .elements.sparse import SparseWork
from .elements.spheres import ArcWork
from .elements.work import Value
from .kinds import Element, Linear, MergeMethod, Span
from .parameters import AnyParameter, Choice, PerTerm
from .table import METHODS, Parameter

_STRENGTH = {"strength": Parameter(1, -10, 10, "factor on the whole sum")}
_DENSITY = "share of the elements that stays"


def _sparse(density: float) -> dict[str, AnyParameter]:
    """What thinning out takes."""
    return {
        **_STRENGTH,
        "sparsify": Choice(
            ("magnitude", "none", "dare", "della", "breadcrumbs"), "which elements stay"
        ),
        "density": PerTerm(Parameter(density, 0, 1, _DENSITY)),
        "gamma": PerTerm(Parameter(0.01, 0, 1, "breadcrumbs: share of the largest that goes")),
        "epsilon": PerTerm(
            Parameter(0.1, 0, 1, "della: width of the probabilities around density")
        ),
        "rescale": Choice(
            ("auto", "no", "density", "l1"),
            "what makes up for the rest: auto is 1 / density for dare and della, else nothing",
        ),
        "legacy": Choice(("no", "mergekit", "mecha", "chattiori"), "another program's meaning"),
    }


_ELECT: dict[str, AnyParameter] = {
    "elect": Choice(("sum", "count"), "sign of the sum of the changes, or of most of them"),
    "normalize": Choice(
        ("auto", "count", "weights", "no"),
        "divide by the number of those that agree (auto), by their weights, or by nothing",
    ),
}

_COSINE: dict[str, AnyParameter] = {
    "legacy": Choice(("no", "mecha"), "mecha: likeness as it is, not in its range over the model"),
}


def _formula(formula: Formula) -> Element:
    """A function of each element, without a pass before."""
    return Element(partial(FormulaWork, formula=formula))


MERGE_METHODS: dict[str, MergeMethod] = {
    "sum": MergeMethod(
        Linear(linear.plain_sum),
        "add the weights as given; with a base the base and its weighted changes",
        base="optional",
        parameters=_STRENGTH,
    ),
    "average": MergeMethod(
        Linear(linear.mean),
        "the same, weights divided by their sum",
        base="optional",
        parameters=_STRENGTH,
    ),
    "lerp": MergeMethod(
        Linear(partial(linear.plain_sum, strength=1)),
        "from the base to one other, by its weight",
        terms=(1, 1),
    ),
    "add_difference": MergeMethod(
        Linear(linear.add_difference), "A + alpha (B - C), alpha the weight of B", terms=(2, 2)
    ),
    "sum_twice": MergeMethod(
        Linear(linear.sum_twice), "A to B by alpha, and that to C by beta", terms=(2, 2)
    ),
    "triple_sum": MergeMethod(
        Linear(partial(linear.plain_sum, strength=1)),
        "(1 - alpha - beta) A + alpha B + beta C",
        terms=(2, 2),
    ),
    "sigmoid": MergeMethod(
        Linear(linear.sigmoid), "Chattiori's; at alpha = 0 it is B / 2", terms=(1, 1), moves=True
    ),
    "ties": MergeMethod(
        Element(partial(SparseWork.begin, elected=True)),
        "thin out the changes, elect a sign for each element, take the mean of what agrees",
        of="changes",
        parameters=_sparse(0.2) | _ELECT,
    ),
    "sparse": MergeMethod(
        Element(partial(SparseWork.begin, elected=False)),
        "thin out the changes and add them",
        of="changes",
        parameters=_sparse(0.5),
    ),
    **{
        name: MergeMethod(
            Span(name),
            METHODS[name].help,
            terms=(2, METHODS[name].most),
            base="needed" if name == "model_stock" else "optional",
            of="changes",
            parameters=METHODS[name].parameters,
        )
        for name in (
            "slerp",
            "karcher",
            "geometric_median",
            "model_stock",
            "orthogonalise",
            "energy",
        )
    },
    "nuslerp": MergeMethod(
        Element(ArcWork),
        "on the arc from one to the other, by their weights; an arc a tensor, row or column",
        terms=(2, 2),
        base="optional",
        of="changes",
        parameters={"axis": Choice(("tensor", "row", "column"), "what has an arc of its own")},
    ),
    "sce": MergeMethod(
        Element(SceWork.begin),
        "elements that vary most between the terms, terms weighed by their squares there",
        terms=(2, None),
        of="changes",
        parameters=_STRENGTH
        | {"density": Parameter(1, 0, 1, "share of the elements that stays, of those that vary")},
    ),
    "ram": MergeMethod(
        Element(RamWork),
        "the mean of those that change an element; with a boost RAM+",
        of="changes",
        parameters=_STRENGTH
        | {
            "epsilon": Parameter(1e-5, 0, 1, "a change up to this is none"),
            "boost": Parameter(0, 0, 10, "RAM+: for what one term alone changes; 0.1 is usual"),
            "limit": Parameter(0.2, 0, 10, "RAM+: of the ratio of shared to own elements"),
        },
    ),
    "arcee_fusion": MergeMethod(
        Element(FusionWork.begin), "B's numbers where they matter most, A's elsewhere", terms=(1, 1)
    ),
    "train_difference": MergeMethod(
        _formula(train_difference),
        "add B - C where B is far from A, as if trained",
        terms=(2, 2),
    ),
    "multiply_difference": MergeMethod(
        _formula(multiply_difference), "geometric mean of A - C and B - C, added to C", terms=(2, 2)
    ),
    "similarity": MergeMethod(
        _formula(similarity), "add B - C where A and B differ, mix them where not", terms=(2, 2)
    ),
    "smooth_add": MergeMethod(
        Element(SmoothWork, whole=True), "add B - C, blurred; for old recipes only", terms=(2, 2)
    ),
    "cosine_a": MergeMethod(
        Element(partial(CosineWork, kind="a"), survey=survey),
        "A's structure with B's details",
        terms=(1, 1),
        parameters=_COSINE,
        moves=True,
    ),
    "cosine_b": MergeMethod(
        Element(partial(CosineWork, kind="b"), survey=survey),
        "B's structure with A's details",
        terms=(1, 1),
        parameters=_COSINE,
        moves=True,
    ),
    "tensor_sum": MergeMethod(
        Element(RowsWork.begin),
        "some rows of B, the others of A",
        terms=(1, 1),
        parameters={
            "offset": Parameter(0, 0, 1, "where B's rows start, as a share of all"),
            "legacy": Choice(("no", "mecha"), "mecha: ends rounded to the nearest row"),
        },
    ),
    "limit": MergeMethod(
        _formula(limit), "the base, kept in the range of the others; after another step"
    ),
}

#: Names that other programs have for the same, and the parameters that make it so.
ALIASES: dict[str, tuple[str, Mapping[str, Value]]] = {
    "weighted_sum": ("lerp", {}),
    "task_arithmetic": ("sum", {}),
    "linear": ("average", {}),
    "magnitude": ("sparse", {"sparsify": "magnitude"}),
    "dare": ("sparse", {"sparsify": "dare"}),
    "dare_linear": ("sparse", {"sparsify": "dare"}),
    "dare_ties": ("ties", {"sparsify": "dare", "density": 0.5}),
    "della": ("ties", {"sparsify": "della", "density": 0.5}),
    "della_linear": ("sparse", {"sparsify": "della"}),
    "breadcrumbs": ("sparse", {"sparsify": "breadcrumbs"}),
    "breadcrumbs_ties": ("ties", {"sparsify": "breadcrumbs", "density": 0.5}),
}
