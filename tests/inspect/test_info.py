from __future__ import annotations

import json
import os
import time

import pytest
import torch
from commands import REAL
from keys import checkpoints
from safetensors.torch import load_file, save_file

from lorakit.lora_ops import decode, open_source
from lorakit.lora_ops.errors import LayerShapeError
from lorakit.lora_ops.files.positional import read_at
from lorakit.lora_ops.inspect.info import Part, describe
from lorakit.lora_ops.source import DictSource

UNET = "model.diffusion_model."


def pair(
    module, out, into, kernel=(), rank=4, alpha=4.0, up=".lora_up.weight", down=".lora_down.weight"
):
    ones = tuple(1 for _ in kernel)
    tensors = {
        module + up: torch.empty(out, rank, *ones, device="meta", dtype=torch.float16),
        module + down: torch.empty(rank, into, *kernel, device="meta", dtype=torch.float16),
    }
    return tensors | ({f"{module}.alpha": torch.tensor(alpha)} if alpha is not None else {})


def adapter(*modules, metadata=None):
    tensors = {key: value for module in modules for key, value in module.items()}
    return describe(DictSource(tensors, metadata, "style.safetensors"))


@pytest.mark.parametrize(
    ("name", "rank", "dtypes"),
    [
        ("analog_svd_rank4_kohya", 4, {"float16": 288, "float32": 144}),
        ("lora_disney_kohya", 1, {"float32": 432}),
    ],
)
def test_real_adapters(name, rank, dtypes):
    path = REAL / f"{name}.safetensors"
    if not path.is_file():
        pytest.skip(f"{path.name} is not beside the checkout: it is not part of the package")
    tensors = load_file(path)
    info = describe(DictSource(tensors, name=path.name))
    assert (info.kind, info.format) == ("LoRA adapter", "kohya")
    assert info.architecture == "Stable Diffusion 1"
    assert info.targets == {"linear": 144}
    assert info.ranks == {rank: 144}
    assert info.alphas == {str(rank): 144}
    assert info.dtypes == dtypes
    assert info.components["diffusion model"].tensors == 432
    header = int.from_bytes(path.read_bytes()[:8], "little")
    assert info.bytes == path.stat().st_size - 8 - header


def test_an_adapter_of_many_shapes():
    conv = "lora_unet_input_blocks_4_0_in_layers_2"
    info = adapter(
        pair("lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k", 640, 2048),
        pair("lora_unet_input_blocks_4_1_proj_in", 640, 640, rank=8, alpha=1),
        pair(conv, 640, 320, (3, 3), rank=8, alpha=None),
        pair("lora_unet_input_blocks_4_0_skip_connection", 640, 320, (1, 1), alpha=0.5),
        pair("lora_te2_text_model_encoder_layers_0_mlp_fc1", 5120, 1280),
        pair("lora_unet_time_mixer", 640, 320, (3, 1, 1)),
        metadata={"ss_output_name": "style"},
    )
    assert info.architecture == "Stable Diffusion XL"
    assert info.targets == {"conv 1x1": 1, "conv 3x3": 1, "conv3d 3x1x1": 1, "linear": 3}
    assert info.ranks == {4: 4, 8: 2}
    assert info.alphas == {"0.5": 1, "1": 1, "4": 3, "absent": 1}
    assert info.components["text encoder"] == Part(3, 4 * (5120 + 1280) + 1)
    assert info.naming is None
    assert info.metadata == {"ss_output_name": "style"}


@pytest.mark.parametrize(
    ("modules", "format", "architecture"),
    [
        (
            pair("lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k", 320, 1024),
            "kohya",
            "Stable Diffusion 2",
        ),
        (
            pair("unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k", 320, 768),
            "diffusers",
            "Stable Diffusion 1",
        ),
        (pair("diffusion_model.blocks.0.self_attn.q", 128, 128), "comfy", "Wan"),
        (pair("base_model.model.blocks.0.self_attn.q", 128, 128), "peft", "Wan"),
        (
            pair("lora_unet_img_in", 128, 64) | pair("lora_unet_vector_in_in_layer", 128, 64),
            "kohya",
            "Flux.1",
        ),
        # Names that several models share.
        (pair("transformer.single_transformer_blocks.0.attn.to_q", 128, 128), "diffusers", None),
        (pair("lora_unet_double_blocks_0_img_attn_qkv", 384, 128), "kohya", None),
        (pair("lora_unet_brand_new", 384, 128), "kohya", None),
    ],
)
def test_families_by_their_names(modules, format, architecture):
    info = adapter(modules)
    assert (info.format, info.architecture) == (format, architecture)


