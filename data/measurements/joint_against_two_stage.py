"""First stage and diffusion prior trained one after the other, or together, at equal steps, for notebook 09.

    python data/measurements/joint_against_two_stage.py     # about an hour on one thread; writes the JSON beside it

The autoencoder here is deterministic and has no bottleneck loss, so that nothing but the two losses shapes the latents
(but for the last way, whose encoder is random). Every way gets `--steps` updates of the autoencoder and as many of the
U-Net:

two stages   reconstruction alone; then diffusion on its frozen, scaled latents
side by side both at once, but the diffusion loss cannot reach the encoder
joint raw    reconstruction + weight * diffusion, whose gradient reaches the encoder; latents as they come
joint unit   the same, with the latents of each batch divided by their standard deviation
joint centred  the same, each channel's mean taken away first: constants cannot make up the variance
joint bound    LSGM's remedy (Vahdat et al. 2021): the encoder is random, its losses are those of the likelihood bound,
               the entropy of what it says among them, and the network learns with other weights over t

Each run is written as it ends, and what is written is not run again: `--out` another file to make all anew.
"""

import math
from pathlib import Path

import torch
import tyro
from pixel_against_latent import BATCH, ClassJudge, batches, diffusion_model, pictures
from resuming import resume

from ldm_mini.autoencoder import Autoencoder, AutoencoderConfig
from ldm_mini.cond import Cond
from ldm_mini.diffusion import diffusion_loss
from ldm_mini.files import write_json
from ldm_mini.kl import KLBottleneck
from ldm_mini.measure import frechet_distance, psnr
from ldm_mini.scenes import MICRO_SCENES
from ldm_mini.train import lr_factor
from ldm_mini.training.launch import bf16_pays

BF16 = bf16_pays(torch.device("cpu"))
RESULTS = Path(__file__).with_suffix(".json")
WAYS = {"two stages": ("frozen", 1.0), "side by side": ("side", 1.0), "joint raw": ("raw", 0.1),
        "joint unit": ("unit", 0.1), "joint centred": ("centred", 0.1), "joint bound": ("bound", 0.01)}


def fresh_models(seed: int):
    """A deterministic autoencoder (the mode of a KL one) and a diffusion model on its latents, both trainable."""
    torch.manual_seed(seed)
    config = AutoencoderConfig(downsample_factor=4, latent_channels=4, channels=32, num_res_blocks=1, mid_attn=False,
                               groups=2, patch_size=4)
    autoencoder = Autoencoder(config, KLBottleneck(4)).to(memory_format=torch.channels_last)
    ldm = diffusion_model(autoencoder, 1.0, seed)
    return autoencoder.requires_grad_(True), ldm


def reconstruction_loss(autoencoder, x, z):
    """L1 + mean squared error of the decoded z against x."""
    difference = autoencoder.decode(z) - x
    return difference.abs().mean() + difference.square().mean()


def prior_loss(ldm, z, classes):
    """The diffusion loss of latents z, which may carry a gradient."""
    return diffusion_loss(ldm.net, ldm.schedule, z, ldm.conditioner.encode({"class": classes}), ldm.prediction)


def centred_unit(z):
    """Each channel's mean taken away, then divided by the standard deviation of all values; and that."""
    centred = z - z.mean((0, 2, 3), keepdim=True)
    return centred / centred.std(), centred.std()


def bound_losses(autoencoder, ldm, x, classes):
    """Reconstruction; nats per latent value that it takes to say z, beyond its own noise; the network's loss.

    The first two are the likelihood bound of LSGM: cross entropy (its Theorem 1) minus entropy. Levels are drawn evenly
    in log SNR, so that the bound's weights do not make it noisy; constants are left out.
    """
    posterior = autoencoder.bottleneck.distribution(autoencoder.moments(x))
    schedule, cond, z = ldm.schedule, ldm.conditioner.encode({"class": classes}), posterior.sample()
    # a shift and a scale change cross entropy and entropy alike: as in "centred", the network sees unit variance
    z0, std = centred_unit(z)
    entropy = 0.5 * posterior.logvar.mean() - std.log()
    # 1. the network: all levels alike, and z as it is
    learned = diffusion_loss(ldm.net, schedule, z0.detach(), cond, ldm.prediction)
    # 2. the encoder: the bound's weights, and the network as it is
    log_snr = schedule.snr(torch.arange(schedule.num_steps)).log()
    steps = (log_snr[:-1] - log_snr[1:]).clamp(min=0)
    t = torch.multinomial(steps, len(x), replacement=True)
    ldm.net.requires_grad_(False)
    error = diffusion_loss(ldm.net, schedule, z0, Cond(vector=cond.vector.detach()), ldm.prediction, t,
                           weight=lambda snr: snr / (1 + snr))  # of v to that of eps
    ldm.net.requires_grad_(True)
    return reconstruction_loss(autoencoder, x, z), 0.5 * steps.sum() * error - entropy, learned


@torch.no_grad()
def scale_of(autoencoder, data, sample: bool = False) -> float:
    """1 / standard deviation of the latents; sample: of what a random encoder says."""
    return 1 / autoencoder.encode(data["image"][:512], sample=sample).std().item()


@torch.no_grad()
def centre(autoencoder, data) -> None:
    """Move the mean of each latent channel into the biases: latents become centred, reconstructions stay."""
    shift = autoencoder.encode(data["image"][:512]).mean((0, 2, 3))
    autoencoder.quant_conv.bias[:len(shift)] -= shift
    autoencoder.post_quant_conv.bias += autoencoder.post_quant_conv.weight[:, :, 0, 0] @ shift


