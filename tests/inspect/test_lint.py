"""lint: every code with a file that has it and one that has not, the cures, the command."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path

import kinds
import pytest
import torch
from commands import KEYS, REAL, ROOT, lorakit_here
from safetensors.torch import load_file, save_file

from lorakit.lora_ops import DictSource, open_source
from lorakit.lora_ops.errors import ArgumentError, UnknownFormatError
from lorakit.lora_ops.files import false_hash
from lorakit.lora_ops.inspect.lint import CODES, PROGRAMS, lint
from lorakit.terminal.wording import worded

KOHYA_NAMES = json.loads((KEYS / "kohya_names.json").read_text("utf-8"))
BLOCK = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0"
FIRST, SECOND = f"{BLOCK}_attn2_to_k", f"{BLOCK}_ff_net_2"
SHAPES = {FIRST: (320, 768), SECOND: (320, 1280)}
RANK = 4
FLUX = "diffusion_model.double_blocks.0.img_attn.qkv"
WAN = "lora_unet_blocks_0_self_attn_q"


def pair(module, out, into, ends=(".lora_up.weight", ".lora_down.weight"), rank=RANK):
    generator = torch.Generator().manual_seed(len(module))
    shapes = zip(ends, ((out, rank), (rank, into)), strict=True)
    return {module + end: torch.randn(shape, generator=generator).half() for end, shape in shapes}


def layers(alpha=float(RANK)):
    """Two layers of Stable Diffusion 1 under kohya's names."""
    found = {}
    for module, (out, into) in SHAPES.items():
        found |= pair(module, out, into)
        found |= {} if alpha is None else {f"{module}.alpha": torch.tensor(alpha)}
    return found


def flux(ends=(".lora_B.weight", ".lora_A.weight"), **more):
    """One layer of Flux under ComfyUI's names."""
    return pair(FLUX, 9216, 3072, ends) | {f"{FLUX}.{role}": one for role, one in more.items()}


TOLD = {
    "ss_network_dim": str(RANK),
    "ss_network_alpha": str(RANK),
    "ss_network_module": "networks.lora",
    "ss_base_model_version": "sd_v1",
    "ss_v2": "False",
}
PEFT = {
    "lora_adapter_metadata": json.dumps(
        {"r": RANK, "lora_alpha": 8, "target_modules": ["x"], "use_rslora": True}
    )
}


@dataclass(frozen=True, eq=False)
class Odd:
    """A file that has something to say of it.

    Attributes:
        tensors, metadata: Of the file.
        where: What the finding names; None: nothing is asked of that.
        programs: Those asked for.
        program: Whose finding it is.
    """

    tensors: dict
    metadata: dict = field(default_factory=lambda: TOLD)
    where: tuple | None = None
    programs: tuple = ()
    program: str | None = None


def without(end, of=FIRST):
    return {key: one for key, one in layers().items() if key != of + end}


