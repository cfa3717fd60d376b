"""Checks of notebook 12, layouts, and all conditions at once."""

import math

import torch
from torch import Tensor

from ..cond import Cond
from .checking import CheckFailed, attempt, compare, passed
from .properties import fresh, fresh_whole, generator, own_randomness, same_dtype


def box_tokens(function):
    """`function(labels, boxes, grid, pad)`: labels (B,N), -1 = none, boxes (B,N,4) in [0,1] -> words (B, 3N) int64."""
    labels = torch.tensor([[4, 1], [0, -1], [2, 2]])
    boxes = torch.tensor([[[0.0, 0.25, 0.5, 1.0], [0.52, 0.1, 0.77, 0.36]],
                          [[0.02, 0.7, 0.9, 0.8], [0.0, 0.0, 0.0, 0.0]],
                          [[0.11, 0.22, 0.33, 0.94], [0.6, 0.2, 1.0, 0.4]]])
    # absent things may stand anywhere and have any box; a thing in the first corner may have none to speak of
    more = torch.tensor([[-1, 3, 0], [5, -1, -1]])
    anywhere = torch.tensor([[[0.2, 0.31, 0.4, 0.8], [0.0, 0.0, 0.01, 0.01], [0.13, 0.0, 1.0, 0.72]],
                             [[0.91, 0.4, 0.97, 0.55], [0.0, 0.0, 0.0, 0.0], [0.12, 0.88, 0.31, 1.0]]])
    some, drawn = fresh_whole(), torch.rand(3, 2, 2, 2, generator=generator())
    others = torch.tensor([[some(-1, 9) for _ in range(2)] for _ in range(3)])
    drawn = torch.cat([drawn.amin(2), drawn.amax(2)], -1)
    for labels, boxes, grid, pad in ((labels, boxes, 9, 99), (more, anywhere, 16, 0), (more, anywhere, 5, -7),
                                     (others, drawn, some(6, 20), some(50, 99))):
        _hold_words(function, labels, boxes, grid, pad)
    passed("box_tokens: class, top left, bottom right; and nobody is `pad`")


def _hold_words(function, labels, boxes, grid, pad):
    def words(scale=grid - 1, how=torch.round, swap=False, mask=labels < 0, order=(0, 1, 2), columns=False):
        x0, y0, x1, y1 = how(boxes * scale).clamp(max=grid - 1).long().unbind(-1)
        first, last = (x0 * grid + y0, x1 * grid + y1) if swap else (y0 * grid + x0, y1 * grid + x1)
        right = torch.stack([[labels, first, last][i] for i in order], dim=-1)
        right = torch.where(mask[..., None], pad, right)
        return right.mT.flatten(1) if columns else right.flatten(1)

    nobody = torch.zeros_like(labels, dtype=torch.bool)
    class_only, what = words(mask=nobody), f"box_tokens(labels, boxes, {grid}, {pad})"
    class_only[:, ::3] = torch.where(labels < 0, pad, labels)
    empty = (boxes[..., 2:] <= boxes[..., :2]).any(-1)
    got = attempt(function, labels, boxes, grid, pad, name="box_tokens")
    compare(got, words(), what, mistakes=[
        (words(scale=grid), f"the grid has {grid} points, 0 to {grid - 1}: multiply by grid - 1, or the right border "
                            "has no point."),
        (words(how=torch.floor), "corners are rounded to the *nearest* point; `.long()` alone cuts off."),
        (words(how=torch.ceil), "corners are rounded to the *nearest* point, not up."),
        (words(swap=True), "a point is row * grid + column, that is y * grid + x: x and y are swapped."),
        (words(mask=nobody), "an object with label -1 is none: all its three words are `pad`."),
        (class_only, "only the class word of an absent object became `pad`; its corners must, too."),
        (words(mask=empty), "who is there says the *label*; -1 is nobody, whatever the box."),
        (words(mask=empty | (labels < 0)), "who is there says the *label*: a box without size still counts."),
        (words(mask=labels <= 0), "class 0 is a class like others; only -1 is nobody."),
        (words(order=(0, 2, 1)), "the top left corner comes before the bottom right one."),
        (words(order=(1, 2, 0)), "the class comes first, then the corners."),
        (words(columns=True), "the words of one object stand together: class, corner, corner, then the next object."),
    ])
    if got.dtype != torch.int64:
        raise CheckFailed(f"box_tokens: words are rows of a table, so integers, int64, not {got.dtype}.")


