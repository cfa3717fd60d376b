"""What a run of each of the two stages trains, shows on the way, and leaves behind."""

import contextlib
import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from .. import tasks
from ..cond import to_device
from ..discriminator import PatchDiscriminator
from ..hub import load_autoencoder, save_autoencoder
from ..latent_diffusion import LatentDiffusion, latent_scale
from ..measure.metrics import psnr
from ..perceptual import PerceptualLoss
from ..scenes.data import scene_stream
from ..show.plotting import save_grid
from ..train import TrainState, seeded, train_autoencoder, train_diffusion
from . import build, runs
from .latents import cache_latents

VALIDATION_SEED = 1_000_000_007                                 # of noise and dropped conditions, the same every time


@dataclass(frozen=True)
class Setup:
    """Where a run is, what it computes on, and which models and which checkpoint it goes on from."""

    out: Path
    accelerator: object                         # accelerate.Accelerator
    workers: int
    seed: int
    checkpoint: Path | None
    autoencoder: str | None
    start_from: str | None


class FirstStageRun:
    """What a run of the first stage trains, shows on the way, and leaves behind."""

    def __init__(self, recipe, setup: Setup):
        self.recipe, self.setup = recipe, setup
        self.model, adversary = _channels_last(build.build_autoencoder(recipe)), None
        if recipe.loss.disc_weight:
            critic = PatchDiscriminator(recipe.model.in_channels, recipe.disc_channels, recipe.disc_layers)
            adversary = _state(_channels_last(critic), recipe, setup, lr=recipe.disc_lr or recipe.lr, betas=(0.5, 0.9),
                               weight_decay=0.0, ema_decay=None)
        self.state = _state(self.model, recipe, setup, adversary=adversary)
        if setup.checkpoint is not None:
            runs.restore(self.state, setup.checkpoint, setup.out)
        self.images = _validation(recipe, 32)["image"].to(self.state.device)

    def logs(self):
        """The loop: endless new scenes, from the step on that is reached."""
        r, setup, processes = self.recipe, self.setup, self.setup.accelerator.num_processes
        scenes = scene_stream(r.scenes, r.batch_size, self.state.step, setup.workers, self.state.rank, processes,
                              seed=setup.seed)
        perceptual = _channels_last(PerceptualLoss()) if r.loss.perceptual_weight else None
        return train_autoencoder(self.state, scenes, r.steps, perceptual=perceptual, warmup=r.warmup, decay=r.decay,
                                 **vars(r.loss))

    @torch.no_grad()
    def sample(self) -> dict:
        """Draw inputs above their reconstructions; returns what they measure."""
        self.model.eval()
        with _averaged(self.state):
            z = self.model.encode(self.images)
            # as the second stage's latents come back: quantised by the decoder's side
            x_rec = self.model.decode(z).clamp(-1, 1)
            measured = {"val_psnr": psnr(x_rec.cpu(), self.images.cpu()).mean().item()}
            if self.recipe.codebook_size is not None:
                codes = self.model.quantize(z)[1]
                measured["val_codes_used"] = codes.unique().numel() / self.recipe.codebook_size
        self.model.train()
        save_grid([self.images[:16], x_rec[:16]], _picture(self))
        return measured

    def export(self, card: dict) -> None:
        """Leave the model behind, with its averaged weights if there are any."""
        with _averaged(self.state):
            save_autoencoder(self.setup.out / "model", self.model, card=card)


class SecondStageRun:
    """What a run of the second stage trains, shows on the way, and leaves behind."""

    def __init__(self, recipe, setup: Setup):
        self.recipe, self.setup = recipe, setup
        first = load_autoencoder(setup.autoencoder, device=setup.accelerator.device)
        self.encoded = _encode(first, recipe, setup)
        some = (self.encoded[i:i + 64] for i in range(0, min(4096, len(self.encoded)), 64))
        self.model = build.build_diffusion(recipe, first, latent_scale(first, some))
        if setup.start_from is not None and setup.checkpoint is None:
            build.start_from(LatentDiffusion.from_pretrained(setup.start_from), self.model)
        _channels_last(self.model.net)
        self.state = _state(self.model, recipe, setup)
        if setup.checkpoint is not None:
            runs.restore(self.state, setup.checkpoint, setup.out)
        self.held_out = to_device(_validation(recipe, 256), self.state.device)

    def logs(self):
        """The loop: the cached latents, from the step on that is reached."""
        r, processes = self.recipe, self.setup.accelerator.num_processes
        latents = self.encoded.to(self.state.device).batches(r.batch_size, self.state.step, self.setup.seed,
                                                             self.state.rank, processes)
        return train_diffusion(self.state, latents, r.steps, warmup=r.warmup, decay=r.decay, t_power=r.t_power)

    @torch.no_grad()
    def sample(self) -> dict:
        """Draw pictures; returns the losses on scenes that no training sees."""
        self.model.eval()
        with _averaged(self.state), self.state.autocast():
            images = _pictures(self.model, self.recipe, self.held_out, self.setup.seed)
            losses = _validation_losses(self.model, self.recipe, self.held_out)
        self.model.train()
        save_grid(images, _picture(self), columns=8)
        return losses

    def export(self, card: dict) -> None:
        """Leave the model behind, with its averaged weights."""
        with _averaged(self.state):
            self.model.save_pretrained(self.setup.out / "model", card=card)


def _encode(first, recipe, setup: Setup):
    """The latents of the recipe's scenes, kept in the run's folder; encoded by one process, read by the others."""
    keys, make = build.cached_inputs(recipe.parts, first)
    data = (recipe.scenes, setup.seed) + (() if keys == ("caption", "class") and make is None else (recipe.parts,))
    scenes = scene_stream(recipe.scenes, 64, 0, setup.workers, 0, 1, seed=setup.seed)
    with setup.accelerator.main_process_first():
        return cache_latents(first, scenes, recipe.latents, keys, setup.out / "latents", _fingerprint(first, *data),
                             setup.accelerator.is_main_process, make)


def _picture(run) -> Path:
    return run.setup.out / "samples" / f"step-{run.state.step:08}.png"


def _pictures(ldm, recipe, held_out: dict, seed: int):
    """Eight pictures for the recipe's captions; if it knows more than words, eight true scenes and a row per task."""
    if set(recipe.parts) <= {"text", "language", "class"} and set(recipe.parts) & {"text", "language"}:
        return ldm.sample({"caption": list(recipe.sample_captions)}, seed=seed)
    scenes = {key: values[:8] for key, values in held_out.items()}
    rows = [tasks.sample_task(ldm, task, scenes, seed=seed) for task in tasks.possible(ldm) if task != "class"]
    return torch.cat([scenes["image"], *rows])


def _validation_losses(ldm, recipe, held_out: dict) -> dict:
    """The loss on scenes that no training sees: with all conditions; of many, with each alone and their mean."""
    def loss(batch):
        with seeded(VALIDATION_SEED):
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


def _state(model, recipe, setup: Setup, **other) -> TrainState:
    """The recipe's TrainState; `other` arguments stand in place of the recipe's."""
    accelerator, same = setup.accelerator, ("lr", "betas", "weight_decay", "grad_clip", "ema_decay")
    bf16 = accelerator.mixed_precision == "bf16" or (recipe.bf16 and accelerator.device.type == "cuda")
    return TrainState(model, **{**{name: getattr(recipe, name) for name in same}, "seed": setup.seed, **other},
                      bf16=bf16, accelerator=accelerator)


def _channels_last(module):
    return module.to(memory_format=torch.channels_last)         # what convolutions like best, on a CPU and on a GPU
