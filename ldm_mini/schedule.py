"""How fast an image turns into noise: z_t = alpha_t z_0 + sigma_t eps (LDM appendix B).

`Schedule` serves any two amplitudes. `NoiseSchedule` has those of DDPM and LDM, where alpha_t^2 + sigma_t^2 = 1;
`RectifiedFlow` those of flow matching, where alpha_t + sigma_t = 1: from the image to noise on a straight line.

Two papers, one letter: here, as in LDM's appendix, `alpha` and `sigma` are amplitudes. DDPM writes alpha_t = 1 - beta_t
and, with a bar, its product over steps: `alphas_cumprod`. So alpha^2 = alphas_cumprod and sigma^2 = 1 - alphas_cumprod.
Timesteps count from 0: t = 0 is the least noise, t = T - 1 (nearly) nothing but noise, and t = -1 is the clean image.
Built in notebooks 06 and 14.
"""

import math
from numbers import Real

import torch
from torch import Tensor, nn


def linear_betas(steps: int = 1000, start: float = 1e-4, end: float = 2e-2) -> Tensor:
    """DDPM's schedule (Ho et al. 2020, sec. 4). Returns (steps,) float64."""
    return torch.linspace(start, end, steps, dtype=torch.float64)


def scaled_linear_betas(steps: int = 1000, start: float = 0.0015, end: float = 0.0195) -> Tensor:
    """LDM's schedule: sqrt(beta) is linear. CompVis calls it "linear", diffusers "scaled_linear". (steps,) float64."""
    return torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float64) ** 2


def cosine_betas(steps: int = 1000) -> Tensor:
    """Nichol & Dhariwal 2021, eq. 17: alphas_cumprod falls like cos^2, each beta at most 0.999. (steps,) float64."""
    u = torch.arange(steps + 1, dtype=torch.float64) / steps
    # 0.008: else the first steps add less noise than the step from one grey value to the next (their sec. 3.2)
    alphas_cumprod = torch.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2
    # a step of beta = 1 would leave nothing of the image to find again
    return (1 - alphas_cumprod[1:] / alphas_cumprod[:-1]).clamp(max=0.999)


