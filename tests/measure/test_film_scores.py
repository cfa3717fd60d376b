"""What a film shows: motions by hand and by brute force; real films near 1, luck far below."""

import math
from dataclasses import replace

import pytest
import torch

from ldm_mini.cond import together
from ldm_mini.measure.films import (
    GREW,
    MOVED,
    evaluate_films,
    flicker,
    motion_between,
    motion_score,
    read_films,
    score_films,
    shuffled,
)
from ldm_mini.measure.recogniser import Recogniser
from ldm_mini.scenes import vocabulary as v
from ldm_mini.scenes.films import FILM_SCENES, MOTIONS, FilmConfig, film_batches, parse_film

CONFIG = FilmConfig(replace(FILM_SCENES, split="val"), frames=6)


def truth(batch):
    """A batch of films as the recogniser would say it, if it never erred."""
    return [[{"objects": [{"noun": n, "color": c, "nearest_color": c, "score": 1.0, "box": tuple(box),
                           "centre": ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)}
                          for n, c, box in zip(labels, colors, boxes) if n >= 0], "background": b, "style": s}
             for boxes in film.tolist()]
            for labels, colors, film, b, s in zip(batch["labels"].tolist(), batch["colors"].tolist(), batch["boxes"],
                                                  batch["background"].tolist(), batch["style"].tolist())]


@pytest.fixture(scope="module")
def batch():
    return together(list(film_batches(CONFIG, 40)))


def frame(*things):
    """(x, y, side) of dogs, as fractions."""
    return {"objects": [{"noun": v.NOUN_INDEX["dog"], "color": -1, "nearest_color": 0, "centre": (x, y),
                         "box": (x - s / 2, y - s / 2, x + s / 2, y + s / 2)} for x, y, s in things],
            "background": 0, "style": 0}


@pytest.mark.parametrize("before, after, motion", [
    ((.2, .5, .3), (.6, .55, .3), "right"), ((.6, .5, .3), (.2, .5, .3), "left"), ((.5, .7, .3), (.52, .3, .3), "up"),
    ((.5, .3, .3), (.5, .7, .3), "down"), ((.5, .5, .2), (.55, .5, .5), "grows"),
    ((.5, .5, .5), (.5, .5, .2), "shrinks"),
    ((.5, .5, .3), (.55, .52, .33), "still")])
def test_motions_of_one_thing(before, after, motion):
    dog = parse_film("a dog")[0]
    assert motion_between(dog, frame(before), frame(after)) == motion
    assert motion_between(dog, frame(before), frame()) is motion_between(dog, frame(), frame(after)) is None


def test_motions_of_two_things_do_not_ask_which_is_which():
    dogs, far, near = parse_film("two dogs")[0], [(.2, .5, .2), (.8, .5, .2)], [(.35, .5, .2), (.65, .5, .2)]
    assert motion_between(dogs, frame(*far), frame(*near[::-1])) == "together"
    assert motion_between(dogs, frame(*near), frame(*far[::-1])) == "apart"
    assert motion_between(dogs, frame(*far), frame(*far[::-1])) == "still"
    assert motion_between(dogs, frame(*far), frame(*near[:1])) is None


def test_true_films_are_right_in_every_claim(batch):
    scores = score_films(truth(batch), batch["caption"])
    assert scores["motion"] == scores["motion_score"] == scores["things"] == scores["steady"] == scores["exact"] == 1
    assert scores["color_accuracy"] == scores["background_accuracy"] == 1


