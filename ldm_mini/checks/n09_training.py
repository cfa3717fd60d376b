"""Checks of notebook 09, the second stage's training, and what happens when both stages train at once."""

import copy
import itertools
import math
from functools import cache, partial

import torch
from torch import Tensor

from ..cond import Cond
from ..diffusion import diffusion_loss
from ..ema import EMA
from ..train import lr_factor as right_factor
from .checking import CheckFailed, attempt, compare, number, passed, several
from .n07_training import flat, hold_step, one_step, step_mistakes
from .n09_models import SCHEDULE, FirstStage, Model
from .properties import fresh, fresh_whole, same_dtype, same_gradient


def lr_factor(function):
    """`function(step, steps, warmup)` -> part of the peak learning rate: up on a line, down on half a cosine."""
    some = fresh_whole()
    for steps, warmup in ((10, 4), (40, 8), (7, 1), (6, 0), (some(12, 60), some(1, 12))):
        for step in range(steps):
            name = f"lr_factor({step}, {steps}, {warmup})"
            after, part = step - warmup, (step - warmup) / (steps - warmup)
            got = attempt(function, step, steps, warmup, name="lr_factor")
            if isinstance(got, Tensor):
                raise CheckFailed("lr_factor returned a tensor; optimizers want a plain number: use `math`.")
            compare(number(got, "lr_factor"), right_factor(step, steps, warmup), name, rtol=1e-6, atol=1e-9, mistakes=[
                (step / max(1, warmup), "the first step would be lost, with a rate of 0: (step + 1) / warmup."),
                (1.0, "after the warm-up the rate falls: half a cosine, from 1 to 0."),
                (min(1, (step + 1) / max(1, warmup)), "the warm-up is over: now the rate falls."),
                (1 - part, "a straight line down; here it is half a cosine."),
                (0.5 * (1 + math.cos(math.pi * step / steps)), "the cosine starts when the warm-up is over: "
                 "(step - warmup) / (steps - warmup)."),
                (0.5 * (1 + math.cos(math.pi * after / steps)), "the cosine would not reach 0: it has steps - warmup "
                 "steps for its way."),
                (math.cos(math.pi * part), "this goes from 1 to -1: take 0.5 * (1 + cosine)."),
                (math.cos(math.pi / 2 * part), "a quarter of a cosine; half of one, lifted and halved, is level at "
                 "both ends: 0.5 * (1 + cos(pi * part))."),
            ])
    passed("lr_factor: a careful start, and a soft landing")


def latent_train_step(function):
    """`function(model, optimizer, batch, lr, clip)` -> the loss before the step, a float; one step is made."""
    draw = fresh()
    for size, lr, clip, groups in ((3, 0.1, 1.0, 1), (2, 0.02, 0.3, 2), (4, 0.05, 100.0, 2)):
        start, batch = Model(), {"latent": 3 * draw(size, 3, 4, 4)}
        left = [draw(*p.shape) for p in start.trainable_parameters()]
        optimizers = []

        def run(step, start=start, batch=batch, lr=lr, clip=clip, groups=groups, left=left, optimizers=optimizers):
            model = copy.deepcopy(start)
            weights = model.trainable_parameters()
            for p, gradient in zip(weights, left):
                p.grad = gradient.clone()
            # plain gradient descent shows how long a gradient was, which Adam divides away
            optimizers.append(torch.optim.SGD([{"params": weights[i::groups]} for i in range(groups)], 9.0))
            return step(model, optimizers[-1], batch, lr, clip), model

        hold_step(function, run, "latent_step", step_mistakes(
            _step, lr='the optimizer kept its own rate: set group["lr"] = lr for every group of '
            "optimizer.param_groups.", first_lr="only the first of the optimizer's param_groups got the rate; set "
            'group["lr"] of every one.'))
        if any(group["lr"] != lr for group in optimizers[0].param_groups):
            raise CheckFailed("latent_step: not every parameter group of the optimizer has the rate `lr`.")
    passed("latent_step: one batch, one careful step")


def _step(model, optimizer, batch, lr, clip=1.0, change=""):
    """The step of notebook 09 with one thing changed."""
    for group in optimizer.param_groups[:{"lr": 0, "first_lr": 1}.get(change)]:
        group["lr"] = lr
    return one_step(lambda: model.loss(batch), model.trainable_parameters(), optimizer, clip, change)


