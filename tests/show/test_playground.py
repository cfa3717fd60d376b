"""The page of notebook 12, driven as a person would: set values, click, see another picture."""

import pytest
import torch

from ldm_mini.scenes.scene import MICRO_SCENES
from ldm_mini.scenes.vocabulary import NOUN_INDEX
from ldm_mini.show.playground import BOX, CELLS, HOLE, Playground
from ldm_mini.training import build, recipes


def model(task="all"):
    torch.manual_seed(0)
    recipe = recipes.for_task(recipes.MICRO_DIFFUSION, task)
    ldm = build.build_diffusion(recipe, build.build_autoencoder(recipes.MICRO_AUTOENCODER))
    for weight in ldm.net.parameters():                             # a fresh U-Net gives 0 whatever it is told
        if not weight.any():
            torch.nn.init.normal_(weight, std=0.1)
    return ldm.eval()


@pytest.fixture(scope="module")
def everything():
    return model()


@pytest.fixture
def page(everything):
    made = Playground(everything, MICRO_SCENES)
    made.steps.value, made.again.value = 4, False
    return made


def drawn(page):
    page.sample_button.click()
    return page.picture


def press(page, *cells):
    """Click cells of the canvas, by row and column."""
    for row, column in cells:
        page.cells[row * CELLS + column].click()


def test_a_box_is_two_clicks_in_any_order(page):
    page.noun.value = "star"
    press(page, (9, 12), (2, 4))
    box = (4 / 16, 2 / 16, 13 / 16, 10 / 16)
    assert page.boxes == [("star", box)] and page.corner is None
    told = page.batch()
    assert told.keys() == {"labels", "boxes"} and told["labels"].tolist() == [[NOUN_INDEX["star"]]]
    torch.testing.assert_close(told["boxes"], torch.tensor([[box]]))


def test_sample_shows_another_picture_and_the_next_seed_another(page):
    shown, page.caption.value, page.again.value = page.style.value, "a star", True
    first = drawn(page)
    assert page.style.value != shown and "seed 0" in page.message.value and "the caption" in page.message.value
    assert not torch.equal(drawn(page), first) and page.seed.value == 2
    page.again.value, page.seed.value = False, 0
    assert torch.equal(drawn(page), first) and page.seed.value == 0
    page.guidance.value = 6.0
    assert not torch.equal(drawn(page), first), "guidance does nothing"
    assert not page.sample_button.disabled and page.sample_button.description == "Sample"


def test_boxes_reach_the_model(page):
    empty = drawn(page)
    assert "no wish at all" in page.message.value
    press(page, (2, 2), (12, 12))
    assert not torch.equal(drawn(page), empty) and "boxes (1)" in page.message.value


def test_a_hole_is_filled_and_all_around_it_kept(page):
    page.scene_button.click()
    before, page.mode.value = page.picture, HOLE
    press(page, (4, 4), (7, 9))
    assert page.hole.sum() == 4 * 6 and page.batch().keys() == {"image", "mask"}
    cell, changed = page.size // CELLS, (drawn(page) != before).any(1)[0]
    inside = torch.zeros_like(changed)
    inside[4 * cell:8 * cell, 4 * cell:10 * cell] = True
    assert changed.any() and not (changed & ~inside).any()
    assert not page.hole.any() and "around the hole" in page.message.value
    page.undo_button.click()
    assert page.hole.sum() == 24 and torch.equal(page.picture, before)


def test_real_scenes_differ_and_clear_clears(page):
    page.scene_button.click()
    first = page.picture
    page.scene_button.click()
    assert not torch.equal(page.picture, first)
    page.caption.value = "a star"
    press(page, (0, 0), (3, 3), (5, 5))
    page.clear_button.click()
    assert page.corner is None and page.boxes == [] and page.caption.value == "" and page.picture.std() == 0
    page.undo_button.click()
    assert len(page.boxes) == 1


def test_undo_takes_back_a_corner_first(page):
    page.undo_button.click()                                        # nothing to undo: nothing happens
    press(page, (1, 1), (3, 3), (8, 8))
    page.undo_button.click()
    assert page.corner is None and len(page.boxes) == 1
    page.undo_button.click()
    assert page.boxes == []


def test_no_more_things_than_the_model_knows(page):
    for row in range(4):
        press(page, (3 * row, 0), (3 * row + 1, 2))
    assert len(page.boxes) == 3 and "up to 3" in page.message.value and len(page.undo) == 3


def test_the_canvas_shows_boxes_holes_and_the_corner(page):
    pictures = {page.canvas_image().tobytes()}
    for cell in (2, 2), (6, 6):
        press(page, cell)
        pictures.add(page.canvas_image().tobytes())
    page.mode.value = HOLE
    press(page, (10, 10), (11, 11))
    assert len({*pictures, page.canvas_image().tobytes()}) == 4


def test_words_it_does_not_know_are_named_and_errors_are_shown(page):
    page.caption.value = "a star beside a xylophone"
    page.sample_button.click()
    assert "I do not know &quot;xylophone&quot;" in page.message.value
    page.caption.value = "a star <script>alert(1)</script>"
    page.sample_button.click()
    assert "<script" not in page.message.value and "&lt;" in page.message.value
    page.caption.value = "two stars"
    page.noun.value = "apple"
    page.boxes = [("apple", (0.0, 0.0, 0.5, 0.5))]
    page.sample_button.click()
    assert "names star, star, the layout apple: the model is told both" in page.message.value
    page.boxes = []
    page.model = model("layout")                                    # knows no words, and there are no boxes
    page.sample_button.click()
    assert "The model says" in page.message.value and not page.sample_button.disabled


@pytest.mark.parametrize("task, modes", [("text", ()), ("layout", (BOX,)), ("inpaint", (HOLE,)), ("unconditional", ())])
def test_a_model_of_one_task_gets_the_page_it_understands(task, modes):
    page = Playground(model(task), MICRO_SCENES)
    rows = page.widget.children[1].children
    assert page.mode.options == modes and (page.caption in rows) == (task == "text")
    assert (page.noun in rows) == (task == "layout")
    press(page, (1, 1), (9, 9))
    page.steps.value = 4
    page.sample_button.click()
    assert "Drawn" in page.message.value