def test_the_file_says_which_where_the_names_leave_several():
    module = pair("lora_unet_double_blocks_0_img_attn_qkv", 384, 128)
    assert adapter(module, metadata={"ss_base_model_version": "chroma"}).architecture == "Chroma"
    schnell = {"modelspec.architecture": "flux-1-schnell/lora"}
    assert adapter(module, metadata=schnell).architecture == "Flux.1 schnell"
    # Names that cannot be Stable Diffusion's outweigh what a careless tool wrote.
    doubt = adapter(module, metadata={"ss_base_model_version": "sd_v1"})
    assert doubt.architecture is None
    assert {"Flux.1", "Chroma", "HunyuanVideo"} < set(doubt.possible)
    assert not {"Stable Diffusion 1", "Wan"} & set(doubt.possible)
    text = pair("lora_te_text_model_encoder_layers_0_mlp_fc1", 3072, 768)
    assert adapter(text).architecture is None
    assert adapter(text, metadata={"ss_base_model_version": "sd_v1"}).architecture == (
        "Stable Diffusion 1"
    )


@pytest.mark.parametrize(
    ("keys", "kind", "targets"),
    [
        (["m.hada_w1_a", "m.hada_w1_b", "m.alpha"], "LoHa adapter", {"LoHa": 1}),
        (["m.lokr_w1", "m.lokr_w2"], "LoKr adapter", {"LoKr": 1}),
        (["m.diff", "n.diff_b"], "adapter of full differences", {"full difference": 2}),
        (["m.lora_up.weight", "m.lora_down.weight", "m.dora_scale"], "DoRA adapter", {"linear": 1}),
        (
            ["m.lora_up.weight", "m.lora_down.weight", "m.diff_b"],
            "LoRA adapter",
            {"full difference": 1, "linear": 1},
        ),
        (["m.lora_up.weight"], "LoRA adapter", {"incomplete": 1}),
        (
            ["m.lora_up.weight", "m.lora_down.weight", "n.lokr_w1"],
            "mixed adapter",
            {"LoKr": 1, "linear": 1},
        ),
    ],
)
def test_kinds_of_adapters(keys, kind, targets):
    info = describe(DictSource({key: torch.ones(1, 1) for key in keys}))
    assert (info.kind, info.targets) == (kind, targets)


@pytest.mark.parametrize(
    ("shapes", "kind", "architecture", "naming"),
    [
        (checkpoints.sdxl(), "checkpoint", "Stable Diffusion XL", "native"),
        (checkpoints.flux(), "diffusion model", "Flux.1", "native"),
        (
            checkpoints.prefixed("transformer.", {"single_transformer_blocks.0.x.weight": (1,)}),
            "diffusion model",
            None,
            "diffusers",
        ),
        (
            checkpoints.prefixed(UNET, checkpoints.unet(32, [1], width=32)),
            "diffusion model",
            None,
            "native",
        ),
        (checkpoints.clip(768), "text encoder", None, None),
        (checkpoints.vae(), "VAE", None, None),
        ({"emb_params": (8, 768)}, "embedding", "Stable Diffusion 1", None),
        ({"clip_l": (8, 768), "clip_g": (8, 1280)}, "embedding", "Stable Diffusion XL", None),
        ({"layer1.weight": (8, 8)}, "unknown", None, None),
        ({}, "unknown", None, None),
    ],
)
def test_kinds_of_models(shapes, kind, architecture, naming):
    info = describe(checkpoints.source(shapes))
    assert (info.kind, info.architecture, info.naming) == (kind, architecture, naming)
    assert info.format is None
    assert sum(part.tensors for part in info.components.values()) == len(shapes)


