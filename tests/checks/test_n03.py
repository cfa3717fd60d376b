"""The checks of notebook 03: the famous VQ bugs must fail with the right hint, right quantisers of any style pass."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from solutions import spoiled, try_all, variant
from torch import nn

from ldm_mini import checks, quantizer


def rows(z):
    return z.permute(0, 2, 3, 1).reshape(-1, z.shape[1])


def nearest(z, codebook, vectors=rows, score=lambda v, e: (v**2).sum(1, keepdim=True) + (e**2).sum(1) - 2 * v @ e.T,
            pick=torch.argmin):
    return pick(score(vectors(z), codebook), dim=1).view(z.shape[0], *z.shape[2:])


def nearest_channels_first(z, codebook):
    return (z[:, None] - codebook[None, :, :, None, None]).square().sum(2).argmin(1)


def nearest_einsum(z, codebook):
    return (codebook.square().sum(1)[:, None, None] - 2 * torch.einsum("bdhw,kd->bkhw", z, codebook)).argmin(1)


def nearest_loops(z, codebook):
    out = torch.zeros(z.shape[0], *z.shape[2:], dtype=torch.int64)
    for b in range(z.shape[0]):
        for i in range(z.shape[2]):
            for j in range(z.shape[3]):
                out[b, i, j] = min(range(len(codebook)), key=lambda k: float((z[b, :, i, j] - codebook[k]).norm()))
    return out


class Through(torch.autograd.Function):
    """Straight-through as a function with a backward of its own."""

    @staticmethod
    def forward(ctx, z, q):
        return q.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient, None


def through(z, q):
    return z + (q - z).detach()


def loss(z, e, w):
    return F.mse_loss(e, z.detach()) + w * F.mse_loss(z, e.detach())


def loss_after(z, e, w):
    """The commitment and codebook losses computed from z_q, after straight-through."""
    z_q = through(z, e)
    return F.mse_loss(z_q, z.detach()) + w * F.mse_loss(z, z_q.detach())


class VQ(nn.Module):
    """A right quantiser; variants change one part."""

    def __init__(self, codebook_size, dim, commitment_weight=0.25):
        super().__init__()
        self.weight = commitment_weight
        self.make(torch.rand(codebook_size, dim))

    def make(self, codes):
        self.codebook = nn.Parameter(codes)

    def find(self, z):
        return nearest(z, self.codebook.detach())

    def look_up(self, indices, z):
        return self.codebook[indices].permute(0, 3, 1, 2)

    through = staticmethod(through)
    loss = staticmethod(loss)

    def forward(self, z):
        indices = self.find(z)
        e = self.look_up(indices, z)
        return self.through(z, e), indices, self.loss(z, e, self.weight)


vq = partial(variant, VQ)


def holding(make):
    """A way to keep the codes: what make makes of them becomes `codebook`."""
    return lambda self, codes: setattr(self, "codebook", make(codes))


class Running(VQ):
    """A codebook of running means."""

    moves, always = True, False

    def make(self, codes):
        self.register_buffer("codebook", codes)

    def loss(self, z, e, w):
        return w * F.mse_loss(z, e.detach())

    def forward(self, z):
        out = super().forward(z)
        if self.moves and (self.training or self.always):
            one_hot = F.one_hot(out[1].flatten(), len(self.codebook)).float()
            n = one_hot.sum(0)[:, None]
            means = one_hot.T @ rows(z.detach()) / n.clamp(min=1)
            self.codebook.copy_(torch.where(n > 0, self.codebook.lerp(means, 0.05), self.codebook))
        return out


def of_diffusers(legacy):
    """diffusers' quantiser behind our signature; legacy=True is the bug that all released VQ models carry."""
    def make(self, codes):
        vae = pytest.importorskip("diffusers.models.autoencoders.vae")
        self.inner = vae.VectorQuantizer(*codes.shape, beta=self.weight, legacy=legacy)
        self.codebook = self.inner.embedding

    def forward(self, z):
        z_q, total, (_, _, indices) = self.inner(z)
        return z_q, indices.view(z.shape[0], *z.shape[2:]), total

    return vq(make=make, forward=forward)


