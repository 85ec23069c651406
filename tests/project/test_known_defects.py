"""Inputs that broke other programs: a list of fourteen, and what proves each of them here.

`PROVED` points to the tests that were there; the tests below are of what was left, and each has the
faulty variant beside it that it was made for.
"""

from __future__ import annotations

import ast
import hashlib
import json
import struct

import adapters
import pytest
import torch
from adapters import Part
from commands import TESTS, lorakit_here
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lorakit.lora_ops import DictSource, add, decode, open_source
from lorakit.lora_ops.adapters.matching.group import Term
from lorakit.lora_ops.linalg import distance
from lorakit.lora_ops.operations.resize.resize import resize

PROVED = {
    "1 prefix on one side only; diffusers' names against native ones": (
        "test_pairs.test_flux_with_a_prefix_on_one_side_only",
        "test_pairs.test_prefixes_do_not_matter",
        "test_pairs.test_diffusers_names_against_native_ones",
    ),
    "2 keys on one side only, extra buffers, a widened input": (
        "test_pairs.test_a_key_on_one_side_only_is_listed",
        "test_pairs.test_a_widened_layer_is_listed_with_both_shapes",
        "test_pairs.test_buffers_and_scalars_are_no_candidates",
    ),
    "3 scalars, norms, tables of three axes, patch embeddings of five, fused CLIP-G, embeddings": (
        "test_extract_left_out.test_every_parameter_is_a_layer_or_a_skip_exactly_once",
        "test_extract_left_out.test_the_fused_projection_of_openclip_is_three_layers",
        "test_extract.test_factors_have_the_form_of_their_weight",
    ),
    "4 no change, a change of rounding, NaN and infinity": (
        "test_extract_left_out.test_nothing_differs",
        "test_extract_left_out.test_storage_rounding_is_no_change",
        "test_extract_left_out.test_numbers_that_are_none_name_layer_file_and_count",
    ),
    "5 ranks above the size, rank 1, large layers, kernels": (
        "test_resize.test_a_rank_above_the_size_of_the_weight",
        "test_extract.test_a_rank_above_the_matrix_is_lowered_and_said",
        "test_known_defects.test_layers_of_large_models_need_their_factors_alone",
    ),
    "6 alpha missing, 0.5, of integers, with an axis, other than the rank; rsLoRA": (
        "test_known_defects.test_the_scale_of_every_alpha",
        "test_peft_config.test_scales_are_those_of_peft",
    ),
    "7 `.default`, `base_model.model.`, `lora_unet__`, `transformer.` and nothing": (
        "test_known_defects.test_every_prefix_of_one_weight_is_that_weight",
    ),
    "8 ranks that differ, sets of layers that differ, fused and split": (
        "test_add.test_the_sum_is_exact_for_any_mix",
        "test_add.test_layers_of_one_input_are_carried_with_its_strength",
        "test_convert.test_fused_and_split_adapters_can_be_added",
    ),
    "9 LoKr half full, LoHa with cores, DoRA by rows and columns, differences, bundle_emb": (
        "test_kinds.test_the_change_is_what_the_definition_says",
        "test_kinds_operations.test_a_file_of_mixed_kinds_is_resized",
        "test_recognise.test_words_beside_a_lora_are_listed_and_carried",
        "test_known_defects.test_nothing_beside_a_layer_is_lost",
    ),
    "10 strengths below zero and zero, the same twice, sums that cancel": (
        "test_add.test_strength_0_leaves_an_input_out_and_is_not_taken_for_1",
        "test_add.test_the_same_input_twice_is_twice_its_strength",
        "test_add.test_inputs_that_cancel_are_left_out",
    ),
    "11 spaces and letters in names, output an input, no folder, full disk, interrupted": (
        "test_edit_commands.test_names_with_spaces_and_letters_of_all_kinds",
        "test_edit_commands.test_status_2_where_the_output_is_an_input",
        "test_bad_input.test_places_where_nothing_can_be",
        "test_bad_input.test_a_full_disk",
        "test_interrupts.test_there_is_no_half_file",
    ),
    "12 no metadata, huge, of other letters, a stale name": (
        "test_known_defects.test_metadata_of_megabytes_and_all_letters_is_carried",
        "test_known_defects.test_no_metadata_at_all",
        "test_metadata.test_malformed_entries_stop_nothing",
    ),
    "13 headers of other writers": (
        "test_files_read.test_files_of_other_writers_are_read",
        "test_known_defects.test_the_hash_is_that_of_the_bytes_whoever_wrote_the_input",
    ),
    "14 float8, float64, integers with scales, shards, pickles": (
        "test_known_defects.test_factors_of_every_float_are_read_exactly",
        "test_files_quantised.test_scaled_storage_is_refused",
        "test_edit_bad_input.test_factors_of_integers",
        "test_files_sources.test_shards_are_one_source",
        "test_files_pickled.test_nothing_in_the_file_is_run",
    ),
}


