"""What a PEFT configuration says of scales, for files that hold no alphas.

diffusers writes the configuration of each component into one metadata entry: ``transformer.r``,
``transformer.lora_alpha``, ``transformer.rank_pattern`` and so on; without the component's name for
the file of a single model. ``adapter_config.json`` of PEFT has the same fields.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, cast

from ..errors import FormatError
from ..source import TensorSource

PEFT_METADATA = "lora_adapter_metadata"
"""The metadata entry: JSON text."""

_DEFAULT = 8  # PEFT's r and lora_alpha where a configuration names only one of them
_ROOT = "base_model.model."
_PLAIN = re.compile(r"\^?[\w.-]+")

Config = dict[str, Any]


def peft_scales(metadata: Mapping[str, str], modules: Iterable[str]) -> dict[str, float]:
    """Return alpha / rank of each module as the file's PEFT configuration gives it.

    rsLoRA (Kalajdzievski, 2023, arXiv:2312.03732) divides by the root of the rank. Patterns are
    read as PEFT does: the first one that is the module's name, or its end after a dot, counts.

    Args:
        metadata: The file's string map; for a PEFT folder, the text of its ``adapter_config.json``
            under `PEFT_METADATA`.
        modules: Module names as they stand in the file.

    Returns:
        By module; 1.0 where the configuration says nothing, as for a file that has none.

    Raises:
        FormatError: A pattern is a regular expression; it is not run, for it comes from a file.
    """
    configs = _configs(metadata)
    located = {module: _located(module, configs) for module in modules}
    return {
        module: _scale(configs.get(component, {}), name)
        for module, (component, name) in located.items()
    }


def configured_scales(source: TensorSource, modules: Iterable[str]) -> dict[str, float]:
    """Return the `peft_scales` of an adapter file; empty for one without a configuration.

    Raises:
        FormatError: As `peft_scales`.
    """
    return peft_scales(source.metadata, modules) if PEFT_METADATA in source.metadata else {}


def with_unit_scales(
    originals: Sequence[Mapping[str, str]], ranks: Mapping[str, int]
) -> dict[str, str]:
    """Return the metadata entry of a file whose layers all have scale 1, from those of its inputs.

    Fields in which the inputs agree are kept. Ranks and alphas are those of the file; where the
    inputs adapt different modules, all of the file's are listed.

    Args:
        originals: String maps of the inputs.
        ranks: Rank by module name, as written.

    Returns:
        `PEFT_METADATA` and its text; empty if no input has a configuration.
    """
    found = [config for config in map(_configs, originals) if config]
    components = dict.fromkeys(name for configs in found for name in configs)
    written: Config = {}
    for component in components:
        config = _agreed([configs[component] for configs in found if component in configs])
        if config.get("peft_type", "LORA") != "LORA":
            config = {}  # the fields of a LoHa or LoKr are not LoRA's
        here = {
            name: rank
            for module, rank in ranks.items()
            for place, name in [_located(module, components)]
            if place == component
        }
        if here:
            config = {"target_modules": sorted(here)} | config | _unit(here)
        if "use_rslora" in config:
            config["use_rslora"] = False
        prefix = f"{component}." if component else ""
        written |= {prefix + field: value for field, value in config.items()}
    return {PEFT_METADATA: json.dumps(written, separators=(",", ":"))} if written else {}


def adapter_config(ranks: Mapping[str, int], *, use_dora: bool = False) -> str:
    """Return the text of PEFT's `adapter_config.json` for layers that all have scale 1.

    Args:
        ranks: Rank by module name, as written.
        use_dora: Whether the layers have magnitudes.
    """
    names = {module.removeprefix(_ROOT): rank for module, rank in ranks.items()}
    # A name in a list also means the modules that end in it; the whole of an expression does not.
    listed = sorted(names)
    expression = "|".join(map(re.escape, listed))
    config = {
        "peft_type": "LORA",
        "base_model_name_or_path": None,
        "task_type": None,
        "inference_mode": True,
        "bias": "none",
        "fan_in_fan_out": False,
        "lora_dropout": 0.0,
        "use_dora": use_dora,
        "use_rslora": False,
        "target_modules": listed if all("." in name for name in listed) else expression,
        **_unit(names),
    }
    return json.dumps(config, indent=2, sort_keys=True) + "\n"


def _configs(metadata: Mapping[str, str]) -> dict[str, Config]:
    """Fields by component; what is no JSON object says nothing."""
    try:
        read = json.loads(metadata.get(PEFT_METADATA, "{}"))
    except (ValueError, RecursionError):
        return {}
    configs: dict[str, Config] = {}
    if isinstance(read, dict):
        for key, value in cast("Config", read).items():
            component, _, field = key.rpartition(".")
            configs.setdefault(component, {})[field] = value
    return configs


def _located(module: str, components: Collection[str]) -> tuple[str, str]:
    """The component of a module, and its name there."""
    head, _, rest = module.partition(".")
    component, name = (head, rest) if rest and head in components else ("", module)
    return component, name.removeprefix(_ROOT)


def _scale(config: Config, name: str) -> float:
    # LoRA's field has a prefix that those of LoHa and LoKr lack.
    alpha_field = "lora_alpha" if "lora_alpha" in config else "alpha"
    if not config.keys() & {"r", alpha_field}:
        return 1.0
    rank, alpha = (
        _number(_matching(config.get(pattern), name, config.get(field, _DEFAULT)))
        for field, pattern in (("r", "rank_pattern"), (alpha_field, "alpha_pattern"))
    )
    if rank is None or alpha is None or rank <= 0:
        return 1.0
    return alpha / (math.sqrt(rank) if config.get("use_rslora") is True else rank)


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) < 2**53 else None  # infinity and NaN are not below


def _matching(patterns: object, name: str, default: object) -> object:
    for pattern, value in (cast("Config", patterns) if isinstance(patterns, dict) else {}).items():
        plain = pattern.replace("\\.", ".")
        if not _PLAIN.fullmatch(plain):
            raise FormatError(
                f"`{PEFT_METADATA}` gives ranks or alphas by the regular expression `{pattern}`, "
                "which is not run; save the file with one entry a module, or with alphas",
                target=name,
            )
        if name == plain.removeprefix("^") or name.endswith(f".{plain}"):
            return value
    return default


def _agreed(configs: Sequence[Config]) -> Config:
    fields = dict.fromkeys(field for config in configs for field in config)
    found: Config = {}
    for field in fields:
        values = [config[field] for config in configs if field in config]
        if all(value == values[0] for value in values):
            found[field] = values[0]
    return found


def _unit(ranks: Mapping[str, int]) -> Config:
    """The fields that give each module its rank, and an alpha equal to it."""
    common = Counter(ranks.values()).most_common(1)[0][0]
    differing = {name for name, rank in ranks.items() if rank != common}
    # A pattern also meets the modules that end in it: these are listed too, longest first.
    ends = tuple(f".{name}" for name in differing)
    listed = [name for name in ranks if name in differing or name.endswith(ends)]
    pattern = {name: ranks[name] for name in sorted(listed, key=len, reverse=True)}
    return {
        "r": common,
        "lora_alpha": common,
        "rank_pattern": pattern,
        "alpha_pattern": dict(pattern),
    }
