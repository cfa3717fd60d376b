"""Checks of notebook 02, continued: attention at work, in a painter that reads and in a network of images."""

from copy import deepcopy
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..attention import SpatialTransformer
from .checking import CheckFailed, attempt, compare, number, passed, several
from .properties import fresh, generator, learn, own_randomness, same_dtype, same_gradient

KINDS = ("average", "cross", "read, no order", "read")


def painter(make):
    """`make(kind, words, things, colors, width=)`: an nn.Module of given parts, `words(ids)` and forward(ids, shows).

    words: ids (B,M), 0 = filling -> tokens (B,M,width), mask (B,M) bool; forward: shows (B,N) -> scores (B,N,colours).
    """
    for kind, (b, n, width, *counts) in zip(KINDS + KINDS[::-1], 4 * ((3, 2, 12, 30, 9, 10), (2, 4, 8, 17, 6, 7))):
        with own_randomness():
            net = attempt(lambda kind=kind, width=width, counts=counts: make(kind, *counts, width=width),
                          name="Painter")
        if not isinstance(net, nn.Module):
            raise CheckFailed("Painter should be an nn.Module: `class Painter(nn.Module)`, as given.")
        count, length = net.word.num_embeddings, len(net.position)
        source = generator()
        ids = torch.randint(1, count, (b, length), generator=source)
        ids = ids.where(torch.arange(length) < torch.tensor([5, length, 8])[:b, None], 0)
        shows = torch.randint(net.thing.num_embeddings, (b, n), generator=source)
        _reads(net, ids, f'Painter("{kind}").words(ids)')
        name = f'Painter("{kind}")(ids, shows)'
        got = attempt(net, ids, shows, name=name)
        right = _painted(net, ids, shows, got, name)
        same_dtype(got, right, name)
        leaves = {"word.weight": net.word.weight, "thing.weight": net.thing.weight, "position": net.position}
        same_gradient(got, right, leaves, name)
    passed("painter: words read each other, then the patches read them")


def _words(net, ids: Tensor, order=None, reads=None, hear=None, first=lambda w: w, last=None):
    """The tokens of the words; the options change one thing."""
    order = net.kind != "read, no order" if order is None else order
    w = net.word(ids) + net.position if order else net.word(ids)
    if "read" in net.kind if reads is None else reads:
        w = first(w) + net.read(w, mask=ids > 0 if hear is None else hear)
    return (last or net.norm)(w)


def _reads(net, ids: Tensor, name: str):
    tokens, mask = several(attempt(net.words, ids, name=name), name, "two things: tokens (B,M,width) and the mask "
                                                                     "(B,M)")
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.shape != ids.shape:
        raise CheckFailed(f"{name}: the mask should be bool, of the shape of ids, {tuple(ids.shape)}: True where there "
                          "is a word, `ids > 0`.")
    if not torch.equal(mask, ids > 0):
        raise CheckFailed(f"{name}: the mask should be True at words and False at filling (index 0)"
                          + (": it is upside down." if torch.equal(mask, ids == 0) else "."))
    with torch.no_grad():
        same, order = (lambda **how: _words(net, ids, **how)), net.kind != "read, no order"
        place = "this painter has no position codes." if not order else "words need their place: add `self.position`."
        reader = "read" in net.kind
        own = "here words do not read each other: only the painters whose kind has \"read\" in it." if not reader else \
              "here the words read each other: self.read(w, mask=mask), added to w, before self.norm."
        compare(tokens, same(), name, mistakes=[
            (same(order=not order), place), (same(reads=not reader), own),
            (same(order=not order, reads=not reader), place),
            (same(hear=torch.ones_like(ids).bool()), "filling is read: give self.read the mask."),
            (same(hear=ids == 0), "only the filling is read: True in the mask means *may be attended to*."),
            (same(first=torch.zeros_like), "what a word reads is *added* to it: w + self.read(...)."),
            (same(last=lambda w: w), "self.norm is missing: the tokens of all four go through it at the end."),
        ], rtol=1e-3)


