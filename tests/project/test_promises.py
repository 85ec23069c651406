"""The seven promises of the design, one test each; the numerics behind them have tests of their own."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from checkpoints import FLUX, WAN, grid, planted, source, trained
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lorakit.lora_ops import extract, extract_file, open_source, plan_extraction, plan_file, verify
from lorakit.lora_ops.errors import LoraOpsError, MismatchError, NonFiniteError
from lorakit.lora_ops.files import SafetensorsWriter


def saved(folder: Path, base, tuned, metadata=None) -> tuple[Path, Path]:
    paths = folder / "base.safetensors", folder / "tuned.safetensors"
    save_file(base, paths[0])
    save_file(tuned, paths[1], metadata)
    return paths


def to_file(paths: tuple[Path, Path], output: Path, rule: str = "4", **options):
    with open_source(paths[0]) as base, open_source(paths[1]) as tuned:
        plan = plan_file(base, tuned, rule, output=output, **options)
        force = bool(options.get("force"))
        return extract_file(plan, base, tuned, output, force=force)


@pytest.mark.parametrize("difference", ["nothing", "another model", "nothing in common"])
def test_promise_1_loud_failure_never_an_empty_file(tmp_path, difference):
    base = grid(FLUX, torch.float16)
    tuned = {
        "nothing": dict(base),
        "another model": grid(WAN, torch.float16),
        "nothing in common": {f"x.{key}": weight for key, weight in base.items()},
    }[difference]
    output = tmp_path / "out.safetensors"
    with pytest.raises(MismatchError) as error:
        to_file(saved(tmp_path, base, tuned), output)
    assert ";" in str(error.value)  # what is wrong; the way out
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "base.safetensors",
        "tuned.safetensors",
    ]


def test_promise_2_the_error_in_the_metadata_is_that_of_the_file(tmp_path):
    base = grid(FLUX, torch.float32)
    paths, output = saved(tmp_path, base, trained(base)), tmp_path / "out.safetensors"
    to_file(paths, output, dtype=torch.float16)
    with safe_open(output, "pt") as file:
        certified = float(file.metadata()["lorakit.error"])
    with open_source(paths[0]) as one, open_source(paths[1]) as two, open_source(output) as lora:
        assert verify(one, two, lora).error == pytest.approx(certified, rel=1e-5)


def test_promise_3_what_has_an_exact_form_is_exact():
    base = grid(FLUX, torch.float16)
    _, report = extract(source(base), source(planted(base)), 3, dtype=torch.float32)
    assert report.error <= 1e-6


# Layers of one size; the larger checkpoint has four times as many. Only what the kernel counts as
# this process's peak is printed, in kibibytes.
_MEASURE = """
import re, sys
from pathlib import Path
import torch
from lorakit.lora_ops import extract_file, open_source, plan_file
folder = Path(sys.argv[1])
with open_source(folder / "base.safetensors") as base, open_source(folder / "tuned.safetensors") as tuned:
    plan = plan_file(base, tuned, "4", output=folder / "out.safetensors")
    extract_file(plan, base, tuned, folder / "out.safetensors")
print(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
"""


def equal_layers(folder: Path, layers: int) -> None:
    """Two checkpoints of fp16 layers of 2 MiB each; the change is of rank one."""
    folder.mkdir()
    base = torch.randint(-8, 9, (16, 1 << 16)).half() / 64
    tuned = base + torch.randint(-1, 2, (1, 1 << 16)).half() / 64
    for name, weight in (("base", base), ("tuned", tuned)):
        with SafetensorsWriter(folder / f"{name}.safetensors") as writer:
            for index in range(layers):
                writer.write(f"blocks.{index}.attn.q.weight", weight)
            writer.finish()


@pytest.mark.skipif(
    sys.platform != "linux", reason="peak memory is read from /proc, which is Linux's"
)
def test_promise_4_memory_does_not_grow_with_the_checkpoint(tmp_path):
    peaks = []
    for layers in (72, 288):  # 150 and 600 MB a side: 300 MB and 1.2 GB
        folder = tmp_path / str(layers)
        equal_layers(folder, layers)
        command = [sys.executable, "-c", _MEASURE, str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks.append(int(done.stdout))
        for path in folder.iterdir():
            path.unlink()
    assert peaks[1] <= 1.1 * peaks[0], peaks
    assert peaks[1] < 600 * 1024, peaks  # a pair of layers and torch itself, not 1.2 GB


def test_promise_5_an_architecture_that_no_table_knows():
    shapes = {
        "trunk.7.mixer.gate.weight": (40, 30),
        "trunk.7.mixer.gate.bias": (40,),
        "trunk.7.lens.weight": (12, 8, 3, 3),
        "trunk.7.scale": (40,),
    }
    base = grid(shapes, torch.float16)
    adapter, report = extract(source(base), source(planted(base)), 4)
    assert set(adapter.layers) == {
        "diffusion_model.trunk.7.mixer.gate",
        "diffusion_model.trunk.7.lens",
    }
    assert len(report.layers) + len(report.skips) == len(shapes)


def test_promise_6_nothing_lost(tmp_path):
    """A failure half-way leaves what was there; inputs stay as they are; metadata is carried."""
    base = grid(FLUX, torch.float16)
    tuned = planted(base)
    damaged = {**tuned, "single_blocks.0.linear1.weight": torch.full((336, 48), torch.nan).half()}
    output = tmp_path / "out.safetensors"
    output.write_bytes(b"what was there")
    metadata = {"modelspec.author": "someone", "modelspec.title": "stale", "sshs_model_hash": "0"}
    paths = saved(tmp_path, base, damaged, metadata)
    with pytest.raises(NonFiniteError):
        to_file(paths, output, force=True)
    assert output.read_bytes() == b"what was there"
    assert len(list(tmp_path.iterdir())) == 3

    paths = saved(tmp_path, base, tuned, metadata)
    before = [path.read_bytes() for path in paths]
    to_file(paths, output, force=True)
    assert [path.read_bytes() for path in paths] == before
    assert len(list(tmp_path.iterdir())) == 3
    with safe_open(output, "pt") as file:
        found = file.metadata()
    assert found["modelspec.author"] == "someone"
    assert found["modelspec.title"] == "out"
    assert len(found["sshs_model_hash"]) == 64
    for path in paths:
        with pytest.raises(LoraOpsError):
            to_file(paths, path, force=True)


@pytest.mark.parametrize("rule", ["4", "energy=0.8", "knee"])
def test_promise_7_the_same_inputs_give_the_same_bytes(tmp_path, rule):
    base = grid(FLUX, torch.float16) | {"blocks.0.wide.weight": torch.randn(400, 320).half()}
    paths = saved(tmp_path, base, trained(base))
    digests = set()
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        output = tmp_path / name / "out.safetensors"
        torch.manual_seed(len(digests))  # the global generator plays no part
        to_file(paths, output, rule)
        digests.add(hashlib.sha256(output.read_bytes()).hexdigest())
    assert len(digests) == 1
    assert load_file(tmp_path / "one" / "out.safetensors")


def test_a_plan_reads_headers_only():
    class Closed(type(source({}))):
        def tensor(self, key):
            raise AssertionError(f"{key} was read")

    base = Closed(grid(FLUX, torch.float16))
    assert len(plan_extraction(base, Closed(grid(FLUX, torch.float16)), 4).pairing.candidates) == 8
