"""The command line: one function per command; parse, call, print. torch is imported inside them.

Exit status: 0 done, 1 could not (one line says why and what to do), 2 asked wrongly.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import sys
from collections.abc import Generator
from pathlib import Path

import click

if not __package__:  # `python cli.py`: the folder, whatever it is called, is our package
    _root = Path(__file__).resolve().parent
    _spec = importlib.util.spec_from_file_location("lorakit", _root / "__init__.py")
    if _spec and _spec.loader:
        sys.modules["lorakit"] = importlib.util.module_from_spec(_spec)
        _spec.loader.exec_module(sys.modules["lorakit"])
    __package__ = "lorakit"

from . import __version__


class _AskedWrongly(click.ClickException):
    exit_code = 2


_SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100, "show_default": True}


@click.group(context_settings=_SETTINGS)
@click.version_option(__version__, "-V", "--version", prog_name="lorakit")
def main() -> None:
    """Extract LoRA adapters from checkpoints, prove them right, look into them."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name that it cannot spell is no reason to fail
            stream.reconfigure(errors="backslashreplace")


_path = click.Path(path_type=Path)
_json_option = click.option(
    *("--json", "json_to"),
    metavar="FILE|-",
    help="Write the report as JSON, to a .json file beside the table; - is stdout, alone.",
)
_verbose_option = click.option("-v", "--verbose", is_flag=True, help="Show every layer.")


@main.command()
@click.argument("file", type=_path)
@_json_option
def info(file: Path, json_to: str | None) -> None:
    """Say what FILE is, from its header.

    Kind, format, architecture, ranks, alphas, dtypes, metadata of any LoRA or checkpoint. Its
    weights are not read.
    """
    with _clear_errors():
        from .lora_ops import describe, open_source
        from .terminal.as_json import check_json, write_json
        from .terminal.tables import show_info

        with open_source(file) as source:
            check_json(json_to, source.paths)
            described = describe(source)
        if not write_json(described.to_dict(), json_to):
            show_info(described)


@main.command()
@click.argument("base", type=_path)
@click.argument("tuned", type=_path)
@click.option(
    "-o", "--output", type=_path, required=True, help="LoRA file to write (.safetensors)."
)
@click.option(
    *("-r", "--rank", "rule"),
    default="32",
    help="A rank (1 or more), or a rule: energy=0.95 (share of the squared change, 0-1), fro=0.95 "
    "(share of its norm, 0-1), error=0.05 (relative error at most, 0-1), cumulative=0.9 (share of "
    "the sum of singular values, 0-1), ratio=20 (down to the largest / 20), threshold=0.001, knee; "
    "joined with min=4, max=64, conv=16 (a rule for kernels above 1x1; conv=0 leaves them out).",
)
@click.option(
    *("--format", "format_"),
    type=click.Choice(["comfy", "kohya"]),
    default="comfy",
    help="Names in the file: comfy loads in ComfyUI for every architecture; kohya for SD1.5, SD2, SDXL and Flux.",
)
@click.option(
    "--dtype",
    type=click.Choice(["fp16", "bf16", "fp32"]),
    help="Number format of the factors.  [default: the tuned file's]",
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
    help="The exact truncation, not one within 0.001 of its error: about 4 times slower.",
)
@click.option(
    "--device", default="auto", help="auto (a GPU if there is one), cpu, cuda, cuda:1, mps."
)
@click.option(
    "--vram",
    metavar="SIZE",
    help="Most memory to use on the device: bytes, or 8GB, 512MiB.  [default: 70 % of what is free on a GPU]",
)
@click.option(
    "--seed", type=click.IntRange(0, 2**32 - 1), default=0, help="Starts the random numbers."
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
    vram: str | None,
    seed: int,
    force: bool,
    dry_run: bool,
    verbose: bool,
    json_to: str | None,
) -> None:
    """Write the LoRA that takes BASE closest to TUNED.

    Both may be .safetensors, a sharded *.index.json, a diffusers folder, .ckpt, .pt or .bin; full
    checkpoints or diffusion models alone. The error that is reported is that of the file as
    written.
    """
    with _clear_errors():
        from .lora_ops import extract_file, open_source, place, plan_file
        from .lora_ops.extract_file import largest_size
        from .lora_ops.plan import DTYPES
        from .terminal.as_json import check_json, plan_dict, write_json
        from .terminal.progress import progress_bar
        from .terminal.tables import show_plan, show_report
        from .terminal.text import parse_size, plain

        placement = place(device, memory=parse_size(vram) if vram is not None else None)
        with open_source(base) as base_source, open_source(tuned) as tuned_source:
            check_json(json_to, [*base_source.paths, *tuned_source.paths])
            plan = plan_file(
                base_source,
                tuned_source,
                rule,
                output=output,
                force=force,
                format=format_,
                dtype=DTYPES[dtype] if dtype else None,
                components=_words(components),
                include=include,
                exclude=exclude,
                full_differences=full_differences,
                allow_partial=allow_partial,
            )
            if dry_run:
                size = largest_size(plan)
                if not write_json(plan_dict(plan, output, size), json_to):
                    show_plan(plan, output, size)
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
        if not write_json(report.to_dict(), json_to):
            show_report(report, verbose=verbose)
            click.echo(f"wrote {plain(output)}")


