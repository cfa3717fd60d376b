"""The checks of notebook 04: known wrong distances must fail with a hint, right ones of any style must pass."""

from functools import partial

import torch
import torch.nn.functional as F
from solutions import spoiled, try_all
from torch import nn

from ldm_mini import checks


def guess(candidates, loss):
    return candidates.mean(0) if loss == "l2" else candidates.median(0).values


def guess_by_sorting(candidates, loss):
    ordered, n = candidates.sort(dim=0).values, len(candidates)
    return candidates.sum(0) / n if loss == "l2" else (ordered[(n - 1) // 2] + ordered[n // 2]) / 2


def guess_by_descent(candidates, loss):
    """No formula: Newton's method for L2, a ternary search over the candidates themselves for L1."""
    if loss == "l2":
        x = torch.zeros_like(candidates[0]).requires_grad_()
        gradient, = torch.autograd.grad((candidates - x).square().mean(0).sum(), x)
        return (x - gradient / 2).detach()
    cost = (candidates[:, None] - candidates[None]).abs().mean(1)
    return candidates.gather(0, cost.argmin(0, keepdim=True))[0]


def ssim(x, y, mean, c1=0.01**2, c2=0.03**2, centre=(1, 1, 1), root=False, two=2):
    m, n = mean(x), mean(y)
    v, w = mean(x * x) - centre[0] * m * m, mean(y * y) - centre[1] * n * n
    c = mean(x * y) - centre[2] * m * n
    v, w = (t.clamp(min=0).sqrt() for t in (v, w)) if root else (v, w)
    return (two * m * n + c1) / (m * m + n * n + c1) * (two * c + c2) / (v + w + c2)


def ssim_from(x, y, mean, moment):
    m, n = mean(x), mean(y)
    structure = (2 * moment(x, y) + 9e-4) / (moment(x, x) + moment(y, y) + 9e-4)
    return (2 * m * n + 1e-4) / (m * m + n * n + 1e-4) * structure


def ssim_one_average(x, y, mean):
    """All five moments by one call."""
    b = len(x)
    m, n, xx, yy, xy = mean(torch.cat([x, y, x**2, y**2, x * y])).split(b)
    luminance = (2 * m * n + 1e-4) / (m**2 + n**2 + 1e-4)
    return luminance * (2 * (xy - m * n) + 9e-4) / ((xx - m**2) + (yy - n**2) + 9e-4)


def unit(x):
    return x / x.norm(dim=1, keepdim=True).clamp(min=1e-10)


def unit_in_loops(x):
    return torch.stack([torch.stack([v / (v.square().sum() + 1e-20).sqrt() for v in image.flatten(1).T], 1)
                        .view_as(image) for image in x])


def layer(a, b, head, normalise=unit, power=2):
    d = normalise(a) - normalise(b)
    return (head[:, None, None] * d.abs() ** power).sum(1).mean((1, 2))


def layer_in_einsum(a, b, head):
    return torch.einsum("bchw,c->b", (unit(a) - unit(b)).square(), head) / (a.shape[2] * a.shape[3])


def layer_channels_last(a, b, head):
    a, b = (unit(t).flatten(2).transpose(1, 2) for t in (a, b))
    return ((a - b).square() @ head).mean(1)


def layer_by_cosine(a, b, head):
    """|u - v|^2 = |u|^2 + |v|^2 - 2 u.v, in the metric of the head."""
    dot = lambda p, q: (head[:, None, None] * p * q).sum(1)
    u, v = unit(a), unit(b)
    return (dot(u, u) + dot(v, v) - 2 * dot(u, v)).mean((1, 2))


class Lpips(nn.Module):
    """The right one, with a handle on everything that goes wrong in practice."""

    def __init__(self, net, heads, shift, scale, frozen=True, evaluating=True, stays=True, of_head=torch.clone,
                 held=True, keep_shift=nn.Module.register_buffer, into=lambda x, shift, scale: (x - shift) / scale,
                 layer=layer, join=sum, first=lambda self: None):
        super().__init__()
        self.net, self.stays, self.into, self.layer, self.join, self.first = net, stays, into, layer, join, first
        keep_shift(self, "shift", shift[:, None, None])
        self.register_buffer("scale", scale[:, None, None])
        self.heads = [of_head(head) for head in heads]
        for i, head in enumerate(self.heads if held else []):
            self.register_buffer(f"head{i}", head)
        self.requires_grad_(not frozen)
        if evaluating:
            self.eval()

    def train(self, mode=True):
        return super().train(False) if self.stays else super().train(mode)

    def forward(self, x, y):
        self.first(self)
        heads = [getattr(self, f"head{i}", head) for i, head in enumerate(self.heads)]
        maps = zip(heads, *(self.net(self.into(t, self.shift, self.scale)) for t in (x, y)))
        return self.join([self.layer(a, b, head) for head, a, b in maps])


class LpipsByConv(nn.Module):
    """As published: 1x1 convolutions behind dropout; both pictures in one batch."""

    def __init__(self, net, heads, shift, scale):
        super().__init__()
        self.net, self.lins = net, nn.ModuleList()
        for head in heads:
            conv = nn.Conv2d(len(head), 1, 1, bias=False)
            conv.weight.data = head.view(1, -1, 1, 1).clone()
            self.lins.append(nn.Sequential(nn.Dropout(), conv))
        self.shift, self.scale = nn.Parameter(shift.view(1, 3, 1, 1)), nn.Parameter(scale.view(1, 3, 1, 1))
        for p in self.parameters():
            p.requires_grad = False
        self.train(False)

    def train(self, mode=True):
        return super().train(mode=False)

    def forward(self, x, y):
        total = torch.zeros(len(x))
        for lin, both in zip(self.lins, self.net((torch.cat([x, y]) - self.shift) / self.scale)):
            a, b = F.normalize(both, dim=1).chunk(2)
            total = total + lin((a - b) ** 2).mean((2, 3))[:, 0]
        return total


class LpipsFlat(Lpips):
    """All heads in one long buffer."""

    def __init__(self, net, heads, shift, scale):
        super().__init__(net, heads, shift, scale, held=False)
        self.sizes, self.heads = [len(head) for head in heads], []
        self.register_buffer("flat", torch.cat(heads))

    def forward(self, x, y):
        self.heads = self.flat.split(self.sizes)
        return super().forward(x, y)


class DeafToTrain(Lpips):
    def train(self, mode=True):
        return self


class OneScaled(Lpips):
    def forward(self, x, y):
        return super().forward(x, y * self.scale + self.shift)


def with_random_heads(net, heads, shift, scale):
    """Holds the given ones, and uses others."""
    own = {len(head): torch.rand(len(head)) for head in heads}
    return Lpips(net, heads, shift, scale, layer=lambda a, b, head: layer(a, b, own[len(head)]))


def flat_length(x):
    return x / x.flatten(1).norm(dim=1).view(-1, 1, 1, 1)


CORRECT = {
    checks.best_guess: [
        guess, guess_by_sorting, guess_by_descent,
        lambda c, loss: c.mean(0) if loss == "l2" else c.quantile(0.5, dim=0),
    ],
    checks.ssim_map: [ssim, ssim_one_average, lambda x, y, mean: ssim(y, x, mean)],
    checks.unit_normalise: [
        unit, unit_in_loops, F.normalize, lambda x: F.normalize(x.permute(0, 2, 3, 1), dim=-1).permute(0, 3, 1, 2),
        lambda x: x * (x.square().sum(1, keepdim=True) + 1e-20).rsqrt(),
        lambda x: torch.einsum("bchw,bhw->bchw", x, 1 / (x.norm(dim=1) + 1e-10)),
    ],
    checks.layer_distance: [
        layer, layer_in_einsum, layer_channels_last, layer_by_cosine,
        lambda a, b, head: F.conv2d((unit(a) - unit(b)) ** 2, head[None, :, None, None]).mean((1, 2, 3)),
        lambda a, b, head: torch.cat([layer(p[None], q[None], head) for p, q in zip(a, b)]),
    ],
    checks.lpips: [
        Lpips, LpipsByConv, partial(Lpips, stays=False, first=nn.Module.eval),  # the last: dropout is off at every call
        partial(Lpips, layer=layer_in_einsum, join=lambda d: torch.stack(d).sum(0)), LpipsFlat,
    ],
}

MUTANTS = {
    checks.best_guess: [
        (lambda c, loss: c.mean(0), "this is the mean"),
        (lambda c, loss: c.median(0).values, "this is the median"),
        (lambda c, loss: guess(c, {"l1": "l2", "l2": "l1"}[loss]), "this is the median"),
        (lambda c, loss: c.mean() + 0 * c[0], "one number for all pixels"),
        (lambda c, loss: c.sum(0), "sum"), (lambda c, loss: c.sum(0) / 5 if loss == "l2" else guess(c, loss), "off by"),
        (lambda c, loss: (c.amax(0) + c.amin(0)) / 2, "extremes"), (lambda c, loss: guess(c, loss).double(), "dtype"),
        (lambda c, loss: c.mean(0) if loss == "l2" else c.median(0), "torch.Tensor"),
        (lambda c, loss: c.mean(0) if loss == "l2" else c.median() + 0 * c[0], "own median"),
        (lambda c, loss: c.mean(0) if loss == "l2" else c.median(0), "torch.Tensor"),
        (lambda c, loss: c.mean(0) if loss == "l2" else c[0], "off by"),
        (lambda c, loss: c.mean(0) if loss == "l2" else c.median(1).values, "shape"),
    ],
    checks.ssim_map: [
        *spoiled(ssim, (dict(centre=(0, 0, 0)), "variance and covariance are not centred"),
                 (dict(centre=(1, 1, 0)), "covariance is not centred"),
                 (dict(centre=(0, 0, 1)), "variances are not centred"), (dict(root=True), "variances"),
                 (dict(c1=9e-4, c2=1e-4), "swapped"), (dict(c1=0.01, c2=0.03), r"0.01\*\*2"),
                 (dict(c1=0, c2=0), "constants are missing"), (dict(two=1), "2 above"),
                 (dict(centre=(2, 2, 2)), "off by")),
        (lambda x, y, m: ssim(x, y, lambda t: F.avg_pool2d(F.pad(t, (1,) * 4, mode="reflect"), 3, 1)), "off by"),
        (lambda *a: ssim(*a, c1=2.55**2, c2=7.65**2), "255"), (lambda *a: ssim(*a).double(), "dtype"),
        (lambda x, y, m: ssim_from(x, y, m, lambda a, b: (m(a * b) - m(a) * m(b)).clamp(min=0)), "do not clamp"),
        (lambda x, y, m: ssim_from(x, y, m, lambda a, b: (m(a * b) - m(a) * m(b)).abs()), "no absolute"),
        (lambda *a: ssim(*a).clamp(min=0), "off by"), (lambda *a: ssim(*a).mean(1, keepdim=True), "shape"),
        (lambda *a: ssim(*a).mean(), "whole map"),
        (lambda *a: ssim(*a).mean((1, 2, 3)), "whole map"),
        (lambda *a: 1 - ssim(*a), "1 - SSIM"),
        (lambda x, y, mean: ssim_from(x, y, mean, lambda a, b: mean((a - mean(a)) * (b - mean(b)))), "has .one. mean"),
        (lambda x, y, mean: ssim_from(x, y, mean, lambda a, b: mean(a) * mean(b) - mean(a * b)), "sign"),
        (lambda x, y, m: (2 * (m(x * y) - m(x) * m(y)) + 9e-4) / (m(x * x) - m(x)**2 + m(y * y) - m(y)**2 + 9e-4),
         "compares the means"),
        (lambda x, y, m: (2 * m(x) * m(y) + 1e-4) / (m(x)**2 + m(y)**2 + 1e-4), "compares the structure"),
        (lambda x, y, m: ssim(x, y, lambda t: t.mean((2, 3), keepdim=True).expand_as(t)), "off by"),
    ],
    checks.unit_normalise: [
        (lambda x: F.normalize(x, dim=0), "channels"),
        (lambda x: F.normalize(x, dim=-1), "channels"),
        (lambda x: F.normalize(x.flatten(2), dim=2).view_as(x), "channels"),
        (flat_length, "own"),
        (lambda x: x / x.norm(), "own"), (lambda x: unit(x).double(), "dtype"), (torch.no_grad()(unit), "no gradient"),
        (lambda x: x / x.detach().norm(dim=1, keepdim=True).clamp(min=1e-10), "cut off"),
        (lambda x: unit(x.detach()), "no gradient"),
        (lambda x: x / (x.norm(dim=1, keepdim=True) + 1e-3), "off by|gradient"),
        (lambda x: x / x.norm(dim=1, keepdim=True).clamp(min=0.1), "off by"),
        (lambda x: F.normalize(x, dim=1, eps=0.5), "off by"), (lambda x: unit(x) + 0.1 * (x == 0), "no direction"),
        (lambda x: unit(x) * 5**0.5, "mean. square"),
        (lambda x: x / x.square().sum(1, keepdim=True), "square root is missing"),
        (lambda x: F.normalize(x, p=1, dim=1), "absolute"),
        (lambda x: x / x.sum(1, keepdim=True), "sum of the entries"),
        (lambda x: x / x.square().mean(1, keepdim=True).sqrt(), "mean. square"),
        (lambda x: x.softmax(1), "softmax"),
        (lambda x: (x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True), "standardises"),
        (lambda x: x / x.norm(dim=1, keepdim=True), "0 / 0"),
        (lambda x: x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10), "infinitely steep"),
        (lambda x: (x / x.norm(dim=1, keepdim=True)).nan_to_num(), "but not from the gradient"),
    ],
    checks.layer_distance: [
        *spoiled(layer, (dict(normalise=lambda t: t), "not unit-normalised"), (dict(power=1), "square them"),
                 (dict(normalise=flat_length), "off by")),
        (torch.no_grad()(layer), "no gradient"), (lambda a, b, h: layer(a.detach(), b, h), "no gradient reaches a"),
        (lambda a, b, h: layer(a, b.detach(), h), "no gradient reaches b"), (lambda *a: layer(*a).double(), "dtype"),
        (lambda a, b, h: layer(a, b, h, normalise=lambda t: t / t.detach().norm(dim=1, keepdim=True)), "cut off"),
        (lambda a, b, h: layer(a, b, h[:6]), "raised"), (lambda *a: layer(*a).detach(), "no gradient"),
        (lambda a, b, h: layer(a, b, h.sqrt()), "the weight itself"),
        (lambda a, b, h: (h[:, None, None] * unit(a - b) ** 2).sum(1).mean((1, 2)), "then subtract"),
        (lambda a, b, h: layer(a, b, torch.ones_like(h)), "no effect"),
        (lambda a, b, h: layer(a, b, h) / len(h), "mean over channels"),
        (lambda a, b, h: layer(a, b, h) * a[0, 0].numel(), "sum over positions"),
        (lambda a, b, h: layer(a, b, h * h), "weigh .after. squaring"),
        (lambda a, b, h: ((unit(a) - unit(b)) * h[:, None, None]).sum(1).square().mean((1, 2)), "must not cancel"),
        (lambda *a: layer(*a).sqrt(), "no square root"),
        (lambda a, b, h: layer(h[:, None, None] * a, h[:, None, None] * b, torch.ones_like(h)), "not the features"),
        (lambda *a: layer(*a).mean(), "one number for the batch"),
        (lambda a, b, h: (h[:, None, None] * (unit(a) - unit(b)) ** 2).sum(1), "height and width"),
        (lambda a, b, h: ((unit(a) - unit(b)) ** 2 * h).sum(1).mean((1, 2)), "RuntimeError"),
    ],
    checks.lpips: [
        *spoiled(Lpips, (dict(into=lambda x, shift, scale: x), "v0.0"),
                 (dict(into=lambda x, shift, scale: x - shift), "not divided"),
                 (dict(into=lambda x, shift, scale: x / scale), "not shifted"),
                 (dict(into=lambda x, shift, scale: (x + shift) / scale), "you added"),
                 (dict(into=lambda x, shift, scale: x * scale + shift), "backwards"),
                 (dict(join=lambda d: sum(d) / len(d)), "sum"), (dict(join=lambda d: d[-1]), "only the last"),
                 (dict(join=lambda d: d[0]), "only the first"), (dict(join=lambda d: -sum(d)), "negative"),
                 (dict(join=lambda d: sum(d).mean()), "shape"),
                 (dict(of_head=torch.rand_like), "does not hold the given heads"),
                 (dict(of_head=torch.ones_like), "are they loaded"), (dict(held=False), "register_buffer"),
                 (dict(keep_shift=setattr), "self.shift: a plain tensor stays behind"),
                 (dict(layer=lambda a, b, h: layer(a, b, torch.ones_like(h))), "heads are not used"),
                 (dict(layer=lambda a, b, h: layer(a, b, torch.rand(len(h)))), "another number each time"),
                 (dict(layer=lambda *a: layer(*a, normalise=lambda t: t)), "not unit-normalised"),
                 (dict(layer=lambda *a: layer(*a, normalise=flat_length)), "at every position"),
                 (dict(frozen=False), "not frozen"), (dict(evaluating=False, stays=False), "another number each time"),
                 (dict(stays=False), "Override `train`"), (dict(join=torch.no_grad()(sum)), "no gradient comes back"),
                 (dict(layer=lambda a, b, h: layer(a.detach(), b.detach(), h)), "no gradient comes back")),
        *spoiled(Lpips, (dict(join=lambda d: sum(d[:2])), "first two"),
                 (dict(join=lambda d: d[0] + d[1] + d[2]), "raised"),
                 (dict(join=lambda d: sum(d).sqrt()), "no square root"),
                 (dict(join=lambda d: sum(d).double()), "dtype"),
                 (dict(layer=lambda a, b, h: layer(a, b.detach(), h)), "gradient"),
                 (dict(join=lambda d: d[0] + sum(d[1:]).detach()), "cut off")),
        (lambda *parts: Lpips(*parts).forward, "nn.Module"),
        (OneScaled, "both pictures"), (DeafToTrain, "your `train` does nothing"),
        (with_random_heads, "random heads"),
    ],
}

test_right_solutions_pass, test_wrong_ones_fail_with_a_hint, test_the_stub_is_named = try_all(CORRECT, MUTANTS)
