"""The checks of notebook 02, continued: painters, their training, and a network of images out of its parts."""

import torch
import torch.nn.functional as F
from solutions import spoiled, try_all, variant
from torch import nn

from ldm_mini import attention as ours
from ldm_mini import checks


class Painter(nn.Module):
    """The notebook's, with the right methods."""

    def __init__(self, kind, words, things, colors, places=16, width=64):
        super().__init__()
        self.kind, self.thing, self.word = kind, nn.Embedding(things, width), nn.Embedding(words, width)
        self.position = nn.Parameter(torch.randn(places, width))
        self.read, self.norm = ours.Attention(width, num_heads=1), nn.LayerNorm(width)
        self.cross = ours.Attention(width, context_dim=width, num_heads=1)
        self.mlp = nn.Sequential(nn.Linear(2 * width, width), nn.GELU(), nn.Linear(width, width))
        self.out = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, colors))

    def words(self, ids, **how):
        return read_words(self, ids, **how), ids > 0

    def forward(self, ids, shows):
        return self.score(self.thing(shows), *self.words(ids))

    def score(self, x, w, mask):
        if self.kind != "average":
            return self.out(self.cross(x, w, mask))
        mean = (w * mask[:, :, None]).sum(1, keepdim=True) / mask.sum(1)[:, None, None]
        return self.out(self.mlp(torch.cat([x, mean.expand_as(x)], dim=-1)))


def read_words(net, ids, ordered=("average", "cross", "read"), readers=("read, no order", "read"), hear=None, keep=1):
    w = net.word(ids) + net.position * (net.kind in ordered)
    return net.norm(keep * w + net.read(w, mask=ids > 0 if hear is None else hear(ids)) if net.kind in readers else w)


class PainterInLoops(Painter):
    """Caption by caption, without filling."""

    def words(self, ids):
        rows = []
        for line in ids:
            n = int((line != 0).sum())
            w = self.word(line) + (0 if self.kind == "read, no order" else self.position)
            heard = torch.cat([self.read(w[None, [i, *range(n)]], mask=torch.tensor([[i < 0] + [True] * n]))[:, :1]
                               for i in range(len(w))], 1)[0]
            rows.append(self.norm(w + heard if "read" in self.kind else w))
        return torch.stack(rows), ids.bool()

    def score(self, x, w, mask):
        if self.kind != "average":
            return torch.cat([self.out(self.cross(t[None], u[None, m])) for t, u, m in zip(x, w, mask)])
        means = torch.stack([u[m].mean(0) for u, m in zip(w, mask)])
        return self.out(self.mlp(torch.cat([x, means[:, None].repeat(1, x.shape[1], 1)], dim=2)))


def painter_with(**how):
    """A mutant: words read in another way."""
    return variant(Painter, words=lambda self, ids: (read_words(self, ids, **how), ids > 0))


def scoring(score, kinds=("average", "cross", "read", "read, no order")):
    """A mutant: painters of these kinds make their scores in another way."""
    return variant(Painter, score=lambda self, *a: (score if self.kind in kinds else Painter.score)(self, *a))


def step(painter, optimizer, ids, shows, colors, loss=F.cross_entropy, flat=lambda s: s.flatten(0, 1), clear=True,
         descend=1, move=True, told=torch.Tensor.item):
    value = loss(flat(painter(ids, shows)), colors.flatten())
    optimizer.zero_grad() if clear else None
    (descend * value).backward()
    optimizer.step() if move else None
    return told(value)


def step_transposed(painter, optimizer, ids, shows, colors):
    """Class scores on axis 1, as cross_entropy also takes them; gradients cleared after the step."""
    loss = F.cross_entropy(painter(ids, shows).mT, colors)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return float(loss.detach())


def step_by_hand(painter, optimizer, ids, shows, colors):
    logs = painter(ids, shows).log_softmax(-1)
    loss = -logs.gather(2, colors[:, :, None]).sum() / colors.numel()
    for p in painter.parameters():
        p.grad = None
    loss.backward()
    optimizer.step()
    return loss.detach()


