"""`lorakit compare` of two checkpoints: what it prints, writes and refuses."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from commands import contents, lorakit_here, tiny, tiny_pair
from safetensors.torch import load_file, save_file

ROWS = re.compile(r"^ *\S+ +(linear|conv 3x3|bias|norm) ", re.MULTILINE)


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    return tiny_pair(tmp_path)


def done(*words: object) -> str:
    run = lorakit_here("compare", *words)
    assert (run.status, run.err) == (0, "")
    return run.out


def share(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    first, second = (
        torch.cat([t.flatten().double() for t in side.values()]) for side in (one, other)
    )
    return float((second - first).norm() / first.norm())


def test_tables_and_totals(pair: tuple[Path, Path]) -> None:
    out = done(*pair)
    one, other = (load_file(path) for path in pair)
    assert len(ROWS.findall(out)) == len(one)
    for block, start in (("IN00", "input_blocks.0"), ("IN01", "input_blocks.1")):
        one_, other_ = (
            {key: t for key, t in side.items() if start in key} for side in (one, other)
        )
        assert re.search(rf"^ {block} +0 of {len(one_)} +{share(one_, other_):.4f} ", out, re.M)
    total = f"{share(one, other):.4f}"
    assert f"6 parameters in both, 0 equal: difference {total} of {pair[0]}" in out
    assert f"(unet {total})" in out
    assert "note" not in out


def test_json_has_every_parameter(pair: tuple[Path, Path]) -> None:
    one, other = (load_file(path) for path in pair)
    found = json.loads(done(*pair, "--json", "-"))
    assert found["size"] == pytest.approx(share(one, other), rel=1e-5)
    assert (found["shared"], found["equal"]) == (6, 0)
    assert list(found["components"]) == ["unet"]
    assert list(found["blocks"]) == ["IN00", "IN01"]
    for parameter, key in zip(found["parameters"], sorted(one), strict=True):
        assert parameter["name"] == key.removeprefix("model.")
        assert parameter["size"] == pytest.approx(share({"": one[key]}, {"": other[key]}), rel=1e-5)
        assert parameter["is_equal"] is False
    file = pair[0].with_name("r.json")
    done(*pair, "--json", file)
    assert json.loads(file.read_text()) == found


def test_a_file_with_itself(pair: tuple[Path, Path]) -> None:
    out = done(pair[0], pair[0])
    assert "6 parameters in both, 6 equal: difference 0.0000" in out
    assert out.rstrip().endswith("cosine 1.000000")


def test_notes_on_what_one_alone_has(pair: tuple[Path, Path]) -> None:
    tensors = {key: tensor.half() for key, tensor in load_file(pair[1]).items()}
    tensors["v_pred"] = torch.empty(0)
    bias = next(key for key in tensors if key.endswith(".bias"))
    tensors[bias] = tensors[bias][:3]
    q = next(key for key in tensors if key.endswith("to_q.weight"))
    tensors[q][0, 0] = torch.nan
    save_file(tensors, pair[1])
    out = done(*pair)
    assert f"note 1 parameter only in {pair[1]}, the first `other.v_pred`" in out
    assert f"note 1 parameter of another shape, the first `{bias[6:]}`: 8 and 3" in out
    assert f"note 1 parameter with NaN or infinity, in no sum, the first `{q[6:]}`" in out
    assert "note 4 parameters stored as fp32 and as fp16" in out
    assert len(ROWS.findall(out)) == 4
    assert "not finite" in done(*pair, "-v")


def test_a_few_are_shown_or_all(tmp_path: Path) -> None:
    one = {f"blocks.{i}.q.weight": torch.full((4, 4), i + 1.0) for i in range(20)}
    other = {key: tensor * 2 for key, tensor in one.items()}
    files = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    for path, tensors in zip(files, (one, other), strict=True):
        save_file(tensors, path)
    few, all_ = done(*files), done(*files, "-v")
    assert (len(ROWS.findall(few)), len(ROWS.findall(all_))) == (12, 20)
    assert "blocks.19.q" in few
    assert "blocks.0.q" not in few
    assert "the 12 furthest apart of 20; -v shows all" in few


def test_one_checkpoint_and_one_adapter(pair: tuple[Path, Path]) -> None:
    lora = pair[0].with_name("lora.safetensors")
    assert lorakit_here("extract", *pair, "-o", lora, "--rank", "2").status == 0
    before = contents(pair[0].parent)
    for words in ((pair[0], lora), (lora, pair[0])):
        run = lorakit_here("compare", *words)
        assert (run.status, run.out) == (1, "")
        assert f"{pair[0]}: is a checkpoint" in run.err
    assert contents(pair[0].parent) == before


def test_checkpoints_of_two_kinds(pair: tuple[Path, Path]) -> None:
    other = {key.replace("input_blocks", "layers"): tensor for key, tensor in tiny().items()}
    save_file(other, pair[1])
    run = lorakit_here("compare", *pair)
    assert run.status == 1
    assert "only 0 of 8 weights match" in run.err
    assert "--allow" not in run.err
    assert run.err.count("\n") == 1
