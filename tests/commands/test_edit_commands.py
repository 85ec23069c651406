"""The commands that edit adapters: what they print, write and return; real adapters go through all."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from adapters import EVERY_FORM, Part, changes, tensors, written
from commands import PLAIN, REAL, SCRIPT, Run, contents, lorakit_here
from safetensors.torch import load_file, save_file

from lorakit.cli import main
from lorakit.lora_ops.linalg.ranks.rules import BUDGETS
from lorakit.lora_ops.operations.methods import METHODS

A = tensors([Part(p.form, 5, 2.5, torch.float16, p.seed) for p in EVERY_FORM])
B = tensors([Part(p.form, 3, None, torch.float16, 9 + p.seed) for p in EVERY_FORM])
Q = "lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two adapters in the working folder."""
    monkeypatch.chdir(tmp_path)
    written(tmp_path / "a.safetensors", A)
    written(tmp_path / "b.safetensors", B)
    return tmp_path


def done(*words: object) -> str:
    run = lorakit_here(*words)
    assert (run.status, run.err) == (0, "")
    return run.out


def as_json(*words: object) -> dict[str, Any]:
    return json.loads(done(*words, "--json", "-"))


def sizes(path: Path | str) -> dict[str, int]:
    return {key: len(tensor) for key, tensor in load_file(path).items() if "lora_down" in key}


def off(path: Path | str, wanted: dict[str, torch.Tensor]) -> float:
    found = changes(load_file(path))
    assert found.keys() == wanted.keys()
    return max(float((found[k] - wanted[k]).norm() / wanted[k].norm()) for k in wanted)


def weighed(*terms: tuple[dict[str, torch.Tensor], float]) -> dict[str, torch.Tensor]:
    total: dict[str, torch.Tensor] = {}
    for found, strength in terms:
        for module, change in changes(found).items():
            total[module] = total.get(module, 0) + strength * change
    return total


# --- Each command --------------------------------------------------------------------------------


def test_resize(folder: Path) -> None:
    out = done("resize", "a.safetensors", "-o", "x.safetensors", "-r", "2")
    assert out.endswith("wrote x.safetensors\n")
    assert out.count(" 5 → 2 ") == len(EVERY_FORM)
    assert set(sizes("x.safetensors").values()) == {2}
    assert re.search(
        r"^5 layers, relative error 0\.\d{4} \(unet 0\.\d{4}\), energy kept", out, re.M
    )


def test_scale(folder: Path) -> None:
    words = ("--where", "proj_in=-1", "--where", "/blocks_2/=0")
    out = done("scale", "a.safetensors", "-o", "x.safetensors", "-s", "0.5", *words)
    assert out.endswith("wrote x.safetensors\n")
    assert re.search(r"^ +0\.5 +3 *$", out, re.M)
    assert re.search(r"^ +-0\.5 +1 *$", out, re.M)
    assert re.search(r"conv 3x3 +strength 0 +1 ", out)
    wanted = {module: 0.5 * change for module, change in changes(A).items()}
    del wanted["lora_unet_input_blocks_2_0_in_layers_2"]
    wanted["lora_unet_input_blocks_1_1_proj_in"] *= -1
    assert off("x.safetensors", wanted) < 1e-6
    bits = load_file("x.safetensors")
    assert all(torch.equal(bits[k], A[k]) for k in bits if not k.endswith(".alpha"))


def test_add(folder: Path) -> None:
    out = done("add", "a.safetensors:0.7", "b.safetensors:-0.3", "-o", "x.safetensors")
    assert out.endswith("wrote x.safetensors\n")
    assert len(re.findall(r" 5 \+ 3 → 8 +0\.7 -0\.3 ", out)) == len(EVERY_FORM)
    assert off("x.safetensors", weighed((A, 0.7), (B, -0.3))) < 2e-3
    out = done("add", "a.safetensors", "b.safetensors", "-o", "y.safetensors", "-r", "2,conv=1")
    assert set(sizes("y.safetensors").values()) == {1, 2}
    assert " 5 + 3 → 2 " in out


