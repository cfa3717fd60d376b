"""Checks of notebook 15: known wrong solutions fail with a message that helps; right ones written another way pass."""

import torch
import torch.nn.functional as F
from einops import rearrange
from solutions import spoiled, try_all, variant
from torch import nn

from ldm_mini import checks
from ldm_mini.attention import Attention
from ldm_mini.dit import ConditionEmbedding, DiT, DiTBlock, position_code


def tokens(x, p, *, to="b (i j) (c p q)", cut=None):
    return rearrange(x, f"b c (i p) (j q) -> {to}", p=p, q=p) if cut is None else cut(x, p)


def tokens_by_unfold(x, p):
    return F.unfold(x, p, stride=p).mT


def tokens_by_loops(x, p):
    return torch.stack([x[:, :, i:i + p, j:j + p].flatten(1) for i in range(0, x.shape[2], p)
                        for j in range(0, x.shape[3], p)], dim=1)


def picture(t, p, rows, *, of="(i j) (p q c)", use=lambda t: t):
    return rearrange(use(t), f"b {of} -> b c (i p) (j q)", p=p, q=p, i=rows)


def picture_by_fold(t, p, rows):
    """Fold wants the channel first inside a token."""
    t = t.unflatten(2, (p * p, -1)).mT.flatten(2)
    return F.fold(t.mT, (rows * p, t.shape[1] // rows * p), p, stride=p)


def code(rows, columns, dim, *, count=lambda dim: dim // 4, sign=-1, base=10_000.0, first=0,
         join=lambda s, c: torch.cat([s, c], 1), halves=lambda row, column: torch.cat([column, row], 1),
         place=lambda n, rows, columns: (n // columns, n % columns)):
    n = torch.arange(rows * columns)
    frequencies = base ** (sign * torch.arange(dim // 4) / count(dim))

    def waves(at):
        angles = (at + first)[:, None] * frequencies
        return join(angles.sin(), angles.cos())

    row, column = place(n, rows, columns)
    return halves(waves(row), waves(column))


def code_by_library(rows, columns, dim):
    """Two square ones, of which each gives an axis."""
    side = max(rows, columns)
    return position_code(side, side, dim, side).view(side, side, dim)[:rows, :columns].flatten(0, 1)


def shuffled(x, p, order, *, way=lambda order: order, inside="(c p q)"):
    t = rearrange(x, f"b c (i p) (j q) -> b (i j) {inside}", p=p, q=p)[:, way(order)]
    return rearrange(t, "b (i j) (c p q) -> b c (i p) (j q)", p=p, q=p, i=x.shape[2] // p)


def shuffled_by_loops(x, p, order):
    out, columns = torch.empty_like(x), x.shape[3] // p
    for to, of in enumerate(order.tolist()):
        (i, j), (k, m) = divmod(to, columns), divmod(of, columns)
        out[..., i * p:i * p + p, j * p:j * p + p] = x[..., k * p:k * p + p, m * p:m * p + p]
    return out


class Block(nn.Module):
    how = ""

    def __init__(self, width, heads):
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(width, elementwise_affine=False, eps=1e-6) for _ in range(2))
        self.attn = Attention(width, num_heads=heads, qkv_bias=True)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU("tanh"), nn.Linear(4 * width, width))
        self.modulation = nn.Linear(width, 6 * width)

    def six(self, condition):
        return self.modulation(F.silu(condition))[:, None].chunk(6, dim=-1)

    def forward(self, x, condition):
        shift1, scale1, gate1, shift2, scale2, gate2 = self.six(condition)
        x = x + gate1 * self.attn(self.norm1(x) * (1 + scale1) + shift1)
        return x + gate2 * self.mlp(self.norm2(x) * (1 + scale2) + shift2)


def block(**parts):
    return variant(Block, **parts)


def of(body):
    """A forward of (net, x, six numbers)."""
    return block(forward=lambda net, x, condition: body(net, x, *net.six(condition)))


def attended(net, x, s, c, g):
    return x + g * net.attn(net.norm1(x) * (1 + c) + s)


def thought(net, x, s, c, g):
    return x + g * net.mlp(net.norm2(x) * (1 + c) + s)


def zeroed(layer):
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)


def zeroed_by_data(net):
    for p in net.modulation.parameters():
        p.data.fill_(0.0)


def zeroed_under_no_grad(net):
    with torch.no_grad():
        net.modulation.weight.mul_(0)
        net.modulation.bias.copy_(torch.zeros_like(net.modulation.bias))
    return net


def frozen(net):
    zeroed(net.modulation)
    net.modulation.requires_grad_(False)


def replaced(net):
    net.modulation = nn.Identity()


def everything(net):
    for p in net.parameters():
        nn.init.zeros_(p)


def only_gates(net):
    width = net.modulation.in_features
    for i in (2, 5):
        nn.init.zeros_(net.modulation.weight[i * width:(i + 1) * width])
        nn.init.zeros_(net.modulation.bias[i * width:(i + 1) * width])


def read(run, x, words, mask, *, join=lambda x, words: torch.cat([x, words], 1),
         masks=lambda yes, mask: torch.cat([yes, mask], 1), cut=lambda out, n: out[:, :n], times=1):
    for _ in range(times):
        out = run(join(x, words), masks(torch.ones(x.shape[:2], dtype=torch.bool), mask))
    return cut(out, x.shape[1])


def read_words_first(run, x, words, mask):
    yes = torch.ones(x.shape[:2], dtype=torch.bool)
    return run(torch.cat([words, x], 1), torch.cat([mask, yes], 1))[:, words.shape[1]:]


class SmallDiT(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = c = config
        self.patchify = nn.Conv2d(c.in_channels, c.width, c.patch_size, stride=c.patch_size)
        self.embeddings = nn.ModuleList([ConditionEmbedding(c)])
        self.blocks = nn.ModuleList(DiTBlock(c.width, c.num_heads) for _ in range(c.depth))
        self.norm_out = nn.LayerNorm(c.width, elementwise_affine=False, eps=1e-6)
        self.modulation_out = nn.Linear(c.width, 2 * c.width)
        self.proj_out = nn.Linear(c.width, c.patch_size**2 * c.in_channels)

    places, run, out_order, plus = True, (lambda net, h, v: [h := b(h, v) for b in net.blocks][-1]), "(p q c)", 0

    def embed(self, t, vector):
        return self.embeddings[0](t, vector)

    def last(self, h, v):
        shift, scale = self.modulation_out(F.silu(v))[:, None].chunk(2, dim=-1)
        return self.norm_out(h) * (1 + scale) + shift

    def forward(self, x, t, cond):
        h, c = self.patchify(x), self.config
        rows = h.shape[2]
        h, v = h.flatten(2).mT, self.embed(t, cond.vector)
        h = h + position_code(rows, rows, c.width, rows) if self.places else h
        h = self.proj_out(self.last(self.run(h, v), v))
        out = rearrange(h, f"b (i j) {self.out_order} -> b c (i p) (j q)", i=rows, p=c.patch_size, q=c.patch_size)
        return out + self.plus * x


class ByLibrary(DiT):
    """The package's own."""


def small(**parts):
    return variant(SmallDiT, **parts)


def unmodulated(net, h, v, how):
    shift, scale = net.modulation_out(v if how == "no silu" else F.silu(v))[:, None].chunk(2, dim=-1)
    shift, scale = (scale, shift) if how == "swapped" else (shift, scale)
    return {"no norm": h * (1 + scale) + shift, "none": net.norm_out(h)}.get(how, net.norm_out(h) * (1 + scale) + shift)


def cost(n, d, *, linear=12, table=2, steer=6, times=2):
    return times * (linear * n * d * d + table * n * n * d + steer * d * d)


def best(flops, losses, *, is_beaten=lambda f, g, a, b: g <= f and b <= a, found=lambda rows: torch.tensor(rows)):
    rows = []
    for i, (f, a) in enumerate(zip(flops.tolist(), losses.tolist())):
        others = [(g, b) for j, (g, b) in enumerate(zip(flops.tolist(), losses.tolist())) if j != i]
        rows.append(not any(is_beaten(f, g, a, b) for g, b in others))
    return found(rows)


def best_by_sorting(flops, losses):
    order = flops.argsort()
    right = torch.empty(len(flops), dtype=torch.bool)
    falling = losses[order].cummin(0).values
    right[order] = losses[order] <= falling
    return right


def law(flops, losses, *, x=torch.log10, y=torch.log10, back=lambda v: 10**v, sign=-1, level=None):
    u, v = x(flops), y(losses)
    slope = ((u - u.mean()) * (v - v.mean())).sum() / (u - u.mean()).square().sum()
    a = back(v.mean() - slope * u.mean())
    return a if level is None else level(losses, v), sign * slope


def law_by_lstsq(flops, losses):
    u = torch.stack([torch.ones_like(flops), flops.log()], 1).double()
    a, slope = torch.linalg.lstsq(u, losses.log().double()).solution
    return a.exp().item(), -slope.item()


def law_by_ends(flops, losses):
    u, v = flops.log10(), losses.log10()
    b = -(v[u.argmax()] - v[u.argmin()]) / (u.max() - u.min())
    return 10 ** (v.mean() + b * u.mean()), b


def spent(study, kind, seed, price="flops", *, work=lambda run, study, step: 3 * run["flops"] * study["batch"] * step,
          keep=lambda run, kind, seed: run["kind"] == kind and run["seed"] == seed, of=lambda looks: looks,
          seconds=lambda price: price == "cpu_s", end=lambda rows: rows.T):
    rows = [(look["cpu_s"] if seconds(price) else work(run, study, int(step)), look["loss"])
            for run in study["runs"] if keep(run, kind, seed) for step, look in of(list(run["looks"].items()))]
    return end(torch.tensor(rows, dtype=torch.float64))


def spent_dearest_first(study, kind, seed, price="flops"):
    """Another order of the points is as good."""
    found = spent(study, kind, seed, price)
    return found[:, found[0].argsort(descending=True)]


CORRECT = {
    checks.to_tokens: [tokens, tokens_by_unfold, tokens_by_loops],
    checks.from_tokens: [picture, picture_by_fold],
    checks.place_code: [code, code_by_library],
    checks.shuffle_patches: [shuffled, shuffled_by_loops],
    checks.dit_block: [Block, DiTBlock],
    checks.start_as_identity: [lambda net: zeroed(net.modulation), zeroed_by_data, zeroed_under_no_grad],
    checks.read_as_tokens: [read, read_words_first],
    checks.small_dit: [SmallDiT, ByLibrary],
    checks.block_flops: [cost, lambda n, d: 24 * n * d**2 + 4 * n**2 * d + 12 * d**2],
    checks.frontier: [best, best_by_sorting, lambda f, a: best(f, a, found=list)],
    checks.points: [spent, spent_dearest_first],
    checks.power_law: [law, law_by_lstsq, lambda f, a: law(f.double(), a.double())],
}

MUTANTS = {
    checks.points: spoiled(
        spent, (dict(work=lambda run, study, step: run["flops"] * study["batch"] * step), "three evaluations"),
        (dict(work=lambda run, study, step: 2 * run["flops"] * study["batch"] * step), r"\*two\*"),
        (dict(work=lambda run, study, step: 3 * run["flops"] * step), "sees a batch"),
        (dict(work=lambda run, study, step: run["flops"] * step), "for each picture"),
        (dict(work=lambda run, study, step: 3 * run["flops"] * study["batch"]), "so many steps"),
        (dict(keep=lambda run, kind, seed: run["kind"] == kind), "all seeds"),
        (dict(keep=lambda run, kind, seed: run["seed"] == seed), "all kinds"),
        (dict(keep=lambda run, kind, seed: True), "of all trainings"),
        (dict(of=lambda looks: looks[-1:]), "each training"),
        (dict(seconds=lambda price: False), "the look's"), (dict(seconds=lambda price: True), "not in seconds"),
        (dict(end=lambda rows: rows), "T` missing"), (dict(end=lambda rows: rows.T.flip(0)), "comes first"),
        (dict(end=lambda rows: rows.tolist()), "torch.Tensor")),
    checks.to_tokens: [
        *spoiled(tokens, (dict(to="b (i j) (p q c)"), "channel comes first"), (dict(to="b (j i) (c p q)"), "reading"),
                 (dict(to="b (i j) (c q p)"), "rows come before"), (dict(to="b (c p q) (i j)"), "tokens first|reading"),
                 (dict(to="b (p q) (c i j)"), "p-th pixel|shape"),
                 (dict(cut=lambda x, p: x.reshape(len(x), -1, x.shape[1] * p * p)), "stripes"),
                 (dict(cut=lambda x, p: tokens(x, p).detach()), "no gradient"),
                 (dict(cut=lambda x, p: tokens(x, p).double()), "dtype")),
    ],
    checks.from_tokens: [
        *spoiled(picture, (dict(of="(i j) (c p q)"), "row, column, channel"),
                 (dict(of="(i j) (q p c)"), "rows come before"), (dict(use=lambda t: t.detach()), "no gradient"),
                 (dict(use=lambda t: t.double()), "dtype")),
        (lambda t, p, rows: t.reshape(picture(t, p, rows).shape), "mixes places"),
        (lambda t, p, rows: rearrange(t, "b (j i) (p q c) -> b c (i p) (j q)", p=p, q=p, i=rows), "a row of patches"),
    ],
    checks.place_code: [
        *spoiled(code, (dict(count=lambda dim: dim // 2), "dim / 4"), (dict(sign=1), "minus"),
                 (dict(base=1000.0), "10000"), (dict(first=1), "are 0"),
                 (dict(join=lambda s, c: torch.cat([c, s], 1)), "sines come first"),
                 (dict(join=lambda s, c: torch.stack([s, c], -1).flatten(1)), "not in pairs"),
                 (dict(halves=lambda row, column: torch.cat([row, column], 1)), "first half"),
                 (dict(place=lambda n, rows, columns: (n, n)), "number of the token"),
                 (dict(place=lambda n, rows, columns: (n % rows, n // rows)), "changes fastest")),
        (lambda rows, columns, dim: code(rows, columns, dim).view(rows, columns, dim), "one row for each"),
        (lambda rows, columns, dim: code(rows, columns, dim).double(), "dtype"),
    ],
    checks.shuffle_patches: [
        *spoiled(shuffled, (dict(way=torch.argsort), "the way back"), (dict(inside="(c q p)"), "as they are"),
                 (dict(inside="(p q c)"), "one order of numbers|as they are"), (dict(way=lambda o: o.sort()[0]),
                                                                               "nothing moved")),
        (lambda x, p, order: torch.cat([x.flatten(2)[..., order], x.flatten(2)[..., len(order):]], -1).view(x.shape),
         "pixels that moved"),
    ],
    checks.dit_block: [
        (of(lambda n, x, a, b, c, d, e, f: thought(n, attended(n, x, a, b, 1), d, e, 1)), "gates are missing"),
        (of(lambda n, x, a, b, c, d, e, f: thought(n, attended(n, x, d, e, f), a, b, c)), "for the MLP"),
        (of(lambda n, x, a, b, c, d, e, f: thought(n, attended(n, x, b, c, a), e, f, d)), "in this order"),
        (of(lambda n, x, a, b, c, d, e, f: thought(n, attended(n, x, b, a, c), e, d, f)), "in this order"),
        (of(lambda n, x, a, b, c, d, e, f: thought(n, attended(n, x, a, b - 1, c), d, e - 1, f)), "1 \\+ scale"),
        (of(lambda n, x, a, b, c, d, e, f: thought(n, attended(n, x, a, 0, c), d, 0, f)), "scales are missing"),
        (of(lambda n, x, a, b, c, d, e, f: thought(n, attended(n, x, 0, b, c), 0, e, f)), "shifts are missing"),
        (of(lambda n, x, a, b, c, d, e, f: thought(n, attended(n, x, a, b, c), a, b, c)), "got those of attention"),
        (of(lambda n, x, a, b, c, d, e, f: attended(n, x, a, b, c)), "MLP is missing"),
        (of(lambda n, x, a, b, c, d, e, f: attended(n, thought(n, x, d, e, f), a, b, c)), "attention first"),
        (of(lambda n, x, a, b, c, d, e, f: attended(n, x, a, b, c) + thought(n, x, d, e, f) - x), "has added to"),
        (of(lambda n, x, a, b, c, d, e, f: thought(n, attended(n, x, a, b, c) - x, d, e, f)
            - attended(n, x, a, b, c) + x), "is \\*added\\*"),
        (of(lambda n, x, a, b, c, d, e, f: (h := c * x + n.attn(n.norm1(x) * (1 + b) + a)) * f
            + n.mlp(n.norm2(h) * (1 + e) + d)), "not on x"),
        (of(lambda n, x, a, b, c, d, e, f: (h := x + c * n.attn(x * (1 + b) + a)) + f * n.mlp(h * (1 + e) + d)),
         "norms are missing"),
        (of(lambda n, x, a, b, c, d, e, f: (h := x + c * (n.norm1(n.attn(x)) * (1 + b) + a))
            + f * (n.norm2(n.mlp(h)) * (1 + e) + d)), "come \\*before"),
        (block(six=lambda net, v: net.modulation(v)[:, None].chunk(6, dim=-1)), "SiLU"),
        (block(six=lambda net, v: Block.six(net, v[:1])), "of the first"),
        (of(lambda n, x, *six: Block.forward(n, x, torch.zeros(len(x), x.shape[2])).detach()), "off by|no gradient"),
        (block(forward=lambda net, x, v: Block.forward(net, x, v).detach()), "no gradient"),
        (block(forward=lambda net, x, v: Block.forward(net, x, v).double()), "dtype"),
    ],
    checks.start_as_identity: [
        (lambda net: nn.init.zeros_(net.modulation.weight), "the bias of"),
        (lambda net: nn.init.zeros_(net.modulation.bias), "the weight of"),
        (everything, "only `modulation`"), (frozen, "froze"), (replaced, "keep the parameters"),
        (lambda net: zeroed(net.attn.to_out), "only `modulation`"), (lambda net: net, "does not return x"),
        (lambda net: (zeroed(net.modulation), zeroed(net.mlp[2])), "only `modulation`"),
    ],
    checks.read_as_tokens: [
        *spoiled(read, (dict(cut=lambda out, n: out), "still among"),
                 (dict(cut=lambda out, n: out[:, -n:]), "come first"),
                 (dict(masks=lambda yes, mask: torch.cat([mask, yes], 1)), "another order"),
                 (dict(masks=lambda yes, mask: torch.cat([yes, ~mask], 1)), "upside down"),
                 (dict(masks=lambda yes, mask: torch.cat([yes, mask | True], 1)), "hides are read"),
                 (dict(masks=lambda yes, mask: torch.cat([~yes, mask], 1)), "True for them"),
                 (dict(masks=lambda yes, mask: mask), "a bool for each token"),
                 (dict(masks=lambda yes, mask: None), "a bool for each token"), (dict(times=2), "2 times"),
                 (dict(join=lambda x, words: torch.cat([x, words.detach()], 1)), "words"),
                 (dict(join=lambda x, words: x, masks=lambda yes, mask: yes), "not among")),
        (lambda run, x, words, mask: x + read(run, x, words, mask), "add to x already"),
        (lambda run, x, words, mask: x, "0 times"),
    ],
    checks.small_dit: [
        (small(places=False), "places are missing"), (small(plus=1), "x is not added"),
        (small(embed=lambda net, t, v: net.embeddings[0].time(t)), "cond.vector is not"),
        (small(embed=lambda net, t, v: net.embeddings[0].vector(v)), "t is not used"),
        (small(run=lambda net, h, v: net.blocks[0](h, v)), "only the first|last did not"),
        (small(run=lambda net, h, v: net.blocks[1](h, v)), "what the one before"),
        (small(run=lambda net, h, v: net.blocks[0](net.blocks[1](h, v), v)), "last to the first"),
        (small(last=lambda net, h, v: unmodulated(net, h, v, "no norm")), "last norm"),
        (small(last=lambda net, h, v: unmodulated(net, h, v, "none")), "last scale"),
        (small(last=lambda net, h, v: unmodulated(net, h, v, "swapped")), "shift, then scale"),
        (small(last=lambda net, h, v: unmodulated(net, h, v, "no silu")), "before modulation_out"),
        (small(out_order="(c p q)"), "from_tokens|off by"),
        (small(places=False, run=lambda net, h, v: SmallDiT.run(net, h, v) + position_code(
            *[int(h.shape[1] ** 0.5)] * 2, h.shape[2], int(h.shape[1] ** 0.5))), "not behind"),
        (small(forward=lambda net, x, t, cond: SmallDiT.forward(net, x, t, cond).detach()), "no gradient"),
        (small(forward=lambda net, x, t, cond: SmallDiT.forward(net, x, t, cond).double()), "dtype"),
        (small(forward=lambda net, x, t, cond: net.proj_out(net.patchify(x).flatten(2).mT)), "these are tokens|shape"),
        (small(norm_out=nn.Identity(), __init__=lambda net, c: (SmallDiT.__init__(net, c),
                                                               setattr(net, "more", nn.Linear(2, 2)))[0]), "keep the"),
    ],
    checks.block_flops: spoiled(
        cost, (dict(times=1), "count as two"), (dict(steer=0), "modulation is missing"),
        (dict(table=0), "two products"), (dict(table=1), "two products"), (dict(linear=4), "MLP is missing"),
        (dict(linear=8), "projections are missing"),
        (dict(linear=11), "four projections"), (dict(linear=6), "four times as wide")) + [
        (lambda n, d: cost(n, d) + 2 * 6 * d * d * (n - 1), "not per token"),
        (lambda n, d: cost(n, d) - 4 * n * n * d + 4 * n * n, "costs D multiplications"),
        (lambda n, d: 24 * d * d + 4 * n * n * d + 12 * d * d, "times N"), (lambda n, d: cost(n, d) + 0.5, "whole"),
    ],
    checks.frontier: spoiled(
        best, (dict(is_beaten=lambda f, g, a, b: g >= f and b <= a), "dearer"),
        (dict(is_beaten=lambda f, g, a, b: g <= f and b >= a), "lower loss"),
        (dict(is_beaten=lambda f, g, a, b: b <= a), "one best"),
        (dict(found=lambda rows: ~torch.tensor(rows)), "opposite"),
        (dict(found=lambda rows: torch.tensor(rows).float()), "torch.bool"),
        (dict(found=lambda rows: torch.tensor(rows).nonzero().flatten()), "indices")) + [
        (lambda f, a: torch.stack([a[i] <= a[:i + 1].min() for i in range(len(a))]), "no order"),
    ],
    checks.power_law: spoiled(
        law, (dict(sign=1), "positive b"), (dict(back=lambda v: v), "logarithm of a"), (dict(back=torch.exp), "undo"),
        (dict(x=lambda v: v), "both first"), (dict(y=lambda v: v), "of the losses"),
        (dict(x=lambda v: v, y=lambda v: v), "both first"),
        (dict(level=lambda losses, v: losses.mean()), "where the line begins"),
        (dict(level=lambda losses, v: 10 ** v.mean()), "where the line begins")) + [
        (law_by_ends, "least squares"), (lambda f, a: law(f, a)[1], "two numbers"),
        (lambda f, a: (law(f, a)[0], 1 / law(f, a)[1]), "swapped"),
    ],
}

test_right_solutions_pass, test_wrong_ones_fail_with_a_hint, test_the_stub_is_named = try_all(CORRECT, MUTANTS)
