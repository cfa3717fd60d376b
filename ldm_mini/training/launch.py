"""From a recipe to a finished run: what `python -m ldm_mini train` does, alone or under `accelerate launch`."""

import contextlib
import hashlib
import os
import time
from dataclasses import asdict, replace
from pathlib import Path

import torch

from .. import tasks
from ..discriminator import PatchDiscriminator
from ..hub import find, load_autoencoder, save_autoencoder
from ..latent_diffusion import LatentDiffusion, latent_scale
from ..measure.metrics import psnr
from ..perceptual import PerceptualLoss
from ..scenes.data import scene_stream
from ..show.plotting import save_grid
from ..tasks import sample_task
from ..train import TrainState, add_adversary, to_device, train_autoencoder, train_diffusion
from ..training import build, recipes, runs
from .build import cached_inputs
from .build import start_from as take_weights
from .latents import cache_latents

VALIDATION_SEED = 1_000_000_007                                 # of noise and dropped conditions, the same every time


def train_stage(stage: str, recipe, out, *, autoencoder: str | None = None,
                start_from: str | None = None, resume: bool = False,
                minutes: float | None = None, device: str | None = None, compile: bool | None = None,
                workers: int | None = None, seed: int = 0, tensorboard: bool = False, log_every: int = 20,
                sample_every: int = 500, save_every: int = 500) -> bool:
    """Train a recipe in the folder `out`; True when it is finished, False when it was stopped and can be resumed.

    autoencoder: for stage "diffusion", the first stage: the `model` folder of its run, or a name `hub.find` knows.
    start_from:  a trained diffusion model of the same shape, to be trained further; new conditions may join it.
    compile:     None = as the recipe says, on a GPU. workers: None = 0 on a CPU, which they would only slow down.
    Raises ValueError before anything is written, if the folder, the recipe or the first stage cannot be used.
    """
    if stage == "diffusion":
        if autoencoder is None:
            raise ValueError("diffusion needs a first stage: --autoencoder FOLDER, the `model` folder of a run of "
                             "`python -m ldm_mini train autoencoder`.")
        find(autoencoder)
    if start_from is not None:
        if stage != "diffusion":
            raise ValueError("--start-from is for diffusion; the autoencoder starts from fresh weights.")
        find(start_from)
    out, accelerator = Path(out), _accelerator(device)
    settings = {"stage": stage, "seed": seed, "processes": accelerator.num_processes, **asdict(recipe)}
    if stage == "diffusion":
        settings |= {"autoencoder": str(autoencoder), "start_from": start_from and str(start_from)}
    with accelerator.main_process_first():                      # the others find what it left
        checkpoint = (runs.open_run(out, settings, resume) if accelerator.is_main_process else
                      runs.latest(out / "checkpoints") if resume else None)
    if workers is None:
        workers = 0 if accelerator.device.type == "cpu" else min(12, max(1, (os.cpu_count() or 2) - 2))
    torch.manual_seed(seed)                                     # the same fresh weights in every process
    prepare = {"autoencoder": _autoencoder, "diffusion": _diffusion}[stage]
    models = autoencoder, start_from
    state, logs, sample, export = prepare(recipe, out, accelerator, workers, seed, models, checkpoint)
    if (recipe.compile and state.device.type == "cuda") if compile is None else compile:
        _compile(state.model)
    began, together = time.monotonic(), recipe.batch_size * accelerator.num_processes
    finished = runs.follow(logs, state, out, steps=recipe.steps, images_per_step=together, sample=sample,
                           minutes=minutes, tensorboard=tensorboard, log_every=log_every, sample_every=sample_every,
                           save_every=save_every)
    if accelerator.is_main_process:
        export({"recipe": settings, "steps": state.step, "hardware": _hardware(state.device),
                "minutes": round((time.monotonic() - began) / 60, 1)})
        accelerator.print(f"{'Finished' if finished else 'Stopped'} at step {state.step} of {recipe.steps}. "
                          f"The model so far: {out / 'model'}" + ("" if finished else "; continue with --resume."))
    accelerator.end_training()
    return finished


