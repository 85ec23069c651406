"""LoRAs that a method does not see: named, or recognised as distillations, and added as they are."""

from __future__ import annotations

import pytest
import torch
from adapters import Part, adapter, changes, read, tensors, written
from commands import lorakit_here
from safetensors import safe_open
from safetensors.torch import load_file

from lorakit.lora_ops import Adapter, ArgumentError, Term, add
from lorakit.lora_ops.adapters.layers import innermost
from lorakit.lora_ops.operations.add.kept import is_distillation

FORMS = ("linear", "conv3x3", "conv1x1")
STRENGTHS = (1.0, 0.6, -0.8)


def parts(seed: int, rank: int = 3) -> list[Part]:
    return [Part(form, rank, seed=seed + at, alpha=2.0) for at, form in enumerate(FORMS)]


LISTS = [parts(0), parts(10, 4), parts(20, 2)]


def terms(*places: int) -> list[Term]:
    held = [adapter(LISTS[at]) for at in places]
    return [
        Term(one, dict.fromkeys(one.layers, STRENGTHS[at]), f"input {at}")
        for one, at in zip(held, places, strict=True)
    ]


def dense(found: Adapter) -> dict[str, torch.Tensor]:
    made: dict[str, torch.Tensor] = {}
    for target, layer in found.layers.items():
        up, down = innermost(layer).factors()
        made[target] = up.double() @ down.double()
    return made


METHODS = [
    ("ties", {}),
    ("ties", {"scope": "element"}),
    ("magnitude", {"density": 0.3}),
    ("dare", {"scope": "units", "seed": 2}),
    ("tsv", {}),
    ("np", {"mu": 3.0}),
    ("knots", {}),
    ("lego", {}),
]


@pytest.mark.parametrize(("method", "given"), METHODS)
@pytest.mark.parametrize("kept", [0, 1, 2])
def test_it_is_what_the_method_makes_of_the_others_and_that(method, given, kept) -> None:
    others = [at for at in range(3) if at != kept]
    rank = 64 if given.get("scope") == "element" else None
    asked = {"method": method, "parameters": given}
    all_, report = add(terms(0, 1, 2), rank, **asked, keep_whole=[kept], dtype=torch.float64)
    rest, _ = add(terms(*others), rank, **asked, dtype=torch.float64)
    own = dense(adapter(LISTS[kept]))
    made, expected = dense(all_), dense(rest)
    assert made.keys() == expected.keys() == own.keys()
    for target, found in made.items():
        wanted = expected[target] + STRENGTHS[kept] * own[target]
        assert float((found - wanted).norm() / wanted.norm()) < 1e-5
    assert report.error < 1e-5
    assert f"input {kept} is added as it is, to what `{method}` makes of the others" in report.notes
    plain = sum(STRENGTHS[at] * torch.cat([one.flatten() for one in dense(adapter(LISTS[at])).values()]) for at in range(3))  # fmt: skip
    flat = torch.cat([one.flatten() for one in made.values()])
    told = float(next(n for n in report.notes if "cosine" in n).rpartition(" ")[2])
    cosine = float(flat @ plain / flat.norm() / plain.norm())
    assert told == pytest.approx(cosine, abs=0.05), "weighed by layer"


def test_numbers_by_term_are_of_those_that_the_method_sees() -> None:
    asked = {"method": "magnitude", "parameters": {"density": (1.0, 0.2)}}
    all_, _ = add(terms(0, 1, 2), **asked, keep_whole=[1])
    rest, _ = add(terms(0, 2), **asked)
    own = dense(adapter(LISTS[1]))
    for target, found in dense(all_).items():
        wanted = dense(rest)[target] + STRENGTHS[1] * own[target]
        assert float((found - wanted).norm() / wanted.norm()) < 1e-5


def test_one_that_is_left_is_itself() -> None:
    all_, _ = add(terms(0, 1), method="ties", keep_whole=[1])
    plain, _ = add(terms(0, 1))
    for target, found in dense(all_).items():
        assert torch.allclose(found, dense(plain)[target], atol=1e-6)


