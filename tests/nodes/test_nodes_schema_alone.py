"""The nodes without ComfyUI: what they declare fits what they take, the tables of the core, and the snapshot."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
from commands import ROOT, python
from host_double import standing_in
from object_info import SNAPSHOT, misplaced

from lorakit.lora_ops.elements import DTYPES
from lorakit.lora_ops.files.quantised.encoding_gguf import GGUF_TYPES
from lorakit.lora_ops.files.quantised.storages import SCHEMES
from lorakit.lora_ops.operations.merge.loras import BAKE_METHODS
from lorakit.lora_ops.operations.methods import FACTORED, METHODS, Choice
from lorakit.lora_ops.operations.methods.catalogue import MERGE_METHODS


@pytest.fixture(scope="module", autouse=True)
def double() -> Iterator[None]:
    with standing_in():
        yield


def module(name: str) -> ModuleType:
    return importlib.import_module(f"lorakit.nodes.{name}")


def schemas() -> dict[Any, Any]:
    return {node: node.define_schema() for node in module("extension").NODES}


def given(one: Any) -> dict[str, Any]:
    return one.given


def test_every_node_is_in_the_extension() -> None:
    listed = module("extension").NODES
    base = module("form.schema").io.ComfyNode
    root = ROOT / "nodes"
    files = [
        ".".join(path.relative_to(root).with_suffix("").parts)
        for path in root.rglob("*.py")
        if path.stem != "__init__"
    ]
    found = {
        one
        for name in files
        for one in vars(module(name)).values()
        if inspect.isclass(one) and issubclass(one, base) and one is not base
    }
    assert found == set(listed)
    assert len(listed) == len(found)


def test_the_snapshot_has_these_nodes_and_inputs_in_this_order() -> None:
    saved = json.loads(SNAPSHOT.read_text("utf-8"))
    declared = {
        schema.node_id: {
            part: [
                given(one)["id"]
                for one in schema.inputs
                if given(one).get("optional", False) == (part == "optional")
            ]
            for part in ("required", "optional")
        }
        for schema in schemas().values()
    }
    assert declared == {
        name: {part: node["input_order"].get(part, []) for part in ("required", "optional")}
        for name, node in saved.items()
        if name.startswith("Lorakit")
    }


def with_inputs(node: dict[str, Any], names: list[str]) -> dict[str, Any]:
    """A node whose optional inputs are these."""
    known = {"new": ["BOOLEAN", {}], **node["input"]["optional"]}
    optional = {name: known[name] for name in names}
    order = {**node["input_order"], "optional": names}
    return {**node, "input": {**node["input"], "optional": optional}, "input_order": order}


def test_an_input_anywhere_but_at_the_end_is_told() -> None:
    saved = json.loads(SNAPSHOT.read_text("utf-8"))
    name = "LorakitExtractLora"
    names = saved[name]["input_order"]["optional"]
    for at in range(len(names) + 1):
        changed = with_inputs(saved[name], [*names[:at], "new", *names[at:]])
        told = [] if at == len(names) else [name]
        assert misplaced(saved, {**saved, name: changed}) == told
    assert misplaced(saved, {**saved, name: with_inputs(saved[name], names[:-1])}) == [name]
    assert misplaced(saved, {**saved, name: with_inputs(saved[name], names[::-1])}) == [name]
    choice = json.loads(json.dumps(saved))
    options = choice["LorakitAddLoras"]["input"]["required"]["method"][1]["options"]
    next(one for one in options if one["key"] == "slerp")["inputs"]["required"]["new"] = ["INT", {}]
    assert misplaced(saved, choice) == ["LorakitAddLoras"]
    turned = {**saved[name], "output_name": saved[name]["output_name"][::-1]}
    assert misplaced(saved, {**saved, name: turned}) == [name]


def choosing(choices: dict[str, list[str]], *after: str) -> dict[str, Any]:
    """A node with one choice, of which these inputs come and go, and inputs after it."""
    options = [
        {"key": key, "inputs": {"required": {name: ["INT", {}] for name in names}}}
        for key, names in choices.items()
    ]
    inputs = {"of": ["COMFY_DYNAMICCOMBO_V3", {"options": options}]}
    inputs |= {name: ["INT", {}] for name in after}
    order = {"required": list(inputs)}
    return {"LorakitX": {"input": {"required": inputs}, "input_order": order, "output_name": []}}


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ((["a"],), (["a", "b"],), False),
        ((["a"],), (["a"], "more"), False),
        ((["a"],), (["a", "b"], "more"), False),
        ((["a"],), (["b", "a"],), True),
        ((["a", "b"],), (["a"],), True),
        ((["a"], "more"), (["a", "b"], "more"), True),
    ],
)
def test_a_choice_grows_where_nothing_comes_after_it(old: Any, new: Any, told: bool) -> None:
    saved, found = (choosing({"x": names}, *after) for names, *after in (old, new))
    assert misplaced(saved, found) == ["LorakitX"] * told
    other = choosing({"x": old[0], "y": ["c"]}, *old[1:])
    assert misplaced(saved, other) == []  # a way more moves nothing in a graph that has another
    assert misplaced(other, saved) == ["LorakitX"]


def test_what_is_declared_is_what_is_taken() -> None:
    for node, schema in schemas().items():
        taken = inspect.signature(node.execute).parameters
        named = {name for name, one in taken.items() if one.kind is not one.VAR_KEYWORD}
        declared = {given(one)["id"]: given(one) for one in schema.inputs}
        assert named <= set(declared), schema.node_id
        for name in set(declared) - named:  # handed on as they are
            assert len(taken) > len(named), f"{schema.node_id}.{name} is not taken"
        for name in named:
            if declared[name].get("optional"):
                default = taken[name].default
                assert default is not inspect.Parameter.empty, f"{schema.node_id}.{name}"


def test_tables_are_the_core_s() -> None:
    """They are written out again in the nodes, which must not import the core to be listed."""
    told = {name: one.help for name, one in (METHODS | FACTORED).items()}
    assert told == module("edit.add_loras").METHODS
    for name, one in (METHODS | FACTORED).items():
        for shown in map(given, module("edit.add_loras")._parameters(name)):
            known = one.parameters[shown["id"]]
            assert shown["default"] == known.default, (name, shown["id"])
            if isinstance(known, Choice):
                assert shown["options"] == list(known.options), (name, shown["id"])
    baked = module("edit.bake_lora").METHODS
    assert set(baked) - {"sum"} <= set(BAKE_METHODS)
    assert all(baked[name] == told[name] for name in baked if name != "sum")
    assert set(module("form.schema").DTYPES[1:]) <= set(DTYPES)
    storage = module("form.storage")
    assert set(storage.STORAGES[1:]) == set(SCHEMES)
    types = [storage.storage_of(one) for one in storage.GGUF_STORAGES]
    assert types == list(GGUF_TYPES)
    for name, one in module("merge.merge_checkpoints").METHODS.items():
        if name in MERGE_METHODS and name not in ("slerp", "add_difference"):  # sums of other terms
            fewest, most = MERGE_METHODS[name].terms
            assert fewest <= one.models[0] - 1, name
            assert most is None or one.models[1] - 1 <= most, name


def test_a_schema_of_an_older_host_gets_the_fields_it_knows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    api = module("form.schema").io
    known = [(field.name, Any, None) for field in dataclasses.fields(api.Schema)]
    older = dataclasses.make_dataclass("Schema", [one for one in known if "search" not in one[0]])
    monkeypatch.setattr(api, "Schema", older)
    importlib.reload(module("form.schema"))
    made = module("form.schema").schema("Some", "Some", description="x", search_aliases=["y"])
    assert (made.node_id, made.description) == ("LorakitSome", "x")
    monkeypatch.undo()
    importlib.reload(module("form.schema"))
    assert module("form.schema").schema("Some", "Some", search_aliases=["y"]).search_aliases == [
        "y"
    ]


def test_the_package_is_imported_without_the_nodes() -> None:
    """`pip install` has no ComfyUI."""
    run = python("import lorakit, sys; print([m for m in sys.modules if m.startswith('lorakit.')])")
    assert (run.status, run.out.strip()) == (0, "['lorakit.version']")


def test_the_double_refuses_what_the_host_would() -> None:
    api = module("form.schema").io
    with pytest.raises(TypeError):
        api.Int.Input("rank", maximum=3)
    with pytest.raises(TypeError):
        api.Schema("id", colour="red")
