"""Checks of notebook 09, latent diffusion."""

import math

import torch
from torch import Tensor, nn

from ..schedule import NoiseSchedule
from .checking import CheckFailed, attempt, compare, noise, number, passed, several

SCHEDULE = NoiseSchedule(torch.linspace(0.01, 0.35, 20, dtype=torch.float64))
CODES = torch.tensor([-1.5, -0.5, 0.5, 1.5])  # the codebook of `FirstStage`, in one dimension


class FirstStage(nn.Module):
    """A first stage small enough to know everything about: 2x2 patches to 3 latent channels, rounded to four levels.

    It counts what is asked of it, and behaves wrongly in training mode, as one with dropout or a codebook would.
    """

    def __init__(self):
        super().__init__()
        self.down, self.up = nn.Conv2d(3, 3, 2, stride=2), nn.ConvTranspose2d(3, 3, 2, stride=2)
        with torch.no_grad():
            for i, p in enumerate(self.parameters()):
                p.copy_(0.4 * noise(*p.shape, seed=10 + i))
        self.seen = torch.zeros(())  # how often it was used in training mode

    def encode(self, x: Tensor, sample: bool = False, generator=None) -> Tensor:
        """x (B,3,H,W) -> z (B,3,H/2,W/2), before quantisation."""
        self.seen += self.training
        return self.down(x) + 0.3

    def quantize(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """z -> nearest levels (straight-through), indices, loss: as of `Autoencoder`, but one code per value."""
        indices = (z.detach()[..., None] - CODES).abs().argmin(-1)
        z_q = CODES[indices]
        return z + (z_q - z).detach(), indices, (z - z_q).square().mean()

    def decode(self, z: Tensor, quantize: bool = True) -> Tensor:
        """z -> x; quantises first, unless told not to."""
        self.seen += self.training
        return self.up(self.quantize(z)[0] if quantize else z)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x -> reconstruction, loss."""
        z_q, _, loss = self.quantize(self.encode(x))
        return self.decode(z_q, quantize=False), loss


class Net(nn.Module):
    """Predicts noise, badly, from x_t and t; remembers in which mode it was asked."""

    def __init__(self):
        super().__init__()
        self.mix = nn.Conv2d(3, 3, 1)
        with torch.no_grad():
            self.mix.weight.copy_(0.5 * noise(3, 3, 1, 1, seed=20))
            self.mix.bias.zero_()
        self.dropout, self.calls = nn.Dropout(0.5), []

    def forward(self, x: Tensor, t: Tensor, cond=None) -> Tensor:
        """x (B,3,h,w), t (B,) -> (B,3,h,w)"""
        self.calls.append(self.training)
        return self.dropout(self.mix(x) * (1 + t.view(-1, 1, 1, 1) / 10))


def compression(function):
    """`function(height, width, f, c, codebook_size)` -> (image values per latent value, bits per pixel)."""
    for case in ((256, 256, 4, 3, 8192), (256, 256, 8, 4, 16384), (64, 32, 4, 4, 1024), (256, 256, 16, 16, 1024)):
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
    for seed, shape in ((0, (3, 2, 2, 2)), (1, (6, 4, 3, 5))):
        # channels differ in mean and in spread, or centring each of them would go unseen
        spread = torch.linspace(0.5, 3, shape[1]).view(1, -1, 1, 1)
        z = 1.5 * noise(*shape, seed=seed) * spread + torch.linspace(-2, 3, shape[1]).view(1, -1, 1, 1)
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
    for scale in (1.7, 0.18215):
        stage, net = FirstStage().eval(), Net().eval()
        x, t, eps = noise(4, 3, 8, 8) / 2, torch.tensor([0, 3, 11, 19]), noise(4, 3, 4, 4, seed=1)
        got = attempt(function, stage, net, SCHEDULE, x, t, eps, scale, name="latent_loss")
        calls = len(net.calls)
        with torch.no_grad():
            _hold_loss(got, stage, net, x, t, eps, scale)
        if calls != 1:
            raise CheckFailed(f"latent_loss called the network {calls} times; once for the whole batch is enough.")
        if not got.requires_grad:
            raise CheckFailed("latent_loss: the loss has no gradient. Only the first stage goes under no_grad.")
        got.backward()
        if any(p.grad is not None for p in stage.parameters()):
            raise CheckFailed("latent_loss: the gradient reached the first stage. Encode under torch.no_grad(): it is "
                              "finished, and the diffusion loss would make its latents easy rather than good.")
        if net.mix.weight.grad is None:
            raise CheckFailed("latent_loss: the gradient did not reach the network.")
    passed("latent_loss: encode, scale, add noise, predict; and the first stage learns nothing")


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
        (error(scale * z) * eps[0].numel(), "a sum over the latent's values; the loss is a mean."),
        (error(scale * z) * eps.numel(), "a sum; the loss is a mean over everything."),
        ((net(jump(scale * z), t) - eps).abs().mean(), "an absolute error; the loss is the squared error."),
    ])


def latent_sample(function):
    """`function(autoencoder, net, schedule, z_T, scale, steps)` -> images (B,3,H,W) in [-1,1], by DDIM."""
    from ..cond import Cond
    from ..diffusion import make_denoiser
    from ..samplers import ddim

    scale, z_T, steps = 0.4, noise(3, 3, 4, 4), 5
    stage, net = FirstStage().eval(), Net()
    with torch.no_grad():
        net.eval()
        first, *_, z0 = ddim(make_denoiser(net, SCHEDULE, Cond()), z_T, SCHEDULE, steps=steps)
        right = stage.decode(z0 / scale)
    net.train()
    torch.manual_seed(0)  # dropout, if it is on
    got = attempt(function, stage, net, SCHEDULE, z_T, scale, steps, name="sample")
    if isinstance(got, Tensor) and got.shape == z_T.shape:
        raise CheckFailed("sample returned latents, not images: divide by the scale and decode.")
    if isinstance(got, Tensor) and got.requires_grad:
        raise CheckFailed("sample kept a gradient through all steps, and all their memory. Use torch.no_grad().")
    if stage.seen:
        raise CheckFailed("sample put the first stage into training mode.")
    if any(net.calls[steps:]):
        raise CheckFailed("sample: the network was in training mode, so its dropout was on: call net.eval() first.")
    images = lambda z, **options: stage.decode(z, **options).clamp(-1, 1).detach()
    if isinstance(got, Tensor) and got.shape == right.shape and got.abs().max() > 1 and torch.allclose(
            got.clamp(-1, 1), right.clamp(-1, 1), atol=1e-4):
        raise CheckFailed("sample: the decoder's output leaves [-1, 1] a little; clamp it: images.clamp(-1, 1).")
    compare(got, right.clamp(-1, 1), "sample(...)", rtol=1e-3, atol=1e-4, mistakes=[
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
    ])
    if net.training is False:
        raise CheckFailed("sample left the network in evaluation mode, and training would go on without its dropout. "
                          "Remember `net.training` and restore it.")
    # and the other way round: whoever always calls net.train() at the end is wrong here
    attempt(function, stage, net.eval(), SCHEDULE, z_T, scale, steps, name="sample")
    if net.training:
        raise CheckFailed("sample put the network into training mode, which was in evaluation mode before. Remember "
                          "`net.training` and restore it: net.train(was_training).")
    passed("sample: noise, denoise, unscale, decode; and the network is as it was")


def freeze(function):
    """`function(autoencoder, net)` -> the parameters to optimise; the first stage is finished."""
    stage, net = FirstStage().train(), Net().train()
    before = [p.clone() for p in (*stage.parameters(), *net.parameters())]
    got = attempt(function, stage, net, name="freeze")
    if got is None:
        raise CheckFailed("freeze returned None; it should return the parameters for the optimizer.")
    try:
        given = {id(p) for p in got}
    except TypeError:
        raise CheckFailed("freeze should return the parameters: a list, or what `.parameters()` gives.") from None
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
    if not net.training:
        raise CheckFailed("freeze: the network should stay in training mode.")
    if not all(torch.equal(a, b) for a, b in zip(before, (*stage.parameters(), *net.parameters()))):
        raise CheckFailed("freeze changed the weights.")
    passed("freeze: one part is finished, the other learns")
