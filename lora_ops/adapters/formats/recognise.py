"""What files are that are no adapters and no checkpoints: a table of marks in their names.

Only names are looked at. Adapters, diffusion models, text encoders and VAEs are told by their own
tables; here is the rest that people keep beside them, so that a message can call it by its name.
The marks are what ComfyUI's loaders ask for and, of upscalers, spandrel's.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ..naming.suffixes import Modules


@dataclass(frozen=True, slots=True)
class Mark:
    """How one kind of file is known.

    Attributes:
        title: What people call it.
        all_of: Regular expressions on the beginnings of names: each fits one name at least.
        whole: Each name fits one of them, to its end.
        is_network: Whether it is a network, so that two can be compared as checkpoints.
    """

    title: str
    all_of: tuple[str, ...] = ()
    whole: tuple[str, ...] = ()
    is_network: bool = True

    @property
    def article(self) -> str:
        """The article that goes with the title: a or an."""
        return "an" if self.title[0] in "aeiouI" else "a"


# The first mark that fits a file decides.
_MARKS = (
    Mark("ControlNet (control-LoRA)", (r"lora_controlnet$",)),
    *(
        Mark("ControlNet", (mark,))
        for mark in (
            r"(control_model\.)?(zero_convs|input_hint_block)\.0\.",
            r"controlnet_(cond_embedding|down_blocks|blocks|x_embedder|single_blocks)\.",
            r"control_blocks\.0\.(after|before)_proj\.",
            r"control_(layers|noise_refiner)\.0\.",
            r"after_proj_list\.0\.",
        )
    ),
    Mark("T2I adapter", (r"(adapter\.)?body\.0\.(in_conv|block1|resnets\.0\.block1)\.",)),
    *(
        Mark("IP-Adapter", marks)
        for marks in (
            (r"image_proj\.", r"ip_adapter\."),
            (r"image_proj_model\.", r"adapter_modules\."),
            (r"ip_adapter_proj_model\.",),
            (r".*\.processor\.ip_adapter_",),
        )
    ),
    Mark("PhotoMaker model", (r"id_encoder\.", r"lora_weights\.")),
    Mark("style model (Flux Redux)", (r"redux_(up|down)\.",)),
    Mark("image encoder (CLIP vision)", (r"vision_model\.", ), ("vision_model\\..+", "visual_projection\\..+", "logit_scale")),
    Mark("image encoder (CLIP vision)", (r"visual\.transformer\.", r"visual\.proj$"), (r"visual\..+",)),
    Mark("hypernetwork", whole=(r"\d+\.[01]\.linear\.\d+\.(weight|bias)",), is_network=False),
    Mark(
        "embedding",
        whole=(r"string_to_param\..+", r"string_to_token\..+", "emb_params", "clip_[lgh]", "t5xxl", "<.+>"),
        is_network=False,
    ),
    Mark("embedding", whole=(r"(base_model\.)?prompt_embeddings", r"prompt_encoder\..+"), is_network=False),
    *(
        Mark("upscaler", marks)
        for marks in (
            (r"model\.1\.sub\.0\.RDB1\.",),
            (r"(module\.)?RRDB_trunk\.0\.",),
            (r"body\.0\.rdb1\.",),
            (r"layers\.0\.residual_group\.blocks\.0\.",),
            (r"before_RG\.1\.",),
            (r"block_1\.c1_r\.sk\.",),
            (r"residual_layer\.0\.residual_layer\.0\.layer\.0\.",),
        )
    ),
    Mark("upscaler", (r"body\.0\.weight$", r"body\.1\.weight$"), (r"body\.\d+\.(weight|bias)",)),
    Mark("motion module (AnimateDiff)", whole=(r"(module\.)?((down|up)_blocks\.\d+|mid_block)\.motion_modules\..+",)),
    Mark("fast VAE (TAESD)", (r"taesd_(encoder|decoder)\.",)),
    # A checkpoint from training that holds only the running mean (EMA) of the weights.
    Mark(
        "set of EMA weights alone (`model_ema.…`)",
        (r"model_ema\.diffusion_model",),
        (r"(?!model\.diffusion_model\.).+",),
        is_network=False,
    ),
)  # fmt: skip

# Of an adapter: layers of methods that have another form than any that is read here, by the names of
# their tensors. PEFT's may have the name of an adapter behind them.
_END = r"(\.[^.]+)?(\.weight)?$"
_METHODS = (
    ("T-LoRA of LyCORIS 4", r"\.lambda_layer$"),
    ("OFT of an embedding", r"\.oft_embedding_R" + _END),
    ("PVeRA", r"\.pvera_lambda_[bd]" + _END),
    ("FourierFT", r"\.fourierft_spectrum" + _END),
    ("HRA", r"\.hra_u" + _END),
    ("VB-LoRA", r"\.vblora_(logits_[AB]|vector_bank)" + _END),
    ("RandLora", r"\.randlora_(lambda|gamma|[AB])" + _END),
    ("C3A", r"\.c3a_kernel" + _END),
    ("MiSS or Bone", r"\.(miss_block|bone_\w*)" + _END),
    ("RoAd", r"\.road_(theta|alpha)" + _END),
    ("WaveFT", r"\.waveft_spectrum" + _END),
    ("DeLoRA", r"\.delora_\w+" + _END),
    ("GraLoRA", r"\.gralora_[AB]" + _END),
    ("HiRA", r"\.hira_(embedding_)?[AB]" + _END),
    ("PSOFT", r"\.psoft_R" + _END),
    ("TinyLoRA", r"\.tinylora_v" + _END),
    ("SHiRA", r"\.shira_weight" + _END),
    ("MonteCLoRA", r"\.lora_monteclora_\w+" + _END),
    ("layer norms tuned by PEFT", r"\.ln_tuning_layers" + _END),
)
_METHOD = re.compile("|".join(pattern for _, pattern in _METHODS))


# What the names of a model's parameters end in.
_PARAMETERS = (".weight", ".bias", ".scale", ".gamma", ".beta", ".modulation", "_embedding")


def recognise(grouped: Modules) -> Mark | None:
    """Return what a file is, by its names; None where no mark fits.

    Args:
        grouped: All of its keys. Layers of an adapter may be beside what decides, as in IP-Adapters
            for faces.
    """
    listed = "\n".join(grouped.extras)
    return next((mark for mark in _MARKS if _fits(mark, grouped, listed)), None)


def is_weights(keys: Sequence[str]) -> bool:
    """Whether the keys of a file that is no adapter are those of a model's weights."""
    known = (key.endswith(_PARAMETERS) or key.startswith("model_ema.") for key in keys)
    return sum(known) > 0.8 * len(keys)


def foreign_method(grouped: Modules) -> tuple[str, str] | None:
    """Return a method of fine-tuning whose layers are not read, and the first key that shows it."""
    found = ((key, _METHOD.search(key)) for key in grouped.extras)
    first = next(((key, match) for key, match in found if match), None)
    if first is None:
        return None
    key, match = first
    return next(title for title, pattern in _METHODS if re.search(pattern, match[0])), key


def _fits(mark: Mark, grouped: Modules, listed: str) -> bool:
    if not all(re.search(f"^(?:{one})", listed, re.MULTILINE) for one in mark.all_of):
        return False
    if not mark.whole:
        return True
    whole = re.compile("|".join(mark.whole))
    keys = grouped.extras
    return bool(keys) and not grouped.modules and all(whole.fullmatch(key) for key in keys)
