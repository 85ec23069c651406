"""mergekit's configuration, `mergekit_config.yml`: merges of whole models by `models:`.

Fields: `config.py` of arcee-ai/mergekit 0.1.5.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import cast

from .....errors import ArgumentError, FormatError
from .....text import plain
from ..checks import DTYPES
from ..recipe import Output, Term, Value
from .found import Draft, Foreign, listing, mapping, number, substring, text

PROGRAM = "mergekit"
#: Our method, and how the changes are thinned.
_METHODS = {
    "linear": ("average", "none"),
    "task_arithmetic": ("sum", "none"),
    "ties": ("ties", "magnitude"),
    "dare_linear": ("sum", "dare"),
    "dare_ties": ("ties", "dare"),
    "della_linear": ("sum", "della"),
    "della": ("ties", "della"),
    "breadcrumbs": ("sum", "breadcrumbs"),
    "breadcrumbs_ties": ("ties", "breadcrumbs"),
    "slerp": ("slerp", "none"),
    "nuslerp": ("nuslerp", "none"),
    "model_stock": ("model_stock", "none"),
    "karcher": ("karcher", "none"),
    "arcee_fusion": ("arcee_fusion", "none"),
    "sce": ("sce", "none"),
    "passthrough": ("sum", "none"),
}
_DTYPES = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
_IGNORED = ("int8_mask",)  # how it computes, not what
_MOST = 1_000_000  # characters


def parse_yaml(content: str) -> object:
    """Read YAML, by the package for it.

    Raises:
        ArgumentError: The package is not there.
        FormatError: The text is no YAML.
    """
    try:
        import yaml  # pyright: ignore[reportMissingModuleSource]
    except ImportError:
        raise ArgumentError(
            "reading YAML needs the package `pyyaml`: install it, or write the recipe as TOML"
        ) from None
    if len(content) > _MOST or ("&" in content and "*" in content and content.count("*") > 1000):
        raise FormatError(f"a configuration of {len(content)} characters; {_MOST} is the most")
    try:
        return cast("object", yaml.safe_load(content))
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise FormatError(f"the configuration is no YAML: {plain(str(error)[:200])}") from None


def read(content: str) -> Foreign:
    """Read a configuration.

    Args:
        content: Its text.

    Raises:
        ArgumentError: The package that reads YAML is not there.
        FormatError: It is none, or merges by layers or modules.
    """
    config = mapping(parse_yaml(content))
    method = text(config.get("merge_method"))
    for key in ("slices", "modules"):
        if config.get(key):
            raise FormatError(
                f"the configuration merges by `{key}`: layers of one model in place of another's have "
                "no like here; write it with `models:`, or merge it with mergekit"
            )
    models = [mapping(one) for one in listing(config.get("models"))]
    if method not in _METHODS or not models:
        known = ", ".join(_METHODS)
        raise FormatError(
            f"method `{plain(method)}` with {len(models)} models; what is read: {known}"
        )
    draft = Draft(PROGRAM)
    ours, sparsify = _METHODS[method]
    shared = dict(mapping(config.get("parameters")))
    base = _model(draft, text(config.get("base_model"))) if config.get("base_model") else ""
    terms: list[Term] = []
    for row in models:
        of = _model(draft, text(row.get("model")))
        own = {**mapping(row.get("parameters"))}
        if of == base and not own:
            continue  # the base among the models adds nothing
        terms.append(_term(draft, of, own, shared.get("weight")))
    shared.pop("weight", None)
    parameters = _parameters(draft, shared)
    if method == "linear" and parameters.pop("normalize", True) is False:
        ours = "sum"
    if method == "slerp" and len(terms) == 1:
        # From the base to the other.
        terms = [Term(base), *terms]
        base = ""
    elif method in ("slerp", "nuslerp") and base:
        terms.sort(key=lambda term: term.of != base)
        base = "" if method == "slerp" else base
    draft.step(
        terms,
        base=base,
        method=ours,
        sparsify=sparsify,
        legacy="mergekit" if method not in ("linear", "passthrough") else "",
        parameters=parameters,
    )
    for key in ("tokenizer_source", "tokenizer", "chat_template"):
        if config.get(key):
            draft.lose(f"`{key}`: what belongs to a model beside its weights is the base's")
    return draft.finished(output=Output(_dtype(draft, config)))


def _dtype(draft: Draft, config: Mapping[str, object]) -> dict[str, str]:
    written = text(config.get("out_dtype") or config.get("dtype"))
    dtype = _DTYPES.get(written, written)
    if config.get("dtype") and dtype in DTYPES and _DTYPES.get(text(config["dtype"])) != "fp32":
        draft.lose(f"it computes in {text(config['dtype'])}; here in fp32, and is rounded once")
    if dtype and dtype not in DTYPES:
        draft.lose(f"the number format `{dtype}`")
    return {"all": dtype} if dtype in DTYPES else {}


def _model(draft: Draft, reference: str) -> str:
    """The key of a model: the name of a repository, with its address; a LoRA on it is lost."""
    path, plus, lora = reference.partition("+")
    if plus:
        draft.lose(f"the LoRA `{lora}` on `{path}`; bake it in before, or add it as a term")
    path, _, revision = path.partition("@")
    url = f"https://huggingface.co/{path}" if path.count("/") == 1 and path[0] not in "./~" else ""
    if revision:
        draft.lose(f"the revision `{revision}` of `{path}`")
    return draft.file(path.rstrip("/"), url=url)


def _term(draft: Draft, of: str, own: dict[str, object], shared: object) -> Term:
    weight = own.pop("weight", shared)
    where: tuple[str, ...] = ()
    amount: float | tuple[float, ...] = 1.0
    if isinstance(weight, list) and any(isinstance(one, dict) for one in weight):
        where = _filtered(draft, cast("list[object]", weight))
    elif isinstance(weight, dict):
        where = _filtered(draft, [cast("object", weight)])
    elif isinstance(weight, list):
        amount = tuple(number(one, "weight", PROGRAM) for one in cast("list[object]", weight))
    elif weight is not None:
        amount = number(weight, "weight", PROGRAM)
    return Term(of, weight=amount, where=where, parameters=_parameters(draft, own))


def _filtered(draft: Draft, rows: Sequence[object]) -> tuple[str, ...]:
    """Weights by parts of names: the first that fits decides there, the last here."""
    found: list[str] = []
    for row in rows:
        entry = mapping(row)
        if not isinstance(row, dict):
            entry = {"value": row}
        value = entry.get("value")
        name = text(entry.get("filter")) or "*"
        if isinstance(value, list):
            draft.lose(f"the gradient of the weight for `{name}`: its mean over the depth is here")
            values = [number(one, "weight", PROGRAM) for one in cast("list[object]", value)]
            value = math.fsum(values) / max(len(values), 1)
        weight = number(value, "weight", PROGRAM)
        found.append(f"*={weight:.12g}" if name == "*" else substring(name, weight))
        if name == "*":
            break  # what comes after decides nothing
    return tuple(reversed(found))


def _parameters(draft: Draft, given: Mapping[str, object]) -> dict[str, Value]:
    found: dict[str, Value] = {}
    for name, value in given.items():
        if name in _IGNORED:
            continue
        if isinstance(value, bool):
            found[name] = value
        elif isinstance(value, list) and not any(isinstance(one, dict) for one in value):
            rows = cast("list[object]", value)
            if rows:
                found[name] = tuple(number(one, name, PROGRAM) for one in rows)
        elif isinstance(value, list | dict):
            draft.lose(f"`{name}` by parts of names: its default is here")
        elif value is not None:
            found[name] = number(value, name, PROGRAM)
    return found
