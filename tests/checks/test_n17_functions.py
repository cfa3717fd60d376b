"""Checks of notebook 17 without layers: right solutions pass, and known mistakes fail with a hint."""

import torch
from solutions import spoiled, try_all
from torch.nn import functional as F

from ldm_mini import checks


def rejoined(q, k, v, heads, how="right"):
    parts = {"k first": (k, q, v), "turned": (v, k, q), "v second": (q, v, k)}.get(how, (q, k, v))
    if how == "new":
        return torch.cat(parts)
    if how == "rows":
        return torch.stack(parts, 1).flatten(0, 1)
    cut = (-1, heads) if how == "strided" else (2 if how == "two" else heads, -1)
    rows = torch.stack([part.unflatten(0, cut) for part in parts], 1)
    return {"three axes": rows, "double": rows.flatten(0, 2).double(), "q only": q}.get(how, rows.flatten(0, 2))


def rejoined_by_chunks(q, k, v, heads):
    return torch.cat([piece for head in zip(*(part.chunk(heads) for part in (q, k, v))) for piece in head])


def released(x, state, heads, groups, how="right"):
    c, flat = x.shape[1], x.flatten(2)
    if how != "no norm":
        flat = F.group_norm(x, groups, state["norm.weight"], state["norm.bias"], 1e-5).flatten(2)
    qkv = F.conv1d(flat, state["qkv.weight"], None if how == "no bias" else state["qkv.bias"])
    if how == "new order":
        q, k, v = (part.reshape(len(x) * heads, c // heads, -1) for part in qkv.chunk(3, dim=1))
    else:
        q, k, v = qkv.view(len(x) * heads, 3 * c // heads, -1).chunk(3, dim=1)
    q, k = (k, q) if how == "swapped" else (q, k)
    d = c if how == "whole width" else c // heads
    power = {"no scale": 0, "twice": -0.5}.get(how, -0.25)
    weights = ((q * d**power).mT @ (k * d**power)).softmax(1 if how == "over queries" else 2)
    h = (v @ weights.mT).reshape(len(x), c, -1)
    h = h if how == "no out" else F.conv1d(h, state["proj_out.weight"], state["proj_out.bias"])
    if how == "flat":
        return x.flatten(2) + h
    out = h.view_as(x) if how == "no skip" else x + h.view_as(x)
    return out.double() if how == "double" else out


def released_by_torch(x, state, heads, groups):
    size, c, height, width = x.shape
    tokens = F.group_norm(x, groups, state["norm.weight"], state["norm.bias"]).flatten(2).mT
    qkv = F.linear(tokens, state["qkv.weight"].squeeze(2), state["qkv.bias"])
    q, k, v = qkv.view(size, -1, heads, 3, c // heads).permute(3, 0, 2, 1, 4)
    h = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    return x + F.linear(h, state["proj_out.weight"].squeeze(2), state["proj_out.bias"]).mT.reshape(x.shape)


def bytes_of(*collections, how="right"):
    tensors = [t for one in (collections[:1] if how == "first" else collections) for t in one]
    storages = [t.untyped_storage() for t in tensors]
    own = {s.data_ptr(): s.nbytes() for s in storages}
    return {"again": sum(s.nbytes() for s in storages), "tensors": sum(t.nbytes for t in tensors),
            "numbers": sum(t.numel() for t in tensors), "count": len(own), "bits": 8 * sum(own.values()),
            "pointers": sum({t.data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values()),
            "views": sum({t.untyped_storage().data_ptr(): t.nbytes for t in tensors}.values()),
            "each": sum(sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in one}.values())
                        for one in map(list, collections)),
            "float32": 4 * sum(t.numel() for t in {id(t): t for t in tensors}.values()),
            "list": list(own.values())}.get(how, sum(own.values()))


def bytes_in_a_loop(*collections):
    seen, total = set(), 0
    for collection in collections:
        for tensor in collection:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in seen:
                seen.add(storage.data_ptr())
                total += storage.nbytes()
    return total


def quantised(z, codebook, how="right"):
    tokens = z.reshape(*z.shape[:1], *z.shape[2:], -1) if how == "mixed" else z.movedim(1, -1)
    far = torch.cdist(tokens.flatten(0, 2), codebook, p=1 if how == "city" else 2)
    unit = F.normalize(codebook, dim=1)
    far = {"farthest": -far, "product": -(tokens.flatten(0, 2) @ codebook.mT),
           "angle": -(tokens.flatten(0, 2) @ unit.mT)}.get(how, far)
    k = far.argmin(1)
    codes = codebook[k]
    if how in ("view", "mixed"):
        return codes.view(z.shape)
    return {"numbers": k.view(len(z), *z.shape[2:]), "flat": codes, "last": codes.view_as(tokens), "z": z,
            "double": codes.view_as(tokens).movedim(-1, 1).double()}.get(how, codes.view_as(tokens).movedim(-1, 1))


def quantised_by_squares(z, codebook):
    flat = z.flatten(2)
    far = codebook.square().sum(1)[None, :, None] - 2 * torch.einsum("kc,bcn->bkn", codebook, flat)
    return codebook[far.argmin(1)].permute(0, 2, 1).reshape(z.shape)


def sampled(net, x, abar, steps, how="right"):
    T = len(abar)
    times = [round(T - i * T / steps) - 1 for i in range(steps)]
    times = {"leading": [i * T // steps for i in range(steps)][::-1], "upwards": times[::-1],
             "twice": times * 2}.get(how, times)
    levels = abar if how == "no roots" else abar.sqrt()
    noises = 1 - abar if how == "no roots" else (1 - abar).sqrt()
    for t, s in zip(times, [*times[1:], times[-1] if how == "stays noisy" else None]):
        a_s, s_s = (levels[s], noises[s]) if s is not None else (torch.ones(()), torch.zeros(()))
        eps = net(x, t if how == "plain t" else torch.full((len(x),), t))
        x0 = (x + noises[t] * eps if how == "plus" else x - noises[t] * eps) / (
            1 if how == "not divided" else levels[t])
        if how == "x0 net":
            x0, eps = eps, (x - levels[t] * eps) / noises[t]
        if how == "fresh":
            eps = torch.randn_like(eps)
        a_s, s_s = {"x0 only": (1, 0), "same level": (levels[t], noises[t]), "swapped": (s_s, a_s)}.get(how, (a_s, s_s))
        x = a_s * x0 + s_s * eps
    return x.double() if how == "double" else x


def sampled_by_slopes(net, x, abar, steps):
    """Euler along the noise-to-signal ratio."""
    T, ratio = len(abar), ((1 - abar) / abar).sqrt()
    times = [round(T - i * T / steps) - 1 for i in range(steps)]
    y, a = x / abar[times[0]].sqrt(), abar.sqrt()
    for t, s in zip(times, [*times[1:], None]):
        eps = net(a[t] * y, torch.tensor([t] * len(x)))
        y = y + ((0 if s is None else ratio[s]) - ratio[t]) * eps
    return y


CORRECT = {
    checks.quantise: [quantised, quantised_by_squares],
    checks.ddim: [sampled, sampled_by_slopes],
    checks.join_qkv: [rejoined, rejoined_by_chunks],
    checks.released_attention: [released, released_by_torch],
    checks.owned: [bytes_of, bytes_in_a_loop],
}

MUTANTS = {
    checks.quantise: spoiled(
        quantised, ("mixed", "mixes channels"), ("city", "Euclidean|off by"), ("farthest", "farthest"),
        ("product", "largest product"), ("angle", "smallest angle"), ("view", "channels must move"),
        ("numbers", "numbers of codes"), ("flat", "a picture again"), ("last", "channels come second"),
        ("z", "as it came"), ("double", "dtype")),
    checks.ddim: spoiled(
        sampled, ("leading", "asked the network"), ("upwards", "asked the network"), ("twice", "asked the network"),
        ("no roots", "are their roots"), ("stays noisy", "clean picture"), ("plain t", "should be a tensor"),
        ("plus", r"\*minus\*"), ("not divided", "division is missing"), ("x0 net", "not x0"), ("fresh", "off by"),
        ("x0 only", "ended at x0"), ("same level", "x is at s"), ("swapped", "belongs to x0"), ("double", "dtype")),
    checks.join_qkv: spoiled(
        rejoined, ("new", r"\*new\* order"), ("rows", "too fine"), ("strided", "neighbouring rows"),
        ("k first", "order within"), ("turned", "order within"), ("v second", "order within"),
        ("two", "off by|raised|shape"), ("three axes", "three axes"), ("double", "dtype"), ("q only", "shape")),
    checks.released_attention: spoiled(
        released, ("no norm", "group norm"), ("no bias", "qkv has a bias"), ("new order", "head by head"),
        ("swapped", "order is q, k, v"), ("whole width", "width of a head"), ("no scale", "are scaled"),
        ("twice", r"\*each\*"), ("over queries", "over the keys"), ("no out", "proj_out"), ("flat", "a picture again"),
        ("no skip", "x is added"), ("double", "dtype")),
    checks.owned: spoiled(
        bytes_of, ("first", "first collection"), ("again", "counted again"), ("tensors", "counted again|storage"),
        ("numbers", "not bytes"), ("count", "how many storages"), ("bits", "expected"), ("pointers", "inside of"),
        ("views", "keeps its whole|storage"), ("each", "counted again"), ("float32", "expected"),
        ("list", "whole number")),
}

test_right_solutions_pass, test_wrong_ones_fail_with_a_hint, test_the_stub_is_named = try_all(CORRECT, MUTANTS)
