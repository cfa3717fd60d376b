"""Checks of notebook 05: known wrong solutions fail with a message that helps; right ones written another way pass."""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from solutions import spoiled, try_all

from ldm_mini import checks
from ldm_mini.discriminator import PatchDiscriminator, adaptive_weight, hinge_d_loss, hinge_g_loss
from ldm_mini.kl import DiagonalGaussian, KLBottleneck
from ldm_mini.train import DiscriminatorObjective

relu = torch.relu


def hinge(real, fake, *, d=lambda r, f: 0.5 * (relu(1 - r).mean() + relu(1 + f).mean()), g=lambda r, f: -f.mean()):
    return d(real, fake), g(real, fake)


def bce(logits, target):
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, target))


def hinge_by_masks(r, f):
    halves = ((1 - r) * (r < 1)).sum() / r.numel(), ((1 + f) * (f > -1)).sum() / f.numel()
    return sum(halves) / 2, -f.sum() / f.numel()


def hinge_of_list(r, f):
    """Right values by Python's arithmetic: nothing can learn from them."""
    values = [max(0.0, 1 - v) for v in r.flatten().tolist()], [max(0.0, 1 + v) for v in f.flatten().tolist()]
    return torch.tensor(sum(sum(v) / len(v) for v in values) / 2), -f.sum() / f.numel()


def walk_back(kernels, strides, one=1):
    size = 1
    for k, s in zip(kernels[::-1], strides[::-1]):
        size = (size - one) * s + k
    return size


def walk_forward(kernels, strides, late=False):
    size, jump = 1, 1
    for k, s in zip(kernels, strides):
        size += (k - 1) * (jump * s if late else jump)
        jump *= s
    return size


def count_pixels(kernels, strides):
    """By ranges of positions."""
    low = high = 0
    for k, s in reversed(list(zip(kernels, strides))):
        low, high = low * s, high * s + k - 1
    return high - low + 1


def adaptive(nll, g, model, *, of=lambda m: m.last_layer, ratio=lambda a, b: a / (b + 1e-4), high=1e4, keep=True,
             create_graph=False, give=torch.Tensor.detach):
    """Lambda; the options change one thing."""
    norms = []
    for loss, retain in ((nll, True), (g, keep)):
        grads = torch.autograd.grad(loss, of(model), retain_graph=retain, create_graph=create_graph)
        norms.append(torch.cat([v.flatten() for v in grads]).norm())
    return give(ratio(*norms).clamp(0.0, high))


def by_backward(nll, g, model):
    """Works with .grad and cleans up behind it."""
    found = []
    for loss in (nll, g):
        loss.backward(retain_graph=True)
        found.append(model.last_layer.grad.square().sum().sqrt())
        model.zero_grad(set_to_none=True)
    return min(found[0] / (found[1] + 1e-4), torch.tensor(1e4))


def whole(n, q, g, lam, step, start, w, *, gate=lambda step, start: step >= start, adv=lambda w, lam, g: w * lam * g,
          rest=lambda n, q: n + q):
    """The generator's loss; the options change one thing."""
    return rest(n, q) + (adv(w, lam, g) if gate(step, start) else 0)


def d_step(critic, optimizer, x, x_rec, *, logits=lambda critic, x, x_rec: (critic(x), critic(x_rec.detach())),
           loss=hinge_d_loss, order=("zero_grad", "backward", "step"), give=lambda v: v.detach()):
    """The discriminator's step; the options change one thing."""
    value = loss(*logits(critic, x, x_rec))
    for name in order:
        getattr(value if name == "backward" else optimizer, name)()
    return give(value)


def library_step(critic, optimizer, x, x_rec):
    return d_step(critic, optimizer, x, x_rec, logits=lambda critic, x, x_rec: (x, x_rec.detach()),
                  loss=DiscriminatorObjective(critic))


def two_backwards(critic, optimizer, x, x_rec):
    optimizer.zero_grad()
    losses = [0.5 * relu(1 - critic(x)).mean(), 0.5 * relu(1 + critic(x_rec.detach())).mean()]
    for value in losses:
        value.backward()
    optimizer.step()
    return sum(losses)


