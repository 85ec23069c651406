"""Reading safetensors files: the official library's files give its values, all others give one line."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import hostile
import pytest
import torch
from bits import assert_equal, noise, raw
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from lorakit.lora_ops.errors import ArgumentError, FormatError, QuantisedError
from lorakit.lora_ops.files import SafetensorsFile, open_source
from lorakit.lora_ops.files.dtypes import DTYPE_BITS, torch_dtypes

SHAPES = [(), (0,), (1,), (3,), (2, 0, 5), (5, 7), (2, 3, 4, 5)]


@pytest.mark.parametrize("name", sorted(torch_dtypes()))
def test_reads_what_the_official_library_writes(name: str, tmp_path: Path) -> None:
    dtype = torch_dtypes()[name]
    tensors = {f"t.{i}": noise(dtype, shape, i) for i, shape in enumerate(SHAPES)}
    save_file(tensors, tmp_path / "a.safetensors", {"format": "pt", "título": "ß\n"})
    with SafetensorsFile(tmp_path / "a.safetensors") as file:
        assert sorted(file.keys()) == sorted(tensors)
        assert file.metadata == {"format": "pt", "título": "ß\n"}
        for key, tensor in tensors.items():
            assert file.shape(key) == tuple(tensor.shape)
            assert file.dtype(key) == dtype
            assert file.dtype_name(key) == name
            assert_equal(file.tensor(key), tensor)


def test_mixed_dtypes_come_in_the_order_of_their_data(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    tensors = {
        f"{name}.{i}": noise(torch_dtypes()[name], (3, i), i)
        for name in torch_dtypes()
        for i in range(3)
    }
    save_file(tensors, path)
    text = path.read_bytes()
    header = json.loads(text[8 : 8 + int.from_bytes(text[:8], "little")])
    with SafetensorsFile(path) as file:
        begins = [header[key]["data_offsets"][0] for key in file.keys()]  # noqa: SIM118
        assert begins == sorted(begins)
        for key, tensor in tensors.items():
            assert_equal(file.tensor(key), tensor)


@settings(max_examples=50, deadline=None)
@given(
    st.dictionaries(
        st.text(min_size=1, max_size=20).filter(lambda key: key != "__metadata__"),
        st.tuples(
            st.sampled_from(sorted(torch_dtypes())),
            st.lists(st.integers(0, 4), max_size=4),
            st.integers(0, 9),
        ),
        max_size=6,
    )
)
def test_any_official_file_is_read(content: dict[str, tuple[str, list[int], int]]) -> None:
    tensors = {
        k: noise(torch_dtypes()[n], tuple(shape), seed) for k, (n, shape, seed) in content.items()
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.safetensors"
        save_file(tensors, path)
        with SafetensorsFile(path) as file:
            assert set(file.keys()) == set(tensors)
            for key, tensor in tensors.items():
                assert_equal(file.tensor(key), tensor)


def test_files_of_other_writers_are_read(tmp_path: Path) -> None:
    """Unsorted, unpadded, unaligned, null metadata: all of it valid."""
    header = {
        "late": {"dtype": "F32", "shape": [2], "data_offsets": [3, 11]},
        "__metadata__": None,
        "early": {"dtype": "U8", "shape": [3], "data_offsets": [0, 3]},
    }
    data = torch.tensor([1.5, -2.0])
    path = tmp_path / "a.safetensors"
    path.write_bytes(hostile.container(header, b"\1\2\3" + raw(data)))
    with SafetensorsFile(path) as file:
        assert file.keys() == ["early", "late"]
        assert file.metadata == {}
        assert_equal(file.tensor("late"), data)
        assert file.tensor("early").tolist() == [1, 2, 3]


@pytest.mark.parametrize("name", sorted(DTYPE_BITS.keys() - torch_dtypes().keys()))
def test_elements_that_torch_lacks_are_named_but_not_read(name: str, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    size = 8 * DTYPE_BITS[name] // 8
    header = {"w": {"dtype": name, "shape": [2, 4], "data_offsets": [0, size]}}
    path.write_bytes(hostile.container(header, bytes(size)))
    with SafetensorsFile(path) as file:
        assert (file.shape("w"), file.dtype("w"), file.dtype_name("w")) == (
            (2, 4),
            torch.uint8,
            name,
        )
        with pytest.raises(QuantisedError, match=f"stored as {name}.*unquantised"):
            file.tensor("w")


def test_the_result_belongs_to_the_caller(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"w": torch.ones(4)}, path)
    before = path.read_bytes()
    with SafetensorsFile(path) as file:
        file.tensor("w").zero_()
        assert file.tensor("w").tolist() == [1, 1, 1, 1]
    assert path.read_bytes() == before


@pytest.mark.parametrize("name", [*hostile.HEADERS, *hostile.OTHERS])
def test_hostile_files_end_in_one_line(name: str, tmp_path: Path) -> None:
    content, words = (hostile.HEADERS | hostile.OTHERS)[name]
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with pytest.raises(FormatError) as caught:
        SafetensorsFile(path)
    message = str(caught.value)
    assert caught.value.path == path
    assert words in message
    assert message.isprintable()
    assert len(message) < len(str(path)) + 300


@pytest.mark.parametrize("name", [*hostile.HEADERS, *hostile.OTHERS])
def test_the_official_library_refuses_them_too(name: str, tmp_path: Path) -> None:
    content, _ = (hostile.HEADERS | hostile.OTHERS)[name]
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    try:
        with safe_open(path, "pt") as file:
            file.keys()
        read = True
    except (SafetensorError, ValueError, OSError):  # an empty file cannot be mapped
        read = False
    assert read == (name in hostile.OFFICIAL_READS)


def test_hostile_names_are_shown_harmlessly(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(hostile.container({"\x1b[2J\n" + "x" * 10_000: 1}))
    with pytest.raises(FormatError) as caught:
        SafetensorsFile(path)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < len(str(path)) + 300


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_any_damage_is_a_format_error_or_harmless(data: st.DataObject) -> None:
    good = hostile.container(
        {"a": hostile.FOUR, "b": hostile.FOUR | {"data_offsets": [4, 8]}}, bytes(8)
    )
    bad = bytearray(good)
    for at in data.draw(st.lists(st.integers(0, len(good) - 1), min_size=1, max_size=4)):
        bad[at] = data.draw(st.integers(0, 255))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.safetensors"
        path.write_bytes(bad[: data.draw(st.integers(0, len(bad)))])
        try:
            with SafetensorsFile(path) as file:
                for key in list(file.keys()):
                    assert file.tensor(key).numel() * file.dtype(key).itemsize <= 8
        except FormatError as error:
            assert str(error).isprintable()  # noqa: PT017


def test_a_file_that_shrinks_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"w": torch.ones(1000)}, path)
    with SafetensorsFile(path) as file:
        with path.open("r+b") as writing:
            writing.truncate(500)
        with pytest.raises(FormatError, match="became shorter"):
            file.tensor("w")


def test_threads_read_at_the_same_time(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    tensors = {str(i): torch.full((1000,), float(i)) for i in range(20)}
    save_file(tensors, path)
    start = threading.Barrier(4)

    def read_all(file: SafetensorsFile) -> bool:
        start.wait()
        return all(torch.equal(file.tensor(key), tensors[key]) for key in list(tensors) * 50)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # so that threads meet between any two steps
    try:
        with SafetensorsFile(path) as file, ThreadPoolExecutor(4) as pool:
            assert all(pool.map(read_all, [file] * 4))
    finally:
        sys.setswitchinterval(interval)


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    save_file({"w": torch.ones(1)}, tmp_path / "style_v2.safetensors")
    with pytest.raises(ArgumentError, match=r"did you mean `style_v2\.safetensors`"):
        open_source(tmp_path / "style_v1.safetensors")
    with pytest.raises(ArgumentError, match=r"the folder `.*nowhere` does not exist"):
        open_source(tmp_path / "nowhere" / "a.safetensors")
    with pytest.raises(ArgumentError, match=r"no such file$"):
        open_source(tmp_path / "quite another thing.pt")
    with pytest.raises(ArgumentError, match="cannot be opened: File name too long"):
        open_source(tmp_path / ("n" * 300))
    (tmp_path / "link.pt").symlink_to(tmp_path / "gone.pt")
    with pytest.raises(ArgumentError, match=r"no such file$"):
        open_source(tmp_path / "link.pt")


PEAK = """
import sys
from lorakit.lora_ops.files import SafetensorsFile

