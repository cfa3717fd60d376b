"""The two training loops of the paper: first the autoencoder, then diffusion on its latents.

A loop is a generator: it yields a `Log` after every optimizer (and EMA) step, so whoever runs it owns the plots, the
pauses and the end. All that a step changes is in the `TrainState`; with `seed` set, step k depends on (seed, k, rank)
and the state alone, and a run that was killed continues as if nothing had happened.

The step with two optimizers is built in notebook 05, the second stage in notebook 09.
"""

import math
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from inspect import signature

import torch
from torch import Tensor, nn

from .discriminator import PatchDiscriminator, adaptive_weight, hinge_d_loss, hinge_g_loss
from .ema import EMA
from .files import FileError
from .muon import Muon, hidden_weights
from .perceptual import PerceptualLoss

MUON_BETAS = (0.95, 0.0)        # its momentum; there is no second average


class Log:
    """What a step measured: `log.step` steps are done; `log.loss` and others, on the device until read, are floats."""

    def __init__(self, step: int, **values):
        self.step, self._values = step, values

    def __getattr__(self, name: str) -> float:
        values = vars(self).get("_values", {})
        if name in values:
            return float(values[name])
        raise AttributeError(f"this log has no {name!r}; it has {['step', *values]}")

    def floats(self) -> dict:
        """All values, as a JSON-ready dict."""
        return {"step": self.step, **{name: float(value) for name, value in self._values.items()}}

    def __str__(self) -> str:
        return "  ".join(f"{name} {value:.4g}" for name, value in self.floats().items())


class TrainState:
    """A model with all that changes while it trains: weights, optimizer, averages, step, and its adversary's.

    lr:          the peak learning rate; the loops warm it up and let it decay.
    betas:       of AdamW; (0.5, 0.9) for a GAN, as in the released first stages.
    grad_clip:   longest gradient allowed (norm over all parameters); None = any.
    ema_decay:   limit of the running average of the weights, `state.ema`; None = no average.
    seed:        makes step k draw its random numbers from (seed, k, rank); None = torch's generators as they are.
    bf16:        compute the forward pass in bfloat16 where that is safe (autocast), and Muon's matrices; weights stay
                 float32.
    accelerator: an `accelerate.Accelerator`, for several processes; it moves the model to its device.
    adversary:   of a first stage: the TrainState of its critic, which has a learning rate and an optimizer of its own.
    muon_lr:     the peak learning rate of hidden weights, which then are Muon's (`muon`); None = AdamW for all.
    slower:      {beginning of parameter names: factor}: what learns at a part of both rates, say trained words.
    """

    def __init__(self, model: nn.Module, lr: float = 1e-3, *, betas=(0.9, 0.999), weight_decay: float = 0.01,
                 grad_clip: float | None = 1.0, ema_decay: float | None = None, seed: int | None = None,
                 bf16: bool = False, accelerator=None, adversary: "TrainState | None" = None,
                 muon_lr: float | None = None, slower: dict | None = None):
        for name, value, most in (("grad_clip", grad_clip, math.inf), ("muon_lr", muon_lr, math.inf),
                                  ("ema_decay", ema_decay, 1)):
            if value is not None and not 0 < value < most:
                raise ValueError(f"TrainState: {name} must be None or from 0 to {most}, both excluded; got {value}.")
        if not isinstance(model, nn.Module):
            raise ValueError(f"TrainState: it trains a network, an nn.Module; got a {type(model).__name__}.")
        self.model = model if accelerator is None else model.to(accelerator.device)
        self.device = next(model.parameters()).device
        self.rank = 0 if accelerator is None else accelerator.process_index
        self.lr, self.grad_clip, self.seed, self.bf16, self.accelerator = lr, grad_clip, seed, bf16, accelerator
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        kind = torch.optim.AdamW if muon_lr is None else partial(Muon, bf16=bf16)
        self.optimizer = kind(_groups(model, lr, muon_lr, slower or {}), lr=lr, betas=betas, weight_decay=weight_decay,
                              fused=self.device.type == "cuda")
        self.ema = None if ema_decay is None else EMA(model, ema_decay)
        self.adversary, self.step = adversary, 0

    def wrap(self, model: nn.Module) -> nn.Module:
        """What to call, once before each backward pass; with several processes, its gradients are their average."""
        # it hooks into one forward and the backward after it, hence "once"
        several = self.accelerator is not None and self.accelerator.num_processes > 1
        return self.accelerator.prepare_model(model) if several else model

    def autocast(self):
        """Context of the forward pass: bfloat16 where asked for."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)

    def update(self, loss: Tensor, factor: float = 1.0) -> dict:
        """One optimizer step at learning rate lr * factor, then one EMA step. Returns lr and grad_norm for the log."""
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * factor
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        # measured always: a norm that grows is the first sign of a run that will fail
        grad_norm = nn.utils.clip_grad_norm_(self.parameters, self.grad_clip or math.inf)
        self.optimizer.step()
        if self.ema is not None:
            self.ema.update(self.model)
        self.step += 1
        return {"lr": self.lr * factor, "grad_norm": grad_norm}

    def state_dict(self) -> dict:
        """All of it, in parts, for `training.state`."""
        parts = {"model": self.model, "optimizer": self.optimizer, "ema": self.ema, "adversary": self.adversary}
        return {"step": self.step, **{name: part.state_dict() for name, part in parts.items() if part is not None}}

    def load_state_dict(self, parts: dict) -> None:
        """Continue from `state_dict()` of the same model, averages and adversary. Raises FileError otherwise."""
        if other := sorted(parts.keys() ^ self.state_dict().keys()):
            raise FileError(f"this training state was made for another model: only one of them has {', '.join(other)}.")
        self.step = parts["step"]
        self.model.load_state_dict(parts["model"])
        self.optimizer.load_state_dict(parts["optimizer"])
        # there was one average a step
        if self.ema is not None:
            self.ema.load_state_dict(parts["ema"], updates=self.step)
        if self.adversary is not None:
            self.adversary.load_state_dict(parts["adversary"])

    def reseed(self) -> None:
        """Before step k: random numbers from (seed, k, rank), whatever was drawn before."""
        if self.seed is not None:
            torch.manual_seed((self.seed * 1_000_003 + self.step) * 4099 + self.rank)


def _groups(model: nn.Module, lr: float, muon_lr: float | None, slower: dict) -> list[dict]:
    """The optimizer's parameter groups, by who updates them and how fast; "peak" is a group's highest rate."""
    hidden = set() if muon_lr is None else {id(p) for p in hidden_weights(model)}
    groups = {}
    for name, p in model.named_parameters():
        if p.requires_grad:
            factor = next((f for start, f in slower.items() if name.startswith(start)), 1.0)
            groups.setdefault((id(p) in hidden, factor), []).append(p)
    return [{"params": params, "lr": (muon_lr if muon else lr) * factor, "peak": (muon_lr if muon else lr) * factor,
             **({"muon": True, "betas": MUON_BETAS} if muon else {})} for (muon, factor), params in groups.items()]


@contextmanager
def seeded(seed: int):
    """`with seeded(0): ...` draws torch's random numbers from the seed; outside, they go on as if nothing was drawn."""
    # on the CPU and on every GPU, whichever the model inside uses
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        yield


