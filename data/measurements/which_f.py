"""Which f? Section 4.1 of the paper in miniature: `python data/measurements/which_f.py`.

For f = 1, 2, 4, 8, 16 and three seeds: a KL first stage (none for f = 1) and a class-conditional U-Net on its latents,
64-pixel scenes of one thing in the middle. Equal for all: the network, the pictures, the CPU-seconds of each stage on
one thread (a first stage makes at least 200 steps, however long they take). At an eighth, a third and the end of the
diffusion's time the averaged model draws 128 pictures, read by the recogniser and compared with real ones (Figures 6
and 7). Two and a half hours on one thread with bfloat16. Each row is kept in `which_f.json` as it comes, and rows that
are there already are not made again; two cores may make other `--factors` and `--seeds` into files of their own.

Figure 2, bits against distortion: `python data/measurements/which_f.py --rate 360` trains a narrower model of pixels
for so many CPU-seconds, and writes what the levels of noise have told so far, and how well the picture is known by
then: a quarter of an hour.
"""

import time
from dataclasses import replace
from math import log
from pathlib import Path

import torch
import tyro
from resuming import resume

from ldm_mini.autoencoder import Autoencoder, AutoencoderConfig
from ldm_mini.conditioners import ClassConditioner
from ldm_mini.diffusion import draw_noise
from ldm_mini.files import write_json
from ldm_mini.kl import KLBottleneck, standardize_latents
from ldm_mini.latent_diffusion import LatentDiffusion
from ldm_mini.measure import Recogniser, frechet_distance, psnr
from ldm_mini.perceptual import PerceptualLoss
from ldm_mini.scenes import CENTRED_SCENES, NOUNS, scene_batches
from ldm_mini.schedule import NoiseSchedule, cosine_betas
from ldm_mini.train import TrainState, train_autoencoder, train_diffusion
from ldm_mini.training import cache_latents
from ldm_mini.training.launch import bf16_pays
from ldm_mini.unet import UNet, UNetConfig

FACTORS, SEEDS = {1: 3, 2: 2, 4: 4, 8: 8, 16: 16}, (0, 1, 2)    # f: channels; each doubling halves the numbers
PICTURES, BATCH, SAMPLES, STEPS = 8192, 16, 128, 12
LEAST = 200                                                     # steps of a first stage: those of f = 2 are slow
BF16 = bf16_pays(torch.device("cpu"))
RESULTS = Path(__file__).with_suffix(".json")


