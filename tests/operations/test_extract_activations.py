"""Extraction by what goes into the layers: the error of the output, as it is written, and never a worse one."""

from __future__ import annotations

import hashlib

import oracles
import pytest
import torch
from checkpoints import FLUX, SD1, delta, grid, is_matrix, source, target, trained
from recorded import as_grams, inputs_of, joined, output_error
from safetensors.torch import load_file, save_file

from lorakit.lora_ops import (
    ArgumentError,
    DictSource,
    FormatError,
    MismatchError,
    NonFiniteError,
    WeightShapeError,
    extract,
    extract_file,
    extract_files,
    open_source,
    plan_extraction,
    plan_file,
    read_metadata,
)

MATRICES = {target(key): key for key, shape in SD1.items() if is_matrix(key, shape)}
UNET = {name: key for name, key in MATRICES.items() if name.startswith("diffusion_model.")}


@pytest.fixture
def pair():
    base = grid(SD1, torch.float32)
    return base, trained(base)


@pytest.fixture
def inputs():
    return inputs_of({name: SD1[key] for name, key in UNET.items()})


def change_of(layer, shape):
    return oracles.change(layer.up, layer.down, layer.alpha).reshape(shape)


@pytest.mark.parametrize("rule", ["4", "energy=0.8", "2,conv=6"])
def test_the_report_has_both_errors_of_what_is_written(pair, inputs, rule):
    base, tuned = pair
    adapter, report = extract(
        source(base),
        source(tuned),
        rule,
        activations=DictSource(as_grams(inputs)),
        dtype=torch.float16,
    )
    totals = []
    for layer in report.layers:
        key = MATRICES[layer.target]
        true = delta(base, tuned, key)
        change = change_of(adapter.layers[layer.target], true.shape)
        assert layer.residual == pytest.approx(oracles.error_of(true, change), rel=1e-5)
        if layer.target not in inputs:
            assert layer.weighted is None
            continue
        residual, norm = output_error(true, change, inputs[layer.target])
        totals.append((residual, norm))
        assert layer.weighted.residual == pytest.approx(residual, rel=1e-4)
        assert layer.weighted.norm == pytest.approx(norm, rel=1e-4)
        assert layer.weighted_error == pytest.approx(residual / norm, rel=1e-4)
    assert len(totals) == len(UNET)
    assert report.weighted_error == pytest.approx(joined(totals), rel=1e-4)
    assert report.to_dict()["weighted_error"] == report.weighted_error
    count = len(report.layers) - len(totals)
    assert f"{count} layers without a record" in " ".join(report.notes)


def test_at_one_rank_outputs_are_closer_and_weights_are_not(pair, inputs):
    """Each layer: no better by weights than the plain truncation, no worse by outputs."""
    base, tuned = pair
    both = [
        extract(source(base), source(tuned), 3, activations=one, dtype=torch.float32, exact=True)
        for one in (None, DictSource(as_grams(inputs)))
    ]
    (plain, first), (by_output, second) = both
    gains = []
    for one, other in zip(first.layers, second.layers, strict=True):
        assert other.residual >= one.residual * (1 - 1e-5)
        if other.weighted is None:
            assert torch.equal(plain.layers[one.target].up, by_output.layers[one.target].up)
            continue
        true = delta(base, tuned, MATRICES[one.target])
        before, _ = output_error(
            true, change_of(plain.layers[one.target], true.shape), inputs[one.target]
        )
        gains.append(other.weighted.residual / before)
    assert max(gains) < 1
    assert min(gains) < 0.7


def test_kernels_of_three_axes_and_large_layers_are_weighed_too(pair):
    from checkpoints import WAN, large

    for base, tuned in ((grid(WAN, torch.bfloat16), None), large()):
        tuned = trained(base) if tuned is None else tuned
        keys = [key for key, one in base.items() if is_matrix(key, tuple(one.shape))]
        shapes = {target(key): tuple(base[key].shape) for key in keys}
        known = inputs_of(shapes, rows=50)
        _, report = extract(
            source(base),
            source(tuned),
            4,
            activations=DictSource(as_grams(known)),
            dtype=torch.float32,
        )
        assert all(layer.weighted is not None for layer in report.layers)
        for layer in report.layers:
            key = next(one for one in keys if target(one) == layer.target)
            x = known[layer.target]
            extra = (1e-3 * x.square().sum() / x.shape[1]).sqrt()
            damped = torch.cat([x, extra * torch.eye(x.shape[1]).double()])
            weighted = delta(base, tuned, key).double().flatten(1) @ damped.mT
            least = oracles.best_error(weighted, 4)
            found = (layer.weighted.residual**2 + extra**2 * layer.residual**2) ** 0.5
            assert float(found) == pytest.approx(least, rel=2e-3)


