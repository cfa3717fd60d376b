"""Figures hold what was put in: pixels at their places, boxes where they belong, colours that can be told apart."""

import sys

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from PIL import Image, ImageFont

from ldm_mini.show import plotting, study_table


@pytest.fixture(autouse=True)
def close_figures():
    plt.switch_backend("Agg")
    yield
    plt.close("all")


def levels(*values, size=4):
    return torch.stack([torch.full((3, size, size), v) for v in values])


def test_to_uint8_range_and_grey():
    pixels = plotting.to_uint8(levels(-1.0, 0.0, 1.0, 7.0))
    assert pixels.shape == (4, 4, 4, 3) and pixels[:, 0, 0, 0].tolist() == [0, 128, 255, 255]
    assert plotting.to_uint8(torch.zeros(1, 2, 2)).shape == (1, 2, 2, 3)


def saved(images, folder, **options):
    """The tiles of the grid (rows, columns, 4, 4, 3) that `save_grid` writes, without the white lines between them."""
    sheet = np.asarray(Image.open(plotting.save_grid(images, folder / "new" / "grid.png", **options)))
    sheet = np.pad(sheet, [(0, 2), (0, 2), (0, 0)], constant_values=255)
    tiles = sheet.reshape(sheet.shape[0] // 6, 6, sheet.shape[1] // 6, 6, 3).swapaxes(1, 2)
    assert (tiles[:, :, 4:] == 255).all() and (tiles[:, :, :, 4:] == 255).all()
    return tiles[:, :, :4, :4]


def test_grid_places_tiles_and_keeps_pixels(tmp_path):
    tiles = saved(levels(-1.0, 0.0, 0.5, -7.0, -0.5), tmp_path)
    assert tiles.shape[:2] == (2, 4) and (tiles == tiles[:, :, :1, :1]).all()
    assert tiles[..., 0, 0, 0].tolist() == [[0, 128, 191, 0], [64, 255, 255, 255]]      # white where there is none
    assert saved(levels(-1.0, 0.0, 1.0), tmp_path, columns=2).shape[:2] == (2, 2)
    assert saved(levels(0.0), tmp_path).shape[:2] == (1, 1)


def test_grid_of_rows(tmp_path):
    tiles = saved([levels(-1.0, -1.0, -1.0), torch.ones(3, 1, 4, 4)], tmp_path)         # the second row grey
    assert tiles.shape[:2] == (2, 3) and tiles[0].max() == 0 and tiles[1].min() == 255


def test_a_grid_says_what_it_shows(tmp_path):
    """Room below each row for its longest text; the pictures and the widths stay as they are."""
    images = torch.full((3, 3, 64, 64), -1.0)
    texts = ["an owl", "a red apple to the left of a dog on a blue background", ""]
    plain, said = (np.asarray(Image.open(plotting.save_grid(images, tmp_path / "grid.png", 2, given))).astype(int)
                   for given in (None, texts))
    assert plain.shape == (130, 130, 3) and said.shape[1] == 130 and said.shape[0] > 160
    assert (said[:64] == plain[:64]).all() and (said[-64:] == plain[-64:]).all()            # the last row has no text
    below = said[64:-66]
    assert (below[:, :64] < 128).any() and (below[:, 66:] < 128).any() and (below[:, 64:66] > 250).all()
    assert (below[20:, :64] > 250).all(), "a short text has one line"
    chinese, spelt = (np.asarray(Image.open(plotting.save_grid(images, tmp_path / "grid.png", 3, [text] * 3)))
                      for text in ("猫", r"\u732b"))
    assert (chinese == spelt).all(), "no empty boxes"
    with pytest.raises(ValueError, match="2 texts for 3 pictures"):
        plotting.save_grid(images, tmp_path / "few.png", texts=texts[:2])


def test_a_row_says_its_words_or_its_name():
    rows = {"given": levels(0.0, 1.0), "drawn": levels(0.0, 1.0)}
    assert plotting.texts_under(rows, {"drawn": ["an owl", "a cat"]}) == ["given", "given", "an owl", "a cat"]
    assert plotting.texts_under(rows, {"drawn": None}) == ["given", "given", "drawn", "drawn"]


@pytest.mark.parametrize("text", ["", "a", "abc def ghi", "w" * 50, "ein w" + "o" * 60 + "rt"])
def test_wrapped_texts_lose_no_letter_and_fit(text):
    font = ImageFont.load_default(10)
    lines = plotting._wrapped(text, font, 40)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "") and all(font.getlength(v) <= 40 for v in lines)


