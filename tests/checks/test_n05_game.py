"""The checks of notebook 05 that look at the critic's layers and at both players' step, with wrong and right ones."""

from functools import partial

import torch
import torch.nn.functional as F
from solutions import spoiled, try_all
from torch import nn

from ldm_mini import checks
from ldm_mini.discriminator import PatchDiscriminator, hinge_d_loss
from ldm_mini.kl import DiagonalGaussian


def layers_of(channels, layers, slope=lambda: nn.LeakyReLU(0.2), norm=nn.BatchNorm2d, most=8, kernel=4, padding=1,
              bias=False, last=1, out=1, end=(), first_norm=False, wrap=nn.Sequential):
    """The critic; the options change one thing."""
    widths = [channels * min(2**n, most) for n in range(layers + 1)]
    net = [nn.Conv2d(3, channels, kernel, 2, padding), *([norm(channels)] if first_norm else []), slope()]
    for n in range(1, layers + 1):
        net += [nn.Conv2d(widths[n - 1], widths[n], kernel, 2 if n < layers else last, padding, bias=bias),
                norm(widths[n]), slope()]
    return wrap(*net, nn.Conv2d(widths[-1], out, kernel, padding=padding), *end)


def appended(channels, layers):
    net, width = nn.Sequential(nn.Conv2d(3, channels, 4, 2, 1), nn.LeakyReLU(0.2, inplace=True)), channels
    for n in range(layers):
        wide = min(2 * width, 8 * channels)
        for layer in (nn.Conv2d(width, wide, 4, 1 + (n + 1 < layers), 1, bias=False), nn.BatchNorm2d(wide),
                      nn.LeakyReLU(0.2)):
            net.append(layer)
        width = wide
    return net.append(nn.Conv2d(width, 1, 4, 1, 1))


