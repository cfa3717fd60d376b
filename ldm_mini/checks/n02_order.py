"""Checks of notebook 02, continued: what attention does not know, and what it costs."""

import torch

from .checking import CheckFailed, attempt, count, passed, truth
from .properties import fresh, own_randomness, plain


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
