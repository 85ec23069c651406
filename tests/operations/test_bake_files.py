"""Bake from file to file: bytes, shards, the record of it, and nothing left after a failure."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import comfy_host
import pytest
import torch
from bits import assert_equal
from checkpoints import FLUX, grid, planted, source
from commands import HELPERS, TESTS, contents, lorakit_here
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from test_comfy_loading import CASES
from test_comfy_loading import planted as planted_comfy
from torch import Tensor

from lorakit.lora_ops import LoraOpsError, extract, open_source
from lorakit.lora_ops.adapters.formats import COMFY, encode_layer, module_namer
from lorakit.lora_ops.adapters.strengths.ingredient import Ingredient
from lorakit.lora_ops.errors import ArgumentError, QuantisedError
from lorakit.lora_ops.files import INDEX, SafetensorsWriter
from lorakit.lora_ops.operations.bake.bake import bake
from lorakit.lora_ops.operations.bake.file import bake_file, plan_bake_file

BASE = dict(grid(FLUX, torch.float16)) | {"odd": torch.arange(5, dtype=torch.uint8)}
METADATA = {"modelspec.title": "A model", "modelspec.hash_sha256": "0x00", "format": "pt"}


def lora_tensors(base: dict[str, Tensor]) -> dict[str, Tensor]:
    found, _ = extract(source(base), source(planted(base)), 3)
    namer = module_namer(COMFY)
    return {
        key: tensor
        for target, layer in found.layers.items()
        for key, tensor in encode_layer(COMFY, namer, target, layer).items()
    }


LORA = lora_tensors(grid(FLUX, torch.float16))
EXPECTED, _ = bake(source(BASE), [Ingredient(source(LORA), 0.7)])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint, the same in three shards, and a LoRA."""
    save_file(BASE, tmp_path / "base.safetensors", METADATA)
    save_file(LORA, tmp_path / "lora.safetensors")
    keys = list(BASE)
    third = len(keys) // 3
    parts = [keys[:third], keys[third : 2 * third], keys[2 * third :]]
    names = [f"base-{i}.safetensors" for i in range(1, 4)]
    for name, part in zip(names, parts, strict=True):
        save_file({key: BASE[key] for key in part}, tmp_path / name, {"format": "pt"})
    weight_map = {key: name for name, part in zip(names, parts, strict=True) for key in part}
    (tmp_path / f"base{INDEX}").write_text(json.dumps({"weight_map": weight_map}))
    (tmp_path / "out").mkdir()
    return tmp_path


def run(checkpoint: Path, output: Path, strength: float = 0.7, progress=None, **options):
    lora = checkpoint.with_name("lora.safetensors")
    shard_size = options.get("shard_size", 5 * 10**9)
    with open_source(checkpoint) as one, open_source(lora) as other:
        plan = plan_bake_file(one, [Ingredient(other, strength)], output=output, **options)
        return bake_file(
            plan,
            one,
            output,
            force=options.get("force", False),
            version="0.0",
            shard_size=shard_size,
            progress=progress,
        )


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def assert_expected(found: dict[str, Tensor]) -> None:
    assert found.keys() == EXPECTED.keys()
    for key, tensor in EXPECTED.items():
        assert_equal(found[key], tensor)


def test_a_file_holds_what_memory_holds_in_the_same_order(folder):
    output = folder / "out" / "baked.safetensors"
    report = run(folder / "base.safetensors", output)
    assert_expected(load_file(output))
    assert report.size == output.stat().st_size
    assert [layer.target for layer in report.layers]
    with safe_open(folder / "base.safetensors", "pt") as one, safe_open(output, "pt") as other:
        keys = [key for key in one.offset_keys() if key != "odd"]
        assert [key for key in other.offset_keys() if key != "odd"] == keys


@pytest.mark.parametrize("name", ["baked.safetensors", f"baked{INDEX}"])
def test_the_header_fits_the_room_that_was_kept(folder, name, monkeypatch):
    """One that outgrows it would cost a copy of a large file."""
    rooms: list[int] = []
    make = SafetensorsWriter.__init__

    def note(self, *arguments, header_room, **options):
        rooms.append(header_room)
        make(self, *arguments, header_room=header_room, **options)

    monkeypatch.setattr(SafetensorsWriter, "__init__", note)
    run(folder / "base.safetensors", folder / "out" / name, shard_size=40_000)
    outputs = list((folder / "out").glob("*.safetensors"))
    assert len(rooms) == len(outputs)
    for path in outputs:
        with path.open("rb") as file:
            text = file.read(int.from_bytes(file.read(8), "little")).rstrip()
        # Shards have the room for all keys; the rest are digits of numbers not known before.
        assert len(text) <= rooms[0] <= len(text) + 200 * len(BASE) + 100


