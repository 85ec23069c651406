"""Save: an adapter that was made or trained in memory, as a file that other programs read."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from ...adapters.adapter import Adapter
from ...adapters.edited import base_bound, check_not_empty, edited, summarise
from ...adapters.formats import PEFT, as_stored, encode_layer, format_named
from ...adapters.layers import innermost, stored_alpha
from ...adapters.metadata import HASH_KEYS, Input, Operation, Result, Source, edited_metadata
from ...adapters.model import recognised
from ...files import MemoryFile, check_output, save
from .file import convert_file


def save_adapter(
    adapter: Adapter,
    output: str | Path,
    *,
    format: str | None = None,
    architecture: str | None = None,
    force: bool = False,
    version: str = "",
) -> None:
    """Write an adapter, with metadata and hash, complete under its name or not at all.

    Args:
        adapter: What `extract`, `collect` or another operation gave.
        output: Where to; for format `peft` a folder, as PEFT reads it.
        format: kohya, comfy, diffusers or peft; None: as the adapter is named, in one file.
        architecture: Short name of the model's, for another format; None: told by the names.
        force: Whether the output may replace a file.
        version: Of lorakit, for the record.

    Raises:
        LoraOpsError: The format has no name or no place for a layer, or the output cannot, or must
            not, be written.
    """
    output = Path(output)
    if format == adapter.format == PEFT.name:
        adapter = _rooted(adapter)
    memory = adapter_file(adapter, output.name, version=version)
    if format is not None:
        convert_file(
            memory, output, format, architecture=architecture, force=force, version=version
        )
        return
    check_output(output, [], force=force)
    save(output, memory.tensors, memory.metadata, hash_keys=HASH_KEYS, replace=force)


def adapter_file(adapter: Adapter, name: str, *, version: str = "") -> MemoryFile:
    """Return an adapter as a file in memory, under the names that it has.

    Args:
        adapter: Of any layers; those without keys of their own get those of its format.
        name: Name of the file.
        version: Of lorakit, for the record.

    Raises:
        UnknownFormatError: It has no layers.
        UnsupportedLayerError: The format has no place for a layer.
    """
    check_not_empty(adapter)
    scheme = format_named(adapter.format)
    tensors: dict[str, Tensor] = {}
    reports = []
    for target, layer in adapter.layers.items():
        plain = innermost(layer)
        if plain.is_peft_only:
            raise base_bound(target, plain)
        known = adapter.keys.get(target, {})
        own = layer if scheme.keeps_alpha else layer.times(target, 1.0, has_alpha=False)
        if own.tensors().keys() <= known.keys():
            found = ((known[role], tensor) for role, tensor in own.tensors().items())
            tensors |= {key: as_stored(key, tensor) for key, tensor in found}
        else:
            tensors |= encode_layer(scheme, lambda module: module, target, own)
        reports.append(edited(target, own, norm=0.0, residual=0.0, was=(own.rank,)).report)
    layers = adapter.layers
    result = Result(
        title=Path(name).stem,
        report=summarise(reports),
        dtype=Counter(layer.dtype for layer in layers.values()).most_common(1)[0][0],
        format=adapter.format,
        alphas={target: stored_alpha(layer) for target, layer in layers.items()},
        sizes={target: innermost(layer).rank for target, layer in layers.items()},
        architecture=recognised(adapter).certain,
    )
    source = Source(Input(name), adapter.metadata)
    metadata = edited_metadata(source, Operation("save", version), result)
    return MemoryFile(name, {**tensors, **adapter.extras}, metadata)


def _rooted(adapter: Adapter) -> Adapter:
    """An adapter of bare names as PEFT writes them: a `transformer.` in front is the model's own."""
    root = PEFT.prefixes[0]

    def whole(name: str) -> str:
        return root + name.removeprefix(root)

    return replace(
        adapter,
        layers={whole(target): layer for target, layer in adapter.layers.items()},
        keys={
            whole(target): {role: whole(key) for role, key in keys.items()}
            for target, keys in adapter.keys.items()
        },
    )
