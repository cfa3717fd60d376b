"""What each task is judged by: exact measures, for the composer knows the truth of every scene.

    text, class   every claim of the caption, checked by the recogniser (scoring.score_captions)
    layout        mean IoU of the wanted boxes, nouns found and not invented
    semantic      mIoU of the map that is read off the picture again (SemanticReader), and the nouns
    superres      PSNR, perceptual distance, and consistency: the picture made small again against the input
    inpaint       largest change outside the hole (must be 0), distance inside, perceptual distance
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..concat_conditioners import paste
from ..cond import batch_size
from ..perceptual import PerceptualLoss
from ..scenes.data import scene_batches
from ..scenes.scene import SceneConfig, scenes_to_test
from ..scenes.vocabulary import NOUNS, SEMANTIC, STUFF
from ..tasks import TASKS
from . import metrics
from .recogniser import Recogniser
from .scoring import score_captions, score_scenes

SCENE_SCORES = {"layout": ("object_recall", "object_precision", "count_accuracy", "box_iou"),
                "semantic": ("object_recall", "object_precision", "box_iou"),
                **dict.fromkeys(("superres", "inpaint"), ("object_recall", "color_accuracy", "background_accuracy"))}
THING = len(STUFF)                                              # of the reader's classes: some object or other
UNKNOWN = len(SEMANTIC)                                         # a thing that the recogniser cannot name
READ = 1024                                                     # real scenes that the reader of maps learns from
REAL = 1_000_000                                                # their seeds begin here, far from those of the prompts
CELLS = 16                                                      # of the recogniser's heat map: stride 4 at 64 pixels


@dataclass
class Judge:
    """Scores pictures of a task. perceptual: the distance to use; reader: for "semantic" only."""

    recogniser: Recogniser
    perceptual: Callable | None = None
    reader: "SemanticReader | None" = None

    @classmethod
    def of_scenes(cls, config: SceneConfig, tasks=tuple(TASKS), device="cpu", recogniser=None) -> "Judge":
        """A judge who has all that these tasks need, its reader fitted to training scenes of `config`."""
        judge = cls((recogniser or Recogniser.load()).to(device))
        if {"superres", "inpaint"} & set(tasks):
            judge.perceptual = PerceptualLoss().to(device)
        if "semantic" in tasks:
            real = scene_batches(scenes_to_test(config, "semantic", "train"), READ, REAL)
            judge.reader = SemanticReader(judge.recogniser).fit(real)
        return judge

    def score(self, task: str, pictures: Tensor, batch: dict) -> dict:
        """pictures (B,3,H,W) for the task's inputs in a batch of scenes -> {measure: mean over pictures}."""
        found = self.recogniser.detect(pictures)
        if task == "text":
            return score_captions(found, batch["caption"])
        if task == "class":  # what the class would be called, "" for none
            return score_captions(found, [f"a {NOUNS[k]}" if k >= 0 else "" for k in batch["class"].tolist()])
        if task not in SCENE_SCORES:
            return {}
        scene = score_scenes(found, batch)
        return {**self._exact(task, pictures, batch, found), **{k: scene[k] for k in SCENE_SCORES[task] if k in scene}}

    def _exact(self, task: str, pictures: Tensor, batch: dict, found: list[dict]) -> dict:
        truth = batch["image"].to(pictures)
        if task == "semantic":
            read = self.reader.read(pictures, found).cpu()
            return metrics.mean_iou(read, cells_of(batch["semantic"].cpu()), UNKNOWN + 1)
        if task == "superres":
            return {"psnr": _mean(metrics.psnr(pictures, truth)), "perceptual": self._distance(pictures, truth),
                    "consistency": _mean(metrics.low_resolution_consistency(pictures, batch["lowres"].to(pictures)))}
        if task == "inpaint":
            mask = batch["mask"].to(pictures)
            inside = metrics.masked_l1(pictures, truth, mask)[mask.flatten(1).any(1)]
            return {"outside_max": ((pictures - truth).abs() * (1 - mask)).max().item(), "inside_l1": _mean(inside),
                    "perceptual": self._distance(pictures, truth)}
        return {}

    @torch.no_grad()
    def _distance(self, a: Tensor, b: Tensor) -> float:
        return _mean(torch.cat([self.perceptual(x, y) for x, y in zip(a.split(32), b.split(32))]))


def baseline(task: str, batch: dict) -> tuple[str, Tensor] | None:
    """What needs no model: (its name, pictures (B,3,H,W)); None where there is no such thing."""
    if task == "superres":
        large = F.interpolate(batch["lowres"], batch["image"].shape[-2:], mode="bicubic")
        return "the input, enlarged (bicubic)", large.clamp(-1, 1)
    if task == "inpaint":
        known = 1 - batch["mask"]
        color = (batch["image"] * known).sum((2, 3), keepdim=True) / known.sum((2, 3), keepdim=True).clamp(min=1)
        filled = paste(color.expand_as(batch["image"]), batch["image"], batch["mask"])
        return "holes filled with the mean colour", filled
    return None