def test_compare(folder: Path) -> None:
    out = done("compare", "a.safetensors", "a.safetensors")
    assert out.endswith(
        "5 layers in both, 0 in one alone: cosine 1.0000, distance 0.0000 (norms "
        + " and ".join(2 * [f"{torch.cat([c.flatten() for c in changes(A).values()]).norm():.4g}"])
        + ")\n"
    )
    done("scale", "a.safetensors", "-o", "x.safetensors", "-s", "-0.5", "--where", "proj_in=0")
    out = done("compare", "a.safetensors", "x.safetensors")
    assert "4 layers in both, 1 in one alone: cosine -0." in out
    assert out.count("-1.0000") == 4


@pytest.mark.parametrize("word", ["resize", "add", "compare", "scale"])
def test_verbose_shows_every_layer(word: str, folder: Path) -> None:
    parts = [Part(rank=2, shape=(8, 9), module=f"middle_block.1.x{i}.to_q") for i in range(20)]
    written(folder / "a.safetensors", tensors(parts))
    written(folder / "b.safetensors", tensors(parts))
    words: dict[str, list[str]] = {
        "resize": ["a.safetensors", "-o", "x.safetensors", "--force", "-r", "1"],
        "scale": ["a.safetensors", "-o", "x.safetensors", "--force", "-s", "2"],
        "add": ["a.safetensors", "b.safetensors", "-o", "x.safetensors", "--force"],
        "compare": ["a.safetensors", "b.safetensors"],
    }
    few, all_ = done(word, *words[word]), done(word, *words[word], "-v")
    assert few.count("_to_q") == (0 if word == "scale" else 12)
    assert all_.count("_to_q") == 20
    assert ("-v shows all" in few) == (word != "scale")
    assert "-v shows all" not in all_


COMMANDS: dict[str, tuple[str, ...]] = {
    "resize": ("resize", "a.safetensors", "-o", "x.safetensors", "-r", "2"),
    "scale": ("scale", "a.safetensors", "-o", "x.safetensors", "-s", "0.5"),
    "add": ("add", "a.safetensors", "b.safetensors:2", "-o", "x.safetensors"),
    "compare": ("compare", "a.safetensors", "b.safetensors"),
}
every = pytest.mark.parametrize("words", COMMANDS.values(), ids=COMMANDS)
writing = pytest.mark.parametrize("words", list(COMMANDS.values())[:3], ids=list(COMMANDS)[:3])


@every
def test_json_alone_on_stdout_or_in_a_file(words: tuple[str, ...], folder: Path) -> None:
    report = as_json(*words)
    assert len(report["layers"]) == len(EVERY_FORM)
    force = () if words[0] == "compare" else ("--force",)
    out = done(*words, *force, "--json", "r.json")
    assert "layers" in out
    assert out.startswith(("\n", " "))
    same = json.loads((folder / "r.json").read_text())
    assert same.keys() == report.keys()
    assert same["layers"] == report["layers"]


def test_json_says_ranks_coefficients_and_errors(folder: Path) -> None:
    layers = {layer["target"]: layer for layer in as_json(*COMMANDS["add"])["layers"]}
    assert layers[Q]["coefficients"] == [1.0, 2.0]
    assert layers[Q]["was"] == [5, 3]
    assert layers[Q]["rank"] == 8
    assert layers[Q]["error"] < 1e-3
    found = as_json("compare", "a.safetensors", "b.safetensors")
    one, other = changes(A)[Q], changes(B)[Q]
    cosine = float((one * other).sum() / one.norm() / other.norm())
    assert next(x for x in found["layers"] if x["target"] == Q)["cosine"] == pytest.approx(cosine)


@writing
@pytest.mark.parametrize("name", ["a.safetensors", "none/r.json", "sub"])
def test_a_bad_place_for_json_is_refused_before_the_work(
    words: tuple[str, ...], name: str, folder: Path
) -> None:
    (folder / "sub").mkdir()
    before = contents(folder)
    run = lorakit_here(*words, "--json", name)
    assert run.status == 2
    assert contents(folder) == before


