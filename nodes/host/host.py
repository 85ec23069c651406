"""Everything that is asked of ComfyUI; `computed.py`, `recording.py` and `scheduled.py` have what is handed to it.

No file of this pack but these and `model_files` imports `comfy` or `folder_paths`.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import comfy.lora
import comfy.lora_convert
import comfy.model_management
import comfy.utils
import folder_paths
import torch
from comfy.model_patcher import get_key_weight
from torch import Tensor

if TYPE_CHECKING:
    from comfy.model_patcher import ModelPatcher
    from comfy.sd import CLIP

    from ...lora_ops import Placement
    from ..apply.patch_places import Place

LORAS, CHECKPOINTS, DIFFUSION_MODELS = "loras", "checkpoints", "diffusion_models"
SAFETENSORS, GGUF = ".safetensors", ".gguf"
CONTROLNETS = "controlnet"
# A kind that the host does not know: see `model_files.name_activations`.
ACTIVATIONS = "activations"
# Under this a model knows that LoRAs act on it for a part of the steps.
SCHEDULE = "schedule"
# What a GPU should have free before work on it begins, in bytes.
_ROOM = 2 << 30


def file_names(*folders: str) -> list[str]:
    """The files that the host lists in its model folders, by name, without repeats; of models GGUF files too."""
    names = (name for folder in folders for name in _listed(folder))
    return list(dict.fromkeys(names))


def _listed(folder: str) -> Iterator[str]:
    yield from folder_paths.get_filename_list(folder)
    if folder in (CHECKPOINTS, DIFFUSION_MODELS):  # which the host itself does not list
        for root in folder_paths.get_folder_paths(folder):
            found, _ = folder_paths.recursive_search(root, [".git"])
            yield from sorted(name for name in found if name.lower().endswith(GGUF))


def file_path(name: str, *folders: str) -> Path:
    """Where a file of the host's lists lies.

    Raises:
        FileNotFoundError: No such file is in those folders, or the name leads out of them.
    """
    for folder in folders[:-1]:
        if found := folder_paths.get_full_path(folder, name):
            return Path(found)
    return Path(folder_paths.get_full_path_or_raise(folders[-1], name))


def fingerprint(name: str | None, *folders: str) -> str:
    """Return a value that changes with a file of the host's lists: the host itself does not look.

    Args:
        name: The file's name; None where another node gives it, which the host does not tell here:
            then the value stands for all files in the folders. Those in the output folder are
            left out, for nodes write new ones and change none: what they write would count as a change.
        folders: The host's folders to look in.
    """
    names = file_names(*folders) if name is None else [name]
    made = Path(folder_paths.get_output_directory())
    told = hashlib.sha256()
    for one in names:
        with contextlib.suppress(FileNotFoundError):  # deleted since it was listed
            path = file_path(one, *folders)
            if name is None and path.is_relative_to(made):
                continue
            status = path.stat()
            told.update(f"{one}:{status.st_mtime_ns}:{status.st_size}\n".encode())
    return told.hexdigest()


def output_path(prefix: str, default: str, suffix: str = SAFETENSORS, content: str = "") -> Path:
    """The next free name under a prefix in the output folder, or that of some content; the folder is made.

    Args:
        prefix: As in the host's save nodes: folders and the beginning of a name.
        default: The prefix to take if it is empty.
        suffix: What the name ends in.
        content: A text that stands for the content, such as a hash; empty: a number, and none is taken twice.

    Raises:
        ArgumentError: The prefix leads out of the output folder.
    """
    folder, name, counter = _place(prefix, default)
    return folder / (f"{name}_{content}{suffix}" if content else f"{name}_{counter:05}_{suffix}")


def _place(prefix: str, default: str) -> tuple[Path, str, int]:
    """Folder, beginning of the name and next free number that the host gives for a prefix."""
    from ...lora_ops import ArgumentError

    chosen = Path(prefix.strip() or default)
    if chosen.anchor or ".." in chosen.parts:
        raise ArgumentError(
            f"prefix `{prefix}` leads out of the output folder; give a name, or folders and a name: "
            f"`{default}`"
        )
    root = folder_paths.get_output_directory()
    folder, name, counter, _, _ = folder_paths.get_save_image_path(str(chosen), root)
    return Path(folder), name, counter


def listed_name(path: Path, *folders: str) -> str:
    """What the host's lists call a file in output/loras, output/checkpoints and the like.

    One in none of the folders has its path for a name: its bare name may be another file's in a list.
    """
    first, *inside = path.relative_to(folder_paths.get_output_directory()).parts
    return "/".join(inside) if first in folders else str(path)


def progress() -> Callable[[int, int, str], None]:
    """A bar on the running node, and the place where Cancel is obeyed."""
    bar = comfy.utils.ProgressBar(1)

    def step(done: int, total: int, name: str) -> None:
        del name
        comfy.model_management.throw_exception_if_processing_interrupted()
        bar.update_absolute(done, total)

    return step


def placement() -> Placement:
    """Where the host wants tensor work done, within the memory that is free there."""
    from ...lora_ops import place

    device = comfy.model_management.get_torch_device()
    if device.type not in ("cuda", "mps"):
        return place("cpu")
    comfy.model_management.free_memory(_ROOM, device)
    free = comfy.model_management.get_free_memory(device)
    return place(str(device), memory=max(int(0.7 * free), 1))


def make_room(size: int, model: ModelPatcher) -> None:
    """Have that many bytes free where a model computes, if that is a GPU which the host fills ahead."""
    device = model.load_device
    if device.type != "cpu" and not getattr(model, "is_dynamic", bool)():
        comfy.model_management.free_memory(size, device)


def convert_lora(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of an adapter under the names that the host gives to a few odd files."""
    return comfy.lora_convert.convert_lora(dict(tensors))


