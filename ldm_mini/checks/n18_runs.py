"""Small real runs for notebook 18: a network of points on a ring, a small U-Net, pictures that imitate another one.

Each takes the piece of code that may be sick as an argument, draws from its own seeds, and takes seconds on one core.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..samplers import ddim
from ..schedule import NoiseSchedule, cosine_betas

T = 1000
COSINE = NoiseSchedule(cosine_betas(T))
ANGLES = torch.arange(8) * math.pi / 4
CENTRES, WIDTH = 1.4 * torch.stack([ANGLES.cos(), ANGLES.sin()], dim=1), 0.15  # of eight clusters on a ring


def seeded(seed: int) -> torch.Generator:
    """A source of randomness that gives the same numbers on every machine."""
    return torch.Generator().manual_seed(seed)


def ring(count: int, generator) -> tuple[Tensor, Tensor]:
    """Points (count, 2) of eight Gaussians on a ring, and which of them (count,)."""
    which = torch.randint(8, (count,), generator=generator)
    return CENTRES[which] + WIDTH * torch.randn(count, 2, generator=generator), which


def to_centre(x: Tensor) -> float:
    """The mean distance of points (B, 2) to the nearest centre."""
    return torch.cdist(x, CENTRES).min(dim=1)[0].mean().item()


class PointNet(nn.Module):
    """x (B,2), t (B,) int64, label (B,) of 0 to 8, where 8 stands for "none" -> v (B,2)."""

    def __init__(self, width: int = 64):
        super().__init__()
        self.labels = nn.Embedding(9, 16)
        layers = [(nn.Linear(i, width), nn.SiLU()) for i in (34, width, width)]
        self.body = nn.Sequential(*sum(layers, ()), nn.Linear(width, 2))

    def forward(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        """-> (B,2)"""
        waves = math.pi * (t[:, None] + 1) / T * torch.tensor([1.0, 2.0, 4.0, 8.0])
        waves = torch.cat([2 * x, 4 * x, waves], dim=1)
        return self.body(torch.cat([x, waves.sin(), waves.cos(), self.labels(label)], dim=1))


def mean_of_products(error: Tensor, weight: Tensor) -> Tensor:
    """error (B,D), weight (B,) -> the mean of each sample's weight times its error, ()."""
    return (error.mean(dim=1) * weight).mean()


def train_points(drop_labels, join=mean_of_products, weigh=lambda x0: torch.ones(len(x0)), steps=350) -> PointNet:
    """Learns v on the ring. drop_labels(labels, 8, 0.15); join(squared error (B,2), weigh(x0) (B,)) -> loss ()."""
    torch.manual_seed(0)
    net, g = PointNet(), seeded(1)
    optimizer = torch.optim.Adam(net.parameters(), 5e-3)
    slower = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    for _ in range(steps):
        x0, label = ring(256, g)
        t, eps = torch.randint(T, (256,), generator=g), torch.randn(256, 2, generator=g)
        alpha, sigma = COSINE.alpha(t, 2), COSINE.sigma(t, 2)
        v = net(alpha * x0 + sigma * eps, t, drop_labels(label, 8, 0.15))
        loss = join((v - (alpha * eps - sigma * x0)).square(), weigh(x0))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        slower.step()
    return net


@torch.no_grad()
def sample_points(net: PointNet, label: Tensor, scale: float = 1.0) -> Tensor:
    """A point for each label (B,), by 20 steps of DDIM with guidance -> (B,2)."""
    def denoise(x, t):
        c, u = net(x, t, label), net(x, t, torch.full_like(label, 8))
        v, alpha, sigma = u + scale * (c - u), COSINE.alpha(t, 2), COSINE.sigma(t, 2)
        return alpha * x - sigma * v, sigma * x + alpha * v

    *_, x = ddim(denoise, torch.randn(len(label), 2, generator=seeded(1)), COSINE, 20)
    return x


class Block(nn.Module):
    """A convolution beside a plain way, and dropout behind both."""

    def __init__(self, width_in: int, width: int, dropout: float = 0.0):
        super().__init__()
        self.conv, self.skip = nn.Conv2d(width_in, width, 3, padding=1), nn.Conv2d(width_in, width, 1)
        self.drop = nn.Dropout(dropout)

    def forward(self, h: Tensor) -> Tensor:
        """(B,C,h,w) -> (B,D,h,w)"""
        return self.drop(self.skip(h) + F.silu(self.conv(h)))


class SmallU(nn.Module):
    """A U of two levels, each a quarter of the last. way(h, down, smaller, middle, larger, up) goes through it."""

    def __init__(self, way, channels: int = 3, width: int = 16, dropout: float = 0.0):
        super().__init__()
        self.way, self.stem, self.middle = way, nn.Conv2d(channels, width, 3, padding=1), Block(width, width)
        self.down = nn.ModuleList(Block(width, width, dropout) for _ in range(2))
        self.up = nn.ModuleList(Block(2 * width, width, dropout) for _ in range(2))
        self.out = nn.Conv2d(width, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        """x (B,channels,h,w) -> (B,3,h,w)"""
        shrink, grow = (lambda h: F.avg_pool2d(h, 4)), (lambda h: F.interpolate(h, scale_factor=4))
        return self.out(self.way(self.stem(x), self.down, [shrink] * 2, self.middle, [grow] * 2, self.up))


def train_u(net, pictures: Tensor, loss_of, steps: int, after=lambda step, net: None) -> list[float]:
    """loss_of(net, some pictures (8,3,h,w), generator) -> (). The losses; after(step, net) is called at each step."""
    g, losses, optimizer = seeded(1), [], torch.optim.Adam(net.parameters(), 4e-3)
    for step in range(steps):
        loss = loss_of(net, pictures[torch.randint(len(pictures), (8,), generator=g)], g)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        after(step, net)
    return losses


def noise_loss(net, x0: Tensor, generator) -> Tensor:
    """How wrong a network is about the noise in 0.8 x0 + 0.6 eps; 1 is a blind guess."""
    eps = torch.randn(x0.shape, generator=generator)
    return (net(0.8 * x0 + 0.6 * eps) - eps).square().mean()


def holes(count: int, generator) -> Tensor:
    """Masks (count,1,32,32), 1 in a square of 12 x 12."""
    mask = torch.zeros(count, 1, 32, 32)
    for one, (y, x) in zip(mask, torch.randint(20, (count, 2), generator=generator).tolist()):
        one[:, y:y + 12, x:x + 12] = 1
    return mask


def hole_loss(condition):
    """A loss for `train_u`: the squared error in a hole, by a network that is told condition(image, mask)."""
    def loss(net, x0, generator):
        mask = holes(len(x0), generator)
        return ((net(condition(x0, mask)) - x0).square() * mask).sum() / (3 * mask.sum())
    return loss


def imitate(heads, target: Tensor, perceptual, steps: int = 50) -> tuple[Tensor, list[float]]:
    """From grey to what `perceptual` with heads [(C,), ...] cannot tell from target (1,3,H,W): picture, distances."""
    x, distances, goal = torch.zeros_like(target).requires_grad_(), [], perceptual.taps(target)
    optimizer = torch.optim.Adam([x], 0.05)
    for _ in range(steps):
        distance = sum((w[:, None, None] * (F.normalize(a) - F.normalize(b)).square()).sum(1).mean()
                       for w, a, b in zip(heads, perceptual.taps(x), goal))
        optimizer.zero_grad()
        distance.backward()
        optimizer.step()
        x.data.clamp_(-1, 1)
        distances.append(distance.item())
    return x.detach(), distances