def test_the_record_is_true_and_the_metadata_stays(folder):
    output = folder / "out" / "baked.safetensors"
    report = run(folder / "base.safetensors", output)
    with safe_open(output, "pt") as file:
        found = file.metadata()
    assert found["modelspec.title"] == "A model"
    assert found["format"] == "pt"
    assert "modelspec.hash_sha256" not in found, "the data is not that of the base any more"
    assert found["lorakit.operation"] == "bake"
    assert found["lorakit.checkpoint"] == "base.safetensors"
    assert found["lorakit.checkpoint_sha256"] == sha256(folder / "base.safetensors")
    assert float(found["lorakit.error"]) == pytest.approx(report.error, rel=1e-5)
    (adapter,) = json.loads(found["lorakit.sources"])
    assert adapter == {
        "name": "lora.safetensors",
        "strength": 0.7,
        "sha256": sha256(folder / "lora.safetensors"),
    }


def test_the_same_inputs_give_the_same_bytes(folder):
    outputs = [folder / "out" / f"{name}.safetensors" for name in "ab"]
    for output in outputs:
        run(folder / "base.safetensors", output)
    assert outputs[0].read_bytes() == outputs[1].read_bytes()


def test_unbake_is_recorded_as_such(folder):
    baked, back = (folder / f"{name}.safetensors" for name in ("baked", "back"))
    run(folder / "base.safetensors", baked)
    run(baked, back, sign=-1)
    with safe_open(back, "pt") as file:
        assert file.metadata()["lorakit.operation"] == "unbake"
    for key, tensor in load_file(back).items():
        assert torch.allclose(tensor.float(), BASE[key].float(), atol=1e-3)


# --- Shards and pickles ---------------------------------------------------------------------------


def test_shards_become_shards_of_the_same_tensors(folder):
    output = folder / "out" / f"baked{INDEX}"
    report = run(folder / f"base{INDEX}", output)
    names = [f"baked-{i:05}-of-00003.safetensors" for i in range(1, 4)]
    assert sorted(path.name for path in output.parent.iterdir()) == [*names, output.name]
    for i, name in enumerate(names, start=1):
        with safe_open(output.parent / name, "pt") as file:
            assert set(file.keys()) == set(load_file(folder / f"base-{i}.safetensors"))
            assert file.metadata()["lorakit.operation"] == "bake"
    index = json.loads(output.read_text())
    sizes = sum(tensor.numel() * tensor.element_size() for tensor in BASE.values())
    assert index["metadata"]["total_size"] == sizes
    assert report.size == sum(path.stat().st_size for path in output.parent.iterdir())
    with open_source(output) as found:
        assert_expected({key: found.tensor(key) for key in found.keys()})  # noqa: SIM118


def test_shards_become_one_file_and_one_file_shards(folder):
    output = folder / "out" / "baked.safetensors"
    run(folder / f"base{INDEX}", output)
    assert_expected(load_file(output))
    index = folder / "out" / f"split{INDEX}"
    run(folder / "base.safetensors", index, shard_size=40_000)
    shards = sorted((folder / "out").glob("split-*"))
    assert len(shards) > 2
    for shard in shards:
        tensors = load_file(shard)
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        assert size <= 40_000 or len(tensors) == 1
    with open_source(index) as found:
        assert_expected({key: found.tensor(key) for key in found.keys()})  # noqa: SIM118


def test_a_pickle_becomes_a_safetensors_file(folder):
    torch.save({"state_dict": BASE}, folder / "base.ckpt")
    before = (folder / "base.ckpt").read_bytes()
    output = folder / "out" / "baked.safetensors"
    run(folder / "base.ckpt", output)
    assert_expected(load_file(output))
    assert (folder / "base.ckpt").read_bytes() == before


# --- What is refused, and what is left behind -----------------------------------------------------


