"""What the shipped model makes of small pictures, maps and holes: the measurements of notebook 11.

    python data/measurements/pictures_as_condition.py

Every task as `evaluate` measures it, on 64 scenes that no training saw, with the guidance that `tasks` advises, and
"unguided" without; several answers to one small picture; and four ways to fill a hole. About 8 minutes on one thread of
a CPU; the results go to `pictures_as_condition.json`.
"""

import sys
from pathlib import Path

import torch
from torch.nn import functional as F

from ldm_mini.concat_conditioners import paste
from ldm_mini.files import write_json
from ldm_mini.hub import find, read_config
from ldm_mini.latent_diffusion import LatentDiffusion
from ldm_mini.measure import Judge, Recogniser, evaluate_diffusion, psnr
from ldm_mini.measure.judge import after_first_stage, baseline
from ldm_mini.perceptual import PerceptualLoss
from ldm_mini.samplers import repaint
from ldm_mini.scenes import scenes_of
from ldm_mini.show import scenes_for
from ldm_mini.tasks import sample_task

SCENES, STEPS, ANSWERS, HOLES = 64, 20, 8, 64
ROWS = ("model", "decoded", "baseline", "degraded", "degraded_baseline", "shuffled", "real")


def tasks(ldm, config, recogniser) -> dict:
    """{task: {row: {measure: value}}, with the Frechet distance of the samples and the scale of guidance}."""
    found = {}
    for task in ("superres", "semantic", "inpaint"):
        report = evaluate_diffusion(ldm, config, task, SCENES, None, STEPS, recogniser=recogniser)
        found[task] = {row: report[row] for row in ROWS if row in report}
        found[task] |= {name: report[name] for name in ("frechet", "frechet_floor", "guidance_scale")}
        found[task]["unguided"] = evaluate_diffusion(ldm, config, task, SCENES, 1.0, STEPS,
                                                     recogniser=recogniser)["model"]
    return found


@torch.no_grad()
def answers(ldm, config, num: int = 32) -> dict:
    """PSNR and perceptual distance of one answer to a small picture, and of the mean of several."""
    batch, distance = scenes_for("superres", config, num), PerceptualLoss()
    drawn = torch.stack([sample_task(ldm, "superres", batch, steps=STEPS, seed=seed) for seed in range(ANSWERS)])
    counts = (1, 2, 4, 8)
    means = [drawn[:k].mean(0) for k in counts]
    enlarged = baseline("superres", batch)[1]
    return {"answers": list(counts), "num": num,
            "psnr": [psnr(mean, batch["image"]).mean().item() for mean in means],
            "perceptual": [distance(mean, batch["image"]).mean().item() for mean in means],
            "bicubic": [psnr(enlarged, batch["image"]).mean().item(), distance(enlarged, batch["image"]).mean().item()]}


@torch.no_grad()
def holes(ldm, config, recogniser) -> dict:
    """{way to fill a hole: its measures}: one colour, replacement with a model that knows no holes, the trained one."""
    batch = scenes_for("inpaint", config, HOLES)
    judge, filled = Judge.of_scenes(config, ["inpaint"], recogniser=recogniser), baseline("inpaint", batch)[1]
    known, hole = ldm.encode(filled), F.max_pool2d(batch["mask"], ldm.autoencoder.config.downsample_factor) > 0.5
    nothing = {"caption": [""] * HOLES}

    def replaced(steps: int, repeats: int) -> torch.Tensor:
        drawn = ldm.sample(nothing, guidance_scale=1.0, sampler=repaint, steps=steps, seed=0, known=known, hole=hole,
                           repeats=repeats)
        return paste(drawn, batch["image"], batch["mask"])

    ways = {"mean colour": filled, "replacement, 100 steps": replaced(100, 1),
            "replacement, 20 steps, each 5 times": replaced(20, 5),
            "trained to, 20 steps": sample_task(ldm, "inpaint", batch, steps=STEPS, seed=0),
            "first stage (ceiling)": after_first_stage(ldm, "inpaint", batch)}
    return {name: judge.score("inpaint", pictures, batch) for name, pictures in ways.items()}


def main(model: str = "emoji-scenes") -> None:
    """Measure all, and write it down."""
    ldm, recogniser = LatentDiffusion.from_pretrained(model), Recogniser.load()
    config = scenes_of(read_config(find(model), "LatentDiffusion"))
    found = {"scenes": SCENES, "steps": STEPS, "holes": HOLES, "tasks": tasks(ldm, config, recogniser),
             "posterior": answers(ldm, config), "ways": holes(ldm, config, recogniser)}
    write_json(Path(__file__).with_suffix(".json"), rounded(found))


def rounded(value):
    """All numbers to four digits after the point."""
    if isinstance(value, dict):
        return {key: rounded(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [rounded(entry) for entry in value]
    return round(value, 4) if isinstance(value, float) else value


if __name__ == "__main__":
    main(*sys.argv[1:])
