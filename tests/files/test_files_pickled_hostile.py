"""Pickles made to run code, to crash Python, or to take its memory: one line each, and no more."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from commands import HELPERS
from pickles import call, fields, in_a_row, many, name, number, storage, tensor, text, zipped

from lorakit.lora_ops.errors import FormatError
from lorakit.lora_ops.files import PickledFile

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs POSIX limits")

ORDERED = call(name("collections", "OrderedDict"))
TYPED = name("torch._tensor", "_rebuild_from_type_v2")
REBUILD = name("torch._utils", "_rebuild_tensor_v2")
LIST = b"](" + (number(1) + number(2) + b"\x86") * 1000 + b"e"
DEEP = b")" + b"\x85" * 200_000

#: name -> (what is pickled, words of the refusal; "" where the file is read without harm)
CASES: dict[str, tuple[bytes, str]] = {
    # Values that no file holds.
    "a constructor": (fields({"w": call(name("torch", "FloatTensor"), number(50), number(50))}), "run `torch.FloatTensor`"),
    "an empty tensor": (fields({"w": call(name("torch", "empty"), number(50))}), "run `torch.empty`"),
    "a tensor made new": (fields({"w": name("torch", "FloatTensor") + many(number(9)) + b"\x81"}), "run `torch.FloatTensor`"),
    "a storage made new": (fields({"w": tensor(call(name("torch", "FloatStorage"), number(4)))}), "run `torch.FloatStorage`"),
    "a storage that is missing": (fields({"w": tensor(storage("9"))}), "storage 9 claims 16 bytes; the file has 0"),
    "a storage by a path": (fields({"w": tensor(storage("../data.pkl"))}), "the file has 0 of it"),
    "a storage that is longer": (fields({"w": tensor(storage(count=10**12), shape=(10**12,))}), "the file has 16 of it"),
    "a view beyond": (fields({"w": tensor(offset=1)}), "claims 20 bytes of a storage that has 16"),
    "a view before": (fields({"w": tensor(offset=-1)}), "a place that is none"),
    "a stride back": (fields({"w": tensor(strides=(-1,))}), "a place that is none"),
    "a shape that overflows": (fields({"w": tensor(shape=(1 << 62, 1 << 62, 0), strides=(0, 0, 0))}), "not a tuple of sizes"),
    "65 axes": (fields({"w": tensor(shape=(1,) * 65, strides=(0,) * 65)}), "not a tuple of sizes"),
    "a shape of true": (fields({"w": call(REBUILD, storage(), number(0), many(b"\x88"), many(b"\x88"))}), "a place that is none"),
    "a tensor changed later": (fields({"w": tensor() + many(storage(), number(0)) + b"b"}), "change a tensor"),
    # Crashes and memory.
    "a deep key": (b"}" + DEEP + b"K\x01s", "no tensors"),
    "a deep value": (fields({"x": DEEP, "w": tensor()}), ""),
    "a deep dict": (b"}" + text("x") + b"}" + (text("x") + b"}") * 100_000 + b"s" * 100_001, "no tensors"),
    "a counter of a gigabyte": (call(name("collections", "Counter"), call(name("builtins", "bytearray"), number(10**9))), "no tensors"),
    "a size of a gigabyte": (call(name("torch", "Size"), call(name("builtins", "bytearray"), number(10**9))), "not a tuple of sizes"),
    "a set of a gigabyte": (call(name("__builtin__", "set"), call(name("__builtin__", "bytearray"), number(10**9))), "no tensors"),
    "a codec": (call(name("_codecs", "encode"), text("7" * 1000), text("zlib")), "no tensors"),
    "a string of 4 GiB": (b"X\xff\xff\xff\xff", "longer than the file"),
    "a string of 2**63": (b"\x8d" + b"\xff" * 8, "longer than the file"),
    "bytes of 2**63": (b"\x8e" + b"\xff" * 8, "longer than the file"),
    "a number of 2 GiB": (b"\x8b\xff\xff\xff\x7f", "is no size"),
    "a negative number of bytes": (b"\x8b\xff\xff\xff\xff", "is no size"),
    "a memo of 2**32": (b"}r\xff\xff\xff\xff", "no tensors"),
    "a memo without end": (b"}" + b"\x94" * 300_000, "more than 250000 objects"),
    "dicts without end": (b"(" + b"}" * 300_000 + b"t", "more than 250000 objects"),
    "names without end": (text("x" * 2_000_000) + b"\x94" + b"(" + b"h\0h\0\x93" * 5000 + b"t", "a name in its pickle has no end"),
    "a name without an end": (b"c" + b"x" * 10_000, "a name in its pickle has no end"),
    "one list a hundred thousand times": (LIST + b"\x94" + ORDERED[:-3] + b"\x94" + b"h\x01h\0\x85R" * 1000, "more than 250000 objects"),
    "a thousand arguments": (REBUILD + many(*[b"N"] * 1000) + b"R", "a call with 1000 arguments"),
    "a thousand arguments within": (call(TYPED, REBUILD, name("torch", "Tensor"), many(*[b"N"] * 1000), b"N"), "a call with 1000 arguments"),
    "keys of one hash": (b"}(" + b"".join(number(n * ((1 << 61) - 1)) + b"N" for n in range(1, 60_000)) + b"u", "no tensors"),
    # Attributes in place of methods.
    "an items of its own": (ORDERED + b"(" + text("w") + tensor() + b"u" + fields({"items": number(1), "get": b"N"}) + b"b", ""),
    "a numel of its own": (fields({"w": call(TYPED, REBUILD, name("torch", "Tensor"), many(storage(), number(0), many(number(4)), many(number(1)), b"\x89", ORDERED), fields({"numel": b"N", "detach": b"N", "element_size": number(1)}))}), ""),
    "a class of its own": (fields({"w": call(TYPED, REBUILD, name("evil", "Tensor"), many(storage(), number(0), many(number(4)), many(number(1)), b"\x89", ORDERED), b"N")}), "no plain dense tensor: it is of a class of its own"),
    # Names.
    "half a surrogate pair": (fields({"\ud800": tensor()}), r"`\ud800` is not valid Unicode"),
    "the metadata's name": (fields({"__metadata__": tensor()}), "`__metadata__` cannot be written"),
    # Python's own ways to call.
    "a call of a value": (text("x") + many() + b"R", "call what has no name"),
    "a call by an old opcode": (b"(S'x'\nios\nsystem\n", "do more than name tensors"),
    "an extension": (b"\x82\x01", "do more than name tensors"),
    "a function with keywords": (name("os", "system") + many(text("x")) + b"}\x92", "run `os.system`"),
}  # fmt: skip

CHILD = """
import json, random, re, resource, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import pickles, torch
from lorakit.lora_ops.errors import FormatError
from lorakit.lora_ops.files import PickledFile
from lorakit.lora_ops.files.reading import unpickling
unpickling._MOST_OBJECTS = 250_000  # so that it takes no long pickle to reach it
def held(which):
    return 1024 * int(re.search(which + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
def opened(path):
    try:
        with PickledFile(path) as file:
            limit = 8 * path.stat().st_size
            assert sum(file.tensor(key).nbytes for key in file.keys()) <= limit
            return "read " + " ".join(file.keys())
    except FormatError as error:
        assert str(error).isprintable(), ascii(str(error))
        return type(error).__name__ + " " + str(error)
if sys.platform == "linux":
    limit = held("VmSize") + (1 << 30)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
resource.setrlimit(resource.RLIMIT_CPU, (120, 120))
"""

EACH = """
for path in sorted(Path(sys.argv[2]).iterdir()):
    print(json.dumps([path.name, opened(path)]), flush=True)
"""

GENERATED = """
generator = random.Random(11)
path = Path(sys.argv[2]) / "a.ckpt"
for number in range(1500):
    pickled = pickles.random_pickle(generator)
    wrap = generator.choice((pickles.zipped, pickles.in_a_row))
    path.write_bytes(wrap(pickled))
    print(json.dumps([pickled.hex(), opened(path)]), flush=True)
"""


def child(script: str, folder: Path) -> list[tuple[str, str]]:
    """Run in a process that may crash, with 1 GiB of memory and two minutes."""
    run = subprocess.run(
        [sys.executable, "-c", CHILD + script, str(HELPERS), str(folder)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    lines = [json.loads(line) for line in run.stdout.splitlines()]
    last = lines[-1][0] if lines else "the start"
    assert run.returncode == 0, f"{run.returncode} after {last}: {run.stderr[-2000:]}"
    return lines


@pytest.mark.parametrize("kind", ["zip", "in a row"])
def test_hostile_pickles_end_in_one_line(kind: str, tmp_path: Path) -> None:
    for case, (value, _) in CASES.items():
        content = zipped(value) if kind == "zip" else in_a_row(value)
        (tmp_path / case).write_bytes(content)
    outcomes = dict(child(EACH, tmp_path))
    assert outcomes.keys() == CASES.keys()
    for case, (_, words) in CASES.items():
        refused = outcomes[case].split()[0] in ("FormatError", "UnsafePickleError")
        assert refused if words else outcomes[case] == "read w", (case, outcomes[case])
        # In a row, what is wrong with a storage may be noticed at another place.
        assert words in outcomes[case] or kind != "zip", (case, outcomes[case])


def test_generated_pickles_end_in_one_line_or_are_read(tmp_path: Path) -> None:
    outcomes = [outcome.split()[0] for _, outcome in child(GENERATED, tmp_path)]
    assert len(outcomes) == 1500
    for kind in ("read", "FormatError", "UnsafePickleError", "QuantisedError"):
        assert kind in outcomes, f"nothing of it is {kind}"


@pytest.mark.parametrize("count", [4, 500])
def test_names_may_share_a_tensor_but_not_by_the_hundred(count: int, tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    shared = torch.arange(1 << 18)
    torch.save({str(number): shared for number in range(count)}, path)
    if count == 4:
        with PickledFile(path) as file:
            assert all(torch.equal(file.tensor(key), shared) for key in list(file.keys()))
    else:
        with pytest.raises(
            FormatError, match=r"500 tensors claim 1048576000 bytes, 49\d times what"
        ):
            PickledFile(path)


@pytest.mark.parametrize("case", [case for case, (_, words) in CASES.items() if not words])
def test_what_is_read_all_the_same_is_right(case: str, tmp_path: Path) -> None:
    data = torch.arange(4.0)
    (tmp_path / "a.pt").write_bytes(zipped(CASES[case][0], {"0": data.numpy().tobytes()}))
    with PickledFile(tmp_path / "a.pt") as file:
        assert torch.equal(file.tensor("w"), data)
