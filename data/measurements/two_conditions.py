"""Does the caption tell the colour and the layout the place? The measurement of notebook 12, section 8.

    python data/measurements/two_conditions.py [MODEL] [SCENES]

The shipped model draws the same scenes, which no training saw, from the same noise: told the layout alone, the caption
alone, both with one guidance scale, and both with a scale for each (in a row: first the layout, then what the caption
adds); and, as a control, the layout with the boxes of another scene. The recogniser reads what came of it. Only the
caption tells colours and backgrounds, and only the layout tells where and how large exactly. About 7 minutes for 128
scenes of 128 pixels on one quiet CPU thread; the results go to `two_conditions.json`.
"""

import sys
from pathlib import Path

import torch

from ldm_mini.cond import Cond
from ldm_mini.diffusion import make_denoiser
from ldm_mini.files import write_json
from ldm_mini.hub import find, read_config
from ldm_mini.latent_diffusion import LatentDiffusion
from ldm_mini.measure import Recogniser, score_scenes
from ldm_mini.samplers import SAMPLERS
from ldm_mini.scenes import scenes_of
from ldm_mini.show import scenes_for
from ldm_mini.tasks import inputs

STEPS, BATCH, OTHER = 20, 32, "layout, boxes of another scene"
DIALS = ((3.0, 3.0), (3.0, 1.0), (6.0, 1.0), (6.0, 3.0), (1.0, 6.0))             # layout, caption
KEPT = ("object_recall", "object_precision", "color_accuracy", "background_accuracy", "box_iou")


@torch.no_grad()
def draw(ldm, batch: dict, which: str, first: float, second: float, noise: torch.Tensor) -> torch.Tensor:
    """Pictures for the batch's "layout" or "caption" alone, or "both" with two guidance scales."""
    blank = {"latent": torch.zeros(len(noise), *ldm.latent_shape(ldm.image_size))}
    layout, caption = inputs("layout", batch), inputs("text", batch)
    given = {"layout": layout, "caption": caption, "both": {**layout, **caption}}
    null, one, both = (ldm.conditioner.null(blank), *(ldm.conditioner.encode({**blank, **told})
                                                      for told in (layout, given[which])))
    if which != "both":
        denoise = make_denoiser(ldm.net, ldm.schedule, both, null, first, ldm.prediction)
    else:
        stacked = Cond.stack([null, one, both])

        def net(x, t, cond):
            n, f, b = ldm.net(torch.cat([x] * 3), torch.cat([t] * 3), stacked).chunk(3)
            return n + first * (f - n) + second * (b - f)

        denoise = make_denoiser(net, ldm.schedule, Cond(), prediction=ldm.prediction)
    *_, z = SAMPLERS["dpm"](denoise, noise, ldm.schedule, steps=STEPS)
    return ldm.decode(z).clamp(-1, 1)


def boxes_of_another(batch: dict) -> dict:
    """The same things, but each scene has the boxes of the next scene with as many things."""
    count, rows = (batch["labels"] >= 0).sum(dim=1), torch.arange(len(batch["labels"]))
    other = torch.empty_like(rows)
    for n in count.unique():
        other[count == n] = rows[count == n].roll(-1)
    return {**batch, "boxes": batch["boxes"][other]}


def main(model: str = "emoji-scenes", count: int = 128) -> None:
    """Measure every setting, and keep what was measured so far."""
    ldm, recogniser = LatentDiffusion.from_pretrained(model), Recogniser.load()
    batch = scenes_for("layout", scenes_of(read_config(find(model), "LatentDiffusion")), count)
    noise = torch.randn(count, *ldm.latent_shape(ldm.image_size), generator=torch.Generator().manual_seed(0))
    settings = {"layout alone": ("layout", 3.0, 0.0), OTHER: ("layout", 3.0, 0.0),
                "caption alone": ("caption", 3.0, 0.0)}
    settings |= {f"both: layout {first:g}, caption {second:g}": ("both", first, second) for first, second in DIALS}
    rows = {}
    for name, setting in settings.items():
        told = boxes_of_another(batch) if name == OTHER else batch
        parts = [{key: values[k:k + BATCH] for key, values in told.items()} for k in range(0, count, BATCH)]
        pictures = torch.cat([draw(ldm, part, *setting, noise[k * BATCH:k * BATCH + BATCH])
                              for k, part in enumerate(parts)])
        rows[name] = pictures
    rows["true scenes"] = batch["image"]
    scores = {name: score_scenes(recogniser.detect(pictures), batch) for name, pictures in rows.items()}
    rounded = {name: {key: round(score[key], 4) for key in KEPT if key in score} for name, score in scores.items()}
    write_json(Path(__file__).with_suffix(".json"), {"scenes": count, "steps": STEPS, "rows": rounded})
    for name, score in rounded.items():
        print(name, score)


if __name__ == "__main__":
    main(*sys.argv[1:2], *map(int, sys.argv[2:3]))
