"""Checks of notebook 09: known wrong solutions fail with a message that helps; right ones written another way pass."""

import math
from functools import partial

import torch
from solutions import spoiled, try_all, welford

from ldm_mini import checks
from ldm_mini.cond import Cond
from ldm_mini.diffusion import diffusion_loss, make_denoiser
from ldm_mini.latent_diffusion import LatentDiffusion
from ldm_mini.latent_diffusion import latent_scale as library_scale
from ldm_mini.samplers import ddim, dpm_solver


def loss(autoencoder, net, schedule, x, t, eps, factor, *, grad=False, scale=lambda s: s, quantize=False,
         t_noise=lambda t: t, t_net=lambda t: t, after=False, target="eps", reduce=lambda e: e.square().mean(),
         keep=lambda v: v):
    """The training loss; the options change one thing."""
    with torch.set_grad_enabled(grad):
        z = autoencoder.encode(x)
        z = autoencoder.quantize(z)[0] if quantize == "before" else z
        z0 = z if after else z * scale(factor)
        z0 = autoencoder.quantize(z0)[0] if quantize == "after" else z0
    x_t = schedule.add_noise(z0, eps, t_noise(t)) * (factor if after else 1)
    return keep(reduce(net(x_t, t_net(t)) - {"eps": eps, "z0": z0}[target]))


def library_loss(autoencoder, net, schedule, x, t, eps, factor):
    ldm = LatentDiffusion(autoencoder, net, schedule, scale_factor=factor)
    return diffusion_loss(net, schedule, ldm.encode(x), Cond(), "eps", t=t, eps=eps)


def loop_loss(autoencoder, net, schedule, x, t, eps, factor):
    """No call of the schedule's methods, detached in another way."""
    z0 = factor * autoencoder.encode(x).detach()
    abar = schedule.alphas_cumprod[t]
    x_t = torch.stack([abar[i].sqrt() * z0[i] + (1 - abar[i]).sqrt() * eps[i] for i in range(len(t))])
    error = net(x_t, t, Cond()) - eps
    return (error**2).sum() / error.numel()


def one_by_one(autoencoder, net, schedule, x, t, eps, factor):
    parts = [loss(autoencoder, net, schedule, x[i:i + 1], t[i:i + 1], eps[i:i + 1], factor) for i in range(len(x))]
    return sum(parts) / len(parts)


def sample(autoencoder, net, schedule, z_T, factor, steps, *, sampler=ddim, seen=-1, unscale=lambda z, s: z / s,
           grad=False, evaluate=True, mode=lambda was: was, quantize=True, clamp=True, first=False, stage_mode=None,
           decode=True):
    """The sampling pipeline; the options change one thing."""
    training = net.training
    if evaluate:
        net.eval()
    if stage_mode is not None:
        autoencoder.train(stage_mode)
    with torch.set_grad_enabled(grad):
        z = [*sampler(make_denoiser(net, schedule, Cond()), z_T, schedule, steps=steps)][seen]
        z = net.mix(z) * 0 + z if grad else z
        z = unscale(z_T if first else z, factor)
        images = autoencoder.decode(z, quantize=quantize) if decode else z
    net.train(mode(training))
    return images.clamp(-1, 1) if clamp else images


def library_sample(autoencoder, net, schedule, z_T, factor, steps):
    was = net.training
    net.eval()
    ldm = LatentDiffusion(autoencoder, net, schedule, scale_factor=factor)
    *_, z = ddim(ldm.denoiser(), z_T, schedule, steps=steps)
    net.train(was)
    return ldm.decode(z).clamp(-1, 1).detach()


@torch.no_grad()
def ddim_by_hand(autoencoder, net, schedule, z_T, factor, steps):
    was, z = net.training, z_T
    net.train(False)
    visited = schedule.timesteps(steps, "trailing").tolist()
    for t, s in zip(visited, visited[1:] + [-1]):
        t, s = torch.full((len(z),), t), torch.full((len(z),), s)
        eps = net(z, t)
        z0 = (z - schedule.sigma(t) * eps) / schedule.alpha(t)
        z = schedule.alpha(s) * z0 + schedule.sigma(s) * eps
    net.train(was)
    return autoencoder.decode(z * (1 / factor)).clamp(min=-1, max=1)


