"""lint's verdict for diffusers against its real loaders: every table, name, ending and subset."""

from __future__ import annotations

import itertools
import re
import shlex

import loader_files
import pytest
import torch
from adapters import written
from commands import lorakit_here
from loader_files import ENDS, pair
from safetensors.torch import load_file
from test_legacy import processors

from lorakit.lora_ops import DictSource, open_source
from lorakit.lora_ops.inspect.lint import PROGRAMS, lint
from lorakit.lora_ops.models.architectures import architecture_named, module_renames
from lorakit.terminal.wording import worded

pytest.importorskip("peft", reason="diffusers' loaders need it")
pytest.importorskip("diffusers", reason="its loaders are what is asked here")
pytestmark = pytest.mark.filterwarnings("ignore")  # theirs

LONGEST_FIRST = sorted(filter(None, loader_files.PREFIXES), key=len, reverse=True)


def bare(module):
    """A module's name without its prefix, and without what says that it is a bias."""
    prefix = next((one for one in LONGEST_FIRST if module.startswith(one)), "")
    return module.removeprefix(prefix).removesuffix(".bias")


def verdict_of(source, name):
    (verdict,) = lint(source, ["diffusers"], architecture=name, headers_only=True).verdicts
    return verdict


def said(source, name):
    """The modules that diffusers changes, as lint has it, by diffusers' names."""
    verdict = verdict_of(source, name)
    table = module_renames(architecture_named(name))
    found = set()
    for module in [] if verdict.refused else verdict.reads:
        if verdict.reads[module].state != "loads":
            continue
        place = table.find(bare(module))
        assert place is not None, module
        parts = table.foreign_parts(place.native)
        found |= {part for part, at in parts if at.start < place.stop and place.start < at.stop}
    return found


@pytest.mark.parametrize("name", loader_files.LOADERS)
def test_what_loads_is_what_lint_says(name):
    named = loader_files.sizes(name, loader_files.model_of(name))
    wrong, loading = {}, 0
    for title, tensors in loader_files.files(name, named):
        theirs, error = loader_files.loads(name, tensors)
        ours = said(DictSource(tensors), name)
        loading += bool(theirs)
        if ours != theirs:
            wrong[title] = (len(theirs), len(ours), error[:200], sorted(ours ^ theirs)[:4])
    assert wrong == {}
    assert loading > 5, "the harness can tell that something loads"


def test_every_model_with_a_loader_is_asked():
    # These load as their siblings do.
    siblings = {"sd2": "sd1", "flux_schnell": "flux"}
    routes = PROGRAMS["diffusers"].routes
    assert set(routes) - set(siblings) == set(loader_files.LOADERS)
    assert all(routes[one] == routes[other] for one, other in siblings.items())


def test_a_whole_file_of_peft_for_flux():
    """Its conversion wants every layer of all 57 blocks, and the last one."""
    double = [f"{part}_{layer}" for part in ("img", "txt")
              for layer in ("mod.lin", "attn.qkv", "attn.proj", "mlp.0", "mlp.2")]  # fmt: skip
    names = [f"double_blocks.{n}.{layer}" for n in range(19) for layer in double]
    names += [f"single_blocks.{n}.{layer}" for n in range(38)
              for layer in ("modulation.lin", "linear1", "linear2")]  # fmt: skip
    names.append("final_layer.linear")
    native, _ = loader_files.sizes("flux", loader_files.model_of("flux", blocks=(19, 38)))
    tensors = {}
    for name in names:
        tensors |= pair(f"base_model.model.{name}", native[name], ENDS["A"], alpha=False)
    theirs, error = loader_files.loads("flux", tensors, blocks=(19, 38))
    assert error == ""
    assert said(DictSource(tensors), "flux") == theirs
    assert len(theirs) == 19 * 14 + 38 * 6 + 1
    less = {key: one for key, one in tensors.items() if ".double_blocks.7.img_mlp.0." not in key}
    assert loader_files.loads("flux", less, blocks=(19, 38))[1].startswith("KeyError")
    missing = "`base_model.model.double_blocks.7.img_mlp.0` is missing"
    assert missing in verdict_of(DictSource(less), "flux").refused


# --- distillation LoRAs of Wan: differences of biases and norms beside the pairs

NORMS = ("self_attn.norm_k.diff", "self_attn.norm_q.diff", "norm3.diff", "norm3.diff_b")


def distilled(skip=(), biases=".", ends="A"):
    """Pairs on the blocks, differences of their biases, of norms and of what else there is."""
    native, _ = loader_files.sizes("wan", loader_files.model_of("wan"))
    found = {}
    for module, shape in native.items():
        if not module.startswith("blocks.") or module in skip:
            continue
        found |= pair(f"diffusion_model.{module}", shape, ENDS[ends], alpha=ends == "down")
        if biases in module:
            found[f"diffusion_model.{module}.diff_b"] = torch.ones(shape[0])
    for norm in NORMS:
        found[f"diffusion_model.blocks.0.{norm}"] = torch.ones(5120)
    return found