def test_a_checkpoint_is_counted_by_component():
    info = describe(checkpoints.source(checkpoints.sd2()))
    encoder = checkpoints.openclip(1024)
    assert info.components["text encoder"].tensors == len(encoder)
    assert info.components["other"] == Part(1, 1000)
    values = sum(part.parameters for part in info.components.values())
    assert info.bytes == 2 * values
    assert info.dtypes == {"float16": len(checkpoints.sd2())}


class Watched(DictSource):
    """Remembers what was read."""

    read: tuple[str, ...] = ()

    def tensor(self, key):
        self.read += (key,)
        return super().tensor(key)


def test_only_alphas_are_read():
    source = Watched(pair("lora_unet_a", 4, 4) | pair("lora_unet_b", 4, 4, alpha=None))
    describe(source)
    assert source.read == ("lora_unet_a.alpha",)


def test_of_700_mb_only_the_header_and_the_alphas_are_read(tmp_path, monkeypatch):
    """The data is a hole: the file is as long as it says, and takes no room on the disk."""
    rows, end = {}, 0
    for index in range(560):
        for name, shape, kind, size in (
            ("lora_up.weight", [3072, 96], "F16", 2 * 3072 * 96),
            ("lora_down.weight", [96, 3072], "F16", 2 * 96 * 3072),
            ("alpha", [], "F32", 4),
        ):
            key = f"lora_unet_single_blocks_{index}_linear2.{name}"
            rows[key] = {"dtype": kind, "shape": shape, "data_offsets": [end, end + size]}
            end += size
    text = json.dumps(rows).encode()
    path = tmp_path / "large.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    os.truncate(path, 8 + len(text) + end)
    assert path.stat().st_size > 600e6
    counts: list[int] = []

    def counted(*place):
        counts.append(read_at(*place))
        return counts[-1]

    monkeypatch.setattr("lorakit.lora_ops.files.reading.ranges.read_at", counted)
    with open_source(path) as source:
        info = describe(source)
        opened = len(decode(source).layers)
    assert (info.kind, info.ranks, opened) == ("LoRA adapter", {96: 560}, 560)
    assert len(text) <= sum(counts) <= len(text) + 560 * 4 + 4096


def test_factors_without_axes_are_counted_as_incomplete():
    keys = ("m.lora_up.weight", "m.lora_down.weight")
    info = describe(DictSource({key: torch.ones(()) for key in keys}))
    assert (info.targets, info.ranks) == ({"incomplete": 1}, {})


def test_an_alpha_that_is_no_number_is_an_error():
    tensors = pair("m", 4, 4, alpha=None) | {"m.alpha": torch.ones(3)}
    with pytest.raises(LayerShapeError, match=r"alpha `m.alpha` is \(3,\)"):
        describe(DictSource(tensors))


def test_all_of_it_is_json():
    info = adapter(pair("lora_unet_a", 4, 4), metadata={"a": "b"})
    there = json.loads(json.dumps(info.to_dict()))
    assert there["components"] == {"diffusion model": {"tensors": 3, "parameters": 33}}
    assert there["ranks"] == {"4": 1}
    assert there["metadata"] == {"a": "b"}


def test_many_layers_take_time_in_proportion(tmp_path):
    """One block number a layer, and a flag of IA3 at each: nothing is searched for in a list."""

    def seconds(count: int) -> float:
        tensors = {}
        for number in range(count):
            tensors[f"lora_unet_double_blocks_{number}_img_attn_qkv.weight"] = torch.zeros(1)
            tensors[f"lora_unet_double_blocks_{number}_img_attn_qkv.on_input"] = torch.zeros(1)
        save_file(tensors, tmp_path / "many.safetensors")
        with open_source(tmp_path / "many.safetensors") as source:
            started = time.process_time()
            assert describe(source).targets == {"IA3": count}
            return time.process_time() - started

    seconds(100)
    few = min(seconds(1_000) for _ in range(3))
    assert seconds(20_000) < 40 * max(few, 0.01)
