"""How fast an image turns into noise: z_t = alpha_t z_0 + sigma_t eps with alpha_t^2 + sigma_t^2 = 1 (LDM appendix B).

Two papers, one letter: here, as in LDM's appendix, `alpha` and `sigma` are amplitudes. DDPM writes alpha_t = 1 - beta_t
and, with a bar, its product over steps: `alphas_cumprod`. So alpha^2 = alphas_cumprod and sigma^2 = 1 - alphas_cumprod.
Timesteps count from 0: t = 0 is the least noise, t = T - 1 (nearly) nothing but noise, and t = -1 is the clean image.
Built in notebook 06.
"""

import math

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


class NoiseSchedule(nn.Module):
    """The forward process of T steps, from its betas (T,), each in (0, 1), or from the `config` of another.

    Buffers `betas` and `alphas_cumprod` (T,) are computed in float64 and kept in float32 whatever the model is cast to:
    half precision cannot tell alphas_cumprod[0] from 1. They are constants, so they are in no state dict.
    Wherever a method takes t, that is int64 (B,) on the schedule's device, and -1 means the clean image.
    """

    def __init__(self, betas: Tensor):
        super().__init__()
        betas = _betas(**betas) if isinstance(betas, dict) else betas
        betas = None if isinstance(betas, str) else torch.as_tensor(betas, dtype=torch.float64, device="cpu")
        if betas is None or betas.ndim != 1 or not len(betas) or not ((betas > 0) & (betas < 1)).all():
            raise ValueError("betas must be a vector of numbers in (0, 1), such as NoiseSchedule(cosine_betas()).")
        self.num_steps = len(betas)                                             # T
        self.config = _describe(betas)
        self.arguments = {"betas": self.config}                                 # for `hub`: in few words, and exact
        self.register_buffer("betas", betas.float(), persistent=False)
        self.register_buffer("alphas_cumprod", torch.cumprod(1 - betas, dim=0).float(), persistent=False)

    def alpha(self, t: Tensor, ndim: int = 4) -> Tensor:
        """Amplitude of the signal at t, (B, 1, 1, ...) with `ndim` axes."""
        return self._cumprod(t, ndim).sqrt()

    def sigma(self, t: Tensor, ndim: int = 4) -> Tensor:
        """Amplitude of the noise at t, (B, 1, 1, ...) with `ndim` axes."""
        return (1 - self._cumprod(t, ndim)).sqrt()

    def snr(self, t: Tensor) -> Tensor:
        """Signal-to-noise ratio alpha^2 / sigma^2, (B,)."""
        return self._cumprod(t, 1) / (1 - self._cumprod(t, 1))

    def add_noise(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """x_t ~ q(x_t | x0), same shape as x0 and eps (B, ...): DDPM eq. 4."""
        return self.alpha(t, x0.ndim) * x0 + self.sigma(t, x0.ndim) * eps

    def posterior(self, x0: Tensor, x_t: Tensor, t: Tensor, s: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Mean (B, ...) and variance (B, 1, ...) of q(x_s | x_t, x0) for an earlier s < t, by default s = t - 1.

        DDPM eq. 7 for s = t - 1; the same Bayes' rule holds over longer steps, where beta is that of the whole step.
        """
        s = t - 1 if s is None else s
        a_t, a_s = self._cumprod(t, x_t.ndim), self._cumprod(s, x_t.ndim)
        # DDPM's letters: what the step from s to t leaves of the signal's power is alpha = 1 - beta
        alpha = a_t / a_s
        # x_s has two neighbours, the clean image and the noisier x_t; eq. 7 weighs what each of them tells
        mean = (a_s.sqrt() * (1 - alpha) * x0 + alpha.sqrt() * (1 - a_s) * x_t) / (1 - a_t)
        # 0 for s = -1, where a_s = 1: nothing is left to draw
        return mean, (1 - alpha) * (1 - a_s) / (1 - a_t)

    def timesteps(self, steps: int, spacing: str = "leading", offset: int = 0) -> Tensor:
        """The timesteps that `steps` steps of a sampler visit: (steps,) int64, descending, for any 1 <= steps <= T.

        "leading" begins each of `steps` equal parts of 0..T-1, "trailing" ends each of them (so T - 1 is visited),
        "linspace" runs from T - 1 to 0. `offset` moves all of them up, as far as T - 1 allows.
        Where `steps` divides T these are diffusers' numbers, and LDM's DDIM is ("leading", offset=1). Elsewhere LDM
        takes too many steps, and diffusers' "leading" starts too far below the top to be given pure noise.
        """
        T = self.num_steps
        if not 1 <= steps <= T or steps != int(steps):
            raise ValueError(f"steps must be a whole number from 1 to {T}, the length of the schedule, got {steps}.")
        # multiply before you divide: so there are exactly `steps` of them, evenly spread
        count = torch.arange(steps, dtype=torch.float64)
        if spacing == "leading":
            t = (torch.arange(steps) * T // steps).flip(0)
        elif spacing == "trailing":
            t = (T - count * T / steps).round().long() - 1
        elif spacing == "linspace":
            t = (T - 1 - count * (T - 1) / max(steps - 1, 1)).round().long()
        else:
            raise ValueError(f'spacing must be "leading", "trailing" or "linspace", got {spacing!r}.')
        return t + min(offset, T - 1 - int(t[0]))

    def _cumprod(self, t: Tensor, ndim: int) -> Tensor:
        """alphas_cumprod at t, (B, 1, 1, ...) with `ndim` axes; 1 for the clean image."""
        return torch.where(t < 0, 1.0, self.alphas_cumprod[t.clamp(min=0)]).view(-1, *[1] * (ndim - 1))

    def _apply(self, fn, recurse=True):
        # follow the model's device, not its dtype
        return super()._apply(lambda v: v.to(fn(v).device), recurse)


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
