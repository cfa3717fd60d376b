"""The checks of notebook 02: known wrong attention must fail with a hint, right attention of any style must pass."""

import math

import torch
import torch.nn.functional as F
from solutions import spoiled, try_all

from ldm_mini import attention as ours
from ldm_mini import checks

INF = float("inf")


def scores(q, k):
    return q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5


def attention_in_loops(q, k, v):
    out = torch.zeros(*q.shape[:-1], v.shape[-1])
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            for n in range(q.shape[2]):
                row = torch.stack([torch.dot(q[b, h, n], key) for key in k[b, h]]) / math.sqrt(q.shape[-1])
                weights = torch.exp(row - row.max())
                out[b, h, n] = sum(w * value for w, value in zip(weights / weights.sum(), v[b, h]))
    return out


def attention_in_einsum(q, k, v):
    weights = torch.einsum("bhnd,bhmd->bhnm", q * q.shape[-1] ** -0.5, k).softmax(-1)
    return torch.einsum("bhnm,bhme->bhne", weights, v)


def multi_head(x, context, w_q, w_k, w_v, w_out, num_heads, split=None, merge=None, mix=F.scaled_dot_product_attention):
    split = split or (lambda t: t.unflatten(2, (num_heads, -1)).transpose(1, 2))
    merge = merge or (lambda t: t.transpose(1, 2).flatten(2))
    return merge(mix(split(F.linear(x, w_q)), split(F.linear(context, w_k)), split(F.linear(context, w_v)))) @ w_out.T


def head_by_head(x, context, w_q, w_k, w_v, w_out, num_heads):
    """Another layout: one small attention per head, outputs added instead of joined."""
    out = 0
    for q, k, v, o in zip(w_q.chunk(num_heads), w_k.chunk(num_heads), w_v.chunk(num_heads), w_out.chunk(num_heads, 1)):
        out = out + F.scaled_dot_product_attention(x @ q.T, context @ k.T, context @ v.T) @ o.T
    return out


def batched_heads(x, context, w_q, w_k, w_v, w_out, num_heads):
    """Another layout: heads folded into the batch axis, as the released code does it."""
    def fold(t):
        b, n, _ = t.shape
        return t.reshape(b, n, num_heads, -1).permute(0, 2, 1, 3).reshape(b * num_heads, n, -1)

    q, k, v = fold(x @ w_q.T), fold(context @ w_k.T), fold(context @ w_v.T)
    out = torch.baddbmm(torch.zeros(len(q), q.shape[1], k.shape[1]), q, k.mT, alpha=q.shape[-1] ** -0.5).softmax(-1) @ v
    return out.reshape(x.shape[0], num_heads, x.shape[1], -1).permute(0, 2, 1, 3).flatten(2) @ w_out.T


def by_hand(x, context, w_q, w_k, w_v, w_out, num_heads):
    """Nothing but matrix products and a softmax; heads joined by cat."""
    split = lambda t: t.view(*t.shape[:2], num_heads, -1).movedim(2, 1)
    q, k, v = split(x @ w_q.T), split(context @ w_k.T), split(context @ w_v.T)
    return torch.cat(list((scores(q, k).softmax(-1) @ v).unbind(1)), -1) @ w_out.T


def masked_loops(q, k, v, mask):
    out = torch.zeros_like(q)
    for b in range(len(q)):
        if mask[b].any():
            out[b] = F.scaled_dot_product_attention(q[b], k[b][:, mask[b]], v[b][:, mask[b]])
    return out


def masked_by_hand(q, k, v, mask):
    weights = torch.exp(scores(q, k)) * mask[:, None, None]
    return weights @ v / weights.sum(-1, keepdim=True).clamp(min=1e-9)


def masked(q, k, v, mask, fill=-INF, clean=True):
    out = scores(q, k).masked_fill(~mask[:, None, None], fill).softmax(-1) @ v
    return out.nan_to_num() if clean else out


def shuffled(layer, x, order=None, again=True, close=torch.allclose, axis=1):
    order = torch.randperm(x.shape[axis]) if order is None else order
    new, old = layer(x.index_select(axis, order)), layer(x)
    return close(new, old.index_select(axis, order) if again else old)


def macs(n, m, d, c, q=1, kv=2, table=2, out=1):
    return q * n * d * d + kv * m * c * d + table * n * m * d + out * n * d * d


N = 40  # the tokens that the check of is_order_blind uses
CORRECT = {
    checks.attention: [
        attention_in_loops, attention_in_einsum, F.scaled_dot_product_attention, ours.attention,
        lambda q, k, v: (k @ q.mT / q.shape[-1] ** 0.5).softmax(-2).mT @ v,
    ],
    checks.multi_head: [multi_head, head_by_head, batched_heads, by_hand],
    checks.masked_attention: [
        masked, masked_loops, masked_by_hand, ours.attention,
        lambda q, k, v, m: masked(q, k, v, m, -1e9) * m.any(-1).view(-1, 1, 1, 1),
    ],
    checks.is_order_blind: [
        shuffled, lambda f, x: all(shuffled(f, x) for _ in range(3)),
        lambda f, x: shuffled(f, x, close=lambda a, b: (a - b).abs().max() < 1e-4),  # a tensor of one bool
    ],
    checks.attention_macs: [macs, lambda n, m, d, c: 2 * d * (n * d + m * c + n * m)],
}

