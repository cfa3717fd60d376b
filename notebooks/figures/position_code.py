"""The measurements of notebook 13 that take longer than a notebook may: `python notebooks/figures/position_code.py`.

`corners`: the four models of section 4, trained by the notebook's own cells with five more seeds. `scenes`: latent
diffusion of Emoji Scenes with and without coordinates at the U-Net's input, three seeds each. About 20 minutes on one
thread of a CPU. Both parts go to `position_code.json` beside this file; --part renews one of them.
"""

import argparse
import json
from pathlib import Path

import matplotlib
import torch
from torch import nn

matplotlib.use("Agg")
from ldm_mini.checkpoint import write_json  # noqa: E402
from ldm_mini.cond import Cond  # noqa: E402
from ldm_mini.conditioners import Conditioner, batch_size  # noqa: E402
from ldm_mini.curves import run_cells  # noqa: E402
from ldm_mini.data import scene_stream  # noqa: E402
from ldm_mini.latent_diffusion import LatentDiffusion, latent_scale  # noqa: E402
from ldm_mini.latents import cache_latents  # noqa: E402
from ldm_mini.recipes import TINY_NOUNS  # noqa: E402
from ldm_mini.recogniser import Recogniser  # noqa: E402
from ldm_mini.scenes import NOUNS, SceneConfig  # noqa: E402
from ldm_mini.schedule import NoiseSchedule, cosine_betas  # noqa: E402
from ldm_mini.train import TrainState, train_diffusion  # noqa: E402
from ldm_mini.unet import UNet, UNetConfig  # noqa: E402

HERE = Path(__file__).resolve().parent
NOTEBOOK = HERE.parent / "13_does_attention_know_where.ipynb"
ONE_THING = SceneConfig(nouns=TINY_NOUNS, styles=("fluent_flat",), max_objects=1, looks=("flat",), places=False)
CELLS = 8                       # of 8 pixels on a side
WIDTH, BATCH = 64, 16


def corners(seeds: int) -> dict:
    """{variant: share of discs in the corner asked for, one number per seed}."""
    shares = {}
    for seed in range(1, seeds + 1):
        for names in run_cells(NOTEBOOK, seed):
            if "right" in names:
                break
        for variant, share in names["right"].items():
            shares.setdefault(variant, []).append(round(share, 3))
        print(seed, names["right"], flush=True)
    return shares


class KindAndCell(Conditioner):
    """Three tokens: the kind of thing, the row and the column of the 8-pixel cell in which its centre lies."""

    keys = ("class", "cell")

    def __init__(self):
        super().__init__()
        self.tokens = nn.Embedding(len(NOUNS) + 2 * CELLS + 1, WIDTH)

    def encode(self, batch: dict) -> Cond:
        """class (B,), cell (B,2) -> context (B,3,WIDTH)"""
        row, column = batch["cell"].unbind(1)
        return Cond(context=self.tokens(torch.stack(
            [batch["class"], len(NOUNS) + row, len(NOUNS) + CELLS + column], dim=1)))

    def null(self, batch: dict) -> Cond:
        """The last token, three times."""
        return Cond(context=self.tokens.weight[-1].expand(batch_size(batch), 3, -1))


class WithCoordinates(nn.Module):
    """A network that also sees the row and the column of each latent pixel, as two channels."""

    def __init__(self, net: UNet):
        super().__init__()
        self.net = net

    def forward(self, x, t, cond):
        """As the network, cond.concat aside."""
        height, width = x.shape[2:]
        rows, columns = ((torch.arange(n) + 0.5) / n * 2 - 1 for n in (height, width))
        code = torch.stack([rows[:, None].expand(height, width), columns[None].expand(height, width)])
        return self.net(x, t, Cond(concat=code.expand(len(x), -1, -1, -1), context=cond.context))


