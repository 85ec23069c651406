"""What looks at headers alone, and every refusal that they suffice for, does not import torch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from commands import DIGITS, python, tiny_pair
from safetensors.torch import load_file, save_file
from torch_free import answers, modules_of_torch, without_torch

NAMES = ("base", "tuned", "tuned2", "lora", "dora")
BASE, TUNED, _, LORA, _ = FILES = [DIGITS / f"{name}.safetensors" for name in NAMES]


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
    tiny_pair(made)
    clip = {"cond_stage_model.transformer.text_model.embeddings.position_ids": torch.arange(77)}
    for name in ("base", "tuned"):
        save_file(clip | load_file(made / f"{name}.safetensors"), made / f"{name}_clip.safetensors")
    pair = {"lora_B.weight": torch.ones(16, 2), "lora_A.weight": torch.ones(2, 16)}
    attention = "transformer.transformer_blocks.0.attn"
    split = {f"{attention}.to_{of}.{key}": one.clone() for of in "qkv" for key, one in pair.items()}
    save_file(split, made / "split.safetensors")
    gains = {"weight": torch.ones(16), "on_input": torch.tensor(True)}
    save_file({f"lora_unet_a.{key}": one for key, one in gains.items()}, made / "ia3.safetensors")
    return made


def words_of(line: str, folder: Path, output: Path) -> list[str]:
    """The words of a command, with the files that it names."""
    names = {path.stem: path for path in [*folder.glob("*.safetensors"), *FILES]}
    names |= {"missing": folder / "missing.safetensors"}
    names |= {"out": output / "out.safetensors", "new": output / "new"}
    return [word.format_map(names) if "{" in word else word for word in line.split()]


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
        "ask = lambda: sys.stdout.write(f'{isinstance(torch.linspace(0, 1, 3), Tensor)}\\n')\n"
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
    heavy = without_torch()
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


# Likewise; each of these said the same, and brought torch, before the plans knew their numbers by name.
DRY = "nothing was written"
PLANS_SUFFICE = [
    ("resize {lora} -r 4 -o {out} --dry-run", 0, DRY),
    ("resize {lora} -r energy=0.9 --dtype fp16 -o {out} --dry-run", 0, DRY),
    ("resize {lora} -r mean=4 --relative-to {base} -o {out} --dry-run", 0, DRY),
    ("resize {dora} -r 4 --base {base} -o {out} --dry-run", 0, DRY),
    ("resize {dora} -r 4 -o {out} --dry-run", 1, "give the checkpoint that it was trained on"),
    ("resize {lora} -r 4 --relative-to {base} -o {out}", 2, "change nothing"),
    ("resize {lora} -r 4 --norm spectral -o {out}", 2, "compares with none"),
    ("scale {lora} -s 2 -o {out} --dry-run", 0, DRY),
    ("scale {lora} --where *emb*=0 -o {out} --dry-run", 0, DRY),
    ("scale {lora} -s 0 -o {out} --dry-run", 1, "no layer is left"),
    ("scale {dora} -s 2 -o {out} --dry-run", 1, "not proportional"),
    ("scale {lora} --where nothing*=0 -o {out}", 2, "fits none"),
    ("scale {lora} --blocks 1,2,3 -o {out}", 2, "no list has 3 numbers"),
    ("scale {lora} -s x -o {out}", 2, "Invalid value"),
    ("convert {lora} --format kohya -o {out} --dry-run", 0, DRY),
    ("convert {lora} --format peft --dtype bf16 -o {out} --dry-run", 0, DRY),
    ("convert {lora} --format peft -o {new} --dry-run", 0, DRY),
    ("convert {split} --format kohya --architecture flux -o {out} --dry-run", 0, DRY),
    ("convert {dora} --to lora -r 2 --base {base} -o {out} --dry-run", 0, DRY),
    ("convert {dora} --to lora -r 2 -o {out}", 1, "give the checkpoint that it was trained on"),
    ("convert {lora} -o {out}", 2, "nothing to convert"),
    ("convert {lora} --format nothing -o {out}", 2, "Invalid value"),
    ("convert {lora} --format kohya --architecture nothing -o {out}", 2, "unknown architecture"),
    ("convert {lora} --format kohya --base {base} -o {out}", 2, "leave it out"),
    ("add {lora} {lora}:0.5 -o {out} --dry-run", 0, DRY),
    ("add {lora} {lora}:0.5 -r 3 -m ties --dtype fp32 -o {out} --dry-run", 0, DRY),
    ("add {lora}:0 {lora}:0 -o {out} --dry-run", 1, "no layer is left"),
    ("add {lora} {lora} -m nothing -o {out}", 2, "unknown method"),
    ("add {lora} {lora}:x -o {out}", 2, "not a finite strength"),
    ("add {lora} {missing} -o {out}", 2, "no such file"),
    ("bake {base} {lora}:0.7 -o {out} --dry-run", 0, DRY),
    ("bake {base} {dora} --dtype fp16 -o {out} --dry-run", 0, DRY),
    ("bake {model} {lora} -o {out}", 1, "are not in"),
    ("bake {lora} {base} -o {out}", 1, "is an adapter"),
    ("bake {base} {lora}:0 -o {out}", 2, "every strength is 0"),
    ("bake {base} {lora} --to nothing -o {out}", 2, "is unknown"),
    ("bake {base} {lora} --seed 3 -o {out}", 2, "rounding by chance"),
    ("unbake {tuned} {lora} -o {out} --dry-run", 0, DRY),
    ("unbake {tuned} {dora} -o {out}", 1, "made from the weight as it was"),
    ("merge {base}:0.7 {tuned}:0.3 --dtype bf16 -o {out} --dry-run", 0, DRY),
    ("merge --base {base} {tuned} {tuned2} -m ties -o {out} --dry-run", 0, DRY),
    ("merge --base {base} {tuned} {lora}:0.5 -o {out} --dry-run", 0, DRY),
    ("merge --base {base} {tuned} --rank 4 -o {out} --dry-run", 0, DRY),
    ("merge {base_clip} {tuned_clip} -o {out} --dry-run", 0, DRY),
    ("merge {base} {tuned} -o {there}", 2, "exists already"),
    ("merge {base} {tuned} -m nothing -o {out}", 2, "unknown method"),
    ("merge {base} {model} -o {out}", 1, "nothing to merge"),
    ("requantise {base} --to nothing -o {out}", 2, "is unknown"),
    ("requantise {lora} --to int8 -o {out}", 1, "is an adapter"),
    ("requantise {base} --to int8 -o {there}", 2, "exists already"),
    ("requantise {base} --to q8_0 -o {out}", 2, "is a type of GGUF"),
    ("extract {base} {tuned} --kind lokr --dtype fp16 -o {out} --dry-run", 0, DRY),
    ("extract {base} {tuned} --kind nothing -o {out}", 2, "unknown kind"),
    ("extract {base} {tuned} --include nothing* -o {out}", 2, "fits none"),
    ("extract {base} {base} -o {out}", 1, "one file"),
    ("verify {base} {tuned} {missing}", 2, "no such file"),
    ("compare {lora} {missing}", 2, "no such file"),
    ("lint {missing}", 2, "no such file"),
]


COMMANDS = sorted({line.partition(" ")[0] for line, _, _ in [*HEADERS_SUFFICE, *PLANS_SUFFICE]})


@pytest.mark.parametrize("command", COMMANDS)
def test_an_answer_from_headers_needs_no_torch(command: str, folder: Path, tmp_path: Path) -> None:
    lines = [one for one in [*HEADERS_SUFFICE, *PLANS_SUFFICE] if one[0].split()[0] == command]
    found = answers([words_of(line, folder, tmp_path) for line, _, _ in lines])
    for (line, status, said), (run, count) in zip(lines, found, strict=True):
        assert run.status == status, (line, run.err)
        assert said in (run.out if status == 0 else run.err), line
        assert count == 0, (line, run.err)
    assert not list(tmp_path.iterdir())


# (words, exit status, why torch is needed): one that no longer brings it belongs above.
EXCEPTIONS = [
    ("requantise {base} --to fp8_scaled -o {out} --dry-run", 0, "what encodes tells its scales"),
    ("bake {base} {lora} --to int8 -o {out} --dry-run", 0, "likewise"),
    ("resize {lora} -r 4 --device nothing -o {out}", 2, "torch alone knows the devices"),
    ("scale {ia3} -s 2 -o {out} --dry-run", 0, "the side of IA3 is a tensor of its layer"),
]


def test_what_needs_torch_without_computing(folder: Path, tmp_path: Path) -> None:
    found = answers([words_of(line, folder, tmp_path) for line, _, _ in EXCEPTIONS])
    for (line, status, why), (run, count) in zip(EXCEPTIONS, found, strict=True):
        assert run.status == status, (line, run.err)
        assert count > 100, (line, why)
        assert run.err.startswith("torch is brought by lorakit."), line
    assert not list(tmp_path.iterdir())