MUTANTS = {
    checks.attention: [
        (lambda q, k, v: (q @ k.mT).softmax(-1) @ v, "scale is missing"),
        (lambda q, k, v: (q @ k.mT / q.shape[-1]).softmax(-1) @ v, "not by d"),
        (lambda q, k, v: (q @ k.mT * q.shape[-1] ** 0.5).softmax(-1) @ v, "you multiplied"),
        (lambda q, k, v: (q @ k.mT / v.shape[-1] ** 0.5).softmax(-1) @ v, "values"),
        (lambda q, k, v: (q @ k.mT / k.shape[-2] ** 0.5).softmax(-1) @ v, "number of keys"),
        (lambda q, k, v: (q @ k.mT / q.shape[2] ** 0.5).softmax(-1) @ v, "not their number"),
        (lambda q, k, v: (q @ k.mT / q.shape[1] ** 0.5).softmax(-1) @ v, "that of the heads"),
        (lambda q, k, v: scores(q, k).softmax(1) @ v, "over the heads"),
        (lambda q, k, v: scores(q, k).softmax(-2) @ v, "wrong axis"),
        (lambda q, k, v: scores(q, k) @ v, "softmax is missing"),
        (lambda q, k, v: (q @ k.mT).softmax(-1) / 2 @ v, "off by"),
        (lambda q, k, v: scores(q, k).softmax(-1) / q.shape[-1] ** 0.5 @ v, "before the softmax"),
        (lambda q, k, v: scores(q, k).softmax(-1), "shape of the weights"),
        (lambda q, k, v: scores(q, k).exp() / scores(q, k).exp().sum(-1, keepdim=True) @ v, "overflows"),
        (lambda q, k, v: q @ k @ v, "RuntimeError"),
        (lambda q, k, v: None, "return"),
    ],
    checks.multi_head: [
        *spoiled(multi_head, (dict(split=lambda t: t.reshape(2, 3, -1, 4)), "mixes tokens"),
                 (dict(split=lambda t: t.reshape(2, 3, -1, 4), merge=lambda t: t.reshape(2, -1, 12)), "mixes tokens"),
                 (dict(merge=lambda t: t.reshape(2, -1, 12)), "on the way back"),
                 (dict(split=lambda t: t[:, None]), "one single head"),
                 (dict(split=lambda t: t.view(2, -1, 4, 3).permute(0, 3, 1, 2)), "neighbouring"),
                 (dict(mix=lambda q, k, v: (q @ k.mT / 12**0.5).softmax(-1) @ v), "head's"),
                 (dict(mix=lambda q, k, v: (q @ k.mT).softmax(-1) @ v), "missing")),
        (lambda x, c, q, k, v, o, h: multi_head(x, x, q, k, v, o, h), "RuntimeError"),
        (lambda x, c, q, k, v, o, h: multi_head(x, c, q, k, v, torch.eye(12), h), "shape"),
    ],
    checks.masked_attention: [
        *spoiled(masked, (dict(clean=False), "NaN")),
        (lambda q, k, v, m: F.scaled_dot_product_attention(q, k, v), "Did you use it"),
        (lambda q, k, v, m: masked(2 * q, k, v, m), "scale is missing"),
        (lambda q, k, v, m: masked(q, k, v, ~m), "upside down"),
        (lambda q, k, v, m: scores(q, k).softmax(-1) * m[:, None, None] @ v, "adds up to 1"),
        (lambda q, k, v, m: (scores(q, k) * m[:, None, None]).softmax(-1) @ v, "exp"),
        (lambda q, k, v, m: F.scaled_dot_product_attention(q, k, v * m[:, None, :, None]), "adds up"),
        (lambda q, k, v, m: masked(q, k, v, m, -1e9), "large negative"),
        (lambda q, k, v, m: masked(q, k, v, m | ~m.any(-1, keepdim=True)), "seen again"),
        (lambda q, k, v, m: masked(q, k, v, m[0].expand_as(m)), "off by"),
    ],
    checks.is_order_blind: [
        *spoiled(shuffled, (dict(axis=0), "axis 1"), (dict(again=False), "it should be True"),
                 (dict(close=torch.equal), "last digit")),
        (lambda f, x: torch.equal(f(x[:, torch.randperm(N)]), f(x)), "reordered alike"),
        (lambda f, x: True, "position code"),
        (lambda f, x: False, "treats every token alike"),
        (lambda f, x: shuffled(f, x, torch.arange(N)), "Did your shuffle move"),
        (lambda f, x: shuffled(f, x, torch.arange(N).flip(0)), "reversal"),
        (lambda f, x: shuffled(f, x, torch.arange(N).roll(7)), "reversal"),
        (lambda f, x: "yes", "True or False"),
    ],
    checks.attention_macs: [
        *spoiled(macs, (dict(table=1), "used twice"), (dict(out=0), "at the end"), (dict(kv=1), "two projections"),
                 (dict(kv=0), "are missing"), (dict(q=0, kv=0, out=0), "table alone")),
        (lambda n, m, d, c: d * (2 * n * d + 2 * m * c + 2 * n * n), "n tokens look at m"),
        (lambda n, m, d, c: macs(n, n, d, d) - 2 * (n - m) * n * d, "come from the context"),
        (lambda n, m, d, c: macs(n, m, d, d), "context_dim"),
        (lambda *a: 2 * macs(*a), "as one"),
        (lambda *a: macs(*a) + 1, "expected"),
        (lambda n, m, d, c: None, "whole number"),
    ],
}

test_right_solutions_pass, test_wrong_ones_fail_with_a_hint, test_the_stub_is_named = try_all(CORRECT, MUTANTS)
