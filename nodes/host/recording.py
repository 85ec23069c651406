"""What goes into a MODEL's layers while graphs sample with it, by the host's own wrappers.

Hooks are on the layers only while the model computes a step: nothing stays on it, whatever ends the sampling.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from comfy.patcher_extension import WrapperExecutor, WrappersMP
from comfy_execution.utils import get_executing_context

from . import host

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher
    from torch import nn

    from ...lora_ops import Recorder

_KEY = "lorakit_record"
_PREFIX = "diffusion_model."


class Recording:
    """A record of one run of a graph, or of all.

    Attributes:
        recorder: What was gathered; None before a model that is recorded has sampled.
        planned: What will gather, for its limits; None before there is a model.
        calls: Of the model.
    """

    def __init__(self, memory: int, *, across_runs: bool) -> None:
        """Record nothing yet.

        Args:
            memory: Bytes that it may take.
            across_runs: Whether a run adds to those before, in place of beginning anew.
        """
        self.recorder: Recorder | None = None
        self.planned: Recorder | None = None
        self.calls = 0
        self._memory, self._across_runs = memory, across_runs
        self._run = ""

    def on(self, model: ModelPatcher) -> ModelPatcher:
        """A clone of a MODEL that is recorded whenever it samples.

        Raises:
            ArgumentError: The memory is too small for this model.
            MismatchError: It has no layer that could be recorded.
        """
        self.planned = self._begun(getattr(model.model, _PREFIX[:-1]))
        self.recorder = None
        clone = model.clone()
        for kind, wrapper in (
            (WrappersMP.OUTER_SAMPLE, self._sampling),
            (WrappersMP.PREPARE_SAMPLING, self._preparing),
            (WrappersMP.APPLY_MODEL, self._calling),
        ):
            clone.add_wrapper_with_key(kind, _KEY, wrapper)
        return clone

    def _sampling(self, executor: WrapperExecutor, *args: Any, **kwargs: Any) -> Any:
        """Around a whole sampling: what is gathered leaves the GPU with the end of it."""
        try:
            return executor(*args, **kwargs)
        finally:
            if self.recorder is not None:
                self.recorder.move("cpu")

    def _preparing(
        self, executor: WrapperExecutor, model: ModelPatcher, *args: Any, **kwargs: Any
    ) -> Any:
        """Around the loading of the models."""
        loaded = executor(model, *args, **kwargs)
        host.make_room(self._begun(getattr(model.model, _PREFIX[:-1])).size, model)
        return loaded

    def _calling(self, executor: WrapperExecutor, *args: Any, **kwargs: Any) -> Any:
        """Around one call of the model, which may be a copy on another device."""
        module = executor.class_obj.diffusion_model
        with self._begun(module).watching(module):
            result = executor(*args, **kwargs)
        self.calls += 1
        return result

    def _begun(self, module: nn.Module) -> Recorder:
        """The record of the run that is going on."""
        from ...lora_ops import record

        context = get_executing_context()
        run = self._run if context is None else context.prompt_id
        if self.recorder is None or (run != self._run and not self._across_runs):
            self.recorder = record(module, prefix=_PREFIX, memory=self._memory)
            self.recorder.stop()
            self.calls = 0
        self._run = run
        return self.recorder
