"""Every kind of layer against the real ComfyUI: `load_lora` and `calculate_weight`, in float32."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import comfy_host
import pytest
import torch
from kinds import WEIGHTS, kinds, weight
from safetensors.torch import load_file, save_file

from lorakit.lora_ops import DictSource
from lorakit.lora_ops.adapters import formats

STRENGTHS = (1.0, 0.6, -0.5)
CASES = {f"{form}/{name}": (form, name) for form in WEIGHTS for name in kinds(form)}
#: What it does not load at all, and what it fails on: its formulas are for two kernel axes.
UNKNOWN = [case for case in CASES if "/ia3" in case]
FAILING = [
    f"conv3d/{name}"
    for name in ("lora, Tucker", "loha, Tucker", "lokr whole, Tucker", "lokr thin, Tucker")
]
#: Where it makes another product than Kronecker's: it gives the small matrix no kernel axes.
WRONG = ["conv3d/lokr whole, whole", "conv3d/lokr thin, whole"]
#: Where PyTorch 2.13's `kron` refuses the layout of what it is given: a logged error, and no change.
LEFT = ["conv3x3/lokr whole, Tucker", "conv3x3/lokr thin, Tucker"]
#: Where it does not see the magnitudes.
IGNORED = [case for case in CASES if case.endswith("of PEFT")]
SAME = [case for case in CASES if case not in (*UNKNOWN, *FAILING, *WRONG, *LEFT, *IGNORED)]


@pytest.fixture(scope="module")
def host(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The weights that ComfyUI makes, by case and index of the strength, and where it fails."""
    folder = tmp_path_factory.mktemp("kinds")
    layers, base = {}, {}
    for index, (form, name) in enumerate(CASES.values()):
        layers |= {f"m{index}.{suffix}": one for suffix, one in kinds(form)[name].items()}
        base[f"m{index}.weight"] = weight(form)
    files = {name: str(folder / f"{name}.safetensors") for name in ("adapter", "base", "output")}
    save_file(layers, files["adapter"])
    save_file(base, files["base"])
    with comfy_host.started() as comfy:
        failed = comfy.ask("change_weights", {**files, "strengths": STRENGTHS})
    made = load_file(Path(files["output"]))
    cases = {f"m{index}": case for index, case in enumerate(CASES)}
    return (
        {f"{cases[m]} {at}": one for key, one in made.items() for m, at in [key.split(".")]},
        {cases[m]: why for m, why in failed.items()},
    )


def read(tensors: Mapping[str, torch.Tensor]):
    named = {f"m.{suffix}": tensor for suffix, tensor in tensors.items()}
    return formats.read_kind(DictSource(named), "m", formats.modules(named).modules["m"])


@pytest.mark.parametrize("case", SAME)
def test_our_weight_is_comfyuis(case, host):
    form, name = CASES[case]
    layer, base = read(kinds(form)[name]), weight(form)
    for index, strength in enumerate(STRENGTHS):
        ours = base + layer.change(base, strength, convention="comfy")
        torch.testing.assert_close(ours, host[0][f"{case} {index}"], rtol=1e-5, atol=1e-5)
        assert not torch.allclose(base, ours, atol=1e-3), "a change that can be seen"


@pytest.mark.parametrize("case", ["linear/oft", "conv3x3/boft", "linear/lora, DoRA"])
def test_the_paper_says_otherwise_where_docs_kinds_says_so(case, host):
    """Twin: with the other convention the test above fails."""
    form, name = CASES[case]
    base = weight(form)
    ours = base + read(kinds(form)[name]).change(base, 0.6)
    assert not torch.allclose(ours, host[0][f"{case} 1"], rtol=1e-3, atol=1e-3)


def test_comfyui_fails_where_docs_kinds_says_so(host):
    made, failed = host
    assert {case for case, why in failed.items() if why == "not loaded"} == set(UNKNOWN)
    assert failed.keys() == {*UNKNOWN, *FAILING}
    for case in (*WRONG, *IGNORED):
        form, name = CASES[case]
        ours = weight(form) + read(kinds(form)[name]).change(weight(form))
        assert not torch.allclose(ours, made[f"{case} 0"], rtol=1e-2, atol=1e-2), case


@pytest.mark.parametrize("case", LEFT)
def test_a_core_of_lokr_is_ours_or_does_nothing(case, host):
    form, name = CASES[case]
    base, theirs = weight(form), host[0][f"{case} 0"]
    ours = base + read(kinds(form)[name]).change(base)
    assert torch.equal(theirs, base) or torch.allclose(theirs, ours, rtol=1e-5, atol=1e-5)
