"""Whether a recipe means something: names, references, what can be added to what, methods, numbers."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

from ....errors import ArgumentError
from ....models.pairing import nearest
from ....text import either, parse_size, plain
from .arithmetic import parse_amount
from .recipe import (
    ALLOWED,
    KINDS,
    LEGACY,
    PARTS,
    SPARSIFIERS,
    STEP_KEYS,
    TERM_KEYS,
    Output,
    Recipe,
    RecipeFile,
    Step,
    Term,
    Value,
    is_amount,
)

_SHA256 = re.compile(r"[0-9a-f]{64}")
_LONGEST = 255  # characters of a name
_STEPS = 1000
#: What thins the changes is given these, whatever the method.
SPARSIFY_PARAMETERS = ("density", "epsilon", "gamma", "rescale")
DTYPES = ("fp32", "fp16", "bf16")
_CHOICES = {
    "rounding": ("nearest", "stochastic"),
    "kind": ("", *KINDS),
    "keep": ("auto", "on", "off"),
    "dora": ("paper", "comfy"),
}
FORMATS = ("", "single", "sharded", "diffusers")


class Taking(Protocol):
    """What is asked of a method: the names of what it can be given."""

    @property
    def parameters(self) -> Mapping[str, object]:
        """By name; where the value has `low` and `high`, a number must lie between them."""
        ...


def check(
    recipe: Recipe,
    *,
    methods: Mapping[str, Taking] | None = None,
    kinds: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Check a recipe, and return what each step gives.

    Args:
        recipe: Any.
        methods: The methods that there are; None: any name is one.
        kinds: `checkpoint` or `lora` by the name of a file, where what is in it is known.

    Returns:
        By the name of a step: `whole` (a model), `delta` (a change), or `unknown`, while a file is of
        no known kind.

    Raises:
        ArgumentError: A name, a reference, a number, a method or a parameter that means nothing, or
            changes and whole weights in one step without a base.
    """
    for key, file in recipe.files.items():
        _check_name(key, "file")
        _check_file(key, file)
    if not recipe.steps:
        raise ArgumentError("the recipe has no step; write at least one")
    if len(recipe.steps) > _STEPS:
        raise ArgumentError(f"the recipe has {len(recipe.steps)} steps; {_STEPS} is the most")
    known = {**{key: file.kind for key, file in recipe.files.items()}, **(kinds or {})}
    given = {
        key: {"checkpoint": "whole", "lora": "delta"}.get(known[key], "unknown") for key in known
    }
    spaces: dict[str, str] = {}
    for step in recipe.steps:
        where = f"step `{plain(step.name)}`"
        _check_name(step.name, "step")
        if step.name in given:
            raise ArgumentError(f"{where}: the name is taken; rename it")
        for role, name in _references(step):
            if name not in given:
                raise _unknown(where, role, name, given, recipe)
        _check_step(where, step, methods)
        spaces[step.name] = given[step.name] = _space(where, step, given)
    _check_parts(recipe, given)
    check_output(recipe.output)
    _check_kind(recipe.output, spaces[recipe.steps[-1].name])
    return spaces


def _references(step: Step) -> Iterator[tuple[str, str]]:
    if step.base:
        yield "base", step.base
    for number, term in enumerate(step.terms, 1):
        yield f"term {number}", term.of
        if term.minus:
            yield f"term {number} `minus`", term.minus


def _unknown(
    where: str, role: str, name: str, given: Mapping[str, str], recipe: Recipe
) -> ArgumentError:
    names = [step.name for step in recipe.steps]
    if name in names:
        return ArgumentError(
            f"{where}: {role} is `{plain(name)}`, which is not yet there: a step takes files and "
            "earlier steps; put that step before this one"
        )
    return ArgumentError(
        f"{where}: {role} is `{plain(name)}`, which is neither a file nor a step; "
        f"nearest: {nearest(name, given)}"
    )


def _check_name(name: str, what: str) -> None:
    if not name.strip() or not name.isprintable() or len(name) > _LONGEST or "$" in name:
        raise ArgumentError(
            f"`{plain(name[:40])}` cannot name a {what}; "
            f"use 1 to {_LONGEST} printable characters without `$`"
        )


def _check_file(key: str, file: RecipeFile) -> None:
    where = f"file `{plain(key)}`"
    if not file.name.strip() or not file.name.isprintable() or len(file.name) > _LONGEST:
        raise ArgumentError(f"{where}: `{plain(file.name[:40])}` is no name of a file")
    if re.search(r"[/\\]", file.name) or file.name in (".", ".."):
        raise ArgumentError(
            f"{where}: name `{plain(file.name)}` is a path; a recipe has the bare name and the SHA-256, "
            "and files are looked for where you say when it is run"
        )
    if file.sha256 and not _SHA256.fullmatch(file.sha256):
        raise ArgumentError(
            f"{where}: sha256 `{plain(file.sha256[:80])}` is not 64 digits 0-9, a-f"
        )
    _check_choice(where, "kind", file.kind, ("", *KINDS))
    _check_choice(where, "part", file.part, ("", *PARTS))


