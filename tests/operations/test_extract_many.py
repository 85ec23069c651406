"""Many tuned checkpoints against one base: each file as if alone, the base read once, errors apart."""

from __future__ import annotations

import math
import os
from collections import Counter
from pathlib import Path

import pytest
import torch
from checkpoints import FLUX, SD1, Counting, grid, trained
from extractions import alone, many, same_bytes
from safetensors.torch import load_file, save_file
from stored_pairs import weight

from lorakit.lora_ops import (
    ArgumentError,
    FormatError,
    Preview,
    Report,
    extract_files,
    open_source,
    place,
    plan_file,
    preview_extraction,
    preview_files,
)
from lorakit.lora_ops.files.quantised.source import QuantisedSource
from lorakit.lora_ops.files.writing.writer import SafetensorsWriter
from lorakit.lora_ops.operations.extract.many import output_name


def checkpoints(folder: Path, shapes=SD1, count: int = 3) -> tuple[Path, list[Path]]:
    """A base and several that came of it, in files."""
    base = grid(shapes, torch.float16)
    save_file(base, folder / "base.safetensors")
    paths = [folder / f"tuned{number}.safetensors" for number in range(count)]
    for number, path in enumerate(paths):
        save_file(trained(base, seed=number + 1), path)
    return folder / "base.safetensors", paths


@pytest.mark.parametrize(
    ("rule", "options"),
    [
        (3, {}),
        ("energy=0.8,conv=2", {"dtype": torch.float32}),
        (2, {"full_differences": True, "exclude": ["*attn2*"]}),
        ("4,conv=0", {"format": "kohya", "exact": True}),
        ("noise,max=4", {}),
        (3, {"kind": "dora"}),
        ("2,conv=1", {"kind": "lokr", "auto_full": True}),
    ],
)
@pytest.mark.parametrize("memory", [None, 20_000_000])
def test_each_file_is_byte_for_byte_that_of_a_single_extraction(tmp_path, rule, options, memory):
    """Layer by layer, and in batches, as a GPU has them."""
    base, tuned = checkpoints(tmp_path)
    where = place("cpu", memory=memory)
    (tmp_path / "one").mkdir()
    reports = many(base, tuned, tmp_path / "all", rule, where=where, **options)
    assert list(reports) == tuned
    for path in tuned:
        output = tmp_path / "one" / path.name
        report = alone(base, path, output, rule, where=where, **options)
        assert same_bytes(tmp_path, path)
        assert isinstance(reports[path], Report)
        assert reports[path].layers == report.layers
        assert reports[path].skips == report.skips
        assert reports[path].notes == report.notes


def test_each_weight_of_the_base_is_read_once(tmp_path):
    path, tuned = checkpoints(tmp_path)
    base = Counting(load_file(path), {}, "base")
    reports = extract_files(base, tuned, tmp_path / "all", 3, placement=place("cpu"))
    assert all(isinstance(one, Report) for one in reports.values())
    assert set(base.read.values()) == {1}
    assert len(base.read) == sum(not key.startswith(("first", "betas")) for key in SD1)


def test_a_quantised_base_is_decoded_once(tmp_path, monkeypatch):
    """Scaled fp8; where no rank is given the rule is `noise`, which looks at more than the weights."""
    base = {"blocks.0.a.weight": weight((64, 48)), "blocks.0.b.weight": weight((48, 96), seed=2)}
    plan = {"blocks.0.a.weight": (64, 48), "blocks.0.b.weight": (48, 96)}
    save_file(
        {
            **{key: one.to(torch.float8_e4m3fn) for key, one in base.items()},
            **{key.replace("weight", "scale_weight"): torch.tensor(0.25) for key in base},
            "scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn),
        },
        tmp_path / "base.safetensors",
    )
    tuned = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    for seed, path in enumerate(tuned):
        decoded = {k: one.to(torch.float8_e4m3fn).float() / 4 for k, one in base.items()}
        save_file(trained(decoded, seed=seed + 1, size=0.3), path)
    counts = Counter[str]()
    real = QuantisedSource.tensor

    def counted(self, key):
        counts[key] += 1
        return real(self, key)

    monkeypatch.setattr(QuantisedSource, "tensor", counted)
    reports = many(tmp_path / "base.safetensors", tuned, tmp_path / "all")
    assert counts == dict.fromkeys(plan, 1)
    monkeypatch.undo()
    (tmp_path / "one").mkdir()
    for path in tuned:
        report = alone(tmp_path / "base.safetensors", path, tmp_path / "one" / path.name)
        assert same_bytes(tmp_path, path)
        found = reports[path]
        assert isinstance(found, Report)
        assert found.estimated_error == report.estimated_error is not None


