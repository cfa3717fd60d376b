"""Checks of notebook 07, the U-Net."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..blocks import ResBlock
from ..ema import ema_decay
from ..unet import UNet, UNetConfig
from .checking import CheckFailed, attempt, compare, noise, passed, still_a_stub
from .n07_mistakes import (
    DECODER_MISTAKES,
    RES_MISTAKES,
    UNET_MISTAKES,
    channels_with,
    res_block_with,
    unet_with,
    way_through,
)

EMPTY = ("an output block wanted a skip and there was none left. Start with `hs = []` and push after EVERY input "
         "block: stem, residual blocks and downsamplings; pop once before each output block.")
FIRST_OUT = "the sizes of h and of its skip differ. The last one pushed must be the first one popped: `hs.pop()`."


def timestep_embedding(function):
    """`function(t, dim)`: t int64 (B,) -> (B, dim) float32, [cos | sin] with exponents i / (dim / 2)."""
    t, dim = torch.tensor([0, 1, 7, 333, 999]), 8

    def code(exponent, swap=False, base=10_000.0, t=t, sign=-1.0):
        angles = t.float()[:, None] * base ** (sign * exponent)
        return torch.cat([angles.sin(), angles.cos()] if swap else [angles.cos(), angles.sin()], dim=1)

    i = torch.arange(dim // 2)
    right = code(i / 4)
    pairs = right.view(-1, 2, 4).transpose(1, 2).flatten(1)
    got = attempt(function, t, dim, name="timestep_embedding")
    if isinstance(got, Tensor) and got.dtype in (torch.float16, torch.bfloat16):
        raise CheckFailed(f"timestep_embedding has dtype {got.dtype}: too few digits for 1000 steps. Use float32.")
    compare(got, right, "timestep_embedding(t, 8)", atol=2e-3, mistakes=[
        (code(i / 4, swap=True), "the halves are swapped: cosines first, then sines. (The paper's weights expect it.)"),
        (code(i / 3), "the exponents are i / (half - 1); they must be i / half, so the last frequency is not quite "
                      "1 / max_period. (Both are in use; the paper's networks were trained with this one.)"),
        (code(i / 3, swap=True), "the halves are swapped, and the exponents are i / (half - 1): take i / half."),
        (pairs, "cos and sin take turns; here all cosines come first: torch.cat, not torch.stack."),
        (pairs.view(-1, 4, 2).flip(2).flatten(1), "sin and cos take turns, as in the Transformer; here the cosines "
                                                  "come first, then the sines."),
        (code(i / 8), "the exponents are i / dim; divide by half = dim / 2."),
        (code(i / 4, sign=1.0), "the frequencies grow up to max_period; they fall from 1: the exponent is negative."),
        (code(i / 4, t=t.bfloat16()), "t was rounded to bfloat16, where 999 is 1000. Use float32."),
        (code(i / 4, t=t / 1000), "t was divided by the number of steps; the steps 0 to 999 go in as they are."),
        (code(torch.div(i, 4, rounding_mode="floor")), "`//` rounds all exponents down to 0; divide with `/`."),
        (code(i / 4, base=1000.0), "max_period is 10,000, whatever the number of steps."),
    ])
    passed("timestep_embedding: every step its own code, as the paper's networks read it")


def res_block(cls):
    """`cls(in_channels, out_channels, time_dim, groups)`: layers named as in the stub; forward(x, time)."""
    for c_in, c_out in ((8, 8), (8, 16)):
        torch.manual_seed(0)
        reference = ResBlock(c_in, c_out, 12, 4, eps=1e-5, zero_init=True)
        mine, call = _same_layers(cls, (c_in, c_out, 12, 4), reference, "ResBlock")
        x, time = noise(2, c_in, 6, 6), noise(2, 12, seed=1)
        fresh = attempt(call, x, time, name="ResBlock.forward")
        compare(fresh, mine.shortcut(x), "a fresh ResBlock", mistakes=[
            (torch.zeros(2, c_out, 6, 6), "the shortcut is missing: return self.shortcut(x) + h."),
            *[(mine.shortcut(changed), "the shortcut takes x as it came in. Was x overwritten on the way?")
              for changed in (mine.norm1(x), F.silu(x), F.silu(mine.norm1(x)))],
            (fresh, "it must return its shortcut, and nothing else: conv2 starts at zero.")])
        _wake(reference)
        mine.load_state_dict(reference.state_dict())
        # the norms' eps shows only where features are as small as it
        for scale in (1.0, 1e-3):
            got = attempt(call, x * scale, time, name="ResBlock.forward")
            compare(got, reference(x * scale, time), f"ResBlock({c_in}, {c_out})(x, time)", rtol=1e-3, atol=1e-4,
                    mistakes=[(res_block_with(reference, x * scale, time, change), message)
                              for change, message in RES_MISTAKES.items()
                              if c_in == c_out or change not in ("first", "post")])
    passed("ResBlock: identity when fresh, and time is added between its two halves")


def through_the_u(function):
    """`function(h, down, middle, up)`: lists of functions h -> h; each of `up` gets h joined with its skip."""
    x, weights = noise(2, 1, 4, 4), noise(7, 3, seed=1)
    down = [lambda h, a=a: torch.tanh(h * 1.5 + a) for a in (-0.5, 0.3, 0.8, 0.1)]
    up = [lambda h, w=w: torch.einsum("bchw,c->bhw", h, w[:h.shape[1]])[:, None] for w in weights[:4]]
    middle = lambda h: 0.5 * h + 0.2
    got = _through(function, x, down, middle, up)
    if isinstance(got, Tensor) and got.shape != x.shape:
        raise CheckFailed(f"through_the_u gave shape {tuple(got.shape)}, not {tuple(x.shape)}. h and its skip are "
                          "joined on the channels (dim=1), and *before* the output block, which makes one of both.")
    u = lambda change: way_through(x, down, middle, up, change)
    compare(got, u(""), "through_the_u(h, down, middle, up)", mistakes=[
        (u("before"), "you push h before an input block; its *output* is what the other side needs: push after."),
        (u("fifo"), "first in, first out: you popped the oldest skip. `hs.pop()` takes the newest."),
        (u("peek"), "every output block got the same skip: `hs[-1]` looks, `hs.pop()` takes."),
        (u("skip first"), "the skip stands first; join as [h, skip]. (Both can learn; the published weights want h "
                          "first.)"),
        (u("added"), "the skip is added; it is *joined* on the channels: torch.cat([h, skip], dim=1)."),
        (u("middle pushed"), "the middle's output was pushed too; only input blocks are."),
        (u("no middle"), "the middle is not used."),
        (u("no skips"), "the output blocks get no skips: join h with `hs.pop()` before each of them."),
        (u("h stays"), "the blocks' outputs are pushed, but h itself does not move on: `h = block(h)`, then push h."),
        (u("each from x"), "each input block got the first h; it must get the output of the block before."),
    ])
    # the same way with sizes that change: a skip of the wrong level no longer fits
    sizes = [lambda h, s=s: F.interpolate(torch.cat([h, h[:, :1]], 1), size=(s, s)) for s in (8, 8, 4, 4)]
    back = [lambda h, s=s: F.interpolate(h[:, ::2], size=(s, s)) for s in (4, 8, 8, 8)]
    got = _through(function, noise(1, 1, 8, 8), sizes, lambda h: h, back)
    compare(got, way_through(noise(1, 1, 8, 8), sizes, lambda h: h, back, ""), "through_the_u with changing sizes")
    passed("through_the_u: one push after every input block, one pop before every output block")


def _through(function, *args, name="through_the_u"):
    try:
        return attempt(function, *args, name=name)
    except CheckFailed as failed:
        raise _skip_trouble(failed, name) from None


def _skip_trouble(failed: CheckFailed, name: str) -> CheckFailed:
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
    for args in ((32, (1, 2), 1), (16, (1, 2, 3, 4), 2), (320, (1, 2, 4, 4), 2)):
        got = _through(function, *args, name="decoder_channels")
        got = list(got) if isinstance(got, (zip, map)) else got
        call = f"decoder_channels{args}"
        if not isinstance(got, (list, tuple)) or not all(isinstance(p, (list, tuple)) and len(p) == 2 for p in got):
            raise CheckFailed(f"{call} should return a list of pairs (in, out), not {got!r}.")
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


def unet(cls):
    """`cls(channels, mults, num_res_blocks, attn_levels, groups, head_dim)` -> net; net(x (B,3,h,w), t (B,), cond)."""
    torch.manual_seed(0)
    args = {"channels": 16, "mults": (1, 2), "num_res_blocks": 2, "attn_levels": (1,), "groups": 4, "head_dim": 8}
    config = UNetConfig(3, channels=16, channel_mults=(1, 2), num_res_blocks=2, attn_levels=(1,), groups=4, head_dim=8)
    reference, x, t = UNet(config), noise(2, 3, 8, 8), torch.tensor([3, 700])
    mine, call = _same_layers(lambda: cls(**args), (), reference, "MyUNet")
    got = _net_call(call, x, t)
    compare(got, torch.zeros(2, 3, 8, 8), "a fresh MyUNet", mistakes=[
        (x, "the input is added to the output; a U-Net that names the noise has no such shortcut."),
        (got, "it must return exactly 0: its last convolution starts at zero.")])
    _wake(reference)
    mine.load_state_dict(dict(zip(mine.state_dict(), reference.state_dict().values())))
    got = _net_call(call, x, t)
    if isinstance(got, Tensor) and torch.equal(got, _net_call(call, x, t.flip(0))):
        raise CheckFailed("MyUNet: t does not matter. Give time_embedding(t) to every residual block.")
    compare(got, unet_with(reference, x, t), "MyUNet(...)(x, t)", rtol=1e-3, atol=1e-3, mistakes=[
        (unet_with(reference, x, t, change), message) for change, message in UNET_MISTAKES.items()])
    passed("MyUNet: the same numbers as ldm_mini's, weight by weight")


def _net_call(call, x, t):
    try:
        return attempt(call, x, t, name="MyUNet.forward")
    except CheckFailed as failed:
        raise _skip_trouble(failed, "MyUNet.forward") from None


def ema_update(function):
    """`function(averages, net, n, max_decay)`: {name: tensor} after update n = 1, 2, ... of the trainable weights."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    net[2].bias.requires_grad_(False)
    trainable = {name: p for name, p in net.named_parameters() if p.requires_grad}
    averages = {name: noise(*p.shape, seed=5) for name, p in trainable.items()}
    for n, max_decay in ((1, 0.9999), (4, 0.9999), (100_000, 0.999)):
        before = {name: a.clone() for name, a in averages.items()}
        try:
            got = attempt(lambda a: function(a, net, n, max_decay), dict(before), name="ema_update")
        except CheckFailed as failed:
            if "KeyError" in str(failed):
                raise CheckFailed(f"{failed} `averages` has the trainable parameters only: go through net."
                                  "named_parameters() and skip those that are frozen (not p.requires_grad).") from None
            raise
        got = before if got is None and any(not torch.equal(before[k], averages[k]) for k in before) else got
        if not isinstance(got, dict):
            raise CheckFailed(f"ema_update should return a dict of averages, not {type(got).__name__}.")
        if extra := sorted(got.keys() - trainable.keys()):
            raise CheckFailed(f"ema_update: {extra} are buffers or frozen: average trainable parameters only "
                              "(p.requires_grad), not the whole state_dict.")
        if missing := sorted(trainable.keys() - got.keys()):
            raise CheckFailed(f"ema_update: {missing} are missing from the result.")
        for name, p in trainable.items():
            lerp = lambda d: d * averages[name] + (1 - d) * p  # noqa: B023
            d, m = ema_decay(n, max_decay), max_decay
            compare(got[name], lerp(d), f"ema_update(..., n={n}, max_decay={m})", rtol=1e-5, atol=1e-7, mistakes=[
                (lerp(1 - d), "decay is swapped: it multiplies the *average*, 1 - decay the new weight."),
                (lerp(1 - m), "decay is swapped, and the warm-up is missing."),
                (lerp(m), "the warm-up is missing: the first updates take min(max_decay, (1 + n) / (10 + n)), or the "
                          "random start stays in the average for thousands of steps."),
                (lerp((1 + n) / (10 + n)), "max_decay is not used: min(max_decay, ...)."),
                (lerp(n / (9 + n)), "n is off by one: the first update is n = 1 and has decay 2/11."),
                (lerp((2 + n) / (11 + n)), "n is off by one: the first update is n = 1 and has decay 2/11."),
                (p, "this is the network's own weight: nothing is averaged."),
                (averages[name], "nothing has moved."),
            ])
            if got[name].requires_grad:
                raise CheckFailed("ema_update: the averages carry gradients, and would keep every step's graph in "
                                  "memory. Use @torch.no_grad() or p.detach().")
    passed("ema_update: 2/11, 3/12, ... up to max_decay, trainable weights only")


