"""What the network learns (LDM eq. 1, 2) and what a sampler hears of it.

A network predicts the noise `eps`, the clean `x0`, `v = alpha eps - sigma x0` (Salimans & Ho 2022) or `u = eps - x0`,
the velocity of a rectified flow (Liu et al. 2022): given x_t each of them tells the others. A sampler never sees which
one, nor guidance: it gets `denoise(x_t, t) -> (x0, eps)`. Built in notebooks 06 and 14.
"""

import math
from numbers import Real

import torch
from torch import Tensor

PREDICTIONS = ("eps", "x0", "v", "u")


def prediction_target(prediction: str, x0: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """What the network should output, (B, ...) like x0; alpha and sigma broadcast to it."""
    # v: as alpha and sigma are the cosine and sine of one angle, x_t runs along an arc, and this is its velocity
    # u: along the straight line from x0 to eps the velocity is the same everywhere
    return {"eps": eps, "x0": x0, "v": alpha * eps - sigma * x0, "u": eps - x0}[prediction]


def to_x0_eps(prediction: str, out: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """The clean image and the noise that a network's output means, each (B, ...): solves x_t = alpha x0 + sigma eps."""
    if prediction == "eps":
        return (x_t - sigma * out) / alpha, out
    if prediction == "x0":
        return out, (x_t - alpha * out) / sigma
    # the same rotation, backwards. It divides by 1 (by little else on other schedules), so it is exact at both ends
    if prediction == "v":
        power = alpha**2 + sigma**2
        return (alpha * x_t - sigma * out) / power, (sigma * x_t + alpha * out) / power
    if prediction == "u":
        return (x_t - sigma * out) / (alpha + sigma), (x_t + alpha * out) / (alpha + sigma)
    raise ValueError(f"prediction must be one of {PREDICTIONS}, got {prediction!r}.")


def diffusion_loss(net, schedule, x0, cond, prediction="eps", t=None, eps=None, generator=None, weight=None,
                   reduce=True) -> Tensor:
    """Mean squared error of the prediction at a random noise level (DDPM eq. 14, LDM eq. 1 and 2).

    x0 (B, ...); t (B,) int64 and eps like x0 are drawn (from `generator`) unless given. Returns a scalar, or (B,) with
    reduce=False. weight: signal-to-noise ratio (B,) -> factor (B,); min-SNR (Hang et al. 2023) is
    `lambda snr: snr.clamp(max=5) / snr` for eps, `/ (snr + 1)` for v, and without the division for x0.
    With a RectifiedFlow and prediction "u" this is flow matching's loss (Lipman et al. 2022, eq. 23).
    """
    # 1. a noise level for each sample, and its noise (DDPM algorithm 1)
    t = draw_timesteps(schedule, len(x0), x0.device, generator) if t is None else t
    eps = draw_noise(x0, generator) if eps is None else eps
    if t.shape != x0.shape[:1] or eps.shape != x0.shape:
        raise ValueError(f"x0 {tuple(x0.shape)} wants t for each sample and eps of its shape; got {tuple(t.shape)} and "
                         f"{tuple(eps.shape)}.")
    # 2. there in one jump (DDPM eq. 4); the network sees x_t, t and the condition (LDM eq. 2)
    out = net(schedule.add_noise(x0, eps, t), t, cond)
    # 3. what it should have said
    target = prediction_target(prediction, x0, eps, schedule.alpha(t, x0.ndim), schedule.sigma(t, x0.ndim))
    if out.shape != target.shape:
        raise ValueError(f"the network returned {tuple(out.shape)} for {tuple(target.shape)}: set its out_channels.")
    # 4. the mean over a sample's values, so that it does not grow with the picture; float32 also under autocast
    per_sample = (out.float() - target.float()).square().flatten(1).mean(dim=1)  # B
    if weight is not None:
        per_sample = per_sample * weight(schedule.snr(t))
    return per_sample.mean() if reduce else per_sample


def make_denoiser(net, schedule, cond, null=None, guidance_scale=1.0, prediction="eps", clip_x0=None):
    """Fold prediction, guidance and clipping into `denoise(x_t (B, ...), t (B,) int64) -> (x0, eps)`, both like x_t.

    guidance_scale s: u + s (c - u) for the outputs c under `cond` and u under `null`, in one batched call (Ho &
    Salimans 2022; their w is s - 1). s = 1 is no guidance and needs no `null`. A negative prompt is another `null`.
    Channels of the output beyond x_t's, such as a learned variance (DiT), are left out.
    clip_x0: keep x0 in [-clip_x0, clip_x0] and let eps agree; for pixels. Latents have no bounds.
    """
    guided = guidance_scale != 1
    if not isinstance(guidance_scale, (Real, Tensor)) or not math.isfinite(guidance_scale):
        raise ValueError(f"guidance_scale must be a number, got {guidance_scale!r}.")
    if guided and null is None:
        raise ValueError(f"guidance_scale={guidance_scale} needs `null`: give conditioner.null(batch), or scale 1.")
    if prediction == "eps" and not schedule.alphas[-1]:
        raise ValueError("this schedule ends in pure noise, and there eps says nothing of x0: predict x0, v or u.")
    both = cond.stack([null, cond]) if guided else cond

    def denoise(x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        # 1. the network's output; guided: from what it says of no condition to what it says of this one, and further
        inputs = (torch.cat([x_t, x_t]), torch.cat([t, t])) if guided else (x_t, t)
        out = net(*inputs, both)[:, :x_t.shape[1]].to(x_t.dtype)
        if guided:
            u, c = out.chunk(2)
            out = u + guidance_scale * (c - u)
        # 2. what it means
        alpha, sigma = schedule.alpha(t, x_t.ndim), schedule.sigma(t, x_t.ndim)
        x0, eps = to_x0_eps(prediction, out, x_t, alpha, sigma)
        # 3. no pixel is brighter than white, and the noise is what is left
        if clip_x0 is not None:
            x0, eps = to_x0_eps("x0", x0.clamp(-clip_x0, clip_x0), x_t, alpha, sigma)
        return x0, eps

    return denoise


def ideal_denoiser(points: Tensor, schedule):
    """The denoiser that a perfect network would learn from a finite data set `points` (N, ...), in closed form.

    Its x0 is the posterior mean E[x0 | x_t]: all points, weighted by how likely each of them led to x_t. With it a
    sampler can be proved right before anything is trained.
    """
    flat = points.flatten(1)

    def denoise(x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma = schedule.alpha(t, x_t.ndim), schedule.sigma(t, x_t.ndim)
        # 1. how far x_t is from each point; torch's faster way would lose the digits that tell near points apart
        some = alpha.clamp(min=1e-6)                            # of pure noise, where alpha is 0, all are as far
        distance = torch.cdist((x_t / some).flatten(1), flat, compute_mode="donot_use_mm_for_euclid_dist")  # B N
        # 2. Bayes' rule: q(x_t | point) is a Gaussian, and a softmax of its logarithms never overflows
        weights = torch.softmax(-0.5 * (distance * some.flatten(1) / sigma.flatten(1)).square(), dim=1)  # B N
        return to_x0_eps("x0", (weights @ flat).view_as(x_t), x_t, alpha, sigma)

    return denoise


def draw_noise(like: Tensor, generator: torch.Generator | list | None = None) -> Tensor:
    """Standard normal noise shaped like `like`; drawn where `generator` is, then moved, so that a CPU generator gives
    the same noise, hence the same picture, on every device. A list has a generator for each picture."""
    if generator is None:
        return torch.randn_like(like)
    if isinstance(generator, list):
        return torch.stack([draw_noise(x, one) for x, one in zip(like, generator, strict=True)])
    return torch.randn(like.shape, generator=generator, device=generator.device).to(like)


def generators(seed: int, num: int) -> list[torch.Generator]:
    """One for each of `num` pictures; the first is the same, however many there are."""
    seeds = torch.randint(2**62, (num,), generator=torch.Generator().manual_seed(seed))
    return [torch.Generator().manual_seed(one) for one in seeds.tolist()]


def draw_timesteps(schedule, batch: int, device, generator: torch.Generator | None = None, power=1.0) -> Tensor:
    """Random timesteps, (batch,) int64 on `device`; drawn where `generator` is.

    power: 1 = uniform (DDPM); above, high noise comes more often: t = T u^(1 / power) for a uniform u in [0, 1).
    """
    if not power > 0:
        raise ValueError(f"draw_timesteps: power must be above 0, got {power}.")
    where, T = device if generator is None else generator.device, schedule.num_steps
    if power == 1:
        return torch.randint(T, (batch,), generator=generator, device=where).to(device)
    u = torch.rand(batch, generator=generator, device=where)
    return (u ** (1 / power) * T).long().clamp(max=T - 1).to(device)
