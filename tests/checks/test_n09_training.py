"""Checks of notebook 09's training: known wrong solutions fail with a hint; right ones written another way pass."""

import itertools
import math
from functools import partial

import torch
import torch.nn.functional as F
from solutions import spoiled, try_all

from ldm_mini import checks
from ldm_mini.cond import Cond
from ldm_mini.diffusion import diffusion_loss
from ldm_mini.ema import EMA
from ldm_mini.train import TrainState, train_diffusion
from ldm_mini.train import lr_factor as library_factor


def factor(step, steps, warmup, *, ramp=lambda step, warmup: (step + 1) / warmup,
           part=lambda s, n, w: (s - w) / (n - w), fall=lambda part: 0.5 * (1 + math.cos(math.pi * part))):
    return ramp(step, warmup) if step < warmup else fall(part(step, steps, warmup))


def step(model, optimizer, batch, lr, clip=1.0, *, groups=None, zero="early", limit=lambda clip: clip, steps=1,
         clipping=torch.nn.utils.clip_grad_norm_, result=lambda loss: loss.item(), first=0, after=False):
    for group in optimizer.param_groups[:groups]:
        group["lr"] = lr
    for _ in range(first):
        optimizer.step()
    loss = model.loss(batch)
    if zero == "early":
        optimizer.zero_grad()
    loss.backward()
    if zero == "late":
        optimizer.zero_grad()
    clipping(model.trainable_parameters(), limit(clip))
    for _ in range(steps):
        optimizer.step()
    return result(model.loss(batch) if after else loss)


def step_by_hand(model, optimizer, batch, lr, clip=1.0):
    """Gradients from autograd.grad, clipped by hand."""
    for group in optimizer.param_groups:
        group.update(lr=lr)
    parameters = model.trainable_parameters()
    loss = model(batch)
    gradients = torch.autograd.grad(loss, parameters)
    length = torch.stack([g.square().sum() for g in gradients]).sum().sqrt()
    for p, g in zip(parameters, gradients):
        p.grad = g * min(1.0, clip / (float(length) + 1e-6))
    optimizer.step()
    return loss.item()


def second_stage(model, batches, steps, lr, warmup, ema_decay, *, kind=torch.optim.AdamW, mode=True, start=0, average=1,
                 rate=lambda lr, *place: lr * factor(*place), decay=lambda d: d, draw=next, early=False,
                 result=lambda ema, losses: (ema.state_dict(), losses), more=0, learning=step):
    optimizer, ema, losses = kind(model.trainable_parameters(), lr), EMA(model, decay(ema_decay)), []
    model.train(mode)
    batches = iter(batches)
    for n in range(steps + more):
        if early:
            ema.update(model)
        losses.append(learning(model, optimizer, draw(batches), rate(lr, n + start, steps, warmup)))
        for _ in range(average * (not early)):
            ema.update(model)
    return result(ema, losses)


def library_stage(model, batches, steps, lr, warmup, ema_decay):
    """The library's own loop."""
    state = TrainState(KeepsNoPower(model), lr=lr, ema_decay=ema_decay)
    losses = [log.loss for log in train_diffusion(state, batches, steps, warmup=warmup, decay="cosine")]
    return {name.removeprefix("model."): a for name, a in state.ema.state_dict().items()}, losses


