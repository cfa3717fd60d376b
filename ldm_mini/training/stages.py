"""What a run of each of the two stages trains, shows on the way, and leaves behind."""

import contextlib
import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from .. import hub, tasks
from ..cond import to_device
from ..diffusion import diffusion_loss, draw_noise
from ..discriminator import PatchDiscriminator
from ..latent_diffusion import LatentDiffusion, latent_scale
from ..measure.metrics import psnr
from ..perceptual import PerceptualLoss
from ..scenes.data import scene_stream
from ..show.plotting import save_grid, texts_under
from ..train import TrainState, seeded, train_autoencoder, train_diffusion
from . import build, runs
from .latents import LatentCache, cache_latents, encode_frames
from .reading import facts_stream, train_reader

VALIDATION_SEED = 1_000_000_007                                 # of noise and dropped conditions, the same every time


@dataclass
class Run:
    """Where a run is, what it computes on, and which models and which checkpoint it goes on from.

    Each stage is built by `build` (self.model, its TrainState self.state), which writes nothing and raises ValueError
    for what cannot be used; gets by `begin` what it learns from; trains by the steps of `logs`, tells by `sample` how
    far it is, and leaves its model behind by `export`.
    """

    recipe: object                              # AutoencoderRecipe or DiffusionRecipe
    out: Path
    accelerator: object                         # accelerate.Accelerator
    workers: int
    seed: int
    checkpoint: Path | None
    autoencoder: str | None
    start_from: str | None
    text: str | None
    bf16: bool

    def __post_init__(self):
        self.build()

    def begin(self) -> None:
        """What it is tried on; and all as it was at the checkpoint, if there is one."""
        self.prepare()
        if self.checkpoint is not None:
            runs.restore(self.state, self.checkpoint, self.out)

    def train_state(self, model, **other) -> TrainState:
        """The recipe's TrainState; `other` arguments stand in place of the recipe's."""
        return build.train_state(self.recipe, model, self.seed, bf16=self.bf16, accelerator=self.accelerator, **other)

    def validation(self, n: int) -> dict:
        """One batch of n scenes that no training sees, on the device."""
        scenes = scene_stream(replace(self.recipe.scenes, split="val"), n, 0, 0, 0, 1, seed=0)
        return to_device(next(iter(scenes)), self.state.device)

    @contextlib.contextmanager
    def averaged(self):
        """The model as it will be used: in evaluation mode, with the averaged weights if the run keeps them."""
        self.model.eval()
        with contextlib.nullcontext() if self.state.ema is None else self.state.ema.applied(self.model):
            yield
        self.model.train()

    def show(self, images, **options) -> None:
        """Add a grid of pictures to those of the run; what cannot be shown is no reason to stop."""
        try:
            save_grid(images, self.out / "samples" / f"step-{self.state.step:08}.png", **options)
        except ValueError as error:
            self.accelerator.print(f"step {self.state.step}: {error}")

    def export(self, card: dict) -> None:
        """Leave the model behind, with its averaged weights if there are any."""
        with self.averaged():
            hub.save(self.out / "model", self.result(), card=card)

    def result(self):
        """What is left behind: the model, as it is now."""
        return self.model


class FirstStageRun(Run):
    """A run of the first stage."""

    def build(self) -> None:
        """The autoencoder and, if its loss wants one, a critic."""
        r, adversary = self.recipe, None
        self.model = _channels_last(build.build_autoencoder(r))
        if self.start_from is not None and self.checkpoint is None:
            build.start_first_stage(hub.load_autoencoder(self.start_from), self.model)
        if r.loss.disc_weight:
            critic = _channels_last(PatchDiscriminator(r.model.in_channels, r.disc_channels, r.disc_layers))
            adversary = self.train_state(critic, lr=r.disc_lr or r.lr, betas=(0.5, 0.9), weight_decay=0.0,
                                         ema_decay=None, muon_lr=None)
        self.state = self.train_state(self.model, adversary=adversary)

    def prepare(self) -> None:
        """Pictures to be tried on."""
        self.images = self.validation(32)["image"]

    def logs(self):
        """The loop: endless new scenes, from the step on that is reached."""
        r = self.recipe
        scenes = scene_stream(r.scenes, r.batch_size, self.state.step, self.workers, self.state.rank,
                              self.accelerator.num_processes, seed=self.seed)
        perceptual = _channels_last(PerceptualLoss()) if r.loss.perceptual_weight else None
        return train_autoencoder(self.state, scenes, r.steps, perceptual=perceptual, warmup=r.warmup, decay=r.decay,
                                 **vars(r.loss))

    @torch.no_grad()
    def sample(self) -> dict:
        """Draw inputs above their reconstructions; returns what they measure."""
        with self.averaged():
            z = self.model.encode(self.images)
            # as the second stage's latents come back: quantised by the decoder's side
            x_rec = self.model.decode(z).clamp(-1, 1)
            measured = {"val_psnr": psnr(x_rec.cpu(), self.images.cpu()).mean().item()}
            if self.recipe.codebook_size is not None:
                codes = self.model.quantize(z)[1]
                measured["val_codes_used"] = codes.unique().numel() / self.recipe.codebook_size
        self.show([self.images[:16], x_rec[:16]])
        return measured

    def result(self):
        """The model; a KL first stage leaves with latents of mean 0 and variance 1 in each channel."""
        if self.recipe.codebook_size is None:
            build.standardize(self.recipe, self.model, self.seed)
        return self.model


