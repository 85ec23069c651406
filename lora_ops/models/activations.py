"""Second moments of what goes into the layers of a model, from a file: by the names of its parameters."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..errors import FormatError, MismatchError, NonFiniteError, WeightShapeError
from ..linalg.moments import Moment, moment_of
from ..source import TensorSource

#: What a file may hold of a layer, after its name and a dot.
FORMS = ("gram", "cholesky", "sketch", "diagonal")
COUNT = "count"


@dataclass(frozen=True, slots=True, eq=False)
class Activations:
    """What a model uses of its layers' inputs; data is read when it is asked for.

    Attributes:
        source: The file, of `record`.
        forms: The form of each layer, by target.
        names: What the file calls targets whose names are others there.
    """

    source: TensorSource
    forms: Mapping[str, str]
    names: Mapping[str, str] = field(default_factory=dict[str, str])

    def renamed(self, names: Mapping[str, Sequence[str]]) -> Activations:
        """Return the same of targets whose names may be others in the file.

        Args:
            names: By target, what the file may call it, the likeliest first; what it does not hold is left out.
        """
        held = {to: [one for one in known if one in self.forms] for to, known in names.items()}
        called = {target: found[0] for target, found in held.items() if found}
        forms = {target: self.forms[name] for target, name in called.items()}
        return replace(self, forms=forms, names=called)

    def check(self, shapes: Iterable[tuple[str, tuple[int, ...]]]) -> None:
        """Refuse what is not of this model, from headers alone.

        Args:
            shapes: Targets that a change has, with their shapes (out, in, *kernel).

        Raises:
            MismatchError: No layer of them is in the file.
            WeightShapeError: One has another width there.
        """
        known = [(target, shape) for target, shape in shapes if target in self.forms]
        if not known:
            held = next(iter(read_activations(self.source).forms))
            raise MismatchError(
                f"the activations are of other layers, the first `{held}`; record them in the model that is "
                "changed",
                path=self.source.name,
            )
        for target, shape in known:
            width, key = math.prod(shape[1:]), self._key(target, self.forms[target])
            if self.source.shape(key)[-1] != width:
                raise WeightShapeError(
                    f"`{key}` is of inputs of width {self.source.shape(key)[-1]}, and the weight is {shape}, "
                    f"which takes {width}; record the activations in the model that is changed",
                    target=target,
                    path=self.source.name,
                )

    def moment(self, target: str) -> Moment | None:
        """Return the second moment of a layer's input; None where there is no record, or nothing went in.

        Raises:
            NonFiniteError: It holds NaN or infinity.
        """
        form = self.forms.get(target)
        if form is None:
            return None
        told: dict[str, Tensor] = {form: self._read(target, form)}
        if form == "sketch":
            told["diagonal"] = self._read(target, "diagonal")
        found = moment_of(**told)
        # Below what float32 holds in full there is nothing to weigh by.
        least = self.source.shape(self._key(target, form))[-1] * torch.finfo(torch.float32).tiny
        return found if found.trace > least else None

    def _key(self, target: str, form: str) -> str:
        return f"{self.names.get(target, target)}.{form}"

    def _read(self, target: str, form: str) -> Tensor:
        key = self._key(target, form)
        numbers = self.source.tensor(key).float()
        if not bool(numbers.isfinite().all()):
            raise NonFiniteError(
                f"`{key}` holds NaN or infinite values; the model diverged while it was recorded: "
                "record again",
                target=target,
                path=self.source.name,
            )
        return numbers


def read_activations(source: TensorSource) -> Activations:
    """Say what a file holds of which layer, from its header.

    Args:
        source: Of tensors `TARGET.gram` or `TARGET.cholesky` (in, in), `TARGET.diagonal` (in,), or
            `TARGET.sketch` (k, in) with a diagonal.

    Raises:
        FormatError: It holds no such tensor, or one of another shape.
    """
    held: dict[str, set[str]] = {}
    for key in source.keys():  # noqa: SIM118 - not a mapping
        target, _, form = key.rpartition(".")
        if form in FORMS and target:
            held.setdefault(target, set()).add(form)
    if not held:
        raise FormatError(
            "it holds no activations: no tensor is called TARGET.gram, TARGET.cholesky, "
            "TARGET.sketch or TARGET.diagonal; write one with `record`",
            path=source.name,
        )
    found: dict[str, str] = {}
    for target, forms in held.items():
        form = next(one for one in FORMS if one in forms)
        shape = source.shape(f"{target}.{form}")
        wanted = 1 if form == "diagonal" else 2
        square = form in ("diagonal", "sketch") or len(set(shape)) == 1
        if (
            len(shape) != wanted
            or not square
            or 0 in shape
            or (form == "sketch" and "diagonal" not in forms)
            or (form == "sketch" and tuple(source.shape(f"{target}.diagonal")) != tuple(shape[1:]))
        ):
            raise FormatError(
                f"`{target}.{form}` is {shape}; of inputs of width n it should be "
                "(n, n) as gram or cholesky, (n,) as diagonal, and (k, n) as a sketch beside a diagonal of (n,)",
                target=target,
                path=source.name,
            )
        found[target] = form
    return Activations(source, found)
