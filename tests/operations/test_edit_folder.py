"""Whole folders: one bad file among good ones, the same places, nothing half-written."""

from __future__ import annotations

import json
from pathlib import Path

import adapters
import pytest
import torch
from adapters import Part
from commands import contents, lorakit_here
from safetensors.torch import load_file, save_file

from lorakit.lora_ops.adapters.formats import decode
from lorakit.lora_ops.adapters.strengths.ingredient import Ingredient
from lorakit.lora_ops.errors import ArgumentError, LoraOpsError, NonFiniteError, WriteError
from lorakit.lora_ops.files import open_source
from lorakit.lora_ops.operations.folder import check_folders, edit_folder
from lorakit.lora_ops.operations.resize.file import resize_file
from lorakit.lora_ops.operations.scale.file import scale_file
from lorakit.lora_ops.report import Report


def resized(source, output):
    return resize_file(source, output, 3)


@pytest.fixture
def folder(tmp_path):
    """Five files: two good ones, a text, one with NaN, one that is no adapter; and a note."""
    root = tmp_path / "loras"
    (root / "people" / "ünï côde").mkdir(parents=True)
    adapters.written(root / "b.safetensors", adapters.tensors())
    adapters.written(root / "people" / "ünï côde" / "a b.safetensors", adapters.tensors([Part()]))
    (root / "a.safetensors").write_text("no safetensors")
    diverged = adapters.tensors()
    diverged[next(key for key in diverged if "third" in key)].view(-1)[0] = torch.nan
    adapters.written(root / "people" / "nan.safetensors", diverged)
    adapters.written(root / "people" / "model.safetensors", {"model.weight": torch.ones(3)})
    (root / "people" / "notes.txt").write_text("not one of them")
    return root


GOOD = ["b.safetensors", "people/ünï côde/a b.safetensors"]
BAD = ["a.safetensors", "people/model.safetensors", "people/nan.safetensors"]


def test_a_bad_file_does_not_stop_the_rest(folder, tmp_path):
    out, before = tmp_path / "out", contents(folder)
    results = dict(edit_folder(folder, out, resized))
    assert [name.as_posix() for name in results] == sorted([*GOOD, *BAD])
    for name in GOOD:
        assert isinstance(results[Path(name)], Report)
        found = load_file(out / name)
        assert {len(t) for key, t in found.items() if "lora_down" in key} == {3}
        alone = tmp_path / "alone.safetensors"
        with open_source(folder / name) as source:
            resize_file(source, alone, 3, force=True)
        assert adapters.changes(load_file(alone)).keys() == adapters.changes(found).keys()
    for name in BAD:
        assert isinstance(results[Path(name)], LoraOpsError)
    assert isinstance(results[Path("people/nan.safetensors")], NonFiniteError)
    # Nothing of the bad ones, not even a part of one whose last layer is the bad one.
    assert sorted(p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()) == GOOD
    assert contents(folder) == before


def test_results_come_one_by_one(folder, tmp_path):
    """A file is written when it is asked for: a stop between two leaves whole files."""
    out = tmp_path / "out"
    results = edit_folder(folder, out, resized)
    next(results)
    assert not list(out.rglob("*.safetensors"))
    assert next(results)[0] == Path("b.safetensors")
    assert [path.name for path in out.rglob("*") if path.is_file()] == ["b.safetensors"]
    results.close()
    assert [path.name for path in out.rglob("*") if path.is_file()] == ["b.safetensors"]


def test_a_file_that_is_there_is_an_error_of_its_own(folder, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "b.safetensors").write_text("mine")
    results = dict(edit_folder(folder, out, resized))
    assert isinstance(results[Path(GOOD[0])], LoraOpsError)
    assert isinstance(results[Path(GOOD[1])], Report)
    assert (out / "b.safetensors").read_text() == "mine"


def test_any_edit_will_do(folder, tmp_path):
    results = dict(
        edit_folder(
            folder, tmp_path / "out", lambda source, to: scale_file(Ingredient(source, 0.5), to)
        )
    )
    assert isinstance(results[Path(GOOD[0])], Report)
    before = adapters.changes(load_file(folder / GOOD[0]))
    after = adapters.changes(load_file(tmp_path / "out" / GOOD[0]))
    for module, change in before.items():
        torch.testing.assert_close(after[module], 0.5 * change)


def test_an_interrupt_passes(folder, tmp_path):
    def stopped(_source, _output):
        raise KeyboardInterrupt

    results = edit_folder(folder, tmp_path / "out", stopped)
    assert next(results)[0] == Path("a.safetensors")  # fails before, as it is no adapter
    with pytest.raises(KeyboardInterrupt):
        next(results)


@pytest.mark.parametrize("same", [".", "../loras", "people/.."])
def test_the_same_folder_is_refused(folder, same):
    with pytest.raises(ArgumentError, match="is the input folder; choose another"):
        list(edit_folder(folder, folder / same, resized))


