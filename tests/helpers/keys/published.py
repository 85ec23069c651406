"""ComfyUI's and diffusers' classes at the sizes that were published: what their modules are called.

`published.json` holds, by label (our name, and a size behind a colon), the module and class under
`comfy.ldm` with arguments, and shapes by name: of these, and of diffusers' classes (0.42.1) with
their own arguments. Rows are first and last block, out, in, and names; `{}` is the block.
"""

from __future__ import annotations

import json
from pathlib import Path

DATA = json.loads(Path(__file__).with_name("published.json").read_text("utf-8"))


def expanded(rows):
    """Shape (out, in) of each module."""
    found = {}
    for first, last, out, into, names in rows:
        numbers = [""] if first is None else range(first, last + 1)
        for name in names.split():
            found |= {name.replace("{}", str(number)): (out, into) for number in numbers}
    return found
