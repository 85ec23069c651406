"""What files say of themselves, in graphs of a real ComfyUI: trigger words, sidecars, thumbnails, edits."""

from __future__ import annotations

import hashlib
import io
import json
import struct

import pytest
import torch
from comfy_server import GraphError
from graphs import FLUX, Graph, lora
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lorakit.lora_ops.adapters.metadata.thumbnail import Thumbnail, read_thumbnail

TAGS = {"10_cat": {"ohwx": 20, "1girl": 12, "rare": 3}, "5_dog": {"ohwx": 5, "dog": 1}}
SAID = {
    "ss_tag_frequency": json.dumps(TAGS),
    "ss_output_name": "told",
    "ss_base_model_version": "flux1",
    "ss_sd_model_name": "/home/a person/flux1-dev.safetensors",
    "modelspec.title": "A style of its own",
    "modelspec.author": "a person",
}


def picture(colour, size=(64, 48)):
    content = io.BytesIO()
    Image.new("RGB", size, colour).save(content, format="png")
    return content.getvalue()


@pytest.fixture
def write(comfy):
    """Writes a LoRA for Flux with metadata into the server's folder; returns its path."""

    def written(name, about):
        path = comfy.base / "models" / "loras" / f"{name}.safetensors"
        save_file(lora(FLUX, 2, 3), path, about)
        return path

    return written


def outputs(comfy, node_of):
    """Texts of all outputs that are texts, by name, of a node that is added to a graph."""
    graph = Graph(comfy)
    node = node_of(graph)
    kind = graph.nodes[node]["class_type"]
    told = comfy.get(f"/object_info/{kind}")[kind]
    shown = {
        name: graph.add("PreviewAny", source=node[at])
        for at, (name, what) in enumerate(zip(told["output_name"], told["output"], strict=True))
        if what in ("STRING", "FLOAT")
    }
    done = graph.run()
    return {name: done[one]["text"][0] for name, one in shown.items()}


def data_hash(path):
    content = path.read_bytes()
    return hashlib.sha256(content[8 + struct.unpack("<Q", content[:8])[0] :]).hexdigest()


def metadata(path):
    with safe_open(path, "pt") as file:
        return file.metadata()


NODES = {
    "load": lambda name: lambda graph: graph.lora(name),
    "inspect": lambda name: lambda graph: graph.add("LorakitInspectLora", lora=graph.lora(name)),
    "info": lambda name: (
        lambda graph: graph.add("LorakitLoraInfo", lora_name=f"{name}.safetensors")
    ),
}


@pytest.mark.parametrize("kind", NODES)
def test_nodes_that_look_give_words_and_metadata(comfy, write, kind):
    write("told", SAID)
    told = outputs(comfy, NODES[kind]("told"))
    assert told["trigger_words"] == "ohwx"
    assert json.loads(told["metadata"]) == SAID
    assert told["report"].startswith("done · ")
    lines = told["report"].splitlines()
    assert "title: A style of its own" in lines
    assert "base model: flux1-dev.safetensors (flux1)" in lines
    assert "a person/" not in told["report"]


@pytest.mark.parametrize("kind", NODES)
def test_a_sidecar_is_read_again_when_it_changes(comfy, write, kind):
    path = write(f"beside-{kind}", {"ss_tag_frequency": json.dumps(TAGS)})
    node = NODES[kind](path.stem)
    assert outputs(comfy, node)["trigger_words"] == "ohwx"
    beside = path.with_suffix(".json")
    beside.write_text(json.dumps({"activation text": "zzz, a cat", "preferred weight": 0.6}))
    told = outputs(comfy, node)
    assert told["trigger_words"] == "zzz, a cat"
    assert "preferred weight: 0.6" in told["report"]
    assert kind != "info" or float(told["preferred_weight"]) == 0.6
    beside.write_text("{ not json")
    assert outputs(comfy, node)["trigger_words"] == "ohwx"