# --- Words that a user gives ---------------------------------------------------------------------


def test_strengths_and_blocks_of_each_input(folder: Path) -> None:
    words = ("a.safetensors:0.5:IN01=1,IN02=0", "b.safetensors", "a.safetensors:-0.25:INS")
    report = as_json("add", *words, "-o", "x.safetensors")
    times = {layer["target"]: layer["coefficients"] for layer in report["layers"]}
    assert times[Q] == [0.5, 1.0, -0.25]
    assert times["lora_unet_input_blocks_2_0_in_layers_2"] == [0.0, 1.0, -0.25]


def test_where_is_for_all_inputs(folder: Path) -> None:
    del_core = {k: v for k, v in B.items() if "blocks_2" not in k}
    written(folder / "b.safetensors", del_core)
    words = ("--where", "blocks_2_0=0", "--where", "*to_q=2")
    report = as_json("add", "a.safetensors", "b.safetensors", "-o", "x.safetensors", *words)
    assert {layer["target"]: layer["coefficients"] for layer in report["layers"]}[Q] == [2.0, 2.0]
    assert [skip["reason"] for skip in report["skips"]] == ["strength 0"]


@pytest.mark.parametrize(
    ("method", "wanted"),
    [
        ("sum", [1.0, 1.0]),
        ("average", [0.5, 0.5]),
        ("slerp,t=0", [1.0, 0.0]),
        ("slerp, t=1", [0.0, 1.0]),
    ],
)
def test_methods(method: str, wanted: list[float], folder: Path) -> None:
    words = ("a.safetensors", "b.safetensors", "-o", "x.safetensors", "-m", method)
    report = as_json("add", *words)
    assert report["layers"][0]["coefficients"] == pytest.approx(wanted)
    assert {layer["rank"] for layer in report["layers"]} == {
        5 * (wanted[0] > 0) + 3 * (wanted[1] > 0)
    }


def test_every_method_works_and_stands_in_the_help(folder: Path) -> None:
    text = " ".join(done("add", "--help").split())
    for method, known in METHODS.items():
        assert re.search(rf"[ ,(]{method}\b", text), method
        words = ("a.safetensors", "a.safetensors:0.5", "-o", "x.safetensors", "--force")
        run = lorakit_here("add", *words, "--method", method)
        # Of two that are one, nothing is left without its part along the other.
        assert run.status == (1 if method == "orthogonalise" else 0), run.err
        for name, parameter in known.parameters.items():
            assert f"{name}=" not in text or f"{name}={parameter.default:g}" in text


def test_the_budgets_of_the_help_are_those_there_are(folder: Path) -> None:
    text = " ".join(done("resize", "--help").split())
    shown = re.findall(r"\b(size|mean|total_error)=([\d.]+\w*)", text)
    assert {name for name, _ in shown} == set(BUDGETS)
    for name, value in shown:
        done("resize", "a.safetensors", "-o", f"{name}.safetensors", "-r", f"{name}={value}")


def test_every_format_of_the_help(folder: Path) -> None:
    (option,) = (one for one in main.commands["add"].params if one.name == "format_")
    written(folder / "c.safetensors", tensors(EVERY_FORM[:1], "comfy"))
    for format in option.type.choices:  # type: ignore[attr-defined]
        name = f"{format}.safetensors"
        done("add", "c.safetensors", "-o", name, "--format", format)
        heads = {"kohya": "lora_unet_", "comfy": "diffusion_model.", "peft": "base_model.model."}
        head = heads.get(format, "unet.")
        assert all(key.startswith(head) for key in load_file(folder / name))


@pytest.mark.parametrize("dtype", ["fp16", "bf16", "fp32"])
def test_the_number_format_that_is_asked_for(dtype: str, folder: Path) -> None:
    wanted = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}[dtype]
    for words in (COMMANDS["resize"], COMMANDS["add"]):
        done(*words, "--force", "--dtype", dtype)
        found = load_file("x.safetensors")
        assert {t.dtype for k, t in found.items() if not k.endswith(".alpha")} == {wanted}


