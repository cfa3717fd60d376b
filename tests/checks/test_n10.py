"""Checks of notebook 10: known wrong solutions fail with a message that helps; right ones written another way pass."""

import math
from functools import partial

import torch
from solutions import spoiled, try_all
from torch import nn
from torch.nn import functional as F

from ldm_mini import checks
from ldm_mini.conditioners import ClassConditioner


class Rows(nn.Module):
    """Class tokens, with one thing changed."""

    def __init__(self, num_classes, dim, how="right"):
        super().__init__()
        self.table, self.how = nn.Embedding(num_classes + (how != "no row"), dim), how
        if how == "padding":
            self.table = nn.Embedding(num_classes + 1, dim, padding_idx=num_classes)
        if how == "null of zeros":
            nn.init.zeros_(self.table.weight[-1])

    def forward(self, classes):
        last = self.table.num_embeddings - 1
        rows = {"right": torch.where(classes < 0, last, classes), "zero": classes.clamp(min=0), "shift": classes + 1,
                "last class": torch.where(classes < 0, last - 1, classes),
                "four": torch.where(classes < 0, 4, classes)}.get(self.how, classes % (last + 1))
        out = self.table(rows)[:, None]
        none = (classes < 0)[:, None, None]
        return {"flat": out[:, 0], "detached": out.detach(), "double": out.double(), "zeros": out.masked_fill(none, 0),
                "null detached": torch.where(none, out.detach(), out), "first": out[:1].expand(len(out), -1, -1),
                }.get(self.how, out)


class Library(nn.Module):
    """The finished version in the learner's place."""

    def __init__(self, num_classes, dim):
        super().__init__()
        self.conditioner = ClassConditioner(num_classes, dim)
        self.table = self.conditioner.token

    def forward(self, classes):
        return self.conditioner.encode({"class": classes}).context


class Text(nn.Module):
    """A text transformer, with one thing changed."""

    def __init__(self, vocab_size, max_length, width=32, layers=2, heads=2, how="right"):
        super().__init__()
        self.how, self.words, self.positions = how, nn.Embedding(vocab_size, width), nn.Embedding(max_length, width)
        if how == "zero positions":
            nn.init.zeros_(self.positions.weight)
        if how == "sinusoids":
            del self.positions
            self.register_buffer("code", (torch.arange(30.0)[:, None] / torch.arange(1, width + 1)).sin())
        layer = nn.TransformerEncoderLayer(width, 1 if how == "one head" else heads, 4 * width, 0.0, "gelu",
                                           batch_first=how != "batch second", norm_first=how != "post")
        layers = 1 if how == "one layer" else layers
        norm = None if how == "no norm" else nn.LayerNorm(width)
        self.encoder = nn.TransformerEncoder(layer, layers, norm, enable_nested_tensor=False)

    def forward(self, ids, mask):
        h = self.words(ids)
        if self.how == "words detached":
            h = h.detach()
        if self.how == "sinusoids":
            h = h + self.code[:ids.shape[1]]
        elif self.how == "full table":
            h = h + self.positions.weight
        elif self.how != "no positions":
            h = h + self.positions(torch.arange(ids.shape[1]))
        h = h * mask[..., None] if self.how == "zeroed padding" else h
        if self.how == "no attention":
            return F.layer_norm(h, h.shape[-1:])
        causal = nn.Transformer.generate_square_subsequent_mask(ids.shape[1]) if self.how == "causal" else None
        unread = {"no mask": None, "inverted": mask, "zeroed padding": None}.get(self.how, ~mask)
        causal = causal if causal is None else causal.isinf()
        out = self.encoder(h, mask=causal, src_key_padding_mask=unread)
        return {"pooled": out.mean(1), "detached": out.detach().requires_grad_(), "double": out.double()}.get(
            self.how, out)


class ByHand(nn.Module):
    """Attention written out, positions as one parameter that starts at zero, no feed-forward: right, too."""

    def __init__(self, vocab_size, max_length, width=32, layers=2, heads=2):
        super().__init__()
        self.words, self.positions = nn.Embedding(vocab_size, width), nn.Parameter(torch.zeros(1, max_length, width))
        self.qkv = nn.ModuleList(nn.Linear(width, 3 * width) for _ in range(layers))
        self.norm = nn.ModuleList(nn.LayerNorm(width) for _ in range(layers + 1))

    def forward(self, ids, mask):
        h = self.words(ids) + self.positions[:, :ids.shape[1]]
        for qkv, norm in zip(self.qkv, self.norm):
            q, k, v = qkv(norm(h)).chunk(3, -1)
            scores = (q @ k.mT / math.sqrt(q.shape[-1])).masked_fill(~mask[:, None], -torch.inf)
            h = h + scores.softmax(-1) @ v
        return self.norm[-1](h)


