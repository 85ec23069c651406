"""Merge Models on the real ComfyUI's models: against float64, against its own merge, in every state."""

from __future__ import annotations

import math

import comfy_host
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_flux import DTYPES, FORMATS, STRENGTH, adapter, distance, numbers, rounded, stored, tuned


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Checkpoints by name, and an adapter: B and C are fine-tunes of A."""
    folder = tmp_path_factory.mktemp("models")
    base = numbers(1)
    states = {
        "A": base,
        **{
            letter: {
                key: one + (0.03 * numbers(seed)[key] if one.ndim > 1 else 0.01 * seed)
                for key, one in base.items()
            }
            for seed, letter in ((2, "B"), (3, "C"))
        },
        "lora": adapter(),
    }
    for name, dtype in DTYPES.items():
        for letter in "ABC":
            state = {key: one.to(dtype) for key, one in states[letter].items()}
            save_file(state, folder / f"{letter} {name}.safetensors")
    save_file(states["lora"], folder / "lora.safetensors")
    return folder


@pytest.fixture(scope="module")
def host():
    with comfy_host.started() as started:
        yield started


@pytest.fixture
def merge(host, files, tmp_path):
    """The weights that the node makes of models, by kind; and what it says."""

    def ask(*models, **question):
        output = str(tmp_path / "weights.safetensors")
        answer = host.ask("nodes_merge", {"models": list(models), "output": output, **question})
        if "error" in answer:
            return answer
        assert answer["same"], "merging changed a model"
        assert answer["read"] == 0, "something was computed before it was used"
        found = load_file(output)
        for kind in ("exact", "placed", "held", "used", "core placed", "clip exact"):
            held = {k.removeprefix(f"{kind} "): v for k, v in found.items() if k.startswith(kind)}
            answer[kind] = {key: one.double() for key, one in held.items()}
        return answer

    return ask


@pytest.fixture
def model(files):
    """A question for a MODEL: a letter, its dtype, and what was done to it."""

    def named(letter, dtype="fp32", *steps, **more):
        path = {
            "base": str(files / f"{letter} {dtype}.safetensors"),
            "lora": str(files / "lora.safetensors"),
            "other": str(files / "B fp32.safetensors"),
        }
        return {"files": path, "steps": [list(one) for one in steps], **more}

    return named


def truth(files, letter, dtype="fp32"):
    return stored(str(files / f"{letter} {dtype}.safetensors"))


def combined(weights, *factors):
    """The sum of weights, each times its factor, in float64."""
    return {
        key: sum(factor * one[key] for factor, one in zip(factors, weights, strict=True))
        for key in weights[0]
    }


# Methods, from their definitions


def inner(one, other):
    return float((one * other).sum())


def slerp(a, b, t):
    one, two = math.sqrt(inner(a, a)), math.sqrt(inner(b, b))
    angle = math.acos(min(1.0, inner(a, b) / (one * two)))
    arc = [math.sin((1 - t) * angle), math.sin(t * angle)]
    length = (1 - t) * one + t * two
    if angle < 1e-9:
        return (1 - t) * a + t * b
    return length * (arc[0] * a / one + arc[1] * b / two) / math.sin(angle)


def model_stock(a, b, c, _share):
    first, second = b - a, c - a
    norms = math.sqrt(inner(first, first) * inner(second, second))
    cosine = max(0.0, inner(first, second) / norms)
    return a + 2 * cosine / (1 + cosine) * (first + second) / 2


def orthogonalise(a, b, c, share):
    first, second = b - a, c - a
    return a + share * (second - inner(first, second) / inner(first, first) * first)


def energy(a, b, c, share):
    first, second = b - a, c - a
    one, two = math.sqrt(inner(first, first)), math.sqrt(inner(second, second))
    common = math.sqrt((one**2 + two**2) / 2)
    return a + share * (common * first / one + common * second / two)


def karcher(a, b, c, share):
    """Steps to the mean in the tangent space, until they vanish."""
    weights = [1 - 2 * share, share, share]
    norms = [math.sqrt(inner(one, one)) for one in (a, b, c)]
    units = [one / norm for one, norm in zip((a, b, c), norms, strict=True)]
    mean = sum(w * u for w, u in zip(weights, units, strict=True))
    mean = mean / math.sqrt(inner(mean, mean))
    for _ in range(50):
        step = torch.zeros_like(mean)
        for w, u in zip(weights, units, strict=True):
            cosine = max(-1.0, min(1.0, inner(mean, u)))
            across = u - cosine * mean
            length = math.sqrt(inner(across, across))
            step += w * math.acos(cosine) * across / length if length > 1e-12 else 0.0
        length = math.sqrt(inner(step, step))
        if length < 1e-13:
            break
        mean = math.cos(length) * mean + math.sin(length) * step / length
    return mean * sum(w * norm for w, norm in zip(weights, norms, strict=True))


def geometric_median(a, b, c, share):
    """Weiszfeld's steps, many of them."""
    points, weights = (a, b, c), [1 - 2 * share, share, share]
    at = sum(w * p for w, p in zip(weights, points, strict=True))
    for _ in range(2000):
        pull = [w / (p - at).norm() for w, p in zip(weights, points, strict=True)]
        at = sum(w * p for w, p in zip(pull, points, strict=True)) / sum(pull)
    return at


