"""From noise to a sample. Every sampler is a generator over one `denoise(x_t, t) -> (x0, eps)` and yields x after every
step: `*path, last = ddim(denoise, z_T, schedule, steps=50)`. Built in notebooks 08 and 14.

Notation: one step goes from timestep t to an earlier s; x_t = alpha_t x0 + sigma_t eps; s = -1 is the clean image.
Any alpha and sigma will do: DDPM's, or those of a rectified flow (`schedule.RectifiedFlow`).

All samplers take
    denoise    x_t (B, ...), t (B,) int64 -> (x0, eps), both like x_t; see `diffusion.make_denoiser`
    z_T        (B, ...) standard normal noise; where the last sigma is far from 1, sigma times that
    steps      how many, 1 <= steps <= T, or the timesteps themselves: a descending sequence of integers
    generator  source of fresh noise, if the sampler needs any; a CPU generator gives the same picture on every device
    spacing, offset   which timesteps `steps` means: see `Schedule.timesteps`
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

    With eta = 0 it is Euler's method on the flow, whichever schedule: on a RectifiedFlow x goes by (tau_s - tau_t) u.

    clean_end: False stops at the noise level of t = 0, as LDM's does (diffusers: set_alpha_to_one=False).
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must be from 0 (deterministic) to 1 (as DDPM), got {eta}.")
    x = z_T
    for t, s in _walk(denoise, schedule, z_T, steps, spacing, offset, clean_end):
        _, _, alpha_s, sigma_s = _levels(schedule, x, t, s)
        # 1. "predicted x0" and the direction that points to x_t (eq. 9)
        x0, eps = denoise(x, t)
        # 2. how much of the noise is fresh: eta times the posterior's standard deviation (eq. 16)
        fresh = eta * schedule.posterior(x0, x, t, s)[1].sqrt() if eta > 0 else 0.0
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
def euler(denoise, z_T, schedule, steps=50, generator=None, *, view="flow", spacing="trailing", offset=0):
    """Euler's method on the probability flow, in a view of `VIEWS`. In each it takes the very same steps as DDIM."""
    x = z_T
    for t, s in _walk(denoise, schedule, z_T, steps, spacing, offset):
        # 1. x0 and eps, of which the slope is made
        x0, eps = denoise(x, t)
        # 2. over to the view, one step along its time, and back
        x = _move(view, x, x0, eps, *_levels(schedule, x, t, s))
        yield x


@torch.no_grad()
def heun(denoise, z_T, schedule, steps=20, generator=None, *, view="flow", spacing="trailing", offset=0):
    """Heun's method on the probability flow (Karras et al. 2022, algorithm 1): second order, two evaluations a step.

    It steps as Euler, asks again where it arrived, and goes with the mean of both slopes. The last step, to the clean
    image, is Euler's: n steps are 2 n - 1 evaluations. Unlike Euler's, its steps differ from view to view.
    """
    x = z_T
    for t, s in _walk(denoise, schedule, z_T, steps, spacing, offset):
        levels = _levels(schedule, x, t, s)
        # 1. a step of Euler
        x0, eps = denoise(x, t)
        there = _move(view, x, x0, eps, *levels)
        # 2. the slope at its end; at the clean image there is none to ask for
        if s[0] >= 0:
            x0_there, eps_there = denoise(there, s)
            # 3. the step again, with the mean of both
            there = _move(view, x, (x0 + x0_there) / 2, (eps + eps_there) / 2, *levels)
        x = there
        yield x


# A view divides x by a scale, which makes the flow simple: as a point of the straight line from x0 to eps
# (y = (1 - tau) x0 + tau eps, dy / dtau = eps - x0), or as x0 with noise of growing size (dy / d(sigma/alpha) = eps).
VIEWS = {"flow": lambda alpha, sigma: alpha + sigma, "exploding": lambda alpha, sigma: alpha}


def _move(view, x, x0, eps, alpha_t, sigma_t, alpha_s, sigma_s):
    """From x at t to s, where x0 and eps say how y = x / scale goes: dy = x0 d(alpha/scale) + eps d(sigma/scale)."""
    if view not in VIEWS:
        raise ValueError(f"view must be one of {list(VIEWS)}, got {view!r}.")
    scale = VIEWS[view]
    now, then = scale(alpha_t, sigma_t), scale(alpha_s, sigma_s)
    return then * (x / now + (alpha_s / then - alpha_t / now) * x0 + (sigma_s / then - sigma_t / now) * eps)


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


SAMPLERS = {"ddpm": ddpm, "ddim": ddim, "dpm": dpm_solver, "euler": euler, "heun": heun}


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
