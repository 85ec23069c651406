"""The LoRA and the DoRA that were trained on the digits' base: ordinary files, and how they came about."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from lorakit.examples.digits import demo, train_lora
from lorakit.examples.digits.learning import Course, learning_picture, smoothed, spectrum
from lorakit.examples.digits.model import DigitModel
from lorakit.examples.digits.sample import load_model, sample_digits, starting_noise
from lorakit.lora_ops import describe, open_source
from lorakit.lora_ops.adapters.layers import DoraLayer, LoraLayer

FILES = [*demo.TRAINED.values()]


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def adapted(path: Path) -> tuple[DigitModel, dict[str, torch.Tensor]]:
    with open_source(demo.BASE) as base, open_source(path) as lora:
        tensors = {key: base.tensor(key) for key in base.keys()}  # noqa: SIM118
        changed = demo.apply(base, tensors, lora)
    return load_model(changed), changed


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_they_are_ordinary_files(path: Path) -> None:
    with open_source(path) as source:
        found = describe(source)
    assert found.kind == {"lora": "LoRA adapter", "dora": "DoRA adapter"}[path.stem]
    assert found.format == "comfy"
    assert found.ranks == {train_lora.RANK: 74}
    assert found.metadata["lorakit.operation"] == "save"
    assert path.stat().st_size < 400_000


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_what_they_draw_is_near_the_full_fine_tune(path: Path) -> None:
    model, _ = adapted(path)
    base, tuned, drawn = (
        sample_digits(one, starting_noise())
        for one in (load_model(load_file(demo.BASE)), load_model(load_file(demo.TUNED)), model)
    )
    assert (drawn - tuned).norm() < 0.25 * (base - tuned).norm()


def test_training_starts_at_the_base_and_repeats_to_the_byte(tmp_path: Path) -> None:
    for run in ("first", "second"):
        train_lora.main(["--steps=2", "--threads=1", f"--output={tmp_path / run}"])
    for path in FILES:
        first, second = (tmp_path / run / path.name for run in ("first", "second"))
        assert first.read_bytes() == second.read_bytes()
        assert load_file(first).keys() == load_file(path).keys()
    with Image.open(tmp_path / "first" / train_lora.PICTURE) as picture:
        assert picture.size == (960, 760)


def test_adapters_are_of_the_kind_that_is_asked_for() -> None:
    fields, digits = train_lora.load_fields()
    base = load_file(demo.BASE)
    images = 2 * train_lora.neon(fields[:40]) - 1
    for kind, expected in (("lora", LoraLayer), ("dora", DoraLayer)):
        adapter, course = train_lora.train_adapter(kind, base, images, digits[:40], steps=1, seed=1)
        assert {type(layer) for layer in adapter.layers.values()} == {expected}
        assert {layer.dtype for layer in adapter.layers.values()} == {torch.float16}
        held = sum(
            tensor.numel()
            for layer in adapter.layers.values()
            for tensor in layer.tensors().values()
        )
        assert course.parameters == held
        assert len(course.losses) == 1


def test_the_spectrum_is_that_of_the_differences() -> None:
    base = {"a": torch.zeros(40, 30), "b": torch.zeros(5, 4, 3, 3), "same": torch.ones(9, 9)}
    tuned = {
        "a": torch.diag(torch.arange(40.0))[:, :30],
        "b": torch.ones(5, 4, 3, 3),
        "same": base["same"],
    }
    shares, kept = spectrum(base, tuned)
    whole = sum(i**2 for i in range(30)) + 180
    assert kept[0].item() == pytest.approx((29**2 + 180) / whole)
    assert kept[1].item() == pytest.approx((29**2 + 28**2 + 180) / whole)
    assert kept[-1].item() == pytest.approx(1)
    assert shares[:2].tolist() == pytest.approx([1, 28 / 29 / 2])


def test_the_picture_shows_each_course() -> None:
    assert smoothed([1.0, 3.0, 5.0]) == [1, 2, 3]
    assert smoothed([0.0] * 20 + [20.0])[-1] == 1
    base = {"a": torch.zeros(30, 30)}
    tuned = {"a": torch.randn(30, 30)}
    one = Course("one", 1000, [1.0, 0.5, 0.4])
    other = Course("other", 10, [1.0, 0.9, math.pi / 4])
    drawn = [learning_picture(list(given), base, tuned) for given in ((one,), (one, other))]
    assert drawn[0].size == drawn[1].size
    assert drawn[0].tobytes() != drawn[1].tobytes()
