"""Checks of notebook 18, first stage: tests of a VQ loss, of loaded heads, of the latent scale, of cached latents."""

import torch
import torch.nn.functional as F
from torch import nn

from .n18_clinic import examine
from .properties import fresh


def _vq(a=lambda z, e: (z, e), b=lambda z, e: (z, e), first=lambda beta: beta, second=lambda beta: 1.0,
        norm=lambda d: d.square().mean()):
    """first * |z - sg(e)|^2 + second * |sg(z) - e|^2, with what the terms see changed by a and b."""
    def vq_loss(z, codes, beta=0.25):
        (za, ea), (zb, eb) = a(z, codes), b(z, codes)
        return first(beta) * norm(za - ea) + second(beta) * norm(zb - eb)
    return vq_loss


def test_vq_loss(test):
    """`test(vq_loss)`: passes for a healthy vq_loss(z, codes, beta), fails for a sick one."""
    z_side, code_side = (lambda z, e: (z, e.detach())), (lambda z, e: (z.detach(), e))
    rows = lambda d: d.square().sum(1).mean()
    look = "Ask autograd what arrives at z, and what at the codes, for a beta that is not 1."
    examine(test, "test_vq_loss", {
        "means over all numbers": (_vq(z_side, code_side),),
        "sums over each row, as the paper writes": (_vq(z_side, code_side, norm=rows),),
        "the terms in the other order, by F.mse_loss": (
            lambda z, e, beta=0.25: F.mse_loss(e, z.detach()) + beta * F.mse_loss(z, e.detach()),),
    }, {
        "beta stands on the codebook's term": ((_vq(z_side, code_side, lambda b: 1.0, lambda b: b),), look),
        "beta stands on both terms": ((_vq(z_side, code_side, second=lambda b: b),), look),
        "beta is not used": ((_vq(z_side, code_side, lambda b: 1.0),), look),
        "beta is always 0.25": ((_vq(z_side, code_side, lambda b: 0.25),), "Give a beta of your own."),
        "nothing is detached": ((_vq(),), look),
        "the codes are detached in both terms": ((_vq(z_side, z_side),), "Do the codes get a gradient?"),
        "z is detached in both terms": ((_vq(code_side, code_side),), "Does z get a gradient?"),
        "the codes are pushed away": ((_vq(z_side, code_side, second=lambda b: -1.0),), "Which way do the codes move?"),
        "the codebook's term is gone": ((_vq(z_side, code_side, second=lambda b: 0.0),), "Do the codes move?"),
    }, "one gradient for the encoder, one for the codes")


class _Heads(nn.Module):
    """Heads as someone wrote them anew: the parameters are called lin0.weight ..., not as in the published file."""

    def __init__(self, widths):
        super().__init__()
        for i, width in enumerate(widths):
            self.add_module(f"lin{i}", nn.Conv2d(width, 1, 1, bias=False))

    def vectors(self):
        return [conv.weight.detach().flatten() for conv in self.children()]


def _loader(fill):
    def load_heads(state):
        heads = _Heads([weight.shape[1] for weight in state.values()])
        fill(heads, state)
        return heads.vectors()
    return load_heads


def _renamed(state):
    return {name.replace(".model.1", ""): weight for name, weight in state.items()}


def _only(number):
    """Load one of the heads; the others stay as they were drawn."""
    def fill(heads, state):
        keep = {name: weight for name, weight in _renamed(state).items() if f"lin{number}." in name}
        heads.load_state_dict(keep, strict=False)
    return _loader(fill)


