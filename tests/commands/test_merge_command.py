"""`lorakit merge`: what is asked in a line, by shares, by options; what it writes and says."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from baking import is_rounded_once
from checkpoints import SD1, Tensors, grid, trained
from commands import Run, contents, lorakit_here
from safetensors.torch import load_file, save_file

A = grid(SD1, torch.float16)
B, C = trained(A, seed=1), trained(A, seed=2)
MODELS = {"a": A, "b": B, "c": C}
Q = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight"
CONV = "model.diffusion_model.input_blocks.0.0.weight"
TE = "cond_stage_model.transformer.text_model.encoder.layers.0.mlp.fc1.weight"
VAE = "first_stage_model.decoder.conv_in.weight"
MERGED = [key for key in SD1 if not key.startswith(("first_stage_model", "betas"))]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three checkpoints in the working folder."""
    monkeypatch.chdir(tmp_path)
    for name, tensors in MODELS.items():
        save_file(tensors, f"{name}.safetensors", {"modelspec.title": name})
    return tmp_path


def merged(*words: object, output: str = "m.safetensors") -> Tensors:
    run = lorakit_here("merge", *words, "-o", output)
    assert (run.status, run.err) == (0, "")
    return load_file(output)


def is_sum(found: Tensors, weights: dict[str, float], keys: list[str]) -> bool:
    """Whether tensors are the sum of the models at these weights, rounded once."""
    return all(
        is_rounded_once(found[key], sum(w * MODELS[n][key].double() for n, w in weights.items()))
        for key in keys
    )


def same(found: Tensors, model: Tensors, keys: list[str]) -> bool:
    return all(torch.equal(found[key], model[key]) for key in keys)


OTHERS = [key for key in SD1 if key not in MERGED]


@pytest.mark.parametrize(
    ("words", "weights"),
    [
        (("a.safetensors:0.7", "b.safetensors:0.3"), {"a": 0.7, "b": 0.3}),
        (("a.safetensors", "b.safetensors", "c.safetensors:2"), {"a": 0.25, "b": 0.25, "c": 0.5}),
        (("A:3", "B:1", "A=a.safetensors", "B=b.safetensors"), {"a": 0.75, "b": 0.25}),
        (
            ("A + 0.35*(B - C)", "A=a.safetensors", "B=b.safetensors", "C=c.safetensors"),
            {"a": 1, "b": 0.35, "c": -0.35},
        ),
        (
            ("--base", "a.safetensors", "b.safetensors:0.6", "c.safetensors:-0.2"),
            {"a": 0.6, "b": 0.6, "c": -0.2},
        ),
        (
            ("--base", "a.safetensors", "b.safetensors:0.3", "-m", "weighted_sum"),
            {"a": 0.7, "b": 0.3},
        ),
        (
            (*("A + $x*(B - A)", "A=a.safetensors", "B=b.safetensors"), "--set", "x=0.2"),
            {"a": 0.8, "b": 0.2},
        ),
    ],
)
def test_linear_merges(words: tuple[str, ...], weights: dict[str, float]) -> None:
    found = merged(*words)
    assert found.keys() == A.keys()
    assert is_sum(found, weights, MERGED)
    assert same(found, A, OTHERS)


def test_blocks_and_rules_are_factors_on_the_change() -> None:
    words = ("--base", "a.safetensors", "b.safetensors:0.5", "--where", "te=0")
    found = merged(*words, "--blocks", "IN01=0.5")
    assert same(found, A, [TE])
    assert is_sum(found, {"a": 0.75, "b": 0.25}, [Q])
    assert is_sum(found, {"a": 0.5, "b": 0.5}, [CONV])
    # A term has its own.
    words = ("--base", "a.safetensors", "b.safetensors:0.5:IN01=0", "--blocks", "IN00=0")
    found = merged(*words, output="n.safetensors")
    assert same(found, A, [Q])
    assert is_sum(found, {"a": 0.5, "b": 0.5}, [CONV])


def test_a_vae_is_baked_in() -> None:
    found = merged("a.safetensors", "--component", "vae=b.safetensors")
    vae = [key for key in A if key.startswith("first_stage_model")]
    assert same(found, B, vae)
    assert same(found, A, [key for key in A if key not in vae])
    # From a file of a VAE alone, whose names have no prefix.
    alone = {key.removeprefix("first_stage_model."): C[key] for key in vae}
    save_file(alone, "v.safetensors")
    run = lorakit_here("merge", "a.safetensors", "--component", "vae=v.safetensors", "-o", "n.safetensors")  # fmt: skip
    assert run.status == 0
    assert "note" not in run.out  # that the rest is in A alone is what was asked
    assert same(load_file("n.safetensors"), C, vae)


