"""Films: the paths are what the captions say, captions are read back, nothing held out is shown in training."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from ldm_mini.scenes import films as f
from ldm_mini.scenes import vocabulary as v
from ldm_mini.scenes.captions import Description
from ldm_mini.scenes.scene import MICRO_SCENES, SceneConfig, render

SMALL = f.FilmConfig(replace(f.FILM_SCENES, size=32), frames=5)


def of_split(split, config=SMALL):
    return replace(config, scenes=replace(config.scenes, split=split))


def ways(film):
    """((x, y, size) of each thing) at the beginning and at each point of its path."""
    return [tuple((o.x, o.y, o.size) for o in film.scene.objects), *film.path]


def test_paths_go_as_they_are_called():
    """By the composer's own numbers: each motion changes what it names, in its direction, and nothing else."""
    seen = set()
    for seed in range(600):
        film = f.random_film(seed, SMALL)
        begin, *between, end = ways(film)
        moved = [tuple(b - a for a, b in zip(*pair)) for pair in zip(begin, end)]
        seen.add(film.motion)
        if film.motion in f.BESIDE:
            (x, _, _), (_, _, grew) = begin[0], moved[0]
            assert len({o.noun for o in film.scene.objects}) == 2, "which one moves must be told"
            assert moved[1] == (0, 0, 0) and grew == 0, "the second thing stands still"
            assert x == begin[1][0] and end[0][1] == end[1][1], "from above or below it, to one side of it"
            assert np.sign(end[0][0] - end[1][0]) == {"left of": -1, "right of": 1}[film.motion]
            continue
        if len(begin) == 2:
            near = [sum((a - b) ** 2 for a, b in zip(*ends[:2])) for ends in
                    ([thing[:2] for thing in begin], [thing[:2] for thing in end])]
            assert np.sign(near[1] - near[0]) == {"still": 0, "together": -1, "apart": 1}[film.motion]
            continue
        how, _, side = film.motion.partition(" ")
        if how == "turns":
            assert begin == end and np.sign(between[0][0][0] - begin[0][0]) == {"left": -1, "right": 1}[side]
            continue
        one = {"enters left": "right", "enters right": "left"}.get(film.motion, side or how)
        signs = {"left": (-1, 0, 0), "right": (1, 0, 0), "up": (0, -1, 0), "down": (0, 1, 0), "grows": (0, 0, 1),
                 "shrinks": (0, 0, -1), "still": (0, 0, 0)}[one]
        assert tuple(map(int, np.sign(moved[0]))) == signs and not between
        assert film.motion == "still" or max(map(abs, moved[0])) >= 48
    assert seen == set(f.MOTIONS)


def outside(x, size):
    return x + size // 2 < 0 or x - size // 2 > 256


def test_things_stay_inside_and_apart():
    """But for what enters, which is all outside at first, and what leaves, which is at last."""
    for seed in range(400):
        film = f.random_film(seed, SMALL)
        shown = f.render_film(film, SMALL)["boxes"][:, 0].any(-1)
        how = film.motion.partition(" ")[0]
        for k in {"enters": (4,), "leaves": (0, 1)}.get(how, range(5)):
            things = f.scene_at(film, k, 5).objects
            assert all(o.size // 2 <= o.x <= 256 - o.size // 2 and o.size // 2 <= o.y <= 256 - o.size // 2
                       for o in things)
            if len(things) == 2:
                a, b = things
                assert max(abs(a.x - b.x), abs(a.y - b.y)) >= (a.size + b.size) / 2
        away = {"enters": 0, "leaves": 4}.get(how)
        assert shown.all() == (away is None)
        if away is not None:
            o = f.scene_at(film, away, 5).objects[0]
            frames = f.render_film(film, SMALL)["video"]
            bare = render(replace(film.scene, objects=()), SMALL.scenes)["image"]
            assert outside(o.x, o.size) and (frames[away] == bare).all(), "nothing of it is seen, nor of its shadow"