def test_load_heads(test):
    """`test(load_heads)`: passes if load_heads(state) -> [(C,), ...] holds the file's numbers, fails if it does not."""
    by_order = lambda h, s: h.load_state_dict(dict(zip(h.state_dict(), s.values())))
    backwards = lambda h, s: h.load_state_dict(dict(zip(h.state_dict(), list(s.values())[::-1])))
    look = "Make a file of numbers that you know, and look for them in what comes back."
    examine(test, "test_load_heads", {
        "names changed": (_loader(lambda h, s: h.load_state_dict(_renamed(s))),),
        "filled in the file's order": (_loader(by_order),),
        "no module at all": (lambda state: [weight[0, :, 0, 0].clone() for weight in state.values()],),
    }, {
        "strict=False, and no name fits": ((_loader(lambda h, s: h.load_state_dict(s, strict=False)),), look),
        "only the first head is loaded": ((_only(0),), "Are *all* of them the file's?"),
        "only the second head is loaded": ((_only(1),), "Are *all* of them the file's?"),
        "the heads are in the wrong order": ((_loader(backwards),), "Give heads of equal width different numbers."),
        "all are constant": ((lambda s: [torch.full((w.shape[1],), 0.2) for w in s.values()],),
                             "A file of equal numbers cannot tell: take random ones."),
        "the last head is left out": ((lambda s: [w.flatten() for w in s.values()][:-1],), "How many came back?"),
    }, "what was in the file is in the module")


def _stages(draw, up, down):
    """An encoder and a decoder that are exact inverses, with latents of deviation 4, scaled by `up` and by `down`."""
    turn = torch.linalg.qr(draw(3, 3))[0]
    encode = lambda x: up * 4 * torch.einsum("oc,bchw->bohw", turn, x)
    decode = lambda z: torch.einsum("oc,bohw->bchw", turn, z) / 4 / down
    return encode, decode


def test_scale(test):
    """`test(encode, decode, images)`: passes if latents have unit variance and come back as pictures."""
    draw = fresh()
    images = draw(64, 3, 4, 4)

    def pair(up, down):
        return (*_stages(draw, up, down), images)

    examine(test, "test_scale", {
        "multiplied, then divided": pair(0.25, 0.25),
        "a scale measured on another batch": pair(0.26, 0.26),
        "latents that were of deviation 1 already": pair(0.245, 0.245),
    }, {
        "the decoder gets scaled latents": (pair(0.25, 1.0), "Encode, decode: is it the picture?"),
        "the decoder multiplies": (pair(0.25, 4.0), "Encode, decode: is it the picture?"),
        "scaled twice on the way in": (pair(0.0625, 0.25), "Encode, decode: is it the picture?"),
        "never scaled, neither here nor there": (pair(1.0, 1.0), "The way there and back is right, and yet diffusion "
                                                 "will fail: what size have the latents?"),
        "scaled twice, and back twice": (pair(0.0625, 0.0625), "What size have the latents?"),
        "multiplied where it should be divided": (pair(4.0, 4.0), "What size have the latents?"),
    }, "there and back, and of unit variance in between")


def test_cache(test):
    """`test(cache, encode, images)`: passes if cache (N,C,h,w) is encode(images), up to half precision."""
    draw = fresh()
    mix, twin = torch.linalg.qr(draw(4, 4))[0], torch.linalg.qr(draw(4, 4))[0]
    encode = lambda x: torch.einsum("oc,bchw->bohw", mix, x)
    images = draw(12, 4, 6, 6)
    right = encode(images)
    first, late = right.clone(), right.clone()
    first[1:] = torch.einsum("oc,bchw->bohw", twin, images)[1:]
    late[-1] = right[0]
    case = lambda cache: (cache, encode, images)
    examine(test, "test_cache", {
        "as they were made": case(right),
        "stored in float16": case(right.half()),
        "stored in bfloat16": case(right.bfloat16()),
    }, {
        "latents of another first stage": (case(torch.einsum("oc,bchw->bohw", twin, images)),
                                           "They have the same mean and deviation: compare them one by one."),
        "the first stage was trained on; 10% off": (case(right + 0.1 * draw(*right.shape)),
                                                    "Half precision is off by less than a hundredth."),
        "every row is that of the picture before": (case(right.roll(1, 0)), "Compare row by row, in order."),
        "pictures were mirrored when they were stored": (case(right.flip(3)), "Compare place by place."),
        "scaled already": (case(right * 0.5), "Compare with encode(images) itself."),
        "only the first row is right": (case(first), "Look at more than the first."),
        "the last row is another picture's": (case(late), "Look at all of them, or at the ends as well."),
    }, "these latents are of these pictures and of this first stage")