def write(folder, base, tuned, inputs):
    for name, tensors in (("base", base), ("tuned", tuned), ("record", as_grams(inputs))):
        save_file(tensors, folder / f"{name}.safetensors")
    return [folder / f"{name}.safetensors" for name in ("base", "tuned", "record")]


def test_the_file_names_its_activations_by_hash(tmp_path, pair, inputs):
    paths, out = write(tmp_path, *pair, inputs), tmp_path / "out.safetensors"
    with open_source(paths[0]) as one, open_source(paths[1]) as two, open_source(paths[2]) as third:
        plan = plan_file(one, two, 4, output=out, activations=third)
        extract_file(plan, one, two, out, version="1")
        with pytest.raises(ArgumentError):
            plan_file(one, two, 4, output=paths[2], activations=third, force=True)
        many = extract_files(one, [paths[1]], tmp_path / "many", 4, activations=third, version="1")
    assert all(report.weighted_error for report in many.values())
    told = read_metadata(out)
    assert told["lorakit.activations"] == "record.safetensors"
    assert told["lorakit.activations_sha256"] == hashlib.sha256(paths[2].read_bytes()).hexdigest()
    again = load_file(tmp_path / "many" / "tuned.safetensors")
    assert all(torch.equal(one, again[key]) for key, one in load_file(out).items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rule": "noise"}, "storage"),
        ({"rule": "mean=8"}, "budget"),
        ({"rule": 4, "kind": "lokr"}, "kind `lokr`"),
        ({"rule": 4, "kind": "dora"}, "kind `dora`"),
    ],
)
def test_what_does_not_combine_is_refused_with_the_reason(pair, inputs, options, message):
    base, tuned = (source(one) for one in pair)
    with pytest.raises(ArgumentError, match=message):
        plan_extraction(base, tuned, activations=DictSource(as_grams(inputs)), **options)


def test_files_that_are_no_record_of_this_model_are_refused(pair, inputs):
    base, tuned = (source(one) for one in pair)

    def plan(tensors):
        return plan_extraction(base, tuned, 4, activations=DictSource(tensors))

    grams = as_grams(inputs)
    first = next(iter(grams))
    with pytest.raises(FormatError, match="holds no activations"):
        plan(pair[0])
    with pytest.raises(MismatchError, match="other layers"):
        plan(
            as_grams(
                inputs_of({target(key): shape for key, shape in FLUX.items() if len(shape) > 1})
            )
        )
    with pytest.raises(WeightShapeError, match="width 5"):
        plan({**grams, first: torch.eye(5)})
    with pytest.raises(FormatError, match="should be"):
        plan({**grams, first: torch.zeros(4, 5)})
    with pytest.raises(FormatError, match="beside a diagonal"):
        plan({"diffusion_model.a.sketch": torch.zeros(4, 5)})
    for width in (4, 6):
        with pytest.raises(FormatError, match="beside a diagonal"):
            plan({"diffusion_model.a.sketch": torch.zeros(4, 5), "diffusion_model.a.diagonal": torch.ones(width)})  # fmt: skip
    broken = {**grams, first: torch.full_like(grams[first], torch.nan)}
    with pytest.raises(NonFiniteError, match="record again"):
        extract(base, tuned, 4, activations=DictSource(broken))


@pytest.mark.parametrize("size", [0.0, 1e-42])
def test_a_layer_that_nothing_went_into_is_cut_as_it_is(pair, inputs, size):
    grams = as_grams(inputs)
    first = next(iter(grams))
    nothing = size * torch.eye(len(grams[first]))
    _, report = extract(*(map(source, pair)), 4, activations=DictSource({**grams, first: nothing}))
    found = {layer.target: layer.weighted for layer in report.layers}
    assert found[first.removesuffix(".gram")] is None
    assert sum(one is not None for one in found.values()) == len(inputs) - 1
