"""A graph of ComfyUI as nodes by id, from what its interface saves (`workflow`) and what it runs (`prompt`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from .....errors import FormatError
from .found import listing, mapping, text

_MOST = 20_000  # nodes
#: Widgets of nodes in the order of their values, where a graph does not name them.
_WIDGETS = {
    "CheckpointLoaderSimple": ("ckpt_name",),
    "UNETLoader": ("unet_name",),
    "CLIPLoader": ("clip_name",),
    "DualCLIPLoader": ("clip_name1", "clip_name2"),
    "TripleCLIPLoader": ("clip_name1", "clip_name2", "clip_name3"),
    "VAELoader": ("vae_name",),
    "LoraLoader": ("lora_name", "strength_model", "strength_clip"),
    "LoraLoaderModelOnly": ("lora_name", "strength_model"),
    "ModelMergeSimple": ("ratio",),
    "CLIPMergeSimple": ("ratio",),
    "ModelMergeSubtract": ("multiplier",),
    "CLIPMergeSubtract": ("multiplier",),
    "ModelMergeBlocks": ("input", "middle", "out"),
    "CheckpointSave": ("filename_prefix",),
    "ModelSave": ("filename_prefix",),
    "CLIPSave": ("filename_prefix",),
    "VAESave": ("filename_prefix",),
}
_MUTED, _BYPASSED = 2, 4


@dataclass(frozen=True, slots=True)
class Node:
    """A node of a graph.

    Attributes:
        id: Its name in the graph.
        kind: Its class.
        order: Its place among the others.
        inputs: Values by name.
        links: Node and number of its output, by the name of the input.
    """

    id: str
    kind: str
    order: int = 0
    inputs: Mapping[str, object] = field(default_factory=dict[str, object])
    links: Mapping[str, tuple[str, int]] = field(default_factory=dict[str, "tuple[str, int]"])


def is_graph(tree: object) -> bool:
    """Whether a tree is a graph in either form."""
    found = mapping(tree)
    if isinstance(found.get("nodes"), list):
        return True
    return bool(found) and all("class_type" in mapping(node) for node in found.values())


def graph_of(tree: object) -> dict[str, Node]:
    """Return the nodes by id.

    Raises:
        FormatError: It is no graph, or one with widgets that are not known.
    """
    found = mapping(tree)
    if not is_graph(found):
        raise FormatError("this is no graph of ComfyUI: it has neither `nodes` nor `class_type`")
    nodes = list(_of_workflow(found) if "nodes" in found else _of_prompt(found))
    if len(nodes) > _MOST:
        raise FormatError(f"a graph of {len(nodes)} nodes; {_MOST} is the most")
    return {node.id: node for node in nodes}


def _of_prompt(tree: Mapping[str, object]) -> Iterator[Node]:
    for order, (name, entry) in enumerate(tree.items()):
        inputs = mapping(mapping(entry).get("inputs"))
        links: dict[str, tuple[str, int]] = {}
        for key, value in inputs.items():
            row = listing(value)
            if len(row) == 2 and isinstance(row[1], int):
                links[key] = (str(row[0]), row[1])
        values = {key: value for key, value in inputs.items() if key not in links}
        yield Node(name, text(mapping(entry).get("class_type")), order, values, links)


def _of_workflow(tree: Mapping[str, object]) -> Iterator[Node]:
    origins: dict[object, tuple[str, int]] = {}
    for link in listing(tree.get("links")):
        row = listing(link)
        if len(row) >= 5 and isinstance(row[0], int) and isinstance(row[2], int):
            origins[row[0]] = (str(row[1]), row[2])
    for order, entry in enumerate(listing(tree.get("nodes"))):
        node = mapping(entry)
        kind = text(node.get("type"))
        slots = [mapping(slot) for slot in listing(node.get("inputs"))]
        links = {
            text(slot.get("name")): origins[slot.get("link")]
            for slot in slots
            if isinstance(slot.get("link"), int) and slot.get("link") in origins
        }
        if node.get("mode") in (_MUTED, _BYPASSED):
            kind = f"{kind} (switched off)"
        yield Node(str(node.get("id")), kind, order, _widgets(kind, node, slots), links)


def _widgets(
    kind: str, node: Mapping[str, object], slots: list[dict[str, object]]
) -> dict[str, object]:
    """The values by name: newer graphs name widgets among the inputs, older ones do not at all."""
    values = listing(node.get("widgets_values"))
    names = [text(mapping(slot["widget"]).get("name")) for slot in slots if "widget" in slot]
    if len(names) < len(values):
        names = list(_WIDGETS.get(kind, ()))
    if len(names) < len(values) and kind.startswith("ModelMerge"):
        raise FormatError(
            f"the sliders of `{kind}` have no names in this graph; give the one that was run (`prompt`, "
            "or the file that the API takes)"
        )
    return dict(zip(names, values, strict=False))
