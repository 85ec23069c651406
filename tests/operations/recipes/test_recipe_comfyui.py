"""ComfyUI's merging graphs: the shares that its own nodes give each key are those of our rules."""

from __future__ import annotations

import comfy_host
import pytest

from lorakit.lora_ops.adapters.strengths.rules import strengths
from lorakit.lora_ops.errors import FormatError
from lorakit.lora_ops.operations.merge.recipes.checks import check
from lorakit.lora_ops.operations.merge.recipes.foreign import of_metadata, of_text
from lorakit.lora_ops.operations.merge.recipes.foreign.comfyui import read
from lorakit.lora_ops.operations.merge.recipes.recipe import Term


def loader(name):
    return {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": name}}


def node(kind, **inputs):
    return {"class_type": kind, "inputs": inputs}


def graph(**merges):
    """Two checkpoints, what merges them, and a node that saves UNet, text encoder and VAE."""
    nodes = {"1": loader("sdxl\\a.safetensors"), "2": loader("b.safetensors"), **merges}
    save = node(
        "CheckpointSave", model=["3", 0], clip=["1", 1], vae=["2", 2], filename_prefix="mix"
    )
    return {"9": save, **nodes}


UNET = [
    "time_embed.0",
    "label_emb.0.0",
    "input_blocks.0.0",
    "input_blocks.1.0.in_layers.2",
    "input_blocks.4.1.proj_in",
    "input_blocks.8.1.transformer_blocks.9.attn1.to_q",
    "middle_block.0.in_layers.0",
    "middle_block.1.proj_in",
    "middle_block.2.in_layers.0",
    "output_blocks.0.0.in_layers.0",
    "output_blocks.8.0.in_layers.0",
    "out.0",
    "out.2",
]
FLUX = [
    "img_in",
    "time_in.in_layer",
    "guidance_in.in_layer",
    "vector_in.in_layer",
    "txt_in",
    "double_blocks.0.img_mod.lin",
    "double_blocks.1.img_mod.lin",
    "double_blocks.10.img_mod.lin",
    "single_blocks.1.linear1",
    "single_blocks.37.linear1",
    "final_layer.linear",
]
WAN = [
    "patch_embedding",
    "time_embedding.0",
    "blocks.1.cross_attn.k",
    "blocks.19.cross_attn.k",
    "head.head",
]
VALUES = [round(0.03 * n, 2) for n in range(1, 31)]
ASKED = {
    "ModelMergeSDXL": UNET,
    "ModelMergeSD1": [name for name in UNET if "label_emb" not in name],
    "ModelMergeBlocks": UNET,
    "ModelMergeFlux1": FLUX,
    "ModelMergeWAN2_1": WAN,
}


@pytest.fixture(scope="module")
def theirs():
    """What the nodes themselves do: starting ComfyUI takes seconds."""
    question = {
        kind: (kind, [f"diffusion_model.{name}" for name in names], VALUES)
        for kind, names in ASKED.items()
    }
    with comfy_host.started() as host:
        return host.ask("merge_ratios", question)


@pytest.mark.parametrize("kind", ASKED)
def test_sliders_are_rules(theirs, kind):
    sliders, shares = theirs[kind]["sliders"], theirs[kind]["shares"]
    merge = node(kind, model1=["1", 0], model2=["2", 0], **sliders)
    (step,) = read(graph(**{"3": merge})).recipe.steps
    (term,) = step.terms
    names = [f"model.{name}" for name in shares]
    if term.where:
        # A rule about a block that these few names lack would be an error.
        names += [f"model.diffusion_model.{name}x" for name in sliders]
    ours = strengths(names, strength=term.weight, blocks=term.blocks or None, where=term.where)
    assert {name: ours[f"model.{name}"] for name in shares} == {
        name: pytest.approx(second) for name, (second, _) in shares.items()
    }
    assert all(first == pytest.approx(1 - second) for second, first in shares.values())


def test_a_ratio_is_the_share_of_the_first():
    merge = node("ModelMergeSimple", model1=["1", 0], model2=["2", 0], ratio=0.7)
    found = read(graph(**{"3": merge}))
    (step,) = found.recipe.steps
    assert (step.base, step.method, step.terms) == ("A", "lerp", (Term("B", weight=0.3),))
    assert [file.name for file in found.recipe.files.values()] == ["a.safetensors", "b.safetensors"]
    assert found.recipe.parts == {"te": "A", "vae": "B"}
    assert found.recipe.title == "mix"
    assert found.lost == ()


def test_differences_loras_and_clips():
    found = read(
        graph(
            **{
                "4": loader("c.safetensors"),
                "5": node("ModelMergeSubtract", model1=["2", 0], model2=["4", 0], multiplier=0.5),
                "6": node("ModelMergeAdd", model1=["1", 0], model2=["5", 0]),
                "3": node("LoraLoader", model=["6", 0], clip=["7", 0], lora_name="x/l.safetensors",
                          strength_model=0.8, strength_clip=0.25),
                "7": node("CLIPMergeSimple", clip1=["1", 1], clip2=["2", 1], ratio=0.9),
                "9": node("CheckpointSave", model=["3", 0], clip=["3", 1], vae=["1", 2]),
            }
        )
    ).recipe  # fmt: skip
    spaces = check(found)
    steps = {step.name: step for step in found.steps}
    unet = found.steps[-1]
    assert unet.base == found.parts.get("unet", unet.base)
    loras = [
        step
        for step in found.steps
        if step.terms
        and found.files.get(step.terms[0].of)
        and found.files[step.terms[0].of].kind == "lora"
    ]
    assert [step.terms[0].weight for step in loras] == [0.8, 0.25]
    added = steps[loras[0].base]
    change = steps[added.terms[0].of]
    assert (found.files[added.base].name, spaces[change.name]) == ("a.safetensors", "delta")
    assert change.terms == (Term(change.terms[0].of, change.terms[0].minus, 0.5),)
    assert [found.files[name].name for name in (change.terms[0].of, change.terms[0].minus)] == [
        "b.safetensors",
        "c.safetensors",
    ]
    assert steps[found.parts["te"]] == loras[1]
    assert steps[loras[1].base].terms[0].weight == 0.1


def test_the_graph_of_the_interface_is_the_same():
    workflow = {
        "nodes": [
            {"id": 1, "type": "CheckpointLoaderSimple", "widgets_values": ["a.safetensors"]},
            {"id": 2, "type": "CheckpointLoaderSimple", "widgets_values": ["b.safetensors"]},
            {"id": 3, "type": "ModelMergeSimple", "widgets_values": [0.7],
             "inputs": [{"name": "model1", "link": 11}, {"name": "model2", "link": 12}]},
            {"id": 9, "type": "CheckpointSave", "widgets_values": ["mix"],
             "inputs": [{"name": "model", "link": 13}, {"name": "clip", "link": 14}, {"name": "vae", "link": 15}]},
        ],
        "links": [[11, 1, 0, 3, 0, "MODEL"], [12, 2, 0, 3, 1, "MODEL"], [13, 3, 0, 9, 0, "MODEL"],
                  [14, 1, 1, 9, 1, "CLIP"], [15, 2, 2, 9, 2, "VAE"]],
    }  # fmt: skip
    merge = node("ModelMergeSimple", model1=["1", 0], model2=["2", 0], ratio=0.7)
    assert read(workflow) == read(graph(**{"3": merge}))


def test_what_has_no_like_is_said():
    sampling = node("ModelSamplingDiscrete", model=["1", 0], sampling="v_prediction")
    found = read(graph(**{"3": sampling}))
    assert found.lost == ("node `ModelSamplingDiscrete`, which is left out",)
    assert found.recipe.steps[-1].base == "A"
    with pytest.raises(FormatError, match="node `Odd` has no like here"):
        read(graph(**{"3": node("Odd")}))
    with pytest.raises(FormatError, match="go round"):
        read(graph(**{"3": node("ModelMergeAdd", model1=["3", 0], model2=["1", 0])}))
    with pytest.raises(FormatError, match="saves no model"):
        of_text('{"1": {"class_type": "KSampler", "inputs": {}}}')
    assert (
        of_metadata(
            {"prompt": '{"1": {"class_type": "CheckpointSave", "inputs": 5}}'} | {"prompt": ""}
        )
        is None
    )
    chain = {str(n): node("X", model=[str(n + 1), 0]) for n in range(3, 1000) if n != 9}
    with pytest.raises(FormatError, match="200 nodes"):
        read(graph(**{**chain, "8": node("X", model=["10", 0])}))
