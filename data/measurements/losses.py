"""What each term of a first stage's loss buys, for notebooks 04 and 05: `python data/measurements/losses.py`.

One autoencoder (that of `which_f.py`, f = 8) from scratch on the same scenes of 64 pixels, three seeds: pixels alone
(L1 + MSE), with the perceptual distance, with the critic too (adaptive lambda), with a lambda that stands still at the
mean of that one, and pixels alone for twice the steps: a little longer than the perceptual run, a little shorter than
the critic's. Measured on 256 new scenes; the recogniser, which no loss knows, reads their captions. 40 minutes on one
thread with bfloat16. Each row is kept in `losses.json` as it comes; pictures of seed 0 go to `losses.png`, a row for
the originals and one for each way. (The stored one has its colours rounded, unseen, by `compressed` of
data/build/compress_figures.py.)
"""

import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import torch
import tyro
from PIL import Image
from resuming import resume
from which_f import BF16, first_stage

from ldm_mini.autoencoder import Autoencoder
from ldm_mini.discriminator import PatchDiscriminator
from ldm_mini.files import write_json
from ldm_mini.measure import Recogniser, frechet_distance, psnr, score_captions
from ldm_mini.perceptual import PerceptualLoss
from ldm_mini.scenes import TINY_SCENES, compose, scene_stream, to_tensor
from ldm_mini.show.plotting import to_uint8
from ldm_mini.train import TrainState, train_autoencoder

SEEDS, STEPS, BATCH, NEW = 3, 1_000, 8, 256
PIXELS = {"mse_weight": 1.0, "perceptual_weight": 0.0, "disc_weight": 0.0}
# what is there already gets sharp: the costly terms wait
PERCEPTUAL = {**PIXELS, "perceptual_weight": 1.0, "perceptual_start": 300}
CRITIC = {**PERCEPTUAL, "disc_weight": 0.75, "disc_start": 600}
WAYS = {
    "pixels": (STEPS, PIXELS),
    "pixels, longer": (2 * STEPS, PIXELS),
    "+ perceptual": (STEPS, PERCEPTUAL),
    "+ critic": (STEPS, CRITIC),
    "+ critic, constant": (STEPS, CRITIC),
}
SHOWN = (0, 1, 2, 3)                             # the first ones: none is chosen
RESULTS = Path(__file__).with_suffix(".json")


def train(way: str, seed: int, perceptual, constant: float) -> tuple[Autoencoder, dict]:
    """A first stage, its CPU-seconds, and of a critic's the mean lambda, and that of the last 100 steps.

    constant: what lambda is in the way that has it stand still."""
    steps, weights = WAYS[way]
    torch.manual_seed(seed)
    model, found = first_stage(8), []
    state = TrainState(model, 2e-3, muon_lr=5e-3, betas=(0.9, 0.99), weight_decay=0.0, seed=seed, bf16=BF16)
    if weights["disc_weight"]:
        # patches of 34 pixels, about one thing; the critic learns more slowly than what it judges
        state.adversary = TrainState(PatchDiscriminator(channels=32, num_layers=2), 5e-4, betas=(0.5, 0.9),
                                     weight_decay=0.0, bf16=BF16)
    began, scenes = time.process_time(), scene_stream(TINY_SCENES, BATCH, seed=seed)
    still = patch("ldm_mini.train.adaptive_weight", lambda *_: torch.tensor(constant))
    with still if way.endswith("constant") else nullcontext():
        for log in train_autoencoder(state, scenes, steps, perceptual=perceptual, warmup=50, decay="cosine", **weights):
            found += [log.floats()["lambda"]] if "lambda" in log.floats() else []
    row = {"way": way, "seed": seed, "steps": steps, "seconds": round(time.process_time() - began)}
    return model.eval(), {**row, **({"lambda": sum(found) / len(found), "lambda_last": sum(found[-100:]) / 100}
                                    if found else {})}


class Judge:
    """New scenes of the val split, and what is measured on their reconstructions."""

    def __init__(self, perceptual):
        scenes = [compose(i, replace(TINY_SCENES, split="val")) for i in range(NEW)]
        self.new, self.captions = torch.stack([to_tensor(s["image"]) for s in scenes]), [s["caption"] for s in scenes]
        self.perceptual, self.recogniser = perceptual, Recogniser.load()
        self.features = self.look(self.new)

    def look(self, images):
        """(B,3,64,64) -> (B,112)."""
        return torch.cat([self.perceptual.features(part) for part in images.split(64)])

    @torch.inference_mode()
    def __call__(self, model: Autoencoder | None) -> tuple[dict, torch.Tensor]:
        """What is measured, and the pictures; None: the originals themselves."""
        y = self.new if model is None else torch.cat(
            [model(part)[0] for part in self.new.split(64)]).float().clamp(-1, 1)
        # differences of neighbouring pixels: how many are there (1 = as in the originals)
        mine, true = (torch.cat([v.diff(dim=d).flatten() for d in (2, 3)]) for v in (y, self.new))
        far = torch.cat([self.perceptual(a, b) for a, b in zip(y.split(64), self.new.split(64))])
        found = {"perceptual": far.mean().item(), "frechet": frechet_distance(self.look(y), self.features).item(),
                 "detail": (mine.norm() / true.norm()).item() ** 2,
                 "read": score_captions(self.recogniser.detect(y), self.captions)["exact"]}
        return found if model is None else {"psnr": psnr(y, self.new).mean().item(), **found}, y


def main(seeds: int = SEEDS, out: Path = RESULTS) -> None:
    """Make the rows that are not there yet."""
    torch.set_num_threads(1)
    perceptual = PerceptualLoss().to(memory_format=torch.channels_last)
    judge, picture = Judge(perceptual), out.with_suffix(".png")
    report = resume(out, {
        "pictures": NEW, "batch": BATCH, "bf16": BF16, "real": judge(None)[0], "rows": []})
    for seed, way in ((seed, way) for seed in range(seeds) for way in WAYS):
        if any((row["seed"], row["way"]) == (seed, way) for row in report["rows"]):
            continue
        # the critic's row of this seed comes first
        adaptive = [row["lambda"] for row in report["rows"] if (row["seed"], row["way"]) == (seed, "+ critic")]
        model, row = train(way, seed, perceptual, *adaptive or [0.0])
        measured, y = judge(model)
        report["rows"].append({**row, **measured})
        print(report["rows"][-1], flush=True)
        if seed == 0:
            keep(picture, list(WAYS).index(way) + 1, judge.new, y)
        write_json(out, report)


def keep(path: Path, place: int, originals, y) -> None:
    """One row of the sheet, whose first one is the originals."""
    size = originals.shape[-1]
    sheet = Image.open(path) if path.is_file() else Image.new("RGB", (len(SHOWN) * size, (len(WAYS) + 1) * size))
    for row, pictures in ((0, originals), (place, y)):
        for column, i in enumerate(SHOWN):
            sheet.paste(Image.fromarray(to_uint8(pictures[i])[0]), (column * size, row * size))
    sheet.save(path, optimize=True)


if __name__ == "__main__":
    tyro.cli(main)
