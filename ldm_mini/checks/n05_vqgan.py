"""Checks of notebook 05, the adversarial loss: what the critic sees and says. And the KL bottleneck."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .checking import CheckFailed, attempt, compare, number, passed, several
from .properties import fresh, learn, same_gradient


def hinge_losses(function):
    """`function(real, fake)`: logits of any shape -> discriminator's loss (), generator's loss ()."""
    draw = fresh()
    # other shapes: each has its own mean
    for one, other in (((3, 1, 4, 4), (2, 1, 5, 5)), ((40,), (60,))):
        real, fake = learn(draw(*one) + 1.3, draw(*other) - 0.3)
        got = attempt(function, real, fake, name="hinge_losses")
        got = several(got, "hinge_losses", "two things: the discriminator's loss and the generator's")
        _judge_critic(got[0], real, fake)
        _judge_generator(got[1], real, fake, got[0])
    passed("hinge_losses: real above +1, fake below -1, and the generator pushes up")


def _judge_critic(got, real: Tensor, fake: Tensor):
    name, relu, soft = "the discriminator's loss", torch.relu, F.softplus
    d = lambda r, f: 0.5 * (r.mean() + f.mean())
    right = d(relu(1 - real), relu(1 + fake))
    entropy = "this is cross entropy (-log D). The hinge is what VQGAN's code runs: max(0, 1 - real), max(0, 1 + fake)."
    ones = "this is cross entropy, and with ones for the fakes too: D would call everything real. The hinge is "\
           "max(0, 1 - real), max(0, 1 + fake)."
    compare(got, right, name, mistakes=[
        (d(relu(1 + real), relu(1 - fake)), "real and fake are swapped, or their signs: D wants real logits above "
                                            "+1, so 1 - real is what is missing."),
        (d(relu(1 - real), relu(1 - fake)), "the sign of the fake logits: D wants them below -1, max(0, 1 + fake)."),
        (2 * right, "the factor 1/2 is missing: it is a mean of two halves."),
        (d(relu(-real), relu(fake)), "the margin is missing: max(0, 1 - real), max(0, 1 + fake)."),
        (d(1 - real, 1 + fake), "max(0, .) is missing: what is beyond the margin costs nothing, and gains nothing."),
        (d(-real, fake), "max(0, .) and the margin are missing: max(0, 1 - real), max(0, 1 + fake)."),
        (2 * d(-real, fake), "max(0, .) and the margin are missing: max(0, 1 - real), max(0, 1 + fake)."),
        (0.5 * (relu(1 - real.mean()) + relu(1 + fake.mean())), "take max(0, .) of every logit, then the mean: a "
                                                                "confident patch must not pay for a wrong one."),
        (torch.cat([relu(1 - real).flatten(), relu(1 + fake).flatten()]).mean(), "one mean over all logits together; "
         "real and fake have a mean each, and half of the say each."),
        (-fake.mean(), "the order: first the discriminator's loss, then the generator's."),
        (0.5 * (relu(1 - real).sum() + relu(1 + fake).sum()), "means, not sums: a larger image is no larger mistake."),
        (0.5 * relu(1 - real).mean(), "the reconstructions are not judged: max(0, 1 + fake)."),
        (relu(1 - real).mean(), "the reconstructions are not judged: max(0, 1 + fake)."),
        *[(factor * d(soft(-real), soft(fake)), entropy) for factor in (1, 2)],
        *[(factor * d(soft(-real), soft(-fake)), ones) for factor in (1, 2)],
        *[(factor * d((1 - real).square(), far.square()), "squared errors (a least-squares GAN): the hinge is "
           "max(0, 1 - real), max(0, 1 + fake).") for factor in (1, 2) for far in (fake, 1 + fake)],
        (d(relu(1 - real).square(), relu(1 + fake).square()), "no squares: the hinge is linear."),
    ])
    same_gradient(got, right, {"real": real, "fake": fake}, name)


def _judge_generator(got, real: Tensor, fake: Tensor, critic):
    name, entropy = "the generator's loss", "this is cross entropy; VQGAN's generator loss is just -mean(fake)."
    compare(got, -fake.mean(), name, mistakes=[
        (fake.mean(), "the sign: the generator wants its logits *high*, so a loss falls as they rise."),
        (torch.relu(1 - fake).mean(), "no hinge here: VQGAN's generator loss is just -mean(fake)."),
        (torch.relu(-fake).mean(), "no hinge here: VQGAN's generator loss is just -mean(fake)."),
        (1 - fake.mean(), "no margin here: VQGAN's generator loss is just -mean(fake)."),
        (F.softplus(-fake).mean(), entropy), (F.softplus(fake).mean(), entropy), (-F.softplus(fake).mean(), entropy),
        (-0.5 * fake.mean(), "no factor 1/2 here: VQGAN's generator loss is just -mean(fake)."),
        (-fake.sum(), "a mean over patches, not a sum."),
        (-real.mean(), "the generator is judged by its *own* pictures: fake."),
        (critic, "this is the discriminator's loss again."),
    ])
    same_gradient(got, -fake.mean(), {"fake": fake, "real": real}, name)


def receptive_field(function):
    """`function(kernels, strides)`: two lists of ints, first layer first -> side of the patch behind one output."""
    draw = fresh()
    drawn = [[int(n) for n in low + size * draw(6).sigmoid()] for low, size in ((1, 5), (1, 3))]
    for kernels, strides in (([3, 5, 2], [2, 3, 1]), ([5], [1]), ([3, 3], [1, 1]), ([4] * 4, [2, 2, 1, 1]),
                             ([4] * 5, [2, 2, 2, 1, 1]), ([3, 1, 5], [1, 2, 3]), drawn):
        given = list(kernels), list(strides)
        got = number(attempt(function, *given, name="receptive_field"), "receptive_field").item()
        if given != (kernels, strides):
            raise CheckFailed("receptive_field changed the lists it was given: whoever calls it needs them again. Use "
                              "reversed(kernels) or kernels[::-1], not .pop() or .reverse().")
        right = _field(kernels[::-1], strides[::-1])
        if got != right:
            raise CheckFailed(f"receptive_field({kernels}, {strides}) gave {got:g}; it should be {right}. "
                              f"{_field_hint(got, kernels, strides)}")
    passed("receptive_field: 70 pixels for three strided layers, 34 for two")


def _field(kernels, strides, minus=1) -> int:
    """The side that one output needs, going through the layers in the given order."""
    size = 1
    for k, s in zip(kernels, strides):
        size = (size - minus) * s + k
    return size


def _field_hint(got: float, kernels, strides) -> str:
    """What a wrong receptive field looks like."""
    jump, late = 1, 1
    for k, s in zip(kernels, strides):
        jump *= s
        late += (k - 1) * jump
    known = {
        late: "A layer's own stride comes after it: it spreads *its* outputs, so it counts from the next layer.",
        _field(kernels, strides): "You went through the layers in the wrong direction. Begin at one logit and walk "
                                  "back to the image.",
        sum(kernels): "Kernels do not simply add up: after a stride, neighbours lie several pixels apart.",
        1 + sum(k - 1 for k in kernels): "Without strides this would be right. After a stride, neighbours lie several "
                                         "pixels apart.",
        jump: "This is the distance of two patches (the product of the strides), not the size of one.",
        _field(kernels[::-1], strides[::-1], minus=0): "n outputs at stride s with kernel k need (n - 1) * s + k "
                                                       "inputs; the -1 is missing.",
    }
    return known.get(got, "One logit needs k inputs of the last layer; n outputs of a layer need (n - 1) * stride + "
                          "kernel inputs.")


def gaussian_kl(function):
    """`function(mean, logvar)`: (B,C,h,w) each -> KL from N(0, 1) (): sum over a latent, mean over the batch."""
    draw = fresh()
    for shape in ((4, 3, 2, 2), (3, 2, 3, 4)):
        mean, logvar = learn(draw(*shape), 0.8 * draw(*shape) - 0.5)
        got = attempt(function, mean, logvar, name="gaussian_kl")
        right = _judge_kl(got, mean, logvar)
        same_gradient(got, right, {"mean": mean, "logvar": logvar}, "gaussian_kl(mean, logvar)")
    passed("gaussian_kl: in nats, summed over a latent")


def _judge_kl(got, mean: Tensor, logvar: Tensor) -> Tensor:
    """Compare with the right result, which is returned with its graph."""
    kl = lambda m, v, log: 0.5 * (m.square() + v - 1 - log)
    per = lambda k: k.sum() / len(mean)
    right, var = kl(mean, logvar.exp(), logvar), logvar.exp()
    compare(got, per(right), "gaussian_kl(mean, logvar)", mistakes=[
        (right.mean(), "this is the mean over all latent values. The released models sum over each latent (and average "
                       "over the batch): their weight 1e-6 belongs to that sum."),
        (right.sum() / 4, "the number of pictures is a fixed number: divide by len(mean)."),
        (right.sum(), "the sum over a latent, but the *mean* over the batch: divide by len(mean)."),
        (right.sum((1, 2, 3)), "average over the batch at the end."),
        (right.mean((1, 2, 3)).sum(), "the other way round: the sum over a latent, the mean over the batch."),
        (per(0.5 * (mean.square() + var)), "-1 - logvar is missing: N(0, 1) itself must have KL 0."),
        (per(right) / math.log(2), "this is in bits; the natural logarithm gives nats."),
        (per(kl(mean, (2 * logvar).exp(), 2 * logvar)), "logvar is the log of the *variance*: var = exp(logvar). You "
                                                        "took it for the log of the standard deviation."),
        (per(kl(mean, (0.5 * logvar).exp(), logvar)), "exp(logvar / 2) is the standard deviation; the KL has the "
                                                      "variance, exp(logvar)."),
        (per(kl(mean, (2 * logvar).exp(), logvar)), "exp(logvar) is the variance already: do not square it."),
        (per(kl(mean, logvar.square(), logvar)), "logvar is a logarithm: the variance is exp(logvar)."),
        (per(kl(mean, logvar, logvar)), "logvar is a logarithm: the variance is exp(logvar)."),
        (per(-right), "the sign: a KL divergence is never negative."),
        (per(2 * right), "the factor 1/2 is missing."),
        (per(kl(mean, var, 0.5 * logvar)), "log sigma^2 is logvar itself: no factor but the 1/2 in front of all."),
        (per(kl(mean, var, 2 * logvar)), "log sigma^2 is logvar itself: it is not doubled."),
        (right.sum(1).mean(), "the sum runs over channels only; a latent is all of its C x h x w values."),
        (per(right + 0.5), "the -1 is missing: N(0, 1) itself must have KL 0."),
        (per(kl(mean, var, -logvar)), "the sign of logvar: the KL falls as the variance grows towards 1."),
        (per(kl(mean.abs().sqrt(), var, logvar)), "the mean enters squared."),
        (per(0.5 * (1 / var + mean.square() / var - 1 + logvar)),
         "this is KL(N(0, 1) || q). The posterior q comes first: KL(q || N(0, 1))."),
    ])
    return per(right)