def load_or_train(train: bool = False, recipe: str = "base", *, stage: str = "diffusion", model: str = "emoji-scenes",
                  out=None, device: str | None = None, **options):
    """The shipped model, or your own: the same cell shows good pictures on a laptop and trains for real on a GPU.

    train=False: `model` by name or folder. train=True: both stages of a recipe, in the folder `out` (runs/RECIPE unless
    given), continued where they were if they had begun; `options` go to `train_stage`.
    stage "diffusion" -> LatentDiffusion, "autoencoder" -> its first stage alone; in evaluation mode.
    Raises ValueError for an unknown stage or recipe.
    """
    stages = ("autoencoder", "diffusion")
    if stage not in stages:
        raise ValueError(f"load_or_train: stage must be one of {stages}, got {stage!r}.")
    if not train:
        ldm = LatentDiffusion.from_pretrained(model, device=device)
        return ldm if stage == "diffusion" else ldm.autoencoder
    chosen = {name: recipes.find_recipe(name, recipe) for name in stages[:stages.index(stage) + 1]}
    out = Path("runs") / recipe if out is None else Path(out)
    first = out / "autoencoder" / "model"
    for name, numbers in chosen.items():
        folder = out / name
        train_stage(name, numbers, folder, autoencoder=str(first) if name == "diffusion" else None, device=device,
                    resume=runs.latest(folder / "checkpoints") is not None, **options)
    if stage == "autoencoder":
        return load_autoencoder(first, device=device)
    return LatentDiffusion.from_pretrained(out / "diffusion" / "model", device=device)


def _autoencoder(recipe, out, accelerator, workers, seed, _, checkpoint):
    """TrainState, loop, samples and export of the first stage."""
    model = _channels_last(build.build_autoencoder(recipe))
    state = _state(model, recipe, seed, accelerator)
    if recipe.disc_weight:
        judge = PatchDiscriminator(recipe.model.in_channels, recipe.disc_channels, recipe.disc_layers)
        add_adversary(state, _channels_last(judge), recipe.disc_lr)
    if checkpoint is not None:
        runs.restore(state, checkpoint, out)
    batches = scene_stream(recipe.scenes, recipe.batch_size, state.step, workers, accelerator.process_index,
                           accelerator.num_processes, seed=seed)
    perceptual = _channels_last(PerceptualLoss()) if recipe.perceptual_weight else None
    logs = train_autoencoder(
        state, batches, recipe.steps, perceptual=perceptual, perceptual_weight=recipe.perceptual_weight,
        perceptual_start=recipe.perceptual_start, mse_weight=recipe.mse_weight, disc_weight=recipe.disc_weight,
        disc_start=recipe.disc_start, warmup=recipe.warmup, decay=recipe.decay)
    images = _validation(recipe, 32)["image"].to(state.device)

    @torch.no_grad()
    def sample() -> dict:
        model.eval()
        with _averaged(state):
            z = model.encode(images)
            x_rec = model.decode(z).clamp(-1, 1)
            codes = None if recipe.codebook_size is None else model.quantize(z)[1]
        model.train()
        save_grid([images[:16], x_rec[:16]], out / "samples" / f"step-{state.step:08}.png")
        measured = {"val_psnr": psnr(x_rec.cpu(), images.cpu()).mean().item()}
        if codes is not None:
            measured["val_codes_used"] = codes.unique().numel() / recipe.codebook_size
        return measured

    def export(card):
        with _averaged(state):
            save_autoencoder(out / "model", model, card=card)

    return state, logs, sample, export


def _diffusion(recipe, out, accelerator, workers, seed, models, checkpoint):
    """TrainState, loop, samples and export of the second stage."""
    autoencoder, start_from = models
    first = load_autoencoder(autoencoder, device=accelerator.device)
    keys, make = cached_inputs(recipe.parts, first)
    data = (recipe.scenes, seed) + (() if keys == ("caption", "class") and make is None else (recipe.parts,))
    with accelerator.main_process_first():                      # it encodes and saves, the others load
        encoded = cache_latents(first, scene_stream(recipe.scenes, 64, 0, workers, 0, 1, seed=seed), recipe.latents,
                                keys, out / "latents", _fingerprint(first, *data), accelerator.is_main_process, make)
    scale = latent_scale(first, (encoded[i:i + 64] for i in range(0, min(4096, len(encoded)), 64)))
    ldm = build.build_diffusion(recipe, first, scale)
    if start_from is not None and checkpoint is None:
        take_weights(LatentDiffusion.from_pretrained(start_from), ldm)
    _channels_last(ldm.net)
    state = _state(ldm, recipe, seed, accelerator)
    if checkpoint is not None:
        runs.restore(state, checkpoint, out)
    batches = encoded.to(state.device).batches(recipe.batch_size, state.step, seed, state.rank,
                                               accelerator.num_processes)
    logs = train_diffusion(state, batches, recipe.steps, warmup=recipe.warmup, decay=recipe.decay,
                           t_power=recipe.t_power)
    held_out = to_device(_validation(recipe, 256), state.device)

    @torch.no_grad()
    def sample() -> dict:
        ldm.eval()
        with _averaged(state), state.autocast():
            images = _pictures(ldm, recipe, held_out, seed)
            losses = _validation_losses(ldm, recipe, held_out)
        ldm.train()
        save_grid(images, out / "samples" / f"step-{state.step:08}.png", columns=8)
        return losses

    def export(card):
        with _averaged(state):
            ldm.save_pretrained(out / "model", card=card)

    return state, logs, sample, export