@pytest.mark.parametrize(
    "name",
    [
        *("lcm-lora-sdxl", "LCM_LoRA_Weights_SD15", "sdxl_lightning_8step_lora", "TCD-SDXL-LoRA"),
        *("Hyper-SDXL-8steps-lora", "Hyper-FLUX.1-dev-8steps-lora", "dmd2_sdxl_4step_lora_fp16"),
        *("FLUX.1-Turbo-Alpha", "sd_xl_turbo_lora_v1", "Qwen-Image-Lightning-4steps-V1.0"),
        *("Wan21_CausVid_14B_T2V_lora_rank32", "lightx2v_T2V_14B_cfg_step_distill_v2_lora_rank64"),
    ],
)
def test_published_names_are_known(name: str) -> None:
    held = adapter(LISTS[0])
    assert is_distillation(Term(held, name=f"/models/loras/{name}.safetensors"))
    titled = Adapter(held.layers, {}, {"ss_output_name": name}, held.format)
    assert is_distillation(Term(titled, name="downloaded.safetensors"))


@pytest.mark.parametrize(
    "name",
    [
        *("style", "lightning_bolts", "turbo_car_v2", "hyper_detailed", "hyperrealism_sdxl"),
        *("alchemist", "footsteps", "step_mom_4steps", "lcmart", "detail-tweaker-xl"),
    ],
)
def test_styles_are_none(name: str) -> None:
    assert not is_distillation(Term(adapter(LISTS[0]), name=f"{name}.safetensors"))


def test_a_recognised_one_is_kept_unless_nothing_is() -> None:
    held = [adapter(one) for one in LISTS]
    three = [Term(one, name=name) for one, name in zip(held, ("a", "lcm-lora", "b"), strict=True)]
    known, report = add(three, method="ties")
    asked, _ = add(three, method="ties", keep_whole=[1])
    none, other = add(three, method="ties", keep_whole=[])
    assert any("it says that it distils a model" in note for note in report.notes)
    assert not any("as it is" in note for note in other.notes)
    for target, found in dense(known).items():
        assert torch.equal(found, dense(asked)[target])
        assert not torch.allclose(found, dense(none)[target], rtol=0.05)
    assert not any("as it is" in note for note in add(three)[1].notes), "a sum keeps all"


def test_what_cannot_be_kept_is_refused() -> None:
    with pytest.raises(ArgumentError, match="method `karcher` keeps every input whole"):
        add(terms(0, 1, 2), method="karcher", keep_whole=[1])
    with pytest.raises(ArgumentError, match="a place from 0 to 2"):
        add(terms(0, 1, 2), method="ties", keep_whole=[3])
    with pytest.raises(ArgumentError, match="takes 2 inputs, not 3"):
        add(terms(0, 1, 2), method="np")


def test_the_command_keeps_what_it_is_told_and_records_it(tmp_path) -> None:
    paths = [
        written(tmp_path / f"{name}.safetensors", tensors(one))
        for name, one in zip(("a", "b", "fast"), LISTS, strict=True)
    ]
    output = tmp_path / "sum.safetensors"
    words = ("add", *paths, "-o", output, "-m", "ties", "--force")
    run = lorakit_here(*words, "--keep-whole", "fast")
    assert run.status == 0, run.err
    assert "added as it is" in run.out.replace("\n", " ")
    with safe_open(output, "pt") as file:
        assert "fast" in str(file.metadata())
    held = [Term(read(tensors(one))) for one in LISTS]
    wanted, _ = add(held, method="ties", keep_whole=[2])
    for name, change in changes(load_file(output)).items():
        made = dense(wanted)[next(t for t in wanted.layers if t.endswith(name) or name.endswith(t))]
        assert torch.allclose(change.flatten(1), made, atol=1e-4)
    assert lorakit_here(*words, "--keep-whole", "other").status == 2
    assert lorakit_here(*words, "--keep-whole", "none").status == 0
