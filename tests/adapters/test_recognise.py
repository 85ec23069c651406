"""Files that are no adapters: called by their name by `info`, and by whoever is given one for a LoRA."""

from __future__ import annotations

from dataclasses import dataclass, field

import adapters
import pytest
import torch
from checkpoints import SD1
from commands import lorakit_here
from keys import checkpoints
from safetensors.torch import save_file

from lorakit.lora_ops import (
    DictSource,
    TensorSource,
    decode,
    describe,
    open_source,
    plan_extraction,
)
from lorakit.lora_ops.errors import MismatchError, UnknownFormatError


def weights(*names, shape=(4, 4)):
    return {name: torch.ones(shape) for name in names}


# Names by the loaders of ComfyUI (controlnet.py, t2i_adapter, sd1_clip.py, nodes_hypernetwork.py),
# of IP-Adapter's own releases, and of the networks that spandrel reads.
FILES = {
    "ControlNet (control-LoRA)": [
        weights("lora_controlnet", "input_blocks.1.0.in_layers.2.up", "input_blocks.1.0.in_layers.2.down"),
    ],
    "ControlNet": [
        weights("control_model.input_hint_block.0.weight", "control_model.zero_convs.0.0.weight"),
        weights("zero_convs.0.0.weight", "input_blocks.0.0.weight", "input_hint_block.0.bias"),
        weights("controlnet_cond_embedding.conv_in.weight", "conv_in.weight", "down_blocks.0.resnets.0.conv1.weight"),
        weights("controlnet_blocks.0.weight", "double_blocks.0.img_attn.norm.key_norm.scale", "img_in.weight"),
        weights("controlnet_x_embedder.weight", "transformer_blocks.0.attn.to_q.weight", "x_embedder.weight"),
        weights("control_blocks.0.after_proj.weight", "control_img_in.weight"),
        weights("after_proj_list.0.bias", "blocks.0.attn1.Wqkv.weight"),
    ],
    "T2I adapter": [
        weights("body.0.in_conv.weight", "body.0.body.0.block1.weight"),
        weights("conv_in.weight", "body.0.block1.weight", "body.0.block2.weight"),
        weights("adapter.body.0.resnets.0.block1.weight", "adapter.conv_in.weight"),
    ],
    "IP-Adapter": [
        weights("image_proj.proj.weight", "ip_adapter.1.to_k_ip.weight", "ip_adapter.1.to_v_ip.weight"),
        weights("image_proj.norm.weight", "ip_adapter.1.to_k_ip.weight", "ip_adapter.0.to_q_lora.down.weight", "ip_adapter.0.to_q_lora.up.weight",
                "ip_adapter.0.to_k_lora.down.weight", "ip_adapter.0.to_k_lora.up.weight"),
        weights("ip_adapter_proj_model.proj.weight", "double_blocks.0.processor.ip_adapter_double_stream_k_proj.weight"),
    ],
    "hypernetwork": [weights("320.0.linear.0.weight", "320.1.linear.0.bias", "768.0.linear.2.weight")],
    "embedding": [
        weights("emb_params", shape=(2, 768)),
        weights("string_to_param.*", "string_to_token.*", shape=(2, 768)),
        weights("<cat-toy>", shape=(768,)),
        weights("clip_l", "clip_g"),
        weights("prompt_embeddings", shape=(8, 4096)),
    ],
    "upscaler": [
        weights("model.0.weight", "model.1.sub.0.RDB1.conv1.0.weight", "model.1.sub.0.RDB1.conv1.0.bias"),
        weights("RRDB_trunk.0.RDB1.conv1.weight", "conv_first.weight"),
        weights("body.0.rdb1.conv1.weight", "conv_first.weight"),
        weights("body.0.weight", "body.1.weight", "body.2.bias"),
        weights("layers.0.residual_group.blocks.0.norm1.weight", "conv_first.weight"),
    ],
    "image encoder (CLIP vision)": [
        weights("vision_model.encoder.layers.0.mlp.fc1.weight", "visual_projection.weight"),
    ],
    "style model (Flux Redux)": [weights("redux_up.weight", "redux_down.weight")],
    "motion module (AnimateDiff)": [
        weights("down_blocks.0.motion_modules.0.temporal_transformer.norm.weight"),
    ],
    "text encoder": [checkpoints.clip(768), checkpoints.openclip(1280), weights("encoder.block.0.layer.0.SelfAttention.q.weight", "shared.weight")],
    "VAE": [checkpoints.vae()],
    "checkpoint": [SD1],
    "LoRA adapter": [
        # Of a language model, of a motion module, of a ControlNet: still adapters.
        weights("base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight", "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"),
        weights("down_blocks.0.motion_modules.0.temporal_transformer.transformer_blocks.0.attention_blocks.0.processor.to_q_lora.up.weight",
                "down_blocks.0.motion_modules.0.temporal_transformer.transformer_blocks.0.attention_blocks.0.processor.to_q_lora.down.weight"),
        weights("controlnet_blocks.0.lora_A.weight", "controlnet_blocks.0.lora_B.weight"),
        # Vectors of new words beside layers do not make it an embedding.
        weights("lora_unet_a.lora_up.weight", "lora_unet_a.lora_down.weight", "lora_unet_a.lora_mid.weight", "clip_l", "emb_params"),
    ],
}  # fmt: skip
CASES = [(kind, index) for kind, files in FILES.items() for index in range(len(files))]
# What has no layers at all. (Of FILES the rest is adapters, or models with weights of their own.)
OTHERS = [
    kind for kind in FILES if kind not in ("LoRA adapter", "text encoder", "VAE", "checkpoint")
]


