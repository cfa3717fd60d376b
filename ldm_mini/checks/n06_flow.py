"""Check of notebook 06, the normalising flow: the way back through its couplings."""

from functools import partial

import torch

from .checking import attempt, compare, passed
from .properties import fresh, same_dtype, same_gradient


def flow_back(function):
    """`function(couplings, z)`: undo affine couplings, each a (B,) -> scale, shift (B,), last first; z, x (B,2)."""
    draw, name = fresh(), "flow_back(couplings, z)"
    for count, size in ((3, 5), (4, 2)):
        couplings, x = [_coupling(draw) for _ in range(count)], draw(size, 2)
        z = x
        for coupling in couplings:
            a, b = z.unbind(1)
            scale, shift = coupling(a)
            z = torch.stack([scale.exp() * b + shift, a], dim=1)
        z = z.requires_grad_()
        got = attempt(function, couplings, z, name="flow_back")
        undo = partial(_undone, couplings, z)
        right = undo()
        compare(got, x, name, rtol=1e-3, atol=1e-3, mistakes=[(undo(**options), hint) for options, hint in (
            (dict(order=1), "the couplings are undone in the order in which they were made: the last one comes first."),
            (dict(swap=False), "after each coupling the two numbers have changed places: the second one of z is the a "
                               "that was asked, the first one is what became of b."),
            (dict(back=lambda b, s, t: b / s.exp() - t), "undo the last thing first: take the shift away, then "
                                                         "divide by the scale."),
            (dict(back=lambda b, s, t: b * s.exp() + t), "this goes forward again: subtract, and divide."),
            (dict(back=lambda b, s, t: (b - t) * s.exp()), "divide by exp(scale), or multiply by exp(-scale)."),
            (dict(back=lambda b, s, t: (b - t) / s), "the factor is exp(scale): it is never 0, nor negative."),
            (dict(back=lambda b, s, t: (b + t) / s.exp()), "the shift was added: subtract it."),
            (dict(places=False), "the answer's two numbers are in the wrong order: a was the first one."),
            (dict(only=1), "only one coupling was undone."))])
        same_dtype(got, z, name)
        same_gradient(got, right, {"z": z}, name)
    passed("flow_back: every coupling undone, the last one first")


def _coupling(draw):
    """A function a (B,) -> scale, shift (B,) that nobody knows by heart."""
    mix = draw(4)
    return lambda a: (torch.tanh(mix[0] * a + mix[1]), torch.sin(mix[2] * a) + mix[3])


def _undone(couplings, z, order=-1, swap=True, places=True, only=None,
            back=lambda b, scale, shift: (b - shift) / scale.exp()):
    for coupling in couplings[::order][:only]:
        b, a = z.unbind(1) if swap else z.flip(1).unbind(1)
        b = back(b, *coupling(a))
        z = torch.stack([a, b] if places else [b, a], dim=1)
    return z
