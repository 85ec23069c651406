"""Several adapters compared: cosines, shared directions and signs, against dense float64 loops."""

from __future__ import annotations

import itertools
import json
import math

import pytest
import torch
from adapters import EVERY_FORM, Part, adapter, changes, read, tensors, written
from commands import lorakit_here, tiny_pair
from PIL import Image

from lorakit.lora_ops import (
    ArgumentError,
    LoraLayer,
    MismatchError,
    NonFiniteError,
    SeveralComparison,
    compare,
    compare_several,
)
from lorakit.lora_ops.adapters.adapter import Adapter
from lorakit.lora_ops.adapters.formats import CONTROL
from lorakit.lora_ops.inspect import conflict as module
from lorakit.pictures import conflict_picture
from lorakit.pictures.conflict import shade
from lorakit.pictures.shapes import GREEN, ORANGE, PANEL

RANKS = (3, 5, 2)
FORMS = ("linear", "conv1x1", "conv3x3", "conv3d", "tucker")


def parts(seed: int, rank: int, forms=FORMS, **more) -> list[Part]:
    return [Part(form, rank, seed=seed + at, **more) for at, form in enumerate(forms)]


SEVERAL = [parts(20 * at, rank) for at, rank in enumerate(RANKS)]


def dense(several) -> list[list[torch.Tensor]]:
    """By layer, each adapter's change as a float64 matrix; zero where it has none."""
    found = [changes(tensors(one)) for one in several]
    shapes = {name: change.shape for one in found for name, change in one.items()}
    return [
        [
            one.get(name, torch.zeros(shape, dtype=torch.float64)).flatten(1).double()
            for one in found
        ]
        for name, shape in shapes.items()
    ]


