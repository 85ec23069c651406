"""Names that are taken: what appears meanwhile stays, and what may be replaced keeps link and mode."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from commands import lorakit_here
from safetensors.torch import load_file, save_file

from lorakit.lora_ops.errors import ArgumentError, WriteError
from lorakit.lora_ops.files import INDEX, SafetensorsWriter, ShardsWriter, move_all, save
from lorakit.lora_ops.files.writing.publish import write_whole

posix_only = pytest.mark.skipif(os.name != "posix", reason="needs POSIX links, modes or pipes")

TENSORS = {"a": torch.ones(8)}
THEIRS = b"another program's"
LORA = {
    "lora_unet_mid_block_attentions_0_proj_in.lora_up.weight": torch.ones(8, 2),
    "lora_unet_mid_block_attentions_0_proj_in.lora_down.weight": torch.ones(2, 8),
    "lora_unet_mid_block_attentions_0_proj_in.alpha": torch.tensor(2.0),
}


def no_links(*_: object, **__: object) -> None:
    raise OSError(errno.EPERM, "no hard links here")


@pytest.fixture(params=["links", "no links"])
def disk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system with hard links, and one without, as FAT is."""
    if request.param == "no links":
        monkeypatch.setattr("os.link", no_links)


@pytest.mark.usefixtures("disk")
class TestAFreeName:
    def test_is_taken(self, tmp_path: Path) -> None:
        path = tmp_path / "a.safetensors"
        save(path, TENSORS, replace=False)
        assert load_file(path).keys() == TENSORS.keys()
        assert list(tmp_path.iterdir()) == [path]

    @pytest.mark.parametrize(
        "what", ["file", pytest.param("link to nothing", marks=posix_only), "folder"]
    )
    def test_that_is_taken_meanwhile_stays_as_it_is(self, what: str, tmp_path: Path) -> None:
        path = tmp_path / "a.safetensors"
        with SafetensorsWriter(path, replace=False) as writer:
            writer.write("a", TENSORS["a"])
            if what == "file":
                path.write_bytes(THEIRS)
            elif what == "folder":
                path.mkdir()
            else:
                path.symlink_to(tmp_path / "nothing")
            with pytest.raises(WriteError, match="appeared during the work"):
                writer.finish()
        assert list(tmp_path.iterdir()) == [path]
        assert path.is_symlink() or path.is_dir() or path.read_bytes() == THEIRS

    def test_is_given_once(self, tmp_path: Path) -> None:
        """Of two that write to one name, one is told."""
        path = tmp_path / "a.safetensors"
        with (
            SafetensorsWriter(path, replace=False) as one,
            SafetensorsWriter(path, replace=False) as other,
        ):
            one.write("one", TENSORS["a"])
            other.write("other", TENSORS["a"])
            one.finish()
            with pytest.raises(WriteError, match="appeared during the work"):
                other.finish()
        assert list(load_file(path)) == ["one"]
        assert list(tmp_path.iterdir()) == [path]

    @pytest.mark.parametrize("taken", [1, 2, 3])
    def test_of_shards_is_taken_by_all_or_none(self, taken: int, tmp_path: Path) -> None:
        index = tmp_path / f"m{INDEX}"
        names = [f"m-0000{i}-of-00002.safetensors" for i in (1, 2)] + [index.name]
        with ShardsWriter(index, [["a"], ["b"]], replace=False) as writer:
            writer.write("a", TENSORS["a"])
            writer.write("b", TENSORS["a"])
            (tmp_path / names[taken - 1]).write_bytes(THEIRS)
            with pytest.raises(WriteError, match=names[taken - 1]):
                writer.finish()
        assert [path.name for path in tmp_path.iterdir()] == [names[taken - 1]]
        assert (tmp_path / names[taken - 1]).read_bytes() == THEIRS


def write_file(path: Path) -> None:
    save(path, TENSORS)


def write_bytes(path: Path) -> None:
    write_whole(path, b"{}", replace=True)


def move(path: Path) -> None:
    made = path.parent / "made" / path.name
    made.parent.mkdir(exist_ok=True)
    made.write_bytes(b"{}")
    move_all([made], path.parent, replace=True)
    made.parent.rmdir()