FFN = "blocks.0.ffn.2"
HEAD = {"diffusion_model.head.head.diff": torch.ones(64, 5120)}
WAN = {
    "biases": distilled,
    "biases, kohya's endings": lambda: distilled(ends="down"),
    "one without ffn.2": lambda: distilled((FFN,)),
    "ffn.2 with a bias alone": lambda: (
        distilled((FFN,)) | {f"diffusion_model.{FFN}.diff_b": torch.ones(5120)}
    ),
    "biases of some": lambda: distilled(biases="ffn.0"),
    "modulation": lambda: (
        distilled() | {"diffusion_model.blocks.0.modulation.diff": torch.ones(1, 6, 5120)}
    ),
    "patches": lambda: (
        distilled() | {"diffusion_model.patch_embedding.diff_b": torch.ones(5120)}
    ),
    "time without a weight": lambda: (
        distilled() | {"diffusion_model.time_projection.1.diff_b": torch.ones(30720)}
    ),
    "time": lambda: (
        distilled()
        | pair("diffusion_model.time_projection.1", (30720, 5120), ENDS["A"], alpha=False)
        | {"diffusion_model.time_projection.1.diff_b": torch.ones(30720)}
    ),
    "head": lambda: distilled() | HEAD | {"diffusion_model.head.head.diff_b": torch.ones(64)},
    "head without a bias": lambda: distilled() | HEAD,
    "text without a pair": lambda: (
        distilled() | {"diffusion_model.text_embedding.0.diff_b": torch.ones(5120)}
    ),
    "biases alone": lambda: {k: one for k, one in distilled().items() if ".lora_" not in k},
}  # fmt: skip


@pytest.mark.parametrize("title", WAN)
def test_distillation_loras_of_wan(title):
    tensors = WAN[title]()
    theirs, error = loader_files.loads("wan", tensors)
    source = DictSource(tensors)
    assert said(source, "wan") == theirs
    refused = verdict_of(source, "wan").refused
    assert bool(refused) == bool(error)
    assert refused or not [key for key in verdict_of(source, "wan").left if ".lora_" in key]


# --- XLabs: attention of double and single blocks

SHAPES = {
    "double": {f"double_blocks.{n}.img_attn.qkv.weight": (9216, 3072) for n in range(2)},
    "single": {f"single_blocks.{n}.linear2.weight": (3072, 15360) for n in range(2)},
}


@pytest.mark.parametrize("prefix", ["", "diffusion_model."])
@pytest.mark.parametrize("parts", [("double",), ("single",), ("double", "single")])
def test_xlabs(parts, prefix, tmp_path):
    shapes = {key: shape for part in parts for key, shape in SHAPES[part].items()}
    tensors = processors(shapes, prefix)
    theirs, error = loader_files.loads("flux", tensors)
    assert (len(theirs), error) == (16 * ("double" in parts) + 8 * ("single" in parts), "")
    with open_source(written(tmp_path / "lora.safetensors", tensors)) as source:
        assert said(source, "flux") == theirs


# --- HiDream's gates


def test_the_cure_for_a_gate_loads(tmp_path):
    native, _ = loader_files.sizes("hidream", loader_files.model_of("hidream"))
    tensors = {}
    assert any(module.endswith(".gate") for module in native)
    for module, shape in native.items():
        tensors |= pair(f"diffusion_model.{module}", shape, ENDS["A"], alpha=False)
    assert loader_files.loads("hidream", tensors)[1] != ""
    path = written(tmp_path / "lora.safetensors", tensors)
    with open_source(path) as source:
        (finding,) = lint(source, ["diffusers"], headers_only=True).of("diffusers")
    assert finding.code == "refused"
    run = lorakit_here(*shlex.split(worded(finding.cure))[1:])
    assert run.status == 0, run.err
    cured = load_file(next(one for one in tmp_path.iterdir() if one != path))
    theirs, error = loader_files.loads("hidream", cured)
    assert error == ""
    assert theirs == {module for module in native if not module.endswith(".gate")}


# --- LoKr

FUSED = {"to_qkv": ("to_q", "to_k", "to_v"),
         "to_added_qkv": ("add_q_proj", "add_k_proj", "add_v_proj")}  # fmt: skip


def apart(module):
    """A projection that diffusers fuses for LoKr, as the modules that it has else."""
    block, _, last = module.rpartition(".")
    return {f"{block}.{name}" for name in FUSED[last]} if last in FUSED else {module}


def kronecker(module, shape, whole, alpha):
    """A layer of LoKr of factor 16, with one matrix in factors or none."""
    out, into = shape[0] // 16, shape[1] // 16
    found = {f"{module}.lokr_w1": torch.ones(16, 16)}
    if whole:
        found[f"{module}.lokr_w2"] = torch.ones(out, into)
    else:
        found[f"{module}.lokr_w2_a"] = torch.ones(out, 2)
        found[f"{module}.lokr_w2_b"] = torch.ones(2, into)
    return found | ({f"{module}.alpha": torch.tensor(1.0)} if alpha else {})


@pytest.mark.parametrize("name", ["flux2", "z_image"])
def test_lokr(name):
    named = loader_files.sizes(name, loader_files.model_of(name))
    ways = itertools.product(
        zip(("native", "foreign"), named, strict=True),
        loader_files.PREFIXES.items(),
        ("all", "attention"),
        (False, True),
        (False, True),
    )
    wrong, loading = {}, 0
    for (spelling, modules), (prefix, flat), subset, whole, alpha in ways:
        tensors = {}
        for module, shape in modules.items():
            if re.search(loader_files.SUBSETS[subset], module) and all(n % 256 == 0 for n in shape):
                inner = module.replace(".", "_") if flat else module
                tensors |= kronecker(prefix + inner, shape, whole, alpha)
        theirs, error = loader_files.loads(name, tensors)
        theirs = {one for module in theirs for one in apart(module)}
        ours = said(DictSource(tensors), name)
        loading += bool(theirs)
        if ours != theirs:
            words = spelling, prefix, subset, whole, alpha
            wrong[words] = (len(theirs), len(ours), error[:200], sorted(ours ^ theirs)[:4])
    assert wrong == {}
    assert loading > 5, "the harness can tell that something loads"
