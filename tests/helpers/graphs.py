"""Graphs for the real ComfyUI: built node by node, run on a server, and the models they work on."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from comfy_server import GraphError, Server, running
from controlnets import controlnet
from keys.checkpoints import clip, flux, prefixed, unet
from safetensors.torch import load_file, save_file
from torch import Tensor

Tensors = dict[str, Tensor]

#: How models of an architecture are sampled: width of the context, of the pooled one, latent's node.
WIDTHS = {"flux": (64, 64, "EmptySD3LatentImage"), "sd1": (768, 0, "EmptyLatentImage")}
_PREFIX = "model.diffusion_model."
_NUMBERS = itertools.count()


class Node(str):
    """A node of a graph by its id; an output of it is `node[0]`, `node[1]`, …."""

    __slots__ = ()

    def __getitem__(self, output: Any) -> Any:
        return [str(self), output]


class Graph:
    """A graph in the making; an input that is not given is sent as the front end would: its default.

    Attributes:
        server: Where it runs.
        nodes: What is sent.
    """

    def __init__(self, server: Server) -> None:
        self.server = server
        self.nodes: dict[str, dict[str, Any]] = {}

    def checkpoint(self, name: str = "flux") -> Node:
        """Add the host's loader of a checkpoint."""
        return self.add("CheckpointLoaderSimple", ckpt_name=f"{name}.safetensors")

    def lora(self, name: str = "one") -> Node:
        """Add our loader of a LoRA."""
        return self.add("LorakitLoadLora", lora_name=f"{name}.safetensors")

    def add(self, kind: str, **inputs: Any) -> Node:
        """Add a node. A node as an input means its first output, a list of nodes one input each."""
        node = Node(len(self.nodes) + 1)
        sent: dict[str, Any] = dict(self._defaults(kind, inputs))
        for name, value in inputs.items():
            if isinstance(value, Node):
                sent[name] = value[0]
            elif isinstance(value, list) and isinstance(value[0], Node):
                sent |= {f"{name}.{name[:-1]}{at}": one[0] for at, one in enumerate(value)}
            else:
                sent[name] = value
        self.nodes[str(node)] = {"class_type": kind, "inputs": sent}
        return node

    def _defaults(self, kind: str, inputs: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
        told = self.server.get(f"/object_info/{kind}")[kind]["input"]
        for name, (what, *more) in {**told["required"], **told.get("optional", {})}.items():
            about = more[0] if more else {}
            if "default" in about:
                yield name, about["default"]
            if what == "COMFY_DYNAMICCOMBO_V3":
                options = {
                    one["key"]: one["inputs"].get("required", {}) for one in about["options"]
                }
                chosen = inputs.get(name, next(iter(options)))
                yield name, chosen
                for nested, (_, own) in options.get(chosen, {}).items():
                    yield f"{name}.{nested}", own["default"]

    def sample(self, model: Any, like: str = "flux", seed: int = 1) -> Node:
        """Add two steps of a sampler; its output is the latent."""
        width, pooled, latent = WIDTHS[like]
        given = self.add("TestConditioning", width=width, pooled=pooled, seed=seed)
        empty = self.add(latent, width=64, height=64, batch_size=1)
        return self.add(
            "KSampler",
            model=model,
            positive=given,
            negative=given,
            latent_image=empty,
            seed=seed,
            steps=2,
            cfg=1.0,
            sampler_name="euler",
            scheduler="simple",
            denoise=1.0,
        )

    def run(self) -> dict[str, Any]:
        """Run it; the outputs by node."""
        return self.server.run(self.nodes)

    def report(self, node: Node) -> Node:
        """Add what shows the report of a node."""
        kind = self.nodes[node]["class_type"]
        told = self.server.get(f"/object_info/{kind}")[kind]
        return self.add("PreviewAny", source=node[told["output_name"].index("report")])

    def text(self, node: Node) -> str:
        """Run it; the report of a node."""
        shown = self.report(node)
        return self.run()[shown]["text"][0]

    def latent(self, model: Any, like: str = "flux") -> Tensor:
        """Run it; what a model makes of the same noise and conditioning, in two steps."""
        return self.tensor(self.sample(model, like))

    def tensor(self, node: Any, kind: str = "latent") -> Tensor:
        """Run it; an output of a node."""
        path = self.server.base / "temp" / f"{next(_NUMBERS)}.safetensors"
        path.parent.mkdir(exist_ok=True)
        self.add("TestSave", path=str(path), **{kind: node})
        self.run()
        return load_file(path)["tensor"]


def first_steps(
    server: Server, graph: Graph, client: str, count: int = 3
) -> tuple[str, list[tuple[str, float]]]:
    """Start a graph; return its number, and the first progress it tells of, node and share."""
    steps: list[tuple[str, float]] = []
    with server.listening(client) as messages:
        number = server.start(graph.nodes, client)
        for kind, told in messages:
            if kind == "progress":
                steps.append((told["node"], told["value"] / told["max"]))
            if len(steps) == count:
                break
    return number, steps


def cancelled(server: Server, number: str) -> None:
    """Cancel a graph; it ends with the layer that it is at, on a machine that may be busy."""
    server.post("/interrupt")
    start = time.monotonic()
    with pytest.raises(GraphError, match="interrupted"):
        server.result(number)
    assert time.monotonic() - start < 3


def lettered(name: str, nodes: Sequence[Any], output: int = 0) -> dict[str, Any]:
    """Inputs `models.model_A`, `models.model_B`, …: an output of a node each."""
    letters = "ABCDEFGH"
    return {f"{name}s.{name}_{letters[at]}": one[output] for at, one in enumerate(nodes)}


def distance(one: Tensor, other: Tensor) -> float:
    """Relative distance, of the second."""
    return float((one.double() - other.double()).norm() / other.double().norm())


def weights(shapes: Mapping[str, Sequence[int]], seed: int = 0) -> Tensors:
    """A model that computes something ordinary: norms of one, no biases, random matrices; float32."""
    generator = torch.Generator().manual_seed(seed)
    made: Tensors = {}
    for key, shape in shapes.items():
        if len(shape) > 1:
            made[key] = torch.randn(*shape, generator=generator) / math.prod(shape[1:]) ** 0.5
        else:
            made[key] = torch.full(tuple(shape), 0.0 if key.endswith("bias") else 1.0)
    return made


def tuned(base: Mapping[str, Tensor], rank: int = 4, seed: int = 1) -> Tensors:
    """The same after a change of that rank in each matrix, about as large as training makes it."""
    generator = torch.Generator().manual_seed(seed)
    made = dict(base)
    for key, weight in base.items():
        if weight.ndim > 1 and "embeddings" not in key:
            flat = weight.flatten(1)
            up = torch.randn(len(flat), rank, generator=generator)
            change = up @ torch.randn(rank, flat.shape[1], generator=generator)
            made[key] = weight + (0.2 * change * flat.norm() / change.norm()).reshape(weight.shape)
    return made


def scaled_fp8(state: Mapping[str, Tensor]) -> Tensors:
    """The same with blocks in fp8 with a scale each, marked as ComfyUI marks what it quantises."""
    stored: Tensors = {}
    for key, weight in state.items():
        if weight.ndim < 2 or "blocks" not in key:
            stored[key] = weight
            continue
        scale = weight.abs().max() / 448
        stored[key] = (weight / scale).to(torch.float8_e4m3fn)
        stored[f"{key}_scale"] = scale
        about = json.dumps({"format": "float8_e4m3fn"}).encode()
        stored[key.removesuffix("weight") + "comfy_quant"] = torch.tensor(list(about)).byte()
    return stored


def lora(shapes: Mapping[str, Sequence[int]], rank: int = 4, seed: int = 1) -> Tensors:
    """A LoRA in ComfyUI's names for all matrices of a diffusion model; alpha is half the rank."""
    base = {key: one for key, one in shapes.items() if len(one) == 2}
    generator = torch.Generator().manual_seed(seed)
    made: Tensors = {}
    for key, (out, into) in base.items():
        name = f"diffusion_model.{key.removesuffix('.weight')}"
        made[f"{name}.lora_up.weight"] = torch.randn(out, rank, generator=generator) / out**0.5
        made[f"{name}.lora_down.weight"] = torch.randn(rank, into, generator=generator) * 0.3
        made[f"{name}.alpha"] = torch.tensor(rank / 2)
    return made


#: All of Flux that ComfyUI loads: the size of its time embedding is fixed there.
FLUX = flux() | {f"{name}_in.in_layer.weight": (128, 256) for name in ("time", "guidance")}
#: One level of an SD1.5 UNet, as small as ComfyUI's detection lets it be.
UNET = {
    key: shape
    for key, shape in unet(768, [1], middle=0, blocks=1).items()
    if not re.match(r"middle_block|output_blocks\.\d\.1", key)
}
#: One that has a middle, too, which a ControlNet of it cannot be without.
CONTROLLED = {
    key: shape
    for key, shape in unet(768, [1], blocks=1).items()
    if not re.match(r"output_blocks\.\d\.1", key)
}
CLIP = prefixed("cond_stage_model.transformer.", clip(32))
#: What `one.safetensors` says of itself.
ABOUT = {"ss_output_name": "one", "ss_network_dim": "4", "modelspec.author": "a person"}


def taesd(channels: int) -> dict[str, tuple[int, ...]]:
    """The VAE of TAESD for latents of so many: the smallest that ComfyUI decodes images with."""
    made: dict[str, tuple[int, ...]] = {}
    for name, blocks, strides, ends in (
        (
            "encoder",
            (1, 3, 4, 5, 7, 8, 9, 11, 12, 13),
            (2, 6, 10),
            ((0, 64, 3), (14, channels, 64)),
        ),
        (
            "decoder",
            (3, 4, 5, 8, 9, 10, 13, 14, 15, 18),
            (7, 12, 17),
            ((1, 64, channels), (19, 3, 64)),
        ),
    ):
        convs = [(f"{at}.conv.{part}", 64, 64) for at in blocks for part in (0, 2, 4)]
        for at, out, into in (*convs, *ends):
            made[f"taesd_{name}.{at}.weight"] = (out, into, 3, 3)
            made[f"taesd_{name}.{at}.bias"] = (out,)
        made |= {f"taesd_{name}.{at}.weight": (64, 64, 3, 3) for at in strides}
    return made


def models(base: Path) -> None:
    """Write what all graphs work on into a server's folder."""
    folder = base / "models"
    for name, shapes in {"flux": FLUX, "sd1": UNET}.items():
        encoder = CLIP if name == "sd1" else {}
        started = weights(prefixed(_PREFIX, shapes) | encoder)
        for title, one in {name: started, f"{name}-tuned": tuned(started)}.items():
            save_file(one, folder / "checkpoints" / f"{title}.safetensors")
    controlled = weights(CONTROLLED)
    save_file(prefixed(_PREFIX, controlled), folder / "checkpoints" / "controlled.safetensors")
    save_file(controlnet(controlled), folder / "controlnet" / "hints.safetensors")
    save_file(weights(taesd(4)), folder / "vae" / "taesd4.safetensors")
    save_file(weights(taesd(16)), folder / "vae" / "taesd.safetensors")
    save_file(lora(FLUX, 4, 1), folder / "loras" / "one.safetensors", ABOUT)
    save_file(lora(FLUX, 6, 2), folder / "loras" / "two.safetensors")


@contextlib.contextmanager
def serving(base: Path) -> Iterator[Server]:
    """A server with the models."""
    with running(base) as server:
        models(base)
        yield server
