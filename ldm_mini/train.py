"""The two training loops of the paper: first the autoencoder, then diffusion on its latents.

A loop is a generator: it yields a `Log` after every optimizer (and EMA) step, so whoever runs it owns the plots, the
pauses and the end. All that a step changes is in the `TrainState`; with `seed` set, step k depends on (seed, k, rank)
and the state alone, and a run that was killed continues as if nothing had happened.
"""

import math

import torch
from torch import Tensor, nn

from .discriminator import PatchDiscriminator, adaptive_weight, hinge_d_loss, hinge_g_loss
from .ema import EMA
from .perceptual import PerceptualLoss


class Log:
    """What one step measured: `log.step` steps are done; `log.loss` and the other values read as floats.

    Values stay on the device until they are read, so an unread log costs a GPU no waiting.
    """

    def __init__(self, step: int, **values):
        self.step, self._values = step, values

    def __getattr__(self, name: str) -> float:
        if name.startswith("_") or name not in self._values:
            raise AttributeError(f"this log has no {name!r}; it has {['step', *self._values]}")
        return float(self._values[name])

    def floats(self) -> dict:
        """All values, as a JSON-ready dict."""
        return {"step": self.step, **{name: float(value) for name, value in self._values.items()}}

    def __str__(self) -> str:
        return "  ".join(f"{name} {value:.4g}" for name, value in self.floats().items())


class TrainState:
    """A model with all that changes while it trains: weights, optimizer, averages, step, and its adversary if any.

    model:       on its device already, unless an accelerator moves it.
    lr:          the peak learning rate; the loops warm it up and let it decay.
    betas:       of AdamW; (0.5, 0.9) for a GAN, as in the released first stages.
    grad_clip:   longest gradient allowed (norm over all parameters); None = any.
    ema_decay:   limit of the running average of the weights, `state.ema`; None = no average.
    seed:        makes step k draw its random numbers from (seed, k, rank); None = torch's generators as they are.
    bf16:        compute the forward pass in bfloat16 where that is safe (autocast); weights stay float32.
    accelerator: an `accelerate.Accelerator`, for several processes.
    """

    def __init__(self, model: nn.Module, lr: float = 1e-3, *, betas=(0.9, 0.999), weight_decay: float = 0.01,
                 grad_clip: float | None = 1.0, ema_decay: float | None = None, seed: int | None = None,
                 bf16: bool = False, accelerator=None):
        if lr <= 0:
            raise ValueError(f"TrainState: the learning rate must be positive, got {lr}.")
        self.model = model if accelerator is None else model.to(accelerator.device)
        self.lr, self.grad_clip, self.seed, self.bf16, self.accelerator = lr, grad_clip, seed, bf16, accelerator
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        if not self.parameters:
            raise ValueError("TrainState: the model has no trainable parameters; are they all frozen?")
        self.optimizer = torch.optim.AdamW(self.parameters, lr=lr, betas=betas, weight_decay=weight_decay,
                                           fused=self.device.type == "cuda")
        self.ema = None if ema_decay is None else EMA(model, ema_decay)
        self.adversary: TrainState | None = None
        self.step = 0

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.parameters[0].device

    @property
    def rank(self) -> int:
        """Number of this process, 0 when it is alone."""
        return 0 if self.accelerator is None else self.accelerator.process_index

    def wrap(self, objective: nn.Module) -> nn.Module:
        """The objective; with several processes, one that averages their gradients.

        DistributedDataParallel wraps a forward, so the objective must compute its whole loss in its own.
        """
        if self.accelerator is None or self.accelerator.num_processes == 1:
            return objective
        return self.accelerator.prepare_model(objective)

    def autocast(self):
        """Context of the forward pass: bfloat16 where asked for."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)

    def update(self, loss: Tensor, factor: float = 1.0) -> dict:
        """One optimizer step at learning rate lr * factor, then one EMA step. Returns lr and grad_norm for the log."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * factor
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        grad_norm = nn.utils.clip_grad_norm_(self.parameters, self.grad_clip or math.inf)
        self.optimizer.step()
        if self.ema is not None:
            self.ema.update(self.model)
        self.step += 1
        return {"lr": self.lr * factor, "grad_norm": grad_norm}

    def state_dict(self) -> dict:
        """All of it, as parts for `checkpoint.save_training_state`."""
        parts = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(),
                 "step": {"step": self.step}}
        if self.ema is not None:
            parts["ema"] = {"averages": self.ema.state_dict(), "updates": self.ema.updates}
        if self.adversary is not None:
            parts["adversary"] = self.adversary.state_dict()
        return parts

    def load_state_dict(self, parts: dict) -> None:
        """Continue from `state_dict()` of the same model, averages and adversary."""
        have = self.state_dict().keys()
        if parts.keys() != have:
            raise ValueError(f"this training state has the parts {sorted(parts)}, but the run needs {sorted(have)}: "
                             "it was saved by a run with other settings. (ema: the same ema_decay; adversary: "
                             "`add_adversary(state)` first.)")
        self.model.load_state_dict(parts["model"])
        self.optimizer.load_state_dict(parts["optimizer"])
        self.step = parts["step"]["step"]
        if self.ema is not None:
            self.ema.load_state_dict(**parts["ema"])
        if self.adversary is not None:
            self.adversary.load_state_dict(parts["adversary"])

    def reseed(self) -> None:
        """Before step k: random numbers from (seed, k, rank), whatever was drawn before."""
        if self.seed is not None:
            torch.manual_seed((self.seed * 1_000_003 + self.step) * 4099 + self.rank)