def shuffle_objects(function):
    """`function(words, generator)`: words (B, N, 3) -> the same objects of each sample in an order of its own."""
    for size, objects in ((600, 4), (90, 2)):
        # every word is another number, so each tells where it came from
        words = torch.arange(size * objects * 3).view(size, objects, 3)
        shuffle = lambda seed: attempt(lambda words: function(  # noqa: B023
            words, torch.Generator().manual_seed(seed)), words, name="shuffle_objects")  # noqa: B023
        seed = generator().initial_seed() % 2**31
        got = shuffle(seed)
        _hold_orders(got, words)
        with own_randomness():
            again = shuffle(seed)
        if not torch.equal(again, got) or torch.equal(shuffle(seed + 1), got):
            raise CheckFailed("shuffle_objects: the generator does not decide the order; draw with "
                              "generator=generator.")
    passed("shuffle_objects: whole objects, each sample its own order")


def _hold_orders(got, words):
    size, objects = words.shape[:2]
    if not isinstance(got, Tensor) or got.shape != words.shape:
        found = tuple(got.shape) if isinstance(got, Tensor) else type(got).__name__
        raise CheckFailed(f"shuffle_objects should return (B, N, 3) = {tuple(words.shape)}, got {found}.")
    same_dtype(got, words, "shuffle_objects's result")
    if not torch.equal(got.flatten().sort().values, words.flatten()):
        raise CheckFailed("shuffle_objects: some words were lost, others came twice. A shuffle takes each *once*: "
                          "argsort of random numbers is a permutation, randint is not.")
    if not torch.equal(got // (objects * 3), words // (objects * 3)):
        raise CheckFailed("shuffle_objects: objects have moved to other samples. Shuffle along dimension 1, not 0.")
    if not (got[..., 1:] - got[..., :1] == torch.tensor([1, 2])).all():
        raise CheckFailed("shuffle_objects tore objects apart: class and corners no longer stand together. One order "
                          "of *objects*, used for all three words.")
    order = got[..., 0] // 3 % objects                                          # (B, N)
    if (order == order[:1]).all():
        raise CheckFailed("shuffle_objects: " + ("nothing moved." if torch.equal(got, words) else "all samples got the "
                          "same order. Draw one for each: torch.rand(B, N) and argsort."))
    share = torch.stack([(order == k).double().mean(0) for k in range(objects)])
    seen = len(torch.unique(order, dim=0))
    if (share - 1 / objects).abs().max() > 2.4 / size**0.5 or seen < math.factorial(objects):
        raise CheckFailed(f"shuffle_objects: not every order is equally likely ({seen} of {math.factorial(objects)} "
                          "came). A permutation: argsort of independent uniform numbers.")


def join_conditions(function):
    """`function(parts)`: dicts with any of concat, context, mask, vector -> one dict (of the same B)."""
    draw = fresh()
    for size in (2, 3):
        bits = lambda *shape: draw(*shape) > 0
        parts = [{"context": draw(size, 3, 4), "mask": bits(size, 3), "vector": draw(size, 5)},
                 {"context": draw(size, 1, 4), "vector": draw(size, 5)},
                 {"concat": draw(size, 2, 3, 3)}, {"concat": draw(size, 1, 3, 3), "vector": draw(size, 5)},
                 {"context": draw(size, 2, 4), "mask": bits(size, 2)}]
        kept = [{key: value.clone() for key, value in part.items()} for part in parts]
        got = attempt(lambda: function([dict(part) for part in kept]), name="join_conditions")  # noqa: B023
        if any(not torch.equal(value, part[key]) for part, own in zip(parts, kept) for key, value in own.items()):
            raise CheckFailed("join_conditions changed a part in place, as `+=` does: the first vector is the part's "
                              "own tensor. `total = total + vector` makes a new one.")
        _hold_joined(got, parts)
    few = attempt(lambda: function([{"vector": draw(2, 5)}]), name="join_conditions")
    if not isinstance(few, dict) or any(few.get(key) is not None for key in ("concat", "context", "mask")):
        raise CheckFailed("join_conditions: from parts without tokens and maps come no tokens and maps: leave them "
                          "out, or None.")
    maps = draw(2, 1, 3, 3)
    few = attempt(lambda: function([{"concat": maps}]), name="join_conditions")
    if not isinstance(few, dict) or any(few.get(key) is not None for key in ("vector", "context", "mask")):
        raise CheckFailed("join_conditions: from parts without tokens and vectors come no tokens and vectors: leave "
                          "them out, or None.")
    compare(few.get("concat"), maps, "concat of one part alone")
    passed("join_conditions: channels side by side, tokens in a row, vectors added")


def _hold_joined(got, parts):
    if not isinstance(got, dict) or got.keys() != {"concat", "context", "mask", "vector"}:
        found = sorted(got) if isinstance(got, dict) else type(got).__name__
        raise CheckFailed(f"join_conditions should return a dict with concat, context, mask and vector; got {found}.")
    contexts, vectors, maps = ([part[key] for part in parts if key in part] for key in ("context", "vector", "concat"))
    compare(got["context"], torch.cat(contexts, 1), "context", mistakes=[
        (torch.cat(contexts[::-1], 1), "keep the order of the parts: the mask has it, too.")])
    every = [part.get("mask", torch.ones(part["context"].shape[:2], dtype=torch.bool)) for part in parts
             if "context" in part]
    mask = got["mask"]
    if isinstance(mask, Tensor) and mask.shape[1:] == (5,):
        raise CheckFailed("join_conditions: the mask has 5 columns for 6 tokens: the second part has no mask, which "
                          "means that its token may always be read: torch.ones(..., dtype=torch.bool).")
    compare(mask, torch.cat(every, 1), "mask", mistakes=[
        (torch.cat([every[0], ~every[1], every[2]], 1), "tokens without a mask may always be read: True, not False."),
        (torch.ones_like(torch.cat(every, 1)), "the parts' masks got lost: not all of their tokens may be read."),
        (~torch.cat(every, 1), "True = may be read.")])
    if mask.dtype != torch.bool:
        raise CheckFailed(f"join_conditions: the mask must stay bool, it is {mask.dtype}.")
    if isinstance(got["vector"], Tensor) and got["vector"].shape == (len(mask), 15):
        raise CheckFailed("join_conditions: vectors are *added*: the time embedding to which they go has one width.")
    compare(got["vector"], sum(vectors), "vector", mistakes=[
        (sum(vectors) / 3, "vectors are added, not averaged: a part must not fade because others are there."),
        (vectors[-1], "only the last vector arrived."), (vectors[0], "only the first vector arrived."),
        (vectors[0] + vectors[1], "the third vector is missing: any part may have one, one with maps too.")])
    compare(got["concat"], torch.cat(maps, 1), "concat", mistakes=[
        (torch.cat(maps[::-1], 1), "keep the order of the parts.")])
    for key in ("context", "vector", "concat"):
        same_dtype(got[key], contexts[0], key)


def draw_subsets(function):
    """`function(size, weights, p_each, p_single, generator)` -> (size, len(weights)) bool: what each sample keeps."""
    size, weights, first = 8000, [3.0, 1.0, 2.0, 2.0], generator().initial_seed() % 2**31

    def draw(p_each, p_single, seed=first):
        source = torch.Generator().manual_seed(seed)
        got = attempt(lambda: function(size, list(weights), p_each, p_single, source), name="draw_subsets")
        if not isinstance(got, Tensor) or got.shape != (size, 4) or got.dtype != torch.bool:
            found = (tuple(got.shape), got.dtype) if isinstance(got, Tensor) else type(got).__name__
            raise CheckFailed(f"draw_subsets should return bool (size, parts) = {(size, 4)}, got {found}.")
        return got

    singles = draw(0.5, 1.0)
    counts, shares = singles.sum(1), singles.double().mean(0)
    if (counts == 3).all():
        raise CheckFailed("draw_subsets: with p_single = 1 each sample *keeps* one part; yours drops one.")
    if not (counts == 1).all():
        raise CheckFailed("draw_subsets: with p_single = 1 every sample keeps exactly one part; some of yours keep "
                          f"{sorted(set(counts.tolist()) - {1})}.")
    wanted = torch.tensor(weights, dtype=torch.double) / sum(weights)
    if (shares == shares.round()).all():
        raise CheckFailed("draw_subsets: all samples kept the same part: draw for each sample.")
    if (shares - wanted).abs().max() > 0.025:
        flat = (shares - 0.25).abs().max() < 0.025
        raise CheckFailed("draw_subsets: the part that stays alone should follow the weights "
                          f"{[round(v, 2) for v in wanted.tolist()]}; yours came in "
                          f"{[round(v, 2) for v in shares.tolist()]}." + (" They were not used." if flat else ""))
    each = draw(0.2, 0.0).double()
    if (each.std(0) == 0).any():
        raise CheckFailed("draw_subsets: a part stays in all samples or in none: draw for each sample.")
    share = each.mean().item()
    if abs(share - 0.2) < 0.02:
        raise CheckFailed("draw_subsets: p_each is the chance to be *dropped*; yours is the chance to stay.")
    if abs(share - 0.8) > 0.02:
        raise CheckFailed(f"draw_subsets: with p_each = 0.2, p_single = 0, {share:.0%} of the parts stayed, not 80%.")
    centred = each - each.mean(0)
    together = (centred.T @ centred / size).fill_diagonal_(0) / 0.16
    if together.abs().max() > 0.1:
        raise CheckFailed("draw_subsets: parts are dropped together. Each has a draw of its own: torch.rand(size, "
                          "parts).")
    both = draw(0.5, 0.6)
    with own_randomness():
        again = draw(0.5, 0.6)
    if not torch.equal(both, again) or torch.equal(both, draw(0.5, 0.6, first + 1)):
        raise CheckFailed("draw_subsets: the generator does not decide all of it: every torch.rand and "
                          "torch.multinomial takes generator=generator.")
    mixed = both.sum(1)
    found = (mixed == 1).double().mean().item()                                 # .6 + .4 * 4 / 16 = .7
    if abs(found - 0.55) < 0.025:
        raise CheckFailed("draw_subsets: p_single is the chance to keep one part; you used 1 - p_single.")
    if abs(found - 0.7) > 0.025:
        raise CheckFailed(f"draw_subsets: with p_each = 0.5 and p_single = 0.6, {found:.0%} of the samples kept "
                          "exactly one part; it should be 60% + 40% x 4/16 = 70%. With chance p_single the one part, "
                          "*otherwise* the draws of each; not both on top of each other.")
    apart = both.double().mean(0) - (0.6 * wanted + 0.4 * 0.5)
    if apart.abs().max() > 0.035:
        raise CheckFailed(f"draw_subsets: with p_each = 0.5 and p_single = 0.6 part {int(apart.abs().argmax())} stays "
                          "too often or too seldom. Whether a sample keeps one part, which one, and what is dropped "
                          "otherwise: three draws, none of which may be used twice.")
    two = attempt(lambda: function(50, [1.0, 1.0], 0.0, 0.0, torch.Generator().manual_seed(2)), name="draw_subsets")
    if not isinstance(two, Tensor) or two.shape != (50, 2) or not two.all():
        raise CheckFailed("draw_subsets: with p_each = 0 and p_single = 0 each of 50 samples keeps both of 2 parts: "
                          "True everywhere, (50, 2).")
    passed("draw_subsets: now one alone, now some, now all")


def two_guidances(function):
    """`function(net, x_t, t, none, first, both, s_first, s_second)`: conds -> guided output, the net called once."""
    draw = fresh()
    for (size, *shape), s, r in (((2, 3, 4, 4), 1.5, 4.0), ((3, 4, 2, 5), 3.0, 0.5)):
        x_t, t = draw(size, *shape), torch.tensor([5, 900, 400])[:size]
        mask = torch.ones(size, 2, dtype=torch.bool)
        none, first, both = (Cond(vector=torch.full((size, 1), v), context=draw(size, 2, 3), mask=mask)
                             for v in (0.0, 1.0, 10.0))
        calls = []

        # squares, and values far apart: no mixture of the three outputs looks like another one
        def net(x, time, cond, calls=calls):
            calls.append(len(x))
            scale = 1 + time.view(-1, 1, 1, 1) / 1000
            return x * scale + cond.vector[:, :, None, None] ** 2 + cond.context.mean((1, 2)).view(-1, 1, 1, 1)

        n, f, b = (net(x_t, t, cond) for cond in (none, first, both))
        calls.clear()
        got = attempt(lambda x, t: function(net, x, t, none, first, both, s, r), x_t, t,  # noqa: B023
                      name="two_guidances")
        compare(got, n + s * (f - n) + r * (b - f), "two_guidances(...)", mistakes=[
            (n + r * (f - n) + s * (b - f), "the two scales are swapped."),
            (n + s * (f - n) + r * (b - n), "the second push starts from the *first* condition: both - first. From "
                                            "`none` it contains the first condition's pull again."),
            (n + s * (b - n) + r * (b - f), "the first push is first - none."),
            (f + s * (f - n) + r * (b - f), "start from `none`: with both scales 1 the result must be `both`."),
            (b + s * (f - n) + r * (b - f), "start from `none`: with both scales 1 the result must be `both`."),
            (n + s * (b - n), "this is one guidance for both conditions; the second scale is not used."),
            (n + s * (f - n), "this is the first condition alone; the second push is missing."),
            (n + r * (b - f), "the first push is missing: s_first (first - none)."),
            (n + s * (n - f) + r * (f - b), "the differences point away from the conditions: first - none, "
                                            "both - first."),
        ])
        same_dtype(got, x_t, "two_guidances(...)")
        if calls != [3 * size]:
            raise CheckFailed(f"two_guidances called the network {len(calls)} times, with {calls} rows. Stack the "
                              "three conditions (Cond.stack) and three copies of x_t and t: one call of 3 x B rows.")
    passed("two_guidances: two dials, one call")
