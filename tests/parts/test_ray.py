"""`--engine ray`: parts as tasks of a real cluster, and the bytes of one run, whatever is killed."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import DIGITS, HELPERS, PLAIN, SCRIPT, lorakit_here, program, python
from processes import wait_until
from slow import SLOW, at_once, manifests, slow_files

BASE, TUNED = (DIGITS / f"{one}.safetensors" for one in ("base", "tuned"))
HERE = "127.0.0.1"

with_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="Ray is not installed: lorakit[ray]"
)


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("slow")
    slow_files(folder)
    return folder


@pytest.fixture(scope="module")
def cluster() -> Iterator[tuple[str, dict[str, str]]]:
    """The address of a cluster of two cores on this machine, and the environment to join it with."""
    with socket.socket() as one:
        one.bind((HERE, 0))
        port = one.getsockname()[1]
    own = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": uuid.uuid4().hex + uuid.uuid4().hex,
        "RAY_USAGE_STATS_ENABLED": "0",
        "PYTHONPATH": os.fspath(HELPERS),
    }
    command = [
        *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"),
        *(f"--node-ip-address={HERE}", f"--port={port}", "--num-cpus=2"),
        *("--include-dashboard=false", "--disable-usage-stats"),
    ]
    process = subprocess.Popen(
        command, env=PLAIN | own, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        said = ""
        assert process.stdout is not None
        for line in process.stdout:
            said += line
            if "Ray runtime started" in line:
                break
        assert "Ray runtime started" in said, said
        yield f"{HERE}:{port}", own
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)


def tasks() -> list[int]:
    """The processes of a cluster that are at a part."""
    found: list[int] = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if path.read_bytes().startswith(b"ray::lorakit part"):
                found.append(int(path.parent.name))
    return found


def begin(
    folder: Path, command: str, output: Path, cluster: tuple[str, dict[str, str]]
) -> subprocess.Popen[str]:
    """Begin a command."""
    address, own = cluster
    return subprocess.Popen(
        [SCRIPT, *SLOW[command], "--engine", f"ray:{address}", "-o", output.relative_to(folder)],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=PLAIN | own,
    )


def started(
    folder: Path, command: str, output: Path, cluster: tuple[str, dict[str, str]], parts: int = 2
) -> subprocess.Popen[str]:
    """Begin a command, and wait until some of its parts are there and more are being made."""
    process = begin(folder, command, output, cluster)

    def is_amid() -> bool:
        assert process.poll() is None, process.communicate()
        return len(manifests(output)) >= parts and bool(tasks())

    wait_until(is_amid)
    return process


@with_ray
@pytest.mark.parametrize("command", SLOW)
def test_a_worker_that_is_killed_changes_nothing(
    command: str, slow: Path, cluster: tuple[str, dict[str, str]]
) -> None:
    expected = at_once(SCRIPT, slow, command)
    output = slow / "killed" / command / "out.safetensors"
    output.parent.mkdir(parents=True)
    process = started(slow, command, output, cluster)
    workers = tasks()
    os.kill(workers[0], signal.SIGKILL)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert out.endswith(f"wrote {output.relative_to(slow)}\n")
    assert output.read_bytes() == expected
    assert list(output.parent.iterdir()) == [output]


@with_ray
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_driver_that_is_killed_goes_on_where_it_was(
    how: signal.Signals, slow: Path, cluster: tuple[str, dict[str, str]]
) -> None:
    expected = at_once(SCRIPT, slow, "extract")
    output = slow / how.name / "out.safetensors"
    output.parent.mkdir()
    process = started(slow, "extract", output, cluster, parts=3)
    process.send_signal(how)
    said = process.communicate(timeout=120)
    assert process.returncode == (-how if how is signal.SIGKILL else 128 + how), said
    wait_until(lambda: not tasks(), 60)
    there = manifests(output)
    assert len(there) >= 3
    again = begin(slow, "extract", output, cluster)
    while again.poll() is None:
        with contextlib.suppress(FileNotFoundError):  # what is joined is removed
            now = manifests(output)
            assert {name: now.get(name, was) for name, was in there.items()} == there, "made again"
        time.sleep(0.02)
    out, err = again.communicate(timeout=300)
    assert (again.returncode, out.splitlines()[-1:]) == (
        0,
        [f"wrote {output.relative_to(slow)}"],
    ), err
    assert output.read_bytes() == expected
    assert list(output.parent.iterdir()) == [output]


PROGRAM = """
import sys
from pathlib import Path
import doomed
from lorakit.lora_ops import LoraOpsError, RayTasks
from lorakit.lora_ops.parts.engine import Share

folder, address, *names = sys.argv[1:]
shares = [Share(n, len(names), (name,), 10) for n, name in enumerate(names, 1)]
told = []
try:
    RayTasks(address)(shares, doomed.Doomed(Path(folder)), lambda *one: told.append(one[1:]))
