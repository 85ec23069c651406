"""Shape annotations that cost nothing: jaxtyping's where it is installed, else plain tensors.

They are checked under pytest only. ComfyUI's environment has no jaxtyping, and needs none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jaxtyping import Float as Float
else:
    try:
        from jaxtyping import Float
    except ModuleNotFoundError:

        class Float:
            """Stand-in: `Float[Tensor, "out in"]` is `Tensor`."""

            def __class_getitem__(cls, item: tuple[type, str]) -> type:
                return item[0]
