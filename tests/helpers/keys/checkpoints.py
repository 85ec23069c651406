"""Checkpoints by name and shape only: what real files call their tensors, as small as can be."""

from __future__ import annotations

import torch

from lorakit.lora_ops.source import DictSource


def source(shapes, metadata=None, name="model.safetensors", dtype=torch.float16):
    """A source without data: reading a tensor of it would give nothing to compute with."""
    tensors = {key: torch.empty(shape, dtype=dtype, device="meta") for key, shape in shapes.items()}
    return DictSource(tensors, metadata, name)


def prefixed(prefix, shapes):
    return {prefix + name: shape for name, shape in shapes.items()}


def _linear(name, out, into, bias=True):
    return {f"{name}.weight": (out, into)} | ({f"{name}.bias": (out,)} if bias else {})


def _conv(name, out, into, size):
    return {f"{name}.weight": (out, into, size, size), f"{name}.bias": (out,)}


def _norm(name, width):
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _resnet(name, into, out, time):
    shapes = _norm(f"{name}.in_layers.0", into) | _conv(f"{name}.in_layers.2", out, into, 3)
    shapes |= _linear(f"{name}.emb_layers.1", out, time)
    shapes |= _norm(f"{name}.out_layers.0", out) | _conv(f"{name}.out_layers.3", out, out, 3)
    return shapes | (_conv(f"{name}.skip_connection", out, into, 1) if into != out else {})


def _attention(name, width, depth, text, linear):
    shapes = _norm(f"{name}.norm", width)
    for side in ("proj_in", "proj_out"):
        shapes |= (
            _linear(f"{name}.{side}", width, width)
            if linear
            else _conv(f"{name}.{side}", width, width, 1)
        )
    for index in range(depth):
        block = f"{name}.transformer_blocks.{index}"
        for attention, into in (("attn1", width), ("attn2", text)):
            shapes |= _linear(f"{block}.{attention}.to_q", width, width, bias=False)
            shapes |= _linear(f"{block}.{attention}.to_k", width, into, bias=False)
            shapes |= _linear(f"{block}.{attention}.to_v", width, into, bias=False)
            shapes |= _linear(f"{block}.{attention}.to_out.0", width, width)
        shapes |= _linear(f"{block}.ff.net.0.proj", 8 * width, width)
        shapes |= _linear(f"{block}.ff.net.2", width, 4 * width)
        for norm in ("norm1", "norm2", "norm3"):
            shapes |= _norm(f"{block}.{norm}", width)
    return shapes


def unet(text, depths, middle=1, blocks=2, width=320, linear=False, label=None, mults=None):
    """An original UNet. `depths`: transformer blocks by level; `mults`: width by level."""
    mults = mults or [1] * len(depths)
    time = 4 * width
    shapes = _linear("time_embed.0", time, width) | _linear("time_embed.2", time, time)
    if label is not None:
        shapes |= _linear("label_emb.0.0", time, label) | _linear("label_emb.0.2", time, time)
    shapes |= _conv("input_blocks.0.0", width, 4, 3)
    index, into, kept = 1, width, [width]
    for level, depth in enumerate(depths):
        out = width * mults[level]
        for _ in range(blocks):
            shapes |= _resnet(f"input_blocks.{index}.0", into, out, time)
            if depth:
                shapes |= _attention(f"input_blocks.{index}.1", out, depth, text, linear)
            into = out
            kept.append(out)
            index += 1
        if level < len(depths) - 1:
            shapes |= _conv(f"input_blocks.{index}.0.op", out, out, 3)
            kept.append(out)
            index += 1
    shapes |= _resnet("middle_block.0", into, into, time)
    if middle:
        shapes |= _attention("middle_block.1", into, middle, text, linear)
    shapes |= _resnet("middle_block.2" if middle else "middle_block.1", into, into, time)
    index = 0
    for level, depth in reversed(list(enumerate(depths))):
        out = width * mults[level]
        for block in range(blocks + 1):
            shapes |= _resnet(f"output_blocks.{index}.0", into + kept.pop(), out, time)
            if depth:
                shapes |= _attention(f"output_blocks.{index}.1", out, depth, text, linear)
            into = out
            if level and block == blocks:
                shapes |= _conv(f"output_blocks.{index}.{2 if depth else 1}.conv", out, out, 3)
            index += 1
    return shapes | _norm("out.0", into) | _conv("out.2", 4, into, 3)


def sd1_unet():
    return unet(768, [1, 1, 1, 0], mults=[1, 2, 4, 4])


def sd2_unet():
    return unet(1024, [1, 1, 1, 0], mults=[1, 2, 4, 4], linear=True)


def sdxl_unet():
    return unet(2048, [0, 2, 10], middle=10, mults=[1, 2, 4], linear=True, label=2816)


