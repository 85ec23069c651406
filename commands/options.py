"""What several commands share: options of one meaning each, and errors as one line."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypedDict

import click

from .hash_cache import hash_cache_option

if TYPE_CHECKING:
    from ..lora_ops import Element, Placement, Preview

PATH = click.Path(path_type=Path)
Decorator = Callable[[Callable[..., None]], Callable[..., None]]


class Reported(Protocol):
    """A result that a command can show as a table and as JSON."""

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        ...


class AskedWrongly(click.ClickException):
    """An error of the request: exit status 2."""

    exit_code = 2


class Missing(click.ClickException):
    """Parts that are to be finished are not all there: exit status 3."""

    exit_code = 3


def together(*decorators: Decorator) -> Decorator:
    """Return several arguments and options as one decorator, in the order in which help lists them."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return decorate


json_option = click.option(
    *("--json", "json_to"),
    metavar="FILE|-",
    help="Write the report as JSON, to a .json file beside the table; - is stdout, alone.",
)
verbose_option = click.option("-v", "--verbose", is_flag=True, help="Show every layer.")
force_option = click.option("--force", is_flag=True, help="Replace the output if it exists.")
dry_run_option = click.option(
    "--dry-run", is_flag=True, help="Show the plan, from headers alone; write nothing."
)
#: For a command that writes a result and reports it.
result_options = together(
    force_option, dry_run_option, hash_cache_option, verbose_option, json_option
)
output_option = click.option(
    "-o", "--output", type=PATH, required=True, help="LoRA file to write (.safetensors)."
)
blocks_option = click.option(
    "--blocks",
    metavar="WEIGHTS",
    help="Block weights: 12, 17, 20, 26 or 61 numbers, a preset (OUTALL), labels (IN04=0.5,OUT=0), or "
    "a gradient over the depth (depth=0,1,0.5); letters for numbers ('1,A,R; A=0.5, seed=3'). "
    "docs/blocks.md has all forms.  [default: all 1]",
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
NOISE_HELP = (
    "Or noise: what stands above the rounding of storage, each direction as long as it probably was.  "
    "[default: 32; noise, but 128 at most, where a side is stored in 8 bits or fewer]"
)
BUDGETS_HELP = (
    "Or a budget over all layers, spent where it buys most: size=50MB (of the file), mean=16 (rank), "
    "total_error=0.1 (relative error of the whole)."
)
norm_option = click.option(
    "--norm",
    type=click.Choice(["spectral", "frobenius"]),
    help="Of those weights: the largest singular value, or the root of the sum of squares.  "
    "[default: spectral]",
)
dora_option = click.option(
    "--dora",
    type=click.Choice(["paper", "comfy"]),
    default="paper",
    help="Whose reading of the kinds on which programs differ, DoRA above all; docs/kinds.md.",
)
base_option = click.option(
    "--base",
    type=PATH,
    metavar="CHECKPOINT",
    help="The model it was trained on, for kinds that are made from its weights: DoRA, OFT, BOFT, IA3, "
    "GLoRA and replacements.  [default: none]",
)
exact_option = click.option(
    "--exact",
    is_flag=True,
    help="Cut what has to be multiplied out exactly, not within 0.1 % of the least error.",
)
_DEVICES = "auto (a GPU if there is one), cpu, cuda, cuda:1, mps"
device_option = click.option("--device", default="auto", help=f"{_DEVICES}.")
#: Of several, `division` makes an engine.
devices_option = click.option(
    "--device",
    default="auto",
    help=f"{_DEVICES}; or several, as cuda:0,cuda:1: a process for each, which make parts as `--resume` does.",
)
vram_option = click.option(
    "--vram",
    metavar="SIZE",
    help="Most memory to use on the device: bytes, or 8GB, 512MiB.  [default: 70 % of what is free on a GPU]",
)
#: Both are read by `parse_placement`.
placement_options = together(device_option, vram_option)


def patterns_options(*more: str) -> Decorator:
    """The options --whole, which may have `more` names, and --quantise: which weights --to is for."""
    return together(
        click.option(
            "--whole",
            *more,
            metavar="PATTERN",
            multiple=True,
            help="Of the weights that would be written with scales, keep these whole, by the model's own "
            "names: 'double_blocks.0.*'. May be repeated.",
        ),
        click.option(
            "--quantise",
            metavar="PATTERN",
            multiple=True,
            help="Of those that --to usually leaves whole, write these with scales, too: 'final_layer.*'. May "
            "be repeated; --whole goes before it.",
        ),
    )


_OR_THE_RECIPES = ", or the recipe's"


def rounding_options(of: str) -> Decorator:
    """The options --rounding and --seed; `of` says what else the seed is for, or nothing."""
    return together(
        click.option(
            "--rounding",
            type=click.Choice(["nearest", "stochastic"]),
            help="To the nearest number, or up or down by chance, so that small changes stay on average.  "
            "[default: nearest]",
        ),
        click.option(
            "--seed",
            type=click.IntRange(0, 2**64 - 1),
            help=f"Of {of}rounding by chance.  [default: 0{_OR_THE_RECIPES if of else ''}]",
        ),
    )


class Rounding(TypedDict):
    """How numbers are rounded, as `plan_bake_file` and `plan_requantise_file` take it."""

    rounding: str
    seed: int


def parse_rounding(rounding: str | None, seed: int | None) -> Rounding:
    """What both options say, where the seed is for nothing else.

    Raises:
        ArgumentError: There is a seed for nothing.
    """
    from ..lora_ops import ArgumentError

    if seed is not None and rounding != "stochastic":
        raise ArgumentError("--seed is of rounding by chance; give --rounding stochastic, too")
    return {"rounding": rounding or "nearest", "seed": seed or 0}


def lowered(_: click.Context, __: click.Parameter, value: str | None) -> str | None:
    """A name as it is known, however it is written: `Q8_0`."""
    return value and value.lower()


#: For a command that writes a checkpoint.
storing_options = together(
    click.option(
        "--to",
        callback=lowered,
        metavar="STORAGE",
        help="Write the diffusion model's matrices with scales, as ComfyUI loads them: fp8_scaled, "
        "fp8_e5m2_scaled, int8, mxfp8, nvfp4 or fp8_legacy; fp8 has none; as bitsandbytes does: nf4 or fp4; or into a GGUF file, which holds the diffusion model alone: q8_0, "
        "q5_1, q5_0, q4_1, q4_0, bf16, f16 or f32. First and last layers, embeddings and norms stay whole.  "
        "[default: as they are stored]",
    ),
    patterns_options(),
)


def dtype_option(default: str, what: str = "factors") -> Decorator:
    """The option --dtype; `default` says what is taken without it."""
    return click.option(
        "--dtype",
        type=click.Choice(["fp16", "bf16", "fp32"]),
        help=f"Number format of the {what}.  [default: {default}]",
    )


def parse_dtype(name: str | None) -> Element | None:
    """What the option names."""
    from ..lora_ops.elements import element_named

    return element_named(name) if name else None


def parse_placement(device: str, vram: str | None) -> Callable[[], Placement]:
    """What says where to compute, from --device and --vram, once the work begins.

    A device that is named is looked for now, as it may not be there; auto always is.

    Raises:
        ArgumentError: There is no such device, or the size is none.
    """
    from ..lora_ops import place
    from ..lora_ops.text import parse_size

    find = partial(place, device, memory=None if vram is None else parse_size(vram))
    if device == "auto" and vram is None:
        return find
    found = find()
    return lambda: found


def tell(
    report: Reported,
    show: Callable[..., None],
    *,
    json_to: str | None,
    verbose: bool,
    output: Path | None = None,
) -> None:
    """End a command: print its report, unless stdout is asked to hold its JSON alone.

    Args:
        report: What became of everything.
        show: Prints it as a table.
        json_to: As --json has it.
        verbose: Whether the table shows every layer.
        output: The file that was written, if one was.
    """
    from ..lora_ops.text import plain
    from ..terminal.as_json import write_json

    if not write_json(report.to_dict(), json_to):
        show(report, verbose=verbose)
        if output is not None:
            click.echo(f"wrote {plain(output)}")


def foretell(plan: Preview, *, json_to: str | None) -> None:
    """End a dry run: print what would be done, unless stdout is asked to hold its JSON alone.

    Args:
        plan: What would be done.
        json_to: As --json has it.
    """
    from ..terminal.as_json import write_json
    from ..terminal.tables import show_plan

    if not write_json(plan.to_dict(), json_to):
        show_plan(plan)


@contextlib.contextmanager
def clear_errors() -> Generator[None, None, None]:
    """What lorakit says becomes one line, in the command line's words; a bug stays a traceback."""
    from ..lora_ops import ArgumentError, LoraOpsError, MissingPartsError
    from ..lora_ops.text import plain
    from ..terminal.wording import worded

    try:
        yield
    except ArgumentError as error:
        raise AskedWrongly(plain(worded(str(error)))) from error
    except MissingPartsError as error:
        raise Missing("\n  ".join([plain(str(error)), *map(plain, error.items)])) from error
    except LoraOpsError as error:
        raise click.ClickException(plain(worded(str(error)))) from error
