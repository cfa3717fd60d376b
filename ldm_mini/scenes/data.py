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


class _Seeded(Dataset):
    """Items `start` to `start + length - 1` of an endless sequence, made from their number."""

    def __init__(self, length: int, start: int = 0):
        if length < 1 or start < 0:
            raise ValueError(f"{type(self).__name__}: length={length} must be positive, start={start} not negative.")
        self.length, self.start = length, start

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        if not -self.length <= index < self.length:
            raise IndexError(f"{type(self).__name__}: index {index} of {self.length} items.")
        return self.make(self.start + index % self.length)


class EmojiScenes(_Seeded):
    """Scenes with the seeds start ... start + length - 1 as items of tensors (`scenes.compose` gives the arrays)."""

    def __init__(self, config: SceneConfig = SceneConfig(), length: int = EPOCH, start: int = 0):
        super().__init__(length, start)
        self.config = config

    def make(self, seed: int) -> dict:
        """The item of one seed."""
        scene = compose(seed, self.config)
        del scene["scene"]
        return {**scene, "image": to_tensor(scene["image"]), "lowres": to_tensor(scene["lowres"]),
                "semantic": torch.from_numpy(scene["semantic"]).long(),
                "mask": torch.from_numpy(scene["mask"]).float()[None],
                **{key: torch.from_numpy(scene[key]) for key in ("boxes", "labels", "colors")}}


class SceneLoader:
    """An endless stream of batches that can be entered at any step: batch k always has the same items.

    data: a data set of `EmojiScenes` kind (random access by number); or a SceneConfig. On rank r of W, step k is the
    items (k W + r) B ... + B - 1, counted from seed * 2**32, so different seeds and ranks never share one.
    """

    def __init__(self, data, batch_size: int, workers: int = 0, seed: int = 0, rank: int = 0, world_size: int = 1,
                 pin_memory: bool = False):
        if batch_size < 1 or workers < 0 or seed < 0 or not 0 <= rank < world_size:
            raise ValueError(f"SceneLoader: batch_size={batch_size}, workers={workers}, seed={seed}, rank={rank} of "
                             f"{world_size}; batch_size must be positive, none negative, rank below world_size.")
        self.data = EmojiScenes(data, ENDLESS) if isinstance(data, SceneConfig) else data
        self.batch_size, self.workers, self.pin_memory = batch_size, workers, pin_memory
        self.seed, self.rank, self.world_size = seed, rank, world_size

    def _indices(self, step: int) -> list:
        first = (self.seed << 32) + (step * self.world_size + self.rank) * self.batch_size
        return [index % len(self.data) for index in range(first, first + self.batch_size)]

    def batch(self, step: int) -> dict:
        """The batch of one step, made here and now."""
        return collate([self.data[index] for index in self._indices(step)])

    def batches(self, step: int = 0):
        """Iterator over the batches of step, step + 1, ... without end."""
        return iter(DataLoader(self.data, batch_sampler=map(self._indices, count(step)), num_workers=self.workers,
                               prefetch_factor=4 if self.workers else None, collate_fn=collate,
                               pin_memory=self.pin_memory))

    __iter__ = batches


def scene_stream(config: SceneConfig, batch_size: int, start_step: int = 0, num_workers: int = 0, rank: int = 0,
                 world_size: int = 1, seed: int = 0):
    """Endless iterator over batches from `start_step` on, one part of `world_size` for this rank."""
    return SceneLoader(config, batch_size, num_workers, seed, rank, world_size).batches(start_step)
