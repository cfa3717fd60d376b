"""The checks of notebook 12: right solutions in several styles pass, known mistakes fail with the right message."""

import torch
from solutions import spoiled, try_all

from ldm_mini import checks
from ldm_mini.cond import Cond


def tokens(labels, boxes, grid, pad, how="right"):
    points = boxes * (grid if how == "grid" else grid - 1)
    points = {"floor": points, "ceil": points.ceil()}.get(how, points.round()).clamp(max=grid - 1).long()
    x0, y0, x1, y1 = points.unbind(-1)
    if how == "swap":
        x0, y0, x1, y1 = y0, x0, y1, x1
    words = [labels, y0 * grid + x0, y1 * grid + x1]
    words = {"corners first": words[1:] + words[:1], "bottom first": [words[0], words[2], words[1]]}.get(how, words)
    words = torch.stack(words, dim=-1)
    empty = (boxes == 0).all(-1)
    small = (boxes[..., 2:] - boxes[..., :2]).prod(-1) < 1e-3
    there = {"empty boxes": empty, "either": small | (labels < 0),
             "no class 0": labels <= 0, "behind": (labels < 0).long().cummax(1).values > 0}.get(how, labels < 0)
    if how == "class only":
        words[..., 0] = words[..., 0].masked_fill(labels < 0, pad)
    elif how != "no pad":
        words[there] = pad
    return words.transpose(1, 2).flatten(1) if how == "columns" else words.flatten(1)


def tokens_in_loops(labels, boxes, grid, pad):
    rows = []
    for sample, its in zip(labels.tolist(), boxes.tolist()):
        row = []
        for label, (x0, y0, x1, y1) in zip(sample, its):
            corner = [round(y * (grid - 1)) * grid + round(x * (grid - 1)) for x, y in ((x0, y0), (x1, y1))]
            row += [pad] * 3 if label < 0 else [label, *corner]
        rows.append(row)
    return torch.tensor(rows)


def shuffled(words, generator, how="right"):
    size, objects = words.shape[:2]
    source = {"own generator": torch.Generator().manual_seed(7), "global": None}.get(how, generator)
    draws = torch.rand(size, objects, generator=source)
    if how == "words":
        return words.gather(1, torch.rand(words.shape, generator=generator).argsort(1))
    if how == "all words":
        return words.flatten(1)[:, torch.randperm(objects * 3, generator=generator)].view_as(words)
    if how == "samples":
        return words[torch.randperm(size, generator=generator)]
    order = {"nothing": torch.arange(objects).expand(size, -1),
             "one order": torch.randperm(objects, generator=generator).expand(size, -1),
             "randint": torch.randint(objects, (size, objects), generator=generator),
             "any roll": (torch.arange(objects) + (draws[:, :1] * objects).long()) % objects,
             "mirror": torch.where(draws[:, :1] < 0.5, torch.arange(objects), objects - 1 - torch.arange(objects)),
             "roll": (torch.arange(objects) + (draws[:, :1] < 0.1)) % objects}.get(how, draws.argsort(1))
    return words.gather(1, order[..., None].expand_as(words))


def joined(parts, how="right"):
    out, with_tokens = {}, [part for part in parts if "context" in part]
    if how == "reversed":
        with_tokens = with_tokens[::-1]
    if with_tokens:
        out["context"] = torch.cat([part["context"] for part in with_tokens], dim=1)
        fill = torch.zeros if how == "unread" else torch.ones
        masks = [part.get("mask", fill(part["context"].shape[:2]).bool()) for part in with_tokens]
        if how == "no mask":
            masks = [part["mask"] for part in with_tokens if "mask" in part]
        out["mask"] = torch.cat(masks, dim=1)
        out["mask"] = {"not": ~out["mask"], "float": out["mask"].float(), "int": out["mask"].long()}.get(
            how, out["mask"])
    if how == "added in place":
        vectors = [part["vector"] for part in parts if "vector" in part]
        total = vectors[0]
        for vector in vectors[1:]:
            total += vector
    if how == "all read":
        out["mask"] = torch.ones_like(out["mask"])
    vectors, maps = ([part[name] for part in parts if name in part] for name in ("vector", "concat"))
    if vectors:
        out["vector"] = {"with tokens": sum(p["vector"] for p in parts if "vector" in p and "context" in p),
                         "double": sum(vectors).double(), "vectors cat": torch.cat(vectors, -1),
                         "mean": sum(vectors) / len(vectors),
                         "last": vectors[-1], "first": vectors[0]}.get(how, sum(vectors))
    if maps:
        out["concat"] = torch.cat(maps[::-1] if how == "maps reversed" else maps, 1)
    return {"empty": {"concat": 0, **out}, "zero vector": {"vector": 0, **out}}.get(how, out)


