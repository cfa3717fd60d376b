"""What makes a first stage good, for notebooks 03 and 04: `python data/measurements/first_stages.py [PART ...]`.

Small networks, trained longer than a notebook can, on random crops of 32 x 32 pixels, and measured on whole pictures of
64 x 64 that no training saw. Three seeds each, about 20 minutes on one idle thread of a CPU in all. What was measured
is written after each run to `first_stages.json`; started again, it goes on where it stopped. Measured so far: the
codebooks. (The other two parts were tried on a few steps only; no notebook speaks of them.)

codebooks:  speed of the codes x their start x restarts x EMA. After some steps: codes in use on new pictures, codes
            that no step of the training has chosen, the lag (distance from a code to the mean of the vectors that
            choose it, root mean square, as a part of the latent's spread), and the L1 error.
numbers:    3 or 4 numbers a patch of 4 x 4 that an encoder chooses, with or without a byte for each, beside averages.
            L1 error on new pictures, along the training.
decoders:   an autoencoder of 24 times fewer numbers with L1; with L1 and three times the steps; with L1 and the
            perceptual loss. Pictures of seed 0 go to `first_stages.png`.
"""

import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

matplotlib.use("Agg")
from reference_curves import run_cells  # noqa: E402

from ldm_mini.files import write_json  # noqa: E402
from ldm_mini.measure import Recogniser, psnr  # noqa: E402
from ldm_mini.perceptual import PerceptualLoss  # noqa: E402
from ldm_mini.quantizer import VectorQuantizer  # noqa: E402
from ldm_mini.scenes import CENTRED_SCENES, compose, to_tensor  # noqa: E402
from ldm_mini.show.plotting import to_uint8  # noqa: E402

HERE = Path(__file__).resolve()
RESULT, PICTURES = HERE.with_suffix(".json"), HERE.with_suffix(".png")
NOTEBOOKS = HERE.parents[2] / "notebooks"
SEEDS, CROP, CODES = 3, 32, 256

FAST, KEEP = dict(rate=30), dict(restart_after=None)
RESTART, EMA, PUBLISHED = dict(restart_after=20), dict(ema_decay=0.95), dict(init="uniform")
CODEBOOKS = {
    "as published": {**PUBLISHED, **KEEP},
    "30 times as fast": {**PUBLISHED, **KEEP, **FAST},
    "wide start": {**PUBLISHED, **KEEP, "wide": 0.3},
    "data init": KEEP,
    "restarts": {**PUBLISHED, **RESTART},
    "EMA": {**PUBLISHED, **KEEP, **EMA},
    "data init, restarts": RESTART,
    "data init, restarts, EMA": {**RESTART, **EMA},
}
MOMENTS = (120, 400)                    # steps after which a codebook is looked at; the last one ends the training
NUMBERS = {"3 numbers": 3, "4 numbers": 4}
TRAINED = (250, 500, 1000, 2000)
# steps, with the perceptual loss?
DECODERS = {"L1": (600, False), "L1, 3 times the steps": (1800, False), "L1 + perceptual": (600, True)}


def notebook_names(name: str, wanted: str) -> dict:
    """The variables of a notebook once `wanted` is among them."""
    return next(names for names in run_cells(NOTEBOOKS / name, 0) if wanted in names)