def latent_training(function):
    """`function(model, batches, steps, lr, warmup, ema_decay)` -> (averages {name: tensor}, losses [float])."""
    draw = fresh()
    for steps, lr, warmup, decay in ((6, 0.05, 2, 0.9), (4, 0.02, 1, 0.2)):
        model, batches = Model().eval(), [{"latent": draw(2, 3, 4, 4)} for _ in range(steps)]
        options = dict(lr=lr, warmup=warmup, ema_decay=decay)
        learner = copy.deepcopy(model)
        endless = itertools.chain(batches, itertools.repeat({"latent": 100 * draw(2, 3, 4, 4)}, 1000))
        got = attempt(lambda: function(learner, endless, steps, lr, warmup, decay), name="second_stage")  # noqa: B023
        averages, losses = several(got, "second_stage", "two things: the averages {name: tensor}, and the losses")
        right, right_losses, reference = _train(model, batches, steps, **options)
        if not all(learner.modes):
            raise CheckFailed("second_stage: the network was in evaluation mode, without its dropout: model.train().")
        listed = isinstance(losses, (list, tuple)) and all(isinstance(loss, float) for loss in losses)
        if not listed or len(losses) != steps:
            raise CheckFailed(f"second_stage should return {steps} losses, one float for each step: what latent_step "
                              "returned, in a list.")
        known = cache(lambda change: _train(model, batches, steps, **options, change=change))  # noqa: B023
        told = LOOP_MISTAKES.items()  # gone through only if something is wrong
        compare(torch.tensor(losses), torch.tensor(right_losses), "the losses", mistakes=(
            (torch.tensor(known(change)[1]), message) for change, message in told))  # noqa: B023
        compare(flat(learner), flat(reference), "the weights after the last step", atol=1e-6, mistakes=(
            (flat(known(change)[2]), message) for change, message in told))  # noqa: B023
        if not isinstance(averages, dict) or averages.keys() != right.keys():
            raise CheckFailed("second_stage: the averages should be the dict that ema.state_dict() returns.")
        row = lambda values: torch.cat([values[name].flatten() for name in right])  # noqa: B023
        compare(row(averages), row(right), "the averages", atol=1e-6, mistakes=(
            (row(known(change)[0]), message) for change, message in told))  # noqa: B023
    passed("second_stage: every batch a step, every step an average")


LOOP_MISTAKES = {
    "constant": "the rate was the same in every step: hand lr * lr_factor(step, steps, warmup) to latent_step.",
    "factor": "latent_step got the factor alone: multiply it by lr.",
    "one late": "steps are counted from 0: lr_factor(0, ...) is the first one's.",
    "same batch": "every step saw the first batch: take the next one for each step.",
    "no average": "these are the weights themselves: ema.update(model) after every step, then ema.state_dict().",
    "never updated": "the averages never moved: ema.update(model) after every step.",
    "before": "the average was updated before the step; it belongs after it.",
    "decay": "`ema_decay` is not used: EMA(model, ema_decay).",
    "no decay": "this is Adam; AdamW also lets the weights decay a little.",
}


def _train(model, batches, steps, lr, warmup, ema_decay, change=""):
    """The training loop with one thing changed -> averages, losses, the trained copy of the model."""
    model = copy.deepcopy(model).train()
    kind = torch.optim.Adam if change == "no decay" else torch.optim.AdamW
    optimizer, losses = kind(model.trainable_parameters(), lr), []
    ema = EMA(model, {"decay": 0.9999, "no average": 0.0}.get(change, ema_decay))
    for step, batch in zip(range(steps), batches):
        factor = right_factor(step + (change == "one late"), steps, warmup)
        rate = {"constant": lr, "factor": factor}.get(change, lr * factor)
        if change == "before":
            ema.update(model)
        losses.append(_step(model, optimizer, batches[0] if change == "same batch" else batch, rate))
        if change not in ("before", "never updated"):
            ema.update(model)
    return ema.state_dict(), losses, model


