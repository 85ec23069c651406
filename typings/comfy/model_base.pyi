from typing import Any

from torch import nn

class BaseModel(nn.Module):
    # How noise goes: a level at each share of the way.
    model_sampling: Any
