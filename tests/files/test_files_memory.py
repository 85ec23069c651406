"""Files in memory: what an operation puts there is what it writes to disk, to the last bit."""

from __future__ import annotations

import json
from pathlib import Path

import adapters
import pytest
import torch
from checkpoints import SD1, grid, planted
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lorakit.lora_ops import Ingredient, extract_file, open_source, plan_file
from lorakit.lora_ops.errors import LoraOpsError
from lorakit.lora_ops.files import MemoryFile
from lorakit.lora_ops.operations.add.file import add_files
from lorakit.lora_ops.operations.convert.file import convert_file
from lorakit.lora_ops.operations.resize.file import resize_file
from lorakit.lora_ops.operations.scale.file import scale_file

# Stable Diffusion 1 has no 3-D convolution.
FIRST = adapters.tensors(part for part in adapters.EVERY_FORM if "third" not in part.name)
METADATA = {"ss_network_dim": "4", "ss_output_name": "mine", "modelspec.title": "mine"}
# What names the file, or hashes what is in it.
OWN = ("ss_output_name", "modelspec.title", "sshs_model_hash")


def resized(source, output):
    return resize_file(source, output, 2, version="1")


def scaled(source, output):
    return scale_file(Ingredient(source, 0.5, where=["input_blocks_1=0.25"]), output, version="1")


def added(source, output):
    return add_files([Ingredient(source), Ingredient(source, -0.5)], output, version="1")


def converted(source, output):
    return convert_file(source, output, "comfy", architecture="sd1", version="1")


OPERATIONS = [resized, scaled, added, converted]


@pytest.fixture
def lora(tmp_path) -> Path:
    path = tmp_path / "lora.safetensors"
    save_file(FIRST, path, METADATA)
    return path


def on_disk(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return dict(file.metadata())


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda one: one.__name__)
def test_memory_holds_what_a_file_would(operation, lora, tmp_path) -> None:
    path = tmp_path / "result.safetensors"
    memory = MemoryFile("result.safetensors")
    with open_source(lora) as source:
        told = operation(source, path)
        in_memory = operation(source, memory)
    written = load_file(path)
    assert written.keys() == memory.tensors.keys()
    assert all(torch.equal(written[key], one) for key, one in memory.tensors.items())
    theirs = {key: text for key, text in on_disk(path).items() if key != "sshs_model_hash"}
    assert memory.metadata == theirs
    assert in_memory.layers == told.layers
    assert in_memory.size == pytest.approx(told.size, rel=0.2)


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda one: one.__name__)
def test_memory_is_read_like_the_file(operation, lora, tmp_path) -> None:
    with open_source(lora) as source:
        held = MemoryFile(
            lora.name,
            {key: source.tensor(key) for key in source.keys()},  # noqa: SIM118
            source.metadata,
        )
        operation(source, of_file := MemoryFile("result"))
    operation(held, of_memory := MemoryFile("result"))
    assert of_memory.tensors.keys() == of_file.tensors.keys()
    assert all(torch.equal(of_file.tensors[key], one) for key, one in of_memory.tensors.items())
    # The hash of a file that was read is known only if whoever read it took it.
    hashes = {key for key, text in of_file.metadata.items() if "sha256" in key + text}
    assert hashes
    same = of_file.metadata.keys() - hashes
    assert {key: of_memory.metadata[key] for key in same} == {
        key: of_file.metadata[key] for key in same
    }


def test_a_known_hash_is_recorded() -> None:
    held = MemoryFile("mine.safetensors", FIRST, METADATA, sha256="ab" * 32)
    resized(held, made := MemoryFile("small"))
    assert made.metadata["lorakit.input_sha256"] == "ab" * 32
    assert made.sha256 == ""  # it is another file now
    assert made.metadata["ss_output_name"] == "small"


def test_extraction_into_memory(tmp_path) -> None:
    base = grid(SD1, torch.float32)
    for name, tensors in (("base", base), ("tuned", planted(base))):
        save_file(tensors, tmp_path / f"{name}.safetensors")
    with (
        open_source(tmp_path / "base.safetensors") as one,
        open_source(tmp_path / "tuned.safetensors") as other,
    ):
        plan = plan_file(one, other, 3)
        extract_file(plan, one, other, tmp_path / "lora.safetensors", version="1")
        extract_file(plan, one, other, made := MemoryFile("lora"), version="1")
    written = load_file(tmp_path / "lora.safetensors")
    assert all(torch.equal(written[key], one) for key, one in made.tensors.items())
    assert written.keys() == made.tensors.keys()
    assert json.loads(made.metadata["lorakit.layers"])


def test_two_models_in_memory_are_not_taken_for_one_file() -> None:
    base = grid(SD1, torch.float32)
    one, other = MemoryFile("base", base), MemoryFile("tuned", planted(base))
    assert plan_file(one, other, 3).pairing.candidates


def test_nothing_is_there_after_a_failure() -> None:
    damaged = {key: torch.full_like(one, torch.nan) for key, one in FIRST.items()}
    made = MemoryFile("result", {"kept": torch.ones(1)}, {"was": "here"})
    with pytest.raises(LoraOpsError, match="NaN"):
        resized(MemoryFile("damaged", damaged), made)
    assert list(made.tensors) == ["kept"]
    assert made.metadata == {"was": "here"}


def test_inputs_are_left_as_they_are() -> None:
    before = {key: one.clone() for key, one in FIRST.items()}
    held = MemoryFile("mine", FIRST, METADATA)
    for operation in OPERATIONS:
        operation(held, MemoryFile("result"))
    assert all(torch.equal(before[key], one) for key, one in held.tensors.items())
    assert held.metadata == METADATA
