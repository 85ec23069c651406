"""What ComfyUI makes of weights: one layer each, loaded by its names and applied at some strengths."""

from __future__ import annotations


def answer(question):
    """Write the changed weights, by layer and index of the strength; say which layers failed.

    The file holds, for every layer `m`, the weight as `m.weight` among the base's and whatever the
    adapter has for it.
    """
    import comfy.lora
    import comfy.utils
    from safetensors.torch import save_file

    base = comfy.utils.load_torch_file(question["base"])
    names = [key.removesuffix(".weight") for key in base]
    adapter = comfy.utils.load_torch_file(question["adapter"])
    patches = comfy.lora.load_lora(adapter, {name: f"{name}.weight" for name in names})
    changed, failed = {}, {}
    for name in names:
        patch = patches.get(f"{name}.weight")
        if patch is None:
            failed[name] = "not loaded"
            continue
        for index, strength in enumerate(question["strengths"]):
            weight = base[f"{name}.weight"].clone()
            record = (strength, patch, 1.0, None, None)
            try:
                weight = comfy.lora.calculate_weight([record], weight, name)
            except Exception as error:  # noqa: BLE001  what it is, the asking test knows
                failed[name] = type(error).__name__
                break
            changed[f"{name}.{index}"] = weight.contiguous()
    save_file(changed, question["output"])
    return failed
