"""Adapters written as PEFT reads them: a folder of the weights and their configuration."""

from __future__ import annotations

import shutil
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import cast

from torch import Tensor

from ..adapters.formats import (
    PEFT,
    PEFT_METADATA,
    Format,
    Written,
    adapter_config,
    commonest,
    experts_apart,
    modules,
)
from ..adapters.layers import (
    AdaLoraLayer,
    DoraLayer,
    InputButterflyLayer,
    InputRotationLayer,
    Layer,
    LohaLayer,
    LokrLayer,
    LoraLayer,
    PeftIa3Layer,
    VeraLayer,
)
from ..adapters.metadata import Input
from ..adapters.peft.config import ROOT, configs_of
from ..adapters.peft.parameters import is_parameter, parameter_of
from ..adapters.some import MadeTensors
from ..errors import ArgumentError, UnsupportedLayerError, WriteError
from ..files import Output, check_output, hidden, move_all, writer_of
from ..report import Report
from ..run.job import Outcome
from ..run.output import Writer
from ..source import TensorSource
from .expert_stacks import ExpertStacks
from .output import AdapterFile, Describe, Draft, Notes

# The names that PEFT gives and asks for.
WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"

# An output whose name ends like this is meant to be a file, whatever its format.
_FILES = (".safetensors", ".sft", ".bin", ".pt", ".pth", ".ckpt", ".json", ".gguf")
_METHODS: dict[type[Layer], str] = {LoraLayer: "LORA", LohaLayer: "LOHA", LokrLayer: "LOKR"}
# Kinds whose configuration says nothing that an operation on them changes: the input's stays.
_CARRIED: dict[type[Layer], str] = {
    AdaLoraLayer: "ADALORA",
    VeraLayer: "VERA",
    PeftIa3Layer: "IA3",
    InputRotationLayer: "OFT",
    InputButterflyLayer: "BOFT",
}


def is_for_folder(output: Output, format: str | None) -> bool:
    """Whether a result goes into a folder: one in PEFT's format under a name that is no file's."""
    return (
        format == PEFT.name
        and isinstance(output, Path)
        and (output.is_dir() or output.suffix.lower() not in _FILES)
    )


def check_written(
    output: Output, inputs: Sequence[Path], like: TensorSource, *, force: bool
) -> None:
    """Refuse an output that cannot, or must not, be written: a file, or the folder of PEFT.

    Args:
        output: Where to.
        inputs: What is read.
        like: An adapter in the format of the result.
        force: Whether the output may replace a file.

    Raises:
        ArgumentError: As `check_output`, or `check_folder`.
    """
    if is_for_folder(output, commonest(modules(like.keys()))) and isinstance(output, Path):
        check_folder(output, inputs, force=force)
    else:
        check_no_experts(like)
        check_output(output, inputs, force=force)


def check_no_experts(adapter: TensorSource) -> None:
    """Refuse an adapter whose layers no file holds.

    Args:
        adapter: What the file is to be made of.

    Raises:
        ArgumentError: It has stacks of experts.
    """
    if experts_apart(adapter) is not adapter:
        raise ArgumentError(
            "holds factors of stacks of experts, which PEFT reads from its folder alone; give the name of a folder "
            "as output, in format `peft`",
            path=adapter.name,
        )


def check_folder(output: Path, inputs: Sequence[Path], *, force: bool) -> None:
    """Refuse a folder that cannot, or must not, be written.

    Raises:
        ArgumentError: As `check_output` of the weights in it; or it is a file.
    """
    if output.exists() and not output.is_dir():
        raise ArgumentError(
            "is a file, and format `peft` is a folder; give another name", path=output
        )
    inside = output / WEIGHTS if output.is_dir() else output.with_suffix(".safetensors")
    check_output(inside, inputs, force=force or not output.is_dir())
    if output.is_dir():
        check_output(output / CONFIG, inputs, force=force, suffix=CONFIG)


def keeps_alpha(
    output: Output, format: Format, keys: Mapping[str, Mapping[str, str]] | None = None
) -> bool:
    """Whether a result stores a layer's scale apart from its numbers: in the file, or beside it.

    Args:
        output: Where to.
        format: Of the result.
        keys: Keys by role, by target, of what is written. A bias of PEFT's up counts times the
            scale, and is read with it: there it stays in the numbers.
    """
    if not is_for_folder(output, format.name):
        return format.keeps_alpha
    return not any(_is_up_bias(roles) for roles in (keys or {}).values())


def sink_of(draft: Draft, describe: Describe, notes: Notes) -> AdapterFile:
    """Return what an edited adapter is written as: a file, or a folder where the output is one."""
    output = draft.output
    if isinstance(output, Path) and is_for_folder(output, draft.format):
        return PeftFolder(draft, describe, notes)
    return AdapterFile(draft, describe, notes)


