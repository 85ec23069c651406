"""Methods of adding against their definitions on explicit vectors, in numpy's float64."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st

from lorakit.lora_ops.errors import ArgumentError, NonFiniteError
from lorakit.lora_ops.operations.methods import METHODS, check_method, coefficients

MANY = [name for name, method in METHODS.items() if method.most is None]
MEANS = ("karcher", "geometric_median", "model_stock")
SCALED = ("sum", "slerp", "orthogonalise", "energy")


def solve(method, deltas, strengths=None, **parameters):
    """The coefficients for deltas given as the rows of a matrix."""
    deltas = torch.as_tensor(np.asarray(deltas, dtype=np.float64))
    strengths = [1.0] * len(deltas) if strengths is None else strengths
    chosen = coefficients(
        method, deltas @ deltas.mT, torch.tensor(strengths, dtype=torch.float64), **parameters
    )
    assert chosen.shape == (len(deltas),)
    assert chosen.dtype == torch.float64
    assert bool(chosen.isfinite().all())
    return chosen.numpy()


def result(method, deltas, strengths=None, **parameters):
    """The sum that the method stands for."""
    return solve(method, deltas, strengths, **parameters) @ np.asarray(deltas, dtype=np.float64)


def turned(deltas, strengths):
    return np.sign(strengths)[:, None] * deltas


def close(a, b, tolerance=1e-7):
    scale = max(1.0, float(np.abs(b).max(initial=0)))
    return bool(np.abs(np.asarray(a) - np.asarray(b)).max(initial=0) <= tolerance * scale)


@st.composite
def scenes(draw, *, least=2, most=4, signs=True):
    """Random deltas that agree a little, as LoRAs of one subject do, and strengths that are not 0."""
    count = draw(st.integers(least, most))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    deltas = random.normal(size=(count, draw(st.integers(count, 9)))) + 0.7
    deltas *= np.exp(random.normal(size=(count, 1)))
    strengths = random.uniform(0.2, 1.5, size=count)
    if signs:
        strengths *= random.choice([-1, 1], size=count)
    return deltas, strengths


# Small whole numbers: doubles, opposites, zeros and dependent vectors all turn up by themselves.
DEGENERATE = st.integers(1, 4).flatmap(
    lambda count: st.tuples(
        st.lists(
            st.lists(st.integers(-1, 1), min_size=2, max_size=2), min_size=count, max_size=count
        ),
        st.lists(st.sampled_from([-1.0, -0.5, 0.0, 0.5, 1.0]), min_size=count, max_size=count),
    )
)


# --- All methods --------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@given(DEGENERATE)
@example(([[0, 0], [0, 0]], [1.0, 1.0]))
@example(([[1, 0], [-1, 0]], [0.0, 0.0]))
def test_there_is_always_an_answer(method, scene):
    deltas, strengths = scene
    assume(METHODS[method].most is None or len(deltas) <= METHODS[method].most)
    if method == "average" and len(deltas) > 1 and sum(strengths) == 0:
        with pytest.raises(ArgumentError, match="add up to 0"):
            solve(method, deltas, strengths)
    else:
        solve(method, deltas, strengths)  # which asserts that all is finite


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("delta", [[3.0, 4.0], [0.0, 0.0]])
@pytest.mark.parametrize("strength", [0.7, -2.0, 0.0])
def test_a_single_input_is_that_input_times_its_strength(method, delta, strength):
    assert solve(method, [delta], [strength]) == pytest.approx([strength])


@pytest.mark.parametrize("method", METHODS)
def test_identical_inputs(method):
    both = result(method, [[3.0, 4.0]] * 2, [1.0, 1.0])
    factor = {"sum": 2, "energy": 2, "orthogonalise": 0}.get(method, 1)
    assert both == pytest.approx(np.array([3.0, 4.0]) * factor)


@pytest.mark.parametrize("method", METHODS)
def test_opposite_inputs_cancel(method):
    """What A and -A have in common is nothing; orthogonalise has nothing left of the second."""
    assert close(result(method, [[3.0, 4.0], [-3.0, -4.0]]), [0.0, 0.0])


ONE_IS_ZERO = {"sum": 1, "energy": 1, "orthogonalise": 0}


@pytest.mark.parametrize("method", METHODS)
def test_a_zero_delta_beside_another(method):
    """A layer that one input lacks: a mean is halfway to it, the others carry the other input."""
    both = result(method, [[3.0, 4.0], [0.0, 0.0]])
    assert close(both, np.array([3.0, 4.0]) * ONE_IS_ZERO.get(method, 0.5))


@pytest.mark.parametrize("method", MANY)
@given(scenes(most=3))
def test_strength_zero_is_as_if_it_were_not_there(method, scene):
    """Twin: a strength of 0 read as one that was not given, so 1."""
    deltas, strengths = scene
    alone = result(method, deltas, strengths)
    random = np.random.default_rng(0).normal(size=(1, deltas.shape[1]))
    more = np.concatenate([random, deltas]), np.concatenate([[0.0], strengths])
    assert close(result(method, *more), alone, 1e-5)
    if method in ("sum", "average", "karcher", "orthogonalise", "energy"):  # depend on every input
        # Where next to nothing is left, as of a delta along the others, nothing can be missing either.
        assume(np.linalg.norm(alone) > 1e-3)
        as_unset = np.where(more[1] == 0, 1, more[1])
        assert not close(result(method, more[0], as_unset), alone, 1e-5)


@pytest.mark.parametrize("method", [name for name in METHODS if name != "average"])
@given(scenes(most=2))
def test_a_negative_strength_is_the_negative_delta(method, scene):
    deltas, strengths = scene
    positive = result(method, turned(deltas, strengths), np.abs(strengths))
    assert close(result(method, deltas, strengths), positive, 1e-6)


@pytest.mark.parametrize("method", METHODS)
@given(scenes(most=2))
def test_twice_all_strengths(method, scene):
    """A mean stays what it is; the others double."""
    deltas, strengths = scene
    assume(abs(strengths.sum()) > 0.1)
    once, twice = (result(method, deltas, factor * strengths) for factor in (1, 2))
    assert close(twice, once * (2 if method in SCALED else 1), 1e-6)


@pytest.mark.parametrize("method", METHODS)
@given(scenes(most=2), st.floats(1e-6, 1e6))
def test_the_size_of_deltas_is_no_matter(method, scene, factor):
    """Coefficients are ratios: no threshold in absolute terms is hidden anywhere."""
    deltas, strengths = scene
    assume(abs(strengths.sum()) > 0.1)
    assert close(solve(method, factor * deltas, strengths), solve(method, deltas, strengths), 1e-5)


@pytest.mark.parametrize("method", [name for name in MANY if name != "orthogonalise"])
@given(scenes(signs=False), st.randoms(use_true_random=False))
def test_order_is_no_matter(method, scene, random):
    deltas, strengths = scene
    order = list(range(len(deltas)))
    random.shuffle(order)
    assert close(
        result(method, deltas[order], strengths[order]), result(method, deltas, strengths), 1e-6
    )


# --- Sum, average -------------------------------------------------------------------------------


@given(scenes())
def test_sum_and_average(scene):
    deltas, strengths = scene
    assume(abs(strengths.sum()) > 0.1)
    by_hand = sum(s * delta for s, delta in zip(strengths, deltas, strict=True))
    assert close(result("sum", deltas, strengths), by_hand)
    assert close(result("average", deltas, strengths), by_hand / math.fsum(strengths))


@pytest.mark.parametrize("strengths", [[1.0, -1.0], [0.0, 0.0], [0.1, 0.2, -0.3]])
def test_strengths_that_cancel_have_no_average(strengths):
    with pytest.raises(ArgumentError, match="add up to 0; use method `sum`"):
        solve("average", np.eye(len(strengths)), strengths)


# --- Slerp --------------------------------------------------------------------------------------


def slerp_by_rotation(a, b, t):
    """Turn the direction of a towards b by the share t of their angle; norms between linearly."""
    norms = np.linalg.norm(a), np.linalg.norm(b)
    first = a / norms[0]
    across = b - (b @ first) * first
    across /= np.linalg.norm(across)
    angle = math.atan2(b @ across, b @ first) * t
    length = (1 - t) * norms[0] + t * norms[1]
    return length * (math.cos(angle) * first + math.sin(angle) * across)


@given(scenes(most=2), st.floats(0, 1))
def test_slerp_is_a_rotation(scene, t):
    deltas, strengths = scene
    scaled = strengths[:, None] * deltas
    expected = slerp_by_rotation(*scaled, t)
    assert close(result("slerp", deltas, strengths, t=t), expected)


@given(scenes(most=2))
def test_slerp_begins_and_ends_at_its_inputs(scene):
    deltas, strengths = scene
    assert close(result("slerp", deltas, strengths, t=0), strengths[0] * deltas[0])
    assert close(result("slerp", deltas, strengths, t=1), strengths[1] * deltas[1])


def test_slerp_is_between_in_norm():
    """Twins: mergekit's weights on deltas that are not of one norm, and the straight line."""
    deltas = np.array([[1.0, 0.0], [0.0, 9.0]])
    half = math.sin(math.pi / 4) / math.sin(math.pi / 2)
    assert np.linalg.norm(result("slerp", deltas)) == pytest.approx(5)
    assert np.linalg.norm(half * deltas.sum(0)) == pytest.approx(math.sqrt(41))
    assert np.linalg.norm(deltas.mean(0)) == pytest.approx(math.sqrt(20.5))