class KeepsNoPower(torch.nn.Module):
    """The loop hands `t_power` to a loss, which the check's model does not know."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, batch, t_power=1.0):
        return self.model(batch)


def joint(autoencoder, net, schedule, x, t, eps, *, kind="v", latent=lambda z: z, keep=lambda v: v, size=torch.abs,
          reduce=torch.mean, decoded=lambda z: z, target=lambda z: z):
    z = autoencoder.encode(x)
    reconstruction = reduce(size(autoencoder.decode(decoded(z)) - x))
    if kind != "v":
        return z, reconstruction, keep(diffusion_loss(net, schedule, latent(z), Cond(), kind, t, eps))
    noisy = schedule.add_noise(latent(z), eps, t)
    v = schedule.alpha(t, 4) * eps - schedule.sigma(t, 4) * target(latent(z))
    return z, reconstruction, keep((net(noisy, t, Cond()) - v).square().mean())


def joint_of_the_library(autoencoder, net, schedule, x, t, eps):
    z = autoencoder.encode(x)
    return z, F.l1_loss(autoencoder.decode(z), x), diffusion_loss(net, schedule, z, Cond(), "v", t, eps)


def both_learn(autoencoder, net, optimizer, schedule, x, t, eps, *, losses=joint, total=lambda a, b: a + b,
               zero="early", steps=1, spread=lambda z: z.std(), result=lambda a, b, s: (a.item(), b.item(), s.item()),
               after=False):
    """A step on both losses, with one thing changed."""
    z, a, b = losses(autoencoder, net, schedule, x, t, eps)
    if zero == "early":
        optimizer.zero_grad()
    total(a, b).backward()
    if zero == "late":
        optimizer.zero_grad()
    for _ in range(steps):
        optimizer.step()
    z, a, b = losses(autoencoder, net, schedule, x, t, eps) if after else (z, a, b)
    return result(a, b, spread(z))


def both_learn_in_turn(autoencoder, net, optimizer, schedule, x, t, eps):
    """Gradients of the two losses one after the other, which add up by themselves."""
    z, a, b = joint_of_the_library(autoencoder, net, schedule, x, t, eps)
    optimizer.zero_grad(set_to_none=False)
    a.backward(retain_graph=True)
    b.backward()
    optimizer.step()
    return [float(v.detach()) for v in (a, b, (z - z.mean()).square().sum().div(z.numel() - 1).sqrt())]


CORRECT = {
    checks.joint_step: [both_learn, both_learn_in_turn],
    checks.lr_factor: [factor, library_factor,
                       lambda s, n, w: (s + 1) / w if s < w else math.cos((s - w) / (n - w) * math.pi / 2) ** 2],
    checks.latent_train_step: [step, step_by_hand, partial(step, result=lambda loss: float(loss.detach()))],
    checks.latent_training: [second_stage, library_stage, partial(second_stage, learning=step_by_hand)],
    checks.joint_losses: [joint, joint_of_the_library, lambda *a: list(joint(*a))],
}

MUTANTS = {
    checks.joint_step: spoiled(
        both_learn, (dict(steps=0), "nothing has moved"), (dict(zero="late"), "nothing has moved"),
        (dict(zero="never"), "last step's gradient"), (dict(total=lambda a, b: a), "only the reconstruction"),
        (dict(total=lambda a, b: b), "only the diffusion"), (dict(total=lambda a, b: a - b), "not subtracted"),
        (dict(total=lambda a, b: (a + b) / 2), "half of the sum"),
        (dict(losses=partial(joint, latent=torch.detach)), "does not reach the encoder"),
        (dict(losses=partial(joint, target=torch.detach)), "off by"), (dict(steps=2), "off by"),
        (dict(after=True), "after the step"), (dict(spread=torch.var), "the variance"),
        (dict(spread=lambda z: z.std(correction=0) * 1.01), "off by"),
        (dict(result=lambda a, b, s: (b.item(), a.item(), s.item())), "the order"),
        (dict(result=lambda a, b, s: (s.item(), a.item(), b.item())), "the order"),
        (dict(result=lambda a, b, s: (a, b, s)), "a tensor"), (dict(result=lambda a, b, s: a.item()), "three things"),
        (dict(result=lambda a, b, s: (a.item(), b.item(), s)), "deviation of z is a tensor")),
    checks.lr_factor: spoiled(
        factor, (dict(ramp=lambda s, w: s / w), "rate of 0"), (dict(ramp=lambda s, w: 1.0), "off by|after the warm-up"),
        (dict(fall=lambda p: 1.0), "half a cosine"), (dict(fall=lambda p: 1 - p), "straight line"),
        (dict(part=lambda s, n, w: s / n), "when the warm-up is over"),
        (dict(part=lambda s, n, w: (s - w) / n), "would not reach 0"),
        (dict(fall=lambda p: math.cos(math.pi * p)), "from 1 to -1"),
        (dict(fall=lambda p: math.cos(math.pi / 2 * p)), "quarter of a cosine"),
        (dict(part=lambda s, n, w: (s + 1 - w) / (n - w)), "off by"), (dict(ramp=lambda s, w: (s + 1) / 4), "off by"),
        (dict(fall=lambda p: 0.5 * (1 + math.cos(p))), "off by")) + [
        (lambda *a: [factor(*a)], "one number"), (lambda *a: torch.tensor(factor(*a)), "plain number")],
    checks.latent_train_step: spoiled(
        step, (dict(groups=0), "kept its own rate"), (dict(groups=1), "only the first"), (dict(steps=0), "nothing"),
        (dict(zero="late"), "nothing"), (dict(limit=lambda c: math.inf), "not clipped"),
        (dict(limit=lambda c: 1.0), "length 1"), (dict(clipping=torch.nn.utils.clip_grad_value_), "each value"),
        (dict(zero="never"), "last step's gradient was still"), (dict(steps=0, first=1), "before the loss"),
        (dict(steps=2), "two steps"), (dict(result=lambda loss: loss), "loss.item"),
        (dict(after=True), "after the step"),
        (dict(result=lambda loss: loss.item() / 2), "off by")),
    checks.latent_training: spoiled(
        second_stage, (dict(rate=lambda lr, *place: lr), "same in every step"),
        (dict(rate=lambda lr, *place: factor(*place)), "factor alone"), (dict(start=1), "counted from 0"),
        (dict(average=0), "never moved"), (dict(early=True), "before the step"), (dict(average=2), "off by"),
        (dict(decay=lambda d: 0.9999), "not used"), (dict(decay=lambda d: 0.0), "weights themselves"),
        (dict(kind=torch.optim.Adam), "Adam"), (dict(kind=torch.optim.SGD), "off by"),
        (dict(mode=False), "evaluation mode"), (dict(more=-1), "one float for each"),
        (dict(more=1), "one float for each"),
        (dict(learning=lambda *a: torch.tensor(step(*a))), "one float for each"),
        (dict(learning=lambda m, o, b, lr: step(m, o, b, lr, 1e9)), "off by"),
        (dict(result=lambda ema, losses: (losses, ema.state_dict())), "one float for each"),
        (dict(result=lambda ema, losses: losses), "two things"),
        (dict(result=lambda ema, losses: (ema, losses)), "dict")) + [
        (lambda m, b, *rest: second_stage(m, itertools.repeat(next(b)), *rest), "first batch"),
        (lambda m, b, *rest: second_stage(m, itertools.islice(b, 1, None), *rest), "off by")],
    checks.joint_losses: spoiled(
        joint, (dict(kind="eps"), "predicts v"), (dict(kind="x0"), "predicts v"),
        (dict(latent=torch.detach), "no gradient"), (dict(decoded=torch.detach), "no gradient"),
        (dict(target=torch.detach), "nothing is detached"), (dict(keep=torch.detach), "no gradient"),
        (dict(size=torch.square), "absolute"), (dict(reduce=torch.sum), "a sum"),
        (dict(keep=lambda v: v / 2), "off by"),
        (dict(keep=lambda v: v.double()), "dtype")) + [
        (lambda *a: joint(*a)[1:], "three things"), (lambda *a: joint(*a)[::-1], "shape"),
        (lambda a, *rest: (a.quantize(joint(a, *rest)[0])[0], *joint(a, *rest)[1:]), "not quantised"),
        (lambda a, n, s, x, t, e: joint(a, n, s, x, t.flip(0), e), "off by"),
        (torch.no_grad()(joint), "no gradient")],
}

test_right_solutions_pass, test_wrong_ones_fail_with_a_hint, test_the_stub_is_named = try_all(CORRECT, MUTANTS)
