"""The six worked examples: the commands of docs/merging.md and the documents of docs/recipes.md, run."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import torch
from baking import is_rounded_once, thin
from checkpoints import FLUX, OPENCLIP, SD1, Tensors, grid, trained
from commands import ROOT, lorakit_here
from safetensors.torch import load_file, save_file

from lorakit.lora_ops import DictSource, merge, parse_document

PAGE = (ROOT / "docs" / "merging.md").read_text("utf-8")
COMMANDS = re.findall(r"^\$ lorakit (merge .+)$", PAGE.partition("## Six worked")[2], re.MULTILINE)
DOCUMENTS = re.findall(
    r"```toml\n(.*?)```", (ROOT / "docs" / "recipes.md").read_text("utf-8"), re.DOTALL
)[1:]
BLOCKS, DIFFERENCE, TIES, FLUX_BF16, LORA, COSINE = range(6)

UNET = "model.diffusion_model."
IN, Q = f"{UNET}input_blocks.0.0.weight", "input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight"
OUT = f"{UNET}output_blocks.3.1.transformer_blocks.0.attn2.to_k.weight"
TE = "cond_stage_model.transformer.text_model.encoder.layers.0.mlp.fc1.weight"
SD = SD1 | {OUT: (48, 64)}
XL = OPENCLIP | {f"{UNET}middle_block.1.proj_in.weight": (48, 48)}
DOUBLE = "double_blocks.0.img_attn.qkv.weight"
SINGLE = "single_blocks.0.linear1.weight"


def family(
    shapes: dict[str, tuple[int, ...]], dtype: torch.dtype, *names: str
) -> dict[str, Tensors]:
    """A model and those trained from it; the first is the ancestor."""
    first = grid(shapes, dtype)
    return {name: trained(first, seed=n) if n else first for n, name in enumerate(names)}


def lora(seed: int) -> Tensors:
    module = UNET.removeprefix("model.")
    keys = (Q, OUT.removeprefix(UNET))
    return {
        key: tensor
        for n, name in enumerate(keys)
        for key, tensor in thin(
            f"{module}{name.removesuffix('.weight')}", SD[f"{UNET}{name}"], seed=seed + n
        ).items()
    }


XLS = family(XL, torch.float16, "noob", "mix")
SDS = family(SD, torch.float16, "c", "a", "b", "vae", "model")
FLUXES = family(FLUX, torch.float32, "flux1-dev", "flux-tuned")
LORAS = {name: lora(n) for n, name in enumerate(("style", "hands", "1", "2", "3"))}
#: What the documents call them.
AS = {"noob": "noobXL_eps11", "mix": "illustriousMix_v3", "flux1-dev": "flux1-dev-fp8"}


@pytest.fixture(autouse=True, scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All files that the two pages name, in a folder and, by their links, in the one above."""
    here = tmp_path_factory.mktemp("examples")
    (here / "models").mkdir()
    for name, tensors in (XLS | SDS | FLUXES | LORAS).items():
        save_file(tensors, here / f"{name}.safetensors")
        save_file(tensors, here / "models" / f"{AS.get(name, name)}.safetensors")
    (here / "dare-ties.toml").write_text(DOCUMENTS[TIES], "utf-8")
    (here / "supermerger.toml").write_text(DOCUMENTS[COSINE], "utf-8")
    return here


