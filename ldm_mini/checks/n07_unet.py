"""Checks of notebook 07, the U-Net."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..cond import Cond
from ..unet import UNet, UNetConfig
from .checking import CheckFailed, attempt, compare, passed
from .n07_mistakes import (
    DECODER_MISTAKES,
    U_MISTAKES,
    UNET_MISTAKES,
    WAY_UP_MISTAKES,
    channels_with,
    layers_with,
    unet_with,
    way_through,
)
from .n07_parts import same_layers, same_learning, wake
from .properties import fresh, fresh_whole, learn, own_randomness, same_gradient

EMPTY = ("an output block wanted a skip and there was none left. Start with `hs = []` and push after EVERY input "
         "block: stem, residual blocks and downsamplings; pop once before each output block.")
FIRST_OUT = "the sizes of h and of its skip differ. The last one pushed must be the first one popped: `hs.pop()`."


def through_the_u(function):
    """`function(h, down, middle, up)`: lists of functions h -> h; each of `up` gets h joined with its skip."""
    draw = fresh()
    for blocks, shape in ((4, (2, 1, 4, 4)), (1, (1, 1, 3, 5)), (7, (3, 1, 2, 3))):
        x, weights = draw(*shape), draw(blocks, 3)
        down = [lambda h, a=a: torch.tanh(h * 1.5 + a) for a in torch.linspace(-0.5, 0.8, blocks).tolist()[::-1]]
        up = [lambda h, w=w: torch.einsum("bchw,c->bhw", h, w[:h.shape[1]])[:, None] for w in weights]
        middle = lambda h: 0.5 * h + 0.2
        got = _through(function, x, down, middle, up)
        if isinstance(got, Tensor) and got.shape != x.shape:
            raise CheckFailed(f"through_the_u gave shape {tuple(got.shape)}, not {tuple(x.shape)}. h and its skip are "
                              "joined on the channels (dim=1), and *before* the output block, which makes one of both.")
        u = lambda change, x=x: way_through(x, down, middle, up, change)  # noqa: B023
        compare(got, u(""), "through_the_u(h, down, middle, up)", mistakes=(
            (u(change), message) for change, message in U_MISTAKES.items()))
        [leaf] = learn(x)
        same_gradient(function(leaf, down, middle, up), u("", leaf), {"h": leaf}, "through_the_u(h, down, middle, up)")
    # the same way with sizes that change: a skip of the wrong level no longer fits
    x = draw(1, 1, 8, 8)
    sizes = [lambda h, s=s: F.interpolate(torch.cat([h, h[:, :1]], 1), size=(s, s)) for s in (8, 8, 4, 4)]
    back = [lambda h, s=s: F.interpolate(h[:, ::2], size=(s, s)) for s in (4, 8, 8, 8)]
    got = _through(function, x, sizes, lambda h: h, back)
    compare(got, way_through(x, sizes, lambda h: h, back, ""), "through_the_u with changing sizes")
    passed("through_the_u: one push after every input block, one pop before every output block")


def _through(function, *args, name="through_the_u"):
    try:
        return attempt(function, *args, name=name)
    except CheckFailed as failed:
        raise skip_trouble(failed, name) from None


def skip_trouble(failed: CheckFailed, name: str) -> CheckFailed:
    """What went wrong with the skips, if that is what an exception inside a learner's forward is about."""
    text = str(failed)
    if "pop from empty" in text or "pop from an empty" in text or "name 'hs' is not defined" in text:
        return CheckFailed(f"{name}: {EMPTY}")
    if "Sizes of tensors must match" in text:
        return CheckFailed(f"{name}: {FIRST_OUT}")
    if "expected input" in text and "channels" in text or "number of channels" in text.lower():
        return CheckFailed(f"{name}: an output block got another number of channels than it was built for. Was its "
                           f"skip joined to h (torch.cat, dim=1), and the right one? {text}")
    return failed