@pytest.mark.parametrize("angle", [0.0, 1e-9, 1e-6, 0.9e-4, 1.1e-4, 1e-3])
def test_slerp_of_near_parallels_has_no_step(angle):
    deltas = np.array([[2.0, 0.0], [4 * math.cos(angle), 4 * math.sin(angle)]])
    between = np.array([math.cos(0.3 * angle), math.sin(0.3 * angle)]) * 2.6
    assert close(result("slerp", deltas, t=0.3), between, 1e-8)


def test_slerp_of_opposites_is_the_line_between():
    assert close(result("slerp", [[2.0, 0.0], [-4.0, 0.0]], t=0.25), [0.5, 0.0])


# --- Karcher ------------------------------------------------------------------------------------


def logarithm(mean, unit):
    """The tangent at a point of the sphere that leads to another."""
    across = unit - (mean @ unit) * mean
    length = np.linalg.norm(across)
    return across * (math.atan2(length, mean @ unit) / length if length > 0 else 0)


@given(scenes())
def test_karcher_is_where_the_logarithms_add_up_to_nothing(scene):
    deltas, strengths = scene
    units = turned(deltas, strengths)
    norms = np.linalg.norm(units, axis=1)
    units = units / norms[:, None]
    assume(np.min(units @ units.mean(0)) > 0.1)  # within one hemisphere: there is one mean
    found = result("karcher", deltas, strengths)
    weights = np.abs(strengths) / np.abs(strengths).sum()
    length = np.linalg.norm(found)
    assert length == pytest.approx(weights @ norms)
    pull = sum(w * logarithm(found / length, u) for w, u in zip(weights, units, strict=True))
    assert np.linalg.norm(pull) < 1e-6


