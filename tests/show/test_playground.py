"""The page of notebook 12: its Python, driven as its browser's part does; and, where there is a browser, that part."""

import base64
import json
import shutil
from importlib.util import find_spec

import pytest
import torch
from traitlets import TraitError

from ldm_mini.scenes.scene import MICRO_SCENES
from ldm_mini.scenes.vocabulary import NOUN_INDEX
from ldm_mini.show.playground import Playground
from ldm_mini.training import build, recipes

BOX = (0.25, 0.125, 0.8125, 0.625)


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
    return Playground(everything, MICRO_SCENES, steps=4, another=False)


def press(page, act):
    """A button of the page: the browser sends what it is called."""
    page._handle_custom_msg({"act": act}, [])


def drawn(page):
    press(page, "draw")
    return page.pixels


def cut(page, rows, columns):
    """A hole, as the brush leaves it."""
    hole = page.mask
    hole[rows, columns] = True
    page.mask = hole


def test_a_box_is_told_as_a_label_and_its_corners(page):
    page.boxes = [("star", BOX)]
    told = page.batch()
    assert told.keys() == {"labels", "boxes"} and told["labels"].tolist() == [[NOUN_INDEX["star"]]]
    torch.testing.assert_close(told["boxes"], torch.tensor([[BOX]]))
    assert "star" in page.message


def test_class_and_caption_are_told_as_they_stand(page):
    page.kind, page.caption = "star", "  a star "
    told = page.batch()
    assert told["class"].tolist() == [NOUN_INDEX["star"]] and told["caption"] == ["a star"]
    drawn(page)
    assert "the caption and the class" in page.message


def test_draw_shows_another_picture_and_the_next_seed_another(page):
    shown, page.caption, page.another = page.picture, "a star", True
    first = drawn(page)
    assert page.picture != shown and "seed 0" in page.message and "the caption" in page.message
    assert not torch.equal(drawn(page), first) and page.seed == 2
    page.another, page.seed = False, 0
    assert torch.equal(drawn(page), first) and page.seed == 0
    page.guidance = 6.0
    assert not torch.equal(drawn(page), first), "guidance does nothing"
    assert not page.busy


def test_boxes_and_the_class_reach_the_model(page):
    pictures = [drawn(page)]
    assert "no wish at all" in page.message
    page.kind = "star"
    pictures.append(drawn(page))
    page.kind, page.boxes = "", [("star", BOX)]
    pictures.append(drawn(page))
    assert "boxes (1)" in page.message
    assert not any(torch.equal(pictures[i], pictures[j]) for i, j in ((0, 1), (0, 2), (1, 2)))


def test_a_hole_is_filled_and_all_around_it_kept(page):
    press(page, "real_scene")
    before, inside = page.pixels, torch.zeros(page.size, page.size, dtype=torch.bool)
    cut(page, slice(8, 16), slice(8, 20))
    inside[8:16, 8:20] = True
    told = page.batch()
    assert told.keys() == {"image", "mask"} and torch.equal(told["mask"][0, 0] > 0, inside)
    changed = (drawn(page) != before).any(1)[0]
    assert changed.any() and not (changed & ~inside).any()
    assert not page.mask.any() and "around the hole" in page.message
    press(page, "undo")
    assert torch.equal(page.mask, inside) and torch.equal(page.pixels, before)


def test_a_real_scene_has_the_models_size(everything):
    page = Playground(everything)                                   # with scenes of 64 pixels, unless told otherwise
    press(page, "real_scene")
    assert page.pixels.shape[-1] == page.size == 32


def test_real_scenes_differ_and_clear_clears(page):
    press(page, "real_scene")
    first, page.boxes = page.pixels, [("star", BOX)]
    press(page, "real_scene")
    assert not torch.equal(page.pixels, first) and page.boxes == []
    page.caption, page.kind, page.boxes = "a star", "star", [("star", BOX)]
    cut(page, 3, 3)
    press(page, "clear")
    assert (page.boxes, page.caption, page.kind) == ([], "", "") and not page.mask.any() and page.pixels.std() == 0
    press(page, "undo")
    assert len(page.boxes) == 1 and page.mask.any()


