"""Data sets and loaders. Every data set gives items of the same keys, so every model and conditioner takes any of them.

After `collate`, a batch is: image (B,3,H,W) float in [-1,1]; caption, a list of B strings; class (B,) noun or label
index, -1 none; style (B,), background (B,), labels (B,3), colors (B,3), -1 none; boxes (B,3,4) xyxy in [0,1], 0 none;
semantic (B,H,W); lowres (B,3,H/4,W/4) in [-1,1]; mask (B,1,H,W) float, 1 = hole; seed (B,). Indices are int64.
"""

from itertools import count

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from .scene import SceneConfig, compose

EPOCH = 100_000                 # items unless told otherwise: a DataLoader can shuffle so many
ENDLESS = 2 ** 62


def to_tensor(image: np.ndarray) -> torch.Tensor:
    """(H,W,3) uint8 -> (3,H,W) float in [-1,1]."""
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))).float().div_(127.5).sub_(1)


def collate(items) -> dict:
    """A list of items -> a batch: tensors stacked, numbers as int64, strings as a list."""
    if not items:
        raise ValueError("collate: no items; a batch needs at least one.")

    def join(values):
        if isinstance(values[0], str):
            return values
        return torch.stack(values) if isinstance(values[0], torch.Tensor) else torch.tensor(values, dtype=torch.int64)

    return {key: join([item[key] for item in items]) for key in items[0]}


class Seeded(Dataset):
    """What the seeds start ... start + length - 1 give, by `draw`: the items of a data set that is drawn by rule."""

    def __init__(self, config, length: int = EPOCH, start: int = 0):
        self.config, self.length, self.start = config, length, start

    def __len__(self):
        return self.length

    def __getitem__(self, index: int) -> dict:
        if not -self.length <= index < self.length:
            raise IndexError(f"{type(self).__name__}: index {index} of {self.length} items.")
        return self.draw(self.start + index % self.length)

    def draw(self, seed: int) -> dict:
        """The item of a seed."""
        raise NotImplementedError

    def batches(self, batch_size: int):
        """All of them in order, to measure on."""
        for first in range(0, self.length, batch_size):
            yield collate([self[i] for i in range(first, min(first + batch_size, self.length))])


class EmojiScenes(Seeded):
    """Scenes with the seeds start ... start + length - 1 as items of tensors (`scene.compose` gives the arrays)."""

    def __init__(self, config: SceneConfig = SceneConfig(), length: int = EPOCH, start: int = 0):
        super().__init__(config, length, start)

    def draw(self, seed: int) -> dict:
        """The scene of a seed."""
        scene = compose(seed, self.config)
        del scene["scene"]
        return {**scene, "image": to_tensor(scene["image"]), "lowres": to_tensor(scene["lowres"]),
                "semantic": torch.from_numpy(scene["semantic"]).long(),
                "mask": torch.from_numpy(scene["mask"]).float()[None],
                **{key: torch.from_numpy(scene[key]) for key in ("boxes", "labels", "colors")}}


def scene_batches(config: SceneConfig, num: int, start: int = 0, batch_size: int = 32):
    """Batches of the scenes with the seeds start ... start + num - 1, to measure on; `together` makes them one."""
    return EmojiScenes(config, num, start).batches(batch_size)


def scene_stream(config: SceneConfig, batch_size: int, start_step: int = 0, num_workers: int = 0, rank: int = 0,
                 world_size: int = 1, seed: int = 0):
    """Endless iterator over batches to train on, which can be entered at any step: step k always has the same scenes.

    On rank r of W these have the seeds (k W + r) B ... + B - 1, counted from seed * 2**32, so different `seed`s and
    ranks never share one.
    """
    return stream(EmojiScenes(config, ENDLESS), batch_size, start_step, num_workers, rank, world_size, seed)


def stream(data: Dataset, batch_size: int, start_step: int = 0, num_workers: int = 0, rank: int = 0,
           world_size: int = 1, seed: int = 0):
    """`scene_stream` of any data set of ENDLESS items."""
    def seeds(step: int) -> list:
        first = (seed << 32) + (step * world_size + rank) * batch_size
        return [index % ENDLESS for index in range(first, first + batch_size)]

    return iter(DataLoader(data, batch_sampler=map(seeds, count(start_step)),
                           num_workers=num_workers, prefetch_factor=4 if num_workers else None, collate_fn=collate))
