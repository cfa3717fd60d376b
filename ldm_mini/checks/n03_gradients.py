"""Checks of notebook 03, continued: a walk by gradients, and the gradients that tell losses of one value apart."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .checking import CheckFailed, attempt, compare, number, passed, several
from .properties import fresh, learn

WALKS = {"up": "uphill: step *against* the gradient.",
         "fixed": "the code is chosen once. Find the nearest one anew at each step.",
         "z": "the loss looks at what `through` gives, not at the place.",
         "far": "this chooses the code farthest away.",
         "sum": "gradients of earlier steps are added up: take them fresh at each step.",
         "mean": "the *sum* of the squares, not their mean.",
         "unit": "the gradient itself, times rate: do not make it a unit vector.",
         "still": "the place never moved. Let the loss see what `through` gives, and take the code nearest to the "
                  "*place*, not to the target."}


def descend(function):
    """`function(through, codes, target, start, steps, rate)` -> places (steps + 1, D), the codes there (steps, D)."""
    draw = fresh()
    ramp, stairs, half = (lambda z, q: z + (q - z).detach(), lambda z, q: q, lambda z, q: 0.5 * z + (q - z).detach())
    for through, name in ((ramp, "straight through"), (stairs, "with the true gradient"), (half, "half through")):
        for codes, dim, steps, rate in ((6, 2, 12, 0.06), (9, 3, 8, 0.08)):
            corners, start = 2 * draw(codes, dim), draw(dim)
            target = corners[torch.cdist(start[None], corners)[0].topk(2).indices[1]]
            what = "descend, " + name
            got = attempt(function, through, corners, target, start, steps, rate, name="descend")
            places, chosen = several(got, "descend", "two tensors: the places and the codes")
            right = _walk(through, corners, target, start, steps, rate)
            compare(places, right[0], f"{what}: the places", shapes={
                (steps, dim): "the place where it starts comes first: steps + 1 places.",
                (dim,): "return all places, not the last alone: (steps + 1, D)."}, mistakes=(
                # one at a time, and only where the places are wrong
                (_walk(through, corners, target, start, steps, rate, how)[0], told) for how, told in WALKS.items()))
            compare(chosen, right[1], f"{what}: the codes", shapes={
                (steps,): "return the codes themselves, (steps, D), not their indices.",
                (steps + 1, dim): "one code for each step, chosen before it: (steps, D)."}, mistakes=[
                (_nearest(right[0][1:], corners), "the code that the vector had *before* each step."),
                (target.expand_as(right[1]), "these are the target's; return the code chosen at each step.")])
    passed("descend: step by step to where the loss is smaller, if anything tells where that is")


def _nearest(places: Tensor, codes: Tensor) -> Tensor:
    return codes[torch.cdist(places, codes).argmin(1)]


def _walk(through, codes: Tensor, target: Tensor, start: Tensor, steps: int, rate: float, change: str = ""):
    places, chosen, total = [start], [], torch.zeros_like(start)
    for _ in range(steps):
        z = places[-1].clone().requires_grad_()
        anchor = start if change == "fixed" else z.detach()
        code = _nearest(anchor[None], codes)[0]
        if change == "far":
            code = codes[torch.cdist(anchor[None], codes).argmax()]
        seen = z if change == "z" else through(z, code)
        square = (seen - target).square()
        loss = (square.mean() if change == "mean" else square.sum()) + 0 * z.sum()
        gradient = torch.autograd.grad(loss, z)[0]
        total = total + gradient
        gradient = {"up": -gradient, "sum": total, "unit": F.normalize(gradient, dim=0),
                    "still": 0 * z}.get(change, gradient)
        places.append(places[-1] - rate * gradient)
        chosen.append(code)
    return torch.stack(places), torch.stack(chosen)


def _right(z, e, w):
    return F.mse_loss(e, z.detach()) + w * F.mse_loss(z, e.detach())


def _late(z, e, w):
    z_q = z + (e - z).detach()
    return F.mse_loss(z_q, z.detach()) + w * F.mse_loss(z, z_q.detach())


LOSSES = {"a right loss": (_right, lambda w: (w, 1.0)),
          "a loss without stop-gradients": (lambda z, e, w: (1 + w) * F.mse_loss(z, e), lambda w: (1 + w, 1 + w)),
          "a loss computed after straight-through": (_late, lambda w: (w - 1, 0.0)),
          "a loss that moves codes alone": (lambda z, e, w: w * F.mse_loss(e, z.detach()), lambda w: (0.0, w)),
          "a loss that moves vectors alone": (lambda z, e, w: 3 * w * F.mse_loss(z, e.detach()),
                                              lambda w: (3 * w, 0.0))}


def pulls(function):
    """`function(loss, z, e, weight)` -> two numbers: gradients on z and on e, in units of those of mean |z - e|^2."""
    draw = fresh()
    for shape, weight in (((2, 3, 4, 4), 0.25), ((1, 4, 2, 3), 0.6)):
        z, e = learn(draw(*shape), draw(*shape))
        for name, (loss, answer) in LOSSES.items():
            _one_pull(function, loss, z, e, weight, answer(weight), f"pulls of {name}")
    passed("pulls: who moves, how strongly, and in which direction")


def _one_pull(function, loss, z: Tensor, e: Tensor, weight: float, right: tuple, name: str):
    try:
        out = attempt(lambda: function(loss, z, e, weight), name="pulls")
    except CheckFailed as failed:
        if "unused" in str(failed) or "NoneType" in str(failed):
            raise CheckFailed(f"{name}: no gradient at all reaches one of the two, so autograd refuses or gives None. "
                              "Ask with allow_unused=True, and take 0 for None.") from failed
        raise
    got = several(out, "pulls", "two numbers: the pull on z and the pull on e")
    got = [number(each, f"{name}, the {side}") for each, side in zip(got, ("first", "second"))]
    n, (on_z, on_e) = z.numel(), right
    square = (z - e).detach().square().sum().item()
    unit = 4 * square / n**2
    tell = lambda a, b, what, factor=1.0: [(torch.tensor([factor * a, factor * b]), what)]
    compare(torch.stack(got), torch.tensor([on_z, on_e], dtype=torch.float64), name, rtol=1e-3, atol=1e-4, mistakes=[
        *tell(abs(on_z), abs(on_e), "a ratio of lengths has no sign, and here the sign matters: project on the unit."),
        *tell(on_z, -on_e, "the sign of the second: towards its partner means *minus* (z - e) for e."),
        *tell(-on_z, on_e, "the sign of the first: the unit on z is 2 (z - e) / n."),
        *tell(-on_z, -on_e, "both signs: the gradient of |z - e|^2 on z is 2 (z - e) / n, on e minus that."),
        *tell(on_e, on_z, "first the pull on z, then the one on e."),
        *tell(on_z, on_e, "the unit is the gradient of the *mean*: 2 (z - e) / n.", 1 / n),
        *tell(on_z, on_e, "the unit has a factor 2: the derivative of a square.", 2),
        *tell(on_z, on_e, "divide by the unit's squared length, u . u.", unit),
        *tell(on_z, on_e, "divide by the *squared* length of the unit.", unit**0.5),
    ])
    if z.grad is not None or e.grad is not None:
        z.grad = e.grad = None
        raise CheckFailed(f"{name}: backward() left gradients in z or e, and the next call would add to them. Use "
                          "torch.autograd.grad(loss, [z, e], ...).")
