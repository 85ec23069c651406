"""ComfyUI loads what extraction writes in every form, and makes the weight that the report says."""

from __future__ import annotations

import math
from pathlib import Path

import comfy_host
import pytest
import torch
from commands import lorakit_here
from keys.checkpoints import flux, unet
from safetensors.torch import save_file

from lorakit.lora_ops import open_source, verify
from lorakit.lora_ops.operations.extract.kinds.table import FORMS

#: Flux: linears; SD1.5: convolutions too. As diffusion models alone.
MODELS = {
    "flux": flux() | {f"{name}.in_layer.weight": (128, 256) for name in ("time_in", "guidance_in")},
    "sd15": unet(768, [1, 0], blocks=1),
}
OPTIONS = {name: ("--rank", "6", "--kind", name) for name in FORMS}
OPTIONS["lokr whole"] = ("--rank", "9999", "--kind", "lokr", "--factor", "4")
OPTIONS["lokr thin"] = ("--rank", "3", "--kind", "lokr", "--factor", "4")
OPTIONS["auto"] = ("--rank", "24", "--kind", "locon-tucker", "--auto-full")
KOHYA = [f"{name}, kohya" for name in ("dora", "loha", "lokr thin", "locon-tucker")]
CASES = [(model, name) for model in MODELS for name in (*OPTIONS, *KOHYA)]
TOLERANCE = 2e-3  # the rounding of fp16
#: So many of the smallest linears, 1x1 and 3x3 convolutions are changed.
CHANGED = 4


def checkpoints(shapes):
    """Base and tuned, fp16: some weights differ, by a change whose singular values fall."""
    generator = torch.Generator().manual_seed(3)
    base = {name: torch.zeros(shape, dtype=torch.float16) for name, shape in shapes.items()}
    tuned = dict(base)
    for kernel in ((), (1, 1), (3, 3)):
        alike = [
            name
            for name, shape in shapes.items()
            if name.endswith(".weight") and len(shape) > 1 and shape[2:] == kernel
        ]
        for name in sorted(alike, key=lambda name: math.prod(shapes[name]))[:CHANGED]:
            shape = shapes[name]
            steep = torch.linspace(3, 0.1, shape[0]).square().reshape(-1, *[1] * (len(shape) - 1))
            change = torch.randn(shape, generator=generator) * 0.02 * steep
            base[name] = (torch.randn(shape, generator=generator) * 0.1).half()
            tuned[name] = (base[name] + change).half()
    return {"base": base, "tuned": tuned}


def files(folder: Path, model: str) -> dict[str, Path]:
    """The checkpoints of a model, and a LoRA file by name of the case."""
    folder.mkdir()
    sides = {side: folder / f"{side}.safetensors" for side in ("base", "tuned")}
    held = checkpoints(MODELS[model])
    for side, tensors in held.items():
        save_file(tensors, sides[side])
    # Of the base what changed, alone: reading all of both for two dozen files would take minutes.
    changed = {key for key, one in held["base"].items() if not torch.equal(one, held["tuned"][key])}
    sides["changed"] = folder / "changed.safetensors"
    save_file({key: held["base"][key] for key in changed}, sides["changed"])
    for case in (*OPTIONS, *KOHYA):
        name, _, format = case.partition(", ")
        path = folder / f"{case}.safetensors"
        reading = ("--dora", "comfy") if "dora" in OPTIONS[name] else ()
        options = (*OPTIONS[name], "--format", format or "comfy", *reading)
        done = lorakit_here(
            *("extract", sides["changed"], sides["tuned"], "-o", path, "--allow-partial"),
            *("--device", "cpu", *options),
        )
        assert done.status == 0, done.err
        sides[case] = path
    return sides


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory):
    """By model: the files, and what ComfyUI makes of them."""
    found = {}
    with comfy_host.started() as host:
        for model in MODELS:
            paths = files(tmp_path_factory.mktemp("kinds") / model, model)
            base, tuned, *_ = paths.values()
            loras = {case: str(path) for case, path in paths.items() if "/" not in case}
            question = {
                "loader": "diffusion_model",
                "te": {},
                "base": str(base),
                "tuned": str(tuned),
                "loras": {case: loras[case] for case in (*OPTIONS, *KOHYA)},
            }
            found[model] = paths, host.ask("apply_loras", question)
    return found


@pytest.mark.parametrize(("model", "case"), CASES)
def test_every_key_is_matched_and_every_weight_is_as_far_from_tuned_as_we_say(answers, model, case):
    paths, answer = answers[model]
    made = answer["loras"][case]
    assert made["complaints"] == []
    with (
        open_source(paths["changed"]) as base,
        open_source(paths["tuned"]) as tuned,
        open_source(paths[case]) as lora,
    ):
        report = verify(base, tuned, lora, convention="comfy")
        told = float(lora.metadata["lorakit.error"])
    ours = {f"{layer.target}.weight": layer.error for layer in report.layers}
    assert made["left"].keys() == ours.keys()
    assert len(ours) >= CHANGED
    for key, error in ours.items():
        assert made["left"][key] == pytest.approx(error, abs=TOLERANCE), key
    assert told == pytest.approx(report.error, rel=1e-3)
    assert 0 < report.error < 1


@pytest.mark.parametrize("model", MODELS)
def test_twin_the_error_of_another_form_is_another(answers, model):
    _, answer = answers[model]
    made = {case: answer["loras"][case]["left"] for case in ("lora", "dora", "lokr", "loha")}
    for case in ("dora", "lokr", "loha"):
        apart = [abs(made[case][key] - share) for key, share in made["lora"].items()]
        assert max(apart) > 5 * TOLERANCE, case
