"""The checks of notebook 01 that look at places, boxes and claims: wrong ones fail with a hint, right ones pass."""

from collections import Counter
from functools import partial

import torch
from solutions import spoiled, try_all

from ldm_mini import checks


def place(canvas, sprite, alpha, top, left, mix=lambda s, a, c: a * s + (1 - a) * c, at=lambda t, l, h, w: (t, l),
          end=lambda out, window: out, copy=torch.clone):
    out, (h, w) = copy(canvas), alpha.shape[1:]
    y, x = at(top, left, h, w)
    window = (slice(None), slice(y, y + h), slice(x, x + w))
    out[window] = mix(sprite, alpha, out[window])
    return end(out, window)


def place_by_padding(canvas, sprite, alpha, top, left):
    (high, wide), (h, w) = canvas.shape[1:], alpha.shape[1:]
    around = (left, wide - left - w, top, high - top - h)
    sprite, alpha = (torch.nn.functional.pad(v, around) for v in (sprite, alpha))
    return torch.lerp(canvas, sprite, alpha)


def box(mask, one=1, by=lambda h, w: (w, h, w, h), end=lambda x0, y0, x1, y1: (x0, y0, x1, y1)):
    rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
    corners = end(columns.min(), rows.min(), columns.max() + one, rows.max() + one)
    return torch.stack([side / whole for side, whole in zip(corners, by(*mask.shape))])


def box_of_places(mask):
    y, x = torch.where(mask)
    return [x.min().item() / mask.shape[1], y.min().item() / mask.shape[0], (x.max().item() + 1) / mask.shape[1],
            (y.max().item() + 1) / mask.shape[0]]


def obeys(said, found, share=lambda said, found: (said & found).total() / said.total() if said else 1.0,
          coloured=lambda pair: pair[1], of=lambda pair: pair, things=lambda pair: pair[0], end=lambda a, b: (a, b)):
    nouns = [Counter(map(things, side)) for side in (said, found)]
    return end(share(*nouns), share(*[Counter(of(pair) for pair in side if coloured(pair)) for side in (said, found)]))


def obeys_by_crossing_off(said, found):
    shares = []
    for wanted, there in (([n for n, _ in said], [n for n, _ in found]), ([p for p in said if p[1]], list(found))):
        hits = 0
        for one in wanted:
            if one in there:
                there.remove(one)
                hits += 1
        shares.append(torch.tensor(hits / len(wanted) if wanted else 1.0))
    return shares


def in_sets(said, found):
    nouns, pairs = {n for n, _ in found}, [p for p in said if p[1]]
    first = sum(n in nouns for n, _ in said) / len(said) if said else 1.0
    return first, sum(p in found for p in pairs) / len(pairs) if pairs else 1.0


CORRECT = {
    checks.place: [place, place_by_padding, partial(place, mix=lambda s, a, c: torch.lerp(c, s, a)),
                   partial(place, mix=lambda s, a, c: c + a * (s - c))],
    checks.box_of: [box, lambda mask: torch.tensor(box_of_places(mask))],
    checks.obedience: [obeys, obeys_by_crossing_off, partial(obeys, end=lambda a, b: [a, b])],
}

MUTANTS = {
    checks.place: [
        *spoiled(place, (dict(mix=lambda s, a, c: s), "no part"),
                        (dict(mix=lambda s, a, c: a * c + (1 - a) * s), "changed"),
                 (dict(mix=lambda s, a, c: c), "nothing was placed"),
                 (dict(at=lambda t, l, h, w: (0, 0)), "in the corner"),
                 (dict(at=lambda t, l, h, w: (l, t)), "raised|changed places"), (dict(copy=lambda c: c), "in place"),
                 (dict(at=lambda t, l, h, w: (t - h // 2, l - w // 2)), "raised|not its middle"),
                 (dict(end=lambda out, window: out[window]), "window alone"),
                 (dict(end=lambda out, window: out.double()), "dtype"), (dict(mix=lambda s, a, c: a * s), "off by"),
                 (dict(mix=lambda s, a, c: torch.where(a > 0.5, s, c)), "off by"))],
    checks.box_of: [
        *spoiled(box, (dict(one=0), "ends"), (dict(by=lambda h, w: (1, 1, 1, 1)), "parts of the sides"),
                 (dict(by=lambda h, w: (h, w, h, w)), "part of the width"),
                 (dict(end=lambda x0, y0, x1, y1: (y0, x0, y1, x1)), "columns are x"),
                 (dict(end=lambda x0, y0, x1, y1: (x0, y0, x1 - x0, y1 - y0)), "other corner"),
                 (dict(by=lambda h, w: (w - 1, h - 1, w - 1, h - 1)), "not W - 1"),
                 (dict(one=0, by=lambda h, w: (1, 1, 1, 1)), "and then"),
                 (dict(one=0, by=lambda h, w: (w - 1, h - 1, w - 1, h - 1)), "have a width")),
        (lambda mask: box(mask)[[1, 0, 3, 2]], "x comes first"), (lambda mask: box(mask).view(2, 2), "in a row"),
        (lambda mask: (v := box(mask), torch.cat([(v[:2] + v[2:]) / 2, v[2:] - v[:2]]))[1], "middle and size"),
        (box_of_places, "torch.Tensor, not list"),
        (lambda mask: box(mask)[:3], "shape"),
    ],
    checks.obedience: [
        *spoiled(obeys, (dict(end=lambda a, b: (b, a)), "first the share of the nouns"),
                        (dict(end=lambda a, b: a), "two"),
                 (dict(of=lambda pair: pair[1]), "wrong thing|on .its. noun"),
                 (dict(coloured=lambda pair: True), "claims"),
                 (dict(things=lambda pair: pair), "of nouns"), (dict(end=lambda a, b: (a, a)), "off by|wrong thing"),
                 (dict(share=lambda s, f: (s & f).total() / max(s.total(), 1)), "none is wrong"),
                 (dict(share=lambda s, f: (s & f).total() / s.total()), "ZeroDivisionError")),
        (in_sets, "counts once"), (lambda said, found: (obeys(said, found)[0], in_sets(said, found)[1]), "counts once"),
        (lambda said, found: (in_sets(said, found)[0], obeys(said, found)[1]), "counts once"),
        (lambda said, found: (float(said == found),) * 2, "whatever colour"),
    ],
}

test_right_solutions_pass, test_wrong_ones_fail_with_a_hint, test_the_stub_is_named = try_all(CORRECT, MUTANTS)
