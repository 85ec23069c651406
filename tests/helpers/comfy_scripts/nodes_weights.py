"""Weights as our nodes read them off models of the host, in every state that a model can be in."""

from __future__ import annotations

import json
import weakref

import nodes_models
import torch

UNET = "diffusion_model."


def load(path, dtype=None):
    """A MODEL from a file, as the host's loader makes it."""
    import comfy.sd

    options = {} if dtype is None else {"dtype": getattr(torch, dtype)}
    return comfy.sd.load_diffusion_model(path, model_options=options)


def with_lora(model, path, strength):
    """A clone with an adapter on it, by the host's own loader."""
    import comfy.sd
    import comfy.utils

    return comfy.sd.load_lora_for_models(
        model, None, comfy.utils.load_torch_file(path), strength, 0
    )[0]


def loaded_whole(model):
    """The same, after the host has put its patches into the weights."""
    import comfy.model_management

    comfy.model_management.load_models_gpu([model], force_full_load=True)
    assert model.backup
    return model


def loaded_in_part(model):
    """The same, after the host has kept its patches for when a layer is used."""
    model.patch_model(device_to=torch.device("cpu"), lowvram_model_memory=1)
    assert model.lowvram_patch_counter()
    return model


def hooked(model, path):
    """The same, while an adapter of a conditioning is in its weights."""
    import comfy.hooks
    import comfy.utils

    hooks = comfy.hooks.create_hook_lora(comfy.utils.load_torch_file(path), 0.7, 0.0)
    target = comfy.hooks.create_target_dict(comfy.hooks.EnumWeightTarget.Model)
    model.register_all_hook_patches(hooks, target, {"transformer_options": {}})
    model.patch_hooks(hooks)
    assert model.hook_backup
    return model


def merged(how, one, other, *numbers):
    """The output of one of the host's merging nodes."""
    from comfy_extras import nodes_model_merging

    return getattr(nodes_model_merging, f"Model{how}")().merge(one, other, *numbers)[0]


def quantised(weights, format):
    """A state dict with its large matrices in a format, and what they stand for in float32."""
    from comfy.quant_ops import QUANT_ALGOS, QuantizedTensor

    state, truth = {}, {}
    layout = QUANT_ALGOS[format]["comfy_tensor_layout"]
    for key, weight in weights.items():
        if not key.endswith("mlp.2.weight"):
            state[key] = weight
            continue
        scaled = {"scale": "recalculate"} if format.startswith("float8") else {}
        tensor = QuantizedTensor.from_float(weight.float(), layout, **scaled)
        state.update(tensor.state_dict(key))
        told = {"format": format, **extra(tensor)}
        text = torch.tensor(list(json.dumps(told).encode()), dtype=torch.uint8)
        state[key.removesuffix("weight") + "comfy_quant"] = text
        if "input_scale" in QUANT_ALGOS[format]["parameters"]:
            state[key.removesuffix("weight") + "input_scale"] = torch.tensor(0.5)
        truth[UNET + key] = tensor.dequantize()
    return state, truth


def compute_in_bfloat16(model):
    """What the loader does with quantised weights where there is a GPU."""
    found = 0
    for module in model.model.modules():
        weight = getattr(module, "weight", None)
        if hasattr(weight, "_qdata"):
            lowered = weight.to(torch.bfloat16)
            module.weight = torch.nn.Parameter(lowered, requires_grad=False)
            assert module.weight.dequantize().dtype == torch.bfloat16
            found += 1
    assert found == 2


def extra(tensor):
    """What a layer's configuration says beside its format."""
    names = ("convrot", "convrot_groupsize", "group_size")
    found = {name: getattr(tensor._params, name, None) for name in names}
    return {name: value for name, value in found.items() if value is not None}


def model_of(question):
    """The MODEL that is asked for, and truths that only the host can tell."""
    import comfy.sd
    import comfy.utils

    files, truth = question["files"], {}
    if question.get("tied"):
        return tied(files), truth
    if "format" in question:
        weights = comfy.utils.load_torch_file(files["base"])
        state, truth = quantised(weights, question["format"])
        model = comfy.sd.load_diffusion_model_state_dict(state)
        compute_in_bfloat16(model)
    else:
        model = load(files["base"], question.get("dtype"))
    for step, *arguments in question.get("steps", ()):
        if step == "lora":
            model = with_lora(model, files["lora"], *arguments)
        elif step == "hook":
            model = hooked(model, files["lora"])
        elif step == "merge":
            how, *numbers = arguments
            model = merged(how, model, load(files["other"]), *numbers)
        elif step == "clone":
            model = model.clone()
            model.patches.clear()
        else:
            model = {"whole": loaded_whole, "part": loaded_in_part}[step](model)
    return model, truth


def tied(files):
    """A MODEL in which two names are one parameter, beside what is no parameter of the network."""
    import comfy.utils

    model = nodes_models.model_of(comfy.utils.load_torch_file(files["base"]))
    inside = model.model.diffusion_model
    inside.add_module("again", inside.img_in)
    inside.register_buffer("sinusoids", torch.ones(3))
    model.model.sampling = torch.nn.Linear(2, 2)
    return model


def state_of(model):
    """Everything of a model that reading it must leave alone."""
    parameters = dict(model.model.named_parameters())
    weights = {
        key: (id(one), one._version if not one.is_inference() else 0, fingerprint(one))
        for key, one in parameters.items()
    }
    patches = {key: [id(record) for record in found] for key, found in model.patches.items()}
    backups = {key: fingerprint(one.weight) for key, one in model.backup.items()}
    hooks = {key: fingerprint(one[0]) for key, one in model.hook_backup.items()}
    return weights, patches, backups, hooks, model.patches_uuid


def fingerprint(weight):
    """Changes when a bit does."""
    raw = getattr(weight, "_qdata", weight).detach()
    return hash(raw.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())


def answer(question):
    """Write the weights of one model as the nodes read them; say what else was seen."""
    nodes_models.load_pack()
    import comfy.utils

    from lorakit.nodes.host import model_source

    with torch.inference_mode():
        model, truth = model_of(question)
        before = state_of(model)
        source = model_source.ModelSource("model", model)
        names = source.keys()
        read = {key: source.tensor(key).contiguous() for key in names}
        wrong = [key for key, one in read.items() if tuple(one.shape) != source.shape(key)]
        same = before == state_of(model)
        kept = {f"read {key}": one for key, one in read.items()}
        kept |= {f"truth {key}": one.contiguous() for key, one in truth.items()}
        comfy.utils.save_torch_file(kept, question["output"])
        if model.hook_backup:
            model.unpatch_hooks()
        model.unpatch_model()
    dtypes = {str(one.dtype) for one in read.values()}
    return {"same": same, "wrong": wrong, "dtypes": sorted(dtypes), "keys": sorted(read)}


class Counting:
    """How many tensors that a function gave are alive at once, at most."""

    def __init__(self, function):
        self.function, self.calls, self.alive, self.most = function, 0, 0, 0

    def __call__(self, *arguments):
        made = self.function(*arguments)
        self.calls += 1
        self.alive += 1
        self.most = max(self.most, self.alive)
        weakref.finalize(made, self.forget)
        return made

    def forget(self):
        """One is gone."""
        self.alive -= 1
