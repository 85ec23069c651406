"""A GGUF file whose making is killed is not there under its name."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from commands import HELPERS
from safetensors.torch import save_file
from tiny_flux import numbers

pytest.importorskip("gguf", reason="the package gguf is in no environment but its own")

PROGRAM = """
import signal, sys, time
sys.path[:0] = sys.argv[3:]
signal.signal(signal.SIGINT, signal.default_int_handler)  # also where tests run in the background
from pathlib import Path
from lorakit.lora_ops import open_source
from lorakit.lora_ops.files.writing.placed import PlacedFile
from lorakit.lora_ops.operations.requantise.file import requantise_file
from lorakit.lora_ops.operations.requantise.plan import plan_requantise_file

fill = PlacedFile.write_at
def slowly(self, *args):
    fill(self, *args)
    print("wrote", flush=True)
    time.sleep(2)
PlacedFile.write_at = slowly
output = Path(sys.argv[2])
with open_source(sys.argv[1]) as model:
    requantise_file(plan_requantise_file(model, "q8_0", output=output, force=True), output, force=True)
"""


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_what_was_there_stays(tmp_path: Path, number: signal.Signals) -> None:
    save_file(numbers(1, torch.bfloat16), tmp_path / "model.safetensors")
    output = tmp_path / "out" / "a.gguf"
    output.parent.mkdir()
    output.write_bytes(b"what was there")
    asked = [sys.executable, "-c", PROGRAM, tmp_path / "model.safetensors", output, str(HELPERS)]
    with subprocess.Popen(asked, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"wrote\n"
        process.send_signal(number)
        process.stdout.read()
        assert process.wait() != 0
    assert output.read_bytes() == b"what was there"
    left = [path for path in output.parent.iterdir() if path != output]
    assert len(left) == (1 if number == signal.SIGKILL else 0)
    assert all(path.name.endswith(".partial") for path in left)
