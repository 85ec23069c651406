"""What goes into layers, gathered by hooks, against a float64 loop over all places."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from lorakit.lora_ops import (
    ArgumentError,
    MismatchError,
    NonFiniteError,
    inject,
    open_source,
    record,
)

#: What a model without a prefix is taken for.
ROOT = "diffusion_model."


class Model(nn.Module):
    """Layers in a row, and one that nothing goes into."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)
        self.unused = nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


def patches(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Each place of a convolution's output with what its kernel sees there, one number at a time."""
    sizes, step, gap, pad = layer.kernel_size, layer.stride, layer.dilation, layer.padding
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    x = nn.functional.pad(x, [one for side in reversed(pad) for one in (side, side)], mode).double()
    rows = []
    places = [
        range((x.shape[2 + i] - gap[i] * (sizes[i] - 1) - 1) // step[i] + 1)
        for i in range(len(sizes))
    ]
    for image in x:
        for place in itertools.product(*places):
            seen = [
                image[
                    (
                        slice(None),
                        *(p * s + k * g for p, s, k, g in zip(place, step, at, gap, strict=True)),
                    )
                ]
                for at in itertools.product(*map(range, sizes))
            ]
            rows.append(torch.stack(seen, dim=1).flatten())
    return torch.stack(rows)


CONVOLUTIONS = [
    (nn.Conv2d(3, 4, 3, padding=1), (2, 3, 5, 6)),
    (nn.Conv2d(3, 4, (3, 2), stride=2, padding=(1, 0), dilation=(1, 2)), (2, 3, 7, 8)),
    (nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), (1, 3, 5, 5)),
    (nn.Conv2d(3, 4, 1), (2, 3, 4, 4)),
    (nn.Conv3d(2, 4, (1, 3, 3), padding=(0, 1, 1)), (2, 2, 3, 4, 4)),
]


@pytest.mark.parametrize(("layer", "shape"), CONVOLUTIONS, ids=lambda one: str(one)[:40])
def test_a_convolution_is_unfolded_as_its_weight_is(layer, shape):
    torch.manual_seed(0)
    x = torch.randn(shape)
    with record(layer) as found:
        plain = layer(x)
    rows = patches(layer, x)
    (target,) = found.counts
    assert found.tensors()[f"{target}.count"] == len(rows)
    assert torch.allclose(
        found.tensors()[f"{target}.gram"].double(), rows.mT @ rows, rtol=1e-5, atol=1e-4
    )
    # and in the order of the weight: rows times weight is what the layer computes
    own = (rows @ layer.weight.detach().double().flatten(1).mT + layer.bias.detach()).float()
    moved = plain.detach().movedim(1, -1).reshape(-1, len(layer.weight))
    assert torch.allclose(own, moved, atol=1e-5)


def test_all_passes_count_and_the_module_runs_as_before():
    torch.manual_seed(0)
    model = Model(nn.Linear(6, 5), nn.GELU(), nn.Linear(5, 2))
    batches = [torch.randn(2, 7, 6), torch.randn(4, 6), torch.randn(1, 6)]
    before = [model(one) for one in batches]
    recorder = record(model, prefix="diffusion_model.")
    with torch.inference_mode():
        first = model(batches[0])
    after = [first, *map(model, batches[1:])]  # some with gradients, some without
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    recorder.stop()
    model(batches[0])
    rows = torch.cat([one.reshape(-1, 6) for one in batches]).double()
    told = recorder.tensors()
    assert recorder.counts == {"diffusion_model.layers.0": 19, "diffusion_model.layers.2": 19}
    assert torch.allclose(told["diffusion_model.layers.0.gram"].double(), rows.mT @ rows, rtol=1e-5)
    assert not model.layers[0]._forward_pre_hooks


def test_wide_layers_are_bounded():
    model = Model(nn.Linear(64, 64), nn.Linear(64, 8))
    with (
        record(model, full=32, directions=4) as found,
        record(model, full=32, directions=0) as thin,
    ):
        for _ in range(3):
            model(torch.randn(20, 64))
    told = {key: tuple(one.shape) for key, one in found.tensors().items() if "layers.0" in key}
    assert sorted(told.values()) == [(), (4, 64), (64,)]
    assert {key.rpartition(".")[2] for key in thin.tensors()} == {"diagonal", "count"}


def test_half_precision_and_autocast_do_not_lose_the_sums():
    model = Model(nn.Linear(32, 32)).bfloat16()
    x = (100 * torch.randn(4000, 32)).bfloat16()
    with record(model) as found, torch.autocast("cpu", torch.bfloat16):
        model(x)
    (gram,) = [one for key, one in found.tensors().items() if key.endswith("gram")]
    assert torch.allclose(gram.double(), x.double().mT @ x.double(), rtol=1e-4, atol=10.0)


def test_it_sees_what_goes_into_a_layer_that_carries_an_adapter():
    model = Model(nn.Linear(6, 5))
    inject(model, ["layers.0"], rank=2)
    with record(model) as found:
        model(torch.randn(3, 6))
    assert list(found.counts.values()) == [3]


def test_the_file_says_what_it_is(tmp_path):
    model = Model(nn.Linear(6, 5), nn.Conv2d(5, 5, 1, groups=5))
    with record(model) as found:
        model.layers[0](torch.randn(3, 6))
    path = tmp_path / "record.safetensors"
    found.save(path)
    with open_source(path) as source:
        assert len(source.keys()) == 2
        assert source.metadata["lorakit.rows"] == "3"
    before = path.read_bytes()
    with pytest.raises(ArgumentError):
        found.save(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("full", [0, 8])
@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_model_that_diverged_is_told(full, number, tmp_path):
    with record(nn.Linear(8, 2), full=full, directions=2) as found:
        pass
    layer = nn.Linear(8, 2)
    with found.watching(layer):
        layer(torch.full((3, 8), number))
    with pytest.raises(NonFiniteError, match="diverged while it was recorded"):
        found.save(tmp_path / "none.safetensors")
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_recorded_is_refused(tmp_path):
    with pytest.raises(MismatchError, match="no linear or convolution"):
        record(nn.Embedding(3, 3))
    with pytest.raises(ArgumentError, match="from 0"):
        record(nn.Linear(3, 3), full=-1)
    with pytest.raises(MismatchError, match="nothing was recorded"):
        record(nn.Linear(3, 3)).save(tmp_path / "none.safetensors")
    assert not list(tmp_path.iterdir())


def test_a_memory_bounds_what_all_layers_take():
    """Whole matrices as far as they fit, of narrow layers first; directions of all before any of these."""
    widths, directions = (8, 64, 64, 600), 4

    def taken(memory):
        model = nn.ModuleList(nn.Linear(width, 2) for width in widths)
        with record(model, directions=directions, memory=memory) as found:
            for layer, width in zip(model, widths, strict=True):
                layer(torch.randn(900, width))
        held = {
            id(one): one.nbytes
            for gathered in found._gathered.values()
            for one in vars(gathered).values()
            if isinstance(one, torch.Tensor)
        }
        return list(found.forms.values()), sum(held.values()), found.tensors()

    for memory, forms in {
        4 * sum(widths): ["diagonal"] * 4,
        70_000: ["gram", "sketch", "sketch", "sketch"],
        80_000: ["gram", "gram", "gram", "sketch"],
        2_000_000: ["gram"] * 4,
    }.items():
        found, size, _ = taken(memory)
        assert found == forms, memory
        assert size <= memory
    assert len(next(one for key, one in taken(30_000)[2].items() if "3.sketch" in key)) < directions
    with pytest.raises(ArgumentError, match="the diagonals of 4 layers alone take"):
        taken(4 * sum(widths) - 1)


def test_a_copy_is_watched_for_as_long_as_it_is_asked():
    """As the same model on another device is; nothing stays on it, also where the pass fails."""
    model, other = (Model(nn.Linear(6, 5), nn.GELU(), nn.Linear(5, 2)) for _ in range(2))
    recorder = record(model)
    recorder.stop()
    model(torch.randn(3, 6))
    assert recorder.counts == {}
    x = torch.randn(4, 6)
    with recorder.watching(other):
        other(x)
    with pytest.raises(RuntimeError), recorder.watching(other):
        other(torch.randn(4, 9))
    other(x)
    assert not any(one._forward_pre_hooks for one in other.modules())
    assert set(recorder.counts) == set(recorder.forms) == {f"{ROOT}layers.{at}" for at in (0, 2)}
    assert recorder.silent == [f"{ROOT}unused"]
    recorder.move("cpu")
    assert torch.allclose(recorder.tensors()[f"{ROOT}layers.2.gram"], _gram(other.layers[:2](x)))


def test_a_linear_layer_of_another_program_is_one():
    """ComfyUI's layers of quantised weights are no `nn.Linear`."""

    class Own(nn.Module):
        in_features, out_features = 6, 5

        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(5, 6))

        def forward(self, input):
            return input @ self.weight.mT

    x = torch.randn(7, 6)
    model = nn.Sequential(Own(), nn.LayerNorm(5))
    with record(model) as found:
        model(x)
    assert list(found.counts) == [f"{ROOT}0"]
    assert torch.allclose(found.tensors()[f"{ROOT}0.gram"], _gram(x), rtol=1e-5)


def _gram(rows: torch.Tensor) -> torch.Tensor:
    return (rows.detach().double().mT @ rows.detach().double()).float()