def projector(vectors: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    kept = vectors[:, values > 1e-6 * values[0]] if values[0] > 0 else vectors[:, :0]
    return kept @ kept.mT


def energies(several, i: int, j: int) -> tuple[float, float, float, float, float]:
    """Of i: in the left directions of j, in the right ones, what chance gives of both, and all."""
    left = right = by_left = by_right = whole = 0.0
    for layer in dense(several):
        one, other = layer[i], layer[j]
        u, values, v = torch.linalg.svd(other, full_matrices=False)
        outputs, inputs = projector(u, values), projector(v.mT, values)
        energy = float(one.square().sum())
        left += float((outputs @ one).square().sum())
        right += float((one @ inputs).square().sum())
        by_left += energy * float(outputs.trace()) / len(one)
        by_right += energy * float(inputs.trace()) / one.shape[1]
        whole += energy
    return left / whole, right / whole, by_left / whole, by_right / whole, whole


def signs(several, i: int, j: int, share: float) -> tuple[int, int, int]:
    """Largest elements of i, those that are among the largest of j, and those of opposite sign; one by one."""
    mine = both = against = 0
    for layer in dense(several):
        pair = [layer[at].float().flatten().tolist() for at in (i, j)]
        if not any(map(any, pair)):
            continue
        kept = max(1, int(share * len(pair[0])))
        bounds = [sorted(map(abs, one))[-kept] for one in pair]
        for x, y in zip(*pair, strict=True):
            large = [
                abs(one) >= bound and one != 0 for one, bound in zip((x, y), bounds, strict=True)
            ]
            mine += large[0]
            both += all(large)
            against += all(large) and (x > 0) != (y > 0)
    return mine, both, against


def several(lists=SEVERAL, **more) -> SeveralComparison:
    return compare_several([adapter(one) for one in lists], **more)


@pytest.mark.parametrize("share", [0.05, 0.2, 1.0])
def test_all_pairs_are_what_dense_loops_give(share: float) -> None:
    found = several(share=share).total
    for i, j in itertools.product(range(3), repeat=2):
        left, right, by_left, by_right, _ = energies(SEVERAL, i, j)
        assert found.shared_outputs[i][j] == pytest.approx(left, abs=1e-5)
        assert found.shared_inputs[i][j] == pytest.approx(right, abs=1e-5)
        if i != j:
            assert found.chance_outputs[i][j] == pytest.approx(by_left, rel=1e-5)
            assert found.chance_inputs[i][j] == pytest.approx(by_right, rel=1e-5)
        mine, both, against = signs(SEVERAL, i, j, share)
        assert found.overlap[i][j] == pytest.approx(both / mine, abs=2e-3)
        assert found.disagreement[i][j] == pytest.approx(against / both, abs=2e-3)


def test_cosines_and_the_sum_are_those_of_flat_vectors() -> None:
    rows = [torch.cat([layer[at].flatten() for layer in dense(SEVERAL)]) for at in range(3)]
    found = several().total
    for i, j in itertools.product(range(3), repeat=2):
        cosine = float(rows[i] @ rows[j] / rows[i].norm() / rows[j].norm())
        assert found.cosines[i][j] == pytest.approx(cosine, abs=1e-6)
    norms = [float(row.norm()) for row in rows]
    total = float(sum(rows[1:], rows[0]).norm())
    assert found.norms == pytest.approx(norms, rel=1e-6)
    assert found.sum_norm == pytest.approx(total, rel=1e-6)
    assert found.of_unrelated == pytest.approx(total / math.hypot(*norms), rel=1e-6)
    assert found.of_parallel == pytest.approx(total / sum(norms), rel=1e-6)


@pytest.mark.parametrize("format", ["kohya", "peft", "diffusers"])
def test_each_pair_is_that_of_two(format: str) -> None:
    adapters = [adapter(SEVERAL[0], "comfy"), *(adapter(one, format) for one in SEVERAL[1:])]
    found = compare_several(adapters)
    for i, j in itertools.combinations(range(3), 2):
        assert found.total.cosines[i][j] == pytest.approx(
            compare(adapters[i], adapters[j]).cosine, abs=1e-9
        )
    assert found.shared == len(found.layers) == len(FORMS)


def test_layers_that_one_does_not_hold() -> None:
    lists = [parts(0, 3), parts(20, 5, FORMS[:2]), parts(40, 2, FORMS[1:])]
    found = several(lists)
    assert (found.shared, len(found.layers)) == (1, len(FORMS))
    assert [layer.ranks for layer in found.layers][:3] == [(3, 5, 0), (3, 5, 2), (3, 0, 2)]
    for i, j in itertools.permutations(range(3), 2):
        left, right, *_ = energies(lists, i, j)
        assert found.total.shared_outputs[i][j] == pytest.approx(left, abs=1e-5)
        assert found.total.shared_inputs[i][j] == pytest.approx(right, abs=1e-5)
    rows = [torch.cat([layer[at].flatten() for layer in dense(lists)]) for at in range(3)]
    assert found.total.sum_norm == pytest.approx(float(sum(rows[1:], rows[0]).norm()), rel=1e-6)


def test_blocks_are_their_layers_together() -> None:
    names = [f"input_blocks.{at}.1.proj_in" for at in (1, 2, 4)] + ["strange"]
    lists = [[Part(module=n, seed=9 * k + i) for i, n in enumerate(names)] for k in range(3)]
    found = compare_several([adapter(one, "comfy") for one in lists])
    assert list(found.blocks()) == ["IN01", "IN02", "IN04", "rest"]
    inside = next(
        layer.conflict for layer in found.layers if layer.target.endswith("blocks.2.1.proj_in")
    )
    assert found.blocks()["IN02"].cosines == inside.cosines
    squares = sum(block.sum_norm**2 for block in found.blocks().values())
    assert squares == pytest.approx(found.total.sum_norm**2, rel=1e-9)


def test_with_itself_and_its_opposite() -> None:
    one = adapter(SEVERAL[0])
    turned = adapter([*parts(0, 3, size=-1.0)])
    found = compare_several([one, one, turned]).total
    assert found.cosines[0] == pytest.approx((1, 1, -1), abs=1e-9)
    assert found.shared_outputs[0] == pytest.approx((1, 1, 1), abs=1e-5)
    assert found.shared_inputs[0] == pytest.approx((1, 1, 1), abs=1e-5)
    assert found.overlap[0] == (1, 1, 1)
    assert found.disagreement[0] == (0, 0, 1)
    assert found.of_unrelated == pytest.approx(1 / math.sqrt(3), rel=1e-6)
    assert found.of_parallel == pytest.approx(1 / 3, rel=1e-6)


def test_directions_are_the_change_s_and_not_those_of_unused_columns() -> None:
    """A rank whose row of down is zero changes nothing: its column is no direction."""
    source = torch.Generator().manual_seed(0)
    up, down = torch.randn(40, 2, generator=source), torch.randn(2, 24, generator=source)
    down[1] = 0
    wide = LoraLayer(up, down, alpha=None)
    other = LoraLayer(up[:, 1:], torch.randn(1, 24, generator=source), alpha=None)
    name = "diffusion_model.input_blocks.1.1.proj_in"
    pair = [Adapter({name: layer}, {}, {}, "comfy") for layer in (other, wide)]
    found = compare_several(pair).total
    inner = float((up[:, 0] @ up[:, 1]) ** 2 / up[:, 0].square().sum() / up[:, 1].square().sum())
    assert found.shared_outputs[0][1] == pytest.approx(inner, abs=1e-6)
    assert found.chance_outputs[0][1] == pytest.approx(1 / 40)


def test_of_large_weights_rows_at_equal_steps_are_looked_at(monkeypatch) -> None:
    forms = ("linear",)
    lists = [parts(20 * at, rank, forms) for at, rank in enumerate(RANKS)]
    monkeypatch.setattr(module, "_LOOKED", 24 * 10)
    found = several(lists).total
    ((one, other, _),) = dense(lists)
    pair = [change[::4].float().flatten() for change in (one, other)]
    kept = int(0.2 * len(pair[0]))
    large = [x.abs() >= x.abs().sort(descending=True).values[kept - 1] for x in pair]
    both = large[0] & large[1]
    against = both & (pair[0] * pair[1] < 0)
    assert found.largest[0][1] == pytest.approx(4 * int(both.sum()))
    assert found.opposite[0][1] == pytest.approx(4 * int(against.sum()))


def test_zero_adapters_have_no_conflict() -> None:
    zero = adapter(parts(0, 3, size=0.0))
    found = compare_several([zero, zero, adapter(SEVERAL[1])]).total
    assert found.cosines[0] == (0, 0, 0)
    assert found.shared_outputs[2][:2] == (0, 0)
    assert found.disagreement[0][2] == 0
    assert compare_several([zero, zero]).total.of_unrelated == 0


def test_what_cannot_be_compared_is_refused() -> None:
    one = adapter(SEVERAL[0])
    with pytest.raises(ArgumentError, match="two adapters or more, not of 1"):
        compare_several([one])
    with pytest.raises(ArgumentError, match="share of 0 of"):
        compare_several([one, one], share=0)
    bad = tensors(SEVERAL[1])
    next(iter(bad.values()))[0] = torch.nan
    with pytest.raises(NonFiniteError):
        compare_several([one, read(bad), one])


def test_the_command_prints_draws_and_writes_json(tmp_path) -> None:
    paths = [
        written(tmp_path / f"{name}.safetensors", tensors(one))
        for name, one in zip("abc", SEVERAL, strict=True)
    ]
    drawn, told = tmp_path / "drawn.png", tmp_path / "told.json"
    run = lorakit_here("compare", *paths, "--picture", drawn, "--json", told)
    assert run.status == 0, run.err
    found = several(names=[str(path) for path in paths])
    assert f"{found.total.of_unrelated:.3f} times what unrelated" in run.out
    assert f"{found.total.cosines[0][1]:.4f}" in run.out
    data = json.loads(told.read_text("utf-8"))
    assert data["disagreement"][0][1] == pytest.approx(found.total.disagreement[0][1])
    assert data["blocks"].keys() == found.blocks().keys()
    assert len(data["layers"]) == len(FORMS)
    with Image.open(drawn) as picture:
        assert picture.size[0] == 960


def test_the_command_refuses_a_checkpoint_among_several_and_a_lone_file(tmp_path) -> None:
    one = written(tmp_path / "one.safetensors", tensors(SEVERAL[0]))
    base, _ = tiny_pair(tmp_path)
    run = lorakit_here("compare", one, one, base)
    assert (run.status, "is a checkpoint" in run.err) == (2, True)
    assert lorakit_here("compare", one).status == 2
    assert lorakit_here("compare", one, one, "--share", "0.1").status == 2


def test_the_picture_has_the_colours_of_its_numbers() -> None:
    assert (shade(0.0), shade(1.0), shade(-1.0)) == (PANEL, GREEN, ORANGE)
    found = several()
    picture = conflict_picture(("a", "b", "c"), found)
    side = 100  # three fields in 300 pixels, from (84, 150); the letters stand in the middle
    for i, j in itertools.product(range(3), repeat=2):
        where = (84 + j * side + 6, 150 + i * side + 6)
        assert picture.getpixel(where) == shade(found.total.cosines[i][j])


def test_a_control_lora_is_compared_with_its_like_alone() -> None:
    control = Adapter(adapter(SEVERAL[0]).layers, {}, {}, CONTROL.name)
    with pytest.raises(MismatchError, match="the second is a Control-LoRA"):
        compare_several(
            [adapter(SEVERAL[0]), control, control], names=["the first", "the second", "the third"]
        )


def test_many_forms_of_layers() -> None:
    assert several([list(EVERY_FORM)] * 4).total.of_parallel == pytest.approx(1, rel=1e-6)
