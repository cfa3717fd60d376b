"""Does a position code help where borders already leak positions? `python notebooks/figures/position_code_scenes.py`.

Latent diffusion of Emoji Scenes of one thing, told which thing and in which of 8 x 8 cells its centre lies: the paper's
U-Net with zero padding, and the same with two channels of coordinates at its input. Each is trained from several seeds
for notebook 13; the recogniser looks where the things are. About 20 minutes on one thread of a quiet CPU; every
finished run goes to `position_code_scenes.json` beside this file at once.
"""

import argparse
from pathlib import Path

import torch
from torch import nn

from ldm_mini.checkpoint import write_json
from ldm_mini.cond import Cond
from ldm_mini.conditioners import Conditioner, batch_size
from ldm_mini.data import scene_stream
from ldm_mini.latent_diffusion import LatentDiffusion, latent_scale
from ldm_mini.latents import cache_latents
from ldm_mini.recogniser import Recogniser
from ldm_mini.scenes import NOUNS, SceneConfig
from ldm_mini.schedule import NoiseSchedule, cosine_betas
from ldm_mini.train import TrainState, train_diffusion
from ldm_mini.unet import UNet, UNetConfig

KINDS = ("star", "heart", "apple", "balloon")
ONE_THING = SceneConfig(nouns=KINDS, styles=("fluent_flat",), max_objects=1, looks=("flat",), places=False)
CELLS = 8                       # of 8 pixels on a side
WIDTH, BATCH, LATENTS, PICTURES = 64, 16, 5_000, 128
VARIANTS = ("zero padding", "zero padding + code")


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


def train(first, cache, scale: float, code: bool, seed: int, steps: int):
    """One model from one seed -> (the model, the state that holds its averaged weights)."""
    torch.manual_seed(seed)
    net = UNet(UNetConfig(in_channels=4, channels=32, channel_mults=(1, 2, 2), num_res_blocks=1, groups=4,
                          context_dim=WIDTH, concat_channels=2 if code else 0))
    ldm = LatentDiffusion(first, WithCoordinates(net) if code else net, NoiseSchedule(cosine_betas()), KindAndCell(),
                          prediction="v", scale_factor=scale, image_size=64)
    state = TrainState(ldm, 1e-3, betas=(0.9, 0.99), ema_decay=0.998, seed=seed)
    for _ in train_diffusion(state, cache.batches(BATCH, seed=seed), steps, warmup=100, decay="cosine"):
        pass
    return ldm, state


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
    """Train and measure, seed by seed, and keep what was measured so far."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=900)
    options = parser.parse_args()
    first = LatentDiffusion.from_pretrained("emoji-scenes").autoencoder
    cache = cache_latents(first, with_cells(scene_stream(ONE_THING, 64)), LATENTS, keys=("class", "cell"))
    scale = latent_scale(first, (cache[i:i + 64] for i in range(0, 4096, 64)))
    held_out = next(with_cells(scene_stream(ONE_THING, PICTURES, seed=99)))
    held_out["latent"] = first.encode(held_out["image"])
    rows = []
    for seed in range(1, options.seeds + 1):
        for variant in VARIANTS:
            ldm, state = train(first, cache, scale, variant.endswith("code"), seed, options.steps)
            with state.ema.applied(ldm):
                rows.append({"variant": variant, "seed": seed, **measure(ldm, held_out, seed)})
            print(rows[-1], flush=True)
            parameters = sum(p.numel() for p in ldm.net.parameters())
            write_json(Path(__file__).with_suffix(".json"), {
                "parameters": parameters, "steps": options.steps, "batch": BATCH, "pictures": PICTURES, "runs": rows})


if __name__ == "__main__":
    main()
