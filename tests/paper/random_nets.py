"""Networks with random weights, and whether they learn."""

import torch
from torch import nn


def randomize(net: nn.Module, std: float = 0.2) -> nn.Module:
    """The same net with random weights everywhere."""
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=std)
    return net


def awake(net: nn.Module) -> nn.Module:
    """The same net with all its zero layers, and all norms and biases, made random."""
    for parameter in net.parameters():
        if parameter.ndim == 1 or not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    return net


def learns(net: nn.Module, steps: int, *cond) -> bool:
    """Whether a few steps on four pictures halve the loss."""
    optimizer, x, losses = torch.optim.AdamW(net.parameters(), lr=3e-3), torch.randn(4, 3, 8, 8), []
    for _ in range(steps):
        loss = (net(x, torch.arange(4) * 200, *cond) - x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses[-1] < 0.5 * losses[0]


def all_heard(net: nn.Module, loss: torch.Tensor) -> bool:
    """Whether every weight gets a gradient; but for the biases of keys, which shift all scores and so no softmax."""
    loss.backward()
    silent = {key for key, p in net.named_parameters() if p.grad is None or p.grad.abs().max() == 0}
    return all(key.endswith("to_k.bias") for key in silent)
