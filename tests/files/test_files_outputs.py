"""Names for outputs: what cannot or must not be written is refused before the work begins."""

from __future__ import annotations

from pathlib import Path

import pytest

from lorakit.lora_ops.errors import ArgumentError
from lorakit.lora_ops.files import check_output


class TestCheckOutput:
    def test_a_new_name_passes(self, tmp_path: Path) -> None:
        source = tmp_path / "in.safetensors"
        source.touch()
        check_output(tmp_path / "out.safetensors", [source, tmp_path / "gone"], force=False)

    def test_what_exists_needs_force(self, tmp_path: Path) -> None:
        path = tmp_path / "out.safetensors"
        path.touch()
        with pytest.raises(ArgumentError, match=r"exists already.*`force=True`"):
            check_output(path, [], force=False)
        check_output(path, [], force=True)

    @pytest.mark.parametrize("how", ["same", "dots", "hardlink", "symlink", "folder link"])
    def test_an_input_is_never_replaced(self, how: str, tmp_path: Path) -> None:
        source = tmp_path / "in.safetensors"
        source.touch()
        path = tmp_path / "out.safetensors"
        if how == "same":
            path = source
        elif how == "dots":
            (tmp_path / "sub").mkdir()
            path = tmp_path / "sub" / ".." / "in.safetensors"
        elif how == "hardlink":
            path.hardlink_to(source)
        elif how == "symlink":
            path.symlink_to(source)
        else:
            (tmp_path / "link").symlink_to(tmp_path, target_is_directory=True)
            path = tmp_path / "link" / "in.safetensors"
        with pytest.raises(ArgumentError, match="same file as the input"):
            check_output(path, [source], force=True)

    def test_bad_places_are_named(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(ArgumentError, match="is a folder"):
            check_output(tmp_path, [], force=True)
        with pytest.raises(ArgumentError, match=r"must end in `\.safetensors`"):
            check_output(tmp_path / "out.ckpt", [], force=True)
        deep = tmp_path / "no" / "where" / "out.safetensors"
        with pytest.raises(ArgumentError, match=f"`{tmp_path}` does exist"):
            check_output(deep, [], force=True)
        with pytest.raises(ArgumentError, match="cannot be used: File name too long"):
            check_output(tmp_path / ("n" * 300 + ".safetensors"), [], force=True)
        dangling = tmp_path / "dangling.safetensors"
        dangling.symlink_to(tmp_path / "gone")
        with pytest.raises(ArgumentError, match="exists already"):
            check_output(dangling, [], force=False)
        monkeypatch.setattr("os.access", lambda _path, _mode: False)
        with pytest.raises(ArgumentError, match="may not be written to"):
            check_output(tmp_path / "out.safetensors", [], force=True)
