"""Checks of notebook 05, continued: the two players, their losses together and the critic's step."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .checking import CheckFailed, attempt, compare, passed
from .properties import fresh, learn, same_gradient, scalar


class TinyAutoencoder(nn.Module):
    """Two convolutions and their `last_layer`, small enough to know all its gradients."""

    def __init__(self, draw, width: int = 4):
        super().__init__()
        self.encoder, self.decoder = nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(width, 3, 3, padding=1)
        _fill(self, 0.3, draw)

    @property
    def last_layer(self) -> nn.Parameter:
        """The decoder's last weight."""
        return self.decoder.weight

    def forward(self, x: Tensor) -> Tensor:
        """x (B,3,H,W) -> reconstruction (B,3,H,W)"""
        return self.decoder(torch.tanh(self.encoder(x)))


def _fill(module: nn.Module, scale: float, draw) -> None:
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(scale * draw(*p.shape))


def _losses(draw, width: int = 4, scale_g: float = 0.05, scale_nll: float = 1.0):
    """A tiny autoencoder, its reconstruction loss, and some adversarial loss."""
    model, x = TinyAutoencoder(draw, width), draw(2, 3, 6, 6)
    y = model(x)
    nll = scale_nll * (x - y).abs().mean()
    return model, nll, -scale_g * (torch.sin(3 * y) + y).mean()


def _norm(loss: Tensor, of, order=2) -> Tensor:
    """Norm of the gradient of a loss, over one tensor or several."""
    of = [of] if isinstance(of, Tensor) else list(of)
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, of, retain_graph=True)]).norm(order)


def adaptive_lambda(function):
    """`function(nll, g_loss, autoencoder)` -> lambda (), VQGAN eq. 7, from gradients of `autoencoder.last_layer`."""
    draw = fresh()
    # weak critics, where delta counts, and a strong one; a model in either mode
    for width, scale_g, training in ((4, 0.003, True), (3, 0.05, False), (5, 3.0, True)):
        _one_lambda(function, *_losses(draw, width, scale_g), training)
    # a critic without any gradient, where only the clamp is left
    model, nll, g_loss = _losses(draw, scale_g=0.0, scale_nll=1000.0)
    a = _norm(nll, model.last_layer)
    got = scalar(attempt(lambda: function(nll, g_loss, model), name="adaptive_lambda"))
    compare(got, torch.tensor(1e4), "adaptive_lambda where the critic has no gradient", mistakes=[
        (a / 1e-4, "the clamp to [0, 1e4] is missing: a critic without an opinion would get any weight.")])
    passed("adaptive_lambda: the critic pulls as hard as the reconstruction, no harder")


def _one_lambda(function, model, nll, g_loss, training: bool):
    last, every = model.train(training).last_layer, list(model.parameters())
    a, b, delta = _norm(nll, last), _norm(g_loss, last), 1e-4
    of_all = lambda of: _norm(nll, of) / (_norm(g_loss, of) + delta)
    mistakes = [  # before the call, which may free the graph
        (b / (a + delta), "the ratio is upside down: |grad nll| / |grad g|. A *weak* critic needs a large lambda."),
        (of_all(every), "you took the gradients of all parameters; VQGAN takes those of autoencoder.last_layer alone."),
        (of_all(list(model.decoder.parameters())), "you took the last layer's bias too; autoencoder.last_layer is its "
                                                   "weight alone."),
        (of_all(model.encoder.weight), "this is the encoder's weight; take autoencoder.last_layer."),
        (a / b, "delta = 1e-4 is missing in the denominator. Without it a critic that has no opinion gives a 0/0."),
        (a / (b + 1e-6), "delta is 1e-4 here, as in the code of VQGAN and LDM (the VQGAN paper says 1e-6)."),
        ((a + delta) / b, "delta belongs to the denominator."),
        (a / b + delta, "delta belongs to the denominator."),
        (a.square() / (b.square() + delta), "norms, not squared norms."),
        *[(_norm(nll, last, order) / (_norm(g_loss, last, order) + delta), "the Euclidean norm: grad.norm(), the root "
           "of the sum of squares.") for order in (1, float("inf"))],
        ((nll / (g_loss + delta)).detach(), "the ratio of the *gradients'* norms, not of the losses."),
        ((nll / (g_loss.abs() + delta)).detach(), "the ratio of the *gradients'* norms, not of the losses."),
        ((a / (b + delta)).clamp(0, 1), "the clamp is [0, 1e4], not [0, 1]."),
        (0.75 * a / (b + delta), "without disc_weight: that is multiplied later."),
    ]
    before = [p.detach().clone() for p in every]
    got = scalar(attempt(lambda: function(nll, g_loss, model), name="adaptive_lambda"))
    compare(got, a / (b + delta), "adaptive_lambda(nll, g_loss, autoencoder)", rtol=2e-5, atol=0, mistakes=mistakes)
    if got.requires_grad:
        raise CheckFailed("lambda carries a gradient. It is a weight, not a loss: end with .detach(), or the optimizer "
                          "learns to make the critic's gradient small.")
    if any(p.grad is not None for p in every):
        raise CheckFailed("your gradients were added to the parameters' .grad (by backward()), and the next optimizer "
                          "step will use them. Ask torch.autograd.grad, which only returns them.")
    _left_alone(model, training, before, "adaptive_lambda", "the autoencoder")
    try:
        (nll + got * g_loss).backward()
    except RuntimeError:
        raise CheckFailed("after adaptive_lambda the losses cannot be back-propagated any more: pass "
                          "retain_graph=True, since the real backward pass is still to come.") from None


