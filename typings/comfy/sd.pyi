from typing import Any

from torch import Tensor, nn

from .model_patcher import ModelPatcher

class CLIP:
    cond_stage_model: nn.Module
    patcher: ModelPatcher

# (model, CLIP, VAE, CLIP vision)
def load_state_dict_guess_config(
    sd: dict[str, Tensor],
    output_vae: bool = True,
    output_clip: bool = True,
    output_clipvision: bool = False,
    embedding_directory: list[str] | None = None,
    *,
    metadata: dict[str, str] | None = None,
) -> tuple[Any, Any, Any, Any] | None: ...
