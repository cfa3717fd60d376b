"""Checks of notebook 17 without layers: quantiser, DDIM, the released attention, the memory that tensors own."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .checking import CheckFailed, attempt, compare, count, passed
from .properties import fresh, fresh_whole, own_randomness, same_dtype


def quantise(function):
    """`function(z, codebook)`: z (B,C,h,w), codebook (K,C) -> the nearest codes (B,C,h,w)."""
    draw = fresh()
    for size, c, h, w, codes in ((2, 4, 3, 5, 9), (3, 3, 4, 4, 20)):
        z, codebook = draw(size, c, h, w), draw(codes, c)
        tokens = z.movedim(1, -1).reshape(-1, c)
        back = lambda vectors: vectors.view(size, h, w, c).movedim(-1, 1)  # noqa: B023
        far = torch.cdist(tokens, codebook)
        got = attempt(function, z, codebook, name="quantise")
        compare(got, back(codebook[far.argmin(1)]), "quantise(z, codebook)", shapes={
            (size, h, w): "these are numbers of codes; give the codes themselves.",
            (size * h * w, c): "make the tokens a picture again: (B,C,h,w).",
            (size, h, w, c): "the channels come second: movedim(-1, 1)."}, mistakes=[
            (back(codebook[far.argmax(1)]), "these are the *farthest* codes: argmin."),
            (back(codebook[(tokens @ codebook.mT).argmax(1)]), "the largest product is not the smallest distance: "
                                                              "codes differ in length."),
            (back(codebook[F.cosine_similarity(tokens[:, None], codebook, dim=2).argmax(1)]),
             "the smallest angle is not the smallest distance."),
            (back(codebook[torch.cdist(tokens, codebook, p=1).argmin(1)]),
             "the Euclidean distance, torch.cdist's default."),
            (codebook[torch.cdist(z.reshape(-1, c), codebook).argmin(1)].view(z.shape),
             "reshape mixes channels and places: a token is the C numbers at one place, movedim(1, -1)."),
            (codebook[far.argmin(1)].view(z.shape), "on the way back the channels must move: view as (B,h,w,C), then "
                                                    "movedim(-1, 1)."),
            (z, "this is z as it came."),
        ])
        same_dtype(got, z, "quantise(z, codebook)")
    passed("quantise: the nearest code at each place")


def ddim(function):
    """`function(net, x, alphas_cumprod, steps)`: noise x (B,c,h,w), net(x, t) -> eps -> a sample like x."""
    draw = fresh()
    for shape, T, steps in (((2, 4, 3, 5), 100, 4), ((3, 1, 2, 2), 50, 7), ((1, 2, 2, 2), 30, 1)):
        x, calls = draw(*shape), []
        abar = torch.cumprod(1 - torch.linspace(0.001, 0.08, T), 0)

        def net(x, t, calls=calls):
            if not isinstance(t, Tensor) or t.shape != (len(x),):
                raise ValueError(f"t should be a tensor ({len(x)},): torch.full((len(x),), t)")
            calls.append(int(t[0]))
            return 0.7 * x.tanh() + (t.view(-1, 1, 1, 1) / 20).sin()

        with own_randomness():
            got = attempt(lambda x: function(net, x, abar, steps), x, name="ddim")  # noqa: B023
        asked, right = list(calls), [round(T - i * T / steps) - 1 for i in range(steps)]
        if asked != right:
            raise CheckFailed(f"ddim asked the network at the times {asked}; for {steps} steps of {T} they should be "
                              f"{right}: round(T - i T / steps) - 1.")
        walk = lambda how="": _ddim(net, x, abar, right, how)  # noqa: B023
        compare(got, walk(), f"ddim(..., steps={steps})", mistakes=(
            (walk(how), message) for how, message in DDIM_MISTAKES.items()))
        same_dtype(got, x, "ddim")
    passed("ddim: from the last time on, and at last to the clean picture")


DDIM_MISTAKES = {
    "stays noisy": "the last step goes to the clean picture, where alphas_cumprod is 1.",
    "no roots": "alphas_cumprod are powers; amplitudes are their roots.",
    "x0 only": "the step ended at x0; bring it to s: sqrt(abar_s) x0 + sqrt(1 - abar_s) eps.",
    "same level": "after the step x is at s: sqrt(abar_s) x0 + sqrt(1 - abar_s) eps.",
    "plus": "x0 = (x *minus* sqrt(1 - abar_t) eps) / sqrt(abar_t).",
    "not divided": "x0 = (x - sqrt(1 - abar_t) eps) / sqrt(abar_t): the division is missing.",
    "swapped": "sqrt(abar_s) belongs to x0, sqrt(1 - abar_s) to eps.",
    "x0 net": "the network says eps, not x0.",
}


def _ddim(net, x, abar, times, how=""):
    root = (lambda v: v) if how == "no roots" else torch.sqrt
    for t, s in zip(times, [*times[1:], times[-1] if how == "stays noisy" else -1]):
        eps = net(x, torch.full((len(x),), t))
        a_t, s_t = root(abar[t]), root(1 - abar[t])
        a_s, s_s = (root(abar[s]), root(1 - abar[s])) if s >= 0 else (torch.ones(()), torch.zeros(()))
        x0 = (x + s_t * eps if how == "plus" else x - s_t * eps) / (1 if how == "not divided" else a_t)
        if how == "x0 net":
            x0, eps = eps, (x - a_t * eps) / s_t
        a_s, s_s = {"x0 only": (1, 0), "same level": (a_t, s_t), "swapped": (s_s, a_s)}.get(how, (a_s, s_s))
        x = a_s * x0 + s_s * eps
    return x


def join_qkv(function):
    """`function(q, k, v, num_heads)`: three (C, ...) -> (3C, ...) in the released order, head by head."""
    draw = fresh()
    for heads, shape in ((2, (6, 5)), (3, (12,)), (4, (8, 3, 1)), (1, (4, 4))):
        q, k, v = (draw(*shape) for _ in range(3))
        rows = lambda order=(q, k, v), heads=heads: torch.stack(
            [part.unflatten(0, (heads, -1)) for part in order], 1).flatten(0, 2)
        got = attempt(function, q, k, v, heads, name="join_qkv")
        compare(got, rows(), f"join_qkv of {shape} with {heads} heads", shapes={
            (heads, 3, shape[0] // heads, *shape[1:]): "three axes of rows; flatten them to one: (3C, ...)."},
            mistakes=[
            (torch.cat([q, k, v]), "that is the *new* order: all q, all k, all v. The released weights go head by "
                                   "head, and within a head q, k, v."),
            (rows((k, q, v)), "the order within a head is q, k, v."),
            (rows((v, k, q)), "the order within a head is q, k, v."),
            (rows((q, v, k)), "the order within a head is q, k, v."),
            (torch.stack([q, k, v], 1).flatten(0, 1), "row by row is too fine: of a head come all rows of q, then all "
                                                      "of k."),
            (torch.stack([part.unflatten(0, (-1, heads)) for part in (q, k, v)], 1).flatten(0, 2),
             "a head is a block of neighbouring rows: unflatten(0, (num_heads, -1))."),
        ])
        same_dtype(got, q, "join_qkv")
    passed("join_qkv: the way back, head by head")


def released_attention(function):
    """`function(x, state, heads, groups)`: (B,C,h,w) and the released weights -> (B,C,h,w)."""
    draw = fresh()
    for c, heads, groups, (h, w) in ((8, 2, 4, (3, 4)), (12, 3, 6, (2, 5)), (8, 4, 1, (3, 3))):
        x = draw(2, c, h, w)
        state = {"norm.weight": 1 + draw(c) / 5, "norm.bias": draw(c) / 5, "qkv.weight": draw(3 * c, c, 1) / c**0.5,
                 "qkv.bias": draw(3 * c) / 5, "proj_out.weight": draw(c, c, 1) / c**0.5, "proj_out.bias": draw(c) / 5}
        got = attempt(function, x, dict(state), heads, groups, name="released_attention")
        of = lambda how="": _released(x, state, heads, groups, how)  # noqa: B023
        compare(got, of(), f"released_attention with {heads} heads", shapes={
            (2, c, h * w): "make it a picture again: (B,C,h,w)."}, mistakes=(
            (of(how), message) for how, message in RELEASED_MISTAKES.items()))
        same_dtype(got, x, "released_attention")
    passed("released_attention: theirs, from its description")


RELEASED_MISTAKES = {
    "new order": "qkv was cut into all q, all k, all v. Released models go head by head: cut into heads first.",
    "no skip": "x is added at the end.",
    "no norm": "the group norm at the entrance is missing.",
    "no out": "proj_out is missing.",
    "no scale": "q and k are scaled, each by d ** -0.25, d the width of a head.",
    "twice": "q and k are scaled by d ** -0.25 *each*: together that is 1 / sqrt(d).",
    "whole width": "d is the width of a head, C / heads.",
    "over queries": "softmax over the keys: the weights of one query sum to 1.",
    "no bias": "qkv has a bias.",
    "swapped": "within a head the order is q, k, v.",
}


def _released(x, state, heads, groups, how=""):
    size, c = x.shape[:2]
    flat = F.group_norm(x, groups, state["norm.weight"], state["norm.bias"], 1e-5).flatten(2)
    flat = x.flatten(2) if how == "no norm" else flat
    qkv = F.conv1d(flat, state["qkv.weight"], None if how == "no bias" else state["qkv.bias"])
    parts = qkv.view(size, 3, heads, c // heads, -1).transpose(1, 2) if how == "new order" else qkv.view(
        size, heads, 3, c // heads, -1)
    q, k, v = parts.unbind(2)  # (B, heads, d, N)
    q, k = (k, q) if how == "swapped" else (q, k)
    d = c if how == "whole width" else c // heads
    scores = q.mT @ k * {"no scale": 1, "twice": 1 / d}.get(how, d**-0.5)
    weights = scores.softmax(-2 if how == "over queries" else -1)
    h = (v @ weights.mT).reshape(size, c, -1)
    h = h if how == "no out" else F.conv1d(h, state["proj_out.weight"], state["proj_out.bias"])
    return h.view(x.shape) + (0 if how == "no skip" else x)


def owned(function):
    """`function(*collections)` of tensors -> the bytes that all of them own together; what is shared counts once."""
    n = fresh_whole()(4, 20)
    a, b, c = torch.ones(3, n), torch.ones(5, dtype=torch.float64), torch.ones(7, dtype=torch.float16)
    for collections, right, repeated in (
            (([a, b],), 12 * n + 40, 12 * n + 40), (([a], [b, c]), 12 * n + 54, 12 * n + 54),
            (([a, b], [a]), 12 * n + 40, 24 * n + 40), (([a, a.T, b[1:]], [c, b]), 12 * n + 54, 24 * n + 94),
            (([c, c[3:], a],), 12 * n + 14, 12 * n + 28)):
        given = tuple({str(i): t for i, t in enumerate(one)}.values() for one in collections)
        got = attempt(lambda: function(*given), name="owned")  # noqa: B023
        tensors = [t for one in collections for t in one]
        got = got.item() if isinstance(got, Tensor) and got.numel() == 1 else got
        offsets = sum({t.data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())
        again = "what is shared was counted again: several tensors can look at one storage."
        known = {
            repeated: again, sum(t.nbytes for t in tensors): again,
            sum(t.numel() for t in tensors): "numbers, not bytes.",
            sum(t.untyped_storage().nbytes() for t in collections[0]): "only the first collection was counted.",
            offsets: "a tensor may begin inside of a storage: compare the data_ptr() of storages, not of tensors.",
            len({t.untyped_storage().data_ptr() for t in tensors}): "that is how many storages there are; sum up their "
                                                                    "nbytes().",
            sum({t.untyped_storage().data_ptr(): t.nbytes for t in tensors}.values()):
                "a small view keeps its whole storage alive: take the storage's nbytes().",
        }
        known.pop(right, None)
        count(got, right, "owned", known)
    passed("owned: each storage once")


