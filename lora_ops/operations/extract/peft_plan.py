"""The plan of an extraction into PEFT's folder: what gets factors, what is kept whole, for which model."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ...errors import ArgumentError
from ...files import FileSource, model_config
from ...linalg.ranks.budgets import Budget
from ...linalg.ranks.rules import RankRule
from ...models.architectures import UNET, Parameter, parameters
from ...models.architectures.modules import ANSWERS, OUTPUTS, TIED, WORDS
from ...models.modules import ROOT, Modules, aligned, check_axes, modules_of
from ...models.pairing import Pair
from ...source import TensorSource
from ..expert_stacks import check_budget
from .kinds.table import LORA
from .plan import NO_FACTORS, Plan, PlanOptions, activations_for, plan_named

if TYPE_CHECKING:
    from typing_extensions import Unpack

Embeddings = Literal["whole", "lora", "none"]
"""What becomes of embeddings and heads that changed."""

BARE = "PEFT has no place for a parameter that is no module's weight or bias"
HEADS_LEFT_OUT = "an embedding or a head, which are not asked for"

_WEIGHT, _BIAS = ".weight", ".bias"
_NO_CONFIG: Modules = Modules({}, "")
#: What PEFT calls the task, where its class for it asks for nothing but the weights.
_TASKS = (("ForCausalLM", "CAUSAL_LM"), ("T5ForConditionalGeneration", "SEQ_2_SEQ_LM"))
#: How the cache of Hugging Face names a folder: of the model, then of its state.
_CACHED = re.compile(r"models--(?P<owner>.+?)--(?P<name>[^/\\]+)[/\\]snapshots[/\\]")


@dataclass(frozen=True, slots=True)
class PeftPlan(Plan):
    """What an extraction into PEFT's folder will do.

    Attributes:
        model: The tuned model.
        added: Parameters that only the tuned model has, or has with another shape: kept whole.
        dropped: Names of parameters of heads that only the base has.
        embeddings: What becomes of embeddings and heads that changed.
        tied: Modules whose weight is that of the embedding, which no file has besides.
        fields: What the configuration says of the model.
    """

    model: Modules = _NO_CONFIG
    added: tuple[Parameter, ...] = ()
    dropped: tuple[str, ...] = ()
    embeddings: Embeddings = "whole"
    tied: tuple[str, ...] = ()
    fields: tuple[tuple[str, Any], ...] = ()

    def own(self, name: str) -> str:
        """What the model calls a target, or a parameter."""
        return name.removeprefix(self.model.root)

    def why_not(self, pair: Pair) -> str | None:
        """Why a parameter without factors is left out; None: it is kept whole."""
        module = pair.name.removesuffix(_BIAS).removesuffix(_WEIGHT)
        is_bias = self.embeddings == "lora" and pair.name.endswith(_BIAS)
        if pair.kind == "embedding" or (is_head(module) and not is_bias):
            return None if self.embeddings == "whole" else HEADS_LEFT_OUT
        if not self.full_differences:
            return NO_FACTORS
        return None if pair.name.endswith((_WEIGHT, _BIAS)) else BARE

    @property
    def whole_size(self) -> int:
        """Bytes of what is kept whole, at most."""
        kept = [both.tuned for both in self.pairing.rest if self.why_not(both) is None]
        numbers = sum(_numbers(one) for one in (*kept, *self.added))
        return numbers * self.dtype.itemsize


def is_head(module: str) -> bool:
    """Whether a module gives the scores of a vocabulary, or a task's answers."""
    return any(part in ANSWERS for part in module.split("."))


def plan_peft(
    base: TensorSource,
    tuned: TensorSource,
    rule: str | int | RankRule | Budget | None = None,
    *,
    embeddings: Embeddings = "whole",
    **options: Unpack[PlanOptions],
) -> PeftPlan:
    """Pair two models by the names of their modules, and settle what is to be done, from headers alone.

    Args:
        base: The model that was started from.
        tuned: The model that came of it; PEFT loads the result on a base of its class.
        rule: How many directions a layer gets; see `plan_extraction` for None.
        embeddings: What becomes of embeddings and heads that changed: kept `whole`, as
            `modules_to_save`; given factors, `lora`; or left out, `none`.
        **options: See `PlanOptions`.

    Raises:
        ArgumentError: The rule or a pattern is wrong; the form is another than LoRA; there are stacks of experts, and no `config.json`
            that says how they lie; or embeddings cannot get factors.
        MismatchError: The two do not belong together, or one holds several models.
    """
    told = [model_config(one.name) if isinstance(one, FileSource) else {} for one in (base, tuned)]
    ours, theirs = (modules_of(*one) for one in zip((base, tuned), told, strict=True))
    check_axes(theirs, told[1], tuned.name)
    old, new = aligned(ours, theirs), dict(theirs.parameters)
    added, dropped = _heads(new, old, theirs.root), _heads(old, new, theirs.root)
    if embeddings == "whole":
        added += [name for name in new if _has_grown(old.get(name), new[name])]
    elif any(_has_grown(old.get(name), one) for name, one in new.items()):
        grown = next(name for name, one in new.items() if _has_grown(old.get(name), one))
        raise ArgumentError(
            f"`{theirs.parameters[grown].key}` has {new[grown].shape[0]} rows in {tuned.name} and "
            f"{old[grown].shape[0]} in {base.name}: no low-rank change adds rows; keep embeddings whole"
        )
    named = {
        id(base): {name: one for name, one in old.items() if name not in {*added, *dropped}},
        id(tuned): {name: one for name, one in new.items() if name not in added},
    }
    record: TensorSource | None = options.pop("activations", None)
    plan = plan_named(base, tuned, rule, lambda one: named[id(one)], options)
    if theirs.has_experts:
        check_budget(plan.rule)
    if plan.form is not LORA or plan.auto_full:
        what = "whole layers" if plan.form is LORA else f"a {plan.form.title}"
        raise ArgumentError(
            f"format `peft` has LoRAs of an extraction alone, not {what}; use format `comfy`"
        )
    names = _recorded_names(tuned, plan.pairing.candidates, theirs.root)
    activations = activations_for(record, plan.rule, plan.pairing, plan.form.name, names)
    plan = replace(plan, activations=activations)
    peft = PeftPlan(
        **{one.name: getattr(plan, one.name) for one in fields(plan)},
        model=theirs,
        added=tuple(new[name] for name in added),
        dropped=tuple(dropped),
        embeddings=embeddings,
        tied=_tied(told[1], {one.removeprefix(theirs.root) for one in new}),
        fields=tuple(_told_fields(base, told[1]).items()),
    )
    table = next((one for one in new.values() if one.target.rpartition(".")[2] in WORDS), None)
    if embeddings == "lora" and peft.tied and table is not None:
        raise ArgumentError(
            f"`{peft.tied[0]}` of {tuned.name} has the weight of `{peft.own(table.target)}`: of factors there PEFT "
            "forgets the one, or adds them twice when it merges; keep embeddings whole"
        )
    return _sorted(peft)