def step_too_early(painter, optimizer, ids, shows, colors):
    loss = F.cross_entropy(painter(ids, shows).flatten(0, 1), colors.flatten())
    loss.backward()
    optimizer.zero_grad()
    optimizer.step()
    return loss.item()


def transformer(spatial, z, context, into=lambda t: t.flatten(2).transpose(1, 2), gate=F.gelu, swap=False, add=1,
                plus=1, own=1, cross=1, depth=None, half=lambda pair: pair, normed=True, back=None):
    h = spatial.proj_in(into(spatial.norm(z) if normed else z))
    for block in spatial.blocks[:depth]:
        h = plus * h + own * block.self_attn(block.norm1(h))
        h = plus * h + cross * block.cross_attn(block.norm2(h), context)
        value, lock = half(block.ff.proj(block.norm3(h)).chunk(2, -1))
        h = plus * h + block.ff.out(value * gate(lock))
    h = spatial.proj_out(h)
    return add * z + (back(h) if back else h.transpose(1, 2).unflatten(2, z.shape[2:]))


def transformer_column_by_column(spatial, z, context):
    """The tokens in another order: attention does not mind."""
    turned = lambda t: t.mT.flatten(2).mT
    return transformer(spatial, z, context, into=turned, back=lambda t: t.mT.unflatten(2, z.shape[:1:-1]).mT)


def transformer_without_norms(spatial, z, context):
    h = spatial.proj_in(spatial.norm(z).flatten(2).mT)
    for block in spatial.blocks:
        h = h + block.self_attn(h)
        h = h + block.cross_attn(h, context)
        value, gate = block.ff.proj(h).chunk(2, -1)
        h = h + block.ff.out(value * F.gelu(gate))
    return z + spatial.proj_out(h).mT.view_as(z)


def transformer_words_first(spatial, z, context):
    h = spatial.proj_in(spatial.norm(z).flatten(2).mT)
    for block in spatial.blocks:
        h = h + block.cross_attn(block.norm2(h), context)
        h = h + block.self_attn(block.norm1(h))
        value, gate = block.ff.proj(block.norm3(h)).chunk(2, -1)
        h = h + block.ff.out(value * F.gelu(gate))
    return z + spatial.proj_out(h).mT.reshape(z.shape)


CORRECT = {
    checks.painter: [Painter, PainterInLoops],
    checks.painter_step: [step, step_transposed, step_by_hand],
    checks.spatial_transformer: [
        transformer, transformer_column_by_column,
        lambda s, z, c: transformer(s, z, c, into=lambda t: t.permute(0, 2, 3, 1).reshape(len(t), -1, t.shape[1])),
    ],
}

