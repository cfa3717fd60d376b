"""Checks of notebook 09: known wrong solutions fail with a message that helps; right ones written another way pass."""

import math
from functools import partial

import torch
import torch.nn.functional as F
from solutions import spoiled, try_all, welford

from ldm_mini import checks
from ldm_mini.cond import Cond
from ldm_mini.diffusion import diffusion_loss, make_denoiser
from ldm_mini.latent_diffusion import LatentDiffusion
from ldm_mini.latent_diffusion import latent_scale as library_scale
from ldm_mini.samplers import ddim, dpm_solver
from ldm_mini.training.build import build_autoencoder
from ldm_mini.training.recipes import AUTOENCODERS


def loss(autoencoder, net, schedule, x, t, eps, factor, *, grad=False, scale=lambda s: s, quantize=False,
         t_noise=lambda t: t, t_net=lambda t: t, after=False, target="eps", reduce=lambda e: e.square().mean(),
         keep=lambda v: v, modes=lambda autoencoder, net: None):
    """The training loss; the options change one thing."""
    modes(autoencoder, net)
    with torch.set_grad_enabled(grad):
        z = autoencoder.encode(x)
        z = autoencoder.quantize(z)[0] if quantize == "before" else z
        z0 = z if after else z * scale(factor)
        z0 = autoencoder.quantize(z0)[0] if quantize == "after" else z0
    x_t = schedule.add_noise(z0, eps, t_noise(t)) * (factor if after else 1)
    v = schedule.alpha(t, 4) * eps - schedule.sigma(t, 4) * z0
    return keep(reduce(net(x_t, t_net(t)) - {"eps": eps, "z0": z0, "v": v, "x_t": x_t}[target]))


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
           decode=True, steps_used=lambda k, schedule: k, latents=lambda z: z):
    """The sampling pipeline; the options change one thing."""
    training = net.training
    if evaluate:
        net.eval()
    if stage_mode is not None:
        autoencoder.train(stage_mode)
    with torch.set_grad_enabled(grad):
        z = [*sampler(make_denoiser(net, schedule, Cond()), z_T, schedule,
                      steps=steps_used(steps, schedule))][seen]
        z = net.mix(z) * 0 + z if grad else z
        z = latents(unscale(z_T if first else z, factor))
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


FIRST_STAGE = build_autoencoder(AUTOENCODERS["micro"])

