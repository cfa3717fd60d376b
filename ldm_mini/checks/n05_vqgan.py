"""Checks of notebook 05, the adversarial loss."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .checking import CheckFailed, attempt, compare, noise, number, passed, several


def hinge_losses(function):
    """`function(real, fake)`: logits of any shape -> discriminator's loss (), generator's loss ()."""
    real, fake = noise(3, 1, 4, 4) + 1.3, noise(2, 1, 5, 5, seed=1) - 0.3  # other shapes: each has its own mean
    got = attempt(function, real, fake, name="hinge_losses")
    got = several(got, "hinge_losses", "two things: the discriminator's loss and the generator's")
    relu = torch.relu
    d = lambda r, f: 0.5 * (r.mean() + f.mean())
    compare(got[0], d(relu(1 - real), relu(1 + fake)), "the discriminator's loss", mistakes=[
        (d(relu(1 + real), relu(1 - fake)), "real and fake are swapped, or their signs: D wants real logits above "
                                            "+1, so 1 - real is what is missing."),
        (2 * d(relu(1 - real), relu(1 + fake)), "the factor 1/2 is missing: it is a mean of two halves."),
        (d(relu(-real), relu(fake)), "the margin is missing: max(0, 1 - real), max(0, 1 + fake)."),
        (d(1 - real, 1 + fake), "max(0, .) is missing: what is beyond the margin costs nothing, and gains nothing."),
        (0.5 * (relu(1 - real.mean()) + relu(1 + fake.mean())), "take max(0, .) of every logit, then the mean: a "
                                                                "confident patch must not pay for a wrong one."),
        (torch.cat([relu(1 - real).flatten(), relu(1 + fake).flatten()]).mean(), "one mean over all logits together; "
         "real and fake have a mean each, and half of the say each."),
        (-fake.mean(), "the order: first the discriminator's loss, then the generator's."),
        (0.5 * (relu(1 - real).sum() + relu(1 + fake).sum()), "means, not sums: a larger image is no larger mistake."),
        (d(F.softplus(-real), F.softplus(fake)), "this is cross entropy (-log D). The hinge is what VQGAN's code runs: "
                                                 "max(0, 1 - real), max(0, 1 + fake)."),
        (d(relu(1 - real).square(), relu(1 + fake).square()), "no squares: the hinge is linear."),
    ])
    compare(got[1], -fake.mean(), "the generator's loss", mistakes=[
        (fake.mean(), "the sign: the generator wants its logits *high*, so a loss falls as they rise."),
        (relu(1 - fake).mean(), "no hinge here: VQGAN's generator loss is just -mean(fake)."),
        (F.softplus(-fake).mean(), "this is cross entropy; VQGAN's generator loss is just -mean(fake)."),
        (-fake.sum(), "a mean over patches, not a sum."),
        (-real.mean(), "the generator is judged by its *own* pictures: fake."),
        (got[0] if isinstance(got[0], Tensor) else fake.mean(), "this is the discriminator's loss again."),
    ])
    passed("hinge_losses: real above +1, fake below -1, and the generator pushes up")


def receptive_field(function):
    """`function(kernels, strides)`: two lists of ints, first layer first -> side of the patch behind one output."""
    for kernels, strides in (([3, 5, 2], [2, 3, 1]), ([5], [1]), ([3, 3], [1, 1]), ([4] * 4, [2, 2, 1, 1]),
                             ([4] * 5, [2, 2, 2, 1, 1]), ([3, 1, 5], [1, 2, 3])):
        got = number(attempt(function, list(kernels), list(strides), name="receptive_field"), "receptive_field").item()
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


class TinyAutoencoder(nn.Module):
    """Two convolutions and their `last_layer`, small enough to know all its gradients."""

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 3, 3, padding=1)
        _fill(self, 0.3, 20)

    @property
    def last_layer(self) -> nn.Parameter:
        """The decoder's last weight."""
        return self.decoder.weight

    def forward(self, x: Tensor) -> Tensor:
        """x (B,3,H,W) -> reconstruction (B,3,H,W)"""
        return self.decoder(torch.tanh(self.encoder(x)))


def _fill(module: nn.Module, scale: float, seed: int) -> None:
    with torch.no_grad():
        for i, p in enumerate(module.parameters()):
            p.copy_(scale * noise(*p.shape, seed=seed + i))


def _losses(scale_g: float = 0.05, scale_nll: float = 1.0):
    """A tiny autoencoder, its reconstruction loss, and some adversarial loss."""
    model, x = TinyAutoencoder(), noise(2, 3, 6, 6)
    y = model(x)
    nll = scale_nll * (x - y).abs().mean()
    return model, nll, -scale_g * (torch.sin(3 * y) + y).mean()