MUTANTS = {
    checks.painter: [
        (painter_with(ordered=()), "words need their place"),
        (painter_with(ordered=("average", "cross", "read", "read, no order")), "has no position codes"),
        (painter_with(readers=()), "here the words read each other"),
        (painter_with(readers=("average", "cross", "read", "read, no order")), "do not read each other"),
        (painter_with(hear=lambda ids: ids >= 0), "filling is read"),
        (painter_with(hear=lambda ids: ids == 0), "only the filling"),
        (painter_with(keep=0), "is .added. to it"),
        (variant(Painter, words=lambda self, ids: (self.word(ids) + self.position, ids > 0)), "self.norm is missing"),
        (variant(Painter, words=lambda self, ids: read_words(self, ids)), "two things"),
        (variant(Painter, words=lambda self, ids: (read_words(self, ids), ids == 0)), "upside down"),
        (variant(Painter, words=lambda self, ids: (read_words(self, ids), ids)), "should be bool"),
        (variant(Painter, words=lambda self, ids: (read_words(self, ids).detach(), ids > 0)), "no gradient reaches wo"),
        (scoring(lambda self, x, w, mask: self.out(self.cross(x, w)), ("cross", "read")), "hear the filling"),
        (scoring(lambda self, x, w, mask: self.out(x + self.cross(x, w, mask)), ("cross",)), "nothing is added"),
        (scoring(lambda self, x, w, mask: self.cross(x, w, mask), ("read",)), "self.out, which makes scores"),
        (scoring(lambda self, x, w, mask: self.out(self.cross(x, w, mask))), "no attention"),
        (scoring(lambda self, x, w, mask: self.out(self.cross(x, w, mask).detach()), ("read",)), "no gradient reaches"),
        (scoring(lambda self, x, w, mask: self.out(x)), "off by|plays no part"),
        (scoring(lambda self, x, w, mask: Painter.score(self, x, w, mask | ~mask), ("average",)), "in the mean"),
        (scoring(lambda self, x, w, mask: self.out(self.mlp(torch.cat([x, (w * mask[..., None]).sum(1, True).expand_as(
            x)], -1))), ("average",)), "divide it by their number"),
        (scoring(lambda self, x, w, mask: self.out(self.mlp(torch.cat([x, (w * mask[..., None]).mean(1, True).expand_as(
            x)], -1))), ("average",)), "all places"),
        (scoring(lambda self, *a: Painter.score(self, *a).double()), "dtype"),
        (lambda *counts, width: Painter(*counts, width=width).forward, "nn.Module"),
    ],
    checks.painter_step: [
        *spoiled(step, (dict(loss=lambda s, c: F.cross_entropy(s, c, reduction="sum")), "this is the sum"),
                 (dict(flat=lambda s: s.flatten(0, 1).softmax(-1)), "makes the softmax itself"),
                 (dict(flat=lambda s: s.transpose(0, 1).flatten(0, 1)), "different orders"),
                 (dict(loss=lambda s, c: -F.cross_entropy(s, c)), "the sign"), (dict(descend=-1), "goes uphill"),
                 (dict(clear=False), "zero_grad is missing"), (dict(move=False), "did not change"),
                 (dict(told=lambda loss: loss), "holds its graph"), (dict(told=lambda loss: None), "return"),
                 (dict(told=lambda loss: loss.item() + 1), "off by"), (dict(descend=6), "sum over patches|off by"),
                 (dict(flat=lambda s: s), "raised")),
        (step_too_early, "did not change"), (torch.no_grad()(step), "raised RuntimeError"),
        (lambda net, *a: [step(net, *a) for _ in range(2)][0], "off by"),
        (lambda net, *a: [step(net, *a) for _ in range(2)][1], "off by"),
    ],
    checks.spatial_transformer: [
        *spoiled(transformer, (dict(add=0), "z, is not added"), (dict(normed=False), "spatial.norm is missing"),
                 (dict(plus=0), "is .added. to its input"), (dict(own=0), "self-attention is missing"),
                 (dict(cross=0), "cross-attention is missing"), (dict(gate=lambda t: t), "GELU is missing"),
                 (dict(gate=torch.sigmoid), "not a sigmoid"), (dict(gate=F.relu), "not a ReLU"),
                 (dict(half=lambda pair: pair[::-1]), "changed places"), (dict(depth=1), "only the first block"),
                 (dict(into=lambda t: t.reshape(len(t), -1, t.shape[1])), "mixes channels"),
                 (dict(into=lambda t: t.flatten(2)), "raised"), (dict(back=lambda h: h), "raised"),
                 (dict(back=lambda h: h.detach().mT.unflatten(2, (-1, 4)).mT.mT), "no gradient|cut off|shape|raised")),
        (lambda s, z, c: transformer(s, z, c, back=lambda h: h.reshape(z.shape)), "on the way back"),
        (lambda s, z, c: s(z, c), "raised TypeError"), (transformer_without_norms, "LayerNorms are missing"),
        (transformer_words_first, "the order"),
        (lambda s, z, c: transformer(s, z.detach(), c) + 0 * z, "gradient"),
        (lambda s, z, c: transformer(s, z, c.detach()), "no gradient reaches context"),
        (lambda s, z, c: transformer(s, z, c).double(), "dtype"),
        (lambda s, z, c: z, "off by"),
    ],
}

test_right_solutions_pass, test_wrong_ones_fail_with_a_hint, test_the_stub_is_named = try_all(CORRECT, MUTANTS)
