"""Budgets across layers at extraction: the ranks that `resize` gives a LoRA of full rank, and what comes of them."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from checkpoints import SD1, Counting, grid, source, target, trained
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lorakit.lora_ops import (
    ArgumentError,
    MismatchError,
    NonFiniteError,
    Report,
    extract,
    extract_file,
    extract_files,
    open_source,
    place,
    plan_extraction,
    plan_file,
    preview_extraction,
    resize,
)
from lorakit.lora_ops.operations.extract.spending import with_ranks
from lorakit.lora_ops.operations.resize.importance import importance
from lorakit.lora_ops.text import human_error

BASE = grid(SD1, torch.float32)
TUNED = trained(BASE)


def ranks(report: Report) -> dict[str, int]:
    """Rank by target."""
    return {one.target: one.rank for one in report.layers if one.rank}


def written(folder: Path, rule, **options):
    """The report and the file of an extraction."""
    for name, tensors in (("base", BASE), ("tuned", TUNED)):
        if not (folder / f"{name}.safetensors").exists():
            save_file(tensors, folder / f"{name}.safetensors")
    output = folder / "out.safetensors"
    exact = options.pop("exact", False)
    with (
        open_source(folder / "base.safetensors") as base,
        open_source(folder / "tuned.safetensors") as tuned,
    ):
        plan = plan_file(base, tuned, rule, output=output, force=True, **options)
        report = extract_file(plan, base, tuned, output, force=True, exact=exact, version="1")
    return report, output


MEANS = [
    *("mean=3", "mean=1.5,max=6", "mean=20,min=2", "mean=40"),
    *("mean=4,conv=energy=0.6", "mean=2,conv=0", "mean=2,conv=3,min=1"),
]
ERRORS = ["total_error=0.5", "total_error=0.9", "total_error=0.05", "total_error=0.3,conv=4"]


@pytest.mark.parametrize(
    ("budget", "exact"),
    [*((one, False) for one in MEANS), *((one, True) for one in MEANS + ERRORS)],
)
def test_ranks_are_those_that_resize_gives_a_lora_of_full_rank(budget, exact):
    whole, _ = extract(source(BASE), source(TUNED), 4000, exact=True, dtype=torch.float32)
    _, smaller = resize(whole, budget)
    _, report = extract(source(BASE), source(TUNED), budget, exact=exact, dtype=torch.float32)
    assert ranks(report) == ranks(smaller)
    assert [note for note in report.notes if "mean" in note] == list(smaller.notes)
    assert {skip.target for skip in report.skips if skip.reason == "rank 0 by the rule"} == {
        skip.target for skip in smaller.skips
    }


@pytest.mark.parametrize("budget", ERRORS)
def test_an_error_is_kept_to_where_the_truncation_is_not_exact(budget):
    """And hardly a byte more is spent on that."""
    _, exact = extract(source(BASE), source(TUNED), budget, exact=True, dtype=torch.float32)
    _, report = extract(source(BASE), source(TUNED), budget, dtype=torch.float32)
    lost = math.hypot(
        *(one.residual for one in report.layers),
        *(one.norm for one in report.skips if one.reason == "rank 0 by the rule"),
    )
    whole = math.hypot(
        *(true_norm(one.target) for one in report.layers),
        *(one.norm for one in report.skips if one.reason == "rank 0 by the rule"),
    )
    bound = float(budget.partition("=")[2].partition(",")[0])
    assert 0.97 * bound < lost / whole <= bound
    assert numbers(report) <= 1.02 * numbers(exact)


def numbers(report: Report) -> int:
    """In all factors."""
    return sum(one.rank * (one.shape[0] + math.prod(one.shape[1:])) for one in report.layers)


def true_norm(name: str) -> float:
    """Of the change, in float64."""
    (key,) = (key for key in BASE if target(key) == name)
    return float((TUNED[key].double() - BASE[key].double()).norm())


def test_a_spectrum_that_wants_more_values_than_were_looked_at_is_looked_at_again():
    """One weight with nearly all of the change: it gets 150 ranks where 32 values were taken first."""
    shapes = {f"blocks.{number}.a.weight": (400, 400) for number in range(12)}
    base = grid(shapes, torch.float32)
    tuned = dict(base)
    generator = torch.Generator().manual_seed(1)
    for number, (key, weight) in enumerate(base.items()):
        size = 1.0 if number == 3 else 1e-3
        tuned[key] = weight + size * torch.randn(weight.shape, generator=generator)
    read = Counting(base)
    _, report = extract(read, source(tuned), "mean=12", dtype=torch.float32)
    assert list(ranks(report).values()) == [144]
    assert set(read.read.values()) == {2, 5}
    assert max(read.read, key=read.read.__getitem__) == "blocks.3.a.weight"


@pytest.mark.parametrize(
    ("size", "full"),
    [("40kB", False), ("60kB", False), ("200kB", False), ("260kB", True), ("400kB", True)],
)
def test_a_size_is_that_of_the_file_and_nearly_reached(tmp_path, size, full):
    report, output = written(tmp_path, f"size={size}", full_differences=full)
    limit = int(size.removesuffix("kB")) * 1000
    assert report.size == output.stat().st_size <= limit
    held = load_file(output)
    room = limit - sum(one.nbytes for one in held.values())
    one_more = max(len(one) + one[0].numel() for one in TUNED.values() if one.ndim > 1)
    assert (
        room < 4 * one_more + 12_000 + 6_000 * full
    )  # the header, and less than a rank of the widest
    with safe_open(output, "pt") as file:
        assert file.metadata()["lorakit.rank"] == f"size={size}"


def test_a_size_too_small_says_what_would_do(tmp_path):
    with pytest.raises(ArgumentError, match=r"is too small: .*; give `size=\d+` or more"):
        written(tmp_path, "size=3kB")
    assert not (tmp_path / "out.safetensors").exists()


def test_the_plan_refuses_a_size_that_holds_no_rank(tmp_path):
    """From headers alone, and no size that the run would fill."""
    for name, tensors in (("base", BASE), ("tuned", TUNED)):
        save_file(tensors, tmp_path / f"{name}.safetensors")
    output = tmp_path / "out.safetensors"

    def planned(rule):
        with (
            open_source(tmp_path / "base.safetensors") as base,
            open_source(tmp_path / "tuned.safetensors") as tuned,
        ):
            return plan_file(base, tuned, rule, output=output)

    with pytest.raises(ArgumentError, match="is too small: the smallest single rank") as error:
        planned("size=3kB")
    least = int(str(error.value).rpartition("size=")[2].partition("`")[0])
    with pytest.raises(ArgumentError, match=f"give `size={least}`"):
        planned(f"size={least - 1}")
    report, path = written(tmp_path, f"size={least}")
    assert ranks(report)
    assert path.stat().st_size <= least


@pytest.mark.parametrize("operation", ["extract", "resize"])
def test_an_error_that_limits_put_out_of_reach_is_said(operation):
    rule = "total_error=0.05,max=2"
    lora, report = extract(source(BASE), source(TUNED), 4000, dtype=torch.float32)
    targets = {target(key): key for key in BASE}
    kept = whole = 0.0
    for one in report.layers:
        key = targets[one.target]
        s = torch.linalg.svdvals((TUNED[key].double() - BASE[key].double()).flatten(1)).square()
        kept, whole = kept + float(s[:2].sum()), whole + float(s.sum())
    missed = math.sqrt(1 - kept / whole)

    def notes(rule):
        if operation == "resize":
            return resize(lora, rule)[1].notes
        return extract(source(BASE), source(TUNED), rule, dtype=torch.float32)[1].notes

    told = [note for note in notes(rule) if "out of reach" in note]
    assert told == [
        f"`{rule}` is out of reach: the error is {human_error(missed)}, with all the ranks that `max=` allows"
    ]
    assert missed > 0.1
    for reached in ("total_error=0.9,max=2", "total_error=0.05,max=4000", "total_error=0.05"):
        assert not [note for note in notes(reached) if "reach" in note]


@pytest.mark.parametrize("norm", ["spectral", "frobenius"])
def test_relative_is_what_resize_calls_relative_to_the_base(tmp_path, norm):
    """The weights differ by a factor of 30 in size, so shares and sizes disagree."""
    scale = {key: 1.0 + 10 * (number % 4) for number, key in enumerate(BASE)}
    base = {key: scale[key] * weight for key, weight in BASE.items()}
    tuned = {key: base[key] + TUNED[key] - BASE[key] for key in BASE}
    whole, _ = extract(source(base), source(tuned), 4000, exact=True, dtype=torch.float32)
    weights = importance(whole.layers, source(base), norm)
    _, smaller = resize(whole, "mean=3", weights=weights)
    options = {"dtype": torch.float32, "relative": True, "norm": norm}
    _, report = extract(source(base), source(tuned), "mean=3", **options)
    _, plain = extract(source(base), source(tuned), "mean=3", dtype=torch.float32)
    assert ranks(report) == ranks(smaller) != ranks(plain)


def test_relative_is_recorded_and_of_a_budget_alone(tmp_path):
    _, output = written(tmp_path, "mean=2", relative=True)
    with safe_open(output, "pt") as file:
        told = file.metadata()
    assert told["lorakit.relative_to"] == "base.safetensors"
    assert (told["lorakit.norm"], told["lorakit.rank"]) == ("spectral", "mean=2")
    with pytest.raises(ArgumentError, match="looks at one layer at a time"):
        written(tmp_path, 4, relative=True)
    with pytest.raises(ArgumentError, match="unknown norm `nuclear`"):
        written(tmp_path, "mean=2", relative=True, norm="nuclear")


def test_a_budget_is_no_matter_of_batches():
    where = [place("cpu"), place("cpu", memory=200_000_000)]
    plan = plan_extraction(source(BASE), source(TUNED), "mean=5")
    one, other = (with_ranks(plan, placement=placement)[0].ranks for placement in where)
    assert one == other


def test_several_have_each_a_budget_of_its_own(tmp_path):
    """The base is read once in each pass, and files are those of single extractions."""
    save_file(BASE, tmp_path / "base.safetensors")
    paths = [tmp_path / f"{name}.safetensors" for name in ("a", "b", "bad")]
    for seed, path in enumerate(paths):
        save_file(trained(BASE, size=0.02 * 3**seed, seed=seed + 4), path)
    tensors = load_file(paths[2])
    tensors[next(key for key in tensors if "attn1" in key)][0, 0] = math.nan
    save_file(tensors, paths[2])
    base = Counting(BASE, {}, "base.safetensors")
    many = extract_files(base, paths, tmp_path / "all", "mean=3", exact=True, version="1")
    assert set(base.read.values()) == {1, 2}  # biases need no spectra
    assert isinstance(many[paths[2]], NonFiniteError)
    for path in paths[:2]:
        with open_source(path) as tuned:
            again = Counting(BASE, {}, "base.safetensors")
            output = tmp_path / "one" / path.name
            output.parent.mkdir(exist_ok=True)
            plan = plan_file(again, tuned, "mean=3", output=output)
            report = extract_file(plan, again, tuned, output, exact=True, version="1")
        found = many[path]
        assert isinstance(found, Report)
        assert found.layers == report.layers
        assert output.read_bytes() == (tmp_path / "all" / path.name).read_bytes()


def test_progress_goes_once_from_nothing_to_all():
    steps: list[tuple[int, int, str]] = []
    extract(source(BASE), source(TUNED), "mean=3", progress=lambda *step: steps.append(step))
    done, totals, _ = zip(*steps, strict=True)
    assert list(done) == sorted(done)
    assert done[-1] == totals[-1]
    assert len(set(totals)) == 1


def test_a_preview_has_the_budget(tmp_path):
    plan = plan_extraction(source(BASE), source(TUNED), "size=30kB,max=12", relative=True)
    found = preview_extraction(plan, tmp_path / "out.safetensors")
    assert found.size_at_most == 30_000
    assert {one.rank_at_most for one in found.layers} <= set(range(1, 13))
    settings = {"rank": "size=30kB,max=12", "dtype": "float32", "norm": "spectral"}
    assert found.settings == {"kind": "lora", **settings}


def test_what_did_not_change_has_no_part_in_it():
    tuned = {key: TUNED[key] if "attn" in key else weight for key, weight in BASE.items()}
    _, report = extract(source(BASE), source(tuned), "mean=4", dtype=torch.float32)
    changed = [key for key in BASE if "attn" in key and BASE[key].ndim > 1]
    assert sum(ranks(report).values()) == 4 * len(changed)
    others = [skip for skip in report.skips if skip.kind == "linear" and "attn" not in skip.target]
    assert {skip.reason for skip in others} == {"unchanged"}
    with pytest.raises(MismatchError, match="no layer differs"):
        extract(source(BASE), source(BASE), "mean=4")


def test_noise_does_not_go_with_a_budget():
    with pytest.raises(ArgumentError, match="cannot be noise"):
        plan_extraction(source(BASE), source(TUNED), "mean=4,conv=noise")
