"""Checks of notebook 07, the way of a picture through an hourglass, and what its output sees."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .checking import CheckFailed, attempt, compare, passed, still_a_stub
from .n07_training import SCHEDULE
from .n07_unet import skip_trouble
from .properties import fresh, learn, own_randomness, same_dtype, same_gradient


def hourglass(cls):
    """`cls(widths, depth, skips)`: layers stem, down, middle, up, join, out; net(x_t (B,3,h,w), t) -> like x_t."""
    draw = fresh()
    for widths, depth, skips, shape in (((4, 5, 6), 1, True, (2, 3, 8, 8)), ((4, 6), 2, False, (3, 3, 4, 8)),
                                        ((5,), 2, False, (1, 3, 4, 4)), ((3, 4), 1, True, (2, 3, 6, 4))):
        name = f"Denoiser({widths}, {depth}, skips={skips})"
        with own_randomness():
            try:
                net = cls(widths, depth, skips=skips)
            except NotImplementedError as error:
                raise still_a_stub(error, "Denoiser") from None
        if not isinstance(net, nn.Module):
            raise CheckFailed("Denoiser must be an nn.Module; give the class itself, not an instance.")
        for p in net.parameters():  # residual branches may start at zero; large values go through a SiLU unchanged
            p.data.copy_(0.15 * draw(*p.shape))
        x, t = draw(*shape), torch.tensor([20, 500, 990])[:shape[0]]
        try:
            got = attempt(torch.no_grad()(lambda x, t: net(x, t)), x, t, name="Denoiser.forward")  # noqa: B023
        except CheckFailed as failed:
            if "pop from" in str(failed):
                raise CheckFailed("Denoiser.forward: there was no skip left. Keep h before each `down`.") from None
            raise skip_trouble(failed, "Denoiser.forward") from None
        with torch.no_grad():
            compare(got, hourglass_with(net, x, t), name, rtol=1e-3, mistakes=(
                (hourglass_with(net, x, t, change), message) for change, message in HOURGLASS_MISTAKES.items()
                if skips or change not in SKIPS_ONLY))
        same_dtype(got, x, name)
        leaves = {"x_t": learn(x)[0]} | dict(net.named_parameters())
        same_gradient(net(leaves["x_t"], t), hourglass_with(net, leaves["x_t"], t), leaves, name)
        attempt(lambda x, t: net(x, t, None), x, t, name="Denoiser.forward")  # noqa: B023
    passed("Denoiser: down, the middle, up, and with skips nothing is lost")


HOURGLASS_MISTAKES = {
    "no middle": "the middle is not used.",
    "no out": "the last layers, self.out, are not used.",
    "after": "you keep h after the way down; what is needed on the way up is h *before* each halving.",
    "skip first": "the skip stands first; join as [h, skip].",
    "no silu": "self.out has its SiLU already, and so has each residual layer: no other is needed.",
}
SKIPS_ONLY = ("after", "skip first")


def hourglass_with(net: nn.Module, x_t: Tensor, t: Tensor, change="") -> Tensor:
    """The forward of notebook 07's `Denoiser` with one thing changed; `nan` where it cannot be done."""
    level = (2 * SCHEDULE.sigma(t, 4) - 1).expand(-1, 1, *x_t.shape[2:])
    h, hs = net.stem(torch.cat([x_t, level], dim=1)), []
    for down in net.down:
        before, h = h, down(h)
        hs.append(h if change == "after" else before)
    h = h if change == "no middle" else net.middle(h)
    for up, join in zip(net.up, net.join):
        h, skip = up(h), hs.pop()
        both = [skip, h] if change == "skip first" else [h, skip]
        if net.skips and skip.shape != h.shape:  # the next line would not get through
            return torch.full_like(x_t, torch.nan)
        h = join(torch.cat(both, dim=1) if net.skips else h)
    return h if change == "no out" else net.out(F.silu(h) if change == "no silu" else h)


def what_it_sees(function):
    """`function(net)`: net(x (B,3,16,16), t (B,)) -> (16,16), above 0 where the output at [8, 8] depends on it."""
    draw = fresh()
    row = torch.zeros(16)
    row[3] = 1

    def conv(x, t, cond=None, dilation=1):
        return F.conv2d(x, weight, padding=dilation, dilation=dilation)

    weight = draw(3, 3, 3, 3)
    cases = [
        ("a 3x3 convolution", conv, _square(1)),
        ("two 3x3 convolutions", lambda x, t, cond=None: conv(torch.tanh(conv(x, t)), t), _square(2)),
        ("a convolution of distant pixels", lambda x, t, cond=None: conv(x, t, dilation=5), _dots(5)),
        ("a network that looks at each pixel alone", lambda x, t, cond=None: x * x, _square(0)),
        ("a mean over all pixels", lambda x, t, cond=None: x + x.mean((2, 3), keepdim=True), torch.ones(16, 16)),
        # summed with their signs, the gradients of these cancel
        ("the difference of two colours", lambda x, t, cond=None: x[:, :1] - x[:, 1:2], _square(0)),
        ("a network of one channel that looks at another row", lambda x, t, cond=None: x[:, 2:] @ row.expand(16, 16).mT
         + 0 * x, torch.eye(16)[8][:, None] * row),
        ("a relu, dark in half of the cases", lambda x, t, cond=None: x.relu(), _square(0)),
    ]
    for name, net, right in cases:
        got = attempt(function, net, name="sees")
        if isinstance(got, Tensor) and got.shape == right.shape:
            if not got.isfinite().all() or (got < 0).any():
                raise CheckFailed("sees: sizes of gradients are not negative; take absolute values.")
            got = (got > 0).float()
        compare(got, right, f"where sees(net) > 0, for {name}", mistakes=[
            (torch.zeros(16, 16), "nothing is seen. Take absolute values *before* you sum, and inputs that are not "
             "all 0: ask for gradients of random ones."),
            (right.roll((-1, -1), (0, 1)), "the centre is the pixel [8, 8] of the output; you took [7, 7]."),
            (torch.ones(16, 16), "everything is seen: let only the pixel [8, 8] of the output go backward."),
            (right.T, "rows and columns are swapped.")])
    with own_randomness():
        module = nn.Conv2d(3, 3, 3, padding=1)
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    attempt(function, lambda x, t, cond=None: module(x), name="sees")
    if any(not torch.equal(p, before[name]) for name, p in module.named_parameters()):
        raise CheckFailed("sees changed the network's weights; it only looks.")
    passed("sees: the gradient knows who was asked")


def _square(radius) -> Tensor:
    places = (torch.arange(16) - 8).abs() <= radius
    return (places[:, None] & places[None]).float()


def _dots(distance) -> Tensor:
    places = torch.zeros(16)
    places[[8 - distance, 8, 8 + distance]] = 1
    return places[:, None] * places[None]