def test_components_are_merged_or_taken() -> None:
    words = ("a.safetensors", "b.safetensors")
    found = merged(*words, "--component", "unet", "--component", "te=c.safetensors")
    assert is_sum(found, {"a": 0.5, "b": 0.5}, [Q, CONV])
    assert same(found, C, [TE])
    found = merged(*words, "--component", "vae,te", output="n.safetensors")
    assert same(found, A, [Q, CONV])
    assert is_sum(found, {"a": 0.5, "b": 0.5}, [TE, VAE])
    # It is in the recipe: the file gives itself again.
    assert lorakit_here("merge", "n.safetensors", "-o", "again.safetensors").status == 0
    assert Path("again.safetensors").read_bytes() == Path("n.safetensors").read_bytes()


def test_dtypes_by_component() -> None:
    words = ("a.safetensors", "b.safetensors", "--dtype", "bf16", "--dtype", "vae=fp32")
    found = merged(*words)
    assert {found[key].dtype for key in (Q, CONV, TE)} == {torch.bfloat16}
    assert found[VAE].dtype == torch.float32
    assert is_sum(found, {"a": 0.5, "b": 0.5}, [Q, TE])


def test_random_masks_follow_the_seed() -> None:
    words = ("--base", "a.safetensors", "b.safetensors", "-m", "dare,density=0.3")
    first, same_seed, other = (
        merged(*words, "--seed", seed, output=f"{n}.safetensors")
        for n, seed in enumerate((7, 7, 8))
    )
    assert torch.equal(first[Q], same_seed[Q])
    assert not torch.equal(first[Q], other[Q])
    # About 0.3 of the elements have the change, at 1 / 0.3 of its size.
    kept = (first[Q] != A[Q]).double().mean()
    assert 0.2 < kept < 0.4


def test_a_word_is_a_parameter_too() -> None:
    words = ("--base", "a.safetensors", "b.safetensors", "c.safetensors")
    dare = merged(*words, "-m", "dare_ties,density=0.5")
    spelled = merged(*words, "-m", "ties,sparsify=dare,density=0.5", output="n.safetensors")
    assert same(dare, spelled, MERGED)


def test_a_lora_is_a_change() -> None:
    lora = {
        f"{Q.removeprefix('model.').removesuffix('.weight')}.lora_{side}.weight": tensor
        for side, tensor in (("B", torch.ones(48, 2) / 16), ("A", torch.ones(2, 48)))
    }
    save_file(lora, "l.safetensors")
    found = merged("--base", "a.safetensors", "l.safetensors:0.5", "b.safetensors:0.25")
    exact = A[Q].double() + 1 / 16 + 0.25 * (B[Q].double() - A[Q].double())
    assert is_rounded_once(found[Q], exact)
    line = ("A + 0.5*L + 0.25*(B - A)", "A=a.safetensors", "B=b.safetensors", "L=l.safetensors")
    assert same(merged(*line, output="n.safetensors"), found, MERGED)


def test_a_merge_becomes_a_lora() -> None:
    """Of a change of rank 48 at most, all of it is in one of rank 48."""
    words = ("--base", "a.safetensors", "b.safetensors:0.5", "--component", "unet")
    run = lorakit_here("merge", *words, "-r", "48", "-o", "l.safetensors", "--dtype", "fp32")
    assert (run.status, run.err) == (0, "")
    lora, name = load_file("l.safetensors"), Q.removeprefix("model.").removesuffix(".weight")
    up, down = (lora[f"{name}.lora_{side}.weight"].double() for side in "BA")
    assert not any(key.startswith("text_encoders") for key in lora)
    change = 0.5 * (B[Q].double() - A[Q].double())
    scale = float(lora[f"{name}.alpha"]) / len(down)
    torch.testing.assert_close(scale * up @ down, change, rtol=0, atol=1e-5)


@pytest.mark.parametrize("rule", ["mean=3", "size=40kB,max=8", "total_error=0.5"])
def test_ranks_of_a_lora_are_of_a_budget_too(rule: str) -> None:
    """Those that a LoRA of the merged model gets."""
    words = ("--base", "a.safetensors", "b.safetensors:0.5", "c.safetensors:0.5", "--dtype", "fp32")
    merged(*words)
    run = lorakit_here("merge", *words, "-r", rule, "-o", "l.safetensors", "--json", "-")
    assert (run.status, run.err) == (0, "")
    asked = ("a.safetensors", "m.safetensors", "-r", rule, "--dtype", "fp32", "-o", "e.safetensors")
    other = lorakit_here("extract", *asked, "--json", "-")
    mine, its = (
        {one["target"]: one["rank"] for one in json.loads(found.out)["layers"]}
        for found in (run, other)
    )
    if rule.startswith("size"):  # beside the factors there is more of a merge, its recipe
        assert Path("l.safetensors").stat().st_size <= 40_000
    else:
        assert mine == its
    assert len(set(mine.values())) > 1


