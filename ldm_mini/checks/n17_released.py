"""Checks of notebook 17: the released attention with its joint q, k, v, and the memory that tensors own."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .checking import attempt, compare, count, passed
from .properties import fresh, same_dtype


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
            (2, c, h * w): "make it a picture again: (B,C,h,w)."}, mistakes=[
            (of(how), message) for how, message in RELEASED_MISTAKES.items()])
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
    a, b, c = torch.ones(3, 4), torch.ones(5, dtype=torch.float64), torch.ones(7, dtype=torch.float16)
    for collections, right, repeated in (
            (([a, b],), 88, 88), (([a], [b, c]), 102, 102), (([a, b], [a]), 88, 136),
            (([a, a.T, b[1:]], [c, b]), 102, 190), (([c, c[3:], a],), 62, 76)):
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