CORRECT = {
    checks.compression: [
        lambda h, w, f, c, k: (h * w * 3 / (c * (h // f) * (w // f)), math.log2(k) / (f * f)),
        lambda h, w, f, c, k: [3 * f**2 / c, (k - 1).bit_length() * (h // f) * (w // f) / (h * w)],
    ],
    checks.scale_factor: [
        lambda z: 1 / z.std(), lambda z: float(1 / z.flatten().std()), lambda z: z.double().var().rsqrt(),
        lambda z: library_scale(FIRST_STAGE, [{"latent": part} for part in z.split(1)]),
        lambda z: ((z - z.mean()).square().sum() / (z.numel() - 1)) ** -0.5, lambda z: welford(z.flatten().split(1)),
    ],
    checks.latent_loss: [
        loss, library_loss, loop_loss, partial(loss, reduce=lambda e: F.mse_loss(e, torch.zeros_like(e))),
        partial(loss, reduce=lambda e: e.flatten(1).pow(2).mean(1).mean()),
    ],
    checks.latent_sample: [sample, library_sample, ddim_by_hand, torch.inference_mode()(sample)],
    checks.freeze: [freeze, partial(freeze, result=lambda a, n: [*n.parameters()]), partial(freeze, result=trainable),
                    partial(freeze, result=lambda a, n: tuple(n.parameters())),
                    partial(freeze, result=lambda a, n: (p for p in n.parameters()))],
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
        (lambda h, w, f, c, k: (3 * f * f / c, math.log2(k) / f), "both sides shrink"),
        (lambda h, w, f, c, k: (3 * f * f / 4, math.log2(k) / f**2), "off by"),
        (lambda h, w, f, c, k: (3 * f * f // c, math.log2(k) // f**2), "off by"),
        (lambda h, w, f, c, k: (3 * f * f / c, 10 / f**2), "off by"),
        (lambda h, w, f, c, k: (3 * 64 * 64 / (c * (h // f) * (w // f)), math.log2(k) / f**2), "off by"),
        (lambda h, w, f, c, k: (torch.tensor([3 * f * f / c] * 2), math.log2(k) / f**2), "one number"),
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
        (lambda z: 1 / (z.std() + 1e-5), "off by up to"),
        (lambda z: 1 / z.std().clamp(min=1e-3), "off by up to"),
        (lambda z: (1 / z.std()).half(), "off by up to"),
        (lambda z: 1 / z[:1].std(), "off by up to"),
        (lambda z: 1 / z.std().round(decimals=2), "off by up to|NaN|infinity"),
        (lambda z: z / z.std(), "numbers; it should be one"),
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
        *spoiled(loss, (dict(modes=lambda a, n: a.train()), "first stage into training mode"),
                 (dict(modes=lambda a, n: n.eval()), "evaluation mode"), (dict(target="v"), "your target is v"),
                 (dict(target="x_t"), "not the noisy"), (dict(reduce=lambda e: e.square().mean().sqrt()), "no root"),
                 (dict(reduce=lambda e: e.square().mean() / 2), "half too many"),
                 (dict(reduce=lambda e: e.square().flatten(1).mean(1)), "shape"),
                 (dict(keep=lambda v: v.item()), "torch.Tensor"),
                 (dict(keep=lambda v: v.detach() + (v - v.detach()) / 2), "gradient on"),
                 (dict(keep=lambda v: v.double()), "dtype"), (dict(scale=lambda s: 1.7), "off by up to")),
        (lambda a, n, s, x, t, e, f: loss(a, n, s, x, t, torch.randn_like(e), f), "off by up to"),
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
        (lambda a, n, s, z, f, k: sample(a, n, s, torch.randn_like(z), f, k), "off by up to"),  # not the noise given
        *spoiled(sample, (dict(steps_used=lambda k, schedule: schedule.num_steps), "`steps` is not used"),
                 (dict(steps_used=lambda k, schedule: 5), "off by up to"),
                 (dict(latents=lambda z: z.clamp(-1, 1)), "clamped the latents"),
                 (dict(unscale=lambda z, s: z / 0.4), "off by up to|forgotten"),
                 (dict(sampler=partial(ddim, eta=1.0)), "off by up to"),
                 (dict(sampler=partial(ddim, spacing="leading")), "off by up to")),
        (lambda *a: sample(*a).double(), "dtype"),
        (lambda a, *rest: (sample(a, *rest), a.train())[0], "training mode"),
    ],
    checks.freeze: [
        *spoiled(freeze, (dict(result=all_of), "first stage's parameters"),
                 (dict(result=all_of, grads=False, evaluate=False), "first stage's parameters"),
                 (dict(grads=False), "asks for gradients"), (dict(evaluate=False), "training mode"),
                 (dict(also=lambda a, n: n.requires_grad_(False)), "frozen too"),
                 (dict(also=lambda a, n: n.eval()), "stay in training"),
                 (dict(also=lambda a, n: [p.data.zero_() for p in a.parameters()]), "changed the weights"),
                 (dict(result=lambda a, n: list(n.parameters())[:1]), "not all"),
                 (dict(result=lambda a, n: None), "None"), (dict(result=lambda a, n: n), "list"),
                 (dict(result=lambda a, n: n.named_parameters()), "pairs of names"),
                 (dict(result=lambda a, n: [{"params": n.parameters()}]), "a dict in it"),
                 (dict(result=lambda a, n: [*n.parameters()] * 2), "twice"),
                 (dict(result=lambda a, n: n.state_dict()), "a str in it"),
                 (dict(grads=False, also=lambda a, n: a.down.requires_grad_(False)), "asks for gradients"),
                 (dict(evaluate=False, also=lambda a, n: a.down.eval()), "training mode"),
                 (dict(evaluate=False, also=lambda a, n: setattr(a, "training", False)), "training mode"),
                 (dict(also=lambda a, n: n.dropout.eval()), "all of it")),
    ],
}

test_right_solutions_pass, test_wrong_ones_fail_with_a_hint, test_the_stub_is_named = try_all(CORRECT, MUTANTS)
