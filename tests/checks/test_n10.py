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

    def forward(self, classes):
        last = self.table.num_embeddings - 1
        rows = {"right": torch.where(classes < 0, last, classes), "zero": classes.clamp(min=0), "shift": classes + 1,
                "last class": torch.where(classes < 0, last - 1, classes)}.get(self.how, classes % (last + 1))
        out = self.table(rows)[:, None]
        return {"flat": out[:, 0], "detached": out.detach()}.get(self.how, out)


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
        layer = nn.TransformerEncoderLayer(width, heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True)
        norm = None if how == "no norm" else nn.LayerNorm(width)
        self.encoder = nn.TransformerEncoder(layer, layers, norm, enable_nested_tensor=False)

    def forward(self, ids, mask):
        h = self.words(ids)
        if self.how != "no positions":
            h = h + self.positions(torch.arange(ids.shape[1]))
        if self.how == "no attention":
            return F.layer_norm(h, h.shape[-1:])
        causal = nn.Transformer.generate_square_subsequent_mask(ids.shape[1]) if self.how == "causal" else None
        unread = {"no mask": None, "inverted": mask}.get(self.how, ~mask)
        causal = causal if causal is None else causal.isinf()
        out = self.encoder(h, mask=causal, src_key_padding_mask=unread)
        return {"pooled": out.mean(1), "detached": out.detach().requires_grad_()}.get(self.how, out)


class ByHand(nn.Module):
    """Attention written out, sinusoidal positions, post-LN layers: another transformer, and a right one."""

    def __init__(self, vocab_size, max_length, width=32, layers=2, heads=2):
        super().__init__()
        self.words = nn.Embedding(vocab_size, width)
        angles = torch.arange(max_length)[:, None] / 10 ** torch.linspace(0, 2, width // 2)
        self.register_buffer("code", torch.cat([angles.sin(), angles.cos()], 1))
        self.qkv = nn.ModuleList(nn.Linear(width, 3 * width) for _ in range(layers))
        self.norm = nn.ModuleList(nn.LayerNorm(width) for _ in range(layers))

    def forward(self, ids, mask):
        h = self.words(ids) + self.code[:ids.shape[1]]
        for qkv, norm in zip(self.qkv, self.norm):
            q, k, v = qkv(h).chunk(3, -1)
            scores = (q @ k.mT / math.sqrt(q.shape[-1])).masked_fill(~mask[:, None], -torch.inf)
            h = norm(h + scores.softmax(-1) @ v)
        return h


def maps_of(maps, size, heads="mean", mode="bilinear", mix=False, calls="mean", layers="mean", swap=False):
    out = []
    for each in maps.values():
        w = sum(each) / len(each) if calls == "mean" else each[-1]
        w = w[0].mean(0) if heads == "mean" else w[0].sum(0)
        side = int(w.shape[0] ** 0.5)
        picture = w.reshape(-1, side, side) if mix else w.view(side, side, -1).permute(2, 0, 1)
        picture = picture.mT if swap else picture
        out.append(F.interpolate(picture[None], scale_factor=size / side, mode=mode)[0])
    return sum(out) / (len(out) if layers == "mean" else 1)


def dropped(cond, null, p, generator, how="right"):
    size = len(cond["context"])
    source = torch.Generator().manual_seed(9) if how == "no generator" else generator
    drop, out = torch.rand(size, generator=source) < p, {}
    drop = {"never": torch.zeros_like(drop), "batch": drop[:1].expand(size), "swapped": ~drop}.get(how, drop)
    for name, value in cond.items():
        if how == "each part":
            drop = torch.rand(size, generator=generator) < p
        where = drop.view(-1, *[1] * (value.ndim - 1))
        if how == "pieces" and value.ndim == 3:
            where = torch.rand(value.shape, generator=generator) < p
        out[name] = value if how == "mask forgotten" and name == "mask" else torch.where(where, null[name], value)
        if how == "blend" and value.is_floating_point():
            out[name] = (1 - p) * value + p * null[name]
    return out


def loop(cond, null, p, generator):
    """Sample by sample."""
    draws = [torch.rand((), generator=generator).item() < p for _ in cond["vector"]]
    return {name: torch.stack([null[name][i] if draw else cond[name][i] for i, draw in enumerate(draws)])
            for name in cond}


CORRECT = {
    checks.class_tokens: [Rows, Library, partial(Rows, how="modulo")],  # the last: -1 is the last row by itself
    checks.text_transformer: [Text, ByHand],
    checks.word_maps: [maps_of],
    checks.drop_conditions: [dropped, loop],
}

MUTANTS = {
    checks.class_tokens: spoiled(
        Rows, ("zero", "not the first class"), ("last class", "row of its own"), ("shift", "shifted by one"),
        ("flat", "shape"), ("no row", "one row more"), ("detached", "no gradient")),
    checks.text_transformer: spoiled(
        Text, ("no positions", "order is lost"), ("no mask", "padding is read"), ("inverted", "(?i)mask"),
        ("causal", "causal"), ("no norm", "LayerNorm"), ("pooled", r"\(3, 8, 16\)"),
        ("no attention", "attention is missing"), ("detached", "no gradient")),
    checks.word_maps: spoiled(
        maps_of, (dict(heads="sum"), "over the heads"), (dict(mode="nearest"), "bilinear"),
        (dict(mix=True), "transpose first"), (dict(calls="last"), "all calls"), (dict(layers="sum"), "do not add"),
        (dict(swap=True), "row by row")),
    checks.drop_conditions: spoiled(
        dropped, ("never", "nothing was dropped"), ("batch", "not once for all"), ("swapped", "swapped"),
        ("each part", "same draw"), ("pieces", "in pieces"), ("mask forgotten", "same draw"), ("blend", "mixture"),
        ("no generator", "generator")),
}

test_right_solutions_pass, test_wrong_ones_fail_with_a_hint, test_the_stub_is_named = try_all(CORRECT, MUTANTS)
