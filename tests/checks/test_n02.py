"""The checks of notebook 02: known wrong attention must fail with a hint, right attention of any style must pass."""

import math
import random
from functools import partial

import numpy as np
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
    out = torch.zeros(*q.shape[:3], v.shape[3])
    for b in range(len(q)):
        if mask[b].any():
            out[b] = F.scaled_dot_product_attention(q[b], k[b][:, mask[b]], v[b][:, mask[b]])
    return out


def masked_by_hand(q, k, v, mask, stable=True):
    seen = mask[:, None, None]
    largest = scores(q, k).masked_fill(~seen, -INF).amax(-1, keepdim=True).clamp(min=-1e9) if stable else 0
    weights = torch.exp(torch.where(seen, scores(q, k) - largest, -INF)) * seen
    return weights @ v / weights.sum(-1, keepdim=True).clamp(min=1e-9)


def masked(q, k, v, mask, fill=-INF, clean=torch.nan_to_num, after=lambda out: out, scale=None):
    table = (scores(q, k) if scale is None else q @ k.mT / scale).masked_fill(~mask[:, None, None], fill)
    return after(clean(table.softmax(-1)) @ v)


def same(x):
    return x


def emptied(fill):
    """A finite number in place of minus infinity, and zeros where all is hidden."""
    return lambda q, k, v, m: masked(q, k, v, m, fill) * m.any(-1).view(-1, 1, 1, 1)


def near(a, b):
    return torch.allclose(a, b, atol=1e-5)


def shuffled(layer, x, order=None, again=True, close=near, axis=1):
    order = torch.randperm(x.shape[axis]) if order is None else order(x.shape[axis])
    new, old = layer(x.index_select(axis, order)), layer(x)
    return close(new, old.index_select(axis, order) if again else old)


def as_sets(a, b):
    return near(a.sort(1).values, b.sort(1).values)


def macs(n, m, d, c, q=1, kv=2, table=2, out=1):
    return q * n * d * d + kv * m * c * d + table * n * m * d + out * n * d * d


def undecided(q, k, divisor, scores=lambda q, k, by: (q * k).sum(-1) / by, weigh=lambda s: s.softmax(-1),
              spread=torch.std, most=lambda w: w.amax(-1).mean(),
              table=lambda w: torch.diag_embed(w) - w[:, :, None] * w[:, None],
              size=lambda t: t.flatten(1).norm(dim=1).mean(), end=lambda *three: three):
    """Spread, largest weight, slope; the options change one thing."""
    s = scores(q, k, divisor)
    w = weigh(s)
    return end(spread(s), most(w), size(table(w)))


def undecided_by_autograd(q, k, divisor):
    s = (k @ q.mT)[..., 0] / divisor
    tables = [torch.autograd.functional.jacobian(lambda v: v.softmax(0), row) for row in s]
    return [s.std(correction=0).item(), float(s.softmax(1).max(1).values.mean()),
            sum(table.square().sum() ** 0.5 for table in tables) / len(s)]


CORRECT = {
    checks.undecided: [undecided, undecided_by_autograd, partial(undecided, end=lambda *v: [float(x) for x in v])],
    checks.attention: [
        attention_in_loops, attention_in_einsum, F.scaled_dot_product_attention, ours.attention,
        lambda q, k, v: (k @ q.mT / q.shape[-1] ** 0.5).softmax(-2).mT @ v,
        lambda q, k, v: F.softmax(torch.matmul(q, k.permute(0, 1, 3, 2)) / torch.tensor(q.size(3)).sqrt(), 3).matmul(v),
        lambda q, k, v: torch.stack([s.softmax(-1) @ w for s, w in zip(scores(q, k).flatten(0, 1), v.flatten(0, 1))]
                                    ).unflatten(0, q.shape[:2]),
        lambda q, k, v: (scores(q, k) - scores(q, k).logsumexp(-1, keepdim=True)).exp() @ v,
    ],
    checks.multi_head: [multi_head, head_by_head, batched_heads, by_hand],
    checks.masked_attention: [
        masked, masked_loops, masked_by_hand, ours.attention,
        emptied(-1e9), emptied(torch.finfo(torch.float32).min),
        lambda q, k, v, m: F.scaled_dot_product_attention(
            q, k, v, torch.where(m | ~m.any(-1, keepdim=True), 0.0, -INF)[:, None, None]) * m.any(-1).view(-1, 1, 1, 1),
    ],
    checks.is_order_blind: [
        shuffled, lambda f, x: all(shuffled(f, x) for _ in range(3)),
        lambda f, x: shuffled(f, x, lambda n: torch.tensor(random.sample(range(n), n))),
        lambda f, x: near(f(x[:, (order := torch.randperm(len(x[0])))])[:, order.argsort()], f(x)),
        lambda f, x: shuffled(f, x, close=lambda a, b: np.allclose(a.numpy(), b.numpy(), atol=1e-5)),
        lambda f, x: shuffled(f, x, close=lambda a, b: (a - b).abs().max() < 1e-4),  # a tensor of one bool
    ],
    checks.attention_macs: [macs, lambda n, m, d, c: 2 * d * (n * d + m * c + n * m),
                            lambda *a: torch.tensor(macs(*a)), lambda *a: float(macs(*a)),
                            lambda *a: np.int64(macs(*a))],
}

