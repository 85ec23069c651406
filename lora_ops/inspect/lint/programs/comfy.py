"""ComfyUI 0.33: `comfy/lora.py`, `comfy/lora_convert.py`, `comfy/weight_adapter`."""

from __future__ import annotations

from .program import CLIP, CLIP_FLAT, CONTROL_PAIRS, PAIRS, Program, Route, Scheme

UNETS = ("sd1", "sd2", "sdxl", "sdxl_refiner")
FLUXES = ("flux", "flux_schnell", "flux2", "chroma")
# Models that ComfyUI also runs as a Flux, but for the text encoders.
_KIN = (*FLUXES, "ovis", "longcat")
_T5 = r"(encoder_block_\d+_layer_\d+_.+|encoder_final_layer_norm|shared)"
_QKV = r"^single_blocks\.\d+\.linear1_qkv$"
# Modules that are missing in ComfyUI's table of diffusers' names.
_UNLISTED = (
    r"^(double|single)_blocks|_stream_modulation|^time_guidance_embed|distilled_guidance_layer"
    r"|^time_embed[._]|^timestep_embedder|^txt_norm"
)
# Parts of names that ComfyUI replaces under `transformer.`, for files of diffusion-pipe.
_REPLACED = r"(_mod\.lin|_attn\.(qkv|proj)|mlp\.[02]|\.modulation\.lin)$"
# For Lumina 2, ComfyUI knows the names that Z-Image has in diffusers.
_LUMINA = (
    r"(layers|noise_refiner|context_refiner)\.\d+\.(attention\.(to_[qkv]|to_out\.0)|feed_forward\.w[123])"
    r"|all_final_layer\.2-1\.(linear|adaLN_modulation\.1)|all_x_embedder\.2-1"
    r"|cap_embedder\.[01]|t_embedder\.mlp\.[02]"
)
_WAN_FUN = ("lora_unet__blocks_0_cross_attn_k.lora_down.weight",)

GENERIC = (
    Scheme("diffusion_model.", "native"),
    Scheme("lora_unet_", "native", flat=True),
)
UNET = (
    Scheme("lora_unet_", "foreign", flat=True, of=UNETS),
    Scheme("lycoris_", "foreign", flat=True, of=UNETS),
    # Diffusers' own names of the attention are not among them, only those with `processor`.
    Scheme("unet.", "processor", of=UNETS),
    Scheme("", "processor", of=UNETS),
)
ENCODERS = (
    Scheme("text_encoders.", "encoder"),
    Scheme("lora_te_", "any", only=CLIP_FLAT),
    Scheme("lora_te1_", "any", only=CLIP_FLAT),
    Scheme("text_encoder.", "any", only=CLIP),
    Scheme("lora_te2_", "any", only=CLIP_FLAT, of=("sdxl", "sd3", "hunyuan_dit")),
    Scheme("text_encoder_2.", "any", only=CLIP, of=("sdxl", "sd3")),
    Scheme("lora_te1_", "any", only="text_projection", of=("sdxl", "sd3")),
    Scheme("lora_te2_", "any", only="text_projection", of=("sdxl", "sd3")),
    Scheme("lora_te2_", "any", only=_T5, of=FLUXES),
    Scheme("lora_te3_", "any", only=_T5, of=(*FLUXES, "sd3")),
)
# Trained by the models' own scripts.
_OFFICIAL = ("mochi", "ace_step", "omnigen2", "boogu")
_QWEN = ("qwen_image", "mage_flow")
_SPLIT = ("z_image", "krea2")
_MODELS = (
    Scheme("lora_prior_unet_", "native", flat=True, of=("stable_cascade",)),
    Scheme("lora_prior_te_", "any", only=f"{CLIP_FLAT}|text_projection", of=("stable_cascade",)),
    *(Scheme(prefix, "foreign", of=("sd3", "pixart")) for prefix in ("transformer.", "base_model.model.")),
    *(Scheme(prefix, "foreign", flat=True, of=("sd3",)) for prefix in ("lora_transformer_", "lycoris_")),
    Scheme("unet.base_model.model.", "foreign", of=("pixart",)),
    Scheme("transformer.", "foreign", of=("auraflow",)),
    Scheme("base_model.model.", "native", of=("hunyuan_dit",)),
    *(Scheme(prefix, "foreign", of=_KIN, but=_UNLISTED) for prefix in ("transformer.", "")),
    *(Scheme(prefix, "foreign", flat=True, of=_KIN, but=_UNLISTED) for prefix in ("lora_transformer_", "lycoris_")),
    Scheme("diffusion_model.", "foreign", of=_KIN, only=_QKV.strip("^$")),
    *(Scheme(prefix, "foreign", of=("hunyuan_video",), only=r"(double|single)_blocks\..+|txt_in\..+")
      for prefix in ("transformer.", "diffusion_model.")),
    Scheme("transformer.", "native", of=("hidream", *_QWEN, "kandinsky5", "ernie")),
    Scheme("lycoris_", "native", flat=True, of=("hidream", *_QWEN)),
    Scheme("", "native", of=(*_QWEN, "kandinsky5", "ltxv", *_OFFICIAL)),
    *(Scheme(prefix, "foreign", of=_SPLIT) for prefix in ("diffusion_model.", "transformer.", "")),
    Scheme("lycoris_", "foreign", flat=True, of=_SPLIT),
    *(Scheme(prefix, "any", of=("lumina2",), only=_LUMINA) for prefix in ("diffusion_model.", "transformer.", "")),
    Scheme("lycoris_", "any", flat=True, of=("lumina2",), only=_LUMINA.replace(r"\.", "_")),
    Scheme("transformer.", "native", of=("hunyuan_video",), but=_REPLACED),
    Scheme("lora_te_", "any", only=r"layers_\d+_.+", of=("anima", "z_image", "lumina2", "qwen_image")),
    Scheme("lora_unet__", "native", flat=True, of=("wan",), needs=_WAN_FUN),
)  # fmt: skip

# `comfy/controlnet.py`: a ControlNet is built from the UNet, whose names have no prefix there.
CONTROL = Route(
    schemes=(Scheme("", "native", of=UNETS),),
    pairs=tuple(CONTROL_PAIRS),
    asks={
        "first layer of the hint": r"^input_hint_block\.0\.weight$",
        "zero convolution": r"^zero_convs\.0\.0\.weight$",
    },
)

COMFY = Program(
    name="comfy",
    title="ComfyUI 0.33",
    format="comfy",
    routes={
        "": (
            Route(
                schemes=(*GENERIC, *UNET, *ENCODERS, *_MODELS),
                pairs=tuple(PAIRS),
                kinds=("lora", "loha", "lokr", "glora", "oft", "boft", "full", "set", "mixed"),
                bounded=("boft",),
                ignores=("magnitude", "diag"),
            ),
        )
    },
    stops=True,
    control=CONTROL,
    legacy=("Black Forest Labs' control LoRAs",),
    quirks=(
        ("oft", "applies the strength twice, and ignores rescale"),
        ("boft", "applies the strength twice"),
        ("dora", "divides by the length of the row in the base, not in the sum"),
    ),
)
