"""Adapters written as PEFT reads them: a folder of the weights and their configuration."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from ..adapters.edited import Edited
from ..adapters.formats import (
    PEFT,
    PEFT_METADATA,
    Format,
    Written,
    adapter_config,
    commonest,
    modules,
)
from ..adapters.layers import (
    DoraLayer,
    Layer,
    LohaLayer,
    LokrLayer,
    LoraLayer,
)
from ..adapters.metadata import Input, Result
from ..errors import ArgumentError, UnsupportedLayerError, WriteError
from ..files import Output, check_output, move_all
from ..report import Report
from ..source import TensorSource
from .output import Describe, Draft, write_adapter

# The names that PEFT gives and asks for.
WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"

# Names that end so are meant for a file, whatever it is made from.
_FILES = (".safetensors", ".sft", ".bin", ".pt", ".pth", ".ckpt", ".json", ".gguf")
_METHODS: dict[type[Layer], str] = {LoraLayer: "LORA", LohaLayer: "LOHA", LokrLayer: "LOKR"}


def is_for_folder(output: Output, format: str | None) -> bool:
    """Whether a result goes into a folder: one in PEFT's format under a name that is no file's."""
    return (
        format == PEFT.name
        and isinstance(output, Path)
        and (output.is_dir() or output.suffix.lower() not in _FILES)
    )


def check_written(
    output: Output, inputs: Sequence[Path], like: TensorSource, *, force: bool
) -> None:
    """Refuse an output that cannot, or must not, be written: a file, or the folder of PEFT.

    Args:
        output: Where to.
        inputs: What is read.
        like: An adapter in the format of the result.
        force: Whether the output may replace a file.

    Raises:
        ArgumentError: As `check_output`, or `check_folder`.
    """
    if is_for_folder(output, commonest(modules(like.keys()))) and isinstance(output, Path):
        check_folder(output, inputs, force=force)
    else:
        check_output(output, inputs, force=force)


def check_folder(output: Path, inputs: Sequence[Path], *, force: bool) -> None:
    """Refuse a folder that cannot, or must not, be written.

    Raises:
        ArgumentError: As `check_output` of the weights in it; or it is a file.
    """
    if output.exists() and not output.is_dir():
        raise ArgumentError(
            "is a file, and format `peft` is a folder; give another name", path=output
        )
    inside = output / WEIGHTS if output.is_dir() else output.with_suffix(".safetensors")
    check_output(inside, inputs, force=force or not output.is_dir())
    if output.is_dir():
        check_output(output / CONFIG, inputs, force=force, suffix=CONFIG)


def keeps_alpha(
    output: Output, format: Format, keys: Mapping[str, Mapping[str, str]] | None = None
) -> bool:
    """Whether the scale of a layer has a place of its own in a result: in the file, or beside it.

    Args:
        output: Where to.
        format: Of the result.
        keys: Keys by role, by target, of what is written. A bias of PEFT's up counts times the
            scale, and is read with it: there it stays in the numbers.
    """
    if not is_for_folder(output, format.name):
        return format.keeps_alpha
    return not any(_is_up_bias(roles) for roles in (keys or {}).values())


def write_result(
    draft: Draft,
    results: Iterable[Edited],
    describe: Describe,
    *,
    started: float,
    notes: Callable[[Report], Iterable[str]] = lambda _: (),
) -> Report:
    """Do `write_adapter`, into a folder where the output is one; scales are then beside the weights.

    Raises:
        UnsupportedLayerError: PEFT has no configuration for such layers together.
        LoraOpsError: As `write_adapter`.
    """
    output = draft.output
    if not isinstance(output, Path) or not is_for_folder(output, draft.format):
        return write_adapter(draft, results, describe, started=started, notes=notes)
    found: dict[str, Written] = {}

    def without_alphas() -> Iterator[Edited]:
        for one in results:
            layer = one.layer
            if layer is not None and not layer.is_full:
                found[one.target] = _told(one.target, layer)
                layer = _without_alpha(layer)
            yield replace(one, layer=layer)

    def described(inputs: Sequence[Input], result: Result) -> Mapping[str, str]:
        told = describe(inputs, replace(result, title=output.stem))
        return {key: text for key, text in told.items() if key != PEFT_METADATA}

    with _folder(output, force=draft.force) as made:
        inside = replace(draft, output=made / WEIGHTS)
        report = write_adapter(inside, without_alphas(), described, started=started, notes=notes)
        originals = [source.metadata for source in draft.sources]
        lora_bias = any(_is_up_bias(draft.keys[one.target]) for one in report.layers)
        text = adapter_config(found, originals, lora_bias=lora_bias)
        (made / CONFIG).write_text(text, "utf-8")
    return report


def _told(target: str, layer: Layer) -> Written:
    """What the configuration has to say of a layer.

    Raises:
        UnsupportedLayerError: It has no word for that kind.
    """
    plain = layer.inner if isinstance(layer, DoraLayer) else layer
    method = _METHODS.get(type(plain))
    if method is None or plain.is_peft_only:
        raise UnsupportedLayerError(
            f"layer `{target}` is of kind {layer.title}, which lorakit has no configuration of PEFT "
            "for; give the name of a file that ends in `.safetensors`",
            target=target,
        )
    is_whole = isinstance(plain, LokrLayer) and plain.factor_rank is None
    return Written(
        method, plain.rank, None if is_whole else plain.scale, isinstance(layer, DoraLayer)
    )


def _without_alpha(layer: Layer) -> Layer:
    if isinstance(layer, DoraLayer):
        return replace(layer, inner=_without_alpha(layer.inner))
    scaled = isinstance(layer, LoraLayer | LohaLayer | LokrLayer)
    return replace(layer, alpha=None) if scaled else layer


def _is_up_bias(roles: Mapping[str, str]) -> bool:
    return roles.get("diff", "").endswith((".lora_B.bias", ".lora_B.default.bias"))


@contextmanager
def _folder(output: Path, *, force: bool) -> Generator[Path, None, None]:
    """A hidden sibling, which becomes the output, or whose files do, when all is well.

    Raises:
        WriteError: It cannot be made, or not be renamed.
    """
    # The name is new, for another process may be at the same output; in a folder that is there, as
    # it may lead to another disk.
    name = f".{output.name[:40]}.{secrets.token_hex(4)}.partial"
    hidden = output / name if output.is_dir() else output.with_name(name)
    try:
        hidden.mkdir()
        yield hidden
        if not output.is_dir():
            hidden.rename(output)  # refused where there is a folder by now that holds anything
            return
        # The weights before what is said of them.
        move_all([hidden / WEIGHTS, hidden / CONFIG], output, replace=force)
    except OSError as error:
        raise WriteError(f"cannot be written: {error.strerror}", path=output) from error
    finally:
        shutil.rmtree(hidden, ignore_errors=True)