def turned_round(path: Path) -> None:
    """Write the file's tensors in the reverse order, which `save_file` does not."""
    tensors = load_file(path)
    with SafetensorsWriter(path) as writer:
        for key in reversed(tensors):
            writer.write(key, tensors[key])
        writer.finish({})


def test_files_of_other_orders_and_of_parts_of_the_model_go_together(tmp_path):
    path, tuned = checkpoints(tmp_path, count=4)
    turned_round(tuned[1])
    unet = {k: v for k, v in load_file(tuned[2]).items() if k.startswith("model.")}
    save_file({**unet, "model.diffusion_model.extra.bias": torch.zeros(3)}, tuned[2])
    text = {k: v for k, v in load_file(tuned[3]).items() if k.startswith("cond_")}
    save_file(text, tuned[3])
    base = Counting(load_file(path), {}, str(path))
    extract_files(base, tuned, tmp_path / "all", 3, version="1")
    assert set(base.read.values()) == {1}
    (tmp_path / "one").mkdir()
    with open_source(path) as source:
        extract_files(source, tuned, tmp_path / "all", 3, version="1", force=True)
    for one in tuned:
        alone(path, one, tmp_path / "one" / one.name, 3)
        assert same_bytes(tmp_path, one)


def test_what_is_wrong_with_one_stops_no_other(tmp_path):
    """Found at once, by the headers, in the middle of the work, and at its end."""
    base, tuned = checkpoints(tmp_path, count=7)
    good, short, other, nan, late, same, gone = tuned
    short.write_bytes(short.read_bytes()[:4])
    save_file(grid(FLUX, torch.float16), other)
    tensors = load_file(nan)
    tensors["model.diffusion_model.time_embed.0.weight"][3, 3] = math.nan
    save_file(tensors, nan)
    same.write_bytes(base.read_bytes())
    gone.unlink()
    state = late.stat()

    def touch(*_: object) -> None:
        os.utime(late, (state.st_atime, state.st_mtime + 10))

    with open_source(base) as source:
        reports = extract_files(source, tuned, tmp_path / "all", 3, version="1", progress=touch)
    assert list(reports) == tuned
    found = {path.stem: type(one).__name__ for path, one in reports.items()}
    assert found == {
        "tuned0": "Report",
        "tuned1": "FormatError",
        "tuned2": "TargetMismatchError",
        "tuned3": "NonFiniteError",
        "tuned4": "FormatError",
        "tuned5": "MismatchError",
        "tuned6": "ArgumentError",
    }
    assert "changed" in str(reports[late])
    assert sorted(path.name for path in (tmp_path / "all").iterdir()) == [good.name]
    (tmp_path / "one").mkdir()
    alone(base, good, tmp_path / "one" / good.name, 3)
    assert same_bytes(tmp_path, good)


