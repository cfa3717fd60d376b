"""The checks of notebook 03 that look at training: wrong steps and walks fail with a hint, right ones pass."""

import math
from functools import partial

import torch
import torch.nn.functional as F
from solutions import spoiled, try_all
from torch import nn

from ldm_mini import checks


def fold(x, f, order=(0, 1, 3, 5, 2, 4), cut=lambda n, f: (n // f, f)):
    b, c, h, w = x.shape
    return x.reshape(b, c, *cut(h, f), *cut(w, f)).permute(order).reshape(b, c * f * f, h // f, w // f)


def fold_in_loops(x, f):
    return torch.stack([x[:, c, i::f, j::f] for c in range(x.shape[1]) for i in range(f) for j in range(f)], 1)


class Block(nn.Module):
    def __init__(self, width, skip=True):
        super().__init__()
        conv = lambda: nn.Conv2d(width, width, 3, padding=1)
        self.skip, self.body = skip, nn.Sequential(nn.ReLU(), conv(), nn.ReLU(), conv())

    def forward(self, x):
        return self.skip * x + self.body(x)


def decoder(width=48, dim=4, kernel=3, padding=1, start=(), blocks=lambda w: (Block(w), Block(w)), middle=(),
            channels=48, bias=True, end=lambda: (nn.PixelShuffle(4),)):
    return nn.Sequential(nn.Conv2d(dim, width, kernel, padding=padding, bias=bias), *start, *blocks(width), *middle,
                         nn.Conv2d(width, channels, kernel, padding=padding), *end())


class DecoderByHand(nn.Module):
    def __init__(self, width=48, dim=4):
        super().__init__()
        self.first, self.body = nn.Conv2d(dim, width, 3, padding="same"), nn.ModuleList([Block(width), Block(width)])
        self.last = nn.Conv2d(width, 48, 3, padding="same")

    def forward(self, z):
        h = self.first(z)
        for block in self.body:
            h = block(h)
        return F.pixel_shuffle(self.last(h), 4)


class OtherUnfold(nn.Module):
    def forward(self, x):
        return F.pixel_shuffle(x.unflatten(1, (16, 3)).transpose(1, 2).flatten(1, 2), 4)


def perplexity(indices, size, p=lambda i, k: torch.bincount(i.flatten(), minlength=k) / i.numel(),
               entropy=lambda p: -torch.xlogy(p, p).sum(), end=lambda h: math.exp(h)):
    return end(entropy(p(indices, size)))


def nonzero_entropy(p):
    p = p[p > 0]
    return -(p * p.log()).sum()


def step(model, optimizer, x, distance, feed=lambda z, z_q, codes: z_q, whole=lambda loss, vq: loss + vq,
         order=("zero_grad", "backward", "step"), give=lambda loss, vq, indices: (loss.detach(), indices), target=None):
    """The training step; the options change one thing."""
    encoder, quantizer, decoder = model
    z = encoder(x)
    z_q, indices, vq = quantizer(z)
    codes = quantizer.codebook[indices].permute(0, 3, 1, 2)
    loss = (target or distance)(decoder(feed(z, z_q, codes)), x)
    total = whole(loss, vq)
    for name in order:
        getattr(total if name == "backward" else optimizer, name)()
    return give(loss, vq, indices)


def two_backwards(model, optimizer, x, distance):
    z_q, indices, vq = model[1](model[0](x))
    loss = distance(model[2](z_q), x)
    model.zero_grad()
    vq.backward(retain_graph=True)
    loss.backward()
    optimizer.step()
    return [loss, indices]


def quantize_twice(model, optimizer, x, distance):
    model[1](model[0](x))
    return step(model, optimizer, x, distance)


def in_eval_mode(model, optimizer, x, distance):
    out = step(model.train(), optimizer, x, distance)
    model.eval()
    return out


def descend(through, codes, target, place, steps, rate, sign=-1, near=lambda z, target: z, whole=torch.sum, first=True,
            after=False, seen=None, index=False):
    places, chosen, pick = [place], [], lambda z: torch.cdist(z[None], codes).argmin()
    for _ in range(steps):
        z = places[-1].clone().requires_grad_()
        k = pick(near(z, target))
        loss = whole(((seen or through)(z, codes[k]) - target) ** 2) + 0 * z.sum()
        places.append(places[-1] + sign * rate * torch.autograd.grad(loss, z)[0])
        k = pick(places[-1]) if after else k
        chosen.append(k if index else codes[k])
    return torch.stack(places if first else places[1:]), torch.stack(chosen)


def descend_by_sgd(through, codes, target, place, steps, rate, clear=True):
    z = place.clone().requires_grad_()
    optimizer, places, chosen = torch.optim.SGD([z], rate), [place], []
    for _ in range(steps):
        code = codes[(codes - z.detach()).norm(dim=1).argmin()]
        loss = (through(z, code) - target).square().sum() + 0 * z.sum()
        if clear:
            optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        places.append(z.detach().clone())
        chosen.append(code)
    return [torch.stack(places), torch.stack(chosen)]


def pulls(loss, z, e, weight, signs=(1, -1), none=torch.zeros_like, unit=lambda z, e: 2 * (z - e) / z.numel(),
          share=lambda g, u: (g * u).sum() / (u * u).sum(), end=float):
    on_z, on_e = torch.autograd.grad(loss(z, e, weight), [z, e], allow_unused=True)
    u = unit(z, e).detach()
    return tuple(end(s * share(none(v) if g is None else g, u)) for s, v, g in zip(signs, (z, e), (on_z, on_e)))


def pulls_by_autograd(loss, z, e, weight):
    """The unit, too, by autograd; and copies, so that backward() leaves nothing behind."""
    found = []
    for term in (lambda z, e: loss(z, e, weight), F.mse_loss):
        a, b = (v.detach().clone().requires_grad_() for v in (z, e))
        term(a, b).backward()
        found.append([torch.zeros_like(v) if v.grad is None else v.grad for v in (a, b)])
    return [(g * u).sum() / u.square().sum() for g, u in zip(*found)]


def pulls_by_backward(loss, z, e, weight):
    loss(z, e, weight).backward()
    u = 2 * (z - e).detach() / z.numel()
    return [s * ((v.grad if v.grad is not None else 0 * v) * u).sum() / u.square().sum() for s, v in ((1, z), (-1, e))]


CORRECT = {
    checks.fold_patches: [fold, fold_in_loops, F.pixel_unshuffle, lambda x, f: nn.PixelUnshuffle(f)(x),
                          lambda x, f: F.unfold(x, f, stride=f).unflatten(2, (x.shape[2] // f, -1))],
    checks.make_decoder: [
        decoder, DecoderByHand, lambda width=48, dim=4: nn.Sequential(decoder(width, dim)),
        lambda width=48, dim=4: nn.Sequential(decoder(width, dim, end=lambda: ()), nn.PixelShuffle(4))],
    checks.perplexity: [
        perplexity, partial(perplexity, entropy=nonzero_entropy), partial(perplexity, end=torch.exp),
        lambda i, k: torch.distributions.Categorical(torch.bincount(i.flatten()) / i.numel()).perplexity(),
        lambda i, k: 2 ** sum(-n / i.numel() * math.log2(n / i.numel()) for n in i.unique(return_counts=True)[1]),
        partial(perplexity, p=lambda i, k: F.one_hot(i.flatten(), k).float().mean(0))],
    checks.vq_vae_step: [
        step, two_backwards, partial(step, give=lambda loss, vq, i: (loss.item(), i)),
        partial(step, give=lambda loss, vq, i: [loss, i]), partial(step, whole=lambda loss, vq: vq + loss)],
    checks.descend: [descend, descend_by_sgd, partial(descend, whole=lambda s: s @ torch.ones_like(s))],
    checks.pulls: [pulls, pulls_by_autograd, partial(pulls, end=lambda v: v), partial(pulls, end=lambda v: v[None])],
}

MUTANTS = {
    checks.fold_patches: [
        *spoiled(fold, (dict(order=(0, 3, 5, 1, 2, 4)), "colour comes first"),
                       (dict(order=(0, 3, 1, 5, 2, 4)), "colour"),
                 (dict(order=(0, 1, 5, 3, 2, 4)), "rows and columns"), (dict(order=(0, 1, 2, 4, 3, 5)), "patches"),
                 (dict(order=(0, 1, 2, 3, 4, 5)), "reading order"), (dict(order=(0, 1, 3, 5, 4, 2)), "off by|shape"),
                 (dict(cut=lambda n, f: (f, n // f), order=(0, 1, 2, 4, 3, 5)), "in this order")),
        (lambda x, f: fold(x, f).mT, "changed places"),
        (lambda x, f: fold(x, f).unflatten(1, (x.shape[1], f, f)), "join the channels"),
        (lambda x, f: fold(x, 4), "shape|raised"), (lambda x, f: fold(x, f).double(), "dtype"),
        (lambda x, f: F.avg_pool2d(x, f), "shape"),
    ],
    checks.make_decoder: [
        *spoiled(decoder, (dict(padding=0), "padding=1"), (dict(kernel=1, padding=0), "convolutions of"),
                 (dict(end=lambda: ()), "unfold"),
                 (dict(channels=3, end=lambda: (nn.Upsample(scale_factor=4),)), "should"),
                 (dict(blocks=lambda w: (Block(w),)), "two blocks"), (dict(blocks=lambda w: [Block(w)] * 2), "share"),
                 (dict(blocks=lambda w: (Block(w), Block(w), Block(w))), "two blocks"), (dict(bias=False), "bias"),
                 (dict(end=lambda: (nn.PixelShuffle(4), nn.Tanh())), "tanh"),
                 (dict(middle=[nn.ReLU()]), "no ReLU after"),
                 (dict(end=lambda: (nn.PixelShuffle(4), nn.Hardtanh())), "no clamp"),
                 (dict(start=[nn.ReLU()]), "no ReLU before"), (dict(end=lambda: (OtherUnfold(),)), "unfolding"),
                 (dict(blocks=lambda w: (Block(w, skip=False), Block(w))), "off by"),
                 (dict(end=lambda: (nn.PixelShuffle(2),)), "48 = 3 x 4 x 4")),
        (lambda width, dim: decoder(48, dim), "convolutions of"), (lambda width, dim: decoder(dim, width), "raised"),
        (lambda width, dim: [decoder(width, dim)], "one network"),
        (lambda width, dim: decoder(width, dim), "raised TypeError"),
    ],
    checks.perplexity: [
        *spoiled(perplexity, (dict(entropy=lambda p: -(p * p.log()).sum()), "NaN"), (dict(end=float), "is the entropy"),
                 (dict(entropy=lambda p: torch.xlogy(p, p).sum()), "a sign"), (dict(end=lambda h: 2**h), "natural"),
                 (dict(end=lambda h: h / math.log(2)), "in bits"),
                 (dict(end=lambda h: math.exp(h / math.log(2))), "natural"),
                 (dict(entropy=lambda p: -torch.xlogy(p, p).mean()), "not a mean"),
                 (dict(end=lambda h: math.exp(h) + 0.1), "off by"),
                 (dict(p=lambda i, k: torch.bincount(i.flatten()).float()), "raised|NaN|off by|infinity")),
        (lambda i, k: i.unique().numel(), "counts the codes"), (lambda i, k: float(k), "off by"),
        (lambda i, k: 1 / (torch.bincount(i.flatten()) / i.numel()).square().sum(), "another count"),
        (lambda i, k: torch.bincount(i.flatten(), minlength=k), "one number"),
        (lambda i, k: perplexity(i[:1], k), "off by"),
    ],
    checks.vq_vae_step: [
        *spoiled(step, (dict(whole=lambda loss, vq: loss), "codes did not move"),
                       (dict(whole=lambda loss, vq: vq), "only"),
                 (dict(feed=lambda z, z_q, e: z), "decoder read z"),
                 (dict(feed=lambda z, z_q, e: e), "codes themselves"),
                 (dict(feed=lambda z, z_q, e: z_q.detach()), "learned nothing"),
                 (dict(target=F.smooth_l1_loss), "did not"),
                 (dict(order=("backward", "step")), "zero_grad"),
                 (dict(order=("zero_grad", "backward")), "not changed"),
                 (dict(order=("zero_grad", "step")), "not changed"), (dict(order=("step",)), "earlier step"),
                 (dict(order=("backward", "zero_grad", "step")), "in this order"),
                 (dict(target=F.mse_loss), "distance"),
                 (dict(order=("zero_grad", "backward", "step", "step")), "twice as large"),
                 (dict(whole=lambda loss, vq: -(loss + vq)), "wrong way"),
                 (dict(whole=lambda a, b: a - b), "are added"),
                 (dict(whole=lambda a, b: a + 0.25 * b), "inside already"),
                 (dict(whole=lambda a, b: a * b), "are added"),
                 (dict(give=lambda loss, vq, i: loss), "two things"), (dict(give=lambda a, b, i: (a + b, i)), "alone"),
                 (dict(give=lambda loss, vq, i: (vq, i)), "the picture's"),
                 (dict(give=lambda a, b, i: (i, a)), "shape"),
                 (dict(give=lambda loss, vq, i: (loss, i.flatten())), "shape")),
        (quantize_twice, "2 times"), (in_eval_mode, "another mode"), (lambda *a: None, "two things"),
    ],
    checks.descend: [
        *spoiled(descend, (dict(sign=1), "uphill"), (dict(near=lambda z, target: target), "nearest to the"),
                 (dict(whole=torch.mean), "not their mean"), (dict(first=False), "comes first"),
                 (dict(seen=lambda z, q: z), "`through` gives"), (dict(index=True), "not their indices"),
                 (dict(after=True), "before")),
        (lambda through, codes, *a: descend(through, codes, *a)[0], "two tensors"),
        (lambda *a: (descend(*a)[0][-1], descend(*a)[1]), "return all places"),
        (lambda *a: (descend(*a)[0], a[2].expand_as(descend(*a)[1])), "target's"),
        (partial(descend_by_sgd, clear=False), "added up"),
        (lambda through, codes, target, place, n, rate: descend(
            through, codes, target, place, n, rate, near=lambda z, t: place), "chosen once"),
        (lambda through, *a: descend(lambda z, q: q, *a), "never moved"),
        (lambda *a: descend(*a[:4], 3, a[5]), "shape"), (lambda *a: descend(*a[:5], 0.02), "off by"),
    ],
    checks.pulls: [
        *spoiled(pulls, (dict(signs=(1, 1)), "sign of the second"), (dict(signs=(-1, -1)), "sign of the first"),
                 (dict(signs=(-1, 1)), "both signs"), (dict(none=lambda v: None), "allow_unused"),
                 (dict(unit=lambda z, e: 2 * (z - e)), r"\*mean\*"),
                 (dict(unit=lambda z, e: (z - e) / z.numel()), "factor 2"),
                 (dict(share=lambda g, u: (g * u).sum()), "squared length"),
                 (dict(share=lambda g, u: (g * u).sum() / u.norm()), r"\*squared\*"),
                 (dict(share=lambda g, u: g.norm() / u.norm(), signs=(1, 1)), "ratio of lengths")),
        (lambda *a: pulls(*a)[::-1], "first the pull on z"), (lambda *a: pulls(*a)[0], "two numbers"),
        (lambda loss, z, e, w: [g for g in torch.autograd.grad(loss(z, e, w), [z, e])], "allow_unused|one number"),
        (pulls_by_backward, "backward"), (lambda loss, z, e, w: (w, 1.0), "off by"),
        (lambda loss, z, e, w: pulls(loss, z, e, 0.25), "off by"),
    ],
}

test_right_solutions_pass, test_wrong_ones_fail_with_a_hint, test_the_stub_is_named = try_all(CORRECT, MUTANTS)