def test_a_preferred_weight_goes_into_apply(comfy, write):
    path = write("weighted", {})
    path.with_suffix(".json").write_text(json.dumps({"preferred weight": 0.5}))
    latents = []
    for given in ("linked", 0.5):
        graph = Graph(comfy)
        info = graph.add("LorakitLoraInfo", lora_name=path.name)
        strength = info[2] if given == "linked" else given
        file = {"lora": graph.lora(path.stem), "strength_model": strength}
        latents.append(
            graph.latent(graph.add("LorakitApplyLora", model=graph.checkpoint(), **file))
        )
    assert torch.equal(*latents)


def thumbnail(comfy, name):
    graph = Graph(comfy)
    return graph.tensor(
        graph.add("LorakitLoraInfo", lora_name=f"{name}.safetensors")[3], kind="image"
    )


def test_a_thumbnail_comes_out_as_an_image(comfy, write):
    blue = Thumbnail("image/png", picture((0, 0, 255)))
    path = write("drawn", {"modelspec.thumbnail": blue.url})
    made = thumbnail(comfy, path.stem)
    assert made.shape == (1, 48, 64, 3)
    assert torch.equal(made[0, 0, 0], torch.tensor([0.0, 0.0, 1.0]))
    told = outputs(comfy, NODES["info"]("drawn"))
    assert json.loads(told["metadata"])["modelspec.thumbnail"].startswith("image/png, ")


def test_a_preview_beside_the_file_is_its_picture(comfy, write):
    path = write("previewed", {})
    (path.parent / "previewed.preview.png").write_bytes(picture((255, 0, 0), (20, 30)))
    assert thumbnail(comfy, "previewed").shape == (1, 30, 20, 3)


@pytest.mark.parametrize("stored", ["", "data:image/png;base64,AAAA", "data:image/png;base64,?"])
def test_without_a_picture_it_is_black(comfy, write, stored):
    path = write("blank", {"modelspec.thumbnail": stored} if stored else {})
    made = thumbnail(comfy, path.stem)
    assert made.shape == (1, 64, 64, 3)
    assert not made.any()


def edited(comfy, lora_name, save=True, **inputs):
    graph = Graph(comfy)
    if "thumbnail" in inputs:
        width, height, colour = inputs.pop("thumbnail")
        inputs["thumbnail"] = graph.add(
            "EmptyImage", width=width, height=height, batch_size=1, color=colour
        )
    node = graph.add("LorakitEditMetadata", lora=graph.lora(lora_name), **inputs)
    more = {"format": save} if isinstance(save, str) else {}
    saver = graph.add("LorakitSaveLora", lora=node, prefix=f"loras/edited-{lora_name}", **more)
    shown = graph.add("PreviewAny", source=saver[0])
    report = graph.report(node)
    done = graph.run()
    return done[report]["text"][0], comfy.base / "output" / "loras" / done[shown]["text"][0]


def test_what_is_edited_is_saved_with_true_hashes(comfy, write):
    started = write("plain", {**SAID, "sshs_legacy_hash": "12345678"})
    report, path = edited(
        comfy,
        "plain",
        title="Mine",
        trigger_words="ohwx, a cat\nblue fur,",
        description="Draws **cats**",
        tags="style, animal",
        thumbnail=(300, 200, 0xFF0000),
        entries="modelspec.license=CC0\nmy.note=a=b",
        remove="ss_sd_*",
    )
    held, before = load_file(path), load_file(started)
    assert held.keys() == before.keys()
    assert all(torch.equal(held[key], before[key]) for key in held)
    about = metadata(path)
    wanted = {
        "modelspec.title": "Mine",
        "modelspec.trigger_phrase": "ohwx, a cat, blue fur",
        "modelspec.description": "Draws **cats**",
        "modelspec.tags": "style, animal",
        "modelspec.license": "CC0",
        "modelspec.author": "a person",
        "my.note": "a=b",
        "ss_tag_frequency": SAID["ss_tag_frequency"],
        "ss_output_name": path.stem,
        "modelspec.sai_model_spec": "1.0.1",
        "sshs_model_hash": data_hash(path),
        "modelspec.hash_sha256": f"0x{data_hash(path)}",
    }
    assert {key: about.get(key) for key in wanted} == wanted
    assert not {"ss_sd_model_name", "sshs_legacy_hash"} & about.keys()
    with Image.open(io.BytesIO(read_thumbnail(about).data)) as made:
        assert (made.format, made.size) == ("JPEG", (200, 200))
        assert made.getpixel((100, 100))[0] > 240
    assert comfy.get(f"/view_metadata/loras?filename={path.name}") == about, "as the host reads it"
    assert "ss_sd_model_name: gone" in report
    told = outputs(comfy, NODES["info"](path.stem))
    assert told["trigger_words"] == "ohwx, a cat, blue fur"