def test_names_that_meet_and_files_that_must_stay_are_refused_before_the_work(tmp_path):
    base, tuned = checkpoints(tmp_path, count=2)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    (tmp_path / "deeper").mkdir()
    twin = tmp_path / "deeper" / "TUNED0.safetensors"
    twin.write_bytes(tuned[0].read_bytes())
    with pytest.raises(ArgumentError, match="would both be written to"):
        many(base, [*tuned, twin], tmp_path / "all", 3)
    with pytest.raises(ArgumentError, match="would both be written to"):
        many(base, [tuned[0], tuned[0]], tmp_path / "all", 3)
    with pytest.raises(ArgumentError, match="same file as the input"):
        many(base, tuned, tmp_path, 3, force=True)
    with pytest.raises(ArgumentError, match="is no folder"):
        many(base, tuned, tuned[0], 3, force=True)
    with pytest.raises(ArgumentError, match="is no folder"):
        many(base, tuned, tmp_path / "new.safetensors", 3)
    with pytest.raises(ArgumentError, match="did you mean"):
        many(base, tuned, tmp_path / "all", "enrgy=0.9")
    with pytest.raises(ArgumentError, match="fits none"):
        many(base, tuned, tmp_path / "all", 3, include=["nothing*"])
    assert not (tmp_path / "all").exists()
    many(base, tuned[:1], tmp_path / "all", 3)
    with pytest.raises(ArgumentError, match="exists already"):
        many(base, tuned, tmp_path / "all", 2)
    assert [path.name for path in (tmp_path / "all").iterdir()] == [tuned[0].name]
    many(base, tuned, tmp_path / "all", 2, force=True)
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize(
    ("name", "output"),
    [
        ("a.safetensors", "a"),
        ("v1.5.fp16.ckpt", "v1.5.fp16"),
        ("model.safetensors.index.json", "model"),
    ],
)
def test_outputs_are_named_after_the_tuned_files(name, output):
    assert output_name(Path("somewhere") / name) == output


def test_a_folder_gives_its_name(tmp_path, monkeypatch):
    (tmp_path / "v1.5").mkdir()
    monkeypatch.chdir(tmp_path / "v1.5")
    assert output_name(Path()) == output_name(tmp_path / "v1.5") == "v1.5"


class StoppedError(Exception):
    """Somebody does not want to wait."""


@pytest.mark.parametrize("error", [KeyboardInterrupt, StoppedError])
def test_what_ends_the_work_leaves_no_file(tmp_path, error):
    base, tuned = checkpoints(tmp_path)

    def stop(done: int, total: int, _: str) -> None:
        if done > total / 2:
            raise error

    with open_source(base) as source, pytest.raises(error):
        extract_files(source, tuned, tmp_path / "all", 3, progress=stop)
    assert list((tmp_path / "all").iterdir()) == []


def test_what_ends_the_work_while_names_are_given_leaves_those_that_are_complete(
    tmp_path, monkeypatch
):
    base, tuned = checkpoints(tmp_path)
    real, calls = SafetensorsWriter.finish, list[str]()

    def finish(self, *arguments, **options):
        if calls:
            raise KeyboardInterrupt
        calls.append("once")
        return real(self, *arguments, **options)

    monkeypatch.setattr(SafetensorsWriter, "finish", finish)
    with pytest.raises(KeyboardInterrupt):
        many(base, tuned, tmp_path / "all", 3)
    assert [path.name for path in (tmp_path / "all").iterdir()] == [tuned[0].name]
    (tmp_path / "one").mkdir()
    monkeypatch.undo()
    alone(base, tuned[0], tmp_path / "one" / tuned[0].name, 3)
    assert same_bytes(tmp_path, tuned[0])


def test_one_progress_reaches_the_total_of_all(tmp_path):
    base, tuned = checkpoints(tmp_path)
    steps: list[tuple[int, int, str]] = []
    with open_source(base) as source:
        extract_files(source, tuned, tmp_path / "all", 3, progress=lambda *step: steps.append(step))
    done, totals, names = zip(*steps, strict=True)
    numbers = sum(
        math.prod(shape) for key, shape in SD1.items() if not key.startswith(("first", "betas"))
    )
    assert done[-1] == 3 * numbers
    assert set(totals) == {3 * numbers}
    assert list(done) == sorted(done)
    assert len(names) == len(set(names))


def test_a_preview_of_each_says_what_would_be(tmp_path):
    base, tuned = checkpoints(tmp_path)
    tuned[1].write_bytes(b"nothing")
    with open_source(base) as source:
        found = preview_files(source, tuned, tmp_path / "all", "energy=0.5,max=7")
        plan = plan_file(source, one := open_source(tuned[0]), "energy=0.5,max=7")
        one.close()
        alone_ = preview_extraction(plan, tmp_path / "all" / tuned[0].name)
    assert found[tuned[0]] == alone_
    assert isinstance(found[tuned[1]], FormatError)
    assert isinstance(found[tuned[2]], Preview)
    assert not (tmp_path / "all").exists()