def tensors_of(kind, index):
    found = FILES[kind][index]
    return {
        k: v if isinstance(v, torch.Tensor) else torch.empty(v, device="meta")
        for k, v in found.items()
    }


@pytest.mark.parametrize(("kind", "index"), CASES)
def test_a_file_is_called_what_it_is(kind, index):
    info = describe(DictSource(tensors_of(kind, index)))
    assert info.kind == kind
    assert sum(part.tensors for part in info.components.values()) == len(FILES[kind][index])


@dataclass
class HeaderOnly(TensorSource):
    """A source of names and shapes: to read a tensor is a fault."""

    shapes: dict
    name: str = "file"
    metadata: dict = field(default_factory=dict)

    def keys(self):
        return list(self.shapes)

    def shape(self, key):
        return tuple(self.shapes[key].shape)

    def dtype(self, key):
        return self.shapes[key].dtype

    def tensor(self, key):
        raise AssertionError(f"{key} was read")


@pytest.mark.parametrize(("kind", "index"), CASES)
def test_no_tensor_is_read(kind, index):
    assert describe(HeaderOnly(tensors_of(kind, index))).kind == kind


@pytest.mark.parametrize("kind", OTHERS)
def test_given_for_a_lora_it_is_refused_by_its_name(kind):
    with pytest.raises(UnknownFormatError, match="not a LoRA or the like") as caught:
        decode(DictSource(tensors_of(kind, 0), name="x.safetensors"))
    article = "an" if kind[0] in "aeiouI" else "a"
    assert str(caught.value).startswith(f"x.safetensors: is {article} {kind}, ")


@pytest.mark.parametrize("command", ["resize", "scale", "convert", "compare", "add", "bake"])
def test_every_command_says_so(command, tmp_path):
    path = adapters.written(tmp_path / "x.safetensors", tensors_of("embedding", 0))
    base = tmp_path / "base.safetensors"
    save_file({key: torch.ones(shape) for key, shape in SD1.items()}, base)
    output = ["-o", tmp_path / "out.safetensors"]
    arguments = {
        "resize": [path, "--rank", "2", *output],
        "scale": [path, "--strength", "2", *output],
        "convert": [path, "--format", "comfy", *output],
        "compare": [path, path],
        "add": [path, path, *output],
        "bake": [base, path, *output],
    }
    done = lorakit_here(command, *arguments[command])
    assert done.status == 1
    assert "is an embedding, not a LoRA or the like" in done.err
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize("kind", ["embedding", "hypernetwork"])
def test_given_for_a_checkpoint_it_is_refused_by_its_name(kind):
    base = DictSource({key: torch.ones(shape) for key, shape in SD1.items()}, name="base")
    other = DictSource(tensors_of(kind, 0), name="other")
    with pytest.raises(MismatchError, match=f"other is an? {kind}, not a checkpoint"):
        plan_extraction(base, other, 4)


# --- Embeddings