def peak():  # MiB; a new program's ru_maxrss would begin with its parent's
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024

file, kept = SafetensorsFile(sys.argv[1]), []
keys = file.keys()
file.tensor(keys[0])
before = peak()
for key in keys[1:]:
    tensor = file.tensor(key)
    if sys.argv[2] == "keep":
        kept.append(tensor)
    del tensor
file.close()
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Linux tells a program's peak memory in /proc")
@pytest.mark.parametrize(("habit", "low", "high"), [("drop", 0, 50 + 64), ("keep", 350, 500)])
def test_one_tensor_in_memory_at_a_time(habit: str, low: int, high: int, tmp_path: Path) -> None:
    """Eight tensors of 50 MiB; who keeps them sees them in the same measurement."""
    size = 50 << 20
    header: dict[str, object] = {
        f"w{i}": {"dtype": "U8", "shape": [size], "data_offsets": [i * size, (i + 1) * size]}
        for i in range(8)
    }
    header["a"] = {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}
    path = tmp_path / "a.safetensors"
    text = hostile.container(header)
    with path.open("wb") as file:
        file.write(text)
        file.truncate(len(text) + 8 * size)
    run = subprocess.run(
        [sys.executable, "-c", PEAK, path, habit], capture_output=True, text=True, check=True
    )
    assert low <= float(run.stdout) < high
