"""ComfyUI itself turns base into tuned with the files that `lorakit extract` writes.

Tiny checkpoints that ComfyUI's own detection accepts; all numbers are multiples of 1/256 that fp16
and bf16 hold exactly, so that tuned - base has rank 4 to the last bit and nothing else is in it.
"""

from __future__ import annotations

import functools
import math
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

import comfy_host
import pytest
import torch
from commands import lorakit_here
from keys.checkpoints import clip, flux, openclip, prefixed, unet
from safetensors.torch import load_file, save_file

PLANTED_RANK = 4
UNET = "model.diffusion_model."
WIDTH, LAYERS = 32, 3  # of the text encoders: SDXL takes the last but one's output
TINY_CLIP = {
    "hidden_size": WIDTH,
    "intermediate_size": 4 * WIDTH,
    "num_attention_heads": 2,
    "num_hidden_layers": LAYERS,
}


def sd15():
    shapes = unet(768, [1, 0], blocks=1)
    return prefixed(UNET, shapes) | prefixed(
        "cond_stage_model.transformer.", clip(WIDTH, layers=LAYERS)
    )


def sdxl():
    """KOALA's depths, which ComfyUI takes for an SDXL; one transformer block in each output."""
    shapes = unet(2048, [0, 2, 5], blocks=1, linear=True, label=2816)
    surplus = re.compile(r"output_blocks\.\d+\.1\.transformer_blocks\.[1-9]")
    shapes = {name: shape for name, shape in shapes.items() if not surplus.match(name)}
    return (
        prefixed(UNET, shapes)
        | prefixed("conditioner.embedders.0.transformer.", clip(WIDTH, layers=LAYERS))
        | prefixed("conditioner.embedders.1.model.", openclip(WIDTH, layers=LAYERS))
    )


def wan():
    shapes = {
        "patch_embedding.weight": (128, 16, 1, 2, 2),
        "patch_embedding.bias": (128,),
        "blocks.0.modulation": (1, 6, 128),
        "blocks.0.norm3.weight": (128,),
        "blocks.0.norm3.bias": (128,),
        "head.modulation": (1, 2, 128),
    }
    linears = {
        "text_embedding.0": (128, 4096),
        "text_embedding.2": (128, 128),
        "time_embedding.0": (128, 256),
        "time_embedding.2": (128, 128),
        "time_projection.1": (768, 128),
        "blocks.0.ffn.0": (256, 128),
        "blocks.0.ffn.2": (128, 256),
        "head.head": (64, 128),
    }
    for attention in ("blocks.0.self_attn", "blocks.0.cross_attn"):
        linears |= {f"{attention}.{part}": (128, 128) for part in "qkvo"}
        shapes |= {f"{attention}.norm_{part}.weight": (128,) for part in "qk"}
    for name, (out, into) in linears.items():
        shapes |= {f"{name}.weight": (out, into), f"{name}.bias": (out,)}
    return shapes


# Of Flux: the width of the sinusoids, which is fixed.
EMBEDDED = {f"{name}.in_layer.weight": (128, 256) for name in ("time_in", "guidance_in")}


@dataclass(frozen=True)
class Case:
    """A checkpoint, the class that ComfyUI must find in it, and its text encoders."""

    shapes: dict
    found: str
    encoders: tuple = ()

    @property
    def te(self):
        """Their sizes: ComfyUI takes them for known and does not look."""
        return {f"{encoder}_model_config": TINY_CLIP for encoder in self.encoders}

    @property
    def loader(self):
        return "checkpoint" if self.encoders else "diffusion_model"


@dataclass(frozen=True)
class Run:
    """Options of `lorakit extract`, and the error allowed as a share of each weight's change."""

    options: tuple
    tolerance: float
    whole: bool = False
    folder: bool = False


CASES = {
    "sd15": Case(sd15(), "SD15", ("clip_l",)),
    "sdxl": Case(sdxl(), "KOALA_700M", ("clip_l", "clip_g")),
    "flux": Case(flux() | EMBEDDED, "Flux"),
    "wan": Case(wan(), "WAN21_T2V"),
}
RUNS = {
    "fp32": Run(("--dtype", "fp32"), 1e-5),
    "usual": Run((), 2e-3),
    "kohya": Run(("--format", "kohya"), 2e-3),
    "whole": Run(("--full-differences", "--dtype", "fp32"), 1e-5, whole=True),
    "folder": Run(("--dtype", "fp32"), 1e-5, folder=True),
}
ASKED = {
    "sd15": ("usual", "kohya", "whole", "folder"),
    "sdxl": ("kohya", "whole"),
    "flux": ("fp32", "usual", "kohya", "whole"),
    "wan": ("fp32", "usual", "whole"),
}
PAIRS = [(case, run) for case, runs in ASKED.items() for run in runs]
# The first is in no file: ComfyUI leaves it as it finds the memory. The second no adapter can name.
NO_ADAPTER = ("clip_l.transformer.text_projection.weight", "logit_scale")
# Matrices that are no layers: kohya's scripts leave them out, too.
WHOLE_ONLY = (".token_embedding.weight", ".position_embedding.weight")
# Nor do they train the projection behind CLIP-G, so it has no name there.
NOT_KOHYA = (".text_projection.weight",)
# Copies of flux-fp32 that are wrong in one layer.
TWINS = ("without", "doubled", "stray")
LAYER = "diffusion_model.single_blocks.0.linear1"