def clip(width, layers=2):
    """A CLIP text model with the names of Hugging Face."""
    shapes = {
        "text_model.embeddings.token_embedding.weight": (49408, width),
        "text_model.embeddings.position_embedding.weight": (77, width),
    }
    for index in range(layers):
        layer = f"text_model.encoder.layers.{index}"
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes |= _linear(f"{layer}.self_attn.{part}", width, width)
        shapes |= _linear(f"{layer}.mlp.fc1", 4 * width, width)
        shapes |= _linear(f"{layer}.mlp.fc2", width, 4 * width)
        shapes |= _norm(f"{layer}.layer_norm1", width) | _norm(f"{layer}.layer_norm2", width)
    return shapes | _norm("text_model.final_layer_norm", width)


def openclip(width, layers=2):
    """The same model with the names of OpenCLIP."""
    shapes = {
        "positional_embedding": (77, width),
        "token_embedding.weight": (49408, width),
        "text_projection": (width, width),
        "logit_scale": (),
    }
    for index in range(layers):
        block = f"transformer.resblocks.{index}"
        shapes |= {
            f"{block}.attn.in_proj_weight": (3 * width, width),
            f"{block}.attn.in_proj_bias": (3 * width,),
        }
        shapes |= _linear(f"{block}.attn.out_proj", width, width)
        shapes |= _linear(f"{block}.mlp.c_fc", 4 * width, width)
        shapes |= _linear(f"{block}.mlp.c_proj", width, 4 * width)
        shapes |= _norm(f"{block}.ln_1", width) | _norm(f"{block}.ln_2", width)
    return shapes | _norm("ln_final", width)


def vae():
    return (
        _conv("encoder.conv_in", 8, 3, 3)
        | _conv("decoder.conv_in", 8, 4, 3)
        | _conv("quant_conv", 8, 8, 1)
    )


def single_file(unet_shapes, encoders):
    """A whole checkpoint as Stability and RunwayML published them."""
    shapes = prefixed("model.diffusion_model.", unet_shapes) | {"betas": (1000,)}
    for prefix, encoder in encoders.items():
        shapes |= prefixed(prefix, encoder)
    return shapes | prefixed("first_stage_model.", vae())


def sd1():
    return single_file(sd1_unet(), {"cond_stage_model.transformer.": clip(768)})


def sd2():
    return single_file(sd2_unet(), {"cond_stage_model.model.": openclip(1024)})


def sdxl():
    encoders = {
        "conditioner.embedders.0.transformer.": clip(768),
        "conditioner.embedders.1.model.": openclip(1280),
    }
    return single_file(sdxl_unet(), encoders)


def flux(guidance=True):
    shapes = _linear("img_in", 128, 64) | _linear("txt_in", 128, 64)
    for embedder in ("time_in", "vector_in", *(["guidance_in"] if guidance else [])):
        shapes |= _linear(f"{embedder}.in_layer", 128, 64)
        shapes |= _linear(f"{embedder}.out_layer", 128, 128)
    for stream in ("img", "txt"):
        block = f"double_blocks.0.{stream}"
        shapes |= _linear(f"{block}_attn.qkv", 384, 128) | _linear(f"{block}_attn.proj", 128, 128)
        shapes |= {f"{block}_attn.norm.{norm}_norm.scale": (128,) for norm in ("query", "key")}
        shapes |= _linear(f"{block}_mlp.0", 512, 128) | _linear(f"{block}_mlp.2", 128, 512)
        shapes |= _linear(f"{block}_mod.lin", 768, 128)
    shapes |= _linear("single_blocks.0.linear1", 896, 128)
    shapes |= _linear("single_blocks.0.linear2", 128, 640)
    shapes |= _linear("single_blocks.0.modulation.lin", 384, 128)
    shapes |= {f"single_blocks.0.norm.{norm}_norm.scale": (128,) for norm in ("query", "key")}
    shapes |= _linear("final_layer.linear", 64, 128)
    return shapes | _linear("final_layer.adaLN_modulation.1", 256, 128)


def wan():
    shapes = {"patch_embedding.weight": (128, 16, 1, 2, 2), "patch_embedding.bias": (128,)}
    shapes |= {"head.modulation": (1, 2, 128), "blocks.0.modulation": (1, 6, 128)}
    shapes |= _linear("head.head", 64, 128)
    for attention in ("self_attn", "cross_attn"):
        for part in "qkvo":
            shapes |= _linear(f"blocks.0.{attention}.{part}", 128, 128)
    shapes |= _linear("blocks.0.ffn.0", 256, 128) | _linear("blocks.0.ffn.2", 128, 256)
    return shapes | _linear("text_embedding.0", 128, 4096)


def qwen_image():
    shapes = {"txt_norm.weight": (3584,), **_linear("img_in", 3072, 64)}
    block = "transformer_blocks.0"
    for part in ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "to_add_out"):
        shapes |= _linear(f"{block}.attn.{part}", 3072, 3072)
    shapes |= _linear(f"{block}.img_mlp.net.0.proj", 12288, 3072)
    return shapes | _linear(f"{block}.img_mod.1", 18432, 3072) | _linear("proj_out", 64, 3072)
