"""Checks of notebook 02, attention."""

import torch

from .checking import CheckFailed, attempt, compare, passed
from .properties import fresh, learn, same_dtype, same_gradient


def attention(function):
    """`function(q, k, v)`: q (B,H,N,d), k (B,H,M,d), v (B,H,M,e) -> softmax(q k^T / sqrt(d)) v, (B,H,N,e)."""
    draw, name = fresh(), "attention(q, k, v)"
    for b, h, n, m, d, e in ((2, 3, 5, 7, 4, 6), (1, 2, 6, 3, 9, 5)):
        q, k, v = learn(draw(b, h, n, d), draw(b, h, m, d), draw(b, h, m, e))
        got = attempt(function, q, k, v, name="attention")
        right = _attended(got, q, k, v, name)
        same_dtype(got, q, name)
        same_gradient(got, right, {"q": q, "k": k, "v": v}, name)
    # exp overflows at 88, and these scores go up to hundreds; whole numbers, so that all ways agree to the last digit
    q, k, v = ((10 * draw(2, 3, 5, 4)).round(), (10 * draw(2, 3, 7, 4)).round(), draw(2, 3, 7, 6))
    big = attempt(function, q, k, v, name="attention")
    if isinstance(big, torch.Tensor) and not big.isfinite().all():
        raise CheckFailed(f"{name} overflows when scores are large: exp(1000) is infinite. Subtract each row's largest "
                          "score first; torch.softmax does that for you.")
    compare(big, (q @ k.mT / 2).softmax(-1) @ v, name + " with large scores", rtol=1e-3, atol=1e-4)
    # far below 0, exp is 0 and its sum too
    q, k = q.abs() + 9, -k.abs() - 9
    low = attempt(function, q, k, v, name="attention")
    compare(low, (q @ k.mT / 2).softmax(-1) @ v, name + " with scores far below 0 (torch.softmax subtracts each row's "
            "largest score first)", rtol=1e-3, atol=1e-4)
    passed("attention: every query takes its own weighted mean of the values")


def _attended(got, q, k, v, name: str):
    """Compare with the right result, which is returned with its graph."""
    products = q @ k.mT
    (_, heads, n, d), (m, e) = q.shape, v.shape[2:]
    soft = lambda scale, axis=-1: (products / scale).softmax(axis) @ v
    root = d**0.5
    wrong = "d is the width of a query, the last axis of q; not "
    fixed = "the scale is a fixed number. It is the square root of d, the last axis of q: q.shape[-1] ** 0.5."
    late = "scale the scores before the softmax, not the weights after it."
    right = soft(root)
    shapes = {(*q.shape[:3], m): "the shape of the weights. Use them to average the values."}
    compare(got, right, name, shapes=shapes, mistakes=[
        (soft(1), "the scale is missing: divide the dot products by the square root of d."),
        (soft(d), "divide by the square root of d, not by d."),
        (soft(1 / root), "divide by the square root of d; you multiplied."),
        (soft(1 / d), "divide by the square root of d; you multiplied by d."),
        (soft(e**0.5), wrong + "that of the values."),
        (soft(m**0.5), wrong + "the number of keys."),
        (soft(n**0.5), wrong + "their number."),
        (soft((d * heads) ** 0.5), wrong + "that of all heads together."),
        *[(soft(c), fixed) for c in (2, 8, 64**0.5, 3)],
        (soft(heads**0.5), wrong + "that of the heads."),
        (soft(root, 1), "the softmax runs over the heads: each *query's* weights, over all keys (the last axis), add "
                        "up to 1."),
        (soft(root, -2), "the softmax runs along the wrong axis: each *query's* weights, over all keys (the last "
                         "axis), add up to 1."),
        ((products / root) @ v, "the softmax is missing: scores become weights that are positive and add up to 1."),
        ((products / root).exp() @ v, "exp alone is not a softmax: divide each query's weights by their sum."),
        ((products / root).sigmoid() @ v, "a sigmoid: the softmax makes each query's weights add up to 1."),
        (products.softmax(-1) / root @ v, late), (right / root, late),
        (soft(-root), "the sign: the larger the product, the larger the weight."),
    ])
    return right