def _painted(net, ids, shows, got, name: str):
    """Compare with the right scores, which are returned with their graph."""
    x, mask, w = net.thing(shows), ids > 0, _words(net, ids)
    if net.kind == "average":
        joined = lambda mean: net.out(net.mlp(torch.cat([x, mean[:, None].expand_as(x)], dim=-1)))
        total = (w * mask[:, :, None]).sum(1)
        right = joined(total / mask.sum(1, keepdim=True))
        mistakes = [
            (joined(w.mean(1)), "the filling is in the mean: count words only."),
            (joined(total / ids.shape[1]), "the sum of the words, divided by all places: divide by their number."),
            (joined(total), "this is the sum of the words; divide it by their number."),
            (joined((net.word(ids) * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)),
             "the mean of self.word(ids) alone: take the tokens of self.words(ids)."),
            (net.out(net.cross(x, w, mask)), "\"average\" has no attention: it gets the mean of the words."),
        ]
    else:
        right = net.out(net.cross(x, w, mask))
        mistakes = [
            (net.out(net.cross(x, w)), "the patches hear the filling: give self.cross the mask."),
            (net.out(x + net.cross(x, w, mask)), "nothing is added here: scores are self.out of what the patch has "
                                                 "read."),
            (net.out(net.cross(x, net.word(ids), mask)), "the patches read self.word(ids): let them read the tokens "
                                                         "of self.words(ids)."),
            (net.out(net.cross(x, net.word(ids) + net.position, mask)), "the patches read words that have not read "
                                                                        "each other: take self.words(ids)."),
            (net.out(x), "the caption plays no part."),
        ]
    shapes = {(*shows.shape, x.shape[-1]): "self.out, which makes scores of colours, is missing."}
    compare(got, right, name, shapes=shapes, mistakes=mistakes, rtol=1e-3)
    return right


class _Scores(nn.Module):
    """Scores (B,N,C) of ids (B,M) and shows (B,N), linear in its two tables."""

    def __init__(self, draw, words: int, things: int, colors: int):
        super().__init__()
        self.word, self.thing = (nn.Parameter(draw(count, colors)) for count in (words, things))

    def forward(self, ids, shows):
        return self.thing[shows] + self.word[ids].mean(1, keepdim=True)


def painter_step(function):
    """`function(painter, optimizer, ids, shows, colors)`: one step on a batch -> the loss before it, a number."""
    draw, source = fresh(), generator()
    for (b, m, n, colors), momentum in (((4, 6, 3, 5), 0.0), ((3, 2, 2, 7), 0.9)):
        start = _Scores(draw, 8, 6, colors)
        nets, copies = [start, deepcopy(start)], [deepcopy(start) for _ in range(2)]
        steppers = [torch.optim.SGD(net.parameters(), lr=0.5, momentum=momentum) for net in (*nets, *copies)]
        for turn in ("the first", "the second"):
            batch = [torch.randint(high, size, generator=source)
                     for high, size in ((8, (b, m)), (6, (b, n)), (colors, (b, n)))]
            before = nets[0].thing.detach().clone()
            got = attempt(function, nets[0], steppers[0], *batch, name="painter_step")
            losses = _losses(nets[1], *batch)
            _right_loss(got, losses, f"the loss of {turn} painter_step")
            # the same step, then the ways in which it goes wrong: old gradients added, and the sum instead of the mean
            for net, stepper, loss, clear in ((nets[1], steppers[1], losses[0], True),
                                              (copies[0], steppers[2], _losses(copies[0], *batch)[0], False),
                                              (copies[1], steppers[3], _losses(copies[1], *batch)[1], True)):
                stepper.zero_grad() if clear else None
                loss.backward()
                stepper.step()
            compare(nets[0].thing, nets[1].thing, f"the painter's weights after {turn} step", mistakes=[
                (before, "they did not change. In this order: zero_grad, backward, step."),
                (copies[0].thing, "the gradient of the step before was added: zero_grad is missing."),
                (copies[1].thing, "the step was made with the sum over patches: take the mean."),
                (2 * before - nets[1].thing.detach(), "the step goes uphill."),
            ])
    passed("painter_step: a loss for every patch, and one step down")


def _losses(net, ids, shows, colors):
    """The right loss, and the sum."""
    scores = net(ids, shows).flatten(0, 1)
    return [F.cross_entropy(scores, colors.flatten(), reduction=how) for how in ("mean", "sum")] + [
        scores, colors]


def _right_loss(got, losses, name: str):
    right, total, scores, colors = losses
    if isinstance(got, Tensor) and got.requires_grad:
        raise CheckFailed(f"{name} still holds its graph, and with it the memory of the whole step: return a Python "
                          "number, loss.item().")
    ce, flat = F.cross_entropy, colors.flatten()
    compare(number(got, name), right, name, rtol=1e-3, mistakes=[
        (total, "this is the sum over patches: take the mean, cross_entropy's default."),
        (ce(scores.softmax(-1), flat), "cross_entropy wants scores: it makes the softmax itself."),
        *[(ce(s, c), "scores and colours are laid flat in different orders: flatten(0, 1) of (B,N,10) goes with "
                     "flatten() of (B,N).")
          for s, c in ((scores, colors.T.flatten()),
                       (scores.unflatten(0, colors.shape).transpose(0, 1).flatten(0, 1), flat))],
        (total / len(colors), "divided by the number of pictures: take the mean over patches too."),
        (-right, "the sign: the loss of a good painter is small."),
    ])


