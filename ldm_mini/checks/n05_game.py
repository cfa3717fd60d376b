"""Checks of notebook 05, continued: the step of both players and their pulls, and what a decoder makes of noise."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from .checking import CheckFailed, attempt, compare, number, passed, several
from .n05_players import TinyAutoencoder, TinyCritic
from .properties import fresh, learn, own_randomness, same_gradient, scalar
from .steps import Watched

OFF = "before disc_start"


class _FirstStage(TinyAutoencoder):
    """With something that a bottleneck might ask."""

    def forward(self, x: Tensor):
        """x (B,3,H,W) -> reconstruction (B,3,H,W), loss ()"""
        return super().forward(x), 0.3 * self.encoder(x).square().mean()


@own_randomness()
def vqgan_step(function):
    """`function(model, critic, optimizers, x, step, disc_start, disc_weight, rec_loss, weigh)`: both players' step.

    Returns the reconstructions (B,3,H,W), detached, lambda () and the critic's loss (); both 0 before disc_start.
    """
    draw = fresh()
    for step, start, weight, rec_loss in ((3, 0, 0.75, F.l1_loss), (5, 5, 1.5, F.mse_loss), (4, 5, 0.75, F.l1_loss),
                                          (0, 0, 0.5, F.mse_loss), (0, 9, 0.5, F.l1_loss)):
        _one_step(function, draw, step, start, weight, rec_loss)
    passed("vqgan_step: first the autoencoder, then the critic, each with its own optimizer")


def _weigh(nll, g_loss, model):
    """Some lambda, which tells from what it was made."""
    if not all(isinstance(loss, Tensor) and loss.requires_grad for loss in (nll, g_loss)):
        raise CheckFailed("weigh(nll, g_loss, model) asks for gradients: give it both losses with their graphs.")
    return 0.4 + (nll / (1 + g_loss.abs())).detach()


def _after(net, watched: Watched, loss: Tensor) -> dict:
    """The parameters of a net as one step on a loss leaves them."""
    gradients = torch.autograd.grad(loss, watched.parameters, retain_graph=True, allow_unused=True)
    return {name: p.detach() if g is None else p.detach() - watched.rate * g
            for (name, p), g in zip(net.named_parameters(), gradients)}


def _one_step(function, draw, step: int, start: int, weight: float, rec_loss):
    model, critic, x = _FirstStage(draw), TinyCritic(draw), draw(2, 3, 7, 6)
    players = (Watched(model.parameters(), 0.1, draw, "the autoencoder"),
               Watched(critic.parameters(), 0.2, draw, "the critic"))
    x_rec, bottleneck = model(x)
    nll, on = rec_loss(x, x_rec), step >= start
    hinge = lambda fake: 0.5 * (F.relu(1 - critic(x)).mean() + F.relu(1 + critic(fake)).mean())
    g_loss, d_loss = -critic(x_rec).mean(), hinge(x_rec.detach())
    lam = _weigh(nll, g_loss, model)
    plain, judged = nll + bottleneck, nll + bottleneck + weight * lam * g_loss
    # what a critic that went first would say
    said = -functional_call(critic, _after(critic, players[1], d_loss), (x_rec,)).mean()
    mistakes = [
        (plain, "its loss lacks the adversarial term: judge x_rec *with* its graph, not detached."),
        (nll + weight * lam * g_loss, "the bottleneck's loss is missing."), (nll, "the bottleneck's loss is missing."),
        (plain + lam * g_loss, "disc_weight is missing: hand it to vqgan_loss."),
        (plain + weight * g_loss, "lambda is missing: weigh(nll, g_loss, model)."),
        (plain - weight * lam * g_loss, "the sign of g_loss: the autoencoder wants the critic's logits *up*."),
        (plain + weight * _weigh(nll, said, model) * said, "the critic went first. It judges as it was before this "
                                                           "step; its own step comes second."),
        (plain + weight * lam * d_loss, "this is the critic's loss; the autoencoder has its own, -mean of the logits."),
    ]
    if not on:
        mistakes = [(judged, f"{OFF} the critic's opinion does not count: step < disc_start."),
                    (nll, "the bottleneck's loss is missing.")]
    players[0].expect(judged if on else plain, mistakes)
    with torch.no_grad():
        later = functional_call(model, _after(model, players[0], judged), (x,))[0]
    players[1].expect(d_loss, [
        (hinge(later), "the critic saw new reconstructions. Show it those of the first half: no second forward pass."),
        (g_loss, "the critic made the autoencoder's step: give each player its own optimizer.")])
    inputs = model, critic, [player.optimizer for player in players], x, step, start, weight, rec_loss, _weigh
    out = attempt(lambda: function(*inputs), name="vqgan_step")
    at = f"at step {step}, disc_start={start}: "
    got = several(out, "vqgan_step", "three things: the reconstructions, lambda, the critic's loss")
    players[0].judge(f"nll + bottleneck{' + disc_weight * lambda * g_loss' if on else ''} ({at[:-2]})")
    if on:
        players[1].judge("the hinge loss on x and the detached x_rec")
    elif any((b - p).any() for b, p in zip(players[1].before, critic.parameters())):
        raise CheckFailed(f"{at}the critic learned {OFF}: neither player notices it until then.")
    _judge_returned(got, x_rec, lam if on else torch.zeros(()), d_loss if on else torch.zeros(()), g_loss, at)


def _judge_returned(got, x_rec: Tensor, lam: Tensor, d_loss: Tensor, g_loss: Tensor, at: str):
    compare(got[0], x_rec, at + "the returned reconstructions")
    if got[0].requires_grad:
        raise CheckFailed("return x_rec.detach(): with its graph, each step would keep all its memory.")
    compare(scalar(got[1]), lam, at + "the returned lambda")
    compare(scalar(got[2]), d_loss, at + "the returned loss of the critic", mistakes=[
        (g_loss, "this is the autoencoder's; return what discriminator_step gave.")])


def measured_pulls(function):
    """`function(losses, layer, step)`: losses() -> scalars () of a parameter -> for each, how fast it changes when the
    parameter moves along its gradient: numbers.
    """
    draw = fresh()
    for count, shape, step in ((2, (3, 4), 0.3), (3, (2, 3, 2, 2), 0.2)):
        _move(function, draw(count, *shape).double(), torch.nn.Parameter(draw(*shape).double()), step)
    passed("measured_pulls: how hard each loss pulls, asked of the loss itself")


def _move(function, weights: Tensor, layer: Tensor, step: float):
    each = lambda v: [(w * (1.5 * v).exp()).sum() for w in weights]  # curved, so that the step and its side matter
    grads = [torch.autograd.grad(loss, layer)[0] for loss in each(layer)]
    start, unit = layer.detach().clone(), lambda ways: [way / way.norm() for way in ways]
    ways, one_side = unit(grads), "one side only: ask for the loss `step` along the gradient and `step` against it."

    def slopes(ways, high=step, low=-step, way=2 * step, drift=0.0):
        from_ = [start + drift * sum(ways[:i]) for i in range(len(ways))]
        return torch.stack([(each(v + high * d)[i] - each(v + low * d)[i]) / way
                            for i, (v, d) in enumerate(zip(from_, ways))])

    name = f"measured_pulls of {len(weights)} losses with step={step}"
    got = attempt(lambda: function(lambda: tuple(each(layer)), layer, step), name="measured_pulls")
    got = several(got, "measured_pulls", f"{'two' if len(weights) == 2 else 'three'} numbers, one for each loss")
    compare(torch.stack([number(v, name) for v in got]), slopes(ways), name, mistakes=[
        (slopes(ways, low=0, way=step), one_side), (slopes(ways, high=0, way=step), one_side),
        (slopes(ways, way=step), "the two places lie 2 * step apart: divide by that."),
        (slopes(ways, way=1), "a slope: divide the difference by the way between the two places, 2 * step."),
        (-slopes(ways), "the sign: *along* its gradient a loss rises; subtract what it is on the other side."),
        (slopes(grads), "the direction has length 1: divide the gradient by its norm."),
        (torch.stack([g.norm() for g in grads]), "this is what autograd says. Ask the losses: move the layer."),
        (slopes([ways[0]] * len(ways)), "each loss has a gradient, and so a direction, of its own."),
        (slopes(unit([sum(grads[:i + 1]) for i in range(len(grads))])), "the gradient of the loss before was added to "
         "the next one's: torch.autograd.grad does not collect them."),
        (slopes(ways, drift=-step), "the layer was not put back between two losses: start each where it stood."),
        (slopes(ways, drift=step), "the layer was not put back between two losses: start each where it stood."),
    ])
    if not torch.allclose(layer.detach(), start):
        raise CheckFailed("measured_pulls left the layer moved: at the end put it back where it stood.")


def gaussian_sample(function):
    """`function(mean, logvar, eps)` of equal shapes (B,C,h,w) -> mean + sigma eps, with gradients on both."""
    draw = fresh()
    for shape in ((2, 3, 4, 4), (3, 2, 5, 1)):
        mean, logvar, eps = *learn(draw(*shape), draw(*shape)), draw(*shape)
        got, name = attempt(lambda: function(mean, logvar, eps), name="gaussian_sample"), "gaussian_sample"  # noqa: B023
        right, a, v = mean + (logvar / 2).exp() * eps, mean.detach(), logvar.detach()
        compare(got, right, name, mistakes=[
            (a + v.exp() * eps, "exp(logvar) is the variance; eps is multiplied by the standard deviation, its root."),
            (a + v * eps, "logvar is a logarithm: sigma = exp(logvar / 2)."),
            (a + (v / 2) * eps, "half a logarithm is the logarithm of the root: take its exp."),
            (a + (-v / 2).exp() * eps, "the sign of logvar: sigma = exp(+logvar / 2)."),
            (a, "this is the mode. A sample has noise: + sigma * eps."),
            ((v / 2).exp() * eps, "the mean is missing."), (a + eps, "sigma is missing."),
            (a * (v / 2).exp() + eps, "sigma belongs to eps, not to the mean."),
            (a - (v / 2).exp() * eps, "plus: a sample of the same kind, but not with this eps."),
            ((a + eps) * (v / 2).exp(), "sigma belongs to eps alone."),
            (a + v.abs().sqrt() * eps, "logvar is a logarithm: sigma = exp(logvar / 2)."),
        ])
        same_gradient(got, right, {"mean": mean, "logvar": logvar}, name)
    passed("gaussian_sample: a draw that lets gradients through")


class _Stage:
    """A first stage of one number each: pixels of 3 z + 1, rounded where it quantises."""

    def encode(self, x: Tensor) -> Tensor:
        """x -> 2 x"""
        return 2 * x

    def decode(self, z: Tensor, quantize: bool = True) -> Tensor:
        """z -> 3 z + 1, z^2 added so that no scale comes out"""
        z = z.round() if quantize else z
        return 3 * z + 1 + 0.2 * z.square()


def forgive(function):
    """`function(model, x, eps, levels, quantize)` -> one number a level: root mean square change of the picture."""
    draw, model = fresh(), _Stage()
    for shape, levels in (((3, 2, 5, 4), (0.1, 0.5, 1.0)), ((2, 3, 6, 6), [0.3, 2.0])):
        x, eps = draw(*shape), draw(*shape)
        for quantize in (True, False):
            z = model.encode(x)
            clean, open_ = model.decode(z, quantize), model.decode(z, not quantize)
            noisy = [model.decode(z + v * z.std() * eps, quantize) for v in levels]
            rms = lambda made: torch.stack([v.square().mean().sqrt() for v in made])  # noqa: E731
            off = [y - clean for y in noisy]
            got = attempt(function, model, x, eps, levels, quantize, name="forgive")
            if isinstance(got, (list, tuple)):
                got = torch.stack([number(v, "each entry of forgive's list") for v in got])
            compare(got, rms(off), f"forgive(..., quantize={quantize})", rtol=1e-3, mistakes=[
                (rms([v * v for v in off]), "one square too many: the root of the mean of (noisy - clean)^2."),
                (rms(off).square(), "take the root of the mean square."),
                (torch.stack([v.abs().mean() for v in off]), "root mean square, not the mean of absolute values."),
                (torch.stack([v.norm() for v in off]), "the *mean* square: it must not grow with the picture."),
                (rms([y - x for y in noisy]), "the change against the *clean reconstruction*, not the picture."),
                (rms([y - open_ for y in noisy]), "decode the clean latent the same way, with the same `quantize`."),
                (rms([model.decode(z + v * z.std() * eps, not quantize) - clean for v in levels]),
                 "decode the noisy latent with `quantize` as given."),
                (rms([model.decode(z + v * z.std() * eps, not quantize) - open_ for v in levels]),
                 "the argument `quantize` was not used."),
                (rms([model.decode(z + v * eps, quantize) - clean for v in levels]),
                 "levels are in units of the latent's standard deviation: times z.std()."),
                (rms([model.decode(z + v * z.var() * eps, quantize) - clean for v in levels]),
                 "the standard deviation, not the variance."),
                (rms([model.decode(model.encode(x + v * x.std() * eps), quantize) - clean for v in levels]),
                 "the noise goes on the *latent*, not on the picture."),
            ])
    passed("forgive: how much of the noise on a latent arrives in the picture")