@pytest.mark.parametrize(
    ("tensors", "architecture", "embeddings"),
    [
        ({"emb_params": (2, 768)}, "Stable Diffusion 1", {"emb_params": (2, 768)}),
        ({"string_to_param.*": (3, 1024)}, "Stable Diffusion 2", {"string_to_param.*": (3, 1024)}),
        (
            {"clip_l": (2, 768), "clip_g": (2, 1280)},
            "Stable Diffusion XL",
            {"clip_l": (2, 768), "clip_g": (2, 1280)},
        ),
        ({"<cat-toy>": (768,)}, "Stable Diffusion 1", {"<cat-toy>": (768,)}),
        ({"prompt_embeddings": (8, 4096)}, None, {"prompt_embeddings": (8, 4096)}),
        ({"t5xxl": (2, 4096)}, None, {"t5xxl": (2, 4096)}),
    ],
)
def test_the_model_of_an_embedding_is_told_by_its_width(tensors, architecture, embeddings):
    info = describe(DictSource({key: torch.ones(shape) for key, shape in tensors.items()}))
    assert (info.kind, info.architecture) == ("embedding", architecture)
    assert info.embeddings == embeddings


def test_words_beside_a_lora_are_listed_and_carried(tmp_path):
    tensors = adapters.tensors() | {
        "bundle_emb.cat.string_to_param.*": torch.randn(2, 768),
        "bundle_emb.dog.clip_l": torch.randn(1, 768),
        "bundle_emb.dog.clip_g": torch.randn(1, 1280),
        "<s1>": torch.randn(768),
    }
    path = adapters.written(tmp_path / "x.safetensors", tensors, {"<s1>": "<embed>"})
    words = {"cat": (2, 768), "dog clip_l": (1, 768), "dog clip_g": (1, 1280), "<s1>": (768,)}
    with open_source(path) as source:
        assert describe(source).embeddings == words
    out = tmp_path / "out.safetensors"
    assert lorakit_here("resize", path, "-o", out, "--rank", "2").status == 0
    with open_source(out) as source:
        assert describe(source).embeddings == words
        for key in tensors.keys() - adapters.tensors().keys():
            assert torch.equal(source.tensor(key), tensors[key])
    shown = lorakit_here("info", path).out
    assert "cat: 2x768" in shown


def test_an_old_embedding_is_read_out_of_its_pickle(tmp_path):
    path = tmp_path / "word.pt"
    torch.save(
        {"string_to_token": {"*": 265}, "string_to_param": {"*": torch.ones(2, 768)}, "step": 1},
        path,
    )
    done = lorakit_here("info", path)
    assert done.status == 0
    assert "embedding" in done.out
    assert "Stable Diffusion 1" in done.out


def test_a_language_models_lora_is_one_of_its_text_encoder():
    info = describe(DictSource(tensors_of("LoRA adapter", 0)))
    assert list(info.components) == ["text encoder"]
    assert info.format == "peft"


# --- Files as the programs themselves name them

_TINY = {"block_out_channels": (8, 16), "norm_num_groups": 4}
_BLOCKS = {"attention_head_dim": 16, "num_attention_heads": 2, "num_layers": 1}
MODELS = {
    "ControlNet": [
        ("ControlNetModel", {**_TINY, "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"), "cross_attention_dim": 8}),
        ("FluxControlNetModel", {**_BLOCKS, "num_single_layers": 1, "in_channels": 4, "joint_attention_dim": 8, "pooled_projection_dim": 8, "axes_dims_rope": (4, 4, 8)}),
        ("SD3ControlNetModel", {**_BLOCKS, "sample_size": 8, "joint_attention_dim": 32, "caption_projection_dim": 32, "pooled_projection_dim": 8}),
        ("QwenImageControlNetModel", {**_BLOCKS, "joint_attention_dim": 8, "axes_dims_rope": (4, 4, 8), "in_channels": 4}),
    ],
    "T2I adapter": [("T2IAdapter", {"channels": [8, 16]})],
    "VAE": [
        ("AutoencoderKL", {**_TINY, "down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}),
    ],
    "motion module (AnimateDiff)": [
        ("MotionAdapter", {"block_out_channels": (8, 16), "motion_norm_num_groups": 4, "motion_num_attention_heads": 2}),
    ],
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")  # theirs
@pytest.mark.parametrize(
    ("kind", "index"), [(k, i) for k, all_ in MODELS.items() for i in range(len(all_))]
)
def test_what_diffusers_builds_is_recognised(kind, index):
    diffusers = pytest.importorskip("diffusers", reason="its models' names are what is asked here")
    name, arguments = MODELS[kind][index]
    model = getattr(diffusers, name)(**arguments)
    assert describe(DictSource(model.state_dict())).kind == kind
