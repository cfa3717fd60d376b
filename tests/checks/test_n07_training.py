"""Checks of notebook 07's shapes, times and training: wrong solutions fail with a hint; right ones pass."""

from functools import partial

import torch
import torch.nn.functional as F
from solutions import spoiled, try_all, variant
from torch import nn

from ldm_mini import blocks, checks
from ldm_mini.checks.n07_shape import hourglass_with
from ldm_mini.checks.n07_time import scale_shift_with
from ldm_mini.cond import Cond
from ldm_mini.diffusion import diffusion_loss
from ldm_mini.ema import EMA
from ldm_mini.schedule import NoiseSchedule, cosine_betas

SCHEDULE = NoiseSchedule(cosine_betas())


def conv3(a, b, stride=1):
    return nn.Conv2d(a, b, 3, stride, padding=1)


class Residual(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv = conv3(width, width)

    def forward(self, x):
        return x + self.conv(F.silu(x))


class Hourglass(nn.Module):
    """The notebook's; variants change one part."""

    def __init__(self, widths, depth, skips=False):
        super().__init__()
        self.skips, pairs = skips, list(zip(widths, widths[1:]))
        level = lambda width: nn.Sequential(*[Residual(width) for _ in range(depth)])
        self.stem = conv3(4, widths[0])
        self.down = nn.ModuleList(nn.Sequential(level(a), conv3(a, b, stride=2)) for a, b in pairs)
        self.middle = level(widths[-1])
        self.up = nn.ModuleList(nn.Sequential(nn.Upsample(scale_factor=2), conv3(b, a)) for a, b in pairs[::-1])
        self.join = nn.ModuleList(nn.Sequential(conv3(2 * a if skips else a, a), level(a)) for a, _ in pairs[::-1])
        self.out = nn.Sequential(nn.SiLU(), conv3(widths[0], 3))

    pop, keep = staticmethod(list.pop), staticmethod(lambda before, after: before)
    both, last = staticmethod(lambda h, skip: [h, skip]), staticmethod(lambda net, h: net.out(h))

    def forward(self, x_t, t, cond=None):
        level = (2 * SCHEDULE.sigma(t) - 1).expand(-1, 1, *x_t.shape[2:])
        h, hs = self.stem(torch.cat([x_t, level], dim=1)), []
        for down in self.down:
            before, h = h, down(h)
            hs.append(self.keep(before, h))
        h = self.middle(h)
        for up, join in zip(self.up, self.join):
            h = up(h)
            h = join(torch.cat(self.both(h, self.pop(hs)), dim=1) if self.skips else h)
        return self.last(self, h)


class Recursive(Hourglass):
    """No list at all."""

    def level(self, h, k):
        if k == len(self.down):
            return self.middle(h)
        below = self.up[-1 - k](self.level(self.down[k](h), k + 1))
        return self.join[-1 - k](torch.cat([below, h], 1) if self.skips else below)

    def forward(self, x_t, t, cond=None):
        level = torch.ones_like(x_t[:, :1]) * (2 * SCHEDULE.sigma(t) - 1)
        return self.out(self.level(self.stem(torch.cat([x_t, level], 1)), 0))


def glass(**parts):
    return variant(Hourglass, **{name: staticmethod(part) for name, part in parts.items()})


def glass_with(change):
    return variant(Hourglass, forward=lambda s, x, t, cond=None: hourglass_with(s, x, t, change))


def sees(net, centre=8, size=torch.abs, inputs=partial(torch.randn, 8), reduce=lambda g: g.sum((0, 1)), square=False):
    x = inputs(3, 16, 16).requires_grad_() if inputs is not torch.zeros else torch.zeros(8, 3, 16, 16).requires_grad_()
    out = net(x, torch.full((len(x),), 500))
    out = out if square else out[:, :, centre, centre]
    return reduce(size(torch.autograd.grad(out.sum(), x)[0]))


def sees_by_nudges(net):
    """Without gradients: change each pixel and look."""
    x, t = torch.randn(6, 3, 16, 16), torch.zeros(6, dtype=torch.long)
    centre = lambda x: net(x, t)[:, :, 8, 8].detach()
    before, found = centre(x), torch.zeros(16, 16)
    for i in range(16):
        for j in range(16):
            other = x.clone()
            other[:, :, i, j] += torch.tensor([1.0, 2.0, -0.5])
            found[i, j] = (centre(other) - before).abs().max()
    return found > 1e-5


def norm(x, groups, eps, *, over=(2, 3, 4), correction=0, split=lambda x, g: x.unflatten(1, (g, -1)),
         root=lambda v, eps: (v + eps).sqrt(), shift=lambda m: m, give=lambda out: out):
    parts = split(x, groups)
    mean, variance = parts.mean(over, keepdim=True), parts.var(over, keepdim=True, correction=correction)
    return give(((parts - shift(mean)) / root(variance, eps)).reshape(x.shape))


def norm_by_loop(x, groups, eps):
    done = []
    for part in x.chunk(groups, dim=1):
        flat = part.reshape(len(x), -1)
        mean = flat.mean(1, keepdim=True)
        done.append(((flat - mean) * (flat.square().mean(1, keepdim=True) - mean**2 + eps).rsqrt()).view_as(part))
    return torch.cat(done, 1)


class Layers(nn.ModuleList):
    def forward(self, h, time):
        for layer in self:
            h = layer(h, time) if hasattr(layer, "time_proj") else layer(h)
        return h


class Names(nn.ModuleList):
    """Asks for the names of the parts instead."""

    def forward(self, h, time):
        for layer in self.children():
            inputs = (time,) if any(name == "time_proj" for name, _ in layer.named_children()) else ()
            h = layer(h, *inputs)
        return h


def layers(forward):
    return variant(Layers, forward=forward)


def reversed_layers(self, h, time):
    for layer in list(self)[::-1]:
        h = layer(h, time) if hasattr(layer, "time_proj") else layer(h)
    return h


def first_only(self, h, time):
    for layer in self:
        return layer(h, time) if hasattr(layer, "time_proj") else layer(h)
    return h


def not_kept(self, h, time):
    for layer in self:
        layer(h, time) if hasattr(layer, "time_proj") else layer(h)
    return h


def each_from_h(self, h, time):
    out = h
    for layer in self:
        out = layer(h, time) if hasattr(layer, "time_proj") else layer(h)
    return out


class Shifted(nn.Module):
    """The block of the notebook."""

    def __init__(self, in_channels, out_channels, time_dim, groups):
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(groups, in_channels, eps=1e-5), conv3(in_channels, out_channels)
        self.time_proj = nn.Linear(time_dim, 2 * out_channels)
        self.norm2, self.conv2 = nn.GroupNorm(groups, out_channels, eps=1e-5), conv3(out_channels, out_channels)
        self.shortcut = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x, time):
        h = self.conv1(F.silu(self.norm1(x)))
        scale, shift = self.time_proj(F.silu(time))[:, :, None, None].chunk(2, dim=1)
        return self.shortcut(x) + self.conv2(F.silu(self.norm2(h) * (1 + scale) + shift))


