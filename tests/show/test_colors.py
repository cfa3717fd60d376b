"""What a figure says by colour can be seen, also by those who see fewer colours: WCAG 2's level AA."""

import re
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from map_colors import GROUNDS, chosen, contrast, distances, seen
from matplotlib.colors import to_rgb

from ldm_mini.scenes.vocabulary import SEMANTIC, STUFF
from ldm_mini.show import plotting
from ldm_mini.show.inputs import show_inputs

LINE, TEXT = 3.0, 4.5
# grounds that share a picture
MEETING = (("night sky", "dark ground"), ("sky", "grass"), ("sky", "sea"), ("sky", "sand"), ("sea", "sand"),
           ("sky", "snow"))


@pytest.fixture(autouse=True)
def close_figures():
    plt.switch_backend("Agg")
    yield
    plt.close("all")


def rgb(colors):
    return np.array([to_rgb(color) for color in colors])


def on(ground, color, alpha):
    """A colour that lets some of its ground through."""
    return tuple(alpha * rgb([color])[0] + (1 - alpha) * rgb([ground])[0])


def test_the_measures_measure():
    """Against published values: WCAG's grey that just passes, OKLab's white and red."""
    assert contrast("white", "black") == pytest.approx(21)
    assert contrast("#767676", "white") == pytest.approx(4.54, abs=.01)
    white, red = seen(rgb(["white", "red"]))[0]
    assert white == pytest.approx([1, 0, 0], abs=1e-3) and red == pytest.approx([.628, .225, .126], abs=1e-3)
    grey = seen(rgb(["0.2", "0.7"]))
    assert np.abs(grey - grey[:1]).max() < .01, "greys are grey to all"
    full, *one_less = distances(rgb(["#B00000"]), rgb(["#4D4400"]))[:3, 0, 0]
    assert full > 15 > max(one_less), "red and olive differ little without the long or the middle cones"


def test_every_colour_of_lines_shows_on_white_and_three_can_be_written_with():
    low = {color: contrast(color, "white") for color in plotting.PALETTE if contrast(color, "white") < LINE}
    assert not low, f"below {LINE}:1 on white"
    black, _, _, green, _, blue, vermilion, _ = plotting.PALETTE
    assert min(contrast(color, "white") for color in (black, green, blue, vermilion)) >= TEXT
    assert contrast(plotting.INK, plotting.GROUND) >= TEXT


def test_colours_of_lines_can_be_told_apart_by_all():
    apart = distances(rgb(plotting.PALETTE), rgb(plotting.PALETTE))[:, ~np.eye(8, dtype=bool)]
    assert apart.min() >= 7.5 and apart[0].min() >= 10, apart.min(axis=1)


def test_outlines_of_boxes_show_on_their_white_and_their_grey():
    assert min(contrast(color, ground) for color in plotting.OUTLINES for ground in ("white", plotting.GROUND)) >= LINE


def test_curves_and_their_band_show_and_neighbours_differ_in_style():
    axis = None
    for k in range(5):
        axis = plotting.plot_curve([1., 2., 3.], label=str(k), ax=axis,
                                   band=None if k else {"step": [1, 3], "low": [0, 0], "high": [1, 1]})
    band, = axis.collections
    ground = band.get_facecolor()[0][:3]
    for line in axis.lines:
        assert contrast(line.get_color(), "white") >= LINE and contrast(line.get_color(), ground) >= LINE
    assert contrast(band.get_edgecolor()[0][:3], "white") >= LINE and band.get_linewidth()[0] >= .8
    styles = [line.get_linestyle() for line in axis.lines]
    assert all(one != other for one, other in zip(styles, styles[1:]))
    assert len({line.get_color() for line in axis.lines}) == 5


@pytest.mark.parametrize("draw", [
    lambda: plotting.show_images(torch.zeros(2, 3, 8, 8), ["a", "b"], row_labels=["c"]),
    lambda: plotting.draw_boxes(torch.zeros(3, 8, 8), [[0, 0, 1, 1]], ["a"]),
    lambda: plotting.show_semantic(torch.zeros(8, 8).long(), ["a"]),
    lambda: plotting.plot_curve([1, 2, 3], label="a")])
