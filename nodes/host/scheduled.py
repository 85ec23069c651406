"""Changes of weights whose strengths are those of the moment: what is handed to ComfyUI for a schedule.

The weights stay as they are. Around each run of the model, functions stand on the layers that a change is
due in, which the host calls on the weight of a layer as it is used: whole, in parts, from dynamic VRAM or
quantised. They are taken away as the run ends, however it does, so nothing is to be restored.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import comfy.lora
import comfy.utils
import torch
from comfy.patcher_extension import WrappersMP
from comfy.weight_adapter import WeightAdapterBase
from torch import Tensor

from .host import SCHEDULE, noted, quantisation

if TYPE_CHECKING:
    from comfy.model_base import BaseModel
    from comfy.model_patcher import ModelPatcher

    from ..apply.patch_places import Place

_KEY, _TITLE = "lorakit_schedule", "Schedule LoRAs"
# Halvings of a progress that is looked for: finer than any two steps.
_HALVINGS = 30
# A level that is the rounding of float32 above that of a point has reached the point.
_ROUNDING = 1e-6


@dataclass(frozen=True, slots=True, eq=False)
class Timed:
    """A change of a weight, and how strong it is when.

    Attributes:
        place: The weight, or rows of it.
        patch: The host's own.
        strength: Its strength at a progress, 0 to 1.
    """

    place: Place
    patch: Any
    strength: Callable[[float], float]


def scheduled(patcher: ModelPatcher, changes: Sequence[Timed], *, by_steps: bool) -> ModelPatcher:
    """A clone of a MODEL with changes that come and go while it is sampled.

    Args:
        patcher: Left as it is.
        changes: Of weights that can take a function; see `why_constant`.
        by_steps: Whether progress is the share of the steps that are done; else what the host's
            `start_percent` means: how far the noise is gone.
    """
    clone = patcher.clone()
    schedule = _Schedule(changes, by_steps)
    clone.add_wrapper_with_key(WrappersMP.APPLY_MODEL, _KEY, schedule.run)
    clone.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, _KEY, schedule.sample)
    noted(clone, SCHEDULE, [_TITLE])
    return clone


def why_constant(patcher: ModelPatcher, key: str) -> str:
    """Return why a weight cannot be changed as it is used, or nothing where it can."""
    module, _, parameter = key.rpartition(".")
    layer = comfy.utils.get_attr(patcher.model, module) if module else patcher.model
    if not hasattr(layer, f"{parameter}_function"):
        return "ComfyUI calls no function on such a weight as it is used"
    kind = quantisation(patcher, key)
    if kind and not _is_gguf(getattr(layer, parameter)):
        return f"the weight is stored as {kind}, whose layers call no function on it"
    return ""


def _is_gguf(weight: Tensor) -> bool:
    """Whether a weight is quantised by ComfyUI-GGUF, which keeps patches on it and adds them at each use."""
    return not weight.is_floating_point() and hasattr(weight, "patches")


class _Schedule:
    """What is on a model, and copies of it on the devices where it runs."""

    def __init__(self, changes: Sequence[Timed], by_steps: bool) -> None:
        self._changes: dict[str, list[tuple[Timed, Any, Any]]] = defaultdict(list)
        for one in changes:
            key, *rest = (one.place,) if isinstance(one.place, str) else one.place
            rows, function = [*rest, None, None][:2]
            self._changes[key].append((one, rows, function))
        self._by_steps = by_steps
        self._copies: dict[tuple[int, torch.device], Any] = {}

    def sample(self, executor: Any, *args: Any, **kwargs: Any) -> Any:
        """Around the sampling: copies on devices are let go of at its end."""
        try:
            return executor(*args, **kwargs)
        finally:
            self._copies.clear()

    def run(
        self,
        executor: Any,
        x: Tensor,
        t: Tensor,
        c_concat: Any = None,
        c_crossattn: Any = None,
        control: Any = None,
        transformer_options: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Around one run of the model; `t` is the noise level, in the host's sigmas."""
        options = transformer_options or {}
        progress = self._progress(float(t.max()), options.get("sample_sigmas"), executor.class_obj)
        with self._in_place(executor.class_obj, progress):
            return executor(x, t, c_concat, c_crossattn, control, options, **kwargs)

    def _progress(self, sigma: float, sigmas: Tensor | None, model: BaseModel) -> float:
        if self._by_steps and sigmas is not None and len(sigmas) > 1:
            return steps_done(sigma, sigmas.tolist())
        return noise_gone(sigma, model.model_sampling.percent_to_sigma)

    @contextlib.contextmanager
    def _in_place(self, model: BaseModel, progress: float) -> Generator[None]:
        """Functions on the layers in which something is due, and on no other."""
        placed: list[tuple[Any, str, Any]] = []
        try:
            for key, changes in self._changes.items():
                due = [
                    (strength, one.patch, 1.0, rows, function)
                    for one, rows, function in changes
                    if (strength := one.strength(progress))
                ]
                if due:
                    path, _, parameter = key.rpartition(".")
                    layer: Any = comfy.utils.get_attr(model, path)
                    weight = getattr(layer, parameter)
                    if _is_gguf(weight):
                        holder, name, ours = weight, "patches", (due, key)
                    else:
                        holder, name, ours = (
                            layer,
                            f"{parameter}_function",
                            _Added(key, due, self._on),
                        )
                    placed.append((holder, name, ours))
                    # A list of the layer's own: that which it begins with is its class's. Past torch's
                    # own setting of attributes, which takes longer than all the rest.
                    vars(holder)[name] = [*getattr(holder, name), ours]
            yield
        finally:
            for holder, name, ours in placed:  # the host may have put others there meanwhile
                vars(holder)[name] = [one for one in getattr(holder, name) if one is not ours]

    def _on(self, patch: Any, device: torch.device) -> Any:
        """A patch with its tensors on a device, copied there once for each sampling."""
        found = self._copies.get((id(patch), device))
        if found is None:
            found = self._copies[id(patch), device] = _moved(patch, device)
        return found