except LoraOpsError as error:
    print(type(error).__name__, error, *getattr(error, "items", ()), sep="|")
else:
    print(sorted(told))
"""


@with_ray
def test_whatever_becomes_of_a_task(tmp_path: Path, cluster: tuple[str, dict[str, str]]) -> None:
    address, own = cluster

    def run(*names: str) -> str:
        done = program(sys.executable, "-c", PROGRAM, tmp_path, address, *names, **own)
        assert done.status == 0, done.err
        return done.out.strip()

    def begun(name: str) -> int:
        return len((tmp_path / f"{name}.begun").read_text().split())

    assert run("a", "killed 2", "b") == "[(10, 'a'), (10, 'b'), (10, 'killed 2')]"
    assert begun("killed 2") == 3
    kind, said, *items = run("c", "killed 9").split("|")
    assert (kind, items, begun("killed 9")) == ("MissingPartsError", ["killed 9"], 3)
    assert said.startswith("part 2 of 2 failed 3 times: Ray says: ")
    assert run("bad") == "NonFiniteError|b.safetensors: `bad` holds NaN"
    assert begun("bad") == 1
    assert run("d") == "[(10, 'd')]", "the cluster stays"


@with_ray
def test_there_need_be_no_cluster(tmp_path: Path) -> None:
    once, apart = tmp_path / "once" / "out.safetensors", tmp_path / "ray" / "out.safetensors"
    for output, words in ((once, ()), (apart, ("--engine", "ray:local"))):
        output.parent.mkdir()
        command = ("extract", BASE, TUNED, "--rank", "3", "-o", output.name, *words)
        done = program(SCRIPT, *command, cwd=output.parent, RAY_AUTH_MODE="disabled")
        assert (done.status, done.err) == (0, "")
    assert apart.read_bytes() == once.read_bytes()


@contextlib.contextmanager
def answering(what: bytes | None) -> Iterator[int]:
    """A port at which something answers; or nothing, ever."""
    with socket.create_server((HERE, 0)) as server:

        def answer() -> None:
            with contextlib.suppress(OSError), server.accept()[0] as connection:
                connection.recv(100)
                if what is None:
                    time.sleep(10)
                else:
                    connection.sendall(what)

        threading.Thread(target=answer, daemon=True).start()
        yield server.getsockname()[1]


@with_ray
@pytest.mark.parametrize(
    ("what", "said"),
    [
        (b"HTTP/1.0 400 Bad Request\r\n\r\n", ", but something else"),
        (b"", ", but something else"),
        (None, ": no answer within 3 s; is it running?"),
    ],
)
def test_no_ray_answers(what: bytes | None, said: str, tmp_path: Path) -> None:
    with answering(what) as port:
        begun = time.monotonic()
        words = ("--engine", f"ray:{HERE}:{port}")
        run = lorakit_here("extract", BASE, TUNED, "-o", tmp_path / "a.safetensors", *words)
        assert time.monotonic() - begun < 30
    assert (run.status, run.out) == (2, "")
    assert run.err == f"Error: no Ray answers at {HERE}:{port}{said}\n"
    assert list(tmp_path.iterdir()) == []


@with_ray
@pytest.mark.parametrize(
    ("address", "said"),
    [
        (f"{HERE}:1", f"no Ray answers at {HERE}:1: Connection refused; is it running?"),
        ("nowhere.invalid:6379", "no Ray answers at nowhere.invalid:6379: "),
        ("nowhere", "`nowhere` is no address of Ray; give HOST:PORT"),
        ("host:99999", "`host:99999` is no address of Ray; give HOST:PORT"),
    ],
)
def test_addresses_that_lead_nowhere(address: str, said: str, tmp_path: Path) -> None:
    words = ("--engine", f"ray:{address}")
    run = lorakit_here("extract", BASE, TUNED, "-o", tmp_path / "a.safetensors", *words)
    assert run.status == 2
    assert run.err.startswith(f"Error: {said}")
    assert len(run.err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_without_ray_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    words = ("-o", tmp_path / "a.safetensors", "--engine", "ray")
    run = lorakit_here("extract", BASE, TUNED, *words)
    assert (run.status, run.out) == (2, "")
    assert run.err == "Error: Ray is not installed; `pip install lorakit[ray]`\n"
    assert list(tmp_path.iterdir()) == []


def test_nothing_imports_ray_that_is_not_asked_for_it(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['ray'] = None; from lorakit.cli import main; "
        f"main(['extract', {str(BASE)!r}, {str(TUNED)!r}, '-o', sys.argv[1], '--resume'], standalone_mode=False)"
    )
    done = python(code, tmp_path / "a.safetensors")
    assert (done.status, done.err) == (0, "")