def with_cells(batches):
    """Batches with "cell" (B,2): row and column of the centre of their one thing."""
    for batch in batches:
        x0, y0, x1, y1 = batch["boxes"][:, 0].unbind(1)
        centre = torch.stack([(y0 + y1) / 2, (x0 + x1) / 2], dim=1)
        yield {**batch, "cell": (centre * CELLS).long().clamp(max=CELLS - 1)}


def scenes(seeds: int, steps: int) -> dict:
    """Both variants trained and measured; one row per run."""
    first = LatentDiffusion.from_pretrained("emoji-scenes").autoencoder
    cache = cache_latents(first, with_cells(scene_stream(ONE_THING, 64)), 20_000, keys=("class", "cell"), progress=True)
    scale = latent_scale(first, (cache[i:i + 64] for i in range(0, 4096, 64)))
    held_out = next(with_cells(scene_stream(ONE_THING, 256, seed=99)))
    held_out["latent"] = first.encode(held_out["image"])
    rows = []
    for seed in range(1, seeds + 1):
        for variant in ("zero padding", "zero padding + code"):
            torch.manual_seed(seed)
            code = variant.endswith("code")
            net = UNet(UNetConfig(in_channels=4, channels=32, channel_mults=(1, 2, 2), num_res_blocks=1, groups=4,
                                  context_dim=WIDTH, concat_channels=2 if code else 0))
            ldm = LatentDiffusion(first, WithCoordinates(net) if code else net, NoiseSchedule(cosine_betas()),
                                  KindAndCell(), prediction="v", scale_factor=scale, image_size=64)
            state = TrainState(ldm, 1e-3, betas=(0.9, 0.99), ema_decay=0.998, seed=seed)
            for log in train_diffusion(state, cache.batches(BATCH, seed=seed), steps, warmup=100, decay="cosine"):
                pass
            with state.ema.applied(ldm):
                rows.append({"variant": variant, "seed": seed, **measure(ldm, held_out, seed)})
            print(rows[-1], flush=True)
    parameters = sum(p.numel() for p in net.parameters())
    return {"runs": rows, "setting": f"{parameters / 1e6:.1f} M parameters, {steps} steps of {BATCH} scenes, "
            f"{len(TINY_NOUNS)} kinds of things, 256 pictures per dot (20 steps, guidance 2)"}


@torch.no_grad()
def measure(ldm, batch: dict, seed: int) -> dict:
    """Validation loss, and what the recogniser finds in the pictures drawn for the conditions of `batch`."""
    ldm.eval()
    ldm.p_uncond = 0.1
    loss = sum(ldm.loss({**batch}, torch.Generator().manual_seed(k)).item() for k in range(4)) / 4
    wanted = {key: batch[key] for key in ("class", "cell")}
    found = Recogniser.load().detect(ldm.sample(wanted, seed=seed, guidance_scale=2.0))
    kind = [bool(f["objects"]) and f["objects"][0]["noun"] == c for f, c in zip(found, wanted["class"].tolist())]
    place = [bool(f["objects"]) and all(
        abs(p * 64 - (cell * 8 + 4)) <= 8 for p, cell in zip(reversed(f["objects"][0]["centre"]), cells))
        for f, cells in zip(found, wanted["cell"].tolist())]
    return {"val_loss": round(loss, 4), "right_kind": sum(kind) / len(kind), "right_cell": sum(place) / len(place)}


def main() -> None:
    """Measure, and write what was measured at once."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", choices=("corners", "scenes"))
    parser.add_argument("--corner-seeds", type=int, default=5)
    parser.add_argument("--scene-seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2000)
    options = parser.parse_args()
    path = HERE / "position_code.json"
    results = json.loads(path.read_text()) if path.is_file() else {}
    if options.part != "scenes":
        write_json(path, results := {**results, "corners": corners(options.corner_seeds)})
    if options.part != "corners":
        write_json(path, {**results, "scenes": scenes(options.scene_seeds, options.steps)})


if __name__ == "__main__":
    main()
