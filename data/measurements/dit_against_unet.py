"""Who draws better at equal CPU time, DiT or U-Net? `python data/measurements/dit_against_unet.py`, for notebook 15.

Captions of simple scenes (16 nouns, up to two things), 64 latents of 128 pixels by the shipped first stage, a text
transformer that can read: the second stage of the speed-run, and a DiT of as many FLOPs (`--net dit`) in the place of
its U-Net. Of each network a step is timed, and the steps are what fits into `seconds` on one thread; a run that is more
than a tenth off is made again, with its own pace. Both see the same scenes in the same order, read the same text
transformer, and end a cosine. `--rates` first: each network, with seed 1000, which is used nowhere else, for a quarter
of the time at half, one and two times the recipe's rates of learning; the runs then take what had the lowest loss on
new scenes. At a half and the end of the time the averaged model draws 256 captions of the `val` split, and the
recogniser reads them. About 80 minutes; every row goes to `dit_against_unet.json` at once, and a second start goes on
where the first one stopped.
"""

import time
from dataclasses import replace
from pathlib import Path

import torch
import tyro
from resuming import resume

from ldm_mini.files import write_json
from ldm_mini.hub import load_autoencoder
from ldm_mini.latent_diffusion import latent_scale
from ldm_mini.measure import Recogniser
from ldm_mini.measure.scoring import score_captions
from ldm_mini.released.sizes import measure
from ldm_mini.scenes import TINY_SCENES, random_scene, scene_batches
from ldm_mini.train import TrainState, train_diffusion
from ldm_mini.training import cache_latents
from ldm_mini.training.build import build_diffusion, give_text, train_state
from ldm_mini.training.latents import LatentCache
from ldm_mini.training.launch import bf16_pays
from ldm_mini.training.recipes import DIFFUSIONS, TEXTS
from ldm_mini.training.speedrun import train_text

FIRST_STAGE, NETS, RATES, TRIAL = "emoji-scenes", ("unet", "dit"), (0.5, 1.0, 2.0), 1000
PICTURES, HELD_OUT, CAPTIONS = 16_000, 512, 256
STEPS, GUIDANCE = 20, 4.0                                       # of the sampler, as in the speed-run
BF16 = bf16_pays(torch.device("cpu"))
RECIPE = replace(DIFFUSIONS["speedrun"], scenes=replace(TINY_SCENES, size=128), latents=PICTURES)


class Study:
    """What all runs share: the first stage, latents of train scenes, new scenes, and what reads pictures."""

    def __init__(self):
        self.first, self.recogniser = load_autoencoder(FIRST_STAGE), Recogniser.load()
        self.cache = self.latents("train", PICTURES)
        self.new = next(self.latents("val", HELD_OUT).batches(HELD_OUT, seed=0))
        self.captions = [random_scene(seed, replace(RECIPE.scenes, split="val")).caption for seed in range(CAPTIONS)]

    def latents(self, split: str, count: int) -> LatentCache:
        """Latents and captions of the scenes 0 ... count - 1 of a split."""
        scenes = scene_batches(replace(RECIPE.scenes, split=split), count)
        return cache_latents(self.first, scenes, count, keys=("caption",), sample=False, bf16=BF16)

    def begin(self, net: str, rate: float, text, seed: int) -> TrainState:
        """A fresh second stage with words that can read."""
        recipe = replace(RECIPE, net=net, lr=rate * RECIPE.lr, muon_lr=rate * RECIPE.muon_lr)
        torch.manual_seed(seed)
        ldm = build_diffusion(recipe, self.first, latent_scale(self.first, [{"latent": self.new["latent"].float()}]))
        give_text(text, ldm)
        ldm.net.to(memory_format=torch.channels_last)
        return train_state(recipe, ldm, seed, bf16=BF16)

    def train(self, state: TrainState, seed: int, steps: int):
        """(Log, CPU-seconds so far) of a training to the end of a cosine; what the loop's body does is not counted."""
        logs = train_diffusion(state, self.cache.batches(RECIPE.batch_size, seed=seed), steps, warmup=RECIPE.warmup,
                               decay=RECIPE.decay, t_power=RECIPE.t_power)
        spent = 0.0
        while state.step < steps:
            began = time.process_time()
            log = next(logs)
            spent += time.process_time() - began
            yield log, spent

    def seconds_per_step(self, net: str, text) -> float:
        """Of 20 steps, after 10 that warm up."""
        times = [spent for _, spent in self.train(self.begin(net, 1.0, text, TRIAL), TRIAL, 30)]
        return (times[-1] - times[9]) / 20

    @torch.no_grad()
    def loss(self, state: TrainState) -> float:
        """The averaged model's, on new scenes; the same noise every time."""
        with state.ema.applied(state.model), state.autocast(), torch.random.fork_rng():
            torch.manual_seed(0)
            state.model.eval()
            found = state.model.loss({**self.new, "latent": self.new["latent"].float()}).item()
        state.model.train()
        return found

    def judge(self, state: TrainState) -> dict:
        """What the averaged model draws of new captions, read by the recogniser."""
        generator, found = torch.Generator().manual_seed(0), []
        with state.ema.applied(state.model), state.autocast():
            for first in range(0, CAPTIONS, 64):
                some = self.captions[first:first + 64]
                found += self.recogniser.detect(state.model.sample(
                    {"caption": some}, steps=STEPS, guidance_scale=GUIDANCE, generator=generator).float())
        scores = score_captions(found, self.captions)
        return {key: round(scores[key], 4) for key in ("exact", "object_recall", "relation_accuracy")}