def maps_of(maps, size, heads="mean", mode="bilinear", mix=False, calls="mean", layers="mean", swap=False):
    out = []
    for each in maps.values():
        w = {"mean": sum(each) / len(each), "sum": sum(each), "first": each[0]}.get(calls, each[-1])
        w = {"mean": w[0].mean(0), "sum": w[0].sum(0), "max": w[0].amax(0)}.get(heads, w[0, 0])
        side = int(w.shape[0] ** 0.5)
        picture = w.reshape(-1, side, side) if mix else w.view(side, side, -1).permute(2, 0, 1)
        picture = picture.mT if swap else picture
        out += [F.interpolate(picture[None], scale_factor=size / side, mode=mode)[0]] * (
            len(each) if layers == "by calls" else 1)
    return out[-1] if layers == "last" else sum(out) / (1 if layers == "sum" else len(out))


def maps_by_upsampling(maps, size):
    """All heads and calls are enlarged first, and the mean taken at the end: the same, since both are linear."""
    def enlarge(weights):
        side = round(weights.shape[2] ** 0.5)
        pictures = weights[0].mT.unflatten(2, (side, side))
        return nn.Upsample((size, size), mode="bilinear")(pictures).mean(0)

    return torch.stack([torch.stack([*map(enlarge, calls)]).mean(0) for calls in maps.values()]).mean(0)


def dropped(cond, null, p, generator, how="right"):
    size = len(cond["context"])
    source = torch.Generator().manual_seed(9) if how == "own generator" else None if how == "global" else generator
    drop, out = torch.rand(size, generator=source) < p, {}
    drop = {"never": torch.zeros_like(drop), "batch": drop[:1].expand(size), "swapped": ~drop,
            "always half": torch.rand(size, generator=generator) < 0.3}.get(how, drop)
    for name, value in cond.items():
        if how == "each part":
            drop = torch.rand(size, generator=generator) < p
        where = drop.view(-1, *[1] * (value.ndim - 1))
        if how == "pieces" and value.ndim == 3:
            where = torch.rand(value.shape, generator=generator) < p
        fill = {"zeros": torch.zeros_like(value), "first null": null[name][:1]}.get(how, null[name])
        out[name] = value if how == "mask forgotten" and name == "mask" else torch.where(where, fill, value)
        if how == "blend" and value.is_floating_point():
            out[name] = (1 - p) * value + p * null[name]
        if how == "in place":
            out[name] = value.copy_(out[name])
        if how == "double" and value.is_floating_point():
            out[name] = out[name].double()
    return {name: out[name] for name in ("context", "mask", "vector")} if how == "three parts" else out


def loop(cond, null, p, generator):
    """Sample by sample."""
    draws = [torch.rand((), generator=generator).item() < p for _ in cond["context"]]
    return {name: torch.stack([null[name][i] if draw else cond[name][i] for i, draw in enumerate(draws)])
            for name in cond}


def by_index(cond, null, p, generator):
    rows = torch.bernoulli(torch.full((len(cond["context"]),), p), generator=generator).nonzero()[:, 0]
    return {name: value.index_copy(0, rows, null[name][rows]) for name, value in cond.items()}


def guided(given, anything, schedule, scale, mix=lambda u, c, s: u + s * (c - u), back=None,
           out=lambda x0, eps: (x0, eps)):
    def denoise(x_t, t):
        eps = mix(anything(x_t, t)[1], given(x_t, t)[1], scale)
        alpha, sigma = schedule.alpha(t, x_t.ndim), schedule.sigma(t, x_t.ndim)
        return out(back(x_t, alpha, sigma, eps) if back else (x_t - sigma * eps) / alpha, eps)
    return denoise


def loss_of(net, schedule, z, t, eps, cond, null, p, generator, drop=dropped, noisy=lambda z, e, a, s: a * z + s * e,
            loss=lambda out, eps, z: F.mse_loss(out, eps), ask=lambda net, z_t, t, cond: net(z_t, t, cond)):
    z_t = noisy(z, eps, schedule.alpha(t, z.ndim), schedule.sigma(t, z.ndim))
    return loss(ask(net, z_t, t, drop(cond, null, p, generator)), eps, z)


