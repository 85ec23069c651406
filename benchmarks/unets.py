"""Names and shapes of Stable Diffusion's UNets, derived from their published configurations.

Used to make full-sized checkpoints and layer lists without any download. Only what the benchmarks
and the tests need: the `.weight`s and `.bias`es, under native names.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class UNetConfig:
    """The numbers in a `v1-inference.yaml` or `sd_xl_base.yaml`."""

    depths: tuple[int, ...]  # transformer blocks at each level
    middle_depth: int
    context: int
    linear_projection: bool  # proj_in/proj_out are linears (SD2, SDXL) or 1x1 convs (SD1)
    vector: int = 0  # width of the pooled conditioning (SDXL)
    channels: int = 320
    multipliers: tuple[int, ...] = (1, 2, 4, 4)
    res_blocks: int = 2


SD1 = UNetConfig((1, 1, 1, 0), 1, 768, linear_projection=False)
SDXL = UNetConfig((0, 2, 10), 10, 2048, linear_projection=True, vector=2816, multipliers=(1, 2, 4))

Shapes = dict[str, tuple[int, ...]]


def unet_shapes(config: UNetConfig) -> Shapes:
    """Return name -> shape of every parameter, without the `model.diffusion_model.` prefix."""
    shapes: Shapes = {}
    width = config.channels
    time = 4 * width

    def layer(name: str, *shape: int, bias: bool = True) -> None:
        shapes[f"{name}.weight"] = shape
        if bias:
            shapes[f"{name}.bias"] = shape[:1]

    def resnet(name: str, inner: int, outer: int) -> None:
        layer(f"{name}.in_layers.0", inner)
        layer(f"{name}.in_layers.2", outer, inner, 3, 3)
        layer(f"{name}.emb_layers.1", outer, time)
        layer(f"{name}.out_layers.0", outer)
        layer(f"{name}.out_layers.3", outer, outer, 3, 3)
        if inner != outer:
            layer(f"{name}.skip_connection", outer, inner, 1, 1)

    def transformer(name: str, size: int, depth: int) -> None:
        one = () if config.linear_projection else (1, 1)
        layer(f"{name}.norm", size)
        layer(f"{name}.proj_in", size, size, *one)
        for i in range(depth):
            block = f"{name}.transformer_blocks.{i}"
            for attention, context in (("attn1", size), ("attn2", config.context)):
                layer(f"{block}.{attention}.to_q", size, size, bias=False)
                layer(f"{block}.{attention}.to_k", size, context, bias=False)
                layer(f"{block}.{attention}.to_v", size, context, bias=False)
                layer(f"{block}.{attention}.to_out.0", size, size)
            layer(f"{block}.ff.net.0.proj", 8 * size, size)
            layer(f"{block}.ff.net.2", size, 4 * size)
            for norm in ("norm1", "norm2", "norm3"):
                layer(f"{block}.{norm}", size)
        layer(f"{name}.proj_out", size, size, *one)

    layer("time_embed.0", time, width)
    layer("time_embed.2", time, time)
    if config.vector:
        layer("label_emb.0.0", time, config.vector)
        layer("label_emb.0.2", time, time)
    layer("input_blocks.0.0", width, 4, 3, 3)
    skips, now, index = [width], width, 1
    last = len(config.multipliers) - 1
    for level, (multiplier, depth) in enumerate(
        zip(config.multipliers, config.depths, strict=True)
    ):
        for _ in range(config.res_blocks):
            resnet(f"input_blocks.{index}.0", now, multiplier * width)
            now = multiplier * width
            if depth:
                transformer(f"input_blocks.{index}.1", now, depth)
            skips.append(now)
            index += 1
        if level != last:
            layer(f"input_blocks.{index}.0.op", now, now, 3, 3)
            skips.append(now)
            index += 1
    resnet("middle_block.0", now, now)
    transformer("middle_block.1", now, config.middle_depth)
    resnet("middle_block.2", now, now)
    index = 0
    for level in reversed(range(len(config.multipliers))):
        outer, depth = config.multipliers[level] * width, config.depths[level]
        for i in range(config.res_blocks + 1):
            resnet(f"output_blocks.{index}.0", now + skips.pop(), outer)
            now = outer
            if depth:
                transformer(f"output_blocks.{index}.1", now, depth)
            if level and i == config.res_blocks:
                layer(f"output_blocks.{index}.{2 if depth else 1}.conv", now, now, 3, 3)
            index += 1
    layer("out.0", now)
    layer("out.2", 4, width, 3, 3)
    return shapes


def targets(shapes: Shapes) -> Shapes:
    """Keep the weights of linears and convolutions, named by module."""
    return {
        name.removesuffix(".weight"): shape
        for name, shape in shapes.items()
        if name.endswith(".weight") and len(shape) >= 2
    }
