"""A running average of the weights: the network one samples from, smoother than the one being trained (LDM sec. E).
Built in notebook 07.
"""

from contextlib import contextmanager

import torch
from torch import nn


def ema_decay(updates: int, max_decay: float = 0.9999) -> float:
    """Decay of update number `updates` (1, 2, ...): min(max_decay, (1 + n) / (10 + n)), i.e. 2/11, 3/12, ...

    The ramp makes the average forget the random start; late updates weigh about the last 1 / (1 - max_decay) steps.
    """
    return min(max_decay, (1 + updates) / (10 + updates))


class EMA:
    """Averages of a module's trainable parameters, kept apart from the module.

    The released code averages the U-Net only; here the conditioner that trains with it is averaged too, since both
    halves of a trained pair belong together. Frozen parameters and buffers are left as they are.
    """

    def __init__(self, module: nn.Module, max_decay: float = 0.9999):
        if not 0 <= max_decay < 1:
            raise ValueError(f"EMA: max_decay is from 0 to 1, without 1; got {max_decay}.")
        self.max_decay, self.updates = max_decay, 0
        self.averages = {name: p.detach().clone() for name, p in _trainable(module).items()}

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Move every average towards the module's present weights: average = decay * average + (1 - decay) * weight."""
        self.updates += 1
        parameters = _trainable(module)
        _check_alike(parameters, self.averages)
        weights = [parameters[name] for name in self.averages]
        # a straight line from the average to the weight, and a small part of it gone; all parameters in one call
        torch._foreach_lerp_(list(self.averages.values()), weights, 1 - ema_decay(self.updates, self.max_decay))

    @contextmanager
    def applied(self, module: nn.Module):
        """`with ema.applied(model): ...` runs the body with the averaged weights, then puts the trained ones back."""
        parameters = _trainable(module)
        trained = {name: p.detach().clone() for name, p in parameters.items()}
        # values change, not parameters: the optimizer, and a compiled network, keep what they hold
        _copy(self.averages, parameters)
        try:
            yield module
        finally:
            _copy(trained, parameters)

    def state_dict(self) -> dict:
        """{parameter name: average}; the count of updates is `updates`."""
        return dict(self.averages)

    def load_state_dict(self, averages: dict, updates: int) -> None:
        """Continue from saved averages of the same module."""
        _copy(averages, self.averages)
        self.updates = updates


def _trainable(module: nn.Module) -> dict:
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


@torch.no_grad()
def _copy(source: dict, target: dict) -> None:
    _check_alike(source, target)
    for name, value in target.items():
        value.copy_(source[name])


def _check_alike(source: dict, target: dict) -> None:
    """Raise ValueError for averages of another module: torch would repeat what is smaller."""
    if other := sorted(source.keys() ^ target.keys()):
        raise ValueError(f"EMA: only one of both modules trains {', '.join(other[:4])}{' ...' * (len(other) > 4)}.")
    for name, value in target.items():
        if source[name].shape != value.shape:
            raise ValueError(f"EMA: {name} has shape {tuple(value.shape)} here and {tuple(source[name].shape)} there.")
