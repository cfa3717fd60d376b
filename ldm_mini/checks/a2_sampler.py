"""The judge of assignment A2: which sampler makes the best of eight evaluations of the shipped model?

It returns the points that were earned, so that a table of grades, ours or nbgrader's, can hold a part of them.
"""

import os
from functools import lru_cache

import torch
from torch import Tensor, nn

from .checking import CheckFailed, attempt, passed
from .properties import SEED

EVALUATIONS, PICTURES, GUIDANCE = 8, 12, 3.0
RULE = (0.5, 0.9, 1.02)  # the parts of DDIM's score that earn 1, 2, 3 points


@lru_cache(maxsize=1)
def _shipped() -> tuple:
    # here: who checks something else need not wait for it
    from ..latent_diffusion import LatentDiffusion
    from ..measure import Recogniser

    return LatentDiffusion.from_pretrained("emoji-scenes"), Recogniser.load()


def request(count: int, seed: int) -> tuple:
    """What is asked of the shipped model: captions of one thing each, and noise for them."""
    from ..scenes import TINY_NOUNS

    model, _ = _shipped()
    source = torch.Generator().manual_seed(seed)
    order = torch.cat([torch.randperm(len(TINY_NOUNS), generator=source) for _ in range(-(-count // len(TINY_NOUNS)))])
    nouns = [TINY_NOUNS[i] for i in order[:count]]
    captions = [f"an {noun}" if noun[0] in "aeiou" else f"a {noun}" for noun in nouns]
    return nouns, captions, torch.randn(count, *model.latent_shape(model.image_size), generator=source)


def draw_in_eight(sampler, count: int = PICTURES, seed: int = 0) -> tuple[Tensor, Tensor, list[str]]:
    """What a sampler draws with 8 evaluations: pictures (B,3,H,W), the recogniser's certainty (B,), captions.

    sampler: `sampler(denoise, z_T, schedule, steps=8, generator=...)`, a generator as in `ldm_mini.samplers`. A
    certainty is the recogniser's probability, from 0 to 1, that the thing asked for is somewhere in the picture.
    Raises CheckFailed for more than 8 evaluations of a network of this kind, whoever holds it.
    """
    from ..scenes import NOUN_INDEX

    model, recogniser = _shipped()
    nouns, captions, z_T = request(count, seed)
    denoise = model.denoiser({"caption": captions}, guidance_scale=GUIDANCE)
    seen = 0

    def counted(module, inputs):
        nonlocal seen
        if type(module) is type(recogniser):
            raise CheckFailed("the recogniser is the judge: a sampler may not ask it.")
        seen += len(inputs[0]) if type(module) is type(model.net) else 0

    def last():
        z = None
        for z in sampler(denoise, z_T.clone(), model.schedule, steps=EVALUATIONS,
                         generator=torch.Generator().manual_seed(seed)):
            pass
        return z

    with torch.no_grad():
        hook = nn.modules.module.register_module_forward_pre_hook(counted)
        try:
            z = attempt(last, name="the sampler")
        finally:
            hook.remove()
        # a guided evaluation asks the network twice: with the caption and without
        if seen > EVALUATIONS * 2 * count:
            raise CheckFailed(f"{seen / 2 / count:.3g} evaluations of the network; {EVALUATIONS} are allowed.")
        if not isinstance(z, Tensor) or z.shape != z_T.shape or not z.isfinite().all():
            raise CheckFailed("the last thing that the sampler yields should be finished latents, finite and of z_T's "
                              "shape.")
        images = model.decode(z).clamp(-1, 1)
        sure = recogniser(recogniser.resized(images))["heat"].sigmoid().amax((2, 3))
    return images, sure[torch.arange(count), [NOUN_INDEX[noun] for noun in nouns]], captions


@lru_cache(maxsize=4)
def _certainty_of_ddim(count: int, seed: int) -> float:
    """What all are held against; the same at every call, so it is drawn once."""
    from ..samplers import ddim

    return draw_in_eight(ddim, count, seed)[1].mean().item()


def eight_evaluations(sampler) -> int:
    """Points of a sampler, from its mean certainty beside DDIM's in 8 steps, same captions and noise: see RULE."""
    seed = int(os.environ.get(SEED) or 0)  # a learner compares runs: the same pictures each time
    mine = draw_in_eight(sampler, PICTURES, seed)[1].mean().item()
    theirs = _certainty_of_ddim(PICTURES, seed)
    points = sum(mine >= part * theirs for part in RULE)
    if not points:
        raise CheckFailed(f"a certainty of {mine:.2f}; DDIM in {EVALUATIONS} steps has {theirs:.2f}, and one point "
                          "needs half of it. Look at the pictures: are they noise, grey, or unfinished?")
    passed(f"{getattr(sampler, '__name__', 'the sampler')}: {points} of {len(RULE)} points")
    return points