def ema(count, total, vectors, indices, decay, old=None, scatter=False, smooth=0.0, fade=True, divide="new"):
    chosen = F.one_hot(indices, len(count)).to(vectors.dtype)
    number, sums = chosen.sum(0), chosen.T @ vectors
    if scatter:
        number = torch.bincount(indices, minlength=len(count)).float()
        sums = torch.zeros_like(total).index_add_(0, indices, vectors)
    a = decay if old is None else old
    new_count, new_total = a * count + (1 - a) * number, a * total + (1 - a) * sums
    if not fade:
        new_count = torch.where(number > 0, new_count, count)
        new_total = torch.where(number[:, None] > 0, new_total, total)
    n = new_count.sum()
    safe = (new_count + smooth) / (n + len(count) * smooth) * n
    book = {"new": new_total / safe[:, None], "old": total / count[:, None], "none": new_total,
            "batch": sums / number.clamp(min=1)[:, None]}[divide]
    return book, new_count, new_total


def restart(codebook, idle, vectors, patience, dead=torch.ge, order=None, forget=True):
    dead = dead(idle, patience)
    order = torch.randperm(len(vectors)) if order is None else order
    codebook = codebook.clone()
    codebook[dead] = vectors[order[:int(dead.sum())]]
    return codebook, idle.masked_fill(dead, 0) if forget else idle


def restart_with_where(codebook, idle, vectors, patience):
    dead = idle >= patience
    candidates = vectors[torch.randperm(len(vectors))[:len(codebook)]]
    return torch.where(dead[:, None], candidates, codebook), idle.masked_fill(dead, 0)


def restart_in_loops(codebook, idle, vectors, patience):
    codebook, idle, order = codebook.clone(), idle.clone(), torch.randperm(len(vectors)).tolist()
    for k in range(len(codebook)):
        if idle[k] >= patience:
            codebook[k], idle[k] = vectors[order.pop()], 0
    return codebook, idle


def ema_by_lerp(count, total, vectors, indices, decay):
    number = torch.zeros_like(count).scatter_add_(0, indices, torch.ones(len(indices)))
    sums = torch.stack([vectors[indices == k].sum(0) for k in range(len(count))])
    count, total = torch.lerp(number, count, decay), torch.lerp(sums, total, decay)
    return total / count.unsqueeze(1), count, total


def ema_in_loops(count, total, vectors, indices, decay):
    count, total = count * decay, total * decay
    for vector, k in zip(vectors, indices.tolist()):
        count[k] += 1 - decay
        total[k] += (1 - decay) * vector
    return (total.T / count).T, count, total