UP, DOWN = f"{FIRST}.lora_up.weight", f"{FIRST}.lora_down.weight"
TWICE = "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k"
OTHER = TWICE.replace("attn2.to_k", "attn1.to_q")
# diffusers reads alphas within the blocks of Wan alone.
WAN_TIME = pair("diffusion_model.blocks.0.self_attn.q", 64, 64) | {
    **pair("diffusion_model.time_embedding.0", 64, 256),
    "diffusion_model.time_embedding.0.alpha": torch.tensor(2.0),
}
OFT = kinds.kinds("linear")["oft"]["oft_blocks"]
ODD = {
    "not-finite": Odd(layers() | {UP: torch.full((320, RANK), float("nan"))}, where=(UP,)),
    "layer-zero": Odd(layers() | {DOWN: torch.zeros(RANK, 768)}, where=(FIRST,)),
    "alpha-missing": Odd(layers(None)),
    "alpha-partly": Odd(without(".alpha"), where=(FIRST,)),
    "alpha-zero": Odd(layers() | {f"{FIRST}.alpha": torch.tensor(0.0)}, where=(FIRST,)),
    "alpha-above-rank": Odd(layers() | {f"{FIRST}.alpha": torch.tensor(8.0)}, where=(FIRST,)),
    "alpha-differs": Odd(layers() | {f"{FIRST}.alpha": torch.tensor(2.0)}, where=()),
    "alpha-shape": Odd(layers() | {f"{FIRST}.alpha": torch.ones(2)}, where=(f"{FIRST}.alpha",)),
    "alpha-integer": Odd(layers() | {f"{FIRST}.alpha": torch.tensor(4)}, where=(f"{FIRST}.alpha",)),
    "incomplete": Odd(without(".lora_down.weight"), where=(FIRST,)),
    "shapes-disagree": Odd(layers() | {DOWN: torch.ones(3, 768)}, where=(FIRST,)),
    "unsupported": Odd(layers() | {f"{BLOCK}_ff_net_0_proj.oft_diag": OFT}),
    "kinds-mixed": Odd(layers() | {f"{FIRST}.diff": torch.ones(320, 768)}, where=(FIRST,)),
    "keys-left-over": Odd(layers() | {"bundle_emb.x": torch.ones(1, 8)}, where=("bundle_emb.x",)),
    "dtypes-mixed": Odd(layers() | {UP: layers()[UP].float()}, where=()),
    "dtype-rare": Odd(layers() | {UP: layers()[UP].to(torch.float8_e4m3fn)}, where=(UP,)),
    "dtype-integer": Odd(layers() | {UP: layers()[UP].to(torch.int8)}, where=(FIRST,)),
    "target-twice": Odd(layers() | pair(TWICE, 320, 768), where=(FIRST, TWICE)),
    "model-mixed": Odd(layers() | pair(WAN, 64, 64), where=(WAN,)),
    "format-mixed": Odd(layers() | pair("unet.up_blocks.1.attentions.0.proj_in", 64, 64), where=()),
    "model-unknown": Odd(pair("lora_unet_mystery", 64, 64), where=("lora_unet_mystery",)),
    "hash-false": Odd(layers(), TOLD | {"sshs_model_hash": "0" * 64}, where=()),
    "hash-missing": Odd(layers()),
    "metadata-missing": Odd(layers(), {}),
    "metadata-rank": Odd(layers(), TOLD | {"ss_network_dim": "32"}),
    "metadata-alpha": Odd(layers(), TOLD | {"ss_network_alpha": "1"}),
    "metadata-module": Odd(layers(), TOLD | {"ss_network_module": "networks.oft"}),
    "metadata-model": Odd(layers(), TOLD | {"ss_base_model_version": "sdxl_base_v1-0"}),
    "configuration": Odd(flux(), {"lora_adapter_metadata": '{"init_lora_weights": "corda"}'}),
    "base-changed": Odd(flux(), {"lora_adapter_metadata": '{"init_lora_weights": "pissa"}'}, (FLUX,)),
    "refused": Odd(WAN_TIME, {}, (), ("diffusers",), "diffusers"),
    "nothing-loads": Odd(flux(), {}, (FLUX,), ("diffusers",), "diffusers"),
    "part-loads": Odd(layers() | pair(OTHER, 320, 320), TOLD, (OTHER,), ("kohya",), "kohya"),
    "perhaps-loads": Odd(pair("lora_unet_mystery", 64, 64), {}, None, ("comfy",), "comfy"),
    "scale-lost": Odd(flux(), PEFT, (FLUX,), ("comfy",), "comfy"),
    "magnitude-lost": Odd(
        flux(lora_magnitude_vector=torch.ones(9216)), {}, (FLUX,), ("comfy",), "comfy"
    ),
    "key-unread": Odd(
        flux() | {f"{FLUX}.lora_mid.weight": torch.ones(RANK, RANK, 3, 3)},
        {},
        (FLUX,),
        ("comfy",),
        "comfy",
    ),
    "strength-differs": Odd(
        {f"{FLUX}.oft_blocks": torch.ones(4, 2304, 4)[:, :4]}, {}, (FLUX,), ("comfy",), "comfy"
    ),
}  # fmt: skip
# A file that no program loads whole is not clean of this; it is of every other code.
SEVERITIES = {"refused": "error", "nothing-loads": "error", "part-loads": "error",
              "scale-lost": "error", "magnitude-lost": "error", "key-unread": "error"}  # fmt: skip


def write(path, odd):
    save_file({key: one.contiguous() for key, one in odd.tensors.items()}, path, odd.metadata)
    return path


def clean(folder):
    """A file that nothing can be said of."""
    odd = Odd(layers())
    path = write(folder / "clean.safetensors", odd)
    raw = path.read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    told = TOLD | {"sshs_model_hash": hashlib.sha256(raw[start:]).hexdigest()}
    return write(path, Odd(layers(), told))


def linted(path, programs=(), **options):
    with open_source(path) as source:
        return lint(source, programs, **options)


