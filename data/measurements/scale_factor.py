"""What a wrong scale factor costs in a longer training, for notebook 09: `python data/measurements/scale_factor.py`.

The small U-Net of notebook 09 on the latents of `emoji-vq-f4`, of unit variance, eight times too large and eight times
too small; class-conditional, eight nouns, three seeds, equal steps. 20 minutes on one thread. Each run is kept in
`scale_factor.json` as it ends; eight samples of seed 0 go to `scale_factor.png`, a row for each factor (if all of that
seed were made in one go; the stored one has its colours rounded, as that of `losses.py`).
"""

from pathlib import Path

import torch
import tyro
from pixel_against_latent import BATCH, PICTURES, SAMPLES, ClassJudge, batches, diffusion_model, pictures
from resuming import resume

from ldm_mini.files import write_json
from ldm_mini.latent_diffusion import latent_scale
from ldm_mini.show import save_grid
from ldm_mini.train import TrainState, train_diffusion
from ldm_mini.training import cache_latents, load_or_train

FACTORS = {"unit variance": 1.0, "8 x too large": 8.0, "8 x too small": 0.125}
RESULTS = Path(__file__).with_suffix(".json")


def main(steps: int = 3_000, seeds: int = 3, out: Path = RESULTS) -> None:
    """Make the runs that are not there yet."""
    torch.set_num_threads(1)
    data, real, other = (pictures(n, start) for n, start in ((PICTURES, 0), (1024, 10**6), (SAMPLES, 2 * 10**6)))
    judge, autoencoder = ClassJudge(real), load_or_train(stage="autoencoder", model="emoji-vq-f4")
    cache = cache_latents(autoencoder, [data], PICTURES, keys=("class",))
    latents = {"latent": cache.latents.float(), "class": data["class"]}
    scale = latent_scale(autoencoder, [{"latent": latents["latent"]}])
    with torch.no_grad():
        decoded = autoencoder.decode(autoencoder.encode(other["image"])).clamp(-1, 1)
    report = resume(out, {
        "steps": steps, "batch": BATCH, "samples": SAMPLES, "real_pictures": len(real["class"]), "scale_factor": scale,
        "real": judge.score(other["image"], other["class"]), "decoded": judge.score(decoded, other["class"]),
        "runs": []})
    shown = []
    for seed in range(seeds):
        for name, factor in FACTORS.items():
            if any((run["seed"], run["name"]) == (seed, name) for run in report["runs"]):
                continue
            ldm = diffusion_model(autoencoder, factor * scale, seed)
            state = TrainState(ldm, 2e-3, ema_decay=0.998, seed=seed)
            logs = train_diffusion(state, batches(latents, seed), steps, warmup=steps // 15, decay="cosine")
            losses = [log.loss for log in logs]
            with state.ema.applied(ldm):
                samples = judge.sample(ldm.eval())
            last = losses[-steps // 10:]
            report["runs"].append({"name": name, "seed": seed, "loss": sum(last) / len(last),
                                   **judge.score(samples, judge.classes)})
            print(report["runs"][-1], flush=True)
            shown += [samples[:8]] if seed == 0 else []
            write_json(out, report)
    if len(shown) == len(FACTORS):
        save_grid(shown, out.with_suffix(".png"))


if __name__ == "__main__":
    tyro.cli(main)