def lr_factor(step: int, steps: int, warmup: int = 0, decay: str = "cosine") -> float:
    """Learning rate of a step (from 0) as a part of its peak: linear warm-up, then "constant", or "cosine" to 0."""
    if decay not in ("cosine", "constant"):
        raise ValueError(f'decay must be "cosine" or "constant", got {decay!r}.')
    if step < warmup:
        return (step + 1) / warmup
    if decay == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


class AutoencoderObjective(nn.Module):
    """The first stage's loss (LDM eq. 25; VQGAN eq. 6, 7): image terms + bottleneck's term + lambda * adversarial term.

    Every term is a mean over pixels, as in the VQ models. `mse_weight` is ours: it steadies short trainings.
    """

    def __init__(self, autoencoder, perceptual=None, perceptual_weight=1.0, mse_weight=0.0, disc_weight=0.75):
        super().__init__()
        self.autoencoder, self.perceptual = autoencoder, perceptual
        self.perceptual_weight, self.mse_weight, self.disc_weight = perceptual_weight, mse_weight, disc_weight

    def forward(self, x: Tensor, look: bool = True, discriminator=None) -> tuple[Tensor, Tensor, dict]:
        """x (B,C,H,W) -> loss (), reconstructions (B,C,H,W) without gradient, terms for the log.

        look: with the perceptual term; discriminator: with the adversarial one.
        """
        x_rec, bottleneck_loss = self.autoencoder(x)
        x_rec = x_rec.float()
        l1 = (x - x_rec).abs().mean()
        terms = {"l1": l1, "bottleneck": bottleneck_loss}
        nll = l1 + self.mse_weight * (x - x_rec).square().mean()
        if look and self.perceptual is not None:
            terms["perceptual"] = self.perceptual(x, x_rec).mean()
            nll = nll + self.perceptual_weight * terms["perceptual"]
        loss = nll + bottleneck_loss
        if discriminator is not None:
            g_loss = hinge_g_loss(discriminator(x_rec))
            terms["lambda"] = adaptive_weight(nll, g_loss, self.autoencoder.last_layer)
            terms["g_loss"] = g_loss
            loss = loss + self.disc_weight * terms["lambda"] * g_loss
        return loss, x_rec.detach(), {name: value.detach() for name, value in terms.items()}


class DiscriminatorObjective(nn.Module):
    """The adversary's loss: real pictures above +1, reconstructions below -1 (hinge)."""

    def __init__(self, discriminator: nn.Module):
        super().__init__()
        self.discriminator = discriminator

    def forward(self, x: Tensor, x_rec: Tensor) -> Tensor:
        """x, x_rec (B,C,H,W) -> scalar"""
        return hinge_d_loss(self.discriminator(x), self.discriminator(x_rec))


def add_adversary(state: TrainState, discriminator: nn.Module | None = None, lr: float | None = None) -> TrainState:
    """Give a first stage its discriminator, with an optimizer of its own. `lr`: the autoencoder's, unless given."""
    if state.adversary is None:
        discriminator = PatchDiscriminator(state.model.config.in_channels) if discriminator is None else discriminator
        state.adversary = TrainState(discriminator.to(state.device), lr or state.lr, betas=(0.5, 0.9), weight_decay=0.0,
                                     grad_clip=state.grad_clip, bf16=state.bf16, accelerator=state.accelerator)
    return state.adversary