def test_names_with_spaces_and_letters_of_all_kinds(folder: Path) -> None:
    shutil.copy("a.safetensors", "mein Stil, é.safetensors")
    out = done("add", "mein Stil, é.safetensors:0.5", "b.safetensors", "-o", "日本 語.safetensors")
    assert out.endswith("wrote 日本 語.safetensors\n")


# --- Folders -------------------------------------------------------------------------------------


def test_a_folder_is_resized_file_by_file_and_a_bad_one_does_not_stop_it(folder: Path) -> None:
    source = folder / "in" / "sub"
    source.mkdir(parents=True)
    shutil.copy("a.safetensors", folder / "in" / "a.safetensors")
    shutil.copy("b.safetensors", source / "z.safetensors")
    (folder / "in" / "m.safetensors").write_bytes(b"hi")
    run = lorakit_here("resize", "in", "-o", "out", "-r", "2")
    assert run.status == 1
    first, second = run.out.splitlines()
    assert re.fullmatch(r"a\.safetensors: rank 5 → 2, error 0\.\d{4}, [\d.]+ kB", first)
    assert re.fullmatch(r"sub.z\.safetensors: rank 3 → 2, error 0\.\d{4}, [\d.]+ kB", second)
    bad, last = run.err.splitlines()
    assert bad.startswith("m.safetensors: ")
    assert "not a safetensors file" in bad
    assert last == "Error: 1 of 3 files could not be resized"
    made = [path.relative_to(folder / "out").as_posix() for path in (folder / "out").rglob("*.*")]
    assert sorted(made) == ["a.safetensors", "sub/z.safetensors"]
    run = lorakit_here("resize", "in", "-o", "out", "-r", "2", "--force", "--json", "-")
    assert run.status == 1
    found = json.loads(run.out)["files"]
    assert list(found) == ["a.safetensors", "m.safetensors", "sub/z.safetensors"]
    assert "not a safetensors file" in found["m.safetensors"]["error"]
    assert len(found["sub/z.safetensors"]["layers"]) == len(EVERY_FORM)
    (folder / "in" / "m.safetensors").unlink()
    assert lorakit_here("resize", "in", "-o", "out", "-r", "1", "--force").status == 0


# --- Exit status ---------------------------------------------------------------------------------


@every
def test_status_0_with_nothing_on_stderr(words: tuple[str, ...], folder: Path) -> None:
    done(*words)


def assert_refused(run: Run, status: int, *words: str) -> None:
    assert run.status == status, run.out + run.err
    assert run.out == ""
    assert run.err.count("\n") == 1 or run.err.startswith("Usage:")
    for word in words:
        assert word in run.err


@every
def test_status_1_where_a_file_is_none(words: tuple[str, ...], folder: Path) -> None:
    (folder / "a.safetensors").write_bytes(b"x" * 100)
    before = contents(folder)
    assert_refused(lorakit_here(*words), 1, "Error: a.safetensors: ")
    assert contents(folder) == before


@every
def test_status_2_where_a_file_is_missing(words: tuple[str, ...], folder: Path) -> None:
    (folder / "a.safetensors").unlink()
    assert_refused(lorakit_here(*words), 2, "Error: a.safetensors: ")


@writing
def test_status_2_where_the_output_exists(words: tuple[str, ...], folder: Path) -> None:
    done(*words)
    before = contents(folder)
    assert_refused(lorakit_here(*words), 2, "exists already; choose another name or use --force")
    assert contents(folder) == before
    done(*words, "--force")
    assert contents(folder) == before, "the same inputs, the same bytes"


@writing
def test_status_2_where_the_output_is_an_input(words: tuple[str, ...], folder: Path) -> None:
    before = contents(folder)
    onto = [word.replace("x.safetensors", "a.safetensors") for word in words]
    assert_refused(lorakit_here(*onto, "--force"), 2, "is the same file as the input")
    assert contents(folder) == before


