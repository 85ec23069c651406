"""Extraction in a real ComfyUI: what is applied to the base afterwards makes what the tuned makes."""

from __future__ import annotations

import pytest
import torch
from comfy_server import GraphError
from graphs import FLUX, Graph, distance, scaled_fp8, tuned, weights
from safetensors.torch import save_file

#: The factors' storage: fp16 by default.
ROUNDED = 2e-3
EXACT = 2e-5
ARCHITECTURES = {"flux": "CheckpointLoaderSimple", "sd1": "TestLoadCheckpoint"}


def latent_of(server, name, like="flux"):
    graph = Graph(server)
    model = graph.add(ARCHITECTURES[like], ckpt_name=f"{name}.safetensors")
    return graph.latent(model, like)


def applied(graph, extracted, like="flux"):
    """The extracted LoRA on the base, sampled."""
    base = graph.add(ARCHITECTURES[like], ckpt_name=f"{like}.safetensors")
    return graph.latent(graph.add("LorakitApplyLora", model=base, lora=extracted), like)


def of_files(graph, like="flux", **inputs):
    pair = {"tuned_name": f"{like}-tuned.safetensors", "base_name": f"{like}.safetensors"}
    return graph.add("LorakitExtractLoraFromFiles", **{**pair, "rank": 4, **inputs})


def of_models(graph, made, base, **inputs):
    return graph.add("LorakitExtractLora", tuned=made, base=base, **{"rank": 4, **inputs})


@pytest.mark.parametrize("like", ARCHITECTURES)
@pytest.mark.parametrize("name_format", ["comfy", "kohya"])
def test_from_files_leads_to_the_tuned_model(comfy, like, name_format):
    wanted = latent_of(comfy, f"{like}-tuned", like)
    graph = Graph(comfy)
    extracted = of_files(graph, like, format=name_format)
    assert distance(applied(graph, extracted, like), wanted) < ROUNDED
    assert distance(latent_of(comfy, like, like), wanted) > 0.05


def test_a_rank_too_small_does_not(comfy):
    """Twin: the tests here see a change of rank 4 that is extracted at 3."""
    graph = Graph(comfy)
    latent = applied(graph, of_files(graph, rank=3))
    assert distance(latent, latent_of(comfy, "flux-tuned")) > 10 * ROUNDED


def test_the_rule_goes_before_the_rank(comfy):
    graph = Graph(comfy)
    assert "rank 4," in graph.text(of_files(graph, rank=32, rule="energy=0.999999"))
    assert "rank 2," in graph.text(of_files(graph, rank=32, rule="2"))


@pytest.mark.parametrize("files", [True, False])
def test_a_budget_is_shared_out_over_all_layers(comfy, files):
    """The change is of rank 4 in every layer: a mean of 2 loses much, an error of 0.1 % none of it."""

    def made(rule):
        graph = Graph(comfy)
        if files:
            return graph, of_files(graph, rule=rule)
        pair = graph.checkpoint("flux-tuned"), graph.checkpoint("flux")
        return graph, of_models(graph, *pair, rule=rule)

    wanted = latent_of(comfy, "flux-tuned")
    assert distance(applied(*made("total_error=0.001")), wanted) < ROUNDED
    assert distance(applied(*made("mean=2")), wanted) > 10 * ROUNDED
    graph, extracted = made("total_error=0.001")
    assert "rank 4," in graph.text(extracted)
    graph, extracted = made("size=1kB")
    with pytest.raises(GraphError, match="is too small: the smallest single rank takes"):
        graph.text(extracted)


@pytest.mark.parametrize("exact", [False, True])
def test_from_two_loaded_models(comfy, exact):
    graph = Graph(comfy)
    pair = graph.checkpoint("flux-tuned"), graph.checkpoint("flux")
    extracted = of_models(graph, *pair, dtype="fp32", exact=exact)
    assert distance(applied(graph, extracted), latent_of(comfy, "flux-tuned")) < EXACT