def kl(mean, logvar, var=torch.exp, log=lambda v: v, one=1, factor=0.5, reduce=lambda v: v.sum() / len(v)):
    """The divergence with one thing changed."""
    return reduce(factor * (mean**2 + var(logvar) - one - log(logvar)))


def torch_kl(mean, logvar, order=slice(None)):
    both = torch.distributions.Normal(mean, (logvar / 2).exp()), torch.distributions.Normal(torch.zeros_like(mean), 1.0)
    return torch.distributions.kl_divergence(*both[order]).sum((1, 2, 3)).mean()


CORRECT = {
    checks.hinge_losses: [
        hinge, lambda r, f: [hinge_d_loss(r, f), hinge_g_loss(f)],
        partial(hinge, d=lambda r, f: ((1 - r).clamp(min=0).mean() + F.relu(f + 1).mean()) / 2), hinge_by_masks,
        lambda r, f: (hinge_d_loss(r, f), torch.mean(-f)), lambda r, f: (hinge_by_masks(r, f)[0], -f.flatten().mean(0)),
        partial(hinge, d=lambda r, f: (torch.max(1 - r, 0 * r).mean() + torch.max(f + 1, 0 * f).mean()) / 2),
        lambda r, f: (torch.stack([F.relu(1 - r).mean(), F.relu(1 + f).mean()]).mean(), hinge_g_loss(f)),
    ],
    checks.receptive_field: [walk_back, walk_forward, count_pixels, lambda k, s: torch.tensor(walk_back(k, s)),
                             lambda k, s: float(walk_forward(k, s)), lambda k, s: torch.tensor([walk_back(k, s)])],
    checks.adaptive_lambda: [
        adaptive, lambda nll, g, m: adaptive_weight(nll, g, m.last_layer), by_backward,
        partial(adaptive, create_graph=True), partial(adaptive, give=float), partial(adaptive, give=torch.Tensor.item),
        lambda nll, g, m: adaptive(nll, g, m, of=lambda m: [m.last_layer]).reshape(()),
        lambda nll, g, m: adaptive(*(v.double() for v in (nll, g)), m).double(),
    ],
    checks.vqgan_loss: [lambda n, q, g, lam, step, start, w: sum([n, q] + [w * lam * g] * (step >= start)),
                        lambda n, q, g, lam, step, start, w: torch.stack([n, q, lam * w * g * (step >= start)]).sum(),
                        lambda n, q, g, lam, step, s0, w: torch.add(n + q, g, alpha=w * lam.item() * (step >= s0)),
                        whole, lambda n, q, g, lam, step, start, w: n + q + w * float(not step < start) * g * lam],
    checks.discriminator_step: [
        d_step, library_step, two_backwards, partial(d_step, give=lambda v: v),
        partial(d_step, give=float), partial(d_step, give=torch.Tensor.item),
        partial(d_step, logits=lambda critic, x, x_rec: critic(torch.cat([x, x_rec.detach()])).chunk(2)),
        lambda critic, optimizer, x, x_rec: library_step(critic, optimizer, x, x_rec.detach()),
    ],
    checks.gaussian_kl: [
        kl, torch_kl, lambda m, v: DiagonalGaussian(torch.cat([m, v], 1)).kl().sum() / len(m),
        lambda m, v: KLBottleneck(m.shape[1], weight=1.0, reduction="sum")(torch.cat([m, v], 1))[1],
        lambda m, v: -0.5 * torch.einsum("bchw->b", 1 + v - m * m - v.exp()).mean(),
        lambda m, v: sum(kl(a[None], b[None]) for a, b in zip(m, v)) / len(m),
        lambda m, v: kl(m.flatten(1), v.flatten(1)), lambda m, v: kl(m, v, var=lambda u: (u / 2).exp() ** 2),
        lambda m, v: kl(m, v, reduce=lambda k: k.mean() * k[0].numel()),
    ],
}

