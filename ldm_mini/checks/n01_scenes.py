"""Checks of notebook 01, continued: a thing in its place, the box around it, and whether a picture obeys."""

from collections import Counter

import torch
from torch import Tensor

from .checking import CheckFailed, attempt, compare, number, passed, several
from .properties import fresh, generator, same_dtype


def place(function):
    """`function(canvas, sprite, alpha, top, left)`: canvas (3,H,W), sprite (3,h,w), alpha (1,h,w) -> (3,H,W), new."""
    draw = fresh()
    for (high, wide), (h, w), top, left in (((8, 9), (3, 4), 2, 5), ((6, 7), (2, 5), 4, 0), ((5, 9), (5, 2), 0, 6)):
        canvas, sprite = draw(3, high, wide).sigmoid(), draw(3, h, w).sigmoid()
        alpha = (0.5 + 0.5 * draw(1, h, w)).clamp(0, 1)
        laid = lambda y, x, a=alpha, s=sprite, c=canvas: _laid(c, s, a, y, x)
        got = attempt(function, canvas, sprite, alpha, top, left, name="place")
        mistakes = [(laid(top, left, torch.ones_like(alpha)), "alpha plays no part: mix by it, with your alpha_over."),
                    (laid(top, left, 1 - alpha), "sprite and canvas have changed places in the mixture."),
                    (canvas, "nothing was placed."),
                    (laid(0, 0), "the sprite stands in the corner: top and left say where its own corner belongs.")]
        if left + h <= high and top + w <= wide:
            mistakes.append((laid(left, top), "top and left have changed places: rows come first, canvas[:, y, x]."))
        y, x = top - h // 2, left - w // 2
        if min(y, x) >= 0 and (y, x) != (top, left):
            mistakes.append((laid(y, x), "top and left are the sprite's corner, not its middle."))
        compare(got, laid(top, left), f"place(canvas, sprite, alpha, {top}, {left})", shapes={
            (3, h, w): "this is the window alone; return the whole canvas."}, mistakes=mistakes)
        same_dtype(got, canvas, "place")
        if got.data_ptr() == canvas.data_ptr():
            raise CheckFailed("place wrote into the canvas that it was given: work on canvas.clone().")
    passed("place: the thing where it belongs, the rest as it was")


def _laid(canvas: Tensor, sprite: Tensor, alpha: Tensor, top: int, left: int) -> Tensor:
    out, (h, w) = canvas.clone(), alpha.shape[1:]
    out[:, top:top + h, left:left + w] += alpha * (sprite - canvas[:, top:top + h, left:left + w])
    return out


def box_of(function):
    """`function(mask)`: mask (H,W), bool -> the box of what is True, (4,): x0, y0, x1, y1 in [0, 1]."""
    source = generator()
    for h, w in ((8, 12), (11, 8), (9, 16)):
        mask = torch.zeros(h, w, dtype=torch.bool)
        low, high = torch.randint(2, 4, (2,), generator=source), torch.randint(2, 4, (2,), generator=source)
        (y0, x0), (y1, x1) = low.tolist(), (torch.tensor([h, w]) - high).tolist()
        # only two corners: the box is of all that is True, filled or not
        mask[y0, x1 - 1] = mask[y1 - 1, x0] = True
        box, size = torch.tensor([x0, y0, x1, y1]), torch.tensor([w, h, w, h])
        _one_box(function, mask, box, size)
    _one_box(function, torch.ones(4, 6, dtype=torch.bool), torch.tensor([0, 0, 6, 4]), torch.tensor([6, 4, 6, 4]))
    passed("box_of: from the first pixel to the end of the last, in parts of the picture")


