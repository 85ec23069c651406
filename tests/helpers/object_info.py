"""What a server says of its nodes, cut down to what saved workflows depend on."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from commands import ROOT

DATA = ROOT / "tests" / "helpers" / "data"
SNAPSHOT = DATA / "object_info.json"
WORKFLOWS = sorted((DATA / "workflows").glob("*.json"))
# Texts, which may change freely, and what depends on the folder that the pack is in.
_TEXTS = {"tooltip", "placeholder", "description", "output_tooltips", "search_aliases"}
_ELSEWHERE = {"python_module"}
# Of files that happen to be on a machine.
_ENDINGS = (".safetensors", ".gguf", ".latent", ".png", ".pt", ".toml", ".yaml")


def interface(info: Mapping[str, Any]) -> dict[str, Any]:
    """Our nodes, and those of ComfyUI that the example workflows use."""
    used = {node["class_type"] for path in WORKFLOWS for node in _nodes(path).values()}
    return {
        name: _bare(node)
        for name, node in sorted(info.items())
        if name.startswith("Lorakit") or name in used
    }


def _nodes(path: Any) -> dict[str, Any]:
    return json.loads(path.read_text("utf-8"))


def _bare(value: Any) -> Any:
    """Without texts and without the names of files."""
    if isinstance(value, dict):
        return {k: _bare(v) for k, v in value.items() if not _is_left_out(k, v)}
    if isinstance(value, list):
        return [_bare(one) for one in value if not str(one).endswith(_ENDINGS)]
    return value


def _is_left_out(key: str, value: Any) -> bool:
    # An input may be called description, too: it is declared as a list.
    is_input = key == "description" and isinstance(value, list)
    return key in _TEXTS | _ELSEWHERE and not is_input


def order(node: Mapping[str, Any]) -> list[str]:
    """The inputs of a node as the front end lines them up: by it, saved values are told apart.

    Those of a choice, which come and go with it, follow it in brackets.
    """
    return [
        name + json.dumps([[key, *nested] for key, nested in choices.items()]) * bool(choices)
        for name, choices in _order(node)
    ]


def _order(node: Mapping[str, Any]) -> list[tuple[str, dict[str, list[str]]]]:
    """The inputs of a node, each with those of its choices."""
    found: list[tuple[str, dict[str, list[str]]]] = []
    for part in ("required", "optional"):
        for name in node["input_order"].get(part, []):
            options = node["input"][part][name][1].get("options", [])
            chosen = [one for one in options if isinstance(one, Mapping)]
            found.append((name, {one["key"]: _inputs(one["inputs"]) for one in chosen}))
    return found


def _inputs(declared: Mapping[str, Mapping[str, Any]]) -> list[str]:
    return [name for part in ("required", "optional") for name in declared.get(part, {})]


def misplaced(saved: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """Our nodes of which an input or output is no longer where it was: saved graphs load wrongly.

    Args:
        saved: The interface as it was published.
        found: As it is; new ones may only follow the old ones, and none may go.
    """
    return [
        name
        for name, node in saved.items()
        if name.startswith("Lorakit") and not (name in found and _goes_on(node, found[name]))
    ]


def _goes_on(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    outputs = old["output_name"]
    before, after = _order(old), _order(new)
    if new["output_name"][: len(outputs)] != outputs or len(after) < len(before):
        return False
    last = len(before) - 1
    return all(
        was[0] == now[0] and _grows(was[1], now[1], is_last=at == last)
        for at, (was, now) in enumerate(zip(before, after, strict=False))
    )


def _grows(old: Mapping[str, list[str]], new: Mapping[str, list[str]], *, is_last: bool) -> bool:
    """Whether a choice has all that it had, and only more ways behind them.

    A way has values of its own, which others come after: it may have more of them where none do.
    """
    return list(new)[: len(old)] == list(old) and all(
        (new[key][: len(nested)] if is_last else new[key]) == nested for key, nested in old.items()
    )


def by_position(workflow: Mapping[str, Any], info: Mapping[str, Any]) -> dict[str, Any]:
    """A saved workflow in the form in which it is sent to run, read as the front end reads it.

    Values have no names there: the n-th is that of the n-th input that has a widget.

    Args:
        workflow: As the front end saves it.
        info: What a server says of its nodes.
    """
    links = {link[0]: [str(link[1]), link[2]] for link in workflow["links"]}
    found: dict[str, Any] = {}
    for node in workflow["nodes"]:
        if node["type"] in info:
            values = dict(_values(info[node["type"]], node.get("widgets_values", [])))
            wired = {one["name"]: links[one["link"]] for one in node["inputs"] if one["link"]}
            found[str(node["id"])] = {"class_type": node["type"], "inputs": values | wired}
    return found


_WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", "COLOR", "COMFY_DYNAMICCOMBO_V3"}


def _values(node: Mapping[str, Any], values: Sequence[Any]) -> Iterator[tuple[str, Any]]:
    """(input, value) as far as there are values; what follows keeps its default."""
    left = iter(values)
    declared = {**node["input"].get("required", {}), **node["input"].get("optional", {})}
    for part in ("required", "optional"):
        for name in node["input_order"].get(part, []):
            kind, *more = declared[name]
            if not (isinstance(kind, list) or kind in _WIDGETS):
                continue
            for value in itertools.islice(left, 1):
                yield name, value
                for nested in _of_choice(more[0] if more else {}, value):
                    yield from ((f"{name}.{nested}", one) for one in itertools.islice(left, 1))
                if name in ("seed", "noise_seed"):
                    next(left)  # what becomes of it after a run, which is not sent


def _of_choice(options: Mapping[str, Any], value: Any) -> list[str]:
    chosen = [one for one in options.get("options", []) if isinstance(one, Mapping)]
    return next((_inputs(one["inputs"]) for one in chosen if one["key"] == value), [])
