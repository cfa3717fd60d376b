"""The README's picture: the tasks of one model.

    python data/measurements/hero.py     # less than a minute on one CPU thread; writes hero.png beside it

Four simple scenes (sixteen nouns, one or two things) that no training saw; the samples are the first that came, none is
chosen.
"""

import textwrap
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import tyro

from ldm_mini.latent_diffusion import LatentDiffusion
from ldm_mini.scenes import NOUNS, TINY_SCENES
from ldm_mini.show import scenes_for, show_inputs
from ldm_mini.tasks import sample_task

COLUMNS = {"text": "caption", "class": "class", "layout": "layout", "semantic": "semantic map",
           "superres": "4 x smaller", "inpaint": "hole"}
ROWS = 4


def main(model: str = "emoji-scenes", seed: int = 0, out: Path = Path(__file__).with_suffix(".png")):
    torch.set_num_threads(1)
    ldm = LatentDiffusion.from_pretrained(model)
    config = replace(TINY_SCENES, size=ldm.image_size[0])
    fig, axes = plt.subplots(ROWS, 2 * len(COLUMNS), figsize=(12, 4.4), layout="constrained",
                             gridspec_kw={"wspace": 0, "hspace": 0})
    fig.get_layout_engine().set(w_pad=0.02, h_pad=0.02)
    for column, (task, title) in enumerate(COLUMNS.items()):
        scenes = scenes_for(task, config, ROWS, seed)
        given, drawn = show_inputs(task, scenes, ldm.image_size), sample_task(ldm, task, scenes, seed=seed)
        for row in range(ROWS):
            left, right = axes[row, 2 * column:2 * column + 2]
            words = {"text": scenes["caption"][row], "class": NOUNS[scenes["class"][row]]}
            if given is None:
                left.text(0.5, 0.5, textwrap.fill(words[task], 13), ha="center", va="center", fontsize=9)
            else:
                left.imshow(given[row].permute(1, 2, 0) / 2 + 0.5)
            right.imshow(drawn[row].clamp(-1, 1).permute(1, 2, 0) / 2 + 0.5)
        axes[0, 2 * column].set_title(f"{title} \u2192", fontsize=12)
    for ax in axes.flat:
        ax.axis("off")
    fig.savefig(out, dpi=128)


if __name__ == "__main__":
    tyro.cli(main)