def detached(cond):
    return {name: value.detach() for name, value in cond.items()}


def loss_by_hand(net, schedule, z, t, eps, cond, null, p, generator):
    z_t = torch.stack([schedule.alpha(k[None], 1) * a + schedule.sigma(k[None], 1) * b for a, b, k in zip(z, eps, t)])
    return sum((net(z_t, t, loop(cond, null, p, generator)) - eps).flatten() ** 2) / eps.numel()


def guided_in_pictures(given, anything, schedule, scale):
    """Both answers are mixed: the same, since each is linear in the other."""
    return lambda x_t, t: tuple((1 - scale) * u + scale * c for u, c in zip(anything(x_t, t), given(x_t, t)))


def guided_with_that_of(which):
    """A mutant: x0 as one of the two had it."""
    return lambda given, anything, schedule, scale: lambda x_t, t: (
        (given, anything)[which](x_t, t)[0], guided(given, anything, schedule, scale)(x_t, t)[1])


CORRECT = {
    # "modulo": -1 is the last row by itself
    checks.class_tokens: [Rows, Library, partial(Rows, how="modulo"), partial(Rows, how="null of zeros")],
    checks.text_transformer: [Text, ByHand, partial(Text, how="zero positions"), partial(Text, how="full table")],
    checks.word_maps: [maps_of, maps_by_upsampling],
    checks.drop_conditions: [dropped, loop, by_index],
    checks.conditional_loss: [loss_of, loss_by_hand, partial(loss_of, drop=by_index)],
    checks.guided_denoiser: [guided, guided_in_pictures, lambda *a: lambda x_t, t: [*guided(*a)(x_t, t)]],
}

