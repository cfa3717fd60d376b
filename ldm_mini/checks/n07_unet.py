"""Checks of notebook 07, the U-Net."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..blocks import ResBlock
from ..cond import Cond
from ..ema import ema_decay
from ..unet import UNet, UNetConfig
from .checking import CheckFailed, attempt, compare, passed, still_a_stub
from .n07_mistakes import (
    DECODER_MISTAKES,
    RES_MISTAKES,
    U_MISTAKES,
    UNET_MISTAKES,
    channels_with,
    res_block_with,
    unet_with,
    way_through,
)
from .properties import fresh, learn, own_randomness, same_dtype, same_gradient

EMPTY = ("an output block wanted a skip and there was none left. Start with `hs = []` and push after EVERY input "
         "block: stem, residual blocks and downsamplings; pop once before each output block.")
FIRST_OUT = "the sizes of h and of its skip differ. The last one pushed must be the first one popped: `hs.pop()`."


def timestep_embedding(function):
    """`function(t, dim)`: t int64 (B,) -> (B, dim) float32, [cos | sin] with exponents i / (dim / 2)."""
    for steps, dim in (([0, 1, 7, 333, 999], 8), ([500, 999], 20)):
        t, half = torch.tensor(steps), dim // 2
        got = attempt(function, t, dim, name="timestep_embedding")
        what, right = f"timestep_embedding(t, {dim})", _code(t, torch.arange(half) / half)
        if isinstance(got, Tensor) and got.dtype in (torch.float16, torch.bfloat16):
            raise CheckFailed(f"timestep_embedding has dtype {got.dtype}: too few digits for 1000 steps. Use float32.")
        compare(got, right, what, atol=2e-3, mistakes=_wrong_codes(t, dim, right))
        same_dtype(got, right, what)
    passed("timestep_embedding: every step its own code, as the paper's networks read it")


def _code(t, exponent, swap=False, base=10_000.0, sign=-1.0):
    angles = t.float()[:, None] * base ** (sign * exponent)
    return torch.cat([angles.sin(), angles.cos()] if swap else [angles.cos(), angles.sin()], dim=1)


def _wrong_codes(t, dim, right):
    half = dim // 2
    i, pairs = torch.arange(half), right.view(-1, 2, half).transpose(1, 2).flatten(1)
    return [
        (_code(t, i / half, swap=True), "the halves are swapped: cosines first, then sines. (The paper's weights "
                                        "expect it.)"),
        (_code(t, i / (half - 1)), "the exponents are i / (half - 1); they must be i / half, so the last frequency is "
                                   "not quite 1 / max_period. (Both are in use; the paper's networks were trained with "
                                   "this one.)"),
        (_code(t, i / (half - 1), swap=True), "the halves are swapped, and the exponents are i / (half - 1): take "
                                              "i / half."),
        (pairs, "cos and sin take turns; here all cosines come first: torch.cat, not torch.stack."),
        (pairs.view(-1, half, 2).flip(2).flatten(1), "sin and cos take turns, as in the Transformer; here the cosines "
                                                     "come first, then the sines."),
        (_code(t, i / dim), "the exponents are i / dim; divide by half = dim / 2."),
        (_code(t, i / half, sign=1.0), "the frequencies grow up to max_period; they fall from 1: the exponent is "
                                       "negative."),
        (_code(t.bfloat16(), i / half), "t was rounded to bfloat16, where 999 is 1000. Use float32."),
        (_code(t / 1000, i / half), "t was divided by the number of steps; the steps 0 to 999 go in as they are."),
        (_code(t + 1, i / half), "t is off by one: step t has the code of t, not of t + 1."),
        (_code(t, torch.div(i, half, rounding_mode="floor")), "`//` rounds all exponents down to 0; divide with `/`."),
        (_code(t, i / half, base=1000.0), "max_period is 10,000, whatever the number of steps."),
    ]


def res_block(cls):
    """`cls(in_channels, out_channels, time_dim, groups)`: layers named as in the stub; forward(x, time)."""
    draw = fresh()
    for c_in, c_out, time_dim, groups, size in ((8, 8, 12, 4, (2, 6, 6)), (8, 16, 12, 4, (3, 4, 7))):
        with own_randomness():
            reference = ResBlock(c_in, c_out, time_dim, groups, eps=1e-5, zero_init=True)
            mine, call = _same_layers(cls, (c_in, c_out, time_dim, groups), reference, "ResBlock")
        x, time = draw(size[0], c_in, *size[1:]), draw(size[0], time_dim)
        fresh_out = attempt(call, x, time, name="ResBlock.forward")
        at_last = isinstance(fresh_out, Tensor) and fresh_out.shape == mine.shortcut(x).shape and torch.allclose(
            fresh_out.to(x), F.silu(mine.shortcut(x)), atol=1e-5)
        if not at_last:  # a SiLU of x, or of the sum? That shows only below
            compare(fresh_out, mine.shortcut(x), "a fresh ResBlock", mistakes=[
                (torch.zeros(len(x), c_out, *size[1:]), "the shortcut is missing: return self.shortcut(x) + h."),
                *[(mine.shortcut(changed), "the shortcut takes x as it came in. Was x overwritten on the way?")
                  for changed in (mine.norm1(x), F.silu(x), F.silu(mine.norm1(x)))],
                (fresh_out, "it must return its shortcut, and nothing else: conv2 starts at zero.")])
        _wake(reference)
        mine.load_state_dict(reference.state_dict())
        # the norms' eps shows only where features are as small as it
        for scale in (1.0, 1e-3):
            got, right = attempt(call, x * scale, time, name="ResBlock.forward"), reference(x * scale, time)
            compare(got, right, f"ResBlock({c_in}, {c_out})(x, time)", rtol=1e-3, atol=1e-4,
                    mistakes=[(res_block_with(reference, x * scale, time, change), message)
                              for change, message in RES_MISTAKES.items()
                              if c_in == c_out or change not in ("first", "post", "silu of x")])
            same_dtype(got, x, "ResBlock's result")
        _same_learning(mine, reference, (x, time), "ResBlock(...)(x, time)")
    passed("ResBlock: identity when fresh, and time is added between its two halves")


def _same_learning(mine: nn.Module, reference: nn.Module, inputs: tuple, what: str):
    """Hold the gradients of inputs and parameters (the same, in the same order) against the reference's."""
    floats = [x.is_floating_point() for x in inputs]
    leaves = learn(*[x for x in inputs if x.is_floating_point()])
    filled = iter(leaves)
    inputs = [next(filled) if real else x for x, real in zip(inputs, floats)]
    # one set of parameters for both, so that one set of leaves will do
    names = dict(zip((name for name, _ in mine.named_parameters()), reference.parameters()))
    got = torch.func.functional_call(mine, names, tuple(inputs))
    same_gradient(got, reference(*inputs), {f"input {i}": x for i, x in enumerate(leaves)} | names, what, atol=1e-4)


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
        compare(got, u(""), "through_the_u(h, down, middle, up)", mistakes=[
            (u(change), message) for change, message in U_MISTAKES.items()])
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
        mine, call = _same_layers(lambda: cls(**args), (), reference, "MyUNet")
    x, t = draw(2, 3, 8, 8), torch.tensor([3, 700])
    got = _net_call(call, x, t)
    compare(got, torch.zeros(2, 3, 8, 8), "a fresh MyUNet", mistakes=[
        (x, "the input is added to the output; a U-Net that names the noise has no such shortcut."),
        (got, "it must return exactly 0: its last convolution starts at zero.")])
    _wake(reference)
    mine.load_state_dict(dict(zip(mine.state_dict(), reference.state_dict().values())))
    got = _net_call(call, x, t)
    if isinstance(got, Tensor) and torch.equal(got, _net_call(call, x, t.flip(0))):
        raise CheckFailed("MyUNet: t does not matter. Give time_embedding(t) to every residual block.")
    compare(got, unet_with(reference, x, t), "MyUNet(...)(x, t)", rtol=1e-3, atol=1e-4, mistakes=[
        (unet_with(reference, x, t, change), message) for change, message in UNET_MISTAKES.items()])
    x, t = draw(3, 3, 4, 6), torch.tensor([999, 0, 250])
    compare(_net_call(call, x, t, Cond()), unet_with(reference, x, t), "MyUNet(...)(x, t, cond)", rtol=1e-3, atol=1e-4)
    _same_learning(mine, reference, (x, t), "MyUNet(...)(x, t)")
    passed("MyUNet: the same numbers as ldm_mini's, weight by weight")


