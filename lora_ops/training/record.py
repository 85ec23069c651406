"""What goes into the layers of a model while it runs: second moments of their inputs."""

from __future__ import annotations

import contextlib
import functools
import math
import threading
from collections.abc import Generator, Iterator
from pathlib import Path
from types import TracebackType
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

from ..errors import ArgumentError, MismatchError, NonFiniteError
from ..files import save
from ..linalg.moments import Gathered, fitting, size_of
from ..models.parameters import parameters
from ..source import DictSource
from .adapted import is_supported

# Numbers of an input that are unfolded at once.
_BLOCK = 2**22


class Recorder:
    """Gathers the second moments of the input of each linear and convolution layer; `record` makes it.

    Attributes:
        full: Up to which width of an input the whole matrix is kept.
        directions: What is kept of wider ones, beside the diagonal.
    """

    def __init__(self, module: nn.Module, prefix: str, full: int, directions: int) -> None:
        self.full, self.directions = full, directions
        self._gathered: dict[str, Gathered] = {}
        layers = _layers(module)
        self._targets = _targets(module, prefix, list(layers))
        self._widths = [_width(layer) for layer in layers.values()]
        self._lock = threading.Lock()  # copies of a model on several devices run side by side
        self._handles: list[RemovableHandle] = []

    @property
    def counts(self) -> dict[str, int]:
        """Rows that went into each layer so far, by canonical target: tokens, or places of a convolution."""
        return {
            target: self._gathered[name].count
            for name in self._gathered
            for target in self._targets[name]
        }

    @property
    def forms(self) -> dict[str, str]:
        """What a file has of each layer so far, by canonical target: gram, sketch or diagonal."""
        return {
            target: one.form
            for name, one in self._gathered.items()
            for target in self._targets[name]
        }

    @property
    def size(self) -> int:
        """Bytes that it takes where it is gathered, once all layers were given something."""
        return size_of(self._widths, self.full, self.directions)

    @property
    def silent(self) -> list[str]:
        """Canonical targets of the layers into which nothing went so far."""
        return [
            target
            for name, targets in self._targets.items()
            for target in targets
            if name not in self._gathered
        ]

    def __enter__(self) -> Recorder:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def start(self, module: nn.Module) -> None:
        """Record what goes into the layers of a module: the one it was made for, or a copy of that."""
        self._handles += self._hooked(module)

    @contextlib.contextmanager
    def watching(self, module: nn.Module) -> Generator[None]:
        """Record a module for as long as this lasts, whatever ends it."""
        handles = self._hooked(module)
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def move(self, device: torch.device | str) -> None:
        """Keep what was gathered on another device; more that is gathered moves it back to where that is."""
        with torch.inference_mode():
            for one in self._gathered.values():
                one.move(torch.device(device))

    def stop(self) -> None:
        """Record no more; what was gathered stays."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def tensors(self) -> dict[str, Tensor]:
        """What was gathered, on the CPU: `TARGET.gram`, or `.sketch` and `.diagonal`; and `TARGET.count`."""
        found: dict[str, Tensor] = {}
        for name, one in self._gathered.items():
            told = one.tensors()
            for target in self._targets[name]:
                found |= {f"{target}.{form}": tensor for form, tensor in told.items()}
        return found

    def save(self, path: str | Path, *, replace: bool = False) -> None:
        """Write what was gathered.

        Args:
            path: The file, .safetensors.
            replace: Whether one that is there may be replaced.

        Raises:
            MismatchError: Nothing went through the module.
            NonFiniteError: What went through was NaN or infinite.
            ArgumentError: The file is there.
            WriteError: It could not be written.
        """
        if not self._gathered:
            raise MismatchError("nothing was recorded: run the module before its record is written")
        told = {
            "lorakit.activations": "second moments of the layers' inputs",
            "lorakit.layers": str(len(self._gathered)),
            "lorakit.rows": str(max(one.count for one in self._gathered.values())),
            "lorakit.full": str(self.full),
            "lorakit.directions": str(self.directions),
        }
        tensors = self.tensors()
        for key, numbers in tensors.items():
            if not bool(numbers.isfinite().all()):
                raise NonFiniteError(
                    f"`{key}` holds NaN or infinite values: the model diverged while it was recorded; record "
                    "again",
                    target=key.rpartition(".")[0],
                )
        save(path, tensors, told, replace=replace)

    def _hooked(self, module: nn.Module) -> list[RemovableHandle]:
        return [
            layer.register_forward_pre_hook(functools.partial(self._take, name))
            for name, layer in _layers(module).items()
            if name in self._targets
        ]

    def _take(self, name: str, layer: nn.Module, inputs: tuple[object, ...]) -> None:
        input = inputs[0] if inputs else None
        if not isinstance(input, Tensor) or not input.is_floating_point() or not input.numel():
            return
        # Inside, what sampling in inference mode began can be added to by a pass outside of it.
        with (
            self._lock,
            torch.inference_mode(),
            torch.autocast(input.device.type, enabled=False),
        ):
            for rows in _rows(layer, input.detach()):
                known = self._gathered.get(name)
                if known is None:
                    known = Gathered(rows.shape[1], self.full, self.directions, rows.device)
                    self._gathered[name] = known
                known.add(rows)


def record(
    module: nn.Module,
    *,
    prefix: str = "",
    full: int = 1024,
    directions: int = 128,
    memory: int | None = None,
) -> Recorder:
    """Gather, while a module runs, what goes into its linear and convolution layers.

    The second moments of the inputs, X^T X over all tokens, or over all places of a convolution, whose input is
    unfolded. They say which directions of a weight the model uses: `activations` of `extract` and `resize`.
    As a context manager it ends by itself; the record is written afterwards, or before.

    Args:
        module: Of torch; it is not changed, and runs as before.
        prefix: What the names of its parameters get in front: `diffusion_model.` for the bare diffusion model,
            as ComfyUI calls it.
        full: Up to which width of an input the whole matrix is kept, 4 * width^2 bytes each.
        directions: Of wider ones, so many directions and the exact diagonal: 4 * (2 * directions + 1) * width
            bytes each. 0 keeps the diagonal alone.
        memory: Bytes that all of it may take, if that is bounded: `full` is lowered to the width up to which
            whole matrices fit, and directions are halved until those of all layers fit.

    Returns:
        What gathers; `save` writes it.

    Raises:
        MismatchError: The module has no such layer.
        ArgumentError: A limit is negative, or the memory holds not even the diagonals.
    """
    if full < 0 or directions < 0:
        raise ArgumentError(f"full={full}, directions={directions}: give numbers from 0")
    if memory is not None:
        widths = [_width(layer) for layer in _layers(module).values()]
        full, directions = fitting(widths, memory, full, directions)
    recorder = Recorder(module, prefix, full, directions)
    recorder.start(module)
    return recorder


def _layers(module: nn.Module) -> dict[str, nn.Module]:
    """The layers of a module that are recorded, by name.

    Raises:
        MismatchError: There is none.
    """
    layers = {name: one for name, one in module.named_modules() if _has_rows(one)}
    if not layers:
        raise MismatchError(
            "the module has no linear or convolution layer whose input could be recorded"
        )
    return layers


def _has_rows(layer: nn.Module) -> bool:
    """Whether each place of its output is its weight times a row of its input."""
    if isinstance(layer, nn.Embedding) or getattr(layer, "groups", 1) != 1:
        return False
    return is_supported(layer) or _is_like_linear(layer)


def _is_like_linear(layer: nn.Module) -> bool:
    """Whether it is a linear layer of a class of its own, as ComfyUI has for quantised weights."""
    sizes = getattr(layer, "out_features", None), getattr(layer, "in_features", None)
    weight = getattr(layer, "weight", None)
    return isinstance(weight, Tensor) and tuple(weight.shape) == sizes


def _width(layer: nn.Module) -> int:
    """Length of a row that goes into a layer."""
    if isinstance(layer, (nn.Conv2d, nn.Conv3d)):
        return layer.in_channels * math.prod(layer.kernel_size)
    width = getattr(layer, "in_features", None)
    return width if isinstance(width, int) else cast("Tensor", layer.weight).shape[0]


def _targets(module: nn.Module, prefix: str, layers: list[str]) -> dict[str, tuple[str, ...]]:
    """The canonical names of each layer's weight: of one that others have in parts, all of these."""
    state = {prefix + key: value for key, value in module.state_dict().items()}
    named: dict[str, list[str]] = {}
    for one in parameters(DictSource(state)).values():
        # Of what another program has in pieces, each takes the same input: the first says it.
        named.setdefault(one.keys[0], []).append(one.target)
    keys = {name: f"{prefix}{name}.weight" if name else f"{prefix}weight" for name in layers}
    return {
        name: tuple(named.get(key, () if key in state else (prefix + name,)))
        for name, key in keys.items()
    }


