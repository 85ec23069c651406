"""Opened files go to another process by their paths: pickled, and read where they arrive."""

from __future__ import annotations

import contextlib
import os
import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from bits import assert_equal, noise
from checkpoints import FLUX, grid, trained
from elsewhere import Elsewhere, elsewhere, read_all, read_natively
from namings import TRANSLATED, both
from safetensors.torch import save_file

from lorakit.lora_ops import extract, open_source
from lorakit.lora_ops.errors import FormatError
from lorakit.lora_ops.files import FileSource, JoinedSource, RenamedSource
from lorakit.lora_ops.models.architectures import parameters
from lorakit.lora_ops.operations.extract.extract import extraction_work
from lorakit.lora_ops.operations.extract.kinds.table import FORMS, Form
from lorakit.lora_ops.operations.extract.plan import plan_extraction

STATE = {"first": noise(torch.bfloat16, (30, 5)), "second": noise(torch.float32, (7,))}
HALVES = (("down", (4, 30)), ("up", (30, 4)))
OLD = {
    f"double_blocks.0.processor.qkv_lora1.{half}.weight": noise(torch.float16, shape)
    for half, shape in HALVES
}


@pytest.fixture(scope="module")
def there() -> Iterator[Elsewhere]:
    with elsewhere() as found:
        yield found


def files(folder: Path) -> dict[str, FileSource]:
    """Every kind of source that reads files."""
    save_file(STATE, folder / "a.safetensors")
    torch.save(STATE, folder / "a.ckpt")
    torch.save(STATE, folder / "old.ckpt", _use_new_zipfile_serialization=False)
    index = '{"weight_map": {"first": "a.safetensors", "second": "a.safetensors"}}'
    (folder / "a.safetensors.index.json").write_text(index)
    (folder / "model" / "unet").mkdir(parents=True)
    save_file(STATE, folder / "model" / "unet" / "diffusion_pytorch_model.safetensors")
    save_file(OLD, folder / "xlabs.safetensors")
    names = ("a.safetensors", "a.ckpt", "old.ckpt", "a.safetensors.index.json", "model")
    found = {name: open_source(folder / name) for name in (*names, "xlabs.safetensors")}
    joined = JoinedSource("m", {f"x.{key}": (found["a.ckpt"], key) for key in STATE})
    return {**found, "joined": joined}


def test_every_source_is_read_in_another_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: Elsewhere
) -> None:
    monkeypatch.chdir(tmp_path)
    with contextlib.ExitStack() as stack:
        sources = files(Path())
        for source in sources.values():
            stack.callback(source.close)
        assert isinstance(sources["xlabs.safetensors"], RenamedSource)
        found = there.call(read_all, sources)
        assert found.keys() == sources.keys()
        for name, source in sources.items():
            assert list(found[name]) == list(source.keys()), name
            for key, tensor in found[name].items():
                assert_equal(tensor, source.tensor(key))


def test_what_is_known_of_them_travels_and_a_changed_file_is_refused(tmp_path: Path) -> None:
    for name, source in files(tmp_path).items():
        copy: FileSource = pickle.loads(pickle.dumps(source))
        assert (copy.name, copy.paths, copy.spelling) == (
            source.name,
            source.paths,
            source.spelling,
        )
        assert (dict(copy.metadata), copy.stamps) == (dict(source.metadata), source.stamps), name
        for path in {path for path in copy.paths if path.suffix != ".json"}:
            os.utime(path, ns=(0, 0))
        with pytest.raises(FormatError, match="the file changed while it was read"):
            copy.tensor(next(iter(copy.keys())))
        source.close()


def test_diffusers_names_are_read_natively_in_another_process(
    tmp_path: Path, there: Elsewhere
) -> None:
    architecture = next(one for one in TRANSLATED if one.name == "flux")
    native, foreign = both(architecture)
    save_file({key: one.contiguous() for key, one in foreign.items()}, tmp_path / "a.safetensors")
    with open_source(tmp_path / "a.safetensors") as source:
        found = there.call(read_natively, (source, parameters(source)))
    assert found.keys() == native.keys()
    for name, tensor in found.items():
        assert_equal(tensor, native[name])


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_a_form_stays_the_one_that_it_is(form: Form) -> None:
    assert pickle.loads(pickle.dumps(form)) is form


def test_an_extraction_is_computed_in_another_process(tmp_path: Path, there: Elsewhere) -> None:
    base = grid(FLUX, torch.float32)
    for name, tensors in (("base", base), ("tuned", trained(base))):
        save_file(tensors, tmp_path / f"{name}.safetensors")
    with (
        open_source(tmp_path / "base.safetensors") as one,
        open_source(tmp_path / "tuned.safetensors") as other,
    ):
        expected, report = extract(one, other, 3)
        found = there.results(extraction_work(plan_extraction(one, other, 3)))
    layers = {outcome.name: outcome.value for outcome in found if outcome.value}
    assert layers.keys() == expected.layers.keys()
    assert len(layers) == len(report.layers) > 1
    for name, layer in layers.items():
        assert_equal(layer.up, expected.layers[name].up)
        assert_equal(layer.down, expected.layers[name].down)
