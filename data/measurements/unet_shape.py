"""Does the U-Net earn its shape? Measured for notebook 07: `python data/measurements/unet_shape.py`.

Its denoiser of residual 3 x 3 convolutions on pictures of 64 pixels in four shapes, all of which do the same number of
multiply-adds per picture: a plain stack, shallow and wide or deep and narrow; one that halves three times, without
skips; and the U-Net. Same pictures, same steps, falling learning rate, three seeds. Written to `unet_shape.json`, row
by row: the squared error of v on new pictures at some t, and the Frechet distance of 256 samples to 1,024 real
pictures. `unet_shape.png` shows real pictures, then the first samples of each net of seed 0. Rows that are there
already are not made again. About an hour and a half on one thread.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
import tyro
from resuming import keep_row, resume
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ldm_mini.cond import Cond
from ldm_mini.diffusion import diffusion_loss, make_denoiser
from ldm_mini.files import write_json
from ldm_mini.measure import frechet_distance
from ldm_mini.perceptual import PerceptualLoss
from ldm_mini.samplers import dpm_solver
from ldm_mini.scenes import TINY_SCENES, scene_batches
from ldm_mini.schedule import NoiseSchedule, cosine_betas

SEEDS, PICTURES, NEW, BATCH = (0, 1, 2), 8192, 256, 8
REAL, STEPS, SHOWN = 1024, 20, 5
TIMES = (50, 100, 200, 300, 400, 500, 600, 700, 800, 900, 980)
SCHEDULE = NoiseSchedule(cosine_betas())
# widths of the levels in units that `equal_work` stretches, convolutions per level, skips?
SHAPES = {"stack, 4 layers": ((16,), 4, False), "stack, 16 layers": ((16,), 16, False),
          "halving, no skips": ((16, 24, 32, 32), 1, False), "U-Net": ((16, 24, 32, 32), 1, True)}
WORK = 50e6                                                     # multiply-adds per picture
RESULTS = Path(__file__).with_suffix(".json")


def conv3(a: int, b: int, stride: int = 1) -> nn.Conv2d:
    """3 x 3, keeping the side, or halving it."""
    return nn.Conv2d(a, b, 3, stride, padding=1)


class Residual(nn.Module):
    """x + conv(SiLU(x)), the identity when fresh."""

    def __init__(self, width: int):
        super().__init__()
        self.conv = conv3(width, width)
        nn.init.zeros_(self.conv.weight)

    def forward(self, x):
        return x + self.conv(F.silu(x))


class Denoiser(nn.Module):
    """Notebook 07's: levels of these widths, each half as large as the one before; a single level is a plain stack."""

    def __init__(self, widths, depth: int, skips: bool):
        super().__init__()
        self.skips, pairs = skips, list(zip(widths, widths[1:], strict=False))
        self.stem = conv3(4, widths[0])
        self.down = nn.ModuleList(nn.Sequential(*self.level(a, depth), conv3(a, b, stride=2)) for a, b in pairs)
        self.middle = self.level(widths[-1], depth)
        self.up = nn.ModuleList(nn.Sequential(nn.Upsample(scale_factor=2), conv3(b, a)) for a, b in pairs[::-1])
        self.join = nn.ModuleList(nn.Sequential(conv3(2 * a if skips else a, a), *self.level(a, depth))
                                  for a, _ in pairs[::-1])
        self.out = nn.Sequential(nn.SiLU(), conv3(widths[0], 3))

    @staticmethod
    def level(width: int, depth: int) -> nn.Sequential:
        """Some residual convolutions."""
        return nn.Sequential(*[Residual(width) for _ in range(depth)])

    def forward(self, x_t, t, cond=None):
        """x_t (B,3,h,w), t int64 (B,) -> (B,3,h,w)."""
        noise_level = (2 * SCHEDULE.sigma(t) - 1).expand(-1, 1, *x_t.shape[2:])
        h, hs = self.stem(torch.cat([x_t, noise_level], dim=1)), []
        for down in self.down:
            hs.append(h)
            h = down(h)
        h = self.middle(h)
        for up, join in zip(self.up, self.join, strict=True):
            h = up(h)
            h = join(torch.cat([h, hs.pop()], dim=1) if self.skips else h)
        return self.out(h)


