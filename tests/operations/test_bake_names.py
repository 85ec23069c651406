"""Bake: names of all formats find their weights, and what is refused."""

from __future__ import annotations

import math

import pytest
import torch
from baking import LINEAR, adapter, is_rounded_once, randn, thin, whole_model
from bits import assert_equal
from checkpoints import FLUX, OPENCLIP, SD1, WAN, grid, planted, source
from commands import REAL
from keys import checkpoints
from oracles import change
from torch import Tensor

from lorakit.lora_ops import DictSource, extract, open_source
from lorakit.lora_ops.adapters.formats import COMFY, KOHYA, encode_layer, module_namer
from lorakit.lora_ops.adapters.strengths.ingredient import Ingredient
from lorakit.lora_ops.errors import (
    ArgumentError,
    FormatError,
    LoraOpsError,
    MismatchError,
    NonFiniteError,
    TargetMismatchError,
    UnsupportedLayerError,
    WeightShapeError,
)
from lorakit.lora_ops.models.architectures import detect, parameters
from lorakit.lora_ops.operations.bake.bake import bake
from lorakit.lora_ops.operations.bake.plan import plan_bake
from lorakit.lora_ops.operations.bake.tensor import bake_tensor

# --- Names and places -----------------------------------------------------------------------------


def test_fused_rows_and_turned_projections_of_openclip():
    base = {key: randn(*shape, seed=i) for i, (key, shape) in enumerate(OPENCLIP.items())}
    root = "text_encoders.clip_g.transformer."
    block = f"{root}text_model.encoder.layers.0.self_attn."
    lora = {k: v for part in "qv" for k, v in thin(f"{block}{part}_proj", (32, 1280)).items()}
    lora |= thin(f"{root}text_projection", (40, 40), seed=9)
    lora |= {f"{block}k_proj.diff_b": randn(32, seed=4)}
    baked, report = bake(source(base), [adapter(lora, 0.3)])
    stem = "conditioner.embedders.1.model."
    fused, bias = (f"{stem}transformer.resblocks.0.attn.in_proj_{x}" for x in ("weight", "bias"))
    zero = torch.zeros(32, 1280, dtype=torch.float64)

    def delta(name: str) -> Tensor:
        return change(lora[f"{name}.lora_B.weight"], lora[f"{name}.lora_A.weight"], None)

    rows = torch.cat([delta(f"{block}q_proj"), zero, delta(f"{block}v_proj")])
    assert is_rounded_once(baked[fused], base[fused].double() + 0.3 * rows)
    assert_equal(baked[fused][32:64], base[fused][32:64])
    turned = delta(f"{root}text_projection").mT
    key = f"{stem}text_projection"
    assert is_rounded_once(baked[key], base[key].double() + 0.3 * turned)
    assert not is_rounded_once(baked[key], base[key].double() + 0.3 * turned.mT)
    shift = torch.cat([torch.zeros(32), randn(32, seed=4), torch.zeros(32)]).double()
    assert is_rounded_once(baked[bias], base[bias].double() + 0.3 * shift)
    assert len(report.layers) == 4


@pytest.mark.parametrize("shapes", [SD1, OPENCLIP, FLUX])
def test_kohya_and_comfy_names_give_the_same_bytes(shapes):
    base = grid(shapes, torch.float16)
    found, _ = extract(source(base), source(planted(base)), 3)
    names = parameters(source(base))
    files: list[dict[str, Tensor]] = []
    for scheme in (COMFY, KOHYA):
        namer = module_namer(scheme, detect(names), names)
        files.append({})
        for target, layer in found.layers.items():
            if not target.endswith("text_projection"):  # kohya has no name for it
                files[-1] |= encode_layer(scheme, namer, target, layer)
    assert files[0].keys() != files[1].keys()
    results = [bake(source(base), [adapter(file)]) for file in files]
    for key in base:
        assert_equal(results[0][0][key], results[1][0][key])
    assert len(results[0][1].layers) == len(results[1][1].layers) == len(files[0]) / 3


def test_peft_names_give_the_same_bytes():
    base = grid(FLUX, torch.float16)
    lora = whole_model(FLUX)
    renamed = {
        f"base_model.model.{key.removeprefix('diffusion_model.')}": value
        for key, value in lora.items()
    }
    one, other = (bake(source(base), [adapter(file)])[0] for file in (lora, renamed))
    for key in base:
        assert_equal(one[key], other[key])


