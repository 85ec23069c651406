"""ComfyUI makes of the sum what it is: base plus each LoRA times its strength, for all that they change."""

from __future__ import annotations

from pathlib import Path

import comfy_host
import torch
from commands import lorakit_here
from keys.adapters import spelled
from safetensors.torch import save_file
from test_comfy_loading import CASES, NO_ADAPTER, UNET

CASE = CASES["sd15"]
TE = "cond_stage_model.transformer."
STRENGTHS = (0.7, -0.3, 0.5)


def changed() -> dict[str, tuple[int, ...]]:
    """Linears and convolutions of the UNet and of the text encoder."""
    return {
        name.removesuffix(".weight"): shape
        for name, shape in CASE.shapes.items()
        if name.endswith(".weight")
        and len(shape) > 1
        and (name.startswith(UNET) or "encoder.layers" in name)
    }


def module(name: str, format: str) -> str:
    """What a file of this format calls the weight: the tiny UNet has no names of diffusers'."""
    target = name.removeprefix("model.").replace(TE, "text_encoders.clip_l.transformer.")
    return target if format == "comfy" else spelled(target, False, True).replace("_te1_", "_te_")


def test_one_file_does_what_three_do(tmp_path: Path) -> None:
    """Ranks, alphas, dtypes and names differ, and the second one has no text encoder."""
    generator = torch.Generator().manual_seed(0)
    base = {n: 0.1 * torch.randn(s, generator=generator) for n, s in CASE.shapes.items()}
    tuned = {name: weight.double() for name, weight in base.items()}
    words = []
    kinds = (("kohya", 3, 1.5), ("comfy", 4, 8.0), ("kohya", 2, None))
    for (format, rank, alpha), strength in zip(kinds, STRENGTHS, strict=True):
        path = tmp_path / f"{rank}.safetensors"
        up_end, down_end = ("lora_up", "lora_down") if format == "kohya" else ("lora_B", "lora_A")
        found = {}
        for name, shape in changed().items():
            if format == "comfy" and not name.startswith(UNET):
                continue
            up = torch.randn(shape[0], rank, generator=generator) / 8
            down = torch.randn(rank, *shape[1:], generator=generator) / 8
            scale = 1.0 if alpha is None else alpha / rank
            delta = (up.double() @ down.double().flatten(1)).reshape(shape)
            tuned[f"{name}.weight"] += strength * scale * delta
            key = module(name, format)
            found[f"{key}.{up_end}.weight"] = up.reshape(*up.shape, *(1 for _ in shape[2:]))
            found[f"{key}.{down_end}.weight"] = down
            if alpha is not None:
                found[f"{key}.alpha"] = torch.tensor(alpha)
        save_file(found, path)
        words.append(f"{path}:{strength}")
    save_file(base, tmp_path / "base.safetensors")
    save_file({k: v.float() for k, v in tuned.items()}, tmp_path / "tuned.safetensors")
    for format in ("kohya", "comfy"):
        output = tmp_path / f"sum-{format}.safetensors"
        names = ("--format", format, "--reference", tmp_path / "base.safetensors")
        run = lorakit_here("add", *words, "-o", output, *names)
        assert run.status == 0, run.err
    question = {
        "loader": CASE.loader,
        "te": CASE.te,
        "base": str(tmp_path / "base.safetensors"),
        "tuned": str(tmp_path / "tuned.safetensors"),
        "loras": {
            name: str(tmp_path / f"{name}.safetensors") for name in ("sum-kohya", "sum-comfy", "3")
        },
    }
    with comfy_host.started() as host:
        answer = host.ask("apply_loras", question)
    weights = {key for key in answer["changed"] if not key.endswith(NO_ADAPTER)}
    assert len(weights) == len(changed())
    for name in ("sum-kohya", "sum-comfy"):
        found = answer["loras"][name]
        assert found["complaints"] == []
        assert found["left"].keys() == weights
        for key, left in found["left"].items():  # it holds text encoders in float16
            assert left < (1e-5 if key.startswith("diffusion_model.") else 5e-3)
    assert max(answer["loras"]["3"]["left"].values()) > 0.1, "one of the three is not the sum"
