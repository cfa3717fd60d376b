"""Checks of notebook 02, attention."""

import torch

from .checking import CheckFailed, attempt, compare, count, noise, passed, truth


def attention(function):
    """`function(q, k, v)`: q (B,H,N,d), k (B,H,M,d), v (B,H,M,e) -> softmax(q k^T / sqrt(d)) v, (B,H,N,e)."""
    q, k, v = noise(2, 3, 5, 4), noise(2, 3, 7, 4, seed=1), noise(2, 3, 7, 6, seed=2)
    products = q @ k.transpose(-1, -2)
    weights = (products / 2).softmax(-1)                                        # sqrt(4) = 2
    name = "attention(q, k, v)"
    got = attempt(function, q, k, v, name="attention")
    shapes = {tuple(weights.shape): "the shape of the weights. Use them to average the values."}
    compare(got, weights @ v, name, shapes=shapes, mistakes=[
        (products.softmax(-1) @ v, "the scale is missing: divide the dot products by the square root of d."),
        ((products / 4).softmax(-1) @ v, "divide by the square root of d, not by d."),
        ((products * 2).softmax(-1) @ v, "divide by the square root of d; you multiplied."),
        ((products / 6**0.5).softmax(-1) @ v, "d is the width of a query, the last axis of q; not that of the values."),
        ((products / 7**0.5).softmax(-1) @ v, "d is the width of a query, the last axis of q; not the number of keys."),
        ((products / 5**0.5).softmax(-1) @ v, "d is the width of a query, the last axis of q; not their number."),
        ((products / 3**0.5).softmax(-1) @ v, "d is the width of a query, the last axis of q; not that of the heads."),
        ((products / 2).softmax(1) @ v, "the softmax runs over the heads: each *query's* weights, over all keys (the "
                                        "last axis), add up to 1."),
        ((products / 2).softmax(-2) @ v, "the softmax runs along the wrong axis: each *query's* weights, over all keys "
                                         "(the last axis), add up to 1."),
        ((products / 2) @ v, "the softmax is missing: scores become weights that are positive and add up to 1."),
        (weights / 2 @ v, "scale the scores before the softmax, not the weights after it."),
    ])
    # exp overflows at 88, and these scores go up to thousands; softmax subtracts the largest first
    big = attempt(function, 100 * q, 100 * k, v, name="attention")
    if not big.isfinite().all():
        raise CheckFailed(f"{name} overflows when scores are large: exp(1000) is infinite. Subtract each row's largest "
                          "score first; torch.softmax does that for you.")
    compare(big, (products * 5000).softmax(-1) @ v, name + " with large scores")
    passed("attention: every query takes its own weighted mean of the values")


def multi_head(function):
    """`function(x, context, w_q, w_k, w_v, w_out, num_heads)`: x (B,N,D), context (B,M,C) -> (B,N,D).

    Weights as in nn.Linear: w_q (inner,D), w_k and w_v (inner,C), w_out (D,inner).
    """
    x, context, heads = noise(2, 6, 10), noise(2, 4, 7, seed=1), 3
    weights = noise(12, 10, seed=2), noise(12, 7, seed=3), noise(12, 7, seed=4), noise(10, 12, seed=5)
    q, k, v = x @ weights[0].T, context @ weights[1].T, context @ weights[2].T
    split = lambda t: t.unflatten(2, (heads, 4)).transpose(1, 2)
    cut = lambda t: t.reshape(2, heads, -1, 4)  # the famous mistake
    laced = lambda t: t.unflatten(2, (4, heads)).permute(0, 3, 1, 2)
    mix = lambda q, k, v, d=4: (q @ k.transpose(-1, -2) / d**0.5).softmax(-1) @ v
    merge = lambda t: t.transpose(1, 2).flatten(2)
    own = split(q), split(k), split(v)
    got = attempt(function, x, context, *weights, heads, name="multi_head")
    scrambled = "a reshape from (B,N,H*d) straight to (B,H,N,d) mixes tokens up: first (B,N,H,d), then transpose."
    compare(got, merge(mix(*own)) @ weights[3].T, "multi_head(...)", mistakes=[
        (merge(mix(cut(q), cut(k), cut(v))) @ weights[3].T, scrambled),
        (mix(cut(q), cut(k), cut(v)).reshape(2, 6, 12) @ weights[3].T, scrambled),
        (mix(*own).reshape(2, 6, 12) @ weights[3].T,
         "on the way back, transpose (B,H,N,d) to (B,N,H,d) *before* joining the heads; the reshape mixed tokens up."),
        (mix(q, k, v, 12) @ weights[3].T, "one single head: split q, k and v into num_heads parts."),
        (merge(mix(*own, 12)) @ weights[3].T, "scale by the square root of a *head's* width, inner / num_heads."),
        (merge(mix(*own, 1)) @ weights[3].T, "the scale is missing: divide by the square root of a head's width."),
        (merge(mix(laced(q), laced(k), laced(v))) @ weights[3].T,
         "a head is a block of d neighbouring numbers: split the last axis into (num_heads, d), not (d, num_heads)."),
    ], rtol=1e-3, atol=1e-4)
    passed("multi_head: split, attend, join, project")


