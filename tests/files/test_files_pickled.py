"""Reading pickled checkpoints: torch's values, and nothing that the file brings along is run."""

from __future__ import annotations

import io
import pickle
import subprocess
import sys
import warnings
from collections import OrderedDict
from pathlib import Path
from typing import Any

import hostile
import pytest
import torch
from bits import assert_equal, noise
from commands import HELPERS
from hypothesis import given, settings
from hypothesis import strategies as st

from lorakit.lora_ops.errors import FormatError, UnsafePickleError
from lorakit.lora_ops.files import PickledFile, open_source

STATE = {
    "b.weight": noise(torch.float16, (4, 3)),
    "a.weight": noise(torch.bfloat16, (2, 2, 3, 3)),
    "scalar": torch.tensor(2.5),
    "steps": torch.arange(5),
    "empty": torch.empty(0, 3),
}

NESTS: dict[str, Any] = {
    "plain": STATE,
    "ordered": OrderedDict(STATE),
    "lightning": {"state_dict": STATE, "epoch": 3, "optimizer_states": [torch.ones(3)]},
    "model": {"model": STATE, "iteration": torch.tensor(7)},
    "module": {"module": STATE, "dp_world_size": 2},
    "twice": {"model": {"state_dict": STATE}},
    "not only tensors": {**STATE, "version": 1, "names": ["x"], 7: torch.ones(1)},
    "a module named model": {**STATE, "model": "the name of it"},
}


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("nest", NESTS)
def test_reads_what_torch_writes(nest: str, legacy: bool, tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    torch.save(NESTS[nest], path, _use_new_zipfile_serialization=not legacy)
    with warnings.catch_warnings(record=True) as caught, open_source(path) as file:
        warnings.simplefilter("always")
        assert isinstance(file, PickledFile)
        assert set(file.keys()) == set(STATE)
        assert file.metadata == {}
        assert (file.name, file.paths) == (str(path), (path,))
        for key, tensor in STATE.items():
            assert (file.shape(key), file.dtype(key)) == (tuple(tensor.shape), tensor.dtype)
            assert_equal(file.tensor(key), tensor)
    assert caught == []


@pytest.mark.parametrize("suffix", [".ckpt", ".pt", ".pth", ".bin", ".anything", ""])
def test_the_content_tells_the_kind(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    torch.save(STATE, path)
    with open_source(path) as file:
        assert set(file.keys()) == set(STATE)


def test_views_and_parameters_are_plain_copies(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    base = torch.arange(12.0).reshape(3, 4)
    parameter = torch.nn.Parameter(base.clone())
    torch.save({"view": base.T, "row": base[1], "parameter": parameter}, path)
    before = path.read_bytes()
    with open_source(path) as file:
        view = file.tensor("view")
        assert view.is_contiguous()
        assert torch.equal(view, base.T)
        assert torch.equal(file.tensor("row"), base[1])
        copy = file.tensor("parameter")
        assert type(copy) is torch.Tensor
        assert not copy.requires_grad
        view.zero_()
        copy.zero_()
        assert torch.equal(file.tensor("view"), base.T)
    assert path.read_bytes() == before


def test_keys_come_in_the_order_of_their_data(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    base = torch.arange(300.0)
    torch.save({"last": base[200:], "first": base[:100], "middle": base[100:200]}, path)
    with open_source(path) as file:
        assert list(file.keys()) == ["first", "middle", "last"]


INSIDE: dict[str, tuple[Any, set[str]]] = {
    "a textual inversion": ({"string_to_param": {"*": torch.ones(2, 768)}, "name": "x"}, {"string_to_param.*"}),
    "a hypernetwork": ({320: [{"linear.0.bias": torch.ones(3)}, {}], "step": 9}, {"320.0.linear.0.bias"}),
    "an ip-adapter": (
        {"image_proj": {"norm.bias": torch.ones(1)}, "ip_adapter": {"1.to_k_ip.weight": torch.ones(1, 1)}},
        {"image_proj.norm.bias", "ip_adapter.1.to_k_ip.weight"},
    ),
    "a list": ([torch.ones(1), torch.zeros(1)], {"0", "1"}),
    "a tensor": (torch.ones(3), {"tensor"}),
}  # fmt: skip


@pytest.mark.parametrize("name", INSIDE)
def test_tensors_within_are_named_by_the_way_to_them(name: str, tmp_path: Path) -> None:
    value, keys = INSIDE[name]
    torch.save(value, tmp_path / "a.pt")
    with PickledFile(tmp_path / "a.pt") as file:
        assert set(file.keys()) == keys


def test_a_pickle_that_holds_itself_a_thousand_times_is_walked_once(tmp_path: Path) -> None:
    """Without a memory that would be 1e12 steps."""
    nest: list[Any] = [torch.ones(1)]
    for _ in range(3):
        nest = [nest] * 1000
    torch.save(nest, tmp_path / "a.pt")
    with PickledFile(tmp_path / "a.pt") as file:
        assert file.keys() == ["0.0.0.0"]


KINDS = ["zip", "legacy", *(f"protocol {n}" for n in range(2, pickle.HIGHEST_PROTOCOL + 1))]


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_in_the_file_is_run(kind: str, tmp_path: Path) -> None:
    path, trace = tmp_path / "a.ckpt", tmp_path / "trace"
    path.write_bytes(hostile.malicious(trace, kind))
    with pytest.raises(UnsafePickleError, match=r"which was not done; .*safetensors") as caught:
        open_source(path)
    assert not trace.exists()
    assert str(caught.value).isprintable()
    if kind in ("zip", "legacy", "protocol 2"):
        assert "`posix.mkdir`" in str(caught.value) or "`nt.mkdir`" in str(caught.value)


def test_the_payload_works(tmp_path: Path) -> None:
    """Or the test above could not fail."""
    pickle.loads(hostile.malicious(tmp_path / "trace", "protocol 2"))
    assert (tmp_path / "trace").exists()


def bad_files() -> dict[str, tuple[bytes, str]]:
    new, old = io.BytesIO(), io.BytesIO()
    torch.save(STATE, new)
    torch.save(STATE, old, _use_new_zipfile_serialization=False)
    zipped, legacy = new.getvalue(), old.getvalue()
    none, wide, sparse, cyclic = (io.BytesIO() for _ in range(4))
    torch.save({"epoch": 1, "names": ["w", {"of": None}]}, none)
    torch.save({"w": torch.ones(1).expand(1 << 20, 1 << 20)}, wide)
    torch.save({"w": torch.eye(3).to_sparse()}, sparse)
    ring: dict[str, Any] = {}
    ring["model"] = ring
    torch.save(ring, cyclic)
    return {
        "zip truncated": (zipped[: len(zipped) // 2], "not a readable PyTorch file"),
        "zip without its end": (zipped[:-10], "not a readable PyTorch file"),
        "legacy truncated": (legacy[: len(legacy) // 2], "not a readable PyTorch file"),
        "legacy without its end": (legacy[:-1], "not a readable PyTorch file"),
        "zip noise": (b"PK\x03\x04" + bytes(range(256)), "not a readable PyTorch file"),
        "pickle noise": (b"\x80\x02" + bytes(range(255, 0, -1)), ""),
        "pickle of nothing": (b"\x80\x02", "not a readable PyTorch file"),
        "compressed": (hostile.recompressed(zipped), "compressed entries"),
        "no tensors": (none.getvalue(), "no tensors"),
        "contains itself": (cyclic.getvalue(), "no tensors"),
        "claims 4 TiB": (wide.getvalue(), f"{4 << 40} bytes, more than the file has"),
        "sparse": (sparse.getvalue(), "no plain dense tensor"),
    }


@pytest.mark.parametrize("name", bad_files())
def test_bad_files_end_in_one_line(name: str, tmp_path: Path) -> None:
    content, words = bad_files()[name]
    path = tmp_path / "a.ckpt"
    path.write_bytes(content)
    with pytest.raises(FormatError) as caught:
        open_source(path)
    assert words in str(caught.value)
    assert str(caught.value).isprintable()


@settings(max_examples=150, deadline=None)
@given(data=st.data(), new=st.booleans())
def test_any_damage_is_a_format_error_or_harmless(
    data: st.DataObject, new: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    buffer = io.BytesIO()
    torch.save({"w": torch.ones(3), "b": torch.ones(2)}, buffer, _use_new_zipfile_serialization=new)
    bad = bytearray(buffer.getvalue())
    for at in data.draw(st.lists(st.integers(2, len(bad) - 1), min_size=1, max_size=4)):
        bad[at] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("damage") / "a.pt"
    path.write_bytes(bad)
    try:
        with PickledFile(path) as file:
            for key in list(file.keys()):
                assert file.tensor(key).numel() <= len(bad)
    except FormatError as error:
        assert "\n" not in str(error)  # noqa: PT017


def test_a_name_that_lies_is_told(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    torch.save(STATE, path)
    with pytest.raises(FormatError, match=r"PyTorch zip archive by its content.*\.pt"):
        open_source(path)


def test_no_pickle_is_ever_loaded_with_its_code() -> None:
    """The environment variable that turns torch's protection off has no effect here."""
    script = (
        "import sys, pathlib; sys.path.insert(0, sys.argv[1]); import hostile\n"
        "from lorakit.lora_ops.errors import UnsafePickleError\n"
        "from lorakit.lora_ops.files import open_source\n"
        "import tempfile\n"
        "with tempfile.TemporaryDirectory() as folder:\n"
        "    path, trace = (pathlib.Path(folder) / name for name in ('a.pt', 'trace'))\n"
        "    path.write_bytes(hostile.malicious(trace, 'zip'))\n"
        "    try:\n"
        "        open_source(path)\n"
        "    except UnsafePickleError:\n"
        "        print(trace.exists())\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", script, str(HELPERS)],
        env={"TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout == "False\n"