MUTANTS = {
    checks.undecided: [
        *spoiled(undecided, (dict(scores=lambda q, k, by: (q * k).sum(-1)), "are divided"),
                 (dict(scores=lambda q, k, by: (q * k).sum(-1) * by), "not multiplied"),
                 (dict(scores=lambda q, k, by: (q * k).mean(-1) / by), "a sum over d"),
                 (dict(spread=torch.var), "its root"), (dict(spread=lambda s: s.std(-1).mean()), "all scores"),
                 (dict(weigh=lambda s: s.softmax(0)), "over the keys"), (dict(weigh=lambda s: s), "softmax first"),
                 (dict(most=torch.max), "their mean"), (dict(most=torch.mean), "1 / M"),
                 (dict(table=lambda w: w[:, :, None] * w[:, None]), "the diagonal is missing"),
                 (dict(table=torch.diag_embed), "takes from the others"),
                 (dict(table=lambda w: torch.eye(w.shape[1]) - w[:, :, None] * w[:, None]), "not 1"),
                 (dict(table=lambda w: torch.diag_embed(w) + w[:, :, None] * w[:, None]), "minus"),
                 (dict(table=lambda w: torch.diag_embed(w * (1 - w))), "diagonal alone"),
                 (dict(size=torch.norm), "then the mean"), (dict(size=lambda t: t.norm(dim=1).mean()), "flatten"),
                 (dict(size=lambda t: t.square().sum((1, 2)).mean()), "the root"),
                 (dict(size=lambda t: t.abs().sum((1, 2)).mean()), "squares"),
                 (dict(size=lambda t: t.square().mean((1, 2)).sqrt().mean()), "not of their mean"),
                 (dict(end=lambda *three: three[:2]), "three numbers"), (dict(size=lambda t: t), "one number"))],
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
        (lambda q, k, v: (q @ k.mT).softmax(-1) / 2 @ v, "before the softmax"),
        (lambda q, k, v: scores(q, k).softmax(-1) / q.shape[-1] ** 0.5 @ v, "before the softmax"),
        (lambda q, k, v: scores(q, k).softmax(-1), "shape of the weights"),
        (lambda q, k, v: scores(q, k).exp() / scores(q, k).exp().sum(-1, keepdim=True) @ v, "overflows"),
        *[(lambda q, k, v, c=c: (q @ k.mT / c).softmax(-1) @ v, "fixed number") for c in (2, math.sqrt(4), 8)],
        (lambda q, k, v: (q @ k.mT / (q.shape[1] * q.shape[-1]) ** 0.5).softmax(-1) @ v, "all heads together"),
        (lambda q, k, v: (q @ k.mT * q.shape[-1]).softmax(-1) @ v, "multiplied by d"),
        (lambda q, k, v: scores(q, k).exp() @ v, "exp alone"),
        (lambda q, k, v: scores(q, k).sigmoid() @ v, "a sigmoid"),
        (lambda q, k, v: scores(-q, k).softmax(-1) @ v, "the sign"),
        (lambda q, k, v: scores(q, k).clamp(-50, 50).softmax(-1) @ v, "large scores"),
        (lambda q, k, v: masked_by_hand(q, k, v, torch.ones(len(k), k.shape[2]).bool(), stable=False), "overflows|NaN"),
        (lambda q, k, v: (w := scores(q, k).clamp(max=80).exp()) @ v / (w.sum(-1, keepdim=True) + 1e-9), "scores"),
        (lambda q, k, v: ours.attention(q.detach(), k, v), "no gradient reaches q"),
        (lambda q, k, v: ours.attention(q, k.detach(), v), "no gradient reaches k"),
        (lambda q, k, v: ours.attention(q, k, v.detach()), "no gradient reaches v"),
        (lambda q, k, v: scores(q, k).softmax(-1).detach() @ v, "no gradient reaches q"),
        (torch.no_grad()(ours.attention), "no gradient"),
        (lambda q, k, v: ours.attention(q, k, v).double(), "dtype"),
        (lambda q, k, v: torch.tensor(ours.attention(q, k, v).tolist()), "no gradient"),
        (lambda q, k, v: attention_in_einsum(q, k, v).sum(1), "shape"),
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
        *spoiled(multi_head, (dict(split=lambda t: t.unflatten(2, (3, -1)).transpose(1, 2)), "shape|raised|scale"),
                 (dict(split=lambda t: t.unflatten(2, (-1, 4)).transpose(1, 2)), "raised|off by|fixed number"),
                 (dict(mix=lambda q, k, v: (q @ k.mT / 2).softmax(-1) @ v), "fixed number"),
                 (dict(mix=lambda q, k, v: F.scaled_dot_product_attention(q, v, k)), "changed places"),
                 (dict(mix=lambda q, k, v: F.scaled_dot_product_attention(q, k, k)), "keys again"),
                 (dict(mix=lambda q, k, v: ours.attention(q.detach(), k, v)), "no gradient reaches w_q"),
                 (dict(mix=lambda q, k, v: ours.attention(q, k.detach(), v)), "no gradient reaches w_k"),
                 (dict(merge=lambda t: t.transpose(1, 2).flatten(2).detach()), "no gradient reaches w_v"),
                 (dict(mix=lambda q, k, v: scores(q, k).softmax(1) @ v), "off by"),
                 (dict(mix=lambda q, k, v: scores(q, k).softmax(-2) @ v), "off by")),
        (lambda x, c, q, k, v, o, h: multi_head(x, c, q, k, v, o, h, mix=lambda q, k, v:
                                                (q @ k.mT / x.shape[2] ** 0.5).softmax(-1) @ v), "width of x"),
        (lambda x, c, q, k, v, o, h: multi_head(x, c, q, k, v, o, 3), "raised|off by"),
        (torch.no_grad()(by_hand), "no gradient"),
        (lambda x, c, q, k, v, o, h: multi_head(x, x, q, k, v, o, h), "RuntimeError"),
        (lambda x, c, q, k, v, o, h: multi_head(x, c, q, k, v, torch.eye(12), h), "shape"),
    ],
    checks.masked_attention: [
        *spoiled(masked, (dict(clean=same), "NaN"), (dict(clean=same, after=torch.nan_to_num), "gradient is NaN"),
                 (dict(scale=2), "fixed number"), (dict(fill=0.0), "exp"),
                 (dict(after=torch.detach), "no gradient"), (dict(after=torch.Tensor.double), "dtype"),
                 (dict(after=lambda out: out.sum(1)), "shape")),
        *[(emptied(-float(c)), "-100 is not minus infinity") for c in (100, 50, 1000)],
        (emptied(-5.0), "hidden|off by"),
        (lambda q, k, v, m: masked_by_hand(q, k, v, m, stable=False), "made by hand"),
        (lambda q, k, v, m: masked(q, k, v, m, -100.0) * m.any(), "minus infinity"),
        (lambda q, k, v, m: masked(q, k, v, m) * m.any(-1).all(), "emptied the others|off by"),
        (lambda q, k, v, m: masked(q, k, v, m, -1e9) * m.any(), "large negative"),
        (lambda q, k, v, m: masked(q, k, v, m, clean=lambda w: w.nan_to_num(1 / w.shape[-1])), "large negative"),
        (lambda q, k, v, m: (scores(q, k) + m[:, None, None]).softmax(-1) @ v, "True is only 1"),
        (lambda q, k, v, m: masked(0 * q, k, v, m), "play no part"),
        (lambda q, k, v, m: masked(q.detach(), k, v, m), "no gradient reaches q"),
        (lambda q, k, v, m: masked(q, k, v.detach(), m), "no gradient reaches v"),
        (lambda q, k, v, m: F.scaled_dot_product_attention(q, k, v), "Did you use it"),
        (lambda q, k, v, m: masked(2 * q, k, v, m), "scale is missing"),
        (lambda q, k, v, m: masked(q, k, v, ~m), "upside down"),
        (lambda q, k, v, m: scores(q, k).softmax(-1) * m[:, None, None] @ v, "adds up to 1"),
        (lambda q, k, v, m: (scores(q, k) * m[:, None, None]).softmax(-1) @ v, "exp"),
        (lambda q, k, v, m: F.scaled_dot_product_attention(q, k, v * m[:, None, :, None]), "adds up"),
        (lambda q, k, v, m: masked(q, k, v, m, -1e9), "large negative"),
        (lambda q, k, v, m: masked(q, k, v, m | ~m.any(-1, keepdim=True)), "seen again"),
        (lambda q, k, v, m: masked(q, k, v, m[:1].expand_as(m)), "the first one's"),
    ],
    checks.is_order_blind: [
        *spoiled(shuffled, (dict(axis=0), "axis 1"), (dict(again=False), "it should be True"),
                 (dict(close=torch.equal), "last digit"), (dict(close=torch.allclose), "rounding"),
                 (dict(close=as_sets), "token by token"), (dict(close=as_sets, again=False), "token by token"),
                 (dict(close=lambda a, b: near(a.sum(1), b.sum(1))), "token by token|position code"),
                 (dict(close=lambda a, b: near(a.flatten().sort()[0], b.flatten().sort()[0])), "token by token"),
                 (dict(close=lambda a, b: torch.allclose(a, b, atol=0.5)), "more strictly"),
                 (dict(close=lambda a, b: a.shape == b.shape), "position code"),
                 (dict(close=lambda a, b: (a == b).all(-1)), "True or False")),
        (lambda f, x: shuffled(f, x, lambda n: torch.tensor([1, 0, *range(2, n)])), "not only the first"),
        (lambda f, x: all(shuffled(f, x, lambda n: torch.arange(n).roll(i)) for i in range(5)), "too tame"),
        (lambda f, x: torch.equal(f(x[:, torch.randperm(x.shape[1])]), f(x)), "reordered alike"),
        (lambda f, x: True, "position code"),
        (lambda f, x: False, "treats every token alike"),
        (lambda f, x: shuffled(f, x, torch.arange), "Did your shuffle move"),
        (lambda f, x: shuffled(f, x, lambda n: torch.arange(n).flip(0)), "reversal"),
        (lambda f, x: shuffled(f, x, lambda n: torch.arange(n).roll(7)), "reversal"),
        (lambda f, x: "yes", "True or False"),
    ],
    checks.attention_macs: [
        *spoiled(macs, (dict(table=1), "used twice"), (dict(out=0), "at the end"), (dict(kv=1), "two projections"),
                 (dict(kv=0), "are missing"), (dict(q=0, kv=0, out=0), "table alone")),
        (lambda n, m, d, c: d * (2 * n * d + 2 * m * c + 2 * n * n), "n tokens look at m"),
        (lambda n, m, d, c: macs(n, n, d, d) - 2 * (n - m) * n * d, "come from the context"),
        (lambda n, m, d, c: macs(n, m, d, d), "context_dim"),
        (lambda n, m, d, c: macs(n, m, d, c) + 2 * (n - m) * c * d, "has m tokens"),
        (lambda n, m, d, c: macs(n, m, d, c, table=0), "table itself"),
        (lambda n, m, d, c: macs(n, m, d, c, table=0) + 2 * n * m, "a sum of dim"),
        (lambda n, m, d, c: macs(1024, 77, 320, 1280), "expected"),
        (lambda n, m, d, c: macs(n, m, d, c) / 2 + 0.5, "whole number|expected"),
        (lambda n, m, d, c: (macs(n, m, d, c),), "whole number"),
        (lambda *a: 2 * macs(*a), "as one"),
        (lambda *a: macs(*a) + 1, "expected"),
        (lambda n, m, d, c: None, "whole number"),
    ],
}

test_right_solutions_pass, test_wrong_ones_fail_with_a_hint, test_the_stub_is_named = try_all(CORRECT, MUTANTS)