def shifted(change):
    return variant(Shifted, forward=lambda s, x, time: scale_shift_with(s, x, time, change))


def shifted_by_addcmul(self, x, time):
    e = self.time_proj(F.silu(time)).unflatten(1, (2, -1))[..., None, None]
    h = self.norm2(self.conv1(F.silu(self.norm1(x))))
    return self.conv2(F.silu(torch.addcmul(h + e[:, 1], h, e[:, 0]))) + self.shortcut(x)


def step(net, schedule, optimizer, x0, generator, clip=None, *, kind="v", zero="early", limit=lambda clip: clip,
         steps=1, clipping=torch.nn.utils.clip_grad_norm_, result=lambda loss: loss.item(), first=0, use=lambda g: g):
    for _ in range(first):
        optimizer.step()
    loss = diffusion_loss(net, schedule, x0, Cond(), kind, generator=use(generator))
    if zero == "early":
        optimizer.zero_grad()
    loss.backward()
    if zero == "late":
        optimizer.zero_grad()
    if limit(clip) is not None:
        clipping(net.parameters(), limit(clip))
    for _ in range(steps):
        optimizer.step()
    return result(loss)


def step_by_hand(net, schedule, optimizer, x0, generator, clip=float("inf")):
    """The loss too, with the same draws in the same order."""
    t = torch.randint(schedule.num_steps, (len(x0),), generator=generator)
    eps = torch.randn(x0.shape, generator=generator)
    v = schedule.alpha(t, 4) * eps - schedule.sigma(t, 4) * x0
    loss = F.mse_loss(net(schedule.add_noise(x0, eps, t), t, Cond()), v)
    net.zero_grad()
    loss.backward()
    length = torch.cat([p.grad.flatten() for p in net.parameters()]).norm()
    for p in net.parameters():
        p.grad *= min(1.0, (clip or float("inf")) / (length.item() + 1e-6))
    optimizer.step()
    return loss.item()


