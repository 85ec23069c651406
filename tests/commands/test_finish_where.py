"""Where parts and their result lie: links, folders, what exists already, what appears, and full disks."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from commands import DIGITS, contents, lorakit_here, python, tiny_pair
from safetensors.torch import load_file, save_file

from lorakit.lora_ops.parts.claim import claimed

NAME = "out.safetensors"
BASE, TUNED = (DIGITS / f"{side}.safetensors" for side in ("base", "tuned"))
LIMITED = (
    "import resource, signal, sys\n"
    "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
    "resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)\n"
    "from lorakit.cli import main\n"
    "main(sys.argv[2:])"
)
posix_only = pytest.mark.skipif(os.name != "posix", reason="limits and modes are POSIX's")


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    return tiny_pair(tmp_path)


@pytest.fixture
def wanted(pair: tuple[Path, Path], tmp_path: Path) -> bytes:
    """The bytes of one run."""
    (tmp_path / "once").mkdir()
    assert lorakit_here("extract", *pair, "-o", tmp_path / "once" / NAME).status == 0
    return (tmp_path / "once" / NAME).read_bytes()


@pytest.fixture
def to(tmp_path: Path) -> Path:
    (tmp_path / "to").mkdir()
    return tmp_path / "to"


def parts(pair: tuple[Path, Path], output: Path, *words: object) -> None:
    for number in (1, 2):
        made = lorakit_here("extract", *pair, "-o", output, "--part", f"{number}/2", *words)
        assert made.status == 0, made.err


def test_a_plan_is_written_and_nothing_else(pair, to, tmp_path):
    plan = tmp_path / "plan.json"
    made = lorakit_here("extract", *pair, "-o", to / NAME, "--plan", plan)
    assert (made.status, list(to.iterdir())) == (0, [])
    told = json.loads(plan.read_text())
    assert [one["shape"] for one in told["items"] if one["name"].endswith("attn2.to_k")] == [
        [8, 12]
    ]
    assert [one["name"] for one in told["inputs"]] == ["base.safetensors", "tuned.safetensors"]
    assert made.out.startswith(f"{len(told['items'])} items, plan {told['hash'][:12]}")
    again = lorakit_here("extract", *pair, "-o", to / NAME, "--plan", plan)
    assert (again.status, "exists already" in again.err) == (2, True)
    assert lorakit_here("extract", *pair, "-o", to / NAME, "--plan", plan, "--force").status == 0
    assert json.loads(plan.read_text())["hash"] == told["hash"]
    parts(pair, to / NAME)
    assert json.loads((to / f"{NAME}.parts" / "plan.json").read_text())["hash"] == told["hash"]


ASKED_WRONGLY = [
    (("--part", "0/3"), "give I/N, as 3/16, with I from 1 to N"),
    (("--part", "4/3"), "with I from 1 to N"),
    (("--part", "3"), "with I from 1 to N"),
    (("--part", "-1/3"), "with I from 1 to N"),
    (("--part", "1/" + "9" * 5000), "with I from 1 to N"),
    (("--part", "1/3", "--resume"), "--part and --resume exclude each other"),
    (("--part", "1/3", "--plan", "x.json"), "--part and --plan exclude each other"),
    (("--resume", "--dry-run"), "--dry-run and --resume exclude each other"),
    (("--verify",), "--verify is for --part"),
]


@pytest.mark.parametrize(("words", "told"), ASKED_WRONGLY)
def test_what_is_asked_wrongly(words, told, pair, to):
    made = lorakit_here("extract", *pair, "-o", to / NAME, *words)
    assert (made.status, made.out) == (2, "")
    assert told in made.err
    assert list(to.iterdir()) == []


def test_there_is_nothing_to_finish(to):
    made = lorakit_here("finish", to / NAME)
    assert (made.status, made.out) == (2, "")
    assert "has no parts to be finished" in made.err


def test_very_many_parts(pair, to):
    made = lorakit_here("extract", *pair, "-o", to / NAME, "--part", "999999999/999999999")
    assert made.status == 0, made.err
    assert lorakit_here("finish", to / NAME).status == 3


def test_what_exists_is_replaced_only_if_asked(pair, to, wanted):
    (to / NAME).write_bytes(b"mine")
    made = lorakit_here("extract", *pair, "-o", to / NAME, "--part", "1/2")
    assert (made.status, "exists already" in made.err) == (2, True)
    parts(pair, to / NAME, "--force")
    before = contents(to)
    made = lorakit_here("finish", to / NAME)
    assert (made.status, "exists already" in made.err) == (2, True)
    assert contents(to) == before
    assert lorakit_here("finish", to / NAME, "--force").status == 0
    assert contents(to) == {NAME: wanted}


def test_what_appears_meanwhile_stays(pair, to, wanted):
    parts(pair, to / NAME)
    (to / NAME).write_bytes(b"another's")
    made = lorakit_here("finish", to / NAME)
    assert (made.status, "exists already" in made.err) == (2, True)
    assert (to / NAME).read_bytes() == b"another's"
    (to / NAME).unlink()
    assert lorakit_here("finish", to / NAME).status == 0
    assert contents(to) == {NAME: wanted}


def test_what_appears_at_the_very_end_stays(pair, to, wanted, monkeypatch):
    parts(pair, to / NAME)
    from lorakit.lora_ops.files.writing import writer

    publish = writer.publish_all

    def late(places):
        (to / NAME).write_bytes(b"another's")
        publish(places)

    monkeypatch.setattr(writer, "publish_all", late)
    made = lorakit_here("finish", to / NAME)
    assert (made.status, made.out) == (1, "")
    assert "appeared during the work and was left as it is" in made.err
    assert (to / NAME).read_bytes() == b"another's"
    monkeypatch.undo()
    (to / NAME).unlink()
    assert lorakit_here("finish", to / NAME).status == 0
    assert contents(to) == {NAME: wanted}


@posix_only
def test_a_link_stays_and_what_it_leads_to_is_replaced(pair, to, tmp_path, wanted):
    """Also where that is on another disk, if there is one."""
    shared = Path("/dev/shm")
    other = (
        shared if shared.is_dir() and os.access(shared, os.W_OK) else tmp_path
    ) / f"real{os.getpid()}"
    other.mkdir()
    try:
        (other / NAME).write_bytes(b"old")
        (to / NAME).symlink_to(other / NAME)
        parts(pair, to / NAME, "--force")
        assert lorakit_here("finish", to / NAME, "--force").status == 0
        assert (to / NAME).is_symlink()
        assert contents(other) == {NAME: wanted}
        assert [path.name for path in to.iterdir()] == [NAME]
    finally:
        shutil.rmtree(other)


@posix_only
@pytest.mark.skipif(os.name == "posix" and os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_is_read_only(pair, to):
    to.chmod(0o500)
    made = lorakit_here("extract", *pair, "-o", to / NAME, "--part", "1/2")
    assert (made.status, "may not be written to" in made.err) == (2, True)


def test_a_file_under_the_name_of_the_folder(pair, to):
    (to / f"{NAME}.parts").write_bytes(b"mine")
    made = lorakit_here("extract", *pair, "-o", to / NAME, "--part", "1/2")
    assert (made.status, made.out) == (1, "")
    assert "out.safetensors.parts: cannot be made" in made.err
    assert contents(to) == {f"{NAME}.parts": b"mine"}


def test_inputs_that_are_gone(pair, to, wanted):
    parts(pair, to / NAME)
    before = contents(to)
    pair[1].rename(pair[1].with_name("away"))
    made = lorakit_here("finish", to / NAME)
    assert made.status != 0
    assert "tuned.safetensors" in made.err
    assert contents(to) == before
    pair[1].with_name("away").rename(pair[1])
    assert lorakit_here("finish", to / NAME).status == 0
    assert contents(to) == {NAME: wanted}


def test_from_another_folder(pair, to, wanted, tmp_path, monkeypatch):
    """Paths are meant as they were given; the result, and the report, as they are given now."""
    monkeypatch.chdir(tmp_path)
    relative = tuple(path.relative_to(tmp_path) for path in pair)
    parts(relative, Path("to") / NAME)
    monkeypatch.chdir(to)
    made = lorakit_here("finish", NAME, "--json", "report.json")
    assert made.status == 0, made.err
    assert Path.cwd() == to
    assert json.loads((to / "report.json").read_text())["layers"]
    assert (to / NAME).read_bytes() == wanted
    assert {path.name for path in to.iterdir()} == {NAME, "report.json"}


@pytest.mark.parametrize("devices", ["cuda:99", "cuda:98,cuda:99", "cpu, cpu"])
def test_devices_that_are_not_here(pair, to, wanted, devices):
    parts(pair, to / NAME)
    path = to / f"{NAME}.parts" / "plan.json"
    told = json.loads(path.read_text())
    told["request"]["parameters"]["device"] = devices
    path.write_text(json.dumps(told))
    assert lorakit_here("finish", to / NAME).status == 0
    assert contents(to) == {NAME: wanted}


def test_parts_of_two_divisions(pair, to, wanted):
    """An item that is there twice is told; without those of one division it is once."""
    parts(pair, to / NAME)
    made = lorakit_here("extract", *pair, "-o", to / NAME, "--part", "2/3")
    assert made.status == 0, made.err
    before = contents(to)
    for words in (("finish", to / NAME), ("extract", *pair, "-o", to / NAME, "--resume")):
        made = lorakit_here(*words)
        assert (made.status, "is in two parts" in made.err) == (2, True)
        assert contents(to) == before
    for path in (to / f"{NAME}.parts").glob("00002-of-00003*"):
        path.unlink()
    assert lorakit_here("finish", to / NAME).status == 0
    assert contents(to) == {NAME: wanted}


@posix_only
def test_a_full_disk_in_one_part(to, tmp_path):
    """A limit on file sizes stands for it: that part is not there, the others are, and are used."""
    words = ("extract", BASE, TUNED, "-o", to / NAME, "--rank", "8")
    assert lorakit_here(*words, "--part", "1/2").status == 0
    before = contents(to)
    run = python(LIMITED, 50_000, *words, "--part", "2/2")
    assert (run.status, run.out) == (1, "")
    assert run.err.count("\n") == 1
    assert "could not be written: File too" in run.err
    assert contents(to) == before
    run = python(LIMITED, 50_000, *words, "--resume")  # or while it goes on
    assert (run.status, run.out) == (1, "")
    assert {name: contents(to)[name] for name in before} == before
    assert lorakit_here(*words, "--part", "2/2").status == 0
    assert lorakit_here("finish", to / NAME).status == 0
    (tmp_path / "once").mkdir()
    assert lorakit_here(*words[:3], "-o", tmp_path / "once" / NAME, "--rank", "8").status == 0
    assert contents(to) == contents(tmp_path / "once")


def test_a_run_that_fails_at_once_leaves_nothing(pair, to):
    tensors = load_file(pair[1])
    save_file({k: torch.full_like(v, torch.nan) for k, v in tensors.items()}, pair[1])
    made = lorakit_here("extract", *pair, "-o", to / NAME, "--resume")
    assert (made.status, made.out) == (1, "")
    assert "NaN" in made.err
    assert list(to.iterdir()) == []


def test_only_one_run_joins_and_no_part_is_made_meanwhile(pair, to, wanted):
    parts(pair, to / NAME)
    folder, before = to / f"{NAME}.parts", contents(to)
    asked = ("extract", *pair, "-o", to / NAME)
    for alone in (True, False):
        with claimed(folder, alone=alone):
            for words in (("finish", to / NAME), (*asked, "--resume")):
                made = lorakit_here(*words)
                assert (made.status, "wait until it has ended" in made.err) == (2, True)
            made = lorakit_here(*asked, "--part", "1/2")
            assert made.status == (2 if alone else 0)
    assert contents(to).keys() == {*before, f"{NAME}.parts/lock"}
    assert lorakit_here("finish", to / NAME).status == 0
    assert contents(to) == {NAME: wanted}


@pytest.mark.parametrize("command", ["finish", "resume", "another"])
def test_a_run_that_was_killed_as_it_cleared_away(command, pair, to, wanted):
    """The result has its name; what is left goes, and only the same command may come upon it."""
    parts(pair, to / NAME)
    folder = to / f"{NAME}.parts"
    plan = json.loads((folder / "plan.json").read_text())["hash"]
    assert lorakit_here("finish", to / NAME).status == 0
    folder.mkdir()
    (folder / "publishing").write_text(plan)
    (folder / "00002-of-00002.safetensors").write_bytes(b"left")
    words = ("extract", *pair, "-o", to / NAME, "--resume")
    if command == "finish":
        words = ("finish", to / NAME)
    if command == "another":
        words = (*words, "--rank", "1")
    made = lorakit_here(*words)
    assert contents(to) == {NAME: wanted}
    if command == "another":
        assert (made.status, "exists already, of another plan" in made.err) == (2, True)
    else:
        assert (made.status, "was finished before" in made.out) == (0, True)