@given(scenes(most=2, signs=False), st.floats(0.05, 0.95))
def test_karcher_of_two_is_slerp(scene, t):
    deltas, _ = scene
    assert close(
        result("karcher", deltas, [1 - t, t]), result("slerp", deltas, [1.0, 1.0], t=t), 1e-6
    )


def test_karcher_is_not_the_normalised_mean():
    """Twin: one step on the sphere, which is the straight mean drawn out to it."""
    deltas = np.array([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.2, 1.0]])
    deltas /= np.linalg.norm(deltas, axis=1)[:, None]
    straight = deltas.mean(0) / np.linalg.norm(deltas.mean(0))
    found = result("karcher", deltas)
    assert np.linalg.norm(found) == pytest.approx(1)
    assert np.linalg.norm(found - straight) > 0.01
    assert np.linalg.norm(result("karcher", deltas, iterations=1) - straight) > 1e-3


def test_directions_all_around_have_no_mean():
    """Twin: mergekit then takes the first input, whichever that is."""
    around = [[math.cos(a), math.sin(a)] for a in (0, 2 * math.pi / 3, 4 * math.pi / 3)]
    assert close(result("karcher", around), [0.0, 0.0])


# --- Geometric median ---------------------------------------------------------------------------


def total_distance(point, points, weights):
    return float(weights @ np.linalg.norm(points - point, axis=1))