def test_a_clean_file_has_no_findings(tmp_path):
    found = linted(clean(tmp_path))
    assert found.findings == ()
    assert [verdict.count("loads") for verdict in found.verdicts] == [2, 2, 2, 2]
    assert [verdict.scales for verdict in found.verdicts] == [{1.0: 2}] * 4
    assert found.architecture == "Stable Diffusion 1"


def test_every_code_has_a_file():
    assert list(ODD) == list(CODES)


@pytest.mark.parametrize("code", ODD)
def test_a_code_is_found_where_it_is_and_only_there(code, tmp_path):
    odd = ODD[code]
    found = linted(write(tmp_path / "odd.safetensors", odd), odd.programs)
    (one,) = [one for one in found.findings if one.code == code and one.program == odd.program]
    assert one.severity == SEVERITIES.get(code, CODES[code][0])
    assert odd.where is None or one.where == odd.where or (odd.where == () and not one.where)
    assert one.message
    assert not one.message.endswith(".")
    asked = linted(clean(tmp_path), odd.programs)
    assert code not in {one.code for one in asked.findings}


@pytest.mark.parametrize("code", SEVERITIES)
def test_what_a_program_does_not_load_is_an_error_where_it_was_asked_for(code, tmp_path):
    odd = ODD[code]
    found = linted(write(tmp_path / "odd.safetensors", odd))
    same = [one for one in found.findings if one.code == code and one.program == odd.program]
    assert [one.severity for one in same] == ["warning"]


CURED = [
    *("alpha-partly", "alpha-integer", "dtype-rare", "hash-false", "hash-missing"),
    *("metadata-missing", "metadata-rank", "metadata-alpha", "target-twice", "layer-zero"),
    *("refused", "nothing-loads", "part-loads", "scale-lost", "magnitude-lost", "format-mixed"),
]


@pytest.mark.parametrize("code", CURED)
def test_the_cure_cures(code, tmp_path):
    odd = ODD[code]
    path = write(tmp_path / "odd one.safetensors", odd)
    found = linted(path, odd.programs)
    (one,) = [one for one in found.findings if one.code == code and one.program == odd.program]
    words = shlex.split(worded(one.cure))
    assert words[0] == "lorakit"
    done = lorakit_here(*words[1:])
    assert done.status == 0, done.err
    again = linted(Path(words[words.index("-o") + 1]), (odd.program,) if odd.program else ())
    assert code not in {one.code for one in again.findings}


def test_a_kind_that_a_program_does_not_know_becomes_a_lora(tmp_path):
    factors = {"w1_a": (64, 2), "w1_b": (2, 64), "w2_a": (64, 2), "w2_b": (2, 64)}
    loha = {f"{SECOND}.hada_{role}": torch.ones(shape) for role, shape in factors.items()}
    others = {key: one for key, one in layers().items() if key.startswith(FIRST)}
    path = write(tmp_path / "odd.safetensors", Odd(others | loha))
    found = linted(path, ["comfy", "kohya"])
    assert [verdict.count("loads") for verdict in found.verdicts] == [2, 1]
    (one,) = found.of("kohya")
    assert (one.code, one.where) == ("part-loads", (SECOND,))
    assert "does not know the kind LoHa" in one.message
    words = shlex.split(worded(one.cure))
    assert words[-4:] == ["--to", "lora", "--format", "kohya"]
    assert lorakit_here(*words[1:]).status == 0
    assert linted(Path(words[4]), ["kohya"]).verdicts[0].count("loads") == 2


def test_the_model_can_be_named():
    tensors = pair("diffusion_model.out.2", 4, 320, (".lora_B.weight", ".lora_A.weight"))
    assert lint(DictSource(tensors)).architecture is None
    found = lint(DictSource(tensors), ["comfy"], architecture="sd1")
    assert (found.architecture, found.verdicts[0].count("loads")) == ("Stable Diffusion 1", 1)


def test_comfyui_fails_on_a_boft_without_a_bound():
    boft = kinds.kinds("linear")["boft"]["oft_blocks"]
    module = "diffusion_model.double_blocks.0.img_mlp.2"
    tensors = flux() | {f"{module}.oft_blocks": boft}
    (verdict,) = lint(DictSource(tensors), ["comfy"], headers_only=True).verdicts
    assert verdict.reads[module].reason == "fails on the kind BOFT without an alpha"
    tensors |= {f"{module}.alpha": torch.tensor(0.0)}
    (verdict,) = lint(DictSource(tensors), ["comfy"], headers_only=True).verdicts
    assert verdict.reads[module].state == "loads"


