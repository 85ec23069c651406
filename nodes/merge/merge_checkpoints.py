"""Merge Checkpoints: two or three files of the host's lists into one, streamed; no model is loaded."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from ..form.schema import (
    DTYPES,
    ROUNDINGS,
    dtype_input,
    file_input,
    lines,
    path_output,
    prefix_input,
    report_output,
    rounding_input,
    schema,
)
from ..form.storage import STORAGES, storage_input, storage_of
from ..form.wording import explained
from ..host import host
from ..host.api import io
from .merging import FOLDERS, PREFIX, PREFIX_HINT, name_output, nonfinite_input, written

if TYPE_CHECKING:
    from ...lora_ops import Recipe

NONE = "none"
FLAGS = ("as in A", "on", "off")
_LIMIT = 10.0


class Method(NamedTuple):
    """A way of merging.

    Attributes:
        help: What it gives.
        models: The fewest and the most models that it takes.
    """

    help: str
    models: tuple[int, int]


METHODS = {
    "weighted_sum": Method("A + share of B * (B - A) + share of C * (C - A)", (2, 3)),
    "add_difference": Method("A + share of B * (B - C): C is what B was made from", (3, 3)),
    "train_difference": Method("the same, most where B is far from A, as if trained", (3, 3)),
    "sum_twice": Method("from A to B by the share of B, from there to C by the share of C", (3, 3)),
    "slerp": Method("on the arc from A to B", (2, 2)),
    "cosine_a": Method("A's structure with B's details, by how alike they are", (2, 2)),
    "cosine_b": Method("B's structure with A's details, by how alike they are", (2, 2)),
    "model_stock": Method("between B and C, nearer to A the less they agree on it", (3, 3)),
    "ties": Method("of what B and C change in A the largest, where signs agree", (2, 3)),
    "dare": Method("of what B and C change in A a random part, made up for", (2, 3)),
}


class MergeCheckpoints(io.ComfyNode):
    """Writes the merge of two or three checkpoints."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """Inputs and outputs."""
        return schema(
            "MergeCheckpoints",
            # In the title, as the front end ranks words of titles before all aliases.
            "Merge Checkpoints (TIES, DARE)",
            description="Merges two or three checkpoint files into one: read tensor by tensor, "
            "computed in fp32, rounded once. No model is loaded. VAE and all else are those of A.",
            search_aliases=[
                "checkpoint merger",
                "merge models",
                "weighted sum",
                "add difference",
                "ModelMergeSimple",
                "ModelMergeBlocks",
                "CheckpointSave",
                "merge block weighted",
                *("merge", "checkpoint merge", "ties", "dare", "fp8", "gguf"),
            ],
            is_output_node=True,
            inputs=[
                file_input("model_A", "Checkpoint A, which the others change.", FOLDERS),
                file_input("model_B", "Checkpoint B.", FOLDERS),
                _share_input("B", "0 gives A, 1 gives B. ComfyUI's own nodes ask for A's."),
                _method_input(),
                prefix_input(PREFIX, PREFIX_HINT),
                io.Combo.Input(
                    "model_C",
                    options=[NONE, *host.file_names(*FOLDERS)],
                    default=NONE,
                    optional=True,
                    tooltip="Checkpoint C, where the method takes three.",
                ),
                _share_input("C", "Not asked where C is only taken away.", optional=True),
                io.String.Input(
                    "blocks",
                    default="",
                    optional=True,
                    tooltip="Factors on the shares by block, as Block Weights gives them: a preset "
                    "(OUTALL, INS, MIDD), labels (IN04=0.5,OUT=0), 12, 17, 20, 26, 61 or other known "
                    "numbers of weights (1,0,0.5,…), or a gradient over the depth (depth=0,1). "
                    "Empty: all blocks alike.",
                ),
                io.String.Input(
                    "where",
                    default="",
                    multiline=True,
                    optional=True,
                    tooltip="Factors on the shares by name, one PATTERN=S a line; the last that fits "
                    "decides, in place of what `blocks` says. te=0 keeps the text encoders of A. A "
                    "pattern is a component (te, te1, unet), words of the name (attn2), a shell "
                    "pattern (*ff*) or a /regular expression/. Empty: all weights alike.",
                ),
                dtype_input(),
                rounding_input(),
                io.Combo.Input(
                    "v_pred_flags",
                    options=list(FLAGS),
                    default=FLAGS[0],
                    optional=True,
                    tooltip="The marks v_pred and ztsnr, by which loaders know a model of "
                    "v-prediction.",
                ),
                nonfinite_input(),
                storage_input(),
            ],
            outputs=[name_output(), path_output(), report_output()],
        )

    @classmethod
    def fingerprint_inputs(
        cls,
        model_A: str | None,  # noqa: N803  as they are shown
        model_B: str | None,  # noqa: N803
        model_C: str | None = NONE,  # noqa: N803
        **rest: object,
    ) -> tuple[str, ...]:
        """A value that changes with the files, so that the host runs the node again."""
        del rest
        return tuple(host.fingerprint(name, *FOLDERS) for name in (model_A, model_B, model_C))

    @classmethod
    @explained
    def execute(
        cls,
        model_A: str,  # noqa: N803  as they are shown
        model_B: str,  # noqa: N803
        share_of_B: float,  # noqa: N803
        prefix: str,
        method: Mapping[str, Any] | None = None,
        model_C: str = NONE,  # noqa: N803
        share_of_C: float = 0.5,  # noqa: N803
        blocks: str = "",
        where: str = "",
        dtype: str = DTYPES[0],
        rounding: str = ROUNDINGS[0],
        v_pred_flags: str = FLAGS[0],
        allow_nonfinite: bool = False,
        storage: str = STORAGES[0],
    ) -> io.NodeOutput:
        """Merge them.

        Raises:
            FileNotFoundError: A checkpoint is not in the host's folders.
            LoraOpsError: The models do not belong together, the method takes another number of them,
                a rule means nothing, or the disk is full.
        """
        names = {"A": model_A, "B": model_B} | ({} if model_C == NONE else {"C": model_C})
        paths = {key: host.file_path(name, *FOLDERS) for key, name in names.items()}
        recipe = _recipe(
            {key: path.name for key, path in paths.items()},
            {"B": share_of_B, "C": share_of_C},
            _checked(method, len(names)),
            {"blocks": blocks.strip(), "where": lines(where)},
            {
                "dtype": "" if dtype == DTYPES[0] else dtype,
                "to": storage_of(storage),
                "rounding": rounding,
                "keep": "auto" if v_pred_flags == FLAGS[0] else v_pred_flags,
            },
        )
        return written(cls, recipe, paths, prefix, allow_nonfinite=allow_nonfinite)


def _share_input(model: str, more: str, **given: Any) -> io.Float.Input:
    return io.Float.Input(
        f"share_of_{model}",
        default=0.5,
        min=-_LIMIT,
        max=_LIMIT,
        step=0.01,
        tooltip=f"Share of {model} in the result. {more}",
        **given,
    )


def _method_input() -> io.DynamicCombo.Input:
    """The methods, each with its own numbers."""
    told = "; ".join(f"{name}: {one.help}" for name, one in METHODS.items())
    options = [io.DynamicCombo.Option(name, _parameters(name)) for name in METHODS]
    return io.DynamicCombo.Input("method", options=options, tooltip=f"How they are merged. {told}.")


def _parameters(method: str) -> list[io.Input]:
    """What a method takes besides shares."""
    density = io.Float.Input(
        "density",
        default=0.5,
        min=0.0,
        max=1.0,
        step=0.01,
        tooltip="Part of the changed numbers that stays.",
    )
    seed = io.Int.Input(
        "seed",
        default=0,
        min=0,
        max=1_000_000_000,
        tooltip="Of chance: the same seed, the same merge.",
    )
    taken: dict[str, list[io.Input]] = {"ties": [density], "dare": [density, seed]}
    return taken.get(method, [])


def _checked(method: Mapping[str, Any] | None, models: int) -> Mapping[str, Any]:
    """The choice of a method, if it takes so many models.

    Raises:
        ArgumentError: It does not, or there is no such method.
    """
    from ...lora_ops import ArgumentError

    if method is None:  # the host does not check this choice, and drops what it does not know
        raise ArgumentError(f"no such method; use one of {', '.join(METHODS)}")
    name = method["method"]
    least, most = METHODS[name].models
    if models < least:
        raise ArgumentError(f"method `{name}` takes three models; choose `model_C`")
    if models > most:
        raise ArgumentError(
            f"method `{name}` takes two models; set `model_C` to {NONE}, or choose another method"
        )
    return method


def _recipe(
    names: Mapping[str, str],
    shares: Mapping[str, float],
    method: Mapping[str, Any],
    rules: Mapping[str, Any],
    output: Mapping[str, str],
) -> Recipe:
    """The document that a node's inputs mean.

    Args:
        names: Of the files, by A, B and C.
        shares: Of B and C.
        method: Its name, and what else it is given.
        rules: `blocks` and `where`.
        output: As in a recipe.

    Raises:
        ArgumentError: There are rules by block or name, and the method has none.
    """
    from ...lora_ops import ArgumentError, parse_document

    kind, *others = method["method"], *(key for key in names if key != "A")
    terms = [{"of": key, "weight": shares[key], **rules} for key in others]
    step: dict[str, Any] = {"name": "step1", "method": kind, "base": "A", "terms": terms}
    if kind == "weighted_sum":
        step["method"] = "sum"
    elif kind == "add_difference":
        step |= {"method": "sum", "terms": [{**terms[0], "minus": "C"}]}
    elif kind == "train_difference":
        step["terms"] = [terms[0], {"of": "C"}]
    elif kind == "slerp":
        if any(rules.values()):
            raise ArgumentError(
                "method `slerp` has one share for all weights; leave `blocks` and `where` empty, or "
                "choose method `weighted_sum`"
            )
        rest = {"of": "A", "weight": 1 - shares["B"]}
        del step["base"]
        step |= {"method": "nuslerp", "terms": [rest, *terms]}
    elif kind == "ties":
        step["density"] = method["density"]
    elif kind == "dare":
        step |= {"method": "sum", "sparsify": "dare"}
        step |= {"density": method["density"], "seed": method["seed"]}
    files = {key: {"name": name} for key, name in names.items()}
    document = {"lorakit": 1, "files": files, "step": [step], "output": dict(output)}
    return parse_document(json.dumps(document))
