"""Checks of notebook 09: known wrong solutions fail with a message that helps; right ones written another way pass."""

import math

import torch
from solutions import try_all

from ldm_mini import checks
from ldm_mini.cond import Cond
from ldm_mini.diffusion import diffusion_loss, make_denoiser
from ldm_mini.latent_diffusion import LatentDiffusion
from ldm_mini.latent_diffusion import latent_scale as library_scale
from ldm_mini.samplers import ddim, dpm_solver


def scale_of(**options):
    return lambda z: 1 / z.std(**options)


def welford(z):
    """One value after the other."""
    count, mean, squares = 0, 0.0, 0.0
    for v in z.double().flatten().tolist():
        count += 1
        step = v - mean
        mean += step / count
        squares += step * (v - mean)
    return (squares / (count - 1)) ** -0.5


class Pixels(torch.nn.Module):
    """An autoencoder that does nothing, for `library_scale`."""

    def __init__(self):
        super().__init__()
        self.nothing = torch.nn.Parameter(torch.zeros(()))


def loss(grad=False, scale=lambda s: s, quantize=False, t_noise=lambda t: t, t_net=lambda t: t, after=False,
         target="eps", reduce=lambda e: e.square().mean(), keep=lambda v: v):
    """The training loss with one thing changed."""
    def latent_loss(autoencoder, net, schedule, x, t, eps, factor):
        with torch.set_grad_enabled(grad):
            z = autoencoder.encode(x)
            z = autoencoder.quantize(z)[0] if quantize == "before" else z
            z0 = z if after else z * scale(factor)
            z0 = autoencoder.quantize(z0)[0] if quantize == "after" else z0
        x_t = schedule.add_noise(z0, eps, t_noise(t)) * (factor if after else 1)
        return keep(reduce(net(x_t, t_net(t)) - {"eps": eps, "z0": z0}[target]))
    return latent_loss


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
    parts = [loss()(autoencoder, net, schedule, x[i:i + 1], t[i:i + 1], eps[i:i + 1], factor) for i in range(len(x))]
    return sum(parts) / len(parts)


def sample(unscale=lambda z, s: z / s, grad=False, evaluate=True, restore=True, quantize=True, clamp=True, first=False,
           stage_mode=None, decode=True):
    """The sampling pipeline with one thing changed."""
    def run(autoencoder, net, schedule, z_T, factor, steps):
        training = net.training
        if evaluate:
            net.eval()
        if stage_mode is not None:
            autoencoder.train(stage_mode)
        with torch.set_grad_enabled(grad):
            *_, z = ddim(make_denoiser(net, schedule, Cond()), z_T, schedule, steps=steps)
            z = net.mix(z) * 0 + z if grad else z
            z = unscale(z_T if first else z, factor)
            images = autoencoder.decode(z, quantize=quantize) if decode else z
        if restore:
            net.train(training)
        return images.clamp(-1, 1) if clamp else images
    return run


def quantized_first(autoencoder, net, schedule, z_T, factor, steps):
    return sample(lambda z, s: autoencoder.quantize(z)[0] / s, quantize=False)(autoencoder, net, schedule, z_T, factor,
                                                                              steps)


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


def other_sampler(autoencoder, net, schedule, z_T, factor, steps):
    net.eval()
    *_, z = dpm_solver(make_denoiser(net, schedule, Cond()), z_T, schedule, steps=steps)
    net.train()
    return autoencoder.decode(z / factor).clamp(-1, 1).detach()


@torch.no_grad()
def one_step(autoencoder, net, schedule, z_T, factor, steps):
    was = net.training
    net.eval()
    z = next(ddim(make_denoiser(net, schedule, Cond()), z_T, schedule, steps=steps))
    net.train(was)
    return autoencoder.decode(z / factor).clamp(-1, 1)


def always_train(autoencoder, net, *rest):
    pictures = sample()(autoencoder, net, *rest)
    net.train()
    return pictures


