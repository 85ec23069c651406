"""Merge plans of the Universal Model Merge Scripter: `CM A + B 0.3 Result` and its like, a line a step.

The language: README.md and `plan.py` of Faildes/Universal-Model-Merge-Scripter.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from .....errors import FormatError
from .....text import plain
from ..recipe import Term
from .found import Draft, Foreign, block_list, number, numbers

PROGRAM = "a merge plan"
LEGACY = "chattiori"
_LINE = re.compile(
    r"CM\s+(?P<a>\S+)\s+\+(?P<one>D?)\s+(?P<b>\S+)(?:\s+(?P<two>\+S|\+T|-)\s+(?P<c>\S+))?\s+"
    r"(?P<numbers>\S.*)\s+(?P<result>\S+)"
)
_MOST = 10_000  # lines


def is_plan(content: str) -> bool:
    """Whether a text looks like a plan."""
    return any(re.match(r"(CM|LB)\s+\S+\s+\S", line) for line in content.splitlines()[:_MOST])


def read(content: str) -> Foreign:
    """Read a plan.

    Args:
        content: Its text.

    Raises:
        FormatError: With the line, if one says nothing that is known, or nothing is merged.
    """
    draft = Draft(PROGRAM)
    made: dict[str, str] = {}
    lines = content.splitlines()
    if len(lines) > _MOST:
        raise FormatError(f"a plan of {len(lines)} lines; {_MOST} is the most")
    urls: dict[str, tuple[str, str]] = {}
    last = ""
    for row, line in enumerate(map(str.strip, lines), 1):
        if not line or line.startswith("//") or re.match(r"-\s*\S+$", line):
            continue
        if line.startswith("+"):
            name, _, rest = line[1:].partition(",")
            urls[name.strip()] = (rest.split("%")[0].strip(" ,"), "lora" if "%LR" in rest else "")
            continue
        last = _step(draft, line, row, made, urls)
    if not draft.steps:
        raise FormatError("the plan merges nothing: it has no line that begins with `CM` or `LB`")
    draft.lose("every step was saved in fp16; here only the result is rounded")
    draft.lose("the VAE that the script is given is put into every result; it is not in the plan")
    return draft.finished(last)


def _step(
    draft: Draft,
    line: str,
    row: int,
    made: dict[str, str],
    urls: dict[str, tuple[str, str]],
) -> str:
    def ref(name: str, kind: str = "") -> str:
        if name in made:
            return made[name]
        url, told = urls.get(name, ("", ""))
        return draft.file(f"{name}.safetensors", kind=kind or told, url=url)

    words = line.split()
    try:
        if words[0] == "PR":
            _, of, result = words
            made[result] = ref(of)
            draft.lose("pruning: what belongs to no component is kept if the base has it")
            return result
        if words[0] == "LB":
            _, of, loras, result = words
            pairs = [one.rpartition(":") for one in loras.split(",")]
            terms = [
                Term(ref(name, "lora"), weight=number(weight, f"the weight of `{name}`", PROGRAM))
                for name, _, weight in pairs
            ]
            made[result] = draft.step(terms, base=ref(of))
            return result
        match = _LINE.fullmatch(line) if words[0] == "CM" else None
        if match is None:
            raise ValueError
    except ValueError:
        raise FormatError(
            f"line {row} of the plan is `{plain(line[:80])}`, which is not known; lines are "
            "`CM A + B 0.3 Result` and its like, `LB Checkpoint A:0.5,B:0.3 Result`, `PR A Result`, "
            "`+Name, url` and `-Name`"
        ) from None
    made[match["result"]] = _merged(draft, match, row, ref)
    return match["result"]


def _merged(draft: Draft, match: re.Match[str], row: int, ref: Callable[[str], str]) -> str:
    ratios = [_ratio(one) for one in re.findall(r'"[^"]*"|\S+', match["numbers"])]
    wanted = 2 if match["two"] in ("+S", "+T") else 1
    if len(ratios) != wanted:
        raise FormatError(
            f"line {row} of the plan has {len(ratios)} ratios in place of {wanted}: "
            f"`{plain(match['numbers'][:80])}`"
        )
    a, b = ref(match["a"]), ref(match["b"])
    (weight, blocks), *second = ratios
    if match["two"] == "-":
        return draft.step([Term(b, ref(match["c"]), weight, blocks)], base=a, legacy=LEGACY)
    one = Term(b, weight=weight, blocks=blocks)
    if match["two"]:
        other = Term(ref(match["c"]), weight=second[0][0], blocks=second[0][1])
        if match["two"] == "+T":
            return draft.step([one, other], base=a, legacy=LEGACY)
        step = draft.step([one], base=a, method="lerp", legacy=LEGACY)
        return draft.step([other], base=step, method="lerp", legacy=LEGACY)
    if match["one"]:
        # The script sets BASE to 0; half of the change is kept, twice as strong.
        numbers_ = (
            [0.0, *numbers(blocks, "blocks", PROGRAM)[1:]] if blocks else [0.0] + [weight] * 25
        )
        term = Term(b, blocks=block_list(numbers_))
        draft.lose("the random numbers of DARE's mask, which have no seed")
        return draft.step([term], base=a, sparsify="dare", parameters={"density": 0.5})
    return draft.step([one], base=a, method="lerp", legacy=LEGACY)


def _ratio(text: str) -> tuple[float, str]:
    """A weight and a list of blocks, one of which is plain."""
    values = numbers(text.strip('"'), "a ratio", PROGRAM)
    return (values[0], "") if len(values) == 1 else (1.0, block_list(values))
