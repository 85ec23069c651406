"""Which weights of two checkpoints belong together, and what is said where they do not."""

from __future__ import annotations

import pytest
import torch
from checkpoints import FLUX, MODELS, SD1, WAN, is_matrix, target

from lorakit.lora_ops import DictSource, plan_extraction
from lorakit.lora_ops.errors import ArgumentError, MismatchError, TargetMismatchError
from lorakit.lora_ops.models.pairing import nearest, pair

UNET = "model.diffusion_model."


def empty(shapes, name="model.safetensors"):
    """A checkpoint without data: pairing reads headers only."""
    tensors = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    return DictSource(tensors, name=name)


def unet(shapes):
    return {key: shape for key, shape in shapes.items() if key.startswith(UNET)}


def bare(shapes):
    return {key.removeprefix(UNET): shape for key, shape in shapes.items()}


def targets(pairs):
    return {both.target for both in pairs}


@pytest.mark.parametrize("name", [*MODELS])
def test_a_checkpoint_pairs_with_itself(name):
    shapes = MODELS[name]
    found = pair(empty(shapes), empty(shapes))
    if name != "openclip":
        wanted = {target(key) for key, shape in shapes.items() if is_matrix(key, shape)}
        assert targets(found.candidates) == {name for name in wanted if not name.startswith("vae.")}
    assert (*found.only_base, *found.only_tuned, *found.reshaped) == ()
    assert (*found.absent, *found.excluded) == ()
    everything = [both.name for both in (*found.candidates, *found.rest)]
    assert len(everything) == len(set(everything))
    for both in found.candidates:
        assert both.shape[0] * both.matrix[1] == torch.Size(both.shape).numel()


SPELLINGS = {
    "full": SD1,
    "unet with its prefix": unet(SD1),
    "unet without a prefix": bare(unet(SD1)),
    "unet as ComfyUI names it": {key.removeprefix("model."): s for key, s in unet(SD1).items()},
}


@pytest.mark.parametrize("tuned", SPELLINGS)
@pytest.mark.parametrize("base", SPELLINGS)
def test_prefixes_do_not_matter(base, tuned):
    found = pair(empty(SPELLINGS[base], "base"), empty(SPELLINGS[tuned], "tuned"))
    wanted = {target(key) for key, shape in unet(SD1).items() if is_matrix(key, shape)}
    assert wanted <= targets(found.candidates)
    assert (*found.only_base, *found.only_tuned, *found.reshaped) == ()
    lacking = [name for name, side in (("base", base), ("tuned", tuned)) if side != "full"]
    if len(lacking) == 1:
        assert found.absent == (f"text encoder: not in {lacking[0]}",)
    else:
        assert found.absent == ()


@pytest.mark.parametrize("prefix", ["diffusion_model.", "model.diffusion_model."])
def test_flux_with_a_prefix_on_one_side_only(prefix):
    prefixed = {prefix + key: shape for key, shape in FLUX.items()}
    found = pair(empty(FLUX), empty(prefixed))
    assert len(found.candidates) == sum(is_matrix(*item) for item in FLUX.items())
    assert all(both.target.startswith("diffusion_model.") for both in found.candidates)


def test_candidates_are_in_the_tuned_files_order():
    turned = dict(reversed(FLUX.items()))
    order = [both.target for both in pair(empty(FLUX), empty(turned)).candidates]
    assert order == [target(key) for key, shape in turned.items() if is_matrix(key, shape)]


def many(count=40):
    return {f"blocks.{index}.attn.q.weight": (32, 32) for index in range(count)}


def test_a_key_on_one_side_only_is_listed():
    base, tuned = many(), many()
    del base["blocks.7.attn.q.weight"]
    del tuned["blocks.3.attn.q.weight"]
    found = pair(empty(base), empty(tuned))
    assert found.only_tuned == ("diffusion_model.blocks.7.attn.q.weight",)
    assert found.only_base == ("diffusion_model.blocks.3.attn.q.weight",)
    assert len(found.candidates) == 38


def test_a_widened_layer_is_listed_with_both_shapes():
    """Flux's control models have a wider first layer."""
    wide = many() | {"blocks.0.attn.q.weight": (32, 64)}
    found = pair(empty(many()), empty(wide))
    assert found.reshaped == (("diffusion_model.blocks.0.attn.q.weight", (32, 32), (32, 64)),)
    assert len(found.candidates) == 39


def test_buffers_and_scalars_are_no_candidates():
    odd = {
        "__index_timestep_zero__": (),
        "blocks.0.scale": (),
        "blocks.0.table.weight": (0, 8),
    }
    found = pair(empty(many()), empty(many() | odd))
    assert len(found.candidates) == 40
    both = pair(empty(many() | odd), empty(many() | odd))
    assert len(both.candidates) == 40
    assert len(both.rest) == 3


