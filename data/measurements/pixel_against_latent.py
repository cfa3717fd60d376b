"""Pixel against latent diffusion with equal parameters and equal training time, for notebook 09.

    python data/measurements/pixel_against_latent.py   # about 20 minutes on one thread; writes the files beside it

Both models are class-conditional, with the same U-Net (but for the channels of its first and last layer), the same
pictures, batch size, learning rate and EMA. Time is CPU time of one thread, so that other programs do not count. The
latent model's first stage is trained here too, on the same pictures; its time is reported, and the figure shows the
latent model's curve with and without it.
"""

import argparse
import json
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from ldm_mini.autoencoder import Autoencoder, AutoencoderConfig
from ldm_mini.conditioners import ClassConditioner
from ldm_mini.latent_diffusion import LatentDiffusion, latent_scale
from ldm_mini.measure import Recogniser, frechet_distance, psnr
from ldm_mini.perceptual import PerceptualLoss
from ldm_mini.quantizer import VectorQuantizer, VQBottleneck
from ldm_mini.scenes import NOUN_INDEX, NOUNS, SceneConfig, scene_batches
from ldm_mini.schedule import NoiseSchedule, cosine_betas
from ldm_mini.show import save_grid
from ldm_mini.train import TrainState, train_autoencoder, train_diffusion
from ldm_mini.training import cache_latents
from ldm_mini.unet import UNet, UNetConfig

HERE = Path(__file__).resolve().parent
SCENES = SceneConfig(size=32, nouns=("apple", "star", "fish", "car", "heart", "balloon", "umbrella", "mushroom"),
                     styles=("fluent_flat",), max_objects=1, looks=("flat",), places=False, centred=True)
PICTURES, BATCH, SAMPLES, STEPS = 8192, 16, 256, 20


def pictures(count: int, start: int, scenes: SceneConfig = SCENES) -> dict:
    """Scenes drawn once: image (count,3,32,32) and class (count,)."""
    batch = next(scene_batches(scenes, count, start, count))
    return {"image": batch["image"], "class": batch["class"]}


def batches(data: dict, seed: int):
    """Endless random batches."""
    g = torch.Generator().manual_seed(seed)
    while True:
        rows = torch.randint(len(data["class"]), (BATCH,), generator=g)
        yield {key: values[rows] for key, values in data.items()}


def train_first_stage(data: dict, steps: int, seed: int) -> tuple[Autoencoder, float]:
    """A VQ autoencoder with f = 4, and the CPU seconds that its training took."""
    torch.manual_seed(seed)
    config = AutoencoderConfig(downsample_factor=4, latent_channels=4, channels=64, num_res_blocks=1, mid_attn=False,
                               groups=4, patch_size=4)
    model = Autoencoder(config, VQBottleneck(VectorQuantizer(512, 4, restart_after=100)))
    model = model.to(memory_format=torch.channels_last)
    state = TrainState(model, 2e-3, betas=(0.9, 0.99), weight_decay=0.0, seed=seed)
    perceptual, start = PerceptualLoss("efficientnet"), time.process_time()
    for log in train_autoencoder(state, batches(data, seed), steps, perceptual=perceptual, mse_weight=1.0,
                                 perceptual_start=steps * 3 // 4, disc_weight=0, warmup=50, decay="cosine"):
        if log.step % 250 == 0:
            print("first stage", log, flush=True)
    return model.eval(), time.process_time() - start


def diffusion_model(autoencoder, scale_factor: float, seed: int) -> LatentDiffusion:
    """Without an autoencoder it works on pixels: the paper's LDM-1."""
    torch.manual_seed(seed)
    channels = 3 if autoencoder is None else autoencoder.config.latent_channels
    net = UNet(UNetConfig(in_channels=channels, channels=32, channel_mults=(1, 2, 2), num_res_blocks=1,
                          attn_levels=(2,), groups=2, vector_dim=64)).to(memory_format=torch.channels_last)
    return LatentDiffusion(autoencoder, net, NoiseSchedule(cosine_betas()), ClassConditioner(len(NOUNS), None, 64),
                           prediction="v", scale_factor=scale_factor, image_size=SCENES.size)


def cost(ldm: LatentDiffusion, data: dict, rounds: int = 10) -> dict:
    """FLOPs of a training step per picture; seconds of a training step and of sampling one picture (medians)."""
    batch = {key: values[:BATCH] for key, values in data.items()}
    with FlopCounterMode(display=False) as counter:
        ldm.loss(batch).backward()
    optimizer, seconds, sampling = torch.optim.AdamW(ldm.trainable_parameters(), lr=0.0), [], []
    for _ in range(rounds):
        start = time.process_time()
        ldm.loss(batch).backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.process_time() - start)
    for _ in range(3):
        start = time.process_time()
        ldm.sample({"class": batch["class"]}, steps=STEPS, guidance_scale=1.0, seed=0)
        sampling.append((time.process_time() - start) / BATCH)
    return {"train_gflops_per_picture": counter.get_total_flops() / BATCH / 1e9,
            "train_step_seconds": float(torch.tensor(seconds).median()),
            "sampling_seconds_per_picture": float(torch.tensor(sampling).median()),
            "parameters": sum(p.numel() for p in ldm.net.parameters())}


