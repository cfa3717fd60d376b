"""Checks of notebook 09, latent diffusion."""

import math

import torch
from torch import Tensor

from .checking import CheckFailed, attempt, compare, number, passed, several
from .n09_models import SCHEDULE, FirstStage, Net
from .properties import fresh, fresh_whole, own_randomness, same_dtype, same_gradient


def compression(function):
    """`function(height, width, f, c, codebook_size)` -> (image values per latent value, bits per pixel)."""
    some = fresh_whole()
    f = 2 ** some(1, 5)
    for case in ((256, 256, 4, 3, 8192), (256, 256, 8, 4, 16384), (64, 32, 4, 4, 1024), (256, 256, 16, 16, 1024),
                 (f * some(2, 9), f * some(2, 9), f, some(1, 20), 2 ** some(5, 15))):
        height, width, f, c, size = case
        got = attempt(function, *case, name="compression")
        got = several(got, "compression", "two numbers: the ratio of values, and the bits per pixel")
        ratio, bits = f"values of an image per latent value, compression{case}", f"bits per pixel, compression{case}"
        compare(number(got[0], ratio), 3 * f * f / c, ratio, mistakes=[
            (3 * f / c, "both sides shrink by f: there are f * f fewer positions."),
            (f * f, "positions are f * f fewer, but an image has 3 numbers in each and the latent has c."),
            (f * f / c, "the image has 3 values (red, green, blue) at every position."),
            (c / (3 * f * f), "upside down: more than 1 means that the latent is smaller."),
            (math.log2(size) / f**2, "the order: first the ratio of the values, then the bits."),
            (3 * height * width, "divide by the number of latent values, c * (H/f) * (W/f)."),
        ])
        compare(number(got[1], bits), math.log2(size) / f**2, bits, mistakes=[
            (math.log2(size), "this is the bits of one code; one code stands for f * f pixels."),
            (c * math.log2(size) / f**2, "one code is a whole vector of c numbers: c does not count again."),
            (size / f**2, "a number below K takes log2(K) bits."),
            (math.log(size) / f**2, "natural logarithm: that is nats. Bits are log2."),
            (math.log2(size) / f, "both sides shrink by f: one code stands for f * f pixels."),
            (math.log2(size) * height * width / f**2, "that is the whole image: divide by its pixels."),
        ])
    passed("compression: fewer values to model, and far fewer bits to keep")


def scale_factor(function):
    """`function(latents)`: latents (N,c,h,w) -> the one number that gives them unit variance."""
    draw = fresh()
    # the last latents are tiny: there whoever adds a small number before dividing is far off
    for size, shape in ((1.5, (3, 2, 2, 2)), (1.5, (6, 4, 3, 5)), (2e-4, (5, 3, 2, 3))):
        # channels differ in mean and in spread, or centring each of them would go unseen
        spread = torch.linspace(0.5, 3, shape[1]).view(1, -1, 1, 1)
        z = size * (draw(*shape) * spread + torch.linspace(-1, 2, shape[1]).view(1, -1, 1, 1))
        got = attempt(function, z, name="latent_scale")
        if isinstance(got, Tensor) and got.numel() > 1:
            hint = (" One per channel would also change how much each channel counts in the loss, and the paper's "
                    "rescaling does not." if got.numel() == shape[1] else "")
            raise CheckFailed(f"latent_scale returned {got.numel()} numbers; it should be one for all values." + hint)
        z = z.double()
        std = z.std()
        compare(number(got, "latent_scale"), 1 / std, f"latent_scale of latents {shape}", rtol=1e-5, atol=0, mistakes=[
            (std, "upside down: you will *multiply* by it, so it is 1 / standard deviation."),
            (1 / std**2, "this is 1 / variance. To make the variance 1, divide by its root."),
            (std**2, "this is the variance; the factor is 1 / its square root."),
            (1 / z.std(correction=0), "the biased standard deviation (divided by n); "
             "the released code's `std()` divides by n - 1."),
            (1 / z.square().mean().sqrt(), "root mean square: it counts the mean as spread. Latents are "
             "not centred before they are scaled, but a standard deviation is about their mean."),
            (1 / z.std((0, 2, 3)).mean(), "a mean over channels of their standard deviations; take one "
             "standard deviation of all values, as they are: differences between the channels' means count."),
            (1 / z.flatten(1).std(1).mean(), "a mean over pictures of their standard deviations; take "
             "one of all values of all pictures."),
            (1 / z.var((0, 2, 3)).mean().sqrt(), "you centred each channel; the paper's factor is "
             "1 / standard deviation of all values, as they are."),
            ((z - z.mean((0, 2, 3), keepdim=True)).square().mean().rsqrt(), "you centred each "
             "channel; the paper's factor is 1 / standard deviation of all values, as they are."),
            (1 / z.abs().max(), "that scales the largest value to 1, and depends on one outlier."),
        ])
    passed("latent_scale: one number, 1 / standard deviation of all values")


