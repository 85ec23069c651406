from collections.abc import Callable
from typing import Any

class WrappersMP:
    OUTER_SAMPLE: str = "outer_sample"
    PREPARE_SAMPLING: str = "prepare_sampling"
    APPLY_MODEL: str = "apply_model"

# Calls what it stands for, or the next wrapper of it.
class WrapperExecutor:
    # Whose method it is.
    class_obj: Any
    original: Callable[..., Any]
    def __call__(self, *args: Any, **kwargs: Any) -> Any: ...
