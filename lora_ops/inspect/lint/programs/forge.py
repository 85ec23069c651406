"""Stable Diffusion WebUI Forge, June 2025: `backend/patcher/lora.py` and its collection of loaders."""

from __future__ import annotations

from .comfy import CONTROL, ENCODERS, FLUXES, GENERIC, UNET
from .program import PAIRS, Program, Route, Scheme

_UNLISTED = r"linear1_qkv$|distilled_guidance_layer"
_PAIRS = tuple(up for up in PAIRS if up not in (".lora_B", ".lora_B.default.weight"))
_MODELS = (
    Scheme("transformer.", "foreign", of=FLUXES, but=_UNLISTED),
    Scheme("lora_transformer_", "foreign", flat=True, of=FLUXES, but=_UNLISTED),
    Scheme("lycoris_", "foreign", flat=True, of=FLUXES, but=_UNLISTED),
)
_ROUTES = (
    Route(
        schemes=(*GENERIC, *UNET, *ENCODERS, *_MODELS),
        pairs=_PAIRS,
        kinds=("lora", "loha", "lokr", "glora", "full", "set", "mixed"),
        ignores=("magnitude", "reshape_weight"),
    ),
)

FORGE = Program(
    name="forge",
    title="Forge",
    format="comfy",
    routes=dict.fromkeys(
        ("sd1", "sd2", "sdxl", "sdxl_refiner", "sd3", "flux", "flux_schnell", "chroma"), _ROUTES
    ),
    stops=True,
    control=CONTROL,
    legacy=("Black Forest Labs' control LoRAs",),
    quirks=(("dora", "divides by the length of the row in the base, not in the sum"),),
)