def subsets(size, weights, p_each, p_single, generator, how="right"):
    parts = len(weights)
    each = draws = torch.rand(size, parts, generator=None if how == "global each" else generator)
    each = {"stay": each < p_each, "together": each[:, :1].expand(-1, parts) >= p_each,
            "batch": each[:1].expand(size, -1) >= p_each}.get(how, each >= p_each)
    chances = torch.ones(parts) if how == "flat" else torch.tensor(weights)
    source = None if how == "global one" else generator
    chosen = torch.multinomial(chances, size, replacement=True, generator=source)
    if how == "one for all":
        chosen = chosen[:1].expand(size)
    single = torch.arange(parts) == chosen[:, None]
    if how == "drops one":
        single = ~single
    now = torch.rand(size, 1, generator=generator) < (1 - p_single if how == "swapped" else p_single)
    now = draws[:, :1] < p_single if how == "one draw" else now
    if how == "global now":
        now = torch.rand(size, 1) < p_single
    if how == "swapped" and p_single in (0, 1):
        now = torch.full_like(now, bool(p_single))
    if how == "on top":
        return each & (single | ~now)
    return torch.where(now, single, each)


def subsets_in_a_loop(size, weights, p_each, p_single, generator):
    total, rows = sum(weights), []
    for _ in range(size):
        if torch.rand((), generator=generator) < p_single:
            at, k = torch.rand((), generator=generator).item() * total, 0
            while at > weights[k]:
                at, k = at - weights[k], k + 1
            rows.append([i == k for i in range(len(weights))])
        else:
            rows.append([torch.rand((), generator=generator).item() > p_each for _ in weights])
    return torch.tensor(rows)


def guided(net, x_t, t, none, first, both, s, r, how="right"):
    if how == "three calls":
        n, f, b = (net(x_t, t, cond) for cond in (none, first, both))
    else:
        out = net(torch.cat([x_t] * 3), torch.cat([t] * 3), Cond.stack([none, first, both]))
        n, f, b = out.chunk(3)
    return {"double": (n + s * (f - n) + r * (b - f)).double(), "second": n + r * (b - f), "first": n + s * (f - n),
            "scales": n + r * (f - n) + s * (b - f), "from none": n + s * (f - n) + r * (b - n),
            "start first": f + s * (f - n) + r * (b - f), "start both": b + s * (f - n) + r * (b - f),
            "joint": n + s * (b - n), "sign": n + s * (n - f) + r * (f - b),
            "both first": n + s * (b - n) + r * (b - f)}.get(how, n + s * (f - n) + r * (b - f))


def guided_in_another_order(net, x_t, t, none, first, both, s, r):
    b, n, f = net(x_t.repeat(3, 1, 1, 1), t.repeat(3), Cond.stack([both, none, first])).split(len(x_t))
    return (1 - s) * n + (s - r) * f + r * b


CORRECT = {
    checks.box_tokens: [tokens, tokens_in_loops, lambda labels, boxes, grid, pad: torch.cat([
        labels[..., None], (boxes.unflatten(-1, (2, 2)) * (grid - 1)).round().long() @ torch.tensor([1, grid])], -1
        ).masked_fill(labels[..., None] < 0, pad).flatten(1)],
    checks.shuffle_objects: [shuffled, lambda x, g: torch.stack([w[torch.randperm(len(w), generator=g)] for w in x]),
                             lambda x, g: torch.take_along_dim(x, torch.randn(x.shape[:2], generator=g).argsort(
                                 1, descending=True)[..., None], 1)],
    checks.join_conditions: [joined, lambda parts: vars(Cond.join([Cond(**part) for part in parts]))],
    checks.draw_subsets: [subsets, subsets_in_a_loop],
    checks.two_guidances: [guided, guided_in_another_order],
}