CORRECT = {
    checks.nearest_code: [
        nearest, nearest_channels_first, nearest_einsum, nearest_loops, lambda z, e: nearest(z, e, score=torch.cdist),
        lambda z, e: torch.cdist(z.flatten(2).mT, e[None]).argmin(2).unflatten(1, z.shape[2:]),
        lambda z, e: nearest(z.double(), e.double()), lambda z, e: torch.stack([nearest(p[None], e)[0] for p in z]),
        lambda z, e: (torch.cdist(rows(z), e).min(1).indices).reshape(len(z), z.shape[2], z.shape[3]),
        lambda z, e: nearest(z, e, pick=torch.argmax, score=lambda v, e: -torch.cdist(v, e)),
    ],
    checks.straight_through: [
        through, lambda z, q: q.detach() + z - z.detach(), lambda z, q: z - (z - q).detach(), Through.apply,
        lambda z, q: torch.add(z, (q - z).detach()), lambda z, q: q.detach() + (z - z.detach()),
        lambda z, q: (out := z.clone(), setattr(out, "data", q.data))[0],
        lambda z, q: z + torch.sub(q.detach(), z.detach()), lambda z, q: through(z, q.detach()),
    ],
    checks.vq_loss: [
        loss, lambda z, e, w: ((e - z.detach())**2).mean() + w * (z - e.detach()).square().mean(),
        lambda z, e, w: F.mse_loss(e, z.detach()) + w * F.mse_loss(through(z, e).detach(), z),
        lambda z, e, w: torch.stack([F.mse_loss(e, z.detach()), w * F.mse_loss(z, e.detach())]).sum(),
        lambda z, e, w: ((e - z.detach()) ** 2 + w * (z - e.detach()) ** 2).mean(),
        lambda z, e, w: ((e.data - z) ** 2).sum() * w / z.numel() + F.mse_loss(z.detach(), e),
        lambda z, e, w: w * F.mse_loss(z, e.clone().detach()) + torch.dist(e, z.detach()) ** 2 / e.numel(),
    ],
    checks.vector_quantizer: [
        VQ, Running, quantizer.VectorQuantizer, of_diffusers(legacy=False),
        lambda **sizes: quantizer.VectorQuantizer(**sizes, ema_decay=0.9),
        vq(find=lambda s, z: nearest(z, s.codebook, score=torch.cdist)),
        vq(look_up=lambda s, i, z: F.embedding(i, s.codebook).movedim(3, 1)),
        vq(forward=lambda s, z: list(VQ.forward(s, z))), vq(through=lambda s, z, e: Through.apply(z, e)),
        vq(look_up=lambda s, i, z: s.codebook.index_select(0, i.flatten()).view(*i.shape, -1).permute(0, 3, 1, 2)),
        vq(loss=lambda s, z, e, w: ((e - z.detach()) ** 2 + w * (z - e.detach()) ** 2).mean()),
        vq(find=lambda s, z: nearest_einsum(z, s.codebook),
           look_up=lambda s, i, z: torch.einsum("bhwk,kd->bdhw", F.one_hot(i, len(s.codebook)).float(), s.codebook)),
        vq(make=holding(lambda codes: nn.Embedding(*codes.shape)), through=lambda s, z, e: Through.apply(z, e),
           find=lambda s, z: nearest_channels_first(z, s.codebook.weight),
           look_up=lambda s, i, z: s.codebook(i).movedim(-1, 1)),
    ],
    checks.ema_codebook: [ema, lambda *a: ema(*a, scatter=True), lambda *a: ema(*a, smooth=1e-5),
                          lambda *a: list(ema(*a)), ema_by_lerp, ema_in_loops],
    checks.restart_dead: [restart, restart_with_where, lambda *a: list(restart(*a)),
                          restart_in_loops, lambda e, i, v, p: restart(e, i, v, p, dead=lambda i, p: i > p - 1)],
}