def train(net, schedule, draw, steps, generator, watch, lr=2e-3, max_decay=0.99, *, start=1, clip=1.0, early=False,
          warm="after", average=True, decay=lambda d: d, seen=lambda n: n, learning=step, more=0,
          result=lambda averages, losses: (averages, losses)):
    averages = {name: p.detach().clone() for name, p in net.named_parameters()}
    optimizer = torch.optim.AdamW(net.parameters(), lr, betas=(0.9, 0.99))
    warmup = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1, (step + 1) / 30))
    optimizer.step()
    losses = []

    def update(averages, n):
        d = min(decay(max_decay), (1 + n) / (10 + n))
        return {name: d * averages[name] + (1 - d) * p.detach() for name, p in net.named_parameters()}

    for n in range(start, steps + start + more):
        if warm == "before":
            warmup.step()
        if early:
            averages = update(averages, n)
        losses.append(learning(net, schedule, optimizer, draw(), generator, clip))
        if warm == "after":
            warmup.step()
        if average and not early:
            averages = update(averages, n)
        if seen(n) is not None:
            watch(seen(n), averages)
    return result(averages, losses)


def train_with_ema(net, schedule, draw, steps, generator, watch, lr=2e-3, max_decay=0.99):
    """The library's average, and the rate set by hand."""
    optimizer, ema, losses = torch.optim.AdamW(net.parameters(), lr, betas=(0.9, 0.99)), EMA(net, max_decay), []
    for n in range(steps):
        optimizer.param_groups[0]["lr"] = lr * min(1, (n + 1) / 30)
        losses += [step_by_hand(net, schedule, optimizer, draw(), generator, 1.0)]
        ema.update(net)
        watch(n + 1, ema.state_dict())
    return [ema.state_dict(), losses]


def one_draw(net, schedule, draw, *rest):
    x0 = draw()
    return train(net, schedule, lambda: x0, *rest)


CORRECT = {
    checks.hourglass: [Hourglass, Recursive],
    checks.what_it_sees: [sees, sees_by_nudges, partial(sees, size=torch.square),
                          partial(sees, reduce=lambda g: g.flatten(0, 1).amax(0))],
    checks.group_norm: [norm, norm_by_loop, lambda x, g, eps: F.group_norm(x, g, eps=eps)],
    checks.time_layers: [Layers, Names],
    checks.scale_shift: [Shifted, variant(Shifted, forward=shifted_by_addcmul),
                         partial(blocks.ResBlock, eps=1e-5, scale_shift=True, zero_init=True)],
    checks.unet_train_step: [step, step_by_hand, partial(step, result=lambda loss: float(loss.detach()))],
    checks.unet_training: [train, train_with_ema, partial(train, learning=step_by_hand)],
}