@main.command()
@click.argument("base", type=_path)
@click.argument("tuned", type=_path)
@click.argument("lora", type=_path)
@click.option("--strength", type=float, default=1.0, help="Factor on the LoRA; 1 is all of it.")
@_verbose_option
@_json_option
def verify(
    base: Path, tuned: Path, lora: Path, strength: float, verbose: bool, json_to: str | None
) -> None:
    """Recompute the true error of LORA, from the files alone.

    How close BASE with LORA comes to TUNED, layer by layer.
    """
    with _clear_errors():
        from .lora_ops import open_source
        from .lora_ops import verify as verify_lora
        from .lora_ops.files import refuse_quantised
        from .terminal.as_json import check_json, write_json
        from .terminal.progress import progress_bar
        from .terminal.tables import show_report

        with (
            open_source(base) as base_source,
            open_source(tuned) as tuned_source,
            open_source(lora) as lora_source,
        ):
            check_json(json_to, [*base_source.paths, *tuned_source.paths, *lora_source.paths])
            for source in (base_source, tuned_source):
                refuse_quantised(source)
            with progress_bar("verifying") as progress:
                report = verify_lora(
                    base_source, tuned_source, lora_source, strength=strength, progress=progress
                )
        if not write_json(report.to_dict(), json_to):
            show_report(report, verbose=verbose)


@main.command()
@click.option(
    "-o",
    "--output",
    type=_path,
    default=Path("lorakit_demo"),
    help="Folder for the LoRAs and the picture.",
)
def demo(output: Path) -> None:
    """Extract LoRAs from a small sample, draw what they do.

    Six LoRAs from two small diffusion models, verified, applied and sampled: ten seconds on two cores.
    """
    with _clear_errors():
        from .examples.digits.demo import run_demo
        from .terminal.progress import progress_bar
        from .terminal.tables import show_demo
        from .terminal.text import plain

        with progress_bar("demo") as progress:
            columns, picture = run_demo(output, version=__version__, progress=progress)
        show_demo(columns)
        click.echo(f"wrote {plain(picture)}")


@contextlib.contextmanager
def _clear_errors() -> Generator[None, None, None]:
    """What lorakit says becomes one line; a bug stays a traceback."""
    from .lora_ops.errors import ArgumentError, LoraOpsError
    from .terminal.text import plain

    try:
        yield
    except ArgumentError as error:
        raise _AskedWrongly(plain(str(error))) from error
    except LoraOpsError as error:
        raise click.ClickException(plain(str(error))) from error


def _words(listed: str | None) -> list[str] | None:
    return None if listed is None else [word.strip() for word in listed.split(",")]


if __name__ == "__main__":
    main(prog_name="lorakit")