@pytest.mark.parametrize(
    ("checkpoint", "output", "words"),
    [
        ("base.safetensors", "base.safetensors", "same file as the input"),
        ("base.safetensors", "lora.safetensors", "same file as the input"),
        (f"base{INDEX}", "base-2.safetensors", "same file as the input"),
        ("base.safetensors", "out/there.safetensors", "exists already"),
        ("base.safetensors", f"out/old{INDEX}", "exists already"),
        ("base.safetensors", f"out/split{INDEX}", "exists already"),
        ("base.safetensors", "out/baked.ckpt", "must end in `.safetensors`"),
        ("base.safetensors", "none/baked.safetensors", "does not exist"),
        (".", "out/baked.safetensors", "is a folder"),
    ],
)
def test_a_bad_output_is_refused_before_anything_is_read(folder, checkpoint, output, words):
    for name in ("there.safetensors", f"old{INDEX}", "split-00001-of-00001.safetensors"):
        (folder / "out" / name).write_bytes(b"old")
    if checkpoint == ".":
        checkpoint = "unet"
        (folder / checkpoint).mkdir()
        save_file(BASE, folder / checkpoint / "diffusion_pytorch_model.safetensors")
    before = contents(folder)
    with pytest.raises(ArgumentError, match=words):
        run(folder / checkpoint, folder / output)
    assert contents(folder) == before


def test_quantised_checkpoints_are_refused(folder):
    save_file(BASE | {"img_in.scale_weight": torch.full((1,), 2.0)}, folder / "base.safetensors")
    with pytest.raises(QuantisedError, match="scaled fp8"):
        run(folder / "base.safetensors", folder / "out" / "baked.safetensors")


@pytest.mark.parametrize("name", ["there.safetensors", f"there{INDEX}"])
@pytest.mark.parametrize("when", ["early", "late"])
def test_an_interruption_leaves_what_was_there(folder, name, when):
    (folder / "out" / name).write_bytes(b"old")
    before = contents(folder)

    def interrupt(done: int, total: int, _key: str) -> None:
        if when == "early" or done == total:
            raise KeyboardInterrupt

    options = {"force": True, "progress": interrupt, "shard_size": 40_000}
    with pytest.raises(KeyboardInterrupt):
        run(folder / "base.safetensors", folder / "out" / name, **options)
    assert contents(folder) == before
    # The twin: without it the output is written.
    run(folder / "base.safetensors", folder / "out" / name, **options | {"progress": None})
    assert contents(folder) != before


@pytest.mark.parametrize("name", ["there.safetensors", f"there{INDEX}"])
def test_an_overflow_leaves_nothing(folder, name):
    before = contents(folder)
    with pytest.raises(LoraOpsError, match="do not fit float16"):
        run(folder / "base.safetensors", folder / "out" / name, strength=1e7)
    assert contents(folder) == before


LIMITED = """
import resource, signal, sys
from pathlib import Path
sys.path[:0] = sys.argv[3:]
import test_bake_files as tests
from lorakit.lora_ops.errors import WriteError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))
try:
    tests.run(Path(sys.argv[1]), Path(sys.argv[2]))
except WriteError as error:
    print(error)
"""


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX limits")
@pytest.mark.parametrize("name", ["baked.safetensors", f"baked{INDEX}"])
def test_a_full_disk_leaves_nothing(folder, name):
    before = contents(folder)
    output = folder / "out" / name
    folders = [HELPERS, TESTS / "project", TESTS / "operations"]
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, folder / "base.safetensors", output, *folders],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.startswith(f"{output}: could not be written"), done.stderr
    assert contents(folder) == before


# --- The other program ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def host():
    with comfy_host.started() as running:
        yield running


@pytest.mark.parametrize(("name", "format"), [("sdxl", "kohya"), ("flux", "comfy")])
def test_comfyui_patches_the_base_to_what_was_baked(host, tmp_path, name, format):
    """Distances are shares of each weight's change: what is left is fp16's rounding."""
    case = CASES[name]
    states = dict(zip(("base", "tuned"), planted_comfy(case.shapes), strict=True))
    for side, tensors in states.items():
        save_file(tensors, tmp_path / f"{side}.safetensors")
    base, tuned, lora, baked = (
        tmp_path / f"{part}.safetensors" for part in ("base", "tuned", "lora", "baked")
    )
    options = ("-o", lora, "--rank", "4", "--format", format, "--device", "cpu", "--dtype", "fp16")
    done = lorakit_here("extract", base, tuned, *options)
    assert done.status == 0, done.err
    report = run(base, baked, 1.0)
    question = {
        "loader": case.loader,
        "te": case.te,
        "base": str(base),
        "tuned": str(baked),
        "loras": {"lora": str(lora)},
    }
    answer = host.ask("apply_loras", question)
    left, said = answer["loras"]["lora"]["left"], answer["loras"]["lora"]["complaints"]
    assert said == []
    assert len(left) == len(report.layers) > 10
    assert max(left.values()) < 5e-3
    # What is in no file, ComfyUI leaves as it finds the memory: other numbers in each model.
    unfilled = {"clip_l.transformer.text_projection.weight"}
    assert set(left) <= set(answer["changed"]) <= set(left) | unfilled
