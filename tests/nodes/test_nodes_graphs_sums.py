"""Sums in a real ComfyUI of what is made from the weights, of LoRAs kept whole, and methods into a checkpoint."""

from __future__ import annotations

import pytest
import torch
from comfy_server import GraphError
from commands import lorakit_here
from graphs import FLUX, Graph, distance, lora
from safetensors.torch import load_file, save_file

#: Two ways to the same weights: the last digits of float32.
SAME = 2e-5


@pytest.fixture(scope="module")
def loras(comfy):
    """The folder, with a DoRA and a LoRA that says it distils a model."""
    folder = comfy.base / "models" / "loras"
    dora = lora(FLUX, 3, 5)
    for key in [key for key in dora if key.endswith(".lora_up.weight") and "blocks" in key]:
        size = torch.full((len(dora[key]), 1), 1.1)
        dora[key.replace("lora_up.weight", "dora_scale")] = size
    save_file(dora, folder / "dora.safetensors")
    save_file(lora(FLUX, 4, 7), folder / "flux-lcm-lora.safetensors")
    return folder


def command(*words):
    run = lorakit_here(*words, "--force")
    assert run.status == 0, run.err


def added(comfy, names, **inputs):
    """The node's sum, as the LoRA that it saves."""
    graph = Graph(comfy)
    both = graph.add("LorakitAddLoras", loras=[graph.lora(name) for name in names], **inputs)
    prefix = f"loras/sums-{len(list((comfy.base / 'output').rglob('sums-*')))}"
    graph.add("LorakitSaveLora", lora=both, prefix=prefix)
    graph.run()
    return load_file(comfy.base / "output" / f"{prefix}_00001_.safetensors")


def apart(found, wanted):
    assert found.keys() == wanted.keys()
    worst = 0.0
    for key in [key for key in wanted if key.endswith("up.weight")]:
        down, alpha = key.replace("up", "down"), key.replace("lora_up.weight", "alpha")
        one, other = (
            held[key].float() @ held[down].float() * float(held[alpha]) / len(held[down])
            for held in (found, wanted)
        )
        worst = max(worst, float((one - other).norm() / other.norm()))
    return worst


def test_a_base_makes_what_needs_it(comfy, loras):
    files = (loras / "one.safetensors", f"{loras / 'dora.safetensors'}:0.5")
    base = comfy.base / "models" / "checkpoints" / "flux.safetensors"
    command("add", *files, "--rank", 6, "--base", base, "-o", loras / "by-command.safetensors")
    graph = Graph(comfy)
    names = [graph.lora("one"), graph.lora("dora")]
    asked = {"strengths": "1, 0.5", "rank": 6}
    node = graph.add("LorakitAddLoras", loras=names, base=graph.checkpoint(), **asked)
    report = graph.text(node)
    assert "of several layers: each is made from the weight of the checkpoint" in report
    latent = graph.latent(graph.add("LorakitApplyLora", model=graph.checkpoint(), lora=node))
    other = Graph(comfy)
    theirs = other.add("LorakitApplyLora", model=other.checkpoint(), lora=other.lora("by-command"))
    assert distance(latent, other.latent(theirs)) < 1e-4
    assert distance(latent, other.latent(other.checkpoint())) > 0.05
    bare = Graph(comfy)
    names = [bare.lora("one"), bare.lora("dora")]
    with pytest.raises(GraphError, match="connect its checkpoint to `base`"):
        bare.text(bare.add("LorakitAddLoras", loras=names, **asked))


def test_sockets_are_kept_whole(comfy, loras):
    names = ["one", "two", "flux-lcm-lora"]
    files = [loras / f"{name}.safetensors" for name in names]
    output = loras / "kept.safetensors"
    made = {}
    for kept, words in {
        "": (),
        "none": ("--keep-whole", "none"),
        "lora0, 2": ("--keep-whole", "one", "--keep-whole", "flux-lcm-lora"),
    }.items():
        command("add", *files, "-m", "magnitude,density=0.3", *words, "-o", output)
        asked = {"method": "magnitude", "method.density": 0.3, "keep_whole": kept}
        made[kept] = added(comfy, names, **asked)
        assert apart(made[kept], load_file(output)) < 1e-4
    assert apart(made[""], made["none"]) > 0.01
    with pytest.raises(GraphError, match="`keep_whole` 7: no LoRA is connected there; write lora0"):
        added(comfy, names, method="ties", keep_whole="7")


@pytest.mark.parametrize("method", ["ties", "dare", "sce"])
def test_bake_by_a_method_is_the_command_s(comfy, loras, method):
    base = comfy.base / "models" / "checkpoints" / "flux.safetensors"
    files = (loras / "one.safetensors", f"{loras / 'two.safetensors'}:0.5")
    output = comfy.base / "by-command.safetensors"
    seed = ("--seed", 4) if method == "dare" else ()
    command("bake", base, *files, "-m", f"{method},density=0.4", *seed, "-o", output)
    graph = Graph(comfy)
    asked = {"method": method, "density": 0.4, "seed": 4, "strengths": "1, 0.5"}
    both = [graph.lora("one"), graph.lora("two")]
    prefix = f"checkpoints/{method}"
    node = graph.add(
        "LorakitBakeLora", checkpoint="flux.safetensors", loras=both, prefix=prefix, **asked
    )
    assert "weights merged" in graph.text(node)
    found = load_file(comfy.base / "output" / f"{prefix}_00001_.safetensors")
    wanted = load_file(output)
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)
    plain = load_file(base)
    assert any(not torch.equal(found[key], plain[key]) for key in plain)
