"""What torch can save, and what it cannot give as plain numbers: every dtype, view, class and message."""

from __future__ import annotations

import argparse
import io
import pickle
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pickles
import pytest
import torch
from bits import assert_equal, noise
from safetensors import SafetensorError

from lorakit.lora_ops.errors import FormatError
from lorakit.lora_ops.files import PickledFile, open_source
from lorakit.lora_ops.files.dtypes import dtype_names


def every_kind() -> dict[str, torch.Tensor]:
    """Tensors of every dtype, view, class and bit that `torch.save` keeps."""
    base, pairs = noise(torch.float32, (6, 8)), torch.complex(torch.rand(3, 2), torch.rand(3, 2))
    noted = torch.nn.Parameter(torch.ones(2, 2))
    noted.note = "an attribute"  # type: ignore[attr-defined]
    return {
        **{str(dtype): noise(dtype, (3, 2)) for dtype in dtype_names()},
        "complex128": pairs.to(torch.complex128),
        "conjugated": pairs.conj(),
        "negated": (pairs + 1).conj().imag,
        "turned": base.T,
        "cut": base[1:3, 2:5],
        "every other": base[::2, ::3],
        "expanded": base[0].expand(3, 8),
        "permuted": base.reshape(2, 3, 8).permute(2, 0, 1),
        "nothing of it": base[3:3],
        "with an attribute": noted,
    }


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_every_kind_of_tensor_comes_back(protocol: int, legacy: bool, tmp_path: Path) -> None:
    path, tensors = tmp_path / "a.pt", every_kind()
    besides = {
        "milestones": Counter([1, 2]), "names": {"x"}, "raw": b"x", "number": 1 << 70,
        "device": torch.device("cpu"), "dtype": torch.float16, "size": torch.Size([1]),
        "a class": argparse.Namespace, "other keys": {(1, 2): 3, None: 4, 1.5: 5},
        "storage": torch.ones(3).untyped_storage(),
    }  # fmt: skip
    torch.save(
        {"state_dict": tensors, **besides},
        path,
        pickle_protocol=protocol,
        _use_new_zipfile_serialization=not legacy,
    )
    with PickledFile(path) as file:
        assert set(file.keys()) == set(tensors)
        for key, tensor in tensors.items():
            ours = file.tensor(key)
            assert [ours.is_conj(), ours.is_neg(), ours.requires_grad] == [False] * 3
            assert_equal(ours, tensor.detach().resolve_conj().resolve_neg())


def test_big_endian_files_are_turned_round(tmp_path: Path) -> None:
    path, data = tmp_path / "a.pt", torch.arange(4.0)
    swapped = data.numpy().byteswap().tobytes()
    path.write_bytes(pickles.zipped(pickles.fields({"w": pickles.tensor()}), {"0": swapped}, byteorder=b"big", version=b"3\n"))  # fmt: skip
    assert torch.equal(torch.load(path)["w"], data)
    with PickledFile(path) as file:
        assert torch.equal(file.tensor("w"), data)


def quantised() -> object:
    return {"w": torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)}


def nested() -> object:
    return {"w": torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])}


def jagged() -> object:
    parts = [torch.ones(2), torch.ones(3)]
    return {"w": torch.nested.nested_tensor(parts, layout=torch.jagged)}


STRANGE: dict[str, tuple[Callable[[], object], str]] = {
    "quantised": (quantised, "`w` is made of quantised integers; give the unquantised"),
    "meta": (lambda: {"w": torch.empty(3, device="meta")}, "no plain dense tensor: it is without data"),
    "sparse": (lambda: {"w": torch.eye(3).to_sparse()}, "no plain dense tensor: it is sparse"),
    "sparse rows": (lambda: {"w": torch.eye(3).to_sparse_csr()}, "no plain dense tensor: it is sparse"),
    "nested": (nested, "no plain dense tensor: it is nested"),
    "jagged": (jagged, "no plain dense tensor: it is nested"),
    "a whole model": (lambda: torch.nn.Linear(2, 2), "run `torch.nn.modules.linear.Linear`, which was not done"),
    "half a surrogate pair": (lambda: {"\ud800": torch.ones(1)}, r"`\ud800` is not valid Unicode"),
    "the metadata's name": (lambda: {"__metadata__": torch.ones(1)}, "`__metadata__` cannot be written"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")  # torch says of some that they are going
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("name", STRANGE)
def test_what_is_no_plain_tensor_is_called_by_its_name(
    name: str, legacy: bool, tmp_path: Path
) -> None:
    value, words = STRANGE[name]
    torch.save(value(), tmp_path / "a.pt", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(FormatError) as caught:
        open_source(tmp_path / "a.pt")
    assert words in str(caught.value)
    assert str(caught.value).isprintable()


def test_other_tensors_than_those_of_the_model_may_be_strange(tmp_path: Path) -> None:
    value = {"state_dict": {"w": torch.ones(1)}, "mask": torch.eye(3).to_sparse()}
    torch.save(value, tmp_path / "a.pt")
    with PickledFile(tmp_path / "a.pt") as file:
        assert file.keys() == ["w"]


@pytest.mark.filterwarnings("ignore")
def test_a_program_is_no_checkpoint(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / "a.pt")
    with pytest.raises(FormatError, match="a TorchScript program, not a checkpoint"):
        open_source(tmp_path / "a.pt")


def test_another_zip_is_no_checkpoint(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        archive.writestr("word/document.xml", "<x/>")
    with pytest.raises(FormatError, match=r"not one of PyTorch: it has no `data\.pkl`"):
        open_source(tmp_path / "a.pt")


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("before", [b"\n", b"\r\n", b"\xef\xbb\xbf"])
def test_what_stands_before_the_first_byte_is_told(
    before: bytes, suffix: str, tmp_path: Path
) -> None:
    """torch reads no such file either."""
    buffer, path = io.BytesIO(), tmp_path / f"a{suffix}"
    torch.save({"w": torch.ones(1)}, buffer)
    path.write_bytes(before + buffer.getvalue())
    with pytest.raises((pickle.UnpicklingError, SafetensorError)):
        torch.load(path)
    with pytest.raises(FormatError, match="stand before what would be its first byte"):
        open_source(path)