@pytest.mark.parametrize("name", ["analog_svd_rank4_kohya", "lora_disney_kohya"])
def test_every_layer_of_a_real_adapter_finds_its_weight(name):
    path = REAL / f"{name}.safetensors"
    if not path.is_file():
        pytest.skip(f"no {path.name} in shared/data/real_loras beside the checkout")
    shapes = checkpoints.prefixed("model.diffusion_model.", checkpoints.sd1_unet())
    with open_source(path) as lora:
        empty = plan_bake(checkpoints.source(shapes), [Ingredient(lora)])
        assert len(empty.changes) == 144
        assert not empty.lost
        key = "model.diffusion_model.output_blocks.3.1.transformer_blocks.0.attn2.to_k.weight"
        base = checkpoints.source(shapes)
        weight = randn(*shapes[key], size=0.02).half()
        base = DictSource({k: weight if k == key else base.tensor(k) for k in shapes})
        module = "lora_unet_up_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"
        up, down, alpha = (
            lora.tensor(f"{module}.{role}")
            for role in ("lora_up.weight", "lora_down.weight", "alpha")
        )
        baked = bake_tensor(plan_bake(base, [Ingredient(lora, 0.8)]), key)
    exact = weight.double() + 0.8 * change(up, down, float(alpha))
    assert is_rounded_once(baked.tensor, exact)
    assert (baked.tensor != weight).any()


# --- What is refused ------------------------------------------------------------------------------

MODEL = source(grid(WAN, torch.float16), "wan")
LAYER = thin(f"diffusion_model.{LINEAR}", (48, 48))
MISSPELT = thin("diffusion_model.blocks.0.self_attn.qq", (48, 48))
TEXT = thin("lora_te_text_model_encoder_layers_0_self_attn_q_proj", (48, 48))
DORA = {**LAYER, f"diffusion_model.{LINEAR}.dora_scale": torch.ones(24, 1)}
MIXED = {**LAYER, f"diffusion_model.{LINEAR}.lokr_w1": torch.ones(6, 6)}
NARROW = thin(f"diffusion_model.{LINEAR}", (48, 47))
BOTH = LAYER | thin("lora_unet_blocks_0_self_attn_q", (48, 48))
NAN = {key: tensor.clone().fill_(math.nan) for key, tensor in LAYER.items()}


@pytest.mark.parametrize(
    ("ingredients", "error", "words"),
    [
        ([], ArgumentError, "nothing to bake: no adapter is given"),
        ([adapter(LAYER, 0.0)], ArgumentError, "nothing to bake: every strength is 0"),
        ([adapter(LAYER, math.nan)], ArgumentError, "strength nan is not a finite number"),
        (
            [adapter(LAYER | MISSPELT)],
            TargetMismatchError,
            "1 of 2 layers of lora are not in wan: `diffusion_model.blocks.0.self_attn.qq`, "
            "nearest: `diffusion_model.blocks.0.self_attn.q`; give the checkpoint that the LoRA "
            "was made for; `allow_partial=True`",
        ),
        ([adapter(TEXT)], TargetMismatchError, "1 of 1 layer of lora .* it has no text encoder"),
        ([adapter(BOTH)], TargetMismatchError, "all mean `diffusion_model.blocks.0.self_attn.q`"),
        ([adapter(NARROW)], WeightShapeError, r"shape \(48, 47\).* is \(48, 48\); the LoRA is for"),
        ([adapter(DORA)], WeightShapeError, r"dora_scale is \(24, 1\), the weight \(48, 48\)"),
        ([adapter(MIXED)], UnsupportedLayerError, "of kind mixed"),
        ([adapter({})], MismatchError, "none of 0 keys belongs to a known adapter"),
        ([Ingredient(MODEL)], MismatchError, "give one checkpoint, first"),
        ([adapter(NAN)], NonFiniteError, "change of `.*q` by lora holds 2304 NaN"),
        ([adapter(LAYER, 1e9)], NonFiniteError, "do not fit float16, which ends at 65504"),
    ],
)
def test_bad_adapters_have_a_clear_error(ingredients, error, words):
    with pytest.raises(LoraOpsError, match=words) as caught:
        bake(MODEL, ingredients)
    assert type(caught.value) is error


def test_an_adapter_is_no_checkpoint():
    with pytest.raises(MismatchError, match=r"lora is an adapter .* give the checkpoint first"):
        bake(DictSource(LAYER, name="lora"), [adapter(LAYER)])