METHODS = {
    "weighted_sum": (lambda a, b, c, share: a + share * (b - a) + share * (c - a), 3),
    "add_difference": (lambda a, b, c, share: a + share * (b - c), 3),
    "slerp": (slerp, 2),
    "karcher": (karcher, 3),
    "geometric_median": (geometric_median, 3),
    "model_stock": (model_stock, 3),
    "orthogonalise": (orthogonalise, 3),
    "energy": (energy, 3),
}


@pytest.mark.parametrize("method", METHODS)
def test_a_method_is_its_definition(merge, model, files, method):
    define, count = METHODS[method]
    letters = "ABC"[:count]
    found = merge(*map(model, letters), inputs={"method": method, "share_of_B": 0.3})
    sides = [truth(files, one) for one in letters]
    exact = {key: define(*(side[key] for side in sides), 0.3) for key in sides[0]}
    # A median's own steps end at a share of the size, the definition's after so many.
    assert distance(found["exact"], exact) < (1e-5 if method == "geometric_median" else 1e-6)
    assert distance(found["exact"], combined([sides[0]], 1)) > 1e-3  # twin
    assert found["records"] == 1
    assert found["patches"] == len(exact)
    assert found["report"].startswith(f"done · {method} of {count} models, in {len(exact)} weights")


def test_all_methods_are_tried_and_in_the_core(host):
    answer = host.ask("nodes_methods", {})
    assert answer["node"] == list(METHODS)
    assert set(answer["spans"]) <= set(answer["node"])


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0, 1.5, -0.3])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_share_is_that_of_the_second(merge, model, files, share, dtype):
    found = merge(model("A", dtype), model("B", dtype), inputs={"share_of_B": share})
    sides = [truth(files, one, dtype) for one in "AB"]
    exact = combined(sides, 1 - share, share)
    assert distance(found["exact"], exact) < 1e-6
    if share in (0.0, 1.0):
        assert distance(found["exact"], sides[int(share)]) == 0
    assert found["patches"] == (0 if share == 0 else len(exact))
    assert found["report"].startswith("warning" if share == 0 else "done")