MUTANTS = {
    checks.hourglass: [
        (glass(keep=lambda before, after: after), "BEFORE|before|sizes of h"),
        (glass(pop=lambda hs: hs.pop(0)), "sizes of h"),
        (glass(both=lambda h, skip: [skip, h]), "skip stands first"),
        (glass(both=lambda h, skip: [h]), "number of channels"),
        (glass(both=lambda h, skip: [h, skip.detach()]), "gradient"), (glass_with("no middle"), "middle is not used"),
        (glass_with("no out"), "shape|last layers"), (glass_with("no silu"), "no other is needed"),
        (glass(last=lambda net, h: net.out(h).double()), "dtype"),
        (glass(last=lambda net, h: net.out(h.detach())), "gradient"),
        (variant(Hourglass, forward=lambda s, x, t: Hourglass.forward(s, x, t)), "TypeError"),
        (variant(Hourglass, forward=lambda s, x, t, cond=None: [].pop()), "no skip left"),
        (variant(Hourglass, forward=lambda s, x, t, cond=None: Hourglass.forward(s, x, t.flip(0))), "off by"),
        (glass(pop=lambda hs: hs[-1]), "sizes of h")],
    checks.what_it_sees: spoiled(
        sees, (dict(centre=7), r"you took \[7, 7\]"), (dict(size=lambda g: g), "absolute"),
        (dict(square=True), "everything"),
        (dict(inputs=torch.zeros), "not all 0|off by"), (dict(size=lambda g: -g.abs()), "absolute"),
        (dict(reduce=lambda g: g[:, :1].sum((0, 1))), "off by|nothing is seen"), (dict(reduce=lambda g: g[0]), "shape"),
        (dict(reduce=lambda g: g.sum((0, 1)).T), "rows and columns"), (dict(reduce=lambda g: g.sum()), "shape"),
        (dict(size=lambda g: g.abs() / 0), "absolute|infinity|off by"), (dict(inputs=torch.randn), "IndexError|raised"),
        (dict(reduce=lambda g: g.sum((0, 1)) + 1), "everything")),
    checks.group_norm: spoiled(
        norm, (dict(correction=1), "unbiased"), (dict(over=(0, 2, 3, 4)), "whole batch"),
        (dict(split=lambda x, g: x[:, :, None]), "each channel"), (dict(split=lambda x, g: x[:, None]), "all channels"),
        (dict(root=lambda v, eps: v + eps), "take its root"),
        (dict(root=lambda v, eps: v.sqrt() + eps), "under the root"),
        (dict(root=lambda v, eps: v.sqrt()), "eps is not used"),
        (dict(root=lambda v, eps: (v + 1e-5).sqrt()), "that is given"),
        (dict(shift=lambda m: 0), "mean was not"), (dict(shift=lambda m: m.detach()), "gradient"),
        (dict(give=lambda out: out.double()), "dtype"), (dict(give=torch.detach), "no gradient"),
        (dict(give=lambda out: out.flatten(2)), "shape"),
        (dict(split=lambda x, g: x.unflatten(1, (4 if x.shape[1] == 8 else 2 - x.shape[1] % 2, -1))),
         "off by|together")) + [
        (lambda x, g, eps: norm(x.unflatten(1, (-1, g)).transpose(1, 2).reshape(x.shape), g, eps).unflatten(1, (g, -1))
         .transpose(1, 2).reshape(x.shape), "as they stand")],
    checks.time_layers: [
        (layers(reversed_layers), "wrong order"), (layers(first_only), "only the first"),
        (layers(not_kept), "does not move"),
        (layers(each_from_h), "first h"), (layers(lambda s, h, time: Layers.forward(s, h, 0 * time)), "another time"),
        (layers(lambda s, h, time: [h := layer(h) for layer in s][-1:] and h), "did not get it"),
        (layers(lambda s, h, time: [h := layer(h, time) for layer in s][-1:] and h), "Only layers with"),
        (layers(lambda s, h, time: Layers.forward(s, h, time.detach())), "gradient"),
        (layers(lambda s, h, time: Layers.forward(s, h.detach(), time)), "gradient"),
        (lambda parts: nn.Sequential(*parts), "ModuleList"), (layers(lambda s, h, time: list(s)), "Tensor")],
    checks.scale_shift: [(shifted(change), hint) for change, hint in (
        ("swapped", "first half"), ("every second", "two halves"), ("no one", r"1 \+ scale"), ("before", "would undo"),
        ("no norm", "norm2 is not"), ("late", "before the second SiLU"), ("no silu", "second SiLU is missing"),
        ("plain time", "through SiLU"), ("no shift", "shift is missing"), ("no scale", "scale is missing"),
        ("shift first", "first scale"), ("no shortcut", "shortcut is missing"))] + [
        (partial(blocks.ResBlock, eps=1e-5), "other layers"),
        (partial(blocks.ResBlock, eps=1e-5, scale_shift=True, dropout=0.5), "off by"),
        (variant(Shifted, forward=lambda s, x, time: Shifted.forward(s, x, time.detach())), "gradient"),
        (variant(Shifted, forward=lambda s, x, time: Shifted.forward(s, x, time[:1])), "off by")],
    checks.unet_train_step: spoiled(
        step, (dict(kind="eps"), "learns the noise"), (dict(kind="x0"), "learns x0"),
        (dict(steps=0), "nothing has moved"),
        (dict(zero="late"), "nothing"), (dict(zero="never"), "still there"),
        (dict(limit=lambda c: None), "not clipped"),
        (dict(limit=lambda c: c and 1.0), "length 1"), (dict(limit=lambda c: c or 0.5), "off by"),
        (dict(clipping=torch.nn.utils.clip_grad_value_), "each value"), (dict(steps=2), "two steps"),
        (dict(steps=0, first=1), "before the loss"), (dict(result=lambda loss: loss), "loss.item"),
        (dict(use=lambda g: None), "off by|generator is not used"),
        (dict(result=lambda loss: loss.item() / 2), "off by")) + [
        (lambda net, s, *rest: step(net, SCHEDULE, *rest), "off by")],
    checks.unet_training: spoiled(
        train, (dict(start=0), "n starts at 1|off by"), (dict(clip=None), "told to clip"),
        (dict(warm="never"), "never grew"),
        (dict(warm="before"), "rate of the next one"), (dict(early=True), "came before the step"),
        (dict(average=False), "did not move"), (dict(decay=lambda d: 0.9999), "not handed"),
        (dict(seen=lambda n: n - 1), "after each step"), (dict(seen=lambda n: n if n % 2 else None), "after each step"),
        (dict(more=1), "one float for each"), (dict(more=-1), "one float for each"),
        (dict(learning=lambda *a: torch.tensor(step(*a))), "one float for each"),
        (dict(result=lambda a, losses: a), "two"),
        (dict(result=lambda a, losses: (losses, a)), "one float for each"), (dict(clip=0.1), "off by")) + [
        (one_draw, "same pictures")],
}

test_right_solutions_pass, test_wrong_ones_fail_with_a_hint, test_the_stub_is_named = try_all(CORRECT, MUTANTS)
