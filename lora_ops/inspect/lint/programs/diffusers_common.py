"""What diffusers' loaders have in common: their own names, and conversions of all keys or none."""

from __future__ import annotations

from dataclasses import replace

from .program import CLIP, CLIP_FLAT, Route, Scheme

AB = (".lora_B.weight",)
OLD = ("_lora.up.weight", ".lora.up.weight", ".lora_linear_layer.up.weight")
UP = (".lora_up.weight",)
DOTS = (".lora.up.weight",)
DORA = ("dora_scale",)
ENCODERS = tuple(Scheme(f"text_encoder{n}.", "any", only=CLIP) for n in ("", "_2"))
FLAT_CLIP = tuple(Scheme(f"lora_te{n}_", "any", only=CLIP_FLAT) for n in ("", "1"))
CONVERTED = r"\.alpha$|^lora_unet_|^diffusion_model\.|default\."


def own(prefix: str, *schemes: Scheme) -> Route:
    """The route of diffusers' own names: other prefixes are left out; all need `lora` in them."""
    return Route(
        schemes=(Scheme(prefix, "foreign"), *ENCODERS, *schemes),
        pairs=(*AB, *OLD),
        ignores=DORA,
        needs_lora=True,
        drops=rf"^(?!{prefix})",
        up_bias=True,
        configured=True,
    )


def converting(when: str, *schemes: Scheme, pairs: tuple[str, ...] = AB) -> Route:
    """A conversion: all keys or none, and no alpha."""
    return Route(
        schemes=schemes,
        pairs=pairs,
        ignores=DORA,
        alpha="refused",
        strict="all",
        when=when,
        configured=True,
    )


NATIVE = Scheme("diffusion_model.", "native")
SAME = Scheme("diffusion_model.", "foreign")
FLAT = Scheme("lora_unet_", "native", flat=True)
TRANSFORMER = own("transformer.")
DOTTED = r"^diffusion_model\."

RENAMED = replace(own("diffusion_model."), when=DOTTED)

# LoKr is read for Flux.2 and Z-Image alone; a conversion takes the alphas into the factors.
LOKR = replace(converting(r"\.lokr_", pairs=()), kinds=("lokr",), alpha="read", configured=False)
LOKR_OWN = replace(
    TRANSFORMER,
    kinds=("lokr",),
    when=r"\.lokr_",
    alpha="refused",
    needs_lora=False,
    configured=False,
)