ADD = ("add", "a.safetensors", "b.safetensors", "-o", "x.safetensors")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ((*ADD, "--method", "slrp"), ["unknown method `slrp`; did you mean `slerp`?"]),
        ((*ADD, "--method", "slerp,t=x"), ["`t=x`", "as in `slerp,t=0.3`"]),
        ((*ADD, "--method", "slerp,t=2"), ["`t=2`: give a number from 0 to 1"]),
        ((*ADD, "--method", "sum,t=1"), ["no parameter `t`; it takes none"]),
        ((*ADD, "a.safetensors", "--method", "slerp"), ["takes 2 inputs, not 3", "`karcher`"]),
        ((*ADD, "--scope", "core"), ["method `sum` has no parameter `scope`; it takes none"]),
        (
            (*ADD, "--method", "ties,scope=core", "--scope", "core"),
            ["the scope is given twice: by --scope, and in --method"],
        ),
        ((*ADD, "--where", "proj_inn=0"), ["`proj_inn` fits none of 5 layers", "`proj_in`"]),
        ((*ADD, "--where", "te=0"), ["`te` fits none of 5 layers; the file has unet"]),
        ((*ADD, "-r", "enrgy=0.9"), ["did you mean `energy`?"]),
        ((*ADD, "-r", "size=5MB"), ["is a budget across layers, which this operation does not"]),
        ((*ADD, "--format", "comfy"), ["has no name in format `comfy`", "--reference"]),
        ((*ADD, "--format", "lycoris"), ["'lycoris' is not one of"]),
        (("add", "a.safetensors:x", "-o", "x.safetensors"), ["`x` in `a.safetensors:x`"]),
        (("add", "a.safetensors:1:OUTAL", "-o", "x.safetensors"), ["nearest: `OUTALL`"]),
        (("add", "-o", "x.safetensors"), ["Missing argument"]),
        ((*COMMANDS["resize"][:4], "-r", "0.5"), ["`0.5`: a rank is a whole number from 1"]),
        ((*COMMANDS["resize"], "--relative-to", "b.safetensors"), ["use a budget: size="]),
        ((*COMMANDS["resize"], "--norm", "spectral"), ["the spectral norm is of weights that a"]),
        (COMMANDS["resize"][:4], ["Missing option '-r' / '--rank'"]),
        ((*COMMANDS["resize"], "--alpha", "0"), ["0.0 is not in the range x>0"]),
        ((*COMMANDS["scale"], "--where", "te=0"), ["`te` fits none of 5 layers"]),
        ((*COMMANDS["scale"][:4], "-s", "nan"), ["nan", "finite"]),
        ((*COMMANDS["scale"], "--blocks", "1,2"), ["no list has 2 numbers"]),
        (("compare", "a.safetensors"), ["Missing argument 'SECOND'"]),
    ],
)
def test_status_2_where_it_was_asked_wrongly(
    words: tuple[str, ...], told: list[str], folder: Path
) -> None:
    before = contents(folder)
    assert_refused(lorakit_here(*words), 2, *told)
    assert contents(folder) == before


