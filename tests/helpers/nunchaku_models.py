"""A tiny Flux.1 as DeepCompressor quantises it and as Nunchaku stores that: what is stored, and what it stands for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

import nunchaku_packing as packing
import torch
from torch import Tensor

WIDTH, SHIFT, WHOLE = 128, 0.171875, 0.03125
E4M3 = torch.float8_e4m3fn
FIRST, LAST = "transformer_blocks.0", "single_transformer_blocks.0"
QKV = ("attn.to_q", "attn.to_k", "attn.to_v")
ADDED = ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj")
#: Nunchaku's first and later name of a layer, and the model's layers that it is made of.
LINEAR: dict[str, tuple[tuple[str, str, tuple[str, ...]], ...]] = {
    FIRST: (
        ("qkv_proj", "attn.to_qkv", QKV),
        ("qkv_proj_context", "attn.add_qkv_proj", ADDED),
        ("out_proj", "attn.to_out.0", ("attn.to_out.0",)),
        ("out_proj_context", "attn.to_add_out", ("attn.to_add_out",)),
        ("mlp_fc1", "ff.net.0.proj", ("ff.net.0.proj",)),
        ("mlp_fc2", "ff.net.2", ("ff.net.2",)),
        ("mlp_context_fc1", "ff_context.net.0.proj", ("ff_context.net.0.proj",)),
        ("mlp_context_fc2", "ff_context.net.2", ("ff_context.net.2",)),
    ),
    LAST: (
        ("qkv_proj", "attn.to_qkv", QKV),
        ("out_proj", "attn.to_out", ("proj_out.linears.0",)),
        ("mlp_fc1", "mlp_fc1", ("proj_mlp",)),
        ("mlp_fc2", "mlp_fc2", ("proj_out.linears.1",)),
    ),
}
MODULATIONS = {FIRST: {"norm1.linear": 6, "norm1_context.linear": 6}, LAST: {"norm.linear": 3}}
NORMS = {FIRST: ("norm_q", "norm_k", "norm_added_q", "norm_added_k"), LAST: ("norm_q", "norm_k")}
#: Whose smoothing a layer shares, by the first of those that it is made of.
SMOOTHED = {
    "attn.add_q_proj": "attn.add_k_proj",
    "attn.to_add_out": "attn.to_out.0",
    "proj_mlp": "attn.to_q",
}


def tiny(seed: int = 0) -> dict[str, Tensor]:
    """A Flux.1 of one block of each kind, in bfloat16 under diffusers' names."""
    wide, shapes = 4 * WIDTH, {"x_embedder": (WIDTH, 64), "context_embedder": (WIDTH, 64)}
    shapes["proj_out"] = (64, WIDTH)
    for block, layers in LINEAR.items():
        names = [name for _, _, inner in layers for name in inner if "linears" not in name]
        shapes |= {f"{block}.{name}": (WIDTH, WIDTH) for name in names}
        shapes |= {f"{block}.{m}": (n * WIDTH, WIDTH) for m, n in MODULATIONS[block].items()}
    for part in ("ff", "ff_context"):
        shapes[f"{FIRST}.{part}.net.0.proj"] = (wide, WIDTH)
        shapes[f"{FIRST}.{part}.net.2"] = (WIDTH, wide)
    shapes |= {f"{LAST}.proj_mlp": (wide, WIDTH), f"{LAST}.proj_out": (WIDTH, WIDTH + wide)}
    generator = torch.Generator().manual_seed(seed)
    found: dict[str, Tensor] = {}
    for name, shape in shapes.items():
        found[f"{name}.weight"] = torch.randn(shape, generator=generator) * 0.05
        found[f"{name}.bias"] = torch.randn(shape[0], generator=generator) * 0.3
    for block, names in NORMS.items():
        for name in names:
            found[f"{block}.attn.{name}.weight"] = torch.rand(32, generator=generator) + 0.5
    return {name: one.bfloat16() for name, one in found.items()}


