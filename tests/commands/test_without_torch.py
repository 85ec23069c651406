"""What looks at headers alone, and every refusal that they suffice for, does not import torch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from commands import DIGITS, ROOT, Run, python
from make_architecture import modules
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


def test_a_module_within_it_is_not_imported_twice() -> None:
    run = python(
        "from lorakit.commands.later import import_torch_later; import_torch_later(); import torch.nn"
    )
    assert run.status == 1
    assert "ImportError: `import torch`, and use it, before what is within it" in run.err


def test_two_threads_that_ask_at_once_get_all_of_it() -> None:
    run = python(
        "import sys, threading\n"
        "from lorakit.commands.later import import_torch_later\n"
        "import_torch_later()\n"
        "import torch\nfrom torch import Tensor\n"
        "assert not isinstance(1, Tensor)\n"
        "ask = lambda: print(isinstance(torch.linspace(0, 1, 3), Tensor))\n"
        "both = [threading.Thread(target=ask) for _ in range(2)]\n"
        "[one.start() for one in both]; [one.join() for one in both]\n"
    )
    assert (run.status, run.out.split(), run.err) == (0, ["True", "True"], "")


_IMPORTS = """
import importlib, sys
from lorakit.commands.later import _Later, import_torch_later
import_torch_later()
for name in sys.argv[1:]:
    importlib.import_module(name)
    if type(sys.modules["torch"]) is not _Later:
        sys.exit(f"{name} uses torch while it is imported")
"""


def test_no_module_uses_torch_while_it_is_imported() -> None:
    """Numbers, dtypes and defaults of torch are made in functions; see `commands.later`."""
    names = [f"lorakit.{name}" for name, _ in modules(ROOT) if name.startswith("lora_ops.")]
    heavy = [name for name in names if not name.startswith("lorakit.lora_ops.training")]
    assert len(heavy) > 300
    run = python(_IMPORTS, *heavy)
    assert run.status == 0, run.err
    run = python(
        _IMPORTS, "lorakit.lora_ops.training.adapted"
    )  # whose classes are modules of torch
    assert (run.status, run.err) == (
        1,
        "lorakit.lora_ops.training.adapted uses torch while it is imported\n",
    )


# (words, where {name} is a file of the fixture or of the digits; exit status; words of the answer)
HEADERS_SUFFICE = [
    ("info {base}", 0, "diffusion model"),
    ("info {missing}", 2, "no such file"),
    ("lint {lora} --headers-only", 0, "comfy"),
    ("lint {base}", 1, "not a LoRA"),
    ("metadata {lora}", 0, "lorakit.version"),
    ("metadata {lora} --set a=b -o {out} --dry-run", 0, "add    a"),
    ("extract {base} {tuned} -o {out} --dry-run", 0, "nothing was written"),
    ("extract {base} {tuned} -o {out} --dry-run -r energy=0.9", 0, "nothing was written"),
    ("extract {base} {tuned} -o {there}", 2, "exists already"),
    ("extract {base} {tuned} -o {out} -r foo=3", 2, "unknown rank rule"),
    ("extract {base} {lora} -o {out}", 1, "is an adapter"),
    ("extract {base} {model} -o {out}", 1, ""),
    ("extract {base} {missing} -o {out}", 2, "no such file"),
    ("verify {base} {tuned} {base}", 1, "not a LoRA"),
    ("resize {lora} -r 4 -o {there}", 2, "exists already"),
    ("resize {lora} -r foo=3 -o {out}", 2, "unknown rank rule"),
    ("resize {base} -r 4 -o {out}", 1, "not a LoRA"),
    ("scale {base} --strength 2 -o {out}", 1, "not a LoRA"),
    ("scale {lora} --strength 2 -o {there}", 2, "exists already"),
    ("add {lora} {base} -o {out}", 1, "not a LoRA"),
    ("add {lora} {lora} -o {there}", 2, "exists already"),
    ("compare {lora} {base}", 1, "not a LoRA"),
    ("convert {base} --format peft -o {out}", 1, "not a LoRA"),
    ("convert {lora} --format kohya -o {there}", 2, "exists already"),
    ("bake {base} {missing} -o {out}", 2, "no such file"),
    ("bake {base} {lora} -o {there}", 2, "exists already"),
    ("unbake {base} {lora} -o {there}", 2, "exists already"),
    ("merge {base} {lora} -o {out}", 2, "is a LoRA"),
    ("requantise {missing} --to int8 -o {out}", 2, "no such file"),
    ("recipe {missing}", 2, "no such file"),
]


@pytest.mark.parametrize(("line", "status", "said"), HEADERS_SUFFICE)
def test_an_answer_from_headers_needs_no_torch(
    line: str, status: int, said: str, folder: Path, tmp_path: Path
) -> None:
    files = {"base": BASE, "tuned": TUNED, "lora": LORA, "out": tmp_path / "out.safetensors"}
    files |= {name: folder / f"{name}.safetensors" for name in ("there", "model", "missing")}
    words = [word.format_map(files) if "{" in word else word for word in line.split()]
    run, count = modules_of_torch(*words)
    assert run.status == status, run.err
    assert said in (run.out if status == 0 else run.err)
    assert count == 0
    assert not files["out"].exists()