# --- Ctrl-C --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter whose recompression takes seconds."""
    path = tmp_path_factory.mktemp("slow") / "a.safetensors"
    generator = torch.Generator().manual_seed(0)
    save_file(
        {
            f"lora_unet_middle_block_1_transformer_blocks_{i}_attn1_to_q.lora_{role}.weight": torch.randn(
                shape, generator=generator
            ).half()
            for i in range(12)
            for role, shape in (("up", (1024, 480)), ("down", (480, 1024)))
        },
        path,
    )
    return path


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")
@pytest.mark.parametrize("word", ["resize", "add"])
def test_ctrl_c_leaves_what_was_there(word: str, slow: Path, tmp_path: Path) -> None:
    output = tmp_path / "x.safetensors"
    output.write_bytes(b"what was there")
    inputs = [slow] if word == "resize" else [slow, f"{slow}:0.5"]
    process = subprocess.Popen(
        [SCRIPT, word, *inputs, "-o", output, "-r", "400", "--force", "--device", "cpu"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=PLAIN,
        # Python ignores Ctrl-C where its parent did: started in the background by a script.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    limit = time.monotonic() + 120
    while not any(path.stat().st_size > 0 for path in tmp_path.glob(".*.partial")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < limit, "no data after two minutes"
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode in (1, 130)
    assert (out, err.split()) == ("", ["Aborted!"])
    assert contents(tmp_path) == {"x.safetensors": b"what was there"}


# --- Adapters that no one here made --------------------------------------------------------------

real = pytest.mark.skipif(
    not REAL.exists(), reason="the real adapters are not beside this checkout"
)
ANALOG = REAL / "analog_svd_rank4_kohya.safetensors"
DISNEY = REAL / "lora_disney_kohya.safetensors"


def some(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a layer in 24: enough to multiply out."""
    found = load_file(path)
    modules = sorted({key.split(".")[0] for key in found})[::24]
    return {key: tensor for key, tensor in found.items() if key.split(".")[0] in modules}


def far(path: Path, wanted: dict[str, torch.Tensor]) -> float:
    """As `off`, of the layers that are wanted."""
    found = {k: t for k, t in load_file(path).items() if k.split(".")[0] in wanted}
    have = changes(found)
    return max(float((have[k] - wanted[k]).norm() / wanted[k].norm()) for k in wanted)


@real
@pytest.mark.parametrize(("path", "half"), [(ANALOG, 2), (DISNEY, 1)])
def test_real_adapters_are_resized_and_scaled(path: Path, half: int, tmp_path: Path) -> None:
    smaller, other = tmp_path / "small.safetensors", tmp_path / "other.safetensors"
    report = as_json("resize", path, "-o", smaller, "-r", half)
    assert (len(report["layers"]), report["skips"]) == (144, [])
    assert set(sizes(smaller).values()) == {half}
    found = as_json("compare", path, smaller)
    assert found["distance"] == pytest.approx(report["error"], rel=1e-4, abs=1e-6)
    assert (report["error"] > 0.3) == (path == ANALOG)
    done("scale", path, "-o", other, "-s", "-0.5", "--blocks", "OUTALL")
    assert sizes(other).keys() == {key for key in sizes(path) if "up_blocks" in key}
    wanted = {m: -0.5 * c for m, c in changes(some(path)).items() if "up_blocks" in m}
    assert far(other, wanted) < 1e-6


@real
def test_real_adapters_are_added_and_compared(tmp_path: Path) -> None:
    exact, best, other = (tmp_path / f"{name}.safetensors" for name in ("exact", "best", "other"))
    done("add", f"{ANALOG}:0.7", f"{DISNEY}:-0.003", "-o", exact)
    wanted = weighed((some(ANALOG), 0.7), (some(DISNEY), -0.003))
    assert far(exact, wanted) < 1e-6
    assert set(sizes(exact).values()) == {5}
    report = as_json("add", f"{ANALOG}:0.7", f"{DISNEY}:-0.003", "-o", best, "-r", "3")
    errors = {layer["target"]: layer["error"] for layer in report["layers"]}
    for module, change in wanted.items():
        if max(change.shape) <= 640:
            s = torch.linalg.svdvals(change)
            assert errors[module] == pytest.approx(float(s[3:].norm() / s.norm()), rel=1e-3)
    for method in ("slerp,t=0.3", "energy"):
        done("add", ANALOG, DISNEY, "-o", other, "--force", "-m", method, "-r", "2")
    done("add", exact, f"{DISNEY}:0.003", "-o", other, "--force")
    found = as_json("compare", ANALOG, other)
    assert found["shared"] == 144
    assert found["cosine"] == pytest.approx(1, abs=1e-9)
    assert found["distance"] == pytest.approx(0.3, rel=1e-5)
    found = {layer["target"]: layer for layer in as_json("compare", ANALOG, DISNEY)["layers"]}
    one, two = changes(some(ANALOG)), changes(some(DISNEY))
    for module in one:
        norms = [float(one[module].norm()), float(two[module].norm())]
        assert found[module]["norms"] == pytest.approx(norms, rel=1e-6)
        inner = float((one[module] * two[module]).sum())
        assert found[module]["inner"] == pytest.approx(inner, abs=1e-6 * norms[0] * norms[1])
