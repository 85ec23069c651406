"""Shape annotations that cost nothing: jaxtyping's where it is at work, else plain tensors.

They are checked under pytest only, which has jaxtyping imported by then. ComfyUI's environment has none, and needs none.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jaxtyping import Float as Float
elif "jaxtyping" in sys.modules:
    from jaxtyping import Float
else:

    class Float:
        """Stand-in: `Float[Tensor, "out in"]` is `Tensor`."""

        def __class_getitem__(cls, item: tuple[type, str]) -> type:
            return item[0]