def test_frames_are_scenes_rendered_one_by_one():
    film = next(film for seed in range(99) if (film := f.random_film(seed, SMALL)).motion == "right")
    drawn = f.render_film(film, SMALL)
    assert drawn["video"].shape == (5, 32, 32, 3) and drawn["boxes"].shape == (5, 3, 4)
    first = film.scene.objects[0]
    for k in range(5):
        # one unit of rounding, at most
        x = first.x + (film.path[-1][0][0] - first.x) * k / 4
        assert abs(f.scene_at(film, k, 5).objects[0].x - x) <= 0.5
        alone = render(f.scene_at(film, k, 5), SMALL.scenes)
        assert (drawn["video"][k] == alone["image"]).all() and (drawn["boxes"][k] == alone["boxes"]).all()
    still = next(film for seed in range(99) if (film := f.random_film(seed, SMALL)).motion == "still")
    frames = f.render_film(still, SMALL)["video"]
    assert (frames == frames[:1]).all()
    # what turns round passes each place twice: it is at the far end half way
    turns = next(film for seed in range(300) if (film := f.random_film(seed, SMALL)).motion == "turns left")
    places = [f.scene_at(turns, k, 5).objects[0].x for k in range(5)]
    assert places[0] == places[4] and places[2] == turns.path[0][0][0]
    assert places[1] == places[3] == pytest.approx((places[0] + places[2]) / 2, abs=0.5)


def test_every_caption_is_read_back():
    for seed in range(300):
        film = f.random_film(seed, of_split("all"))
        said, motion = f.parse_film(film.scene.caption)
        assert motion == film.motion and [noun for noun, _ in said.objects] == [o.noun for o in film.scene.objects]
        assert said.relation is None and said.background in (None, film.scene.background)
        assert all(color in (None, o.color) for (_, color), o in zip(said.objects, film.scene.objects))


@pytest.mark.parametrize("caption, objects, motion, background", [
    ("a red apple moves to the right on a blue background", [("apple", "red")], "right", "blue"),
    ("On a blue background, a red apple goes left.", [("apple", "red")], "left", "blue"),
    ("a car and a dog move away from each other in the snow", [("car", None), ("dog", None)], "apart", "snow"),
    ("two dogs stand still", [("dog", None)] * 2, "still", None),
    ("a dog gets larger", [("dog", None)], "grows", None),
    ("A red car comes in from the left, blue background", [("car", "red")], "enters left", "blue"),
    ("an owl leaves to the right at night", [("owl", None)], "leaves right", "night"),
    ("a cake goes left and comes back", [("cake", None)], "turns left", None),
    ("a red apple moves to the left of a dog", [("apple", "red"), ("dog", None)], "left of", None),
    ("in the snow, a red apple goes right of a green star", [("apple", "red"), ("star", "green")], "right of", "snow"),
    ("a dog to the left of a cat", [("dog", None), ("cat", None)], None, None)])
def test_captions(caption, objects, motion, background):
    said, told = f.parse_film(caption)
    assert (list(said.objects), told, said.background) == (objects, motion, background)


def test_every_way_of_saying_a_motion_means_that_motion():
    one, two = Description((("dog", None),)), Description((("dog", None), ("cat", None)))
    for phrase, motion in f.MEANINGS.items():
        subject = "a dog and a cat" if motion in ("together", "apart") or phrase in f.STILL else "a dog"
        said, told = f.parse_film(f"{subject} {phrase} {'a cat ' * (motion in f.BESIDE)}at night")
        assert told == motion and len(said.objects) == (1 if motion in f.OF_ONE and phrase not in f.STILL else 2)
    assert f.write_film(two, lambda ways: ways[0], "left of") == "a dog moves to the left of a cat"
    assert f.write_film(one, lambda ways: ways[0], "still") == "a dog stands still"
    assert f.write_film(two, lambda ways: ways[0], "still") == "a dog and a cat stand still"


@pytest.mark.parametrize("caption", ["a dog moves apart", "a dog and a cat moves up", "a dog flies",
                                     "a dog moves to the left of", "two dogs enters from the left"])
def test_what_cannot_be_is_refused(caption):
    with pytest.raises(ValueError, match="parse_"):
        f.parse_film(caption)


def held_out(film):
    return f.heldout_motion([o.noun for o in film.scene.objects], film.motion)


