"""The entries of one file: which are set, which go, and what else must change to stay true."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from ...adapters.formats import PEFT_CONFIG, PEFT_METADATA
from ...adapters.metadata.kohya import modelspec_entries
from ...adapters.metadata.thumbnail import THUMBNAIL, read_thumbnail
from ...errors import ArgumentError
from ...files import DATA_HASH, SPEC_HASH
from ...models.architectures import Architecture

LEGACY_HASH = "sshs_legacy_hash"
#: Hashes of the data, which the writer makes true where a file has them.
DATA_HASHES = (DATA_HASH, SPEC_HASH)
_SPEC = "modelspec."
_VERSION = "modelspec.sai_model_spec"
# They tell programs how to read the tensors: no pattern takes them away, only their own name.
_READ_BY = (
    PEFT_METADATA,
    PEFT_CONFIG,
    "_quantization_metadata",
    "tensor_names",
    "format",
    "config",
)


@dataclass(frozen=True, slots=True)
class MetadataEdit:
    """What becomes of a file's entries.

    Attributes:
        metadata: All of them, as they will be, but for the hashes of `hash_keys`.
        added, changed, removed: Names, sorted; a hash that is made true is not changed.
        hash_keys: Those that the writer gives the SHA-256 of the data.
        notes: What is worth a sentence.
    """

    metadata: Mapping[str, str]
    added: tuple[str, ...]
    changed: tuple[str, ...]
    removed: tuple[str, ...]
    hash_keys: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return what becomes of them as lists of names: what JSON can hold."""
        return {
            "added": list(self.added),
            "changed": list(self.changed),
            "removed": list(self.removed),
            "notes": list(self.notes),
        }


def edit_metadata(
    metadata: Mapping[str, str],
    changes: Mapping[str, str] | None = None,
    removals: Collection[str] = (),
    *,
    title: str = "",
    architecture: Architecture | None = None,
) -> MetadataEdit:
    """Return a file's string map with entries set and taken away.

    A file that gets its first entry of the model specification gets those besides that it asks for and
    that are known. `sshs_legacy_hash`, which the `ss_*` entries go into, goes if one of them changes.

    Args:
        metadata: The file's string map.
        changes: New values by name.
        removals: Names, or shell patterns, of entries to take away; what is in `changes` is set after that.
            Patterns leave entries that say how the tensors are to be read; those go by name only.
        title: What to call the file where the specification asks for a title.
        architecture: Of the model that the file, an adapter, is for; None if unknown.

    Raises:
        ArgumentError: A name fits nothing or is empty, a text is no valid Unicode, a thumbnail is no data URL of
            a picture, or a hash would be set.
    """
    wanted = dict(changes or {})
    _check(wanted)
    kept, notes = _without(metadata, removals)
    hashes = {key for key in DATA_HASHES if key in kept}
    if any(key.startswith(_SPEC) for key in wanted) and _VERSION not in kept:
        kept = {**modelspec_entries(architecture, title), **kept}
        hashes.add(SPEC_HASH)
    found = {key: text for key, text in (kept | wanted).items() if key not in hashes}
    after = hashes | found.keys()
    changed = [key for key in metadata if key in found and found[key] != metadata[key]]
    removed = [key for key in metadata if key not in after]
    added = [key for key in after if key not in metadata]
    if LEGACY_HASH in found and any(one.startswith("ss_") for one in (*changed, *removed, *added)):
        del found[LEGACY_HASH]
        removed.append(LEGACY_HASH)
        notes.append(
            f"`{LEGACY_HASH}` is left out: it is no longer true, and no program of today reads it"
        )
    return MetadataEdit(
        found,
        added=tuple(sorted(added)),
        changed=tuple(sorted(changed)),
        removed=tuple(sorted(removed)),
        hash_keys=tuple(sorted(hashes)),
        notes=tuple(notes),
    )


def _check(changes: Mapping[str, str]) -> None:
    for key, text in changes.items():
        if not key:
            raise ArgumentError("an entry needs a name; give it as NAME=VALUE")
        try:
            (key + text).encode()
        except UnicodeEncodeError:
            raise ArgumentError(
                f"what `{key}` is to say is no valid Unicode; give it in UTF-8"
            ) from None
        if key in (*DATA_HASHES, LEGACY_HASH):
            raise ArgumentError(f"`{key}` is the hash of the data, and made true by itself")
        if key == THUMBNAIL and read_thumbnail(changes) is None:
            raise ArgumentError(
                f"`{THUMBNAIL}` must be a data URL (data:image/jpeg;base64,…); give a picture as "
                "`thumbnail=`"
            )


def _without(
    metadata: Mapping[str, str], removals: Collection[str]
) -> tuple[dict[str, str], list[str]]:
    """What is left of the entries, and notes of what patterns left."""
    going: set[str] = set()
    spared: set[str] = set()
    for name in removals:
        if name in metadata:
            going.add(name)
            continue
        fitting = {key for key in metadata if fnmatchcase(key, name)}
        if not fitting:
            raise ArgumentError(f"no entry is called `{name}`{_hint(name, metadata)}")
        spared |= fitting.intersection(_READ_BY)
        going |= fitting.difference(_READ_BY)
    notes = [
        f"`{key}` stays: programs read the tensors by it; give its own name to take it away"
        for key in sorted(spared - going)
    ]
    return {key: text for key, text in metadata.items() if key not in going}, notes


def _hint(name: str, metadata: Mapping[str, str]) -> str:
    if not metadata:
        return ": the file has no metadata"
    near = difflib.get_close_matches(name, metadata, n=1)
    return f"; did you mean `{near[0]}`?" if near else "; see what there is with `read_metadata()`"