@dataclass
class Linear:
    """A layer of Nunchaku's: codes, scales, smoothing and branch, of all the layers that it is made of."""

    block: str
    names: tuple[str, str]
    inner: tuple[str, ...]
    floats: bool
    numbers: Tensor  # what the codes are, (rows, groups, columns of a group)
    scale: Tensor  # (rows, groups)
    smooth: Tensor
    up: Tensor
    down: Tensor  # of the smoothed input
    bias: Tensor | None  # as DeepCompressor has it
    shifted: bool
    fused: bool  # whether the layer before smooths

    @property
    def rest(self) -> Tensor:
        """What the codes stand for, of the smoothed input."""
        whole = WHOLE if self.floats else 1.0
        return (self.numbers * (self.scale.double() * whole).unsqueeze(-1)).flatten(1)

    @property
    def over(self) -> Tensor:
        """What the layer divides its input by."""
        return torch.ones_like(self.smooth) if self.fused else self.smooth

    @property
    def stored_down(self) -> Tensor:
        return (self.down.double() / self.over.double()).bfloat16()

    @property
    def stored_bias(self) -> Tensor:
        """With what the branch makes of the shift."""
        if self.bias is None:
            return torch.zeros(len(self.up)).bfloat16()
        if not self.shifted:
            return self.bias
        branch = self.up.double() @ (self.down.double() / self.over.double())
        return (self.bias.double() + SHIFT * branch.sum(1)).bfloat16()

    def truth(self) -> tuple[Tensor, Tensor]:
        """The weight and the bias, exactly."""
        codes = self.rest / self.over.double()
        bias = self.stored_bias.double() + (SHIFT * codes.sum(1) if self.shifted else 0)
        weight = codes + self.up.double() @ self.stored_down.double()
        return weight / (self.smooth.double() if self.fused else 1), bias

    def stored(self) -> dict[str, Tensor]:
        """As Nunchaku's file has it, but for the name of the layer."""
        if self.floats:
            sizes = self.numbers.abs().flatten(1)
            codes = torch.searchsorted(packing.FLOATS[:8], sizes) + 8 * (self.numbers < 0).flatten(
                1
            )
            found = {"wscales": packing.small_scales(self.scale), **self._whole()}
        else:
            codes, found = self.numbers.flatten(1), {"wscales": packing.scales(self.scale)}
        smooth = packing.vector(self.smooth)
        return found | {
            "qweight": packing.codes(codes),
            "bias": packing.vector(self.stored_bias),
            "smooth_orig": smooth,
            "smooth": packing.vector(self.over),
            "lora_down": packing.factor(self.stored_down, down=True),
            "lora_up": packing.factor(self.up, down=False),
        }

    def _whole(self) -> dict[str, Tensor]:
        """One scale of the layer, or where it is made of several one of each row."""
        if len(self.inner) == 1:
            return {"wtscale": torch.tensor([WHOLE]).bfloat16()}
        return {"wcscales": packing.vector(torch.full((len(self.up),), WHOLE).bfloat16())}


def quantised(
    model: Mapping[str, Tensor],
    floats: bool = False,
    fused: bool = False,
    rank: int = 32,
    seed: int = 1,
) -> list[Linear]:
    """Quantise the layers of all blocks.

    Args:
        model: From `tiny`, or like it.
        floats: To floats of 4 bits, not integers.
        fused: Whether the layer before smooths what `out_proj` takes.
        rank: Of the branches.
        seed: Of the smoothing.
    """
    generator = torch.Generator().manual_seed(seed)
    found: list[Linear] = []
    for block, layers in LINEAR.items():
        between = torch.rand(WIDTH, generator=generator).add(0.5).bfloat16()
        smooth = {"attn.to_out.0": between, "proj_out.linears.0": between}
        for first, later, inner in layers:
            weights, biases = zip(*(_taken(model, block, name) for name in inner), strict=True)
            weight = torch.cat(weights).double()
            if fused and first.startswith("qkv"):
                rows = torch.cat([torch.ones(2 * WIDTH), between])
                weight = weight / rows.double().unsqueeze(1)
                biases = (*biases[:2], (biases[2].float() / between.float()).bfloat16())
            name = SMOOTHED.get(inner[0], inner[0])
            drawn = torch.rand(weight.shape[1], generator=generator).add(0.5).bfloat16()
            own = smooth.setdefault(name, drawn)
            bias = None if biases[0] is None else torch.cat(biases)
            into = fused and first.startswith("out_proj")
            shifted = first.endswith("fc2") and not floats
            if shifted and bias is not None:
                bias = (bias.double() - SHIFT * weight.sum(1)).bfloat16()
            branch, numbers, scale = _rounded(weight * own.double(), floats, rank)
            parts = (numbers, scale, own, *branch, bias, shifted, into)
            found.append(Linear(block, (first, later), inner, floats, *parts))
    return found


def _taken(model: Mapping[str, Tensor], block: str, name: str) -> tuple[Tensor, Tensor | None]:
    """A layer's weight and bias; of the two that `proj_out` becomes the second has the bias."""
    layer, _, part = name.partition(".linears.")
    weight, bias = model[f"{block}.{layer}.weight"], model.get(f"{block}.{layer}.bias")
    if part == "0":
        return weight[:, :WIDTH], None
    return (weight[:, WIDTH:] if part else weight), bias


def _rounded(
    weight: Tensor, floats: bool, rank: int
) -> tuple[tuple[Tensor, Tensor], Tensor, Tensor]:
    """A branch of low rank, and the codes of the rest with their scales."""
    u, s, v = torch.linalg.svd(weight, full_matrices=False)
    branch = (u[:, :rank] * s[:rank]).bfloat16(), v[:rank].bfloat16()
    rest = weight - branch[0].double() @ branch[1].double()
    groups = rest.view(len(rest), -1, 16 if floats else 64)
    largest = groups.abs().amax(-1)
    if not floats:
        scale = (largest / 7).bfloat16()
        return branch, (groups / scale.double().unsqueeze(-1)).round().clamp(-7, 7), scale
    scale = (largest / 6 / WHOLE).to(E4M3)
    shares = groups / (scale.double() * WHOLE).unsqueeze(-1)
    return branch, packing.FLOATS[(shares.unsqueeze(-1) - packing.FLOATS).abs().argmin(-1)], scale


