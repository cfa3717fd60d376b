"""Checks of notebook 07, the parts of a U-Net and the average of its weights."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..blocks import ResBlock
from ..ema import ema_decay
from .checking import CheckFailed, attempt, compare, passed, still_a_stub
from .n07_mistakes import RES_MISTAKES, res_block_with
from .properties import fresh, fresh_whole, learn, own_randomness, same_dtype, same_gradient


def timestep_embedding(function):
    """`function(t, dim)`: t int64 (B,) -> (B, dim) float32, [cos | sin] with exponents i / (dim / 2)."""
    some = fresh_whole()
    for steps, dim in (([0, 1, 7, 333, 999], 8), ([500, 999], 20), ([some(0, 1000), some(0, 1000)], 2 * some(3, 16))):
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
            mine, call = same_layers(cls, (c_in, c_out, time_dim, groups), reference, "ResBlock")
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
        wake(reference)
        mine.load_state_dict(reference.state_dict())
        # the norms' eps shows only where features are as small as it
        for scale in (1.0, 1e-3):
            got, right = attempt(call, x * scale, time, name="ResBlock.forward"), reference(x * scale, time)
            compare(got, right, f"ResBlock({c_in}, {c_out})(x, time)", rtol=1e-3, atol=1e-4,
                    mistakes=((res_block_with(reference, x * scale, time, change), message)
                              for change, message in RES_MISTAKES.items()
                              if c_in == c_out or change not in ("first", "post", "silu of x")))
            same_dtype(got, x, "ResBlock's result")
        same_learning(mine, reference, (x, time), "ResBlock(...)(x, time)")
    passed("ResBlock: identity when fresh, and time is added between its two halves")


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


def same_layers(make, args, reference: nn.Module, name: str, mistakes=()):
    """The learner's module, its call, and proof that its layers are the reference's.

    mistakes: pairs (the layers that a known mistake makes, what to tell the learner).
    """
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
        for layers, message in mistakes:
            if [s for _, s in shapes] == [tuple(v.shape) for layer in layers for v in layer.state_dict().values()]:
                raise CheckFailed(f"{name}: {message}")
        k = next((i for i, (a, b) in enumerate(zip(shapes, wanted)) if a[by_order:] != b[by_order:]),
                 min(len(shapes), len(wanted)))
        found, want = (s[k] if k < len(s) else "nothing more" for s in (shapes, wanted))
        raise CheckFailed(f"{name} has other layers than it should: at {found}, where {want} is expected. "
                          "Keep the layers, and their order, of the stub.")
    return mine, torch.no_grad()(lambda *inputs: mine(*inputs))  # gradients have a test of their own


@torch.no_grad()
def wake(net: nn.Module) -> None:
    """Random numbers in every norm, every zero layer and all that reads the time, so that no part stays unseen."""
    draw = fresh(3)
    for name, p in net.named_parameters():
        if p.ndim == 1 or "time" in name or not p.any():
            p.copy_(0.3 * draw(*p.shape))


def same_learning(mine: nn.Module, reference: nn.Module, inputs: tuple, what: str):
    """Hold the gradients of inputs and parameters (the same, in the same order) against the reference's."""
    floats = [x.is_floating_point() for x in inputs]
    leaves = learn(*[x for x in inputs if x.is_floating_point()])
    filled = iter(leaves)
    inputs = [next(filled) if real else x for x, real in zip(inputs, floats)]
    # one set of parameters for both, so that one set of leaves will do
    names = dict(zip((name for name, _ in mine.named_parameters()), reference.parameters()))
    got, right = torch.func.functional_call(mine, names, tuple(inputs)), reference(*inputs)
    leaves = {f"input {i}": x for i, x in enumerate(leaves)} | names
    # some have none, as the bias of keys, which a softmax does not see: what is left of it is rounding
    gradients = torch.autograd.grad(right.square().sum(), [*leaves.values()], retain_graph=True)
    sizes = [g.abs().max().item() for g in gradients]
    smallest = 1e-5 * max(sizes)
    felt = {name: leaf for (name, leaf), size in zip(leaves.items(), sizes) if size > smallest}
    same_gradient(got, right, felt, what)