@pytest.mark.parametrize("name", ["my model (1).safetensors", "x=1.safetensors", "a:b.safetensors"])
def test_odd_names(name: str) -> None:
    Path("b.safetensors").rename(name)
    found = merged("a.safetensors:0.5", f"{name}:0.5")
    assert is_sum(found, {"a": 0.5, "b": 0.5}, [Q])


def test_shards() -> None:
    words = ("merge", "a.safetensors", "b.safetensors", "-o", "m.safetensors.index.json")
    assert lorakit_here(*words, "--shard-size", "200kB").status == 0
    index = json.loads(Path("m.safetensors.index.json").read_text())["weight_map"]
    assert len(set(index.values())) > 1
    parts = {key: load_file(name)[key] for key, name in index.items()}
    assert is_sum(parts, {"a": 0.5, "b": 0.5}, MERGED)


# --- What it says -----------------------------------------------------------------------------------


def said(*words: object) -> Run:
    return lorakit_here("merge", *words, "-o", "m.safetensors")


def test_the_report_has_sizes_by_component_and_block() -> None:
    run = said("--base", "a.safetensors", "b.safetensors:0.5")
    found = load_file("m.safetensors")
    sizes = dict(re.findall(r"^ (te|unet) +\d+ +([\d.]+)", run.out, re.MULTILINE))
    for component, prefix in (("unet", "model."), ("te", "cond")):
        keys = [key for key in MERGED if key.startswith(prefix)]
        change = sum(float((0.5 * (B[k].double() - A[k].double())).norm() ** 2) for k in keys)
        whole = sum(float(A[k].double().norm() ** 2) for k in keys)
        assert float(sizes[component]) == pytest.approx((change / whole) ** 0.5, rel=0.02)
    assert "change by block: BASE" in run.out
    assert "IN01" in run.out
    assert f"{len(MERGED)} weights merged, {len(found) - len(MERGED)} tensors copied" in run.out
    assert run.out.endswith("wrote m.safetensors\n")
    every = said("--base", "a.safetensors", "b.safetensors:0.5", "--force", "-v")
    assert re.search(r"transformer_blocks.0.attn1.to_q +linear +48x48 +0\.", every.out)


def test_the_report_as_json() -> None:
    run = said("--base", "a.safetensors", "b.safetensors:0.5", "--json", "-")
    report = json.loads(run.out)
    assert (report["merged"], report["copied"]) == (len(MERGED), len(A) - len(MERGED))
    assert report["sizes"].keys() == {"te", "unet"}
    assert all(one["gain"] > 0.5 for one in report["layers"])
    assert report["size"] == Path("m.safetensors").stat().st_size


def test_what_rounding_eats_is_said() -> None:
    """Kept and cosine of all of a component: those of the numbers in the file."""
    for name in "ab":
        tensors = {key: t.float().add_(1).to(torch.bfloat16) for key, t in MODELS[name].items()}
        save_file(tensors, f"{name}.safetensors")
    run = said("--base", "a.safetensors", "b.safetensors:0.1", "--component", "unet")
    assert "rounding ate" in run.out
    kept, cosine = re.findall(r"^ unet +\d+ +[\d.]+ +([\d.]+) +([\d.]+)", run.out, re.MULTILINE)[0]
    base, tuned, found = map(load_file, ("a.safetensors", "b.safetensors", "m.safetensors"))
    keys = [key for key in MERGED if key.startswith("model.")]
    meant = torch.cat([0.1 * (tuned[k].double() - base[k].double()).flatten() for k in keys])
    moved = torch.cat([(found[k].double() - base[k].double()).flatten() for k in keys])
    along = float(meant @ moved)
    assert float(kept) == pytest.approx(along / float(meant @ meant), abs=0.03)
    assert float(cosine) == pytest.approx(along / float(meant.norm() * moved.norm()), abs=0.03)


def test_a_merge_that_changes_nothing_says_so() -> None:
    save_file(A, "copy.safetensors")
    run = said("a.safetensors:0.5", "copy.safetensors:0.5")
    assert run.status == 0
    assert "note changes nothing: all" in run.out
    assert f"as in the base: {len(MERGED)} weights, no number differs" in run.out


def test_an_output_that_exists_is_kept(folder: Path) -> None:
    assert said("a.safetensors", "b.safetensors").status == 0
    before = contents(folder)
    again = said("a.safetensors", "c.safetensors")
    assert (again.status, again.err.count("--force")) == (2, 1)
    assert contents(folder) == before
    assert said("a.safetensors", "c.safetensors", "--force").status == 0
    assert contents(folder) != before
