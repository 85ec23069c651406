"""What extraction writes in every form, loaded by its authors' programs: the weight is as reported."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lorakit.lora_ops import DictSource, MemoryFile, extract_file, plan_file

SHAPES: dict[str, tuple[int, ...]] = {
    "linear": (48, 32),
    "wide": (30, 56),
    "conv1x1": (32, 24, 1, 1),
    "conv3x3": (32, 24, 3, 3),
}
#: The file and class of LyCORIS, and options of the extraction.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "lora": ("locon.LoConModule", {}),
    "dora": ("locon.LoConModule", {}),
    "loha": ("loha.LohaModule", {}),
    "lokr": ("lokr.LokrModule", {"rank": 9999}),
    "lokr, factor 2": ("lokr.LokrModule", {"factor": 2, "rank": 3}),
    "lokr, factor 4, whole": ("lokr.LokrModule", {"factor": 4, "rank": 9999}),
    "lokr, factor 4": ("lokr.LokrModule", {"factor": 4, "rank": 2}),
    "locon-tucker": ("locon.LoConModule", {}),
}
#: What each loader of LyCORIS asks for, in its order.
ROLES = {
    "locon": ("lora_up.weight", "lora_down.weight", "lora_mid.weight", "alpha", "dora_scale"),
    "loha": (
        *("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2"),
        *("alpha", "dora_scale"),
    ),
    "lokr": (
        *("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b"),
        *("lokr_t1", "lokr_t2", "alpha", "dora_scale"),
    ),
}
#: Their names of what a file for ComfyUI spells as PEFT does.
SPELLED = {"lora_A.weight": "lora_down.weight", "lora_B.weight": "lora_up.weight"}
TARGET = "diffusion_model.layer"


def weights(form: str) -> tuple[Tensor, Tensor]:
    torch.manual_seed(len(form))
    base = torch.randn(SHAPES[form])
    steep = torch.linspace(2, 0.1, len(base)).reshape(-1, *[1] * (base.ndim - 1))
    return base, base + 0.1 * torch.randn(SHAPES[form]) * steep


def written(case: str, form: str) -> tuple[dict[str, Tensor], Tensor, Tensor, Any]:
    """The tensors of a file by suffix, both weights, and the layer's report."""
    _, options = CASES[case]
    options = dict(options)
    base, tuned = weights(form)
    sides = (
        DictSource({f"{TARGET}.weight": one}, name=name)
        for one, name in ((base, "a.safetensors"), (tuned, "b.safetensors"))
    )
    sides = tuple(sides)
    made = MemoryFile("made")
    rank, kind = options.pop("rank", 5), case.partition(",")[0]
    plan = plan_file(*sides, rank, kind=kind, dtype=torch.float32, **options)
    (report,) = extract_file(plan, *sides, made).layers
    tensors = {
        key.removeprefix(f"{TARGET}."): one
        for key, one in ((key, made.tensor(key)) for key in made.keys())  # noqa: SIM118
    }
    return tensors, base, tuned, report


def module(base: Tensor) -> nn.Module:
    out, into, *kernel = base.shape
    layer = (
        nn.Conv2d(into, out, tuple(kernel), bias=False) if kernel else nn.Linear(into, out, False)
    )
    with torch.no_grad():
        layer.weight.copy_(base)
    return layer


def left(tuned: Tensor, made: Tensor) -> float:
    return float((tuned.double() - made.detach().double()).norm())


@pytest.mark.parametrize("form", SHAPES)
@pytest.mark.parametrize("case", CASES)
def test_lycoris_makes_the_weight_that_is_reported(case, form):
    pytest.importorskip(
        "lycoris.wrapper", reason="lycoris-lora is not installed: pip install lycoris-lora"
    )
    file, name = CASES[case][0].split(".")
    kind = getattr(importlib.import_module(f"lycoris.modules.{file}"), name)
    tensors, base, tuned, report = written(case, form)
    named = {SPELLED.get(key, key): one for key, one in tensors.items()}
    assert named.keys() <= set(ROLES[file])
    with torch.no_grad():
        network = kind.make_module_from_state_dict(
            "m", module(base), *(named.get(role) for role in ROLES[file])
        )
        network.apply_to()
        made, _ = network.get_merged_weight(1.0, base.shape)
    assert left(tuned, made) == pytest.approx(report.residual, rel=1e-4)
    assert report.error < 1


@pytest.mark.parametrize("case", [one for one in CASES if one != "locon-tucker"])
def test_peft_makes_the_weight_that_is_reported(case):
    peft = pytest.importorskip("peft", reason="peft is not installed: pip install peft")
    tensors, base, tuned, report = written(case, "linear")
    model = nn.Sequential()
    model.add_module("layer", module(base))
    rank = int(tensors["alpha"])
    if case in ("lora", "dora"):
        config = peft.LoraConfig(
            r=rank, lora_alpha=rank, target_modules=["layer"], use_dora=case == "dora"
        )
    elif case == "loha":
        config = peft.LoHaConfig(r=rank, alpha=rank, target_modules=["layer"])
    else:
        whole = "lokr_w2" in tensors
        config = peft.LoKrConfig(
            r=1000 if whole else rank,
            alpha=1000 if whole else rank,
            target_modules=["layer"],
            decompose_factor=CASES[case][1].get("factor", -1),
        )
    wrapped = peft.get_peft_model(model, config)
    numbers = {key: one for key, one in tensors.items() if key != "alpha"}
    if case == "dora":
        numbers["lora_magnitude_vector"] = numbers.pop("dora_scale").flatten()
    state = {f"base_model.model.layer.{key}": one for key, one in numbers.items()}
    loaded = peft.set_peft_model_state_dict(wrapped, state)
    assert loaded.unexpected_keys == []
    assert not [key for key in loaded.missing_keys if "default" in key]
    made = wrapped.merge_and_unload().layer.weight
    assert left(tuned, made) == pytest.approx(report.residual, rel=1e-4)
