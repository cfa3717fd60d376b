"""Checks of notebook 05, continued: the critic of patches, and what one of its logits sees."""

import torch
from torch import Tensor, nn

from ..discriminator import PatchDiscriminator
from .checking import CheckFailed, attempt, compare, passed
from .properties import fresh, own_randomness, same_dtype


@own_randomness()
def patch_critic(function):
    """`function(channels, layers)` -> one nn.Sequential of plain layers, (B,3,H,W) -> logits (B,1,h,w)."""
    draw = fresh()
    for channels, layers in ((4, 1), (3, 2), (2, 4)):
        net = attempt(function, channels, layers, name="patch_critic")
        if not isinstance(net, nn.Sequential):
            raise CheckFailed("patch_critic should return one nn.Sequential of all layers.")
        right = PatchDiscriminator(channels=channels, num_layers=layers).main
        _same_layers(net, right, f"patch_critic({channels}, {layers})")
        with torch.no_grad():
            for p in right.parameters():
                p.copy_(0.5 * draw(*p.shape))
        net.load_state_dict(right.state_dict())
        x = draw(2, 3, 56, 64)
        for training in (True, False):
            want, mode = right.train(training)(x), "training" if training else "eval"
            got = attempt(net.train(training), x, name=f"patch_critic({channels}, {layers})")
            compare(got, want, f"the logits in {mode} mode", rtol=1e-3, atol=1e-3, mistakes=(
                (_changed(right, change)(x), told) for change, told in CHANGES))
    passed("patch_critic: from pixels to a grid of logits, layer for layer")


CHANGES = [(lambda layer: nn.LeakyReLU(0.01) if isinstance(layer, nn.LeakyReLU) else layer,
            "the slope of LeakyReLU is 0.2; 0.01 is PyTorch's own."),
           (lambda layer: nn.ReLU() if isinstance(layer, nn.LeakyReLU) else layer,
            "LeakyReLU(0.2), not ReLU: a critic must pass gradients on, for negative values too.")]


def _changed(net: nn.Sequential, change) -> nn.Sequential:
    return nn.Sequential(*[change(layer) for layer in net])


def _same_layers(net: nn.Sequential, right: nn.Sequential, name: str):
    kinds, want = ([type(layer) for layer in each] for each in (net, right))
    if kinds != want:
        counts = [", ".join(kind.__name__ for kind in each) for each in (kinds, want)]
        raise CheckFailed(f"{name} has the layers {counts[0]}; they should be {counts[1]}: a norm after each "
                          "convolution but the first and the last, LeakyReLU after all but the last.")
    convs = [[layer for layer in each if isinstance(layer, nn.Conv2d)] for each in (net, right)]
    for number, (got, conv) in enumerate(zip(*convs), 1):
        at = f"{name}, convolution {number} of {len(convs[1])}"
        for what, mine, theirs in (("channels (in, out)", (got.in_channels, got.out_channels),
                                    (conv.in_channels, conv.out_channels)),
                                   ("kernel", got.kernel_size, conv.kernel_size), ("stride", got.stride, conv.stride),
                                   ("padding", got.padding, conv.padding)):
            if mine != theirs:
                raise CheckFailed(f"{at}: {what} should be {theirs}, not {mine}.")
        if (got.bias is None) != (conv.bias is None):
            raise CheckFailed(f"{at} should have " + ("a bias." if conv.bias is not None else
                                                      "no bias: the norm after it has one."))
    if net.state_dict().keys() != right.state_dict().keys():
        raise CheckFailed(f"{name}: its norms lack parameters or running means: nn.BatchNorm2d(width), as it comes.")


@own_randomness()
def footprint(function):
    """`function(critic, x)`: x (1,3,H,W) -> |gradient| of the middle logit on each pixel (H,W), summed over colours."""
    draw = fresh()
    for strides, size in (((2, 1), (20, 24)), ((2, 2), (32, 28)), ((1,), (9, 12))):
        critic = _critic(draw, strides)
        x = draw(1, 3, *size)
        got = attempt(function, critic, x, name="footprint")
        [gradient] = _gradient(critic, x, _middle)
        of = lambda pick, critic=critic, x=x: _gradient(critic, x, pick)[0].abs().sum(0)
        compare(got, gradient.abs().sum(0), "footprint(critic, x)", rtol=1e-3, shapes={
            (3, *size): "sum over the colours: (H, W).", (1, *size): "drop the first axis: (H, W).",
            (1, 3, *size): "sum over picture and colours: (H, W).",
            size[::-1]: "height and width have changed places."}, mistakes=[
            (gradient.sum(0), "absolute values first: gradients of the colours cancel in a sum."),
            (gradient.sum(0).abs(), "absolute values first, then the sum over the colours."),
            (gradient.square().sum(0), "absolute values, not squares."),
            (gradient.abs().mean(0), "the sum over the colours, not their mean."),
            (gradient.abs()[0], "this is one colour; sum over all three."),
            (of(lambda v: v.sum()), "this asks all logits at once: the middle one alone."),
            (of(lambda v: v.mean()), "this asks all logits at once: the middle one alone."),
            (of(lambda v: v[0, 0, 0, 0]), "this is the logit in the corner; the middle is [h // 2, w // 2]."),
            (of(lambda v: v[0, 0, v.shape[2] // 2, v.shape[2] // 2]), "the middle column follows from the *width*."),
        ])
        same_dtype(got, x, "footprint(critic, x)")
        if got.requires_grad:
            raise CheckFailed("footprint returns something with a graph: it is only looked at, so detach it.")
    passed("footprint: the pixels that one logit can see")


def _critic(draw, strides) -> nn.Sequential:
    net, width = [], 3
    for stride in strides:
        net, width = [*net, nn.Conv2d(width, 4, 4, stride, padding=1), nn.LeakyReLU(0.2)], 4
    net = nn.Sequential(*net, nn.Conv2d(width, 1, 4, padding=1)).eval()
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(0.5 * draw(*p.shape))
    return net


def _middle(logits: Tensor) -> Tensor:
    return logits[0, 0, logits.shape[2] // 2, logits.shape[3] // 2]


def _gradient(critic, x: Tensor, pick) -> Tensor:
    """(1,3,H,W)"""
    x = x.clone().requires_grad_()
    return torch.autograd.grad(pick(critic(x)), x)[0]