def test_ema_weights_alone_are_no_checkpoint():
    ema = {"model_ema.diffusion_modelblocks0self_attnqweight": torch.ones(48, 48)}
    with pytest.raises(MismatchError, match="base is a set of EMA weights alone"):
        bake(DictSource(ema, name="base"), [adapter(LAYER)])


def test_an_adapter_of_another_architecture_is_refused_even_in_part():
    lora = adapter(whole_model(FLUX))
    for allow_partial in (False, True):
        with pytest.raises(TargetMismatchError, match="8 of 8 layers of lora are not in wan") as e:
            bake(MODEL, [lora], allow_partial=allow_partial)
        assert "allow_partial" not in str(e.value)


def test_allowed_partially_what_is_lost_is_listed():
    baked, report = bake(MODEL, [adapter(LAYER | MISSPELT, 2.0)], allow_partial=True)
    without, _ = bake(MODEL, [adapter(LAYER, 2.0)])
    assert_equal(baked[f"{LINEAR}.weight"], without[f"{LINEAR}.weight"])
    (skip,) = report.skips
    assert (skip.target, skip.reason) == (
        "diffusion_model.blocks.0.self_attn.qq",
        "not in the checkpoint",
    )
    assert skip.norm == pytest.approx(2 * float(change(*MISSPELT.values(), None).norm()), rel=1e-5)
    assert report.left_out == pytest.approx(0.5)


def test_a_lost_layer_that_cannot_be_read_is_refused_before_the_work():
    lost = {"lora_unet_blocks_7.oft_diag": randn(2, 6, 6)}
    with pytest.raises(UnsupportedLayerError, match="of kind OFT"):
        plan_bake(MODEL, [adapter(LAYER | lost)], allow_partial=True)


def test_integers_take_no_change():
    base = {f"{LINEAR}.weight": torch.ones(48, 48, dtype=torch.int64)}
    with pytest.raises(FormatError, match="stored as int64, which are no weights to add to"):
        bake(DictSource(base), [adapter(LAYER)])


def test_a_damaged_weight_is_named_and_one_that_stays_is_not():
    base = {key: tensor.clone() for key, tensor in grid(WAN, torch.float16).items()}
    base["blocks.0.ffn.0.weight"][0, 0] = math.nan
    baked, _ = bake(source(base), [adapter(LAYER)])
    assert_equal(baked["blocks.0.ffn.0.weight"], base["blocks.0.ffn.0.weight"])
    base[f"{LINEAR}.weight"][0, :2] = math.inf
    with pytest.raises(
        NonFiniteError, match=r"`blocks.0.self_attn.q.weight` of the checkpoint holds 0 NaN and 2"
    ):
        bake(source(base), [adapter(LAYER)])


def test_a_number_too_large_for_the_new_dtype_is_an_error():
    base = grid(WAN, torch.float32)
    base["blocks.0.ffn.0.bias"][3] = 1e5
    with pytest.raises(NonFiniteError, match=r"`blocks.0.ffn.0.bias`: values up to 1e.05 do not"):
        bake(source(base), [adapter(LAYER)], dtype=torch.float16)


def test_tensors_of_an_adapter_that_are_no_layer_are_told():
    _, report = bake(MODEL, [adapter(LAYER | {"odd": torch.ones(1)})])
    assert "1 tensor of lora of no layer, the first `odd`" in report.notes


@pytest.mark.parametrize(
    ("prefix", "name"),
    [
        ("pipe.dit.", "blocks.0.self_attn.q"),  # DiffSynth-Studio's
        ("base_model.model.transformer.", "blocks.0.self_attn.q"),
        ("base_model.model.", "blocks.0.self_attn.q"),
    ],
)
@pytest.mark.parametrize("own", ["", ".default", ".my-run"])
def test_prefixes_and_names_of_adapters(prefix: str, name: str, own: str) -> None:
    base = {key: randn(*shape, seed=i) for i, (key, shape) in enumerate(WAN.items())}
    pair = thin("x", (48, 48))
    lora = {
        f"{prefix}{name}.lora_{part}{own}.weight": pair[f"x.lora_{part}.weight"] for part in "AB"
    }
    baked, report = bake(source(base), [adapter(lora)])
    assert [layer.target for layer in report.layers] == [f"diffusion_model.{name}"]
    delta = change(pair["x.lora_B.weight"], pair["x.lora_A.weight"], None)
    assert is_rounded_once(baked[f"{name}.weight"], base[f"{name}.weight"].double() + delta)