def freeze(result="net", grads=True, evaluate=True, wrong=None):
    """The first stage put aside, with one thing changed."""
    def run(autoencoder, net):
        if grads:
            autoencoder.requires_grad_(False)
        if evaluate:
            autoencoder.eval()
        if wrong == "net frozen":
            net.requires_grad_(False)
        if wrong == "net eval":
            net.eval()
        if wrong == "weights":
            for p in autoencoder.parameters():
                p.data.zero_()
        return {"net": net.parameters(), "list": list(net.parameters()), "nothing": None, "module": net,
                "all": [*autoencoder.parameters(), *net.parameters()], "some": list(net.parameters())[:1],
                "trainable": [p for part in (autoencoder, net) for p in part.parameters() if p.requires_grad]}[result]
    return run


CORRECT = [
    (checks.compression, lambda h, w, f, c, k: (h * w * 3 / (c * (h // f) * (w // f)), math.log2(k) / (f * f))),
    (checks.compression, lambda h, w, f, c, k: [3 * f**2 / c, (k - 1).bit_length() * (h // f) * (w // f) / (h * w)]),
    (checks.scale_factor, scale_of()),
    (checks.scale_factor, lambda z: float(1 / z.flatten().std())),
    (checks.scale_factor, lambda z: z.double().var().rsqrt()),
    (checks.scale_factor, welford),
    (checks.scale_factor, lambda z: library_scale(Pixels(), [{"latent": part} for part in z.split(1)])),
    (checks.scale_factor, lambda z: ((z - z.mean()).square().sum() / (z.numel() - 1)) ** -0.5),
    (checks.latent_loss, loss()),
    (checks.latent_loss, library_loss),
    (checks.latent_loss, loop_loss),
    (checks.latent_sample, sample()),
    (checks.latent_sample, library_sample),
    (checks.latent_sample, ddim_by_hand),
    (checks.freeze, freeze()),
    (checks.freeze, freeze("list")),
    (checks.freeze, freeze("trainable")),
]

MUTANTS = [
    # arithmetic
    (checks.compression, lambda h, w, f, c, k: (3 * f / c, math.log2(k) / f**2), "f \\* f fewer"),
    (checks.compression, lambda h, w, f, c, k: (f * f, math.log2(k) / f**2), "3 numbers"),
    (checks.compression, lambda h, w, f, c, k: (f * f / c, math.log2(k) / f**2), "3 values"),
    (checks.compression, lambda h, w, f, c, k: (c / (3 * f * f), math.log2(k) / f**2), "upside down"),
    (checks.compression, lambda h, w, f, c, k: (3 * h * w, math.log2(k) / f**2), "divide by the number"),
    (checks.compression, lambda h, w, f, c, k: (3 * f * f / c, math.log2(k)), "one code stands"),
    (checks.compression, lambda h, w, f, c, k: (3 * f * f / c, c * math.log2(k) / f**2), "whole vector"),
    (checks.compression, lambda h, w, f, c, k: (3 * f * f / c, k / f**2), "log2"),
    (checks.compression, lambda h, w, f, c, k: (3 * f * f / c, math.log(k) / f**2), "nats"),
    (checks.compression, lambda h, w, f, c, k: (3 * f * f / c, math.log2(k) * h * w / f**2), "whole image"),
    (checks.compression, lambda h, w, f, c, k: (math.log2(k) / f**2, 3 * f * f / c), "the order"),
    (checks.compression, lambda h, w, f, c, k: 3 * f * f / c, "two numbers"),
    # the latent scale
    (checks.scale_factor, lambda z: z.std(), "upside down"),
    (checks.scale_factor, lambda z: 1 / z.var(), "variance"),
    (checks.scale_factor, lambda z: z.var(), "variance"),
    (checks.scale_factor, scale_of(correction=0), "biased"),
    (checks.scale_factor, lambda z: z.square().mean().rsqrt(), "root mean square"),
    (checks.scale_factor, lambda z: 1 / z.std((0, 2, 3)), "one for all.*per channel"),
    (checks.scale_factor, lambda z: 1 / z.std((0, 2, 3)).mean(), "mean over channels"),
    (checks.scale_factor, lambda z: (z - z.mean((0, 2, 3), keepdim=True)).square().mean().rsqrt(), "centred"),
    (checks.scale_factor, lambda z: 1 / z.flatten(1).std(1).mean(), "mean over pictures"),
    (checks.scale_factor, lambda z: 1 / z.abs().max(), "outlier"),
    (checks.scale_factor, lambda z: 0.18215, "off by up to"),
    (checks.scale_factor, lambda z: None, "None"),
    # the loss
    (checks.latent_loss, loss(scale=lambda s: 1), "no latent scale"),
    (checks.latent_loss, loss(scale=lambda s: 1 / s), "upside down"),
    (checks.latent_loss, loss(quantize="before"), "quantised the latents\\. .*before"),
    (checks.latent_loss, loss(quantize="before", scale=lambda s: 1), "forgot the scale"),
    (checks.latent_loss, loss(quantize="after"), "codebook does not know the scale"),
    (checks.latent_loss, loss(after=True), "scaled after"),
    (checks.latent_loss, lambda a, n, s, x, t, e, f: loss()(a, n, s, f * x, t, e, 1), "scaled the images"),
    (checks.latent_loss, loss(grad=True), "gradient reached the first stage"),
    (checks.latent_loss, loss(keep=lambda v: v.detach()), "no gradient"),
    (checks.latent_loss, loss(t_noise=lambda t: (t - 1).clamp(min=0)), "off by one: the noise"),
    (checks.latent_loss, loss(t_net=lambda t: (t - 1).clamp(min=0)), "off by one: the network was told t - 1"),
    (checks.latent_loss, loss(t_net=lambda t: t + 1), "told t \\+ 1"),
    (checks.latent_loss, loss(t_noise=lambda t: (t - 1).clamp(min=0), t_net=lambda t: (t - 1).clamp(min=0)),
     "t - 1 for the noise and the network"),
    (checks.latent_loss, loss(t_noise=lambda t: t[:1].expand(len(t)), t_net=lambda t: t[:1].expand(len(t))),
     "first one's t"),
    (checks.latent_loss, loss(t_noise=lambda t: t[:1].expand(len(t))), "noise for the first"),
    (checks.latent_loss, loss(target="z0"), "predicts the noise"),
    (checks.latent_loss, loss(reduce=lambda e: e.square().sum()), "a sum"),
    (checks.latent_loss, loss(reduce=lambda e: e.square().flatten(1).sum(1).mean()), "sum over the latent"),
    (checks.latent_loss, loss(reduce=lambda e: e.abs().mean()), "absolute"),
    (checks.latent_loss, one_by_one, "called the network 4 times"),
    # sampling
    (checks.latent_sample, sample(unscale=lambda z, s: z), "divide by the scale"),
    (checks.latent_sample, sample(unscale=lambda z, s: z * s), "multiplied"),
    (checks.latent_sample, sample(quantize=False), "no codes"),
    (checks.latent_sample, quantized_first, "quantised scaled latents"),
    (checks.latent_sample, sample(decode=False), "latents, not images"),
    (checks.latent_sample, sample(clamp=False), "clamp"),
    (checks.latent_sample, sample(evaluate=False), "dropout was on"),
    (checks.latent_sample, sample(restore=False), "left the network in evaluation"),
    (checks.latent_sample, sample(first=True), "the noise, decoded"),
    (checks.latent_sample, sample(grad=True), "gradient"),
    (checks.latent_sample, sample(stage_mode=True), "training mode"),
    (checks.latent_sample, other_sampler, "off by up to"),
    (checks.latent_sample, lambda a, n, s, z, f, k: sample()(a, n, s, z * f, f, k), "scale z_T"),
    (checks.latent_sample, lambda *a: sample()(*a) / 2 + 0.5, r"speaks \[-1, 1\]"),
    (checks.latent_sample, one_step, "first step"),
    (checks.latent_sample, always_train, "into training mode"),
    # what learns
    (checks.freeze, freeze("all"), "first stage's parameters"),
    (checks.freeze, freeze("all", grads=False, evaluate=False), "first stage's parameters"),
    (checks.freeze, freeze(grads=False), "asks for gradients"),
    (checks.freeze, freeze(evaluate=False), "training mode"),
    (checks.freeze, freeze("list", wrong="net frozen"), "frozen too"),
    (checks.freeze, freeze(wrong="net eval"), "stay in training"),
    (checks.freeze, freeze(wrong="weights"), "changed the weights"),
    (checks.freeze, freeze("some"), "not all"),
    (checks.freeze, freeze("nothing"), "None"),
    (checks.freeze, freeze("module"), "list"),
]


test_right_solutions_pass, test_wrong_ones_fail_with_a_hint, test_the_stub_is_named = try_all(CORRECT, MUTANTS)
