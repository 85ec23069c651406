"""What a PEFT configuration says of layers, for files that do not: scales, and what PEFT does first.

diffusers writes the configuration of each component into one metadata entry: ``transformer.r``,
``transformer.lora_alpha``, ``transformer.rank_pattern`` and so on; without the component's name for
the file of a single model. ``adapter_config.json`` of PEFT has the same fields.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

from ...errors import FormatError, UnsupportedLayerError
from ...source import TensorSource
from ..layers import Initial
from .parameters import is_lora, is_parameter, parameter_of
from .patterns import matches

PEFT_METADATA = "lora_adapter_metadata"
"""The metadata entry: JSON text."""
PEFT_CONFIG = "adapter_config.json"
"""The file beside PEFT's weights; what is opened with it has its text under this name as metadata."""

# Initialisations that leave the base weight alone at loading; LoRA-GA changed it before training.
_PLAIN_STARTS = ("true", "false", "gaussian", "eva", "orthogonal", "mica")
_HARMLESS = (*_PLAIN_STARTS, "lora_ga")
_TITLES = {
    "pissa": "PiSSA",
    "olora": "OLoRA",
    "corda": "CorDA",
    "loftq": "LoftQ",
    "lora_ga": "LoRA-GA",
}
_METHODS = ("LORA", "LOHA", "LOKR", "OFT", "BOFT", "IA3", "ADALORA", "VERA", "TRAINABLE_TOKENS")
_RANDOM = "PEFT takes factors out of the weight at each loading that are in no file"
# Fields that, where they are set, make another method of a LoRA.
_OTHERS = {
    "kasa_config": "KaSA: PEFT takes the smallest directions out of the weight, and has a diagonal",
    "use_bdlora": "BD-LoRA: its factors are blocks of larger ones",
    "alora_invocation_tokens": "aLoRA: it acts on some tokens only, and no weight does that",
    "arrow_config": "Arrow: it mixes adapters anew for each token",
    "use_qalora": "QA-LoRA: its inputs are averaged in groups",
    "layer_replication": "the model's layers are repeated before it is applied",
}
_MERGED = (
    "with PEFT, give `save_pretrained` the initial adapter as "
    "`path_initial_model_for_weight_conversion`, which makes it a plain LoRA"
)
_ANYWHERE = "merge it with PEFT, and extract a LoRA from the merged model"

_DEFAULT = 8  # PEFT's r and lora_alpha where a configuration names only one of them
_FIRST_RANK = 12.0  # the same of AdaLoRA's init_r
ROOT = "base_model.model."
_PLAIN = re.compile(r"\^?(?:[\w.-]|\\\.)+")

Config = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Configured:
    """What a configuration says of one module.

    Attributes:
        scale: Scale of a layer that stores no alpha.
        initial: The initialisation whose factors PEFT takes out of the weight; None for none.
        tokens: Rows of the weight that the file replaces.
        on_input: For IA3, whether the gains are of the inputs; None where nothing is said.
    """

    scale: float = 1.0
    initial: Initial | None = None
    tokens: tuple[int, ...] = ()
    on_input: bool | None = None


def peft_scales(metadata: Mapping[str, str], modules: Iterable[str]) -> dict[str, float]:
    """Return alpha / rank of each module as the file's PEFT configuration gives it.

    rsLoRA (Kalajdzievski, 2023, arXiv:2312.03732) divides by the root of the rank. Patterns are
    read as PEFT does: the first one that is the module's name, or its end after a dot, counts. They are
    regular expressions; see `peft_patterns`.

    Args:
        metadata: The file's string map; of PEFT's weights with their configuration as `PEFT_CONFIG`.
        modules: Module names as they stand in the file.

    Returns:
        By module; 1.0 where the configuration says nothing, as for a file that has none.

    Raises:
        FormatError: A pattern is no regular expression, or of a kind that is not read; or
            `PEFT_CONFIG` is not JSON.
    """
    return {module: _scale(config, name) for module, config, name in _found(metadata, modules)}


