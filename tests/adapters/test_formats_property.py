"""decode(encode(x)) is x: every format, every kind that it holds, every dtype, whatever the numbers."""

from __future__ import annotations

import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from kinds import WEIGHTS, kinds

from lorakit.lora_ops import DictSource, decode
from lorakit.lora_ops.adapters.formats import COMFY, DIFFUSERS, KOHYA, PEFT, encode_layer
from lorakit.lora_ops.adapters.layers import DoraLayer
from lorakit.lora_ops.errors import UnsupportedLayerError

DTYPES = (
    *(torch.float32, torch.float16, torch.bfloat16, torch.float64),
    *(torch.float8_e4m3fn, torch.float8_e5m2),
)
PREFIXES = {
    KOHYA: "lora_unet_",
    COMFY: "diffusion_model.",
    PEFT: "base_model.model.",
    DIFFUSERS: "transformer.",
}
CASES = [(form, name) for form in WEIGHTS for name in kinds(form)]
# Counts, flags and alphas are no weights: they keep their dtype.
_OTHERS = ("alpha", "on_input", "reshape_weight")


def bits(tensor):
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def drawn(tensors, module, dtype, seed):
    """The tensors of one layer with other numbers, in that dtype."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for suffix, tensor in tensors.items():
        if suffix not in _OTHERS:
            tensor = torch.randn(tensor.shape, generator=generator).to(dtype)
        found[f"{module}.{suffix}"] = tensor
    return found


@settings(deadline=None, max_examples=400)
@given(
    case=st.sampled_from(CASES),
    format=st.sampled_from(list(PREFIXES)),
    dtype=st.sampled_from(DTYPES),
    alpha=st.one_of(st.none(), st.floats(0.0625, 64, width=32)),
    seed=st.integers(0, 2**20),
)
def test_what_was_encoded_is_decoded(case, format, dtype, alpha, seed):
    form, name = case
    module = PREFIXES[format] + "a"
    tensors = drawn(kinds(form)[name], module, dtype, seed)
    if alpha is not None and f"{module}.alpha" in tensors and not name.startswith(("oft", "boft")):
        tensors[f"{module}.alpha"] = torch.tensor(alpha)
    layer = decode(DictSource(tensors)).layers
    assume(len(layer) == 1)  # a bias beside it is a layer of its own
    (target,) = layer
    layer = layer[target]
    if not format.keeps_alpha and isinstance(layer, DoraLayer):
        assume(layer.axis == 0)
    try:
        written = encode_layer(format, lambda one: one, target, layer)
    except UnsupportedLayerError:
        return  # test_kinds says which
    again = decode(DictSource(written)).layers
    assert list(again) == [target]
    assert type(again[target]) is type(layer)
    ours, theirs = layer.tensors(), again[target].tensors()
    known = set(ours) - {"alpha", "magnitude", "dora_scale"}
    assert known <= theirs.keys()
    for role in known:
        assert theirs[role].dtype == ours[role].dtype, role
        assert torch.equal(bits(theirs[role]), bits(ours[role])), role
    assert again[target].scale == layer.scale
    if isinstance(layer, DoraLayer):
        axes = len(layer.shape)
        assert torch.equal(bits(again[target].magnitudes(axes)), bits(layer.magnitudes(axes)))


@settings(deadline=None, max_examples=50)
@given(
    names=st.lists(st.sampled_from(["a.b", "a.c.0", "d", "e.to_q"]), unique=True, min_size=1),
    format=st.sampled_from(list(PREFIXES)),
    extras=st.booleans(),
)
def test_files_of_several_layers_come_back_whole(names, format, extras):
    """No layer takes another's tensors, and what belongs to none is an extra."""
    tensors = {}
    for seed, name in enumerate(names):
        module = PREFIXES[format] + name
        tensors[module + format.up] = torch.full((4, 2), float(seed))
        tensors[module + format.down] = torch.full((2, 3), float(seed))
    beside = {"bundle_emb.x.emb_params": torch.ones(1)} if extras else {}
    adapter = decode(DictSource(tensors | beside))
    assert adapter.format == format.name
    assert adapter.extras.keys() == beside.keys()
    written = {}
    for target, layer in adapter.layers.items():
        written |= encode_layer(format, lambda one: one, target, layer)
    alphas = {key for key in written if key.endswith(".alpha")}
    assert written.keys() - alphas == tensors.keys()
    assert all(torch.equal(written[key], tensor) for key, tensor in tensors.items())
