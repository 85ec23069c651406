"""What several commands share: options of one meaning each, and errors as one line."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    import torch

    from ..lora_ops import Placement

PATH = click.Path(path_type=Path)


class AskedWrongly(click.ClickException):
    """Exit status 2."""

    exit_code = 2


json_option = click.option(
    *("--json", "json_to"),
    metavar="FILE|-",
    help="Write the report as JSON, to a .json file beside the table; - is stdout, alone.",
)
verbose_option = click.option("-v", "--verbose", is_flag=True, help="Show every layer.")
force_option = click.option("--force", is_flag=True, help="Replace the output if it exists.")
output_option = click.option(
    "-o", "--output", type=PATH, required=True, help="LoRA file to write (.safetensors)."
)
blocks_option = click.option(
    "--blocks",
    metavar="WEIGHTS",
    help="Block weights: 12, 17, 20, 26 or 61 numbers, a preset (OUTALL), labels (IN04=0.5,OUT=0), or "
    "a gradient over the depth (depth=0,1,0.5); docs/blocks.md has all forms.  [default: all 1]",
)
where_option = click.option(
    "--where",
    metavar="PATTERN=S",
    multiple=True,
    help="Strength of the layers that fit: '*attn2*=0.5', '/ff\\.net/=0', te=0. May be repeated; the "
    "last that fits decides.",
)
RULES_HELP = (
    "A rank (1 or more), or a rule: energy=0.95 (share of the squared change, 0-1), fro=0.95 "
    "(share of its norm, 0-1), error=0.05 (relative error at most, 0-1), cumulative=0.9 (share of "
    "the sum of singular values, 0-1), ratio=20 (down to the largest / 20), threshold=0.001, knee; "
    "joined with min=4, max=64, conv=16 (a rule for kernels above 1x1; conv=0 leaves them out)."
)
dora_option = click.option(
    "--dora",
    type=click.Choice(["paper", "comfy"]),
    default="paper",
    help="Whose reading of the kinds on which programs differ, DoRA above all; docs/kinds.md.",
)
device_option = click.option(
    "--device", default="auto", help="auto (a GPU if there is one), cpu, cuda, cuda:1, mps."
)
vram_option = click.option(
    "--vram",
    metavar="SIZE",
    help="Most memory to use on the device: bytes, or 8GB, 512MiB.  [default: 70 % of what is free on a GPU]",
)


def dtype_option(
    default: str, what: str = "factors"
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """The option --dtype; `default` says what is taken without it."""
    return click.option(
        "--dtype",
        type=click.Choice(["fp16", "bf16", "fp32"]),
        help=f"Number format of the {what}.  [default: {default}]",
    )


def parse_dtype(name: str | None) -> torch.dtype | None:
    """The dtype that the option names."""
    from ..lora_ops.dtypes import DTYPES

    return DTYPES[name] if name else None


def parse_placement(device: str, vram: str | None) -> Placement:
    """Where to compute, from --device and --vram."""
    from ..lora_ops import place
    from ..terminal.text import parse_size

    return place(device, memory=parse_size(vram) if vram is not None else None)


@contextlib.contextmanager
def clear_errors() -> Generator[None, None, None]:
    """What lorakit says becomes one line; a bug stays a traceback."""
    from ..lora_ops.errors import ArgumentError, LoraOpsError
    from ..terminal.text import plain

    try:
        yield
    except ArgumentError as error:
        raise AskedWrongly(plain(str(error))) from error
    except LoraOpsError as error:
        raise click.ClickException(plain(str(error))) from error