def configured(source: TensorSource, modules: Iterable[str]) -> dict[str, Configured]:
    """Return what an adapter file's configuration says of its modules; empty for one without any.

    Raises:
        FormatError: As `peft_scales`.
        UnsupportedLayerError: By it, the file is of a method that is not read, or PEFT changes the
            base weights in a way that cannot be done again.
    """
    found: dict[str, Configured] = {}
    for module, config, name in _found(source.metadata, modules):
        reason = refusal(config)
        if reason:
            raise UnsupportedLayerError(f"{source.name}: {reason}", target=module)
        found[module] = Configured(
            _scale(config, name),
            initialised(config),
            _tokens(config, name),
            _on_input(config, name),
        )
    return found if configs_of(source.metadata) else {}


def initialised(config: Mapping[str, Any]) -> Initial | None:
    """Return the initialisation whose factors PEFT takes out of the weight at loading, if any."""
    name = config.get("init_lora_weights") if is_lora(config) else None
    if name == "pissa":
        return "pissa"
    return "olora" if isinstance(name, str) and name.lower() == "olora" else None


def refusal(config: Mapping[str, Any]) -> str:
    """Say why layers cannot be told from a file with this configuration; empty where they can."""
    method = config.get("peft_type", "LORA")
    if method not in _METHODS:
        return f"its configuration has `peft_type` {method}, which is not read; {_ANYWHERE}"
    if not is_lora(config):
        return ""
    name = str(config.get("init_lora_weights", True))
    if name.lower() not in _HARMLESS and initialised(config) is None:
        return f"its configuration has `init_lora_weights` {name}: {_RANDOM}; {_MERGED}"
    if initialised(config) == "olora" and config.get("fan_in_fan_out"):
        return f"its configuration has OLoRA with `fan_in_fan_out`, weights stored (in, out); {_MERGED}"
    for field, what in _OTHERS.items():
        if config.get(field):
            return f"its configuration has `{field}`, {what}; {_ANYWHERE}"
    return ""


def special(metadata: Mapping[str, str]) -> str:
    """Name the method of a file that only looks like a LoRA; empty for a plain LoRA."""
    for config in configs_of(metadata).values():
        initial = config.get("init_lora_weights") if is_lora(config) else None
        if isinstance(initial, str) and initial.lower() not in _PLAIN_STARTS:
            return _TITLES.get(initial.lower(), initial)
        for field in _OTHERS if is_lora(config) else ():
            if config.get(field):
                return _OTHERS[field].partition(":")[0] if ":" in _OTHERS[field] else field
    return ""


def configuration_notes(metadata: Mapping[str, str]) -> Iterator[str]:
    """Yield notes on what PEFT does with a file because of its configuration."""
    for config in configs_of(metadata).values():
        if is_lora(config) and config.get("init_lora_weights") == "lora_ga":
            yield (
                "trained with LoRA-GA, on a weight less factors that are in no file: as PEFT does at "
                "loading, its change is added to the weight that is given"
            )


def _found(
    metadata: Mapping[str, str], modules: Iterable[str]
) -> Iterator[tuple[str, Config, str]]:
    """Each module, its configuration, and its name in that component of the model."""
    configs = configs_of(metadata)
    for module in modules:
        component, name = located(module, configs)
        yield module, configs.get(component, {}), name


def configs_of(metadata: Mapping[str, str]) -> dict[str, Config]:
    """Fields by component. Text that is no JSON object says nothing, except in PEFT's own file.

    Raises:
        FormatError: PEFT's own file is no JSON object.
    """
    if PEFT_CONFIG in metadata:
        return {"": _own_config(metadata[PEFT_CONFIG])}
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


def _own_config(text: str) -> Config:
    try:
        read = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"`{PEFT_CONFIG}` cannot be read as JSON: {error}") from None
    if not isinstance(read, dict):
        raise FormatError(f"`{PEFT_CONFIG}` holds no JSON object; write the folder again")
    return cast("Config", read)