def latent_loss(function):
    """`function(autoencoder, net, schedule, images, t, eps, scale)` -> the training loss, a scalar with a gradient."""
    draw = fresh()
    for scale, channels, (size, height, width) in ((1.7, 3, (4, 8, 8)), (0.18215, 4, (3, 4, 12))):
        stage, net = FirstStage(channels).eval(), Net(channels).eval()
        x, t = draw(size, 3, height, width) / 2, torch.tensor([0, 3, 11, 19])[-size:]
        eps = draw(size, channels, height // 2, width // 2)
        got = attempt(function, stage, net, SCHEDULE, x, t, eps, scale, name="latent_loss")
        calls = len(net.calls)
        with torch.no_grad():
            _hold_loss(got, stage, net, x, t, eps, scale)
        if calls != 1:
            raise CheckFailed(f"latent_loss called the network {calls} times; once for the whole batch is enough.")
        if not got.requires_grad:
            raise CheckFailed("latent_loss: the loss has no gradient. Only the first stage goes under no_grad.")
        _hold_learning(got, stage, net, (net(SCHEDULE.add_noise(scale * stage.encode(x).detach(), eps, t), t)
                                         - eps).square().mean())
        same_dtype(got, x, "the loss")
    # and once in training, where the network's dropout works, and the first stage still rests
    stage, net = FirstStage().eval(), Net()
    attempt(function, stage, net, SCHEDULE, draw(2, 3, 8, 8), torch.tensor([0, 7]), draw(2, 3, 4, 4), 1.0,
            name="latent_loss")
    if stage.seen or stage.training:
        raise CheckFailed("latent_loss put the first stage into training mode. It is finished: leave it in eval mode.")
    if not net.training or not all(net.calls):
        raise CheckFailed("latent_loss put the network into evaluation mode: it would be trained without its dropout. "
                          "Leave the modes as they are.")
    passed("latent_loss: encode, scale, add noise, predict; and the first stage learns nothing")


def _hold_learning(got, stage, net, right):
    """The network's gradients are the right ones, and the first stage gets none."""
    leaves = dict(net.named_parameters())
    awake = [p for p in stage.parameters() if p.requires_grad]  # who froze it has done enough
    if awake and any(g is not None for g in torch.autograd.grad(got, awake, retain_graph=True, allow_unused=True)):
        raise CheckFailed("latent_loss: the gradient reached the first stage. Encode under torch.no_grad(): it is "
                          "finished, and the diffusion loss would make its latents easy rather than good.")
    same_gradient(got, right, leaves, "latent_loss")


def _hold_loss(got, stage, net, x, t, eps, scale):
    """Compare with the loss, and with those of known mistakes."""
    z = stage.encode(x)
    jump = lambda z0, t=t, eps=eps: SCHEDULE.add_noise(z0, eps, t)
    error = lambda z0, t_net=t, t_noise=t: (net(jump(z0, t_noise), t_net) - eps).square().mean()
    zero, shared = (t - 1).clamp(min=0), t[:1].expand(len(t))
    compare(got, error(scale * z), "the loss", rtol=1e-4, atol=1e-6, mistakes=[
        (error(z), "no latent scale: multiply the latents by `scale` before the noise is added."),
        (error(z / scale), "the scale is upside down: it multiplies on the way in, and divides before decoding."),
        (error(scale * stage.quantize(z)[0]), "you quantised the latents. Diffusion models the vectors *before* "
         "quantisation; the decoder quantises what was generated."),
        (error(stage.quantize(z)[0]), "you quantised the latents (and forgot the scale). Diffusion models the vectors "
         "*before* quantisation."),
        (error(stage.encode(scale * x)), "you scaled the images; it is the *latents* that need unit variance."),
        (error(stage.quantize(scale * z)[0]), "you quantised the latents, and after scaling at that: the codebook does "
         "not know the scale. Diffusion models the vectors *before* quantisation."),
        ((net(scale * jump(z), t) - eps).square().mean(), "you scaled after adding the noise, so the noise was scaled "
         "too and the schedule no longer holds. Scale the clean latent."),
        (error(scale * z, t_noise=zero), "t is off by one: the noise was added for t - 1, the network was told t."),
        (error(scale * z, t_net=zero), "t is off by one: the network was told t - 1."),
        (error(scale * z, t + 1), "t is off by one: the network was told t + 1."),
        (error(scale * z, zero, zero), "t is off by one: you used t - 1 for the noise and the network."),
        (error(scale * z, shared, shared), "all samples got the first one's t; each has its own."),
        (error(scale * z, t, shared), "all samples got noise for the first one's t; each has its own."),
        ((net(scale * z, t) - eps).square().mean(), "the network saw the clean latent; add the noise first."),
        ((net(jump(scale * z), t) - scale * z).square().mean(), "this network predicts the noise: compare with eps."),
        ((net(jump(scale * z), t) - SCHEDULE.alpha(t, 4) * eps + SCHEDULE.sigma(t, 4) * scale * z).square().mean(),
         "your target is v = alpha eps - sigma z0; this network predicts the noise: compare with eps."),
        ((net(jump(scale * z), t) - jump(scale * z)).square().mean(), "the target is the noise eps, not the noisy "
                                                                      "latent."),
        (error(scale * z).sqrt(), "no root: the loss is the mean *squared* error."),
        (error(scale * z) / 2, "a half too many: the loss is the mean squared error as it is."),
        (error(scale * z) * eps[0].numel(), "a sum over the latent's values; the loss is a mean."),
        (error(scale * z) * eps.numel(), "a sum; the loss is a mean over everything."),
        ((net(jump(scale * z), t) - eps).abs().mean(), "an absolute error; the loss is the squared error."),
    ])


def latent_sample(function):
    """`function(autoencoder, net, schedule, z_T, scale, steps)` -> images (B,3,H,W) in [-1,1], by DDIM."""
    draw = fresh()
    for scale, steps, channels, shape in ((0.4, 5, 3, (3, 4, 4)), (1.6, 3, 4, (2, 3, 5))):
        z_T = draw(shape[0], channels, *shape[1:])
        stage, net = FirstStage(channels).eval(), Net(channels)
        right, mistakes = _pipeline(stage, net.eval(), z_T, scale, steps)
        stage.seen.zero_(), net.calls.clear(), net.train()
        with own_randomness():  # for dropout, if it is on
            got = attempt(function, stage, net, SCHEDULE, z_T, scale, steps, name="sample")
        if stage.seen or stage.training:
            raise CheckFailed("sample put the first stage into training mode.")
        if any(net.calls):
            raise CheckFailed("sample: the network was in training mode, so its dropout was on: call net.eval() first.")
        _hold_images(got, right, mistakes, z_T)
        if net.training is False:
            raise CheckFailed("sample left the network in evaluation mode, and training would go on without its "
                              "dropout. Remember `net.training` and restore it.")
        # and the other way round: whoever always calls net.train() at the end is wrong here
        attempt(function, stage, net.eval(), SCHEDULE, z_T, scale, steps, name="sample")
        if net.training:
            raise CheckFailed("sample put the network into training mode, which was in evaluation mode before. "
                              "Remember `net.training` and restore it: net.train(was_training).")
    passed("sample: noise, denoise, unscale, decode; and the network is as it was")


@torch.no_grad()
def _pipeline(stage, net, z_T, scale, steps):
    """The right images, not yet clamped, and what known mistakes give."""
    from ..cond import Cond
    from ..diffusion import make_denoiser
    from ..samplers import ddim

    first, *_, z0 = ddim(make_denoiser(net, SCHEDULE, Cond()), z_T, SCHEDULE, steps=steps)
    *_, every = ddim(make_denoiser(net, SCHEDULE, Cond()), z_T, SCHEDULE, steps=SCHEDULE.num_steps)
    images = lambda z, **options: stage.decode(z, **options).clamp(-1, 1)
    return stage.decode(z0 / scale), [
        (images(z0), "forgotten: divide by the scale before decoding. The decoder never saw scaled latents. (Did you "
         "scale z_T? It is noise of variance 1 already, and goes in as it is.)"),
        (images(first / scale), "this is the sampler's first step: take the *last* latent of its path."),
        ((images(z0 / scale) + 1) / 2, "the decoder speaks [-1, 1], and so should you: leave them as they are."),
        (images(z0 * scale), "you multiplied by the scale again; on the way back it divides."),
        (images(z0 / scale, quantize=False), "the decoder was given vectors that are no codes: call autoencoder.decode "
         "as it is, it quantises first."),
        (images(stage.quantize(z0)[0] / scale, quantize=False), "you quantised scaled latents: divide by the scale "
         "first, then let decode quantise."),
        (images(stage.quantize(z0)[0] / scale), "you quantised scaled latents: divide by the scale first."),
        (images(z_T / scale), "this is the noise, decoded: take the *last* latent of the sampler's path."),
        (images(every / scale), "`steps` is not used: hand it to the sampler."),
        (images(z0.clamp(-1, 1) / scale), "you clamped the latents; it is the *images* that lie in [-1, 1]."),
        (images((z0 / scale).clamp(-1, 1)), "you clamped the latents; it is the *images* that lie in [-1, 1]."),
    ]


def _hold_images(got, right, mistakes, z_T):
    """Compare with the images, and with those of known mistakes."""
    if isinstance(got, Tensor) and got.shape == z_T.shape and z_T.shape != right.shape:
        raise CheckFailed("sample returned latents, not images: divide by the scale and decode.")
    if isinstance(got, Tensor) and got.requires_grad:
        raise CheckFailed("sample kept a gradient through all steps, and all their memory. Use torch.no_grad().")
    if isinstance(got, Tensor) and got.shape == right.shape and got.abs().max() > 1 and torch.allclose(
            got.clamp(-1, 1), right.clamp(-1, 1), atol=1e-4):
        raise CheckFailed("sample: the decoder's output leaves [-1, 1] a little; clamp it: images.clamp(-1, 1).")
    compare(got, right.clamp(-1, 1), "sample(...)", rtol=1e-3, atol=1e-4, mistakes=mistakes)
    same_dtype(got, z_T, "sample(...)")


def freeze(function):
    """`function(autoencoder, net)` -> the parameters to optimise; the first stage is finished."""
    stage, net = FirstStage().train(), Net().train()
    before = [p.clone() for p in (*stage.parameters(), *net.parameters())]
    got = attempt(function, stage, net, name="freeze")
    if got is None:
        raise CheckFailed("freeze returned None; it should return the parameters for the optimizer.")
    if not hasattr(got, "__iter__"):
        raise CheckFailed("freeze should return the parameters: a list, or what `.parameters()` gives.")
    got = list(got)
    if not all(isinstance(p, Tensor) for p in got):
        found = "pairs of names and parameters" if isinstance(got[0], tuple) else f"a {type(got[0]).__name__} in it"
        raise CheckFailed(f"freeze should return the parameters themselves, as `.parameters()` does; got {found}.")
    given = {id(p) for p in got}
    if len(given) < len(got):
        raise CheckFailed("freeze returned a parameter twice: the optimizer would refuse it.")
    if given & {id(p) for p in stage.parameters()}:
        raise CheckFailed("freeze: the optimizer would get the first stage's parameters too. Even without a gradient, "
                          "another loss or weight decay could move them: return the network's alone.")
    if given != {id(p) for p in net.parameters()}:
        raise CheckFailed("freeze: not all of the network's parameters (or not only those) were returned.")
    if not all(p.requires_grad for p in net.parameters()):
        raise CheckFailed("freeze: the network is frozen too. It is the one that learns.")
    if any(p.requires_grad for p in stage.parameters()):
        raise CheckFailed("freeze: the first stage still asks for gradients: autoencoder.requires_grad_(False).")
    if stage.training or any(part.training for part in stage.modules()):
        raise CheckFailed("freeze: the first stage is still in training mode. Frozen weights are not enough: in that "
                          "mode dropout drops, and a codebook moves and restarts its codes. Call .eval().")
    if not all(part.training for part in net.modules()):
        raise CheckFailed("freeze: the network, all of it, should stay in training mode.")
    if not all(torch.equal(a, b) for a, b in zip(before, (*stage.parameters(), *net.parameters()))):
        raise CheckFailed("freeze changed the weights.")
    passed("freeze: one part is finished, the other learns")