def joint_losses(function):
    """`function(autoencoder, net, schedule, x, t, eps)` -> z (B,c,h,w), reconstruction (), diffusion ()."""
    draw = fresh()
    for channels, (size, height, width) in ((3, (4, 8, 8)), (4, (2, 4, 12))):
        stage, net = FirstStage(channels).eval(), Model(channels).net.eval()
        x, t = draw(size, 3, height, width) / 2, torch.tensor([0, 3, 11, 19])[-size:]
        eps = draw(size, channels, height // 2, width // 2)
        got = attempt(function, stage, net, SCHEDULE, x, t, eps, name="joint_losses")
        z, reconstruction, diffusion = several(got, "joint_losses", "three things: the latents and the two losses")
        right_z = stage.encode(x)
        decoded = stage.decode(right_z)
        compare(z, right_z, "the latents z", mistakes=[
            (stage.quantize(right_z)[0], "not quantised: decode does that.")])
        compare(reconstruction, (decoded - x).abs().mean(), "the reconstruction loss", mistakes=[
            ((decoded - x).square().mean(), "the mean *absolute* error, as in notebook 03."),
            ((decoded - x).abs().sum(), "a sum; the loss is a mean.")])
        loss = lambda z, kind="v": diffusion_loss(net, SCHEDULE, z, Cond(), kind, t, eps)  # noqa: B023
        compare(diffusion, loss(right_z), "the diffusion loss", mistakes=[
            (loss(right_z, "eps"), 'the network predicts v here: diffusion_loss(..., "v", t, eps).'),
            (loss(right_z, "x0"), 'the network predicts v here: diffusion_loss(..., "v", t, eps).'),
            (loss(stage.quantize(right_z)[0]), "diffusion models the latents before quantisation.")])
        leaves = {f"the encoder's {name}": p for name, p in stage.down.named_parameters()}
        same_gradient(reconstruction, (decoded - x).abs().mean(), leaves, "the reconstruction loss")
        same_gradient(diffusion, loss(right_z), leaves, "the diffusion loss", mistakes=[
            (_stopped_target(stage, net, x, t, eps, leaves), "The target v has z in it too: nothing is detached.")])
        same_dtype(diffusion, x, "the diffusion loss")
    passed("joint_losses: two losses, and both reach the encoder")


def joint_step(function):
    """`function(autoencoder, net, optimizer, schedule, x, t, eps)` -> reconstruction, diffusion, std of z: floats."""
    draw = fresh()
    for channels, (size, height, width), rate in ((3, (4, 8, 8), 0.05), (4, (2, 4, 12), 0.02)):
        start = torch.nn.ModuleList([FirstStage(channels).eval(), Model(channels).net.eval()])
        x, t = draw(size, 3, height, width) / 2, torch.tensor([0, 3, 11, 19])[-size:]
        eps = draw(size, channels, height // 2, width // 2)
        left = [draw(*p.shape) for p in start.parameters()]

        def run(step, start=start, left=left, rate=rate, inputs=(x, t, eps)):
            both = copy.deepcopy(start)
            for p, gradient in zip(both.parameters(), left):
                p.grad = gradient.clone()
            optimizer = torch.optim.SGD(both.parameters(), rate)  # a step is the gradient itself
            return step(*both, optimizer, SCHEDULE, *inputs), flat(both)

        got, weights = attempt(run, function, name="joint_step")
        right, right_weights = run(_joint_step)
        known = cache(lambda change, run=run: run(partial(_joint_step, change=change)))  # asked if something is wrong
        told = JOINT_MISTAKES.items()
        compare(weights, right_weights, "the weights after joint_step", atol=1e-6, mistakes=(
            (known(change)[1], message) for change, message in told))  # noqa: B023
        got = several(got, "joint_step", "three things: the two losses, and the standard deviation of z")
        for k, name in enumerate(("reconstruction loss", "diffusion loss", "standard deviation of z")):
            if isinstance(got[k], Tensor):
                raise CheckFailed(f"joint_step: the {name} is a tensor, which kept in a list would hold on to every "
                                  "step's memory: .item() makes it a float.")
            swapped = ((value, "the order: reconstruction, diffusion, standard deviation of z.") for value in right)
            compare(number(got[k], name), right[k], f"the {name}", mistakes=itertools.chain(swapped, (
                (known(change)[0][k], JOINT_MISTAKES[change]) for change in ("after", "variance"))))  # noqa: B023
    passed("joint_step: one step downhill on both losses, for both parts")


JOINT_MISTAKES = {
    "nothing": "nothing has moved. In order: zero_grad, backward, step.",
    "no zero": "the last step's gradient was still there and was added: optimizer.zero_grad() before backward.",
    "late zero": "nothing has moved: zero_grad came after backward, and took the gradients away.",
    "reconstruction": "only the reconstruction was followed: the loss is the sum of both.",
    "diffusion": "only the diffusion loss was followed: the loss is the sum of both.",
    "difference": "the two losses are added, not subtracted.",
    "mean": "this is half of the sum: add the two losses.",
    "stopped": "the diffusion loss does not reach the encoder: nothing is detached.",
    "twice": "two steps were made.",
    "after": "these are the values after the step; return those that were computed before.",
    "variance": "this is the variance: z.std().",
}


def _joint_step(autoencoder, net, optimizer, schedule, x, t, eps, change=""):
    """The step of notebook 09 on both losses, with one thing changed."""
    def losses():
        z = autoencoder.encode(x)
        shown = z.detach() if change == "stopped" else z
        return (autoencoder.decode(z) - x).abs().mean(), diffusion_loss(net, schedule, shown, Cond(), "v", t, eps), z

    for _ in range(2 if change == "twice" else 1):
        a, b, z = losses()
        if change != "no zero":
            optimizer.zero_grad()
        {"reconstruction": a, "diffusion": b, "difference": a - b, "mean": (a + b) / 2}.get(change, a + b).backward()
        if change not in ("nothing", "late zero"):
            optimizer.step()
    a, b, z = losses() if change == "after" else (a, b, z)
    return a.item(), b.item(), (z.var() if change == "variance" else z.std()).item()


def _stopped_target(stage, net, x, t, eps, leaves):
    """The encoder's gradients when the target is held fast."""
    z = stage.encode(x)
    target = SCHEDULE.alpha(t, 4) * eps - SCHEDULE.sigma(t, 4) * z.detach()
    loss = (net(SCHEDULE.add_noise(z, eps, t), t) - target).square().mean()
    return dict(zip(leaves, torch.autograd.grad(loss, [*leaves.values()])))
