"""`lorakit extract --kind`, on the digits that ship with it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands import ROOT, lorakit_here

from lorakit.lora_ops.operations.extract.kinds.table import FORMS

BASE, TUNED = (ROOT / "examples" / "digits" / f"{side}.safetensors" for side in ("base", "tuned"))


@pytest.mark.parametrize("kind", list(FORMS))
def test_what_is_written_is_known_by_every_command(kind, tmp_path: Path):
    output = tmp_path / "out.safetensors"
    asked = ("extract", BASE, TUNED, "-o", output, "--rank", "2", "--kind", kind, "--device", "cpu")
    ahead = lorakit_here(*asked, "--dry-run")
    assert f"{FORMS[kind].title}, rank rule 2" in ahead.out
    assert not output.exists()
    made = lorakit_here(*asked, "--json", "-")
    assert made.status == 0, made.err
    error = json.loads(made.out)["error"]
    checked = lorakit_here("verify", BASE, TUNED, output, "--json", "-")
    assert json.loads(checked.out)["error"] == pytest.approx(error, rel=1e-4)
    told = lorakit_here("info", output)
    assert kind in told.out
    linted = lorakit_here("lint", output)
    assert linted.status == 0, linted.out
    baked = lorakit_here("bake", BASE, output, "-o", tmp_path / "baked.safetensors")
    assert baked.status == 0, baked.err


def test_a_kind_that_is_none_is_refused_by_name():
    done = lorakit_here("extract", BASE, TUNED, "-o", "x.safetensors", "--kind", "lohaa")
    assert done.status != 0
    assert "did you mean `loha`?" in done.err


def test_messages_have_the_command_lines_words():
    asked = ("extract", BASE, TUNED, "-o", "x.safetensors")
    done = lorakit_here(*asked, "--kind", "dora", "--factor", "4")
    assert "a factor of 4 is for a LoKr" in done.err
    done = lorakit_here(*asked, "--auto-full", "--format", "kohya")
    assert "leave --auto-full out" in done.err


UNUSED = [
    (("--norm", "frobenius"), "the frobenius norm is of weights that a budget compares"),
    (("--embeddings", "none"), "(none) is asked of format `peft` alone"),
    (("--dora", "comfy"), "--dora is for --kind dora"),
    (("--kind", "lokr", "--dora", "paper"), "--dora is for --kind dora"),
    (("--kind", "control_lora"), "did you mean `control-lora`?"),
    (("--kind", "nope"), "locon-tucker, control-lora"),
]


@pytest.mark.parametrize(("words", "told"), UNUSED)
@pytest.mark.parametrize("tuned", [(TUNED,), (TUNED, TUNED.with_name("tuned2.safetensors"))])
def test_what_would_change_nothing_is_refused(words, told, tuned, tmp_path: Path):
    output = tmp_path / "out"
    done = lorakit_here(
        *("extract", BASE, *tuned, "-o", output if tuned[1:] else f"{output}.safetensors"), *words
    )
    assert (done.status, done.out) == (2, "")
    assert told in done.err
    assert list(tmp_path.iterdir()) == []
