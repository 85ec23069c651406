"""What a recipe means for each parameter: steps upon steps, down to the files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TypeAlias

from ...adapters.checkpoint import check_checkpoint
from ...adapters.formats import modules
from ...errors import ArgumentError
from ...models.architectures import Parameter
from ...models.pairing import nearest
from ...source import TensorSource
from .combine import Adapted, Difference, Leaf, Sum
from .combined import Combination
from .components import part_targets, whole_parts
from .matched import EMA, Model
from .opening import Node
from .recipes.recipe import Recipe, Step, Term
from .settled import SettledTerm, settled_adapter, settled_method, settled_term
from .spelled import plainly
from .survey import Survey

#: A weight in the place of the base's, and changes.
_Value: TypeAlias = tuple[Node | None, tuple[Node, ...]]


class Resolver:
    """Nodes for the parameters of the base, by a recipe.

    Args:
        recipe: With numbers for all names.
        sources: The files by the recipe's names.
        components: Which are merged.
    """

    def __init__(
        self,
        recipe: Recipe,
        sources: Mapping[str, TensorSource],
        components: Sequence[str],
    ) -> None:
        if recipe.values:
            raise ArgumentError(f"no value for `${recipe.values[0]}`; give a number for each")
        self._recipe, self._sources = recipe, sources
        self._steps = {step.name: plainly(step) for step in recipe.steps}
        self._models: dict[str, Model] = {}
        self._values: dict[str, _Value] = {}  # of one parameter, so that what two use is one
        self._wholes: dict[str, Node] = {}
        self._adapters = {name for name, one in sources.items() if modules(one.keys()).is_adapter}
        for name in sources:
            self._check_kind(name)
        base = self._base_file(recipe.steps[-1].name)
        self.base = self._models[base] = Model.of(self._source(base))
        self._components = {*components, *whole_parts(recipe)}
        names = [p.target for p in self.base.parameters.values() if self.is_merged(p)]
        if not names:
            raise ArgumentError(
                f"{self.base.source.name} has none of the components {', '.join(components)}"
            )
        self._names = names
        self._parts = part_targets(recipe, self.base, names)
        self._terms = {
            name: [self._opened(step, term) for term in step.terms]
            for name, step in self._steps.items()
        }
        self._chosen = {
            name: settled_method(step, self._adapters, len(self._steps) == 1)
            for name, step in self._steps.items()
            if step.terms  # without, it is its base
        }
        self._surveys = {
            name: Survey(chosen)
            for name, chosen in self._chosen.items()
            if chosen.survey is not None
        }
        self.used = [self._source(name) for name in self._files()]

    @property
    def surveys(self) -> tuple[Survey, ...]:
        """What steps ask of all of their weights first, in the order of the steps."""
        return tuple(self._surveys.values())

    def is_merged(self, parameter: Parameter) -> bool:
        """Whether a parameter of the base is to be looked for in the others at all."""
        floats = self.base.source.element(parameter.key).is_floating_point
        return floats and parameter.component in self._components

    def is_elsewhere(self, name: str) -> bool:
        """Whether another model has a parameter of this name, or none is asked for it."""
        others = [model for model in self._others() if name in model.parameters]
        return bool(others) or not self._asked(self.base.parameters[name])

    def _asked(self, parameter: Parameter) -> bool:
        """Whether another file has a say in what becomes of a parameter."""
        names, seen = [self._parts.get(parameter.target, self._recipe.steps[-1].name)], set[str]()
        while names:
            name = names.pop()
            if name in self._steps and name not in seen:
                step = self._steps[name]
                names += [step.base, *(n for term in step.terms for n in (term.of, term.minus))]
            elif name in self._sources and self._sources[name] is not self.base.source:
                return True
            seen.add(name)
        return False

    def only_others(self) -> dict[str, tuple[str, ...]]:
        """Parameters that other models have and the base lacks, by the name of the file."""
        return {
            key: tuple(
                name
                for name, one in model.parameters.items()
                if name not in self.base.parameters
                and one.component in self._components
                and not name.startswith(EMA)
            )
            for key, model in self._models.items()
            if model.source is not self.base.source
        }

    def node(self, parameter: Parameter) -> Node | None:
        """Return what becomes of a parameter of the base: a weight, or a change; None where it stays."""
        root = self._parts.get(parameter.target, self._recipe.steps[-1].name)
        self._values.clear()
        self._wholes.clear()
        whole, changes = self._value(root, parameter)
        if whole is None and not changes:
            return None
        return Sum((*([whole] if whole is not None else []), *changes))

    def _value(self, name: str, one: Parameter) -> _Value:
        """What a file or step is, against the base: a weight in its place, and changes of that."""
        if name not in self._values:
            of = self._of_file if name in self._sources else self._of_step
            self._values[name] = of(name, one)
        return self._values[name]

    def _of_file(self, name: str, one: Parameter) -> _Value:
        other = self._model(name).matching(one, self.base.source)
        if other is None or self._sources[name] is self.base.source:
            return None, ()
        if not self._sources[name].element(other.key).is_floating_point:
            return None, ()
        return Leaf(self._sources[name], other), ()

    def _of_step(self, name: str, one: Parameter) -> _Value:
        step = self._steps[name]
        start = step.base or self._first(step)
        whole, changes = self._value(start, one) if start else (None, ())
        if not step.terms:
            return whole, changes
        base = self._whole(start, one)
        terms: list[Node] = []
        weights: list[float] = []
        for term in self._terms[name]:
            if not start:
                self._check_alone(name, term, one)
            node = self._node(term, one, base)
            if step.base and isinstance(node, Difference) and node.minus == base:
                node = node.of  # A + w (B - A) is (1 - w) A + w B, to the bit
            has_places = self._chosen[name].method.terms == (2, 2)
            if node is None and has_places and term.of not in self._adapters:
                return whole, changes  # of B and C, one is not there
            weights.append(term.weights.get(one.target, 0.0))
            terms.append(node if node is not None else base)
        moves = self._chosen[name].method.moves  # also where no weight says so
        pairs = zip(terms, weights, strict=True)
        if all(term == base or not (weight or moves) for term, weight in pairs):
            return whole, changes
        found = Combination(
            base,
            tuple(terms),
            tuple(weights),
            self._chosen[name],
            bool(step.base),
            one.name,
            step.seed or 0,
            self._surveys.get(name),
        )
        if found.survey is not None:
            found.survey.add(one, self.base.source, found)
        if found.lone is not None:
            return (None, ()) if found.lone == Leaf(self.base.source, one) else (found.lone, ())
        return (found, ()) if found.is_whole else (whole, (*changes, found))

    def _whole(self, name: str, one: Parameter) -> Node:
        """What a file or step is, as a weight; that of the base for no name."""
        if name not in self._wholes:
            whole, changes = self._value(name, one) if name else (None, ())
            start = whole if whole is not None else Leaf(self.base.source, one)
            self._wholes[name] = Sum((start, *changes)) if changes else start
        return self._wholes[name]

    def _node(self, term: SettledTerm, one: Parameter, base: Node) -> Node | None:
        """A term at a parameter; None where it has nothing to say."""
        if term.of in self._adapters:
            shares = term.shares.get(one, ())
            return Adapted(shares, base, self._recipe.output.dora) if shares else None
        if term.minus:
            if not (self._has(term.of, one) and self._has(term.minus, one)):
                return None
            sides = [self._whole(name, one) for name in (term.of, term.minus)]
            return None if sides[0] == sides[1] else Difference(*sides)
        if term.of in self._steps and self._is_change(term.of):
            _, changes = self._value(term.of, one)
            return Sum(changes) if changes else None
        if not self._has(term.of, one):
            return None
        return self._whole(term.of, one)

    def _has(self, name: str, one: Parameter) -> bool:
        return name in self._steps or one.name in self._model(name).parameters

    def _check_kind(self, name: str) -> None:
        """Refuse a file that is not of the kind that the recipe says."""
        file = self._recipe.files.get(name)
        is_lora = name in self._adapters
        if file and file.kind and (file.kind == "lora") != is_lora:
            known = "a LoRA" if is_lora else "no LoRA"
            raise ArgumentError(
                f"file `{name}`: {self._sources[name].name} is {known}, and the recipe says "
                f'`kind = "{file.kind}"`; give the file that is meant, or leave `kind` out'
            )

    def _check_alone(self, name: str, term: SettledTerm, one: Parameter) -> None:
        """Refuse layers that are made from a weight in a step that has none."""
        made = [share.name for share in term.shares.get(one, ()) if share.needs_base]
        if made:
            raise ArgumentError(
                f"step `{name}`: layer `{made[0]}` of `{term.of}` is made from the weight that it "
                "changes, and the step has none; give it a `base`"
            )

    def _is_change(self, name: str) -> bool:
        """Whether a file or step is a change, not a model."""
        if name in self._sources:
            return name in self._adapters
        step = self._steps[name]
        if step.base:
            return self._is_change(step.base)
        return all(term.minus or self._is_change(term.of) for term in step.terms)

    def _first(self, step: Step) -> str:
        """The first whole model among the terms; empty for none."""
        return next((t.of for t in step.terms if not t.minus and not self._is_change(t.of)), "")

    def _base_file(self, name: str) -> str:
        while name in self._steps:
            step = self._steps[name]
            name = step.base or self._first(step)
        if not name:
            raise ArgumentError(
                "the last step gives a change, not a model; give it a `base`, a checkpoint"
            )
        if self._is_change(name):
            raise ArgumentError(f"base `{name}` is an adapter; give a checkpoint as base")
        return name

    def _source(self, name: str) -> TensorSource:
        if name not in self._sources:
            raise ArgumentError(
                f"no file is given for `{name}`; nearest: {nearest(name, self._sources)}"
            )
        return self._sources[name]

    def _model(self, name: str) -> Model:
        if name not in self._models:
            file = self._recipe.files.get(name)
            self._models[name] = Model.of(self._source(name), file.part if file else "")
        return self._models[name]

    def _others(self) -> Iterator[Model]:
        return (one for one in self._models.values() if one.source is not self.base.source)

    def _files(self) -> list[str]:
        names: dict[str, None] = {}
        for step in self._recipe.steps:
            for one in (step.base, *(n for term in step.terms for n in (term.of, term.minus))):
                if one and one not in self._steps:
                    names[one] = None
        for name in self._recipe.parts.values():
            if name not in self._steps:
                names[name] = None
        for name in names:
            if self._source(name) and name not in self._adapters:
                check_checkpoint(self._source(name))
                self._model(name)
        return list(names)

    def _opened(self, step: Step, term: Term) -> SettledTerm:
        if term.of in self._adapters:
            adapter = self._sources[term.of]
            allow_partial = "partial" in self._recipe.output.allow
            return settled_adapter(step, term, adapter, self.base, self._names, allow_partial)
        return settled_term(step, term, self._names)
