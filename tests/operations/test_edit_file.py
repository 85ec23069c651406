"""Resize, scale and add from file to file: tensors, the record of them, and nothing half done."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from adapters import EVERY_FORM, Part, changes, peft_config, tensors, written
from bits import assert_equal
from commands import contents
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lorakit.lora_ops import Adapter, DictSource, open_source
from lorakit.lora_ops.adapters.formats import decode
from lorakit.lora_ops.adapters.matching.group import Term
from lorakit.lora_ops.adapters.strengths.ingredient import Ingredient
from lorakit.lora_ops.errors import ArgumentError, LoraOpsError, MismatchError, NonFiniteError
from lorakit.lora_ops.files import SafetensorsWriter
from lorakit.lora_ops.operations.add.add import add
from lorakit.lora_ops.operations.add.file import add_files
from lorakit.lora_ops.operations.resize.file import resize_file
from lorakit.lora_ops.operations.resize.resize import resize
from lorakit.lora_ops.operations.scale.file import scale_file
from lorakit.lora_ops.operations.scale.scale import scale
from lorakit.lora_ops.report import Report

TAGS = {"10_cat": {"a cat": 10, "naïve": 3}}
METADATA = {
    "ss_network_module": "networks.lora",
    "ss_network_dim": "99",
    "ss_network_alpha": "99",
    "ss_output_name": "stale",
    "ss_tag_frequency": json.dumps(TAGS),
    "ss_base_model_version": "sd_v1",
    "ss_training_comment": "by hand",
    "modelspec.title": "Stale",
    "modelspec.thumbnail": "data:image/jpeg;base64," + "A" * 3000,
    "modelspec.author": "someone",
    "modelspec.hash_sha256": "0x00",
    "sshs_model_hash": "00",
    "sshs_legacy_hash": "00",
}
A = tensors([Part(p.form, 6, 6.0, torch.float16, p.seed) for p in EVERY_FORM])
B = tensors([Part(p.form, 3, 0.7, torch.float16, 9 + p.seed) for p in EVERY_FORM[:3]])
# 3 x 3 x 2 bytes: no multiple of 8, so that it waits for its place; an odd dtype beside it.
EXTRAS = {"bundle_emb.x.string_to_param.*": torch.ones(3, 3).half(), "emb_step": torch.tensor(7)}

Edit = Callable[..., Report]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two adapters, one with a story to tell, and a folder for results."""
    written(tmp_path / "a.safetensors", A | EXTRAS, METADATA)
    b = {"ss_tag_frequency": json.dumps({"10_cat": {"a cat": 5}}), "modelspec.author": "else"}
    written(tmp_path / "b.safetensors", B, METADATA | b)
    (tmp_path / "out").mkdir()
    return tmp_path


def run_resize(folder: Path, output: Path, **options) -> Report:
    with open_source(folder / "a.safetensors") as source:
        return resize_file(source, output, options.pop("rule", 2), version="1.2", **options)


def run_scale(folder: Path, output: Path, **options) -> Report:
    with open_source(folder / "a.safetensors") as source:
        ingredient = Ingredient(source, options.pop("strength", -0.5))
        return scale_file(ingredient, output, version="1.2", **options)


def run_add(folder: Path, output: Path, strengths=(0.7, -0.3), **options) -> Report:
    with (
        open_source(folder / "a.safetensors") as one,
        open_source(folder / "b.safetensors") as other,
    ):
        given = [Ingredient(one, strengths[0]), Ingredient(other, strengths[1])]
        return add_files(given, output, options.pop("rule", None), version="1.2", **options)


EDITS = {"resize": run_resize, "scale": run_scale, "add": run_add}
every = pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)


