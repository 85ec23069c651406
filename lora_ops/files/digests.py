"""The entries of a file's metadata that hold the SHA-256 of its data."""

from __future__ import annotations

from collections.abc import Iterable

#: kohya's and A1111's: lower-case hex.
DATA_HASH = "sshs_model_hash"
#: The model specification's: the same with 0x in front.
SPEC_HASH = "modelspec.hash_sha256"


def digest_entries(keys: Iterable[str], digest: str) -> dict[str, str]:
    """The entries with a digest, as each has it.

    Args:
        keys: Names of entries.
        digest: SHA-256, lower-case hex.
    """
    return {key: f"0x{digest}" if key == SPEC_HASH else digest for key in keys}