def _rows(layer: nn.Module, input: Tensor) -> Iterator[Tensor]:
    """What a layer multiplies its weight with, (n, in * kernel), a block at a time."""
    if not isinstance(layer, (nn.Conv2d, nn.Conv3d)):
        yield input.reshape(-1, input.shape[-1])
        return
    sides = len(layer.kernel_size)
    batch = input if input.ndim == sides + 2 else input[None]
    around = layer._reversed_padding_repeated_twice  # pyright: ignore[reportPrivateUsage]
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    patches = functional.pad(batch, around, mode)
    for axis, size in enumerate(layer.kernel_size):
        gap = layer.dilation[axis]
        patches = patches.unfold(2 + axis, gap * (size - 1) + 1, layer.stride[axis])[..., ::gap]
    # (batch, in, places..., kernel...): places to the front, as the weight has the rest.
    places, kernel = range(2, 2 + sides), range(2 + sides, 2 + 2 * sides)
    patches = patches.permute(0, *places, 1, *kernel)
    width = math.prod(patches.shape[1 + sides :])
    images = _BLOCK // math.prod(patches.shape[1:])
    if images:
        for some in patches.split(images):
            yield some.reshape(-1, width)
        return
    step = max(1, _BLOCK // math.prod(patches.shape[2:]))
    for image in patches:
        for block in image.split(step):
            yield block.reshape(-1, width)