@posix_only
@pytest.mark.parametrize("write", [write_file, write_bytes, move])
class TestAFileThatIsReplaced:
    @pytest.mark.parametrize("mode", [0o600, 0o644, 0o640, 0o444, 0o664])
    def test_hands_its_mode_on(
        self, mode: int, write: Callable[[Path], None], tmp_path: Path
    ) -> None:
        path = tmp_path / "a.safetensors"
        path.write_bytes(THEIRS)
        path.chmod(mode)
        write(path)
        assert path.read_bytes() != THEIRS
        assert stat.S_IMODE(path.stat().st_mode) == mode
        assert list(tmp_path.iterdir()) == [path]

    @pytest.mark.skipif(
        os.name != "posix" or os.geteuid() != 0, reason="only root gives files away"
    )
    def test_keeps_its_owner(self, write: Callable[[Path], None], tmp_path: Path) -> None:
        path = tmp_path / "a.safetensors"
        path.write_bytes(THEIRS)
        os.chown(path, 1234, 2345)
        write(path)
        assert (path.stat().st_uid, path.stat().st_gid) == (1234, 2345)

    @pytest.mark.parametrize("there", [True, False])
    def test_is_found_through_a_link(
        self, there: bool, write: Callable[[Path], None], tmp_path: Path
    ) -> None:
        target = tmp_path / "elsewhere" / "target.safetensors"
        target.parent.mkdir()
        if there:
            target.write_bytes(THEIRS)
            target.chmod(0o600)
        path = tmp_path / "a.safetensors"
        path.symlink_to("elsewhere/target.safetensors")
        write(path)
        assert path.is_symlink()
        assert not target.is_symlink()
        assert target.read_bytes() not in (THEIRS, b"")
        if there:
            assert stat.S_IMODE(target.stat().st_mode) == 0o600
        assert sorted(tmp_path.iterdir()) == [path, target.parent]
        assert list(target.parent.iterdir()) == [target]

    def test_must_be_one(self, write: Callable[[Path], None], tmp_path: Path) -> None:
        path = tmp_path / "pipe.safetensors"
        os.mkfifo(path)
        with pytest.raises(ArgumentError, match="is no regular file"):
            write(path)
        assert stat.S_ISFIFO(path.stat().st_mode)


@posix_only
def test_what_only_its_owner_reads_is_not_shown_on_the_way(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(THEIRS)
    path.chmod(0o600)
    with SafetensorsWriter(path) as writer:
        writer.write("a", TENSORS["a"])
        (temporary,) = (one for one in tmp_path.iterdir() if one != path)
        assert stat.S_IMODE(temporary.stat().st_mode) == 0o600


@posix_only
def test_another_group_gets_what_everybody_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(THEIRS)
    os.chown(path, -1, 2345) if os.geteuid() == 0 else pytest.skip("only root gives files away")
    path.chmod(0o664)
    monkeypatch.setattr("os.fchown", no_links)
    save(path, TENSORS)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


@posix_only
class TestCommands:
    @pytest.fixture
    def lora(self, tmp_path: Path) -> Path:
        save_file(LORA, tmp_path / "lora.safetensors")
        return tmp_path / "lora.safetensors"

    def test_force_follows_a_link(self, lora: Path, tmp_path: Path) -> None:
        (tmp_path / "target.safetensors").write_bytes(THEIRS)
        output = tmp_path / "out.safetensors"
        output.symlink_to("target.safetensors")
        assert lorakit_here("scale", lora, "-o", output, "-s", 0.5).status == 2
        done = lorakit_here("scale", lora, "-o", output, "-s", 0.5, "--force")
        assert done.status == 0, done.err
        assert output.is_symlink()
        assert len(load_file(tmp_path / "target.safetensors")) == 3

    @pytest.mark.parametrize("name", ["out.safetensors", "report.json"])
    def test_a_pipe_is_refused_before_the_work(self, name: str, lora: Path, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / name)
        output = tmp_path / "out.safetensors"
        words = ["--json", tmp_path / name] if name.endswith("json") else []
        done = lorakit_here("scale", lora, "-o", output, "--force", *words)
        assert (done.status, "is no regular file" in done.err) == (2, True)
        assert stat.S_ISFIFO((tmp_path / name).stat().st_mode)
        assert not output.is_file()

    def test_a_report_never_replaces_the_result(self, lora: Path, tmp_path: Path) -> None:
        folder = tmp_path / "peft"
        words = ["convert", lora, "-o", folder, "--format", "peft", "--architecture", "sd1"]
        assert lorakit_here(*words).status == 0
        config = (folder / "adapter_config.json").read_bytes()
        done = lorakit_here(*words, "--force", "--json", folder / "adapter_config.json")
        assert (done.status, "same file as the output" in done.err) == (2, True)
        assert (folder / "adapter_config.json").read_bytes() == config

    def test_two_at_one_folder(self, lora: Path, tmp_path: Path) -> None:
        """What another process has half done there is not taken away."""
        (tmp_path / ".peft.partial").mkdir()
        done = lorakit_here(
            "convert", lora, "-o", tmp_path / "peft", "--format", "peft", "--architecture", "sd1"
        )
        assert done.status == 0, done.err
        assert (tmp_path / ".peft.partial").is_dir()

    def test_a_configuration_of_another_adapter_stays(self, lora: Path, tmp_path: Path) -> None:
        folder = tmp_path / "peft"
        folder.mkdir()
        (folder / "adapter_config.json").write_bytes(THEIRS)
        words = ["convert", lora, "-o", folder, "--format", "peft", "--architecture", "sd1"]
        done = lorakit_here(*words)
        assert (done.status, "adapter_config.json: exists already" in done.err) == (2, True)
        assert [path.name for path in folder.iterdir()] == ["adapter_config.json"]
        (folder / "adapter_config.json").chmod(0o600)
        assert lorakit_here(*words, "--force").status == 0
        assert stat.S_IMODE((folder / "adapter_config.json").stat().st_mode) == 0o600
