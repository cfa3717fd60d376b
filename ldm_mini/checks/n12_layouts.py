"""Checks of notebook 12, layouts, and all conditions at once."""

import torch
from torch import Tensor

from ..cond import Cond
from .checking import CheckFailed, attempt, compare, noise, passed


def box_tokens(function):
    """`function(labels, boxes, grid, pad)`: labels (B,N), -1 = none, boxes (B,N,4) in [0,1] -> words (B, 3N) int64."""
    labels = torch.tensor([[4, 1], [0, -1], [2, 2]])
    boxes = torch.tensor([[[0.0, 0.25, 0.5, 1.0], [0.52, 0.1, 0.77, 0.36]],
                          [[0.3, 0.7, 0.9, 0.8], [0.0, 0.0, 0.0, 0.0]],
                          [[0.11, 0.22, 0.33, 0.94], [0.6, 0.2, 1.0, 0.4]]])
    grid, pad = 9, 99

    def words(scale=grid - 1, how=torch.round, swap=False, mask=True, order=(0, 1, 2), columns=False):
        x0, y0, x1, y1 = how(boxes * scale).clamp(max=grid - 1).long().unbind(-1)
        first, last = (x0 * grid + y0, x1 * grid + y1) if swap else (y0 * grid + x0, y1 * grid + x1)
        right = torch.stack([[labels, first, last][i] for i in order], dim=-1)
        right = torch.where((labels < 0)[..., None], pad, right) if mask else right
        return right.mT.flatten(1) if columns else right.flatten(1)

    got = attempt(function, labels, boxes, grid, pad, name="box_tokens")
    compare(got, words(), "box_tokens(labels, boxes, 9, 99)", mistakes=[
        (words(scale=grid), "the grid has 9 points, 0 to 8: multiply by grid - 1, or the right border has no point."),
        (words(how=torch.floor), "corners are rounded to the *nearest* point; `.long()` alone cuts off."),
        (words(swap=True), "a point is row * grid + column, that is y * grid + x: x and y are swapped."),
        (words(mask=False), "an object with label -1 is none: all its three words are `pad`."),
        (torch.where(words(mask=False) < 0, pad, words(mask=False)),
         "only the class word of an absent object became `pad`; its corners must, too."),
        (words(order=(0, 2, 1)), "the top left corner comes before the bottom right one."),
        (words(order=(1, 2, 0)), "the class comes first, then the corners."),
        (words(columns=True), "the words of one object stand together: class, corner, corner, then the next object."),
    ])
    if got.is_floating_point():
        raise CheckFailed("box_tokens: words are rows of a table, so integers (int64).")
    passed("box_tokens: class, top left, bottom right; and nobody is `pad`")


def shuffle_objects(function):
    """`function(words, generator)`: words (B, N, 3) -> the same objects of each sample in an order of its own."""
    size, objects = 600, 4
    # every word is another number, so each tells where it came from
    words = torch.arange(size * objects * 3).view(size, objects, 3)
    got = attempt(function, words, torch.Generator().manual_seed(0), name="shuffle_objects")
    if not isinstance(got, Tensor) or got.shape != words.shape:
        found = tuple(got.shape) if isinstance(got, Tensor) else type(got).__name__
        raise CheckFailed(f"shuffle_objects should return (B, N, 3) = {tuple(words.shape)}, got {found}.")
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
    if (share - 1 / objects).abs().max() > 0.08:
        raise CheckFailed("shuffle_objects: not every order is equally likely. A permutation: argsort of independent "
                          "uniform numbers.")
    again = attempt(function, words, torch.Generator().manual_seed(1), name="shuffle_objects")
    if torch.equal(again, got):
        raise CheckFailed("shuffle_objects: other generators give the same order; draw with generator=generator.")
    passed("shuffle_objects: whole objects, each sample its own order")


