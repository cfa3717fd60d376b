"""What each term of a first stage's loss buys, for notebooks 04 and 05: `python data/measurements/losses.py`.

One autoencoder (that of `which_f.py`, f = 8) from scratch on the same scenes of 64 pixels, three seeds: pixels alone
(L1 + MSE), also for twice the steps, with the perceptual distance, and with the critic too: adaptive lambda, and a
lambda that stands still, at the mean of that one and at two smaller numbers. What two ways have in common, up to the
critic, is trained once. Measured on 256 new scenes; the recogniser, which no loss knows, reads their captions, and the
Frechet distance is taken by its features too. 135 minutes on one thread without bfloat16. Each row is kept in
`losses.json` as it comes; pictures of seed 0 go to `losses.png`, a row for the originals and one for each way. (The
stored one has its colours rounded, unseen, by `compressed` of data/build/compress_figures.py.)
"""

import time
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import torch
import tyro
from resuming import keep_row, resume
from which_f import BF16, first_stage

from ldm_mini.autoencoder import Autoencoder
from ldm_mini.discriminator import PatchDiscriminator
from ldm_mini.files import write_json
from ldm_mini.measure import Recogniser, frechet_distance, psnr, score_captions
from ldm_mini.perceptual import PerceptualLoss
from ldm_mini.scenes import TINY_SCENES, compose, scene_stream, to_tensor
from ldm_mini.train import TrainState, train_autoencoder

SEEDS, STEPS, BATCH, NEW = 3, 2_000, 8, 256
PIXELS = {"mse_weight": 1.0, "perceptual_weight": 0.0, "disc_weight": 0.0}
# what is there already gets sharp: the costly terms wait
PERCEPTUAL = {**PIXELS, "perceptual_weight": 1.0, "perceptual_start": 600}
CRITIC = {**PERCEPTUAL, "disc_weight": 0.75, "disc_start": 1_200}
# steps, loss, and a lambda that stands still (None: adaptive)
WAYS = {
    "pixels": (STEPS, PIXELS, None),
    "pixels, longer": (2 * STEPS, PIXELS, None),
    "+ perceptual": (STEPS, PERCEPTUAL, None),
    "+ critic": (STEPS, CRITIC, None),
    "+ critic, mean": (STEPS, CRITIC, "mean"),
    "+ critic, .15": (STEPS, CRITIC, 0.15),
    "+ critic, .05": (STEPS, CRITIC, 0.05),
}
SHOWN = (0, 1, 2, 3)                             # the first ones: none is chosen
RESULTS = Path(__file__).with_suffix(".json")


def fresh(seed: int) -> TrainState:
    """A first stage that has learned nothing."""
    torch.manual_seed(seed)
    return TrainState(first_stage(8), 2e-3, muon_lr=5e-3, betas=(0.9, 0.99), weight_decay=0.0, seed=seed, bf16=BF16)


def train(state: TrainState, until: int, steps: int, perceptual, weights: dict) -> float:
    """Go on until step `until` of a training of `steps` steps. Returns the CPU-seconds."""
    began = time.process_time()
    scenes = scene_stream(TINY_SCENES, BATCH, start_step=state.step, seed=state.seed)
    for log in train_autoencoder(state, scenes, steps, perceptual=perceptual, warmup=50, decay="cosine", **weights):
        if log.step == until:
            break
    return time.process_time() - began


def with_critic(state: TrainState, perceptual, constant: float | None) -> tuple[float, dict]:
    """From disc_start on. Returns CPU-seconds, and what was recorded: lambda and the two pulls it weighs."""
    # patches of 34 pixels, about one thing; the critic learns more slowly than what it judges
    torch.manual_seed(state.seed)
    state.adversary = TrainState(PatchDiscriminator(channels=32, num_layers=2), 5e-4, betas=(0.5, 0.9),
                                 weight_decay=0.0, bf16=BF16)
    seen = []

    def weigh(nll, g_loss, last_layer):
        """As `adaptive_weight`, and keeps the norms."""
        pulls = [torch.autograd.grad(loss, last_layer, retain_graph=True)[0].norm() for loss in (nll, g_loss)]
        adaptive = (pulls[0] / (pulls[1] + 1e-4)).clamp(0, 1e4)
        seen.append([x.item() for x in (adaptive, *pulls)])
        return adaptive if constant is None else torch.tensor(constant)

    with patch("ldm_mini.train.adaptive_weight", weigh):
        seconds = train(state, STEPS, STEPS, perceptual, CRITIC)
    names, table = ("lambda", "pull_nll", "pull_critic"), torch.tensor(seen)
    # what it would be, for one that stands still
    found = {f"{name}{part}": rows[:, k].mean().item() for k, name in enumerate(names)
             for part, rows in (("", table), ("_first", table[:100]), ("_last", table[-100:]))}
    return seconds, found