def _pictures(ldm, recipe, held_out: dict, seed: int):
    """Eight pictures for the recipe's captions; if it knows more than words, eight true scenes and a row per task."""
    if set(recipe.parts) <= {"text", "language", "class"} and set(recipe.parts) & {"text", "language"}:
        return ldm.sample({"caption": list(recipe.sample_captions)}, seed=seed)
    scenes = {key: values[:8] for key, values in held_out.items()}
    rows = [sample_task(ldm, task, scenes, seed=seed) for task in tasks.possible(ldm) if task != "class"]
    return torch.cat([scenes["image"], *rows])


def _validation_losses(ldm, recipe, held_out: dict) -> dict:
    """The loss on scenes that no training sees: with all conditions; of many, with each alone and their mean."""
    def loss(batch):
        torch.manual_seed(VALIDATION_SEED)
        return ldm.loss(batch).item()

    if len(recipe.parts) <= 2:
        return {"val_loss": loss(held_out)}
    some = {key: values[:64] for key, values in held_out.items()}               # of each task: time is short
    losses = {f"val_{task}": loss({"image": some["image"], **tasks.inputs(task, some, ldm)})
              for task in tasks.possible(ldm)}
    return {"val_loss": sum(losses.values()) / len(losses), **losses}


def _validation(recipe, n: int) -> dict:
    """One batch of n scenes that no training sees."""
    return next(iter(scene_stream(replace(recipe.scenes, split="val"), n, 0, 0, 0, 1, seed=0)))


def _fingerprint(model, *settings) -> str:
    """A hash of a model's weights and some settings."""
    digest = hashlib.sha256(repr(settings).encode())
    for value in model.state_dict().values():
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _averaged(state):
    """The averaged weights, if the run keeps them."""
    return contextlib.nullcontext() if state.ema is None else state.ema.applied(state.model)


def _state(model, recipe, seed: int, accelerator) -> TrainState:
    bf16 = accelerator.mixed_precision == "bf16" or (recipe.bf16 and accelerator.device.type == "cuda")
    return TrainState(model, recipe.lr, betas=recipe.betas, weight_decay=recipe.weight_decay,
                      grad_clip=recipe.grad_clip, ema_decay=recipe.ema_decay, seed=seed, bf16=bf16,
                      accelerator=accelerator)


def _accelerator(device: str | None):
    from accelerate import Accelerator

    if torch.cuda.is_available():
        torch.set_float32_matmul_precision("high")              # TF32
        torch.backends.cudnn.allow_tf32 = True
    accelerator = Accelerator(cpu=device == "cpu")
    if accelerator.mixed_precision not in ("no", "bf16"):
        raise ValueError(f"mixed precision {accelerator.mixed_precision!r} is not supported: use bf16 or no.")
    return accelerator


def _channels_last(module):
    return module.to(memory_format=torch.channels_last)         # what convolutions like best, on a CPU and on a GPU


def _compile(model) -> None:
    """Compile the U-Net, or encoder and decoder; whatever the compiler cannot do runs eagerly.

    The decoder's last layer stays out: the adaptive weight asks for its gradient alone, and a compiled backward gives
    all or nothing. The buffers of a backward must outlive it, for the adaptive weight runs it before the loss does.
    """
    import torch._dynamo
    import torch._functorch.config

    torch._dynamo.config.suppress_errors = True
    torch._functorch.config.donated_buffer = False
    parts = [model.net] if hasattr(model, "net") else [model.encoder, model.decoder.middle, *model.decoder.levels]
    for part in parts:
        part.compile()


def _hardware(device) -> str:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    return f"{name}, torch {torch.__version__}"