def join_conditions(function):
    """`function(parts)`: dicts with any of concat, context, mask, vector -> one dict (B = 2)."""
    parts = [{"context": noise(2, 3, 4), "mask": torch.tensor([[1, 1, 0], [1, 0, 0]]).bool(), "vector": noise(2, 5)},
             {"context": noise(2, 1, 4, seed=1), "vector": noise(2, 5, seed=2)},
             {"concat": noise(2, 2, 3, 3, seed=3)}, {"concat": noise(2, 1, 3, 3, seed=4)},
             {"context": noise(2, 2, 4, seed=5), "mask": torch.tensor([[0, 0], [1, 1]]).bool()}]
    got = attempt(lambda: function([dict(part) for part in parts]), name="join_conditions")
    if not isinstance(got, dict) or got.keys() != {"concat", "context", "mask", "vector"}:
        found = sorted(got) if isinstance(got, dict) else type(got).__name__
        raise CheckFailed(f"join_conditions should return a dict with concat, context, mask and vector; got {found}.")
    contexts = [part["context"] for part in parts if "context" in part]
    compare(got["context"], torch.cat(contexts, 1), "context", mistakes=[
        (torch.cat(contexts[::-1], 1), "keep the order of the parts: the mask has it, too.")])
    every = [part.get("mask", torch.ones(2, part["context"].shape[1], dtype=torch.bool)) for part in parts
             if "context" in part]
    mask = got["mask"]
    if isinstance(mask, Tensor) and mask.shape[1:] == (5,):
        raise CheckFailed("join_conditions: the mask has 5 columns for 6 tokens: the second part has no mask, which "
                          "means that its token may always be read: torch.ones(..., dtype=torch.bool).")
    compare(mask, torch.cat(every, 1), "mask", mistakes=[
        (torch.cat([every[0], ~every[1], every[2]], 1), "tokens without a mask may always be read: True, not False."),
        (~torch.cat(every, 1), "True = may be read.")])
    if mask.dtype != torch.bool:
        raise CheckFailed(f"join_conditions: the mask must stay bool, it is {mask.dtype}.")
    vectors = [part["vector"] for part in parts if "vector" in part]
    if isinstance(got["vector"], Tensor) and got["vector"].shape == (2, 10):
        raise CheckFailed("join_conditions: vectors are *added*: the time embedding to which they go has one width.")
    compare(got["vector"], sum(vectors), "vector", mistakes=[
        (sum(vectors) / 2, "vectors are added, not averaged: a part must not fade because others are there."),
        (vectors[-1], "only the last vector arrived."), (vectors[0], "only the first vector arrived.")])
    maps = [part["concat"] for part in parts if "concat" in part]
    compare(got["concat"], torch.cat(maps, 1), "concat", mistakes=[
        (torch.cat(maps[::-1], 1), "keep the order of the parts.")])
    few = attempt(lambda: function([{"vector": noise(2, 5)}]), name="join_conditions")
    if not isinstance(few, dict) or any(few.get(key) is not None for key in ("concat", "context", "mask")):
        raise CheckFailed("join_conditions: from parts without tokens and maps come no tokens and maps: leave them "
                          "out, or None.")
    passed("join_conditions: channels side by side, tokens in a row, vectors added")


def draw_subsets(function):
    """`function(size, weights, p_each, p_single, generator)` -> (size, len(weights)) bool: what each sample keeps."""
    size, weights = 8000, [3.0, 1.0, 2.0, 2.0]
    generator = torch.Generator().manual_seed(0)

    def draw(p_each, p_single):
        got = attempt(lambda: function(size, list(weights), p_each, p_single, generator), name="draw_subsets")
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
    mixed = draw(0.5, 0.6).sum(1)
    found = (mixed == 1).double().mean().item()                                 # .6 + .4 * 4 / 16 = .7
    if abs(found - 0.55) < 0.025:
        raise CheckFailed("draw_subsets: p_single is the chance to keep one part; you used 1 - p_single.")
    if abs(found - 0.7) > 0.025:
        raise CheckFailed(f"draw_subsets: with p_each = 0.5 and p_single = 0.6, {found:.0%} of the samples kept "
                          "exactly one part; it should be 60% + 40% x 4/16 = 70%. With chance p_single the one part, "
                          "*otherwise* the draws of each; not both on top of each other.")
    passed("draw_subsets: now one alone, now some, now all")


def two_guidances(function):
    """`function(net, x_t, t, none, first, both, s_first, s_second)`: conds -> guided output, the net called once."""
    x_t, t = noise(2, 3, 4, 4), torch.tensor([5, 900])
    mask = torch.ones(2, 2, dtype=torch.bool)
    none, first, both = (Cond(vector=torch.full((2, 1), v), context=noise(2, 2, 3, seed=i), mask=mask)
                         for i, v in enumerate((0.0, 1.0, 10.0)))
    calls = []

    # squares, and values far apart: no mixture of the three outputs looks like another one
    def net(x, time, cond):
        calls.append(len(x))
        scale = 1 + time.view(-1, 1, 1, 1) / 1000
        return x * scale + cond.vector[:, :, None, None] ** 2 + cond.context.mean((1, 2)).view(-1, 1, 1, 1)

    n, f, b = (net(x_t, t, cond) for cond in (none, first, both))
    calls.clear()
    s, r = 1.5, 4.0
    got = attempt(lambda: function(net, x_t.clone(), t.clone(), none, first, both, s, r), name="two_guidances")
    right = n + s * (f - n) + r * (b - f)
    compare(got, right, "two_guidances(...)", mistakes=[
        (n + r * (f - n) + s * (b - f), "the two scales are swapped."),
        (n + s * (f - n) + r * (b - n), "the second push starts from the *first* condition: both - first. From `none` "
                                        "it contains the first condition's pull again."),
        (n + s * (b - n) + r * (b - f), "the first push is first - none."),
        (f + s * (f - n) + r * (b - f), "start from `none`: with both scales 1 the result must be `both`."),
        (b + s * (f - n) + r * (b - f), "start from `none`: with both scales 1 the result must be `both`."),
        (n + s * (b - n), "this is one guidance for both conditions; the second scale is not used."),
        (n + s * (n - f) + r * (f - b), "the differences point away from the conditions: first - none, both - first."),
    ])
    if calls != [6]:
        raise CheckFailed(f"two_guidances called the network {len(calls)} times, with {calls} rows. Stack the three "
                          "conditions (Cond.stack) and three copies of x_t and t: one call of 3 x B rows.")
    passed("two_guidances: two dials, one call")
