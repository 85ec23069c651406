"""kohya's sd-scripts, `networks/lora*.py` (February 2026), and musubi-tuner for video models and others."""

from __future__ import annotations

from .program import CLIP_FLAT, Program, Route, Scheme

_CLIP_L = Scheme("lora_te1_", "any", only=CLIP_FLAT)
_CLIP_G = Scheme("lora_te2_", "any", only=CLIP_FLAT)
_T5 = Scheme("lora_te3_", "any", only=r"encoder_block_\d+_layer_\d+_.+")
_LLM = Scheme("lora_te_", "any", only=r"layers_\d+_.+")
# kohya's networks have the layers of blocks only, none before or behind them.
_UNET = r"(down_blocks|mid_block|up_blocks)_.+"
_SGM = r"(input_blocks_[1-9]\d*|middle_block|output_blocks_\d+)_.+"
_STREAMS = r"(double|single)_blocks_\d+_.+"


def _route(*schemes: Scheme, needs_alpha: bool = False) -> tuple[Route, ...]:
    return (
        Route(
            schemes=schemes,
            pairs=(".lora_up.weight",),
            ignores=("dora_scale", "magnitude", "reshape_weight"),
            alpha="needed" if needs_alpha else "read",
        ),
    )


def _native(only: str = "") -> Scheme:
    return Scheme("lora_unet_", "native", flat=True, only=only)


_SD = _route(
    Scheme("lora_unet_", "foreign", flat=True, only=_UNET),
    Scheme("lora_te_", "any", only=CLIP_FLAT),
)
_FLUX = _route(_native(_STREAMS), _CLIP_L, _T5, needs_alpha=True)

KOHYA = Program(
    name="kohya",
    title="sd-scripts",
    format="kohya",
    routes={
        "sd1": _SD,
        "sd2": _SD,
        "sdxl": _route(
            _native(_SGM), Scheme("lora_unet_", "foreign", flat=True, only=_UNET), _CLIP_L, _CLIP_G
        ),
        "flux": _FLUX,
        "flux_schnell": _FLUX,
        "chroma": _FLUX,
        "sd3": _route(_native(r"joint_blocks_\d+_.+"), _CLIP_L, _CLIP_G, _T5, needs_alpha=True),
        "lumina2": _route(_native(), _LLM, needs_alpha=True),
        "anima": _route(_native(), _LLM, needs_alpha=True),
        **dict.fromkeys(
            ("wan", "hunyuan_video", "qwen_image", "z_image", "flux2", "kandinsky5", "krea2"),
            _route(_native()),
        ),
    },
    stops=False,
)
