"""`lorakit finish` and parts that do not fit: one line, an exit status, and nothing is lost."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from commands import contents, lorakit_here, tiny_pair
from safetensors.torch import load_file, save_file

NAME = "out.safetensors"


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    return tiny_pair(tmp_path)


@pytest.fixture
def output(tmp_path: Path) -> Path:
    (tmp_path / "to").mkdir()
    return tmp_path / "to" / NAME


def once(pair: tuple[Path, Path], folder: Path, *words: object) -> bytes:
    """The bytes of one run."""
    (folder / "once").mkdir(exist_ok=True)
    made = lorakit_here("extract", *pair, "-o", folder / "once" / NAME, *words, "--force")
    assert made.status == 0, made.err
    return (folder / "once" / NAME).read_bytes()


def part(pair: tuple[Path, Path], output: Path, which: str, *words: object):
    return lorakit_here("extract", *pair, "-o", output, "--part", which, *words)


def parts(pair: tuple[Path, Path], output: Path, count: int = 2) -> Path:
    """All parts; their folder."""
    for number in range(1, count + 1):
        made = part(pair, output, f"{number}/{count}")
        assert made.status == 0, made.err
    return output.with_name(f"{NAME}.parts")


def refused(made, status: int, *told: str) -> None:
    """One line of error with these words."""
    assert made.status == status, (made.out, made.err)
    assert made.out == ""
    for words in told:
        assert words in made.err
    assert made.err.rstrip().count("\n") <= (3 if status == 2 else 0), made.err


def test_what_is_missing_is_listed_with_status_3(pair, output, tmp_path):
    assert part(pair, output, "2/3").status == 0
    before = contents(output.parent)
    made = lorakit_here("finish", output)
    assert (made.status, made.out) == (3, "")
    first, *names = made.err.rstrip().split("\n  ")
    assert "missing: part 1, 3 of 3; the first `" in first
    done = json.loads((output.with_name(f"{NAME}.parts") / "00002-of-00003.json").read_text())
    assert set(names).isdisjoint(done["items"])
    plan = json.loads((output.with_name(f"{NAME}.parts") / "plan.json").read_text())
    assert {*names, *done["items"]} == {one["name"] for one in plan["items"]}
    assert contents(output.parent) == before
    for which in ("1/3", "3/3"):
        assert part(pair, output, which).status == 0
    assert lorakit_here("finish", output).status == 0
    assert contents(output.parent) == {NAME: once(pair, tmp_path)}


def test_a_part_that_is_there_is_not_made_again(pair, output):
    folder = parts(pair, output)
    before = {path: path.stat().st_mtime_ns for path in folder.glob("0*")}
    for more in ((), ("--verify",)):
        made = part(pair, output, "1/2", *more)
        assert "was there already" in made.out
    assert {path: path.stat().st_mtime_ns for path in folder.glob("0*")} == before


@pytest.mark.parametrize("how", ["lost", "shorter", "flipped", "no manifest", "its manifest"])
def test_a_part_that_is_damaged_is_none(how, pair, output, tmp_path):
    folder = parts(pair, output)
    data, manifest = folder / "00001-of-00002.safetensors", folder / "00001-of-00002.json"
    if how == "lost":
        data.unlink()
    elif how == "shorter":
        data.write_bytes(data.read_bytes()[:-8])
    elif how == "flipped":
        data.write_bytes(data.read_bytes()[:-1] + b"\x55")
    elif how == "no manifest":
        manifest.unlink()
    else:
        manifest.write_text(manifest.read_text().replace('"seconds": ', '"seconds": 1'))
    more = ("--verify",) if how == "flipped" else ()
    assert lorakit_here("finish", output, *more).status == 3
    kept = (folder / "00002-of-00002.safetensors").stat().st_mtime_ns
    made = part(pair, output, "1/2", *more)
    assert made.status == 0
    assert "was there already" not in made.out
    assert (folder / "00002-of-00002.safetensors").stat().st_mtime_ns == kept
    assert lorakit_here("finish", output).status == 0
    assert output.read_bytes() == once(pair, tmp_path)


def test_resume_reads_what_is_there_before_it_trusts_it(pair, output, tmp_path):
    folder = parts(pair, output)
    data = folder / "00001-of-00002.safetensors"
    data.write_bytes(data.read_bytes()[:-1] + b"\x55")
    made = lorakit_here("extract", *pair, "-o", output, "--resume", "--json", "-")
    assert made.status == 0, made.err
    assert json.loads(made.out)["layers"]
    assert contents(output.parent) == {NAME: once(pair, tmp_path)}


MANIFESTS = {
    "nothing": lambda told: "",
    "half": lambda told: json.dumps(told)[:200],
    "a list": lambda told: "[1, 2]",
    "deep": lambda told: "[" * 100_000,
    "a number": lambda told: "9" * 5000,
    "another file": lambda told: json.dumps({**told, "file": "../../base.safetensors"}),
    "huge": lambda told: json.dumps({**told, "count": 10**30, "size": -1}),
    "no text": lambda told: "\udcff",
}


@pytest.mark.parametrize("how", MANIFESTS)
def test_a_manifest_that_is_none(how, pair, output, tmp_path):
    folder = parts(pair, output)
    path = folder / "00001-of-00002.json"
    text = MANIFESTS[how](json.loads(path.read_text()))
    path.write_text(text, errors="surrogateescape")
    refused_before = contents(tmp_path)
    assert lorakit_here("finish", output).status == 3
    assert contents(tmp_path) == refused_before
    assert lorakit_here("extract", *pair, "-o", output, "--resume").status == 0
    assert contents(output.parent) == {NAME: once(pair, tmp_path)}


def hashed(told: dict[str, object]) -> str:
    """A manifest that says of itself that it is right."""
    from lorakit.lora_ops.parts.manifest import _hash

    told.pop("hash", None)
    return json.dumps({**told, "hash": _hash(told)})


HOSTILE = {
    "items of another kind": {"items": {"x": 1}},
    "no items": {"items": [1]},
    "numbers": {"number": "1", "count": "2"},
    "path": {"file": "../../base.safetensors"},
    "many": {"count": 10**30},
    "class": {"items": lambda items: {k: [{"of": "Path", "x": 1}, []] for k in items}},
    "field": {"items": lambda items: {k: [{"of": "LoraLayer", "x": 1}, []] for k in items}},
    "tensor": {
        "items": lambda items: {k: [{"of": "LoraLayer", "up": {"tensor": "x"}}, []] for k in items}
    },
    "reports": {"items": lambda items: {k: [None, 7] for k in items}},
    "strange reports": {"items": lambda items: {k: [None, ["x"]] for k in items}},
    "empty": {"items": lambda items: {k: [] for k in items}},
    "hashes": {"hashes": {"0": 7, "x": "y", "-1": "z"}},
    "hash list": {"hashes": [1]},
    "size": {"size": "1"},
}


@pytest.mark.parametrize("how", HOSTILE)
def test_a_manifest_that_somebody_made_up(how, pair, output, tmp_path):
    folder = parts(pair, output)
    path = folder / "00001-of-00002.json"
    told = json.loads(path.read_text())
    for name, value in HOSTILE[how].items():
        told[name] = value(told[name]) if callable(value) else value
    path.write_text(hashed(told))
    before = contents(tmp_path)
    made = lorakit_here("finish", output)
    assert made.status in (1, 3), made.out
    assert made.err.startswith("Error: ")
    assert "Traceback" not in made.err
    assert contents(tmp_path) == before


PLANS = {
    "nothing": lambda told: "",
    "a list": lambda told: "[]",
    "deep": lambda told: '{"items":' * 100_000,
    "version": lambda told: json.dumps({**told, "lorakit_plan": 2}),
    "changed": lambda told: json.dumps({**told, "output": "x"}),
    "items": lambda told: json.dumps({**told, "items": 7}),
    "command": lambda told: json.dumps({**told, "request": {**told["request"], "command": "rm"}}),
    "list": lambda told: json.dumps({**told, "request": {**told["request"], "command": ["a"]}}),
    "no parts": lambda told: json.dumps({**told, "request": {**told["request"], "command": "add"}}),
    "no request": lambda told: json.dumps({**told, "request": None}),
    "empty": lambda told: json.dumps({**told, "request": {}}),
    "parameters": lambda told: json.dumps(
        {**told, "request": {**told["request"], "parameters": [1]}}
    ),
    "folder": lambda told: json.dumps({**told, "request": {**told["request"], "folder": 7}}),
    "types": lambda told: json.dumps(
        {
            **told,
            "request": {
                **told["request"],
                "parameters": {**told["request"]["parameters"], "base": {}},
            },
        }
    ),
}


@pytest.mark.parametrize("how", PLANS)
def test_a_plan_that_is_none(how, pair, output, tmp_path):
    folder = parts(pair, output)
    path = folder / "plan.json"
    path.write_text(PLANS[how](json.loads(path.read_text())))
    before = contents(tmp_path)
    refused(lorakit_here("finish", output), 1, "plan.json")
    assert contents(tmp_path) == before


def test_a_plan_of_other_files_is_another_plan(pair, output, tmp_path):
    folder = parts(pair, output)
    shutil.copy(pair[1], tmp_path / "other.safetensors")
    path = folder / "plan.json"
    told = json.loads(path.read_text())
    told["request"]["parameters"]["tuned"] = [str(tmp_path / "other.safetensors")]
    path.write_text(json.dumps(told))
    refused(lorakit_here("finish", output), 1, "parts of another plan", "other.safetensors")


def test_parts_of_other_options_are_refused(pair, output):
    assert part(pair, output, "1/2", "--rank", "2").status == 0
    before = contents(output.parent)
    refused(part(pair, output, "2/2", "--rank", "3"), 1, "rule `2`, now `3`", "another output")
    resumed = lorakit_here("extract", *pair, "-o", output, "--resume")
    refused(resumed, 1, "rule `2`, now not given")
    refused(part(pair, output, "2/2", "--rank", "2", "--seed", "5"), 1, "seed not given, now `5`")
    assert contents(output.parent) == before


def test_other_devices_and_folders_are_the_same_plan(pair, output, tmp_path, monkeypatch):
    assert part(pair, output, "1/2", "--device", "cpu").status == 0
    (tmp_path / "elsewhere").mkdir()
    for path in pair:
        shutil.copy2(path, tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path / "elsewhere")
    made = part((Path("base.safetensors"), Path("tuned.safetensors")), output, "2/2")
    assert made.status == 0, made.err


def test_another_version_is_refused(pair, output, monkeypatch):
    parts(pair, output)
    for module in ("division", "finish"):
        monkeypatch.setattr(f"lorakit.commands.{module}.__version__", "99.0")
    refused(part(pair, output, "2/2"), 1, "now `99.0`")
    refused(lorakit_here("finish", output), 1, "and this is 99.0")


def test_an_input_that_changed_since(pair, output):
    assert part(pair, output, "1/2").status == 0
    tensors = load_file(pair[1])
    save_file({k: v + 1 for k, v in tensors.items()}, pair[1])
    before = contents(output.parent)
    for made in (part(pair, output, "2/2"), lorakit_here("finish", output)):
        refused(made, 1, "input `tuned.safetensors` changed since")
    assert contents(output.parent) == before


def test_a_recipe_that_changed_since(pair, tmp_path):
    recipe, output = tmp_path / "recipe.json", tmp_path / NAME
    told = {
        "lorakit": 1,
        "files": {"A": {"name": "base.safetensors"}, "B": {"name": "tuned.safetensors"}},
        "step": [
            {"name": "m", "terms": [{"of": "A", "weight": 0.25}, {"of": "B", "weight": 0.75}]}
        ],
    }
    recipe.write_text(json.dumps(told))
    made = lorakit_here("merge", recipe, "-o", output, "--part", "1/2")
    assert made.status == 0, made.err
    told["step"][0]["terms"][0]["weight"] = 0.5
    recipe.write_text(json.dumps(told))
    refused(lorakit_here("merge", recipe, "-o", output, "--part", "2/2"), 1, "another recipe")
