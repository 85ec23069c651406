from torch import nn

from .model_patcher import ModelPatcher

class CLIP:
    cond_stage_model: nn.Module
    patcher: ModelPatcher
