"""comfy-cli, which publishes to the registry, has nothing to say against the pack, its archive or examples."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import archive
import pytest
from object_info import SNAPSHOT, WORKFLOWS

CLEAN = [
    "Validating node configuration...",
    "Running security checks...",
    "✓ All validation checks passed successfully",
]


def comfy(folder: Path, *words: object) -> subprocess.CompletedProcess[str]:
    """Run comfy-cli in a folder; it counts its uses unless told not to."""
    found = shutil.which("comfy")
    if found is None:
        pytest.skip("comfy-cli not found: pip install -r .ci/registry.txt")
    quiet = {"DO_NOT_TRACK": "1", "PYTHONIOENCODING": "utf-8", "COLUMNS": "1000"}
    return subprocess.run(
        [found, *map(str, words)],
        cwd=folder,
        env=os.environ | quiet | {"HOME": str(folder.parent)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        timeout=300,
    )


@pytest.fixture
def pack(tmp_path: Path) -> Path:
    """A checkout of its own, all files known to git."""
    folder = archive.copy(archive.checkout(), tmp_path / "pack")
    for words in (("init", "-q"), ("add", "--all", "--force")):
        subprocess.run(["git", *words], cwd=folder, check=True, capture_output=True)
    return folder


def findings(folder: Path) -> list[str]:
    """What `comfy node validate` says beyond that all is well; its status is 0 whatever it finds."""
    done = comfy(folder, "node", "validate")
    said = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    assert done.returncode == 0, said
    return [line for line in said if line not in CLEAN]


def test_validate_finds_nothing(pack: Path) -> None:
    assert findings(pack) == []


def test_validate_sees(pack: Path) -> None:
    for file, line in (
        ("nodes/host/host.py", "eval('1')"),
        ("lora_ops/operations/extract/plan.py", "x = 1; y = 2"),
    ):
        with (pack / file).open("a", encoding="utf-8") as out:
            out.write(f"\n{line}\n")
    recipe = pack / "pyproject.toml"
    recipe.write_text(recipe.read_text("utf-8").replace("GPU :: AMD ROCm", "GPU :: Voodoo"))
    said = "\n".join(findings(pack))
    assert {word for word in ("S307", "E702", "Invalid Environment") if word not in said} == set()


def test_the_archive_is_what_git_says(pack: Path) -> None:
    done = comfy(pack, "node", "pack")
    assert done.returncode == 0, done.stdout + done.stderr
    with zipfile.ZipFile(pack / "node.zip") as packed:
        names = packed.namelist()
        size = sum(entry.compress_size for entry in packed.infolist())
    assert sorted(names) == archive.shipped()
    assert size < 3_000_000


def faults(folder: Path, graph: dict[str, Any]) -> list[str]:
    """What `comfy workflow validate` says of a workflow, on a server that has the files it names."""
    info = json.loads(SNAPSHOT.read_text("utf-8"))
    values = [value for node in graph.values() for value in node["inputs"].values()]
    files = [value for value in values if str(value).endswith(".safetensors")]
    for node in info.values():
        node["input"] = with_files(node["input"], files)
    given = {"workflow": folder / "workflow.json", "input": folder / "object_info.json"}
    for path, content in zip(given.values(), (graph, info), strict=True):
        path.write_text(json.dumps(content))
    options = [word for name, path in given.items() for word in (f"--{name}", path)]
    done = comfy(folder, "--json", "workflow", "validate", *options)
    answer = json.loads(done.stdout)["data"]
    return [one["message"] for one in answer["errors"] + answer["warnings"]]


def with_files(value: Any, files: list[str]) -> Any:
    """Lists of files, which the snapshot has empty, filled."""
    if isinstance(value, dict):
        return {name: with_files(one, files) for name, one in value.items()}
    if isinstance(value, list):
        return [with_files(one, files) for one in value] or files
    return value


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_an_example_is_valid(workflow: Path, tmp_path: Path) -> None:
    assert faults(tmp_path, json.loads(workflow.read_text("utf-8"))) == []


def test_there_are_examples() -> None:
    assert len(WORKFLOWS) >= 4


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"class_type": "LorakitNone"}, "LorakitNone"),
        ({"inputs": {"rank": -3}}, "rank"),
        ({"inputs": {"lora": ["none", 0]}}, "lora"),
    ],
)
def test_a_wrong_workflow_is_not(change: dict[str, Any], word: str, tmp_path: Path) -> None:
    load = {"class_type": "LorakitLoadLora", "inputs": {"lora_name": "a.safetensors"}}
    resize = {"class_type": "LorakitResizeLora", "inputs": {"lora": ["1", 0], "rank": 3}}
    save = {"class_type": "LorakitSaveLora", "inputs": {"lora": ["2", 0], "prefix": "loras/a"}}
    graph = {"1": load, "2": resize, "3": save}
    assert faults(tmp_path, graph) == []
    wrong = resize | change | {"inputs": resize["inputs"] | change.get("inputs", {})}
    assert word in "\n".join(faults(tmp_path, graph | {"2": wrong}))
