"""diffusers 0.42: `loaders/lora_pipeline.py` and `loaders/lora_conversion_utils.py`.

It looks at the keys, and takes the first conversion that they ask for; a file with a key that this
does not know is refused as a whole.
"""

from __future__ import annotations

from dataclasses import replace

from .program import CLIP, CLIP_FLAT, Blocks, Program, Route, Scheme

_AB = (".lora_B.weight",)
_OLD = ("_lora.up.weight", ".lora.up.weight", ".lora_linear_layer.up.weight")
_UP = (".lora_up.weight",)
_DOTS = (".lora.up.weight",)
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
        # Of the model's own names it renames the blocks for SDXL alone.
        Scheme("lora_unet_", "foreign", flat=True, but="^add_embedding"),
        replace(_FLAT, only="time_embed_[02]"),
        *_FLAT_CLIP,
        Scheme("lora_te2_", "any", only=CLIP_FLAT),
    ),
    pairs=_UP,
    ignores=_DORA,
    strict="keys",
    every=r"^lora_(unet|te1?|te2)_",
    common_alpha=r"_attn[12]_to_(q|k|v|out_0)$",  # their alphas get a name that nothing has
)
_SD = (_SD_KOHYA, _own("unet.", Scheme("unet.", "processor")))
# What a conversion passes over in silence: it gives these names that it does not look at again.
_FLUX_OUTSIDE = r"(guidance_in|img_in|txt_in|time_in|vector_in|final_layer)[._]"
_FLUX_KOHYA = Route(
    schemes=(
        *(replace(one, only=r"(double|single)_blocks[._].+") for one in (_FLAT, _NATIVE)),
        *_FLAT_CLIP,
        Scheme("text_encoders.clip_l.transformer.", "any", only=CLIP),
    ),
    pairs=_UP,
    ignores=_DORA,
    strict="all",
    when=r"\.lora_down\.weight$",
    drops=rf"^lora_te[23]_|^text_encoders\.t5xxl\.|\.diff_b$|norm.*\.diff$|text_projection|position_embedding|^(lora_unet_|diffusion_model\.){_FLUX_OUTSIDE}",
)
# OneTrainer's names: of a block the projections of its attention alone.
_FLUX_ONETRAINER = replace(
    _FLUX_KOHYA,
    schemes=(
        Scheme(
            "lora_transformer_",
            "foreign",
            flat=True,
            only=r"(single_)?transformer_blocks_\d+_attn_.+|(?!(single_)?transformer_blocks_).+",
            but="distilled_guidance_layer",
        ),
        Scheme("lora_te1_", "any", only=CLIP_FLAT),
    ),
    alpha="needed",
    when=r"^lora_transformer_.*(lora_down|lora_up|alpha)",
    drops="",
)
_FLUX_OWN = replace(_own("transformer."), needs_lora=False, configured=True)
_FLUX_PEFT = replace(
    _converting(
        "base_model",
        Scheme(
            "base_model.model.",
            "native",
            only=r"(double|single)_blocks\..+|final_layer\.linear",
        ),
    ),
    blocks=(
        Blocks(
            "base_model.model.double_blocks.{}.",
            tuple(
                f"{stream}_{layer}"
                for stream in ("img", "txt")
                for layer in ("mod.lin", "attn.qkv", "attn.proj", "mlp.0", "mlp.2")
            ),
            19,
        ),
        Blocks("base_model.model.single_blocks.{}.", ("modulation.lin", "linear1", "linear2"), 38),
        Blocks("base_model.model.final_layer.", ("linear",), 1),
    ),
)
_FLUX_XLABS = replace(
    _converting(
        "",
        Scheme(
            "diffusion_model.",
            "any",
            only=r"double_blocks\.\d+\.(img|txt)_attn\.(qkv|proj)|single_blocks\.\d+\.(linear1_qkv|linear2)",
        ),
        pairs=_UP,
    ),
    spelling="XLabs",
)
_FLUX = (
    _FLUX_XLABS,
    replace(
        _FLUX_OWN,
        pairs=(*_UP, *_AB),
        alpha="ignored",
        when=r"^transformer\..*\.lora_down\.weight$",
        configured=False,
    ),
    _FLUX_ONETRAINER,
    _FLUX_KOHYA,
    _FLUX_PEFT,
    replace(_FLUX_OWN, common_alpha="$^", float_alphas=True),
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
# Fused projections are split where the ending has dots, and kohya's names get such endings.
_Z_ENDS = r"^(final_layer|x_embedder)"
_Z_OUT = r".+\.attention\.out"
_BARE = Scheme("", "native")
_Z_FOREIGN = (_SAME, Scheme("", "foreign"))
_Z_IMAGE = replace(_QWEN, schemes=_Z_FOREIGN, refuses=r"attention\.out\.alpha$")
_Z_UP = replace(
    _QWEN,
    schemes=(*_Z_FOREIGN, *(replace(one, only=_Z_OUT) for one in (_NATIVE, _BARE))),
    pairs=_UP,
    besides=r"\.lora_(up|down)\.weight$",
)
_Z_DOTTED = replace(
    _QWEN,
    schemes=(*_Z_FOREIGN, *(replace(one, but=_Z_ENDS) for one in (_NATIVE, _BARE))),
    pairs=_DOTS,
    besides=r"\.lora\.down\.weight$",
)
_Z_KOHYA = replace(
    _QWEN,
    schemes=(Scheme("lora_unet_", "foreign", flat=True), replace(_FLAT, but=_Z_ENDS)),
    pairs=(*_UP, *_DOTS),
    when=r"^lora_unet_",
)
_FLUX2_PREFIXES = ("diffusion_model.", "base_model.model.")
_FLUX2_BLOCKS = tuple(
    Scheme(prefix, "foreign", only=r"(single_)?transformer_blocks\..+")
    for prefix in _FLUX2_PREFIXES
)
_FLUX2_DOTTED = (
    # What has diffusers' names of blocks is not looked at, so that it may end in any way.
    _converting(
        r"^(diffusion_model|base_model\.model)\.(single_)?transformer_blocks\..*\.lora\.",
        *_FLUX2_BLOCKS,
        pairs=_OLD,
    ),
    _converting(
        r"^(diffusion_model|base_model\.model)\.",
        *(Scheme(prefix, "native") for prefix in _FLUX2_PREFIXES),
        *_FLUX2_BLOCKS,
    ),
)
_FLUX2_LEFT = r"modulation|^guidance_in"

# Of HiDream's experts the gate is a module of its own kind, which no adapter can be on.
_GATES = r"\.ff_i\.gate\."
# Differences of biases are read as biases of up, a whole one of the head as a pair of its rank.
_WAN_BIASES = (
    r"^diffusion_model\.(blocks\.\d+\.((self|cross)_attn\.([qkvo]|[kv]_img)|ffn\.[02])|head\.head"
    r"|(text|time)_embedding\.[02]|img_emb\.proj\.[13])\.diff_b$|\.head\.head\.diff$"
)
_WAN_TIME = r"^diffusion_model\.time_projection"
_WAN_DOTTED = replace(
    _converting(_DOTTED, _NATIVE, pairs=(*_AB, *_UP)),
    alpha="read",
    ignores=(),
    drops=r"\.diff",  # left over, and passed over
    refuses=r"^diffusion_model\.(?!blocks\.).*\.alpha$",
    asks={"layer of a block": r"^diffusion_model\.blocks\.\d", "pair": r"\.lora_(A|B|up|down)\."},
    blocks=(
        Blocks("diffusion_model.head.head.bias", ("",), 1, (r"head\.head\.diff$",)),
        *(
            Blocks(f"diffusion_model.{name}.{n}", ("",), 1, (rf"{name}\.{n}\.diff_b$",))
            for name in ("text_embedding", "time_embedding")
            for n in (0, 2)
        ),
    ),
    biases=_WAN_BIASES,
)
_WAN_BLOCKS = (
    Blocks(
        "lora_unet_blocks_{}_",
        (
            *(f"{part}_attn_{layer}" for part in ("self", "cross") for layer in "qkvo"),
            *("ffn_0", "ffn_2"),
        ),
    ),
    Blocks(
        "lora_unet_blocks_{}_", ("cross_attn_k_img", "cross_attn_v_img"), where=("k_img", "v_img")
    ),
)
_NEXT_DIT = ("attention.qkv", "attention.out", *(f"feed_forward.w{n}" for n in "123"))
_LUMINA_BLOCKS = (
    Blocks("diffusion_model.context_refiner.{}.", _NEXT_DIT),
    *(
        Blocks(f"diffusion_model.{part}.{{}}.", (*_NEXT_DIT, "adaLN_modulation.1"))
        for part in ("noise_refiner", "layers")
    ),
)

DIFFUSERS = Program(
    name="diffusers",
    title="diffusers 0.42",
    format="diffusers",
    routes={
        "sd1": _SD,
        "sd2": _SD,
        "sdxl": (replace(_SD_KOHYA, schemes=(*_SD_KOHYA.schemes, _FLAT)), _SD[1]),
        **dict.fromkeys(("flux", "flux_schnell", "chroma"), _FLUX),
        **dict.fromkeys(("sd3", "auraflow", "kandinsky5", "cosmos"), (_TRANSFORMER,)),
        "ltxv": (_RENAMED, _TRANSFORMER),
        "hidream": tuple(replace(one, refuses=_GATES) for one in (_RENAMED, _TRANSFORMER)),
        "hunyuan_video": (
            _converting("img_attn_qkv", Scheme("", "foreign", only=r"(double|single)_blocks\..+")),
            _TRANSFORMER,
        ),
        "lumina2": (
            replace(
                _converting(
                    _DOTTED, replace(_NATIVE, only=r"((noise|context)_refiner|layers)\..+")
                ),
                blocks=_LUMINA_BLOCKS,
            ),
            _TRANSFORMER,
        ),
        # Blocks are renamed by parts of their names, which spoils diffusers' own.
        "anima": (
            replace(
                _TRANSFORMER,
                schemes=(
                    _NATIVE,
                    replace(_SAME, but=r"blocks\."),
                    Scheme("transformer.", "foreign"),
                ),
                drops="",
            ),
        ),
        "wan": (
            replace(
                _WAN_DOTTED,
                besides=_WAN_TIME + r".*\.weight$",
                biases=rf"{_WAN_BIASES}|{_WAN_TIME}\.1\.diff_b$",
            ),
            _WAN_DOTTED,
            replace(
                _converting("^lora_unet_", replace(_FLAT, only=r"blocks_.+"), pairs=_UP),
                alpha="needed",
                ignores=(),
                blocks=_WAN_BLOCKS,
            ),
            _TRANSFORMER,
        ),
        "qwen_image": (_QWEN, _TRANSFORMER),
        "z_image": (_Z_KOHYA, _Z_DOTTED, _Z_UP, _Z_IMAGE, _TRANSFORMER),
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
            *_FLUX2_DOTTED,
            _TRANSFORMER,
        ),
    },
    stops=True,
    legacy=("XLabs", "Black Forest Labs' control LoRAs"),
)
