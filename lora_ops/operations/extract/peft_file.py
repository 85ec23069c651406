"""The folder of PEFT that an extraction writes: factors as they come, then stacks and what is kept whole."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from torch import Tensor

from ...adapters.formats import PEFT, Written, adapter_config, as_stored, module_keys
from ...adapters.layers import Layer, LoraLayer, ReplacementLayer
from ...adapters.metadata import HASH_KEYS, Input, metadata_room
from ...adapters.some import MadeTensors
from ...files import writer_of
from ...files.header import header_room
from ...linalg.storage import rounded
from ...models.architectures import Parameter
from ...models.architectures.modules import BESIDE_EXPERTS, PEFT_TIES, WORDS
from ...models.differences import are_floats, read_parameter
from ...models.modules import expert_of
from ...report import LayerReport, Report, Skip, counted
from ...run.devices import Placement
from ...run.job import Outcome, Work
from ...run.output import Sink, Writer
from ..expert_stacks import ExpertStacks
from ..peft_folder import CONFIG, WEIGHTS, new_folder
from .extract import Task, extraction_work, summarise
from .extraction import Extraction
from .layer import leave_out, replaced
from .peft_plan import PeftPlan
from .plan import NO_FACTORS
from .task import MADE

ROOT = "base_model.model."
_BIAS, _WEIGHT = ".bias", ".weight"


def peft_work(plan: PeftPlan, *, exact: bool = False, seed: int = 0) -> Work[Task, Outcome[Layer]]:
    """Return the jobs of an extraction into PEFT's folder; see `extraction_work`."""
    work = extraction_work(plan, exact=exact, seed=seed)
    return Work(work.jobs, partial(_compute, plan, work))


def _compute(
    plan: PeftPlan, work: Work[Task, Outcome[Layer]], tasks: Sequence[Task], placement: Placement
) -> Sequence[Outcome[Layer]]:
    if all(task.has_factors or task.reason is not None for task in tasks):
        return work.compute(tasks, placement)
    return [
        _whole(plan, task) if task.reason is None else leave_out(plan, task.pair, task.reason)
        for task in tasks
    ]


def _whole(plan: PeftPlan, task: Task) -> Outcome[Layer]:
    """A parameter that is kept whole, as the tuned model has it."""
    both = task.pair
    if not are_floats(plan.sides, both):
        return leave_out(plan, both, NO_FACTORS)
    return replaced(plan, both)


