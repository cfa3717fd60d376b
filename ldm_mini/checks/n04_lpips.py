"""Checks of notebook 04, continued: the whole of LPIPS as a module."""

from copy import deepcopy

import torch
import torch.nn.functional as F
from torch import nn

from .checking import CheckFailed, attempt, compare, passed
from .n04_perceptual_loss import unit
from .properties import fresh, own_randomness, same_dtype, same_gradient


class _Trunk(nn.Module):
    """Maps of an RGB picture; its dropout shows whether somebody forgot eval()."""

    def __init__(self, widths, draw):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, 2, 1) for a, b in zip((3, *widths), widths))
        self.drop = nn.Dropout(0.5)
        for p in self.parameters():
            p.data = draw(*p.shape) / 3

    def forward(self, x):
        maps = []
        for conv in self.convs:
            x = self.drop(conv(x).relu())
            maps.append(x)
        return maps


def lpips(make):
    """`make(net, heads, shift, scale)`: a module with forward(x, y): images (B,3,H,W) in [-1,1] -> distances (B,).

    net: images -> list of maps; heads: one (C,) tensor per map; shift, scale (3,): of the input.
    """
    draw = fresh()
    with own_randomness():
        for widths, shape in (((4, 6, 8), (2, 3, 16, 16)), ((5, 7), (3, 3, 8, 12))):
            shift, scale = 0.3 * draw(3), 0.3 + draw(3).sigmoid()
            _one_lpips(make, _Trunk(widths, draw), [draw(c).abs() for c in widths], shift, scale,
                       draw(*shape).tanh(), draw(*shape).tanh())
    passed("LPIPS: scaled, tapped, normalised, weighed; frozen, and with a gradient for the picture")


def _one_lpips(make, net, heads, shift, scale, x, y):
    parts = lambda: (deepcopy(net), deepcopy(heads), shift.clone(), scale.clone())
    build = lambda: attempt(lambda: make(*parts()), name="LPIPS(net, heads, shift, scale)")
    # two of the same parts: random heads and dropout betray themselves by a difference
    mine, again = build(), build()
    if not isinstance(mine, nn.Module):
        raise CheckFailed("LPIPS should be an nn.Module: `class LPIPS(nn.Module)`, with super().__init__() first.")
    _held(mine, x, y, heads)
    name = "LPIPS(...)(x, y)"
    got = attempt(mine, x, y, name=name)
    attempt(mine.eval, name="LPIPS.eval")
    if any(part.training for part in mine.modules()):
        raise CheckFailed("your `train` does nothing, and `.eval()` calls `self.train(False)`: dropout stays on for "
                          "ever. Override it by `def train(self, mode=True): return super().train(False)`.")
    if isinstance(got, torch.Tensor) and not torch.equal(got, attempt(mine, x, y, name=name)):
        raise CheckFailed(f"{name} gives another number each time: dropout is on. Call `.eval()` in __init__.")
    if isinstance(got, torch.Tensor) and not torch.equal(got, attempt(again, x, y, name=name)):
        raise CheckFailed("two LPIPS made of the same parts disagree: random heads? Use the calibrated ones given.")
    same_dtype(_value(got, net.eval(), heads, x, y, shift[:, None, None], scale[:, None, None]), x, name)
    attempt(nn.ModuleList([mine]).train, name="LPIPS.train")
    if not torch.allclose(attempt(mine, x, y, name=name), got):
        raise CheckFailed(f"{name} changes when a model that contains it is put into train mode: dropout comes on. "
                          "Override `train`: `def train(self, mode=True): return super().train(False)`.")
    _gradient(mine, net, heads, x, y, lambda t: (t - shift[:, None, None]) / scale[:, None, None])