class _Added:
    """A function of a weight, as the host computes with it: the weight with what is due."""

    def __init__(
        self,
        key: str,
        due: Sequence[tuple[float, Any, float, Any, Any]],
        on: Callable[[Any, torch.device], Any],
    ) -> None:
        self._key, self._due, self._on = key, due, on

    def __call__(self, weight: Tensor) -> Tensor:
        """The changed weight: another tensor, for the host may use its own again."""
        records = [
            (strength, self._on(patch, weight.device), *rest)
            for strength, patch, *rest in self._due
        ]
        return comfy.lora.calculate_weight(
            records, weight.to(weight.dtype, copy=True), self._key, intermediate_dtype=weight.dtype
        )


def _moved(value: Any, device: torch.device) -> Any:
    """One of the host's patches, or a part of it, with all tensors on a device."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, WeightAdapterBase):
        return type(value)(value.loaded_keys, _moved(value.weights, device))
    if isinstance(value, (tuple, list)):
        return type(value)(_moved(one, device) for one in value)
    return value


def steps_done(sigma: float, sigmas: Sequence[float]) -> float:
    """Return which share of the steps is done at a noise level, 0 to 1; within a step by the level.

    Args:
        sigma: The level.
        sigmas: Those at the beginning of each step, and the last one's end, falling.
    """
    for at, (start, end) in enumerate(pairwise(sigmas)):
        if sigma > end:
            within = max(0.0, (start - sigma) / (start - end)) if start > end else 0.0
            return (at + within) / (len(sigmas) - 1)
    return 1.0


def noise_gone(sigma: float, sigma_at: Callable[[float], Any]) -> float:
    """Return the progress, 0 to 1, at which the host's schedule has a noise level.

    Args:
        sigma: The level.
        sigma_at: The level at a progress: falling.
    """
    low, high, reached = 0.0, 1.0, sigma * (1 - _ROUNDING)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if float(sigma_at(middle)) > reached else (low, middle)
    return high