def _norm(loss: Tensor, of, order=2) -> Tensor:
    """Norm of the gradient of a loss, over one tensor or several."""
    of = [of] if isinstance(of, Tensor) else list(of)
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, of, retain_graph=True)]).norm(order)


def adaptive_lambda(function):
    """`function(nll, g_loss, autoencoder)` -> lambda (), VQGAN eq. 7, from gradients of `autoencoder.last_layer`."""
    model, nll, g_loss = _losses()
    last, every = model.last_layer, list(model.parameters())
    a, b, delta = _norm(nll, last), _norm(g_loss, last), 1e-4
    mistakes = [  # before the call, which may free the graph
        (b / (a + delta), "the ratio is upside down: |grad nll| / |grad g|. A *weak* critic needs a large lambda."),
        (_norm(nll, every) / (_norm(g_loss, every) + delta), "you took the gradients of all parameters; VQGAN takes "
                                                             "those of autoencoder.last_layer alone."),
        (_norm(nll, model.encoder.weight) / (_norm(g_loss, model.encoder.weight) + delta),
         "this is the encoder's weight; take autoencoder.last_layer."),
        (a / b, "delta = 1e-4 is missing in the denominator. Without it a critic that has no opinion gives a 0/0."),
        (a / (b + 1e-6), "delta is 1e-4 here, as in the code of VQGAN and LDM (the VQGAN paper says 1e-6)."),
        ((a + delta) / b, "delta belongs to the denominator."),
        (a.square() / (b.square() + delta), "norms, not squared norms."),
        (_norm(nll, last, 1) / (_norm(g_loss, last, 1) + delta), "the Euclidean norm: grad.norm(), not a sum of |.|."),
        (nll.detach() / (g_loss.detach() + delta), "the ratio of the *gradients'* norms, not of the losses."),
        ((a / (b + delta)).clamp(0, 1), "the clamp is [0, 1e4], not [0, 1]."),
        (0.75 * a / (b + delta), "without disc_weight: that is multiplied later."),
    ]
    got = attempt(lambda: function(nll, g_loss, model), name="adaptive_lambda")
    compare(got, a / (b + delta), "adaptive_lambda(nll, g_loss, autoencoder)", rtol=1e-5, atol=0, mistakes=mistakes)
    if got.requires_grad:
        raise CheckFailed("lambda carries a gradient. It is a weight, not a loss: end with .detach(), or the optimizer "
                          "learns to make the critic's gradient small.")
    if any(p.grad is not None for p in every):
        raise CheckFailed("your gradients were added to the parameters' .grad (by backward()), and the next optimizer "
                          "step will use them. Ask torch.autograd.grad, which only returns them.")
    try:
        (nll + got * g_loss).backward()
    except RuntimeError:
        raise CheckFailed("after adaptive_lambda the losses cannot be back-propagated any more: pass "
                          "retain_graph=True, since the real backward pass is still to come.") from None
    # a critic without any gradient, where only the clamp is left
    model, nll, g_loss = _losses(scale_g=0.0, scale_nll=30.0)
    a = _norm(nll, model.last_layer)
    got = attempt(lambda: function(nll, g_loss, model), name="adaptive_lambda")
    compare(got, torch.tensor(1e4), "adaptive_lambda where the critic has no gradient", mistakes=[
        (a / delta, "the clamp to [0, 1e4] is missing: a critic without an opinion would get any weight.")])
    passed("adaptive_lambda: the critic pulls as hard as the reconstruction, no harder")


def vqgan_loss(function):
    """`function(nll, bottleneck, g_loss, lam, step, disc_start, disc_weight)` -> the autoencoder's whole loss ()."""
    nll, q, g, lam = (torch.tensor(v) for v in (0.7, 0.2, -0.5, 3.0))
    for step, start, weight in ((7, 5, 0.75), (5, 5, 0.75), (4, 5, 0.75), (0, 0, 0.5), (0, 5, 0.5)):
        got = attempt(function, nll, q, g, lam, step, start, weight, name="vqgan_loss")
        on = float(step >= start)
        at = f"vqgan_loss at step {step}, disc_start={start}"
        early = "before disc_start only the *adversarial* term is off: the autoencoder learns on."
        compare(got, nll + q + on * weight * lam * g, at, mistakes=[
            (nll + q + (1 - on) * weight * lam * g,
             "the critic is on when step >= disc_start, so at step == disc_start too." if step == start else
             "the gate is upside down: the critic is off *before* disc_start." if step > start else
             "the adversarial term counts already. Before disc_start it is 0."),
            (on * (nll + q + weight * lam * g), early), (nll + on * (q + weight * lam * g), early),
            (nll + q + on * lam * g, "disc_weight is missing."),
            (nll + q + on * weight * g, "lambda is missing."),
            (nll + on * weight * lam * g, "the bottleneck's loss is missing: the codebook would not learn."),
            (nll + q - on * weight * lam * g, "the sign: g_loss = -mean(fake) has its minus already."),
            (nll + weight * lam * (q + g), "lambda weighs the adversarial term alone."),
            (nll + q + on * weight * g / lam, "lambda multiplies."),
        ])
    passed("vqgan_loss: reconstruct always, please the critic from disc_start on")


