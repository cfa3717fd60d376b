"""From noise to a sample. Every sampler is a generator over one `denoise(x_t, t) -> (x0, eps)` and yields x after every
step: `*path, last = ddim(denoise, z_T, schedule, steps=50)`. Built in notebook 08.

Notation: one step goes from timestep t to an earlier s; x_t = alpha_t x0 + sigma_t eps; s = -1 is the clean image.

All samplers take
    denoise    x_t (B, ...), t (B,) int64 -> (x0, eps), both like x_t; see `diffusion.make_denoiser`
    z_T        (B, ...) standard normal noise
    steps      how many, 1 <= steps <= T, or the timesteps themselves: a descending sequence of integers
    generator  source of fresh noise, if the sampler needs any; a CPU generator gives the same picture on every device
    spacing, offset   which timesteps `steps` means: see `NoiseSchedule.timesteps`
"""

import torch
from torch import Tensor, nn

from .diffusion import draw_noise


@torch.no_grad()
def ddpm(denoise, z_T, schedule, steps=50, generator=None, *, spacing="trailing", offset=0):
    """Ancestral sampling (Ho et al. 2020, algorithm 2), over any subset of the steps. Needs many of them."""
    x = z_T
    for t, s in _walk(denoise, schedule, z_T, steps, spacing, offset):
        # 1. what the network takes the clean image to be (eq. 15)
        x0, _ = denoise(x, t)
        # 2. the posterior q(x_s | x_t, x0) (eq. 6, 7)
        x, variance = schedule.posterior(x0, x, t, s)
        # 3. a draw from it; the last step is its mean (algorithm 2, line 3)
        if s[0] >= 0:
            x = x + variance.sqrt() * draw_noise(x, generator)
        yield x


