"""Which decoder forgives a noisy latent, and what compression costs: for notebook 05.

    python data/measurements/forgiving_decoders.py     # ten minutes of CPU time; writes the .json beside it

Part 1: first stages of equal size (f = 4), trained equally (same pictures, batches, steps, losses) and different only
in their bottleneck: 512 codes, 32 codes, a Gaussian with the released models' tiny KL weight (1e-6 beside sums, so
translated to our means), and one with a stronger KL. To the latents of new pictures comes Gaussian noise, in units of
the latents' standard deviation, then they are decoded; those of the VQ models with and without quantising. Five seeds.

Part 2: f = 2, 4, 8, 16, KL with the released weight: latent shape, numbers, PSNR after equal short training.
"""

import argparse
import json
import time
from pathlib import Path

import torch

from ldm_mini.autoencoder import Autoencoder, AutoencoderConfig
from ldm_mini.kl import KLBottleneck, weight_for_means
from ldm_mini.measure import psnr
from ldm_mini.perceptual import PerceptualLoss
from ldm_mini.quantizer import VectorQuantizer, VQBottleneck
from ldm_mini.scenes import TINY_NOUNS, SceneConfig, scene_batches
from ldm_mini.train import TrainState, train_autoencoder

HERE = Path(__file__).resolve().parent
SCENES = SceneConfig(size=32, nouns=TINY_NOUNS, styles=("fluent_flat",), max_objects=1, centred=True)
PICTURES, BATCH, TESTED = 2048, 16, 192
NOISE = (0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.7, 1.0)
IMAGE = (3, SCENES.size, SCENES.size)
BOTTLENECKS = {"vq 512": lambda shape: VQBottleneck(VectorQuantizer(512, shape[0], restart_after=50)),
               "vq 32": lambda shape: VQBottleneck(VectorQuantizer(32, shape[0], restart_after=50)),
               "kl tiny": lambda shape: KLBottleneck(shape[0], weight=weight_for_means(1e-6, shape, IMAGE)),
               "kl 3e-2": lambda shape: KLBottleneck(shape[0], weight=3e-2)}
# f: latent channels (those of the paper's VQ models), patch folded into channels, multiple of the width per level
SHAPES = {2: (2, 2, (1,)), 4: (3, 4, (1,)), 8: (4, 4, (1, 2)), 16: (8, 4, (1, 2, 2))}


def pictures(count: int, start: int) -> torch.Tensor:
    """Scenes drawn once, (count,3,32,32)."""
    return next(scene_batches(SCENES, count, start, count))["image"]


def batches(images, seed: int):
    """Endless random batches."""
    g = torch.Generator().manual_seed(seed)
    while True:
        yield images[torch.randint(len(images), (BATCH,), generator=g)]


def first_stage(f: int, kind: str, images, steps: int, seed: int) -> Autoencoder:
    """One trained autoencoder; L1 + MSE, which is all that both parts measure."""
    c, patch, mults = SHAPES[f]
    torch.manual_seed(seed)
    config = AutoencoderConfig(downsample_factor=f, latent_channels=c, channels=48, channel_mults=mults,
                               num_res_blocks=1, mid_attn=False, groups=3, patch_size=patch)
    bottleneck = BOTTLENECKS[kind]((c, SCENES.size // f, SCENES.size // f))
    state = TrainState(Autoencoder(config, bottleneck), 2e-3, betas=(0.9, 0.99), weight_decay=0.0, seed=seed)
    for _ in train_autoencoder(state, batches(images, seed), steps, perceptual_weight=0, disc_weight=0, mse_weight=1.0,
                               warmup=30, decay="cosine"):
        pass
    return state.model.eval()


@torch.inference_mode()
def forgiveness(model, x, look) -> dict:
    """Distance of decode(z + noise) to the picture: {how: {"psnr", "perceptual", "change"}}, one value per noise level.

    "change": root mean squared difference to the decoder's own picture without noise.
    """
    z, g = model.encode(x), torch.Generator().manual_seed(0)
    eps = torch.randn(z.shape, generator=g) * z.std()
    hows = (True, False) if isinstance(model.bottleneck, VQBottleneck) else (False,)
    found = {}
    for how in hows:
        clean = model.decode(z, quantize=how).clamp(-1, 1)
        rows = []
        for level in NOISE:
            y = model.decode(z + level * eps, quantize=how).clamp(-1, 1)
            rows.append((psnr(x, y).mean(), look(x, y).mean(), (y - clean).square().mean().sqrt()))
        columns = torch.tensor(rows).T.tolist()
        found["quantised" if how else "as it is"] = {
            name: [round(v, 4) for v in column] for name, column in zip(("psnr", "perceptual", "change"), columns)}
    return found


@torch.inference_mode()
def about_latents(model, x) -> dict:
    """Standard deviation of the latents; the noise the decoder was trained on, or the distance of its codes, in units
    of it."""
    z, found = model.encode(x), {}
    found["std"] = z.std().item()
    if isinstance(model.bottleneck, VQBottleneck):
        code = model.bottleneck.quantizer.codebook
        apart = torch.cdist(code, code).fill_diagonal_(float("inf")).min(1).values
        found["half_distance"] = (apart.median() / 2 / z.std()).item()
        found["codes_used"] = len(model.quantize(z)[1].unique())
    else:
        noise = model.bottleneck.distribution(model.moments(x)).std
        found["trained_noise"] = (noise.square().mean().sqrt() / z.std()).item()
    return {name: round(value, 4) for name, value in found.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seeds", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    start, look = time.process_time(), PerceptualLoss("efficientnet")
    train, test = pictures(PICTURES, 0), pictures(TESTED, 10**6)
    result = {"steps": args.steps, "seeds": args.seeds, "pictures": PICTURES, "batch": BATCH, "tested": TESTED,
              "noise": NOISE, "decoders": [], "compression": []}
    for seed in range(args.seeds):
        for kind in BOTTLENECKS:
            model = first_stage(4, kind, train, args.steps, seed)
            result["decoders"].append({"kind": kind, "seed": seed, **about_latents(model, test),
                                       **forgiveness(model, test, look)})
            print(f"{time.process_time() - start:.0f} s", result["decoders"][-1], flush=True)
    for f, (c, _, _) in SHAPES.items():
        model = first_stage(f, "kl tiny", train, args.steps // 2, 0)
        with torch.inference_mode():
            got = psnr(test, model.decode(model.encode(test)).clamp(-1, 1)).mean().item()
        side = SCENES.size // f
        parameters = sum(p.numel() for p in model.parameters())
        result["compression"].append({"f": f, "kind": "kl tiny", "shape": [c, side, side], "numbers": c * side**2,
                                      "psnr": round(got, 2), "parameters": parameters})
        print(f"{time.process_time() - start:.0f} s", result["compression"][-1], flush=True)
    result["cpu_seconds"] = round(time.process_time() - start)
    (HERE / "forgiving_decoders.json").write_text(json.dumps(result) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
