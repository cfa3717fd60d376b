"""What a network is conditioned on: one small record that every network of the package understands (LDM sec. 3.3)."""

from collections.abc import Mapping
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class Cond:
    """The condition of a batch of B samples. `Cond()` means: nothing.

    concat:  (B, C, h, w) joined to the noisy latent on channels: images, maps, masks.
    context: (B, M, D)    tokens read by cross attention: words, classes, boxes.
    mask:    (B, M) bool  True where a context token may be attended to; None = everywhere.
    vector:  (B, D)       one vector, added to the time embedding; or (B,) int64 for a DiT with a table of classes.
    """

    concat: Tensor | None = None
    context: Tensor | None = None
    mask: Tensor | None = None
    vector: Tensor | None = None

    def _map(self, function):
        return Cond(**{f.name: None if (v := getattr(self, f.name)) is None else function(v) for f in fields(self)})

    def to(self, *args, **kwargs) -> "Cond":
        """Like `Tensor.to`; a dtype leaves the boolean mask, and classes, as they are."""
        def move(v: Tensor) -> Tensor:
            moved = v.to(*args, **kwargs)
            return moved if v.is_floating_point() else moved.to(v.dtype)

        return self._map(move)

    def __getitem__(self, index) -> "Cond":
        """Some of the samples: `cond[:4]`."""
        return self._map(lambda v: v[index])

    __iter__ = None  # `for c in cond` would count up for ever on an empty one

    @staticmethod
    def stack(conds) -> "Cond":
        """Several batches after each other, as guidance needs: B1 + B2 + ... samples. Shapes and parts must agree."""
        return _combine(conds, lambda values: torch.cat(values, dim=0), "stack")

    def where(self, keep: Tensor, other: "Cond") -> "Cond":
        """This condition where `keep` (B,) bool is True, `other` elsewhere: condition dropout."""

        def choose(pair):
            own, its = pair
            return torch.where(keep.view(-1, *[1] * (own.ndim - 1)), own, its)

        return _combine([self, other], choose, "where")

    @staticmethod
    def join(conds) -> "Cond":
        """Several conditions of the same samples as one: concat joins on channels, context on tokens, vectors add.

        Raises ValueError if their batches, their tokens' or vectors' widths, or their maps' sizes differ.
        """
        conds = list(conds)
        for part, free in (("concat", 1), ("context", 1), ("vector", None)):
            shapes = [tuple(value.shape) for c in conds if (value := getattr(c, part)) is not None]
            if len({shape if free is None else shape[:free] + shape[free + 1:] for shape in shapes}) > 1:
                raise ValueError(f"Cond.join: the conditions' `{part}` do not fit together: shapes {shapes}. Only "
                                 "channels of concat and tokens of context may differ in number.")
        contexts = [c for c in conds if c.context is not None]
        masks = None
        if any(c.mask is not None for c in contexts):
            masks = torch.cat([c.context.new_ones(c.context.shape[:2], dtype=torch.bool) if c.mask is None else c.mask
                               for c in contexts], dim=1)
        concats = [c.concat for c in conds if c.concat is not None]
        vectors = [c.vector for c in conds if c.vector is not None]
        return Cond(concat=torch.cat(concats, dim=1) if concats else None,
                    context=torch.cat([c.context for c in contexts], dim=1) if contexts else None,
                    mask=masks,
                    vector=sum(vectors[1:], vectors[0]) if vectors else None)


def _combine(conds, function, name) -> Cond:
    """Apply `function` to each part's list of values; parts must be present in all conditions or in none."""
    conds, parts = list(conds), {}
    for part in ("concat", "context", "mask", "vector"):
        values = [getattr(c, part) for c in conds]
        missing = [v is None for v in values]
        if all(missing):
            continue
        if any(missing) or len({v.shape[1:] for v in values}) > 1:
            shapes = [None if v is None else tuple(v.shape) for v in values]
            raise ValueError(f"Cond.{name}: the conditions disagree on `{part}`: shapes {shapes}. "
                             "A conditioner's null() must have the same parts and shapes as its encode().")
        parts[part] = function(values)
    return Cond(**parts)


def batch_size(batch: dict) -> int:
    """How many samples a batch holds. Raises ValueError if it is empty or its entries disagree."""
    example = 'such as {"caption": ["a dog"] * 8}'
    if not isinstance(batch, Mapping):
        raise ValueError(f"A batch is a dict of lists or tensors, {example}; got a {type(batch).__name__}.")
    several = {key: value for key, value in batch.items() if hasattr(value, "__len__") and not isinstance(value, str)}
    sizes = {key: len(value) for key, value in several.items() if getattr(value, "ndim", 1)}
    if len(set(sizes.values())) != 1 or len(sizes) < len(batch):
        found = {key: sizes.get(key, "a single value") for key in batch} if batch else "an empty one"
        raise ValueError(f"A batch is a dict of lists or tensors of one length, {example}; got {found}.")
    return next(iter(sizes.values()))


class Conditioner(nn.Module):
    """Base of all conditioners. `keys`: the batch entries that it reads."""

    keys: tuple[str, ...] = ()

    def encode(self, batch: dict) -> Cond:
        """The condition of each of the batch's B samples."""
        raise NotImplementedError(f"{type(self).__name__} must define encode(batch) -> Cond.")

    def null(self, batch: dict) -> Cond:
        """"No condition" for B samples, with the same parts and shapes as encode(batch)."""
        raise NotImplementedError(f"{type(self).__name__} must define null(batch) -> Cond with the shapes of encode.")

    def present(self, batch: dict) -> bool:
        """Whether the batch holds what this condition reads."""
        return all(key in batch for key in self.keys)

    def image_size(self, batch: dict) -> tuple[int, int] | None:
        """(height, width) of the pictures that the batch asks for; None if this condition fits every size."""
        return None

    def use_first_stage(self, autoencoder) -> None:
        """LatentDiffusion shows every conditioner its first stage, so that none has to keep a second copy."""

    def finish(self, images: Tensor, batch: dict) -> Tensor:
        """Finished samples (B,3,H,W) -> the same, with what the condition knows for certain put in."""
        return images

    def _read(self, batch: dict, key: str):
        if key not in batch:
            raise ValueError(f"{type(self).__name__} reads batch[{key!r}], but the batch has only {sorted(batch)}.")
        return batch[key]