def _left_alone(module: nn.Module, training: bool, before: list, name: str, who: str):
    """A function that measures a network, or judges with it, changes neither its mode nor what it learned."""
    if module.training != training:
        raise CheckFailed(f"{name} left {who} in another mode than it found it: no .train() or .eval() in it.")
    if not all(p.requires_grad for p in module.parameters()):
        raise CheckFailed(f"{name} left {who} frozen: its parameters have requires_grad=False now.")
    if not all(torch.equal(a, b) for a, b in zip(before, module.parameters())):
        raise CheckFailed(f"{name} changed the parameters of {who}.")


def vqgan_loss(function):
    """`function(nll, bottleneck, g_loss, lam, step, disc_start, disc_weight)` -> the autoencoder's whole loss ()."""
    draw = fresh()
    for step, start, weight in ((7, 5, 0.75), (5, 5, 0.75), (4, 5, 0.75), (0, 0, 0.5), (0, 5, 0.5), (900, 250, 1.5)):
        nll, q, lam = (v.exp() for v in draw(3))
        nll, q, g = learn(nll, q, draw(1)[0] - 0.5)
        got = attempt(function, nll, q, g, lam, step, start, weight, name="vqgan_loss")
        on = float(step >= start)
        at = f"vqgan_loss at step {step}, disc_start={start}"
        early = "before disc_start only the *adversarial* term is off: the autoencoder learns on."
        right = nll + q + on * weight * lam * g
        compare(got, right, at, mistakes=[
            (nll + q + (1 - on) * weight * lam * g,
             "the critic is on when step >= disc_start, so at step == disc_start too." if step == start else
             "the gate is upside down: the critic is off *before* disc_start." if step > start else
             "the adversarial term counts already. Before disc_start it is 0."),
            (on * (nll + q + weight * lam * g), early), (nll + on * (q + weight * lam * g), early),
            (q + on * (nll + weight * lam * g), early),
            (nll + q + on * lam * g, "disc_weight is missing."),
            (nll + q + on * 0.75 * lam * g, "disc_weight is a fixed number: use the argument."),
            (nll + q + on * weight * g, "lambda is missing."),
            (nll + q + on * g, "lambda and disc_weight are missing."),
            (nll + q + on * weight * lam, "g_loss is missing: lambda is only its weight."),
            (nll + on * weight * lam * g, "the bottleneck's loss is missing: the codebook would not learn."),
            (q + on * weight * lam * g, "the reconstruction loss nll is missing."),
            (nll + q - on * weight * lam * g, "the sign: g_loss = -mean(fake) has its minus already."),
            (nll + weight * lam * (q + g), "lambda weighs the adversarial term alone."),
            (lam * nll + q + on * weight * g, "lambda weighs the adversarial term, not the reconstruction."),
            (nll + q + on * weight * g / lam, "lambda multiplies."),
            (nll + q + on * (weight + lam) * g, "disc_weight and lambda are multiplied."),
        ])
        same_gradient(got, right, {"nll": nll, "bottleneck": q, "g_loss": g}, at)
    passed("vqgan_loss: reconstruct always, please the critic from disc_start on")


class TinyCritic(nn.Module):
    """One convolution: a discriminator that has nothing to hide."""

    def __init__(self, draw):
        super().__init__()
        self.conv = nn.Conv2d(3, 1, 3)
        _fill(self, 0.2, draw)

    def forward(self, x: Tensor) -> Tensor:
        """x (B,3,H,W) -> logits (B,1,H-2,W-2)"""
        return self.conv(x)


