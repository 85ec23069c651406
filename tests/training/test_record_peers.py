"""Recording a diffusers model: each layer has the name by which an extraction of it asks."""

from __future__ import annotations

import pytest
import torch

from lorakit.lora_ops import DictSource, extract, record

diffusers = pytest.importorskip("diffusers", reason="needs diffusers")


def unet(seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    return diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=24,
        norm_num_groups=8,
        attention_head_dim=8,
    )


def flux() -> torch.nn.Module:
    torch.manual_seed(0)
    return diffusers.FluxTransformer2DModel(
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=24,
        pooled_projection_dim=12,
        axes_dims_rope=(4, 6, 6),
    )


def pair(model: torch.nn.Module) -> list[DictSource]:
    """Its weights, and others of a fine-tune."""
    base = {key: one.detach().clone() for key, one in model.state_dict().items()}
    tuned = {key: one + 0.02 * torch.randn_like(one) for key, one in base.items()}
    return [DictSource(base), DictSource(tuned)]


@pytest.mark.parametrize("seed", [0, 1])
def test_each_layer_of_a_unet_is_found_by_the_extraction(seed):
    model = unet(seed)
    with record(model) as recorder, torch.no_grad():
        model(torch.randn(2, 4, 8, 8), torch.tensor(3), torch.randn(2, 5, 24))
    _, report = extract(*pair(model), 2, activations=DictSource(recorder.tensors()))
    lost = [one.target for one in report.layers if one.weighted is None]
    assert len(report.layers) > 40
    assert lost == []


def test_of_projections_that_are_fused_the_input_is_that_of_each():
    model = flux()
    with record(model) as recorder, torch.no_grad():
        model(
            hidden_states=torch.randn(1, 6, 4),
            encoder_hidden_states=torch.randn(1, 3, 24),
            pooled_projections=torch.randn(1, 12),
            timestep=torch.tensor([0.5]),
            img_ids=torch.zeros(6, 3),
            txt_ids=torch.zeros(3, 3),
        )
    _, report = extract(*pair(model), 2, activations=DictSource(recorder.tensors()))
    known = {one.target for one in report.layers if one.weighted is not None}
    assert "diffusion_model.double_blocks.0.img_attn.qkv" in known
    assert "diffusion_model.single_blocks.0.linear1" in known
    assert known == {one.target for one in report.layers}
