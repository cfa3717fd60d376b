"""Vector quantisation: every latent vector is replaced by its nearest code (VQ-VAE, arXiv 1711.00937; LDM sec. 3.1).

`argmin` has no gradient. Two things bridge it: the decoder's gradient is copied straight through to the encoder,
and two stop-gradient terms pull codes to vectors and vectors to codes.
"""

from contextlib import nullcontext

import torch
import torch.distributed as dist
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

DISTANCES_AT_ONCE = 2**24  # 64 MiB of float32: 16384 codes x 1024 vectors


class VectorQuantizer(nn.Module):
    """A codebook of `codebook_size` vectors of width `dim`, and what keeps its codes in use.

    commitment_weight: weight of |z - sg(e)|^2, which moves the ENCODER. (The released LDM code puts it on the
                       codebook term by mistake: same loss value, other gradients.)
    ema_decay:         None learns the codebook by gradient; else codes are running means of the vectors assigned to
                       them (VQ-VAE appendix A.1; 0.99 is usual) and get no gradient.
    restart_after:     a code that no vector has chosen for so many training steps is replaced by a random encoder
                       output; None = never.
    init:              "data": the codes start as encoder outputs of the first training batch. "uniform": U(-1/K, 1/K),
                       as published; with unit-variance latents a few codes then win everything at first.

    Every random draw comes from torch's global generator and all state is in the state dict, so a resumed run repeats
    exactly. In distributed training all processes see the same statistics and keep the same codebook.
    """

    def __init__(self, codebook_size: int = 512, dim: int = 3, commitment_weight: float = 0.25,
                 ema_decay: float | None = None, restart_after: int | None = 100, init: str = "data"):
        super().__init__()
        if codebook_size < 2 or dim < 1:
            raise ValueError(f"VectorQuantizer: needs codebook_size >= 2 and dim >= 1, got {codebook_size} and {dim}.")
        if ema_decay is not None and not 0 < ema_decay < 1:
            raise ValueError(f"VectorQuantizer: ema_decay must lie in (0, 1), like 0.99, or be None, got {ema_decay}.")
        if restart_after is not None and restart_after < 1:
            raise ValueError(f"VectorQuantizer: restart_after must be at least 1 step, or None, got {restart_after}.")
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
        self.register_buffer("usage", torch.zeros(codebook_size, dtype=torch.int64))  # times chosen since reset_usage()

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`quantize(z)`; in training also starts the codebook, updates usage and EMA, and restarts dead codes."""
        if self.training:
            self._initialise(self._vectors(z))
        z_q, indices, loss = self.quantize(z)
        if self.training:
            self._update(self._vectors(z), indices.flatten())
        return z_q, indices, loss

    def quantize(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """z (B,D,h,w) -> z_q (B,D,h,w), indices (B,h,w) int64, loss (). Changes nothing.

        z_q has the value of the nearest code and passes its gradient on to z (straight-through).
        loss = |sg(z) - e|^2 + commitment_weight * |z - sg(e)|^2, means over all elements; under EMA the second alone.
        Raises ValueError if z has another shape.
        """
        indices = self.nearest(self._vectors(z)).view(z.shape[0], *z.shape[2:])
        full, codes = _float(z), _float(self.lookup(indices))
        loss = self.commitment_weight * F.mse_loss(full, codes.detach())
        if self.ema_decay is None:
            loss = loss + F.mse_loss(codes, full.detach())
        return (full + (codes - full).detach()).to(z.dtype), indices, loss

    @torch.no_grad()
    def nearest(self, vectors: Tensor) -> Tensor:
        """vectors (N,D) -> index (N,) of the code at the smallest squared distance |v|^2 + |e|^2 - 2 v.e."""
        dtype = torch.promote_types(_float(vectors).dtype, self.codebook.dtype)
        vectors, codebook = vectors.to(dtype), self.codebook.to(dtype)
        norms = codebook.square().sum(dim=1)                                  # (K,); |v|^2 is the same for every code
        some_rows = vectors.split(max(1, DISTANCES_AT_ONCE // self.codebook_size))
        with _without_autocast(vectors.device.type):
            return torch.cat([torch.addmm(norms, rows, codebook.T, alpha=-2).argmin(dim=1) for rows in some_rows])

    def _vectors(self, z: Tensor) -> Tensor:
        """(B,D,h,w) -> (B*h*w, D): the channels of each pixel are one vector. No gradient."""
        if z.ndim != 4 or z.shape[1] != self.dim:
            raise ValueError(f"VectorQuantizer: expected z of shape (B, {self.dim}, h, w), got {tuple(z.shape)}. "
                             "The encoder's latent_channels must equal the quantiser's dim.")
        return rearrange(z.detach(), "b d h w -> (b h w) d")

    def lookup(self, indices: Tensor) -> Tensor:
        """indices (B,h,w) -> their codes (B,D,h,w)."""
        if indices.is_floating_point() or indices.ndim != 3:
            raise ValueError(f"VectorQuantizer.lookup: expected integer indices (B, h, w), got {indices.dtype} "
                             f"of shape {tuple(indices.shape)}.")
        return rearrange(F.embedding(indices, self.codebook), "b h w d -> b d h w")

    # ------------------------------------------------------------------ keeping the codes alive

    @torch.no_grad()
    def _initialise(self, vectors: Tensor):
        """The first training batch is the codebook's first guess."""
        if self.init == "data":
            self._replace(~self.initialised.expand(self.codebook_size), vectors)
            self.initialised.fill_(True)

    @torch.no_grad()
    def _update(self, vectors: Tensor, indices: Tensor):
        chosen = torch.zeros_like(self.usage).index_add_(0, indices, torch.ones_like(indices))      # (K,)
        _sum_over_processes(chosen)
        self.usage += chosen
        self.idle.copy_(torch.where(chosen > 0, 0, self.idle + 1))
        if self.ema_decay is not None:
            self._average(vectors, indices, chosen)
        if self.restart_after is not None:
            self._replace(self.idle >= self.restart_after, vectors)

    def _average(self, vectors: Tensor, indices: Tensor, chosen: Tensor):
        """Move every code to the running mean of its vectors; Laplace smoothing keeps empty codes finite."""
        sums = torch.zeros_like(self.ema_sum).index_add_(0, indices, vectors.to(self.ema_sum.dtype))      # (K,D)
        _sum_over_processes(sums)
        self.ema_count.lerp_(chosen.to(self.ema_count.dtype), 1 - self.ema_decay)
        self.ema_sum.lerp_(sums, 1 - self.ema_decay)
        total = self.ema_count.sum()
        count = (self.ema_count + 1e-5) / (total + self.codebook_size * 1e-5) * total
        self.codebook.copy_(self.ema_sum / count[:, None])

    def _replace(self, where: Tensor, vectors: Tensor):
        """Codes where (K,) is True become random encoder outputs. No branch on a value: the device never waits."""
        repeats = -(-self.codebook_size // len(vectors))                      # few vectors: some are taken repeatedly
        order = torch.cat([torch.randperm(len(vectors), device=vectors.device) for _ in range(repeats)])
        candidates = vectors[order[:self.codebook_size]].to(self.codebook.dtype)
        _copy_from_first_process(candidates)
        self.codebook.copy_(torch.where(where[:, None], candidates, self.codebook))
        self.idle.masked_fill_(where, 0)
        if self.ema_decay is not None:
            self.ema_count.masked_fill_(where, 1.0)
            self.ema_sum.copy_(torch.where(where[:, None], candidates, self.ema_sum))

    # ------------------------------------------------------------------ how the codebook is used

    def perplexity(self, indices: Tensor | None = None) -> float:
        """exp(entropy) of the code frequencies: K if all codes are used alike, 1 if only one is.

        Of the given indices, or of all training batches since `reset_usage()`. NaN if there were none.
        """
        p = self._counts(indices).double()
        p = p / p.sum()
        return torch.exp(-torch.xlogy(p, p).sum()).item()

    def used_fraction(self, indices: Tensor | None = None) -> float:
        """Fraction of the codes that occur at least once, in the given indices or in training since `reset_usage()`."""
        return (self._counts(indices) > 0).double().mean().item()

    def reset_usage(self):
        """Begin a new count, for instance after each log record."""
        self.usage.zero_()

    def _counts(self, indices: Tensor | None) -> Tensor:
        if indices is None:
            return self.usage.cpu()
        return torch.bincount(indices.flatten().cpu(), minlength=self.codebook_size)

    def extra_repr(self) -> str:
        return (f"codebook_size={self.codebook_size}, dim={self.dim}, commitment_weight={self.commitment_weight}, "
                f"ema_decay={self.ema_decay}, restart_after={self.restart_after}, init={self.init!r}")


class VQBottleneck(nn.Module):
    """The bottleneck contract with a quantiser inside: stage 2 models the vectors before quantisation, and the decoder
    quantises whatever it is given ("the quantization layer is absorbed by the decoder", LDM sec. 3.1)."""

    moments_per_channel = 1

    def __init__(self, quantizer: VectorQuantizer):
        super().__init__()
        self.quantizer = quantizer

    @property
    def latent_channels(self) -> int:
        return self.quantizer.dim

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


def _without_autocast(device_type: str):
    try:
        return torch.autocast(device_type, enabled=False)
    except RuntimeError:
        return nullcontext()                                                  # older torch: no autocast on this device


def _sum_over_processes(x: Tensor):
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(x)


def _copy_from_first_process(x: Tensor):
    if dist.is_available() and dist.is_initialized():
        dist.broadcast(x, src=0)
