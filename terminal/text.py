"""Text for and from a terminal."""

from __future__ import annotations

from ..lora_ops.sizes import parse_size as parse_size
from ..lora_ops.text import human_error as human_error
from ..lora_ops.text import human_size as human_size
from ..lora_ops.text import plain as plain