def test_words_can_be_read_whatever_is_under_them(draw):
    draw()
    words = [text for text in plt.gcf().findobj(plt.Text) if text.get_text()]
    assert words
    for text in words:
        patch = text.get_bbox_patch()
        grounds = ["white"] if patch is None else [on(under, patch.get_facecolor()[:3], patch.get_facecolor()[3])
                                                   for under in ("black", "white", *plotting.PALETTE)]
        assert min(contrast(text.get_color(), ground) for ground in grounds) >= TEXT and text.get_fontsize() >= 8


def test_a_drawn_layout_has_its_lines_and_no_line_through_a_name():
    labels, size = torch.tensor([[4, 24, -1]]), (64, 64)                          # an apple, and a penguin's long name
    boxes = torch.tensor([[[.05, .1, .3, .9], [.5, .5, .9, .9], [0, 0, 0, 0]]])
    picture = ((show_inputs("layout", {"labels": labels, "boxes": boxes}, size)[0] + 1) / 2).permute(1, 2, 0)
    drawn = {tuple(color.tolist()) for color in picture.flatten(0, 1).mul(255).round().int().unique(dim=0)}
    assert {tuple((rgb([color])[0] * 255).round().astype(int)) for color in plotting.OUTLINES[:2]} <= drawn
    for color in drawn - {tuple((rgb([plotting.GROUND])[0] * 255).round().astype(int))}:
        near = contrast(tuple(v / 255 for v in color), plotting.GROUND)
        assert near >= LINE or len(set(color)) == 1, "only the greys at a letter's edge are paler"


def test_classes_of_a_map_can_be_told_apart_by_all():
    """Any two nouns can meet, and a noun stands on any ground. About 2 is the least that one sees."""
    colors = plotting.class_colors(len(SEMANTIC)) / 255
    grounds, nouns = colors[:len(STUFF)], colors[len(STUFF):]
    between = distances(nouns, nouns)[:, ~np.eye(len(nouns), dtype=bool)].min(axis=1)
    below = distances(grounds, nouns).min(axis=(1, 2))
    assert between[0] >= 5 and between.min() >= 3, between
    assert below[0] >= 9 and below.min() >= 5, below
    for pair in MEETING:
        one, other = (grounds[[STUFF.index(name)]] for name in pair)
        assert distances(one, other).min() >= 7, pair


def test_the_maps_colours_are_those_chosen():
    """If not: `python data/build/map_colors.py` prints them."""
    assert len(GROUNDS) == len(STUFF) and len(plotting.MAP_COLORS) == len(SEMANTIC)
    assert np.abs(rgb(chosen()) - rgb(plotting.MAP_COLORS)).max() == 0


def test_the_playgrounds_page_has_the_figures_colours_and_readable_words():
    css = (Path(plotting.__file__).parent / "playground.css").read_text()
    boxes = re.findall(r"data-color=\"\d\"\] { border-color: (#\w+)", css)
    assert boxes == [color.lower() for color in plotting.OUTLINES[:3]]
    accent, line = (re.search(rf"--{name}: (#\w+)", css)[1] for name in ("accent", "line"))
    remarks = re.search(r"border-left: 4px solid (#\w+)", css)[1]
    for theme in ("white", "#111111"):                                            # JupyterLab's light and dark ground
        assert min(contrast(color, theme) for color in (accent, line, remarks)) >= LINE
    pairs = re.findall(r"background: (#\w+|var\(--accent\));[^}]*[ ;]color: (#\w+)", css)
    assert len(pairs) >= 3 and ("#000", "#fff") in pairs
    for ground, color in (*pairs, ("#595959", "#fff")):                           # the last: Draw, while it draws
        assert contrast(accent if "accent" in ground else ground, color) >= TEXT, (ground, color)
    opacity = float(re.search(r"::placeholder { color: var\(--ink\); opacity: ([.\d]+)", css)[1])
    assert contrast(on("white", "black", .87 * opacity), "white") >= TEXT         # Jupyter's ink is 87% of black