def test_from_two_models_with_their_text_encoders(comfy):
    def encoded(graph, clip):
        text = graph.add("CLIPTextEncode", clip=clip, text="a red fox")
        return graph.tensor(text, "conditioning")

    graph = Graph(comfy)
    base, made = (
        graph.add("TestLoadCheckpoint", ckpt_name=f"{name}.safetensors")
        for name in ("sd1", "sd1-tuned")
    )
    extracted = of_models(graph, made, base, tuned_clip=made[1], base_clip=base[1], dtype="fp32")
    both = graph.add("LorakitApplyLora", model=base, clip=base[1], lora=extracted)
    # The host holds text encoders in fp16.
    assert distance(encoded(graph, both[1]), encoded(graph, made[1])) < ROUNDED
    assert distance(encoded(graph, base[1]), encoded(graph, made[1])) > 0.01
    assert distance(graph.latent(both, "sd1"), latent_of(comfy, "sd1-tuned", "sd1")) < EXACT


def test_from_a_model_with_a_lora_on_it(comfy):
    """Which is what a LoRA that was tried in the graph is turned into one file by."""
    graph = Graph(comfy)
    base = graph.checkpoint()
    patched = graph.add(
        "LoraLoaderModelOnly", model=base, lora_name="one.safetensors", strength_model=0.7
    )
    wanted = graph.latent(patched)
    extracted = of_models(graph, patched, base, dtype="fp32")
    assert distance(applied(graph, extracted), wanted) < EXACT
    assert distance(wanted, latent_of(comfy, "flux")) > 0.01


@pytest.mark.parametrize("stored", ["plain", "scaled", "scaled, with a LoRA"])
def test_from_a_quantised_model(comfy, stored):
    """Tuned is what it computes with: also what the rounding did; full rank holds it all."""
    folder = comfy.base / "models" / "diffusion_models"
    base = weights(FLUX)
    save_file(base, folder / "started.safetensors")
    made = tuned(base, seed=7)
    save_file(made if stored == "plain" else scaled_fp8(made), folder / "low.safetensors")

    graph = Graph(comfy)
    dtype = "fp8_e4m3fn" if stored == "plain" else "default"
    low = graph.add("UNETLoader", unet_name="low.safetensors", weight_dtype=dtype)
    start = graph.add("UNETLoader", unet_name="started.safetensors", weight_dtype="default")
    if stored.endswith("LoRA"):
        low = graph.add("LorakitApplyLora", model=low, lora=graph.lora())
    extracted = of_models(graph, low, start, rank=128, dtype="fp32")
    wanted = graph.latent(low)
    ours = graph.latent(graph.add("LorakitApplyLora", model=start, lora=extracted))
    # With a LoRA on it the host rounds the sum to fp8 again, which the extraction is spared.
    near = 0.05 if stored.endswith("LoRA") else 1e-3
    assert distance(ours, wanted) < near
    assert distance(graph.latent(start), wanted) > 0.1


def test_from_a_quantised_file(comfy):
    """As from the model that the host makes of it."""
    folder = comfy.base / "models" / "diffusion_models"
    base = weights(FLUX)
    save_file(base, folder / "begun.safetensors")
    save_file(scaled_fp8(tuned(base, seed=7)), folder / "stored.safetensors")
    graph = Graph(comfy)
    stored = graph.add("UNETLoader", unet_name="stored.safetensors", weight_dtype="default")
    start = graph.add("UNETLoader", unet_name="begun.safetensors", weight_dtype="default")
    names = {"tuned_name": "stored.safetensors", "base_name": "begun.safetensors"}
    made = {"rank": 128, "dtype": "fp32", **names}
    extracted = graph.add("LorakitExtractLoraFromFiles", **made)
    wanted = graph.latent(stored)
    ours = graph.latent(graph.add("LorakitApplyLora", model=start, lora=extracted))
    assert distance(ours, wanted) < 1e-3
    assert distance(graph.latent(start), wanted) > 0.1


