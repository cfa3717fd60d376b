"""The checks of notebook 12: right solutions in several styles pass, known mistakes fail with the right message."""

import torch
from solutions import spoiled, try_all

from ldm_mini import checks
from ldm_mini.cond import Cond


def tokens(labels, boxes, grid, pad, how="right"):
    points = boxes * (grid if how == "grid" else grid - 1)
    points = points.clamp(max=grid - 1).long() if how == "floor" else points.round().clamp(max=grid - 1).long()
    x0, y0, x1, y1 = points.unbind(-1)
    if how == "swap":
        x0, y0, x1, y1 = y0, x0, y1, x1
    words = [labels, y0 * grid + x0, y1 * grid + x1]
    words = {"corners first": words[1:] + words[:1], "bottom first": [words[0], words[2], words[1]]}.get(how, words)
    words = torch.stack(words, dim=-1)
    if how == "class only":
        words[..., 0] = words[..., 0].masked_fill(labels < 0, pad)
    elif how != "no pad":
        words[labels < 0] = pad
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
    source = torch.Generator().manual_seed(7) if how == "own generator" else generator
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
    vectors, maps = ([part[name] for part in parts if name in part] for name in ("vector", "concat"))
    if vectors:
        out["vector"] = {"vectors cat": torch.cat(vectors, -1), "mean": sum(vectors) / len(vectors),
                         "last": vectors[-1], "first": vectors[0]}.get(how, sum(vectors))
    if maps:
        out["concat"] = torch.cat(maps[::-1] if how == "maps reversed" else maps, 1)
    return {"concat": 0, **out} if how == "empty" else out


def subsets(size, weights, p_each, p_single, generator, how="right"):
    parts = len(weights)
    each = torch.rand(size, parts, generator=generator)
    each = {"stay": each < p_each, "together": each[:, :1].expand(-1, parts) >= p_each,
            "batch": each[:1].expand(size, -1) >= p_each}.get(how, each >= p_each)
    chances = torch.ones(parts) if how == "flat" else torch.tensor(weights)
    chosen = torch.multinomial(chances, size, replacement=True, generator=generator)
    if how == "one for all":
        chosen = chosen[:1].expand(size)
    single = torch.arange(parts) == chosen[:, None]
    if how == "drops one":
        single = ~single
    now = torch.rand(size, 1, generator=generator) < (1 - p_single if how == "swapped" else p_single)
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
    return {"scales": n + r * (f - n) + s * (b - f), "from none": n + s * (f - n) + r * (b - n),
            "start first": f + s * (f - n) + r * (b - f), "start both": b + s * (f - n) + r * (b - f),
            "joint": n + s * (b - n), "sign": n + s * (n - f) + r * (f - b),
            "both first": n + s * (b - n) + r * (b - f)}.get(how, n + s * (f - n) + r * (b - f))


def guided_in_another_order(net, x_t, t, none, first, both, s, r):
    b, n, f = net(x_t.repeat(3, 1, 1, 1), t.repeat(3), Cond.stack([both, none, first])).split(len(x_t))
    return (1 - s) * n + (s - r) * f + r * b


CORRECT = {
    checks.box_tokens: [tokens, tokens_in_loops],
    checks.shuffle_objects: [shuffled, lambda x, g: torch.stack([w[torch.randperm(len(w), generator=g)] for w in x])],
    checks.join_conditions: [joined, lambda parts: vars(Cond.join([Cond(**part) for part in parts]))],
    checks.draw_subsets: [subsets, subsets_in_a_loop],
    checks.two_guidances: [guided, guided_in_another_order],
}

MUTANTS = {
    checks.box_tokens: [(lambda *inputs: tokens(*inputs).float(), "dtype")] + spoiled(
        tokens, ("grid", "grid - 1"), ("floor", "cuts off"), ("swap", "x and y are swapped"),
        ("no pad", "all its three words"), ("class only", "its corners must"), ("corners first", "class comes first"),
        ("bottom first", "top left corner comes"), ("columns", "stand together")),
    checks.shuffle_objects: spoiled(
        shuffled, ("words", "tore objects apart"), ("all words", "tore objects apart"),
        ("samples", "moved to other samples"), ("one order", "same order"), ("nothing", "nothing moved"),
        ("randint", "each \\*once\\*"), ("roll", "equally likely"), ("own generator", "other generators")),
    checks.join_conditions: spoiled(
        joined, ("reversed", "order of the parts"), ("unread", "True, not False"), ("no mask", "5 columns"),
        ("not", "may be read"), ("float", "dtype"), ("int", "stay bool"), ("vectors cat", "\\*added\\*"),
        ("mean", "not averaged"), ("last", "only the last"), ("first", "only the first"),
        ("maps reversed", "order of the parts"), ("empty", "leave them")),
    checks.draw_subsets: [(lambda *inputs: subsets(*inputs).float(), "bool")] + spoiled(
        subsets, ("stay", "chance to be \\*dropped\\*"), ("together", "dropped together"),
        ("batch", "in all samples or in none"), ("flat", "were not used"), ("one for all", "same part"),
        ("drops one", "\\*keeps\\* one"), ("swapped", "1 - p_single"),
        ("on top", "keeps exactly one|on top of each other")),
    checks.two_guidances: spoiled(
        guided, ("three calls", "3 times"), ("scales", "scales are swapped"), ("from none", "both - first"),
        ("start first", "start from `none`"), ("start both", "start from `none`"), ("joint", "one guidance for both"),
        ("sign", "the differences point away"), ("both first", "first - none")),
}

test_right_solutions_pass, test_wrong_ones_fail_with_a_hint, test_the_stub_is_named = try_all(CORRECT, MUTANTS)