def test_too_few_in_common_lists_names_and_the_nearest():
    renamed = {key.replace(".attn.q", ".attention.q"): shape for key, shape in many().items()}
    with pytest.raises(TargetMismatchError) as error:
        pair(empty(many(), "base.safetensors"), empty(renamed, "tuned.safetensors"))
    text = str(error.value)
    assert text.startswith(
        "only 0 of 80 weights match between base.safetensors and tuned.safetensors"
    )
    assert (
        "`diffusion_model.blocks.0.attention.q.weight` only in tuned.safetensors; "
        "nearest: `diffusion_model.blocks.0.attn.q.weight`"
    ) in text
    assert "in all 40 only in tuned, 40 only in base, 0 of another shape" in text
    assert "`allow_partial=True`" in text


@pytest.mark.parametrize(("missing", "enough"), [(2, True), (3, False)])
def test_ninety_five_per_cent(missing, enough):
    fewer = dict(list(many().items())[missing:])
    if enough:
        assert len(pair(empty(many()), empty(fewer)).candidates) == 40 - missing
        return
    with pytest.raises(TargetMismatchError, match="only 37 of 40 weights match"):
        pair(empty(many()), empty(fewer))
    found = pair(empty(many()), empty(fewer), allow_partial=True)
    assert (len(found.candidates), len(found.only_base)) == (37, 3)


def test_nothing_in_common_is_an_error_even_where_part_is_allowed():
    with pytest.raises(TargetMismatchError, match="only 0 of"):
        pair(empty(FLUX), empty(WAN), allow_partial=True)


def test_swapped_architectures():
    with pytest.raises(TargetMismatchError, match="are they of one architecture"):
        pair(empty(FLUX, "flux"), empty(WAN, "wan"))


def test_diffusers_names_against_native_ones():
    diffusers = {
        "transformer_blocks.0.attn.to_q.weight": (48, 48),
        "transformer_blocks.0.attn.add_q_proj.weight": (48, 48),
        "single_transformer_blocks.0.attn.to_q.weight": (48, 48),
        "x_embedder.weight": (48, 64),
    }
    with pytest.raises(TargetMismatchError) as error:
        pair(empty(FLUX, "bfl"), empty(diffusers, "hub"))
    assert "bfl has native names and hub has diffusers names" in str(error.value)
    assert "give both in one naming scheme" in str(error.value)


def test_files_without_a_layer():
    norms = {"blocks.0.norm.weight": (8,)}
    with pytest.raises(TargetMismatchError, match="share no component with weights"):
        pair(empty(norms), empty(norms))


# --- Patterns and components --------------------------------------------------------------------


def test_patterns_choose_and_the_rest_is_excluded():
    found = pair(empty(FLUX), empty(FLUX), include=["*img_*"], exclude=["*.img_mlp.*"])
    assert targets(found.candidates) == {
        "diffusion_model.img_in",
        "diffusion_model.double_blocks.0.img_attn.qkv",
    }
    assert len(found.candidates) + len(found.excluded) == sum(is_matrix(*x) for x in FLUX.items())


@pytest.mark.parametrize("kind", ["include", "exclude"])
def test_a_pattern_that_fits_nothing_names_the_nearest(kind):
    with pytest.raises(ArgumentError) as error:
        pair(empty(FLUX), empty(FLUX), **{kind: ["*double_blocks.0.img_atn.qkv"]})
    assert "pattern `*double_blocks.0.img_atn.qkv` fits none of 8 targets" in str(error.value)
    assert "nearest: `diffusion_model.double_blocks.0.img_attn.qkv`" in str(error.value)


def test_components_choose():
    both = empty(SD1)
    assert {p.component for p in pair(both, both).candidates} == {"unet", "te"}
    for component in ("unet", "te", "vae"):
        found = pair(both, both, components=[component])
        assert {p.component for p in (*found.candidates, *found.rest)} == {component}


def test_an_unknown_component():
    with pytest.raises(ArgumentError, match="unknown component `clip`; choose among unet, te, vae"):
        pair(empty(SD1), empty(SD1), components=["clip"])


def test_a_component_that_was_asked_for_and_is_absent():
    with pytest.raises(MismatchError) as error:
        pair(empty(SD1, "full"), empty(unet(SD1), "pruned"), components=["unet", "te"])
    assert str(error.value).startswith("pruned: no weights of a text encoder in it")
    assert "leave `te` out of the components" in str(error.value)


def test_nearest_is_honest():
    assert nearest("img_in", ["img_im", "txt_in"]) == "`img_im`"
    assert nearest("img_in", ["0000"]) == "none"


def test_pairing_reads_no_data():
    class Closed(DictSource):
        def tensor(self, key):
            raise AssertionError(f"{key} was read")

    tensors = {key: torch.empty(shape) for key, shape in FLUX.items()}
    assert len(pair(Closed(tensors), Closed(tensors)).candidates) == 8


def test_ema_weights_alone_are_called_by_their_name():
    ema = {
        "model_ema." + key.removeprefix("model.").replace(".", ""): shape
        for key, shape in unet(SD1).items()
    }
    others = {key: shape for key, shape in SD1.items() if not key.startswith(UNET)}
    for shapes in (ema, ema | others):
        with pytest.raises(MismatchError, match="is a set of EMA weights alone"):
            plan_extraction(empty(SD1), empty(shapes), 4)
    assert pair(empty(SD1), empty(SD1 | ema)).candidates
