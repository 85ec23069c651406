"""How the nodes that write checkpoints have weights stored: with scales, or as a GGUF file."""

from __future__ import annotations

from ..host.api import io

_AS_INPUT = "As input: as the checkpoint has them, with scales too, unless `dtype` says otherwise."
STORAGES = (
    *("as input", "fp8_scaled", "fp8_e5m2_scaled", "int8", "mxfp8", "nvfp4"),
    *("fp8", "fp8_legacy", "nf4", "fp4"),
)
_GGUF = "gguf "
#: Types of GGUF; `bf16` alone would be taken for a dtype.
GGUF_STORAGES = tuple(
    _GGUF + name for name in ("q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "bf16", "f16", "f32")
)


def storage_input(as_input: str = _AS_INPUT) -> io.Combo.Input:
    """How weights are stored: with scales, or as a GGUF file.

    Args:
        as_input: What the first choice means.
    """
    return io.Combo.Input(
        "storage",
        options=[*STORAGES, *GGUF_STORAGES],
        default=STORAGES[0],
        optional=True,
        tooltip="With scales as named, in a half or a quarter of the room of fp16: the matrices of the "
        "diffusion model; first and last layers, embeddings and norms stay whole. fp8 and fp8_legacy are for "
        "older programs, nf4 and fp4 for loaders of bitsandbytes; gguf writes a .gguf file of the diffusion "
        "model alone, for ComfyUI-GGUF, and in blocks (q) asks for the package gguf. " + as_input,
    )


def storage_of(name: str) -> str:
    """The storage of a choice; empty: as the input."""
    return "" if name == STORAGES[0] else name.removeprefix(_GGUF)
