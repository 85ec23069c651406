"""`lorakit bake` and `lorakit unbake`: what they print, write and return."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from checkpoints import Tensors
from commands import Run, contents, lorakit_here, tiny
from safetensors import safe_open
from safetensors.torch import load_file, save_file

Q = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight"
CONV = "model.diffusion_model.input_blocks.0.0.weight"


def lora(*keys: str, seed: int, alpha: float = 1.0) -> Tensors:
    """Rank 2 on some weights of the tiny model."""
    generator = torch.Generator().manual_seed(seed)
    base, found = tiny(), {}
    for key in keys:
        out, *rest = base[key].shape
        module = key.removeprefix("model.").removesuffix(".weight")
        ones = [1 for _ in rest[1:]]
        found[f"{module}.lora_B.weight"] = torch.randn(out, 2, *ones, generator=generator)
        found[f"{module}.lora_A.weight"] = torch.randn(2, *rest, generator=generator)
        found[f"{module}.alpha"] = torch.tensor(alpha)
    return found


def change(tensors: Tensors, key: str) -> torch.Tensor:
    """The change of a weight, in float64, from the definition."""
    module = key.removeprefix("model.").removesuffix(".weight")
    up, down = (tensors[f"{module}.lora_{side}.weight"].double() for side in "BA")
    flat = float(tensors[f"{module}.alpha"]) / 2 * up.flatten(1) @ down.flatten(1)
    return flat.reshape(len(up), *down.shape[1:])


A, B = lora(Q, CONV, seed=1), lora(Q, seed=2, alpha=4.0)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint and two LoRAs in the working folder."""
    monkeypatch.chdir(tmp_path)
    save_file(tiny(), tmp_path / "base.safetensors", metadata={"modelspec.title": "tiny"})
    save_file(A, tmp_path / "a.safetensors")
    save_file(B, tmp_path / "b.safetensors")
    return tmp_path


def bake(*words: str) -> Run:
    return lorakit_here("bake", "base.safetensors", *words, "-o", "x.safetensors")


def test_two_at_their_strengths(folder: Path) -> None:
    run = bake("a.safetensors:0.5", "b.safetensors:-1")
    assert (run.status, run.err) == (0, "")
    assert run.out.endswith("wrote x.safetensors\n")
    base, found = tiny(), load_file("x.safetensors")
    wanted = {
        Q: base[Q].double() + 0.5 * change(A, Q) - change(B, Q),
        CONV: base[CONV].double() + 0.5 * change(A, CONV),
    }
    for key, tensor in base.items():
        if key in wanted:
            torch.testing.assert_close(found[key].double(), wanted[key], rtol=0, atol=1e-6)
        else:
            assert torch.equal(found[key], tensor)


def test_by_pattern_and_by_block(folder: Path) -> None:
    assert bake("a.safetensors", "--where", "*to_q*=0").status == 0
    found = load_file("x.safetensors")
    assert torch.equal(found[Q], tiny()[Q])
    assert not torch.equal(found[CONV], tiny()[CONV])
    run = lorakit_here("bake", "base.safetensors", "a.safetensors:1:IN00=0", "-o", "y.safetensors")
    assert run.status == 0
    assert torch.equal(load_file("y.safetensors")[CONV], tiny()[CONV])


def test_unbake_gives_the_checkpoint_back(folder: Path) -> None:
    assert bake("a.safetensors:0.8").status == 0
    run = lorakit_here("unbake", "x.safetensors", "a.safetensors:0.8", "-o", "back.safetensors")
    assert run.status == 0
    for key, tensor in load_file("back.safetensors").items():
        torch.testing.assert_close(tensor, tiny()[key], rtol=0, atol=1e-6)


def test_the_report_as_json(folder: Path) -> None:
    run = bake("a.safetensors", "--json", "-")
    report = json.loads(run.out)
    assert {layer["kind"] for layer in report["layers"]} == {"linear", "conv 3x3"}
    assert all(layer["cosine"] > 0.999999 for layer in report["layers"])
    assert report["size"] == Path("x.safetensors").stat().st_size


def test_the_record_of_what_was_done(folder: Path) -> None:
    assert bake("a.safetensors:0.5").status == 0
    with safe_open("x.safetensors", "pt") as file:
        metadata = file.metadata()
    assert metadata["modelspec.title"] == "tiny"
    assert metadata["lorakit.operation"] == "bake"
    (source,) = json.loads(metadata["lorakit.sources"])
    assert (source["name"], source["strength"]) == ("a.safetensors", 0.5)


def test_shards_and_another_dtype(folder: Path) -> None:
    words = ("bake", "base.safetensors", "a.safetensors", "--dtype", "bf16")
    assert lorakit_here(*words, "-o", "x.safetensors.index.json").status == 0
    index = json.loads(Path("x.safetensors.index.json").read_text())["weight_map"]
    assert index.keys() == tiny().keys()
    parts = [load_file(name) for name in set(index.values())]
    assert {t.dtype for part in parts for t in part.values()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (("missing.safetensors",), 2, "no such file"),
        (("a.safetensors:much",), 2, "not a finite strength"),
        (("a.safetensors:0",), 2, "nothing to bake"),
        (("a.safetensors", "--where", "nothing_like_it=1"), 2, "fits none of"),
        (("base.safetensors",), 1, "checkpoint"),
        (("other.safetensors",), 1, "2 of 2 layers"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_no_file(
    words: tuple[str, ...], status: int, said: str, folder: Path
) -> None:
    save_file({k.replace("input_blocks", "blocks"): t for k, t in A.items()}, "other.safetensors")
    before = contents(folder)
    run = bake(*words)
    assert run.status == status
    assert run.err.startswith("Error: ")
    assert run.err.count("\n") == 1
    assert said in run.err
    assert contents(folder) == before


def test_an_adapter_first_is_an_error(folder: Path) -> None:
    run = lorakit_here("bake", "a.safetensors", "base.safetensors", "-o", "x.safetensors")
    assert run.status == 1
    assert "give the checkpoint first" in run.err


def test_an_output_that_exists_is_kept(folder: Path) -> None:
    assert bake("a.safetensors").status == 0
    before = contents(folder)
    assert bake("b.safetensors").status == 2
    assert contents(folder) == before
    assert bake("b.safetensors", "--force").status == 0
    assert contents(folder) != before