def lr_factor(step: int, steps: int, warmup: int = 0, decay: str = "cosine") -> float:
    """Learning rate of a step (from 0) as a part of its peak: linear warm-up, then "constant", or "cosine" to 0."""
    cosine = 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
    after = {"cosine": cosine, "constant": 1.0}[decay]
    return (step + 1) / warmup if step < warmup else after


@dataclass(frozen=True)
class FirstStageLoss:
    """How much each term of the first stage's loss weighs, and the step (from 0) that the two costly ones wait for.

    A weight of 0 switches its term off; without perceptual and adversarial term the plain L1 autoencoder is left.
    """

    perceptual_weight: float = 1.0
    perceptual_start: int = 0
    mse_weight: float = 0.0                     # ours: it steadies short trainings
    disc_weight: float = 0.75                   # vq-f4's
    disc_start: int = 0


def first_stage_loss(x: Tensor, x_rec: Tensor, bottleneck_loss: Tensor, weights: FirstStageLoss = FirstStageLoss(),
                     perceptual=None, critic=None, last_layer: Tensor | None = None) -> tuple[Tensor, dict]:
    """x, x_rec (B,C,H,W), loss of the bottleneck () -> loss (), its terms for the log (LDM eq. 25; VQGAN eq. 6, 7).

    Every term is a mean over pixels, as in the VQ models. perceptual(x, x_rec) -> (B,) and critic(x_rec) -> logits:
    None = without that term. last_layer: the decoder's last weight, where the critic's pull is measured.
    """
    if x_rec.shape != x.shape:
        raise ValueError(f"the autoencoder returned {tuple(x_rec.shape)} for pictures {tuple(x.shape)}.")
    # the picture comes back, pixel by pixel ...
    l1 = (x - x_rec).abs().mean()
    terms = {"l1": l1, "bottleneck": bottleneck_loss}
    nll = l1 + weights.mse_weight * (x - x_rec).square().mean()
    # ... and in the features of a trained network, which sees a blur where pixels hardly do
    if perceptual is not None:
        terms["perceptual"] = perceptual(x, x_rec).mean()
        nll = nll + weights.perceptual_weight * terms["perceptual"]
    loss = nll + bottleneck_loss
    # ... and the critic should take it for real. Alone that would be free to draw anything: lambda lets it pull at the
    # decoder just as hard as the reconstruction does
    if critic is not None:
        terms["g_loss"] = hinge_g_loss(critic(x_rec))
        terms["lambda"] = adaptive_weight(nll, terms["g_loss"], last_layer)
        loss = loss + weights.disc_weight * terms["lambda"] * terms["g_loss"]
    return loss, {name: value.detach() for name, value in terms.items()}


