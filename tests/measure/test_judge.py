"""Measures that know the answer: the truth scores best, the wrong scene worst, and the reader of maps reads maps."""

import pytest
import torch

from ldm_mini.distortions import gaussian_blur
from ldm_mini.measure import judge as measures
from ldm_mini.perceptual import PerceptualLoss
from ldm_mini.scenes.data import scene_batches
from ldm_mini.scenes.scene import CENTRED_SCENES


def scenes(n, start=0):
    return next(scene_batches(CENTRED_SCENES, n, start, n))


@pytest.fixture(scope="module")
def judge(recogniser):
    reader = measures.SemanticReader(recogniser).fit([scenes(256, 10_000)], steps=150)
    return measures.Judge(recogniser, PerceptualLoss("efficientnet"), reader)


@pytest.fixture(scope="module")
def batch():
    return scenes(32)


def test_the_truth_is_the_ceiling_and_other_scenes_the_floor(judge, batch):
    best = {"text": "exact", "class": "object_recall", "layout": "box_iou", "semantic": "miou"}
    for task, name in best.items():
        truth, wrong = (judge.score(task, batch["image"], b)[name] for b in (batch, measures.others(batch)))
        assert truth > 0.75 and wrong < 0.4, (task, truth, wrong)
    assert judge.score("unconditional", batch["image"], batch) == {}


def test_the_reader_is_repeatable_and_judges_the_map_not_the_sharpness(judge, batch):
    again = measures.SemanticReader(judge.recogniser).fit([scenes(256, 10_000)], steps=150)
    found = judge.recogniser.detect(batch["image"])
    assert again.read(batch["image"], found).equal(judge.reader.read(batch["image"], found))
    soft = judge.score("semantic", gaussian_blur(batch["image"], 0.8), batch)["miou"]
    shifted = judge.score("semantic", batch["image"].roll(20, dims=3), batch)["miou"]
    truth = judge.score("semantic", batch["image"], batch)["miou"]
    assert soft > truth - 0.15 and shifted < truth - 0.3


def test_superres_knows_sharp_from_blurred_and_consistent_from_not(judge, batch):
    truth = judge.score("superres", batch["image"], batch)
    name, enlarged = measures.baseline("superres", batch)
    soft, wrong = judge.score("superres", enlarged, batch), judge.score("superres", batch["image"].roll(1, 0), batch)
    assert truth["psnr"] is None and truth["perceptual"] < 1e-6 and truth["consistency"] > 50
    assert "bicubic" in name and soft["perceptual"] > 0.05 and soft["consistency"] > 30
    assert wrong["consistency"] < 20 and wrong["psnr"] < soft["psnr"]


def test_inpaint_measures_the_hole_and_its_surroundings_apart(judge, batch):
    name, filled = measures.baseline("inpaint", batch)
    scores = judge.score("inpaint", filled, batch)
    assert scores["outside_max"] == 0 and scores["inside_l1"] > 0.05 and scores["perceptual"] > 0.01
    spoilt = torch.where(batch["mask"] == 1, batch["image"], batch["image"] + 0.25)
    scores = judge.score("inpaint", spoilt, batch)
    assert scores["outside_max"] == pytest.approx(0.25, abs=1e-6) and scores["inside_l1"] == 0
    assert measures.baseline("layout", batch) is None


def test_cells_take_the_most_frequent_class():
    semantic = torch.zeros(1, 32, 32, dtype=torch.int64)
    semantic[0, :2, :2] = torch.tensor([[3, 3], [3, 5]])
    cells = measures.cells_of(semantic)
    assert cells.shape == (1, 16, 16) and cells[0, 0, 0] == 3 and cells.sum() == 3


def test_a_thing_without_a_name_is_wrong_and_the_nearest_box_names_the_rest():
    assert measures._nearest_noun([]).eq(measures.UNKNOWN).all()
    boxes = [(2, (0.0, 0.0, 0.25, 0.25)), (7, (0.5, 0.5, 1.0, 1.0))]
    found = [{"noun": n, "box": b, "centre": ((b[0] + b[2]) / 2, (b[1] + b[3]) / 2)} for n, b in boxes]
    names = measures._nearest_noun(found)
    assert names[0, 0] == measures.THING + 2 and names[12, 12] == names[15, 8] == measures.THING + 7


def test_others_moves_every_key_alike(batch):
    moved = measures.others(batch)
    assert moved["image"][0].equal(batch["image"][1]) and moved["caption"][-1] == batch["caption"][0]
