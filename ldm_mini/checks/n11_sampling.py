"""Checks of notebook 11, pictures as condition: sampling beside a picture, and holes filled by replacement."""

import torch
from torch import Tensor
from torch.nn import functional as F

from ..cond import Cond
from ..schedule import NoiseSchedule, cosine_betas, linear_betas
from .checking import CheckFailed, attempt, compare, passed
from .properties import fresh, generator, own_randomness, same_dtype


def superres_sample(function):
    """`function(net, schedule, cond, z_T, steps)`: z_T (B,c,h,w), a net that says v -> z_0 by DDIM, like z_T."""
    draw = fresh()
    for (size, *shape), steps, betas in (((2, 4, 4, 6), 5, cosine_betas(100)), ((3, 3, 4, 4), 8, linear_betas(1000)),
                                         ((2, 4, 2, 2), 1, linear_betas(50))):
        schedule, z_T, calls = NoiseSchedule(betas), draw(size, *shape), []
        cond = Cond(concat=draw(size, 3, *shape[1:]))

        def net(z, t, told, calls=calls, cond=cond):
            if told is not cond:
                raise ValueError("the network was not given `cond`: net(z, t, cond)")
            if not isinstance(t, Tensor) or t.shape != (len(z),):
                raise ValueError(f"t should be a tensor ({len(z)},), the same time for each sample: "
                                 "torch.full((len(z),), t)")
            calls.append(int(t[0]))
            return 0.6 * z.tanh() + 0.3 * told.concat.mean(1, keepdim=True) + (t.view(-1, 1, 1, 1) / 30).sin()

        with own_randomness():
            got = attempt(lambda z: function(net, schedule, cond, z, steps), z_T,  # noqa: B023
                          name="superres_sample")
        asked, right = list(calls), schedule.timesteps(steps, "trailing").tolist()
        if asked != right:
            raise CheckFailed(_times(asked, right, steps))
        walk = lambda how="": _ddim(net, schedule, cond, z_T, right, how)  # noqa: B023
        compare(got, walk(), f"superres_sample(..., steps={steps})", mistakes=[
            (walk("stays noisy"), "the last step goes to the clean latent, s = -1, where alpha is 1 and sigma is 0."),
            (walk("eps"), "the network's output is v, not the noise: x0 = alpha z - sigma v, eps = sigma z + alpha v."),
            (walk("x0"), "the network's output is v, not x0: x0 = alpha z - sigma v, eps = sigma z + alpha v."),
            (walk("sign"), "x0 = alpha z *minus* sigma v, eps = sigma z *plus* alpha v."),
            (walk("same level"), "after the step z is at s: alpha_s x0 + sigma_s eps, not at t."),
            (walk("swapped"), "alpha and sigma are swapped in alpha_s x0 + sigma_s eps."),
            (walk("old noise"), "the noise of z_T is not the noise of z: each step has its own eps, from v."),
            (walk("x0 only"), "the step ended at x0; bring it to the level of s: alpha_s x0 + sigma_s eps."),
        ])
        same_dtype(got, z_T, "superres_sample(...)")
        if got.requires_grad:
            raise CheckFailed("superres_sample: no gradient is needed; keep the @torch.no_grad().")
    passed("superres_sample: from noise to a latent, the picture beside it at every step")


def _times(asked, right, steps):
    if asked == right[::-1]:
        return "superres_sample: the times go up; sampling goes from the most noise to the least."
    if len(asked) != steps:
        return f"superres_sample called the network {len(asked)} times for {steps} steps; once a step."
    return (f"superres_sample asked the network at the times {asked}; they should be {right}: "
            'schedule.timesteps(steps, "trailing").')


def _ddim(net, schedule, cond, z, times, how=""):
    first = z
    for t, s in zip(times, [*times[1:], times[-1] if how == "stays noisy" else -1]):
        t, s = (torch.full((len(z),), value) for value in (t, s))
        (alpha, sigma), (alpha_s, sigma_s) = ((schedule.alpha(u), schedule.sigma(u)) for u in (t, s))
        v = net(z, t, cond)
        x0, eps = alpha * z - sigma * v, sigma * z + alpha * v
        if how == "sign":
            x0, eps = alpha * z + sigma * v, sigma * z - alpha * v
        x0, eps = {"eps": ((z - sigma * v) / alpha, v), "x0": (v, (z - alpha * v) / sigma),
                   "old noise": (x0, first)}.get(how, (x0, eps))
        alpha_s, sigma_s = {"same level": (alpha, sigma), "swapped": (sigma_s, alpha_s),
                            "x0 only": (1, 0)}.get(how, (alpha_s, sigma_s))
        z = alpha_s * x0 + sigma_s * eps
    return z


