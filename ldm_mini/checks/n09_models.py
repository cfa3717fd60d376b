"""The models that the checks of notebook 09 give to a learner's functions, and their schedule."""

import torch
from torch import Tensor, nn

from ..schedule import NoiseSchedule
from .properties import fresh

SCHEDULE = NoiseSchedule(torch.linspace(0.01, 0.35, 20, dtype=torch.float64))
CODES = torch.linspace(-2.25, 2.25, 16)  # the codebook of `FirstStage`, in one dimension


class FirstStage(nn.Module):
    """A first stage small enough to know everything about: 2x2 patches to `channels` numbers, rounded to 16 levels.

    It counts what is asked of it, and behaves wrongly in training mode, as one with dropout or a codebook would.
    """

    def __init__(self, channels: int = 3):
        super().__init__()
        self.down, self.up = nn.Conv2d(3, channels, 2, stride=2), nn.ConvTranspose2d(channels, 3, 2, stride=2)
        draw = fresh(3)
        with torch.no_grad():
            for p in self.parameters():
                p.copy_(0.4 * draw(*p.shape))
        self.seen = torch.zeros(())  # how often it was used in training mode

    def encode(self, x: Tensor, sample: bool = False, generator=None) -> Tensor:
        """x (B,3,H,W) -> z (B,c,H/2,W/2), before quantisation."""
        self.seen += self.training
        return self.down(x) + 0.3

    def quantize(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """z -> nearest levels (straight-through), indices, loss: as of `Autoencoder`, but one code per value."""
        indices = (z.detach()[..., None] - CODES).abs().argmin(-1)
        z_q = CODES[indices]
        return z + (z_q - z).detach(), indices, (z - z_q).square().mean()

    def decode(self, z: Tensor, quantize: bool = True) -> Tensor:
        """z -> x; quantises first, unless told not to."""
        self.seen += self.training
        return self.up(self.quantize(z)[0] if quantize else z)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x -> reconstruction, loss."""
        z_q, _, loss = self.quantize(self.encode(x))
        return self.decode(z_q, quantize=False), loss


class Net(nn.Module):
    """Predicts noise, badly, from x_t and t; remembers in which mode it was asked."""

    def __init__(self, channels: int = 3, dropout: float = 0.5):
        super().__init__()
        self.mix = nn.Conv2d(channels, channels, 1)
        with torch.no_grad():
            self.mix.weight.copy_(0.5 * fresh(4)(channels, channels, 1, 1))
            self.mix.bias.zero_()
        self.dropout, self.calls = nn.Dropout(dropout), []

    def forward(self, x: Tensor, t: Tensor, cond=None) -> Tensor:
        """x (B,c,h,w), t (B,) -> (B,c,h,w)"""
        self.calls.append(self.training)
        return self.dropout(self.mix(x) * (1 + t.view(-1, 1, 1, 1) / 10))


class Model(nn.Module):
    """What a training loop sees of a `LatentDiffusion`: loss(batch), trainable_parameters(), a frozen first stage."""

    def __init__(self, channels: int = 3):
        super().__init__()
        self.autoencoder = FirstStage(channels).requires_grad_(False).eval()
        self.net = Net(channels, dropout=0.0)
        self.asked, self.modes = 0, []

    def loss(self, batch: dict) -> Tensor:
        """batch["latent"] (B,c,h,w) -> scalar; the same for the same batch"""
        self.asked, self.modes = self.asked + 1, [*self.modes, self.training]
        z = batch["latent"]
        return (self.net(z, torch.arange(len(z))) - z.flip(3)).square().mean()

    forward = loss

    def trainable_parameters(self) -> list[nn.Parameter]:
        """The network's."""
        return [p for p in self.parameters() if p.requires_grad]

    def train(self, mode: bool = True) -> "Model":
        """As of `LatentDiffusion`: the first stage stays as it is."""
        super().train(mode)
        self.autoencoder.eval()
        return self