class SecondStageRun(Run):
    """A run of the second stage."""

    def build(self) -> None:
        """A LatentDiffusion on the first stage."""
        if self.recipe.latents < (together := self.recipe.batch_size * self.accelerator.num_processes):
            raise ValueError(f"--latents {self.recipe.latents} do not fill one batch of {together}: give more.")
        self.model = self.fresh(hub.load_autoencoder(self.autoencoder, device=self.accelerator.device))
        side, halved = self.model.latent_shape(self.recipe.scenes.size)[-1], self.model.net.config.min_factor
        if side % halved:
            raise ValueError(f"--autoencoder: its latents of {side} x {side} do not fit this recipe's network, which "
                             f"needs multiples of {halved}: take a first stage of its own recipe.")
        if self.checkpoint is None:
            self.start()
        self.state = self.train_state(self.model)

    def fresh(self, first) -> LatentDiffusion:
        """The recipe's model with fresh weights."""
        model = build.build_diffusion(self.recipe, first)
        _channels_last(model.net)
        return model

    def start(self) -> None:
        """What the model begins with, of trained ones."""
        new = []
        if self.start_from is not None:
            new = build.start_from(LatentDiffusion.from_pretrained(self.start_from), self.model)
        if self.text is not None:
            build.give_text(hub.load(self.text, "TextTransformer"), self.model)
            new = build.all_but_words(self.model) if self.start_from is None else new
        # when all is usable, and with the words that will be trained
        build.begin_as_words(self.model, new, self.recipe.scenes)

    def prepare(self) -> None:
        """Cached latents and their scale, and scenes to be tried on."""
        first = self.model.autoencoder
        with seeded(self.seed):
            self.encoded = self.encode(first)
        some = (self.encoded[i:i + 64] for i in range(0, min(4096, len(self.encoded)), 64))
        self.model.scale_factor.fill_(latent_scale(first, some))
        self.held_out = self.validation(min(256, self.recipe.latents))      # a small try is judged by few scenes
        # as the latents that it learns from: a KL posterior's samples, or its modes
        with torch.no_grad(), seeded(VALIDATION_SEED):
            self.held_out["latent"] = encode_frames(first, self.held_out["image"], self.recipe.posterior)

    def encode(self, first):
        """The latents of the recipe's scenes, kept in the run's folder; encoded by one process, read by the others."""
        r, accelerator = self.recipe, self.accelerator
        keys, make = build.cached_inputs(r.parts, first)
        easy = 0 if r.easy is None else round(r.p_easy * r.latents)
        with accelerator.main_process_first():
            caches = [cache_latents(first, scene_stream(scenes, 64, 0, self.workers, 0, 1, seed=self.seed), n, keys,
                                    self.out / folder, _fingerprint(first, scenes, self.seed, r.parts, r.posterior),
                                    accelerator.is_main_process, make, r.posterior)
                      for scenes, n, folder in ((r.scenes, r.latents - easy, "latents"), (r.easy, easy, "easy")) if n]
        return LatentCache.join(caches)

    def logs(self):
        """The loop: the cached latents, from the step on that is reached."""
        r, state = self.recipe, self.state
        latents = self.encoded.to(state.device).batches(r.batch_size, state.step, self.seed, state.rank,
                                                        self.accelerator.num_processes)
        return train_diffusion(state, latents, r.steps, warmup=r.warmup, decay=r.decay, t_power=r.t_power)

    @torch.no_grad()
    def sample(self) -> dict:
        """Draw pictures; returns the losses on scenes that no training sees."""
        with self.averaged(), self.state.autocast():
            (images, texts), losses = self.pictures(), self.losses()
        self.show(images, columns=8, texts=texts)
        return losses

    def pictures(self):
        """Eight for the recipe's captions; if it knows more than words, eight true scenes and a row per task. And what
        is written under each."""
        parts, ldm = set(self.recipe.parts), self.model
        if parts <= {"text", "language", "class"} and parts & {"text", "language"}:
            said = list(self.recipe.sample_captions)
            return ldm.sample({"caption": said}, seed=self.seed), said
        scenes = {key: values[:8] for key, values in self.held_out.items()}
        rows = {"real": scenes["image"], **{task: tasks.sample_task(ldm, task, scenes, seed=self.seed)
                                            for task in tasks.possible(ldm) if task != "class"}}
        return torch.cat(list(rows.values())), texts_under(rows, {"text": scenes.get("caption")})

    def losses(self) -> dict:
        """On scenes that no training sees: by noise level, and how much a caption helps; of many tasks, each alone."""
        measured, some = {}, {key: values[:64] for key, values in self.held_out.items()}    # a task: time is short
        if set(self.recipe.parts) & {"text", "language"}:
            measured = self.heard()
        if len(self.recipe.parts) <= 2:
            return {"val_loss": self.loss_of(self.held_out), **measured}
        scenes = {key: some[key] for key in ("image", "latent")}
        losses = {f"val_{task}": self.loss_of({**scenes, **tasks.inputs(task, some, self.model)})
                  for task in tasks.possible(self.model)}
        return {"val_loss": sum(losses.values()) / len(losses), **losses, **measured}

    def loss_of(self, batch: dict) -> float:
        """The loss of a batch, with the same noise every time."""
        with seeded(VALIDATION_SEED):
            return self.model.loss(batch).item()

    def heard(self) -> dict:
        """With captions alone: the loss by quarters of the noise levels, the low first; and the caption gap, the loss
        with another scene's caption minus that with the right one. It tells first whether a model listens."""
        model, captions = self.model, self.held_out["caption"]
        z0 = self.held_out["latent"] * model.scale_factor
        # every level once, and the same noise every time
        places = torch.randperm(len(z0), generator=torch.Generator().manual_seed(0))
        t = ((places + 0.5) / len(z0) * model.schedule.num_steps).long().to(z0.device)
        eps = draw_noise(z0, torch.Generator().manual_seed(1))

        def losses(captions):
            parts = []
            for i in range(0, len(captions), 64):
                some = slice(i, i + 64)
                cond = model.conditioner.encode({"caption": captions[some], "image": self.held_out["image"][some]})
                parts.append(diffusion_loss(model.net, model.schedule, z0[some], cond, model.prediction, t[some],
                                            eps[some], reduce=False))
            return torch.cat(parts)

        right, wrong = losses(captions), losses(captions[1:] + captions[:1])
        quarter = t * 4 // model.schedule.num_steps
        return {**{f"val_level{i + 1}": right[quarter == i].mean().item() for i in range(4)},
                "val_caption_gap": (wrong - right).mean().item()}


