"""Float8 without scales: torch's own cast, and what that would lose is an error."""

from __future__ import annotations

import pytest
import torch

from lorakit.lora_ops.errors import NonFiniteError
from lorakit.lora_ops.files.quantised.storages import SCHEMES


def test_codes_are_the_cast() -> None:
    weight = torch.randn(40, 24, generator=torch.Generator().manual_seed(0))
    encoder = SCHEMES["fp8"].encoder("a.weight", weight.shape)
    found = [encoder.encode(weight[at : at + 8], at) for at in (8, 0, 16, 24, 32)]
    cast = weight.to(torch.float8_e4m3fn)
    codes = torch.cat([found[n][0].view(torch.uint8) for n in (1, 0, 2, 3, 4)])
    assert torch.equal(codes, cast.view(torch.uint8))
    assert torch.equal(torch.cat([found[n][1] for n in (1, 0, 2, 3, 4)]), cast.float())
    assert encoder.norms[1] == pytest.approx(float((cast.float() - weight).norm()), rel=1e-5)
    assert not list(SCHEMES["fp8"].beside(encoder))


@pytest.mark.parametrize("number", [500.0, -1e6, torch.nan, torch.inf])
def test_what_it_does_not_hold_is_an_error(number: float) -> None:
    weight = torch.full((2, 4), number)
    encoder = SCHEMES["fp8"].encoder("a.weight", weight.shape)
    with pytest.raises(NonFiniteError, match=r"`a.weight` holds numbers .* ends at 448"):
        encoder.encode(weight, 0)
