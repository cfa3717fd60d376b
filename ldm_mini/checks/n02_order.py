"""Checks of notebook 02, continued: how undecided a softmax is, what attention does not know, and what it costs."""

import torch

from .checking import CheckFailed, attempt, compare, count, number, passed, several, truth
from .properties import fresh, own_randomness, plain


def undecided(function):
    """`function(q, k, divisor)`: q (T,1,d), k (T,M,d) -> spread of the scores, mean largest weight, mean slope."""
    draw = fresh()
    for t, m, d, divisor in ((6, 5, 3, 1.5), (9, 4, 8, 4.0)):
        q, k = draw(t, 1, d).double(), draw(t, m, d).double()
        scores = (q * k).sum(-1) / divisor
        name = f"undecided(q {tuple(q.shape)}, k {tuple(k.shape)}, {divisor})"
        got = several(attempt(function, q, k, divisor, name="undecided"), name,
                      "three numbers: spread, largest weight, slope")
        spread, most, slope = (number(v, f"{name}, the {which}") for v, which in zip(got, ("first", "second", "third")))
        _judge_spread(spread, scores, q, k, divisor, name)
        w = scores.softmax(-1)
        compare(most, w.amax(-1).mean(), name + ": the mean largest weight", mistakes=[
            ((scores * divisor).softmax(-1).amax(-1).mean(), "the weights are the softmax of the scores, divided."),
            (scores.softmax(0).amax(-1).mean(), "the softmax goes over the keys of one query: dim=-1."),
            (scores.softmax(0).amax(0).mean(), "the softmax goes over the keys of one query: dim=-1."),
            (w.max(), "this is the largest of all; each query has its largest weight, and here is their mean."),
            (w.amax(0).mean(), "the largest weight of each query, over its keys: the last axis."),
            (scores.amax(-1).mean(), "this is the largest score; take the softmax first."),
            (w.mean(), "this is the mean of all weights, 1 / M; take the largest of each query.")])
        _judge_slope(slope, w, name + ": the mean size of the slope")
    passed("undecided: how far the scores spread, who takes most, and how steep the softmax is there")


def _judge_spread(got, scores, q, k, divisor, name: str):
    if not torch.allclose(got, scores.std(unbiased=False), rtol=1e-4):  # both are in use
        compare(got, scores.std(), name + ": the spread of the scores", mistakes=[
            ((scores * divisor).std(), "the scores are divided by `divisor`."),
            ((scores * divisor**2).std(), "divided, not multiplied."),
            (scores.var(), "this is the variance; the spread is its root."),
            (scores.std(-1).mean(), "one spread of all scores, not a mean over the queries."),
            ((q * k).mean(-1).div(divisor).std(), "a dot product is a sum over d, not a mean.")])


def _judge_slope(got, w, what: str):
    outer, diagonal = w[:, :, None] * w[:, None, :], torch.diag_embed(w)
    slope = diagonal - outer
    size = lambda table: table.flatten(1).norm(dim=1).mean()
    compare(got, size(slope), what, mistakes=[
        (size(outer), "the diagonal is missing: w_i where i = j, minus w_i w_j everywhere."),
        (size(diagonal), "w_i w_j is missing: a softmax that gives to one takes from the others."),
        (size(torch.eye(w.shape[1], dtype=w.dtype) - outer), "on the diagonal stands w_i (1 - w_i): w_i, not 1."),
        (size(diagonal + outer), "minus: what one key gains the others lose."),
        ((w * (1 - w)).norm(dim=1).mean(), "this is the diagonal alone; the whole table, M x M, has a size."),
        (slope.norm(), "each query has a table: the size of each, then the mean."),
        (size(slope).square(), "the root of the sum of the squares, for each query."),
        (slope.square().sum((1, 2)).mean(), "the root of the sum of the squares, for each query."),
        (slope.abs().sum((1, 2)).mean(), "squares, not absolute values: .norm does it."),
        (slope.square().mean((1, 2)).sqrt().mean(), "the root of the *sum* of the squares, not of their mean."),
        (slope.norm(dim=1).mean(), "one size for a whole table: flatten it first.")])


