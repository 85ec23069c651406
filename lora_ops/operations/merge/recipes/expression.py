"""A merge in a line: `A + 0.35*(B - C)`, or `A:0.7 B:0.3`, as the same document as any other."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence

from ....errors import ArgumentError
from ....text import plain
from .arithmetic import Addend, Polynomial, parse_amount, parse_sum
from .checks import check
from .recipe import Recipe, RecipeFile, Step, Term

_TERM = (
    "write NAME, NAME:WEIGHT, NAME:WEIGHT:BLOCKS or NAME:WEIGHT:BLOCKS:WHERE, as in `B:0.3:OUTALL`"
)


def parse_line(
    text: str,
    files: Mapping[str, RecipeFile] | None = None,
    *,
    deltas: Collection[str] = (),
) -> Recipe:
    """Read a merge written in a line: an expression, or terms with spaces between them.

    Args:
        text: `A + 0.35*(B - C)` or `A:0.7 B:0.3`. Terms have no spaces of their own.
        files: What the names mean; None: each is the name of a file.
        deltas: The names that are changes, such as LoRAs, not whole models.

    Raises:
        ArgumentError: With the place, if it means nothing.
    """
    words = text.split()
    if words and all(":" in word for word in words):
        return parse_terms(words, files, deltas=deltas)
    return parse_expression(text, files, deltas=deltas)


def parse_expression(
    text: str,
    files: Mapping[str, RecipeFile] | None = None,
    *,
    deltas: Collection[str] = (),
) -> Recipe:
    """Read a sum of models times numbers; `$a` stands for a number that is given later.

    The weights of whole models must add up to one, and then the first of them is the base: `0.7*A +
    0.3*B` is A + 0.3 (B - A). They may add up to zero, which is a change and no model. Anything else
    would scale all weights, which is never meant, and is an error.

    Args:
        text: With `+ - * /`, parentheses and signs; names in quotes may have any characters.
        files: What the names mean; None: each is the name of a file.
        deltas: The names that are changes, such as LoRAs, not whole models.

    Raises:
        ArgumentError: With a mark below the place, if it means nothing.
    """
    addends = _collected(parse_sum(text), deltas)
    if any(not addend.of for addend in addends):
        constant = next(str(addend.factor) for addend in addends if not addend.of)
        raise ArgumentError(
            f"`{plain(text)}`: the number {constant} stands alone; multiply it with a model"
        )
    if not addends:
        raise ArgumentError(f"`{plain(text)}`: nothing of any model is left")
    total = Polynomial()
    for addend in addends:
        if not addend.minus and addend.of not in deltas:
            total = total.plus(addend.factor)
    base = ""
    if total.number is not None and math.isclose(total.number, 1, abs_tol=1e-9):
        base = next(one.of for one in addends if not one.minus and one.of not in deltas)
    elif total:
        raise ArgumentError(
            f"`{plain(text)}`: the weights of whole models add up to {total}, not to 1, which would "
            "scale all weights; write a change of a base, as in `A + 0.3*(B - A)`, or say which names "
            "are LoRAs"
        )
    rest = [one for one in addends if one.minus or one.of != base]
    terms = [Term(one.of, one.minus, one.factor.amount()) for one in _paired(rest, deltas)]
    used = [name for one in addends for name in (one.of, one.minus) if name]
    lone = len(terms) == 1 and base and not terms[0].minus and terms[0].of not in deltas
    return _recipe(
        Step("step1", tuple(terms), "lerp" if lone else "sum", base), used, files, deltas
    )


def parse_terms(
    texts: Sequence[str],
    files: Mapping[str, RecipeFile] | None = None,
    *,
    base: str = "",
    method: str = "",
    deltas: Collection[str] = (),
) -> Recipe:
    """Read terms as `NAME:WEIGHT:BLOCKS:WHERE` each; what follows the name may be left out.

    Without a base the terms are averaged: weights are shares, and need not add up to one.

    Args:
        texts: At least one. WHERE is `PATTERN=S`, several with `;` between them.
        files: What the names mean; None: each is the name of a file.
        base: What the terms are changes of; empty for none.
        method: How they are combined; empty: `average`, with a base or with changes alone `sum`.
        deltas: The names that are changes, such as LoRAs, not whole models.

    Raises:
        ArgumentError: A weight is no number, or there is no term.
    """
    return recipe_of_terms(
        list(map(parse_term, texts)), files, base=base, method=method, deltas=deltas
    )


def recipe_of_terms(
    terms: Sequence[Term],
    files: Mapping[str, RecipeFile] | None = None,
    *,
    base: str = "",
    method: str = "",
    deltas: Collection[str] = (),
) -> Recipe:
    """Return the recipe of one step; see `parse_terms`.

    Raises:
        ArgumentError: There is no term, or the recipe means nothing.
    """
    if not terms:
        raise ArgumentError("no term; give at least one, as in `A:0.7 B:0.3`")
    whole = [term for term in terms if term.of not in deltas]
    method = method or ("sum" if base or not whole else "average")
    used = [*([base] if base else []), *(term.of for term in terms)]
    return _recipe(Step("step1", tuple(terms), method, base), used, files, deltas)


def parse_term(text: str) -> Term:
    """Read one term: `B`, `B:0.3`, `B:$a:OUTALL`, `B:0.3::te=0;attn2=0.5`.

    Raises:
        ArgumentError: The weight is neither a finite number nor arithmetic on `$names`.
    """
    name, *rest = text.split(":", 3)
    weight = rest[0] if rest else "1"
    try:
        amount = parse_amount(weight).amount()
    except ArgumentError:
        raise ArgumentError(
            f"`{plain(weight)}` in `{plain(text)}` is not a finite weight; {_TERM}"
        ) from None
    if not name:
        raise ArgumentError(f"`{plain(text)}` names nothing; {_TERM}")
    where = tuple(one for one in rest[2].split(";") if one) if len(rest) > 2 else ()
    return Term(name, weight=amount, blocks=rest[1] if len(rest) > 1 else "", where=where)


def as_expression(recipe: Recipe) -> str | None:
    """The recipe as a line that `parse_expression` reads back; None for what no line can say."""
    if len(recipe.steps) != 1 or recipe.parts:
        return None
    step = recipe.steps[0]
    plain_terms = all(
        term == Term(term.of, term.minus, term.weight) and not isinstance(term.weight, tuple)
        for term in step.terms
    )
    if step.method not in ("sum", "lerp") or step.parameters or step.legacy or not plain_terms:
        return None
    deltas = {key for key, file in recipe.files.items() if file.kind == "lora"}
    text = _quoted(step.base) if step.base else ""
    for term in step.terms:
        amount = parse_amount(
            f"{term.weight!r}" if isinstance(term.weight, float) else str(term.weight)
        )
        of = _quoted(term.of)
        minus = term.minus or (step.base if term.of not in deltas else "")
        factor = f"({amount})" if amount.number is None or amount.number < 0 else str(amount)
        model = f"({of} - {_quoted(minus)})" if minus else of
        text += f"{' + ' if text else ''}{factor}*{model}"
    return text


def _quoted(name: str) -> str:
    return name if re.fullmatch(r"[^\W\d][\w.]*", name) else f'"{name}"'


def _collected(addends: Sequence[Addend], deltas: Collection[str]) -> list[Addend]:
    """Addends of the same model, or the same difference, as one; none with the factor 0."""
    found: dict[tuple[str, str], Polynomial] = {}

    def add(of: str, minus: str, factor: Polynomial) -> None:
        found[of, minus] = found.get((of, minus), Polynomial()).plus(factor)

    for addend in addends:
        if addend.minus and {addend.of, addend.minus} & {*deltas}:
            # `A - L` takes a change away: it is no difference of two models.
            add(addend.of, "", addend.factor)
            add(addend.minus, "", addend.factor.times(Polynomial.of(-1)))
        elif not addend.of or addend.of != addend.minus:
            add(addend.of, addend.minus, addend.factor)
    return [Addend(factor, *key) for key, factor in found.items() if factor]


def _paired(addends: Sequence[Addend], deltas: Collection[str]) -> list[Addend]:
    """What is added and taken away in the same amount, as a difference."""
    rest = list(addends)
    found: list[Addend] = []
    while rest:
        one = rest.pop(0)
        single = not one.minus and one.of not in deltas
        opposite = one.factor.times(Polynomial.of(-1))
        other = next(
            (
                two
                for two in rest
                if not two.minus and two.of not in deltas and two.factor == opposite
            ),
            None,
        )
        if not single or other is None:
            found.append(one)
            continue
        rest.remove(other)
        flip = (one.factor.number or 0) < 0
        found.append(
            Addend(other.factor, other.of, one.of) if flip else Addend(one.factor, one.of, other.of)
        )
    return found


def _recipe(
    step: Step, used: Sequence[str], files: Mapping[str, RecipeFile] | None, deltas: Collection[str]
) -> Recipe:
    kinds = dict.fromkeys(deltas, "lora")
    known = (
        files
        if files is not None
        else {name: RecipeFile(name, kind=kinds.get(name, "")) for name in used}
    )
    recipe = Recipe((step,), known)
    check(recipe, kinds=kinds)
    return recipe
