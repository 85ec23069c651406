"""Random bits by position: the same for an element whatever is computed beside it, before it, and where.

Philox4x64-10 (Salmon et al., 2011, doi:10.1145/2063384.2063405) turns a key and a counter into
random bits; nothing is carried from one to the next. numpy's is used: five times as fast as integer
operations of torch, its stream is promised not to change, and what it makes on the CPU is the same
for every device.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from torch import Tensor

#: Numbers of 16 bits in a block of Philox4x64.
_BLOCK = 16
_COUNTERS = 1 << 256


def random_key(seed: int, name: str, index: int = 0) -> int:
    """The key, of 128 bits, of one stream: other seeds, names and indices give unrelated ones.

    Args:
        seed: The user's.
        name: Of the weight, the same however the file spells it.
        index: Of the term, or of another use of the same weight.
    """
    text = f"{seed}\n{index}\n{name}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=16).digest(), "little")


def random_bits(key: int, first: int, count: int) -> Tensor:
    """Sixteen random bits for each of some consecutive elements.

    Args:
        key: Of the stream, from `random_key`.
        first: Position of the first element in the whole tensor, row by row.
        count: How many.

    Returns:
        (count,) int16 on the CPU, uniform from -32768 to 32767: `< share * 65536 - 32768` holds
        with the probability `share`.
    """
    block, skipped = divmod(first, _BLOCK)
    words = (skipped + count + 3) // 4
    # numpy counts on before it draws.
    source = np.random.Philox(key=key, counter=(block - 1) % _COUNTERS)
    bits = source.random_raw(words).astype("<u8", copy=False).view("<i2")
    return torch.from_numpy(bits[skipped : skipped + count])
