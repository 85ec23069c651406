"""The command line: help, streams, JSON, exit status, dry runs, and the same from a clone."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
from commands import (
    DIGITS,
    PLAIN,
    ROOT,
    SCRIPT,
    contents,
    lorakit_here,
    lorakit_there,
    program,
    tiny,
    tiny_pair,
)
from safetensors.torch import load_file, save_file

import lorakit
from lorakit.cli import main

posix_only = pytest.mark.skipif(os.name != "posix", reason="needs a POSIX terminal")

BASE, TUNED = DIGITS / "base.safetensors", DIGITS / "tuned.safetensors"
OPTIONS = [
    (name, option)
    for name, command in main.commands.items()
    for option in command.params
    if isinstance(option, click.Option)
]
NUMBERS = (click.types.IntParamType, click.types.FloatParamType)


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """A tiny pair in a folder of its own."""
    return tiny_pair(tmp_path)


class TestHelp:
    def test_the_first_line_of_every_command_fits(self) -> None:
        run = lorakit_here("--help")
        assert run.status == 0
        for name in main.commands:
            (line,) = re.findall(rf"^  {name} +([A-Z].*)$", run.out, re.MULTILINE)
            assert line.endswith(".")
            assert not line.endswith("...")

    @pytest.mark.parametrize("name", main.commands)
    def test_every_command_explains_itself(self, name: str) -> None:
        run = lorakit_here(name, "--help")
        assert (run.status, run.err) == (0, "")
        assert run.out == lorakit_here(name, "-h").out
        assert run.out.startswith(f"Usage: main {name} [OPTIONS]")
        for argument in main.commands[name].params:
            if isinstance(argument, click.Argument):
                shown = argument.metavar or str(argument.name).upper()
                assert shown in run.out.split("Options:")[0]

    @pytest.mark.parametrize(("command", "option"), OPTIONS)
    def test_every_option_says_what_it_is(self, command: str, option: click.Option) -> None:
        """A sentence; the default where it takes a value, the range where that is a number."""
        assert option.help is not None
        assert option.help[0].isupper() or option.help.startswith("auto")
        if option.is_flag or option.multiple or option.required or option.name == "json_to":
            return
        text = " ".join(lorakit_here(command, "--help").out.split())
        entry = text.split(f" {option.opts[-1]} ")[1].split(" --")[0]
        assert "[default: " in entry
        if isinstance(option.type, NUMBERS):
            assert re.search(r"x[<>]|1 is all", entry)

    def test_the_rank_rules_of_the_help_are_those_there_are(self) -> None:
        from lorakit.lora_ops.linalg.ranks.budgets import parse_rule

        rules = [
            *("energy", "fro", "error", "cumulative", "ratio", "threshold"),
            *("min", "max", "conv", "conv"),
        ]
        budgets = {
            command: ["size", "mean", "total_error"] for command in ("extract", "resize", "convert")
        }
        found = {command: option for command, option in OPTIONS if option.name == "rule"}
        assert {*found} == {"extract", "resize", "add", "convert"}
        for command, option in found.items():
            shown = re.findall(r"\b([a-z_]+)=(\d[0-9.]*(?:MB)?)", option.help or "")
            assert [name for name, _ in shown] == rules + budgets.get(command, [])
            for name, value in shown:
                parse_rule(f"{'8,' * (name in ('min', 'max', 'conv'))}{name}={value}")

    def test_the_version(self) -> None:
        assert lorakit_here("--version").out == f"lorakit, version {lorakit.__version__}\n"

    def test_no_command_at_all_is_help_and_asked_wrongly(self) -> None:
        run = lorakit_here()
        assert run.status == 2
        assert "Commands:" in run.out + run.err


class TestClone:
    @pytest.mark.parametrize("name", ["ComfyUI-lora.kit v2", "nodes", "torch", "lorakit"])
    def test_it_runs_from_a_folder_of_any_name(self, name: str, tmp_path: Path) -> None:
        """`python cli.py` prints what the installed command prints, started inside or outside."""
        clone = copy_of_the_tree(tmp_path / name)
        installed = lorakit_there("extract", "--help")
        assert installed.status == 0
        assert installed.out.startswith("Usage: lorakit extract [OPTIONS] BASE TUNED")
        assert (
            program(sys.executable, f"{name}/cli.py", "extract", "--help", cwd=tmp_path)
            == installed
        )
        assert program(sys.executable, "cli.py", "extract", "--help", cwd=clone) == installed

    def test_it_works_from_a_folder_called_torch(self, tmp_path: Path) -> None:
        clone = copy_of_the_tree(tmp_path / "torch")
        run = program(sys.executable, "cli.py", "info", BASE, "--json", "-", cwd=clone)
        assert (run.status, run.err) == (0, "")
        assert json.loads(run.out)["kind"] == "checkpoint"


def copy_of_the_tree(folder: Path) -> Path:
    folder.mkdir()
    for name in ("__init__.py", "cli.py", "version.py"):
        shutil.copy(ROOT / name, folder)
    for name in ("examples", "lora_ops", "nodes", "terminal"):
        ignored = shutil.ignore_patterns("__pycache__", "*.safetensors")
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    return folder


class TestStreams:
    def test_results_on_stdout_and_nothing_else(
        self, pair: tuple[Path, Path], tmp_path: Path
    ) -> None:
        base, tuned = pair
        output = tmp_path / "lora.safetensors"
        extracted = lorakit_here("extract", base, tuned, "-o", output, "-r", "2")
        verified = lorakit_here("verify", base, tuned, output)
        described = lorakit_here("info", output)
        for run in (extracted, verified, described):
            assert (run.status, run.err) == (0, "")
            assert "\x1b" not in run.out
        assert extracted.out.endswith(f"\nwrote {output}\n")
        totals = r"4 layers, relative error 0\.\d{4} \(unet 0\.\d{4}\), energy kept \d+\.\d\d%; "
        (first,), (second,) = (re.findall(totals, run.out) for run in (extracted, verified))
        assert first == second
        assert "LoRA adapter" in described.out
        assert lorakit_here("info", base).out.startswith("kind ")

    def test_the_worst_layers_or_all(self, tmp_path: Path) -> None:
        output = tmp_path / "lora.safetensors"
        short = lorakit_here("extract", BASE, TUNED, "-o", output, "-r", "1")
        long = lorakit_here("verify", BASE, TUNED, output, "-v")
        assert "the 12 worst of 83; -v shows all" in short.out
        assert "worst" not in long.out
        assert len(long.out.splitlines()) - len(short.out.splitlines()) >= 83 - 12 - 3

    @posix_only
    def test_progress_is_drawn_on_a_terminal_and_only_there(self, tmp_path: Path) -> None:
        output = tmp_path / "lora.safetensors"
        words = ["extract", str(BASE), str(TUNED), "-o", str(output), "-r", "16", "--exact"]
        status, out, drawn = with_terminal_for_errors([str(SCRIPT), *words])
        assert status == 0
        assert "extracting" in drawn
        assert re.search(r"\d+%", drawn)
        assert "\x1b" not in out
        assert out.endswith(f"wrote {output}\n")
        assert "extracting" not in out
        quiet = lorakit_there(*words, "--force")
        assert quiet.err == ""
        assert timeless(quiet.out) == timeless(out)

    def test_names_from_a_file_cannot_command_the_terminal(self, tmp_path: Path) -> None:
        path = tmp_path / "evil.safetensors"
        metadata = {"title\x1b[2J": "\x1b]0;owned\x07 [bold]loud[/bold]\nkind  safe"}
        save_file(tiny(), path, metadata)
        run = lorakit_here("info", path)
        assert r"title\x1b[2J" in run.out
        assert r"\x1b]0;owned\x07 [bold]loud[/bold]\nkind" in run.out
        assert "\x1b" not in run.out

    @posix_only
    def test_a_name_that_cannot_be_spelled_is_no_reason_to_fail(self, tmp_path: Path) -> None:
        """Half a surrogate pair in a path, or a stdout that has ASCII only."""
        strange = os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xe9.safetensors")
        save_file(tiny(), tmp_path / "a.safetensors", {"title": "漢字"})
        shutil.copy(tmp_path / "a.safetensors", strange)
        described = lorakit_there("info", strange, "--json", "-", PYTHONIOENCODING="ascii")
        assert (described.status, described.err) == (0, "")
        assert r"\udcff\udce9.safetensors" in described.out
        missing = lorakit_there("info", f"{strange}x")
        assert (missing.status, missing.out) == (2, "")
        assert missing.err.startswith("Error: ")
        assert r"\udcff" in missing.err


def with_terminal_for_errors(command: list[str]) -> tuple[int, str, str]:
    """Run a command whose stderr, alone, is a terminal."""
    import pty

    ours, theirs = pty.openpty()
    environment = PLAIN | {"TERM": "xterm", "COLUMNS": "120"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=theirs, stdin=subprocess.DEVNULL, env=environment
    ) as process:
        os.close(theirs)
        drawn = b""
        while True:
            try:
                part = os.read(ours, 1 << 16)
            except OSError:  # how Linux says that the other end is closed
                break
            if not part:
                break
            drawn += part
        assert process.stdout is not None
        out = process.stdout.read()
    os.close(ours)
    return process.returncode, out.decode(), drawn.decode(errors="replace")


def timeless(text: str) -> str:
    return re.sub(r"\d+\.\d s$", "# s", text, flags=re.MULTILINE)


class TestJson:
    @pytest.fixture
    def lora(self, pair: tuple[Path, Path], tmp_path: Path) -> Path:
        output = tmp_path / "lora.safetensors"
        assert lorakit_here("extract", *pair, "-o", output, "-r", "2").status == 0
        return output

    def commands(self, pair: tuple[Path, Path], lora: Path) -> dict[str, tuple[object, ...]]:
        return {
            "info": ("info", lora),
            "extract": ("extract", *pair, "-o", lora.with_name("again.safetensors"), "-r", "2"),
            "verify": ("verify", *pair, lora),
            "plan": ("extract", *pair, "-o", lora.with_name("no.safetensors"), "--dry-run"),
        }

    @pytest.mark.parametrize("which", ["info", "extract", "verify", "plan"])
    def test_a_dash_is_pure_json_on_stdout(
        self, which: str, pair: tuple[Path, Path], lora: Path
    ) -> None:
        run = lorakit_here(*self.commands(pair, lora)[which], "--json", "-")
        assert (run.status, run.err) == (0, "")
        report = strict_json(run.out)
        if which == "info":
            assert report["ranks"] == {"2": 4}
        else:
            assert len(report["layers"]) == 4

    @pytest.mark.parametrize("which", ["info", "extract", "verify"])
    def test_a_name_is_a_file_beside_the_table(
        self, which: str, pair: tuple[Path, Path], lora: Path, tmp_path: Path
    ) -> None:
        path = tmp_path / "ö report.json"
        command = self.commands(pair, lora)[which]
        run = lorakit_here(*command, "--json", path)
        assert (run.status, run.err) == (0, "")
        assert "layer" in run.out
        written = strict_json(path.read_text("utf-8"))
        again = lorakit_here(*command, *(["--force"] if which == "extract" else []), "--json", "-")
        second = strict_json(again.out)
        for report in (written, second):
            report.pop("seconds", None)
        assert written == second

    def test_the_numbers_are_those_of_the_file(self, pair: tuple[Path, Path], lora: Path) -> None:
        """Against a float64 loop over the three files."""
        report = strict_json(lorakit_here("verify", *pair, lora, "--json", "-").out)
        base, tuned, factors = (load_file(path) for path in (*pair, lora))
        for layer in report["layers"]:
            key = f"model.{layer['target']}.weight"
            delta = (tuned[key].double() - base[key].double()).flatten(1)
            up, down = (
                factors[f"{layer['target']}.lora_{c}.weight"].double().flatten(1) for c in "BA"
            )
            error = float((delta - up @ down).norm() / delta.norm())
            assert layer["error"] == pytest.approx(error, rel=1e-3)
            assert layer["norm"] == pytest.approx(float(delta.norm()), rel=1e-5)

    def test_infinity_is_null(self, capsys: pytest.CaptureFixture[str]) -> None:
        from lorakit.terminal.as_json import write_json

        assert write_json({"a": float("inf"), "b": [{"c": (float("nan"), 1.5)}]}, "-")
        assert strict_json(capsys.readouterr().out) == {"a": None, "b": [{"c": [None, 1.5]}]}


def strict_json(text: str) -> dict[str, Any]:
    """Read JSON as other languages do: no NaN, no infinity."""

    def refuse(name: str) -> None:
        raise ValueError(f"{name} is not JSON")

    return json.loads(text, parse_constant=refuse)


class TestDryRun:
    def test_it_plans_and_writes_nothing(self, pair: tuple[Path, Path], tmp_path: Path) -> None:
        before = contents(tmp_path)
        run = lorakit_here("extract", *pair, "-o", tmp_path / "lora.safetensors", "--dry-run")
        assert (run.status, run.err) == (0, "")
        assert contents(tmp_path) == before
        assert "nothing was written" in run.out
        assert re.search(r"linear +3 ", run.out)

    def test_its_size_is_an_upper_bound(self, pair: tuple[Path, Path], tmp_path: Path) -> None:
        words = ("extract", *pair, "-o", tmp_path / "lora.safetensors", "-r", "energy=0.5,max=4")
        plan = strict_json(lorakit_here(*words, "--dry-run", "--json", "-").out)
        report = strict_json(lorakit_here(*words, "--json", "-").out)
        assert all(layer["rank_at_most"] == 4 for layer in plan["layers"])
        written = sum(
            layer["rank"]
            * (shape[0] + shape[1] * (shape[2] * shape[3] if len(shape) == 4 else 1))
            * 4
            for layer in report["layers"]
            for shape in [layer["shape"]]
        )
        assert 0 < written <= plan["size_at_most"]


def test_outputs_with_spaces_and_other_letters(pair: tuple[Path, Path], tmp_path: Path) -> None:
    folder = tmp_path / "mes modèles 漢字"
    folder.mkdir()
    output = folder / "mon style [v2] ü.safetensors"
    run = lorakit_there("extract", *pair, "-o", output, "-r", "1")
    assert (run.status, run.err) == (0, "")
    assert f"wrote {output}\n" in run.out
    assert len(load_file(output)) == 12
    assert [path.name for path in folder.iterdir()] == [output.name]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no full device")
def test_a_report_that_cannot_be_printed_is_one_line(pair: tuple[Path, Path]) -> None:
    with Path("/dev/full").open("w") as full:
        ran = subprocess.run(
            [sys.executable, "-m", "lorakit.cli", "info", str(pair[0])],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert ran.returncode == 1
    assert ran.stderr == "Error: the report could not be printed: No space left on device\n"


def test_each_exit_status(pair: tuple[Path, Path], tmp_path: Path) -> None:
    base, tuned = pair
    assert lorakit_here("info", base).status == 0  # and others here, in processes of their own
    could_not = lorakit_there("extract", base, base, "-o", tmp_path / "lora.safetensors")
    asked_wrongly = lorakit_there("extract", base, tuned, "-o", base)
    assert (could_not.status, asked_wrongly.status) == (1, 2)
    for run in (could_not, asked_wrongly):
        assert run.out == ""
        assert run.err.startswith("Error: ")


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["extrakt"], "Did you mean 'extract'?"),
        (["extract", "a", "b", "-o", "c", "--devices", "cpu"], "Did you mean '--device'?"),
        (["extract", "a", "b", "-o", "c", "--format", "koyha"], "'comfy', 'kohya'"),
        (["extract", "a", "b"], "Missing option '-o'"),
        (["extract", "a", "-o", "c"], "Missing argument 'TUNED...'"),
        (["extract", "a", "b", "-o", "c", "--seed", "-1"], "-1 is not in the range"),
        (["extract", "a", "b", "-o", "c", "--seed", str(2**70)], "is not in the range"),
        (["verify", "a", "b", "c", "--strength", "full"], "'full' is not a valid float"),
        (["info"], "Missing argument 'FILE'"),
    ],
)
def test_what_is_asked_wrongly_is_told_with_the_nearest(words: list[str], hint: str) -> None:
    run = lorakit_here(*words)
    assert (run.status, run.out) == (2, "")
    assert hint in run.err.splitlines()[-1]
    assert "--help" in run.err


@pytest.mark.parametrize(
    ("text", "size"),
    [("8GB", 8 * 10**9), ("512MiB", 2**29), ("1000000", 10**6), ("1.5 k", 1500), ("2gib", 2**31)],
)
def test_sizes_are_read(text: str, size: int) -> None:
    from lorakit.lora_ops.text import parse_size

    assert parse_size(text) == size