MUTANTS = {
    checks.nearest_code: [
        *spoiled(nearest, (dict(vectors=lambda z: z.reshape(-1, z.shape[1])), "mixed pixels"),
                 (dict(vectors=lambda z: z.permute(0, 3, 2, 1).reshape(-1, z.shape[1])), "changed places"),
                 (dict(pick=torch.argmax), "farthest"), (dict(score=lambda v, e: -v @ e.T), r"\|e\|\^2 is missing"),
                 (dict(score=lambda v, e: -2 * v @ e.T), r"\|e\|\^2 is missing"),
                 (dict(score=lambda v, e: (e**2).sum(1) - v @ e.T), "a factor"),
                 (dict(score=lambda v, e: (e**2).sum(1) + 2 * v @ e.T), "a sign"),
                 (dict(score=lambda v, e: (e**2).sum(1).expand(len(v), -1)), "no part")),
        (lambda z, e: nearest(F.normalize(z, dim=1), F.normalize(e, dim=1)), "direction"),
        (lambda z, e: e[nearest(z, e)].permute(0, 3, 1, 2), "their indices"),
        (lambda z, e: nearest(z, e, score=partial(torch.cdist, p=1.0)), "absolute"),
        (lambda z, e: nearest(z[:1], e).expand(len(z), -1, -1), "of the first one"),
        (lambda z, e: nearest(z, e[:9 if len(e) > 5 else 4]), "off by"),
        (lambda z, e: torch.cdist(rows(z), e), "all distances"), (lambda z, e: nearest(z, e)[:, None], "size 1"),
        (lambda z, e: nearest(z, e).to(torch.uint8), "dtype"), (lambda z, e: nearest(z, e) + 1, "off by"),
        (lambda z, e: nearest(z, e, score=partial(torch.cdist, p=float("inf"))), "off by"),
        (lambda z, e: nearest(z - z.mean(), e), "off by"), (lambda z, e: nearest(z.round(), e), "off by"),
        (lambda z, e: nearest(z, e).flatten(), "one index per vector"),
        (lambda z, e: nearest(z, e).mT, "shape"),
        (lambda z, e: nearest(z, e).float(), "dtype"),
        (lambda z, e: None, "return"),
    ],
    checks.straight_through: [
        (lambda z, q: q, "no gradient reaches z"),
        (lambda z, q: z + (q - z), "no gradient reaches z"),
        (lambda z, q: q.detach(), "no gradient at all"),
        (lambda z, q: (z + (q - z)).detach(), "no gradient at all"),
        (lambda z, q: z, "value of z"),
        (lambda z, q: z + (z - q).detach(), "2z - q"),
        (lambda z, q: z + q.detach(), "z \\+ q"),
        (lambda z, q: q + z - z.detach(), "also flows into q"),
        (lambda z, q: 2 * z + (q - 2 * z).detach(), "must pass unchanged"),
        (lambda z, q: q + 0 * z, "no gradient reaches z"), (lambda z, q: (z + q) / 2, "mean of the two"),
        (lambda z, q: (q - z).detach(), "difference alone"), (lambda z, q: z.detach() + (q - z), "must pass unchanged"),
        (lambda z, q: z.tanh() + (q - z.tanh()).detach(), "must pass unchanged"),
        (lambda z, q: through(z, q).double(), "dtype"), (lambda z, q: through(z, q).flatten(1), "shape"),
        (lambda z, q: z.mean() + (q - z.mean()).detach(), "must pass unchanged"),
        (lambda z, q: through(z, q) if z.requires_grad else z, "without gradients"),
        (lambda z, q: through(z, q) + (q - q.detach()) / 2, "also flows into q"),
    ],
    checks.vq_loss: [
        (lambda z, e, w: w * F.mse_loss(e, z.detach()) + F.mse_loss(z, e.detach()), "swapped"),
        (lambda z, e, w: (1 + w) * F.mse_loss(z, e), "Both stop-gradients are missing"),
        (loss_after, "after\\* straight-through"),
        (lambda z, e, w: loss(z, e.detach(), w), "codes get no gradient"),
        (lambda z, e, w: (1 + w) * F.mse_loss(z, e.detach()), "codes get no gradient"),
        (lambda z, e, w: F.mse_loss(e, z.detach()) + w * F.mse_loss(e, z.detach()), "none the encoder"),
        (lambda z, e, w: F.mse_loss(e, z) + w * F.mse_loss(z, e.detach()), "moves the encoder too"),
        (lambda z, e, w: F.mse_loss(e, z.detach()) + w * F.mse_loss(z, e), "moves the codes too"),
        (lambda z, e, w: F.mse_loss(e, z.detach()) + w * F.mse_loss(z, through(z, e)), "move together"),
        (lambda z, e, w: w * F.mse_loss(e, z) + F.mse_loss(z, e.detach()), "the encoder gets"),
        (lambda z, e, w: loss(z, e, w).detach(), "has no gradient"),
        (lambda z, e, w: F.mse_loss(e, z.detach()), "one of the two terms"),
        (lambda z, e, w: w * F.mse_loss(z, e.detach()), "one of the two terms"),
        (lambda z, e, w: (1 - w) * F.mse_loss(e, z.detach()) + w * F.mse_loss(z, e.detach()), "add up to 1"),
        (lambda z, e, w: loss(z, e, 0.25), "fixed at 0.25"), (lambda z, e, w: loss(z, e, w) / 2, "no factor 1/2"),
        (lambda z, e, w: loss(z, e, min(w, 1)), "one of the two|not used"),
        (lambda z, e, w: loss(z, e, w).item(), "not float"),
        (lambda z, e, w: torch.tensor(loss(z, e, w).item()), "has no gradient"),
        (lambda z, e, w: loss(z.detach(), e, w), "moves nothing"),
        (lambda z, e, w: ((e - z.detach()) ** 2).sum() / 96 + w * ((z - e.detach()) ** 2).sum() / 96, "off by"),
        (lambda z, e, w: loss(z[:1], e[:1], w), "off by"),
        (lambda z, e, w: F.smooth_l1_loss(e, z.detach()) + w * F.smooth_l1_loss(z, e.detach()), "off by"),
        (lambda z, e, w: loss(z, e, w) + (z - z.detach()).sum(), "points elsewhere"),
        (lambda z, e, w: loss(z, e, 1), "weight was not used"),
        (lambda z, e, w: w * loss(z, e, 1), "stands at both"),
        (lambda z, e, w: loss(z, e, w) * z.numel(), "sums instead of means"),
        (lambda z, e, w: loss(z, e, w) * z[0].numel(), "sums instead of means"),
        (lambda z, e, w: loss(z, e, w) * z.shape[1], "sum over the channels"),
        (lambda z, e, w: F.l1_loss(e, z.detach()) + w * F.l1_loss(z, e.detach()), "absolute"),
        (lambda z, e, w: (e - z.detach()).norm() + w * (z - e.detach()).norm(), "squares"),
        (lambda z, e, w: (e - z.detach())**2 + w * (z - e.detach())**2, "shape"),
    ],
    checks.vector_quantizer: [
        (vq(loss=lambda s, z, e, w: w * F.mse_loss(e, z.detach()) + F.mse_loss(z, e.detach())), "swapped"),
        (of_diffusers(legacy=True), "swapped"),
        (vq(loss=lambda s, z, e, w: loss_after(z, e, w)), "after\\* straight-through"),
        (vq(loss=lambda s, z, e, w: (1 + w) * F.mse_loss(z, e)), "Both stop-gradients"),
        (vq(loss=lambda s, z, e, w: loss(z, e, w).detach()), "has no gradient"),
        (vq(loss=lambda s, z, e, w: F.mse_loss(e, z.detach())), "one of the two terms"),
        (vq(loss=lambda s, z, e, w: loss(z, e, 0.25)), "fixed at 0.25"),
        (vq(loss=lambda s, z, e, w: loss(z, e, 0.4)), "off by"),
        (vq(loss=lambda s, z, e, w: w * F.mse_loss(z, e.detach()) + (1 - w) * F.mse_loss(e, z.data)), "add up to 1"),
        (vq(through=lambda s, z, e: e.detach() if s.training else through(z, e)), "z_q in training mode has no"),
        (vq(loss=lambda s, z, e, w: loss(z, e, 1 if s.training else w)), "loss in training mode"),
        (vq(find=lambda s, z: nearest(z + 0.3 * s.training, s.codebook)), "indices in training mode"),
        (vq(find=lambda s, z: nearest(z, s.codebook[:9])), "off by"),
        (vq(make=holding(lambda c: nn.Parameter(c.double()))), "dtype"),
        (vq(forward=lambda s, z: (VQ.forward(s, z)[0], VQ.forward(s, z)[1].flatten(), 0)), "one index per vector"),
        (vq(look_up=lambda s, i, z: s.codebook[i.flatten()].view(2, 5, 4, 3).permute(0, 3, 1, 2)), "raised"),
        (vq(make=lambda s, codes: setattr(s, "codebook", nn.Parameter(codes[:9, :3]))), "should keep its codes"),
        (variant(Running, loss=lambda s, z, e, w: F.mse_loss(z, e.detach())), "was not used"),
        (variant(Running, loss=lambda s, z, e, w: w * F.mse_loss(z.detach(), e) + 0 * z.sum()), "0.00 times"),
        (vq(through=lambda s, z, e: e), "no gradient reaches z"),
        (vq(through=lambda s, z, e: e.detach()), "no gradient"),
        (vq(through=lambda s, z, e: e + z - z.detach()), "also flows into q"),
        (vq(through=lambda s, z, e: z), "value of z"),
        (vq(find=lambda s, z: nearest(z, s.codebook, vectors=lambda z: z.reshape(-1, 3))), "mixed pixels"),
        (vq(find=lambda s, z: nearest(z, s.codebook, pick=torch.argmax)), "farthest"),
        (vq(look_up=lambda s, i, z: s.codebook[i.flatten()].view(z.shape)), "on the way back"),
        (vq(forward=lambda s, z: VQ.forward(s, z)[0]), "three things"),
        (vq(forward=lambda s, z: VQ.forward(s, z)[::-1]), "shape"),
        (vq(make=holding(lambda codes: codes.requires_grad_())), "plain tensor"),
        (vq(make=holding(lambda codes: nn.Parameter(0 * codes))), "all equal"),
        (variant(Running, loss=lambda s, z, e, w: (1 + w) * F.mse_loss(z, e.detach())), "only the commitment"),
        (variant(Running, moves=False), "neither way of learning"),
        (variant(Running, always=True), "eval mode"),
        (lambda **sizes: (lambda z: z), "nn.Module"),
        (lambda **sizes: nn.Linear(3, 9), "self.codebook"),
    ],
    checks.ema_codebook: [
        *spoiled(ema, (dict(old=1), "count did not move"), (dict(old=0), "this batch alone"),
                 (dict(fade=False), "fade too"), (dict(divide="none"), "divide the total by the count"),
                 (dict(divide="batch"), "this batch alone"), (dict(divide="old"), "update them first")),
        (lambda *a: ema(*a, old=1 - a[-1]), "part of the \\*old\\*"),
        (lambda c, t, v, i, d: (*ema(c, t, v, i, d)[:2], d * t + (1 - d) * ema(c, t, v, i, d, divide="batch")[0]),
         "not of their mean"),
        *[(lambda *a, d=d: ema(*a[:4], d), "fixed number") for d in (0.9, 0.99)],
        (lambda c, t, v, i, d: ema(*(x[:i.max() + 1] for x in (c, t)), v, i, d), "left out"),
        (lambda c, t, v, i, d: (t / c[:, None], d * c + (1 - d) * F.one_hot(i).sum(0), t), "off by|total|raised"),
        (lambda c, t, v, i, d: (ema(c, t, v, i, d)[2] / c[:, None], *ema(c, t, v, i, d)[1:]), "new. count"),
        (lambda *a: (ema(*a)[0], *ema(*a)[:0:-1]), "shape"), (lambda *a: tuple(x.double() for x in ema(*a)), "dtype"),
        (lambda c, t, v, i, d: ema(c, t, v, i.clamp(max=3), d), "off by"),
        (lambda c, t, v, i, d: ema(c, t, v[:20], i[:20], d), "off by"),
        (lambda c, t, v, i, d: (ema(c, t, v, i, d)[0].round(), *ema(c, t, v, i, d)[1:]), "off by"),
        (lambda *a: ema(*a)[0], "three things"),
        (lambda c, t, v, i, d: ema(c.mul_(d), t, v, i, d), "in place"),
    ],
    checks.restart_dead: [
        *spoiled(restart, (dict(dead=torch.gt), "use >="), (dict(dead=torch.lt), "living codes"),
                 (dict(dead=lambda idle, p: idle >= 0), "living codes"), (dict(forget=False), "begins anew"),
                 (dict(order=torch.arange(50)), "at random")),
        (lambda e, i, v, p: restart(e, i, v, 20), "changed no code"),
        (lambda e, i, v, p: restart(e, i, v, 7), "living codes"),
        (lambda e, i, v, p: restart(e, i, v, p, dead=lambda i, p: i == i.max()), "left some codes"),
        (lambda *a: (restart(*a)[0], restart(*a)[1] + 1), "off by"),
        (lambda *a: (restart(*a)[0], a[1] >= a[3]), "idle"),
        (lambda e, i, v, p: (restart(e, i, v, p)[0], torch.where(i >= p, 0, i + 1)), "counted elsewhere"),
        (lambda e, i, v, p: (torch.manual_seed(0), restart(e, i, v, p))[1], "at random"),
        (lambda e, i, v, p: restart(e, i, torch.randn_like(v), p), "as it is"),
        (lambda e, i, v, p: restart(e, i, v.mean(0, keepdim=True).expand_as(v), p), "as it is"),
        (lambda e, i, v, p: (e.masked_fill_((i >= p)[:, None], 0), i), "in place"),
        (lambda e, i, v, p: (restart(e, i, v, p)[0].double(), restart(e, i, v, p)[1]), "dtype"),
        (lambda e, i, v, p: restart(e, i, v, p) if (i >= p).any() else (0 * e, i), "living codes"),
        (lambda e, idle, v, p: (e, idle), "changed no code"),
        (lambda *a: (restart(*a)[0], torch.zeros_like(a[1])), "keep their count"),
        (lambda *a: restart(*a, order=torch.full((8,), int(torch.randint(8, ())))), "same vector"),
        (lambda *a: restart(*a, order=torch.randint(len(a[2]), (8,))), "same vector"),
        (lambda *a: restart(*a, order=torch.randperm(len(a[0]))), "first K"),
        (lambda e, idle, v, p: restart(e, idle, v + 0.1, p), "as it is"),
        (lambda *a: restart(*a)[0], "two things"),
    ],
}

test_right_solutions_pass, test_wrong_ones_fail_with_a_hint, test_the_stub_is_named = try_all(CORRECT, MUTANTS)
