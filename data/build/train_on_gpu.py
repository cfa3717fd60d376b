"""Train, measure and pack a model of the shipped design in given minutes: python data/build/train_on_gpu.py OUT

Three legs by the `base` recipes, each with as many steps as its share of the minutes allows (it times a few first),
then `evaluate`, then the model in half precision in OUT/packed. Tried on a CPU with --recipe micro --minutes 1.
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path

from ldm_mini.latent_diffusion import LatentDiffusion
from ldm_mini.measure.evaluate import run_evaluate
from ldm_mini.training.launch import train_stage
from ldm_mini.training.recipes import find_recipe

SHARES = {"autoencoder": 0.3, "text": 0.05, "diffusion": 0.5}                  # the rest: latents, measuring, packing
TRIAL = 30                                                                      # steps that tell how long one takes


def main():
    """Everything, leg by leg."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, default=11)
    parser.add_argument("--recipe", default="base")
    parser.add_argument("--num", type=int, default=256, help="pictures to measure")
    given = parser.parse_args()
    models = {}
    for stage, share in SHARES.items():
        recipe, began = find_recipe(stage, given.recipe), time.monotonic()
        options = {"autoencoder": models["autoencoder"], "text": models["text"]} if stage == "diffusion" else {}
        # two lengths: their difference is what steps take, without what comes before the first
        seconds = []
        for steps in (2, 2 + TRIAL):
            start = time.monotonic()
            train_stage(stage, replace(shortened(recipe), steps=steps), given.out / f"trial-{stage}-{steps}", **options,
                        sample_every=10**9)
            seconds.append(time.monotonic() - start)
        step = max(seconds[1] - seconds[0], 1e-3) / TRIAL
        left = 60 * given.minutes * share - (time.monotonic() - began)
        steps = max(TRIAL, int(left / step))
        print(f"{stage}: {1000 * step:.1f} ms a step, {steps} steps", flush=True)
        train_stage(stage, stretched(recipe, steps), given.out / stage, **options, sample_every=max(1, steps // 4),
                    save_every=max(1, steps // 2))
        models[stage] = str(given.out / stage / "model")
    run_evaluate(models["diffusion"], "all", num=given.num, out=given.out / "evaluation")
    LatentDiffusion.from_pretrained(models["diffusion"]).save_pretrained(given.out / "packed", half=True)


def shortened(recipe):
    """The recipe for a trial: few latents to encode."""
    return replace(recipe, latents=max(64, recipe.batch_size)) if hasattr(recipe, "latents") else recipe


def stretched(recipe, steps: int):
    """The recipe with another number of steps; the perceptual loss begins at the same part of them."""
    if hasattr(recipe, "loss"):
        begin = {name: round(getattr(recipe.loss, name) * steps / recipe.steps)
                 for name in ("perceptual_start", "disc_start")}
        recipe = replace(recipe, loss=replace(recipe.loss, **begin))
    return replace(recipe, steps=steps, warmup=min(recipe.warmup, steps // 10))


if __name__ == "__main__":
    main()
