"""Merge Checkpoints in a real ComfyUI: what is written is what a loop in float64 gives, and loads as that."""

from __future__ import annotations

import json
import math

import pytest
import torch
from comfy_server import GraphError
from graphs import FLUX, Graph, distance, tuned, weights
from keys.checkpoints import prefixed
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lorakit.lora_ops import DictSource, parse_document
from lorakit.lora_ops import merge as core_merge

A, B, C = "flux.safetensors", "flux-tuned.safetensors", "flux-other.safetensors"
SAME = 2e-5


@pytest.fixture(scope="module")
def three(comfy):
    """The server with a third model, and all of them in float64."""
    folder = comfy.base / "models" / "checkpoints"
    started = weights(prefixed("model.diffusion_model.", FLUX))
    save_file(tuned(started, seed=5), folder / C)
    held = {name: load_file(folder / name) for name in (A, B, C)}
    wide = {n: {k: t.double() for k, t in one.items()} for n, one in held.items()}
    return comfy, wide


def merge(graph, b=0.3, **inputs):
    pair = {"model_A": A, "model_B": B, "share_of_B": b}
    return graph.add("LorakitMergeCheckpoints", **{**pair, "prefix": "checkpoints/m", **inputs})


def made(server, b=0.3, **inputs):
    """The merged file."""
    graph = Graph(server)
    shown = graph.add("PreviewAny", source=merge(graph, b, **inputs)[1])
    return graph.run()[shown]["text"][0]


def close(tensor, wanted):
    """Within a rounding to float32, of tensors that may be all zeros."""
    return torch.allclose(tensor.double(), wanted, rtol=1e-5, atol=1e-6)


def sums(a, b, c, s):
    return a + s * (b - a) + 0.2 * (c - a)


def arc(a, b, _, s):
    angle = torch.acos((a * b).sum() / (a.norm() * b.norm()))
    if not a.norm() * b.norm() or math.isnan(angle) or angle.sin() <= 1e-8:
        return (1 - s) * a + s * b
    return ((1 - s) * angle).sin() / angle.sin() * a + (s * angle).sin() / angle.sin() * b


def trained(a, b, c, s):
    """supermerger's: B - C by how far B is from A, of both ways together."""
    near, far = (b - c).abs(), (b - a).abs()
    return a + 1.8 * s * (b - c) * torch.where(near + far > 0, far / (near + far), 0)


def elected(a, b, c, s, density=0.4):
    """Of each change the largest, then the mean of those with the sign of the sum."""
    changes = []
    for change, weight in ((b - a, s), (c - a, 0.2)):
        kept = max(1, int(density * change.numel()))
        least = change.abs().flatten().sort(descending=True).values[kept - 1]
        changes.append(torch.where(change.abs() >= least, change, 0) * weight)
    both = torch.stack(changes)
    agreeing = (both.sign() == both.sum(0).sign()) & (both != 0)
    return a + (both * agreeing).sum(0) / agreeing.sum(0).clamp(min=1)


