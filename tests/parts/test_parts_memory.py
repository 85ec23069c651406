"""Memory of one process, whether it makes a part, joins them, or does all: that of a few weights."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from commands import python

from lorakit.lora_ops.files import SafetensorsWriter

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="peak memory is read from /proc, which is Linux's"
)

LAYERS, SIDE = 150, 1448
_MEASURE = """
import contextlib, re, sys
from pathlib import Path
from lorakit.cli import main
with contextlib.suppress(SystemExit), contextlib.redirect_stdout(sys.stderr):
    main(sys.argv[1:])
print(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two of 630 MB, of layers of 4 MB."""
    folder = tmp_path_factory.mktemp("models")
    base = torch.randint(-8, 9, (SIDE, SIDE)).half() / 64
    tuned = base + torch.randint(-1, 2, (1, SIDE)).half() / 64
    for name, weight in (("base", base), ("tuned", tuned)):
        with SafetensorsWriter(folder / f"{name}.safetensors") as writer:
            for index in range(LAYERS):
                writer.write(f"blocks.{index}.attn.q.weight", weight)
            writer.finish()
    return folder / "base.safetensors", folder / "tuned.safetensors"


def peak(*words: object) -> int:
    """Peak memory of a command, in bytes."""
    run = python(_MEASURE, *words)
    assert run.status == 0, run.err
    assert "Error" not in run.err
    return int(run.out) * 1024


def test_a_part_all_of_them_and_their_joining(models: tuple[Path, Path], tmp_path: Path) -> None:
    """All of a merge is one part here: the whole checkpoint goes through each process."""
    merged, lora = tmp_path / "out.safetensors", tmp_path / "lora.safetensors"
    peaks = {
        "part": peak("merge", *models, "-o", merged, "--part", "1/1"),
        "finish": peak("finish", merged),
        "merge": peak("merge", *models, "-o", merged, "--resume", "--force"),
        "extract": peak("extract", *models, "-o", lora, "--rank", "4", "--resume"),
    }
    assert merged.stat().st_size > 600e6
    assert lora.exists()
    assert max(peaks.values()) < 700e6, peaks  # torch itself is 300 to 400 MB of that
