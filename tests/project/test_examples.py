"""Every program in examples/ is short, uses the public interface alone, and says what is true."""

from __future__ import annotations

import ast
import math
import re
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import adapters
import pytest
import torch
from adapters import Part
from checkpoints import SD1, Tensors, grid, is_matrix, planted, target
from commands import ROOT, program
from safetensors.torch import load_file, save_file
from torch import nn

import lorakit.lora_ops as face

EXAMPLES = sorted(path for path in (ROOT / "examples").glob("*.py") if path.stem != "__init__")
MATRICES = [key for key, shape in SD1.items() if is_matrix(key, shape) and ".diffusion" in key]
ENCODER = [key for key, shape in SD1.items() if is_matrix(key, shape) and "cond_stage" in key]
Example = Callable[..., str]


@pytest.fixture
def example(
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Example:
    """Run the program that the test is named after, and return what it prints."""
    name = request.node.originalname.removeprefix("test_")

    def run(*words: object) -> str:
        path = ROOT / "examples" / f"{name}.py"
        monkeypatch.setattr(sys, "argv", [str(path), *map(str, words)])
        runpy.run_path(str(path), run_name="__main__")
        return capsys.readouterr().out

    return run


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """A checkpoint, and one whose every matrix has a change of rank 3."""
    base = grid(SD1, torch.float16)
    for name, tensors in (("base", base), ("tuned", planted(base))):
        save_file(tensors, tmp_path / f"{name}.safetensors")
    return tmp_path / "base.safetensors", tmp_path / "tuned.safetensors"


def lora(folder: Path, name: str, *parts: Part) -> Path:
    return adapters.written(folder / f"{name}.safetensors", adapters.tensors(parts, "comfy"))


def parts(seed: int, rank: int = 4) -> list[Part]:
    """Layers of a UNet, whose first differ in rank from the last."""
    forms = ("linear", "conv1x1", "conv3x3")
    return [Part(form, rank + at, alpha=4.0, seed=seed + at) for at, form in enumerate(forms)]


def joined(found: Tensors) -> torch.Tensor:
    return torch.cat([found[key].flatten() for key in sorted(found)])


def numbers(pattern: str, text: str) -> list[float]:
    found = re.search(pattern, text)
    assert found is not None, text
    return [float(number) for number in found.groups()]


def test_extract_in_memory(example: Example, pair: tuple[Path, Path]) -> None:
    said = example(*pair, "3")
    assert f"{len(MATRICES) + len(ENCODER)} layers, relative error 0.000" in said
    base, tuned = map(load_file, pair)
    # The autoencoder is no part of what is asked for; the noise schedule of none.
    asked = [key for key in SD1 if not key.startswith(("first_stage", "betas"))]
    squares = {k: float((tuned[k].double() - base[k].double()).square().sum()) for k in asked}
    left = sum(square for key, square in squares.items() if key not in (*MATRICES, *ENCODER))
    assert f"left out: {left / sum(squares.values()):.2%}" in said


def test_extract_with_a_plan(example: Example, pair: tuple[Path, Path], tmp_path: Path) -> None:
    output = tmp_path / "lora.safetensors"
    said = example(*pair, output, "3")
    wanted = [key for key in (*MATRICES, *ENCODER) if "time_embed" not in key]
    values = sum(3 * (SD1[key][0] + math.prod(SD1[key][1:])) for key in wanted)
    assert said.startswith(f"{len(wanted)} weights by rule 3: at most {2 * values / 1e6:.2f} MB")
    assert f"{len(wanted)} layers, {output.stat().st_size / 1e6:.2f} MB, error 0.000" in said
    assert set(adapters.changes(load_file(output))) == {target(key) for key in wanted}


def test_resize_to_budget(example: Example, tmp_path: Path) -> None:
    source, output = lora(tmp_path, "lora", *parts(0, rank=8)), tmp_path / "small.safetensors"
    said = example(source, output, "mean=4")
    before, after = load_file(source), load_file(output)
    ranks = [len(after[key]) for key in after if key.endswith(".lora_A.weight")]
    assert sum(ranks) == 12
    told = re.findall(r"rank \d+ to (\d+): (\d+) layers", said)
    assert sum(int(rank) * int(count) for rank, count in told) == 12
    meant, kept = joined(adapters.changes(before)), joined(adapters.changes(after))
    size, error = numbers(r"(\d+) bytes, ([\d.]+) of the change lost", said)
    assert size == output.stat().st_size
    assert error == pytest.approx(float((kept - meant).norm() / meant.norm()), abs=1e-4)


def test_add_three(example: Example, tmp_path: Path) -> None:
    sources = [lora(tmp_path, name, *parts(10 * at)) for at, name in enumerate("abc")]
    output = tmp_path / "sum.safetensors"
    said = example(*sources, output)
    found = [adapters.changes(load_file(path)) for path in sources]
    wanted = {k: 0.7 * found[0][k] + 0.5 * found[1][k] - 0.3 * found[2][k] for k in found[0]}
    written = load_file(output)
    assert {len(written[key]) for key in written if key.endswith("lora_A.weight")} == {8}
    whole, kept = joined(wanted), joined(adapters.changes(written))
    (error,) = numbers(r"at rank 8: 3 layers, error ([\d.]+)", said)
    assert "exactly: ranks up to 18" in said
    assert error == pytest.approx(float((kept - whole).norm() / whole.norm()), abs=1e-4)
    assert 0 < error < 0.5


def test_convert_formats(example: Example, tmp_path: Path) -> None:
    source, folder = lora(tmp_path, "lora", *parts(0)), tmp_path / "out"
    folder.mkdir()
    said = example(source, folder, "sd1")
    assert said.startswith(f"{source} is named as comfy\n")
    assert "kohya: 3 layers, such as lora_unet_" in said
    assert "peft: 3 layers, such as base_model.model." in said
    whole = float(joined(adapters.changes(load_file(source))).norm())
    for name in ("kohya", "comfy", "diffusers"):
        found = adapters.changes(load_file(folder / f"{name}.safetensors"))
        assert float(joined(found).norm()) == pytest.approx(whole, rel=1e-3)
    assert (folder / "peft" / "adapter_config.json").is_file()


def test_compare_two(example: Example, tmp_path: Path) -> None:
    first = lora(tmp_path, "first", *parts(0))
    second = lora(tmp_path, "second", *parts(0)[:2], Part(rank=3, seed=9, module="middle.to_q"))
    said = example(first, second)
    one, other = adapters.changes(load_file(first)), adapters.changes(load_file(second))
    assert "2 of 4 layers in both" in said
    every = {*one, *other}
    a, b = (
        torch.cat([x.get(k, 0 * (one | other)[k]).flatten() for k in every]) for x in (one, other)
    )
    cosine, distance = numbers(r"\ncosine ([\d.]+), distance ([\d.]+)", said)
    assert cosine == pytest.approx(float(a @ b / (a.norm() * b.norm())), abs=1e-4)
    assert distance == pytest.approx(float((a - b).norm() / a.norm()), abs=1e-4)


def test_bake_and_verify(example: Example, tmp_path: Path) -> None:
    source = lora(
        tmp_path,
        "lora",
        *(Part(size=0.01, seed=s, form=f) for s, f in enumerate(("linear", "conv3x3"))),
    )
    layers = adapters.changes(load_file(source))
    prefix, ours = "model.diffusion_model.", "diffusion_model."
    base = {
        k.replace(ours, prefix) + ".weight": torch.randn(v.shape).half() for k, v in layers.items()
    }
    save_file(base, tmp_path / "base.safetensors")
    output = tmp_path / "baked.safetensors"
    said = example(tmp_path / "base.safetensors", source, output, "0.5")
    baked = load_file(output)
    lost = {
        k: baked[k].double() - base[k].double() - 0.5 * layers[k.replace(prefix, ours)[:-7]]
        for k in base
    }
    share = float(joined(lost).norm() / (0.5 * joined(layers)).norm())
    assert numbers(r"2 weights changed, ([\d.e+-]+) lost", said) == [pytest.approx(share, rel=0.01)]
    assert numbers(r"read back from the files: ([\d.e+-]+)", said) == [
        pytest.approx(share, rel=0.01)
    ]
    assert 1e-4 < share < 0.5


def test_merge_and_repeat(example: Example, pair: tuple[Path, Path], tmp_path: Path) -> None:
    output, again = tmp_path / "merged.safetensors", tmp_path / "again.safetensors"
    said = example(*pair, output, again, "0.25")
    base, tuned, merged = map(load_file, (*pair, output))
    # Rounded once from float32: no further off than half of a last place of what is in between.
    for key in MATRICES:
        wanted = base[key].double() + 0.25 * (tuned[key].double() - base[key].double())
        assert torch.equal(merged[key], wanted.float().half())
    assert torch.equal(merged["betas"], base["betas"])
    sides = [joined({key: side[key] for key in MATRICES}).double() for side in (base, tuned)]
    (moved,) = numbers(r"unet by ([\d.]+)", said)
    assert moved == pytest.approx(
        float(0.25 * (sides[1] - sides[0]).norm() / sides[0].norm()), 0.05
    )
    assert "merged.safetensors, by lorakit: 0.25*(tuned - base)" in said.replace("base + ", "")
    assert again.read_bytes() == output.read_bytes()


def test_train_in_a_module(example: Example, tmp_path: Path) -> None:
    output = tmp_path / "trained.safetensors"
    said = example(output)
    before, after = numbers(r"layers 0, 2: loss ([\d.]+) to ([\d.]+)", said)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))
    x = torch.randn(256, 16)
    wanted = model(x).detach() + 0.1 * x.roll(1, dims=1)
    assert before == pytest.approx(nn.functional.mse_loss(model(x), wanted).item(), abs=1e-5)
    for name, change in adapters.changes(load_file(output)).items():
        model.get_submodule(name.removeprefix("diffusion_model.")).weight.data += change.float()
    # The file holds one step more than the last loss that is printed.
    assert after == pytest.approx(nn.functional.mse_loss(model(x), wanted).item(), rel=0.02)
    assert after < 0.6 * before