def least_distance(points, weights):
    """The least that any input, or a thousand of Weiszfeld's steps on the vectors, reaches."""
    at = weights @ points / weights.sum()
    for _ in range(1000):
        pull = weights / np.maximum(np.linalg.norm(points - at, axis=1), 1e-9)
        at = pull @ points / pull.sum()
    return min(total_distance(point, points, weights) for point in (at, *points))


@given(scenes())
def test_geometric_median_has_the_least_distance(scene):
    deltas, strengths = scene
    points, weights = turned(deltas, strengths), np.abs(strengths)
    found = result("geometric_median", deltas, strengths)
    assert total_distance(found, points, weights) <= least_distance(points, weights) * (1 + 1e-9)


@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), min_size=1, max_size=5))
@example([(0, 0), (0, 1), (0, -1), (1, 0)])
def test_geometric_median_on_a_grid(points):
    """Doubles, points on one line, inputs that are the median."""
    deltas, weights = np.array(points, dtype=np.float64), np.ones(len(points))
    found = total_distance(result("geometric_median", deltas), deltas, weights)
    assert found <= least_distance(deltas, weights) * (1 + 1e-6) + 1e-6


@given(st.lists(st.integers(-9, 9), min_size=1, max_size=4).map(lambda x: x + x[:1] + [*x]))
def test_geometric_median_on_a_line_is_the_median(values):
    assume(len(values) % 2)
    found = result("geometric_median", [[float(value), 0.0] for value in values])
    assert found == pytest.approx([np.median(values), 0], abs=1e-6)


def test_geometric_median_outvotes_an_outlier():
    """Twin: the mean, which one input can draw anywhere."""
    deltas = np.array([[1.0, 0.0], [1.0, 0.1], [1.0, -0.1], [-50.0, 80.0]])
    assert np.linalg.norm(result("geometric_median", deltas) - [1, 0]) < 0.2
    assert np.linalg.norm(result("average", deltas) - [1, 0]) > 20


@pytest.mark.parametrize("weight", [0.1, 0.0])
def test_geometric_median_leaves_an_input_that_it_meets(weight):
    """Twin: to stop at an input rather than divide by 0; the mean, where it all begins, is one."""
    deltas = np.array([[0.0, 0.0], [0.0, 3.0], [2.0, -1.5], [-2.0, -1.5]])
    weights = np.array([weight, 1.0, 1.0, 1.0])
    assert close(weights @ deltas, [0.0, 0.0])
    least = least_distance(deltas, weights)
    assert total_distance(deltas[0], deltas, weights) > least * 1.001
    found = result("geometric_median", deltas, weights)
    assert total_distance(found, deltas, weights) <= least * (1 + 1e-9)