class PeftFolder(AdapterFile):
    """The folder of an edited adapter: scales are in the configuration, beside the weights.

    Raises:
        UnsupportedLayerError: PEFT has no configuration for such layers together.
    """

    def __init__(self, draft: Draft, describe: Describe, notes: Notes) -> None:
        super().__init__(draft, describe, notes)
        self._told: dict[str, Written] = {}
        configs = [configs_of(one.metadata).get("", {}) for one in draft.sources]
        self._parameters = {
            target
            for target in draft.keys
            if any(is_parameter(one, target.removeprefix(ROOT)) for one in configs)
        }
        self._experts = ExpertStacks(draft.keys)
        self._has_up_bias = False

    @contextmanager
    def writer(self) -> Generator[Writer, None, None]:
        """The weights in the folder; once they are complete, the configuration beside them."""
        draft = self.draft
        with new_folder(cast("Path", draft.output), force=draft.force) as made:
            with writer_of(made / WEIGHTS, header_room=draft.room, replace=draft.force) as writer:
                yield writer
            originals = [source.metadata for source in draft.sources]
            told = {name: one for name, one in self._told.items() if name not in self._parameters}
            alone = {
                parameter_of(name): self._told[name] for name in self._told.keys() - told.keys()
            }
            text = adapter_config(
                told,
                originals,
                lora_bias=self._has_up_bias,
                parameters=alone | self._experts.written(),
            )
            (made / CONFIG).write_text(text, "utf-8")

    def tensors(self, outcome: Outcome[Layer]) -> dict[str, Tensor]:
        """The tensors of a layer without its alpha; none for a skip."""
        target, layer = outcome.name, outcome.value
        if layer is not None:
            self._has_up_bias |= _is_up_bias(self.draft.keys[target])
        if layer is None or layer.is_full:
            return super().tensors(outcome)
        is_expert = self._experts.takes(target, layer)
        if not is_expert:
            self._told[target] = _told(target, layer)
        tensors = super().tensors(replace(outcome, value=_without_alpha(layer)))
        return {} if is_expert else tensors

    def rest(self) -> Mapping[str, Tensor]:
        """The stacks of experts, and what belongs to no layer."""
        extras = super().rest()
        made = {key: partial(extras.__getitem__, key) for key in extras}
        return MadeTensors({**dict(self._experts.factors(str)), **made})

    def metadata(self, inputs: Sequence[Input], report: Report) -> Mapping[str, str]:
        """The record of the operation, without what the configuration says."""
        told = super().metadata(inputs, report)
        return {key: text for key, text in told.items() if key != PEFT_METADATA}


def _told(target: str, layer: Layer) -> Written:
    """What the configuration says of a layer that is written.

    Raises:
        UnsupportedLayerError: PEFT's configuration cannot express the kind.
    """
    plain = layer.inner if isinstance(layer, DoraLayer) else layer
    carried = _CARRIED.get(type(layer))
    if carried is not None:
        return Written(carried, layer.rank)
    method = _METHODS.get(type(plain))
    if method is None or plain.is_peft_only:
        raise UnsupportedLayerError(
            f"layer `{target}` is of kind {layer.title}, which lorakit has no configuration of PEFT "
            "for; give the name of a file that ends in `.safetensors`",
            target=target,
        )
    is_whole = isinstance(plain, LokrLayer) and plain.factor_rank is None
    return Written(
        method, plain.rank, None if is_whole else plain.scale, isinstance(layer, DoraLayer)
    )


def _without_alpha(layer: Layer) -> Layer:
    if isinstance(layer, DoraLayer):
        return replace(layer, inner=_without_alpha(layer.inner))
    scaled = isinstance(layer, LoraLayer | LohaLayer | LokrLayer)
    return replace(layer, alpha=None) if scaled else layer


def _is_up_bias(roles: Mapping[str, str]) -> bool:
    return roles.get("diff", "").endswith((".lora_B.bias", ".lora_B.default.bias"))


@contextmanager
def new_folder(output: Path, *, force: bool) -> Generator[Path, None, None]:
    """A hidden sibling, which becomes the output, or whose files do, when all is well.

    Raises:
        WriteError: It cannot be made, or not be renamed.
    """
    # Where it is there already it may lead to another disk.
    new = hidden(output / WEIGHTS if output.is_dir() else output)
    try:
        new.mkdir()
        yield new
        if not output.is_dir():
            new.rename(output)  # the system refuses if by now a folder with files is there
            return
        # The weights go first, the configuration that describes them last.
        move_all([new / WEIGHTS, new / CONFIG], output, replace=force)
    except OSError as error:
        raise WriteError(f"cannot be written: {error.strerror}", path=output) from error
    finally:
        shutil.rmtree(new, ignore_errors=True)