MUTANTS = {
    checks.class_tokens: spoiled(
        Rows, ("zero", "not the first class"), ("last class", "row of its own"), ("shift", "shifted by one"),
        ("flat", "shape"), ("no row", "one row more"), ("detached", "no gradient"), ("padding", "padding_idx"),
        ("four", "off by up to|IndexError"), ("zeros", "became zeros"), ("null detached", "padding_idx"),
        ("double", "dtype"), ("first", "off by up to")),
    checks.text_transformer: spoiled(
        Text, ("no positions", "order is lost"), ("no mask", "padding is read"), ("inverted", "(?i)mask"),
        ("causal", "causal"), ("no norm", "LayerNorm"), ("pooled", r"\(3, 8, 16\)"),
        ("no attention", "attention is missing"), ("detached", "no gradient"), ("sinusoids", "not learned"),
        ("post", "post-LN"), ("one layer", "number of layers"), ("one head", "number of heads"),
        ("words detached", "no gradient reaches words"), ("zeroed padding", "padding is read"), ("double", "dtype"),
        ("batch second", "batch_first|attention is missing|padding|RuntimeError|AssertionError")),
    checks.word_maps: spoiled(
        maps_of, (dict(heads="sum"), "over the heads"), (dict(mode="nearest"), "bilinear"),
        (dict(mix=True), "transpose first"), (dict(calls="last"), "all calls"), (dict(layers="sum"), "do not add"),
        (dict(swap=True), "row by row"), (dict(calls="first"), "not the first one"), (dict(calls="sum"), "their sum"),
        (dict(heads="first"), "not the first one"), (dict(heads="max"), "largest"), (dict(mode="bicubic"), "bilinear"),
        (dict(layers="by calls"), "counts once"), (dict(layers="last"), "this is the last one")) + [
        (lambda maps, size: maps_of(maps, 8), "shape"), (lambda maps, size: maps_of(maps, size).double(), "dtype"),
        (lambda maps, size: (m := maps_of(maps, size)) / m.amax((1, 2), keepdim=True), "off by up to"),
    ],
    checks.drop_conditions: spoiled(
        dropped, ("never", "nothing was dropped"), ("batch", "not once for all"), ("swapped", "swapped"),
        ("each part", "same draw"), ("pieces", "in pieces"), ("mask forgotten", "same draw"), ("blend", "mixture"),
        ("own generator", "generator"), ("global", "generator"), ("zeros", "filled with zeros"),
        ("first null", "each sample's own"), ("in place", "in place"), ("double", "must keep"),
        ("three parts", "KeyError"), ("always half", "with p = 85%|with p = 1")),
    checks.conditional_loss: spoiled(
        loss_of, (dict(drop=lambda cond, *_: cond), "what the network gets"),
        (dict(drop=lambda cond, null, p, g: dropped(null, cond, p, g)), "what the network gets"),
        (dict(drop=partial(dropped, how="mask forgotten")), "what the network gets"),
        (dict(drop=lambda *a: dropped(*a)["context"]), "the dict that"),
        (dict(drop=lambda cond, null, *a: dropped(detached(cond), null, *a)), "the words"),
        (dict(drop=lambda cond, null, *a: dropped(cond, detached(null), *a)), "no words"),
        (dict(drop=lambda *a: {"context": dropped(*a)["context"]}), "KeyError"),
        (dict(noisy=lambda z, e, a, s: z), "no noise"), (dict(noisy=lambda z, e, a, s: z + e), "are missing"),
        (dict(noisy=lambda z, e, a, s: s * z + a * e), "changed places"),
        (dict(noisy=lambda z, e, a, s: a**2 * z + s**2 * e), "not squared"),
        (dict(noisy=lambda z, e, a, s: e), "noise alone"),
        (dict(noisy=lambda z, e, a, s: z + s * e), "alpha is missing"),
        (dict(loss=lambda out, eps, z: F.mse_loss(out, z)), "not with z"),
        (dict(loss=lambda out, eps, z: F.l1_loss(out, eps)), "not absolute"),
        (dict(loss=lambda out, eps, z: F.mse_loss(out, eps, reduction="sum")), "not the sum"),
        (dict(loss=lambda out, eps, z: F.mse_loss(out, eps).sqrt()), "no root"),
        (dict(loss=lambda out, eps, z: -F.mse_loss(out, eps)), "the sign"),
        (dict(loss=lambda out, eps, z: F.mse_loss(out, eps).item()), "torch.Tensor"),
        (dict(loss=lambda out, eps, z: (out - eps).square()), "shape"),
        (dict(loss=lambda out, eps, z: F.mse_loss(out.detach(), eps)), "no gradient"),
        (dict(ask=lambda net, z_t, t, cond: net(z_t, 0 * t, cond)), "not told t"),
        (dict(ask=lambda net, z_t, t, cond: (net(z_t, t, cond), net(z_t, t, cond))[1]), "2 times")),
    checks.guided_denoiser: spoiled(
        guided, (dict(mix=lambda u, c, s: u + s * (u - c)), "wrong way"),
        (dict(mix=lambda u, c, s: c + s * (u - c)), "changed places"),
        (dict(mix=lambda u, c, s: c + s * (c - u)), "Ho & Salimans"),
        (dict(mix=lambda u, c, s: u + s * c), "difference"), (dict(mix=lambda u, c, s: s * (c - u)), "pull alone"),
        (dict(mix=lambda u, c, s: c), "no part"), (dict(mix=lambda u, c, s: u), "condition plays no part"),
        (dict(mix=lambda u, c, s: u + 3 * (c - u)), "fixed number"),
        (dict(back=lambda x, a, s, e: x - s * e), "divide by alpha"),
        (dict(back=lambda x, a, s, e: (x + s * e) / a), "the sign"),
        (dict(back=lambda x, a, s, e: (x - s**2 * e) / a), "sigma stands there once"),
        (dict(back=lambda x, a, s, e: (x - s * e) / a**2), "alpha stands there once"),
        (dict(back=lambda x, a, s, e: (x - a * e) / s), "changed places"),
        (dict(back=lambda x, a, s, e: x - e), "both from"),
        (dict(back=lambda x, a, s, e: ((x - s * e) / a).clamp(-1, 1)), "off by"),
        (dict(out=lambda x0, eps: eps), "two things"), (dict(out=lambda x0, eps: (eps, x0)), "x0 first"),
        (dict(out=lambda x0, eps: (x0.double(), eps)), "dtype"), (dict(out=lambda x0, eps: None), "two things")) + [
        (guided_with_that_of(0), "of `given`"), (guided_with_that_of(1), "of `anything`"),
        (lambda *a: None, "return a function"),
        (lambda *a: guided(*a)(torch.zeros(4, 2), torch.ones(4).long()), "a function"),
        (lambda g, a, schedule, s: lambda x_t, t: guided(g, a, schedule, s)(x_t[:1], t[:1]), "shape"),
    ],
}

test_right_solutions_pass, test_wrong_ones_fail_with_a_hint, test_the_stub_is_named = try_all(CORRECT, MUTANTS)
