"""Checks of notebook 15: a picture as a row of tokens, and back; their places."""

import torch
from einops import rearrange
from torch import Tensor

from .checking import attempt, compare, passed
from .properties import fresh, generator, learn, same_dtype, same_gradient

SIZES = ((2, 3, 4, 6, 2), (1, 2, 9, 6, 3), (3, 1, 4, 8, 4))     # B, C, h, w, p


def to_tokens(function):
    """`function(x, p)`: (B,C,h,w) -> (B,N,C p p): patches in reading order; in each, channel, row, column."""
    draw = fresh()
    for b, c, h, w, p in SIZES:
        x, n = draw(b, c, h, w), h * w // p**2
        cut = lambda to, x=x, p=p: rearrange(x, f"b c (i p) (j q) -> {to}", p=p, q=p)
        got, what = attempt(function, x, p, name="to_tokens"), f"to_tokens of {tuple(x.shape)}, p = {p}"
        right = cut("b (i j) (c p q)")
        compare(got, right, what, shapes={} if n == c * p * p else {
            (b, c * p * p, n): "the axes are (B,N,C p p): tokens first, then what a token holds."}, mistakes=[
            (cut("b (i j) (p q c)"), "inside a token the channel comes first, then row, then column: as in a "
                                     "convolution's weight."),
            (cut("b (j i) (c p q)"), "tokens are in reading order: along a row of patches first, then the next row."),
            (cut("b (i j) (c q p)"), "inside a patch, too, rows come before columns."),
            (x.reshape(right.shape), "a reshape alone cuts the picture into stripes: split h into (h/p, p) and w into "
                                     "(w/p, p), then permute."),
            (cut("b (p q) (c i j)") if n == p * p else right, "these are every p-th pixel, not neighbours."),
        ])
        same_dtype(got, x, what)
        leaf, = learn(x)
        same_gradient(function(leaf, p), rearrange(leaf, "b c (i p) (j q) -> b (i j) (c p q)", p=p, q=p), {"x": leaf},
                      what)
    passed("to_tokens: patches in reading order")


def from_tokens(function):
    """`function(tokens, p, rows)`: (B,N,p p C), in each token row, column, channel -> (B,C,rows p,columns p)."""
    draw = fresh()
    for b, c, h, w, p in SIZES:
        rows = h // p
        tokens = draw(b, h * w // p**2, p * p * c)
        lay = lambda of, tokens=tokens, c=c, p=p, rows=rows: rearrange(tokens, f"b {of} -> b c (i p) (j q)", c=c, p=p,
                                                                       i=rows)
        got, what = attempt(function, tokens, p, rows, name="from_tokens"), f"from_tokens of {tuple(tokens.shape)}"
        right = lay("(i j) (p q c)")
        compare(got, right, what, mistakes=[
            (lay("(i j) (c p q)"), "here a token holds row, column, channel, in this order."),
            (lay("(i j) (q p c)"), "inside a token rows come before columns."),
            (lay("(j i) (p q c)"), "tokens are in reading order: a row of patches after the other."),
            (tokens.reshape(right.shape), "a reshape alone mixes places: split both axes, permute, then join."),
        ])
        same_dtype(got, tokens, what)
        leaf, = learn(tokens)
        same_gradient(function(leaf, p, rows),
                      rearrange(leaf, "b (i j) (p q c) -> b c (i p) (j q)", c=c, p=p, i=rows), {"tokens": leaf}, what)
    passed("from_tokens: every patch back in its place")


def place_code(function):
    """`function(rows, columns, dim)` -> (rows columns, dim): sines, cosines of the column; then those of the row."""
    some = lambda: int(torch.randint(2, 7, (), generator=source))
    source = generator(5)
    for dim in (16, 8, 24):
        rows, columns = some(), some()
        rows += rows == columns
        got, what = attempt(function, rows, columns, dim, name="place_code"), f"place_code({rows}, {columns}, {dim})"
        compare(got, _code(rows, columns, dim), what, atol=1e-4, shapes={
            (rows, columns, dim): "one row for each token: (rows * columns, dim), in reading order."}, mistakes=(
            (_code(rows, columns, dim, how), message) for how, message in CODE_MISTAKES.items()))
        same_dtype(got, torch.zeros(()), what)
    passed("place_code: every place has its own waves")


CODE_MISTAKES = {
    "row first": "the first half is the column's, the second the row's.",
    "cosine first": "sines come first, then cosines.",
    "pairs": "first all sines, then all cosines; not in pairs.",
    "half": "there are dim / 4 frequencies: the exponent is -i / (dim / 4).",
    "upwards": "the frequencies fall: 10000 to the power of *minus* i / (dim / 4).",
    "base": "the base is 10000.",
    "from one": "the first row and column are 0.",
    "one axis": "row and column both count: this code knows the number of the token only.",
    "columns": "tokens are in reading order: the column changes fastest.",
}


def _code(rows: int, columns: int, dim: int, how: str = "") -> Tensor:
    """The code with one thing changed."""
    quarter = dim // 4
    exponent = torch.arange(quarter) / (dim // 2 if how == "half" else quarter)
    frequencies = (1000.0 if how == "base" else 10_000.0) ** (exponent if how == "upwards" else -exponent)

    def waves(places):
        angles = (places + (how == "from one"))[:, None] * frequencies
        both = [angles.cos(), angles.sin()] if how == "cosine first" else [angles.sin(), angles.cos()]
        return torch.stack(both, -1).flatten(1) if how == "pairs" else torch.cat(both, 1)

    places = torch.arange(rows * columns)
    row, column = (places % rows, places // rows) if how == "columns" else (places // columns, places % columns)
    row, column = (places, places) if how == "one axis" else (row, column)
    return torch.cat([waves(row), waves(column)] if how == "row first" else [waves(column), waves(row)], 1)


def shuffle_patches(function):
    """`function(x, p, order)`: (B,C,h,w), order (N,) -> the same shape; patch i of it is patch order[i] of x."""
    draw, source = fresh(), generator(3)
    for b, c, h, w, p in SIZES:
        n = h * w // p**2
        order = torch.randperm(n, generator=source)
        while torch.equal(order.argsort(), order) and n > 2:    # else its inverse looks the same
            order = torch.randperm(n, generator=source)
        x = draw(b, c, h, w)

        def moved(order, inside="(c p q)", x=x, p=p, w=w):
            tokens = rearrange(x, f"b c (i p) (j q) -> b (i j) {inside}", p=p, q=p)[:, order]
            return rearrange(tokens, "b (i j) (c p q) -> b c (i p) (j q)", j=w // p, p=p, q=p)

        got, what = attempt(function, x, p, order, name="shuffle_patches"), f"shuffle_patches of {tuple(x.shape)}"
        pixels = x.flatten(2)
        compare(got, moved(order), what, mistakes=[
            (moved(order.argsort()), "this is the way back: patch i of the result is patch order[i] of x."),
            (x, "nothing moved."),
            (moved(order, "(c q p)"), "patches move as they are: rows and columns inside are swapped here."),
            (moved(order, "(p q c)"), "a token has one order of numbers on the way in, another on the way out."),
            (torch.cat([pixels[..., order], pixels[..., n:]], -1).view(x.shape), "these are pixels that moved: move "
                                                                                "whole patches."),
        ])
        same_dtype(got, x, what)
    passed("shuffle_patches: whole patches change places")