@pytest.mark.parametrize("kind", NODES)
def test_all_that_can_be_said_stands_on_a_node(comfy, write, kind):
    said = {
        **SAID,
        **{f"modelspec.{name}": f"{name} " * 400 for name in ("description", "license", "tags")},
        "modelspec.usage_hint": "a hint\nof two lines",
        "ss_network_dim": "4",
        "ss_training_comment": "a comment",
    }
    path = write("talkative", said)
    path.with_suffix(".json").write_text(json.dumps({"preferred weight": 1, "notes": "n" * 900}))
    told = outputs(comfy, NODES[kind]("talkative"))["report"]
    assert len(told.splitlines()) < 15
    assert all(len(line) < 200 for line in told.splitlines())
    for words in ("a hint\\nof two lines · description", "comment a comment", "notes: nnn"):
        assert words in told


def test_a_title_lives_through_another_format(comfy, write):
    write("formats", {"modelspec.title": "formats"})
    _, path = edited(comfy, "formats", save="kohya", title="A name for people")
    about = metadata(path)
    assert about["modelspec.title"] == "A name for people"
    assert about["ss_output_name"] == path.stem


def test_a_title_that_is_the_name_of_the_file_follows_it(comfy, write):
    write("named", {"modelspec.title": "named", "modelspec.hash_sha256": "0x00"})
    _, path = edited(comfy, "named", trigger_words="a word")
    about = metadata(path)
    assert about["modelspec.title"] == path.stem
    assert about["modelspec.hash_sha256"] == f"0x{data_hash(path)}"


def test_nothing_given_changes_nothing(comfy, write):
    write("same", SAID)
    told = outputs(comfy, lambda graph: graph.add("LorakitEditMetadata", lora=graph.lora("same")))
    assert json.loads(told["metadata"]) == SAID
    assert told["report"] == "done · same.safetensors: 0 set, 0 removed"


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"entries": "no value"}, "`no value` in `entries` sets nothing; write it as NAME=VALUE"),
        ({"remove": "nope"}, "no entry is called `nope`; see what there is with LoRA Info"),
        ({"remove": "ss_output"}, "did you mean `ss_output_name`?"),
        ({"entries": "sshs_model_hash=1"}, "is the hash of the data, and made true by itself"),
        ({"entries": "modelspec.thumbnail=x"}, "give a picture as `thumbnail`"),
    ],
)
def test_what_cannot_be_done_is_said(comfy, write, inputs, words):
    write("refused", SAID)
    graph = Graph(comfy)
    node = graph.add("LorakitEditMetadata", lora=graph.lora("refused"), **inputs)
    with pytest.raises(GraphError) as raised:
        graph.text(node)
    assert words in str(raised.value)


def test_edited_after_edited_keeps_the_first(comfy, write):
    write("twice", {})
    graph = Graph(comfy)
    first = graph.add("LorakitEditMetadata", lora=graph.lora("twice"), title="One")
    second = graph.add("LorakitEditMetadata", lora=first, trigger_words="two")
    shown = graph.add("PreviewAny", source=second[3])
    about = json.loads(graph.run()[shown]["text"][0])
    assert (about["modelspec.title"], about["modelspec.trigger_phrase"]) == ("One", "two")
