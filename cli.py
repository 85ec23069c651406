"""The command line: one function per command; parse, call, print. torch is imported inside them.

Exit status: 0 done, 1 could not (one line says why and what to do), 2 asked wrongly.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING

import click

if not __package__:  # `python cli.py`: the folder, whatever it is called, is our package
    _root = Path(__file__).resolve().parent
    sys.path[0] = str(_root.parent)
    __package__ = _root.name
    __import__(__package__)

from . import __version__

if TYPE_CHECKING:
    from .lora_ops.report import Report

_SIZES = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "KI": 2**10, "MI": 2**20, "GI": 2**30}


class _AskedWrongly(click.ClickException):
    exit_code = 2


class ByteSize(click.ParamType):
    """A number of bytes: 8GB, 512MiB, 1000000."""

    name = "size"

    def convert(
        self, value: str | int, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        """Read a size; fails on anything else."""
        if isinstance(value, int):
            return value
        text = value.strip().upper().removesuffix("B")
        number = text.rstrip("KMGI")
        try:
            return int(float(number) * _SIZES[text[len(number) :].strip()])
        except (KeyError, ValueError):
            pass
        return self.fail(
            f"{value!r} is not a size; write 8GB, 512MiB or a number of bytes", param, ctx
        )


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, "-V", "--version")
def main() -> None:
    """Extract LoRA adapters from checkpoints, prove them right, and look into them."""


_json_option = click.option(
    "--json", "json_to", metavar="FILE|-", help="Write the report as JSON; - is stdout, alone."
)
_verbose_option = click.option("-v", "--verbose", is_flag=True, help="Show every layer.")


@main.command()
@click.argument("file", type=click.Path(path_type=Path))
@_json_option
def info(file: Path, json_to: str | None) -> None:
    """Say what FILE is: kind, format, architecture, ranks, alphas, dtypes, metadata.

    Reads the header (and the alphas) of any LoRA or checkpoint, never its weights.
    """
    with _clear_errors():
        from .lora_ops import describe, open_source

        with open_source(file) as source:
            described = describe(source)
        if _write_json(described.to_dict(), json_to):
            return
        from .terminal.tables import show_info

        show_info(described)


@main.command()
@click.argument("base", type=click.Path(path_type=Path))
@click.argument("tuned", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    required=True,
    help="LoRA file to write (.safetensors).",
)
@click.option(
    "-r",
    "--rank",
    "rule",
    default="32",
    show_default=True,
    help="A rank (1 or more), or a rule: energy=0.95 (share of the squared change, 0-1), fro=0.95 "
    "(share of its norm, 0-1), error=0.05 (relative error at most, 0-1), cumulative=0.9 (share of "
    "the sum of singular values, 0-1), ratio=20 (down to the largest / 20), threshold=0.001, knee; "
    "joined with min=4, max=64, conv=16 (a rule for kernels above 1x1; conv=0 leaves them out).",
)
@click.option(
    "--format",
    "format_",
    type=click.Choice(["comfy", "kohya"]),
    default="comfy",
    show_default=True,
    help="Names in the file: comfy loads in ComfyUI for every architecture; kohya for SD1.5, SD2, SDXL and Flux.",
)
@click.option(
    "--dtype",
    type=click.Choice(["fp16", "bf16", "fp32"]),
    help="Of the factors.  [default: the tuned file's]",
)
@click.option(
    "--components",
    metavar="LIST",
    help="Which of unet, te, vae, joined by commas.  [default: unet,te as far as both files hold them]",
)
@click.option(
    "--include",
    metavar="PATTERN",
    multiple=True,
    help="Only targets that fit, e.g. '*attn*'. May be repeated.",
)
@click.option(
    "--exclude", metavar="PATTERN", multiple=True, help="No targets that fit. May be repeated."
)
@click.option(
    "--full-differences",
    is_flag=True,
    help="Keep biases, norms and embeddings too, whole (comfy format only).",
)
@click.option(
    "--allow-partial", is_flag=True, help="Go on where fewer than 95 % of the weights match."
)
@click.option(
    "--exact",
    is_flag=True,
    help="The exact truncation, not one within 0.001 of its error: about 5 times slower.",
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, mps.")
@click.option(
    "--vram",
    type=ByteSize(),
    help="Most memory to use on the device, e.g. 8GB.  [default: 70 % of what is free on a GPU]",
)
@click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the random start."
)
@click.option("--force", is_flag=True, help="Replace the output if it exists.")
@click.option("--dry-run", is_flag=True, help="Show the plan, from headers alone; write nothing.")
@_verbose_option
@_json_option
def extract(
    base: Path,
    tuned: Path,
    output: Path,
    rule: str,
    format_: str,
    dtype: str | None,
    components: str | None,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    full_differences: bool,
    allow_partial: bool,
    exact: bool,
    device: str,
    vram: int | None,
    seed: int,
    force: bool,
    dry_run: bool,
    verbose: bool,
    json_to: str | None,
) -> None:
    """Write the LoRA that takes BASE closest to TUNED, and its true error.

    Both may be .safetensors, a sharded *.index.json, a diffusers folder, .ckpt, .pt or .bin; full
    checkpoints or diffusion models alone. The error is that of the file as written.
    """
    with _clear_errors():
        from .lora_ops import extract_file, open_source, place, plan_file
        from .lora_ops.extract import DTYPES
        from .lora_ops.extract_file import largest_size
        from .terminal.progress import progress_bar

        placement = place(device, memory=vram)
        with open_source(base) as base_source, open_source(tuned) as tuned_source:
            plan = plan_file(
                base_source,
                tuned_source,
                rule,
                output=output,
                force=force,
                dtype=DTYPES[dtype] if dtype else None,
                components=components.split(",") if components else None,
                include=include,
                exclude=exclude,
                full_differences=full_differences,
                allow_partial=allow_partial,
            )
            if dry_run:
                from .terminal.tables import show_plan

                show_plan(plan, str(output), largest_size(plan))
                return
            with progress_bar("extracting") as progress:
                report = extract_file(
                    plan,
                    base_source,
                    tuned_source,
                    output,
                    format=format_,
                    exact=exact,
                    placement=placement,
                    seed=seed,
                    version=__version__,
                    progress=progress,
                )
        _print_report(report, json_to, verbose)
        if json_to != "-":
            click.echo(f"wrote {output}")


@main.command()
@click.argument("base", type=click.Path(path_type=Path))
@click.argument("tuned", type=click.Path(path_type=Path))
@click.argument("lora", type=click.Path(path_type=Path))
@click.option(
    "--strength",
    type=float,
    default=1.0,
    show_default=True,
    help="Apply the LoRA at this strength.",
)
@_verbose_option
@_json_option
def verify(
    base: Path, tuned: Path, lora: Path, strength: float, verbose: bool, json_to: str | None
) -> None:
    """Recompute from the files how close BASE with LORA comes to TUNED, layer by layer."""
    with _clear_errors():
        from .lora_ops import open_source
        from .lora_ops import verify as verify_lora
        from .lora_ops.files import refuse_quantised
        from .terminal.progress import progress_bar

        with (
            open_source(base) as base_source,
            open_source(tuned) as tuned_source,
            open_source(lora) as lora_source,
        ):
            for source in (base_source, tuned_source):
                refuse_quantised(source)
            with progress_bar("verifying") as progress:
                report = verify_lora(
                    base_source, tuned_source, lora_source, strength=strength, progress=progress
                )
        _print_report(report, json_to, verbose)


@main.command()
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    default=Path("lorakit_demo"),
    show_default=True,
    help="Folder for the LoRAs and the picture.",
)
def demo(output: Path) -> None:
    """Extract LoRAs from the digits pair that comes with lorakit, and draw what they do.

    Six LoRAs from two small diffusion models, verified, applied and sampled: about a minute.
    """
    with _clear_errors():
        from .examples.digits.demo import run_demo
        from .terminal.progress import progress_bar
        from .terminal.tables import show_demo

        with progress_bar("demo") as progress:
            columns, picture = run_demo(output, version=__version__, progress=progress)
        show_demo(columns)
        click.echo(f"wrote {picture}")


@contextlib.contextmanager
def _clear_errors() -> Generator[None, None, None]:
    """What lorakit says becomes one line; a bug stays a traceback."""
    from .lora_ops.errors import ArgumentError, LoraOpsError

    try:
        yield
    except ArgumentError as error:
        raise _AskedWrongly(str(error)) from error
    except LoraOpsError as error:
        raise click.ClickException(str(error)) from error


def _print_report(report: Report, json_to: str | None, verbose: bool) -> None:
    if _write_json(report.to_dict(), json_to):
        return
    from .terminal.tables import show_report

    show_report(report, verbose=verbose)


def _write_json(content: dict[str, object], json_to: str | None) -> bool:
    """Write JSON where it was asked for; True if that is stdout, which then holds nothing else."""
    if json_to is None:
        return False
    text = json.dumps(content, indent=1, ensure_ascii=False)
    if json_to == "-":
        click.echo(text)
        return True
    try:
        Path(json_to).write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise click.ClickException(f"{json_to}: could not be written: {error.strerror}") from error
    return False


if __name__ == "__main__":
    main()