def seen(critic, x, pick=lambda v: v[0, 0, v.shape[2] // 2, v.shape[3] // 2], end=lambda g: g.abs().sum((0, 1))):
    x = x.clone().requires_grad_()
    return end(torch.autograd.grad(pick(critic(x)), x)[0])


def seen_by_backward(critic, x):
    x = nn.Parameter(x.clone())
    logits = critic(x)
    logits[..., logits.size(-2) // 2, logits.size(-1) // 2].sum().backward()
    return x.grad[0].abs().sum(dim=0)


def by_trial(losses, layer, step=1e-3, unit=lambda g: g / g.norm(), sides=(1, -1), way=2, back=lambda start, now: start,
             left=lambda start, now: start, end=list):
    """The pulls by central differences; the options change one thing."""
    ways = [unit(torch.autograd.grad(loss, layer, retain_graph=True)[0]) for loss in losses()]
    first, start, slopes = layer.data.clone(), layer.data.clone(), []
    for i, direction in enumerate(ways):
        values = []
        for side in sides:
            layer.data = start + side * step * direction
            values.append(losses()[i].item())
        start = back(start, layer.data.clone())
        slopes.append((values[0] - values[1]) / (way * step))
    layer.data = left(first, layer.data)
    return end(slopes)


def by_trial_in_place(losses, layer, step):
    slopes = []
    for i in range(len(losses())):
        gradient, = torch.autograd.grad(losses()[i], layer)
        direction = torch.nn.functional.normalize(gradient.flatten(), dim=0).view_as(gradient)
        with torch.no_grad():
            above = losses()[i] if layer.add_(step * direction) is layer else None
            slopes.append((above - (losses()[i] if layer.sub_(2 * step * direction) is layer else None)) / (2 * step))
            layer.add_(step * direction)
    return tuple(slopes)


def by_collected_gradients(losses, layer, step):
    start, slopes = layer.data.clone(), []
    for i, loss in enumerate(losses()):
        loss.backward()
        values = []
        for side in (1, -1):
            layer.data = start + side * step * layer.grad / layer.grad.norm()
            values.append(losses()[i].item())
        layer.data = start
        slopes.append((values[0] - values[1]) / (2 * step))
    return slopes


def d_step(critic, optimizer, x, x_rec):
    loss = hinge_d_loss(critic(x), critic(x_rec.detach()))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.detach()


def game(model, critic, optimizers, x, step, start, weight, rec_loss, weigh, *, on=lambda step, start: step >= start,
         whole=lambda nll, q, w, lam, g: nll + q + w * lam * g, fake=lambda x_rec: x_rec, say=lambda v: -v.mean(),
         clear=True, shown=lambda model, x, x_rec: x_rec, d_on=None, critic_first=False, swap=False,
         give=lambda x_rec, lam, d: (x_rec.detach(), lam, d)):
    """Both players' step; the options change one thing."""
    zero = torch.zeros(())
    x_rec, bottleneck = model(x)
    nll, lam, d_loss, g_loss = rec_loss(x, x_rec), zero, zero, zero
    play, d_play = on(step, start), (d_on or on)(step, start)
    if critic_first and d_play:
        d_loss = d_step(critic, optimizers[1], x, x_rec)
    if play:
        g_loss = say(critic(fake(x_rec)))
        lam = weigh(nll, g_loss, model)
    loss = whole(nll, bottleneck, weight, lam, g_loss)
    if clear:
        optimizers[0].zero_grad()
    loss.backward()
    optimizers[0].step()
    if d_play and not critic_first:
        d_loss = d_step(critic, optimizers[0 if swap else 1], x, shown(model, x, x_rec))
    return give(x_rec, lam, d_loss)


def game_in_two_branches(model, critic, optimizers, x, step, start, weight, rec_loss, weigh):
    x_rec, loss = model(x)
    nll = rec_loss(x, x_rec)
    loss, lam, fake = loss + nll, 0.0, x_rec.detach()
    for optimizer in optimizers:
        optimizer.zero_grad(set_to_none=True)
    if step < start:
        loss.backward()
        optimizers[0].step()
        return fake, 0.0, 0.0
    critic.requires_grad_(False)
    g_loss = -critic(x_rec).mean()
    lam = weigh(nll, g_loss, model)
    (loss + weight * lam * g_loss).backward()
    critic.requires_grad_(True)
    optimizers[0].step()
    return [fake, float(lam), d_step(critic, optimizers[1], x, fake).item()]


def sample(mean, logvar, eps, sigma=lambda v: (v / 2).exp(), end=lambda m, s, e: m + s * e):
    return end(mean, sigma(logvar), eps)


def forgive(model, x, eps, levels, quantize, scale=torch.std, end=lambda d: d.square().mean().sqrt().item(),
            clean=lambda model, x, z, q: model.decode(z, quantize=q), noisy=lambda q: q):
    z = model.encode(x)
    right = clean(model, x, z, quantize)
    return [end(model.decode(z + v * scale(z) * eps, quantize=noisy(quantize)) - right) for v in levels]


def forgive_at_once(model, x, eps, levels, quantize):
    z = model.encode(x)
    many = z + torch.tensor(levels).view(-1, *[1] * z.dim()) * z.std() * eps
    change = (model.decode(many, quantize) - model.decode(z, quantize)).flatten(1)
    return change.pow(2).mean(1) ** 0.5


CORRECT = {
    checks.measured_pulls: [by_trial, by_trial_in_place, partial(by_trial, end=tuple)],
    checks.patch_critic: [layers_of, appended, lambda c, n: PatchDiscriminator(channels=c, num_layers=n).main,
                          lambda c, n: nn.Sequential(*list(layers_of(c, n)))],
    checks.footprint: [seen, seen_by_backward, partial(seen, end=lambda g: g[0].abs().sum(0)),
                       partial(seen, end=lambda g: torch.einsum("bchw->hw", g.abs()))],
    checks.vqgan_step: [game, game_in_two_branches, partial(game, give=lambda *a: [a[0].detach(), *map(float, a[1:])]),
                        partial(game, say=lambda v: (-v).sum() / v.numel())],
    checks.gaussian_sample: [sample, lambda m, v, e: torch.addcmul(m, v.exp().sqrt(), e),
                             partial(sample, sigma=lambda v: v.exp() ** 0.5),
                             lambda m, v, e: m + DiagonalGaussian(torch.cat([m, v], 1)).std * e],
    checks.forgive: [forgive, forgive_at_once, partial(forgive, end=lambda d: d.square().mean().sqrt()),
                     lambda *a: tuple(forgive(*a))],
}

MUTANTS = {
    checks.measured_pulls: [
        *spoiled(by_trial, (dict(unit=lambda g: g), "length 1"), (dict(sides=(1, 0), way=1), "one side"),
                 (dict(sides=(0, -1), way=1), "one side"), (dict(way=1), "2 . step apart"),
                 (dict(sides=(-1, 1)), "the sign"), (dict(back=lambda start, now: now), "between two losses"),
                 (dict(left=lambda start, now: now), "left the layer moved"), (dict(end=sum), "should return t"),
                 (dict(end=lambda slopes: slopes[:1]), "numbers"), (dict(unit=lambda g: g.sign()), "off by")),
        (lambda losses, layer, step: [torch.autograd.grad(loss, layer)[0].norm() for loss in losses()], "autograd"),
        (lambda losses, layer, step: by_trial(losses, layer, 1e-3), "autograd says|off by"),
        (by_collected_gradients, "the loss before"),
    ],
    checks.patch_critic: [
        *spoiled(layers_of, (dict(slope=lambda: nn.LeakyReLU()), "0.01"), (dict(slope=nn.ReLU), "has the layers"),
                 (dict(most=16), "channels"), (dict(kernel=3), "kernel"), (dict(padding=0), "padding"),
                 (dict(bias=True), "no bias"), (dict(last=2), "stride"), (dict(out=3), "channels"),
                 (dict(end=[nn.Sigmoid()]), "has the layers"), (dict(first_norm=True), "has the layers"),
                 (dict(norm=nn.InstanceNorm2d), "has the layers"), (dict(wrap=lambda *net: list(net)), "nn.Sequential"),
                 (dict(norm=lambda w: nn.BatchNorm2d(w, affine=False)), "norms lack"),
                 (dict(norm=lambda w: nn.BatchNorm2d(w, eps=1.0)), "off by")),
        (lambda c, n: layers_of(c, n + 1), "has the layers"), (lambda c, n: layers_of(c, 2), "has the layers"),
        (lambda c, n: layers_of(16, n), "channels"),
    ],
    checks.footprint: [
        *spoiled(seen, (dict(end=lambda g: g.sum((0, 1))), "absolute values first"),
                 (dict(end=lambda g: g.sum((0, 1)).abs()), "absolute values first"),
                 (dict(end=lambda g: g.square().sum((0, 1))), "not squares"), (dict(end=torch.abs), "sum over picture"),
                 (dict(end=lambda g: g[0].abs()), "sum over the colours"), (dict(end=lambda g: g.abs().sum(1)), "drop"),
                 (dict(end=lambda g: g[0].abs().mean(0)), "not their mean"), (dict(end=lambda g: g[0, 0].abs()), "one"),
                 (dict(end=lambda g: g.abs().sum((0, 1)).T), "changed places"), (dict(pick=torch.sum), "all logits"),
                 (dict(pick=torch.mean), "all logits"), (dict(pick=lambda v: v[0, 0, 0, 0]), "corner"),
                 (dict(pick=lambda v: v[0, 0, v.shape[2] // 2, v.shape[2] // 2]), "width"),
                 (dict(end=lambda g: g.abs().sum((0, 1)) > 0), "dtype"))],
    checks.vqgan_step: [
        *spoiled(game, (dict(on=lambda step, start: step > start), "adversarial term|not changed"),
                 (dict(on=lambda step, start: True), "does not count"),
                 (dict(d_on=lambda *a: True), "the critic learned"),
                 (dict(d_on=lambda *a: False), "the critic has not changed"),
                 (dict(fake=torch.detach), "adversarial term"),
                 (dict(whole=lambda n, q, w, lam, g: n + w * lam * g), "bottleneck"),
                 (dict(whole=lambda n, q, w, lam, g: n + q + lam * g), "disc_weight"),
                 (dict(whole=lambda n, q, w, lam, g: n + q + w * g), "lambda is missing"),
                 (dict(whole=lambda n, q, w, lam, g: n + q - w * lam * g), "the sign"),
                 (dict(whole=lambda n, q, w, lam, g: n + q + 0 * g), "adversarial term"),
                 (dict(whole=lambda n, q, w, lam, g: n + q + 0.75 * lam * g), "did not make the step"),
                 (dict(clear=False), "zero_grad"), (dict(critic_first=True), "went first"),
                 (dict(swap=True), "the critic has not changed|did not make"),
                 (dict(shown=lambda model, x, x_rec: model(x)[0].detach()), "new reconstructions"),
                 (dict(say=lambda v: -v.sum()), "did not make"), (dict(say=lambda v: F.softplus(-v).mean()), "did not"),
                 (dict(give=lambda x_rec, lam, d: (x_rec, lam, d)), "detach"),
                 (dict(give=lambda x_rec, lam, d: x_rec.detach()), "three things"),
                 (dict(give=lambda x_rec, lam, d: (x_rec.detach(), d, lam)), "the returned lambda"),
                 (dict(give=lambda x_rec, lam, d: (x_rec.detach(), lam, d + 1)), "the returned loss of the critic"))],
    checks.gaussian_sample: [
        *spoiled(sample, (dict(sigma=torch.exp), "is the variance"), (dict(sigma=lambda v: v), "is a logarithm"),
                 (dict(sigma=lambda v: v / 2), "take its exp"), (dict(sigma=lambda v: (-v / 2).exp()), "sign"),
                 (dict(end=lambda m, s, e: m), "the mode"), (dict(end=lambda m, s, e: s * e), "mean is missing"),
                 (dict(end=lambda m, s, e: m + e), "sigma is missing"), (dict(end=lambda m, s, e: m - s * e), "plus"),
                 (dict(end=lambda m, s, e: m.detach() + s * e), "no gradient reaches mean"),
                 (dict(end=lambda m, s, e: m + s.detach() * e), "no gradient reaches logvar"),
                 (dict(end=lambda m, s, e: m * s + e), "not to the mean"),
                 (dict(end=lambda m, s, e: (m + e) * s), "alone"),
                 (dict(end=lambda m, s, e: m + s * torch.randn_like(e)), "off by"))],
    checks.forgive: [
        *spoiled(forgive, (dict(scale=lambda z: 1), "standard deviation"), (dict(scale=torch.var), "not the variance"),
                 (dict(end=lambda d: d.square().mean().item()), "root of the mean"),
                 (dict(end=lambda d: d.abs().mean().item()), "absolute"),
                 (dict(end=lambda d: d.norm()), "mean. square"),
                 (dict(clean=lambda model, x, z, q: x), "clean reconstruction"),
                 (dict(clean=lambda model, x, z, q: model.decode(z, not q)), "the same way"),
                 (dict(noisy=lambda q: not q), "as given"), (dict(end=lambda d: d), "one number")),
        (lambda model, x, eps, levels, quantize: forgive(model, x, eps, levels, True), "not used"),
        (lambda model, x, eps, levels, q: forgive(model, x, eps, levels[:1], q), "shape"),
        (lambda model, x, eps, levels, q: forgive(model, x, torch.randn_like(eps), levels, q), "off by"),
    ],
}

test_right_solutions_pass, test_wrong_ones_fail_with_a_hint, test_the_stub_is_named = try_all(CORRECT, MUTANTS)