def _held(mine, x, y, heads):
    """Everything learned is frozen, and moves with the module."""
    if any(p.requires_grad for p in mine.parameters()):
        raise CheckFailed("LPIPS is not frozen: an optimizer could bend the judge. Call `self.requires_grad_(False)` "
                          "as the last line of __init__.")
    kept = [t.flatten() for t in (*mine.parameters(), *mine.buffers())]
    # alone, or as a part of one long buffer
    inside = lambda h, t: len(t) >= len(h) and (t.unfold(0, len(h), 1) - h).abs().amax(1).min() < 1e-6
    missing = [h for h in heads if not any(inside(h, t) for t in kept if t.is_floating_point())]
    if missing:
        raise CheckFailed("LPIPS does not hold the given heads as buffers (or frozen parameters): are they loaded? A "
                          "plain list of tensors stays behind when the module moves to a GPU: register_buffer.")
    if plain := [f"self.{name}" for name, value in vars(mine).items() if isinstance(value, torch.Tensor)]:
        raise CheckFailed(f"{' and '.join(plain)}: a plain tensor stays behind when the module moves to a GPU. Use "
                          "register_buffer, as for the heads.")


def _layers(net, heads, x, y, unit=unit):
    """The distances of every layer, (L,B)."""
    return torch.stack([(h[:, None, None] * (unit(a) - unit(b)).square()).sum(1).mean((1, 2))
                        for h, a, b in zip(heads, net(x), net(y))])


def _value(got, net, heads, x, y, shift, scale):
    with torch.no_grad():
        def total(x, y, unit=unit, heads=heads):
            return _layers(net, heads, x, y, unit)

        s = lambda t: (t - shift) / scale
        layers = total(s(x), s(y))
        compare(got, layers.sum(0), "LPIPS(...)(x, y)", mistakes=[
            (total(x, y).sum(0), "the input is not scaled: (x - shift) / scale. (LPIPS v0.0 had that bug.)"),
            (total(s(x), y).sum(0), "scale both pictures."),
            (total(x - shift, y - shift).sum(0), "shifted, but not divided by scale."),
            (total(x / scale, y / scale).sum(0), "divided by scale, but not shifted."),
            (total((x + shift) / scale, (y + shift) / scale).sum(0), "subtract the shift; you added it."),
            (total(x * scale + shift, y * scale + shift).sum(0), "this is the scaling backwards: (x - shift) / scale."),
            (layers.mean(0), "the mean of the layers: LPIPS is their *sum*."),
            (layers[-1], "only the last layer counts: add all of them."),
            (layers[0], "only the first layer counts: add all of them."),
            (total(s(x), s(y), unit=lambda t: t).sum(0), "the features are not unit-normalised."),
            (total(s(x), s(y), unit=lambda t: F.normalize(t.flatten(1), dim=1).view_as(t)).sum(0),
             "normalise over channels at every position, not over the whole map."),
            (total(s(x), s(y), heads=[torch.ones_like(h) for h in heads]).sum(0), "the heads are not used."),
            (-layers.sum(0), "a distance cannot be negative."),
            (layers[:2].sum(0), "only the first two layers count: add all of them."),
            (layers.sum(0).sqrt(), "no square root: LPIPS adds squared differences."),
        ], rtol=1e-3)
    return got


def _gradient(mine, net, heads, x, y, into):
    for first in (True, False):
        image = (x if first else y).clone().requires_grad_()
        out = mine(image, y) if first else mine(x, image)
        if not out.requires_grad:
            raise CheckFailed("no gradient comes back to the picture: frozen *weights* are right, but the forward must "
                              "stay differentiable. No torch.no_grad(), no .detach() in it.")
        pair = (into(image), into(y)) if first else (into(x), into(image))
        gradient, = torch.autograd.grad(out.sum(), image, allow_unused=True, retain_graph=True)
        if gradient is None or not gradient.isfinite().all() or not gradient.any():
            raise CheckFailed("the gradient of the picture is missing, zero or not finite: something in the forward is "
                              "cut off.")
        same_gradient(out, _layers(net, heads, *pair).sum(0), {"the picture": image}, "LPIPS(...)(x, y)", rtol=1e-2)