def spatial_transformer(function):
    """`function(spatial, z, context)`: `spatial(z, context)` out of its parts; z (B,C,h,w), context (B,M,d)."""
    draw, name = fresh(), "spatial_by_parts(spatial, z, context)"
    for (b, c, h, w), (m, d), depth in (((2, 8, 3, 4), (5, 6), 1), ((1, 12, 4, 2), (7, 12), 2)):
        with own_randomness():
            layer = SpatialTransformer(c, num_heads=2, context_dim=d, groups=4, depth=depth)
        # a new one is the identity, and hides all mistakes
        for p in layer.parameters():
            p.data = draw(*p.shape) * (0.5 if p.dim() == 1 else 2 / p.shape[1]**0.5)
        z, context = learn(draw(b, c, h, w), draw(b, m, d))
        got = attempt(lambda layer=layer, z=z, context=context: function(_taken_apart(layer), z, context), name=name)
        right = _transformed(got, layer, z, context, name)
        same_dtype(got, z, name)
        same_gradient(got, right, {"z": z, "context": context}, name, rtol=1e-2)
    passed("spatial_transformer: a map becomes tokens, which read each other and the words, and a map again")


def _taken_apart(layer):
    """The parts without the wholes: whoever calls `spatial(...)` or `block(...)` has built nothing."""
    blocks = [SimpleNamespace(norm1=b.norm1, norm2=b.norm2, norm3=b.norm3, self_attn=b.self_attn,
                              cross_attn=b.cross_attn, ff=SimpleNamespace(proj=b.ff.proj, out=b.ff.out))
              for b in layer.blocks]
    return SimpleNamespace(norm=layer.norm, proj_in=layer.proj_in, blocks=blocks, proj_out=layer.proj_out)


def _transformed(got, layer, z, context, name: str):
    """Compare with the right map, which is returned with its graph."""
    def run(norm=layer.norm, into=lambda t: t.flatten(2).mT, back=lambda t: t.mT.reshape(z.shape), add=1.0, own=True,
            cross=True, think=True, pre=True, gate=F.gelu, half=(0, 1), swap=False, plus=1.0, only=None,
            proj=layer.proj_in):
        h = proj(into(norm(z)))
        for block in list(layer.blocks)[:only]:
            before = (lambda norm: norm) if pre else (lambda norm: lambda t: t)
            first = (lambda h: block.self_attn(before(block.norm1)(h))) if own else lambda h: 0  # noqa: B023
            second = (lambda h: block.cross_attn(before(block.norm2)(h), context)) if cross else lambda h: 0  # noqa
            for read in (second, first) if swap else (first, second):
                h = plus * h + read(h)
            parts = block.ff.proj(before(block.norm3)(h)).chunk(2, dim=-1)
            h = plus * h + (block.ff.out(parts[half[0]] * gate(parts[half[1]])) if think else 0)
        return add * z + back(layer.proj_out(h))

    right = run()
    mistakes = [
        (run(add=0.0), "what came in, z, is not added at the end."),
        (run(norm=lambda t: t), "spatial.norm is missing: it comes first, while z is still a map."),
        (run(into=lambda t: t.reshape(len(z), -1, z.shape[1])), "a reshape from (B,C,h,w) straight to (B,h*w,C) mixes "
         "channels and places up: flatten(2), then transpose(1, 2)."),
        (run(back=lambda t: t.reshape(z.shape)), "on the way back, transpose (B,h*w,C) to (B,C,h*w) before you make a "
                                                 "map of it."),
        (run(proj=lambda t: t), "spatial.proj_in is missing."),
        (run(own=False), "self-attention is missing: patches read patches."),
        (run(cross=False), "cross-attention is missing: patches read the context."),
        (run(think=False), "the MLP is missing: ff.proj, the gate, ff.out."),
        (run(pre=False), "the LayerNorms are missing: one before each of the three steps."),
        (run(plus=0.0), "each step's result is *added* to its input: h = h + ..."),
        (run(gate=lambda t: t), "the GELU is missing, on the gate."),
        (run(gate=torch.sigmoid), "the gate is a GELU, not a sigmoid."),
        (run(gate=F.relu), "the gate is a GELU, not a ReLU."),
        (run(half=(1, 0)), "value and gate have changed places: the *second* half of ff.proj goes through the GELU."),
        (run(swap=True), "the order: first patches read patches, then the context."),
        (run(only=1), "only the first block: go through all of spatial.blocks."),
    ]
    compare(got, right, name, rtol=1e-3, atol=1e-4, mistakes=mistakes)
    return right
