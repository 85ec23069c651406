"""What both extraction nodes take, and how they run: from two sources to a socket."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..form.activations import NONE, opened_activations
from ..form.schema import dtype_of, rank_inputs, rule_of
from ..form.texts import WARNS, edit_text, headed
from ..host import host
from ..host.api import io
from ..host.lora_model import LoraModel, from_file

if TYPE_CHECKING:
    from ...lora_ops import TensorSource

FORMATS = ("comfy", "kohya")
KINDS = ("lora", "dora", "lokr", "loha", "locon-tucker")
#: What a rank of 0 means where files are read.
NO_RANK = "32, but the rule `noise` with max=128 where a file is stored in 8 bits or fewer."


def extraction_inputs(*, files: bool = False) -> list[io.Input]:
    """Rank, rule, and what else an extraction can be told.

    Args:
        files: Whether it is from files, which tell how they are stored.
    """
    return [
        *rank_inputs(
            default=0 if files else 32, budgets=True, noise=files, none=NO_RANK if files else ""
        ),
        exact_input(),
        io.Boolean.Input(
            "full_differences",
            default=False,
            optional=True,
            tooltip="Keep differences of biases, norms and embeddings too, whole (comfy format only).",
        ),
        stored_input("the factors are"),
        io.Combo.Input(
            "format",
            options=list(FORMATS),
            default=FORMATS[0],
            optional=True,
            tooltip="Names of the tensors: comfy loads in ComfyUI for every architecture; kohya for "
            "SD1.5, SD2, SDXL and Flux, in other programs too.",
        ),
    ]


def exact_input() -> io.Boolean.Input:
    """The input `exact`."""
    return io.Boolean.Input(
        "exact",
        default=False,
        optional=True,
        tooltip="The exact truncation instead of one within 0.001 of its error: about 4 times slower.",
    )


def stored_input(what: str) -> io.Combo.Input:
    """The input `dtype`, with fp16 as its default; `what` is stored so, with its verb."""
    return io.Combo.Input(
        "dtype",
        options=["fp16", "bf16", "fp32"],
        default="fp16",
        optional=True,
        tooltip=f"What {what} stored as. Arithmetic is in fp32 whatever this is.",
    )


def partial_input() -> io.Boolean.Input:
    """The input `allow_partial`: last, as it came last, and the host keeps values by position."""
    return io.Boolean.Input(
        "allow_partial",
        default=False,
        optional=True,
        tooltip="Go on where fewer than 95 % of the weights are found on both sides; those on one "
        "side alone are listed. Off: that is an error.",
    )


def kind_inputs() -> list[io.Input]:
    """The inputs `kind` and `factor`: last, as they came last."""
    return [
        io.Combo.Input(
            "kind",
            options=list(KINDS),
            default=KINDS[0],
            optional=True,
            tooltip="The form of the change. lora · dora: the tuned rows' lengths over a LoRA · lokr: the nearest "
            "Kronecker product, very small · loha: two low-rank matrices multiplied element by element; a rank "
            "only, and twice the size of a LoRA of it · locon-tucker: cores for k x k kernels.",
        ),
        io.Int.Input(
            "factor",
            default=-1,
            min=-1,
            max=4096,
            optional=True,
            tooltip="Of a LoKr: the size that one of its two matrices has on either side, as LyCORIS means it; small "
            "ones give larger, better files. -1: as even as can be.",
        ),
    ]


def extracted(
    base: TensorSource,
    tuned: TensorSource,
    title: str,
    *,
    rank: int,
    rule: str | None,
    exact: bool,
    full_differences: bool,
    allow_partial: bool,
    dtype: str,
    format: str,
    kind: str,
    factor: int,
    activations: str = NONE,
    beside: str = "",
) -> tuple[str, LoraModel]:
    """Extract, with progress and Cancel; return the report and the adapter.

    Args:
        base: The model that training started from.
        tuned: The model that came out of it.
        title: What the result is called.
        rank: Directions of each layer; 0: as many as fit how the sources are stored.
        rule: A rule instead of the rank.
        exact: Compute the exact truncation.
        full_differences: Keep what has no low-rank form whole.
        allow_partial: Go on where few weights are found on both sides.
        dtype: Name of the factors' dtype.
        format: comfy or kohya.
        kind: The form of the change.
        factor: Of a LoKr; of no meaning for others.
        activations: File of what goes into the layers, or none.
        beside: What else the models do that no weight of them shows, for the report.

    Raises:
        LoraOpsError: The two do not belong together, nothing differs, or the rule is wrong.
    """
    from ...lora_ops import MemoryFile, MismatchError, extract_file, plan_file
    from ...version import __version__

    made = MemoryFile(title)
    with opened_activations(activations) as recorded:
        plan = plan_file(
            base,
            tuned,
            rule_of(rank, rule),
            format=format,
            dtype=dtype_of(dtype),
            full_differences=full_differences,
            allow_partial=allow_partial,
            kind=kind,
            factor=factor if kind == "lokr" else -1,
            convention="comfy",  # where it will be read
            activations=recorded,
        )
        try:
            report = extract_file(
                plan,
                base,
                tuned,
                made,
                format=format,
                exact=exact,
                placement=host.placement(),
                version=__version__,
                progress=host.progress(),
            )
        except MismatchError as error:
            if not beside:
                raise
            raise MismatchError(f"{error}; {beside}", target=error.target) from error
    headline, *lines = edit_text(made.name, report).splitlines()
    told = [f"{WARNS}{beside}"] if beside else []
    return headed(headline, *told, *lines), from_file(made)