def multi_head(function):
    """`function(x, context, w_q, w_k, w_v, w_out, num_heads)`: x (B,N,D), context (B,M,C) -> (B,N,D).

    Weights as in nn.Linear: w_q (inner,D), w_k and w_v (inner,C), w_out (D,inner).
    """
    draw = fresh()
    for b, n, m, width, c, heads, d in ((2, 6, 4, 10, 7, 3, 4), (3, 3, 5, 6, 9, 2, 5), (1, 4, 3, 8, 8, 4, 2)):
        inner = heads * d
        leaves = learn(draw(b, n, width), draw(b, m, c), *(draw(*shape) / shape[1]**0.5 * 1.5 for shape in (
            (inner, width), (inner, c), (inner, c), (width, inner))))
        got = attempt(function, *leaves, heads, name="multi_head")
        right = _joined(got, *leaves, heads)
        same_dtype(got, leaves[0], "multi_head(...)")
        names = ("x", "context", "w_q", "w_k", "w_v", "w_out")
        same_gradient(got, right, dict(reversed(list(zip(names, leaves)))), "multi_head(...)")
    passed("multi_head: split, attend, join, project")


def _joined(got, x, context, w_q, w_k, w_v, w_out, heads: int):
    """Compare with the right result, which is returned with its graph."""
    b, n, inner = len(x), x.shape[1], len(w_q)
    d = inner // heads
    q, k, v = x @ w_q.T, context @ w_k.T, context @ w_v.T
    split = lambda t: t.unflatten(2, (heads, d)).transpose(1, 2)
    cut = lambda t: t.reshape(b, heads, -1, d)  # the famous mistake
    laced = lambda t: t.unflatten(2, (d, heads)).permute(0, 3, 1, 2)
    mix = lambda q, k, v, d=d: (q @ k.mT / d**0.5).softmax(-1) @ v
    merge = lambda t: t.transpose(1, 2).flatten(2)
    out = lambda t: t @ w_out.T
    own = split(q), split(k), split(v)
    right = out(merge(mix(*own)))
    scrambled = "a reshape from (B,N,H*d) straight to (B,H,N,d) mixes tokens up: first (B,N,H,d), then transpose."
    mistakes = [
        (out(merge(mix(cut(q), cut(k), cut(v)))), scrambled),
        (out(mix(cut(q), cut(k), cut(v)).reshape(b, n, inner)), scrambled),
        (out(mix(*own).reshape(b, n, inner)),
         "on the way back, transpose (B,H,N,d) to (B,N,H,d) *before* joining the heads; the reshape mixed tokens up."),
        (out(mix(q, k, v, inner)), "one single head: split q, k and v into num_heads parts."),
        (out(mix(q, k, v, d)), "one single head: split q, k and v into num_heads parts."),
        (out(merge(mix(*own, inner))), "scale by the square root of a *head's* width, inner / num_heads."),
        (out(merge(mix(*own, x.shape[2]))), "scale by the square root of a *head's* width, inner / num_heads, not of "
                                            "the width of x."),
        (out(merge(mix(*own, 4))), "the width of a head is a fixed number: it is inner / num_heads."),
        (out(merge(mix(*own, 1))), "the scale is missing: divide by the square root of a head's width."),
        (out(merge(mix(laced(q), laced(k), laced(v)))),
         "a head is a block of d neighbouring numbers: split the last axis into (num_heads, d), not (d, num_heads)."),
        (out(merge(mix(split(q), split(v), split(k)))), "keys and values have changed places: w_k makes the keys."),
        (out(merge(mix(own[0], own[1], own[1]))), "the values are the keys again: they come from w_v."),
    ]
    shapes = {(b, n, inner): "the last projection, w_out, is missing."} if inner != x.shape[2] else {}
    compare(got, right, "multi_head(...)", mistakes=mistakes, shapes=shapes, rtol=1e-3, atol=1e-4)
    return right


def masked_attention(function):
    """`function(q, k, v, mask)`: as `attention`, with mask (B,M) bool, True = may be attended to."""
    draw, name = fresh(), "masked_attention(q, k, v, mask)"
    masks = (torch.tensor([[True] * 3 + [False] * 3, [True, False] * 3, [True] * 6]),
             torch.tensor([[False, True, False, True], [True, False, False, False]]))
    for mask, (h, n, d, e) in zip(masks, ((2, 5, 4, 4), (3, 4, 9, 6))):
        b, m = mask.shape
        q, k, v = learn(draw(b, h, n, d), draw(b, h, m, d), draw(b, h, m, e))
        got = attempt(function, q, k, v, mask, name="masked_attention")
        right = _seen(got, q, k, v, mask, name)
        same_dtype(got, q, name)
        same_gradient(got, right, {"q": q, "k": k, "v": v}, name)
    _hidden_is_hidden(function, draw, name)
    _nothing_gives_nothing(function, draw, name)
    passed("masked_attention: hidden tokens have no influence, and nothing gives nothing")


