"""Checks of notebook 11, pictures as condition: the loss beside a picture, a wider U-Net, the linear enlarger."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..cond import Cond
from ..schedule import NoiseSchedule, cosine_betas, linear_betas
from ..unet import UNet, UNetConfig
from .checking import CheckFailed, attempt, compare, passed
from .properties import fresh, own_randomness, same_dtype, same_gradient, scalar


class _Seen(nn.Module):
    """Stands for a U-Net that reads maps: remembers what it was asked, answers with something that depends on all."""

    def __init__(self, scale: float, channels: int):
        super().__init__()
        self.scale, self.calls = nn.Parameter(torch.tensor(scale)), []
        self.channels = channels

    def forward(self, z_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        if z_t.shape[1] > self.channels:
            raise ValueError("the network joins cond.concat by itself; give it z_t alone")
        self.calls.append((z_t.detach(), t, cond))
        maps = 0 if cond.concat is None else cond.concat.mean(1, keepdim=True)
        return self.scale * z_t + maps + (t.view(-1, 1, 1, 1) / 1000).cos()


def superres_loss(function):
    """`function(net, schedule, z0, cond, generator)`: z0 (B,c,h,w), cond with concat -> (), the mean error of v."""
    draw = fresh()
    for shape, betas in (((600, 4, 4, 4), cosine_betas(100)), ((300, 3, 6, 4), linear_betas(1000))):
        schedule, z0 = NoiseSchedule(betas), draw(*shape)
        cond = Cond(concat=draw(shape[0], 3, *shape[2:]))
        with own_randomness():
            net = _Seen(0.7, shape[1])
            loss = lambda seed: scalar(attempt(lambda z: function(  # noqa: B023
                net, schedule, z, cond, torch.Generator().manual_seed(seed)), z0, name="superres_loss"))  # noqa: B023
            got = loss(0)
            z_t, t, eps = _asked(net.calls, schedule, z0, cond)
            _hold_loss(got, net(z_t, t, cond), z_t, t, eps, z0, schedule, net)
            again, other = loss(0), loss(1)
        if not torch.equal(got, again) or torch.equal(got, other):
            raise CheckFailed("superres_loss: the generator does not decide the loss: draw t and the noise with "
                              "generator=generator.")
    passed("superres_loss: a level, its noise, one look at the picture beside it, and the error of v")


def _asked(calls, schedule, z0, cond):
    """What the network was asked, once, and the noise in it: z_t, t, eps."""
    if len(calls) != 1:
        raise CheckFailed(f"superres_loss should call the network once; it did {len(calls)} times.")
    z_t, t, told = calls[0]
    if told is not cond:
        raise CheckFailed("superres_loss: the network was not given `cond`: net(z_t, t, cond).")
    if z_t.shape != z0.shape:
        raise CheckFailed(f"superres_loss: the network was asked about {tuple(z_t.shape)}, not {tuple(z0.shape)}. It "
                          "joins cond.concat by itself; give it z_t alone.")
    if not isinstance(t, Tensor) or t.dtype != torch.int64 or t.shape != (len(z0),):
        raise CheckFailed(f"superres_loss: t should be int64 of shape ({len(z0)},), one level for each sample: "
                          "torch.randint(schedule.num_steps, (B,)).")
    if (t == t[0]).all():
        raise CheckFailed("superres_loss: all samples got the same t; draw one for each.")
    last = schedule.num_steps - 1
    if t.min() < 0 or t.max() > last or t.min() > 0.05 * last or t.max() < 0.95 * last:
        raise CheckFailed(f"superres_loss: t came from {t.min()} to {t.max()}; it should come from all of 0 to {last}.")
    eps = (z_t - schedule.alpha(t) * z0) / schedule.sigma(t)
    noisy = t > last / 5  # below, the division has few digits left
    mean, std = eps[noisy].mean().item(), eps[noisy].std().item()
    if torch.allclose(z_t, z0):
        raise CheckFailed("superres_loss: the network was shown z0 without noise: schedule.add_noise(z0, eps, t).")
    if abs(mean) > 0.05 or abs(std - 1) > 0.05:
        raise CheckFailed(f"superres_loss: the noise in z_t has mean {mean:.2f} and deviation {std:.2f}, not 0 and 1: "
                          "torch.randn, and schedule.add_noise(z0, eps, t) with amplitudes alpha and sigma.")
    return z_t, t, eps


def _hold_loss(got, out, z_t, t, eps, z0, schedule, net):
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    off = lambda target: (out - target).square().mean()
    v = alpha * eps - sigma * z0
    if isinstance(got, Tensor) and got.dim():
        raise CheckFailed(f"superres_loss should return one number, the mean over all, not {tuple(got.shape)}.")
    compare(got, off(v), "superres_loss(net, schedule, z0, cond, generator)", rtol=1e-3, mistakes=[
        (off(eps), "the target is the noise; this network predicts v = alpha eps - sigma z0."),
        (off(z0), "the target is z0; this network predicts v = alpha eps - sigma z0."),
        (off(-v), "the sign of v: alpha eps - sigma z0."),
        (off(sigma * eps - alpha * z0), "alpha and sigma are swapped in v = alpha eps - sigma z0."),
        (off(alpha * eps + sigma * z0), "v = alpha eps *minus* sigma z0."),
        (off(z_t), "the target is z_t, which the network can see already; it should say v = alpha eps - sigma z0."),
        (off(v) * len(z0), "the mean over everything, over the batch too."),
        (off(v) * v.numel(), "the sum; take the mean, or it grows with the picture."),
        (off(v).sqrt(), "the root of it; the loss is the mean square itself."),
        ((out - v).abs().mean(), "the mean *square*, not the mean distance."),
    ])
    same_gradient(got, off(v), {"the network": net.scale}, "superres_loss", rtol=1e-2)


def transplant(function):
    """`function(old, new)`: two UNets alike but for new's concat_channels -> new, with old's weights, widened."""
    for widths, extra in (((1, 2), 3), ((1,), 2)):
        config = dict(in_channels=4, channels=8, channel_mults=widths, num_res_blocks=1, attn_levels=(), head_dim=4,
                      groups=2)
        draw = fresh()
        with own_randomness():
            old, new = UNet(UNetConfig(**config)), UNet(UNetConfig(**config, concat_channels=extra))
            for p in [*old.parameters(), *new.parameters()]:
                nn.init.normal_(p, std=0.2)  # a fresh U-Net's last layers are 0: anything would agree
            before = {name: value.clone() for name, value in old.state_dict().items()}
            got = attempt(lambda: function(old, new), name="transplant")  # noqa: B023
        if got is not new:
            raise CheckFailed("transplant should return `new`, the network that it filled"
                              + (". Did you forget the `return`?" if got is None else f", not {type(got).__name__}."))
        _hold_transplant(old, new, before, draw, extra)
    passed("transplant: on its first day the wide U-Net does what the old one does")


def _hold_transplant(old, new, before, draw, extra):
    if any(not torch.equal(before[name], value) for name, value in old.state_dict().items()):
        raise CheckFailed("transplant changed the old network. Copy its weights; leave it as it is.")
    z, t, maps = draw(2, 4, 4, 4), torch.tensor([3, 800]), draw(2, extra, 4, 4)
    first, weights = new.down[0][0], new.state_dict()
    kept = [name for name, value in before.items() if name in weights and torch.equal(weights[name], value)]
    if first.weight.shape[1] != 4 + extra:
        raise CheckFailed("transplant: the new network's first convolution has lost its channels for the picture.")
    if not kept:
        raise CheckFailed("transplant: nothing of the old network has arrived: new.load_state_dict(...).")
    if not torch.equal(first.weight[:, :4], before["down.0.0.weight"]):
        raise CheckFailed("transplant: the first convolution, down[0][0], does not have the old weights in front. "
                          "`widen` makes it: put its weight and bias under down.0.0.weight and down.0.0.bias.")
    if first.weight[:, 4:].abs().max() > 0:
        raise CheckFailed("transplant: the new channels of the first convolution should begin at zero, as `widen` "
                          "makes them.")
    if missing := sorted(set(before) - set(kept) - {"down.0.0.weight"}):
        raise CheckFailed(f"transplant: {len(missing)} old weights have not arrived, such as {missing[-1]}.")
    with torch.no_grad():
        compare(new(z, t, Cond(concat=maps)), old(z, t, Cond()), "the new network's output")
    if {p.data_ptr() for p in old.parameters()} & {p.data_ptr() for p in new.parameters()}:
        raise CheckFailed("transplant: old and new share weights, so training one would change the other. "
                          "load_state_dict copies (without assign=True).")
    if any(not p.requires_grad or not isinstance(p, nn.Parameter) for p in new.parameters()):
        raise CheckFailed("transplant: some weights of the new network cannot learn; load them by load_state_dict.")


def linear_enlarger(function):
    """`function(rows, image)`: rows (B,hw,K), image (B,3,4h,4w) -> weights (K,48) of the best linear enlarger."""
    draw = fresh()
    for size, h, w, k in ((5, 6, 4, 9), (3, 4, 8, 13)):
        rows, truth = draw(size, h * w, k), draw(k, 48)
        rows[..., -1], rows[..., -2] = 1.0, rows[..., 0]  # two columns alike: without the ridge there is no answer
        columns = rows @ truth + 0.3 * draw(size, h * w, 48)
        image = F.pixel_shuffle(columns.mT.unflatten(2, (h, w)), 4)
        a, y = rows.flatten(0, 1).double(), columns.flatten(0, 1).double()
        got = attempt(function, rows, image, name="linear_enlarger")
        compare(got, _ridge(a, y, 0.1).float(), "linear_enlarger(rows, image)", rtol=1e-3, atol=1e-3, shapes={
            (48, k): "upside down: `rows @ weights` gives the 48 large pixels, so weights are (K, 48).",
            (k, 3): "one pixel per small pixel; F.pixel_unshuffle(image, 4) puts all 4 x 4 x 3 into 48 channels.",
            (size, k, 48): "one fit for each picture; one for all: join batch and places first.",
        }, mistakes=[
            (_ridge(a, y, 1.0), "the ridge is 0.1 times the identity."),
            (_ridge(a, y, 0.0), "without the ridge, 0.1 times the identity, columns that are alike have no answer."),
            (_ridge(a, columns.unflatten(2, (3, 4, 4)).movedim(2, 4).flatten(2).flatten(0, 1).double(), 0.1),
             "the 48 columns are in another order than F.pixel_shuffle takes: colour first, then row and column."),
            (_ridge(a, columns.unflatten(2, (3, 4, 4)).mT.flatten(2).flatten(0, 1).double(), 0.1),
             "rows and columns of the 4 x 4 have changed places: take F.pixel_unshuffle's order."),
            (_ridge(a, columns.mT.reshape(-1, 48).double(), 0.1),
             "reshape mixes channels and places: F.pixel_unshuffle gives (B,48,h,w); flatten(2).mT is (B,hw,48)."),
            (_ridge(a / len(a) ** 0.5, y / len(a) ** 0.5, 0.1), "sums, not means: then the ridge is 0.1 as it is."),
            (a.mT @ y, "A'y alone; it still has to be solved: torch.linalg.solve(A'A + 0.1 I, A'y)."),
        ])
        same_dtype(got, rows, "linear_enlarger(rows, image)")
    passed("linear_enlarger: least squares, in closed form")


def _ridge(a, y, ridge):
    matrix = a.mT @ a + ridge * torch.eye(a.shape[1], dtype=a.dtype)
    return torch.linalg.lstsq(matrix, a.mT @ y).solution