MUTANTS = {
    checks.hinge_losses: [
        *spoiled(hinge, (dict(d=lambda r, f: 0.5 * (relu(1 + r).mean() + relu(1 - f).mean())), "or their signs"),
                 (dict(d=lambda r, f: relu(1 - r).mean() + relu(1 + f).mean()), "factor 1/2"),
                 (dict(d=lambda r, f: 0.5 * (relu(-r).mean() + relu(f).mean())), "margin"),
                 (dict(d=lambda r, f: 0.5 * ((1 - r).mean() + (1 + f).mean())), "beyond the margin"),
                 (dict(d=lambda r, f: 0.5 * (relu(1 - r.mean()) + relu(1 + f.mean()))), "every logit"),
                 (dict(d=lambda r, f: 0.5 * (relu(1 - r).sum() + relu(1 + f).sum())), "not sums"),
                 (dict(d=lambda r, f: 0.5 * (F.softplus(-r).mean() + F.softplus(f).mean())), "cross entropy"),
                 (dict(d=lambda r, f: 0.5 * (relu(1 - r).square().mean() + relu(1 + f).square().mean())), "no squares"),
                 (dict(d=lambda r, f: torch.cat([relu(1 - r).flatten(), relu(1 + f).flatten()]).mean()), "a mean each"),
                 (dict(g=lambda r, f: f.mean()), "the sign"),
                 (dict(g=lambda r, f: relu(1 - f).mean()), "no hinge here"),
                 (dict(g=lambda r, f: F.softplus(-f).mean()), "cross entropy"),
                 (dict(g=lambda r, f: -f.sum()), "not a sum"),
                 (dict(g=lambda r, f: -r.mean()), "its \\*own\\* pictures"),
                 (dict(g=hinge_d_loss), "discriminator's loss again")),
        *spoiled(hinge, (dict(d=lambda r, f: bce(r, 1) / 2 + bce(f, 1) / 2), "ones for the fakes"),
                 (dict(d=lambda r, f: bce(r, 1) + bce(f, 1)), "ones for the fakes"),
                 (dict(d=lambda r, f: bce(r, 1) + bce(f, 0)), "cross entropy"),
                 (dict(d=lambda r, f: 0.5 * (relu(1 - r).mean() + relu(1 - f).mean())), "sign of the fake"),
                 (dict(d=lambda r, f: ((1 - r)**2).mean() + (f**2).mean()), "least-squares"),
                 (dict(d=lambda r, f: f.mean() - r.mean()), "and the margin are missing"),
                 (dict(d=lambda r, f: relu(1 - r).mean()), "not judged"),
                 (dict(d=lambda r, f: hinge_d_loss(r.detach(), f)), "no gradient reaches real"),
                 (dict(d=lambda r, f: hinge_d_loss(r, f.detach())), "no gradient reaches fake"),
                 (dict(d=lambda r, f: hinge_d_loss(r, f).detach()), "but no gradient"),
                 (dict(d=lambda r, f: torch.tensor(hinge_d_loss(r, f).item())), "but no gradient"),
                 (dict(d=lambda r, f: hinge_d_loss(r, f).item()), "not float"),
                 (dict(d=lambda r, f: hinge_d_loss(r, f).detach() + 0 * r.sum()), "no gradient reaches real"),
                 (dict(d=lambda r, f: 0.5 * ((1 - r) * (r < 1)).sum() / 48 + 0.5 * relu(1 + f).mean()), "off by"),
                 (dict(g=lambda r, f: -f.detach().mean()), "but no gradient"),
                 (dict(g=lambda r, f: torch.tensor(-f.mean().item())), "but no gradient"),
                 (dict(g=lambda r, f: -f.mean() + (f - f.detach()).mean()), "no gradient reaches fake"),
                 (dict(g=lambda r, f: -f.mean() + (r - r.detach()).mean()), "should get none"),
                 (dict(g=lambda r, f: -2 * f.mean() + f.detach().mean()), "comes twice"),
                 (dict(g=lambda r, f: bce(f, 0)), "cross entropy"), (dict(g=lambda r, f: 1 - f.mean()), "margin"),
                 (dict(g=lambda r, f: -f.mean() / 2), "no factor"), (dict(g=lambda r, f: relu(-f).mean()), "no hinge"),
                 (dict(g=lambda r, f: -f.mean((1, 2, 3))), "shape|IndexError")),
        (hinge_of_list, "but no gradient"),
        (torch.no_grad()(hinge), "but no gradient"),
        (lambda r, f: hinge(f, r), "swapped"),
        (lambda r, f: hinge(r, f)[::-1], "the order"),
        (hinge_d_loss, "two things"),
    ],
    checks.receptive_field: [
        *spoiled(walk_forward, (dict(late=True), "counts from the next layer")),
        *spoiled(walk_back, (dict(one=0), "-1 is missing")),
        (lambda k, s: walk_back(k[::-1], s[::-1]), "wrong direction"),
        (lambda k, s: sum(k), "add up"),
        (lambda k, s: walk_back(k, [1] * len(s)), "Without strides"),
        (lambda k, s: torch.tensor(s).prod(), "distance of two"),
        (lambda k, s: walk_back(k, s) + (len(k) > 4), "One logit needs"),
        (lambda k, s: {3: 70, 2: 34}.get(s.count(2), 1), "it should be"),
        (lambda k, s: walk_back([k.pop() for _ in k[:]][::-1], s), "changed the lists"),
        (lambda k, s: k.reverse() or s.reverse() or walk_forward(k[::-1], s[::-1]), "changed the lists"),
        (lambda k, s: walk_back(k, [2] * len(k)), "it should be"),
        (lambda k, s: walk_back([4] * len(k), s), "it should be"),
        (lambda k, s: walk_back(k, s) - 1, "One logit needs"),
        (lambda k, s: [walk_back(k, s)] * 3, "one number"),
        (lambda k, s: None, "return"),
        (lambda k, s: (walk_back(k, s),) * 2, "one number"),
    ],
    checks.adaptive_lambda: [
        *spoiled(adaptive, (dict(ratio=lambda a, b: b / (a + 1e-4)), "upside down"),
                 (dict(of=lambda m: m.parameters()), "all parameters"),
                 (dict(of=lambda m: m.encoder.weight), "the encoder's weight"),
                 (dict(ratio=lambda a, b: a / b), "delta = 1e-4 is missing"),
                 (dict(ratio=lambda a, b: a / (b + 1e-6)), "1e-4 here"),
                 (dict(ratio=lambda a, b: (a + 1e-4) / b), "denominator"),
                 (dict(ratio=lambda a, b: a**2 / (b**2 + 1e-4)), "not squared"), (dict(high=1.0), r"not \[0, 1\]"),
                 (dict(high=1e9), "clamp to"), (dict(create_graph=True, give=lambda v: v), "carries a gradient"),
                 (dict(keep=False), "retain_graph=True")),
        *spoiled(adaptive, (dict(of=lambda m: m.decoder.parameters()), "bias too"),
                 (dict(ratio=lambda a, b: a / b + 1e-4), "denominator"),
                 (dict(ratio=lambda a, b: a / (b + 1e-8)), "delta"),
                 (dict(ratio=lambda a, b: a / b.clamp(min=1e-4)), "delta"), (dict(high=1e3), "off by"),
                 (dict(give=lambda v: v[None]), "shape"), (dict(give=lambda v: None), "returned None"),
                 (dict(give=lambda v: v.clamp(max=2)), "off by"), (dict(give=lambda v: v.round()), "off by"),
                 (dict(of=lambda m: m.eval().last_layer), "another mode"),
                 (dict(of=lambda m: m.requires_grad_(True).train().last_layer), "another mode")),
        (lambda nll, g, m: (adaptive(nll, g, m), m.requires_grad_(False))[0], "frozen"),
        (lambda nll, g, m: (adaptive(nll, g, m), m.last_layer.data.mul_(0.9))[0], "changed the parameters"),
        (lambda nll, g, m: (nll / (g.abs() + 1e-4)).detach(), "not of the losses"),
        (lambda nll, g, m: 0.75 * adaptive(nll, g, m), "without disc_weight"),
        (lambda nll, g, m: (nll / (g + 1e-4)).detach(), "not of the losses"),
        (lambda nll, g, m: nll.backward(retain_graph=True) or adaptive(nll, g, m), "only returns them"),
    ],
    checks.vqgan_loss: [
        *spoiled(whole, (dict(gate=lambda step, start: step > start), "step == disc_start too"),
                 (dict(gate=lambda step, start: step < start), "upside down"),
                 (dict(gate=lambda step, start: True), "counts already"),
                 (dict(adv=lambda w, lam, g: lam * g), "disc_weight is missing"),
                 (dict(adv=lambda w, lam, g: w * g), "lambda is missing"),
                 (dict(adv=lambda w, lam, g: -w * lam * g), "the sign"),
                 (dict(adv=lambda w, lam, g: w * g / lam), "multiplies"),
                 (dict(rest=lambda n, q: n), "codebook would not learn")),
        *spoiled(whole, (dict(rest=lambda n, q: n.detach() + q), "no gradient reaches nll"),
                 (dict(rest=lambda n, q: n + q.detach()), "no gradient reaches bottleneck"),
                 (dict(rest=lambda n, q: torch.tensor((n + q).item())), "no gradient"),
                 (dict(rest=lambda n, q: n.item() + q), "no gradient reaches nll"),
                 (dict(adv=lambda w, lam, g: w * lam * g.detach()), "no gradient reaches g_loss"),
                 (dict(adv=lambda w, lam, g: w * lam * g.item()), "no gradient reaches g_loss"),
                 (dict(adv=lambda w, lam, g: w * lam), "g_loss is missing"),
                 (dict(adv=lambda w, lam, g: g), "are missing"),
                 (dict(adv=lambda w, lam, g: 0.75 * lam * g), "fixed number"),
                 (dict(adv=lambda w, lam, g: (w + lam) * g), "are multiplied"),
                 (dict(rest=lambda n, q: q), "nll is missing"),
                 (dict(gate=lambda step, start: step % start == 0 if start else True), "upside down"),
                 (dict(gate=lambda step, start: step >= 5), "step == disc_start too"),
                 (dict(rest=lambda n, q: (n + q).detach()), "no gradient")),
        (lambda *a: whole(*a).item(), "not float"),
        (lambda *a: whole(*a).detach(), "no gradient"),
        (lambda *a: whole(*a)[None], "shape"),
        (lambda n, q, g, lam, step, start, w: lam * n + q + (step >= start) * w * g, "not the reconstruction|off by"),
        (lambda n, q, g, lam, step, start, w: (step >= start) * (n + q + w * lam * g), "learns on"),
        (lambda n, q, g, lam, step, start, w: n + (step >= start) * (q + w * lam * g), "learns on"),
        (lambda n, q, g, lam, step, start, w: n + w * lam * (q + g), "adversarial term alone"),
    ],
    checks.discriminator_step: [
        *spoiled(d_step, (dict(logits=lambda d, x, y: (d(x), d(y))), r"gradients in the \*autoencoder"),
                 (dict(logits=lambda d, x, y: (d(x), d(y).detach())), "nothing from the reconstructions"),
                 (dict(order=("backward", "step")), "zero_grad"),
                 (dict(order=("backward", "zero_grad", "step")), "in this order"),
                 (dict(order=("zero_grad", "step")), "has not changed"),
                 (dict(order=("zero_grad", "backward")), "has not changed"),
                 (dict(loss=lambda r, f: hinge_d_loss(f, r)), "wrong way"),
                 (dict(loss=lambda r, f: -hinge_d_loss(r, f)), "wrong way"),
                 (dict(loss=lambda r, f: -r.mean()), "hinge loss"),
                 (dict(loss=lambda r, f: relu(1 - r).mean()), "both pictures"),
                 (dict(loss=lambda r, f: hinge_g_loss(f)), "generator's step"),
                 (dict(loss=lambda r, f: 2 * hinge_d_loss(r, f)), "twice as large"),
                 (dict(order=("zero_grad", "backward", "step", "step")), "twice as large"),
                 (dict(loss=lambda r, f: 0.5 * (F.softplus(-r).mean() + F.softplus(f).mean())), "cross entropy"),
                 (dict(loss=lambda r, f: 0.5 * relu(1 + f).mean()), "from the real"),
                 (dict(logits=lambda d, x, y: (d(x), d(y.detach_()))), "works in place"),
                 (dict(logits=lambda d, x, y: (d(y.detach()), d(x))), "wrong way"),
                 (dict(logits=lambda d, x, y: (d.eval()(x), d(y.detach()))), "another mode"),
                 (dict(logits=lambda d, x, y: (d.train()(x), d(y.detach()))), "another mode"),
                 (dict(loss=lambda r, f: (relu(1 - r) ** 2).mean() + (relu(1 + f) ** 2).mean()), "hinge loss"),
                 (dict(give=lambda v: (v, v)), "not tuple"), (dict(give=lambda v: v[None]), "shape"),
                 (dict(give=lambda v: 1 + v), "off by"),
                 (dict(give=lambda v: 2 * v), "factor 1/2"), (dict(give=lambda v: None), "returned None")),
    ],
    checks.gaussian_kl: [
        *spoiled(kl, (dict(reduce=torch.mean), "released models sum"), (dict(reduce=torch.sum), "divide by"),
                 (dict(reduce=lambda k: k.sum((1, 2, 3))), "shape|average over"),
                 (dict(var=lambda u: (u / 2).exp()), "standard deviation; the KL has"),
                 (dict(var=lambda u: u.exp() ** 2), "already"), (dict(var=lambda u: u), "is a logarithm"),
                 (dict(var=torch.square), "is a logarithm"), (dict(factor=-0.5), "never negative"),
                 (dict(factor=1.0), "factor 1/2"), (dict(log=lambda u: u / 2), "no factor but"),
                 (dict(log=lambda u: 2 * u), "not doubled"), (dict(reduce=lambda k: k.sum(1).mean()), "channels only"),
                 (dict(one=0), "-1 is missing"), (dict(log=torch.neg), "sign of logvar")),
        (lambda m, v: kl(m.detach(), v), "no gradient reaches mean"),
        (lambda m, v: kl(m, v.detach()), "no gradient reaches logvar"),
        (lambda m, v: kl(m, v, var=lambda u: u.exp().detach()), "cut off"),
        (lambda m, v: kl(m, v, log=torch.detach), "cut off"),
        (torch.no_grad()(kl), "no gradient"),
        (lambda m, v: kl(m, v).item(), "not float"),
        (lambda m, v: torch.tensor(kl(m, v).item()), "no gradient"),
        (lambda m, v: kl(m, v, reduce=lambda k: k.sum() / 4), "fixed number"),
        (lambda m, v: kl(m, v, reduce=lambda k: k.mean((1, 2, 3)).sum()), "other way round"),
        (lambda m, v: kl(m, v, reduce=lambda k: k.mean() * 12), "off by"),
        (lambda m, v: kl(m, v) / math.log(2), "bits"),
        (lambda m, v: kl(m, v, log=torch.zeros_like, one=0), "-1 - logvar"),
        (lambda m, v: kl(m, v, var=lambda u: u.exp().clamp(max=1)), "off by"),
        (lambda m, v: kl(m, 2 * v), "log of the standard deviation"),
        (lambda m, v: torch_kl(m, v, slice(None, None, -1)), "posterior q comes first"),
        (lambda m, v: kl(m, v) + 0.1, "off by up to"),
    ],
}

test_right_solutions_pass, test_wrong_ones_fail_with_a_hint, test_the_stub_is_named = try_all(CORRECT, MUTANTS)


@pytest.mark.parametrize("num_layers, field", [(1, 16), (2, 34), (3, 70)])
def test_the_exercise_agrees_with_the_library(num_layers, field):
    net = PatchDiscriminator(channels=4, num_layers=num_layers)
    convs = [m for m in net.main if isinstance(m, torch.nn.Conv2d)]
    assert walk_back([c.kernel_size[0] for c in convs], [c.stride[0] for c in convs]) == net.receptive_field == field