def functions_of(module):
    tree = ast.parse(next(TESTS.rglob(f"{module}.py")).read_text("utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def test_every_item_has_its_tests():
    assert [int(item.partition(" ")[0]) for item in PROVED] == list(range(1, 15))
    for names in PROVED.values():
        for name in names:
            module, _, function = name.partition(".")
            assert function in functions_of(module), name


def close(found, exact, tolerance=1e-6):
    return (found.double() - exact.double()).norm() <= tolerance * exact.double().norm()


def pair(module, out=8, into=6, rank=4, seed=0, up=".lora_B.weight", down=".lora_A.weight"):
    generator = torch.Generator().manual_seed(seed)
    return {
        module + up: torch.randn((out, rank), generator=generator),
        module + down: torch.randn((rank, into), generator=generator),
    }


# --- 5


@pytest.mark.parametrize("shape", [(3072, 12288), (18432, 3072)])
def test_layers_of_large_models_need_their_factors_alone(shape):
    """18432 x 3072 is the modulation of Flux.1. The faulty variant forms the dense product."""
    parts = [Part(rank=8, seed=seed, shape=shape, module="m") for seed in (1, 2)]
    one, other = (adapters.adapter([part]) for part in parts)
    total, _ = add([Term(one), Term(other)])
    small, report = resize(total, 8)
    (layer,) = small.layers.values()
    assert layer.rank == 8
    # Of two small matrices of the same singular values, the best of that rank.
    factors = [part.factors() for part in parts]
    up = torch.cat([one["up"] for one in factors], 1).double()
    down = torch.cat([one["down"] for one in factors]).double()
    left, right = torch.linalg.qr(up).R, torch.linalg.qr(down.mT).R
    s = torch.linalg.svdvals(left @ right.mT)
    assert report.error == pytest.approx(float(s[8:].norm() / s.norm()), rel=1e-4)
    ours = layer.up.double() * layer.scale
    missed = distance(up, down, ours, layer.down.double())
    assert float(missed) == pytest.approx(float(s[8:].norm()), rel=1e-3)


# --- 6


@pytest.mark.parametrize(
    ("alpha", "metadata", "scale"),
    [
        (None, {}, 1.0),
        (torch.tensor(0.5), {}, 0.125),
        (torch.tensor(8, dtype=torch.int64), {}, 2.0),
        (torch.tensor([2.0]), {}, 0.5),
        (torch.tensor([[2.0]]), {}, 0.5),
        (torch.tensor(3.0, dtype=torch.bfloat16), {}, 0.75),
        (None, {"r": 4, "lora_alpha": 8}, 2.0),
        (None, {"r": 4, "lora_alpha": 8, "use_rslora": True}, 4.0),
        (None, {"r": 4, "lora_alpha": 8, "alpha_pattern": {"m": 2}}, 0.5),
        (None, {"r": 2, "lora_alpha": 8, "rank_pattern": {"m": 4}}, 2.0),
    ],
)
def test_the_scale_of_every_alpha(alpha, metadata, scale):
    """Faulty variants: no alpha is scale 0 or 1/rank; alpha over rank for rsLoRA; patterns unread."""
    tensors = pair("base_model.model.m")
    if alpha is not None:
        tensors["base_model.model.m.alpha"] = alpha
    told = {"lora_adapter_metadata": json.dumps(metadata)} if metadata else {}
    (layer,) = decode(DictSource(tensors, told)).layers.values()
    product = tensors["base_model.model.m.lora_B.weight"].double()
    product = product @ tensors["base_model.model.m.lora_A.weight"].double()
    assert close(layer.delta(torch.float64), scale * product)
    wrong = {1.0, 1 / 4, (metadata.get("lora_alpha", 4)) / 4, 0.5 * scale} - {scale}
    assert not any(close(layer.delta(torch.float64), other * product) for other in wrong)


# --- 7

SPELLINGS = (
    ("diffusion_model.blocks.0.self_attn.q", ".lora_B.weight", ".lora_A.weight"),
    ("base_model.model.blocks.0.self_attn.q", ".lora_B.default.weight", ".lora_A.default.weight"),
    ("base_model.model.diffusion_model.blocks.0.self_attn.q", ".lora_B", ".lora_A"),
    ("lora_unet__blocks_0_self_attn_q", ".lora_up.weight", ".lora_down.weight"),
    ("lora_unet_blocks_0_self_attn_q", ".lora_up.weight", ".lora_down.weight"),
    ("blocks.0.self_attn.q", ".lora.up.weight", ".lora.down.weight"),
    ("transformer.blocks.0.attn1.to_q", ".lora_B.weight", ".lora_A.weight"),
    ("model.diffusion_model.blocks.0.self_attn.q", "_lora.up.weight", "_lora.down.weight"),
)


def test_every_prefix_of_one_weight_is_that_weight():
    """The faulty variant keeps them as so many layers, of which a loader takes the last."""
    files = [
        pair(module, seed=seed, up=up, down=down)
        for seed, (module, up, down) in enumerate(SPELLINGS)
    ]
    terms = [Term(decode(DictSource(tensors))) for tensors in files]
    total, _ = add(terms, format="comfy")
    assert list(total.layers) == ["diffusion_model.blocks.0.self_attn.q"]
    exact = sum(next(iter(t.values())).double() @ list(t.values())[1].double() for t in files)
    (layer,) = total.layers.values()
    assert close(layer.delta(torch.float64), exact)
    assert not close(layer.delta(torch.float64), exact / len(files), 0.1)


# --- 9


@pytest.mark.parametrize("command", [("resize", "--rank", "2"), ("scale", "--strength", "0.5")])
def test_nothing_beside_a_layer_is_lost(command, tmp_path):
    """The faulty variant drops whatever is no pair."""
    tensors = adapters.tensors(format="comfy") | {
        "diffusion_model.out.2.diff_b": torch.randn(4),
        "diffusion_model.time_embed.0.diff": torch.randn(6, 5),
        "diffusion_model.norm.diff": torch.randn(4),
        "bundle_emb.cat.string_to_param.*": torch.randn(2, 768),
    }
    path = adapters.written(tmp_path / "lora.safetensors", tensors)
    out = tmp_path / "out.safetensors"
    word, *options = command
    done = lorakit_here(word, path, "-o", out, *options)
    assert done.status == 0, done.err
    written = load_file(out)
    left = tensors.keys() - written.keys()
    assert all(key.endswith(".lora_mid.weight") for key in left), "a core goes into its down"
    factor = 0.5 if word == "scale" else 1.0
    for key in ("out.2.diff_b", "time_embed.0.diff", "norm.diff"):
        exact = factor * tensors[f"diffusion_model.{key}"]
        assert torch.equal(written[f"diffusion_model.{key}"], exact), key


# --- 12


def test_metadata_of_megabytes_and_all_letters_is_carried(tmp_path):
    """Faulty variants: a header of a fixed size, ASCII alone, the name of the input's file kept."""
    tags = {f"タグ{number} é 🌼": {"b": number} for number in range(60_000)}
    metadata = {
        "ss_tag_frequency": json.dumps(tags, ensure_ascii=False),
        "ss_output_name": "stale",
        "modelspec.title": "stale",
        "note": "naïve — ﷽",
    }
    assert len(metadata["ss_tag_frequency"].encode()) > 1 << 20
    path = adapters.written(tmp_path / "in.safetensors", adapters.tensors(), metadata)
    out = tmp_path / "größe.safetensors"
    assert lorakit_here("resize", path, "-o", out, "--rank", "2").status == 0
    with safe_open(out, "pt") as file:
        written = file.metadata()
    assert json.loads(written["ss_tag_frequency"]) == tags
    assert written["note"] == metadata["note"]
    assert (written["ss_output_name"], written["modelspec.title"]) == ("größe", "größe")


def test_no_metadata_at_all(tmp_path):
    path = tmp_path / "in.safetensors"
    save_file(adapters.tensors(), path)
    with safe_open(path, "pt") as file:
        assert file.metadata() is None
    for word, *options in (("resize", "--rank", "2"), ("scale", "--strength", "2"), ("info",)):
        output = ["-o", tmp_path / f"{word}.safetensors"] if options else []
        assert lorakit_here(word, path, *output, *options).status == 0


# --- 13


def by_hand(path, tensors):
    """A file as a plain writer leaves it: in the order given, not padded, its data at odd places."""
    header, data = {}, b""
    for key, tensor in tensors.items():
        raw = tensor.contiguous().numpy().tobytes()
        name = {torch.float32: "F32", torch.float16: "F16"}[tensor.dtype]
        offsets = [len(data), len(data) + len(raw)]
        header[key] = {"dtype": name, "shape": list(tensor.shape), "data_offsets": offsets}
        data += raw
    text = json.dumps(header).encode()
    text += b" " * (len(text) % 8 == 0)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


@pytest.mark.parametrize("command", [("resize", "--rank", "2"), ("scale", "--strength", "2")])
def test_the_hash_is_that_of_the_bytes_whoever_wrote_the_input(command, tmp_path):
    tensors = dict(reversed(adapters.tensors().items()))
    path, out = by_hand(tmp_path / "in.safetensors", tensors), tmp_path / "out.safetensors"
    word, *options = command
    assert lorakit_here(word, path, "-o", out, *options).status == 0
    raw = out.read_bytes()
    data = raw[8 + int.from_bytes(raw[:8], "little") :]
    with safe_open(out, "pt") as file:
        told = file.metadata()["sshs_model_hash"]
    assert told == hashlib.sha256(data).hexdigest()
    # The faulty variant: the input's, carried.
    before = path.read_bytes()
    assert told != hashlib.sha256(before[8 + int.from_bytes(before[:8], "little") :]).hexdigest()


# --- 14


@pytest.mark.parametrize("dtype", adapters.DTYPES, ids=str)
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_factors_of_every_float_are_read_exactly(dtype, suffix, tmp_path):
    """The faulty variant computes in the stored dtype, or casts to fp16 first."""
    part = Part(rank=6, dtype=dtype, alpha=3.0)
    tensors = adapters.tensors([part])
    path = tmp_path / f"in{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(tensors, path)
    with open_source(path) as source:
        small, report = resize(decode(source), 2)
    (exact,) = adapters.changes(tensors).values()
    s = torch.linalg.svdvals(exact)
    assert report.error >= float(s[2:].norm() / s.norm()) * (1 - 1e-6)
    (layer,) = small.layers.values()
    missed = (layer.delta(torch.float64) - exact).norm() / exact.norm()
    assert report.error == pytest.approx(float(missed), rel=1e-3)