def modulation(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Integers from 0 to 15, (rows, groups, columns of a group), and their scales; 7 stands for nothing."""
    groups = weight.double().view(len(weight), -1, 64)
    scale = (groups.abs().amax(-1) / 7).bfloat16()
    return (groups / scale.double().unsqueeze(-1)).round().clamp(-7, 7) + 7, scale


def stored_modulation(weight: Tensor, bias: Tensor, chunks: int) -> dict[str, Tensor]:
    """A layer of modulations in Nunchaku's file."""
    order = torch.arange(len(weight)).view(chunks, -1).t().flatten()
    numbers, scale = modulation(weight)
    zeros = -(7 * scale.float()).bfloat16()
    added = bias.view(chunks, -1).clone()
    added[[1, -2]] += 1
    groups = torch.zeros(2, 16, len(weight), dtype=torch.bfloat16)  # there are 16 or more
    groups[:, : scale.shape[1]] = torch.stack([scale[order].t(), zeros[order].t()])
    return {
        "qweight": packing.words_of_four(numbers.flatten(1)[order]),
        "wscales": groups[0].clone(),
        "wzeros": groups[1].clone(),
        "bias": added.flatten()[order],
    }


def written(
    model: Mapping[str, Tensor], layers: list[Linear], later: bool = False
) -> dict[str, Tensor]:
    """Nunchaku's file of a model whose blocks were quantised."""
    found = {k: t for k, t in model.items() if "blocks" not in k}
    names = {"smooth_orig": "smooth_factor_orig", "smooth": "smooth_factor"}
    names |= {"lora_down": "proj_down", "lora_up": "proj_up"}
    for one in layers:
        for name, tensor in one.stored().items():
            own = names.get(name, name) if later else name
            found[f"{one.block}.{one.names[later]}.{own}"] = tensor
    for block in LINEAR:
        for name, chunks in MODULATIONS[block].items():
            layer = f"{block}.{name}"
            parts = stored_modulation(model[f"{layer}.weight"], model[f"{layer}.bias"], chunks)
            found |= {f"{layer}.{part}": tensor for part, tensor in parts.items()}
        for name in NORMS[block]:
            key = f"{block}.{'attn.' * later}{name}.weight"
            found[key] = model[f"{block}.attn.{name}.weight"]
    return found


def truth(model: Mapping[str, Tensor], layers: list[Linear]) -> dict[str, Tensor]:
    """What such a file stands for, in float64 under diffusers' names."""
    found = {key: tensor.double() for key, tensor in model.items()}
    for one in layers:
        weight, bias = one.truth()
        count = len(weight) // len(one.inner)
        for name, w, b in zip(one.inner, weight.split(count), bias.split(count), strict=True):
            found[f"{one.block}.{name}.weight"] = w
            found[f"{one.block}.{name}.bias"] = b
    for one in (o for o in layers if o.fused):
        last = {"proj_out.linears.0": QKV[2], "attn.to_out.0": QKV[2]}.get(one.inner[0], ADDED[2])
        found[f"{one.block}.{last}.weight"] *= one.smooth.double().unsqueeze(1)
        found[f"{one.block}.{last}.bias"] *= one.smooth.double()
    halves = [f"{LAST}.proj_out.linears.{i}" for i in (0, 1)]
    weights = [found.pop(f"{half}.weight") for half in halves]
    found[f"{LAST}.proj_out.weight"] = torch.cat(weights, dim=1)
    found[f"{LAST}.proj_out.bias"] = sum(found.pop(f"{half}.bias") for half in halves)
    for block, kinds in MODULATIONS.items():
        for name, chunks in kinds.items():
            layer = f"{block}.{name}"
            numbers, scale = modulation(model[f"{layer}.weight"])
            offset = (7 * scale.float()).bfloat16().double().unsqueeze(-1)
            exact = numbers * scale.double().unsqueeze(-1) - offset
            found[f"{layer}.weight"] = exact.flatten(1)
            bias = found[f"{layer}.bias"].view(chunks, -1)
            bias[[1, -2]] = (bias[[1, -2]] + 1).bfloat16().double() - 1
    return found


def metadata(floats: bool = False) -> dict[str, str]:
    """As `merge_safetensors` writes it."""
    kind = {"dtype": "fp4_e2m1_all" if floats else "int4", "group_size": 16 if floats else 64}
    told = {"method": "svdquant", "weight": kind, "rank": 32}
    return {
        "model_class": "NunchakuFluxTransformer2dModel",
        "quantization_config": json.dumps(told),
        "config": json.dumps({"_class_name": "FluxTransformer2DModel"}),
        "comfy_config": "{}",
    }
