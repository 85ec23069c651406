"""Swap Parts: some parts of one checkpoint in another, whole: a text encoder, a VAE, blocks, layers."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ..form.schema import lines, report_output, reported, schema
from ..form.texts import WARNS, headed
from ..form.wording import explained
from ..host.api import io
from .loaded import Matched, predictions
from .mixing import Mixed

if TYPE_CHECKING:
    from ..host.computed import Compute

# Parts that are handed on as they are, and the sockets that they arrive at.
_WHOLE = {"unet": "model", "te": "clip", "vae": "vae"}
_LABEL = re.compile(r"[A-Z]+\d*(-[A-Z]+\d*)?")
_ENCODER = re.compile(r"te\d")


class SwapParts(io.ComfyNode):
    """Hands on A with parts of B."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return schema(
            "SwapParts",
            "Swap Parts",
            description="A checkpoint with parts of another: the diffusion model, all or one of the text "
            "encoders, the VAE, blocks, or layers by name. Exact: these weights are B's, all others A's.",
            search_aliases=[
                "bake vae",
                "replace vae",
                "replace clip",
                "swap text encoder",
                "swap unet",
            ],
            inputs=[
                io.String.Input(
                    "parts",
                    default="",
                    multiline=True,
                    placeholder="te2\nvae",
                    tooltip="What is B's, one a line or separated by commas: unet, te (all text encoders), te1, "
                    "te2, te3, vae, labels of blocks (IN04,OUT,D00-D07), words of the name (attn2), a shell "
                    "pattern (*ff*) or a /regular expression/.",
                ),
                *(
                    kind.Input(
                        f"{what}_{letter}", optional=True, tooltip=f"The {told} of {letter}."
                    )
                    for letter in "AB"
                    for kind, what, told in (
                        (io.Model, "model", "diffusion model"),
                        (io.Clip, "clip", "text encoders"),
                        (io.Vae, "vae", "VAE"),
                    )
                ),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The diffusion model."),
                io.Clip.Output(display_name="clip", tooltip="The text encoders."),
                io.Vae.Output(display_name="vae", tooltip="The VAE."),
                report_output(),
            ],
        )

    @classmethod
    @explained
    def execute(
        cls,
        parts: str = "",
        model_A: Any = None,  # noqa: N803  as they are shown
        clip_A: Any = None,  # noqa: N803
        vae_A: Any = None,  # noqa: N803
        model_B: Any = None,  # noqa: N803
        clip_B: Any = None,  # noqa: N803
        vae_B: Any = None,  # noqa: N803
    ) -> io.NodeOutput:
        """Swap them.

        Raises:
            LoraOpsError: A part fits nothing, is not connected, or belongs to another kind of model.
        """
        first = {"model": model_A, "clip": clip_A, "vae": vae_A}
        second = {"model": model_B, "clip": clip_B, "vae": vae_B}
        asked = list(_listed(parts))
        if not asked:
            return reported(
                headed("A as it is", f"{WARNS}changes nothing: no part is named"), *first.values()
            )
        result = dict(first)
        told: list[str] = []
        for part in asked:
            if part in _WHOLE:
                what = _WHOLE[part]
                _check_connected(part, (f"{what}_B",), (second[what],))
                result[what] = second[what]
                told.append(f"{part} as a whole")
        rest = [part for part in asked if part not in _WHOLE]
        notes: list[str] = []
        if rest:
            notes = _swap(rest, first, second, result, told)
        return reported(headed(f"from B: {', '.join(told)}", *notes), *result.values())


def _listed(text: str) -> Iterator[str]:
    """The parts that a text names, each once."""
    found: dict[str, None] = {}
    for line in lines(text):
        # In an expression a comma is its own.
        parts = [line] if line.startswith("/") else line.split(",")
        found |= dict.fromkeys(part.strip() for part in parts if part.strip())
    yield from found


def _swap(
    parts: Sequence[str],
    first: dict[str, Any],
    second: dict[str, Any],
    result: dict[str, Any],
    told: list[str],
) -> list[str]:
    """Put single weights of B into what is A's in the result; say which, and return what else is to be said."""
    from ...lora_ops import ArgumentError
    from ...lora_ops.report import counted
    from ..host.model_source import ModelSource

    for part in filter(_ENCODER.fullmatch, parts):
        _check_connected(part, ("clip_A", "clip_B"), (first["clip"], second["clip"]))
    pairs = {
        what: (first[what], second[what])
        for what in ("model", "clip")
        if result[what] is first[what] is not None and second[what] is not None
    }
    if not pairs:
        _check_connected(parts[0], ("model_A", "model_B"), (first["model"], second["model"]))
        raise ArgumentError(f"`{parts[0]}` is in what is B's as a whole; leave one of them out")
    sides = [
        ModelSource(
            letter, *(pairs[what][at] if what in pairs else None for what in ("model", "clip"))
        )
        for at, letter in enumerate("AB")
    ]
    matched = Matched.of(sides)
    names = {key: name for key, name in matched.names().items() if matched.others[key][0]}
    swapped: dict[str, Compute] = {}
    for part in parts:
        fitting = _fitting(part, names.values())
        keys = [key for key, name in names.items() if name in fitting]
        swapped |= {key: Mixed("weighted_sum", (1.0,), matched.reads(key)) for key in keys}
        told.append(f"{part} ({counted(len(keys), 'weight')})")
    for what in pairs:
        result[what] = matched.patched(first[what], swapped)
    models = pairs.get("model", ())
    return [*predictions(models), *matched.notes()]


def _fitting(part: str, names: Collection[str]) -> Collection[str]:
    """The names that a part means."""
    from ...lora_ops.adapters.strengths.rules import parse_rules

    rule = f"{part}=1"
    is_label = _LABEL.fullmatch(part)
    (found,) = (
        parse_rules(list(names), blocks=rule)
        if is_label
        else parse_rules(list(names), where=[rule])
    )
    return found.names


def _check_connected(part: str, names: Sequence[str], held: Sequence[Any]) -> None:
    """Refuse a part that is not there.

    Raises:
        ArgumentError: Says what to connect.
    """
    from ...lora_ops import ArgumentError

    for name, one in zip(names, held, strict=True):
        if one is None:
            raise ArgumentError(f"nothing arrives at `{name}`, which `{part}` needs; connect it")