WAYS = {
    "two": ({}, lambda a, b, _, s: a + s * (b - a)),
    "three": ({"model_C": C, "share_of_C": 0.2}, sums),
    "add_difference": ({"model_C": C}, lambda a, b, c, s: a + s * (b - c)),
    "train_difference": ({"model_C": C}, trained),
    "sum_twice": (
        {"model_C": C, "share_of_C": 0.2},
        lambda a, b, c, s: 0.8 * (a + s * (b - a)) + 0.2 * c,
    ),
    "slerp": ({}, arc),
    "ties": ({"model_C": C, "share_of_C": 0.2, "method.density": 0.4}, elected),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_merged_file_is_the_loop_in_float64(three, way):
    comfy, (a, b, c) = three[0], three[1].values()
    inputs, formula = WAYS[way]
    method = "weighted_sum" if way in ("two", "three") else way
    held = load_file(made(comfy, 0.3, method=method, **inputs))
    assert held.keys() == a.keys()
    for key, tensor in held.items():
        wanted = formula(a[key], b[key], c[key], 0.3)
        assert close(tensor, wanted), key
        assert tensor.ndim < 2 or not close(tensor, a[key]), key


@pytest.mark.parametrize("method", ["cosine_a", "cosine_b", "slerp"])
def test_a_merged_file_is_what_the_core_gives(three, method):
    comfy, (a, b, _) = three[0], three[1].values()
    held = load_file(made(comfy, 0.3, method=method))
    terms = [{"of": "B", "weight": 0.3}]
    step = {"base": "A", "method": method, "terms": terms}
    if method == "slerp":
        step = {"method": "nuslerp", "terms": [{"of": "A", "weight": 0.7}, *terms]}
    files = {"A": {"name": A}, "B": {"name": B}}
    recipe = parse_document(json.dumps({"lorakit": 1, "files": files, "step": [step]}))
    both = [DictSource({key: one.float() for key, one in model.items()}) for model in (a, b)]
    wanted, _ = core_merge(recipe, dict(zip("AB", both, strict=True)))
    assert all(torch.equal(held[key], wanted[key]) for key in wanted)


def test_dare_is_one_merge_a_seed_and_right_on_average(three):
    comfy, (a, b, _) = three[0], three[1].values()
    ways = {"method": "dare", "method.density": 0.5}
    one, again, other = (
        load_file(made(comfy, 1.0, **ways, **{"method.seed": seed})) for seed in (7, 7, 8)
    )
    key = "model.diffusion_model.img_in.weight"
    assert torch.equal(one[key], again[key])
    assert not torch.equal(one[key], other[key])
    change, whole = (one[key] - a[key]).double(), (b[key] - a[key])
    there = change.abs() > 1e-9
    assert 0.4 < float(there.double().mean()) < 0.6
    assert distance(change[there], 2 * whole[there]) < 1e-5, "what stays makes up for the rest"


def test_model_stock_is_the_base_where_the_others_share_nothing(three):
    comfy, (a, b, c) = three[0], three[1].values()
    inputs = {"model_C": C, "share_of_B": 1.0, "share_of_C": 1.0, "method": "model_stock"}
    held = load_file(made(comfy, 1.0, **inputs))
    key = "model.diffusion_model.img_in.weight"
    cosine = torch.nn.functional.cosine_similarity(
        (b[key] - a[key]).flatten(), (c[key] - a[key]).flatten(), dim=0
    )
    share = 2 * cosine / (1 + cosine)
    wanted = a[key] + share * ((b[key] + c[key]) / 2 - a[key])
    assert distance(held[key].double() - a[key], wanted - a[key]) < 1e-4


@pytest.mark.parametrize(
    "rules", [{"blocks": "D00=1,S00=0.5,IN=0,OUT=0"}, {"where": "mlp=0.25\ntxt=0"}]
)
def test_shares_by_block_and_by_name(three, rules):
    """A factor times the share: what a rule leaves at 0 is A's, bit for bit."""
    comfy, (a, b, _) = three[0], three[1].values()
    held = load_file(made(comfy, 0.4, **rules))
    factors = set()
    for key, tensor in held.items():
        name = key.removeprefix("model.diffusion_model.")
        if "blocks" in rules:
            factor = {"double": 1.0, "single": 0.5}.get(name.split("_")[0], 0.0)
        else:
            factor = 0.0 if "txt" in name else 0.25 if "mlp" in name else 1.0
        wanted = a[key] + 0.4 * factor * (b[key] - a[key])
        assert close(tensor, wanted), key
        factors.add(factor)
    assert len(factors) == 3


def test_the_name_goes_into_a_loader_and_samples_as_the_merge(three):
    comfy, (a, b, _) = three[0], three[1].values()
    graph = Graph(comfy)
    loader = graph.add("CheckpointLoaderSimple", ckpt_name=merge(graph, 0.6)[0])
    latent = graph.latent(loader)
    half = {key: (a[key] + 0.6 * (b[key] - a[key])).float() for key in a}
    save_file(half, comfy.base / "models" / "checkpoints" / "by-hand.safetensors")
    by_hand = Graph(comfy)
    assert distance(latent, by_hand.latent(by_hand.checkpoint("by-hand"))) < SAME
    core = Graph(comfy)
    mixed = core.add(
        "ModelMergeSimple",
        model1=core.checkpoint(),
        model2=core.checkpoint("flux-tuned"),
        ratio=0.4,
    )
    assert distance(latent, core.latent(mixed)) < 1e-2, "core's ratio is the share of A"


def test_a_diffusion_model_alone_goes_into_its_loader(three):
    comfy, (a, b, _) = three[0], three[1].values()
    folder = comfy.base / "models" / "diffusion_models"
    for name, one in (("alone-a", a), ("alone-b", b)):
        bare = {k.removeprefix("model.diffusion_model."): t.float() for k, t in one.items()}
        save_file(bare, folder / f"{name}.safetensors")
    graph = Graph(comfy)
    names = {"model_A": "alone-a.safetensors", "model_B": "alone-b.safetensors"}
    merged = merge(graph, 0.6, **names, prefix="diffusion_models/within/m")
    loader = graph.add("UNETLoader", unet_name=merged[0], weight_dtype="default")
    latent = graph.latent(loader)
    whole = Graph(comfy)
    wanted = whole.latent(whole.add("CheckpointLoaderSimple", ckpt_name=merge(whole, 0.6)[0]))
    assert distance(latent, wanted) < SAME


def test_what_is_written_says_how(three):
    comfy, _ = three
    path = made(comfy, 0.3, dtype="bf16", v_pred_flags="on")
    held = load_file(path)
    assert {t.dtype for key, t in held.items() if "diffusion" in key} == {torch.bfloat16}
    assert {"v_pred", "ztsnr"} < held.keys()
    with safe_open(path, "pt") as file:
        about = file.metadata()
    recipe = json.loads(about["lorakit.recipe"])
    assert {key: one["name"] for key, one in recipe["files"].items()} == {"A": A, "B": B}
    assert all(len(one["sha256"]) == 64 for one in recipe["files"].values())
    assert recipe["step"][0]["terms"] == [{"of": "B", "weight": 0.3}]
    assert about["modelspec.predict_key"] == "v"
    assert str(comfy.base) not in json.dumps(about), "a path is nobody else's business"


def test_the_report_says_what_was_done(three):
    graph = Graph(three[0])
    head, sizes, blocks, *_ = graph.text(merge(graph, 0.3)).splitlines()
    assert head.startswith("done · m_0")
    assert "52 weights merged, 0 tensors copied" in head
    assert sizes.startswith("change as a share of flux.safetensors: unet ")
    assert blocks.startswith("most in ")


def test_what_changes_nothing_is_a_warning(three):
    graph = Graph(three[0])
    told = graph.text(merge(graph, 0.5, model_B=A))
    assert told.startswith("warning · ")
    assert "\n! changes nothing: " in told


def test_rounding_by_chance_keeps_a_change_that_the_nearest_number_loses(three):
    comfy, (a, _, _) = three[0], three[1].values()
    folder = comfy.base / "models" / "checkpoints"
    start = {key: one.bfloat16() for key, one in a.items()}
    save_file(start, folder / "coarse.safetensors")
    save_file({key: one.float() * 1.01 for key, one in start.items()}, folder / "near.safetensors")
    pair = {"model_A": "coarse.safetensors", "model_B": "near.safetensors"}
    key = "model.diffusion_model.img_in.weight"
    base = start[key].double()
    gains = {}
    for rounding in ("nearest", "stochastic"):
        change = load_file(made(comfy, 0.1, **pair, rounding=rounding))[key].double() - base
        gains[rounding] = float((change * base).sum() / (0.001 * base * base).sum())
    assert gains["nearest"] == 0
    assert abs(gains["stochastic"] - 1) < 0.2
    told = Graph(comfy)
    assert "or round by chance (`rounding` stochastic)" in told.text(merge(told, 0.1, **pair))


@pytest.mark.parametrize(
    ("inputs", "told"),
    [
        ({"method": "add_difference"}, "`add_difference` takes three models; choose `model_C`"),
        ({"method": "slerp", "model_C": C}, "`slerp` takes two models; set `model_C` to none"),
        ({"method": "slerp", "where": "te=0"}, "`slerp` has one share for all weights; leave"),
        ({"method": "other"}, "no such method; use one of weighted_sum, add_difference"),
        ({"model_B": "sd1.safetensors"}, "nothing to merge: no weight of "),
        ({"blocks": "FOO=1"}, "no block `FOO`"),
        ({"blocks": "1,2,3"}, "no list has 3 numbers"),
        ({"where": "attn"}, "`attn` has no strength; write `PATTERN=S`, as in `te=0`"),
        ({"share_of_B": 0.0}, "nothing to merge"),
        ({"prefix": "../m"}, "leads out of the output folder"),
    ],
)
def test_what_cannot_be_merged_is_said(three, inputs, told):
    comfy, _ = three
    before = set((comfy.base / "output").rglob("*"))
    graph = Graph(comfy)
    with pytest.raises(GraphError, match=r"^LorakitMergeCheckpoints: ") as failed:
        graph.text(merge(graph, **inputs))
    assert told in str(failed.value)
    assert "argument" not in str(failed.value)
    assert {one for one in (comfy.base / "output").rglob("*") if one.is_file()} <= before


def test_numbers_that_are_none_are_refused_or_left_as_they_are_in_a(three):
    comfy, (a, b, _) = three[0], three[1].values()
    key = "model.diffusion_model.img_in.weight"
    broken = {k: t.float() for k, t in b.items()} | {key: torch.full(b[key].shape, float("nan"))}
    save_file(broken, comfy.base / "models" / "checkpoints" / "nan.safetensors")
    graph = Graph(comfy)
    with pytest.raises(
        GraphError, match=r"NaN.*or turn `allow_nonfinite` on to keep those of the base there"
    ):
        graph.text(merge(graph, model_B="nan.safetensors"))
    held = load_file(made(comfy, 0.5, model_B="nan.safetensors", allow_nonfinite=True))
    assert torch.equal(held[key].double(), a[key])
    other = key.replace("img_in", "txt_in")
    assert close(held[other], (a[other] + b[other]) / 2)


def test_block_weights_go_in(three):
    """The sliders' text by a link is the text itself."""
    comfy, (a, b, _) = three[0], three[1].values()
    graph = Graph(comfy)
    sliders = graph.add("LorakitBlockWeights", model="other", **{"model.depth_0": 0.25})
    text = graph.add("PreviewAny", source=sliders[0])
    path = graph.add("PreviewAny", source=merge(graph, 0.4, blocks=sliders[0])[1])
    ran = graph.run()
    assert ran[text]["text"][0].startswith("depth=0.25,")
    held = load_file(ran[path]["text"][0])
    key = "model.diffusion_model.double_blocks.0.img_mlp.0.weight"
    assert close(held[key], a[key] + 0.1 * (b[key] - a[key]))
