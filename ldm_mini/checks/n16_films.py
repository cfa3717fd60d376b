"""Checks of notebook 16: what a film tells, what its tokens cost, noise in common, and a first frame that is known."""

import torch
from torch import Tensor

from .checking import CheckFailed, attempt, compare, count, passed
from .properties import fresh, fresh_whole, generator, learn, same_dtype, same_gradient

MOVED = 0.15
WAYS = ("left", "right", "up", "down", "still")


def motion_told(function):
    """`function(boxes)`: (F,4) xyxy in [0,1], of one thing -> "left", "right", "up", "down" or "still"."""
    films = _films_of_boxes()
    told = []
    for boxes in films:
        told.append(attempt(function, boxes, name="motion_told"))
        if told[-1] not in WAYS:
            raise CheckFailed(f"motion_told should return one of {', '.join(WAYS)}; got {told[-1]!r}.")
    right = [_told(boxes) for boxes in films]
    if told == right:
        return passed("motion_told: from the first frame to the last")
    for how, message in TOLD_MISTAKES.items():
        if told == [_told(boxes, how) for boxes in films]:
            raise CheckFailed(f"motion_told: {message}")
    k = next(i for i, (a, b) in enumerate(zip(told, right)) if a != b)
    raise CheckFailed(f"motion_told says {told[k]!r} of a thing whose centre goes by {_path(films[k])}; it is "
                      f"{right[k]!r}.")


TOLD_MISTAKES = {
    "upside down": "y grows *downwards*: a thing that goes up ends at a smaller y.",
    "backwards": "where it is at the end, minus where it was at the beginning.",
    "corner": "take the middle of the box: a thing that grows moves its corner.",
    "two frames": "the first frame and the *last*: a single step is too short to tell.",
    "never still": f"what goes less than {MOVED} of the picture in both directions stands still.",
    "x first": "the *longer* way counts: a thing may drift sideways while it falls.",
    "swapped": "x is the way to the left and right, y that up and down.",
    "no sign": "left and right, up and down differ by the sign.",
}