def size(net: str, first) -> dict:
    """FLOPs of one evaluation for one picture and the longest caption, and the parameters of the network."""
    network = build_diffusion(replace(RECIPE, net=net), first).net
    sizes = measure(network.to("meta"), 8, RECIPE.max_length)
    return {key: sizes[key] for key in ("flops", "parameters")}


def main(seconds: float = 600, seeds: tuple[int, ...] = (0, 1, 2), rates: bool = False,
         out: Path = Path(__file__).with_suffix(".json")) -> None:
    """Train, measure, keep. seconds: CPU-seconds of a run. rates: only try the rates of learning, which comes first."""
    torch.set_num_threads(1)
    report = resume(out, {
        "seconds": seconds, "pictures": PICTURES, "batch": RECIPE.batch_size, "captions": CAPTIONS,
        "sampler_steps": STEPS, "guidance_scale": GUIDANCE, "bf16": BF16, "nets": {}, "rates": [], "runs": []})
    study = Study()
    if rates:
        text = train_text(TEXTS["speedrun"], TRIAL)
        for net in NETS:
            pace = study.seconds_per_step(net, text)
            report["nets"][net] = {"seconds_per_step": round(pace, 4), **size(net, study.first)}
            for rate in RATES:
                state = study.begin(net, rate, text, TRIAL)
                for _, spent in study.train(state, TRIAL, round(report["seconds"] / 4 / pace)):
                    pass
                row = {"net": net, "rate": rate, "steps": state.step, "cpu_s": round(spent, 1),
                       "loss": round(study.loss(state), 5)}
                print(row, flush=True)
                report["rates"].append(row)
                write_json(out, report)
        return
    best = {net: min((row for row in report["rates"] if row["net"] == net), key=lambda row: row["loss"])["rate"]
            for net in NETS}
    texts = {}

    def missing() -> list[tuple[int, str]]:
        return [(seed, net) for seed in seeds for net in NETS
                if not any((row["seed"], row["net"]) == (seed, net) for row in report["runs"])]

    while todo := missing():
        seed, net = todo[0]
        if seed not in texts:
            texts[seed] = train_text(TEXTS["speedrun"], seed)
        state, about, looks = study.begin(net, best[net], texts[seed], seed), report["nets"][net], []
        steps = round(report["seconds"] / about["seconds_per_step"])
        for log, spent in study.train(state, seed, steps):
            if log.step in (steps // 2, steps):
                looks.append({"step": log.step, "cpu_s": round(spent, 1), "loss": round(study.loss(state), 5),
                              **study.judge(state)})
                print(net, seed, looks[-1], flush=True)
        if abs(spent / report["seconds"] - 1) > 0.1:            # more, or less, busy when a step was timed
            about["seconds_per_step"] = round(spent / steps, 4)
            report["runs"] = [row for row in report["runs"] if row["net"] != net]
        else:
            report["runs"].append({"net": net, "seed": seed, "rate": best[net], "looks": looks})
        write_json(out, report)


if __name__ == "__main__":
    tyro.cli(main)