def key_map(model: ModelPatcher | None, clip: CLIP | None) -> dict[str, Place]:
    """All names by which a LoRA may call the weights of these models, and the weights."""
    names: dict[str, Place] = {}
    if model is not None:
        names = comfy.lora.model_lora_keys_unet(model.model, names)
    if clip is not None:
        names = comfy.lora.model_lora_keys_clip(clip.cond_stage_model, names)
    return names


def patches(tensors: Mapping[str, Tensor], places: Mapping[str, Place]) -> dict[Place, Any]:
    """The host's own patches for the modules of these names, by weight.

    Args:
        tensors: On the CPU; those that are not contiguous are copied, as the host gathers their bytes.
        places: The weight, or rows of it, by the module's name.
    """
    whole = {key: tensor.contiguous() for key, tensor in tensors.items()}
    return comfy.lora.load_lora(whole, places, log_missing=False)


def reshapes(patch: Any) -> bool:
    """Whether one of the host's patches gives its weight another shape."""
    shape = getattr(patch, "calculate_shape", None)
    return shape is not None and shape("") is not None


def swap_halves(change: Tensor) -> Tensor:
    """A change of a scale and a shift for a weight that holds the shift first."""
    return comfy.utils.swap_scale_shift(change)


def shapes(patcher: ModelPatcher) -> dict[str, tuple[int, ...]]:
    """Shape of every parameter by key, as the patches that are on it leave it.

    A quantised weight has the shape of the weight that it stands for; one with two names has both.
    """
    parameters = dict(patcher.model.named_parameters(remove_duplicate=False))
    return {key: _shape(patcher, key, weight) for key, weight in parameters.items()}


def shape_of(patcher: ModelPatcher, key: str) -> tuple[int, ...]:
    """The same of one."""
    return _shape(patcher, key, comfy.utils.get_attr(patcher.model, key))


def _shape(patcher: ModelPatcher, key: str, weight: Tensor) -> tuple[int, ...]:
    if key not in patcher.patches:
        return tuple(weight.shape)
    return tuple(comfy.lora.calculate_shape(patcher.patches[key], weight, key))


def patched(
    patcher: Any, groups: Mapping[float, Mapping[Place, Any]], metadata: Mapping[str, str]
) -> Any:
    """A clone of a MODEL or CLIP with patches, each group at its strength.

    Args:
        patcher: Left as it is.
        groups: Patches by place, by strength.
        metadata: The adapter's, for nodes that ask the model what is on it.
    """
    clone = patcher.clone()
    for strength, group in groups.items():
        clone.add_patches(dict(group), strength)
    attach = getattr(getattr(clone, "patcher", clone), "set_attachments", None)
    if metadata and attach is not None:
        attach("lora_metadata", dict(metadata))
    return clone


def noted(model: ModelPatcher, name: str, more: Sequence[Any]) -> None:
    """Note on a MODEL of one's own what was done to it; its clones know it too."""
    model.set_attachments(f"lorakit_{name}", (*notes(model, name), *more))


def notes(model: ModelPatcher, name: str) -> tuple[Any, ...]:
    """What was noted on a MODEL under a name."""
    return model.get_attachment(f"lorakit_{name}") or ()


def quantisation(patcher: ModelPatcher, key: str) -> str:
    """How a weight is stored that only the pack which loaded it can read: Q4_K, Params4bit, ….

    Empty where it holds numbers: what the host itself quantises does, whatever it is stored as.
    """
    weight = comfy.utils.get_attr(patcher.model, key)
    if weight.is_floating_point():
        return ""
    # ComfyUI-GGUF's tensors name their kind.
    return getattr(getattr(weight, "tensor_type", None), "name", "") or type(weight).__name__


def prediction(patcher: ModelPatcher) -> str:
    """What a diffusion model predicts, by the host's name for it: EPS, V_PREDICTION, FLOW, …."""
    return getattr(getattr(patcher.model, "model_type", None), "name", "")


def injections(patcher: ModelPatcher) -> list[str]:
    """What acts on a model's layers as they run, by the host's names for it."""
    return [*patcher.injections, *dict.fromkeys(notes(patcher, SCHEDULE))]


@torch.no_grad()
def effective_weight(patcher: ModelPatcher, key: str, device: torch.device | str = "cpu") -> Tensor:
    """A weight with its own conversion and all patches, float32, never rounded back.

    Args:
        patcher: The model; it may be loaded in part, on any device.
        key: The weight's key.
        device: Where it is wanted, and patches are added.

    Returns:
        Memory of the caller's own.
    """
    weight, _, convert = get_key_weight(patcher.model, key)
    # The host keeps what a weight was before it patched it in place: before hooks, and before all.
    if key in patcher.backup:
        weight = patcher.backup[key].weight
    elif key in patcher.hook_backup:
        weight = patcher.hook_backup[key][0]
    own = weight.detach()
    if hasattr(own, "tensor_type"):  # copies of ComfyUI-GGUF's tensors lose what they are
        own = own.as_subclass(Tensor)
    if convert is not None:
        # By dtype alone: whatever else is asked at once, a quantised weight first becomes what the
        # model computes in, rounded.
        own = convert(own.to(torch.float32), inplace=False)
    own = own.to(device).to(torch.float32, copy=True)
    records = patcher.patches.get(key, ())
    return comfy.lora.calculate_weight(records, own, key, intermediate_dtype=torch.float32)


def is_difference(patcher: ModelPatcher) -> bool:
    """Whether a model is one less another, as the host's subtracting nodes leave it."""
    return any(
        isinstance(value, list) and strength == -factor
        for records in patcher.patches.values()
        for strength, value, factor, *_ in records
    )