def located(module: str, components: Collection[str]) -> tuple[str, str]:
    """The component of a module, and its name there."""
    head, _, rest = module.partition(".")
    component, name = (head, rest) if rest and head in components else ("", module)
    return component, name.removeprefix(ROOT)


def _scale(config: Config, name: str) -> float:
    name = parameter_of(name) if is_parameter(config, name) else name
    # The field is `lora_alpha` for LoRA, and `alpha` for LoHa and LoKr.
    alpha_field = "lora_alpha" if "lora_alpha" in config else "alpha"
    if config.get("peft_type") == "ADALORA":
        return _adaptive_scale(config, name)
    if not config.keys() & {"r", alpha_field}:
        return 1.0
    rank, alpha = (
        _number(_matching(config.get(pattern), name, config.get(field, _DEFAULT)))
        for field, pattern in (("r", "rank_pattern"), (alpha_field, "alpha_pattern"))
    )
    if rank is None or alpha is None or rank <= 0:
        return 1.0
    return alpha / (math.sqrt(rank) if config.get("use_rslora") is True else rank)


def _adaptive_scale(config: Config, name: str) -> float:
    """AdaLoRA's: over the rank that training began with, whatever is left; PEFT adds 1e-5 to it."""
    first = _number(config.get("init_r", _FIRST_RANK)) or _FIRST_RANK
    alpha = _number(config.get("lora_alpha", _DEFAULT)) or 0.0
    if alpha <= 0:
        patterns = config.get("rank_pattern")
        kept = (
            cast("Config", patterns).get(f"{name}.lora_E") if isinstance(patterns, dict) else None
        )
        alpha = sum(map(bool, cast("list[object]", kept))) if isinstance(kept, list) else first
    return alpha / (first + 1e-5)


def rank_of(config: Config, name: str) -> float:
    """Return the rank that a configuration gives a module of the model."""
    return _number(_matching(config.get("rank_pattern"), name, config.get("r", _DEFAULT))) or 1.0


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) < 2**53 else None  # infinity and NaN are not below


def _matching(patterns: object, name: str, default: object) -> object:
    for pattern, value in (cast("Config", patterns) if isinstance(patterns, dict) else {}).items():
        if _is_match(pattern, name):
            return value
    return default


def _is_match(pattern: str, name: str, *, whole: bool = False) -> bool:
    """Whether a pattern is a name, or, if not the whole of it is asked for, its end after a dot."""
    if _PLAIN.fullmatch(pattern) and not whole:
        return _plain(pattern).match(name) is not None
    try:
        return matches(pattern, name, whole=whole)
    except ValueError as error:
        raise FormatError(
            f"the configuration tells modules by the pattern `{pattern}`, which {error}; "
            "save the file with one entry a module, or with alphas",
            target=name,
        ) from None


@lru_cache(maxsize=4096)
def _plain(pattern: str) -> re.Pattern[str]:
    """A pattern without quantifiers, on which Python's own engine cannot lose itself."""
    return re.compile(rf"(.*\.)?({pattern})$")


def _tokens(config: Config, name: str) -> tuple[int, ...]:
    """The rows of an embedding that are trained anew; a list counts for every embedding."""
    indices = config.get("trainable_token_indices", config.get("token_indices"))
    if isinstance(indices, dict):
        entries = cast("Config", indices)
        indices = next((v for k, v in entries.items() if name == k or name.endswith(f".{k}")), None)
    found = cast("list[object]", indices) if isinstance(indices, list) else []
    return tuple(one for one in found if isinstance(one, int))


def _on_input(config: Config, name: str) -> bool | None:
    """Whether IA3 multiplies a module's inputs; PEFT takes a list as ends of names."""
    those = config.get("feedforward_modules")
    if isinstance(those, list):
        return any(
            isinstance(one, str) and name.endswith(one) for one in cast("list[object]", those)
        )
    return _is_match(those, name, whole=True) if isinstance(those, str) else None
