"""Small adapters of every kind, as the tensors of a file, and their changes from the definition.

Nothing here decides with lorakit's own code what an adapter means: `changes` reads the tensors' names
and multiplies out in float64.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from lorakit.lora_ops import DictSource, FullLayer, LoraLayer
from lorakit.lora_ops.adapters.adapter import Adapter
from lorakit.lora_ops.adapters.formats import decode

#: Shape of the changed weight, by form; `tucker` has its kernel in a core of its own.
SHAPES = {
    "linear": (40, 24),
    "conv1x1": (24, 16, 1, 1),
    "conv3x3": (20, 12, 3, 3),
    "conv3d": (12, 10, 3, 1, 1),
    "tucker": (20, 12, 3, 3),
}
#: What a model calls the weight of that form.
MODULES = {
    "linear": "input_blocks.1.1.transformer_blocks.0.attn1.to_q",
    "conv1x1": "input_blocks.1.1.proj_in",
    "conv3x3": "input_blocks.1.0.in_layers.2",
    "conv3d": "input_blocks.1.0.third.in_layers.2",
    "tucker": "input_blocks.2.0.in_layers.2",
}
#: `fractional` makes a scale that no float holds exactly.
ALPHAS = {"absent": None, "fractional": 0.7, "integer": 4.0, "rank": 6.0}
DTYPES = (
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float64,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
)
FORMATS = ("kohya", "comfy", "peft", "diffusers")
_PAIRS = {"kohya": (".lora_up.weight", ".lora_down.weight")}
_PAIR = (".lora_B.weight", ".lora_A.weight")
_CORE = ".lora_mid.weight"
_UPS = (".lora_up.weight", ".lora_B.weight")


@dataclass(frozen=True, slots=True)
class Part:
    """One layer that is wanted.

    Attributes:
        form: Of `SHAPES`.
        rank: Of the factors; may exceed min(out, in).
        alpha: The stored number; None for none.
        dtype: Of the factors.
        seed: Of the random numbers.
        size: Factor on up.
        shape: Of the weight; None: the form's.
        module: The weight's name; None: the form's.
    """

    form: str = "linear"
    rank: int = 6
    alpha: float | None = None
    dtype: torch.dtype = torch.float32
    seed: int = 0
    size: float = 1.0
    shape: tuple[int, ...] | None = None
    module: str | None = None

    @property
    def weight(self) -> tuple[int, ...]:
        """Shape of the weight, (out, in, *kernel)."""
        return self.shape or SHAPES[self.form]

    @property
    def name(self) -> str:
        """What the model calls the weight."""
        return self.module or MODULES[self.form]

    def factors(self) -> dict[str, Tensor]:
        """up, down and, for Tucker's form, mid; the singular values of their product fall."""
        generator = torch.Generator().manual_seed(self.seed)

        def numbers(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64)

        out, into, *kernel = self.weight
        ones = [1] * len(kernel)
        falling = self.size * torch.arange(1, self.rank + 1, dtype=torch.float64) ** -0.7
        found = {"up": (numbers(out, self.rank) * falling).reshape(out, self.rank, *ones)}
        if self.form == "tucker":
            found["mid"] = numbers(self.rank, self.rank, *kernel)
            found["down"] = numbers(self.rank, into, *ones)
        else:
            found["down"] = numbers(self.rank, into, *kernel)
        return {role: tensor.to(self.dtype) for role, tensor in found.items()}


EVERY_FORM = tuple(Part(form, seed=seed) for seed, form in enumerate(SHAPES))


def module_name(name: str, format: str) -> str:
    """What a file of this format calls the weight that a model calls `name`."""
    if format == "kohya":
        return "lora_unet_" + name.replace(".", "_")
    prefix = {"comfy": "diffusion_model.", "peft": "base_model.model.", "diffusers": "transformer."}
    return prefix[format] + name


def tensors(parts: Iterable[Part] = EVERY_FORM, format: str = "kohya") -> dict[str, Tensor]:
    """The tensors of a file; alpha as a float32 scalar where a part has one."""
    found: dict[str, Tensor] = {}
    for part in parts:
        module, factors = module_name(part.name, format), part.factors()
        # Loaders know Tucker's form in kohya's spelling only.
        up, down = _PAIRS["kohya"] if "mid" in factors else _PAIRS.get(format, _PAIR)
        found |= {module + up: factors["up"], module + down: factors["down"]}
        if "mid" in factors:
            found[module + _CORE] = factors["mid"]
        if part.alpha is not None:
            found[f"{module}.alpha"] = torch.tensor(part.alpha)
    return found


def peft_config(rank: int, alpha: float, component: str = "", **more: object) -> dict[str, str]:
    """The metadata of a file whose layers all have this rank and alpha."""
    prefix = f"{component}." if component else ""
    entries = {"r": rank, "lora_alpha": alpha, **more}
    return {"lora_adapter_metadata": json.dumps({prefix + k: v for k, v in entries.items()})}


def adapter(
    parts: Iterable[Part] = EVERY_FORM,
    format: str = "kohya",
    metadata: Mapping[str, str] | None = None,
) -> Adapter:
    """The same as lorakit reads it."""
    return read(tensors(parts, format), metadata)


def read(found: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> Adapter:
    """A file's tensors as lorakit reads them."""
    return decode(DictSource(found, metadata, name="lora.safetensors"))


def written(
    path: Path, found: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> Path:
    """Write a file by the safetensors library and return its path."""
    save_file({k: v.contiguous() for k, v in found.items()}, path, metadata=dict(metadata or {}))
    return path


def changes(found: Mapping[str, Tensor], scale: float = 1.0) -> dict[str, Tensor]:
    """What a file means, by its module names: (out, in, *kernel), float64, from the definition.

    Args:
        found: The file's tensors.
        scale: alpha / rank of layers without an alpha, where a configuration gives it.
    """
    meant: dict[str, Tensor] = {}
    for key, up in found.items():
        suffix = next((one for one in _UPS if key.endswith(one)), None)
        if suffix is None:
            continue
        module = key.removesuffix(suffix)
        down = found[module + (".lora_down" if suffix == _UPS[0] else ".lora_A") + ".weight"]
        core, alpha = found.get(module + _CORE), found.get(f"{module}.alpha")
        gain = scale if alpha is None else float(alpha) / down.shape[0]
        meant[module] = gain * product(up, down, core)
    return meant


def delta(layer: LoraLayer | FullLayer) -> Tensor:
    """What a layer means: (out, in, *kernel), float64, from the definition."""
    if isinstance(layer, FullLayer):
        return layer.diff.double()
    scale = 1.0 if layer.alpha is None else layer.alpha / layer.down.shape[0]
    return scale * product(layer.up, layer.down, layer.mid)


def product(up: Tensor, down: Tensor, core: Tensor | None = None) -> Tensor:
    """up @ down, with Tucker's core between them as the convolution that it is; float64."""
    first, last = up.double().flatten(1), down.double()
    if core is None:
        return (first @ last.flatten(1)).reshape(len(up), *down.shape[1:])
    # One position of the kernel after another: there it is a product of three matrices.
    places = core.double().flatten(2).unbind(-1)
    stack = torch.stack([first @ place @ last.flatten(1) for place in places], dim=-1)
    return stack.reshape(len(up), down.shape[1], *core.shape[2:])
