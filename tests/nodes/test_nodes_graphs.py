"""Graphs in a real ComfyUI, images and latents out: our nodes against the host's own, and files."""

from __future__ import annotations

import pytest
import torch
from commands import lorakit_here
from graphs import FLUX, UNET, Graph, distance, lora
from safetensors.torch import save_file

from lorakit.lora_ops.operations.methods import METHODS

#: Two ways to the same weights: the last digits of float32.
SAME = 2e-5


def core(graph: Graph, *loras: tuple[str, float]):
    """The host's own loaders, one after another."""
    model = graph.checkpoint()
    for name, strength in loras:
        file = f"{name}.safetensors"
        model = graph.add(
            "LoraLoaderModelOnly", model=model, lora_name=file, strength_model=strength
        )
    return graph.latent(model)


def ours(graph: Graph, lora, **inputs):
    """Our Apply on the same checkpoint."""
    return graph.latent(
        graph.add("LorakitApplyLora", model=graph.checkpoint(), lora=lora, **inputs)
    )


def write(server, name, tensors):
    save_file(tensors, server.base / "models" / "loras" / f"{name}.safetensors")


@pytest.fixture(scope="module")
def plain(comfy):
    """What the checkpoint makes without any LoRA."""
    graph = Graph(comfy)
    return graph.latent(graph.checkpoint())


@pytest.mark.parametrize("strength", [1.0, 0.3, -0.5])
def test_apply_is_what_the_hosts_loader_does(comfy, plain, strength):
    graph = Graph(comfy)
    latent = ours(graph, graph.lora(), strength_model=strength)
    assert distance(latent, core(Graph(comfy), ("one", strength))) < SAME
    assert distance(latent, plain) > 0.05, "a change that can be seen"


def test_apply_at_zero_leaves_the_model(comfy, plain):
    graph = Graph(comfy)
    assert torch.equal(ours(graph, graph.lora(), strength_model=0.0), plain)


def test_applied_twice_is_stacked(comfy):
    graph = Graph(comfy)
    first = graph.add("LorakitApplyLora", model=graph.checkpoint(), lora=graph.lora())
    second = graph.add("LorakitApplyLora", model=first, lora=graph.lora("two"), strength_model=-0.4)
    assert distance(graph.latent(second), core(Graph(comfy), ("one", 1.0), ("two", -0.4))) < SAME


def test_images_come_out_the_same(comfy):
    def image(node, **inputs):
        graph = Graph(comfy)
        if node == "LorakitApplyLora":
            inputs = {"lora": graph.lora()}
        model = graph.add(node, model=graph.checkpoint(), **inputs)
        vae = graph.add("VAELoader", vae_name="taesd.safetensors")
        return graph.tensor(graph.add("VAEDecode", samples=graph.sample(model), vae=vae), "image")

    made = image("LorakitApplyLora")
    assert made.shape == (1, 64, 64, 3)
    assert made.std() > 0.01, "a picture with something on it"
    theirs = image("LoraLoaderModelOnly", lora_name="one.safetensors")
    assert distance(made, theirs) < SAME
    assert distance(made, image("LoraLoaderModelOnly", lora_name="two.safetensors")) > 0.01


def test_a_resized_sum_is_a_stack_of_loaders_at_full_rank(comfy):
    def made(rank):
        graph = Graph(comfy)
        both = [graph.lora("one"), graph.lora("two")]
        added = graph.add("LorakitAddLoras", loras=both, strengths="1, -0.6", method="sum")
        return ours(graph, graph.add("LorakitResizeLora", lora=added, rank=rank))

    stacked = core(Graph(comfy), ("one", 1.0), ("two", -0.6))
    assert distance(made(10), stacked) < SAME
    assert distance(made(3), stacked) > 0.01, "twin: a rank that cannot hold both"


def test_methods_are_what_they_say(comfy):
    def added(method, **inputs):
        graph = Graph(comfy)
        both = [graph.lora("one"), graph.lora("two")]
        return ours(graph, graph.add("LorakitAddLoras", loras=both, method=method, **inputs))

    mean = core(Graph(comfy), ("one", 0.25), ("two", 0.75))
    assert distance(added("average", strengths="1, 3"), mean) < SAME
    assert distance(added("average", strengths="1, 2"), mean) > 0.01
    first = core(Graph(comfy), ("one", 1.0))
    assert distance(added("slerp", **{"method.t": 0.0}), first) < 1e-4
    assert distance(added("slerp", **{"method.t": 0.5}), first) > 0.01


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_the_command_lines_by_its_defaults(comfy, plain, method):
    folder = comfy.base / "models" / "loras"
    pair = folder / "one.safetensors", f"{folder / 'two.safetensors'}:0.5"
    made = lorakit_here(
        *("add", *pair, "--rank", 5, "--method", method),
        *("--force", "-o", folder / "command.safetensors"),
    )
    assert made.status == 0, made.err
    graph = Graph(comfy)
    both = [graph.lora("one"), graph.lora("two")]
    added = graph.add("LorakitAddLoras", loras=both, strengths="1, .5", method=method, rank=5)
    latent = ours(graph, added)
    assert distance(latent, core(Graph(comfy), ("command", 1.0))) < SAME
    assert distance(latent, plain) > 0.001


