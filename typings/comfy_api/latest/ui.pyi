from typing import Any

from torch import Tensor

from .io import ComfyNode

class PreviewImage:
    # (images, height, width, 3), 0 to 1
    def __init__(
        self, image: Tensor, animated: bool = False, cls: type[ComfyNode] | None = None
    ) -> None: ...
    def as_dict(self) -> dict[str, Any]: ...

class PreviewText:
    def __init__(self, value: str) -> None: ...
    def as_dict(self) -> dict[str, Any]: ...
