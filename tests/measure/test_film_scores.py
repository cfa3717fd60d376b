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
    motion_of,
    motion_score,
    read_films,
    score_films,
    shuffled,
)
from ldm_mini.measure.recogniser import Recogniser
from ldm_mini.scenes import vocabulary as v
from ldm_mini.scenes.films import FILM_SCENES, MOTIONS, FilmConfig, film_batches, parse_film

CONFIG = FilmConfig(replace(FILM_SCENES, split="val"), frames=6)
SIDES = {"left": "right", "right": "left"}


def truth(batch):
    """A batch of films as the recogniser would say it, if it never erred."""
    return [[{"objects": [{"noun": n, "color": c, "nearest_color": c, "score": 1.0, "box": tuple(box),
                           "centre": ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)}
                          for n, c, box in zip(labels, colors, boxes) if n >= 0 and any(box)],
              "background": b, "style": s}
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


def test_beside_is_where_the_first_ends_and_the_second_stays():
    said = parse_film("a dog moves to the left of a cat")[0]

    def both(dog, cat):
        seen = frame(dog, cat)
        seen["objects"][1] |= {"noun": v.NOUN_INDEX["cat"]}
        return seen

    above, left, cat = (.7, .2, .2), (.3, .7, .2), (.7, .7, .2)
    told = [both(above, cat), both((.4, .4, .2), cat), both(left, cat)]
    assert motion_of(said, told) == motion_between(said, told[0], told[-1]) == "left of"
    assert motion_of(said, told[::-1]) is None, "it moves right, and does not end beside the cat"
    assert motion_of(said, [both(above, cat), both((.6, .3, .2), (.9, .3, .2))]) != "left of", "the cat moved, too"
    assert motion_of(said, [both(above, cat), frame(left)]) is None
    assert motion_of(said, [both((.1, .7, .2), cat), both((.4, .7, .2), cat)]) is None, "to the right, still left of it"


@pytest.mark.parametrize("places, motion", [
    ((None, .2, .4, .6), "enters left"), ((None, None, .8, .6), "enters right"), ((.4, .2, None, None), "leaves left"),
    ((.4, .6, .8, None), "leaves right"), ((.2, .6, .6, .2), "turns right"), ((.8, .4, .4, .75), "turns left"),
    ((.2, .25, .2, .2), "still"), ((.2, .4, .6, .8), "right"), ((None, .4, .4, .4), None), ((None, .2, .4, None), None),
    ((None, None, None, .4), None), ((None,) * 4, None), ((.2, .5, None, .2), "still")])
def test_what_enters_leaves_or_turns(places, motion):
    film = [frame() if x is None else frame((x, .5, .3)) for x in places]
    assert motion_of(parse_film("a dog")[0], film) == motion
    # upright there are no such motions: what comes from above tells none, what comes back stood still
    film = [frame() if x is None else frame((.5, x, .3)) for x in places]
    upright = {"right": "down", "still": "still", "turns left": "still", "turns right": "still"}.get(motion)
    assert motion_of(parse_film("a dog")[0], film) == upright


def test_what_enters_is_asked_for_once_it_is_whole():
    film = [frame()] * 4 + [frame((.3, .5, .3)), frame((.5, .5, .3))]
    scores = score_films([film], ["a dog enters from the left"])
    assert scores["things"] == scores["motion"] == scores["motion_score"] == 1
    assert score_films([film[::-1]], ["a dog leaves to the left"])["things"] == 1
    assert score_films([[frame()] * 5 + film[5:]], ["a dog enters from the left"])["things"] == 0.5


def test_true_films_are_right_in_every_claim(batch):
    scores = score_films(truth(batch), batch["caption"])
    assert scores["motion"] == scores["motion_score"] == scores["things"] == scores["steady"] == scores["exact"] == 1
    assert scores["color_accuracy"] == scores["background_accuracy"] == 1


def test_the_motion_score_is_what_counting_steps_by_hand_gives(batch):
    films = truth({**batch, "boxes": batch["boxes"] + 0.03 * torch.randn(batch["boxes"].shape,
                                                                         generator=torch.Generator().manual_seed(0))})

    def step(motion, a, b, distinct):
        """By brute force, of true boxes: whether every condition on this motion holds."""
        n = CONFIG.frames - 1
        if not (a and b and all(map(any, (*a, *b)))):
            return False
        centre = [[((x0 + x1) / 2, (y0 + y1) / 2) for x0, y0, x1, y1 in boxes] for boxes in (a, b)]
        if len(a) == 2:
            nearer = math.dist(*centre[0]) - math.dist(*centre[1])
            gone = [math.dist(*pair) for pair in zip(*centre)]
            if distinct and gone[0] >= MOVED / n and gone[1] < MOVED / n / 2:
                return motion == ("left of" if centre[1][0][0] < centre[0][0][0] else "right of")
            return {"still": abs(nearer) < MOVED / n, "together": nearer >= MOVED / n,
                    "apart": nearer <= -MOVED / n}.get(motion, False)
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
        boxes, (how, _, side) = [[o["box"] for o in frame["objects"]] for frame in film], motion.partition(" ")
        # from where to where it is asked, and for what; of six frames
        parts = {"enters": [(4, 5, SIDES.get(side))], "leaves": [(0, 1, side)],
                 "turns": [(0, 2, side), (3, 5, SIDES.get(side))]}.get(how, [(0, 5, motion)])
        steps = [step(way, boxes[k], boxes[k + 1], len(set(said.objects)) == 2)
                 for first, last, way in parts for k in range(first, last)]
        by_hand = sum(steps) / len(steps)
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
    always = [i for i, motion in enumerate(batch["motion"]) if MOTIONS[motion].split()[0] not in ("enters", "leaves")]
    films, captions = batch["video"][always], [batch["caption"][i] for i in always]
    things = [score_films(read_films(recogniser, videos), captions)["things"] for videos in (films, shuffled(films))]
    assert things[0] == pytest.approx(things[1], abs=1e-6) and len(always) > 25
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
