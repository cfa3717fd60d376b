"""What a byte is worth, and what keeps a codebook alive: `python data/measurements/first_stages.py [PART ...]`.

The small networks of notebook 03, trained longer than a notebook can, on random crops of 32 x 32 pixels, and measured
on whole pictures of 64 x 64 that no training saw. Three seeds each, some 40 minutes on one thread of a CPU in all. What
was measured is written after each run to `first_stages.json`; started again, it goes on where it stopped.

codebooks:  speed of the codes x their start x restarts x EMA. After some steps: codes in use on new pictures, codes
            that no step of the training has chosen, the lag (distance from a code to the mean of the vectors that
            choose it, root mean square, as a part of the latent's spread), and the L1 error.
numbers:    for each patch of 4 x 4 pixels one code of 256, or 3 numbers that an encoder chooses, with or without a
            byte for each; and averages, which need no training. L1 error on new pictures, along the training.
"""

import json
import sys
from pathlib import Path

import matplotlib
import torch
import torch.nn.functional as F

matplotlib.use("Agg")
from reference_curves import run_cells  # noqa: E402

from ldm_mini.files import write_json  # noqa: E402
from ldm_mini.quantizer import VectorQuantizer  # noqa: E402

HERE = Path(__file__).resolve()
RESULT = HERE.with_suffix(".json")
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
MOMENTS = (120, 400, 2000)              # steps after which a codebook is looked at; the last one ends the training
NUMBERS = {"one code": CODEBOOKS["data init, restarts, EMA"], "3 numbers": {"dim": 3, "quantise": False}}
TRAINED = (250, 500, 1000)


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
        for step, (encoder, quantizer, decoder) in self.run(seed, TRAINED, **NUMBERS[name]):
            with torch.no_grad():
                z = encoder(self.test)
                found["step"].append(step)
                found["l1"].append(self.error(decoder(z if quantizer is None else quantizer.quantize(z)[0])))
        if quantizer is None:
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


def main(*only) -> None:
    """Make the runs that are not in the JSON yet; `only`: of these parts."""
    found = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.is_file() else {"codebooks": {}, "numbers": {}}
    stage, parts = Stage03(), {"codebooks": CODEBOOKS, "numbers": NUMBERS}
    if "averages" not in found:
        found["averages"] = stage.averages()
    for part, name, seed in ((p, name, seed) for p in only or parts for seed in range(SEEDS) for name in parts[p]):
        runs = found[part].setdefault(name, [])
        if len(runs) > seed:
            continue
        runs.append(getattr(stage, part[:-1])(name, seed))
        print(part, name, seed, runs[-1], flush=True)
        write_json(RESULT, found)


if __name__ == "__main__":
    main(*sys.argv[1:])
