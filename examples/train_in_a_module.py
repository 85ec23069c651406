"""Train a LoRA beside the layers of a live torch module, and save it for ComfyUI.

python examples/train_in_a_module.py OUTPUT
"""

import sys

import torch
from torch import nn

from lorakit.lora_ops import collect, eject, inject, save_adapter


def main(output: str) -> None:
    """Teach a small model what a changed copy of it does; print the loss before and after."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))
    x = torch.randn(256, 16)
    wanted = model(x).detach() + 0.1 * x.roll(1, dims=1)

    trained = inject(model, "all", rank=4, alpha=4)  # everything else is frozen
    optimiser = torch.optim.Adam((p for p in model.parameters() if p.requires_grad), lr=1e-2)
    losses: list[float] = []
    for _ in range(200):
        loss = nn.functional.mse_loss(model(x), wanted)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())

    adapter = collect(model, prefix="diffusion_model.")
    eject(model)  # the model is what it was, to the last bit
    save_adapter(adapter, output)
    print(f"layers {', '.join(trained)}: loss {losses[0]:.5f} to {losses[-1]:.5f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
