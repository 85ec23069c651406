"""`--device cpu,cpu`: parts from several processes, and the bytes of one run, whatever is killed."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest
from commands import DIGITS, PLAIN, SCRIPT, contents, lorakit_here
from divided import report_of
from processes import children, is_alive, wait_until
from slow import SLOW, at_once, manifests, slow_files

linux = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs Linux's /proc")

BASE, TUNED = (DIGITS / f"{one}.safetensors" for one in ("base", "tuned"))
LORA = DIGITS / "lora.safetensors"
COMMANDS: dict[str, tuple[object, ...]] = {
    "extract": ("extract", BASE, TUNED, "--rank", "3"),
    "budget": ("extract", BASE, TUNED, "--rank", "size=300kB"),
    "merge": ("merge", BASE, TUNED),
    "bake": ("bake", BASE, LORA),
    "requantise": ("requantise", BASE, "--to", "fp8_scaled"),
}


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("slow")
    slow_files(folder)
    return folder


def started(folder: Path, command: str, *words: object) -> subprocess.Popen[str]:
    """Begin a command, and wait until two of its parts are there and more are being made."""
    process = subprocess.Popen(
        [SCRIPT, *SLOW[command], "--device", "cpu,cpu", "-o", *map(str, words)],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=PLAIN,
    )
    output = folder / str(words[0])

    def is_amid() -> bool:
        assert process.poll() is None, process.communicate()
        return len(manifests(output)) >= 2

    wait_until(is_amid)
    return process


@pytest.mark.parametrize("words", COMMANDS.values(), ids=COMMANDS)
def test_the_bytes_are_those_of_one_run(words: tuple[object, ...], tmp_path: Path) -> None:
    once, apart = tmp_path / "once", tmp_path / "apart"
    once.mkdir()
    apart.mkdir()
    report = report_of(*words, "-o", once / "out.safetensors", "--device", "cpu")
    several = report_of(*words, "-o", apart / "out.safetensors", "--device", "cpu, cpu")
    assert several == report
    assert contents(apart) == contents(once)


@linux
@pytest.mark.parametrize("command", SLOW)
def test_a_process_that_is_killed_changes_nothing(command: str, slow: Path) -> None:
    expected = at_once(SCRIPT, slow, command)
    output = slow / "killed" / command / "out.safetensors"
    output.parent.mkdir(parents=True)
    process = started(slow, command, output.relative_to(slow))
    before = children(process.pid)
    assert len(before) == 2
    os.kill(before[0], signal.SIGKILL)
    wait_until(
        lambda: process.poll() is not None or set(children(process.pid)) - set(before) != set()
    )
    out, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (0, "")
    assert out.endswith(f"wrote {output.relative_to(slow)}\n")
    assert output.read_bytes() == expected
    assert list(output.parent.iterdir()) == [output]


@linux
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nobody_is_left_and_the_next_run_goes_on(how: signal.Signals, slow: Path) -> None:
    """The plain engine goes on from what processes have made."""
    expected = at_once(SCRIPT, slow, "extract")
    output = slow / how.name / "out.safetensors"
    output.parent.mkdir()
    process = started(slow, "extract", output)
    workers = children(process.pid)
    assert len(workers) == 2
    if how is signal.SIGINT:  # as a terminal sends it, to all
        for one in workers:
            os.kill(one, how)
    process.send_signal(how)
    out, err = process.communicate(timeout=120)
    assert process.returncode == (-how if how is signal.SIGKILL else 128 + how)
    assert (out, err.split()) == ("", [] if how is signal.SIGKILL else ["Aborted!"])
    wait_until(lambda: not any(map(is_alive, workers)), 20)
    there = manifests(output)
    folder = output.with_name(f"{output.name}.parts")
    assert len(there) >= 2
    assert how is signal.SIGKILL or not list(folder.glob(".*"))
    kept = {name: (folder / name).with_suffix(".safetensors").stat().st_ino for name in there}
    again = started_again(slow, output, folder, kept)
    assert again.returncode == 0
    assert output.read_bytes() == expected
    assert list(output.parent.iterdir()) == [output]


def started_again(
    folder: Path, output: Path, parts: Path, kept: dict[str, int]
) -> subprocess.Popen[str]:
    """Go on with a run; fail where a part that was there is made again."""
    process = subprocess.Popen(
        [SCRIPT, *SLOW["extract"], "-o", output, "--resume"], cwd=folder, env=PLAIN, text=True
    )
    seen = 0
    while process.poll() is None:
        for name, inode in kept.items():
            try:
                assert (parts / name).with_suffix(".safetensors").stat().st_ino == inode
                seen += 1
            except FileNotFoundError:  # it is joined
                break
    assert seen
    return process


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--device", "cpu,cpu", "--part", "1/2"), "--part and several devices exclude each other"),
        (("--engine", "ray", "--part", "1/2"), "--part and --engine exclude each other"),
        (("--engine", "dask"), "--engine dask: give ray, or ray:ADDRESS"),
        (("--engine", "ray:"), "--engine ray:: give ray, or ray:ADDRESS"),
        (
            ("--engine", "ray", "--device", "cpu,cpu"),
            "--device cpu,cpu: Ray gives each part a device",
        ),
        (
            ("--engine", "ray", "--device", "cuda:1"),
            "--device cuda:1: Ray gives each part a device",
        ),
        (("--device", "cpu,abacus"), "device `abacus` is not available"),
        (("--device", "cpu,"), "device `` is not available"),
        (("--device", "cpu,cpu", "--verify"), "--verify is for --part"),
    ],
)
def test_what_cannot_be_asked_for(words: tuple[str, ...], said: str, tmp_path: Path) -> None:
    run = lorakit_here("extract", BASE, TUNED, "-o", tmp_path / "a.safetensors", *words)
    assert (run.status, run.out) == (2, "")
    assert run.err.startswith(f"Error: {said}")
    assert list(tmp_path.iterdir()) == []


def test_what_computes_on_the_cpu_says_so(tmp_path: Path) -> None:
    run = lorakit_here(
        "merge", BASE, TUNED, "-o", tmp_path / "a.safetensors", "--device", "cuda,cpu"
    )
    assert run.status == 2
    assert run.err.startswith(
        "Error: --device cuda,cpu: this is done on the CPU; give cpu, or cpu,cpu"
    )


def test_a_look_ahead_begins_no_process(tmp_path: Path) -> None:
    words = ("-o", tmp_path / "a.safetensors", "--device", "cpu,cpu", "--dry-run")
    run = lorakit_here("extract", BASE, TUNED, *words)
    assert run.status == 0
    assert list(tmp_path.iterdir()) == []
