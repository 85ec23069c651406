"""Tucker's form of kernels against its definition, in float64."""

from __future__ import annotations

import pytest
import torch

from lorakit.lora_ops.linalg.tucker import inputs, outputs, tucker


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def product(found):
    return torch.einsum(
        "op,pq...,qi->oi...", found.up.double(), found.core.double(), found.down.double()
    )


def hosvd(kernel, rank):
    """The definition: leading left vectors of both unfoldings, no refinement."""
    wide = kernel.double()
    up = torch.linalg.svd(wide.flatten(1))[0][:, :rank]
    down = torch.linalg.svd(wide.transpose(0, 1).flatten(1))[0][:, :rank]
    core = torch.einsum("oi...,op,iq->pq...", wide, up, down)
    return torch.einsum("op,pq...,iq->oi...", up, core, down)


@pytest.mark.parametrize("shape", [(10, 8, 3, 3), (6, 14, 3, 1), (9, 9, 5)])
def test_unfoldings_are_by_channel(shape):
    kernel = normal(*shape)
    for o in range(shape[0]):
        assert torch.equal(outputs(kernel)[o], kernel[o].flatten())
    for i in range(shape[1]):
        assert torch.equal(inputs(kernel)[i], kernel[:, i].flatten())


@pytest.mark.parametrize("rank", [1, 3, 6])
@pytest.mark.parametrize("shape", [(10, 8, 3, 3), (6, 14, 3, 1)])
def test_it_is_no_worse_than_the_definition_without_refinement(shape, rank):
    kernel = normal(*shape)
    found = tucker(kernel, rank)
    left = float((kernel.double() - product(found)).norm())
    plain = float((kernel.double() - hosvd(kernel, rank)).norm())
    assert left <= plain + 1e-6
    assert found.kept == pytest.approx(float(kernel.double().norm()) ** 2 - left**2, rel=1e-5)


def test_the_refinement_gains():
    """Twin: without it this is the definition's own error."""
    gains = []
    for seed in range(6):
        kernel = normal(12, 12, 3, 3, seed=seed)
        plain = (kernel.double() - hosvd(kernel, 3)).norm()
        gains.append(float(plain - (kernel.double() - product(tucker(kernel, 3))).norm()))
    assert min(gains) > 1e-4


def test_all_channels_give_the_kernel():
    kernel = normal(6, 6, 3, 3)
    torch.testing.assert_close(product(tucker(kernel, 6)), kernel.double(), rtol=1e-5, atol=1e-5)


def test_a_kernel_of_low_rank_on_both_sides_comes_back():
    kernel = torch.einsum(
        "op,pqhw,qi->oihw", normal(20, 2), normal(2, 2, 3, 3, seed=1), normal(2, 16, seed=2)
    )
    found = tucker(kernel, 2)
    torch.testing.assert_close(product(found), kernel.double(), rtol=1e-4, atol=1e-4)


def test_a_side_of_lower_rank_than_the_other_stays_finite():
    """One output direction, many input directions."""
    kernel = torch.einsum("o,ihw->oihw", normal(8), normal(10, 3, 3, seed=1))
    found = tucker(kernel, 4)
    assert all(torch.isfinite(one).all() for one in (found.up, found.core, found.down))
    assert float((kernel.double() - product(found)).norm()) < float(kernel.norm())
