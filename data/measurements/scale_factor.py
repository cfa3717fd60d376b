"""What a wrong scale factor costs in a longer training, for notebook 09: `python data/measurements/scale_factor.py`.

The f = 8 first stage and the class-conditional U-Net of `which_f.py` (64-pixel scenes of one thing in the middle), on
latents of unit variance, eight times too large and eight times too small; one first stage, three seeds of the second,
equal steps. 90 minutes on one thread without bfloat16. Each run is kept in `scale_factor.json` as it ends; six
samples of seed 0 go to `scale_factor.png`, a row for each factor. (The stored one has its colours rounded, unseen, by
`compressed` of data/build/compress_figures.py.)
"""

from pathlib import Path

import torch
import tyro
import which_f
from resuming import keep_row, resume

from ldm_mini.files import write_json
from ldm_mini.train import TrainState, train_diffusion
from ldm_mini.training import cache_latents

FACTORS = {"unit variance": 1.0, "8 x too large": 8.0, "8 x too small": 0.125}
RESULTS = Path(__file__).with_suffix(".json")


def main(steps: int = 2_000, first: int = 1_000, seeds: int = 3, out: Path = RESULTS) -> None:
    """Make the runs that are not there yet. steps, first: of the second and the first stage."""
    torch.set_num_threads(1)
    reference, data = which_f.Reference(), which_f.one_thing(which_f.PICTURES, 0)
    # latents of mean 0 and variance 1: what is wrong with the scale is wrong on purpose
    autoencoder, measured = which_f.train_first(8, data, 0, 0, reference, least=first)
    parts = [{"image": images} for images in data["image"].split(64)]
    latents = cache_latents(autoencoder, parts, which_f.PICTURES, keys=(), sample=False, bf16=which_f.BF16).latents
    report = resume(out, {
        "steps": steps, "first_stage_steps": first, "batch": which_f.BATCH, "samples": which_f.SAMPLES,
        "sampler_steps": which_f.STEPS, "bf16": which_f.BF16, "first_stage": measured,
        "real": {"frechet": reference.frechet(reference.other["image"]),
                 "named": reference.named(reference.other["image"])}, "runs": []})
    for seed, name in ((seed, name) for seed in range(seeds) for name in FACTORS):
        if any((run["seed"], run["name"]) == (seed, name) for run in report["runs"]):
            continue
        torch.manual_seed(seed)
        ldm = which_f.second_stage(8, autoencoder, scale_factor=FACTORS[name])
        state = TrainState(ldm, 2e-3, muon_lr=5e-3, ema_decay=0.99, seed=seed, bf16=which_f.BF16)
        batches = which_f.endless({"latent": latents, "class": data["class"]}, seed)
        losses = [log.loss for log in train_diffusion(state, batches, steps, warmup=50, decay="cosine")]
        images, last = which_f.draw(state, reference), losses[-steps // 10:]
        report["runs"].append({"name": name, "seed": seed, "loss": sum(last) / len(last),
                               "frechet": reference.frechet(images), "named": reference.named(images)})
        print(report["runs"][-1], flush=True)
        if seed == 0:
            keep_row(out.with_suffix(".png"), list(FACTORS).index(name), len(FACTORS), images[:6])
        write_json(out, report)


if __name__ == "__main__":
    tyro.cli(main)