@pytest.mark.parametrize("scaled", [False, True], ids=["Apply", "Scale"])
def test_block_and_name_rules_do_what_a_file_without_them_does(comfy, scaled):
    changed = lora(FLUX)
    for key in list(changed):
        if "single_blocks.0." in key:
            del changed[key]
        elif "mlp" in key and key.endswith(".alpha"):
            changed[key] = changed[key] * 0.5
    write(comfy, "by-hand", changed)
    wanted = core(Graph(comfy), ("by-hand", 0.8))

    rules = {"blocks": "S00=0", "where": "mlp=0.5"}
    graph = Graph(comfy)
    if scaled:
        made = graph.add("LorakitScaleLora", lora=graph.lora(), strength=0.8, **rules)
        latent = ours(graph, made)
    else:
        latent = ours(graph, graph.lora(), strength_model=0.8, **rules)
    assert distance(latent, wanted) < SAME
    assert distance(latent, core(Graph(comfy), ("one", 0.8))) > 0.01, "twin: without rules"


def test_a_unets_blocks_by_label(comfy):
    held = lora(UNET)
    write(comfy, "unet", held)
    write(comfy, "unet-in", {key: one for key, one in held.items() if "output_blocks" not in key})

    def latent(name, **inputs):
        graph = Graph(comfy)
        model = graph.add("TestLoadCheckpoint", ckpt_name="sd1.safetensors")
        model = graph.add("LorakitApplyLora", model=model, lora=graph.lora(name), **inputs)
        return graph.latent(model, "sd1")

    assert distance(latent("unet", blocks="OUT=0"), latent("unet-in")) < SAME
    assert distance(latent("unet"), latent("unet-in")) > 0.01


def test_text_encoders_change_where_clip_is_connected(comfy):
    module = "lora_te1_text_model_encoder_layers_0_self_attn_q_proj"
    generator = torch.Generator().manual_seed(3)
    up, down = (torch.randn(*shape, generator=generator) for shape in ((32, 4), (4, 32)))
    encoder = {f"{module}.lora_up.weight": up, f"{module}.lora_down.weight": down}
    write(comfy, "with-te", lora(UNET) | encoder)

    def encoded(kind, **inputs):
        graph = Graph(comfy)
        loaded = graph.add("TestLoadCheckpoint", ckpt_name="sd1.safetensors")
        if kind == "LorakitApplyLora":
            inputs["lora"] = graph.lora("with-te")
        made = graph.add(kind, model=loaded, clip=loaded[1], **inputs)
        text = graph.add("CLIPTextEncode", clip=made[1], text="a red fox")
        return graph.tensor(text, "conditioning")

    wanted = encoded("LoraLoader", lora_name="with-te.safetensors", strength_clip=0.7)
    assert distance(encoded("LorakitApplyLora", strength_clip=0.7), wanted) < SAME
    assert distance(encoded("LorakitApplyLora", strength_clip=0.0), wanted) > 0.001

    graph = Graph(comfy)
    loaded = graph.add("TestLoadCheckpoint", ckpt_name="sd1.safetensors")
    told = graph.text(graph.add("LorakitApplyLora", model=loaded, lora=graph.lora("with-te")))
    assert (
        f"! 1 layer not applied: for a text encoder, and no CLIP is connected: `{module}`" in told
    )


def test_layers_that_are_left_out_are_on_the_node_and_not_in_the_log(comfy):
    module = "lora_unet_of_another_model"
    other = {f"{module}.lora_up.weight": torch.ones(8, 2)}
    write(comfy, "with-more", lora(FLUX) | other | {f"{module}.lora_down.weight": torch.ones(2, 8)})

    def logged(kind, **inputs):
        graph, before = Graph(comfy), len(comfy.log())
        if kind == "LorakitApplyLora":
            inputs["lora"] = graph.lora("with-more")
        node = graph.add(kind, model=graph.checkpoint(), **inputs)
        if kind == "LorakitApplyLora":
            told = graph.text(node)
            assert "with-more.safetensors: 23 of 24 layers applied" in told
            assert "! 1 layer not applied: " in told
            assert f"`{module}`" in told
        graph.latent(node)
        return comfy.log()[before:]

    said = "lora key not loaded"
    assert said not in logged("LorakitApplyLora")
    assert said in logged("LoraLoaderModelOnly", lora_name="with-more.safetensors")
