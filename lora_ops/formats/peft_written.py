"""PEFT configurations of what lorakit writes."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence

from .peft_config import PEFT_METADATA, ROOT, Config, configs_of, located

# What is written is a plain LoRA of scales that are told by rank and alpha.
_PLAIN: Config = {"use_rslora": False, "init_lora_weights": True}


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
    found = [config for config in map(configs_of, originals) if config]
    components = dict.fromkeys(name for configs in found for name in configs)
    written: Config = {}
    for component in components:
        config = _agreed([configs[component] for configs in found if component in configs])
        if config.get("peft_type", "LORA") != "LORA":
            config = {}  # the fields of a LoHa or LoKr are not LoRA's
        here = {
            name: rank
            for module, rank in ranks.items()
            for place, name in [located(module, components)]
            if place == component
        }
        if here:
            config = {"target_modules": sorted(here)} | config | _unit(here)
        config |= {field: plain for field, plain in _PLAIN.items() if field in config}
        prefix = f"{component}." if component else ""
        written |= {prefix + field: value for field, value in config.items()}
    return {PEFT_METADATA: json.dumps(written, separators=(",", ":"))} if written else {}


def adapter_config(ranks: Mapping[str, int], *, use_dora: bool = False) -> str:
    """Return the text of PEFT's `adapter_config.json` for layers that all have scale 1.

    Args:
        ranks: Rank by module name, as written.
        use_dora: Whether the layers have magnitudes.
    """
    names = {module.removeprefix(ROOT): rank for module, rank in ranks.items()}
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