def test_geometric_median_of_two():
    deltas = np.array([[1.0, 2.0], [5.0, 0.0]])
    assert close(result("geometric_median", deltas), [3.0, 1.0])
    assert close(result("geometric_median", deltas, [0.6, 0.5]), deltas[0])


# --- Model stock --------------------------------------------------------------------------------


def stock(deltas, strengths, pairs=None):
    """The mean times N cos / (1 + (N - 1) cos), cos the mean over pairs of inputs: all of them."""
    points = turned(deltas, strengths)
    count = len(points)
    pairs = list(itertools.combinations(range(count), 2)) if pairs is None else pairs
    cosine = np.mean(
        [
            points[i] @ points[j] / (np.linalg.norm(points[i]) * np.linalg.norm(points[j]))
            for i, j in pairs
        ]
    )
    ratio = count * cosine / (1 + (count - 1) * cosine)
    return ratio * (np.abs(strengths) @ points) / np.abs(strengths).sum(), cosine


@given(scenes())
def test_model_stock_is_its_formula(scene):
    deltas, strengths = scene
    expected, cosine = stock(deltas, strengths)
    found = result("model_stock", deltas, strengths)
    assert close(found, expected if cosine > 0 else np.zeros_like(expected))


@pytest.mark.parametrize(("count", "ratio"), [(2, 2 / 3), (3, 3 / 4), (4, 4 / 5)])
def test_model_stock_by_hand(count, ratio):
    """At 60 degrees. Twins: no ratio at all (sd-mecha's flag, inverted), and N of two inputs only."""
    deltas = np.eye(count) / 2 + (math.sqrt((1 + count) / 4) - 0.5) / count
    cosines = deltas @ deltas.T / (deltas[0] @ deltas[0])
    assert cosines[0, 1:] == pytest.approx(0.5)
    assert close(result("model_stock", deltas), ratio * deltas.mean(0))
    assert not close(deltas.mean(0), ratio * deltas.mean(0), 0.05)
    assert close(stock(deltas, np.ones(count))[0], ratio * deltas.mean(0))


def test_model_stock_looks_at_all_pairs():
    """Twin: sd-mecha compares neighbours only, so that the order of inputs changes the result."""
    deltas = np.array([[1.0, 0.0, 0.2], [1.0, 0.1, 0.0], [0.3, 1.0, 0.0]])
    ones = np.ones(3)
    neighbours = [(0, 1), (1, 2)]
    order = [1, 2, 0]
    assert not close(stock(deltas, ones, neighbours)[0], stock(deltas[order], ones, neighbours)[0])
    assert close(result("model_stock", deltas), result("model_stock", deltas[order]))


def test_model_stock_of_deltas_that_oppose_each_other():
    """Twin: the bare formula, which near the pole is hundreds of times too large, and reversed."""
    deltas = np.array([[1.0, 0.01], [-1.0, 0.01]])
    bare, cosine = stock(deltas, np.ones(2))
    assert cosine < 0
    assert np.linalg.norm(bare) > 50 * np.linalg.norm(deltas.mean(0))
    assert close(result("model_stock", deltas), [0.0, 0.0], 0)


# --- Orthogonalise ------------------------------------------------------------------------------


@given(scenes())
def test_orthogonalise_is_least_squares(scene):
    deltas, strengths = scene
    scaled = strengths[:, None] * deltas
    along = np.linalg.lstsq(scaled[:-1].T, scaled[-1], rcond=None)[0]
    rest = result("orthogonalise", deltas, strengths)
    assert close(rest, scaled[-1] - along @ scaled[:-1])
    for delta in deltas[:-1]:
        assert abs(rest @ delta) < 1e-7 * np.linalg.norm(rest) * np.linalg.norm(delta) + 1e-9