# --- programs


@pytest.mark.parametrize("model", KOHYA_NAMES)
@pytest.mark.parametrize("program", PROGRAMS)
def test_the_names_of_kohyas_networks_load_everywhere(model, program):
    widths = {"sd15": 768, "sdxl": 2048}
    tensors = {}
    for module in KOHYA_NAMES[model]:
        into = widths.get(model, 64) if "attn2_to_k" in module else 64
        rows = 64 * next(
            (n for end, n in (("_qkv", 3), ("_linear1", 7)) if module.endswith(end)), 1
        )
        tensors |= pair(module, rows, into, rank=1) | {f"{module}.alpha": torch.tensor(1.0)}
    (verdict,) = lint(DictSource(tensors), [program], headers_only=True).verdicts
    left = {module for module, read in verdict.reads.items() if read.state != "loads"}
    # diffusers loads one text encoder of Flux.
    unread = "lora_te3_" if program == "diffusers" else "none"
    assert {module for module in left if not module.startswith(unread)} == set()
    assert verdict.refused == ""


@pytest.mark.parametrize(
    "module", ["lora_unet_conv_in", "lora_unet_time_embedding_linear_1", "lora_unet_input_blocks_1_1_proj_in"]
)  # fmt: skip
def test_kohya_passes_over_what_its_network_has_not(module):
    found = lint(DictSource(layers() | pair(module, 64, 64)), ["kohya"], headers_only=True)
    assert found.verdicts[0].reads[module].state == "left"
    assert found.verdicts[0].count("loads") == 2


def test_kohyas_flux_needs_alphas_and_its_stable_diffusion_does_not():
    names = "lora_unet_double_blocks_0_img_attn_qkv"
    found = lint(DictSource(pair(names, 9216, 3072)), ["kohya"], headers_only=True)
    assert "has no alpha" in found.verdicts[0].refused
    assert lint(DictSource(layers(None)), ["kohya"], headers_only=True).verdicts[0].refused == ""


def test_forge_runs_fewer_models():
    found = lint(DictSource(pair(WAN, 64, 64)), ["comfy", "forge"], headers_only=True)
    assert [verdict.count("loads") for verdict in found.verdicts] == [1, 0]
    (one,) = found.of("forge")
    assert (one.code, one.cure) == ("nothing-loads", "")
    assert "no loader for adapters of Wan" in one.message


def test_effective_scales_are_those_of_the_stored_numbers():
    tensors = flux(alpha=torch.tensor(1.0)) | pair(
        "diffusion_model.single_blocks.0.linear2", 3072, 15360, (".lora_B.weight", ".lora_A.weight")
    )
    found = lint(DictSource(tensors, PEFT), ["comfy"], headers_only=True)
    assert found.verdicts[0].scales == {0.25: 1, 1.0: 1}
    (one,) = [one for one in found.findings if one.code == "scale-lost"]
    assert one.where == ("diffusion_model.single_blocks.0.linear2",)
    assert "gets 1 instead of 4" in one.message  # 8 / sqrt(4)


# --- the file


def test_headers_alone_read_no_numbers(tmp_path):
    class Reading(DictSource):
        def tensor(self, key):
            assert key.endswith(".alpha"), key
            return super().tensor(key)

    found = lint(Reading(ODD["not-finite"].tensors, TOLD), headers_only=True)
    assert "not-finite" not in {one.code for one in found.findings}


def test_numbers_are_read_one_tensor_at_a_time():
    keys = []

    class Reading(DictSource):
        def tensor(self, key):
            keys.append(key)
            return super().tensor(key)

    seen = []
    lint(Reading(layers()), progress=lambda *step: seen.append(step))
    assert sorted(key for key in keys if "alpha" not in key) == sorted(
        key for key in layers() if "alpha" not in key
    )
    assert seen == [(1, 2, FIRST), (2, 2, SECOND)]


def test_a_dora_layer_with_zero_factors_is_no_zero_layer():
    tensors = layers() | {DOWN: torch.zeros(RANK, 768), f"{FIRST}.dora_scale": torch.ones(320, 1)}
    assert "layer-zero" not in {one.code for one in lint(DictSource(tensors)).findings}