def decoder_channels(function):
    """`function(channels, mults, num_res_blocks)` -> [(in, out), ...] of the blocks on the way up, in their order."""
    some = fresh_whole()
    for args in ((32, (1, 2), 1), (16, (1, 2, 3, 4), 2), (320, (1, 2, 4, 4), 2),
                 (8 * some(1, 9), (1, some(1, 4), some(2, 5)), some(1, 4))):
        got = _through(lambda *args: _listed(function(*args)), *args, name="decoder_channels")
        call = f"decoder_channels{args}"
        if not isinstance(got, list) or not all(isinstance(p, (list, tuple)) and len(p) == 2 for p in got):
            raise CheckFailed(f"{call} should return a list of pairs (in, out), not {got!r}.")
        if any(n % 1 for pair in got for n in pair):
            raise CheckFailed(f"{call}: channels are whole numbers. Divide with `//`, or not at all.")
        got, want = [tuple(int(n) for n in pair) for pair in got], channels_with(*args)
        if got == want:
            continue
        for change, message in DECODER_MISTAKES.items():
            if got == channels_with(*args, change):
                raise CheckFailed(f"{call}: {message}")
        if len(got) != len(want):
            raise CheckFailed(f"{call} has {len(got)} blocks; there are {len(want)}: as many as pushes, which is "
                              f"num_res_blocks + 1 for each level.")
        k = next(k for k, pair in enumerate(got) if pair != want[k])
        raise CheckFailed(f"{call}: block {k} (the first on the way up is 0) is {got[k]}, it should be {want[k]}.")
    passed("decoder_channels: as many blocks up as skips, each wide enough for its own")


def _listed(pairs):
    """A list of what a learner's list, generator, tensor or array of pairs holds; all else as it is."""
    pairs = pairs.tolist() if hasattr(pairs, "tolist") else pairs
    return list(pairs) if hasattr(pairs, "__iter__") else pairs


def unet(cls):
    """`cls(channels, mults, num_res_blocks, attn_levels, groups, head_dim)` -> net; net(x (B,3,h,w), t (B,), cond)."""
    args = {"channels": 16, "mults": (1, 2), "num_res_blocks": 2, "attn_levels": (1,), "groups": 4, "head_dim": 8}
    config = UNetConfig(3, channels=16, channel_mults=(1, 2), num_res_blocks=2, attn_levels=(1,), groups=4, head_dim=8)
    draw = fresh()
    with own_randomness():
        reference = UNet(config)
        mine, call = same_layers(lambda: cls(**args), (), reference, "MyUNet", mistakes=(
            (layers_with(reference, change), message) for change, message in WAY_UP_MISTAKES.items()))
    x, t = draw(2, 3, 8, 8), torch.tensor([3, 700])
    got = _net_call(call, x, t)
    compare(got, torch.zeros(2, 3, 8, 8), "a fresh MyUNet", mistakes=[
        (x, "the input is added to the output; a U-Net that names the noise has no such shortcut."),
        (got, "it must return exactly 0: its last convolution starts at zero.")])
    wake(reference)
    mine.load_state_dict(dict(zip(mine.state_dict(), reference.state_dict().values())))
    got = _net_call(call, x, t)
    if isinstance(got, Tensor) and torch.equal(got, _net_call(call, x, t.flip(0))):
        raise CheckFailed("MyUNet: t does not matter. Give time_embedding(t) to every residual block.")
    compare(got, unet_with(reference, x, t), "MyUNet(...)(x, t)", rtol=1e-3, atol=1e-4, mistakes=(
        (unet_with(reference, x, t, change), message) for change, message in UNET_MISTAKES.items()))
    x, t = draw(3, 3, 4, 6), torch.tensor([999, 0, 250])
    compare(_net_call(call, x, t, Cond()), unet_with(reference, x, t), "MyUNet(...)(x, t, cond)", rtol=1e-3, atol=1e-4)
    same_learning(mine, reference, (x, t), "MyUNet(...)(x, t)")
    passed("MyUNet: the same numbers as ldm_mini's, weight by weight")


def _net_call(call, *inputs):
    try:
        return attempt(call, *inputs, name="MyUNet.forward")
    except CheckFailed as failed:
        raise skip_trouble(failed, "MyUNet.forward") from None
