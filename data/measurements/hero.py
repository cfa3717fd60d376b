"""The README's picture: the tasks of one model.

    python data/measurements/hero.py     # less than a minute on one CPU thread; writes hero.png beside it

Two simple scenes (sixteen nouns, one or two things) that no training saw; the samples are the first that came, none is
chosen. Six tiles side by side, words a sixth of a tile high: they can be read on a telephone, too. The stored file has
its colours rounded, unseen, by `compressed` of data/build/compress_figures.py.
"""

import textwrap
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import tyro
from matplotlib.colors import to_rgb
from PIL import Image

from ldm_mini.latent_diffusion import LatentDiffusion
from ldm_mini.scenes import NOUNS, TINY_SCENES
from ldm_mini.show import scenes_for, show_inputs
from ldm_mini.show.plotting import GROUND, OUTLINES
from ldm_mini.tasks import sample_task

TITLES = {"text": "caption", "class": "class", "layout": "layout", "semantic": "semantic map",
          "superres": "4 x smaller", "inpaint": "hole"}
SCENES, ACROSS = 2, 3                           # of each task; tasks side by side
TILE, GAP, TITLE, WORDS = 128, 8, 30, 21        # in pixels


def show_given(ax, task: str, scenes: dict, k: int, size) -> None:
    """What a model gets to see of one scene; words are written, names of boxes larger than `show_inputs` does."""
    if task in ("text", "class"):
        words = scenes["caption"][k] if task == "text" else NOUNS[scenes["class"][k]]
        lines = textwrap.wrap(words, 11)
        ax.text(0.5, 0.5, "\n".join(lines), transform=ax.transAxes, ha="center", va="center",
                fontsize=min(WORDS, 0.83 * TILE / len(lines)))
    elif task == "layout":
        ax.imshow([[to_rgb(GROUND)]], extent=(0, 1, 1, 0))
        for i, (label, (x0, y0, x1, y1)) in enumerate(zip(scenes["labels"][k].tolist(), scenes["boxes"][k].tolist())):
            if label >= 0:
                ax.add_patch(plt.Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=OUTLINES[i], linewidth=3))
                half = 0.31 * len(NOUNS[label]) * WORDS / TILE          # of the name's width: it stays inside the tile
                ax.text(min(max((x0 + x1) / 2, half), 1 - half), (y0 + y1) / 2, NOUNS[label], ha="center", va="center",
                        fontsize=WORDS, bbox={"facecolor": GROUND, "edgecolor": "none", "pad": 0})
    else:
        ax.imshow(show_inputs(task, scenes, size)[k].permute(1, 2, 0) / 2 + 0.5)


def page(shown: dict, size, out: Path) -> None:
    """Draw it. shown: for each task its scenes and what came of them (SCENES,3,H,W)."""
    blocks = len(TITLES) // ACROSS
    block = TITLE + 12 + SCENES * (TILE + GAP)
    width, height = 2 * ACROSS * (TILE + GAP) + GAP, blocks * block
    fig = plt.figure(figsize=(width / 72, height / 72), dpi=72)        # at 72 dots per inch a point is a pixel
    for n, (task, title) in enumerate(TITLES.items()):
        scenes, drawn = shown[task]
        left, top = GAP + n % ACROSS * 2 * (TILE + GAP), n // ACROSS * block
        fig.text(left / width, 1 - (top + 4) / height, f"{title} \u2192", fontsize=TITLE - 4, va="top")
        for k in range(SCENES):
            for column in range(2):
                corner = left + column * (TILE + GAP), top + TITLE + 12 + k * (TILE + GAP) + TILE
                ax = fig.add_axes((corner[0] / width, 1 - corner[1] / height, TILE / width, TILE / height))
                ax.axis("off")
                if column:
                    ax.imshow(drawn[k].clamp(-1, 1).permute(1, 2, 0) / 2 + 0.5)
                else:
                    show_given(ax, task, scenes, k, size)
    fig.savefig(out)
    Image.open(out).convert("RGB").save(out, optimize=True)


def main(model: str = "emoji-scenes", seed: int = 0, out: Path = Path(__file__).with_suffix(".png")):
    torch.set_num_threads(1)
    ldm = LatentDiffusion.from_pretrained(model)
    config = replace(TINY_SCENES, size=ldm.image_size[0])
    shown = {}
    for task in TITLES:
        scenes = scenes_for(task, config, SCENES, seed)
        shown[task] = scenes, sample_task(ldm, task, scenes, seed=seed)
    page(shown, ldm.image_size, out)


if __name__ == "__main__":
    tyro.cli(main)