class PeftExtraction(Sink[Layer]):
    """PEFT's folder of an extraction.

    Args:
        extraction: What is written; its plan is from `plan_peft`.
        output: The folder.
    """

    hash_keys = HASH_KEYS
    classes = MADE

    def __init__(self, extraction: Extraction, plan: PeftPlan, output: Path) -> None:
        self.extraction, self.sources = extraction, extraction.sources
        self._plan, self._output, self._force = plan, output, extraction.force
        self._reports: list[LayerReport | Skip] = []
        self._modules: dict[str, Written] = {}
        self._parameters: dict[str, Written] = {}
        self._saved: dict[str, None] = {}
        self._keys: set[str] = set()
        self._has_biases = False
        self._adapted = {both.target for both in plan.pairing.candidates}
        self._experts = ExpertStacks(one.target for one in plan.model.parameters.values())

    def asked(self) -> Mapping[str, str]:
        """What it is made from."""
        return self.extraction.asked

    @contextmanager
    def writer(self) -> Generator[Writer, None, None]:
        """The weights in the folder; once they are complete, the configuration beside them."""
        with new_folder(self._output, force=self._force) as made:
            with writer_of(made / WEIGHTS, header_room=self._room, replace=self._force) as writer:
                yield writer
            (made / CONFIG).write_text(self._config(), "utf-8")

    @property
    def overhead(self) -> int:
        """Bytes of the file that are no factors, at most."""
        plan = self._plan
        words = [one for one in plan.model.parameters.values() if _is_table(one)]
        largest = max((math.prod(one.shape) for one in words), default=0)
        # A module is saved with its bias, and those that are tied to the words with their weight.
        biases = (both.shape for both in plan.pairing.rest if both.name.endswith(_BIAS))
        beside = sum(map(math.prod, biases)) + len(plan.tied) * largest
        return 8 + self._room + plan.whole_size + beside * plan.dtype.itemsize

    @property
    def _room(self) -> int:
        plan = self._plan
        pairs = [*plan.pairing.candidates, *plan.pairing.rest]
        stacks = {(expert_of(one.target) or (one.target,))[0] for one in pairs}
        names = [*stacks, *(one.name for one in plan.added), *plan.tied]
        longest = max((len(name.encode()) for name in names), default=0)
        rows = [
            (f"{ROOT}{name}{'_' * 40}", "BF16", (10**6,) * 3) for name in names for _ in range(2)
        ]
        told = metadata_room(len(pairs), longest, plan.sides.tuned.metadata)
        return header_room(rows, spare=told + self.extraction.room)

    def tensors(self, outcome: Outcome[Layer]) -> dict[str, Tensor]:
        """The tensors of a layer; of an expert's none, as they come with its stack."""
        self._reports.append(outcome.report)
        layer, own = outcome.value, self._plan.own(outcome.name)
        if isinstance(layer, ReplacementLayer):
            key = self._whole_key(own)
            self._keys.add(key)
            return {key: layer.set_weight}
        if not isinstance(layer, LoraLayer):
            return {}
        if self._experts.takes(outcome.name, layer):
            return {}
        if self._plan.model.has_experts and own.rpartition(".")[2] in BESIDE_EXPERTS:
            self._parameters[own + _WEIGHT] = Written("LORA", layer.rank)
        else:
            self._modules[own] = Written("LORA", layer.rank)
        keys, tensors = module_keys(PEFT, ROOT + own), layer.tensors()
        return {keys[role]: as_stored(keys[role], tensors[role]) for role in ("down", "up")}

    def rest(self) -> Mapping[str, Tensor]:
        """The stacks of experts, and what only the tuned model has; made when it is asked for."""
        made = dict(self._experts.factors(lambda name: ROOT + self._plan.own(name)))
        for one in self._plan.added:
            made[self._whole_key(self._plan.own(one.target))] = partial(self._read, one)
        words = self._words()
        if words is not None:
            for module in self._plan.tied:
                made[self._whole_key(module)] = partial(self._read, words)
        known = self._plan.model.parameters
        for module in list(self._saved):  # a module is saved with all of its parameters
            for end in (_WEIGHT, _BIAS):
                one, key = known.get(self._plan.model.root + module + end), ROOT + module + end
                if one is not None and key not in {*self._keys, *made}:
                    made[key] = partial(self._read, one)
        for stack, told in self._experts.written().items():
            self._parameters[self._plan.own(stack)] = told
        return MadeTensors(made)

    def _read(self, one: Parameter) -> Tensor:
        """A parameter of the tuned model, as it is written."""
        return rounded(read_parameter(self._plan.sides.tuned, one), self._plan.dtype, one.target)

    def _whole_key(self, own: str) -> str:
        """The key of a parameter that is kept whole, by the name of its target."""
        module = own.removesuffix(_BIAS)
        if module == own:
            self._saved[own] = None
            return ROOT + own + _WEIGHT
        root = self._plan.model.root + module
        if root in self._adapted:
            self._has_biases = True
            return f"{ROOT}{module}.base_layer{_BIAS}"
        self._saved[module] = None
        return ROOT + own

    def report(self) -> Report:
        """The report, with what PEFT has to be told."""
        report = summarise(self._plan, self._reports)
        return replace(report, notes=(*report.notes, *self._notes()))

    def _notes(self) -> Iterator[str]:
        plan = self._plan
        if self._saved:
            kept = counted(len(self._saved), "module")
            yield f"{kept} kept whole (`modules_to_save`), the first `{next(iter(self._saved))}`"
        grown = [one for one in plan.added if one.target.rpartition(".")[2] != "bias"]
        for one in grown[:1]:
            yield (
                f"`{plan.own(one.target)}` is only in the tuned model, or of another size there ({one.shape}): a "
                "base that PEFT is to load this on needs one of that shape first (`resize_token_embeddings` "
                "for a vocabulary)"
            )
        if plan.dropped:
            yield (
                f"{counted(len(plan.dropped), 'parameter')} of a head that only the base has, the first "
                f"`{plan.own(plan.dropped[0])}`"
            )
        if plan.model.is_renamed:
            yield "modules have the names that transformers 5 gives them; older ones call them otherwise"

    def metadata(self, inputs: Sequence[Input], report: Report) -> dict[str, str]:
        """The record of the extraction."""
        return self.extraction.metadata(inputs, report, PEFT)

    def _config(self) -> str:
        plan = self._plan
        turned = any(both.tuned.transposed for both in plan.pairing.candidates)
        more = {
            **dict(plan.fields),
            "modules_to_save": sorted(self._saved) or None,
            "bias": "all" if self._has_biases else "none",
            "fan_in_fan_out": turned,
            **({"ensure_weight_tying": True} if self._peft_ties() else {}),
        }
        return adapter_config(self._modules, parameters=self._parameters, more=more)

    def _peft_ties(self) -> bool:
        """Whether PEFT knows by itself that the head is the embedding."""
        words = self._words()
        return words is not None and words.target.endswith(f".{PEFT_TIES}")

    def _words(self) -> Parameter | None:
        """The embedding that is kept whole, where others have its weight."""
        plan = self._plan
        own = (one for one in self._saved if one not in plan.tied)
        saved = [one for one in own if one.rpartition(".")[2] in WORDS]
        if not plan.tied or not saved:
            return None
        return plan.model.parameters[plan.model.root + saved[0] + _WEIGHT]


def _is_table(one: Parameter) -> bool:
    return one.target.rpartition(".")[2] in WORDS
