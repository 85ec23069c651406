"""What lint can say: every code with its severity, and a finding as data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Severity = Literal["error", "warning", "note"]

#: Severity by code, and what the code means; docs/lint.md says more of each.
CODES: dict[str, tuple[Severity, str]] = {
    # the numbers
    "not-finite": ("error", "NaN or infinity among the numbers"),
    "layer-zero": ("warning", "a layer that changes nothing, as a factor is all zero"),
    # alpha
    "alpha-missing": ("note", "no layer has an alpha: scale 1"),
    "alpha-partly": ("warning", "some layers have an alpha, others none"),
    "alpha-zero": ("warning", "alpha 0: the layer changes nothing"),
    "alpha-above-rank": ("warning", "alpha above rank: a scale above 1"),
    "alpha-differs": ("note", "layers of several scales"),
    "alpha-shape": ("error", "an alpha that is not one number"),
    "alpha-integer": ("note", "an alpha stored as an integer"),
    # the tensors
    "incomplete": ("error", "a layer without one of its factors"),
    "shapes-disagree": ("error", "factors that do not fit together"),
    "unsupported": ("warning", "a layer that lorakit cannot read"),
    "kinds-mixed": ("warning", "two kinds of layer under one name"),
    "keys-left-over": ("note", "keys that belong to no layer"),
    "dtypes-mixed": ("note", "factors of several dtypes"),
    "dtype-rare": ("warning", "factors of a dtype that few programs read"),
    "dtype-integer": ("error", "factors stored as integers, without what they stand for"),
    # names
    "target-twice": ("warning", "two layers for the same weight"),
    "model-mixed": ("warning", "names of several models"),
    "format-mixed": ("note", "names in several formats"),
    "model-unknown": ("note", "names that tell no model"),
    # metadata
    "hash-false": ("warning", "sshs_model_hash is not that of the data"),
    "hash-missing": ("note", "no sshs_model_hash"),
    "metadata-missing": ("note", "none of what kohya's tools and A1111 look up"),
    "metadata-rank": ("warning", "ss_network_dim is not the rank of the layers"),
    "metadata-alpha": ("warning", "ss_network_alpha is not the alpha of the layers"),
    "metadata-module": ("warning", "ss_network_module is of another kind of layer"),
    "metadata-model": ("warning", "the metadata names another model than the layers"),
    "configuration": ("error", "a PEFT configuration by which the layers cannot be read"),
    "base-changed": ("warning", "PEFT changes the base weights before it applies the file"),
    # programs
    "refused": ("warning", "the program stops with an error, and loads nothing"),
    "nothing-loads": ("warning", "the program loads no layer"),
    "part-loads": ("warning", "the program loads some of the layers"),
    "perhaps-loads": ("note", "layers that the program loads if the model has them"),
    "scale-lost": ("warning", "the program does not read the scale that the metadata give"),
    "magnitude-lost": ("warning", "the program does not read the magnitudes of DoRA"),
    "key-unread": ("warning", "the program reads a layer, but not all of its keys"),
    "strength-differs": ("note", "the program gives a kind another strength than its paper"),
}
#: Codes that are errors where their program was asked for by name.
ASKED = ("refused", "nothing-loads", "part-loads", "scale-lost", "magnitude-lost", "key-unread")


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing to know about a file.

    Attributes:
        code: One of `CODES`.
        severity: error, warning or note.
        message: What it is, with values.
        where: Names of the layers or keys it is about, in the order of the file; () for the file.
        cure: What to do; a call where there is one, as `convert_file(...)`.
        program: The program whose reading it is about; None for the file itself.
    """

    code: str
    severity: Severity
    message: str
    where: tuple[str, ...] = ()
    cure: str = ""
    program: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "severity": self.severity,
            "code": self.code,
            "program": self.program,
            "message": self.message,
            "count": len(self.where),
            "where": list(self.where),
            "cure": self.cure,
        }


def finding(
    code: str,
    message: str,
    where: Sequence[str] = (),
    cure: str = "",
    *,
    program: str | None = None,
    asked: bool = False,
) -> Finding:
    """Return a finding with the severity of its code.

    Args:
        code: One of `CODES`.
        message: What it is, with values.
        where: Names of layers or keys.
        cure: What to do.
        program: The program whose reading it is about.
        asked: Whether that program was asked for by name.
    """
    severity = "error" if asked and code in ASKED else CODES[code][0]
    return Finding(code, severity, message, tuple(where), cure, program)


def converting(source: str, suffix: str, **options: str) -> str:
    """Return the call that writes a file in another way.

    Args:
        source: The file's path, as the user gave it.
        suffix: What the new file's name gets behind the old one's.
        options: Arguments of `convert_file`, as Python code.
    """
    given = "".join(f", {name}={code}" for name, code in options.items())
    return f"convert_file(open_source({source!r}), {_output(source, suffix)}{given})"


def leaving_out(source: str, suffix: str, layers: Sequence[str]) -> str:
    """Return the call that writes a file without some layers.

    Args:
        source: The file's path, as the user gave it.
        suffix: What the new file's name gets behind the old one's.
        layers: Their names in the file.
    """
    where = [f"{layer}=0" for layer in layers]
    scaled = f"Ingredient(open_source({source!r}), where={where!r})"
    return f"scale_file({scaled}, {_output(source, suffix)})"


def _output(source: str, suffix: str) -> str:
    path = Path(source)
    return f"Path({str(path.with_name(f'{path.stem}-{suffix}.safetensors'))!r})"