@pytest.mark.parametrize("kind", kinds.kinds("conv3x3"))
def test_every_kind_is_read_without_complaint(kind):
    module = "diffusion_model.input_blocks.1.0.in_layers.2"
    tensors = {f"{module}.{suffix}": one for suffix, one in kinds.kinds("conv3x3")[kind].items()}
    mark = {f"diffusion_model.{k}": one for k, one in pair("input_blocks.4.1.transformer_blocks.0.attn2.to_k", 640, 768).items()}  # fmt: skip
    codes = {one.code for one in lint(DictSource(tensors | mark), ["comfy"]).findings}
    assert not codes & {"incomplete", "shapes-disagree", "unsupported", "refused", "not-finite"}


def test_what_is_asked_wrongly():
    with pytest.raises(ArgumentError, match="unknown program `a1111`; it is one of comfy, forge"):
        lint(DictSource(layers()), ["a1111"])
    with pytest.raises(UnknownFormatError):
        lint(DictSource({"model.weight": torch.ones(2, 2)}))


# --- the command


def test_exit_status_and_table(tmp_path):
    path = clean(tmp_path)
    done = lorakit_here("lint", path, "--for", "comfy", "--for", "kohya")
    assert done.status == 0
    assert re.search(r"comfy +2 of 2 layers load, at scale 1", done.out)
    assert "diffusers" not in done.out
    assert "nothing to say" in done.out
    odd = write(tmp_path / "odd.safetensors", ODD["nothing-loads"])
    assert lorakit_here("lint", odd).status == 0
    asked = lorakit_here("lint", odd, "--for", "diffusers")
    assert asked.status == 1
    assert re.search(r"error +nothing-loads +diffusers 0\.42 does not know the name", asked.out)
    assert f"lorakit convert {odd} -o" in asked.out


def test_json(tmp_path):
    path = write(tmp_path / "odd.safetensors", ODD["not-finite"])
    done = lorakit_here("lint", path, "--json", "-")
    assert done.status == 1
    read = json.loads(done.out)
    assert read["errors"] is True
    assert read["programs"]["comfy"]["loads"] == 2
    assert read["programs"]["comfy"]["scales"] == {"1": 2}
    (one,) = [one for one in read["findings"] if one["code"] == "not-finite"]
    assert (one["severity"], one["count"], one["where"]) == ("error", 1, [UP])


@pytest.mark.parametrize("told", ["", " ", "0x", "0", "0" * 64])
def test_a_hash_that_says_nothing_is_missing_and_not_false(told, tmp_path):
    path = write(tmp_path / "odd.safetensors", Odd(layers(), TOLD | {"sshs_model_hash": told}))
    codes = {one.code for one in linted(path).findings}
    false = "hash-false" in codes
    assert false == (told in ("0", "0" * 64))
    assert false != ("hash-missing" in codes)
    with open_source(path) as source:
        assert (false_hash(source) is not None) == false


def test_the_page_has_every_code_with_its_severity():
    page = (ROOT / "docs" / "lint.md").read_text("utf-8")
    rows = re.findall(r"^\| `([a-z-]+)` \| (\w+) \|", page, re.MULTILINE)
    assert rows == [(code, severity) for code, (severity, _) in CODES.items()]


@pytest.mark.parametrize("name", ["analog_svd_rank4_kohya", "lora_disney_kohya"])
def test_real_files(name):
    path = REAL / f"{name}.safetensors"
    if not path.is_file():
        pytest.skip(f"{path.name} is not in {REAL.name}: see its README for where to get it")
    found = linted(path)
    assert [verdict.count("loads") for verdict in found.verdicts] == [144] * 4
    assert {one.code for one in found.findings} == {"hash-missing"}
    assert len(load_file(path)) == 432 or found.verdicts[0].layers == 144


def test_the_alphas_of_a_file_without_any_are_not_made_up():
    def said(tensors, **told):
        found = lint(DictSource(tensors, TOLD | told), headers_only=True).findings
        return [one.message for one in found if one.code == "metadata-alpha"]

    nothing = layers(None)
    assert said(nothing, ss_network_alpha="1") == [
        "`ss_network_alpha` is 1, no layer has an alpha: the scale is 1"
    ]
    assert said(nothing, ss_network_alpha="4") == []  # rank 4: scale 1 it is
    assert said(layers(2.0), ss_network_alpha="1") == ["`ss_network_alpha` is 1, the alphas are 2"]
    some = without(".alpha")
    assert said(some, ss_network_alpha="1") == [
        "`ss_network_alpha` is 1, the alphas are 4, and some layers have none"
    ]
