"""A whole checkpoint in each format of ComfyUI's, UNet, both text encoders and VAE: what its loader makes of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import comfy_host
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lorakit.lora_ops import DictSource, extract, open_source, save_adapter, verify
from lorakit.lora_ops.models.architectures import parameters

UNET, CLIP_L = "model.diffusion_model.", "conditioner.embedders.0.transformer.text_model."
CLIP_G, VAE = "conditioner.embedders.1.model.", "first_stage_model."
BLOCK = f"{UNET}input_blocks.4.1.transformer_blocks.0."
#: (rows, columns) of what is stored with scales; those of an odd number of rows have a bias, which tells it.
MATRICES = {
    f"{BLOCK}attn1.to_q": (256, 512),
    f"{BLOCK}attn2.to_k": (256, 2048),
    f"{BLOCK}ff.net.0.proj": (250, 512),
    f"{UNET}label_emb.0.0": (256, 2816),
    f"{CLIP_L}encoder.layers.0.self_attn.q_proj": (250, 768),
    f"{CLIP_L}encoder.layers.0.mlp.fc1": (256, 768),
    f"{CLIP_G}transformer.resblocks.0.mlp.c_fc": (250, 1280),
    f"{CLIP_G}transformer.resblocks.0.attn.out_proj": (256, 1280),
}
BIASED = [layer for layer, (rows, _) in MATRICES.items() if rows % 16]
#: What stays as it is.
WHOLE = {
    f"{UNET}input_blocks.0.0.weight": (320, 4, 3, 3),
    f"{UNET}input_blocks.4.0.in_layers.2.weight": (48, 40, 3, 3),
    f"{BLOCK}norm1.weight": (512,),
    f"{CLIP_L}embeddings.token_embedding.weight": (60, 768),
    f"{CLIP_G}transformer.resblocks.0.attn.in_proj_weight": (96, 1280),
    f"{CLIP_G}text_projection": (40, 1280),
    f"{CLIP_G}ln_final.weight": (1280,),
    f"{VAE}decoder.conv_in.weight": (16, 4, 3, 3),
    f"{VAE}decoder.mid.attn_1.q.weight": (16, 16, 1, 1),
}
ROTATED = {"per_channel": True, "convrot": True, "convrot_groupsize": 256}
#: Format, options of its layout, what else the configuration says.
FORMATS: list[tuple[str, dict[str, object], dict[str, object]]] = [
    ("float8_e4m3fn", {"scale": "recalculate"}, {}),
    ("float8_e5m2", {"scale": "recalculate"}, {}),
    ("mxfp8", {}, {}),
    ("nvfp4", {}, {}),
    ("int8_tensorwise", {}, {}),
    ("int8_tensorwise", ROTATED, {"convrot": True}),
    ("convrot_w4a4", {}, {}),
    ("asym_w4a8_int8", {}, {}),
]


@pytest.fixture(scope="module")
def host() -> Iterator[comfy_host.Host]:
    with comfy_host.started() as host:
        yield host


def plain() -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(8)
    shapes = {f"{layer}.weight": shape for layer, shape in MATRICES.items()}
    shapes |= {f"{layer}.bias": (MATRICES[layer][0],) for layer in BIASED}
    return {
        key: torch.randn(shape, generator=draw) * 0.03 for key, shape in (shapes | WHOLE).items()
    }


@pytest.mark.parametrize(("format", "options", "told"), FORMATS)
def test_a_checkpoint_of_sdxl(
    host: comfy_host.Host,
    tmp_path: Path,
    format: str,
    options: dict[str, object],
    told: dict[str, object],
) -> None:
    tensors = plain()
    names = ("plain", "written", "truth", "stored", "read", "lora")
    source, written, truth, stored, loaded, lora = (
        str(tmp_path / f"{name}.safetensors") for name in names
    )
    stems = tuple(f"{layer}." for layer in MATRICES)
    save_file({key: t for key, t in tensors.items() if key.startswith(stems)}, source)
    asked = {"do": "write", "source": source, "output": written, "truth": truth}
    host.ask("quantised_files", {**asked, "format": format, "options": options, "told": told})
    whole = {key: tensors[key].half() for key in WHOLE}
    save_file({**whole, **load_file(written)}, stored)
    asked = {"do": "read", "source": stored, "truth": loaded, "shapes": MATRICES}
    host.ask("quantised_files", asked)
    with open_source(stored) as model:
        assert set(model.keys()) == set(tensors)
        expected = load_file(loaded)
        assert len(expected) == len(MATRICES)
        for key, numbers in expected.items():
            assert torch.equal(model.tensor(key), numbers), key
        for key, numbers in whole.items():
            assert torch.equal(model.tensor(key), numbers), key
        # It is known for what it is, text encoders and all, and taken for what it stands for.
        same = parameters(DictSource({key: tensors[key] for key in model.keys()}))  # noqa: SIM118
        assert list(parameters(model)) == list(same)
        tuned = {key: model.tensor(key).float() for key in model.keys()}  # noqa: SIM118
        for key in expected:
            tuned[key] += tuned[key].norm() / 400 * torch.ones(len(tuned[key]), 1)
        adapter, report = extract(model, DictSource(tuned), 1)
        assert len(adapter.layers) == len(MATRICES)
        assert {target.partition(".")[0] for target in adapter.layers} == {
            *("diffusion_model", "text_encoders")
        }
        save_adapter(adapter, lora)
        with open_source(lora) as saved:
            error = verify(model, DictSource(tuned), saved).error
            assert error == pytest.approx(report.error, rel=1e-3, abs=1e-5)