def losses_of(way: str, autoencoder, ldm, batch, second_half: bool):
    """Losses of one step: reconstruction, what is weighted against it, and others; None for what is not trained now."""
    x, classes = batch["image"], batch["class"]
    if way == "bound":
        return bound_losses(autoencoder, ldm, x, classes)
    if way == "frozen" and second_half:
        with torch.no_grad():
            z = autoencoder.encode(x) * ldm.scale_factor
        return None, prior_loss(ldm, z, classes), None
    z = autoencoder.encode(x)
    if way == "frozen":
        return reconstruction_loss(autoencoder, x, z), None, None
    for_prior = {"raw": z, "unit": z / z.std(), "centred": centred_unit(z)[0], "side": (z / z.std()).detach()}[way]
    return reconstruction_loss(autoencoder, x, z), prior_loss(ldm, for_prior, classes), None


def train(way: str, weight: float, data: dict, steps: int, seed: int):
    """-> autoencoder, diffusion model, records of the training."""
    autoencoder, ldm = fresh_models(seed)
    parameters = [*autoencoder.parameters(), *ldm.net.parameters(), *ldm.conditioner.parameters()]
    optimizer, records = torch.optim.AdamW(parameters, lr=2e-3), []
    total = 2 * steps if way == "frozen" else steps
    for step, batch in zip(range(total), batches(data, seed)):
        second_half = way == "frozen" and step >= steps
        if second_half and step == steps:
            autoencoder.requires_grad_(False)
            ldm.scale_factor.fill_(scale_of(autoencoder, data))
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * lr_factor(step % steps, steps, warmup=50)
        with torch.autocast("cpu", torch.bfloat16, BF16):
            rec, diff, other = losses_of(way, autoencoder, ldm, batch, second_half)
        loss = sum(part for part in (rec, None if diff is None else weight * diff, other) if part is not None)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if step % 500 == 499:
            with torch.no_grad():
                std = autoencoder.encode(data["image"][:64]).std().item()
            records.append({"step": step + 1, "std": short(std), **{
                name: short(loss.item()) for name, loss in (("reconstruction", rec), ("diffusion", diff))
                if loss is not None}})
    autoencoder.requires_grad_(False).eval()
    if way in ("centred", "bound"):
        centre(autoencoder, data)
    if way != "raw":
        ldm.scale_factor.fill_(scale_of(autoencoder, data, sample=way == "bound"))
    return autoencoder, ldm.eval(), records


@torch.no_grad()
def measure(autoencoder, ldm, judge: ClassJudge, new: dict) -> dict:
    """What became of latents, reconstructions and samples, on pictures that were not trained on.

    telling_variance: that between pictures, after scaling, mean over the values of a latent; constants do not count.
    fine_variance: the share of the latents' variance outside of their ten largest principal directions.
    """
    z = autoencoder.encode(new["image"])
    variances = torch.linalg.eigvalsh(z.flatten(1).T.cov())  # 256, from the smallest to the largest
    decoded = autoencoder.decode(z).clamp(-1, 1)
    g = torch.Generator().manual_seed(0)
    cond = ldm.conditioner.encode(new)
    loss = diffusion_loss(ldm.net, ldm.schedule, z * ldm.scale_factor, cond, ldm.prediction, generator=g)
    return {"std": z.std().item(), "scale_factor": ldm.scale_factor.item(), "diffusion_loss": loss.item(),
            "telling_variance": (variances.mean() * ldm.scale_factor**2).item(),
            "fine_variance": (variances[:-10].sum() / variances.sum()).item(),
            "psnr": psnr(decoded, new["image"]).mean().item(),
            **distances(judge, decoded, judge.sample(ldm))}


def distances(judge: ClassJudge, decoded, samples) -> dict:
    """Frechet distances: of reconstructions to pictures, of samples to pictures, of samples to reconstructions."""
    decoded, samples = judge.features(decoded), judge.features(samples)
    return {"decoded_to_real": frechet_distance(decoded, judge.real).item(),
            "samples_to_real": frechet_distance(samples, judge.real).item(),
            "samples_to_decoded": frechet_distance(samples, decoded).item()}


def short(number):
    """Of four digits."""
    return 0.0 if number == 0 else round(number, 3 - math.floor(math.log10(abs(number))))


def main(steps: int = 2_000, seeds: int = 3, out: Path = RESULTS) -> None:
    """steps: of each part."""
    torch.set_num_threads(1)
    data, real, new = (pictures(n, start, MICRO_SCENES) for n, start in ((2048, 0), (1024, 10**6), (512, 2 * 10**6)))
    judge = ClassJudge(real)
    report = resume(out, {
        "steps": steps, "batch": BATCH, "bf16": BF16, "runs": {name: [] for name in WAYS},
        "real": {key: short(value) for key, value in judge.score(new["image"], new["class"]).items()}})
    runs = report["runs"]
    for seed in range(seeds):
        for name, (way, weight) in WAYS.items():
            if any(run["seed"] == seed for run in runs[name]):
                continue
            autoencoder, ldm, records = train(way, weight, data, steps, seed)
            found = {key: short(value) for key, value in measure(autoencoder, ldm, judge, new).items()}
            runs[name].append({"seed": seed, **found, "records": records})
            print(name, found, flush=True)
            write_json(out, report)


if __name__ == "__main__":
    tyro.cli(main)
