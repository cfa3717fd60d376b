"""What a text transformer that can read brings: `python data/measurements/reading_first.py`, for notebook 10.

The second stage of the speed-run with half of its channels, on captions of simple scenes (`dit_against_unet.py` has the
data and the judge), three seeds. Either the text transformer learned to read first (`training.reading`, 300 steps) and
then learns on at a fifth of the U-Net's rate, as in our recipes; or it is fresh, and learns with the U-Net, at the same
rate; and once more for as many further steps as the other's reading took time. Along each training: the loss on new
scenes, and the caption gap (the loss with the caption of another scene, minus that); at its end what 256 captions
become. About an hour on one thread without bfloat16; each run is written as it ends.
"""

import time
from dataclasses import replace
from pathlib import Path

import torch
import tyro
from dit_against_unet import BF16, CAPTIONS, GUIDANCE, PICTURES, RECIPE, STEPS, Study
from resuming import resume

from ldm_mini.files import write_json
from ldm_mini.training.recipes import TEXTS
from ldm_mini.training.speedrun import train_text

SMALL = replace(RECIPE, channels=64, groups=4)
LOOKS = 5                                                       # along a training


def gap(study: Study, state, loss: float) -> float:
    """How much higher the loss is when each picture gets its neighbour's caption."""
    mine = study.new
    study.new = {**mine, "caption": mine["caption"][1:] + mine["caption"][:1]}
    other = study.loss(state)
    study.new = mine
    return other - loss


def main(steps: int = 1000, seeds: int = 3, out: Path = Path(__file__).with_suffix(".json")) -> None:
    """Every way with every seed."""
    torch.set_num_threads(1)
    report = resume(out, {
        "steps": steps, "channels": SMALL.channels, "pictures": PICTURES, "batch": SMALL.batch_size, "bf16": BF16,
        "captions": CAPTIONS, "sampler_steps": STEPS, "guidance_scale": GUIDANCE, "runs": []})
    study = Study()
    for seed in range(seeds):
        further = 0
        for way in ("reads first", "fresh", "fresh, longer"):
            if done := [run for run in report["runs"] if (run["way"], run["seed"]) == (way, seed)]:
                further = done[0].get("reading_steps", further)
                continue
            began, text, run = time.process_time(), None, {"way": way, "seed": seed}
            if way == "reads first":
                text, reading = train_text(TEXTS["speedrun"], seed), time.process_time() - began
            recipe = SMALL if text else replace(SMALL, text_lr=1.0)
            total = steps + further * (way == "fresh, longer")
            state, looks = study.begin(recipe, text, seed), []
            for log, spent in study.train(state, seed, total):
                if log.step % (total // LOOKS) == 0:
                    loss = study.loss(state)
                    looks.append({"step": log.step, "cpu_s": round(spent, 1), "loss": round(loss, 5),
                                  "gap": round(gap(study, state, loss), 5)})
            if text:
                further = round(reading / spent * steps)
                run |= {"reading_seconds": round(reading, 1), "reading_steps": further}
            report["runs"].append({**run, "looks": looks, **study.judge(state)})
            print(report["runs"][-1], flush=True)
            write_json(out, report)


if __name__ == "__main__":
    tyro.cli(main)
