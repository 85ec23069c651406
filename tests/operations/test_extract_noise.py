"""Extraction from checkpoints that are stored coarsely: what stands above the rounding, and what is told of it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from stored_pairs import (
    BITSANDBYTES,
    GGUF,
    KEY,
    change,
    errors_of_ranks,
    relative,
    stored,
    weight,
)
from torch import Tensor

from lorakit.lora_ops import (
    DictSource,
    Report,
    Term,
    add,
    convert,
    decode,
    extract,
    extract_file,
    open_source,
    plan_file,
    resize,
    verify,
)
from lorakit.lora_ops.errors import ArgumentError, MismatchError
from lorakit.lora_ops.files.quantised.storages import SCHEMES

# At how large a change, relative to the weight, a rank of 8 is found in a 192 x 160 matrix of each.
SIZES = {
    **dict.fromkeys(("fp8_scaled", "mxfp8", "fp8"), 0.04),
    **dict.fromkeys(("int8", "q8_0", "bf16"), 0.01),
    **dict.fromkeys(("fp8_e5m2_scaled", "q5_1"), 0.06),
    **dict.fromkeys(("nvfp4", "q4_0", "nf4"), 0.1),
    "bf16 / fp8_scaled": 0.04,
    "fp8_scaled / q8_0": 0.04,
}
SHAPE, RANK = (192, 160), 8


@dataclass
class Pair:
    """Two opened checkpoints, what truly lies between them, and what is stored of that."""

    base: Any
    tuned: Any
    true: Tensor

    @property
    def difference(self) -> Tensor:
        return self.tuned.tensor(KEY).float() - self.base.tensor(KEY).float()

    def extract(self, rule: str | None = "noise", **options: Any) -> tuple[Tensor, Report]:
        """The change that comes out, dense, and the report."""
        adapter, report = extract(
            self.base, self.tuned, rule, **{"dtype": torch.float32, **options}
        )
        (layer,) = adapter.layers.values()
        return layer.delta(), report


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Any]:
    """Makes pairs: a change of a rank and a size, in a storage, or in one on either side."""
    with ExitStack() as stack:

        def make(
            storage: str, size: float, uneven: float = 0.0, rank: int = RANK, decay: float = 0.0
        ) -> Pair:
            first, _, second = storage.partition(" / ")
            start = weight(SHAPE, uneven)
            true = change(SHAPE, rank, size * float(start.norm()), decay) if size else 0 * start
            base = stored(start, first, tmp_path / "base.safetensors")
            tuned = stored(start + true, second or first, tmp_path / "tuned.safetensors")
            opened, other = (stack.enter_context(open_source(path)) for path in (base, tuned))
            return Pair(opened, other, true)

        yield make


@pytest.mark.parametrize("uneven", [0.0, 0.6])
@pytest.mark.parametrize("storage", SIZES)
def test_the_rank_is_found_in_every_storage(pair: Any, storage: str, uneven: float) -> None:
    """With less error than any cut of the difference has, and that error is as it is told."""
    both = pair(storage, SIZES[storage], uneven)
    found, report = both.extract()
    (layer,) = report.layers
    assert layer.rounding is not None
    assert layer.rank == layer.rounding.above == RANK
    best = float(errors_of_ranks(both.difference, both.true).min())
    error = relative(found, both.true)
    assert error <= (1.0 if uneven else 1.02) * best
    if uneven:  # at equal noise everywhere a direction is told from others that it drowned
        assert error < 0.95 * best
    assert report.estimated_error == pytest.approx(error, rel=0.4)
    assert layer.rounding.change == pytest.approx(float(both.true.norm()), rel=0.1)
    assert layer.error == pytest.approx(relative(found, both.difference), rel=1e-4)


@pytest.mark.parametrize("decay", [0.3, 0.6])
@pytest.mark.parametrize("storage", ["fp8_scaled", "q8_0", "nvfp4", "bf16 / fp8_scaled"])
def test_where_part_of_it_lies_below_no_rank_is_better(
    pair: Any, storage: str, decay: float
) -> None:
    """The 32 directions fade into the rounding. Without shrinkage it would be worse, and was, by 5 % or more."""
    sizes = {"q8_0": 0.01, "nvfp4": 0.12}
    both = pair(storage, sizes.get(storage, 0.04), rank=32, decay=decay)
    found, report = both.extract()
    errors = errors_of_ranks(both.difference, both.true)
    error = relative(found, both.true)
    assert error < float(errors.min())
    assert error < float(errors[31])
    rank = report.layers[0].rank
    assert 3 <= rank <= 32
    assert float(errors[rank - 1]) > 1.05 * error


@pytest.mark.parametrize("storage", ["q4_0 / bf16", "q8_0 / q4_0", "int8 / q4_0"])
def test_one_model_stored_twice_has_no_change(pair: Any, storage: str, tmp_path: Path) -> None:
    """Q4_0 rounds some numbers by more than a step, so numbers alone do not show that nothing was trained."""
    both = pair(storage, 0.0)
    assert float(both.difference.abs().max()) > 0
    output = tmp_path / "out.safetensors"
    for rule in ("noise", "noise,min=4", None):
        plan = plan_file(both.base, both.tuned, rule, output=output)
        with pytest.raises(MismatchError, match="1 nothing stands above storage rounding"):
            extract_file(plan, both.base, both.tuned, output)
    assert not output.exists()


class Clipped(DictSource):
    """Integers of 4 bits, a scale a row, of which the largest do not fit: off by more than a step."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self.steps = {k: one.abs().amax(1, keepdim=True) / 8.4 for k, one in tensors.items()}
        super().__init__(
            {
                k: (one / self.steps[k]).round().clamp(-7, 7) * self.steps[k]
                for k, one in tensors.items()
            }
        )

    def stored_size(self, key: str) -> int:
        return self.tensor(key).numel() // 2

    def grid(self, key: str, values: Tensor, start: int = 0) -> Tensor:
        rows = torch.arange(start, start + values.numel()) // self.shape(key)[1]
        return self.steps[key][rows, 0].double().view(values.shape)