def test_a_quantised_file_gets_its_own_rule_without_a_rank(comfy):
    """Rank 0 is what stands above the rounding; a rank that is given stays, and says what it is worth."""
    folder = comfy.base / "models" / "diffusion_models"
    base = weights(FLUX)
    for name, state in (("first", base), ("second", tuned(base, seed=7))):
        save_file(scaled_fp8(state), folder / f"{name}.safetensors")
    graph = Graph(comfy)
    names = {"tuned_name": "second.safetensors", "base_name": "first.safetensors"}
    made, ruled, fixed, plain = (
        graph.add("LorakitExtractLoraFromFiles", **names, **how)
        for how in ({"rank": 0}, {"rank": 32, "rule": "noise,max=128"}, {"rank": 32}, {"rank": 4})
    )
    told = graph.text(made)
    assert "are stored in 8 bits or fewer (fp8 e4m3, scaled)" in told
    assert (
        "of the squared difference is rounding of storage; without it, against the true change"
        in told
    )
    assert told.splitlines()[0].split(": ")[1] == graph.text(ruled).splitlines()[0].split(": ")[1]
    assert "lie below the floor of storage rounding" in graph.text(fixed)
    start = graph.add("UNETLoader", unet_name="first.safetensors", weight_dtype="default")
    wanted = graph.latent(
        graph.add("UNETLoader", unet_name="second.safetensors", weight_dtype="default")
    )
    near = graph.latent(graph.add("LorakitApplyLora", model=start, lora=made))
    assert distance(near, wanted) < 0.5 * distance(graph.latent(start), wanted)
    assert "rank 4," in graph.text(plain)


def test_a_loaded_model_does_not_tell_its_storage(comfy):
    graph = Graph(comfy)
    base = graph.checkpoint()
    with pytest.raises(GraphError, match="`noise` asks how two checkpoints are stored"):
        graph.text(of_models(graph, base, base, rule="noise"))


def test_full_differences_bring_norms_and_biases(comfy):
    folder = comfy.base / "models" / "checkpoints"
    base = weights(FLUX)
    made = tuned(base, seed=8)
    for key, one in made.items():
        if one.ndim == 1:
            made[key] = one + 0.1 * torch.randn(one.shape)
    prefix = "model.diffusion_model."
    save_file({prefix + key: one for key, one in made.items()}, folder / "biased.safetensors")
    graph = Graph(comfy)
    wanted = latent_of(comfy, "biased")
    pair = {"tuned_name": "biased.safetensors", "dtype": "fp32"}
    whole = of_files(graph, **pair, full_differences=True)
    assert distance(applied(graph, whole), wanted) < EXACT
    part = of_files(graph, **pair)
    assert distance(applied(graph, part), wanted) > 0.01
    assert "! 23 layers left out (bias)" in graph.text(part)


@pytest.mark.parametrize(
    ("inputs", "told"),
    [
        ({"tuned_name": "flux.safetensors"}, "are one file: no layer differs"),
        ({"tuned_name": "sd1.safetensors"}, "only 0 of 50 weights match between"),
        ({"rule": "energy=2"}, "`energy=2`: give a share between 0 and 1"),
        ({"full_differences": True, "format": "kohya"}, "has no place for full differences"),
    ],
)
def test_what_cannot_be_extracted_is_said(comfy, inputs, told):
    graph = Graph(comfy)
    with pytest.raises(GraphError, match=r"^LorakitExtractLoraFromFiles: ") as failed:
        graph.text(of_files(graph, **inputs))
    assert told in str(failed.value)


def test_one_text_encoder_alone_is_refused(comfy):
    graph = Graph(comfy)
    base = graph.add("TestLoadCheckpoint", ckpt_name="sd1.safetensors")
    made = graph.add("TestLoadCheckpoint", ckpt_name="sd1-tuned.safetensors")
    extracted = of_models(graph, made, base, base_clip=base[1])
    with pytest.raises(GraphError, match="`tuned_clip` is not connected: text encoders need both"):
        graph.text(extracted)


def test_two_models_that_are_one_are_refused(comfy):
    graph = Graph(comfy)
    extracted = of_models(graph, graph.checkpoint(), graph.checkpoint())
    with pytest.raises(GraphError, match="no layer differs between the base model and the tuned"):
        graph.text(extracted)