def _recorded_names(
    tuned: TensorSource, pairs: Iterable[Pair], root: str
) -> dict[str, tuple[str, ...]]:
    """What a record of the live model may call the targets: as the model, or as ComfyUI calls what they are part of."""
    known = {key: one.target for one in parameters(tuned).values() for key in one.keys}
    return {
        both.target: (
            both.target,
            known.get(both.tuned.key, both.target),
            # A live model does not tell of which sort it is.
            *(front + both.target.removeprefix(root) for front in (ROOT, UNET, "")),
        )
        for both in pairs
    }


def _sorted(plan: PeftPlan) -> PeftPlan:
    """The plan with embeddings and heads where they are asked for, and nothing between two chairs."""
    pairing = plan.pairing
    low = plan.embeddings == "lora"
    tables = [both for both in pairing.rest if both.kind == "embedding" and len(both.shape) == 2]
    whole = {both.target for both in pairing.candidates if _stays(both, low)}
    # PEFT finds what is kept whole by the ends of names: a layer that it would meet so is kept, too.
    ends = tuple({plan.own(one) for one in whole} | {plan.own(one.target) for one in plan.added})
    ends = tuple(one for one in ends if one)
    if ends:
        whole |= {both.target for both in pairing.candidates if both.target.endswith(ends)}
    return replace(
        plan,
        pairing=replace(
            pairing,
            candidates=(
                *(both for both in pairing.candidates if both.target not in whole),
                *(tables if low else ()),
            ),
            rest=(
                *(both for both in pairing.rest if not low or both not in tables),
                *(both for both in pairing.candidates if both.target in whole),
            ),
        ),
    )


def _stays(pair: Pair, low: bool) -> bool:
    """Whether a weight is not adapted: a head, or a convolution whose groups the file does not tell."""
    groups = len(pair.shape) > 2 and pair.shape[1] == 1 and pair.shape[0] > 1
    return groups or (is_head(pair.target) and not low)


def _heads(names: Iterable[str], others: Mapping[str, Parameter], root: str) -> list[str]:
    """The names that only one side has, of parts of the model that the other lacks altogether."""
    shared = {_part(name, root) for name in names if name in others}
    if not shared:
        return []
    return [name for name in names if name not in others and _part(name, root) not in shared]


def _part(name: str, root: str) -> str:
    return name.removeprefix(root).partition(".")[0]


def _has_grown(old: Parameter | None, new: Parameter) -> bool:
    """Whether it is a table of words, or its head, of another number of them."""
    if old is None or old.shape == new.shape or old.shape[1:] != new.shape[1:]:
        return False
    module = new.target.removesuffix(_BIAS)
    return is_head(module) or Pair(new, new).kind == "embedding"


def _tied(config: Mapping[str, Any], names: Collection[str]) -> tuple[str, ...]:
    """The modules that share the embedding's weight, as far as the files do not have it again."""
    row = next((to for one in _classes(config) for end, to in TIED if re.search(end, one)), ())
    absent = [module for module in row if module + _WEIGHT not in names]
    if config.get("tie_word_embeddings") is False:
        absent = [module for module in absent if module.rpartition(".")[2] not in OUTPUTS]
    return tuple(absent)


def _told_fields(base: TensorSource, config: Mapping[str, Any]) -> dict[str, Any]:
    task = next((to for name in _classes(config) for end, to in _TASKS if name.endswith(end)), None)
    return {"base_model_name_or_path": _called(base), "task_type": task}


def _called(base: TensorSource) -> str:
    """What the base is called: by its place in Hugging Face's cache, or by its folder. No path.

    `_name_or_path` of its configuration is what it was trained from, as often as not: another model.
    """
    place = Path(base.name).resolve()
    cached = _CACHED.search(f"{place}/")
    if cached is not None:
        return f"{cached['owner']}/{cached['name']}"
    return place.name if place.is_dir() else place.parent.name


def _classes(config: Mapping[str, Any]) -> Sequence[str]:
    found = config.get("architectures")
    return [str(one) for one in found] if isinstance(found, list) else []


def _numbers(parameter: Parameter) -> int:
    count = 1
    for size in parameter.shape:
        count *= size
    return count