def test_each_change_by_hand_is_one_step_back(page):
    press(page, "undo")
    assert "nothing to undo" in page.message
    page.boxes = [("star", BOX)]
    page.boxes = [("star", BOX), ("apple", BOX)]
    cut(page, 3, slice(2, 6))
    press(page, "undo")
    assert not page.mask.any() and len(page.boxes) == 2
    press(page, "undo")
    assert page.boxes == [["star", list(BOX)]]
    press(page, "undo")
    assert page.boxes == [] and page.past == []


@pytest.mark.parametrize("wrong, told", [
    ({"boxes": 4 * [("star", BOX)]}, "up to 3"), ({"boxes": [("xylophone", BOX)]}, "xylophone"),
    ({"boxes": [("star", (0.5, 0, 0.5, 1))]}, "x0 < x1"), ({"boxes": [("star", (0, 0, 1, 1.5))]}, "y1 <= 1"),
    ({"hole": b"1"}, "32 x 32"), ({"kind": "xylophone"}, "kind"), ({"guidance": 0.5}, "guidance"),
    ({"steps": 1000}, "steps"), ({"seed": -1}, "seed")])
def test_what_cannot_be_asked_for_is_refused(page, wrong, told):
    (name, value), = wrong.items()
    was = getattr(page, name)
    with pytest.raises(TraitError, match=told):
        setattr(page, name, value)
    assert getattr(page, name) == was


def test_only_its_acts_are_called(page):
    for act in ("__init__", "close", None):
        press(page, act)
    assert page.comm is not None and page.message.startswith("Say what you want")


def test_unknown_words_are_told_while_one_writes_and_once(page):
    page.caption = "a star beside a xylophone"
    assert any('I do not know "xylophone"' in remark for remark in page.remarks)
    drawn(page)
    assert "xylophone" not in page.message and "Drawn" in page.message
    page.caption = "a star"
    assert page.remarks == []


def test_contradictions_are_told_after_the_picture(page):
    page.caption, page.boxes = "two stars", [("apple", BOX)]
    drawn(page)
    assert "names star, star, the layout apple: the model is told both" in page.message


def test_the_models_errors_are_shown(page):
    page.model = model("layout")                                    # knows no words, and there are no boxes
    press(page, "draw")
    assert "The model says" in page.message and not page.busy


def test_the_canvas_shows_boxes_and_hole_also_without_a_browser(page):
    pictures, words = {page.canvas_image().tobytes()}, {page.described()}
    for change in (lambda: setattr(page, "boxes", [("star", BOX)]), lambda: cut(page, slice(3, 9), slice(3, 9))):
        change()
        pictures.add(page.canvas_image().tobytes())
        words.add(page.described())
    assert len(pictures) == len(words) == 3
    data, metadata = page._repr_mimebundle_()
    assert {"image/png", "text/plain", "application/vnd.jupyter.widget-view+json"} <= data.keys()
    assert metadata["image/png"]["alt"] == page.described() and "0x" not in data["text/plain"]


@pytest.mark.parametrize("task, reads", [("text", {"caption"}), ("layout", {"labels", "boxes"}), ("class", {"class"}),
                                         ("inpaint", {"image", "mask"}), ("unconditional", set())])
def test_a_model_of_one_task_gets_the_page_it_understands(task, reads):
    page = Playground(model(task), MICRO_SCENES, steps=4)
    assert set(page.reads) == reads and page.most == (3 if task == "layout" else 0)
    if task == "layout":
        page.boxes = [("star", BOX)]
    if task == "inpaint":
        cut(page, slice(8, 16), slice(8, 20))
    press(page, "draw")
    assert "Drawn" in page.message and "no effect" not in page.message


