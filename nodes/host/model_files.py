"""What is asked of ComfyUI about whole models: where their files lie, and loading one that is in memory."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import comfy.cli_args
import comfy.controlnet
import comfy.sd
import folder_paths
import torch
from torch import Tensor

from . import host


def name_activations() -> None:
    """Tell the host of files of activations: in models/activations, and where nodes write them."""
    for root in (folder_paths.models_dir, folder_paths.get_output_directory()):
        folder_paths.add_model_folder_path(host.ACTIVATIONS, str(Path(root) / host.ACTIVATIONS))
    folder_paths.folder_names_and_paths[host.ACTIVATIONS][1].add(host.SAFETENSORS)


def model_folders(*folders: str) -> list[Path]:
    """Where the host's files of these kinds lie: its folders, and those within that it follows links to."""
    roots = [Path(root) for folder in folders for root in folder_paths.get_folder_paths(folder)]
    lying = [host.file_path(name, *folders).parent for name in host.file_names(*folders)]
    return [folder for folder in dict.fromkeys([*roots, *lying]) if folder.is_dir()]


def input_names(*suffixes: str) -> list[str]:
    """The files in the host's input folder whose names end like this."""
    names = sorted(one.name for one in _input_folder().glob("*") if one.is_file())
    return [name for name in names if name.lower().endswith(suffixes)]


def input_path(name: str) -> Path:
    """Where a file of the input folder lies.

    Raises:
        FileNotFoundError: There is none of that name.
    """
    if name not in input_names(""):
        raise FileNotFoundError(f"no file '{name}' in the input folder")
    return _input_folder() / name


def _input_folder() -> Path:
    return Path(folder_paths.get_input_directory())


def loaded(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> tuple[Any, Any, Any]:
    """The MODEL, CLIP and VAE of a checkpoint in memory; None for a CLIP that it has not.

    Raises:
        ArgumentError: The host knows no such model.
    """
    from ...lora_ops import ArgumentError

    folders = folder_paths.get_folder_paths("embeddings")
    found = comfy.sd.load_state_dict_guess_config(
        dict(tensors), embedding_directory=folders, metadata=dict(metadata)
    )
    if found is None:
        raise ArgumentError("ComfyUI knows no model of this kind; merge into a file in its place")
    model, clip, vae, *_ = found
    return model, clip, vae


def loaded_controlnet(path: Path) -> Any:
    """The CONTROL_NET of a file.

    Raises:
        ArgumentError: The host knows no such ControlNet.
    """
    from ...lora_ops import ArgumentError

    found = comfy.controlnet.load_controlnet(str(path))
    if found is None:
        raise ArgumentError("ComfyUI knows no ControlNet of this kind", path=path)
    return found


def stored(patcher: Any, inside: str = "") -> dict[str, Tensor]:
    """What a loaded model holds, by key, as it lies in memory: weights, and the scales beside them.

    Args:
        patcher: The model; patches are not looked at.
        inside: What keys begin with.
    """
    state: Mapping[str, Tensor] = patcher.model.state_dict()
    return {key: one.detach() for key, one in state.items() if key.startswith(inside)}


def stored_beside(clip: Any) -> dict[str, Tensor]:
    """What the host saves with text encoders beside their weights: words of a tokenizer."""
    return dict(clip.tokenizer.state_dict())


def stored_vae(vae: Any) -> dict[str, Tensor]:
    """What a VAE holds, by key."""
    return {key: one.detach() for key, one in vae.get_sd().items()}


def in_checkpoint(
    model: Any,
    unet: Mapping[str, Tensor],
    clip: Mapping[str, Tensor] | None,
    vae: Mapping[str, Tensor] | None,
) -> dict[str, Tensor]:
    """The same tensors by the names that they have in a checkpoint, some of them joined, and flags.

    Args:
        model: Whose kind decides on the names.
        unet: Of the diffusion model, by key.
        clip: Of text encoders.
        vae: Of a VAE.
    """
    found: dict[str, Tensor] = model.model.state_dict_for_saving(
        dict(unet),
        clip_state_dict=None if clip is None else dict(clip),
        vae_state_dict=None if vae is None else dict(vae),
    )
    sampling = model.get_model_object("model_sampling")
    if "v_pred" in found and getattr(sampling, "zsnr", False):
        found["ztsnr"] = torch.tensor([])
    if host.prediction(model) == "V_PREDICTION_EDM":
        for name in ("sigma_max", "sigma_min"):
            found[f"edm_vpred.{name}"] = torch.tensor(getattr(sampling, name)).float()
    return found


def says_nothing() -> bool:
    """Whether the host was started with the wish that files hold no graphs."""
    return bool(comfy.cli_args.args.disable_metadata)