def first_stage(factor: int) -> Autoencoder:
    """Two levels for every f, so that the networks differ in their first and last layer only."""
    config = AutoencoderConfig(downsample_factor=factor, latent_channels=FACTORS[factor], channels=48,
                               channel_mults=(1, 2), num_res_blocks=1, mid_attn=False, groups=1, patch_size=factor // 2)
    return Autoencoder(config, KLBottleneck(FACTORS[factor], weight=3e-3)).to(memory_format=torch.channels_last)


def second_stage(factor: int, autoencoder: Autoencoder | None, channels: int = 64,
                 scale_factor: float = 1.0) -> LatentDiffusion:
    """The same U-Net for every f; without an autoencoder it works on pixels, the paper's LDM-1."""
    net = UNet(UNetConfig(in_channels=FACTORS[factor], channels=channels, channel_mults=(1, 2, 2), num_res_blocks=1,
                          attn_levels=(2,), groups=4, vector_dim=128)).to(memory_format=torch.channels_last)
    return LatentDiffusion(autoencoder, net, NoiseSchedule(cosine_betas()), ClassConditioner(len(NOUNS), None, 128),
                           prediction="v", scale_factor=scale_factor, image_size=CENTRED_SCENES.size)


def endless(data: dict, seed: int):
    """Random batches for ever."""
    chosen = torch.Generator().manual_seed(seed)
    while True:
        rows = torch.randint(len(data["class"]), (BATCH,), generator=chosen)
        yield {key: values[rows].float() if values.is_floating_point() else values[rows]
               for key, values in data.items()}


def timed(logs, seconds: float, least: int = 0):
    """(Log, CPU-seconds so far) of a training, until these are spent and `least` steps are done; what the loop's body
    does is not counted."""
    spent = done = 0.0
    while spent < seconds or done < least:
        began = time.process_time()
        log = next(logs)
        spent, done = spent + time.process_time() - began, done + 1
        yield log, spent


class Reference:
    """Real pictures, and what reads others."""

    def __init__(self):
        self.recogniser, self.perceptual = Recogniser.load(), PerceptualLoss()
        self.real, self.other = (one_thing(n, start) for n, start in ((1024, 10**6), (SAMPLES, 2 * 10**6)))
        self.features = self.perceptual.features(self.real["image"])

    def frechet(self, images) -> float:
        """To 1,024 real pictures."""
        return frechet_distance(self.perceptual.features(images), self.features).item()

    def named(self, images) -> float:
        """Share of pictures in which the recogniser finds the class of `other`'s scene, one for one."""
        found = [[o["noun"] for o in seen["objects"]] for seen in self.recogniser.detect(images)]
        return sum(noun in seen for noun, seen in zip(self.other["class"].tolist(), found)) / len(found)


def one_thing(count: int, start: int) -> dict:
    """Scenes drawn once: image (count,3,64,64) and class (count,)."""
    batch = next(scene_batches(replace(CENTRED_SCENES, max_objects=1), count, start, count))
    return {"image": batch["image"], "class": batch["class"]}


def train_first(factor: int, data: dict, seed: int, seconds: float, reference: Reference, least: int = LEAST):
    """A first stage with latents of mean 0 and variance 1, and what it measures on new pictures."""
    torch.manual_seed(seed)
    model = first_stage(factor)
    state = TrainState(model, 2e-3, muon_lr=5e-3, betas=(0.9, 0.99), weight_decay=0.0, seed=seed, bf16=BF16)
    # the perceptual loss is for the last two fifths of the time: what is already there gets sharp
    for share, weight in ((0.6, 0.0), (0.4, 1.0)):
        logs = train_autoencoder(state, endless(data, seed), 10**9, perceptual=reference.perceptual, warmup=50,
                                 perceptual_weight=weight, mse_weight=1.0, disc_weight=0.0)
        for _ in timed(logs, share * seconds, share * least):
            pass
    model.eval()
    standardize_latents(model, data["image"][:1024].split(64))
    images = reference.other["image"]
    with torch.inference_mode():
        posteriors = [model.bottleneck.distribution(model.moments(part)) for part in images.split(64)]
        back = torch.cat([model.decode(posterior.mode()) for posterior in posteriors]).clamp(-1, 1)
        far = torch.cat([reference.perceptual(a, b) for a, b in zip(back.split(64), images.split(64))])
    return model, {"steps": state.step, "parameters": sum(p.numel() for p in model.parameters()),
                   "psnr": psnr(back, images).mean().item(), "perceptual": far.mean().item(),
                   "frechet": reference.frechet(back), "named": reference.named(back),
                   "posterior_std": torch.cat([posterior.std for posterior in posteriors]).mean().item()}


def draw(state: TrainState, reference: Reference) -> torch.Tensor:
    """A picture (SAMPLES,3,64,64) for each class of the reference, by the averaged weights."""
    ldm, classes = state.model, reference.other["class"]
    with state.ema.applied(ldm), state.autocast():
        return torch.cat([ldm.sample({"class": part}, steps=STEPS, guidance_scale=2.0, seed=i)
                          for i, part in enumerate(classes.split(64))]).float()


def train_second(ldm: LatentDiffusion, data: dict, seed: int, marks: list[float], reference: Reference) -> list[dict]:
    """Measured with averaged weights at each mark, in CPU-seconds of training."""
    state = TrainState(ldm, 2e-3, muon_lr=5e-3, ema_decay=0.99, seed=seed, bf16=BF16)
    rows = []
    for step, spent in timed(train_diffusion(state, endless(data, seed), 10**9, warmup=50), marks[-1]):
        if spent >= marks[len(rows)]:
            images = draw(state, reference)
            rows.append({"seconds": spent, "step": step.step, "frechet": reference.frechet(images),
                         "named": reference.named(images)})
    return rows


@torch.inference_mode()
def rate_and_distortion(ldm: LatentDiffusion, reference: Reference) -> list[dict]:
    """Figure 2, of a model of pixels: after each of some levels of noise, the bits per number that were told so far,
    and the error of what is known by then.

    The bits of going from level t to s are the KL term of the posterior, (SNR(s) - SNR(t)) / 2 times the squared error
    at t (notebook 06), in nats per number.
    """
    batch = {"image": reference.other["image"], "class": reference.other["class"]}
    x, denoise = batch["image"], ldm.denoiser({"class": batch["class"]}, 1.0, clip_x0=1.0)
    noise = draw_noise(x, torch.Generator().manual_seed(0))
    # the bits of a long step are too many: where they are, at the end, every level has its own
    places = torch.cat([torch.arange(ldm.schedule.num_steps - 1, 60, -20), torch.arange(60, -1, -1)])
    nats, rows = 0.0, []
    for t, s in zip(places, [*places[1:], None]):
        level = t.expand(len(x))
        known = denoise(ldm.schedule.add_noise(x, noise, level), level)[0]
        error = (known - x).square().mean().item()
        rows.append({"t": t.item(), "bits_per_number": nats / log(2), "rmse_of_255": 127.5 * error**0.5})
        nats += 0.0 if s is None else 0.5 * (ldm.schedule.snr(s) - ldm.schedule.snr(t)).item() * error
    return rows


def main(first: float = 160, second: float = 320, seeds: tuple[int, ...] = SEEDS, rate: float = 0,
         factors: tuple[int, ...] = tuple(FACTORS), out: Path = RESULTS) -> None:
    """Every f with every seed; first, second: CPU-seconds of the stages. rate: only Figure 2, with so many."""
    torch.set_num_threads(1)
    marks, reference, data = [second / 2**k for k in (3, 1.5, 0)], Reference(), one_thing(PICTURES, 0)
    report = resume(out, {
        "first_stage_seconds": first, "seconds": second, "pictures": PICTURES, "batch": BATCH, "samples": SAMPLES,
        "sampler_steps": STEPS, "guidance_scale": 2.0, "bf16": BF16, "channels": FACTORS, "rows": [],
        "real": {"frechet": reference.frechet(reference.other["image"]),
                 "named": reference.named(reference.other["image"])}})
    if rate:
        torch.manual_seed(0)
        ldm = second_stage(1, None, channels=32)
        state = TrainState(ldm, 2e-3, muon_lr=5e-3, ema_decay=0.99, seed=0, bf16=BF16)
        for log, spent in timed(train_diffusion(state, endless({**data, "latent": data["image"]}, 0), 10**9, warmup=50),
                                rate):
            pass
        with state.ema.applied(ldm):
            report["rate"] = {"seconds": spent, "steps": log.step,
                              "parameters": sum(p.numel() for p in ldm.parameters()),
                              "rows": rate_and_distortion(ldm.eval(), reference)}
        write_json(out, report)
        return
    for seed in seeds:
        for factor in factors:
            if any((row["f"], row["seed"]) == (factor, seed) for row in report["rows"]):
                continue
            autoencoder, row, examples = None, {"f": factor, "seed": seed}, {**data, "latent": data["image"]}
            if factor > 1:
                autoencoder, row["first_stage"] = train_first(factor, data, seed, first, reference)
                parts = [{"image": images} for images in data["image"].split(64)]
                latents = cache_latents(autoencoder, parts, PICTURES, keys=(), sample=False, bf16=BF16).latents
                examples = {"latent": latents, "class": data["class"]}
            torch.manual_seed(seed)
            ldm = second_stage(factor, autoencoder)
            row["parameters"] = sum(p.numel() for p in ldm.net.parameters())
            # pixels: only at the end, for drawing them takes longer than training them
            row["marks"] = train_second(ldm, examples, seed, marks if factor > 1 else marks[-1:], reference)
            report["rows"].append(row)
            print(factor, seed, row.get("first_stage"), row["marks"][-1], flush=True)
            write_json(out, report)


if __name__ == "__main__":
    tyro.cli(main)