def _net_call(call, *inputs):
    try:
        return attempt(call, *inputs, name="MyUNet.forward")
    except CheckFailed as failed:
        raise _skip_trouble(failed, "MyUNet.forward") from None


def ema_update(function):
    """`function(averages, net, n, max_decay)`: {name: tensor} after update n = 1, 2, ... of the trainable weights."""
    draw = fresh()
    with own_randomness():
        net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    net[2].bias.requires_grad_(False)
    trainable = {name: p for name, p in net.named_parameters() if p.requires_grad}
    averages = {name: draw(*p.shape) for name, p in trainable.items()}
    weights = {name: value.clone() for name, value in net.state_dict().items()}
    for n, max_decay in ((1, 0.9999), (4, 0.9999), (4, 0.2), (50, 0.9999), (100_000, 0.999)):
        before = {name: a.clone() for name, a in averages.items()}
        try:
            got = attempt(lambda a: function(a, net, n, max_decay), dict(before), name="ema_update")
        except CheckFailed as failed:
            if "KeyError" in str(failed):
                raise CheckFailed(f"{failed} `averages` has the trainable parameters only: go through net."
                                  "named_parameters() and skip those that are frozen (not p.requires_grad).") from None
            raise
        if got is None and any(not torch.equal(before[k], averages[k]) for k in before):
            raise CheckFailed("ema_update changed `averages` but returned None: the training loop takes what it "
                              "returns, so end with `return averages`.")
        if any(not torch.equal(weights[name], value) for name, value in net.state_dict().items()):
            raise CheckFailed("ema_update changed the network. The averages stand beside it; training goes on from "
                              "its own weights.")
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
                (lerp(max(m, (1 + n) / (10 + n))), "the smaller of both, `min`: you took the larger."),
                (lerp(n / (9 + n)), "n is off by one: the first update is n = 1 and has decay 2/11."),
                (lerp((2 + n) / (11 + n)), "n is off by one: the first update is n = 1 and has decay 2/11."),
                (p, "this is the network's own weight: nothing is averaged."),
                (averages[name], "nothing has moved."),
            ])
            same_dtype(got[name], p, "the average")
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
    return mine, torch.no_grad()(lambda *inputs: mine(*inputs))  # gradients have a test of their own


@torch.no_grad()
def _wake(net: nn.Module) -> None:
    """Random numbers in every norm, every zero layer and all that reads the time, so that no part stays unseen."""
    draw = fresh()
    for name, p in net.named_parameters():
        if p.ndim == 1 or "time" in name or not p.any():
            p.copy_(0.3 * draw(*p.shape))
