"""Scores of scenes and captions whose answer is known by hand."""

import pytest
import torch

from ldm_mini.measure.scoring import match, score_captions, score_scenes, truth
from ldm_mini.scenes.vocabulary import BACKGROUND_INDEX, COLOR_INDEX, NOUN_INDEX


def thing(noun, x, y, color=None, side=0.3):
    color = -1 if color is None else COLOR_INDEX[color]
    return {"noun": NOUN_INDEX[noun], "color": color, "nearest_color": max(color, 0), "score": 0.9,
            "centre": (x, y), "box": (x - side / 2, y - side / 2, x + side / 2, y + side / 2)}


def scene(*objects, background="blue", style=0):
    return {"objects": list(objects), "background": BACKGROUND_INDEX[background], "style": style}


CAPTION = "a red apple to the left of a dog on a blue background"
RIGHT = scene(thing("apple", 0.2, 0.5, "red"), thing("dog", 0.8, 0.5))


def test_truth_reads_a_batch():
    batch = {"labels": torch.tensor([[4, -1, -1]]), "colors": torch.tensor([[2, -1, -1]]),
             "boxes": torch.tensor([[[0.0, 0.5, 0.5, 1.0], [0.0] * 4, [0.0] * 4]]),
             "background": torch.tensor([7]), "style": torch.tensor([1])}
    (only,) = truth(batch)
    assert only["background"] == 7 and only["style"] == 1 and len(only["objects"]) == 1
    assert only["objects"][0]["centre"] == (0.25, 0.75) and only["objects"][0]["color"] == 2
    scores = score_scenes([only], batch)
    assert all(value == 1.0 for value in scores.values()) and "relation_accuracy" not in scores


def test_match_takes_the_nearest_once():
    a, b = thing("dog", 0.1, 0.1), thing("dog", 0.9, 0.9)
    assert match([a, b], [thing("dog", 0.8, 0.8), thing("dog", 0.2, 0.2)]) == [b, a]
    assert match([a], [thing("dog", 0.8, 0.8), thing("dog", 0.2, 0.2)]) == [None, a]
    assert match([a], [thing("cat", 0.1, 0.1)]) == [None]


@pytest.mark.parametrize("found, wrong", [
    (RIGHT, {}),
    (scene(thing("apple", 0.2, 0.5, "green"), thing("dog", 0.8, 0.5)), {"color_accuracy": 0.0}),
    (scene(thing("apple", 0.8, 0.5, "red"), thing("dog", 0.2, 0.5)), {"relation_accuracy": 0.0, "box_iou": 0.0}),
    (scene(thing("apple", 0.2, 0.5, "red")), {"object_recall": 0.5, "count_accuracy": 0.0, "relation_accuracy": None,
                                              "box_iou": 0.5}),
    (scene(*RIGHT["objects"], thing("cat", 0.5, 0.1)), {"object_precision": 2 / 3, "count_accuracy": 0.0}),
    (scene(*RIGHT["objects"], background="red"), {"background_accuracy": 0.0}),
    (scene(*RIGHT["objects"], style=2), {"style_accuracy": 0.0, "exact": 1.0}),
])
def test_score_scenes_by_hand(found, wrong):
    expected = {**dict.fromkeys(("object_recall", "object_precision", "color_accuracy", "relation_accuracy", "box_iou",
                                 "background_accuracy", "style_accuracy", "count_accuracy"), 1.0),
                "exact": float(not wrong), **wrong}
    expected = {name: value for name, value in expected.items() if value is not None}
    assert score_scenes([found], [RIGHT]) == pytest.approx(expected)


def test_exact_needs_the_place():
    moved = scene(thing("apple", 0.2, 0.5, "red"), thing("dog", 0.8, 0.7))
    scores = score_scenes([moved], [RIGHT])
    assert scores["object_recall"] == 1 and scores["exact"] == 0


@pytest.mark.parametrize("found, wrong", [
    (RIGHT, {}),
    (scene(thing("apple", 0.2, 0.5, "green"), thing("dog", 0.8, 0.5)), {"color_accuracy": 0.0}),
    (scene(thing("apple", 0.8, 0.5, "red"), thing("dog", 0.2, 0.5)), {"relation_accuracy": 0.0}),
    (scene(thing("dog", 0.8, 0.5)), {"object_recall": 0.5, "count_accuracy": 0.0, "color_accuracy": 0.0,
                                     "relation_accuracy": 0.0}),
    (scene(*RIGHT["objects"], background="night"), {"background_accuracy": 0.0}),
])
def test_score_captions_by_hand(found, wrong):
    expected = {**dict.fromkeys(("object_recall", "object_precision", "count_accuracy", "color_accuracy",
                                 "relation_accuracy", "background_accuracy"), 1.0), "exact": float(not wrong), **wrong}
    assert score_captions([found], [CAPTION]) == pytest.approx(expected)


def test_captions_are_judged_by_what_they_claim():
    scores = score_captions([RIGHT, RIGHT, RIGHT], ["a dog", "", "two cats"])
    expected = {"object_recall": 1 / 3, "object_precision": 1 / 4, "count_accuracy": 1 / 2, "exact": 0.0}
    assert scores == pytest.approx(expected)


def test_lengths_must_agree():
    with pytest.raises(ValueError, match="zip"):
        score_captions([RIGHT], ["a dog", "a cat"])
    with pytest.raises(ValueError, match="cannot read"):
        score_captions([RIGHT], ["a xylophone"])