def masked_attention(function):
    """`function(q, k, v, mask)`: as `attention`, with mask (B,M) bool, True = may be attended to."""
    q, k, v = noise(3, 2, 5, 4), noise(3, 2, 6, 4, seed=1), noise(3, 2, 6, 4, seed=2)
    mask = torch.tensor([[True] * 3 + [False] * 3, [True, False] * 3, [True] * 6])
    scores, seen = q @ k.transpose(-1, -2) / 2, mask[:, None, None, :]
    hidden = lambda m: scores.masked_fill(~m, float("-inf")).softmax(-1)
    name = "masked_attention(q, k, v, mask)"
    got = attempt(function, q, k, v, mask, name="masked_attention")
    compare(got, hidden(seen) @ v, name, mistakes=[
        (scores.softmax(-1) @ v, "the mask changed nothing. Did you use it?"),
        ((2 * scores).masked_fill(~seen, float("-inf")).softmax(-1) @ v, "the scale is missing: divide the products "
         "by the square root of d, as in `attention`."),
        (hidden(~seen).nan_to_num() @ v, "the mask is upside down: True means *may be attended to*."),
        (scores.softmax(-1) * seen @ v, "weights (or values) set to 0 after the softmax: what is left no "
                                        "longer adds up to 1. Set the *scores* to minus infinity before it."),
        ((scores * seen).softmax(-1) @ v, "a score of 0 is not a weight of 0: exp(0) = 1. "
                                          "Set hidden scores to minus infinity."),
    ])
    none = torch.zeros_like(mask)
    empty = attempt(function, q, k, v, none, name="masked_attention")
    if isinstance(empty, torch.Tensor) and empty.isnan().any():
        raise CheckFailed(f"{name}: with everything hidden the answer is NaN (0 / 0). Give such a query zeros.")
    compare(empty, torch.zeros_like(q), name + " with everything hidden", mistakes=[
        (v.mean(2, keepdim=True).expand_as(q), "a large negative number instead of minus infinity gives equal weights "
                                               "when all is hidden. Give such a query zeros."),
        (scores.softmax(-1) @ v, "when all is hidden, all is seen again: subtracting the same number from all scores "
                                 "changes nothing. Give such a query zeros."),
    ])
    passed("masked_attention: hidden tokens have no influence, and nothing gives nothing")


def is_order_blind(function):
    """`function(layer, x)`: layer (B,N,D) -> (B,N,D'), x (B,N,D) -> bool: shuffled tokens, outputs shuffled alike?"""
    x = noise(2, 40, 6).double()
    blur = lambda x: (x + x.roll(1, 1) + x.roll(-1, 1)) / 3
    self_attention = lambda x: (x @ x.transpose(1, 2) / 6**0.5).softmax(-1) @ x
    # each layer catches another test that is too tame, so their order is that of the hints
    cases = [
        ("a layer that treats every token alike", lambda x: x.tanh(), True,
         " Reorder the tokens of x (axis 1); the new output must be the old one, *reordered alike*."),
        ("self-attention", self_attention, True,
         " Shuffled inputs give *shuffled* outputs: shuffle the old output too. And compare with torch.allclose: sums "
         "in another order differ in the last digit."),
        ("self-attention, other width", lambda x: self_attention(x)[..., :4], True, ""),
        ("a layer that adds a position code", lambda x: x + noise(40, 6, seed=1).double(), False,
         " Did your shuffle move anything? It must reorder the tokens: axis 1."),
        ("a blur over neighbours", blur, False,
         " A reversal or a shift is too tame: this layer survives both. Use a random order, torch.randperm."),
        ("a running sum", lambda x: x.cumsum(1), False, ""),
    ]
    for what, layer, right, hint in cases:
        got = truth(attempt(function, layer, x, name="is_order_blind"), "is_order_blind")
        if got != right:
            raise CheckFailed(f"is_order_blind says {got} of {what}; it should be {right}.{hint}")
    passed("is_order_blind: you can now test any layer")


def attention_macs(function):
    """`function(n, m, dim, context_dim)`: multiply-adds of an attention layer, projections too; inner width dim."""
    for n, m, d, c in ((1024, 77, 320, 1280), (64, 64, 32, 32), (256, 9, 64, 128)):
        name = f"attention_macs({n}, {m}, {d}, {c})"
        got = attempt(function, n, m, d, c, name="attention_macs")
        q, kv, table, out = n * d * d, 2 * m * c * d, n * m * d, n * d * d
        right = q + kv + 2 * table + out
        count(got, right, name, mistakes={
            q + kv + table + out: "the table is used twice: once to make the scores, once to average the values.",
            q + kv + 2 * table: "one projection of n tokens is missing: x becomes queries, and what the heads bring is "
                                "projected once more at the end.",
            q + out + 2 * table: "the projections of the context to keys and values are missing.",
            q + kv // 2 + 2 * table + out: "keys *and* values are made from the context: two projections.",
            2 * table: "that is the table alone. Add the four projections: queries, keys, values, output.",
            q + 2 * n * d * d + 2 * table + out: "keys and values come from the context, m tokens wide context_dim.",
            q + 2 * m * d * d + 2 * table + out: "a context token has width context_dim, not dim.",
            q + kv + 2 * n * n * d + out: "the table is n x m: n tokens look at m.",
            2 * right: "count a multiplication with its addition as one.",
        })
    passed("attention_macs: four projections, and the table twice")
