"""Inputs of a task from held-out scenes or from files, and a grid of what came of them: input, output, truth."""

import difflib
import warnings
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageOps
from torch import Tensor

from ..files import read_json
from ..hub import CONFIG, find
from ..scenes.data import EPOCH, scene_batches, to_tensor
from ..scenes.films import parse_film
from ..scenes.own_pictures import opened, plain_item, read_hole, read_square
from ..scenes.scene import LOWRES_FACTOR, SceneConfig, scenes_of, scenes_to_test
from ..scenes.vocabulary import NOUNS, SEMANTIC, STUFF
from ..tasks import TASKS, check_possible, inputs, sample_task
from .plotting import GROUND, INK, OUTLINES, class_colors, texts_under

FROM_FILES = ("superres", "semantic", "inpaint")


def words_for(captions, class_name: str | None, num: int) -> dict:
    """A batch of `num`: the captions, each for its share, and the class of a name, if any. ValueError for no noun."""
    batch = {"caption": [captions[i * len(captions) // num] for i in range(num)]} if captions else {}
    if class_name is not None:
        noun = class_name.strip().lower()
        if noun not in NOUNS:
            near = difflib.get_close_matches(noun, NOUNS, n=1, cutoff=0.65)
            told = f'did you mean "{near[0]}"?' if near else f"they are {', '.join(NOUNS)}."
            raise ValueError(f"--class {class_name!r} is no noun of the scenes; {told}")
        batch["class"] = torch.full((num,), NOUNS.index(noun))
    return batch


def scenes_for(task: str, config: SceneConfig, num: int, seed: int = 0) -> dict:
    """A batch of `num` scenes that no training saw; of one object each where the task is "class". Those of another
    seed are others, and the first is the same however many there are."""
    return next(scene_batches(scenes_to_test(config, task), num, seed * EPOCH, batch_size=num))


def batch_from_files(task: str, size: int, num: int, image=None, mask=None, seed: int = 0) -> dict:
    """A batch of `num` equal inputs from files; pictures are cut to the square in their middle.

    inpaint: a picture and what marks its hole (`read_hole`: a mask, or its own transparency), else a random one; how
    that was understood is told as a warning. superres: the small picture, brought to size / 4. semantic: a PNG whose
    pixel values are indices of vocabulary.SEMANTIC.
    """
    if task not in FROM_FILES:
        raise ValueError(f"--image is for the tasks {', '.join(FROM_FILES)}; {task} reads no picture.")
    if mask is not None and task != "inpaint":
        raise ValueError("--mask is for the task inpaint.")
    if task == "semantic":
        with opened(image) as picture:
            if picture.mode not in ("1", "L", "P", "I") and not picture.mode.startswith("I;16"):
                raise ValueError(f"it is of mode {picture.mode}, and a semantic map is a PNG of one channel with "
                                 f"values from 0 to {len(SEMANTIC) - 1}, the indices of vocabulary.SEMANTIC")
            values = np.asarray(picture).astype(np.int64)
            if values.min() < 0 or values.max() >= len(SEMANTIC):
                raise ValueError(f"it holds values from {values.min()} to {values.max()}, and a semantic map from 0 to "
                                 f"{len(SEMANTIC) - 1}, the indices of vocabulary.SEMANTIC")
        square = Image.fromarray(values.astype(np.uint8))
        values = np.asarray(ImageOps.fit(square, (size, size), Image.Resampling.NEAREST)).astype(np.int64)
        return {"semantic": torch.from_numpy(values)[None].repeat(num, 1, 1)}
    if task == "superres":
        return {"lowres": to_tensor(read_square(image, size // LOWRES_FACTOR))[None].repeat(num, 1, 1, 1)}
    items = [plain_item(read_square(image, size), seed=seed + i) for i in range(num)]
    batch = {key: torch.stack([item[key] for item in items]) for key in ("image", "mask")}
    found = read_hole(image, size, mask)
    if found is not None:
        hole, told = found
        warnings.warn(told, stacklevel=2)
        batch["mask"] = torch.from_numpy(hole).float()[None, None].repeat(num, 1, 1, 1)
    return batch


def contradictions(batch: dict) -> list[str]:
    """Sentences about captions that name other things, or more or fewer, than the class, layout or map beside them."""
    said = []
    for i, caption in enumerate(batch.get("caption", ())):
        try:
            nouns = [noun for noun, _ in parse_film(caption)[0].objects]        # a picture's moves nothing
        except ValueError:                                      # a caption of one's own, that the grammar cannot read
            continue
        told = {}
        if "class" in batch and (k := int(batch["class"][i])) >= 0 and NOUNS[k] not in nouns:
            told["class"] = [NOUNS[k]]
        if "labels" in batch:
            there = [NOUNS[k] for k in torch.as_tensor(batch["labels"][i]).tolist() if k >= 0]
            told |= {"layout": there} if there and sorted(there) != sorted(nouns) else {}
        if "semantic" in batch:
            there = [SEMANTIC[k] for k in torch.as_tensor(batch["semantic"][i]).unique().tolist() if k >= len(STUFF)]
            told |= {"map": there} if {*nouns} - {*there} else {}
        said += [f'"{caption}" names {", ".join(nouns)}, the {what} {", ".join(there) or "nothing"}: the model is told '
                 "both." for what, there in told.items() if nouns]
    return list(dict.fromkeys(said))


def tell_contradictions(batch: dict) -> None:
    """Warn of them."""
    for sentence in contradictions(batch):
        warnings.warn(sentence, stacklevel=3)


def show_inputs(task: str, batch: dict, size) -> Tensor | None:
    """What a model of the task gets to see, as pictures (B,3,H,W) in [-1,1]; None for words, which are no picture."""
    if task == "superres":
        return F.interpolate(batch["lowres"].float(), size, mode="nearest")
    if task == "semantic":
        colors = torch.from_numpy(class_colors(len(SEMANTIC))).float() / 127.5 - 1
        return F.interpolate(colors[batch["semantic"]].permute(0, 3, 1, 2), size, mode="nearest")
    if task == "inpaint":
        return batch["image"].masked_fill(batch["mask"] > 0.5, 0.0)             # grey shows better than the true black
    if task == "layout":
        return torch.stack([_draw_layout(*layout, size) for layout in zip(batch["labels"], batch["boxes"])])
    return None


def showcase(ldm, task: str, batch: dict, words: dict | None = None, **options) -> dict[str, Tensor]:
    """Rows of a grid: "given", the inputs, if they can be drawn; "drawn", the samples; "real", true scenes, if known.

    words: "caption" or "class" besides, for a model that reads them too. options: of `ldm.sample`.
    """
    if words is None:
        samples = sample_task(ldm, task, batch, **options)
    else:
        if unread := sorted(words.keys() - set(ldm.conditioner.keys)):
            raise ValueError(f"this model reads no {unread[0]} beside its inputs; it reads {ldm.conditioner.keys}.")
        if not TASKS[task].keys:
            raise ValueError(f"--task {task} is without captions and classes: leave it out, or them.")
        options.setdefault("guidance_scale", TASKS["text"].guidance_scale)
        asked = {**inputs(task, batch, ldm), **words}
        tell_contradictions(asked)
        samples = ldm.sample(asked, **options)
    rows = {"given": show_inputs(task, batch, samples.shape[-2:]), "drawn": samples.cpu()}
    if "seed" in batch and words is None and TASKS[task].keys:
        rows["real"] = batch["image"]
    return {name: row for name, row in rows.items() if row is not None}


def told(batch: dict) -> list[str] | None:
    """What the words of a batch say, for the texts under its pictures: captions, else names of classes; else None."""
    if "caption" in batch:
        return list(batch["caption"])
    return [NOUNS[i] if i >= 0 else "" for i in batch["class"].tolist()] if "class" in batch else None


def run_task(ldm, task: str, model, num: int, size: int | None = None, image=None, mask=None, words=None,
             **options) -> tuple[list[Tensor], list[str]]:
    """What `python -m ldm_mini sample --task` draws: on files, or on scenes like those that `model`, the folder or name
    of `ldm`, was trained on. Rows of pictures, and the texts under them: whose row it is, or the words."""
    if task is None or (image is None and mask is not None):
        raise ValueError("--image needs a --task that reads it: superres, semantic or inpaint; and --mask an --image.")
    check_possible(ldm, task)
    size = size or (ldm.image_size or (64,))[0]
    ldm.check_size(size)                                        # before scenes or files of it are made
    if image is not None:
        batch = batch_from_files(task, size, num, image, mask, options.get("seed", 0))
    else:
        scenes = scenes_of(read_json(find(model) / CONFIG))
        batch = scenes_for(task, replace(scenes, size=size), num, options.get("seed", 0))
    rows = showcase(ldm, task, batch, words, size=size, **options)
    return list(rows.values()), texts_under(rows, {"drawn": told(words or inputs(task, batch) or {})})


def film_inputs(ldm, words: dict, num: int, size: int | None = None, image=None, mask=None) -> dict:
    """What `python -m ldm_mini sample --task video` gives a film model: captions, and the first frame from a file."""
    if mask is not None:
        raise ValueError("--mask is for the task inpaint.")
    if image is None:
        return words
    side = size or (ldm.image_size or (64,))[0]
    return {**words, "first": to_tensor(read_square(image, side))[None].repeat(num, 1, 1, 1)}


def _draw_layout(labels: Tensor, boxes: Tensor, size) -> Tensor:
    height, width = size
    picture = Image.new("RGB", (width, height), GROUND)
    pen = ImageDraw.Draw(picture)
    for i, (label, box) in enumerate(zip(labels.tolist(), boxes.tolist())):
        if label >= 0:
            x0, y0, x1, y1 = (round(v * side) for v, side in zip(box, (width, height, width, height)))
            pen.rectangle((x0, y0, max(x1 - 1, x0), max(y1 - 1, y0)), outline=OUTLINES[i % len(OUTLINES)], width=2)
            left = max(min(x0 + 3, width - 1 - round(pen.textlength(NOUNS[label]))), 0)  # inside the picture
            pen.rectangle(pen.textbbox((left, y0 + 1), NOUNS[label]), GROUND)   # no line runs through a name
            pen.text((left, y0 + 1), NOUNS[label], INK)
    return to_tensor(np.asarray(picture))
