"""ComfyUI's graph of merging nodes: `prompt` or `workflow` in the metadata of a file, or a file of either.

Nodes: `nodes_model_merging.py` and `nodes_model_merging_model_specific.py` of ComfyUI 0.33. A `ratio` is there
the share of the first model; here it is that of the second.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from .....errors import FormatError
from .....text import plain
from ..recipe import Term
from ..toml_text import number_text
from .comfyui_graph import Node, graph_of
from .found import Draft, Foreign, number, text

PROGRAM = "ComfyUI"
_SAVES = ("CheckpointSave", "ModelSave", "CLIPSave", "VAESave")
_PART = {"model": "unet", "clip": "te", "vae": "vae"}
#: Loaders: the inputs with names of files, and whether they hold a single component.
_LOADERS = {
    "CheckpointLoaderSimple": ("ckpt_name",),
    "CheckpointLoader": ("ckpt_name",),
    "UNETLoader": ("unet_name",),
    "CLIPLoader": ("clip_name",),
    "DualCLIPLoader": ("clip_name1", "clip_name2"),
    "TripleCLIPLoader": ("clip_name1", "clip_name2", "clip_name3"),
    "VAELoader": ("vae_name",),
}
_LORAS = ("LoraLoader", "LoraLoaderModelOnly")
_SIMPLE = ("ModelMergeSimple", "CLIPMergeSimple")
_SUBTRACT = ("ModelMergeSubtract", "CLIPMergeSubtract")
_ADD = ("ModelMergeAdd", "CLIPMergeAdd")
_DEEPEST = 200  # nodes behind one another
#: Sliders of ModelMergeBlocks by the blocks that they stand for.
_THREE = {"input": "IN", "middle": "M", "out": "OUT"}


@dataclass(frozen=True, slots=True)
class _Value:
    """What an output of a node is: a file or step, and whether it is a change."""

    of: str
    is_delta: bool = False


def read(tree: object) -> Foreign:
    """Read the graph that saved a model.

    Args:
        tree: `prompt` or `workflow`, from JSON.

    Raises:
        FormatError: It saves no model, or its links go round.
    """
    walk = _Walk(graph_of(tree))
    saves = [node for node in walk.nodes.values() if node.kind in _SAVES]
    if not saves:
        raise FormatError(
            f"the graph saves no model: none of its {len(walk.nodes)} nodes is {', '.join(_SAVES)}"
        )
    # A checkpoint before its parts, and the last that was added.
    save = min(saves, key=lambda node: (_SAVES.index(node.kind), -node.order))
    if len(saves) > 1:
        walk.draft.lose(f"{len(saves) - 1} other nodes that save models")
    wanted = [name for name in _PART if name in save.links]
    found = {name: walk.value(save, name) for name in wanted}
    parts = {_PART[name]: value.of for name, value in found.items() if value}
    if not parts:
        raise FormatError(f"nothing leads to `{save.kind}`")
    draft = walk.draft
    main = next(iter(parts.values()))
    if not draft.steps or draft.steps[-1].name != main:
        draft.step(base=main)  # the last step is the result
    parts = {part: of for part, of in parts.items() if of != main}
    draft.parts.update(parts)
    return draft.finished(text(save.inputs.get("filename_prefix")))


class _Walk:
    """A walk from a node that saves back to the files."""

    def __init__(self, nodes: Mapping[str, Node]) -> None:
        self.nodes = nodes
        self.draft = Draft(PROGRAM)
        self._known: dict[tuple[str, str], _Value | None] = {}
        self._path: list[str] = []

    def value(self, node: Node, name: str) -> _Value | None:
        """What comes in at an input; None if nothing does."""
        origin = node.links.get(name)
        if origin is None or origin[0] not in self.nodes:
            return None
        before = self.nodes[origin[0]]
        role = "clip" if "clip" in name else "vae" if "vae" in name else "model"
        key = (before.id, role)
        if key not in self._known:
            if before.id in self._path or len(self._path) >= _DEEPEST:
                raise FormatError(
                    f"the links of the graph go round, or through over {_DEEPEST} nodes"
                )
            self._path.append(before.id)
            self._known[key] = self._output(before, role)
            self._path.pop()
        return self._known[key]

    def _output(self, node: Node, role: str) -> _Value | None:
        if node.kind in _LOADERS:
            names = [text(node.inputs.get(key)) for key in _LOADERS[node.kind]]
            if len(names) > 1:
                self.draft.lose(
                    f"text encoders in several files: {', '.join(map(plain, names[1:]))}"
                )
            return _Value(self.draft.file(names[0]))
        if node.kind in _LORAS:
            return self._lora(node, role)
        if (
            node.kind in _SIMPLE
            or node.kind.startswith("ModelMerge")
            or node.kind in _SUBTRACT + _ADD
        ):
            return self._merge(node, role)
        for name in node.links:
            if name == role or (role == "model" and name.startswith("model")):
                self.draft.lose(f"node `{plain(node.kind)}`, which is left out")
                return self.value(node, name)
        raise FormatError(f"node `{plain(node.kind)}` has no like here, and nothing to go on with")

    def _lora(self, node: Node, role: str) -> _Value | None:
        before = self.value(node, role)
        strength = node.inputs.get("strength_clip" if role == "clip" else "strength_model")
        weight = number(1.0 if strength is None else strength, "a strength", PROGRAM)
        if before is None or weight == 0:
            return before
        term = Term(self.draft.file(text(node.inputs.get("lora_name")), kind="lora"), weight=weight)
        return _Value(self.draft.step([term], base=before.of), before.is_delta)

    def _merge(self, node: Node, role: str) -> _Value:
        one, two = (self.value(node, f"{role}{n}") for n in (1, 2))
        if one is None or two is None:
            raise FormatError(f"node `{plain(node.kind)}` lacks a {role}")
        if node.kind in _SUBTRACT:
            weight = self._number(node, "multiplier")
            return _Value(self.draft.step([Term(one.of, two.of, weight)]), is_delta=True)
        if node.kind in _ADD:
            if one.is_delta and not two.is_delta:
                one, two = two, one
            if not one.is_delta and not two.is_delta:
                self.draft.lose(
                    "two whole models are added, which makes all weights twice as large"
                )
                return _Value(self.draft.step([Term(one.of), Term(two.of)]))
            if one.is_delta:
                return _Value(self.draft.step([Term(one.of), Term(two.of)]), is_delta=True)
            return _Value(self.draft.step([Term(two.of)], base=one.of))
        if node.kind in _SIMPLE:
            term = Term(two.of, weight=round(1 - self._number(node, "ratio"), 12))
        else:
            term = self._blocks(node, two.of)
        return _Value(self.draft.step([term], base=one.of, method="lerp"), one.is_delta)

    def _number(self, node: Node, name: str) -> float:
        value = node.inputs.get(name)
        return number(1.0 if value is None else value, name, PROGRAM)

    def _blocks(self, node: Node, of: str) -> Term:
        """A term by sliders: what fits none has the first, the longest that fits decides."""
        sliders = {
            name: round(1 - self._number(node, name), 12)
            for name in node.inputs
            if name not in ("model1", "model2")
        }
        if not sliders:
            raise FormatError(f"node `{plain(node.kind)}` has no ratio")
        if len(set(sliders.values())) == 1:
            return Term(of, weight=next(iter(sliders.values())))
        if node.kind == "ModelMergeBlocks":
            self.draft.lose("`input`, `middle` and `out` are read as those of a UNet")
            blocks = [
                f"{label}={number_text(sliders[name])}"
                for name, label in _THREE.items()
                if name in sliders
            ]
            return Term(of, blocks=",".join(blocks))
        first = next(iter(sliders.values()))
        where = [f"unet={number_text(first)}"]
        for name in sorted(sliders, key=len):
            if sliders[name] != first and not (name == "label_emb." and "SD1" in node.kind):
                where.append(f"{_pattern(name)}={number_text(sliders[name])}")
        return Term(of, where=tuple(where))


def _pattern(slider: str) -> str:
    """The rule for names that begin like a slider, behind the name of the whole model."""
    end = r"(?!\d)" if slider[-1:].isdigit() else ""
    return rf"/^(?:model\.)?(?:diffusion_model\.)?{re.escape(slider)}{end}/"