# What Jupyter's page does for `playground.js`, without Jupyter: its model is Python's, whose traits travel as JSON.
PAGE = """<!doctype html><title>a page</title><div id="here"></div><script type="module">
import page from "data:text/javascript;base64,SCRIPT";
const state = STATE, heard = {}, changed = {};
const bytes = (list) => new DataView(new Uint8Array(list).buffer);
const plain = (value) => value instanceof DataView ? Array.from(new Uint8Array(value.buffer)) : value;
for (const name of ["hole", "picture"]) state[name] = bytes(state[name]);
const put = (name, value) => { state[name] = value; (heard[`change:${name}`] ?? []).forEach((show) => show()); };
window.python = (told) => { for (const name in told) put(name, Array.isArray(told[name]) && BYTES.includes(name)
    ? bytes(told[name]) : told[name]); };
const BYTES = ["hole", "picture"];
page.render({ el: document.getElementById("here"), model: {
    get: (name) => state[name], on: (name, show) => (heard[name] ??= []).push(show), off() {},
    set: (name, value) => { changed[name] = plain(value); put(name, value); },
    save_changes: () => { tell({ ...changed }); for (const name in changed) delete changed[name]; },
    send: ({ act }) => press(act) } });
</script>"""


@pytest.fixture
def browser(page):
    """The page in a browser, its Python at the other end: all it does there arrives here, and the other way."""
    if not find_spec("playwright"):
        pytest.skip("playwright is not installed: pip install 'ldm_mini[site]'")
    from playwright.sync_api import Error, sync_playwright

    def travelling(names=None):
        values = {name: getattr(page, name) for name in names or page.trait_names(sync=True) if name[0] != "_"}
        return {name: list(value) if isinstance(value, bytes) else value for name, value in values.items()
                if isinstance(value, (bytes, str, int, float, list))}

    def tell(told):
        for name, value in told.items():
            setattr(page, name, bytes(value) if name == "hole" else value)

    with sync_playwright() as playwright:
        try:
            chrome = shutil.which("chromium") or shutil.which("google-chrome")
            chromium = playwright.chromium.launch(executable_path=chrome, args=["--no-sandbox", "--disable-gpu"])
        except Error:
            pytest.skip("there is no Chromium: `playwright install chromium`, or the system's")
        shown = chromium.new_page()
        shown.set_default_timeout(300_000)  # a busy machine
        wrong = []
        shown.on("pageerror", lambda error: wrong.append(str(error)))
        shown.expose_function("tell", tell)
        shown.expose_function("press", lambda act: press(page, act))
        shown.expose_function("arrive", lambda: None)
        script = base64.b64encode(str(page._esm).encode()).decode()
        shown.set_content(PAGE.replace("SCRIPT", script).replace("STATE", json.dumps(travelling())))
        shown.add_style_tag(content=str(page._css))
        shown.wait_for_selector(".ldm-stage")
        shown.show = lambda: shown.evaluate("told => python(told)", travelling())
        shown.settle = lambda: shown.evaluate("() => arrive()")             # what was told before has arrived here
        yield shown
        assert wrong == []
        chromium.close()


def at(shown, x, y):
    """Where on the screen a place of the canvas is."""
    box = shown.locator(".ldm-stage").bounding_box()
    return box["x"] + x * box["width"], box["y"] + y * box["height"]


def drag(shown, *places):
    shown.mouse.move(*at(shown, *places[0]))
    shown.mouse.down()
    for place in places[1:]:
        shown.mouse.move(*at(shown, *place))
    shown.mouse.up()
    shown.settle()