def freeze(autoencoder, net, *, result=lambda a, n: n.parameters(), grads=True, evaluate=True, also=lambda a, n: None):
    """The first stage put aside; the options change one thing."""
    if grads:
        autoencoder.requires_grad_(False)
    if evaluate:
        autoencoder.eval()
    also(autoencoder, net)
    return result(autoencoder, net)


def all_of(autoencoder, net):
    return [*autoencoder.parameters(), *net.parameters()]


def trainable(autoencoder, net):
    return [p for p in all_of(autoencoder, net) if p.requires_grad]


CORRECT = {
    checks.compression: [
        lambda h, w, f, c, k: (h * w * 3 / (c * (h // f) * (w // f)), math.log2(k) / (f * f)),
        lambda h, w, f, c, k: [3 * f**2 / c, (k - 1).bit_length() * (h // f) * (w // f) / (h * w)],
    ],
    checks.scale_factor: [
        lambda z: 1 / z.std(), lambda z: float(1 / z.flatten().std()), lambda z: z.double().var().rsqrt(),
        lambda z: library_scale(torch.nn.Linear(1, 1), [{"latent": part} for part in z.split(1)]),
        lambda z: ((z - z.mean()).square().sum() / (z.numel() - 1)) ** -0.5, lambda z: welford(z.flatten().split(1)),
    ],
    checks.latent_loss: [loss, library_loss, loop_loss],
    checks.latent_sample: [sample, library_sample, ddim_by_hand],
    checks.freeze: [freeze, partial(freeze, result=lambda a, n: [*n.parameters()]), partial(freeze, result=trainable)],
}

MUTANTS = {
    checks.compression: [
        (lambda h, w, f, c, k: (3 * f / c, math.log2(k) / f**2), "f \\* f fewer"),
        (lambda h, w, f, c, k: (f * f, math.log2(k) / f**2), "3 numbers"),
        (lambda h, w, f, c, k: (f * f / c, math.log2(k) / f**2), "3 values"),
        (lambda h, w, f, c, k: (c / (3 * f * f), math.log2(k) / f**2), "upside down"),
        (lambda h, w, f, c, k: (3 * h * w, math.log2(k) / f**2), "divide by the number"),
        (lambda h, w, f, c, k: (3 * f * f / c, math.log2(k)), "one code stands"),
        (lambda h, w, f, c, k: (3 * f * f / c, c * math.log2(k) / f**2), "whole vector"),
        (lambda h, w, f, c, k: (3 * f * f / c, k / f**2), "log2"),
        (lambda h, w, f, c, k: (3 * f * f / c, math.log(k) / f**2), "nats"),
        (lambda h, w, f, c, k: (3 * f * f / c, math.log2(k) * h * w / f**2), "whole image"),
        (lambda h, w, f, c, k: (math.log2(k) / f**2, 3 * f * f / c), "the order"),
        (lambda h, w, f, c, k: 3 * f * f / c, "two numbers"),
    ],
    checks.scale_factor: [
        (lambda z: z.std(), "upside down"),
        (lambda z: 1 / z.var(), "variance"),
        (lambda z: z.var(), "variance"),
        (lambda z: 1 / z.std(correction=0), "biased"),
        (lambda z: z.square().mean().rsqrt(), "root mean square"),
        (lambda z: 1 / z.std((0, 2, 3)), "one for all.*per channel"),
        (lambda z: 1 / z.std((0, 2, 3)).mean(), "mean over channels"),
        (lambda z: (z - z.mean((0, 2, 3), keepdim=True)).square().mean().rsqrt(), "centred"),
        (lambda z: 1 / z.flatten(1).std(1).mean(), "mean over pictures"),
        (lambda z: 1 / z.abs().max(), "outlier"),
        (lambda z: 0.18215, "off by up to"),
        (lambda z: None, "None"),
    ],
    checks.latent_loss: [
        *spoiled(loss, (dict(scale=lambda s: 1), "no latent scale"), (dict(scale=lambda s: 1 / s), "upside down"),
                 (dict(quantize="before"), "quantised the latents\\. .*before"),
                 (dict(quantize="before", scale=lambda s: 1), "forgot the scale"),
                 (dict(quantize="after"), "codebook does not know the scale"), (dict(after=True), "scaled after"),
                 (dict(grad=True), "gradient reached the first stage"),
                 (dict(keep=lambda v: v.detach()), "no gradient"),
                 (dict(t_noise=lambda t: (t - 1).clamp(min=0)), "off by one: the noise"),
                 (dict(t_net=lambda t: (t - 1).clamp(min=0)), "off by one: the network was told t - 1"),
                 (dict(t_net=lambda t: t + 1), "told t \\+ 1"),
                 (dict(t_noise=lambda t: (t - 1).clamp(min=0), t_net=lambda t: (t - 1).clamp(min=0)),
                  "t - 1 for the noise and the network"),
                 (dict(t_noise=lambda t: t[:1].expand(len(t)), t_net=lambda t: t[:1].expand(len(t))), "first one's t"),
                 (dict(t_noise=lambda t: t[:1].expand(len(t))), "noise for the first"),
                 (dict(target="z0"), "predicts the noise"), (dict(reduce=lambda e: e.square().sum()), "a sum"),
                 (dict(reduce=lambda e: e.square().flatten(1).sum(1).mean()), "sum over the latent"),
                 (dict(reduce=lambda e: e.abs().mean()), "absolute")),
        (lambda a, n, s, x, t, e, f: loss(a, n, s, f * x, t, e, 1), "scaled the images"),
        (one_by_one, "called the network 4 times"),
    ],
    checks.latent_sample: [
        *spoiled(sample, (dict(unscale=lambda z, s: z), "divide by the scale"),
                 (dict(unscale=lambda z, s: z * s), "multiplied"), (dict(quantize=False), "no codes"),
                 (dict(decode=False), "latents, not images"), (dict(clamp=False), "clamp"),
                 (dict(evaluate=False), "dropout was on"), (dict(first=True), "the noise, decoded"),
                 (dict(mode=lambda was: False), "left the network in evaluation"),
                 (dict(mode=lambda was: True), "into training mode"), (dict(grad=True), "gradient"),
                 (dict(stage_mode=True), "training mode"), (dict(sampler=dpm_solver), "off by up to"),
                 (dict(seen=0), "first step")),
        (lambda a, *rest: sample(a, *rest, unscale=lambda z, s: a.quantize(z)[0] / s, quantize=False),
         "quantised scaled latents"),
        (lambda a, n, s, z, f, k: sample(a, n, s, z * f, f, k), "scale z_T"),
        (lambda *a: sample(*a) / 2 + 0.5, r"speaks \[-1, 1\]"),
    ],
    checks.freeze: [
        *spoiled(freeze, (dict(result=all_of), "first stage's parameters"),
                 (dict(result=all_of, grads=False, evaluate=False), "first stage's parameters"),
                 (dict(grads=False), "asks for gradients"), (dict(evaluate=False), "training mode"),
                 (dict(also=lambda a, n: n.requires_grad_(False)), "frozen too"),
                 (dict(also=lambda a, n: n.eval()), "stay in training"),
                 (dict(also=lambda a, n: [p.data.zero_() for p in a.parameters()]), "changed the weights"),
                 (dict(result=lambda a, n: list(n.parameters())[:1]), "not all"),
                 (dict(result=lambda a, n: None), "None"), (dict(result=lambda a, n: n), "list")),
    ],
}

test_right_solutions_pass, test_wrong_ones_fail_with_a_hint, test_the_stub_is_named = try_all(CORRECT, MUTANTS)