@pytest.mark.parametrize("computes", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_it_is_rounded_once_whatever_the_host_computes_in(merge, model, files, computes, dtype):
    """On most GPUs the host casts weights to fp16 before it patches them, and rounds each step."""
    question = {"computes in": computes, "core": 0.3, "inputs": {"share_of_B": 0.3}}
    found = merge(model("A", dtype), model("B", dtype), **question)
    exact = combined([truth(files, one, dtype) for one in "AB"], 0.7, 0.3)
    best = distance(rounded(exact, DTYPES[dtype]), exact)
    assert distance(found["placed"], exact) <= best * 1.01
    # The host's own merge is the same, within its own rounding.
    theirs = distance(rounded(exact, getattr(torch, computes)), exact)
    assert distance(found["core placed"], exact) < 3 * max(best, theirs)
    if computes == "bfloat16":
        assert distance(found["core placed"], exact) > 1.1 * best  # twin


def test_as_a_layer_is_used_it_is_rounded_to_what_it_computes_in(merge, model, files):
    found = merge(model("A"), model("B"), inputs={"share_of_B": 0.3})
    exact = combined([truth(files, one) for one in "AB"], 0.7, 0.3)
    assert distance(found["used"], exact) < 1.01 * distance(rounded(exact, torch.bfloat16), exact)


@pytest.mark.parametrize("state", [(), ("whole",), ("part",)])
@pytest.mark.parametrize("dtype", ["fp32", "fp8"])
def test_loras_on_both_and_models_in_use(merge, model, files, state, dtype):
    loaded = [[step] for step in state]
    one = model("A", dtype, ["lora", STRENGTH], *loaded)
    other = model("B", dtype, ["lora", -0.5], *loaded)
    found = merge(one, other, inputs={"share_of_B": 0.4})
    sides = [tuned(truth(files, "A", dtype), STRENGTH), tuned(truth(files, "B", dtype), -0.5)]
    assert distance(found["exact"], combined(sides, 0.6, 0.4)) < 1e-6
    assert found["records"] == 1


def test_a_lora_after_it(merge, model, files):
    lora = str(files / "lora.safetensors")
    for state in ([], [["whole"]], [["part"]]):
        found = merge(
            model("A"),
            model("B"),
            inputs={"share_of_B": 0.4},
            after=[["lora", lora, STRENGTH], *state],
        )
        exact = tuned(combined([truth(files, one) for one in "AB"], 0.6, 0.4), STRENGTH)
        assert distance(found["exact"], exact) < 1e-6, state
        if state == [["whole"]]:  # what the model computes with
            assert distance(found["held"], exact) < 1e-6


def test_a_merge_of_merges_is_rounded_once(merge, model, files):
    inside = {"merge": [model("A", "bf16"), model("B", "bf16")], "inputs": {"share_of_B": 0.3}}
    for order in (lambda x, y: (x, y), lambda x, y: (y, x)):
        found = merge(*order(inside, model("C", "bf16")), inputs={"share_of_B": 0.6})
        sides = [truth(files, one, "bf16") for one in "ABC"]
        first, last = order(0.4, 0.6) if order(0, 1) == (0, 1) else (0.6, 0.4)
        exact = combined(sides, first * 0.7, first * 0.3, last)
        assert distance(found["exact"], exact) < 1e-6
        best = distance(rounded(exact, torch.bfloat16), exact)
        assert distance(found["placed"], exact) <= 1.01 * best


def test_the_host_merges_ours_on(merge, model, files):
    """Its node takes the result as either side."""
    lora = [["merge", "MergeSimple", 0.75]]
    found = merge(model("A", "fp32", *lora), model("C"), inputs={"share_of_B": 0.2})
    sides = [truth(files, one) for one in "ABC"]
    assert distance(found["exact"], combined(sides, 0.6, 0.2, 0.2)) < 1e-6


@pytest.mark.parametrize("dtypes", [("fp16", "bf16"), ("bf16", "fp8"), ("fp8", "fp32")])
def test_mixed_dtypes_keep_that_of_a(merge, model, files, dtypes):
    found = merge(*(model(one, dtype) for one, dtype in zip("AB", dtypes, strict=True)))
    sides = [truth(files, one, dtype) for one, dtype in zip("AB", dtypes, strict=True)]
    exact = combined(sides, 0.5, 0.5)
    assert distance(found["exact"], exact) < 1e-6


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("which", ["A", "B"])
def test_what_the_host_quantises(merge, model, files, format, which):
    """Whichever side is quantised: read as it stands for, and A stays in its format."""
    sides = {"A": model("A"), "B": model("B")}
    sides[which] = model(which, "fp32", format=format)
    found = merge(sides["A"], sides["B"], inputs={"share_of_B": 0.4})
    exact = combined([truth(files, one) for one in "AB"], 0.6, 0.4)
    quantised = {key for key in exact if key.endswith("mlp.2.weight")}
    assert (
        distance(
            {key: one for key, one in found["exact"].items() if key not in quantised},
            {key: one for key, one in exact.items() if key not in quantised},
        )
        < 1e-6
    )
    for kind in ("exact", "placed"):
        off = distance(
            {key: found[kind][key] for key in quantised}, {key: exact[key] for key in quantised}
        )
        assert 1e-4 < off < 0.2, kind


def test_blocks_and_patterns(merge, model, files):
    inputs = {"share_of_B": 0.5, "blocks": "D00=0.5,S00=0,OUT=2", "where": "*txt_mlp*=1\n"}
    found = merge(model("A"), model("B"), inputs=inputs)
    one, other = (truth(files, letter) for letter in "AB")
    factors = {
        key: 1.0
        if "txt_mlp" in key
        else 0.5
        if "double_blocks" in key
        else 0.0
        if "single_blocks" in key
        else 2.0
        if "final_layer" in key
        else 1.0
        for key in one
    }
    exact = {key: one[key] + 0.5 * factors[key] * (other[key] - one[key]) for key in one}
    assert distance(found["exact"], exact) < 1e-6
    assert found["patches"] == sum(factor != 0 for factor in factors.values())
    assert "times, by block: 2 in OUT" in found["report"]


def test_what_is_in_no_weight_is_told(merge, model):
    told = merge(model("A"), model("B", predicts="V_PREDICTION"))["report"].splitlines()
    assert told[0].startswith("warning · ")
    assert "! A predicts FLUX, B V_PREDICTION: the result is sampled as A" in told
    told = merge(model("A"), model("B", bypass=True))["report"]
    assert "of B acts as its layers run and is in no weight: left out" in told
    assert "left out" not in merge(model("A", bypass=True), model("B"))["report"]