class DiscriminatorObjective(nn.Module):
    """The adversary's loss: real pictures above +1, reconstructions below -1. One call for both, as `wrap` wants it."""

    def __init__(self, discriminator: nn.Module):
        super().__init__()
        self.discriminator = discriminator

    def forward(self, x: Tensor, x_rec: Tensor) -> Tensor:
        """x, x_rec (B,C,H,W) -> scalar"""
        return hinge_d_loss(self.discriminator(x), self.discriminator(x_rec))


def train_autoencoder(state: TrainState, batches, steps: int, *, perceptual=None, warmup: int = 0,
                      decay: str = "constant", **weights):
    """Train state.model, an Autoencoder, until `steps` steps are done; yields a Log after each.

    batches:    images (B,C,H,W) in [-1,1], or dicts or tuples that hold them.
    perceptual: the distance to use; None = PerceptualLoss().
    weights:    of the loss: the fields of FirstStageLoss, for instance disc_start=2000.
    If the state has no adversary and the loss wants one, it gets LDM's, at the same learning rate.
    """
    weights = FirstStageLoss(**weights)
    _check_model(state, lambda model: hasattr(model, "last_layer"), "an Autoencoder")
    if weights.disc_weight and state.adversary is None:
        critic = PatchDiscriminator(state.model.config.in_channels).to(state.device)
        state.adversary = TrainState(critic, state.lr, betas=(0.5, 0.9), weight_decay=0.0, grad_clip=state.grad_clip,
                                     bf16=state.bf16, accelerator=state.accelerator)
    adversary = state.adversary if weights.disc_weight else None
    if weights.perceptual_weight:
        perceptual = (PerceptualLoss() if perceptual is None else perceptual).to(state.device)
    if adversary is not None:
        objective = adversary.wrap(DiscriminatorObjective(adversary.model))
    model = state.wrap(state.model)
    state.model.train()
    for batch in _until(state, batches, steps):
        x, factor = images_of(batch).to(state.device), lr_factor(state.step, steps, warmup, decay)
        # the costly terms may wait until there is something to sharpen
        looks = weights.perceptual_weight and state.step >= weights.perceptual_start
        judged = adversary is not None and state.step >= weights.disc_start
        state.reseed()
        # the autoencoder's turn; the critic judges here, it does not learn
        judge = adversary.model.requires_grad_(False) if judged else None
        with state.autocast():
            x_rec, bottleneck_loss = model(x)
            x_rec = x_rec.float()
            loss, terms = first_stage_loss(x, x_rec, bottleneck_loss, weights, perceptual if looks else None, judge,
                                           state.model.last_layer)
        measured = {"loss": loss.detach(), **terms, **state.update(loss, factor)}
        # the critic's turn, on the same pictures
        if judged:
            adversary.model.requires_grad_(True)
            with state.autocast():
                d_loss = objective(x, x_rec.detach())
            adversary.update(d_loss, factor)
            measured["d_loss"] = d_loss.detach()
        yield Log(state.step, **measured)


def train_diffusion(state: TrainState, batches, steps: int, *, warmup: int = 0, decay: str = "constant",
                    t_power: float = 1.0):
    """Train state.model, a LatentDiffusion, until `steps` steps are done; yields a Log after each.

    batches: dicts with "latent" (B,c,h,w) from `cache_latents`, or "image", and whatever the conditioner reads.
    t_power: of `LatentDiffusion.loss`; above 1, high noise is practised more.
    """
    _check_model(state, lambda model: signature(model.forward).bind({}, t_power=t_power), "a LatentDiffusion")
    objective = state.wrap(state.model)                         # its forward is its loss
    state.model.train()
    for batch in _until(state, batches, steps):
        factor = lr_factor(state.step, steps, warmup, decay)
        state.reseed()
        # latent, noise level, noise, dropped conditions: all in the loss (LDM eq. 3)
        with state.autocast():
            loss = objective(batch, t_power=t_power)
        measured = state.update(loss, factor)
        yield Log(state.step, loss=loss.detach(), **measured)


def images_of(batch) -> Tensor:
    """The images (B,C,H,W) of a batch: the tensor itself, a dict's "image", or the first of a tuple."""
    images = batch["image"] if isinstance(batch, dict) else batch[0] if isinstance(batch, (tuple, list)) else batch
    if images.ndim != 4:
        raise ValueError(f"a batch must be images (B,C,H,W), or a dict or tuple of them; got {tuple(images.shape)}.")
    return images


def _check_model(state: TrainState, fits, what: str) -> None:
    """Raise ValueError for a state of a model that this loop does not train; it may well be one of your own."""
    model = getattr(state, "model", None)
    with suppress(AttributeError, TypeError):
        if fits(model):
            return
    raise ValueError(f"this loop trains the TrainState of {what}; got a {type(state).__name__}"
                     + (f" of a {type(model).__name__}." if isinstance(state, TrainState) else "."))


def _until(state: TrainState, batches, steps: int):
    """Batches, over and over if they can be, until the state has done `steps` steps."""
    while state.step < steps:
        before = state.step
        for batch in batches:
            yield batch
            if state.step >= steps:
                return
        if state.step == before:
            raise ValueError(f"the batches ended after step {state.step} of {steps}: give a list or a DataLoader.")
