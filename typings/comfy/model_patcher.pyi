from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

class ModelPatcher:
    model: nn.Module
    load_device: torch.device
    # By weight: what adds to it; and what it was, before what adds was put into it.
    patches: dict[str, list[Any]]
    backup: dict[str, Any]
    hook_backup: dict[str, Any]
    # What acts on layers as they run, by name.
    injections: dict[str, list[Any]]
    def set_attachments(self, key: str, attachment: Any) -> None: ...
    def get_attachment(self, key: str) -> Any: ...
    # Stands around what a type of `WrappersMP` names, while this model samples.
    def add_wrapper_with_key(
        self, wrapper_type: str, key: str, wrapper: Callable[..., Any]
    ) -> None: ...
    def clone(self) -> ModelPatcher: ...
    def add_patches(
        self, patches: dict[Any, Any], strength_patch: float = 1.0
    ) -> Sequence[Any]: ...

# (weight, how it is set, how it is converted out of its storage)
def get_key_weight(
    model: nn.Module, key: str
) -> tuple[Tensor, Callable[..., Any] | None, Callable[..., Tensor] | None]: ...
