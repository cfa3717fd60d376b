"""Vector quantisation: every latent vector is replaced by its nearest code (VQ-VAE, arXiv 1711.00937; LDM sec. 3.1).

`argmin` has no gradient. Two things bridge it: the decoder's gradient is copied straight through to the encoder,
and two stop-gradient terms pull codes to vectors and vectors to codes.

Built in notebook 03.
"""

from contextlib import nullcontext

import torch
import torch.distributed as dist
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from .asked import at_least, between

DISTANCES_AT_ONCE = 2**24  # 64 MiB of float32: 16384 codes x 1024 vectors


class VectorQuantizer(nn.Module):
    """A codebook of `codebook_size` vectors of width `dim`, and what keeps its codes in use.

    commitment_weight: weight of |z - sg(e)|^2, which moves the ENCODER. (The released LDM code puts it on the
                       codebook term by mistake: same loss value, other gradients.)
    ema_decay:         None learns the codebook by gradient; else codes are running means of the vectors assigned to
                       them (VQ-VAE appendix A.1; 0.99 is usual) and get no gradient.
    restart_after:     a code that no vector has chosen for so many training steps is replaced by a random encoder
                       output (Jukebox, arXiv 2005.00341, sec. 3.1); None = never.
    init:              "data": the codes start as encoder outputs of the first training batch. "uniform": U(-1/K, 1/K),
                       as published; with unit-variance latents a few codes then win everything at first.

    Every random draw comes from torch's global generator and all state is in the state dict, so a resumed run repeats
    exactly. In distributed training all processes see the same statistics and keep the same codebook.
    """

    def __init__(self, codebook_size: int = 512, dim: int = 3, commitment_weight: float = 0.25,
                 ema_decay: float | None = None, restart_after: int | None = 100, init: str = "data"):
        super().__init__()
        at_least(1, "VectorQuantizer", codebook_size=codebook_size, dim=dim)
        at_least(0, "VectorQuantizer", commitment_weight=commitment_weight, restart_after=restart_after)
        between(0, 1, "VectorQuantizer", ema_decay=ema_decay)
        if restart_after == 0 or ema_decay in (0, 1):
            raise ValueError("VectorQuantizer: to switch restart_after or ema_decay off, give None, not 0 or 1.")
        if init not in ("data", "uniform"):
            raise ValueError(f'VectorQuantizer: init must be "data" or "uniform", got {init!r}.')
        self.codebook_size, self.dim, self.commitment_weight = codebook_size, dim, commitment_weight
        self.ema_decay, self.restart_after, self.init = ema_decay, restart_after, init
        codebook = torch.empty(codebook_size, dim).uniform_(-1 / codebook_size, 1 / codebook_size)
        if ema_decay is None:
            self.codebook = nn.Parameter(codebook)
        else:
            self.register_buffer("codebook", codebook)
            self.register_buffer("ema_count", torch.ones(codebook_size))      # vectors per code and step
            self.register_buffer("ema_sum", codebook.clone())                 # their sum
        self.register_buffer("initialised", torch.tensor(init == "uniform"))
        self.register_buffer("idle", torch.zeros(codebook_size, dtype=torch.int64))   # steps since last chosen
        self.register_buffer("usage", torch.zeros(codebook_size, dtype=torch.int64))  # times chosen; zero_() it at will

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`quantize(z)`; in training also starts the codebook, updates usage and EMA, and restarts dead codes."""
        vectors = rearrange(z.detach(), "b d h w -> (b h w) d")               # the channels of a pixel are one vector
        # the first training batch is the codebook's first guess
        if self.training and self.init == "data":
            self._replace(~self.initialised.expand(self.codebook_size), vectors)
            self.initialised.fill_(True)
        z_q, indices, loss = self.quantize(z)
        # codes move after they were used: the decoder gets those that the loss speaks of
        if self.training:
            self._update(vectors, indices.flatten())
        return z_q, indices, loss

    def quantize(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """z (B,D,h,w) -> z_q (B,D,h,w), indices (B,h,w) int64, loss (). Changes nothing.

        z_q has the value of the nearest code and passes its gradient on to z (straight-through).
        loss = |sg(z) - e|^2 + commitment_weight * |z - sg(e)|^2, means over all elements; under EMA the second alone.
        """
        # 1. the nearest code of each vector (VQ-VAE eq. 1, 2)
        vectors = rearrange(z.detach(), "b d h w -> (b h w) d")
        indices = self.nearest(vectors).view(z.shape[0], *z.shape[2:])
        full, codes = _float(z), _float(rearrange(F.embedding(indices, self.codebook), "b h w d -> b d h w"))
        # 2. the encoder commits itself to its codes (eq. 3, third term) ...
        loss = self.commitment_weight * F.mse_loss(full, codes.detach())
        if self.ema_decay is None:
            # ... and the codes follow the encoder (second term); running means do that without a gradient
            loss = loss + F.mse_loss(codes, full.detach())
        # 3. straight through (sec. 3.2): the value of the code, the gradient of z
        return (full + (codes - full).detach()).to(z.dtype), indices, loss

    @torch.no_grad()
    def nearest(self, vectors: Tensor) -> Tensor:
        """vectors (N,D) -> index (N,) of the code at the smallest squared distance |v|^2 + |e|^2 - 2 v.e."""
        dtype = torch.promote_types(_float(vectors).dtype, self.codebook.dtype)
        vectors, codebook = vectors.to(dtype), self.codebook.to(dtype)
        norms = codebook.square().sum(dim=1)                                  # (K,); |v|^2 is the same for every code
        some_rows = vectors.split(max(1, DISTANCES_AT_ONCE // self.codebook_size))
        # autocast, where a device has it, would round what decides
        device = vectors.device.type
        with torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext():
            return torch.cat([torch.addmm(norms, rows, codebook.T, alpha=-2).argmin(dim=1) for rows in some_rows])

    @torch.no_grad()
    def _update(self, vectors: Tensor, indices: Tensor):
        """After a training step: vectors (N,D) chose indices (N,)."""
        # 1. who was chosen, and for how long each has not been
        chosen = torch.zeros_like(self.usage).index_add_(0, indices, torch.ones_like(indices))      # (K,)
        if _many_processes():
            dist.all_reduce(chosen)
        self.usage += chosen
        self.idle.copy_(torch.where(chosen > 0, 0, self.idle + 1))
        # 2. codes as running means, if they learn that way (VQ-VAE app. A.1)
        if self.ema_decay is not None:
            self._average(vectors, indices, chosen)
        # 3. a code that stays alone starts again somewhere among the vectors
        if self.restart_after is not None:
            self._replace(self.idle >= self.restart_after, vectors)

    def _average(self, vectors: Tensor, indices: Tensor, chosen: Tensor):
        """Move every code to the running mean of its vectors."""
        sums = torch.zeros_like(self.ema_sum).index_add_(0, indices, vectors.to(self.ema_sum.dtype))      # (K,D)
        if _many_processes():
            dist.all_reduce(sums)
        # one NaN would stay in a running mean for good: that code waits for the next batch
        sound = sums.isfinite().all(dim=1)
        self.ema_count.lerp_(torch.where(sound, chosen.to(self.ema_count.dtype), self.ema_count), 1 - self.ema_decay)
        self.ema_sum.lerp_(torch.where(sound[:, None], sums, self.ema_sum), 1 - self.ema_decay)
        # sum over count is the mean; Laplace smoothing keeps codes finite that nothing chooses
        total = self.ema_count.sum()
        count = (self.ema_count + 1e-5) / (total + self.codebook_size * 1e-5) * total
        self.codebook.copy_(self.ema_sum / count[:, None])

    @torch.no_grad()
    def _replace(self, where: Tensor, vectors: Tensor):
        """Codes where (K,) is True become random encoder outputs. No branch on a value: the device never waits."""
        repeats = -(-self.codebook_size // len(vectors))                      # few vectors: some are taken repeatedly
        order = torch.cat([torch.randperm(len(vectors), device=vectors.device) for _ in range(repeats)])
        candidates = vectors[order[:self.codebook_size]].to(self.codebook.dtype)
        if _many_processes():
            dist.broadcast(candidates, src=0)                                 # each had drawn its own
        where = where & candidates.isfinite().all(dim=1)
        self.codebook.copy_(torch.where(where[:, None], candidates, self.codebook))
        self.idle.masked_fill_(where, 0)
        # a running mean would go back to where the old code was: forget it
        if self.ema_decay is not None:
            self.ema_count.masked_fill_(where, 1.0)
            self.ema_sum.copy_(torch.where(where[:, None], candidates, self.ema_sum))

    def perplexity(self, indices: Tensor | None = None) -> float:
        """exp(entropy) of the code frequencies: K if all codes are used alike, 1 if only one is.

        Of the given indices, or of all training batches since `usage` was last zeroed. NaN if there were none.
        """
        counts = self._counts(indices).double()
        return torch.special.entr(counts / counts.sum()).sum().exp().item()

    def used_fraction(self, indices: Tensor | None = None) -> float:
        """Fraction of the codes that occur at least once, in the given indices or, as above, in training."""
        return (self._counts(indices) > 0).double().mean().item()

    def _counts(self, indices: Tensor | None) -> Tensor:
        if indices is None:
            return self.usage.cpu()
        if not indices.numel():
            raise ValueError("there are no indices: nothing was measured.")
        indices = indices.cpu() if indices.is_floating_point() else indices.cpu().long()
        if indices.is_floating_point() or indices.min() < 0 or indices.max() >= self.codebook_size:
            raise ValueError(f"indices are whole numbers below {self.codebook_size}, got {indices.dtype} from "
                             f"{indices.min()} to {indices.max()}.")
        return torch.bincount(indices.flatten(), minlength=self.codebook_size)


class VQBottleneck(nn.Module):
    """The bottleneck contract with a quantiser inside: stage 2 models the vectors before quantisation, and the decoder
    quantises whatever it is given ("the quantization layer is absorbed by the decoder", LDM sec. 3.1)."""

    moments_per_channel = 1

    def __init__(self, quantizer: VectorQuantizer):
        super().__init__()
        if not hasattr(quantizer, "quantize"):
            raise ValueError(f"VQBottleneck: its quantizer is a VectorQuantizer; got a {type(quantizer).__name__}.")
        self.quantizer, self.latent_channels = quantizer, quantizer.dim

    def forward(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """h (B,C,h,w) -> quantised z (B,C,h,w), loss ()"""
        z_q, _, loss = self.quantizer(h)
        return z_q, loss

    def latent(self, h: Tensor, sample: bool = False, generator: torch.Generator | None = None) -> Tensor:
        """h (B,C,h,w) -> itself; nothing is random here."""
        return h

    def to_decoder(self, z: Tensor) -> Tensor:
        """z (B,C,h,w) -> nearest codes (B,C,h,w)"""
        return self.quantizer.quantize(z)[0]


def _float(x: Tensor) -> Tensor:
    """At least float32: in half precision, near codes are indistinguishable."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _many_processes() -> bool:
    return dist.is_available() and dist.is_initialized()