def test_layers_that_were_only_stored_again_are_left_out() -> None:
    """The others are written."""
    draw = torch.Generator().manual_seed(0)
    names = [f"diffusion_model.blocks.{n}.q" for n in range(4)]
    base = {f"{name}.weight": torch.randn(96, 96, generator=draw) for name in names}
    tuned = {**base, f"{names[2]}.weight": base[f"{names[2]}.weight"] + change((96, 96), 3, 20.0)}
    adapter, report = extract(DictSource(base), Clipped(tuned), "noise")
    assert list(adapter.layers) == [names[2]]
    assert [skip.reason for skip in report.skips] == ["nothing stands above storage rounding"] * 3
    # A rank that is asked for is given, and the report says what it is worth.
    adapter, report = extract(DictSource(base), Clipped(tuned), 4)
    assert list(adapter.layers) == names
    assert report.notes[0].startswith("at least 12 of 16 directions kept lie below the floor")


@pytest.mark.parametrize(
    "storage", [*SCHEMES, *GGUF, *BITSANDBYTES, "fp8", "bf16 / int8", "int8 / bf16"]
)
def test_without_a_rank_it_is_the_rule_in_8_bits(pair: Any, storage: str) -> None:
    both = pair(storage, 0.2)
    _, report = both.extract(None)
    (note,) = report.notes
    assert note.startswith("no rank was given, and 1 of 1 weight are stored in 8 bits or fewer (")
    assert both.extract("noise,max=128")[1].layers[0].rank == report.layers[0].rank == RANK


@pytest.mark.parametrize("storage", ["bf16", "fp16", "fp32", "fp16 / bf16"])
def test_without_a_rank_it_is_32_in_16_bits(pair: Any, storage: str) -> None:
    both = pair(storage, 0.2, rank=40)
    found, report = both.extract(None)
    assert (report.layers[0].rank, report.notes) == (32, ())
    assert torch.equal(found, both.extract("32")[0])
    assert (report.layers[0].rounding, report.estimated_error, report.rounding) == (None,) * 3
    assert "rounding" not in report.to_dict()["layers"][0]


def test_a_fixed_rank_says_how_much_of_it_is_rounding(pair: Any) -> None:
    both = pair("fp8_scaled", 0.04)
    found, report = both.extract("32")
    assert report.layers[0].rank == 32
    assert report.notes == (
        "at least 24 of 32 directions kept lie below the floor of storage rounding: they are more noise than "
        "change; the rank rule `noise` leaves them out",
    )
    assert relative(found, both.true) > 1.5 * relative(both.extract()[0], both.true)
    assert both.extract("8")[1].notes == ()