def crops(images, count, g):
    """(N,3,H,W) -> (count,3,CROP,CROP), the corner of each on a multiple of 4: patches stay patches."""
    corner = lambda: int(torch.randint((images.shape[-1] - CROP) // 4 + 1, (), generator=g)) * 4
    places = [(i, corner(), corner()) for i in torch.randint(len(images), (count,), generator=g).tolist()]
    return torch.stack([images[i, :, y:y + CROP, x:x + CROP] for i, y, x in places])


def schedule(steps):
    """A tenth of warm-up, then full speed, and the last third down to 0."""
    return lambda step: min(1, (step + 1) / (0.1 * steps), (steps - step) / (steps / 3))


class Stage03:
    """The autoencoder of notebook 03: a code or a few numbers for each patch of 4 x 4."""

    def __init__(self):
        self.parts = notebook_names("03_vq_vae.ipynb", "make_decoder")
        self.train, self.test = self.parts["train_x"], self.parts["test_x"]

    def run(self, seed, moments, dim=4, rate=1, wide=None, quantise=True, **options):
        """Train, and look at each of the moments: yields the step and the three parts."""
        torch.manual_seed(seed)
        parts = [self.parts["make_encoder"](dim=dim), VectorQuantizer(CODES, dim, **options) if quantise else None,
                 self.parts["make_decoder"](dim=dim)]
        if wide:
            parts[1].codebook.data.normal_(std=wide)
        nets = [*parts[0].parameters(), *parts[2].parameters()]
        groups = [{"params": nets, "lr": 3e-3}]
        if quantise and options.get("ema_decay") is None:
            groups.append({"params": parts[1].parameters(), "lr": rate * 3e-3})
        optimizer = torch.optim.Adam(groups)
        slower = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule(moments[-1]))
        g = torch.Generator().manual_seed(seed)
        for step in range(1, moments[-1] + 1):
            x = crops(self.train, 8, g)
            z, vq = parts[0](x), 0
            if quantise:
                z, _, vq = parts[1](z)
            loss = F.l1_loss(parts[2](z), x) + vq
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            slower.step()
            if step in moments:
                yield step, parts

    def error(self, x_rec):
        return round(F.l1_loss(x_rec, self.test).item(), 5)

    @torch.no_grad()
    def codebook(self, name, seed):
        """{step: what is found}, all lists."""
        found = {"step": [], "used": [], "never": [], "lag": [], "l1": []}
        for step, (encoder, quantizer, decoder) in self.look(seed, CODEBOOKS[name]):
            z = encoder(self.test)
            vectors = z.permute(0, 2, 3, 1).reshape(-1, z.shape[1])
            z_q, indices, _ = quantizer.quantize(z)
            chosen = F.one_hot(indices.flatten(), CODES).float()
            count = chosen.sum(0)
            means = chosen.T @ vectors / count.clamp(min=1)[:, None]
            away = (quantizer.codebook - means).square().sum(1)[count > 0]
            spread = (vectors - vectors.mean(0)).square().sum(1).mean()
            lag = ((away * count[count > 0]).sum() / count.sum() / spread).sqrt()
            for key, value in (("step", step), ("used", int((count > 0).sum())), ("lag", round(lag.item(), 4)),
                               ("never", int((quantizer.usage == 0).sum())), ("l1", self.error(decoder(z_q)))):
                found[key].append(value)
        return found

    def look(self, seed, options):
        with torch.enable_grad():
            for step, parts in self.run(seed, MOMENTS, **options):
                with torch.no_grad():
                    yield step, parts

    def number(self, name, seed):
        """The error along the training; and at the end with a byte for each number."""
        found = {"step": [], "l1": []}
        for step, (encoder, _, decoder) in self.run(seed, TRAINED, dim=NUMBERS[name], quantise=False):
            with torch.no_grad():
                z = encoder(self.test)
                found["step"].append(step)
                found["l1"].append(self.error(decoder(z)))
        with torch.no_grad():
            low, high = (side(encoder(self.train[:200]), dim=(0, 2, 3), keepdim=True)
                         for side in (torch.amin, torch.amax))
            whole = ((z - low) / (high - low) * 255).round().clamp(0, 255)
            found["a byte for each"] = self.error(decoder(whole / 255 * (high - low) + low))
        return found

    def averages(self):
        """What needs no training: three averages a patch, each a byte; and one byte a patch."""
        small, found = F.avg_pool2d(self.test, 4), {}
        for name, levels in (("3 averages, a byte for each", (255.0,) * 3), ("averages in one byte", (7.0, 7.0, 3.0))):
            levels = torch.tensor(levels)[:, None, None]
            rounded = ((small / 2 + 0.5) * levels).round() / levels * 2 - 1
            found[name] = self.error(F.interpolate(rounded, scale_factor=4, mode="bicubic").clamp(-1, 1))
        return found


class Stage04:
    """An autoencoder of 8 numbers for each 8 x 8 pixels, on scenes of one thing, of all nouns."""

    def __init__(self):
        self.block = notebook_names("03_vq_vae.ipynb", "Block")["Block"]
        scenes = replace(CENTRED_SCENES, max_objects=1, places=False)
        samples = [compose(i, scenes) for i in range(1280)]
        self.train, self.test = torch.stack([to_tensor(s["image"]) for s in samples]).split((1024, 256))
        self.truth = [s["class"] for s in samples[1024:]]
        self.library = PerceptualLoss("efficientnet").to(memory_format=torch.channels_last)
        self.referee = Recogniser.load()

    def network(self, width=64):
        """(B,3,H,W) -> 8 channels of H/8 x W/8 -> (B,3,H,W); the last layer has all the pixels of a patch."""
        conv, block = lambda a, b, stride=1: nn.Conv2d(a, b, 3, stride, padding=1), lambda: self.block(width)
        encoder = [nn.PixelUnshuffle(4), conv(48, width), block(), conv(width, width, 2), block(),
                   nn.Conv2d(width, 8, 1)]
        decoder = [conv(8, width), block(), block(), nn.Conv2d(width, 4 * width, 1), nn.PixelShuffle(2),
                   block(), block(), conv(width, 48), nn.PixelShuffle(4)]
        return nn.Sequential(*encoder, *decoder)

    def decoder(self, name, seed):
        steps, perceptual = DECODERS[name]
        torch.manual_seed(seed)
        net = self.network()
        optimizer = torch.optim.Adam(net.parameters(), betas=(0.9, 0.99))
        slower = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=steps)
        g, start = torch.Generator().manual_seed(seed), time.process_time()
        for _ in range(steps):
            x = crops(self.train, 16, g).contiguous(memory_format=torch.channels_last)
            y = net(x)
            loss = (y - x).abs().mean()
            if perceptual:
                loss = loss + self.library(y, x).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            slower.step()
        seconds = time.process_time() - start
        with torch.no_grad():
            y = torch.cat([net(x) for x in self.test.split(64)]).clamp(-1, 1)
            if seed == 0:
                self.keep(name, y)
            return {**self.judge(y), "seconds": round(seconds)}

    def judge(self, y):
        """PSNR; perceptual distance; how strong differences of neighbouring pixels are, relative to the originals', and
        their cosine to those; the share of pictures whose thing the recogniser, who took no part, names rightly."""
        steps = lambda x: torch.cat([x.diff(dim=-1).flatten(1), x.diff(dim=-2).flatten(1)], 1)
        mine, true = steps(y), steps(self.test)
        seen = [found["objects"] for found in self.referee.detect(y, threshold=0.1)]
        named = sum(bool(o) and o[0]["noun"] == noun for o, noun in zip(seen, self.truth)) / len(self.truth)
        far = torch.cat([self.library(a, b) for a, b in zip(y.split(64), self.test.split(64))])
        found = {"psnr": psnr(y, self.test).mean(), "perceptual": far.mean(), "edges": mine.norm() / true.norm(),
                 "outlines": F.cosine_similarity(mine, true).mean(), "named": named}
        return {name: round(float(value), 4) for name, value in found.items()}

    def keep(self, name, y, columns=10):
        """One more row of `first_stages.png`, whose first one is the originals."""
        rows = ["originals", *DECODERS]
        sheet = np.array(Image.open(PICTURES)) if PICTURES.is_file() else np.zeros(
            (64 * len(rows), 64 * columns, 3), np.uint8)
        for row, pictures in (("originals", self.test), (name, y)):
            top = 64 * rows.index(row)
            sheet[top:top + 64] = np.concatenate(list(to_uint8(pictures[:columns])), axis=1)
        Image.fromarray(sheet).save(PICTURES)


def main(*only) -> None:
    """Make the runs that are not in the JSON yet; `only`: of these parts."""
    found = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.is_file() else {
        "codebooks": {}, "numbers": {}, "decoders": {}}
    stages = {}
    parts = {"codebooks": CODEBOOKS, "numbers": NUMBERS, "decoders": DECODERS}
    for part, name, seed in ((p, name, seed) for p in only or parts for seed in range(SEEDS) for name in parts[p]):
        runs = found[part].setdefault(name, [])
        if len(runs) > seed:
            continue
        stage = Stage04 if part == "decoders" else Stage03
        if stage not in stages:
            stages[stage] = stage()
        runs.append(getattr(stages[stage], part[:-1])(name, seed))
        if part == "numbers" and "averages" not in found:
            found["averages"] = stages[stage].averages()
        print(part, name, seed, runs[-1], flush=True)
        write_json(RESULT, found)


if __name__ == "__main__":
    main(*sys.argv[1:])