class TinyCritic(nn.Module):
    """One convolution: a discriminator that has nothing to hide."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 1, 3)
        _fill(self, 0.2, 40)

    def forward(self, x: Tensor) -> Tensor:
        """x (B,3,H,W) -> logits (B,1,H-2,W-2)"""
        return self.conv(x)


def discriminator_step(function):
    """`function(discriminator, optimizer, x, x_rec)`: one step of D on real x and reconstructions x_rec -> loss ()."""
    model, critic, x = TinyAutoencoder(), TinyCritic(), noise(2, 3, 8, 8)
    x_rec = model(x)
    optimizer = torch.optim.SGD(critic.parameters(), 0.1)
    (-critic(x_rec).mean()).backward(retain_graph=True)  # the generator's step came first and left its gradients here
    stale = [p.grad.clone() for p in critic.parameters()]
    model.zero_grad(set_to_none=True)
    before = [p.detach().clone() for p in critic.parameters()]
    hinge = 0.5 * (F.relu(1 - critic(x)).mean() + F.relu(1 + critic(x_rec.detach())).mean())
    flipped = 0.5 * (F.relu(1 + critic(x)).mean() + F.relu(1 - critic(x_rec.detach())).mean())
    half = 0.5 * F.relu(1 - critic(x)).mean()
    right, wrong, real_only = (torch.autograd.grad(loss, list(critic.parameters()), retain_graph=True)
                               for loss in (hinge, flipped, half))
    frozen = [p.detach().clone() for p in model.parameters()]

    got = attempt(lambda: function(critic, optimizer, x, x_rec), name="discriminator_step")
    if any(p.grad is not None for p in model.parameters()):
        raise CheckFailed("the discriminator's loss left gradients in the *autoencoder*: it would learn to be found "
                          "out. Judge x_rec.detach().")
    moved = [b - p.detach() for b, p in zip(before, critic.parameters())]

    def step_was(grads):
        return all(torch.allclose(m, 0.1 * g, atol=1e-6) for m, g in zip(moved, grads))

    if all(m.abs().max() == 0 for m in moved):
        raise CheckFailed("the discriminator has not changed: zero_grad(), then backward(), then step(), "
                          "all three, in this order.")
    if step_was([r + s for r, s in zip(right, stale)]):
        raise CheckFailed("the gradients that the generator's step left in D were added to yours: "
                          "optimizer.zero_grad() before backward().")
    if step_was([-r for r in right]) or step_was(wrong):
        raise CheckFailed("D went the wrong way: real logits should rise, and those of reconstructions fall.")
    if step_was(real_only):
        raise CheckFailed("D learned nothing from the reconstructions: under no_grad (or detached after D) its verdict "
                          "on them has no gradient. Detach the *pictures* instead: D(x_rec.detach()).")
    if not step_was(right):
        raise CheckFailed("D did not make the step of the hinge loss 0.5 * (mean max(0, 1 - D(x)) + mean max(0, 1 + "
                          "D(x_rec))). Are both pictures judged, once each, before one optimizer step?")
    compare(got, hinge, "the returned loss", mistakes=[(2 * hinge, "the factor 1/2 is missing.")])
    assert all(torch.equal(a, b) for a, b in zip(frozen, model.parameters()))
    passed("discriminator_step: D learns, the autoencoder does not notice")


def gaussian_kl(function):
    """`function(mean, logvar)`: (B,C,h,w) each -> KL from N(0, 1) (): sum over a latent, mean over the batch."""
    mean, logvar = noise(4, 3, 2, 2), 0.8 * noise(4, 3, 2, 2, seed=1) - 0.5
    kl = lambda m, v, log: 0.5 * (m.square() + v - 1 - log)
    per = lambda k: k.sum() / len(mean)
    right, var = kl(mean, logvar.exp(), logvar), logvar.exp()
    got = attempt(function, mean, logvar, name="gaussian_kl")
    compare(got, per(right), "gaussian_kl(mean, logvar)", mistakes=[
        (right.mean(), "this is the mean over all latent values. The released models sum over each latent (and average "
                       "over the batch): their weight 1e-6 belongs to that sum."),
        (right.sum(), "the sum over a latent, but the *mean* over the batch: divide by len(mean)."),
        (right.sum((1, 2, 3)), "average over the batch at the end."),
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
    passed("gaussian_kl: in nats, summed over a latent")
