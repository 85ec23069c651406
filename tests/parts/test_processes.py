"""Parts made by several processes of one machine: whatever becomes of a process, the parts come."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from doomed import Doomed, OddError
from processes import children

from lorakit.lora_ops import ArgumentError, MissingPartsError, NonFiniteError, Processes
from lorakit.lora_ops.parts.engine import Share, pickled

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs Linux's /proc")


@pytest.fixture(autouse=True)
def nobody_is_left() -> Iterator[None]:
    """Whatever a test does with processes, none outlives it; other tests may have theirs."""
    before = set(children(os.getpid()))
    yield
    assert set(children(os.getpid())) <= before


def shares(*names: str) -> list[Share]:
    return [Share(n, len(names), (name,), 10) for n, name in enumerate(names, 1)]


class Told:
    """What was told of the progress, in its order."""

    def __init__(self) -> None:
        self.all: list[tuple[int, int, str]] = []

    def __call__(self, share: Share, done: int, name: str) -> None:
        self.all.append((share.number, done, name))


def made(folder: Path) -> dict[str, list[object]]:
    return {path.name: json.loads(path.read_text()) for path in folder.iterdir() if not path.suffix}


def begun(folder: Path, name: str) -> list[str]:
    return (folder / f"{name}.begun").read_text().split()


def test_two_processes_make_all_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "random.py").write_text("raise SystemExit('not this one')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [one for one in os.sys.path if one])  # type: ignore[attr-defined]
    before, out = torch.get_num_threads(), tmp_path / "out"
    out.mkdir()
    told = Told()
    Processes(["cpu", "cpu"])(shares("a", "b", "c", "d", "e"), Doomed(out), told)
    found = made(out)
    assert sorted(found) == ["a", "b", "c", "d", "e"]
    assert sorted(told.all) == [(n, 1, name) for n, name in enumerate("abcde", 1)]
    processes = {one[0] for one in found.values()}
    assert len(processes) == 2
    assert os.getpid() not in processes
    assert {one[3] for one in found.values()} == {str(tmp_path)}
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    ("cores", "devices", "workers", "threads"),
    [(8, 3, 1, 2), (16, 2, 2, 8)],
)
def test_a_job_has_as_many_threads_as_in_one_process(
    cores: int, devices: int, workers: int, threads: int, tmp_path: Path
) -> None:
    """For the number of threads decides how sums are rounded."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(cores)
        Processes(["cpu"] * devices)(shares("a"), Doomed(tmp_path), Told())
    finally:
        torch.set_num_threads(before)
    assert made(tmp_path)["a"][1:3] == [workers, threads]
    assert threads // workers == max(1, cores // min(4, cores))


def test_a_process_that_is_killed_is_replaced(tmp_path: Path) -> None:
    names = ("killed 2", "a", "b", "killed 1")
    told = Told()
    Processes(["cpu", "cpu"])(shares(*names), Doomed(tmp_path), told)
    assert sorted(made(tmp_path)) == sorted(names)
    assert len(set(begun(tmp_path, "killed 2"))) == 3
    assert len(set(begun(tmp_path, "killed 1"))) == 2
    assert told.all.count((1, 0, "")) == 2, "what was done of it is not"


@pytest.mark.parametrize(
    ("name", "how"), [("killed 9", "was ended by SIGKILL"), ("ends", "ended with status 7")]
)
def test_three_times_are_enough(name: str, how: str, tmp_path: Path) -> None:
    with pytest.raises(MissingPartsError) as caught:
        Processes(["cpu"])(shares("a", name, "b"), Doomed(tmp_path), Told())
    assert str(caught.value) == (
        f"part 2 of 3 failed 3 times: the process that made it {how}; the parts that are there stay, and "
        "the same run goes on from them; this one holds"
    )
    assert caught.value.items == (name,)
    assert len(begun(tmp_path, name)) == 3
    assert sorted(made(tmp_path)) == ["a"]


def test_what_cannot_be_made_is_not_tried_again(tmp_path: Path) -> None:
    with pytest.raises(NonFiniteError, match="`bad` holds NaN") as caught:
        Processes(["cpu", "cpu"])(shares("bad"), Doomed(tmp_path), Told())
    assert (caught.value.target, caught.value.path) == ("bad", Path("b.safetensors"))
    assert len(begun(tmp_path, "bad")) == 1


def test_a_bug_shows_where_it_is(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(TypeError):
        pickle.loads(pickle.dumps(OddError(1, 2)))
    with pytest.raises(RuntimeError, match="OddError: 1 and 2"):
        Processes(["cpu"])(shares("bug"), Doomed(tmp_path), Told())
    assert "doomed.py" in capfd.readouterr().err


def test_what_is_printed_is_not_lost_nor_taken_for_an_answer(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    Processes(["cpu"])(shares("prints", "a"), Doomed(tmp_path), Told())
    out, err = capfd.readouterr()
    assert out == ""
    assert "bare words\n" in err
    assert sorted(made(tmp_path)) == ["a", "prints"]


def test_what_cannot_be_asked_for() -> None:
    with pytest.raises(ArgumentError, match="no devices"):
        Processes([])
    with pytest.raises(ArgumentError, match="device `abacus` is not available"):
        Processes(["cpu", "abacus"])
    with pytest.raises(ArgumentError, match="memory cap of 0 bytes"):
        Processes(["cpu", "cpu"], memory=0)
    with pytest.raises(ArgumentError, match="cannot go to another process"):
        pickled(lambda share, placement, progress=None: None)


def test_no_parts_need_no_process(tmp_path: Path) -> None:
    Processes(["cpu", "cpu"])([], Doomed(tmp_path), Told())
    assert made(tmp_path) == {}
