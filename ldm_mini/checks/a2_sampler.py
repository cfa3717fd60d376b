"""The judge of assignment A2: which sampler makes the best of eight evaluations of the shipped model?

What a sampler is for: from some noise the flow leads to one picture, which many small steps find. How near does it come
to that in eight? Measured picture by picture beside DDIM from the same noise, this is no matter of luck.
It returns the points that were earned, so that a table of grades, ours or nbgrader's, can hold a part of them.
"""

import os
from contextlib import nullcontext
from functools import lru_cache

import torch
from torch import Tensor

from ..tasks import TEXT_GUIDANCE
from .checking import CheckFailed, attempt, passed
from .properties import SEED

EVALUATIONS, PICTURES = 8, 10
MANY = 25  # steps of the solution that all are held against: a seventh as far off as eight of DDIM
RULE = (2.0, 1.01, 0.8)  # how far off, as a part of DDIM's distance, earns 1, 2, 3 points


@lru_cache(maxsize=1)
def _shipped() -> tuple:
    # here: who checks something else need not wait for it
    from ..latent_diffusion import LatentDiffusion
    from ..measure import Recogniser

    return LatentDiffusion.from_pretrained("emoji-scenes"), Recogniser.load()


def request(count: int, seed: int) -> tuple:
    """What is asked of the shipped model: captions of one thing each, and noise for them."""
    from ..scenes import NOUNS

    model, _ = _shipped()
    source = torch.Generator().manual_seed(seed)
    order = torch.cat([torch.randperm(len(NOUNS), generator=source) for _ in range(-(-count // len(NOUNS)))])
    nouns = [NOUNS[i] for i in order[:count]]
    captions = [f"an {noun}" if noun[0] in "aeiou" else f"a {noun}" for noun in nouns]
    return nouns, captions, torch.randn(count, *model.latent_shape(model.image_size), generator=source)


def _walk(sampler, count: int, seed: int, steps: int, counter=nullcontext()) -> Tensor:
    """Where a sampler ends (B,C,h,w)."""
    model, _ = _shipped()
    _, captions, z_T = request(count, seed)
    denoise = model.denoiser({"caption": captions}, guidance_scale=TEXT_GUIDANCE)

    def last():
        z = None
        for z in sampler(denoise, z_T.clone(), model.schedule, steps=steps,
                         generator=torch.Generator().manual_seed(seed)):
            pass
        return z

    with torch.no_grad(), counter:
        z = attempt(last, name="the sampler")
    if not isinstance(z, Tensor) or z.shape != z_T.shape or not z.isfinite().all():
        raise CheckFailed("the last thing that the sampler yields should be finished latents, finite and of z_T's "
                          "shape.")
    return z


def _counted(sampler, count: int, seed: int) -> tuple[Tensor, int]:
    """Where a sampler ends, and how much arithmetic that took, whoever did it with whatever network."""
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    return _walk(sampler, count, seed, EVALUATIONS, counter), counter.get_total_flops()


@lru_cache(maxsize=8)
def _ddim(count: int, seed: int) -> tuple[Tensor, int]:
    from ..samplers import ddim

    return _counted(ddim, count, seed)


@lru_cache(maxsize=8)
def _solution(count: int, seed: int) -> Tensor:
    """Where the flow leads, by many steps."""
    from ..samplers import dpm_solver

    return _walk(lambda *given, **options: dpm_solver(*given, spacing="flow", **options), count, seed, MANY)


def _in_eight(sampler, count: int, seed: int) -> Tensor:
    """Where a sampler ends (B,C,h,w). Raises CheckFailed for more than 8 evaluations, by the arithmetic of DDIM's 8."""
    z, flops = _counted(sampler, count, seed)
    made = EVALUATIONS * flops / _ddim(count, seed)[1]
    if made > EVALUATIONS + 0.1:  # a sampler's own arithmetic is next to nothing
        raise CheckFailed(f"as much arithmetic as {made:.3g} evaluations of the network; {EVALUATIONS} are allowed.")
    return z


def distances(sampler, count: int = PICTURES, seed: int = 0) -> Tensor:
    """How far a sampler ends from the many-step solution from the same noise: for each picture, DDIM's distance is 1.

    sampler: `sampler(denoise, z_T, schedule, steps=8, generator=...)`, a generator as in `ldm_mini.samplers`.
    Returns (B,) ratios of root mean square distances of latents. Raises CheckFailed for more than 8 evaluations.
    """
    goal = _solution(count, seed)
    mine, theirs = ((z - goal).square().mean((1, 2, 3)).sqrt()
                    for z in (_in_eight(sampler, count, seed), _ddim(count, seed)[0]))
    return mine / theirs.clamp(min=1e-6)


def draw_in_eight(sampler, count: int = PICTURES, seed: int = 0) -> tuple[Tensor, Tensor, list[str]]:
    """What a sampler draws with 8 evaluations: pictures (B,3,H,W), the recogniser's certainty (B,), captions.

    A certainty is the recogniser's probability, from 0 to 1, that the thing asked for is somewhere in the picture.
    """
    from ..scenes import NOUN_INDEX

    model, recogniser = _shipped()
    nouns, captions, _ = request(count, seed)
    with torch.no_grad():
        images = model.decode(_in_eight(sampler, count, seed)).clamp(-1, 1)
        sure = recogniser(recogniser.resized(images))["heat"].sigmoid().amax((2, 3))
    return images, sure[torch.arange(count), [NOUN_INDEX[noun] for noun in nouns]], captions


def mean_and_error(ratios: Tensor) -> tuple[float, float]:
    """The geometric mean of ratios (B,), and the standard error of its logarithm: of what is judged in pairs."""
    logs = ratios.clamp(min=1e-6).log()
    return logs.mean().exp().item(), (logs.std() / len(logs) ** 0.5).item()


def eight_evaluations(sampler) -> int:
    """Points of a sampler: how far it ends from the many-step solution, beside DDIM in 8 steps. See RULE.

    3 points need more than two standard errors over the pictures, too: then it is the sampler and not these pictures.
    """
    seed = int(os.environ.get(SEED) or 0)  # a learner compares runs: the same pictures each time
    ratio, error = mean_and_error(distances(sampler, PICTURES, seed))
    points = sum(ratio <= part for part in RULE)
    if points == len(RULE) and ratio > torch.tensor(-2 * error).exp():
        points -= 1
    if not points:
        raise CheckFailed(f"it ends {ratio:.1f} times as far from where the flow leads as DDIM in {EVALUATIONS} steps; "
                          f"one point needs {RULE[0]:.0f} times at most. Look at the pictures: are they noise, grey, "
                          "unfinished? Fresh noise leads elsewhere.")
    passed(f"{getattr(sampler, '__name__', 'the sampler')}: {ratio:.2f} of DDIM's distance, {points} of {len(RULE)} "
           "points")
    return points