class TextRun(Run):
    """A run in which a text transformer learns to read; its `model` is the transformer alone."""

    def build(self) -> None:
        """The transformer and its questions."""
        self.model = build.build_reader(self.recipe)
        self.state = self.train_state(self.model)

    def prepare(self) -> None:
        """New scenes to be tried on."""
        self.held_out = next(facts_stream(replace(self.recipe.scenes, split="val"), 256))

    def logs(self):
        """The loop: endless new captions, from the step on that is reached."""
        r = self.recipe
        facts = facts_stream(r.scenes, r.batch_size, self.state.step, self.seed)
        return train_reader(self.state, facts, r.steps, warmup=r.warmup, decay=r.decay)

    @torch.no_grad()
    def sample(self) -> dict:
        """How often it reads a new caption rightly."""
        with self.averaged():
            loss, right = self.model.loss(self.held_out)
        return {"val_loss": loss.item(), **{f"val_{name}": value.item() for name, value in right.items()}}

    def result(self):
        """The transformer; its questions have done their work."""
        return self.model.text_transformer


def _fingerprint(model, *settings) -> str:
    """A hash of a model's weights and some settings."""
    digest = hashlib.sha256(repr(settings).encode())
    for value in model.state_dict().values():
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _channels_last(module):
    return module.to(memory_format=torch.channels_last)         # what convolutions like best, on a CPU and on a GPU