def test_orthogonalise_when_the_earlier_depend_on_each_other():
    """Twin: taking out the part along each in turn, or along each of the inputs by itself."""
    earlier = np.array([[1.0, 0.0, 0.0], [1.0, 1.0, 0.0], [2.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    last = np.array([5.0, 7.0, 3.0])
    in_turn = last
    for delta in earlier:
        in_turn = in_turn - (in_turn @ delta) / (delta @ delta) * delta
    assert not close(in_turn, [0, 0, 3], 0.1)
    assert close(result("orthogonalise", [*earlier, last]), [0, 0, 3])
    assert np.abs(solve("orthogonalise", [*earlier, last])).max() < 10


@pytest.mark.parametrize("last", [[3.0, 3.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
def test_orthogonalise_of_what_is_not_new_is_nothing(last):
    """All coefficients are zero, not a pair of large ones that cancel only nearly."""
    chosen = solve("orthogonalise", [[1.0, 0.0, 0.0], [1.0, 2.0, 0.0], last])
    assert chosen.tolist() == [0.0, 0.0, 0.0]


# --- Energy -------------------------------------------------------------------------------------


@given(scenes())
def test_energy_makes_norms_equal_and_keeps_their_squares(scene):
    deltas, strengths = scene
    chosen = solve("energy", deltas, strengths)
    norms = np.abs(chosen) * np.linalg.norm(deltas, axis=1)
    before = np.abs(strengths) * np.linalg.norm(deltas, axis=1)
    assert norms == pytest.approx([norms[0]] * len(norms))
    assert math.fsum(norms**2) == pytest.approx(math.fsum(before**2))
    assert (np.sign(chosen) == np.sign(strengths)).all()


# --- What is asked ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "inputs", "parameters", "says"),
    [
        ("slrep", 2, {}, "did you mean `slerp`?"),
        ("ties", 2, {}, "it is one of sum, average"),
        ("slerp", 3, {}, "takes 2 inputs, not 3; `karcher`"),
        ("slerp", 2, {"t": 1.5}, "`t=1.5`: give a number from 0 to 1"),
        ("slerp", 2, {"t": math.nan}, "give a number from 0 to 1"),
        ("slerp", 2, {"alpha": 1}, "no parameter `alpha`; it is one of t"),
        ("sum", 2, {"t": 1}, "no parameter `t`; it takes none"),
        ("karcher", 2, {"iteration": 5}, "did you mean `iterations`?"),
        ("karcher", 2, {"iterations": 2.5}, "give a whole number from 1 to 10000"),
        ("karcher", 2, {"iterations": math.inf}, "give a whole number"),
        ("geometric_median", 2, {"tolerance": -1}, "give a number from 0 to 1"),
    ],
)
def test_wrong_requests_say_what_is_right(method, inputs, parameters, says):
    for ask in (
        lambda: check_method(method, inputs, **parameters),
        lambda: solve(method, np.eye(inputs), **parameters),
    ):
        with pytest.raises(ArgumentError) as refused:
            ask()
        assert says in str(refused.value)
        assert not str(refused.value).endswith(".")


def test_defaults_are_filled_in():
    assert check_method("slerp", 2) == {"t": 0.5}
    assert check_method("karcher", 9, iterations=3) == {"iterations": 3, "tolerance": 1e-8}
    assert check_method("sum", 1) == {}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("inputs", [1, 2])
@pytest.mark.parametrize("where", ["gram", "strengths"])
def test_what_is_not_finite_is_refused(method, inputs, where):
    gram = torch.eye(inputs, dtype=torch.float64)
    strengths = torch.ones(inputs, dtype=torch.float64)
    {"gram": gram, "strengths": strengths}[where].view(-1)[-1] = math.nan
    with pytest.raises(NonFiniteError):
        coefficients(method, gram, strengths)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_says_what_it_does_and_takes(name):
    method = METHODS[name]
    assert 0 < len(method.help) <= 80
    assert (method.solve.__doc__ or "").strip()
    for parameter in method.parameters.values():
        assert parameter.low <= parameter.default <= parameter.high
        assert parameter.help
