"""Schedule LoRAs on models in every state: the weights that layers compute with, and what is left behind."""

from __future__ import annotations

import nodes_extract
import nodes_models
import nodes_weights
import torch


class EndedError(Exception):
    """A run of the model that fails."""


def in_use(model, keys):
    """The weights of these keys as their layers compute with them, float32, by key."""
    import comfy.ops
    import comfy.utils

    found = {}
    for key in keys:
        layer = comfy.utils.get_attr(model, key.removesuffix(".weight"))
        own = getattr(layer, "is_ggml_quantized", bool)()  # ComfyUI-GGUF has its own way then
        cast = type(layer).cast_bias_weight if own else comfy.ops.cast_bias_weight
        weight, _ = cast(
            layer, dtype=torch.float32, device=torch.device("cpu"), bias_dtype=torch.float32
        )
        found[key] = weight.float().clone()
    return found


def resident(model, key):
    """A weight as a layer has it whose numbers stay on a GPU under dynamic VRAM, and whether those changed."""
    import comfy.ops
    import comfy.utils

    layer = comfy.utils.get_attr(model, key.removesuffix(".weight"))
    held = layer.weight.detach().clone()
    layer._v_weight, layer._v_bias = held, None
    layer._prefetch = {"resident": True, "signature": None}
    weight, _ = comfy.ops.resolve_cast_module_with_vbar(
        layer, held.dtype, held.device, held.dtype, None, False
    )
    del layer._v_weight, layer._v_bias, layer._prefetch
    return weight.clone(), torch.equal(held, layer.weight)


def run(model, sigma, inside):
    """One run of a model's wrapper at a noise level of a schedule of four steps."""
    (wrapper,) = model.wrappers["apply_model"]["lorakit_schedule"]

    class Executor:
        class_obj = model.model

        def __call__(self, *args, **kwargs):
            return inside(model.model)

    options = {"sample_sigmas": torch.tensor([4.0, 3.0, 2.0, 1.0, 0.0])}
    return wrapper(Executor(), None, torch.tensor([sigma]), transformer_options=options)


def functions(model):
    """How many functions of ours stand on the layers."""
    patches = [getattr(one, "patches", ()) for one in model.parameters()]
    return sum(map(len, patches)) + sum(
        type(one).__module__.startswith("lorakit")
        for module in model.modules()
        for name in ("weight_function", "bias_function")
        for one in getattr(module, name, ())
    )


def failing(model):
    """What runs into an error."""
    raise EndedError


def answer(question):
    """Distances of weights in use from those with the change, by noise level, and what is left of it after."""
    nodes_models.load_pack()
    import comfy.lora
    import comfy.utils

    from lorakit.lora_ops.errors import LoraOpsError
    from lorakit.nodes.apply import schedule_loras
    from lorakit.nodes.host import host, lora_model

    with torch.inference_mode():
        if "pack" in question:
            base = nodes_extract.loaded_by_gguf(question["files"]["base"], question["pack"])
        else:
            base, _ = nodes_weights.model_of(question)
        loaded = comfy.utils.load_torch_file(question["files"]["lora"])
        lora = lora_model.LoraModel(loaded, "file.safetensors")
        try:
            model, report = schedule_loras.ScheduleLoras.execute(
                model=base,
                loras={"lora0": lora},
                method={"method": "curves"},
                curves="0: 1, 0.5: 0.5, 0.5: 0",
            ).args
        except LoraOpsError as error:
            return {"error": str(error)}
        keys = [f"diffusion_model.{layer}.weight" for layer in question["layers"]]
        plain = in_use(model.model, keys)
        places = host.key_map(base, None)
        patches = host.patches(loaded, places)
        before = nodes_weights.state_of(model)
        distances = {}
        for sigma, strength in ((4.0, 1.0), (3.0, 0.75), (2.0, 0.0)):
            found = run(model, sigma, lambda inside: in_use(inside, keys))
            due = run(model, sigma, functions)
            worst = 0.0
            for key in keys:
                record = (strength, patches[key], 1.0, None, None)
                wanted = comfy.lora.calculate_weight([record], plain[key].clone(), key)
                worst = max(worst, float((found[key] - wanted).norm() / wanted.norm()))
            distances[strength] = (worst, due)
        try:
            run(model, 4.0, failing)
            failed = False
        except EndedError:
            failed = True
        kept = None
        if question.get("resident"):
            (weight, kept) = run(model, 4.0, lambda inside: resident(inside, keys[0]))
            record = (1.0, patches[keys[0]], 1.0, None, None)
            wanted = comfy.lora.calculate_weight([record], plain[keys[0]].clone(), keys[0])
            kept = kept and torch.equal(weight, wanted)
        after = in_use(model.model, keys)
        result = {
            "report": report,
            "distances": distances,
            "failed": failed,
            "left": functions(model.model),
            "kept": kept,
            "same": before == nodes_weights.state_of(model)
            and all(torch.equal(after[key], plain[key]) for key in keys),
        }
        model.unpatch_model()
    return result