def test_the_motion_score_is_what_counting_steps_by_hand_gives(batch):
    films = truth({**batch, "boxes": batch["boxes"] + 0.03 * torch.randn(batch["boxes"].shape,
                                                                         generator=torch.Generator().manual_seed(0))})

    def step(motion, a, b):
        """By brute force, of true boxes: whether every condition on this motion holds."""
        n = CONFIG.frames - 1
        centre = [[((x0 + x1) / 2, (y0 + y1) / 2) for x0, y0, x1, y1 in boxes] for boxes in (a, b)]
        if len(a) == 2:
            nearer = math.dist(*centre[0]) - math.dist(*centre[1])
            return {"still": abs(nearer) < MOVED / n, "together": nearer >= MOVED / n,
                    "apart": nearer <= -MOVED / n}[motion]
        dx, dy = (q - p for p, q in zip(centre[0][0], centre[1][0]))
        sides = [max(box[2] - box[0], box[3] - box[1]) for box in (a[0], b[0])]
        big = sides[1] / sides[0] >= GREW ** (1 / n), sides[0] / sides[1] >= GREW ** (1 / n)
        far = max(abs(dx), abs(dy))
        if any(big) and far < 2 * MOVED / n:
            return motion == ("grows" if big[0] else "shrinks")
        if motion == "still" or far < MOVED / n:
            return motion == "still" and far < MOVED / n
        along, across = {"right": (dx, dy), "left": (-dx, dy), "down": (dy, dx), "up": (-dy, dx)}.get(motion, (-1, 0))
        return along > abs(across)

    scores = []
    for film, caption in zip(films, batch["caption"]):
        said, motion = parse_film(caption)
        boxes = [[o["box"] for o in frame["objects"]] for frame in film]
        by_hand = sum(step(motion, a, b) for a, b in zip(boxes, boxes[1:])) / (CONFIG.frames - 1)
        scores.append(motion_score(said, film, motion))
        assert scores[-1] == by_hand, caption
    assert 0.2 < sum(scores) / len(scores) < 0.95, "noise must have spoiled some steps, not all"


@pytest.fixture(scope="module")
def recogniser():
    return Recogniser.load()


def test_real_films_are_the_ceiling_and_luck_is_far_below(batch, recogniser):
    seen = read_films(recogniser, batch["video"])
    real = score_films(seen, batch["caption"])
    assert real["things"] > 0.9 and real["motion"] > 0.9 and real["motion_score"] > 0.85 and real["exact"] > 0.8
    # the same frames in another order: all is there but the motion
    mixed = score_films(read_films(recogniser, shuffled(batch["video"])), batch["caption"])
    assert mixed["things"] == pytest.approx(real["things"], abs=1e-6)
    moves = [i for i, caption in enumerate(batch["caption"]) if parse_film(caption)[1] != "still"]
    mixed = score_films(truth(batch | {"boxes": shuffled(batch["boxes"].permute(0, 3, 1, 2)[..., None])
                                       .squeeze(-1).permute(0, 2, 3, 1)}), batch["caption"])
    assert mixed["motion"] < 1 and mixed["motion_score"] < 0.7 and len(moves) > 20
    # the captions of other films
    others = score_films(seen, batch["caption"][1:] + batch["caption"][:1])
    assert others["exact"] < 0.05 and others["things"] < 0.2 and others["motion"] < 0.2


def test_shuffled_keeps_every_frame():
    videos = torch.arange(2 * 5.).view(2, 1, 5, 1, 1).expand(2, 3, 5, 4, 4)
    mixed = shuffled(videos)
    assert mixed.shape == videos.shape and torch.equal(mixed.sort(dim=2).values, videos)
    assert not torch.equal(mixed, videos)


def test_flicker_is_the_change_behind_the_things(batch):
    seen = truth(batch)
    assert flicker(batch["video"], seen) < 1e-3
    brighter = torch.tensor([0.0, 0.1] * 3).view(1, 1, 6, 1, 1)
    assert flicker(batch["video"] + brighter, seen) == pytest.approx(0.1, abs=1e-3)
    # by hand: one film, one pixel that nothing stands on
    dark = torch.zeros(1, 3, 2, 8, 8)
    dark[0, :, 1, 7, 7] = 1.0
    corner = [[frame((.1, .1, .2)), frame((.1, .1, .2))]]
    # the box and its margin reach to .3: two rows and columns of eight have their middles in it
    assert flicker(dark, corner) == pytest.approx(1 / (64 - 4))


def test_evaluate_films_gives_ceiling_and_floors(recogniser):
    class Copies:
        """A model that remembers every film."""

        device, films = torch.device("cpu"), list(film_batches(CONFIG, 8))

        def sample(self, batch, steps, generator, **options):
            return next(b["video"] for b in self.films if b["caption"] == batch["caption"])

        encode = decode = staticmethod(lambda x: x)

    report = evaluate_films(Copies(), CONFIG, 8, recogniser=recogniser)
    assert report["model"] == report["real"] == report["decoded"]
    assert report["others"]["exact"] < report["real"]["exact"]
    assert report["shuffled"]["motion_score"] < report["real"]["motion_score"]
    assert set(MOTIONS) >= {parse_film(c)[1] for b in Copies.films for c in b["caption"]}