@torch.no_grad()
def ddim(denoise, z_T, schedule, steps=50, generator=None, *, eta=0.0, spacing="trailing", offset=0, clean_end=True):
    """DDIM (Song et al. 2021): eta = 0 is deterministic, eta = 1 is DDPM; values between mix the two.

    clean_end: False stops at the noise level of t = 0, as LDM's does (diffusers: set_alpha_to_one=False).
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must be from 0 (deterministic) to 1 (as DDPM), got {eta}.")
    x = z_T
    for t, s in _walk(denoise, schedule, z_T, steps, spacing, offset, clean_end):
        alpha_t, sigma_t, alpha_s, sigma_s = _levels(schedule, x, t, s)
        # 1. "predicted x0" and the direction that points to x_t (eq. 9)
        x0, eps = denoise(x, t)
        # 2. how much of the noise is fresh (eq. 16)
        fresh = eta * sigma_s / sigma_t * (1 - (alpha_t / alpha_s) ** 2).sqrt()
        # 3. the same x0, at the noise level of s (eq. 12)
        x = alpha_s * x0 + (sigma_s**2 - fresh**2).clamp(min=0).sqrt() * eps
        if eta > 0:
            x = x + fresh * draw_noise(x, generator)
        yield x


@torch.no_grad()
def dpm_solver(denoise, z_T, schedule, steps=20, generator=None, *, order=2, spacing="trailing", offset=0):
    """DPM-Solver++(2M) (Lu et al. 2022, arXiv 2211.01095, algorithm 2): good from about 15 steps. Order 1 is DDIM.

    It solves the probability flow exactly but for x0(lambda), the network's x0 along lambda = log(alpha / sigma), which
    it takes to be constant (order 1) or a line through the last two values (order 2).
    """
    if order not in (1, 2):
        raise ValueError(f"order must be 1 or 2, got {order}.")
    x, before = z_T, None  # before: x0 and the step in lambda, one step ago
    for t, s in _walk(denoise, schedule, z_T, steps, spacing, offset):
        alpha_t, sigma_t, alpha_s, sigma_s = _levels(schedule, x, t, s)
        # 1. the network's x0, and the length of this step in lambda (infinite for a step to the clean image)
        x0, _ = denoise(x, t)
        h = (alpha_s / sigma_s).log() - (alpha_t / sigma_t).log()
        # 2. extrapolate x0 to the middle of the step (algorithm 2), but not on the first step, nor on the last one, to
        #    the clean image ("lower order final" in the authors' code and diffusers)
        D = x0
        if order == 2 and before is not None and s[0] >= 0:
            x0_before, h_before = before
            D = x0 + h / (2 * h_before) * (x0 - x0_before)
        # 3. the exact solution for constant D (prop. 4.1); alpha_s (1 - exp(-h)) is written so that h may be infinite
        x = sigma_s / sigma_t * x + (alpha_s - alpha_t * sigma_s / sigma_t) * D
        before = x0, h
        yield x


@torch.no_grad()
def euler(denoise, z_T, schedule, steps=50, generator=None, *, spacing="trailing", offset=0):
    """Euler's method on the probability flow in the "variance exploding" view (Karras et al. 2022, algorithm 1 with
    one slope): y = x / alpha is x0 + sigma_hat eps, so dy / dsigma_hat = eps. It takes the very same steps as DDIM."""
    x = z_T
    for t, s in _walk(denoise, schedule, z_T, steps, spacing, offset):
        alpha_t, sigma_t, alpha_s, sigma_s = _levels(schedule, x, t, s)
        # 1. the slope of y
        _, slope = denoise(x, t)
        # 2. over to y, one step of Euler along sigma_hat, and back
        x = alpha_s * (x / alpha_t + (sigma_s / alpha_s - sigma_t / alpha_t) * slope)
        yield x


@torch.no_grad()
def repaint(denoise, z_T, schedule, steps=50, generator=None, *, known, hole, repeats=1, spacing="trailing", offset=0):
    """Inpainting by a model that never learned it (Lugmayr et al. 2022, algorithm 1): DDPM, where after every step what
    is known takes its place again. known like z_T, hole (B,1,h,w) bool: True = to be made up.

    repeats: how often each step is gone, with the noise added back in between, so that what is made up and what is
    known have time to agree (their "resampling" with jumps of length one); 1 = replacement alone.
    """
    x = z_T
    for t, s in _walk(denoise, schedule, z_T, steps, spacing, offset):
        alpha_t, sigma_t, alpha_s, sigma_s = _levels(schedule, x, t, s)
        for left in reversed(range(repeats if s[0] >= 0 else 1)):
            # 1. a step of DDPM, everywhere
            x0, _ = denoise(x, t)
            x, variance = schedule.posterior(x0, x, t, s)
            x = x + variance.sqrt() * draw_noise(x, generator)
            # 2. the known part in its place, as noisy as x is now, which is at s: at the end not at all
            x = torch.where(hole, x, alpha_s * known + sigma_s * draw_noise(x, generator))
            # 3. unless this was the last time, back to t: q(x_t | x_s)
            if left:
                kept = alpha_t / alpha_s
                x = kept * x + (sigma_t**2 - (kept * sigma_s) ** 2).sqrt() * draw_noise(x, generator)
        yield x


SAMPLERS = {"ddpm": ddpm, "ddim": ddim, "dpm": dpm_solver, "euler": euler}


def _walk(denoise, schedule, z_T: Tensor, steps, spacing: str, offset: int, clean_end: bool = True):
    """The pairs (t, s) of a sampler's steps, each (B,) int64."""
    if isinstance(denoise, nn.Module):                          # two samples would pass for x0 and eps
        raise ValueError(f"a sampler wants denoise(x_t, t) -> (x0, eps), as make_denoiser(net, schedule, cond) gives; "
                         f"got a {type(denoise).__name__}.")
    steps = torch.as_tensor(steps).tolist()
    timesteps = steps if isinstance(steps, list) else schedule.timesteps(steps, spacing, offset).tolist()
    if not timesteps or timesteps != sorted(set(timesteps) & set(range(schedule.num_steps)), reverse=True):
        raise ValueError(f"timesteps must be integers descending within {schedule.num_steps - 1}..0, got {timesteps}.")
    for t, s in zip(timesteps, timesteps[1:] + [-1 if clean_end else 0], strict=True):
        yield tuple(torch.full((len(z_T),), v, dtype=torch.int64, device=z_T.device) for v in (t, s))


def _levels(schedule, x: Tensor, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """alpha_t, sigma_t, alpha_s, sigma_s, each (B, 1, ...) with x's number of axes."""
    return tuple(level(u, x.ndim) for u in (t, s) for level in (schedule.alpha, schedule.sigma))