class Schedule(nn.Module):
    """The forward process of T steps from its amplitudes (T,): alphas >= 0 of the signal, sigmas > 0 of the noise.

    They are kept in float32 whatever the model is cast to: half precision cannot tell the first alpha from 1. They are
    constants, so they are in no state dict.
    Wherever a method takes t, that is int64 (B,) on the schedule's device, and -1 means the clean image.
    """

    def __init__(self, alphas: Tensor, sigmas: Tensor):
        super().__init__()
        alphas, sigmas = (torch.as_tensor(level, device="cpu").float() for level in (alphas, sigmas))
        good = alphas.ndim == 1 and alphas.shape == sigmas.shape and len(alphas) and (alphas >= 0).all()
        if not good or not (sigmas > 0).all() or ((alphas / sigmas).diff() > 0).any():
            raise ValueError("alphas >= 0 and sigmas > 0 are two vectors, with less signal in the noise at every step.")
        self.num_steps = len(alphas)                                            # T
        self.register_buffer("alphas", alphas, persistent=False)
        self.register_buffer("sigmas", sigmas, persistent=False)

    def alpha(self, t: Tensor, ndim: int = 4) -> Tensor:
        """Amplitude of the signal at t, (B, 1, 1, ...) with `ndim` axes; 1 for the clean image."""
        return torch.where(t < 0, 1.0, self.alphas[t.clamp(min=0)]).view(-1, *[1] * (ndim - 1))

    def sigma(self, t: Tensor, ndim: int = 4) -> Tensor:
        """Amplitude of the noise at t, (B, 1, 1, ...) with `ndim` axes; 0 for the clean image."""
        return torch.where(t < 0, 0.0, self.sigmas[t.clamp(min=0)]).view(-1, *[1] * (ndim - 1))

    def snr(self, t: Tensor) -> Tensor:
        """Signal-to-noise ratio alpha^2 / sigma^2, (B,)."""
        return (self.alpha(t, 1) / self.sigma(t, 1)).square()

    def add_noise(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """x_t ~ q(x_t | x0), same shape as x0 and eps (B, ...): DDPM eq. 4."""
        return self.alpha(t, x0.ndim) * x0 + self.sigma(t, x0.ndim) * eps

    def posterior(self, x0: Tensor, x_t: Tensor, t: Tensor, s: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Mean (B, ...) and variance (B, 1, ...) of q(x_s | x_t, x0) for an earlier s < t, by default s = t - 1.

        DDPM eq. 7, written with amplitudes: so it holds over steps of any length and for any alpha and sigma.
        """
        s = t - 1 if s is None else s
        a_t, b_t, a_s, b_s = (level(u, x_t.ndim) for u in (t, s) for level in (self.alpha, self.sigma))
        # how much of what x_s says of x0 is still said by x_t: the ratio of their signal-to-noise ratios
        told = (a_t * b_s / (a_s * b_t)).square()
        # x_s has two neighbours, the clean image and the noisier x_t; eq. 7 weighs what each of them tells
        mean = a_s * (1 - told) * x0 + a_t * b_s**2 / (a_s * b_t**2) * x_t
        # 0 for s = -1, where b_s = 0: nothing is left to draw
        return mean, b_s**2 * (1 - told).clamp(min=0)

    def timesteps(self, steps: int, spacing: str = "leading", offset: int = 0) -> Tensor:
        """The timesteps that `steps` steps of a sampler visit: (steps,) int64, descending, for any 1 <= steps <= T.

        "leading" begins each of `steps` equal parts of 0..T-1, "trailing" ends each of them (so T - 1 is visited),
        "linspace" runs from T - 1 to 0. `offset` moves all of them up, as far as T - 1 allows.
        Where `steps` divides T these are diffusers' numbers, and LDM's DDIM is ("leading", offset=1). Elsewhere LDM
        takes too many steps, and diffusers' "leading" starts too far below the top to be given pure noise.
        "karras" and "flow" are even in the noise level, not in t: see `_noise_levels`. Both begin at T - 1.
        """
        T = self.num_steps
        if not isinstance(steps, Real) or not 1 <= steps <= T or steps != int(steps):
            raise ValueError(f"steps must be a whole number from 1 to {T}, the length of the schedule, got {steps}.")
        if offset < 0:
            raise ValueError(f"offset must be 0 or more, got {offset}.")
        # multiply before you divide: so there are exactly `steps` of them, evenly spread
        count = torch.arange(steps, dtype=torch.float64)
        if spacing == "leading":
            t = (torch.arange(steps) * T // steps).flip(0)
        elif spacing == "trailing":
            t = (T - count * T / steps).round().long() - 1
        elif spacing == "linspace":
            t = (T - 1 - count * (T - 1) / max(steps - 1, 1)).round().long()
        elif spacing in ("karras", "flow"):
            t = self._noise_levels(count, spacing)
        else:
            raise ValueError('spacing must be "leading", "trailing", "linspace", "karras" or "flow", '
                             f"got {spacing!r}.")
        return t + min(offset, T - 1 - int(t[0]))

    def _noise_levels(self, count: Tensor, spacing: str, rho: float = 7.0, highest: float = 80.0) -> Tensor:
        """Timesteps whose noise levels come nearest to what is asked for, each another one.

        "flow": sigma / (alpha + sigma), the time of a rectified flow, falls evenly to 0, which is the last step's end.
        "karras": (sigma / alpha)^(1 / rho) falls evenly, from `highest` at most, to the lowest (Karras et al. 2022,
        eq. 5). Both say which ratio sigma / alpha is wanted.
        """
        alphas, sigmas = self.alphas.cpu(), self.sigmas.cpu()   # timesteps are counted there, and MPS has no float64
        levels = sigmas.double() / (alphas + sigmas).double()   # T, ascending, within (0, 1]
        steps = len(count)
        if spacing == "flow":
            wanted = levels[-1] * (1 - count / steps)
        else:
            top, low = (level.clamp(max=highest) ** (1 / rho) for level in (levels / (1 - levels))[[-1, 0]])
            ratio = (top + count / max(steps - 1, 1) * (low - top)) ** rho
            wanted = ratio / (1 + ratio)
        t = (levels - wanted[:, None]).abs().argmin(dim=1)
        t[0] = self.num_steps - 1                               # a sampler is given pure noise
        # where levels are too sparse for so many steps, neighbours take the places beside them
        whole = torch.arange(steps)
        return torch.maximum((t + whole).cummin(dim=0).values - whole, steps - 1 - whole)

    def _apply(self, fn, recurse=True):
        # follow the model's device, not its dtype
        return super()._apply(lambda v: v.to(fn(v).device), recurse)


class NoiseSchedule(Schedule):
    """The forward process of DDPM and LDM from its betas (T,), each in (0, 1), or from the `config` of another.

    Buffers `betas` and `alphas_cumprod` (T,) are computed in float64 and kept in float32.
    """

    def __init__(self, betas: Tensor):
        betas = _betas(**betas) if isinstance(betas, dict) else betas
        betas = None if isinstance(betas, str) else torch.as_tensor(betas, dtype=torch.float64, device="cpu")
        if betas is None or betas.ndim != 1 or not len(betas) or not ((betas > 0) & (betas < 1)).all():
            raise ValueError("betas must be a vector of numbers in (0, 1), such as NoiseSchedule(cosine_betas()).")
        alphas_cumprod = torch.cumprod(1 - betas, dim=0).float()
        super().__init__(alphas_cumprod.sqrt(), (1 - alphas_cumprod).sqrt())
        self.config = _describe(betas)
        self.arguments = {"betas": self.config}                                 # for `hub`: in few words, and exact
        self.register_buffer("betas", betas.float(), persistent=False)
        self.register_buffer("alphas_cumprod", alphas_cumprod, persistent=False)


class RectifiedFlow(Schedule):
    """Flow matching's straight line (Liu et al. 2022, Lipman et al. 2022): z_t = (1 - tau) z_0 + tau eps.

    The time of timestep t is tau = (t + 1) / steps, so the last one is noise and nothing else.
    shift: above 1, more of the timesteps are at high noise: tau -> shift tau / (1 + (shift - 1) tau), as Stable
           Diffusion 3 has it for large pictures (Esser et al. 2024, sec. 5.3.2).
    """

    def __init__(self, steps: int = 1000, shift: float = 1.0):
        if steps < 1 or not 0 < shift < math.inf:
            raise ValueError(f"steps must be 1 or more, and shift a positive number; got {steps} and {shift}.")
        tau = torch.arange(1, steps + 1, dtype=torch.float64) / steps
        tau = shift * tau / (1 + (shift - 1) * tau)
        super().__init__(1 - tau, tau)
        self.steps, self.shift = steps, shift


BETAS = {"linear": linear_betas, "scaled_linear": scaled_linear_betas, "cosine": cosine_betas}


def _betas(kind: str, **arguments) -> Tensor:
    """The betas that `_describe` says."""
    return torch.tensor(arguments["betas"], dtype=torch.float64) if kind == "values" else BETAS[kind](**arguments)


def _describe(betas: Tensor) -> dict:
    """JSON that rebuilds exactly these betas: by name if a function above makes them, else as numbers."""
    ends = {"start": round(float(betas[0]), 12), "end": round(float(betas[-1]), 12)}
    for kind, args in (("linear", ends), ("scaled_linear", ends), ("cosine", {})):
        if torch.equal(BETAS[kind](len(betas), **args), betas):
            return {"kind": kind, "steps": len(betas), **args}
    return {"kind": "values", "betas": betas.tolist()}
