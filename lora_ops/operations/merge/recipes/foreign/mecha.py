"""sd-mecha's `.mecha` text, for the linear family: weighted_sum, add_difference, subtract, n_average.

The language: `serialization.py` of ljleb/sd-mecha 1.1.8, format 0.1.0. A line is a value, and `&3` is the
value of the fourth line after the version.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from .....errors import FormatError
from .....text import plain
from ..recipe import Term
from ..toml_text import number_text
from .found import Draft, Foreign

PROGRAM = "sd-mecha"
_VERSION = re.compile(r"version\s+\d+\.\d+\.\d+\s*")
_TOKEN = re.compile(r'(?:(?P<key>\w+)=)?(?:"(?P<quoted>(?:[^"\\]|\\.)*)"|(?P<bare>[^\s"]+))')
_MOST = 10_000  # lines
#: Methods that change nothing of what is added to what.
_PASSING = ("fallback", "cast", "omit_non_finite")


@dataclass(frozen=True, slots=True)
class _Result:
    """What a line is: a model or step (`of`), a difference, numbers by block, or anything else."""

    of: str = ""
    minus: str = ""
    numbers: Mapping[str, float] = field(default_factory=dict[str, float])


_Argument = str | float | None | _Result


def is_mecha(content: str) -> bool:
    """Whether a text begins as this format does."""
    return _VERSION.match(content) is not None


def read(content: str) -> Foreign:
    """Read a recipe.

    Args:
        content: Its text.

    Raises:
        FormatError: With the line, if a method is not of the linear family, or the text is damaged.
    """
    draft = Draft(PROGRAM)
    lines = content.splitlines()
    if not is_mecha(content) or len(lines) > _MOST:
        raise FormatError("this is no recipe of sd-mecha: it does not begin with its version")
    results: list[_Result] = []
    for row, line in enumerate(lines[1:], 2):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        where = f"line {row}, `{plain(line[:80])}`"
        command, positional, named = _arguments(line, results, where)
        if command == "model":
            results.append(_Result(draft.file(_text(positional[:1], where))))
        elif command == "dict":
            numbers = {key: value for key, value in named.items() if isinstance(value, float)}
            results.append(_Result(numbers=numbers))
        elif command == "literal":
            results.append(_alpha(positional[0] if positional else None, where))
        elif command == "merge":
            results.append(_merged(draft, positional, named, where))
        else:
            raise FormatError(f"{where}: `{plain(command)}` is no command of sd-mecha")
    last = results[-1] if results else _Result()
    if last.minus:
        draft.step([Term(last.of, last.minus)])
    elif last.of and not draft.steps:
        draft.step(base=last.of)
    if not draft.steps:
        raise FormatError("the recipe of sd-mecha merges nothing")
    draft.lose("sd-mecha records paths, no hashes: files are known by name alone")
    return draft.finished()


def _arguments(
    line: str, results: Sequence[_Result], where: str
) -> tuple[str, list[_Argument], dict[str, _Argument]]:
    positional: list[_Argument] = []
    named: dict[str, _Argument] = {}
    command, _, rest = line.strip().partition(" ")
    for match in _TOKEN.finditer(rest):
        value = _argument(match, results, where)
        if match["key"]:
            named[match["key"]] = value
        else:
            positional.append(value)
    return command, positional, named


def _argument(match: re.Match[str], results: Sequence[_Result], where: str) -> _Argument:
    if match["quoted"] is not None:
        return re.sub(r"\\(.)", r"\1", match["quoted"])
    written = match["bare"]
    if written in ("null", "true", "false"):
        return None
    try:
        if written.startswith("&"):
            index = int(written[1:])
            if not 0 <= index < len(results):
                raise FormatError(f"{where}: `{written}` is no line before it")
            return results[index]
        value = float(written)
    except (ValueError, OverflowError):
        value = math.nan
    if not math.isfinite(value):
        raise FormatError(f"{where}: `{plain(written)}` is not a number") from None
    return value


def _text(arguments: Sequence[_Argument], where: str) -> str:
    if arguments and isinstance(arguments[0], str):
        return arguments[0]
    raise FormatError(f"{where}: a name in quotes is missing")


def _merged(
    draft: Draft, positional: Sequence[_Argument], named: Mapping[str, _Argument], where: str
) -> _Result:
    method = _text(positional[:1], where)
    inputs = positional[1:]
    if method in _PASSING or method.startswith("convert_"):
        if inputs and isinstance(inputs[0], _Result):
            return inputs[0]
        raise FormatError(f"{where}: `{method}` of nothing")
    if method == "subtract":
        one, other = _models(inputs[:2], 2, where)
        return _Result(one, other)
    if method == "n_average":
        terms = [Term(of) for of in _models(inputs, len(inputs), where)]
        return _Result(draft.step(terms, method="average"))
    if method == "weighted_sum":
        a, b = _models(inputs[:2], 2, where)
        term = _weighted(Term(b), _given(inputs[2:], named, 0.5), where)
        return _Result(draft.step([term], base=a, method="lerp"))
    if method == "add_difference":
        (a,) = _models(inputs[:1], 1, where)
        change = inputs[1] if len(inputs) > 1 else None
        if isinstance(change, _Result) and change.minus:
            term = _weighted(Term(change.of, change.minus), _given(inputs[2:], named, 1.0), where)
            return _Result(draft.step([term], base=a))
    raise FormatError(
        f"{where}: method `{plain(method)}` is not of those that are read: weighted_sum, "
        "add_difference, subtract, n_average; write the step as a recipe of ours"
    )


def _models(arguments: Sequence[_Argument], count: int, where: str) -> list[str]:
    found = [one.of for one in arguments if isinstance(one, _Result) and one.of and not one.minus]
    if len(found) != count or not found:
        raise FormatError(
            f"{where}: {count or 'some'} models are wanted, and {len(found)} are given"
        )
    return found


def _given(rest: Sequence[_Argument], named: Mapping[str, _Argument], default: float) -> _Argument:
    return named.get("alpha", rest[0] if rest else default)


def _alpha(value: _Argument, where: str) -> _Result:
    if isinstance(value, float):
        return _Result(numbers={"key": value})
    if isinstance(value, _Result) and value.numbers:
        return value
    raise FormatError(f"{where}: this is neither a number nor numbers by block")


def _weighted(term: Term, alpha: _Argument, where: str) -> Term:
    numbers = dict(_alpha(alpha, where).numbers)
    if set(numbers) == {"key"}:
        return Term(term.of, term.minus, numbers["key"])
    numbers.pop("VAE", None)  # ours stays that of the base
    # Blocks without a number are an error there.
    blocks = ",".join(f"{label}={number_text(value)}" for label, value in numbers.items())
    return Term(term.of, term.minus, blocks=blocks)
