"""How many steps does the shipped model need? Measured for notebook 08; about ten minutes on one CPU thread.

    python data/measurements/steps_against_distance.py        # writes steps_against_distance.json beside this file

Pictures of one thing each, captions of split "val", the advised guidance (a few rows: 1), equal starting noise. Per
sampler, spacing and number of steps: the distance of each picture to the one that 200 steps of DPM-Solver++(2M) make
of the same noise (rms in the latent, perceptual between pictures; the mean over pictures), for the samplers that follow
the same flow; how many pictures show exactly what the caption claims, as the shipped recogniser reads them; and the
Frechet distance to 512 other real scenes (128 pictures against 112 features: compare rows, never with other numbers).
"""

import json
from collections import deque
from pathlib import Path

import torch

from ldm_mini.hub import find, read_config
from ldm_mini.latent_diffusion import LatentDiffusion
from ldm_mini.measure import Recogniser, frechet_distance, score_captions
from ldm_mini.perceptual import PerceptualLoss
from ldm_mini.samplers import SAMPLERS
from ldm_mini.scenes import scene_batches, scenes_of, scenes_to_test
from ldm_mini.tasks import TEXT_GUIDANCE

OUT = Path(__file__).with_suffix(".json")
NUM, FOLLOWED, BATCH, REFERENCE_STEPS = 128, 32, 16, 200
REAL, REAL_START = 512, 1_000_000
RUNS = [(sampler, "trailing", steps, NUM, TEXT_GUIDANCE)
        for steps in (3, 5, 10, 20, 40) for sampler in ("ddpm", "ddim", "dpm")]
RUNS += [("ddim", spacing, steps, FOLLOWED, TEXT_GUIDANCE)
         for steps in (5, 10, 20) for spacing in ("leading", "linspace")]
RUNS += [(sampler, "trailing", steps, NUM, 1.0) for steps in (5, 20) for sampler in ("ddpm", "ddim")]  # off


def draw(ldm, captions, z_T, sampler, steps, spacing="trailing", guidance=TEXT_GUIDANCE):
    """Latents (B, C, h, w), in batches; the DDPM's noise from one generator per batch."""
    parts = []
    for i in range(0, len(captions), BATCH):
        denoise = ldm.denoiser({"caption": captions[i:i + BATCH]}, guidance)
        path = SAMPLERS[sampler](denoise, z_T[i:i + BATCH], ldm.schedule, steps, torch.Generator().manual_seed(i),
                                 spacing=spacing)
        parts.append(deque(path, maxlen=1).pop())
    return torch.cat(parts)


@torch.no_grad()
def main():
    ldm, recogniser, perceptual = LatentDiffusion.from_pretrained("emoji-scenes"), Recogniser.load(), PerceptualLoss()
    scenes = scenes_to_test(scenes_of(read_config(find("emoji-scenes"), "LatentDiffusion")), "class")
    look, batch = PerceptualLoss("efficientnet").features, next(scene_batches(scenes, NUM, 0, NUM))
    captions = batch["caption"]
    features = torch.cat([look(real["image"]) for real in scene_batches(scenes, REAL, REAL_START, 64)])
    floor = frechet_distance(look(batch["image"]), features).item()
    z_T = torch.randn(NUM, *ldm.latent_shape(ldm.image_size), generator=torch.Generator().manual_seed(0))
    limit = draw(ldm, captions[:FOLLOWED], z_T, "dpm", REFERENCE_STEPS)
    limit_images, rows = ldm.decode(limit).clamp(-1, 1), []
    for sampler, spacing, steps, num, guidance in RUNS:
        z = draw(ldm, captions[:num], z_T, sampler, steps, spacing, guidance)
        images = ldm.decode(z).clamp(-1, 1)
        scores = score_captions(recogniser.detect(images), captions[:num])
        rows.append({"sampler": sampler, "spacing": spacing, "steps": steps, "guidance": guidance, "num": num,
                     "exact": scores["exact"], "mean": images.mean().item()})
        if num == NUM:
            rows[-1]["frechet"] = frechet_distance(look(images), features).item()
        if sampler != "ddpm" and guidance == TEXT_GUIDANCE:
            rows[-1]["latent"] = (z[:FOLLOWED] - limit).square().flatten(1).mean(1).sqrt().mean().item()
            rows[-1]["perceptual"] = perceptual(images[:FOLLOWED], limit_images).mean().item()
        print(rows[-1], flush=True)
    scores = score_captions(recogniser.detect(limit_images), captions[:FOLLOWED])
    report = {"model": "emoji-scenes", "frechet_floor": floor, "reference": {
        "sampler": "dpm", "steps": REFERENCE_STEPS, "num": FOLLOWED, "exact": scores["exact"],
        "latent_std": limit.std().item(), "mean": limit_images.mean().item()}, "rows": rows}
    OUT.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
