"""Hashes of large files are taken once, and never of what a file was before."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

import pytest

from lorakit.lora_ops.files import remembered as room
from lorakit.lora_ops.files.remembered import cache_folder, remembered


class Hashing:
    """Hashes a file, and counts how often."""

    def __init__(self, path: Path) -> None:
        self.path, self.times = path, 0

    def __call__(self) -> str:
        self.times += 1
        return hashlib.sha256(self.path.read_bytes()).hexdigest()


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that counts as large, and was written long ago; the cache is empty."""
    monkeypatch.delenv("LORAKIT_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(room, "LARGE", 10)
    monkeypatch.setattr(room, "_SETTLED", 0)
    path = tmp_path / "large"
    path.write_bytes(b"a" * 20)
    time.sleep(0.02)  # longer than the clock of a file system ticks
    return path


def test_a_hash_is_taken_once(large):
    take = Hashing(large)
    assert remembered(large, take) == remembered(large, take) == take()
    assert take.times == 2
    assert len(list(cache_folder().iterdir())) == 1


def test_two_hashes_of_one_file_are_apart(large):
    assert remembered(large, lambda: "1" * 64) == "1" * 64
    assert remembered(large, lambda: "2" * 64, of="data") == "2" * 64
    assert remembered(large, lambda: "3" * 64) == "1" * 64


@pytest.mark.parametrize("how", ["written", "replaced", "written, its time set back"])
def test_a_file_that_changed_is_hashed_again(large, how):
    take = Hashing(large)
    first, before = remembered(large, take), large.stat()
    if how == "replaced":
        (large.parent / "new").write_bytes(b"b" * 20)
        (large.parent / "new").replace(large)
    else:
        large.write_bytes(b"b" * 20)
    if how.endswith("back"):
        os.utime(large, ns=(before.st_atime_ns, before.st_mtime_ns))
    found = remembered(large, take)
    assert found == hashlib.sha256(b"b" * 20).hexdigest() != first


def test_what_changed_a_moment_ago_is_not_remembered(large, monkeypatch):
    monkeypatch.setattr(room, "_SETTLED", 10**12)
    take = Hashing(large)
    remembered(large, take)
    remembered(large, take)
    assert take.times == 2


def test_what_changes_while_it_is_hashed_is_not_remembered(large):
    def take() -> str:
        large.write_bytes(b"c" * 30)
        return "0" * 64

    assert remembered(large, take) == "0" * 64
    assert remembered(large, Hashing(large)) == hashlib.sha256(b"c" * 30).hexdigest()


@pytest.mark.parametrize("text", ["", "nonsense", "1 2 3", "é"])
def test_a_damaged_entry_is_taken_anew(large, text):
    take = Hashing(large)
    remembered(large, take)
    (entry,) = cache_folder().iterdir()
    entry.write_text(text, "utf-8")
    assert remembered(large, take) == take()


def test_where_there_is_no_cache_hashes_are_taken(large, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    take = Hashing(large)
    assert remembered(large, take) == remembered(large, take)
    assert take.times == 2


def test_small_files_and_interrupted_hashes_are_not_remembered(large, monkeypatch):
    assert remembered(large, lambda: "") == ""
    monkeypatch.setattr(room, "LARGE", 100)
    remembered(large, Hashing(large))
    assert not cache_folder().exists()


def test_the_cache_does_not_grow_for_ever(large, monkeypatch):
    monkeypatch.setattr(room, "_MOST", 3)
    for number in range(9):
        remembered(large, Hashing(large), of=str(number))
    assert len(list(cache_folder().iterdir())) == 4
    take = Hashing(large)
    remembered(large, take, of="8")
    assert take.times == 0


@pytest.mark.parametrize("word", ["off", "OFF"])
def test_it_can_be_turned_off(word, large, monkeypatch):
    take = Hashing(large)
    remembered(large, take)
    monkeypatch.setenv("LORAKIT_CACHE", word)
    assert cache_folder() is None
    assert remembered(large, take) == remembered(large, take)
    assert take.times == 3
    assert not Path(word).exists()


def test_it_can_be_kept_elsewhere(large, tmp_path, monkeypatch):
    monkeypatch.setenv("LORAKIT_CACHE", str(tmp_path / "own"))
    assert remembered(large, Hashing(large)) == hashlib.sha256(b"a" * 20).hexdigest()
    assert len(list((tmp_path / "own" / "sha256").iterdir())) == 1
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(("age", "times"), [(1, 2), (3, 1)])
def test_two_seconds_without_a_change_are_enough(age, times, large, monkeypatch):
    monkeypatch.setattr(room, "_SETTLED", 2 * 10**9)
    changed = max(large.stat().st_mtime_ns, large.stat().st_ctime_ns)
    monkeypatch.setattr(room.time, "time_ns", lambda: changed + age * 10**9)
    take = Hashing(large)
    remembered(large, take)
    remembered(large, take)
    assert take.times == times


@pytest.mark.skipif(os.name != "posix", reason="homes are told by HOME on POSIX alone")
@pytest.mark.parametrize(("system", "folder"), [("darwin", "Library/Caches"), ("linux", ".cache")])
def test_it_lies_where_the_system_keeps_such_things(system, folder, large, tmp_path, monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(room.sys, "platform", system)
    assert cache_folder() == tmp_path / folder / "lorakit" / "sha256"
