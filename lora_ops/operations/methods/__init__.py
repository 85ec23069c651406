"""Methods of adding LoRAs and of merging checkpoints.

For LoRAs (`table.py`): one coefficient for each input, found from inner products alone.

Every result here lies in the span of the inputs' deltas, so the T x T Gram matrix of a layer says
all that is needed, and the sum with these coefficients is exact on the factors.

The strength s of an input is taken in one of two ways:

- `sum`, `slerp`, `orthogonalise` and `energy` work on the scaled deltas s * delta;
- `average`, `karcher`, `geometric_median` and `model_stock` are means: strengths are relative
  weights, so that twice all strengths is the same mean. In the last three the weight is |s|, and a
  negative s turns the delta around.

Whatever the method, a single input is that input times its strength. An input of strength 0 has a
zero scaled delta, or no weight: it is never mistaken for one whose strength was not given.

Others make new factors from those of the inputs (`factored/table.py`): their result is no combination
of the inputs, and has a low rank all the same. Strengths are factors on the changes that they see.

For checkpoints (`catalogue.py`): these, coefficients that are known from the weights alone
(`linear.py`), and functions of the elements (`elements/work.py` says how an engine runs them).
"""

from __future__ import annotations

from .catalogue import ALIASES, MERGE_METHODS
from .choosing import Chosen, choose_method
from .elements.work import Task, Value, Work
from .factored.table import FACTORED, FactorMethod, check_adding
from .kinds import Element, Linear, MergeMethod, Span
from .linear import Coefficients, weighed
from .parameters import Choice, PerTerm
from .table import METHODS, Method, Parameter, check_method, coefficients

__all__ = [
    "ALIASES",
    "FACTORED",
    "MERGE_METHODS",
    "METHODS",
    "Choice",
    "Chosen",
    "Coefficients",
    "Element",
    "FactorMethod",
    "Linear",
    "MergeMethod",
    "Method",
    "Parameter",
    "PerTerm",
    "Span",
    "Task",
    "Value",
    "Work",
    "check_adding",
    "check_method",
    "choose_method",
    "coefficients",
    "weighed",
]