class Judge:
    """New scenes of the val split, and what is measured on their reconstructions."""

    def __init__(self, perceptual):
        scenes = [compose(i, replace(TINY_SCENES, split="val")) for i in range(2 * NEW)]
        self.new, self.others = torch.stack([to_tensor(s["image"]) for s in scenes]).split(NEW)
        self.captions = [s["caption"] for s in scenes[:NEW]]
        self.perceptual, self.recogniser = perceptual, Recogniser.load()
        self.features = self.look(self.new)

    @torch.inference_mode()
    def look(self, images):
        """(B,3,64,64) -> (B,112) of the perceptual loss' network, (B,96) of the recogniser's, which no loss knows."""
        return self.perceptual.features(images), torch.cat(
            [self.recogniser.coarse(self.recogniser.fine(part)).mean((2, 3)) for part in images.split(64)])

    def distances(self, images) -> dict:
        """Frechet distances to the new scenes, by both."""
        return {name: frechet_distance(a, b).item()
                for name, a, b in zip(("frechet", "frechet_other"), self.look(images), self.features)}

    @torch.inference_mode()
    def __call__(self, model: Autoencoder | None) -> tuple[dict, torch.Tensor]:
        """What is measured, and the pictures; None: the originals themselves."""
        y = self.new if model is None else torch.cat(
            [model(part)[0] for part in self.new.split(64)]).float().clamp(-1, 1)
        # differences of neighbouring pixels: how many are there (1 = as in the originals)
        mine, true = (torch.cat([v.diff(dim=d).flatten() for d in (2, 3)]) for v in (y, self.new))
        far = torch.cat([self.perceptual(a, b) for a, b in zip(y.split(64), self.new.split(64))])
        found = {"perceptual": far.mean().item(), **self.distances(y),
                 "detail": (mine.norm() / true.norm()).item() ** 2,
                 "read": score_captions(self.recogniser.detect(y), self.captions)["exact"]}
        return found if model is None else {"psnr": psnr(y, self.new).mean().item(), **found}, y


def main(seeds: int = SEEDS, out: Path = RESULTS) -> None:
    """Make the rows that are not there yet, seed by seed."""
    torch.set_num_threads(1)
    perceptual = PerceptualLoss().to(memory_format=torch.channels_last)
    judge = Judge(perceptual)
    report = resume(out, {"steps": STEPS, "pictures": NEW, "batch": BATCH, "bf16": BF16, "real": judge(None)[0],
                          "real_to_real": judge.distances(judge.others), "rows": []})
    for seed in range(seeds):
        done, begun, common = {row["way"]: row for row in report["rows"] if row["seed"] == seed}, None, 0.0
        for way, (steps, weights, constant) in WAYS.items():
            if way in done:
                continue
            if weights["perceptual_weight"] and begun is None:
                # up to the critic all ways with the perceptual loss are one
                begun = fresh(seed)
                common = train(begun, CRITIC["disc_start"], STEPS, perceptual, PERCEPTUAL)
            state = fresh(seed)
            if weights["perceptual_weight"]:
                state.load_state_dict(deepcopy(begun.state_dict()))
            if weights["disc_weight"]:
                # the adaptive one of this seed comes first
                still = done["+ critic"]["lambda"] if constant == "mean" else constant
                seconds, found = with_critic(state, perceptual, still)
            else:
                seconds, found = train(state, steps, steps, perceptual, weights), {}
            measured, y = judge(state.model.eval())
            row = {"way": way, "seed": seed, "steps": steps,
                   "seconds": round(seconds + (common if weights["perceptual_weight"] else 0)), **found, **measured}
            done[way] = row
            report["rows"].append(row)
            print(row, flush=True)
            if seed == 0:
                for place, pictures in ((0, judge.new), (list(WAYS).index(way) + 1, y)):
                    keep_row(out.with_suffix(".png"), place, len(WAYS) + 1, pictures[list(SHOWN)])
            write_json(out, report)


if __name__ == "__main__":
    tyro.cli(main)
