"""Which weights of a checkpoint are written with scales."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from ...errors import ArgumentError
from ...files.quantised.storages import SCHEMES
from ...models.architectures import UNET, detect, parameters
from ...models.whole import stays_whole
from ...report import counted
from ...source import TensorSource
from ...text import either, plain
from .output import is_folder
from .storing import Storing


def plan_storing(
    checkpoint: TensorSource, keys: Iterable[str], to: str, whole: Sequence[str] = ()
) -> tuple[dict[str, Storing], str]:
    """Find the weights that are written with scales: matrices of the diffusion model.

    What stays whole: other components, weights that lie fused, split or turned in the file, or under
    other names than those of the model's own program, and those of `stays_whole`.

    Args:
        checkpoint: What the result is made like.
        keys: Of the result.
        to: Name of the way to store them: `fp8_scaled`.
        whole: Shell patterns of native names that stay whole as well: `double_blocks.0.*`.

    Returns:
        How weights are written, by key, and a sentence on what stays whole.

    Raises:
        ArgumentError: No weight can be written so, or there is no such way.
    """
    if to not in SCHEMES:
        raise ArgumentError(f"the storage `{plain(to)}` is {either(list(SCHEMES))}")
    if is_folder(checkpoint):
        raise ArgumentError(
            f"{checkpoint.name} is a folder of diffusers, which does not load `{to}`; give a single file"
        )
    known, written = parameters(checkpoint), set(keys)
    model = detect(known)
    name_of_model = model.name if model else None
    uses = Counter(key for one in known.values() for key in one.keys)
    found: dict[str, Storing] = {}
    left: list[str] = []
    for one in known.values():
        name = one.name.removeprefix(UNET)
        is_matrix = len(one.shape) == 2 and name != one.name and name.endswith(".weight")
        if not is_matrix or one.key not in written:
            continue
        is_plain = uses[one.key] == 1 and one.key.endswith(name) and not one.transposed
        if (
            not is_plain
            or not SCHEMES[to].fits(one.shape)
            or stays_whole(name, name_of_model)
            or any(fnmatchcase(name, pattern) for pattern in whole)
        ):
            left.append(name)
        else:
            found[one.key] = Storing(SCHEMES[to], one)
    if not found:
        raise ArgumentError(
            f"{checkpoint.name} has no weight to write as `{to}`: those are matrices of a diffusion "
            "model, under the names of its own program"
        )
    stay = f"; {len(left)} stay whole, the first `{left[0]}`" if left else ""
    return found, f"{counted(len(found), 'weight')} written as {SCHEMES[to].storage}{stay}"