def metadata_of(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return file.metadata()


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def data_sha256(path: Path) -> str:
    """kohya's sshs_model_hash: of what follows the header."""
    data = path.read_bytes()
    return hashlib.sha256(data[8 + int.from_bytes(data[:8], "little") :]).hexdigest()


# --- What is in the file -------------------------------------------------------------------------


def in_memory(name: str) -> tuple[Adapter, Report]:
    one, other = (decode(DictSource(found)) for found in (A, B))
    strengths = dict.fromkeys(one.layers, 0.7), dict.fromkeys(other.layers, -0.3)
    edits = {
        "resize": lambda: resize(one, 2),
        "scale": lambda: scale(one, -0.5),
        "add": lambda: add([Term(one, strengths[0]), Term(other, strengths[1])]),
    }
    return edits[name]()


@pytest.mark.parametrize("name", EDITS)
def test_a_file_holds_what_memory_holds(name: str, folder: Path) -> None:
    output = folder / "out" / "x.safetensors"
    report = EDITS[name](folder, output)
    wanted, same = in_memory(name)
    found = load_file(output)
    expected = {
        wanted.keys[target][role]: tensor
        for target, layer in wanted.layers.items()
        for role, tensor in layer.tensors().items()
    }
    assert found.keys() == (expected | EXTRAS).keys()
    for key, tensor in (expected | EXTRAS).items():
        assert_equal(found[key], tensor)
        if key.endswith(".alpha"):
            assert (tensor.dtype, tensor.shape) == (torch.float32, ())
    assert report.size == output.stat().st_size
    assert {layer.target: layer for layer in report.layers} == {
        layer.target: layer for layer in same.layers
    }
    assert report.error == pytest.approx(same.error, rel=1e-12)


@pytest.fixture
def never_enlarged(monkeypatch: pytest.MonkeyPatch) -> None:
    """A header that outgrows its room costs a copy of the whole file; small files only lose room."""
    move = SafetensorsWriter._move_data

    def shrink(self: SafetensorsWriter, room: int) -> None:
        assert room <= self._room, f"room for {self._room} bytes, {room} needed"
        move(self, room)

    monkeypatch.setattr(SafetensorsWriter, "_move_data", shrink)


@pytest.mark.usefixtures("never_enlarged")
@every
def test_the_header_fits_the_room_that_was_kept(edit: Edit, folder: Path) -> None:
    output = folder / "out" / "x.safetensors"
    edit(folder, output)
    for text in ("Ä" * 60_000, '"\\' * 40_000, "\x01" * 30_000):
        written(folder / "a.safetensors", A | EXTRAS, METADATA | {"modelspec.description": text})
        edit(folder, output, force=True)
        assert metadata_of(output)["modelspec.description"] == text
    with output.open("rb") as file:
        header = file.read(int.from_bytes(file.read(8), "little"))
    assert len(header) - len(header.rstrip()) < 1000, "room to no purpose"


@pytest.mark.usefixtures("never_enlarged")
@pytest.mark.parametrize("format", ["peft", "diffusers", "comfy"])
@every
def test_the_header_fits_also_where_every_layer_is_in_the_configuration(
    edit: Edit, format: str, folder: Path
) -> None:
    """Ranks that differ stand in two patterns and a list."""
    parts = [
        Part(rank=1 + i % 5, shape=(8, 9), module=f"transformer_blocks.{i}.attn.to_q.{'x' * 60}")
        for i in range(200)
    ]
    config = peft_config(4, 8.0, "transformer" if format == "diffusers" else "")
    for name in "ab":
        written(folder / f"{name}.safetensors", tensors(parts, format), METADATA | config)
    output = folder / "out" / "x.safetensors"
    edit(folder, output)
    assert len(load_file(output)) >= 400


@every
def test_the_same_inputs_give_the_same_bytes(edit: Edit, folder: Path) -> None:
    for place in ("out", "."):
        edit(folder, folder / place / "x.safetensors")
    one, other = (folder / place / "x.safetensors" for place in ("out", "."))
    assert one.read_bytes() == other.read_bytes()


@every
def test_inputs_stay_as_they_are(edit: Edit, folder: Path) -> None:
    before = contents(folder)
    edit(folder, folder / "out" / "x.safetensors")
    (folder / "out" / "x.safetensors").unlink()
    assert contents(folder) == before


# --- The record ----------------------------------------------------------------------------------


@every
def test_the_record_is_true(edit: Edit, folder: Path) -> None:
    output = folder / "out" / "new name.safetensors"
    report = edit(folder, output)
    found = metadata_of(output)
    assert found["sshs_model_hash"] == data_sha256(output)
    assert "sshs_legacy_hash" not in found
    assert "modelspec.hash_sha256" not in found
    assert found["ss_output_name"] == found["modelspec.title"] == "new name"
    assert found["lorakit.version"] == "1.2"
    assert float(found["lorakit.error"]) == pytest.approx(report.error, rel=1e-5)
    assert found["ss_base_model_version"] == "sd_v1"
    assert found["ss_training_comment"].startswith("by hand; ")
    assert found["ss_training_comment"].endswith(" with lorakit")
    ranks = {layer.target: layer.rank for layer in report.layers}
    assert {t: row[0] for t, row in json.loads(found["lorakit.layers"]).items()} == ranks
    held = load_file(output)
    downs = {k.split(".")[0]: len(tensor) for k, tensor in held.items() if "lora_down" in k}
    alphas = {k: float(tensor) for k, tensor in held.items() if k.endswith(".alpha")}
    assert downs == ranks
    linear = {ranks[layer.target] for layer in report.layers if layer.kind == "linear"}
    own = {a for k, a in alphas.items() if "to_q" in k}
    assert found["ss_network_dim"] == "/".join(map(str, linear))
    assert float(found["ss_network_alpha"]) == pytest.approx(own.pop(), rel=1e-6)


@pytest.mark.parametrize("edit", [run_resize, run_scale])
def test_what_is_said_of_the_training_stays(edit: Edit, folder: Path) -> None:
    output = folder / "out" / "x.safetensors"
    edit(folder, output)
    found = metadata_of(output)
    for key in ("ss_tag_frequency", "modelspec.thumbnail", "modelspec.author", "ss_network_module"):
        assert found[key] == METADATA[key]
    assert found["lorakit.input"] == "a.safetensors"
    assert found["lorakit.input_sha256"] == sha256(folder / "a.safetensors")


def test_the_operation_and_its_parameters_are_recorded(folder: Path) -> None:
    output = folder / "out" / "x.safetensors"
    run_resize(folder, output, rule="3,conv=2", alpha=1.5)
    found = metadata_of(output)
    wanted = {"operation": "resize", "rank": "3,conv=2", "alpha": "1.5", "dtype": "float16"}
    assert {name: found[f"lorakit.{name}"] for name in wanted} == wanted
    assert "resized from 6 to dynamic with lorakit" in found["ss_training_comment"]
    run_scale(folder, output, force=True)
    found = metadata_of(output)
    assert (found["lorakit.operation"], found["lorakit.strength"]) == ("scale", "-0.5")
    run_add(folder, output, force=True, method="slerp", options={"t": 0.25}, rule="energy=0.9")
    found = metadata_of(output)
    wanted = {"operation": "add", "method": "slerp", "t": "0.25", "rank": "energy=0.9"}
    assert {name: found[f"lorakit.{name}"] for name in wanted} == wanted


def test_a_sum_names_its_sources_and_joins_what_they_say(folder: Path) -> None:
    output = folder / "out" / "x.safetensors"
    with (
        open_source(folder / "a.safetensors") as one,
        open_source(folder / "b.safetensors") as other,
    ):
        given = [Ingredient(one, 0.7, "IN01=1,IN02=0"), Ingredient(other, -0.3, None, ["attn1=2"])]
        add_files(given, output)
    found = metadata_of(output)
    assert found["modelspec.merged_from"] == "a, b"
    assert json.loads(found["lorakit.sources"]) == [
        {
            "name": "a.safetensors",
            "strength": 0.7,
            "sha256": sha256(folder / "a.safetensors"),
            "blocks": "IN01=1,IN02=0",
        },
        {
            "name": "b.safetensors",
            "strength": -0.3,
            "sha256": sha256(folder / "b.safetensors"),
            "blocks": "attn1=2",
        },
    ]
    assert json.loads(found["ss_tag_frequency"]) == {"10_cat": {"a cat": 15, "naïve": 3}}
    assert "modelspec.author" not in found, "they do not agree on it"
    assert "sum of a (0.7) + b (-0.3)" in found["ss_training_comment"]


def test_one_edit_after_another_is_remembered(folder: Path) -> None:
    run_resize(folder, folder / "out" / "small.safetensors")
    with open_source(folder / "out" / "small.safetensors") as source:
        scale_file(Ingredient(source, 2.0), folder / "out" / "x.safetensors")
    found = metadata_of(folder / "out" / "x.safetensors")
    (past,) = json.loads(found["lorakit.history"])
    assert (past["operation"], past["input"]) == ("resize", "a.safetensors")
    assert found["lorakit.input_sha256"] == sha256(folder / "out" / "small.safetensors")


def test_the_model_is_the_one_that_all_inputs_can_be_for(folder: Path) -> None:
    """A text encoder alone could be anyone's; the diffusion model beside it says whose."""
    clip = Part(module="text_model.encoder.layers.0.mlp.fc1", shape=(8, 768))
    te = {k.replace("lora_unet_", "lora_te1_"): v for k, v in tensors([clip]).items()}
    cross = Part(module="input_blocks.4.1.transformer_blocks.0.attn2.to_k", shape=(640, 2048))
    written(folder / "a.safetensors", te)
    written(folder / "b.safetensors", tensors([cross]))
    output = folder / "out" / "x.safetensors"
    run_add(folder, output)
    found = metadata_of(output)
    assert found["modelspec.architecture"] == "stable-diffusion-xl-v1-base/lora"
    assert found["ss_base_model_version"] == "sdxl_base_v1-0"


# --- Scales of PEFT and diffusers ----------------------------------------------------------------


@pytest.mark.parametrize("format", ["peft", "diffusers"])
@every
def test_scales_of_a_configuration_go_into_the_factors(
    edit: Edit, format: str, folder: Path
) -> None:
    """The file that is written says scale 1, and read by the definition it means the same."""
    component = "transformer" if format == "diffusers" else ""
    part = Part(rank=4, module="blocks.0.q", shape=(12, 10))
    found = tensors([part], format)
    for name in "ab":
        written(folder / f"{name}.safetensors", found, peft_config(4, 10.0, component))
    output = folder / "out" / "x.safetensors"
    options = {"rule": 3} if edit is run_resize else {}
    edit(folder, output, **options)
    (exact,) = changes(found, 2.5).values()
    if edit is run_resize:
        u, s, vh = torch.linalg.svd(exact)
        exact = (u[:, :3] * s[:3]) @ vh[:3]
    else:
        exact = exact * (-0.5 if edit is run_scale else 0.7 - 0.3)
    result = load_file(output)
    assert not [key for key in result if key.endswith(".alpha")]
    (change,) = changes(result).values()
    assert torch.allclose(change, exact, atol=1e-5)
    config = json.loads(metadata_of(output)["lora_adapter_metadata"])
    prefix = f"{component}." if component else ""
    rank = next(v.shape[0] for k, v in result.items() if "lora_A" in k)
    assert config[f"{prefix}r"] == config[f"{prefix}lora_alpha"] == rank


# --- Extras --------------------------------------------------------------------------------------


def test_extras_of_all_inputs_are_carried_and_the_first_decides(folder: Path) -> None:
    other = {"emb_step": torch.tensor(8), "emb_more": torch.ones(2)}
    written(folder / "b.safetensors", B | other)
    output = folder / "out" / "x.safetensors"
    report = run_add(folder, output)
    found = load_file(output)
    assert_equal(found["emb_step"], EXTRAS["emb_step"])
    assert_equal(found["emb_more"], other["emb_more"])
    (note,) = [note for note in report.notes if "emb_step" in note]
    assert note.startswith("`emb_step` of ")
    assert note.endswith("is left out: an earlier input has another")


def test_an_extra_under_the_key_of_a_layer_gives_way(folder: Path) -> None:
    """An alpha of nothing belongs to no layer; the other input has that layer."""
    key = next(key for key in A if key.endswith(".alpha"))
    other = {k: v for k, v in B.items() if not k.startswith(key.removesuffix(".alpha"))}
    written(folder / "b.safetensors", other | {key: torch.tensor(3.0)})
    report = run_add(folder, folder / "out" / "x.safetensors")
    assert any(note.startswith(f"`{key}` of ") for note in report.notes)


# --- Patterns for all inputs ---------------------------------------------------------------------


def test_a_pattern_has_to_fit_one_input_not_all(folder: Path) -> None:
    """`proj_in` is in both, the core of Tucker's form in the first alone."""
    output = folder / "out" / "x.safetensors"
    report = run_add(folder, output, where=["input_blocks_2_0=0", "proj_in=0.5"])
    times = {layer.target: layer.coefficients for layer in report.layers}
    assert times["lora_unet_input_blocks_1_1_proj_in"] == pytest.approx((0.35, -0.15))
    assert not [target for target in times if "input_blocks_2_0" in target]
    first, second = json.loads(metadata_of(output)["lorakit.sources"])
    assert (first["blocks"], second["blocks"]) == ("input_blocks_2_0=0 proj_in=0.5", "proj_in=0.5")


def test_a_pattern_that_fits_none_is_refused(folder: Path) -> None:
    with pytest.raises(ArgumentError, match=r"`proj_inn` fits none.*nearest: `proj_in`"):
        run_add(folder, folder / "out" / "x.safetensors", where=["proj_inn=0"])
    with pytest.raises(ArgumentError, match="has no strength"):
        run_add(folder, folder / "out" / "x.safetensors", where=["proj_in"])


# --- Names ---------------------------------------------------------------------------------------


def test_a_checkpoint_gives_underscored_names_their_dots(folder: Path) -> None:
    model = {f"model.diffusion_model.{p.name}.weight": torch.ones(p.weight) for p in EVERY_FORM}
    save_file(model, folder / "model.safetensors")
    output = folder / "out" / "x.safetensors"
    with pytest.raises(ArgumentError, match="`reference=`"):
        run_add(folder, output, format="comfy")
    with open_source(folder / "model.safetensors") as reference:
        run_add(folder, output, format="comfy", reference=reference)
    found = load_file(output)
    modules = {key.rsplit(".lora_", 1)[0] for key in found if ".lora_" in key}
    assert modules == {f"diffusion_model.{p.name}" for p in EVERY_FORM}


# --- What is refused, and what is left behind ----------------------------------------------------


@pytest.mark.parametrize(
    ("output", "words"),
    [
        ("a.safetensors", "same file as the input"),
        ("link.safetensors", "same file as the input"),
        ("out/there.safetensors", "exists already"),
        ("out/x.ckpt", r"must end in `\.safetensors`"),
        ("none/x.safetensors", "does not exist"),
        ("out", "is a folder"),
    ],
)
@every
def test_a_bad_output_is_refused_before_anything_is_read(
    edit: Edit, output: str, words: str, folder: Path
) -> None:
    (folder / "out" / "there.safetensors").write_bytes(b"old")
    os.link(folder / "a.safetensors", folder / "link.safetensors")
    before = contents(folder)
    forced = output.endswith(("a.safetensors", "link.safetensors"))
    with pytest.raises(ArgumentError, match=words):
        edit(folder, folder / output, force=forced)
    assert contents(folder) == before


def test_the_model_beside_the_adapters_is_an_input_too(folder: Path) -> None:
    """With --force a checkpoint of many gigabytes would be gone."""
    model = {f"model.diffusion_model.{p.name}.weight": torch.ones(p.weight) for p in EVERY_FORM}
    save_file(model, folder / "model.safetensors")
    before = contents(folder)
    with open_source(folder / "model.safetensors") as checkpoint:
        for edit, options in (
            (run_resize, {"rule": "mean=2", "relative_to": checkpoint}),
            (run_add, {"reference": checkpoint}),
        ):
            with pytest.raises(ArgumentError, match="same file as the input"):
                edit(folder, folder / "model.safetensors", force=True, **options)
        assert contents(folder) == before
        run_resize(folder, folder / "out" / "x.safetensors", rule="mean=2", relative_to=checkpoint)


@pytest.mark.parametrize("when", ["early", "late"])
@every
def test_an_interruption_leaves_what_was_there(edit: Edit, when: str, folder: Path) -> None:
    output = folder / "out" / "there.safetensors"
    output.write_bytes(b"old")
    before = contents(folder)
    seen: list[bool] = []

    def interrupt(done: int, total: int, _target: str) -> None:
        if (when == "early" and done == 2) or done == total:
            seen.append(any(path.name.endswith(".partial") for path in output.parent.iterdir()))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        edit(folder, output, force=True, progress=interrupt)
    assert seen == [True], "it was in the middle"
    assert contents(folder) == before
    edit(folder, output, force=True)  # the twin
    assert contents(folder) != before


@every
def test_damage_in_the_last_layer_leaves_what_was_there(edit: Edit, folder: Path) -> None:
    output = folder / "out" / "there.safetensors"
    output.write_bytes(b"old")
    with safe_open(folder / "a.safetensors", "pt") as file:
        last = [key for key in file.offset_keys() if "lora_up" in key][-1]
    damaged = A | {last: torch.full_like(A[last], float("nan"))}
    written(folder / "a.safetensors", damaged)
    before = contents(folder)
    with pytest.raises(NonFiniteError, match=last.split(".")[0]):
        edit(folder, output, force=True)
    assert contents(folder) == before


@every
def test_a_result_without_layers_is_no_file(edit: Edit, folder: Path) -> None:
    options = {
        run_resize: {"rule": 0},
        run_scale: {"strength": 0.0},
        run_add: {"strengths": (0.0, 0.0)},
    }[edit]
    before = contents(folder)
    with pytest.raises(MismatchError, match="no layer is left"):
        edit(folder, folder / "out" / "x.safetensors", **options)
    assert contents(folder) == before


def test_a_disk_that_fills_up_leaves_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(folder)

    def full(self: SafetensorsWriter, data: memoryview) -> None:
        with self.place.explained():
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(SafetensorsWriter, "_append", full)
    for edit in EDITS.values():
        with pytest.raises(LoraOpsError, match="No space left on device; free some space"):
            edit(folder, folder / "out" / "x.safetensors")
        assert contents(folder) == before


def test_nothing_to_add(folder: Path) -> None:
    with pytest.raises(ArgumentError, match="nothing to add"):
        add_files([], folder / "out" / "x.safetensors")


def test_one_to_add(folder: Path) -> None:
    """A sum of one: the same file, under kohya's names, with its story."""
    output = folder / "out" / "x.safetensors"
    with open_source(folder / "a.safetensors") as one:
        add_files([Ingredient(one)], output)
    found = load_file(output)
    for key, tensor in A.items():
        if "input_blocks_2_0" not in key:  # a core is multiplied into down
            assert_equal(found[key], tensor)
    meant, wanted = changes(found), changes(A)
    assert meant.keys() == wanted.keys()
    for module, change in wanted.items():
        assert torch.allclose(meant[module], change, rtol=0.01, atol=0.01)
