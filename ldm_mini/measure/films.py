"""Does a film show what was asked for? The recogniser reads it frame by frame; captions say what it should find.

Read every score beside two others: of real films (the ceiling: what the recogniser misses is not the model's fault),
and of frames in another order, or of captions that belong to other films (the floor: what luck finds).
"""

import math
from collections import defaultdict

import torch
from torch import Tensor

from ..scenes.captions import Description
from ..scenes.films import BESIDE, OPPOSITE, FilmConfig, film_batches, parse_film
from ..scenes.vocabulary import BACKGROUNDS, COLORS, NOUNS, STYLES
from .recogniser import Recogniser
from .scoring import CLAIMS, agreement

MOVED = 0.15                    # of the picture, at least: less is standing still; true paths are .2 or more
GREW = 1.35                     # times as large, at least; true things become 1.6 times as large or more
SIDES = ("left", "right")       # where a thing enters, leaves or turns to
MARGIN = 0.1                    # of the picture around a box: its shadow, and the recogniser's error


def read_films(recogniser: Recogniser, videos: Tensor) -> list[list[dict]]:
    """What each frame of videos (B,3,T,H,W) in [-1,1] shows: B lists of T of what `Recogniser.detect` says."""
    frames = recogniser.detect(videos.transpose(1, 2).flatten(0, 1))
    count = videos.shape[2]
    return [frames[i * count:(i + 1) * count] for i in range(len(videos))]


def score_films(films: list[list[dict]], captions: list[str]) -> dict:
    """Films as `read_films` says them against the claims of captions. Means over films of

    things, color_accuracy, background_accuracy: shares of frames, with exactly these things, and so on;
    steady: share of neighbouring frames in which the same things of the same colours are seen;
    motion: whether the film tells the caption's motion, mostly by its first and last frame (`motion_of`); motion_score:
    share of steps from frame to frame that do; exact: every claim holds in every frame, and the motion. Each only of
    captions that claim it. What enters or leaves is asked for where it must be whole, in a third of the film.
    """
    tally = defaultdict(list)
    for whole, caption in zip(films, captions, strict=True):
        said, motion = parse_film(caption)
        frames = [whole[k] for k in _asked(motion, len(whole))]
        claims = [_claims(said, frame) for frame in frames]
        tally["things"].append(_mean([c["objects"] and c["count"] for c in claims]))
        for name in ("colors", "background"):
            if name in claims[0]:
                tally[CLAIMS[name]].append(_mean([c[name] for c in claims]))
        if len(frames) > 1:
            names = [sorted((o["noun"], o["color"]) for o in frame["objects"]) for frame in frames]
            tally["steady"].append(_mean([a == b for a, b in zip(names, names[1:])]))
        right = True
        if motion is not None and len(whole) > 1:
            right = motion_of(said, whole) == motion
            tally["motion"].append(right)
            if len(frames) > 1:
                tally["motion_score"].append(motion_score(said, whole, motion))
        tally["exact"].append(right and all(all(c.values()) for c in claims))
    return {name: _mean(values) for name, values in tally.items()}