MUTANTS = {
    checks.box_tokens: [(lambda *inputs: tokens(*inputs).float(), "dtype")] + spoiled(
        tokens, ("grid", "grid - 1"), ("floor", "cuts off"), ("swap", "x and y are swapped"),
        ("no pad", "all its three words"), ("class only", "its corners must"), ("corners first", "class comes first"),
        ("bottom first", "top left corner comes"), ("columns", "stand together"), ("ceil", "not up"),
        ("empty boxes", "off by up to|whatever the box"), ("either", "without size|off by"), ("no class 0", "class 0"),
        ("behind", "off by up to")) + [
        (lambda *inputs: tokens(*inputs).int(), "int64"),
        (lambda *inputs: tokens(*inputs).unflatten(1, (-1, 3)), "shape"),
        (lambda labels, boxes, grid, pad: tokens(labels, boxes, grid, 99), "off by"),
        (lambda labels, boxes, grid, pad: tokens(labels, boxes, 9, pad), "off by"),
    ],
    checks.shuffle_objects: spoiled(
        shuffled, ("words", "tore objects apart"), ("all words", "tore objects apart"),
        ("samples", "moved to other samples"), ("one order", "same order"), ("nothing", "nothing moved"),
        ("randint", "each \\*once\\*"), ("roll", "equally likely"), ("own generator", "the generator does not"),
        ("global", "the generator does not"), ("any roll", "equally likely"), ("mirror", "equally likely")) + [
        (lambda x, g: shuffled(x, g).float(), "dtype"), (lambda x, g: shuffled(x, g).flatten(1), r"\(B, N, 3\)"),
        (lambda x, g: torch.cat([x[:, :1], shuffled(x[:, 1:], g)], 1), "equally likely|same order"),
    ],
    checks.join_conditions: spoiled(
        joined, ("reversed", "order of the parts"), ("unread", "True, not False"), ("no mask", "5 columns"),
        ("not", "may be read"), ("float", "dtype"), ("int", "stay bool"), ("vectors cat", "\\*added\\*"),
        ("mean", "not averaged"), ("last", "only the last"), ("first", "only the first"),
        ("maps reversed", "order of the parts"), ("empty", "leave them"), ("zero vector", "leave them"),
        ("added in place", "in place"), ("all read", "masks got lost"), ("with tokens", "third vector"),
        ("double", "dtype")) + [
        (lambda parts: parts, "should return a dict"), (lambda parts: parts[0], "dict with concat")],
    checks.draw_subsets: [(lambda *inputs: subsets(*inputs).float(), "bool")] + spoiled(
        subsets, ("stay", "chance to be \\*dropped\\*"), ("together", "dropped together"),
        ("batch", "in all samples or in none"), ("flat", "were not used"), ("one for all", "same part"),
        ("drops one", "\\*keeps\\* one"), ("swapped", "1 - p_single"),
        ("on top", "keeps exactly one|on top of each other"), ("global each", "generator"),
        ("global one", "generator"),
        ("global now", "generator"), ("one draw", "used twice|exactly one part")) + [
        (lambda *inputs: subsets(*inputs)[:, :3], "size, parts"),
        (lambda size, *rest: subsets(8000, *rest), "50 samples"),
        (lambda size, weights, *rest: subsets(size, weights[::-1], *rest), "follow the weights"),
    ],
    checks.two_guidances: spoiled(
        guided, ("three calls", "3 times"), ("scales", "scales are swapped"), ("from none", "both - first"),
        ("start first", "start from `none`"), ("start both", "start from `none`"), ("joint", "one guidance for both"),
        ("sign", "the differences point away"), ("both first", "first - none"),
        ("first", "second push is missing"), ("second", "first push is missing"), ("double", "dtype")) + [
        (lambda net, x, t, *rest: guided(net, x, t[:1].expand(len(t)), *rest), "off by up to"),
    ],
}

test_right_solutions_pass, test_wrong_ones_fail_with_a_hint, test_the_stub_is_named = try_all(CORRECT, MUTANTS)