def test_what_is_held_out_is_never_trained_on():
    for split, wanted in (("train", False), ("val", False), ("heldout", True)):
        assert {held_out(f.random_film(seed, of_split(split))) for seed in range(200)} == {wanted}
    shown = {}
    for seed in range(4000):
        film = f.random_film(seed, SMALL)
        if len(film.scene.objects) == 1:
            shown.setdefault(film.scene.objects[0].noun, set()).add(film.motion)
    # each thing stands still or moves in every way but one
    assert all(motions == set(f.OF_ONE) - {f.HELDOUT_MOTION[noun]} for noun, motions in shown.items())
    pairs = [(a, b) for a in v.NOUNS for b in v.NOUNS if a != b]
    for motion, share in (("together", 1 / 8), ("apart", 1 / 8), ("still", 0), ("left of", 0), ("right of", 0)):
        assert sum(f.heldout_motion(pair, motion) for pair in pairs) / len(pairs) == pytest.approx(share, abs=0.02)
    assert set(f.HELDOUT_MOTION.values()) == set(f.OF_ONE[:6]) and set(f.HELDOUT_MOTION) == set(v.NOUNS)


def test_the_plain_motions_films_stay_what_they_were():
    """A model was trained on them: other motions must not change the films of a seed."""
    plain = replace(SMALL, motions=f.PLAIN_MOTIONS)
    assert [(film.motion, film.path) for film in (f.random_film(seed, plain) for seed in range(4))] == [
        ("still", (((122, 46, 64), (122, 210, 80)),)), ("left", (((73, 137, 104),),)),
        ("still", (((67, 84, 88),),)), ("together", (((107, 88, 72), (107, 168, 72)),))]
    assert set(f.film_words(SMALL)) - set(f.film_words(plain)) == {"enters", "comes", "leaves", "out", "turns",
                                                                   "round", "back"}


def test_a_seed_is_a_film_at_every_size_and_length():
    for seed in range(20):
        film = f.random_film(seed, SMALL)
        assert film == f.random_film(seed, f.FilmConfig(frames=9))
        assert f.scene_at(film, 0, 5) == f.scene_at(film, 0, 9) and f.scene_at(film, 4, 5) == f.scene_at(film, 8, 9)
    assert f.random_film(3, SMALL) != f.random_film(3, of_split("val"))
    one = f.render_film(film, replace(SMALL, frames=1))["video"]
    assert (one == f.render_film(film, SMALL)["video"][:1]).all()


def test_batches_and_stream_are_films_of_their_seeds():
    batch = next(f.film_batches(SMALL, 3, start=7))
    assert batch["video"].shape == (3, 3, 5, 32, 32) and batch["video"].abs().max() <= 1
    assert batch["boxes"].shape == (3, 5, 3, 4) and batch["seed"].tolist() == [7, 8, 9]
    for i, caption in enumerate(batch["caption"]):
        film = f.random_film(7 + i, SMALL)
        assert caption == film.scene.caption and f.MOTIONS[batch["motion"][i]] == film.motion
        frames = torch.from_numpy(f.render_film(film, SMALL)["video"]).permute(3, 0, 1, 2) / 127.5 - 1
        torch.testing.assert_close(batch["video"][i], frames, atol=1e-6, rtol=0)
    straight = f.film_stream(SMALL, 2)
    next(straight)
    assert next(straight)["seed"].tolist() == next(f.film_stream(SMALL, 2, start_step=1))["seed"].tolist() == [2, 3]


@pytest.mark.parametrize("make", [lambda: f.FilmConfig(motions=("jumps",)), lambda: f.FilmConfig(motions=()),
                                  lambda: f.FilmConfig(SceneConfig()), lambda: f.FilmConfig(frames=0)])
def test_impossible_films_are_refused(make):
    with pytest.raises(ValueError, match="FilmConfig"):
        make()


def test_no_film_fits():
    with pytest.raises(ValueError, match="allow more nouns or motions"):
        f.random_film(0, f.FilmConfig(replace(MICRO_SCENES, split="heldout"), motions=("still",)))


def test_all_words_are_listed():
    config = f.FilmConfig(replace(SMALL.scenes, p_paraphrase=1.0))
    captions = [f.random_film(seed, config).scene.caption.replace(",", " , ") for seed in range(300)]
    words = {word for caption in captions for word in caption.split()}
    assert words <= set(f.film_words(config)) and set(f.MOTION_WORDS) <= set(f.film_words(config))
