"""Checks of notebook 17's released attention and its memory: right ones pass, known mistakes fail with a hint."""

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


CORRECT = {
    checks.join_qkv: [rejoined, rejoined_by_chunks],
    checks.released_attention: [released, released_by_torch],
    checks.owned: [bytes_of, bytes_in_a_loop],
}

MUTANTS = {
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