def test_limits_and_kernels(pair: Any) -> None:
    both = pair("fp8_scaled", 0.04)
    assert both.extract("noise,max=5")[1].layers[0].rank == 5
    assert both.extract("noise,min=12")[1].layers[0].rank == 12
    assert both.extract("4,conv=noise")[1].layers[0].rank == 4
    five, free = both.extract("noise,max=5")[0], both.extract("noise")[0]
    u, s, vh = torch.linalg.svd(free)
    torch.testing.assert_close(five, (u[:, :5] * s[:5]) @ vh[:5], rtol=1e-3, atol=1e-6)


def test_a_kernel_is_read_like_a_matrix() -> None:
    draw = torch.Generator().manual_seed(0)
    shape, name = (96, 24, 3, 3), "diffusion_model.a.weight"
    base = torch.randn(shape, generator=draw)
    true = change((96, 216), 4, 0.05 * float(base.norm())).view(shape)
    sides = [DictSource({name: one.to(torch.float8_e4m3fn)}) for one in (base, base + true)]
    adapter, report = extract(*sides, "4,conv=noise", dtype=torch.float32)
    (layer,) = adapter.layers.values()
    assert report.layers[0].rank == 4
    assert report.layers[0].rounding is not None
    difference = sides[1].tensor(name).float() - sides[0].tensor(name).float()
    best = errors_of_ranks(difference.flatten(1), true.flatten(1)).min()
    assert relative(layer.delta(), true) <= 1.02 * float(best)


@pytest.mark.parametrize("rule", ["noise", "8"])
def test_verify_and_the_record_tell_both_errors(pair: Any, rule: str, tmp_path: Path) -> None:
    both = pair("fp8_scaled", 0.04, uneven=0.4)
    output = tmp_path / "out.safetensors"
    plan = plan_file(both.base, both.tuned, rule, output=output)
    report = extract_file(plan, both.base, both.tuned, output)
    with open_source(output) as lora:
        found = verify(both.base, both.tuned, lora)
        written = relative(_delta(lora), both.true)
    assert found.error == pytest.approx(report.error, rel=1e-3)
    assert found.estimated_error == pytest.approx(written, rel=0.35)
    assert found.estimated_error is not None
    assert found.error > 1.5 * found.estimated_error
    with safe_open(output, "pt") as file:
        record = file.metadata()
    assert record["lorakit.rank"] == rule
    assert float(record["lorakit.error"]) == pytest.approx(report.error, rel=1e-4)
    if rule == "noise":
        assert report.estimated_error == pytest.approx(found.estimated_error, rel=1e-3)
        told = float(record["lorakit.estimated_error"])
        assert told == pytest.approx(report.estimated_error, rel=1e-4)
        assert report.rounding is not None
        assert math.isclose(float(record["lorakit.rounding"]), report.rounding, rel_tol=1e-4)
    else:
        assert "lorakit.estimated_error" not in record


def _delta(lora: Any) -> Tensor:
    name = "diffusion_model." + KEY.removesuffix(".weight")
    return (
        lora.tensor(f"{name}.lora_B.weight").float() @ lora.tensor(f"{name}.lora_A.weight").float()
    )


def test_the_same_bytes_twice(pair: Any, tmp_path: Path) -> None:
    both = pair("nvfp4", 0.1, uneven=0.3)
    outputs = [tmp_path / f"{n}" / "out.safetensors" for n in (1, 2)]
    for output in outputs:
        output.parent.mkdir()
        extract_file(plan_file(both.base, both.tuned, output=output), both.base, both.tuned, output)
    assert outputs[0].read_bytes() == outputs[1].read_bytes()


def test_what_has_no_storage_cannot_follow_it() -> None:
    draw = torch.Generator().manual_seed(0)
    tensors = {
        f"diffusion_model.a.lora_{role}.weight": torch.randn(shape, generator=draw)
        for role, shape in (("A", (4, 16)), ("B", (16, 4)))
    }
    adapter = decode(DictSource(tensors))
    for call in (
        lambda: resize(adapter, "noise"),
        lambda: resize(adapter, "mean=2,conv=noise"),
        lambda: resize(adapter, "4,conv=noise"),
        lambda: convert(adapter, to="lora", rule="noise"),
        lambda: add([Term(adapter, 1.0)], rule="noise"),
    ):
        with pytest.raises(ArgumentError, match="`noise` asks how two checkpoints are stored"):
            call()