def test_a_pointer_draws_moves_resizes_and_deletes_boxes_and_paints_a_hole(page, browser):
    browser.get_by_label("a box is a").select_option("apple")
    drag(browser, (0.125, 0.25), (0.3, 0.3), (0.5, 0.75))
    assert page.boxes == [["apple", pytest.approx([0.125, 0.25, 0.5, 0.75], abs=0.01)]]
    drag(browser, (0.25, 0.5), (0.375, 0.375))
    assert page.boxes[0][1] == pytest.approx([0.25, 0.125, 0.625, 0.625], abs=0.01)
    drag(browser, (0.625, 0.625), (0.75, 0.75))
    assert page.boxes[0][1] == pytest.approx([0.25, 0.125, 0.75, 0.75], abs=0.01)
    drag(browser, (0.5, 0.5), (0.99, 0.5), (1.5, 0.5))                  # not out of the canvas
    assert page.boxes[0][1] == pytest.approx([0.5, 0.125, 1, 0.75], abs=0.01)
    drag(browser, (0.1, 0.9), (0.11, 0.9))                              # a click is no box
    assert len(page.boxes) == 1
    browser.locator(".ldm-box").hover()
    browser.locator(".ldm-delete").click()
    browser.settle()
    assert page.boxes == []
    browser.get_by_label("brush", exact=True).check()
    drag(browser, (0.25, 0.5), (0.5, 0.5))
    rows, columns = page.mask.nonzero().T
    middle = page.size / 2
    assert rows.min() < middle <= rows.max() and columns.max() - columns.min() >= page.size / 4
    assert not page.mask[0].any() and not page.mask[:, -4:].any()
    browser.get_by_label("eraser").check()
    drag(browser, (0.1, 0.5), (0.7, 0.5))
    assert not page.mask.any()


def test_keys_alone_do_it_all(page, browser):
    keys = browser.keyboard
    seen = []
    for _ in range(20):
        keys.press("Tab")
        seen.append(browser.evaluate("document.activeElement.closest('label')?.innerText.trim().split('\\n')[0] ?? "
                                     "(document.activeElement.innerText || document.activeElement.className)"))
    assert {"ldm-stage", "box", "a box is a", "brush size", "caption", "class", "guidance", "steps", "seed",
            "another seed after each picture", "Draw", "A real scene", "Undo", "Clear"} <= set(seen)
    browser.locator(".ldm-stage").focus()
    assert browser.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    for key in ("ArrowLeft", "ArrowLeft", "Enter", "ArrowUp", "Shift+ArrowRight"):
        keys.press(key)
    browser.settle()
    (noun, box), = page.boxes
    assert box == pytest.approx([0.2875, 0.31875, 0.61875, 0.61875], abs=1e-3)  # .3 wide at (.4375, .5), then moved
    keys.press("Delete")
    browser.settle()
    assert page.boxes == [] and browser.evaluate("document.activeElement.className") == "ldm-stage"
    browser.get_by_label("box", exact=True).focus()
    keys.press("ArrowRight")                                            # the next tool
    browser.locator(".ldm-stage").focus()
    keys.press("Space")
    browser.settle()
    assert page.mask.any()
    browser.get_by_label("caption").focus()
    keys.type("a xylophone")
    browser.settle()
    assert page.caption == "a xylophone"
    keys.press("Enter")
    browser.settle()
    assert "Drawn from the caption and what is around the hole" in page.message
    browser.show()
    assert "xylophone" in browser.locator(".ldm-remarks").inner_text()
    assert browser.locator(".ldm-message").inner_text() == page.message


def test_no_more_boxes_than_the_model_knows(page, browser):
    for row in range(4):
        drag(browser, (0.1, 0.05 + 0.24 * row), (0.5, 0.2 + 0.24 * row))
    assert len(page.boxes) == browser.locator(".ldm-box").count() == 3 and "up to 3" in page.message


def test_what_python_does_is_shown_and_no_word_is_markup(page, browser):
    page.boxes = [("star", BOX)]
    page.message = "<b>bold</b>"
    browser.show()
    assert "star" in browser.locator(".ldm-box").get_attribute("aria-label")
    assert browser.locator(".ldm-message").inner_text() == "<b>bold</b>"
