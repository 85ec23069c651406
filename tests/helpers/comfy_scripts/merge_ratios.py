"""The share of the second model that ComfyUI's merging nodes give each key."""

from __future__ import annotations


class Model:
    """Takes down what a node asks of a patched model."""

    def __init__(self, keys):
        self.keys = keys
        self.shares = {}

    def clone(self):
        return self

    def get_key_patches(self, prefix=None):
        return dict.fromkeys(key for key in self.keys if key.startswith(prefix or ""))

    def add_patches(self, patches, strength_patch=1.0, strength_model=1.0):
        for key in patches:
            self.shares[key] = [strength_patch, strength_model]


def answer(question):
    """[factor of the second, factor of the first] by key; for a node, its sliders, and keys."""
    import comfy_extras.nodes_model_merging as simple
    import comfy_extras.nodes_model_merging_model_specific as specific

    nodes = {**simple.NODE_CLASS_MAPPINGS, **specific.NODE_CLASS_MAPPINGS}
    found = {}
    for label, (name, keys, values) in question.items():
        inputs = [
            one for one in nodes[name].INPUT_TYPES()["required"] if not one.startswith("model")
        ]
        sliders = {one: values[index % len(values)] for index, one in enumerate(inputs)}
        merged = nodes[name]().merge(Model([]), Model(keys), **sliders)
        found[label] = {"sliders": sliders, "shares": merged[0].shares}
    return found