def _same_layers(make, args, reference: nn.Module, name: str):
    """The learner's module, its call, and proof that its layers are the reference's."""
    try:
        mine = make(*args)
    except NotImplementedError as error:
        raise still_a_stub(error, name) from None
    except Exception as error:
        raise CheckFailed(f"making {name} raised {type(error).__name__}: {error}.") from error
    if not isinstance(mine, nn.Module):
        raise CheckFailed(f"{name} must be an nn.Module; give the class itself, not an instance.")
    shapes = [(k, tuple(v.shape)) for k, v in mine.state_dict().items()]
    wanted = [(k, tuple(v.shape)) for k, v in reference.state_dict().items()]
    by_order = name == "MyUNet"
    for conv in ("conv1.weight", "conv2.weight"):
        if not by_order and dict(shapes).get(conv, (0, 0))[1:2] > dict(wanted)[conv][1:2]:
            raise CheckFailed(f"{name}: {conv[:5]} has more input channels than features. Is the time vector "
                              "concatenated? It is *added*, projected to as many channels as h has.")
    same = [s for _, s in shapes] == [s for _, s in wanted] if by_order else dict(shapes) == dict(wanted)
    if not same:
        k = next((i for i, (a, b) in enumerate(zip(shapes, wanted)) if a[by_order:] != b[by_order:]),
                 min(len(shapes), len(wanted)))
        found, want = (s[k] if k < len(s) else "nothing more" for s in (shapes, wanted))
        raise CheckFailed(f"{name} has other layers than it should: at {found}, where {want} is expected. "
                          "Keep the layers, and their order, of the stub.")
    return mine, torch.no_grad()(lambda *inputs: mine(*inputs))


@torch.no_grad()
def _wake(net: nn.Module) -> None:
    """Random numbers in every norm and every zero layer, so that no part stays unseen."""
    for p in net.parameters():
        if p.ndim == 1 or not p.any():
            nn.init.normal_(p, std=0.3)
