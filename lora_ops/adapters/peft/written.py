"""PEFT configurations of what lorakit writes."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ...errors import UnsupportedLayerError
from .config import PEFT_CONFIG, PEFT_METADATA, ROOT, Config, configs_of, located, rank_of

# Fields of a folder that say something of the model, or of what is carried.
_KEPT = (
    *("auto_mapping", "base_model_name_or_path", "revision", "task_type", "fan_in_fan_out"),
    *("bias", "lora_dropout", "modules_to_save", "trainable_token_indices"),
)
#: Methods whose configurations are passed on as they are.
CARRIED = ("ADALORA", "VERA", "IA3", "OFT", "BOFT")
# The result is a plain LoRA: rank and alpha alone make its scales.
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


@dataclass(frozen=True, slots=True)
class Written:
    """One layer as the configuration tells it.

    Attributes:
        method: What PEFT calls its kind: LORA, LOHA, LOKR.
        rank: Of its factors.
        scale: Factor on them; None for whole matrices, whose numbers include it.
        has_magnitudes: Whether it is DoRA.
    """

    method: str
    rank: int
    scale: float | None = 1.0
    has_magnitudes: bool = False


def adapter_config(
    layers: Mapping[str, Written],
    originals: Sequence[Mapping[str, str]] = (),
    *,
    lora_bias: bool = False,
    parameters: Mapping[str, Written] | None = None,
    more: Config | None = None,
) -> str:
    """Return the text of PEFT's `adapter_config.json`.

    Args:
        layers: By module name, as written.
        originals: String maps of the inputs. Fields that their configurations agree in stay, but
            for those about single layers; those of LoHa and LoKr keep the ranks, too.
        lora_bias: Whether ups have biases.
        parameters: The same of parameters that are adapted as such, without modules: by their names.
        more: Other fields, which go before those of the inputs.

    Raises:
        UnsupportedLayerError: One configuration cannot tell all of them.
    """
    named = {module.removeprefix(ROOT): one for module, one in layers.items()}
    alone = {name.removeprefix(ROOT): one for name, one in (parameters or {}).items()}
    ranked = named | alone
    (method, dora), *others = {(one.method, one.has_magnitudes) for one in ranked.values()}
    own = _agreed([configs_of(one)[""] for one in originals if PEFT_CONFIG in one])
    if others or (method != "LORA" and own.get("peft_type") != method):
        kinds = ", ".join(sorted({one.method for one in named.values()}))
        raise UnsupportedLayerError(
            f"layers of {kinds}, with and without DoRA, have no configuration of PEFT in common that "
            "the input gives; give the name of a file that ends in `.safetensors`"
        )
    if method in CARRIED:
        return _text(own)
    # A name in a list also means the modules that end in it; the whole of an expression does not.
    listed = sorted(named)
    expression = "|".join(map(re.escape, listed))
    targets = listed if all("." in name for name in listed) else expression
    if method != "LORA":
        ranks = {name: rank_of(own, name) for name in named}
        alphas = {n: ranks[n] * (1 if one.scale is None else one.scale) for n, one in named.items()}
        alpha, pattern = _by_name(alphas)
        config = own | {"alpha": alpha, "alpha_pattern": pattern, "target_modules": targets}
        return _text(config)
    config = {
        "base_model_name_or_path": None,
        "task_type": None,
        "bias": "none",
        "fan_in_fan_out": False,
        "lora_dropout": 0.0,
        **{field: own[field] for field in _KEPT if field in own},
        "peft_type": "LORA",
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_bias": lora_bias,
        "use_dora": dora,
        "use_rslora": False,
        "target_modules": targets,
        **({"target_parameters": sorted(alone)} if alone else {}),
        **_ranks_and_alphas(
            {name: one.rank for name, one in ranked.items()},
            {name: one.rank * (one.scale or 0.0) for name, one in ranked.items()},
        ),
        **(more or {}),
    }
    return _text(config)


def _text(config: Config) -> str:
    """Fields in order of their names; patterns keep theirs, of which PEFT takes the first that fits."""
    return json.dumps(dict(sorted(config.items())), indent=2) + "\n"


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
    return _ranks_and_alphas(ranks, ranks)


def _ranks_and_alphas(ranks: Mapping[str, int], alphas: Mapping[str, float]) -> Config:
    (rank, rank_pattern), (alpha, alpha_pattern) = _by_name(ranks), _by_name(alphas)
    return {
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": rank_pattern,
        "alpha_pattern": alpha_pattern,
    }


def _by_name(values: Mapping[str, float]) -> tuple[float, dict[str, float]]:
    """The commonest value, and the others by module name."""
    whole = {n: int(value) if value == int(value) else value for n, value in values.items()}
    common = Counter(whole.values()).most_common(1)[0][0]
    differing = {name for name, value in whole.items() if value != common}
    # A pattern also meets the modules that end in it: these are listed too, longest first.
    ends = tuple(f".{name}" for name in differing)
    listed = [name for name in whole if name in differing or name.endswith(ends)]
    return common, {name: whole[name] for name in sorted(listed, key=len, reverse=True)}