def _one_box(function, mask: Tensor, box: Tensor, size: Tensor):
    got = attempt(function, mask, name="box_of")
    right, end = box / size, torch.tensor([0, 0, 1, 1])
    swap = [1, 0, 3, 2]
    compare(got, right, f"box_of(mask of {tuple(mask.shape)})", shapes={
        (2, 2): "four numbers in a row: (4,)."}, mistakes=[
        ((box - end) / size, "x1 and y1 are where the last pixel *ends*: its number + 1."),
        (box, "in parts of the sides: x by the width, y by the height."),
        (box - end, "x1 and y1 are where the last pixel ends; and then in parts of the sides."),
        (right[swap], "x comes first: x0, y0, x1, y1. Columns of the mask are x."),
        (box[swap] / size, "columns are x, rows are y: they have changed places."),
        (box / size[swap], "x is a part of the width W, y of the height H."),
        (torch.cat([box[:2], box[2:] - box[:2]]) / size, "x1 and y1 are the other corner, not width and height."),
        (torch.cat([(box[:2] + box[2:]) / 2, box[2:] - box[:2]]) / size, "two corners, not middle and size."),
        (box / (size - 1), "a row of W pixels is W wide, not W - 1."),
        ((box - end) / (size - 1), "pixels have a width: x1 is the number of the last one + 1, in parts of W."),
    ])


def obedience(function):
    """`function(said, found)`: lists of (noun, colour or None) -> shares of nouns and coloured nouns."""
    source = generator()
    nouns = [f"thing{i}" for i in torch.randint(1000, (1,), generator=source).add(torch.arange(3)).tolist()]
    (a, b, c), (red, blue) = nouns, ("red", "blue")
    cases = [([(a, red), (b, blue)], [(a, red), (b, blue)], (1, 1)),
             ([(a, red), (b, blue)], [(a, blue), (b, red)], (1, 0)),           # the swap
             ([(a, red), (b, blue)], [(b, blue)], (0.5, 0.5)),
             ([(a, red), (b, None)], [(a, red), (b, red)], (1, 1)),            # no colour said, none wrong
             ([(a, None), (b, None)], [(a, red), (c, blue)], (0.5, 1)),
             ([(a, red), (a, red), (b, None)], [(a, red), (b, red)], (2 / 3, 0.5)),  # two are said, one is there
             ([(a, red)], [(a, blue), (a, red), (a, red), (c, red)], (1, 1)),  # more than was asked
             ([(a, red), (a, blue)], [(a, blue), (a, red)], (1, 1)),           # in another order
             ([(a, red), (b, red), (c, None)], [], (0, 0)), ([], [(a, red)], (1, 1))]
    for said, found, right in cases:
        at = f"obedience({said}, {found})"
        got = several(attempt(function, said, found, name="obedience"), at, "two numbers: of nouns, of colours")
        got = torch.stack([number(v, f"{at}, the {which}") for v, which in zip(got, ("first", "second"))])
        seen, paint = {noun for noun, _ in found}, {color for _, color in found}
        coloured = [pair for pair in said if pair[1]]
        n, k = max(len(said), 1), max(len(coloured), 1)
        loose = sum(noun in seen for noun, _ in said) / n, sum(pair in found for pair in coloured) / k
        free = sum((Counter(c for _, c in coloured) & Counter(c for _, c in found)).values()) / k
        by_all = sum((Counter(coloured) & Counter(found)).values()) / n
        pair = lambda *values: torch.tensor(values, dtype=torch.float64)
        unsaid = [(pair(right[0], 0), "where no colour is said, none is wrong: 1.")] * (not coloured)
        compare(got, pair(*right), at, mistakes=[
            *unsaid,
            (pair(*right[::-1]), "first the share of the nouns, then that of the colours."),
            (pair(*loose), "each found thing counts once: two apples are said, one is there, so one of two."),
            (pair(right[0], loose[1]), "each found thing counts once, with its colour too."),
            (pair(loose[0], right[1]), "each found thing counts once: two are said, one is there, so one of two."),
            (pair(right[0], free), "the right colour on the wrong thing is wrong: count pairs of noun and colour."),
            (pair(right[0], by_all), "of the things whose colour is *said*: a thing without one claims nothing."),
            (pair(right[0], sum(color in paint for _, color in coloured) / k), "the colour must be on *its* noun."),
            (pair(sum((Counter(said) & Counter(found)).values()) / n, right[1]), "the first share is of nouns, in "
             "whatever colour."),
            (pair(right[0] * len(said) / max(len(found), 1), right[1]), "divide by what was *said*, not by what was "
             "found."),
        ])
    passed("obedience: the right things, and each in its own colour")