@pytest.fixture(autouse=True)
def here(models: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(models)
    return models


def run(index: int) -> Tensors:
    """Run the command of an example, and return its file."""
    words = [*shlex.split(COMMANDS[index]), "--force"]
    done = lorakit_here(*words)
    assert (done.status, done.err) == (0, "")
    return load_file(words[words.index("-o") + 1])


def run_document(index: int, *words: str) -> Tensors:
    Path("r.toml").write_text(DOCUMENTS[index], "utf-8")
    words = ("merge", "r.toml", "--search", "models", *words, "-o", "r.safetensors", "--force")
    done = lorakit_here(*words)
    assert (done.status, done.err) == (0, "")
    return load_file("r.safetensors")


def same(one: Tensors, other: Tensors) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_there_are_six() -> None:
    assert len(COMMANDS) == len(DOCUMENTS) == 6


def test_a_weighted_sum_by_blocks() -> None:
    found = run(BLOCKS)
    a, b = XLS["noob"], XLS["mix"]
    shares = {IN: 0.0, UNET + Q: 0.3, f"{UNET}middle_block.1.proj_in.weight": 0.6}
    shares["conditioner.embedders.0.transformer.text_model.encoder.layers.0.mlp.fc1.weight"] = 0.0
    for key, share in shares.items():
        assert is_rounded_once(found[key], (1 - share) * a[key].double() + share * b[key].double())
    assert same(run_document(BLOCKS), found)


def test_add_difference_with_parts_and_flags() -> None:
    found = run(DIFFERENCE)
    a, b, c, vae = (SDS[name] for name in ("a", "b", "c", "vae"))
    assert is_rounded_once(found[IN], a[IN].double() + b[IN].double() - c[IN].double())
    assert torch.equal(found[TE], a[TE])
    key = "first_stage_model.decoder.conv_in.weight"
    assert torch.equal(found[key], vae[key])
    assert {"v_pred", "ztsnr"} <= found.keys()
    assert same(run_document(DIFFERENCE), found)


def test_dare_ties_and_two_loras_in_one_pass() -> None:
    found = run(TIES)
    # The two steps apart, in memory and in float32: the same before it is rounded.
    recipe = parse_document(DOCUMENTS[TIES]).with_output(dtype="fp32")
    sources = {name: DictSource(SDS[name.lower()], name=name) for name in "ABC"}
    sources |= {
        f"{name}.safetensors": DictSource(LORAS[name], name=name) for name in ("style", "hands")
    }
    whole, _ = merge(recipe, sources)
    assert torch.equal(found[IN], whole[IN].half())
    name = (UNET + Q).removeprefix("model.").removesuffix(".weight")
    change = (
        0.25
        * LORAS["hands"][f"{name}.lora_B.weight"].double()
        @ (LORAS["hands"][f"{name}.lora_A.weight"].double())
    )
    first, _ = merge(
        type(recipe)(recipe.steps[:1], recipe.files).with_output(dtype="fp32"), sources
    )
    # OUTALL keeps the style out of IN01; the hands are everywhere.
    torch.testing.assert_close(
        whole[UNET + Q].double(), first[UNET + Q].double() + change, rtol=0, atol=1e-5
    )


def test_a_tune_of_flux_rounded_by_chance() -> None:
    found = run(FLUX_BF16)
    a, b = FLUXES["flux1-dev"], FLUXES["flux-tuned"]
    assert torch.equal(found[DOUBLE], a[DOUBLE].bfloat16())
    exact = 0.6 * a[SINGLE].double() + 0.4 * b[SINGLE].double()
    assert found[SINGLE].dtype == torch.bfloat16
    step = 2.0 ** (torch.floor(torch.log2(exact.abs().clamp_min(1e-30))) - 7)
    off = found[SINGLE].double() - exact
    assert bool((off.abs() <= step * 1.001).all())
    # Up as often as down as far: the mean is right, though no number is.
    assert abs(float((off / step).mean())) < 4 * float((off / step).std()) / off.numel() ** 0.5
    assert not is_rounded_once(found[SINGLE], exact)
    assert same(run_document(FLUX_BF16), found)


def test_a_lora_of_three_by_ties() -> None:
    found = run(LORA)
    name = (UNET + Q).removeprefix("model.").removesuffix(".weight")
    one, two, three = (
        LORAS[n][f"{name}.lora_B.weight"].double() @ LORAS[n][f"{name}.lora_A.weight"].double()
        for n in "123"
    )
    changes = torch.stack([one, two, three])
    weights = torch.tensor([1.0, 0.7, -0.2], dtype=torch.float64).view(3, 1, 1)
    count = int(0.3 * one.numel())
    least = changes.abs().flatten(1).sort(descending=True).values[:, count - 1]
    thin_ones = weights * changes * (changes.abs() >= least.view(3, 1, 1))
    agree = (thin_ones.sign() == thin_ones.sum(0).sign()) & (thin_ones != 0)
    wanted = (thin_ones * agree).sum(0) / agree.sum(0).clamp_min(1)
    scale = float(found[f"{name}.alpha"]) / 32
    change = (
        scale * found[f"{name}.lora_B.weight"].double() @ found[f"{name}.lora_A.weight"].double()
    )
    # Of 48 directions 32 are kept, the largest.
    lost = torch.linalg.svdvals(wanted)[32:].square().sum().sqrt()
    assert float((change - wanted).norm()) == pytest.approx(float(lost), rel=0.05)
    other = run_document(LORA, "--base", "model.safetensors")
    assert other.keys() == found.keys()


def test_supermergers_cosine_with_elements() -> None:
    found = run(COSINE)
    assert not torch.equal(found[IN], SDS["a"][IN])
    plain = DOCUMENTS[COSINE].replace(', elemental = "OUT03 OUT04:attn2 attn1.to_out:0.5"', "")
    Path("plain.toml").write_text(plain, "utf-8")
    words = ("plain.toml", "--search", "models", "-o", "plain.safetensors", "--force")
    assert lorakit_here("merge", *words).status == 0
    other = load_file("plain.safetensors")
    assert torch.equal(found[IN], other[IN])
    assert not torch.equal(found[OUT], other[OUT])
