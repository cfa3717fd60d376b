"""Checks of notebook 16: a film cut into blocks of space and time, and laid out again."""

from einops import rearrange

from .checking import attempt, compare, passed
from .properties import fresh, learn, same_dtype, same_gradient

BLOCKS = ((2, 3, 4, 4, 6, 2, 2), (1, 2, 6, 6, 9, 2, 3), (3, 1, 3, 8, 4, 3, 4))      # B, C, F, h, w, k, p


def to_blocks(function):
    """`function(x, k, p)`: (B,C,F,h,w) -> (B,F/k,N,C k p p): frames, places in reading order; in each, C, k, p, p."""
    draw = fresh()
    for b, c, f, h, w, k, p in BLOCKS:
        x = draw(b, c, f, h, w)
        cut = lambda to, x=x, k=k, p=p: rearrange(x, f"b c (f k) (i p) (j q) -> {to}", k=k, p=p, q=p)
        got, what = attempt(function, x, k, p, name="to_blocks"), f"to_blocks of {tuple(x.shape)}, k = {k}, p = {p}"
        right = cut("b f (i j) (c k p q)")
        compare(got, right, what, shapes={
            (b, f // k * (h // p) * (w // p), c * k * p * p): "keep time and place apart: (B, F/k, N, ...).",
            (b, f, h * w // p**2, c * p * p): "a block lasts k frames: these are patches of one frame."}, mistakes=[
            (cut("b f (i j) (k c p q)"), "inside a block the channel comes first, then frame, row, column: as in a "
                                         "Conv3d's weight."),
            (cut("b f (i j) (k p q c)"), "inside a block the channel comes first."),
            (cut("b f (i j) (c p q k)"), "inside a block: channel, then *frame*, then row and column."),
            (cut("b f (j i) (c k p q)"), "places are in reading order: along a row first."),
            (rearrange(x, "b c (k f) (i p) (j q) -> b f (i j) (c k p q)", k=k, p=p, q=p),
             "these are every so-manieth frames: a block holds k frames that follow each other."),
            (x.reshape(right.shape), "a reshape alone mixes everything: split three axes, permute, join."),
        ])
        same_dtype(got, x, what)
        leaf, = learn(x)
        same_gradient(function(leaf, k, p), rearrange(leaf, "b c (f k) (i p) (j q) -> b f (i j) (c k p q)", k=k, p=p,
                                                      q=p), {"x": leaf}, what)
    passed("to_blocks: a token is a square for a moment")


def from_blocks(function):
    """`function(tokens, k, p, rows)`: (B,F',N,k p p C), frame, row, column, channel in each -> (B,C,F,h,w)."""
    draw = fresh()
    for b, c, f, h, w, k, p in BLOCKS:
        rows = h // p
        tokens = draw(b, f // k, rows * (w // p), k * p * p * c)
        way = lambda of, t=tokens, c=c, k=k, p=p, rows=rows: rearrange(
            t, f"b f {of} -> b c (f k) (i p) (j q)", c=c, k=k, p=p, q=p, i=rows)
        got = attempt(function, tokens, k, p, rows, name="from_blocks")
        what, right = f"from_blocks of {tuple(tokens.shape)}, k = {k}, p = {p}", way("(i j) (k p q c)")
        compare(got, right, what, shapes={
            (b, f, c, h, w): "channels come before frames: (B,C,F,h,w)."}, mistakes=[
            (way("(i j) (c k p q)"), "here a token holds frame, row, column, channel, in this order."),
            (way("(i j) (p q k c)"), "inside a token the frame comes before row and column."),
            (way("(i j) (k q p c)"), "inside a token rows come before columns."),
            (way("(j i) (k p q c)"), "places are in reading order: along a row first."),
            (rearrange(tokens, "b f (i j) (k p q c) -> b c (k f) (i p) (j q)", c=c, k=k, p=p, q=p, i=rows),
             "frames of a block follow each other: (f k), not (k f)."),
            (tokens.reshape(right.shape), "a reshape alone mixes everything: split, permute, then join."),
        ])
        same_dtype(got, tokens, what)
        leaf, = learn(tokens)
        same_gradient(function(leaf, k, p, rows), way("(i j) (k p q c)", leaf), {"tokens": leaf}, what)
    passed("from_blocks: every moment back in its place")