def work(net: nn.Module) -> float:
    """Multiply-adds per picture of 64 pixels."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net(torch.zeros(1, 3, 64, 64), torch.zeros(1, dtype=torch.long))
    return counter.get_total_flops() / 2


def equal_work(widths, depth: int, skips: bool) -> Denoiser:
    """This shape, its widths stretched until it does about WORK multiply-adds."""
    sizes = {tuple(round(w * k / 64) for w in widths): None for k in range(32, 256)}
    return min((Denoiser(size, depth, skips) for size in sizes), key=lambda net: abs(work(net) - WORK))


def sees(net: nn.Module) -> int:
    """Pixels of the input that the pixel in the middle of the output depends on."""
    x = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    net(x, torch.full((4,), 500))[:, :, 32, 32].sum().backward()
    return int((x.grad.abs().sum(dim=(0, 1)) > 0).sum())


def train(net: nn.Module, pictures, steps: int, seed: int, lr: float) -> None:
    """As in the notebook: v, Adam, a rate that falls to zero."""
    g = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(net.parameters(), lr, betas=(0.9, 0.99))
    slower = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    for _ in range(steps):
        x0 = pictures[torch.randint(len(pictures), (BATCH,), generator=g)].float()
        loss = diffusion_loss(net, SCHEDULE, x0, Cond(), "v", generator=g)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        slower.step()


@torch.no_grad()
def loss_at(net: nn.Module, t: int, new) -> float:
    """Squared error of v at one t, always with the same noise."""
    eps = torch.randn(new.shape, generator=torch.Generator().manual_seed(5))
    return diffusion_loss(net, SCHEDULE, new, Cond(), "v", torch.full((len(new),), t), eps).item()


@torch.no_grad()
def draw(net: nn.Module) -> torch.Tensor:
    """NEW pictures (NEW,3,64,64) out of noise that is the same for every net."""
    noise = torch.randn(NEW, 3, 64, 64, generator=torch.Generator().manual_seed(9))
    denoise = make_denoiser(net, SCHEDULE, Cond(), prediction="v", clip_x0=1.0)
    return torch.cat([list(dpm_solver(denoise, part, SCHEDULE, STEPS))[-1] for part in noise.split(64)]).clamp(-1, 1)


def main(steps: int = 3000, lr: float = 2e-3, seeds: tuple[int, ...] = SEEDS, out: Path = RESULTS) -> None:
    """Every shape with every seed."""
    torch.set_num_threads(1)
    pictures = next(scene_batches(TINY_SCENES, PICTURES, 0, PICTURES))["image"].half()
    new, real = (next(scene_batches(TINY_SCENES, n, start, n))["image"] for n, start in ((NEW, 10**6),
                                                                                         (REAL, 2 * 10**6)))
    look = PerceptualLoss().features
    known = look(real)
    far = lambda images: frechet_distance(look(images), known).item()
    report = resume(out, {
        "steps": steps, "lr": lr, "batch": BATCH, "pictures": PICTURES, "new": NEW, "times": TIMES, "real": REAL,
        "sampler_steps": STEPS, "real_to_real": far(new), "shapes": {}, "rows": []})
    for seed in seeds:
        for name, shape in SHAPES.items():
            if any((row["shape"], row["seed"]) == (name, seed) for row in report["rows"]):
                continue
            torch.manual_seed(seed)
            net = equal_work(*shape).to(memory_format=torch.channels_last)
            train(net, pictures, steps, seed, lr)
            report["shapes"][name] = {
                "multiply_adds": work(net), "parameters": sum(p.numel() for p in net.parameters()), "sees": sees(net),
                "convolutions": sum(isinstance(m, nn.Conv2d) for m in net.modules())}
            losses, drawn = [loss_at(net, t, new) for t in TIMES], draw(net)
            report["rows"].append({"shape": name, "seed": seed, "losses": losses, "frechet": far(drawn)})
            print(seed, name, report["shapes"][name], f"{sum(losses) / len(losses):.4f}",
                  f"{report['rows'][-1]['frechet']:.0f}", flush=True)
            write_json(out, report)
            if seed == 0:
                for place, images in ((0, real), (list(SHAPES).index(name) + 1, drawn)):
                    keep_row(out.with_suffix(".png"), place, len(SHAPES) + 1, images[:SHOWN])


if __name__ == "__main__":
    tyro.cli(main)