def motion_of(said: Description, frames: list[dict]) -> str | None:
    """The motion that a film of two or more frames tells, a key of scenes.films.PHRASES; None if it tells none.

    By the first and the last frame; but what is not there at first enters, what is not there at last leaves, and what
    comes back from the middle of the film turns round. "Beside" a thing must be where the other ends.
    """
    seen = [_things(said, frame) for frame in frames]
    there = [k for k, things in enumerate(seen) if None not in things]
    if len(said.objects) == 1 and len(there) > 1 and (there[0] > 0) != (there[-1] < len(frames) - 1):
        way = motion_between(said, frames[there[0]], frames[there[-1]], (there[-1] - there[0]) / (len(frames) - 1))
        if way not in SIDES:
            return None
        return f"leaves {way}" if there[0] == 0 else f"enters {OPPOSITE[way]}"
    motion = motion_between(said, frames[0], frames[-1])
    if motion == "still" and len(said.objects) == 1:
        middle = frames[len(frames) // 2]
        out, back = motion_between(said, frames[0], middle), motion_between(said, middle, frames[-1])
        return f"turns {out}" if out in SIDES and OPPOSITE[out] == back else motion
    if motion in BESIDE:
        first, second = (thing["centre"] for thing in seen[-1])
        x, y = second[0] - first[0], second[1] - first[1]
        return motion if abs(x) > abs(y) and (x > 0) == (motion == "left of") else None
    return motion


def motion_score(said: Description, frames: list[dict], motion: str) -> float:
    """Share of the steps from a frame to the next that tell this motion, each by its part of what the film needs."""
    last, (how, _, side) = len(frames) - 1, motion.partition(" ")
    wanted = {"enters": OPPOSITE.get(side), "leaves": side, "turns": side}.get(how, motion)
    steps = []
    for k in _asked(motion, len(frames))[:-1]:
        if how == "turns" and 2 * k < last < 2 * (k + 1):       # it turns between these two
            continue
        way = OPPOSITE[wanted] if how == "turns" and 2 * k >= last else wanted
        steps.append(motion_between(said, frames[k], frames[k + 1], 1 / last) == way)
    return _mean(steps)


def _asked(motion: str | None, frames: int) -> range:
    """The frames in which all things that are told must be seen, whole."""
    how = (motion or "").partition(" ")[0]
    return range(-(-2 * (frames - 1) // 3) if how == "enters" else 0, (frames + 2) // 3 if how == "leaves" else frames)


def motion_between(said: Description, before: dict, after: dict, part: float = 1.0) -> str | None:
    """The motion that leads from one frame to another, a key of scenes.films.PHRASES; None if a thing is missing.

    part: how much of the film lies between them; so much of MOVED and of GREW is needed.
    """
    a, b = _things(said, before), _things(said, after)
    if None in (*a, *b) or len(a) not in (1, 2):
        return None
    if len(a) == 2:
        first, second = (math.dist(p["centre"], q["centre"]) for p, q in zip(a, b))
        if len(set(said.objects)) == 2 and first >= MOVED * part and second < MOVED / 2 * part:
            return "left of" if b[0]["centre"][0] < a[0]["centre"][0] else "right of"
        # else it matters how far they are from each other, not which is which
        nearer = math.dist(a[0]["centre"], a[1]["centre"]) - math.dist(b[0]["centre"], b[1]["centre"])
        return "still" if abs(nearer) < MOVED * part else "together" if nearer > 0 else "apart"
    (x0, y0), (x1, y1) = a[0]["centre"], b[0]["centre"]
    growth = math.log(max(_side(b[0]["box"]), 1e-6) / max(_side(a[0]["box"]), 1e-6))
    if abs(growth) >= math.log(GREW) * part:
        # a thing that grows may also wander; what it does more of, counts
        if max(abs(x1 - x0), abs(y1 - y0)) < 2 * MOVED * part:
            return "grows" if growth > 0 else "shrinks"
    if max(abs(x1 - x0), abs(y1 - y0)) < MOVED * part:
        return "still"
    if abs(x1 - x0) >= abs(y1 - y0):
        return "right" if x1 > x0 else "left"
    return "down" if y1 > y0 else "up"


def _things(said: Description, frame: dict) -> list:
    """For each thing of a caption the surest one found of its noun, of its colour if there is; None where none is."""
    left, found = list(frame["objects"]), []
    for noun, color in said.objects:
        named = [o for o in left if NOUNS[o["noun"]] == noun]
        best = next((o for o in named if color in (None, COLORS[o["nearest_color"]])), named[0] if named else None)
        found.append(best)
        left = [o for o in left if o is not best]
    return found


def _claims(said: Description, frame: dict) -> dict:
    objects = [(NOUNS[o["noun"]], COLORS[o["nearest_color"]], o["centre"], _side(o["box"])) for o in frame["objects"]]
    return agreement(said, objects, BACKGROUNDS[frame["background"]], STYLES[frame["style"]])


def flicker(videos: Tensor, films: list[list[dict]]) -> float:
    """How much the background changes from frame to frame: mean |difference| of neighbouring pixels (0 to 2), outside
    of every box found in either frame and a margin around it. videos (B,3,T,H,W), films as `read_films` says them."""
    height, width = videos.shape[-2:]
    rows, columns = ((torch.arange(side, device=videos.device) + 0.5) / side for side in (height, width))
    changes = []
    for video, frames in zip(videos, films, strict=True):
        free = torch.ones(len(frames), height, width, dtype=torch.bool, device=videos.device)
        for k, frame in enumerate(frames):
            for x0, y0, x1, y1 in (o["box"] for o in frame["objects"]):
                inside = (((rows > y0 - MARGIN) & (rows < y1 + MARGIN))[:, None]
                          & ((columns > x0 - MARGIN) & (columns < x1 + MARGIN)))
                free[k] &= ~inside
        both = free[1:] & free[:-1]                                                             # (T-1,H,W)
        change = (video[:, 1:] - video[:, :-1]).abs().mean(0)
        if both.any():
            changes.append(change[both].mean().item())
    return _mean(changes) if changes else 0.0


def shuffled(videos: Tensor, seed: int = 0) -> Tensor:
    """The same frames, each film's in a random order: what is seen stays, the motion goes."""
    order = torch.rand(len(videos), videos.shape[2], generator=torch.Generator().manual_seed(seed)).argsort(dim=1)
    index = order.to(videos.device)[:, None, :, None, None].expand_as(videos)
    return videos.gather(2, index)


def evaluate_films(ldm, config: FilmConfig, n: int = 64, steps: int = 20, guidance_scale: float | None = None,
                   seed: int = 0, recogniser: Recogniser | None = None, first_frame: bool = False) -> dict:
    """n films for the captions of n films of `config`'s split, and what is seen in them.

    -> {"model", "real", "decoded", "shuffled", "others": what `score_films` and `flicker` say of the samples; of the
    true films (the ceiling), also after the first stage; of the samples' frames in another order, and of the samples
    for each other's captions (the floors)}. first_frame: give the model the first frame, too.
    """
    recogniser = (recogniser or Recogniser.load()).to(ldm.device)
    generator, rows, captions = torch.Generator().manual_seed(seed), defaultdict(list), []
    options = {} if guidance_scale is None else {"guidance_scale": guidance_scale}
    for batch in film_batches(config, n, seed * n):
        video = batch["video"].to(ldm.device)
        given = {"caption": batch["caption"], **({"first": video[:, :, 0]} if first_frame else {})}
        rows["model"].append(ldm.sample(given, steps=steps, generator=generator, **options).cpu())
        rows["real"].append(batch["video"])
        rows["decoded"].append(ldm.decode(ldm.encode(video)).clamp(-1, 1).cpu())
        captions += batch["caption"]
    rows = {name: torch.cat(parts) for name, parts in rows.items()} | {"shuffled": shuffled(torch.cat(rows["model"]))}
    seen = {name: read_films(recogniser, videos) for name, videos in rows.items()}
    scores = {name: {**score_films(seen[name], captions), "flicker": flicker(videos, seen[name])}
              for name, videos in rows.items()}
    return {**scores, "others": score_films(seen["model"], captions[1:] + captions[:1])}


def _side(box) -> float:
    x0, y0, x1, y1 = box
    return max(x1 - x0, y1 - y0)


def _mean(values) -> float:
    return sum(values) / len(values)
