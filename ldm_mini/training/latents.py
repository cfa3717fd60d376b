"""Latents computed once: the second stage never needs the encoder again (LDM sec. 3.2 trains on frozen latents)."""

import itertools
from pathlib import Path

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..asked import check_first_stage
from ..cond import to_device, together
from ..files import (
    FileError,
    check_sums,
    load_safetensors,
    read_json,
    save_safetensors,
    sha256,
    write_json,
    write_sums,
)
from ..video import as_films, as_images


class LatentCache:
    """N latents with their conditions, ready to be drawn in batches.

    latents:    (N,c,h,w) float16, as the first stage's `encode` gave them: not scaled.
    conditions: {key: tensor (N,...) or list of N}, for instance captions and classes.
    """

    def __init__(self, latents: Tensor, conditions: dict):
        self.latents, self.conditions = latents, conditions

    def __len__(self) -> int:
        return len(self.latents)

    def __getitem__(self, indices) -> dict:
        """A batch: "latent" (B,c,h,w) float32 and the conditions of those scenes. indices: (B,) int64, or a slice."""
        chosen = torch.arange(len(self))[indices]
        return {"latent": self.latents[chosen.to(self.latents.device)].float(),
                **{key: values[chosen] if isinstance(values, Tensor) else [values[i] for i in chosen.tolist()]
                   for key, values in self.conditions.items()}}

    @classmethod
    def join(cls, caches: list["LatentCache"]) -> "LatentCache":
        """Several caches of the same conditions as one."""
        if len(caches) == 1:
            return caches[0]
        return cls(torch.cat([cache.latents for cache in caches]), together([cache.conditions for cache in caches]))

    def to(self, device) -> "LatentCache":
        """The same with its latents on `device`; conditions stay where they are."""
        return LatentCache(self.latents.to(device), self.conditions)

    def batches(self, batch_size: int, start_step: int = 0, seed: int = 0, rank: int = 0, world_size: int = 1):
        """Endless batches from step `start_step` on. Every epoch is a new order of all N; batch k depends on
        (seed, k, rank) only, and the processes of one step share no scene."""
        step_size = batch_size * world_size
        per_epoch = len(self) // step_size
        if per_epoch < 1:
            raise ValueError(f"LatentCache: {len(self)} latents do not fill one batch of {step_size}.")
        for step in itertools.count(start_step):
            epoch, place = divmod(step, per_epoch)
            if step == start_step or place == 0:
                order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch))
            first = place * step_size + rank * batch_size
            yield self[order[first:first + batch_size]]

    def save(self, folder, made_from: str = "") -> None:
        """Write `latents.safetensors` and `latents.json`, the latter last: without it there is no cache."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {key: v for key, v in self.conditions.items() if isinstance(v, Tensor)}
        lists = {key: v for key, v in self.conditions.items() if key not in tensors}
        save_safetensors(folder / "latents.safetensors", {"latent": self.latents, **tensors})
        write_json(folder / "latents.json", {"made_from": made_from, "length": len(self), "lists": lists})
        write_sums(folder, {name: sha256(folder / name) for name in ("latents.safetensors", "latents.json")})

    @classmethod
    def load(cls, folder) -> "LatentCache":
        """What `save` wrote. Raises FileError if it is missing or damaged."""
        check_sums(folder)
        path = Path(folder) / "latents.json"
        lists, columns = read_json(path).get("lists"), load_safetensors(Path(folder) / "latents.safetensors")
        columns |= lists if isinstance(lists, dict) else {"lists": []}
        if other := [key for key, v in columns.items() if len(v) != len(columns.get("latent", ()))]:
            raise FileError(f"{path} is damaged: not one {' or '.join(other)} for each latent.")
        return cls(columns.pop("latent"), columns)


@torch.no_grad()
def cache_latents(autoencoder, batches, n: int, keys=("caption", "class"), path=None, made_from: str = "",
                  progress: bool = False, prepare=None, sample: bool = True, bf16: bool = False) -> LatentCache:
    """Encode the first `n` images of `batches` and keep their conditions `keys`.

    sample: a KL posterior is sampled, once; else its mode is taken.
    bf16: encode in bfloat16 where that is safe (autocast).
    batches: dicts with "image" (B,C,H,W), or "video" (B,C,F,H,W), whose latents are (B,c,F,h,w).
    path: a folder to keep the cache in; the one that is already there is loaded instead if it has n latents, was
    `made_from` the same (say, first stage and scenes) and is whole; else replaced.
    prepare: function of a batch on the autoencoder's device -> {key: tensor} to keep as well, such as masked latents.
    Raises ValueError if the batches hold fewer than n images.
    """
    if path is not None and (Path(path) / "latents.json").is_file():
        try:
            there = read_json(Path(path) / "latents.json")
            if (there.get("made_from"), there.get("length")) == (made_from, n):
                return LatentCache.load(path)
        except FileError as error:
            print(f"{error} The latents are encoded anew.")
    check_first_stage(autoencoder)
    device, training = next(autoencoder.parameters()).device, autoencoder.training
    autoencoder.eval()
    parts, count = [], 0
    with tqdm(total=n, desc="encoding", unit="image", disable=not progress, mininterval=1) as bar:
        for batch in batches:
            batch = to_device({key: v[:n - count] for key, v in batch.items()}, device)
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                z = encode_frames(autoencoder, batch["video"] if "video" in batch else batch["image"], sample)
            made = {} if prepare is None else prepare(batch)
            kept = {"latent": z, **{key: batch[key] for key in keys if key in batch}, **made}
            parts.append({key: _small(key, v) for key, v in kept.items()})
            count += len(z)
            bar.update(len(z))
            if count >= n:
                break
    autoencoder.train(training)
    if count < n:
        raise ValueError(f"cache_latents: the batches held {count} images, {n} were asked for.")
    columns = together(parts)
    cache = LatentCache(columns.pop("latent"), columns)
    if path is not None:
        cache.save(path, made_from)
    return cache


def encode_frames(autoencoder, images: Tensor, sample: bool) -> Tensor:
    """Raw latents of pictures (B,C,H,W), or frame by frame of films (B,C,F,H,W)."""
    if images.ndim == 4:
        return autoencoder.encode(images, sample=sample)
    return as_films(autoencoder.encode(as_images(images), sample=sample), images.shape[2])


def _small(key: str, v):
    """Maps and pictures in as few bytes as they need; labels and captions as they are."""
    if not isinstance(v, Tensor):
        return v
    v = v.cpu()
    if key == "semantic" and v.max() < 256:
        return v.to(torch.uint8)
    return v.half() if v.ndim >= 4 and v.is_floating_point() else v