def known_latents(function):
    """`function(encode, image, mask, f)`: (B,3,H,W), (B,1,H,W), 1 = hole -> (B,c,h,w), (B,1,h,w) bool, True = hole."""
    draw = fresh()
    for f, size, channels in ((4, 3, 4), (2, 2, 3)):
        image, mask = draw(size, 3, 16, 24).clamp(-1, 1), torch.zeros(size, 1, 16, 24)
        mask[0, :, 5:11, 6:19], mask[-1, :, :7, :9], mask[1, 0, 11:14, 13:14] = 1, 1, 1
        seen, c = [], channels

        def encode(images, seen=seen, f=f, c=c):
            seen.append(images.detach().clone())
            mean = F.avg_pool2d(images, f)
            return torch.cat([2 * mean, mean[:, :1] - mean[:, 1:2]], 1)[:, :c]

        got = attempt(lambda image, mask: function(encode, image, mask, f), image, mask,  # noqa: B023
                      name="known_latents")
        if not isinstance(got, (tuple, list)) or len(got) != 2:
            raise CheckFailed("known_latents should return two things: the latent of what is known, and the hole.")
        _hold_shown(seen, image, mask)
        z, hole = got
        compare(z, encode(_filled(image, mask)), "known_latents: the latent")
        same_dtype(z, image, "known_latents: the latent")
        if not isinstance(hole, Tensor) or hole.dtype != torch.bool:
            raise CheckFailed("known_latents: the hole should be a bool tensor: compare with 0.5.")
        nearest, largest = mask[..., ::f, ::f] > 0.5, F.max_pool2d(mask, f) > 0.5
        compare(hole, largest, "known_latents: the hole", shapes={
            tuple(mask.shape): f"the hole has the size of the picture; the latent's is smaller by f = {f}."},
            mistakes=[
            (~largest, "True is the hole, not the known part."),
            (nearest, "one pixel of each cell decides (nearest). A latent is known only if *no* pixel of its cell is "
                      "in the hole: the largest."),
            (F.avg_pool2d(mask, f) > 0.5, "the majority of each cell decides. A latent is known only if *no* pixel of "
                                          "its cell is in the hole: the largest."),
            (F.avg_pool2d(mask, f) == 1, "only cells that are all hole. A latent is known only if *no* pixel of its "
                                         "cell is in the hole: the largest."),
        ])
    passed("known_latents: no peeping, and no latent that touches the hole")


def _filled(image, mask):
    color = (image * (1 - mask)).sum((2, 3), keepdim=True) / (1 - mask).sum((2, 3), keepdim=True)
    return torch.where(mask > 0.5, color, image)


def _hold_shown(seen, image, mask):
    if not seen:
        raise CheckFailed("known_latents never called encode.")
    hole = mask > 0.5
    if torch.equal(seen[-1], image):
        raise CheckFailed("known_latents encodes the picture with nothing hidden: latents beside the hole would know "
                          "what is in it. Fill the hole first.")
    area = lambda one: one.sum((2, 3), keepdim=True)
    compare(seen[-1], _filled(image, mask), "what known_latents shows to encode", mistakes=[
        (image.masked_fill(hole, -1.0), "the hole is black; here it gets the mean colour of what is known."),
        (image.masked_fill(hole, 0.0), "the hole is grey; it gets the mean colour of what is known."),
        (torch.where(hole, image.mean((2, 3), keepdim=True), image),
         "the mean colour of the whole picture: that peeps into the hole. Of the known pixels only."),
        (torch.where(hole, area(image * (1 - mask)) / image[0, 0].numel(), image),
         "divide by how many pixels are *known*, not by all."),
        (torch.where(hole, _filled(image, mask).mean((0, 2, 3), keepdim=True), image),
         "each picture has its own mean."),
        (torch.where(hole, area((image * (1 - mask)).mean(1, keepdim=True)) / area(1 - mask), image),
         "one grey for all channels; each has its own mean: a colour."),
        (torch.where(hole, image, area(image * (1 - mask)) / area(1 - mask)),
         "the wrong way round: the hole is to be filled."),
    ])


def noise_again(function):
    """`function(x_s, alpha_t, sigma_t, alpha_s, sigma_s, eps)`: x at s, eps (B,c,h,w) -> x at the noisier t."""
    draw = fresh()
    for shape, at_t, at_s in (((2, 4, 4, 6), (0.3, 0.6), (0.8, 0.9)),
                               ((3, 3, 5, 5), (0.05, 0.5, 0.7), (0.4, 0.99, 0.71))):
        x, eps = draw(*shape), draw(*shape)
        a_t, a_s = (torch.tensor(levels).view(-1, 1, 1, 1) for levels in (at_t, at_s))
        s_t, s_s = ((1 - a**2).sqrt() for a in (a_t, a_s))
        got = attempt(function, x, a_t, s_t, a_s, s_s, eps, name="noise_again")
        kept = a_t / a_s
        fresh_noise = (s_t**2 - (kept * s_s) ** 2).sqrt()
        loud = "x_s must shrink by alpha_t / alpha_s, or the signal is too loud at t."
        compare(got, kept * x + fresh_noise * eps, "noise_again(x_s, ..., eps)", mistakes=[
            (kept * x + s_t * eps, "x_s has noise already, kept sigma_s of it; add only what is missing to sigma_t."),
            (a_t * x + s_t * eps, "that is the jump from the *clean* latent; x_s has shrunk to alpha_s already."),
            (a_t * x + fresh_noise * eps, "x_s has shrunk to alpha_s already: it shrinks by alpha_t / alpha_s."),
            (kept * x + fresh_noise**2 * eps, "variances subtract; the amplitude is the root of the difference."),
            (kept * x + (s_t - kept * s_s) * eps, "amplitudes of independent noise do not subtract; variances do."),
            (kept * x + (s_t**2 - s_s**2).sqrt() * eps, "the noise in x_s shrinks as well: to kept sigma_s."),
            (x + fresh_noise * eps, loud),
            (x + (s_t**2 - s_s**2).sqrt() * eps, loud),
            (kept * x, "the noise is missing."),
            (kept**2 * x + fresh_noise * eps, "alpha is an amplitude: alpha_t / alpha_s, not its square."),
        ])
        same_dtype(got, x, "noise_again(...)")
    passed("noise_again: as noisy as at t, and no noisier")