def _check_choice(where: str, key: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        shown = [choice for choice in choices if choice]
        raise ArgumentError(f"{where}: {key} `{plain(value[:80])}` is {either(shown)}")


def _check_step(where: str, step: Step, methods: Mapping[str, Taking] | None) -> None:
    _check_choice(where, "sparsify", step.sparsify, SPARSIFIERS)
    _check_choice(where, "legacy", step.legacy, ("", *LEGACY))
    if not step.terms and not step.base:
        raise ArgumentError(f"{where} has neither terms nor a base")
    if step.seed is not None and not 0 <= step.seed < 2**64:
        raise ArgumentError(f"{where}: seed {step.seed} is not from 0 to 2^64 - 1")
    _check_parameters(where, step.parameters, STEP_KEYS)
    for number, term in enumerate(step.terms, 1):
        _check_term(f"{where}, term {number}", step, term)
    if methods is None:
        return
    if step.method not in methods:
        raise ArgumentError(
            f"{where}: unknown method `{plain(step.method)}`; nearest: {nearest(step.method, methods)}"
        )
    takes = dict(methods[step.method].parameters)
    if step.sparsify != "none":
        takes = dict.fromkeys(SPARSIFY_PARAMETERS, None) | takes
    for parameters in (step.parameters, *(term.parameters for term in step.terms)):
        for name, value in parameters.items():
            if name not in takes:
                raise ArgumentError(
                    f"{where}: method `{step.method}` has no parameter `{plain(name)}`; "
                    + (f"nearest: {nearest(name, takes)}" if takes else "it takes none")
                )
            _check_range(f"{where}: {name}", value, takes[name])


def _check_term(where: str, step: Step, term: Term) -> None:
    check_value(f"{where}: weight", term.weight)
    _check_parameters(where, term.parameters, TERM_KEYS)
    if term.elemental and not step.legacy:
        raise ArgumentError(
            f"{where}: `elemental` has a meaning in other programs alone; "
            "set `legacy` of the step, or write `where`"
        )


def _check_parameters(where: str, parameters: Mapping[str, Value], taken: Sequence[str]) -> None:
    for name, value in parameters.items():
        _check_name(name, "parameter")
        if name in taken:
            raise ArgumentError(
                f"{where}: `{name}` is a key of its own and no parameter of a method"
            )
        check_value(f"{where}: {name}", value)


def check_value(where: str, value: Value) -> None:
    """Raise an `ArgumentError` for a number that is not finite, and names that mean nothing."""
    for one in value if isinstance(value, tuple) else (value,):
        if isinstance(one, float) and not math.isfinite(one):
            raise ArgumentError(f"{where} is {one}, not a finite number")
        if isinstance(one, str) and is_amount(one):
            try:
                parse_amount(one)
            except ArgumentError as error:
                raise ArgumentError(f"{where}: {error}") from None
    if isinstance(value, tuple) and len(value) == 0:
        raise ArgumentError(f"{where} is an empty list; give at least one number")


def _check_range(where: str, value: Value, span: object) -> None:
    low, high = getattr(span, "low", None), getattr(span, "high", None)
    whole = bool(getattr(span, "whole", False))
    for one in value if isinstance(value, tuple) else (value,):
        if isinstance(one, bool | str):
            continue
        outside = (low is not None and one < low) or (high is not None and one > high)
        if outside or (whole and one != int(one)):
            kind = "a whole number" if whole else "a number"
            raise ArgumentError(f"{where} is {one:g}; give {kind} from {low:g} to {high:g}")


def _space(where: str, step: Step, given: Mapping[str, str]) -> str:
    """Whether a step gives whole weights or changes: mixing them needs a base."""
    found: dict[str, str] = {}
    for term in step.terms:
        sides = {given[name] for name in (term.of, term.minus) if name}
        if term.minus and sides == {"whole", "delta"}:
            raise ArgumentError(
                f"{where}: `{plain(term.of)}` and `{plain(term.minus)}` have no difference: "
                "one is a whole model and one a change"
            )
        found.setdefault("delta" if term.minus else given[term.of], term.of)
    if step.base:
        if given[step.base] == "delta" and "whole" in found:
            raise ArgumentError(
                f"{where}: base `{plain(step.base)}` is a change and `{plain(found['whole'])}` a whole "
                "model; give a whole model as `base`"
            )
        return given[step.base]
    if {"whole", "delta"} <= found.keys():
        raise ArgumentError(
            f"{where} adds `{plain(found['whole'])}`, a whole model, and `{plain(found['delta'])}`, a "
            f'change; give the step a `base`, as in `base = "{plain(found["whole"])}"`'
        )
    return next(iter(found)) if len(found) == 1 else "unknown"


def _check_parts(recipe: Recipe, given: Mapping[str, str]) -> None:
    for part, name in recipe.parts.items():
        _check_choice("parts", "component", part, PARTS)
        if name not in given:
            raise _unknown("parts", f"`{part}`", name, given, recipe)


def check_output(output: Output) -> None:
    """Raise an `ArgumentError` for words of an output that mean nothing."""
    for key, choices in _CHOICES.items():
        _check_choice("output", key, getattr(output, key), choices)
    for one in output.allow:
        _check_choice("output", "allow", one, ALLOWED)
    for part, dtype in output.dtype.items():
        _check_choice("output: dtype", "component", part, ("all", *PARTS))
        _check_choice(f"output: dtype of `{part}`", "dtype", dtype, DTYPES)
    if output.format not in FORMATS:
        parse_size(output.format)


def check_order(recipe: Recipe) -> None:
    """Raise an `ArgumentError` for a recipe without steps, or where a step takes itself or a later one."""
    if not recipe.steps:
        raise ArgumentError("the recipe has no step; write at least one")
    later = {step.name for step in recipe.steps}
    for step in recipe.steps:
        for role, name in _references(step):
            if name in later:
                raise _unknown(f"step `{plain(step.name)}`", role, name, {}, recipe)
        later.discard(step.name)


def _check_kind(output: Output, last: str) -> None:
    if output.rank is not None and output.kind != "lora":
        raise ArgumentError('output: `rank` is of a LoRA; set `kind = "lora"`')
    if output.kind == "checkpoint" and last == "delta":
        raise ArgumentError(
            "output: the last step gives a change, not a model; "
            'give it a `base`, or set `kind = "lora"`'
        )
