"""What the core says, in Python's words and in the command line's: no flag in the core, none left out."""

from __future__ import annotations

import contextlib
import inspect
import json
import re
import shlex
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import is_typeddict

import pytest
import torch
from commands import lorakit_here
from messages import CORE, advice, calls, parameters
from safetensors.torch import save_file

from lorakit import lora_ops
from lorakit.cli import main
from lorakit.lora_ops import LayerReport, Report, Skip
from lorakit.lora_ops.errors import ArgumentError
from lorakit.lora_ops.inspect.lint import Finding, Lint
from lorakit.lora_ops.inspect.lint.findings import converting, leaving_out
from lorakit.terminal.as_json import write_json
from lorakit.terminal.lint import show_lint
from lorakit.terminal.tables import show_report
from lorakit.terminal.wording import COMMANDS, OPTIONS, worded

#: The command line's words: no `--flag`, and no command under the program's name.
FLAG = re.compile(rf"--[a-z]|lorakit (?:{'|'.join(main.commands)})\b")
SAID = "use `dtype=` bf16 or fp32, or `force=True`; see `describe()`"
TOLD = "use --dtype bf16 or fp32, or --force; see `lorakit info`"


BLOCK = "lora_unet_input_blocks_1_1_transformer_blocks_0_attn1"


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    """Two layers of Stable Diffusion 1, as kohya names them."""
    path = tmp_path / "lora.safetensors"
    tensors = {}
    for name in (f"{BLOCK}_to_q", f"{BLOCK}_to_k"):
        tensors[f"{name}.lora_up.weight"] = torch.ones(320, 2)
        tensors[f"{name}.lora_down.weight"] = torch.ones(2, 320)
        tensors[f"{name}.alpha"] = torch.tensor(2.0)
    save_file(tensors, path)
    return path


def public() -> dict[str, set[str]]:
    """Parameters, or fields, of all that the Python API has, by its name."""
    found: dict[str, set[str]] = {}
    for name in lora_ops.__all__:
        one = getattr(lora_ops, name)
        if is_dataclass(one):
            found[name] = {field.name for field in fields(one)}
        elif is_typeddict(one):
            found[name] = set(one.__annotations__)
        elif inspect.isfunction(one):
            found[name] = set(inspect.signature(one).parameters)
    return found


def flags() -> set[str]:
    return {flag for one in main.commands.values() for given in one.params for flag in given.opts}


def test_the_core_names_no_flag_and_no_command() -> None:
    """Neither in messages nor in comments; a docstring may tell a skin's name, not its words."""
    found = [
        (path.name, line)
        for path in sorted(CORE.rglob("*.py"))
        for line in path.read_text("utf-8").splitlines()
        if FLAG.search(line)
    ]
    assert found == []


def test_a_message_names_what_the_python_api_has() -> None:
    api = public()
    every = set().union(*api.values())
    messages = advice()
    assert len(messages) > 40
    for message in messages:
        assert parameters(message) <= every, message
        assert calls(message) <= set(api), message


def test_the_command_line_has_its_words_for_all_of_it() -> None:
    assert set(OPTIONS.values()) <= flags()
    assert set(COMMANDS.values()) <= set(main.commands)
    assert set(COMMANDS) <= set(public())
    for message in advice():
        assert parameters(message) <= set(OPTIONS), message
        assert calls(message) - {"place"} <= set(COMMANDS), message
        told = worded(message)
        assert told != message
        assert not parameters(told) | calls(told), (message, told)
        assert set(re.findall(r"--[a-z-]+", told)) <= flags(), told


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("exists already; choose another name or use `force=True`", "exists already; choose another name or use --force"),
        ('give one, as `rule=32` or `rule="error=0.1"`', "give one, as --rank 32 or --rank error=0.1"),
        ('convert it `to="lora"` first', "convert it `--to lora` first"),
        ('give `format=`, or `to="lora"`, or both', "give --format, or --to lora, or both"),
        ('use patterns, as in `where="te=0"`', "use patterns, as in `--where 'te=0'`"),
        ('raise `memory=` or use `place("cpu")`', "raise --vram or use --device cpu"),
        (
            'make it plain: `convert(lora, to="lora", base=checkpoint)`',
            "make it plain: `lorakit convert LORA --to lora --base CHECKPOINT`",
        ),
        ("`extract()` what changed", "`lorakit extract` what changed"),
        # A stranger's names stay as they are.
        ("`t=2`: give a number; `weight=` of `add(` and `add((`, and `eval(1)`", None),
    ],
)  # fmt: skip
def test_some_messages_in_the_words_of_the_command_line(said: str, told: str | None) -> None:
    assert worded(said) == (said if told is None else told)