class ClassJudge:
    """Frechet distance to real pictures, and how often the recogniser names the class that was asked for."""

    def __init__(self, real: dict):
        self.net, self.recogniser = PerceptualLoss("efficientnet"), Recogniser.load()
        self.real, self.classes = self.features(real["image"]), real["class"][:SAMPLES]

    @torch.inference_mode()
    def features(self, images):
        """(B,3,32,32) -> (B,112); enlarged, since the network has a stride of 16."""
        large = F.interpolate(images, scale_factor=2, mode="bilinear")
        return self.net.features(large)

    def score(self, images, classes) -> dict:
        """Images made for classes (B,) -> {"frechet", "accuracy"}."""
        found = self.recogniser.detect(images)
        named = [any(o["noun"] == k for o in scene["objects"][:1]) for scene, k in zip(found, classes.tolist())]
        return {"frechet": frechet_distance(self.features(images), self.real).item(),
                "accuracy": sum(named) / len(named)}

    def sample(self, ldm) -> torch.Tensor:
        """One picture for each class of the first real ones."""
        return torch.cat([ldm.sample({"class": part}, steps=STEPS, guidance_scale=1.0, seed=i)
                          for i, part in enumerate(self.classes.split(64))])


def train(name: str, ldm: LatentDiffusion, data: dict, marks: list[float], judge: ClassJudge, seed: int):
    """Train until the last mark (CPU seconds); at every mark measure the averaged weights. -> records, last samples."""
    state, spent, records = TrainState(ldm, 1e-3, ema_decay=0.998, seed=seed), 0.0, []
    logs, marks, losses = train_diffusion(state, batches(data, seed), 10**9, warmup=100), list(marks), []
    while marks:
        start = time.process_time()
        losses.append(next(logs).loss)
        spent += time.process_time() - start
        if spent >= marks[0]:
            marks.pop(0)
            with state.ema.applied(ldm):
                samples = judge.sample(ldm)
            recent = losses[-200:]
            records.append({"seconds": spent, "step": state.step, "loss": sum(recent) / len(recent),
                            **judge.score(samples, judge.classes)})
            print(name, records[-1], flush=True)
    return records, samples


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=6, help="of training for each diffusion model")
    parser.add_argument("--first-stage-steps", type=int, default=2500)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)

    data, real, other = (pictures(n, start) for n, start in ((PICTURES, 0), (1024, 10**6), (SAMPLES, 2 * 10**6)))
    judge = ClassJudge(real)
    autoencoder, first_stage = train_first_stage(data, args.first_stage_steps, args.seed)
    start = time.process_time()
    cache = cache_latents(autoencoder, [data], PICTURES, keys=("class",))
    caching = time.process_time() - start
    latents = {"latent": cache.latents.float(), "class": data["class"]}
    scale = latent_scale(autoencoder, [{"latent": latents["latent"]}])
    models = {"pixel": (diffusion_model(None, 1.0, args.seed), data),
              "latent": (diffusion_model(autoencoder, scale, args.seed), latents)}
    with torch.no_grad():
        decoded = autoencoder.decode(autoencoder.encode(other["image"])).clamp(-1, 1)
    result = {"minutes": args.minutes, "seed": args.seed, "batch": BATCH, "samples": SAMPLES, "sampler_steps": STEPS,
              "first_stage_seconds": first_stage, "caching_seconds": caching, "scale_factor": scale,
              "first_stage_psnr": psnr(decoded, other["image"]).mean().item(),
              "real": judge.score(other["image"], other["class"]), "decoded": judge.score(decoded, other["class"]),
              "cost": {name: cost(*model) for name, model in models.items()}}
    with_encoder = cost(models["latent"][0], data)
    result["cost"]["latent, encoder in every step"] = {k: v for k, v in with_encoder.items() if k.startswith("train")}
    print(json.dumps(result, indent=1), flush=True)
    marks, rows = [args.minutes * 60 / 2**k for k in (4, 3, 2, 1, 0)], [real["image"][:SAMPLES]]
    for name, (ldm, examples) in models.items():
        result[name], samples = train(name, ldm, examples, marks, judge, args.seed)
        rows.append(samples)
    (HERE / "pixel_against_latent.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    chosen = [int((judge.classes == NOUN_INDEX[noun]).nonzero()[i]) for noun in SCENES.nouns for i in (0, 1)]
    save_grid([row[chosen] for row in rows], HERE / "pixel_against_latent.png")


if __name__ == "__main__":
    main()