def after_first_stage(ldm, task: str, batch: dict) -> Tensor | None:
    """True scenes as the first stage gives them back, outside the hole untouched: the best that a task can reach."""
    if ldm.autoencoder is None:
        return None
    images = batch["image"].to(ldm.device)
    decoded = torch.cat([ldm.decode(ldm.encode(part)).clamp(-1, 1) for part in images.split(32)])
    return paste(decoded, batch["image"], batch["mask"]) if task == "inpaint" else decoded


def others(batch: dict) -> dict:
    """The batch with every scene in the place of the one before: inputs that belong to other pictures."""
    order = [*range(1, batch_size(batch)), 0]
    return {key: v[order] if isinstance(v, Tensor) else [v[i] for i in order] for key, v in batch.items()}


def cells_of(semantic: Tensor) -> Tensor:
    """Maps (B,H,W) -> (B,16,16): the most frequent class of each cell."""
    side = semantic.shape[-1] // CELLS
    blocks = semantic.long().unflatten(2, (CELLS, side)).unflatten(1, (CELLS, side))
    return blocks.transpose(2, 3).flatten(3).mode(-1).values


class SemanticReader:
    """Reads a semantic map (16 x 16 cells) off a picture, so that it can be compared with the map that was asked for.

    Which cells are sky, sand ... or some object: a linear classifier on the recogniser's features, fitted to real
    scenes in seconds. Which object: the noun of the nearest box that the recogniser found.
    """

    def __init__(self, recogniser: Recogniser):
        self.recogniser = recogniser

    def fit(self, batches, steps: int = 300) -> "SemanticReader":
        """Learn from batches of real scenes, deterministically."""
        # every cell of every scene is an example: its features, and its stuff or "some thing"
        x, y = [], []
        for batch in batches:
            x.append(self._features(batch["image"]).movedim(1, -1).flatten(0, 2))
            y.append(cells_of(batch["semantic"]).flatten().clamp(max=THING).to(x[-1].device))
        x, y, draws = torch.cat(x), torch.cat(y), torch.Generator().manual_seed(0)
        self.mean, self.std = x.mean(0), x.std(0) + 1e-6
        self.weight = torch.zeros(THING + 1, x.shape[1] + 1, device=x.device, requires_grad=True)
        optimizer = torch.optim.Adam([self.weight], lr=1e-2)
        for _ in range(steps):
            some = torch.randint(len(x), (8192,), generator=draws).to(x.device)
            loss = F.cross_entropy(self._logits(x[some]), y[some])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        self.weight.requires_grad_(False)
        return self

    def read(self, pictures: Tensor, found: list[dict]) -> Tensor:
        """pictures (B,3,H,W), with what `detect` found -> (B,16,16) classes, UNKNOWN for a thing without a name."""
        logits = torch.cat([self._logits(self._features(p).movedim(1, -1)) for p in pictures.split(64)])
        classes = logits.argmax(-1)
        # a cell of some thing gets the name of the nearest thing that was found
        names = torch.stack([_nearest_noun(scene["objects"]) for scene in found]).to(classes.device)
        return torch.where(classes == THING, names, classes)

    def _logits(self, x: Tensor) -> Tensor:
        return F.linear((x - self.mean) / self.std, self.weight[:, 1:], self.weight[:, 0])

    @torch.no_grad()
    def _features(self, images: Tensor) -> Tensor:
        """(B,3,H,W) -> (B,C,16,16)"""
        x = self.recogniser.resized(images)
        fine = self.recogniser.fine(x)
        coarse = F.interpolate(self.recogniser.coarse(fine), size=fine.shape[-2:], mode="bilinear")
        return torch.cat([fine, coarse, F.adaptive_avg_pool2d(x, fine.shape[-2:])], dim=1)


def _nearest_noun(objects: list[dict]) -> Tensor:
    """(16,16): for each cell the noun of the box nearest to it, in units of the box; UNKNOWN without any box."""
    grid = (torch.arange(CELLS) + 0.5) / CELLS
    nearest, names = torch.full((CELLS, CELLS), math.inf), torch.full((CELLS, CELLS), UNKNOWN)
    for thing in objects:
        (x0, y0, x1, y1), (x, y) = thing["box"], thing["centre"]
        distance = torch.maximum(((grid - x) / max(x1 - x0, 1e-3)).abs()[None],
                                 ((grid - y) / max(y1 - y0, 1e-3)).abs()[:, None])
        names = torch.where(distance < nearest, THING + thing["noun"], names)
        nearest = torch.minimum(nearest, distance)
    return names


def _mean(values: Tensor) -> float | None:
    """The mean; None if it is infinite (the PSNR of equal pictures) or there is nothing."""
    value = values.double().mean().item() if len(values) else math.inf
    return value if math.isfinite(value) else None