def planted(shapes, seed=0):
    """Two state dicts in fp16: whatever weights, and the same plus a change of low rank."""
    generator = torch.Generator().manual_seed(seed)

    def integers(least, most, *shape):
        return torch.randint(least, most + 1, shape, generator=generator).float()

    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    numbers = integers(-60, 60, max(sizes.values())) / 256
    base, tuned = {}, {}
    for name, shape in shapes.items():
        rows = shape[0] if len(shape) > 1 else sizes[name]
        weight = numbers[: sizes[name]].reshape(rows, -1)
        up = integers(1, 3, rows, PLANTED_RANK) / 256
        down = integers(1, 3, PLANTED_RANK, weight.shape[1])
        base[name] = weight.half().reshape(shape)
        tuned[name] = torch.addmm(weight, up, down).half().reshape(shape)
    return base, tuned


def extract(base, tuned, output, options):
    done = lorakit_here(
        "extract", base, tuned, "-o", output, "--rank", "8", "--device", "cpu", *options
    )
    assert done.status == 0, done.err


def write_folders(folder, states, host):
    """The UNets of some checkpoints as diffusers stores them, with its names."""
    shapes = {
        name.removeprefix(UNET): weight.shape
        for name, weight in states["base"].items()
        if name.startswith(UNET)
    }
    names = host.ask("diffusers_names", shapes)
    assert sorted(names.values()) == sorted(shapes)
    for side, state in states.items():
        path = folder / side / "unet" / "diffusion_pytorch_model.safetensors"
        path.parent.mkdir(parents=True)
        save_file({new: state[UNET + native] for new, native in names.items()}, path)


def write_twins(folder, lora):
    """Files that are wrong in one layer each."""
    tensors = load_file(lora)
    twins = {
        "without": {k: v for k, v in tensors.items() if not k.startswith(f"{LAYER}.")},
        "doubled": tensors | {f"{LAYER}.alpha": 2 * tensors[f"{LAYER}.alpha"]},
        "stray": {k.replace(f"{LAYER}.", f"{LAYER}x."): v for k, v in tensors.items()},
    }
    for name, twin in twins.items():
        save_file(twin, folder / f"{name}.safetensors")


def apply(host, name):
    """What ComfyUI makes of one case, with the files of all its runs."""
    case, runs = CASES[name], ASKED[name]
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        states = dict(zip(("base", "tuned"), planted(case.shapes), strict=True))
        base, tuned = (folder / f"{side}.safetensors" for side in states)
        for path in (base, tuned):
            save_file(states[path.stem], path)
        if "folder" in runs:
            write_folders(folder, states, host)
        for run in runs:
            sides = (folder / "base", folder / "tuned") if RUNS[run].folder else (base, tuned)
            extract(*sides, folder / f"{run}.safetensors", RUNS[run].options)
        if name == "flux":
            write_twins(folder, folder / "fp32.safetensors")
            runs += TWINS
        question = {
            "loader": case.loader,
            "te": case.te,
            "base": str(base),
            "tuned": str(tuned),
            "loras": {file: str(folder / f"{file}.safetensors") for file in runs},
        }
        return host.ask("apply_loras", question)


@pytest.fixture(scope="module")
def applied():
    """`apply` of a case by name, done once."""
    with comfy_host.started() as host:
        yield functools.cache(lambda name: apply(host, name))


def expected(answer, run):
    """The weights that a file must take to tuned, as ComfyUI calls them."""
    return {
        key
        for key, shape in answer["changed"].items()
        if not key.endswith(NO_ADAPTER) and (key.startswith("diffusion_model.") or not run.folder)
        if "kohya" not in run.options or not key.endswith(NOT_KOHYA)
        if run.whole
        or (key.endswith(".weight") and len(shape) > 1 and not key.endswith(WHOLE_ONLY))
    }


def faults(answer, file, run):
    """All that is wrong with a file for ComfyUI: what it says, and what does not come out."""
    found, wanted = answer["loras"][file], expected(answer, run)
    left = dict.fromkeys(wanted, 1.0) | found["left"]
    wrong = {
        key: share for key, share in left.items() if key not in wanted or not share <= run.tolerance
    }
    return [*found["complaints"], *sorted(wrong.items())]


@pytest.mark.parametrize("case", CASES)
def test_host_takes_the_checkpoint_for_what_it_is(applied, case):
    answer = applied(case)
    assert answer["class"] == CASES[case].found
    assert answer["loading"] == []
    assert {key.partition(".")[0] for key in answer["changed"]} == {
        "diffusion_model",
        *CASES[case].encoders,
    }
    assert len(answer["changed"]) >= len(CASES[case].shapes)


@pytest.mark.parametrize(("case", "run"), PAIRS)
def test_file_turns_base_into_tuned(applied, case, run):
    answer = applied(case)
    assert len(expected(answer, RUNS[run])) > 10
    assert faults(answer, run, RUNS[run]) == []


@pytest.mark.parametrize("twin", ["without", "doubled"])
def test_one_wrong_layer_is_found(applied, twin):
    (fault,) = faults(applied("flux"), twin, RUNS["fp32"])
    assert fault == (f"{LAYER}.weight", pytest.approx(1, abs=1e-4))


def test_one_unknown_name_is_found(applied):
    *said, fault = faults(applied("flux"), "stray", RUNS["fp32"])
    assert len(said) == 3
    assert all(line.startswith(f"lora key not loaded: {LAYER}x.") for line in said)
    assert fault == (f"{LAYER}.weight", 1)