def train_autoencoder(state: TrainState, batches, steps: int, *, perceptual=None, perceptual_weight: float = 1.0,
                      perceptual_start: int = 0, mse_weight: float = 0.0, disc_weight: float = 0.75,
                      disc_start: int = 0, warmup: int = 0, decay: str = "constant"):
    """Train state.model, an Autoencoder, until `steps` steps are done; yields a Log after each.

    batches:           images (B,C,H,W) in [-1,1], or dicts or tuples that hold them.
    perceptual:        the distance to use; None = PerceptualLoss().
    perceptual_weight, disc_weight: 0 switches a term off; both off leave the plain L1 autoencoder.
    perceptual_start, disc_start:   the first step (from 0) with that term; both are costly on a CPU.
    """
    if perceptual_weight and perceptual is None:
        perceptual = PerceptualLoss()
    objective = AutoencoderObjective(state.model, perceptual if perceptual_weight else None, perceptual_weight,
                                     mse_weight, disc_weight).to(state.device)
    wrapped, adversary = state.wrap(objective), add_adversary(state) if disc_weight else None
    judge = adversary and adversary.wrap(DiscriminatorObjective(adversary.model))
    state.model.train()
    for batch in _until(state, batches, steps):
        x, factor = images_of(batch).to(state.device), lr_factor(state.step, steps, warmup, decay)
        adversarial = adversary is not None and state.step >= disc_start
        state.reseed()
        if adversary is not None:
            adversary.model.requires_grad_(False)               # it judges here, it does not learn
        with state.autocast():
            loss, x_rec, terms = wrapped(x, state.step >= perceptual_start, adversary.model if adversarial else None)
        measured = {"loss": loss.detach(), **terms, **state.update(loss, factor)}
        if adversarial:
            adversary.model.requires_grad_(True)
            with state.autocast():
                d_loss = judge(x, x_rec)
            adversary.update(d_loss, factor)
            measured["d_loss"] = d_loss.detach()
        yield Log(state.step, **measured)


def train_diffusion(state: TrainState, batches, steps: int, *, warmup: int = 0, decay: str = "constant",
                    t_power: float = 1.0):
    """Train state.model, a LatentDiffusion, until `steps` steps are done; yields a Log after each.

    batches: dicts with "latent" (B,c,h,w) from `cache_latents`, or "image", and whatever the conditioner reads.
    t_power: of `LatentDiffusion.loss`; above 1, high noise is practised more.
    """
    objective = state.wrap(state.model)                         # its forward is its loss
    state.model.train()
    for batch in _until(state, batches, steps):
        factor = lr_factor(state.step, steps, warmup, decay)
        state.reseed()
        with state.autocast():
            loss = objective(to_device(batch, state.device), t_power=t_power)
        measured = state.update(loss, factor)
        yield Log(state.step, loss=loss.detach(), **measured)


def images_of(batch) -> Tensor:
    """The images (B,C,H,W) of a batch: the tensor itself, a dict's "image", or the first of a tuple."""
    images = batch["image"] if isinstance(batch, dict) else batch[0] if isinstance(batch, (tuple, list)) else batch
    if not isinstance(images, Tensor) or images.ndim != 4:
        raise ValueError('a batch must be images (B,C,H,W), a dict with "image", or a tuple that starts with them; got '
                         + (f"{tuple(images.shape)}." if isinstance(images, Tensor) else f"{type(images).__name__}."))
    return images


def to_device(batch: dict, device) -> dict:
    """The batch with its tensors on `device`; captions stay as they are. Raises ValueError if it is no dict."""
    if not isinstance(batch, dict):
        raise ValueError('a batch must be a dict such as {"latent": ..., "caption": [...]}; got a '
                         f"{type(batch).__name__}. Images alone: {{\"image\": images}}.")
    return {key: v.to(device, non_blocking=True) if isinstance(v, Tensor) else v for key, v in batch.items()}


def _until(state: TrainState, batches, steps: int):
    """Batches, over and over if they can be, until the state has done `steps` steps."""
    while state.step < steps:
        before = state.step
        for batch in batches:
            yield batch
            if state.step >= steps:
                return
        if state.step == before:
            raise ValueError(f"the batches ended after step {state.step} of {steps}: give a list, a DataLoader or an "
                             "endless stream.")
