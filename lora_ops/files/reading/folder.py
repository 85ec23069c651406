"""A folder as diffusers writes it: one subfolder a component, or the folder of one component."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import cast

from ...errors import FormatError
from ..base import FileSource, is_file, read_errors
from ..quantised.source import decoded
from .config import CONFIG, read_config
from .joined import JoinedSource
from .sharded import open_sharded
from .single import open_file

#: Subfolders of a pipeline that are opened, which are also the prefixes of their keys.
COMPONENTS = (
    "unet",
    "transformer",
    "transformer_2",
    "text_encoder",
    "text_encoder_2",
    "text_encoder_3",
    "text_encoder_4",
    "vae",
)

#: Where PEFT's folders give ranks and alphas; an opened one has the text under this name as metadata.
ADAPTER_CONFIG = "adapter_config.json"

# Class named in a component's config.json -> component.
_CLASSES = (
    ("UNet2DConditionModel", "unet"),
    ("*Transformer2DModel", "transformer"),
    ("*Transformer3DModel", "transformer"),
    ("CLIPTextModel*", "text_encoder"),
    ("T5EncoderModel", "text_encoder"),
    ("UMT5EncoderModel", "text_encoder"),
    ("AutoencoderKL*", "vae"),
)

# Names of the weights, best first: full precision before half, one file before many.
_STEMS = ("diffusion_pytorch_model", "model", "adapter_model", "pytorch_lora_weights")
_ENDINGS = (
    ".safetensors",
    ".safetensors.index.json",
    ".bf16.safetensors",
    ".safetensors.index.bf16.json",
    ".bf16.safetensors.index.json",
    ".fp16.safetensors",
    ".safetensors.index.fp16.json",
    ".fp16.safetensors.index.json",
)
_PICKLED = ("diffusion_pytorch_model.bin", "pytorch_model.bin", "adapter_model.bin")
_WEIGHTS = (*(stem + ending for ending in _ENDINGS for stem in _STEMS), *_PICKLED)

# What PEFT calls its weights, and the first part of each of their keys.
_OF_PEFT = ("adapter_model.safetensors", "adapter_model.bin")
_PEFT_ROOT = "base_model."


def open_folder(path: str | Path) -> JoinedSource:
    """Open a diffusers pipeline, one component of it, or any folder with one file of weights.

    A component's keys get its name in front (`unet.down_blocks…`, `text_encoder_2.text_model…`);
    a folder that is no known component gives its keys as they are.

    Raises:
        FormatError: there are no weights in it, or it is not clear which are meant.
    """
    folder = Path(path)
    parts = [(name, folder / name) for name in COMPONENTS]
    found = [(name, file) for name, part in parts if (file := _weights(part)) is not None]
    if is_file(folder / "model_index.json") or found:
        if not found:
            raise FormatError(
                f"none of its components has weights ({', '.join(COMPONENTS)}); "
                "the download was probably not finished",
                path=folder,
            )
        return _join(folder, found)
    parts = [(_component(folder), _weights(folder) or _only_file(folder))]
    config = folder / ADAPTER_CONFIG
    return _join(folder, parts, config if is_file(config) else None)


def is_peft_folder(path: str | Path) -> bool:
    """Whether a folder is one adapter, as PEFT writes it: its weights and their configuration."""
    folder = Path(path)
    return is_file(folder / ADAPTER_CONFIG) and any(is_file(folder / name) for name in _OF_PEFT)


def governed(source: FileSource) -> FileSource:
    """Return an opened file with the configuration beside it, where both are PEFT's.

    Without it the scale is not in the file. What only lies beside one has another name, or keys
    that are not PEFT's, and stays as it is.

    Raises:
        FormatError: The configuration cannot be read.
    """
    path = Path(source.name)
    config = path.with_name(ADAPTER_CONFIG)
    if path.name not in _OF_PEFT or not is_file(config):
        return source
    keys = source.keys()
    if not any(key.startswith(_PEFT_ROOT) for key in keys):
        return source
    try:
        text = _text(config)
    except FormatError:
        source.close()
        raise
    routes = {key: (source, key) for key in keys}
    return JoinedSource(path, routes, (config,), {ADAPTER_CONFIG: text})


def _join(
    folder: Path, parts: Sequence[tuple[str, Path]], config: Path | None = None
) -> JoinedSource:
    routes: dict[str, tuple[FileSource, str]] = {}
    with contextlib.ExitStack() as stack:
        for name, file in parts:
            opening = open_sharded if file.suffix == ".json" else open_file
            source = stack.enter_context(decoded(opening(file)))
            prefix, keys = f"{name}." if name else "", source.keys()
            routes |= {prefix + key: (source, key) for key in keys}
        text = "" if config is None else _text(config)
        stack.pop_all()
    if config is None:
        return JoinedSource(folder, routes)
    return JoinedSource(folder, routes, (config,), {ADAPTER_CONFIG: text})


def _text(path: Path) -> str:
    try:
        with read_errors(path):
            return path.read_text("utf-8")
    except ValueError as error:
        raise FormatError(f"cannot be read as text: {error}", path=path) from error


def _weights(folder: Path) -> Path | None:
    return next((file for name in _WEIGHTS if is_file(file := folder / name)), None)


def _only_file(folder: Path) -> Path:
    with read_errors(folder):
        files = sorted(folder.glob("*.safetensors"))
    if len(files) != 1:
        names = ", ".join(f"`{file.name}`" for file in files[:5])
        what = f"several files of weights ({names})" if files else "no weights that we know"
        raise FormatError(f"the folder holds {what}; give the file itself", path=folder)
    return files[0]


def _component(folder: Path) -> str:
    """The component by the folder's name, else by the class in its config; "" if neither tells."""
    with read_errors(folder):
        name = folder.resolve().name
    if name in COMPONENTS:
        return name
    classes = _config_classes(folder / CONFIG)
    pairs = [(cls, pattern, part) for cls in classes for pattern, part in _CLASSES]
    return next((part for cls, pattern, part in pairs if fnmatchcase(cls, pattern)), "")


def _config_classes(path: Path) -> list[str]:
    """Classes that a config names: diffusers' `_class_name`, transformers' `architectures`."""
    config = read_config(path)
    architectures = config.get("architectures")
    named: list[object] = [config.get("_class_name")]
    named += cast("list[object]", architectures) if isinstance(architectures, list) else []
    return [name for name in named if isinstance(name, str)]
