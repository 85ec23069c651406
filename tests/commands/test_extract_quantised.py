"""What an extraction from quantised files prints."""

from __future__ import annotations

from pathlib import Path

from commands import lorakit_here
from stored_pairs import change, stored, weight


def test_shares_are_of_the_difference_where_some_of_it_is_rounding(tmp_path: Path) -> None:
    base = weight((256, 256))
    tuned = base + change((256, 256), 4, 0.1 * float(base.norm()))
    for to, what, other in (("fp8_scaled", "difference", "change"), ("fp32", "change", "noise")):
        files = [
            stored(one, to, tmp_path / f"{name}-{to}.safetensors")
            for name, one in (("base", base), ("tuned", tuned))
        ]
        done = lorakit_here("extract", *files, "-o", tmp_path / f"{to}.safetensors")
        assert (done.status, done.err) == (0, "")
        assert f"outside the LoRA: 0.00% of the {what}" in done.out
        assert f"of the {other}\n" not in done.out