def replace_and_draw(function):
    """`function(denoise, x, schedule, steps, g, known, hole, repeats)` -> (B,c,h,w), as `samplers.repaint` does it.

    Drawn from g, each like x: the noise of the step, the noise of the known part, and if there is one more time, that
    of the way back.
    """
    draw = fresh()
    for shape, steps, repeats in (((2, 1, 4, 4), 4, 1), ((3, 2, 4, 6), 3, 3), ((2, 3, 2, 4), 1, 2)):
        schedule, x, known = NoiseSchedule(cosine_betas(60)), draw(*shape), draw(*shape)
        hole, calls, seed = draw(shape[0], 1, *shape[2:]) > 0, [], generator().initial_seed() % 2**31

        def denoise(x, t, calls=calls):
            calls.append(int(t[0]))
            # every pixel's x0 hangs on all of them, or it would not matter what is known; the eps no one needs
            return 0.5 * x.tanh() + x.mean((1, 2, 3), keepdim=True) + (t.view(-1, 1, 1, 1) / 20).cos(), x

        g = lambda: torch.Generator().manual_seed(seed)  # noqa: B023
        walk = lambda how="": _repaint(denoise, x, schedule, steps, g(), known, hole, repeats, how)  # noqa: B023
        with own_randomness():
            got = attempt(lambda x: function(denoise, x, schedule, steps, g(), known, hole, repeats), x,  # noqa: B023
                          name="replace_and_draw")
        asked = list(calls)
        calls.clear()
        right = walk()
        if asked != calls:
            raise CheckFailed(f"replace_and_draw: for {steps} steps, each {repeats} times (the last, to the clean "
                              f"latent, once), denoise should be asked at the times {calls}; yours asked at {asked}.")
        if isinstance(got, Tensor) and got.shape == known.shape and not torch.equal(
                torch.where(hole, 0.0, got), torch.where(hole, 0.0, known)):
            raise CheckFailed("replace_and_draw: in the end the known part is not what is known: put it there after "
                              "the last step too (s = -1: without noise).")
        compare(got, right, f"replace_and_draw(..., repeats={repeats})", mistakes=[
            (walk("level t"), "the known part is as noisy as at t, but after the step x is at s."),
            (walk("clean"), "the known part is put there clean while x is noisy: keep_known with the level of s."),
            (walk("no noise"), "the step of DDPM draws noise: mean + variance.sqrt() * torch.randn(..., generator=g)."),
            (walk("variance"), "the noise of the step has the amplitude variance.sqrt()."),
            (walk("other order"), "the numbers are right but drawn in another order: the step's noise, then that of "
                                  "the known part, then that of the way back."),
            (walk("ddpm"), "nothing of what is known is put in before the end."),
            (walk("stays at s"), "before a step is repeated, x must go back to t: noise_again."),
        ])
        same_dtype(got, x, "replace_and_draw(...)")
    passed("replace_and_draw: a step, the known part, and again")


def _repaint(denoise, x, schedule, steps, g, known, hole, repeats, how=""):
    times = schedule.timesteps(steps, "trailing").tolist()
    noise = lambda: torch.randn(x.shape, generator=g)
    for t, s in zip(times, [*times[1:], -1]):
        t, s = torch.full((len(x),), t), torch.full((len(x),), s)
        (a_t, s_t), (a_s, s_s) = ((schedule.alpha(u), schedule.sigma(u)) for u in (t, s))
        for left in reversed(range(repeats if s[0] >= 0 else 1)):
            x, variance = schedule.posterior(denoise(x, t)[0], x, t, s)
            one, two = (noise(), noise())[::-1 if how == "other order" else 1]
            x = x + {"no noise": 0, "variance": variance}.get(how, variance.sqrt()) * one
            level, loud = {"level t": (a_t, s_t), "clean": (1, 0)}.get(how, (a_s, s_s))
            if how != "ddpm" or s[0] < 0:
                x = torch.where(hole, x, level * known + loud * two)
            if left and how != "stays at s":
                x = a_t / a_s * x + (s_t**2 - (a_t / a_s * s_s) ** 2).sqrt() * noise()
    return x
