"""What a position code changes on Emoji Scenes: `python data/measurements/position_code_scenes.py`, for notebook 13.

The shipped network learns on for a few hundred steps, with layouts as its only condition, in four variants: as it is,
on a ring (circular padding), and both with two more channels at its input, the row and the column of each latent pixel,
whose weights start at zero. The recogniser then looks whether things are drawn in the boxes that were asked for. About
35 minutes for three seeds on one thread of a CPU; every finished run goes to `position_code_scenes.json` at once. Those
stored are of the model that was shipped before: 64 pixels, latents of 16 x 16.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from ldm_mini.files import write_json
from ldm_mini.hub import find, read_config
from ldm_mini.latent_diffusion import LatentDiffusion
from ldm_mini.measure import Judge
from ldm_mini.scenes import scene_stream, scenes_of
from ldm_mini.show import scenes_for
from ldm_mini.tasks import sample_task
from ldm_mini.train import TrainState, train_diffusion
from ldm_mini.training import cache_latents
from ldm_mini.unet import UNet

MODEL, BATCH, LATENTS, PICTURES = "emoji-scenes", 16, 6_000, 128
VARIANTS = {"zero padding": (False, False), "circular": (True, False), "circular + code": (True, True),
            "zero padding + code": (False, True)}


class WithCoordinates(nn.Module):
    """The U-Net with two more channels at its input: each latent pixel's row and column, from -1 to 1."""

    def __init__(self, net: UNet):
        super().__init__()
        self.net = UNet(replace(net.config, concat_channels=net.config.concat_channels + 2))
        weights, stem = net.state_dict(), "down.0.0.weight"
        weights[stem] = torch.cat([weights[stem], torch.zeros_like(weights[stem][:, :2])], dim=1)
        self.net.load_state_dict(weights)
        self.config = net.config

    def forward(self, x, t, cond):
        """As the network's."""
        height, width = x.shape[2:]
        rows, columns = ((torch.arange(n) + 0.5) / n * 2 - 1 for n in (height, width))
        code = torch.stack([rows[:, None].expand(height, width), columns[None].expand(height, width)])
        return self.net(x, t, replace(cond, concat=torch.cat([cond.concat, code.expand(len(x), -1, -1, -1)], dim=1)))


def make_circular(net: nn.Module) -> None:
    """Let every 3x3 convolution see a ring instead of zeros. The weights stay."""
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d) and layer.padding != (0, 0):
            layer.padding_mode = "circular"
            layer._reversed_padding_repeated_twice = [p for p in reversed(layer.padding) for _ in range(2)]


def train(cache, circular: bool, code: bool, seed: int, steps: int) -> TrainState:
    """One variant from one seed: its state, with the averaged weights."""
    torch.manual_seed(seed)
    ldm = LatentDiffusion.from_pretrained(MODEL)
    ldm.conditioner.p_single = ldm.conditioner.p_drop_each = 0.0        # the batches hold layouts, and nothing else
    ldm.p_uncond = 0.1
    if code:
        ldm.net = WithCoordinates(ldm.net)
    if circular:
        make_circular(ldm.net)
    state = TrainState(ldm, 4e-4, betas=(0.9, 0.99), ema_decay=0.99, seed=seed)
    for _ in train_diffusion(state, cache.batches(BATCH, seed=seed), steps, warmup=50, decay="cosine"):
        pass
    return state


@torch.no_grad()
def measure(ldm: LatentDiffusion, scenes: dict, judge) -> dict:
    """Loss on scenes that no training saw, and what the recogniser finds in pictures for their layouts."""
    ldm.eval()
    g = torch.manual_seed(0)  # torch's own generator, from which the loss draws
    loss = sum(ldm.loss({key: scenes[key] for key in ("image", "labels", "boxes")}).item() for _ in range(4)) / 4
    scores = judge.score("layout", sample_task(ldm, "layout", scenes, steps=20, generator=g), scenes)
    return {"val_loss": round(loss, 4), **{key: round(scores[key], 4) for key in ("object_recall", "box_iou")}}


def main() -> None:
    """Train and measure, seed by seed, and keep what was measured so far."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=400)
    options = parser.parse_args()
    torch.set_num_threads(1)
    config = scenes_of(read_config(find(MODEL), "LatentDiffusion"))
    first = LatentDiffusion.from_pretrained(MODEL).autoencoder
    cache = cache_latents(first, scene_stream(replace(config, split="train"), 64, seed=7), LATENTS,
                          keys=("labels", "boxes"))
    scenes, judge, rows = scenes_for("layout", config, PICTURES), Judge.of_scenes(config, ["layout"]), []
    for seed in range(1, options.seeds + 1):
        for variant, (circular, code) in VARIANTS.items():
            state = train(cache, circular, code, seed, options.steps)
            with state.ema.applied(state.model):
                rows.append({"variant": variant, "seed": seed, **measure(state.model, scenes, judge)})
            print(rows[-1], flush=True)
            write_json(Path(__file__).with_suffix(".json"), {
                "steps": options.steps, "batch": BATCH, "pictures": PICTURES, "runs": rows})


if __name__ == "__main__":
    main()