def _films_of_boxes() -> list[Tensor]:
    """Each motion four times, with drift, and with sizes that change on the way."""
    draw, films = generator(3), []
    some = lambda low, high: low + (high - low) * torch.rand((), generator=draw).item()
    for i in range(20):
        # long, against a drift that is long enough to be a motion; or both too short
        along, across = (some(.3, .4), some(.16, .25)) if i % 5 else (some(.05, .12), some(.05, .12))
        axis, sign = i % 2, 1 - i // 2 % 2 * 2
        way = torch.tensor([sign * along, across * (-1) ** (i // 4)])
        way = way.flip(0) if axis else way
        frames = 4 + i % 4
        steps = torch.rand(frames, generator=draw).cumsum(0)
        steps = (steps - steps[0]) / (steps[-1] - steps[0])
        # the first step goes back a little: only both ends tell
        steps[1] = -0.1
        centre = 0.5 + (steps[:, None] - 0.5) * way
        half = torch.linspace(some(.05, .1), some(.15, .25), frames)[:, None]
        films.append(torch.cat([centre - half, centre + half], 1))
    return films


def _path(boxes: Tensor) -> str:
    x, y = ((boxes[-1, i] + boxes[-1, i + 2] - boxes[0, i] - boxes[0, i + 2]) / 2 for i in (0, 1))
    return f"{x:+.2f} in x and {y:+.2f} in y"


def _told(boxes: Tensor, how: str = "") -> str:
    """The motion with one thing changed."""
    place = boxes[:, :2] if how == "corner" else (boxes[:, :2] + boxes[:, 2:]) / 2
    x, y = (place[1 if how == "two frames" else -1] - place[0]).tolist()
    x, y = {"backwards": (-x, -y), "upside down": (x, -y), "swapped": (y, x), "no sign": (abs(x), abs(y))}.get(
        how, (x, y))
    if max(abs(x), abs(y)) < MOVED and how != "never still":
        return "still"
    if abs(x) >= (MOVED if how == "x first" else abs(y)):
        return "right" if x > 0 else "left"
    return "down" if y > 0 else "up"


def film_flops(function):
    """`function(frames, places, width, way)` -> FLOPs of attention in a film, an int; way: "alone", "both", "full"."""
    some = fresh_whole()
    layer = lambda n, d: 2 * (4 * n * d * d + 2 * n * n * d)
    for _ in range(2):
        f, n, d = some(3, 20), some(21, 90), 8 * some(2, 60)
        alone, time, full = f * layer(n, d), n * layer(f, d), layer(f * n, d)
        halves = lambda of: {of // 2: "a multiplication and its addition count as two FLOPs."}
        wrong = {
            "alone": {f * f * layer(n, d): "each frame by itself: F layers of N tokens.",
                      full: "no token reads another frame: F layers of N tokens, not one of F N.",
                      layer(n, d): "this is one frame: times F.",
                      f * 2 * 4 * n * d * d: "the two products with the N x N table are missing: N^2 D each.",
                      f * 2 * (3 * n * d * d + 2 * n * n * d): "four projections: q, k, v and the output.",
                      f * 2 * (4 * n * d * d + n * n * d): "*two* products with the table: q k^T, and weights v."},
            "both": {alone: "the layer over time is missing: N rows of F tokens.", time: "the layer over space is "
                     "missing: F rows of N tokens.", alone + layer(f, d): "over time there is a row of F tokens for "
                     "*each place*: times N.", 2 * alone: "over time the rows are F long, and there are N of them."},
            "full": {layer(n, d) * f: "all tokens of all frames are *one* row of F N: the table is (F N)^2.",
                     f * f * layer(n, d): "the projections grow with F only, the table with F^2.",
                     alone + time: "this is the factorised way; here each token reads all others."},
        }
        for way, right in (("alone", alone), ("both", alone + time), ("full", full)):
            got = attempt(function, f, n, d, way, name="film_flops")
            count(got, right, f"film_flops({f}, {n}, {d}, {way!r})", halves(right) | wrong[way])
    passed("film_flops: frames alone, space and time in turn, all at once")


def film_tokens(function):
    """`function(frames, side, f_t, f, p)` -> tokens of a film of square frames, an int."""
    some = fresh_whole()
    for _ in range(3):
        # such that no two mistakes make the same number
        f_t, f, p, places, times = 1 + 2 * some(1, 3), some(6, 10), 2 * some(1, 3), some(6, 12), some(5, 8)
        frames, side = times * f_t, places * f * p
        count(attempt(function, frames, side, f_t, f, p, name="film_tokens"), times * places**2,
              f"film_tokens({frames}, {side}, {f_t}, {f}, {p})", {
            frames * places**2: "the first stage makes time shorter, too: frames / f_t.",
            times * (places * p) ** 2: "a token is a square of p x p latent pixels.",
            times * (places * f) ** 2: "the first stage makes each side f times shorter.",
            times * side**2 // (f * p): "both sides are f and p times shorter: a square of it.",
            times * places: "height and width: (side / (f p)) squared.",
            frames // f_t**2 * places**2: "time has one axis: f_t counts once.",
        })
    passed("film_tokens: time counts once, space twice")


def shared_noise(function):
    """`function(own, common, share)`: own (B,C,F,h,w), common (B,C,1,h,w) -> noise of variance 1, like own."""
    draw, source = fresh(), generator(4)
    for shape in ((2, 3, 4, 5, 6), (1, 2, 3, 2, 2)):
        own, common = draw(*shape), draw(*shape[:2], 1, *shape[3:])
        share = 0.15 + 0.25 * torch.rand((), generator=source).item()
        what, s = f"shared_noise(own, common, {share:.2f})", share
        compare(attempt(function, own, common, share, name="shared_noise"), s**.5 * common + (1 - s)**.5 * own, what,
                mistakes=[
            (s * common + (1 - s) * own, "parts of the *variance* add up to 1: the factors are their roots."),
            ((1 - s)**.5 * common + s**.5 * own, "`share` is the part that all frames have in common."),
            ((1 - s) * common + s * own, "`share` is the common part, and its factor a root."),
            (s**.5 * common + own, "the frames' own noise gets less room: the variance must stay 1."),
            (common + own, "neither is scaled: this has variance 2."),
            (s * common + (1 - s**2)**.5 * own, "`share` is a part of the variance: its root is the factor."),
            (own, "nothing is in common: add the common noise."),
            (common.expand_as(own), "all is in common: each frame has noise of its own, too."),
            (s**.5 * own[:, :, :1] + (1 - s)**.5 * own, "the common noise is drawn for itself; frame 0's own would "
                                                       "make frame 0 louder than the others."),
        ], shapes={(*shape[:2], 1, *shape[3:]): "one frame only: give noise for each."})
        same_dtype(function(own, common, share), own, what)
    passed("shared_noise: in common as much as asked, and still of variance 1")


def first_frame(function):
    """`function(first, known, frames)`: first (B,C,h,w), known (B,) bool -> (B,C+1,F,h,w), a condition to join."""
    draw, source = fresh(), generator(6)
    for size, c, f, h, w in ((4, 3, 5, 4, 6), (3, 2, 4, 3, 2)):
        first, known = draw(size, c, h, w), torch.rand(size, generator=source) < .5
        known[0], known[1] = True, False
        what = f"first_frame(first {tuple(first.shape)}, known, {f})"
        got, right = attempt(function, first, known, f, name="first_frame"), _first(first, known, f)
        compare(got, right, what, mistakes=((_first(first, known, f, how), hint) for how, hint in FIRST.items()),
                shapes={(size, c, f, h, w): "one channel more says where a frame is known: C + 1.",
                        (size, f, c + 1, h, w): "channels come before frames: (B, C+1, F, h, w)."})
        same_dtype(got, first, what)
        leaf, = learn(first)
        same_gradient(function(leaf, known, f), _first(leaf, known, f), {"first": leaf}, what)
    passed("first_frame: there where it is known, and a channel that says so")


FIRST = {
    "no mask": "the last channel says where a frame is known: 1 in frame 0 of these films.",
    "mask everywhere": "the mask is 1 in frame 0 alone, where something is known.",
    "everywhere": "the frame stands at its own time, frame 0; all others are 0.",
    "always": "films whose first frame is not known get zeros, in every channel.",
    "mask always": "the mask, too, is 0 where nothing is known.",
    "never hidden": "films whose first frame is not known must not see it: zeros there.",
    "last": "the known frame is the first: index 0.",
    "mask first": "the mask is the *last* channel.",
    "upside down": "1 = known.",
}


def _first(first: Tensor, known: Tensor, frames: int, how: str = "") -> Tensor:
    """The maps with one thing changed."""
    size, c, h, w = first.shape
    is_known = known.to(first).view(-1, 1, 1, 1)
    there = first if how in ("always", "never hidden") else first * is_known
    told = torch.ones_like(is_known) if how in ("always", "mask always") else is_known
    told = {"no mask": 0 * told, "upside down": 1 - told}.get(how, told).expand(size, 1, h, w)
    parts = [told, there] if how == "mask first" else [there, told]
    here, empty = torch.cat(parts, 1)[:, :, None], first.new_zeros(size, c + 1, frames - 1, h, w)
    maps = torch.cat([empty, here] if how == "last" else [here, empty], 2)
    if how in ("everywhere", "mask everywhere"):
        which = slice(0, c) if how == "everywhere" else slice(c, c + 1)
        rows = torch.zeros(c + 1, dtype=torch.bool)
        rows[which] = True
        maps = torch.where(rows.view(1, -1, 1, 1, 1), maps[:, :, :1], maps)
    return maps