def test_a_link_to_the_same_folder_is_refused(folder, tmp_path):
    link = tmp_path / "link"
    try:
        link.symlink_to(folder, target_is_directory=True)
    except OSError:
        pytest.skip("this system makes no links")
    with pytest.raises(ArgumentError, match="is the input folder"):
        check_folders(folder, link)


def test_an_output_inside_of_the_folder_is_not_read_again(folder):
    """Twin: the results of a first run as inputs of a second."""
    out = folder / "small"
    first = [name for name, _ in edit_folder(folder, out, resized)]
    second = [name for name, _ in edit_folder(folder, out, resized)]
    assert first == second == check_folders(folder, out)
    assert (out / "b.safetensors").exists()
    assert not (out / "small").exists()


def test_an_output_around_the_folder_takes_what_is_in_it(folder):
    results = dict(edit_folder(folder / "people", folder, resized))
    assert isinstance(results[Path("ünï côde/a b.safetensors")], Report)
    assert (folder / "ünï côde" / "a b.safetensors").exists()


def test_an_output_that_is_a_file_is_refused(folder, tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(ArgumentError, match=r"is no folder, but .* is; give a folder"):
        list(edit_folder(folder, tmp_path / "out", resized))


@pytest.mark.parametrize("make", [True, False])
def test_a_folder_without_adapters_is_refused(tmp_path, make):
    (tmp_path / "empty").mkdir()
    if make:  # a folder of that name is no file
        (tmp_path / "empty" / "x.safetensors").mkdir()
    with pytest.raises(ArgumentError, match=r"holds no \.safetensors file"):
        list(edit_folder(tmp_path / "empty", tmp_path / "out", resized))
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_made_is_an_error_of_its_files(folder, tmp_path):
    """A file stands where a subfolder has to go."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "people").write_text("mine")
    results = dict(edit_folder(folder, out, resized))
    assert isinstance(results[Path(GOOD[0])], Report)
    assert isinstance(results[Path(GOOD[1])], WriteError)
    assert "cannot be made" in str(results[Path(GOOD[1])])
    assert sorted(path.name for path in out.iterdir()) == ["b.safetensors", "people"]


def of_peft(folder, names=("blocks.0.q", "blocks.1.q")):
    """A folder as PEFT writes it: rank 4, scale 2.5 but for the second layer, whose is 0.5."""
    folder.mkdir()
    generator = torch.Generator().manual_seed(5)
    tensors = {}
    for name in names:
        for part, shape in (("lora_A", (4, 16)), ("lora_B", (24, 4))):
            key = f"base_model.model.{name}.{part}.weight"
            tensors[key] = torch.randn(shape, generator=generator)
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 10, "target_modules": ["q"]}
    config |= {"alpha_pattern": {r"blocks\.[1-9]\.q": 2}, "task_type": "CAUSAL_LM"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def changes(path):
    with open_source(path) as source:
        return {name: layer.delta() for name, layer in decode(source).layers.items()}


@pytest.mark.parametrize("file", ["", "adapter_model.safetensors"])
def test_a_folder_of_peft_is_one_adapter_and_stays_one(file, tmp_path):
    folder, out = of_peft(tmp_path / "adapter"), tmp_path / "out"
    before = changes(folder)
    for command in (("resize", "-r", "2"), ("scale", "-s", "0.5"), ("add",)):
        name, *options = command
        run = lorakit_here(name, folder / file, "-o", out, "--force", *options)
        assert run.status == 0, run.err
        assert {path.name for path in out.iterdir()} == {path.name for path in folder.iterdir()}
        config = json.loads((out / "adapter_config.json").read_text())
        assert config["task_type"] == "CAUSAL_LM"
        after = changes(out)
        for target, change in before.items():
            u, s, vh = torch.linalg.svd(change)
            expected = {"resize": (u[:, :2] * s[:2]) @ vh[:2], "scale": change * 0.5}
            assert torch.allclose(after[target], expected.get(name, change), atol=1e-4)


def test_a_folder_of_peft_becomes_a_file_where_a_file_is_named(tmp_path):
    folder, out = of_peft(tmp_path / "adapter"), tmp_path / "out.safetensors"
    assert lorakit_here("scale", folder, "-o", out).status == 0
    assert out.is_file()
    after = changes(out)  # which has its scale in up
    assert all(torch.allclose(after[name], one, atol=1e-5) for name, one in changes(folder).items())


def test_kinds_that_one_configuration_cannot_tell_leave_no_folder(tmp_path):
    folder = of_peft(tmp_path / "adapter")
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    parts = {"hada_w1_a": (24, 2), "hada_w1_b": (2, 16), "hada_w2_a": (24, 2), "hada_w2_b": (2, 16)}
    tensors |= {f"base_model.model.c.{part}": torch.randn(size) for part, size in parts.items()}
    save_file(tensors, path)
    run = lorakit_here("scale", folder, "-o", tmp_path / "out", "-s", "0.5")
    assert run.status == 1
    assert "LOHA, LORA" in run.err
    assert "safetensors" in run.err
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]
