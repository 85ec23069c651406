"""What looks at headers alone, and every refusal that they suffice for, does not import torch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from commands import DIGITS, Run, python
from safetensors.torch import save_file

BASE, TUNED, LORA = (DIGITS / f"{name}.safetensors" for name in ("base", "tuned", "lora"))
# The modules of torch that are there in the end: none of them is what stands in its place until then.
_PROGRAM = """
import sys
from lorakit.cli import main
try:
    main(sys.argv[1:])
finally:
    print("modules of torch:", sum(name.startswith("torch.") for name in sys.modules), file=sys.stderr)
"""


def modules_of_torch(*words: object) -> tuple[Run, int]:
    """Run a command, and count."""
    run = python(_PROGRAM, *words)
    said, _, number = run.err.rpartition("modules of torch: ")
    return Run(run.status, run.out, said), int(number)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files with little in them."""
    made = tmp_path_factory.mktemp("files")
    save_file({"a.alpha": torch.tensor(8.0), "b": torch.ones(2, 2)}, made / "model.safetensors")
    kohya = {"lora_up.weight": torch.ones(4, 2), "lora_down.weight": torch.ones(2, 3)}
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.int64):
        kohya["alpha"] = torch.tensor(3, dtype=dtype)
        tensors = {f"lora_unet_a.{key}": value for key, value in kohya.items()}
        save_file(tensors, made / f"{dtype}.safetensors")
    (made / "there.safetensors").touch()
    return made


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "int64"])
def test_info_reads_headers_and_alphas_alone(folder: Path, dtype: str) -> None:
    run, count = modules_of_torch("info", folder / f"torch.{dtype}.safetensors")
    assert (run.status, count) == (0, 0)
    assert "3: 1 layer" in run.out
    assert modules_of_torch("info", BASE)[1] == 0


def test_what_computes_is_seen(tmp_path: Path) -> None:
    run, count = modules_of_torch(
        "scale", LORA, "--strength", "2", "-o", tmp_path / "x.safetensors"
    )
    assert run.status == 0, run.err
    assert count > 100