def test_show_images_titles():
    titles = ["one", "two", "a long caption that has to be wrapped"]
    figure = plotting.show_images(levels(0.0, 0.0, 0.0), titles, columns=2)
    texts = [text.get_text() for axis in figure.axes for text in axis.texts]
    figure.canvas.draw()
    bottoms = [text.get_window_extent().y0 for axis in figure.axes for text in axis.texts]
    assert min(bottoms) >= 0, "the last caption is cut off"
    assert texts[:2] == ["one", "two"] and "\n" in texts[2] and len(figure.axes) == 4


def test_draw_boxes_at_pixel_edges_without_padding():
    boxes = torch.tensor([[0.25, 0.5, 0.75, 1.0], [0.0, 0.0, 0.0, 0.0]])
    axis = plotting.draw_boxes(levels(0.0, size=8)[0], boxes, ["cat", ""])
    outlines = {(p.get_x(), p.get_y(), p.get_width(), p.get_height()) for p in axis.patches}
    assert outlines == {(1.5, 3.5, 4.0, 4.0)} and [t.get_text() for t in axis.texts] == ["cat"]


def test_class_colors_are_distinct_also_for_72_classes():
    assert len(np.unique(plotting.class_colors(72), axis=0)) == 72


def test_semantic_names_stand_on_their_class():
    semantic = torch.zeros(16, 16, dtype=torch.int64)
    semantic[4:12, 4:12] = 2
    axis = plotting.show_semantic(semantic, ["sky", "sea", "fish"])
    places = {t.get_text(): t.get_position() for t in axis.texts}
    assert set(places) == {"sky", "fish"}
    for name, (x, y) in places.items():
        assert semantic[int(y), int(x)] == {"sky": 0, "fish": 2}[name]


def test_curve_smooths_and_second_curve_differs():
    records = [{"step": i, "loss": float(i % 2)} for i in range(10)] + [{"step": 10, "psnr": 3.0}]
    axis = plotting.plot_curve(records, smooth=2, band={"step": [0, 9], "low": [0, 0], "high": [1, 1]})
    plotting.plot_curve(records, label="again", ax=axis)
    first, second = axis.lines
    assert np.allclose(first.get_ydata(), 0.5) and len(first.get_xdata()) == 9
    assert first.get_color() != second.get_color() and first.get_linestyle() != second.get_linestyle()


def test_curve_of_plain_numbers_and_how_much_lies_in_the_band():
    band = {"step": [1, 4], "low": [0, 0], "high": [2, 2], "seeds": 5}
    axis = plotting.plot_curve([1.0, 3.0, 1.0, 1.5], band=band)
    assert axis.lines[0].get_xdata().tolist() == [1, 2, 3, 4]
    labels = [text.get_text() for text in axis.get_legend().get_texts()]
    assert "5 reference runs (75% of yours inside)" in labels


