"""Record Activations inside ComfyUI: what it gathers of a tiny Flux, beside a float64 loop over the same inputs."""

from __future__ import annotations

import math
from types import SimpleNamespace

import nodes_models
import nodes_weights
import torch


class StoppedError(Exception):
    """What ends a sampling early."""


def called(model, noise, fails=False):
    """One call of a model as a sampler makes it, with the wrappers that are on it."""
    generator = torch.Generator().manual_seed(3)

    def drawn(*shape):
        return torch.randn(*shape, generator=generator)

    last = model.model.diffusion_model.final_layer
    handle = last.register_forward_hook(failing) if fails else None
    try:
        with torch.inference_mode():
            return model.model.apply_model(
                noise,
                torch.tensor([0.6, 0.6]),
                c_crossattn=drawn(2, 7, 64),
                y=drawn(2, 64),
                guidance=torch.tensor([3.5, 3.5]),
                transformer_options={"wrappers": model.wrappers},
            )
    finally:
        if handle is not None:
            handle.remove()


def failing(module, inputs, output):
    raise StoppedError


def prepared(question):
    """The model in the state that is asked for."""
    files, state = question["files"], question["state"]
    if format := question.get("format"):
        import comfy.sd
        from safetensors.torch import load_file

        stored, _ = nodes_weights.quantised(load_file(files["fp32"]), format)
        model = comfy.sd.load_diffusion_model_state_dict(stored)
    else:
        model = nodes_weights.load(files[question.get("base", "fp32")])
    if state != "plain":
        model = nodes_weights.with_lora(model, files["lora"], 0.8)
    if state == "part":
        nodes_weights.loaded_in_part(model)
    elif state == "bypass":
        import comfy.sd
        import comfy.utils

        tensors = comfy.utils.load_torch_file(files["lora"])
        base = nodes_weights.load(files["fp32"])
        model, _ = comfy.sd.load_bypass_lora_for_models(base, None, tensors, 0.8, 0)
        loaded(model)
    else:
        loaded(model)
    return model


def loaded(model):
    import comfy.model_management

    comfy.model_management.load_models_gpu([model], force_full_load=True)


def looped(module, run):
    """What goes into each linear layer during a run, summed in float64: by name, rows one after another."""
    names = {layer: name for name, layer in module.named_modules()}
    sums = {}

    def take(layer, inputs):
        if layer in names and getattr(layer, "in_features", None):
            rows = inputs[0].detach().double().reshape(-1, layer.in_features)
            total = sums.setdefault(names[layer], torch.zeros(2 * rows.shape[1:]).double())
            for row in rows:
                total += row[:, None] * row[None, :]

    handle = torch.nn.modules.module.register_module_forward_pre_hook(take)
    try:
        return run(), sums
    finally:
        handle.remove()


def hooks(module):
    """How many hooks are on its layers."""
    return sum(len(one._forward_pre_hooks) + len(one._forward_hooks) for one in module.modules())


def answer(question):
    nodes_models.load_pack()
    from lorakit.nodes.host import host
    from lorakit.nodes.host.recording import Recording

    if "room" in question:
        return rooms(host)
    model = prepared(question)
    recording = Recording(question.get("memory", 10**9), across_runs=False)
    recorded = recording.on(model)
    module = model.model.diffusion_model
    noises = [torch.randn(2, 16, 8, 8, generator=torch.Generator().manual_seed(n)) for n in (1, 2)]
    plain = [called(model, one) for one in noises]
    assert recording.recorder is None
    made, sums = looped(module, lambda: [called(recorded, one) for one in noises])
    told = recording.recorder.tensors()
    far = {
        name: float((told[f"diffusion_model.{name}.gram"] - total).norm() / total.norm())
        for name, total in sums.items()
    }
    left = hooks(module)
    stopped = False
    try:
        called(recorded, noises[0], fails=True)
    except StoppedError:
        stopped = True
    return {
        "same": all(torch.equal(a, b) for a, b in zip(plain, made, strict=True)),
        "layers": len(far),
        "far": max(far.values()),
        "recorded": sorted(recording.recorder.counts),
        "calls": recording.calls,
        "hooks": [left, hooks(module)],
        "stopped": stopped,
        "wrappers": [len(model.wrappers), len(recorded.wrappers)],
        "finite": math.isfinite(max(far.values())),
    }


def rooms(host):
    """How much room the host is asked for, by where a model computes."""
    import comfy.model_management

    asked, before = [], comfy.model_management.free_memory
    comfy.model_management.free_memory = lambda size, device: asked.append([size, str(device)])
    try:
        for device, dynamic in (("cpu", False), ("cuda", True), ("cuda", False)):
            patcher = SimpleNamespace(
                load_device=torch.device(device), is_dynamic=lambda dynamic=dynamic: dynamic
            )
            host.make_room(5, patcher)
        host.make_room(7, SimpleNamespace(load_device=torch.device("cuda")))  # an older host's
    finally:
        comfy.model_management.free_memory = before
    return asked