def test_lint_a_file(example: Example, tmp_path: Path) -> None:
    fine, zero = parts(0)[:1], Part("conv3x3", alpha=0.0)
    said = example(lora(tmp_path, "lora", *fine, zero))
    assert "ComfyUI 0.33: 2 of 2 layers load" in said
    assert "warning alpha-zero: " in said
    broken = adapters.tensors(fine, "comfy")
    next(iter(broken.values()))[0] = torch.nan
    with pytest.raises(SystemExit) as left:
        example(adapters.written(tmp_path / "broken.safetensors", broken))
    assert left.value.code == 1


def test_read_info(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """In a process of its own, as its head says: no program there stands in for another module."""
    source, text = lora(tmp_path, "lora", *parts(0)), tmp_path / "notes.txt"
    text.write_text("no tensors at all")
    done = program(
        sys.executable, ROOT / "examples/read_info.py", text, source, pair[0], cwd=tmp_path
    )
    assert done.status == 0
    assert done.err.startswith(str(text))
    lines = done.out.splitlines()
    assert lines[0].startswith(f"{source}: LoRA adapter, ")
    assert "  comfy, ranks (layers) 4 (1), 5 (1), 6 (1)" in lines
    assert f"{pair[0]}: checkpoint, Stable Diffusion 1" in lines
    unet = [shape for key, shape in SD1.items() if key.startswith("model.diffusion_model.")]
    values = sum(torch.Size(shape).numel() for shape in unet)
    assert f"  diffusion model: {len(unet)} tensors, {values} values" in lines


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
class TestEach:
    def test_is_short_and_says_what_it_shows(self, path: Path) -> None:
        code = path.read_text("utf-8")
        head = ast.get_docstring(ast.parse(code)) or ""
        assert len(code.splitlines()) < 40
        assert re.match(r"[A-Z].{30,}\.\n\npython examples/" + path.name + r" [A-Z]", head)

    def test_uses_the_public_interface_alone(self, path: Path) -> None:
        tree = ast.parse(path.read_text("utf-8"))
        ours = [one for one in ast.walk(tree) if isinstance(one, ast.ImportFrom)]
        modules = {one.module: [name.name for name in one.names] for one in ours}
        assert set(modules["lorakit.lora_ops"]) <= set(face.__all__)
        assert all(not one.level for one in ours)
        inside = {"lorakit.lora_ops", "lorakit.lora_ops.errors"}
        assert {str(name) for name in modules if str(name).startswith("lorakit")} <= inside
        plain = [one for one in ast.walk(tree) if isinstance(one, ast.Import)]
        assert not any(name.name.startswith("lorakit") for one in plain for name in one.names)

    def test_is_run_here_and_shown_to_the_reader(self, path: Path) -> None:
        assert f"test_{path.stem}" in globals()
        assert f"(examples/{path.name})" in (ROOT / "README.md").read_text("utf-8")


def test_there_are_eleven() -> None:
    assert len(EXAMPLES) == 11