def test_whatever_shows_what_the_core_says_words_it(capsys: pytest.CaptureFixture[str]) -> None:
    """Tables and JSON; names of files and tensors, whatever they look like, stay in JSON."""
    odd = "`force=True`"
    layer = LayerReport(odd, "unet", "linear", (4, 4), 2, 1.0, 0.1)
    report = Report((layer,), (Skip(odd, "unet", "norm", SAID, 1.0),), (SAID,))
    show_report(report)
    shown = " ".join(capsys.readouterr().out.split())
    assert f"note {TOLD}" in shown
    assert shown.count("--dtype") == 2
    assert "`dtype=`" not in shown
    write_json(report.to_dict(), "-")
    written = json.loads(capsys.readouterr().out)
    assert written["notes"] == [TOLD]
    assert written["skips"][0]["reason"] == TOLD
    assert [row["target"] for row in (*written["skips"], *written["layers"])] == [odd, odd]
    found = Lint(
        "a.safetensors", None, (), "kohya", (), (Finding("refused", "note", SAID, (), SAID),)
    )
    show_lint(found)
    assert capsys.readouterr().out.count(TOLD) == 2
    write_json(found.to_dict(), "-")
    (finding,) = json.loads(capsys.readouterr().out)["findings"]
    assert (finding["message"], finding["cure"]) == (TOLD, TOLD)


def test_an_error_speaks_python_to_python_and_flags_to_a_terminal(lora: Path) -> None:
    there = lora.with_name("there.safetensors")
    there.touch()
    with (
        lora_ops.open_source(lora) as source,
        pytest.raises(ArgumentError, match=r"choose another name or use `force=True`$"),
    ):
        lora_ops.scale_file(lora_ops.Ingredient(source, 0.5), there)
    run = lorakit_here("scale", lora, "-o", there)
    assert run.err.endswith("choose another name or use --force\n")


def test_a_cure_is_a_call_of_python_and_a_command_for_a_shell() -> None:
    source = "some dir/it's a `b`(c).safetensors"
    cure = converting(source, "lora", to="'lora'", dtype="torch.float16", allow_partial="True")
    assert shlex.split(worded(cure)) == [
        *("lorakit", "convert", source, "-o", "some dir/it's a `b`(c)-lora.safetensors"),
        *("--to", "lora", "--dtype", "fp16", "--allow-partial"),
    ]
    cure = leaving_out(source, "without", ["a b", "c"])
    assert shlex.split(worded(cure))[5:] == ["--where", "a b=0", "--where", "c=0"]


@pytest.mark.parametrize("code", ["convert", "scale"])
def test_a_cure_runs_in_python(code: str, lora: Path) -> None:
    cure = (
        converting(str(lora), "new", format="'comfy'", dtype="torch.float16")
        if code == "convert"
        else leaving_out(str(lora), "new", [f"{BLOCK}_to_q"])
    )
    with contextlib.ExitStack() as stack:
        names = {name: getattr(lora_ops, name) for name in lora_ops.__all__}
        names |= {"Path": Path, "torch": torch}
        names["open_source"] = lambda path: stack.enter_context(lora_ops.open_source(path))
        report = eval(cure, names)
    assert (len(report.layers), len(report.skips)) == ((2, 0) if code == "convert" else (1, 1))
    with lora_ops.open_source(lora.with_name("lora-new.safetensors")) as source:
        assert len(source.keys()) == 3 * len(report.layers)


def test_an_option_without_a_value_has_none() -> None:
    told = worded("keep them whole (`whole=`), or store them otherwise (`to=`)")
    assert told == "keep them whole (--whole), or store them otherwise (--to)"
    assert worded("use `whole=img_in.*`") == "use --whole 'img_in.*'"