def _seen(got, q, k, v, mask, name: str):
    """Compare with the right result, which is returned with its graph."""
    scores, seen = q @ k.mT / q.shape[-1]**0.5, mask[:, None, None, :]
    hide = lambda m, scores=scores: scores.masked_fill(~m, float("-inf")).softmax(-1)
    zero = "a score of 0 is not a weight of 0: exp(0) = 1. Set hidden scores to minus infinity."
    right = hide(seen) @ v
    compare(got, right, name, mistakes=[
        (scores.softmax(-1) @ v, "the mask changed nothing. Did you use it?"),
        (hide(seen, scores * q.shape[-1]**0.5) @ v, "the scale is missing: divide the products by the square root of "
                                                    "d, as in `attention`."),
        (hide(seen, scores * q.shape[-1]**0.5 / 2) @ v, "the scale is a fixed number: it is the square root of d."),
        (hide(~seen).nan_to_num() @ v, "the mask is upside down: True means *may be attended to*."),
        (scores.softmax(-1) * seen @ v, "weights (or values) set to 0 after the softmax: what is left no longer adds "
                                        "up to 1. Set the *scores* to minus infinity before it."),
        ((scores * seen).softmax(-1) @ v, zero),
        ((scores + seen).softmax(-1) @ v, "the mask was added to the scores: True is only 1. Set hidden scores to "
                                          "minus infinity."),
        (hide(seen[:1].expand_as(seen)) @ v, "each example has its own mask; you used the first one's for all."),
        (hide(seen, 0 * scores) @ v, "all that is seen counts alike: the scores play no part."),
    ])
    return right


def _hidden_is_hidden(function, draw, name: str):
    """Neither a huge value nor a score far above the visible ones may come through."""
    mask = torch.tensor([[True, True, False, True, False]])
    # whole numbers: all scores agree to the last digit; the visible ones are about -3500
    q, k = (3 * draw(1, 2, 4, 4)).round().abs() + 40, (3 * draw(1, 2, 5, 4)).round().abs() + 40
    k = torch.where(mask[:, None, :, None], -k, k)
    v = torch.where(mask[:, None, :, None], draw(1, 2, 5, 3), 1e4)
    scores, seen = q @ k.mT / 2, mask[:, None, None]
    got = attempt(function, q, k, v, mask, name="masked_attention")
    filled = lambda value: scores.masked_fill(~seen, value).softmax(-1)
    weak = "a number such as -100 is not minus infinity: here all visible scores are lower, and hidden tokens took "\
           "over. Use float('-inf')."
    compare(got, filled(float("-inf")) @ v, name + " where visible scores are far below 0", rtol=1e-3, atol=1e-3,
            mistakes=[
        (torch.zeros(1, 2, 4, 3), "all weights became 0. Either the softmax was made by hand, and exp of such scores "
                                  "is 0: torch.softmax subtracts each row's largest score first. Or " + weak),
        *[(filled(-float(c)) @ v, weak) for c in (1, 10, 50, 99, 100, 200, 500, 1000)],
        (filled(0.0) @ v, "hidden tokens have an influence: their keys and values are large here, and come through."),
    ])


def _nothing_gives_nothing(function, draw, name: str):
    """Everything hidden, for all examples and for one of several; the values are far from 0."""
    q, k, v = learn(draw(3, 2, 5, 4), draw(3, 2, 6, 4), draw(3, 2, 6, 4) + 2)
    scores = q @ k.mT / 2
    for mask in (torch.zeros(3, 6, dtype=torch.bool), torch.tensor([[True] * 6, [False] * 6, [True, False] * 3])):
        seen = mask[:, None, None]
        got = attempt(function, q, k, v, mask, name="masked_attention")
        if isinstance(got, torch.Tensor) and got.isnan().any():
            raise CheckFailed(f"{name}: with everything hidden the answer is NaN (0 / 0). Give such a query zeros.")
        right = scores.masked_fill(~seen, float("-inf")).softmax(-1).nan_to_num() @ v
        fill = lambda value: torch.where(mask.any(-1)[:, None, None, None], right, value)
        compare(got, right, name + " with everything hidden", mistakes=[
            (fill(v.mean(2, keepdim=True)), "a large negative number instead of minus infinity gives equal weights "
                                            "when all is hidden. Give such a query zeros."),
            (fill(scores.softmax(-1) @ v), "when all is hidden, all is seen again: subtracting the same number from "
                                           "all scores changes nothing. Give such a query zeros."),
            (fill(torch.tensor(0.0)) * mask.any(), "one example with everything hidden emptied the others too."),
            (torch.zeros_like(right) if not mask.all(-1).all() else right,
             "one example with everything hidden emptied the others too."),
        ])
        grads = torch.autograd.grad(got.sum(), [q, k, v], allow_unused=True) if got.requires_grad else ()
        if any(g is not None and not g.isfinite().all() for g in grads):
            raise CheckFailed(f"{name}: with everything hidden the value is right but its gradient is NaN. Clear the "
                              "weights, not the output: `.softmax(-1).nan_to_num() @ v`.")