def is_order_blind(function):
    """`function(layer, x)`: layer (B,N,D) -> (B,N,D'), x (B,N,D) -> bool: shuffled tokens, outputs shuffled alike?"""
    draw = fresh()
    x, code = draw(2, 40, 6).double(), draw(40, 6).double()
    late = torch.where(torch.arange(40)[:, None] > 1, code, 0.0)
    attend = lambda x: (x @ x.mT / 6**0.5).softmax(-1) @ x
    tame = " A reversal or a shift is too tame: this layer survives both. Use a random order, torch.randperm."
    exact = " Shuffled inputs give *shuffled* outputs: shuffle the old output too. And compare with torch.allclose: "\
            "sums in another order differ in the last digit."
    alike = " The new output must be the old one *reordered alike*, token by token: sums or sorted values miss that."
    # each layer catches another test that is too tame, so their order is that of the hints
    cases = [
        ("a layer that treats every token alike", torch.tanh, True,
         " Reorder the tokens of x (axis 1); the new output must be the old one, *reordered alike*."),
        ("self-attention", attend, True, exact),
        ("self-attention, other width", lambda x: attend(x)[..., :4], True, ""),
        ("a layer that adds a position code", lambda x: x + code, False,
         " Did your shuffle move anything? It must reorder the tokens: axis 1."),
        ("a layer that adds a faint position code", lambda x: x + 0.02 * code, False,
         " Differences of 0.02 are no rounding: compare more strictly."),
        ("a layer that adds a position code from the third token on", lambda x: x + late, False,
         " Shuffle all tokens, not only the first ones."),
        ("a blur over neighbours", lambda x: (x + x.roll(1, 1) + x.roll(-1, 1)) / 3, False, tame),
        ("a running sum", lambda x: x.cumsum(1), False, ""),
        ("a layer that moves every token to the next place", lambda x: x.roll(1, 1), False, alike),
        ("a layer that sorts the tokens", lambda x: x.sort(1).values, False, alike),
        ("a mean over all tokens", lambda x: x.mean(1, keepdim=True).expand_as(x), True, ""),
    ]
    for what, layer, right, hint in cases:
        _says(function, layer, x, right, what, hint)
    small = draw(4, 60, 16)
    _says(function, lambda x: attend(attend(x)), small, True, "self-attention in float32",
          " Allow for rounding: torch.allclose(..., atol=1e-5).")
    _says(function, lambda x: x.cumsum(1), small, False, "a running sum in float32", "")
    passed("is_order_blind: you can now test any layer")


def _says(function, layer, x, right: bool, what: str, hint: str):
    with own_randomness():
        got = truth(attempt(function, layer, x, name="is_order_blind"), "is_order_blind")
    if got != right:
        raise CheckFailed(f"is_order_blind says {got} of {what}; it should be {right}.{hint}")


def attention_macs(function):
    """`function(n, m, dim, context_dim)`: multiply-adds of an attention layer, projections too; inner width dim."""
    drawn = [int(value) for value in 5 + 90 * fresh()(4).sigmoid()]
    for n, m, d, c in ((1024, 77, 320, 1280), (64, 64, 32, 32), (256, 9, 64, 128), drawn):
        name = f"attention_macs({n}, {m}, {d}, {c})"
        got = plain(attempt(function, n, m, d, c, name="attention_macs"))
        q, kv, table, out = n * d * d, 2 * m * c * d, n * m * d, n * d * d
        right = q + kv + 2 * table + out
        count(got, right, name, mistakes={
            q + kv + table + out: "the table is used twice: once to make the scores, once to average the values.",
            q + kv + 2 * table: "one projection of n tokens is missing: x becomes queries, and what the heads bring is "
                                "projected once more at the end.",
            q + out + 2 * table: "the projections of the context to keys and values are missing.",
            q + kv // 2 + 2 * table + out: "keys *and* values are made from the context: two projections.",
            q + kv + out: "the table itself is missing: n x m scores, and n x m weights times values.",
            2 * table: "that is the table alone. Add the four projections: queries, keys, values, output.",
            q + 2 * n * d * d + 2 * table + out: "keys and values come from the context, m tokens wide context_dim.",
            q + 2 * n * c * d + 2 * table + out: "keys and values come from the context: it has m tokens, not n.",
            q + 2 * m * d * d + 2 * table + out: "a context token has width context_dim, not dim.",
            q + kv + 2 * n * n * d + out: "the table is n x m: n tokens look at m.",
            q + kv + 2 * n * m + out: "each of the n x m scores is a sum of dim products.",
            2 * right: "count a multiplication with its addition as one.",
        })
    passed("attention_macs: four projections, and the table twice")