@pytest.mark.parametrize("call, message", [
    (lambda: plotting.to_uint8(torch.zeros(5, 4, 4)), "1 or 3 channels"),
    (lambda: plotting.show_images(levels(0.0), ["a", "b"]), "one each"),
    (lambda: plotting.show_images(levels(0.0), row_labels=["a", "b"]), "zip"),
    (lambda: plotting.show_semantic(torch.zeros(2, 4, 4, dtype=torch.int64), ["sky"]), r"semantic\[i\]"),
    (lambda: plotting.plot_curve([{"step": 1}], "loss"), "no record"),
    (lambda: plotting.plot_curve([1.0], band="no-such"), "reference_curves.py no-such"),
])
def test_bad_input_says_what_to_do(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("count, columns", [(1, None), (2, None), (5, None), (6, 3), (3, 8)])
def test_grid_is_torchvisions_without_its_frame(tmp_path, count, columns):
    utils = pytest.importorskip("torchvision.utils")
    images = torch.rand(count, 3, 6, 5, generator=torch.Generator().manual_seed(count)) * 2.4 - 1.2
    sheet = np.asarray(Image.open(plotting.save_grid(images, tmp_path / "grid.png", columns=columns))).astype(int)
    grid = utils.make_grid(images, columns or int(np.ceil(np.sqrt(2 * count))), padding=2, pad_value=1, normalize=True,
                           value_range=(-1, 1))
    theirs = (grid[:, 2:-2, 2:-2] if count > 1 else grid).permute(1, 2, 0).mul(255).numpy()
    assert sheet.shape == theirs.shape and np.abs(sheet - theirs).max() <= 0.51


@pytest.mark.parametrize("draw", [
    lambda text: plotting.show_images(torch.zeros(2, 3, 8, 8), [text, text], row_labels=[text]),
    lambda text: plotting.draw_boxes(torch.zeros(3, 8, 8), [[0, 0, 1, 1]], [text]),
    lambda text: plotting.show_semantic(torch.zeros(8, 8).long(), [text]),
    lambda text: plotting.plot_curve([1, 2, 3], label=text),
    lambda text: plotting.plot_curve([{text: 1, "loss": 1}, {text: 2, "loss": 2}], x=text),
    lambda text: plotting.plot_curve([{"step": 1, text: 1}, {"step": 2, text: 2}], key=text)])
@pytest.mark.parametrize("text", [r"$\frac$", "$x_$", r"\$\frac$", "5 $ and 6 $"])
def test_no_text_is_taken_for_a_formula(draw, text):
    draw(text)
    plt.gcf().canvas.draw()
    plt.close("all")


def test_a_figure_is_shown_with_words_for_those_who_cannot_see_it(monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda figure, metadata: shown.append((figure, metadata)))
    figure, other = plt.figure(), plt.figure(figsize=(5, 3), dpi=72)
    plotting.figure_done("""Loss against steps:
                            it falls.""")
    assert shown == [(other, {"image/png": {"alt": "Loss against steps: it falls.", "width": 500}})]
    assert plt.get_fignums() == [figure.number]
    with pytest.raises(ValueError, match="say in a sentence"):
        plotting.figure_done(" ")


@pytest.mark.parametrize("columns, size, width", [(4, 2.0, 800), (4, 1.0, 520), (12, 0.6, 900), (12, 1.0, 1200)])
def test_pictures_of_a_grid_are_large_enough_to_judge_as_far_as_the_page_goes(monkeypatch, columns, size, width):
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda figure, metadata: shown.append(metadata))
    plotting.show_images(torch.zeros(columns, 3, 8, 8), columns=columns, size=size)
    plotting.figure_done("Grey pictures.")
    assert shown[0]["image/png"]["width"] == width


def test_without_ipython_a_figure_is_shown_as_ever(monkeypatch):
    shown = []
    monkeypatch.setitem(sys.modules, "IPython.display", None)
    monkeypatch.setattr(plt, "show", lambda: shown.append(plt.gcf()))
    figure = plt.figure()
    plotting.figure_done("A line.")
    assert shown == [figure] and not plt.get_fignums()


def test_a_study_s_table_has_the_mean_and_half_the_range_of_the_seeds():
    rows = [{"way": way, "seed": seed, "steps": 10, "seconds": 4 + seed, "psnr": 20.0 + shift + seed}
            for seed in (0, 2) for way, shift in (("pixels", 0), ("+ critic", -5))]
    head, *lines = study_table(rows, {"psnr": ("PSNR, dB", ".1f")}).splitlines()
    assert head.split() == ["steps", "CPU", "s", "PSNR,", "dB"] and len({len(head), *map(len, lines)}) == 1
    assert [line.split() for line in lines] == [["pixels", "10", "5", "21.0", "±", "1.0"],
                                                ["+", "critic", "10", "5", "16.0", "±", "1.0"]]
    assert len(study_table(rows, {}, ["pixels"]).splitlines()) == 2
    with pytest.raises(ValueError, match="no way 'critic'; there are pixels, "):
        study_table(rows, {}, ["critic"])