def discriminator_step(function):
    """`function(discriminator, optimizer, x, x_rec)`: one step of D on real x and reconstructions x_rec -> loss ()."""
    draw = fresh()
    for size, rate, training in ((8, 0.1, True), (6, 0.03, False)):
        _one_step(function, draw, size, rate, training)
    passed("discriminator_step: D learns, the autoencoder does not notice")


def _one_step(function, draw, size: int, rate: float, training: bool):
    model, critic, x = TinyAutoencoder(draw), TinyCritic(draw).train(training), draw(2, 3, size, size)
    x_rec = model(x)
    optimizer = torch.optim.SGD(critic.parameters(), rate)
    (-critic(x_rec).mean()).backward(retain_graph=True)  # the generator's step came first and left its gradients here
    stale = [p.grad.clone() for p in critic.parameters()]
    model.zero_grad(set_to_none=True)
    before, frozen = ([p.detach().clone() for p in net.parameters()] for net in (critic, model))
    real, fake = critic(x), critic(x_rec.detach())
    hinge = 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())
    entropy = 0.5 * (F.softplus(-real).mean() + F.softplus(fake).mean())
    flipped = 0.5 * (F.relu(1 + real).mean() + F.relu(1 - fake).mean())
    half, other = 0.5 * F.relu(1 - real).mean(), 0.5 * F.relu(1 + fake).mean()
    right, soft, wrong, real_only, fake_only, pushed = (
        torch.autograd.grad(loss, list(critic.parameters()), retain_graph=True)
        for loss in (hinge, entropy, flipped, half, other, -fake.mean()))

    got = attempt(lambda: function(critic, optimizer, x, x_rec), name="discriminator_step")
    if any(p.grad is not None for p in model.parameters()):
        raise CheckFailed("the discriminator's loss left gradients in the *autoencoder*: it would learn to be found "
                          "out. Judge x_rec.detach().")
    if not x_rec.requires_grad:
        raise CheckFailed("x_rec itself was cut off from the autoencoder: detach_() works in place; detach() does not.")
    moved = [b - p.detach() for b, p in zip(before, critic.parameters())]

    def step_was(grads):
        return all(torch.allclose(m, rate * g, atol=1e-6) for m, g in zip(moved, grads))

    if all(m.abs().max() == 0 for m in moved):
        raise CheckFailed("the discriminator has not changed: zero_grad(), then backward(), then step(), "
                          "all three, in this order.")
    if step_was([r + s for r, s in zip(right, stale)]):
        raise CheckFailed("the gradients that the generator's step left in D were added to yours: "
                          "optimizer.zero_grad() before backward().")
    if step_was([-r for r in right]) or step_was(wrong):
        raise CheckFailed("D went the wrong way: real logits should rise, and those of reconstructions fall.")
    if step_was(pushed):
        raise CheckFailed("D made the generator's step: it learned to like the reconstructions. Use its own loss, the "
                          "first of the two.")
    if step_was(real_only):
        raise CheckFailed("D learned nothing from the reconstructions: under no_grad (or detached after D) its verdict "
                          "on them has no gradient. Detach the *pictures* instead: D(x_rec.detach()).")
    if step_was(fake_only):
        raise CheckFailed("D learned nothing from the real pictures: judge x too, with a gradient.")
    if step_was([2 * r for r in right]):
        raise CheckFailed("D made a step twice as large: the factor 1/2 of the loss is missing, or a second "
                          "backward() or step().")
    if step_was(soft):
        raise CheckFailed("D made the step of cross entropy; here it is the hinge loss: max(0, 1 - D(x)), max(0, 1 + "
                          "D(x_rec)).")
    if not step_was(right):
        raise CheckFailed("D did not make the step of the hinge loss 0.5 * (mean max(0, 1 - D(x)) + mean max(0, 1 + "
                          "D(x_rec))). Are both pictures judged, once each, before one optimizer step?")
    compare(scalar(got), hinge, "the returned loss", mistakes=[
        (2 * hinge, "the factor 1/2 is missing."), (-fake.mean(), "this is the generator's loss."),
        (half, "only the real pictures' half was returned."), (other, "only the reconstructions' half was returned."),
    ])
    _left_alone(model, True, frozen, "discriminator_step", "the autoencoder")
    _left_alone(critic, training, list(critic.parameters()), "discriminator_step", "the discriminator")
