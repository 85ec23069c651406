"""diffusers 0.42: `loaders/lora_pipeline.py` and `loaders/lora_conversion_utils.py`.

It looks at the keys, and takes the first conversion that they ask for; a file with a key that this
does not know is refused as a whole.
"""

from __future__ import annotations

from dataclasses import replace

from .program import CLIP, CLIP_FLAT, Program, Route, Scheme

_AB = (".lora_B.weight",)
_OLD = ("_lora.up.weight", ".lora.up.weight", ".lora_linear_layer.up.weight")
_UP = (".lora_up.weight",)
_DORA = ("dora_scale",)
_ENCODERS = tuple(Scheme(f"text_encoder{n}.", "any", only=CLIP) for n in ("", "_2"))
_FLAT_CLIP = tuple(Scheme(f"lora_te{n}_", "any", only=CLIP_FLAT) for n in ("", "1"))
_CONVERTED = r"\.alpha$|^lora_unet_|^diffusion_model\.|default\."


def _own(prefix: str, *schemes: Scheme) -> Route:
    """Its own names: what stands under no known prefix is left out; all must have `lora` in them."""
    return Route(
        schemes=(Scheme(prefix, "foreign"), *_ENCODERS, *schemes),
        pairs=(*_AB, *_OLD),
        ignores=_DORA,
        needs_lora=True,
        drops=rf"^(?!{prefix})",
        up_bias=True,
        configured=True,
    )


def _converting(when: str, *schemes: Scheme, pairs: tuple[str, ...] = _AB) -> Route:
    """A conversion: all keys or none, and no alpha."""
    return Route(
        schemes=schemes,
        pairs=pairs,
        ignores=_DORA,
        alpha="refused",
        strict="all",
        when=when,
        configured=True,
    )


_NATIVE = Scheme("diffusion_model.", "native")
_SAME = Scheme("diffusion_model.", "foreign")
_FLAT = Scheme("lora_unet_", "native", flat=True)
_TRANSFORMER = _own("transformer.")
_DOTTED = r"^diffusion_model\."

_RENAMED = replace(_own("diffusion_model."), when=_DOTTED)

_SD_KOHYA = Route(
    schemes=(
        Scheme("lora_unet_", "foreign", flat=True),
        *_FLAT_CLIP,
        Scheme("lora_te2_", "any", only=CLIP_FLAT),
    ),
    pairs=_UP,
    ignores=_DORA,
    strict="all",
    every=r"^lora_(unet|te1?|te2)_",
    common_alpha=r"_attn[12]_to_(q|k|v|out_0)$",  # their alphas get a name that nothing has
)
_SD = (_SD_KOHYA, _own("unet.", Scheme("unet.", "processor")))
_FLUX_KOHYA = Route(
    schemes=(
        *(replace(one, but=r"^distilled_guidance_layer") for one in (_FLAT, _NATIVE)),
        *_FLAT_CLIP,
        Scheme("text_encoders.clip_l.transformer.", "any", only=CLIP),
    ),
    pairs=_UP,
    ignores=_DORA,
    strict="all",
    when=r"\.lora_down\.weight$",
    drops=r"^lora_te[23]_|^text_encoders\.t5xxl\.|\.diff_b$|norm.*\.diff$|text_projection|position_embedding",
)
_FLUX = (
    _FLUX_KOHYA,
    _converting("base_model", Scheme("base_model.model.", "native")),
    replace(_TRANSFORMER, needs_lora=False, common_alpha="$^", float_alphas=True),
)
_QWEN = replace(
    _converting(
        _CONVERTED,
        _NATIVE,
        _FLAT,
        Scheme("", "foreign"),
        pairs=(*_AB, *_UP, ".lora_B.default.weight"),
    ),
    alpha="read",
    strict="keys",
)
# Its fused projections keep their name, which the model does not have; but for kohya's names.
_Z_ENDS = r"^(final_layer|x_embedder)"
_Z_OUT = r".+\.attention\.out"
_Z_IMAGE = replace(_QWEN, schemes=(_SAME, Scheme("", "foreign")), refuses=r"attention\.out\.alpha$")
_Z_UP = replace(
    _QWEN,
    schemes=(
        _SAME,
        Scheme("", "foreign"),
        replace(_NATIVE, only=_Z_OUT),
        replace(_FLAT, but=_Z_ENDS),
    ),
    pairs=_UP,
    when=r"\.lora_(up|down)\.weight$",
)
_FLUX2_LEFT = r"modulation|^guidance_in"

DIFFUSERS = Program(
    name="diffusers",
    title="diffusers 0.42",
    format="diffusers",
    routes={
        "sd1": _SD,
        "sd2": _SD,
        "sdxl": (replace(_SD_KOHYA, schemes=(*_SD_KOHYA.schemes, _FLAT)), _SD[1]),
        **dict.fromkeys(("flux", "flux_schnell", "chroma"), _FLUX),
        **dict.fromkeys(("sd3", "auraflow", "kandinsky5"), (_TRANSFORMER,)),
        **dict.fromkeys(("ltxv", "hidream"), (_RENAMED, _TRANSFORMER)),
        "hunyuan_video": (
            _converting("img_attn_qkv", Scheme("", "foreign", only=r"(double|single)_blocks\..+")),
            _TRANSFORMER,
        ),
        **dict.fromkeys(("lumina2", "anima"), (_converting(_DOTTED, _NATIVE), _TRANSFORMER)),
        "wan": (
            replace(
                _converting(_DOTTED, _NATIVE, pairs=(*_AB, *_UP)),
                alpha="read",
                ignores=(),
                drops=r"norm.*\.diff(_b)?$",
                refuses=r"^diffusion_model\.(?!blocks\.).*\.alpha$",
            ),
            replace(
                _converting("^lora_unet_", replace(_FLAT, only=r"blocks_.+"), pairs=_UP),
                alpha="needed",
                ignores=(),
            ),
            _TRANSFORMER,
        ),
        "qwen_image": (_QWEN, _TRANSFORMER),
        "z_image": (_Z_UP, _Z_IMAGE, _TRANSFORMER),
        "krea2": (
            _converting(
                r"^(diffusion_model|base_model\.model)\.",
                _NATIVE,
                Scheme("base_model.model.", "native"),
            ),
            _TRANSFORMER,
        ),
        "flux2": (
            replace(
                _converting(r"\.lora_down\.weight$", replace(_FLAT, but=_FLUX2_LEFT), pairs=_UP),
                alpha="read",
                strict="",
            ),
            _converting(
                r"^(diffusion_model|base_model\.model)\.",
                _NATIVE,
                Scheme("base_model.model.", "native"),
            ),
            _TRANSFORMER,
        ),
    },
    stops=True,
    legacy=("XLabs", "Black Forest Labs' control LoRAs"),
)
