"""Trains what notebook 12 compares: one network for all tasks, and the same network for each task alone.

    python data/measurements/train_single_tasks.py --autoencoder runs/autoencoder-tiny/model \
        --start-from runs/diffusion-tiny/model --out runs/single --steps 1200

Every run starts from the same trained text model and takes the same number of steps on the same scenes with the same
network; they differ only in which conditions a training sample shows. Folders: OUT/all, OUT/layout, ... each with its
`model`. Seven times 1,200 steps take 50 minutes on one thread of a shared two-core CPU.
"""

from dataclasses import replace
from pathlib import Path

import torch
import tyro

from ldm_mini import tasks
from ldm_mini.training import train_stage
from ldm_mini.training.recipes import TINY_ALL_DIFFUSION


def main(autoencoder: str, start_from: str, out: Path = Path("runs/single"), steps: int = 1200,
         only: tuple[str, ...] = ("all", "layout", "superres", "semantic", "inpaint", "text", "class")):
    torch.set_num_threads(1)
    for name in only:
        recipe = replace(TINY_ALL_DIFFUSION, steps=steps, latents=12_000)
        if name != "all":                       # that condition, or a tenth of the time none; never another
            part, = tasks.TASKS[name].parts
            recipe = replace(recipe, alone=part)
        train_stage("diffusion", recipe, out / name, autoencoder=autoencoder, start_from=start_from, seed=0,
                    sample_every=steps, save_every=steps)


if __name__ == "__main__":
    tyro.cli(main)
