"""The judge of assignment A3: a first stage within a budget of parameters, of latent numbers, and of seconds.

It returns the points that were earned, so that a table of grades, ours or nbgrader's, can hold a part of them.
"""

import math
import time
from functools import lru_cache
from itertools import repeat

import torch
from torch import Tensor, nn

from .checking import CheckFailed, attempt, passed
from .properties import generator, own_randomness

SIDE, PARAMETERS, LATENT, SECONDS = 32, 150_000, 256, 3
RULE = (2, 4, 6)  # dB above a picture's mean colour that earn 1, 2, 3 points


@lru_cache(maxsize=4)
def pictures(count: int, start: int) -> Tensor:
    """Scenes (count, 3, 32, 32) in [-1, 1]; those from 0 on are to train with, those from 10**6 on to be judged by."""
    from ..scenes import EmojiScenes, SceneConfig

    scenes = EmojiScenes(SceneConfig(size=SIDE, max_objects=2), count, start)
    return torch.stack([scenes[i]["image"] for i in range(count)])


def batches(count: int = 256, size: int = 16):
    """Endless batches (16, 3, 32, 32) of the same 256 scenes, in a random order."""
    images, source = pictures(count, 0), generator()  # at once: nobody's clock runs while they are drawn
    return (images[chosen] for _ in repeat(None) for chosen in torch.randperm(count, generator=source).split(size))


def gain(model, count: int = 64) -> float:
    """By how many dB decode(encode(x)) is nearer to new pictures than each picture's mean colour is, on average."""
    x = pictures(count, 10**6)
    model.eval()
    with torch.no_grad():
        z = model.encode(x.clone())
        _fits(z, count)
        # each in another's place: who kept the pictures themselves has the wrong ones now
        shift = int(torch.randint(1, count, (), generator=generator()))
        x, z = x.roll(shift, 0), z.roll(shift, 0)
        error = (model.decode(z).clamp(-1, 1) - x).square().mean((1, 2, 3)).clamp(min=1e-6)
    return (10 * (_flat(x) / error).log10()).mean().item()


def _flat(x: Tensor) -> Tensor:
    return (x - x.mean((2, 3), keepdim=True)).square().mean((1, 2, 3)).clamp(min=1e-4)


def _fits(z, count: int):
    if not isinstance(z, Tensor) or len(z) != count:
        raise CheckFailed("encode(x) should return a tensor with one latent for each picture.")
    if z[0].numel() > LATENT:
        raise CheckFailed(f"a latent of {tuple(z[0].shape)} has {z[0].numel()} numbers; {LATENT} are allowed.")


def first_stage_budget(build):
    """`build()` -> a first stage for pictures of 32 x 32: at most 150,000 parameters and 256 numbers in a latent."""
    with own_randomness():
        model = attempt(build, name="build")
        if not isinstance(model, nn.Module):
            raise CheckFailed("build should return a module, an Autoencoder say. Did you forget the `return`?")
        size = sum(p.numel() for p in model.parameters())
        if size > PARAMETERS:
            raise CheckFailed(f"{size:,} parameters; {PARAMETERS:,} are allowed. Fewer channels, or fewer blocks?")
        x = pictures(2, 0)
        _fits(attempt(lambda: model.encode(x), name="encode"), 2)
        out = attempt(model, x, name="forward")
        if not isinstance(out, tuple) or len(out) != 2 or out[0].shape != x.shape:
            raise CheckFailed("forward(x) should return a picture of x's shape and the bottleneck's loss, as an "
                              "Autoencoder does.")
        if not out[0].requires_grad:
            raise CheckFailed("the reconstruction has no gradient: nothing could be trained.")
    passed("build: within the budget")


def first_stage_training(train, build) -> int:
    """`train(model, batches, seconds)`: points of what it makes of build() in 3 CPU-seconds: see RULE."""
    with own_randomness():
        model = attempt(build, name="build")
        # the first optimizer of a process imports for seconds, which are nobody's
        torch.optim.AdamW([torch.zeros(1, requires_grad=True)])
        source, begin = batches(), time.process_time()
        attempt(lambda: train(model, source, SECONDS), name="train")
        spent = time.process_time() - begin
        if spent > 1.5 * SECONDS:
            raise CheckFailed(f"train took {spent:.1f} CPU-seconds of {SECONDS}: look at time.process_time() at each "
                              "step, and stop in time.")
        if sum(p.numel() for p in model.parameters()) > PARAMETERS:
            raise CheckFailed(f"train made the model larger than {PARAMETERS:,} parameters.")
        found = gain(model)
    points = sum(found >= part for part in RULE)
    if not math.isfinite(found) or not points:
        raise CheckFailed(f"its reconstructions are {found:.1f} dB nearer to the pictures than their mean colour is; "
                          f"one point needs {RULE[0]}. Does the loss fall? Is the learning rate too small or large?")
    passed(f"train: {points} of {len(RULE)} points")
    return points
