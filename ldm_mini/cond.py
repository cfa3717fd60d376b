"""What a network is conditioned on: one small record that every network of the package understands (LDM sec. 3.3).

Built in notebooks 10 (dropping) and 12 (joining).
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn


class NotRead(UserWarning):
    """A model was asked for something that it cannot read, such as a word it was never trained on."""


warnings.filterwarnings("always", category=NotRead, append=True)  # each time, not once; whoever minds may filter it


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

    def __post_init__(self):
        _samples([self])
        tokens = None if self.context is None else tuple(self.context.shape[:2])
        if self.mask is not None and tokens != tuple(self.mask.shape):
            raise ValueError(f"Cond: the mask (B,M) tells which tokens of the context (B,M,D) may be read; got a mask "
                             f"{tuple(self.mask.shape)} and {'no context' if tokens is None else f'tokens {tokens}'}.")

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
        if keep.dtype != torch.bool or keep.ndim != 1 or _samples([self, other]) not in (None, len(keep)):
            raise ValueError(f"Cond.where: keep is one truth value (B,) for each sample; got {keep.dtype} "
                             f"{tuple(keep.shape)} for {_samples([self, other])} samples.")

        def choose(pair):
            return torch.where(keep.to(pair[0].device).view(-1, *[1] * (pair[0].ndim - 1)), *pair)

        return _combine([self, other], choose, "where")

    @staticmethod
    def join(conds) -> "Cond":
        """Several conditions of the same samples as one: concat joins on channels, context on tokens, vectors add."""
        conds = list(conds)
        _samples(conds)
        concats, contexts, vectors = ([value for c in conds if (value := getattr(c, part)) is not None]
                                      for part in ("concat", "context", "vector"))
        # tokens without a mask may all be read; beside others of which some may not, that has to be said
        masks = [c.mask for c in conds if c.context is not None]
        if any(mask is not None for mask in masks):
            masks = [tokens.new_ones(tokens.shape[:2], dtype=torch.bool) if mask is None else mask
                     for tokens, mask in zip(contexts, masks, strict=True)]
        # to add alone would take a vector of width 1 for a wider one in silence; to stack refuses it
        return Cond(concat=torch.cat(concats, dim=1) if concats else None,
                    context=torch.cat(contexts, dim=1) if contexts else None,
                    mask=torch.cat(masks, dim=1) if masks and masks[0] is not None else None,
                    vector=sum(torch.stack(vectors)) if vectors else None)


def _samples(conds) -> int | None:
    """How many samples conditions are for; None if they are empty. Raises ValueError if they disagree."""
    sizes = {len(v) for c in conds for f in fields(c) if (v := getattr(c, f.name)) is not None}
    if len(sizes) > 1:
        raise ValueError(f"Cond: all parts of a condition are for the same samples; got {sorted(sizes)} of them.")
    return next(iter(sizes), None)


def _combine(conds, function, name) -> Cond:
    """Apply `function` to each part's list of values; parts must be present in all conditions or in none."""
    conds, parts = list(conds), {}
    for part in (f.name for f in fields(Cond)):
        values = [getattr(c, part) for c in conds]
        shapes = [None if v is None else tuple(v.shape) for v in values]
        if len({shape and shape[1:] for shape in shapes}) > 1:
            raise ValueError(f"Cond.{name}: shapes of `{part}` differ, {shapes}: null() must have those of encode().")
        parts[part] = function(values) if values and values[0] is not None else None
    return Cond(**parts)


def batch_size(batch: dict) -> int:
    """How many samples a batch holds. Raises ValueError if it is empty or its entries disagree."""
    sizes = {}
    for key, value in batch.items() if isinstance(batch, Mapping) else ():
        several = hasattr(value, "__len__") and not isinstance(value, str) and getattr(value, "ndim", 1)
        sizes[key] = len(value) if several else "a single value"
    if len(set(sizes.values())) != 1 or "a single value" in sizes.values():
        raise ValueError('A batch is a dict of lists or tensors of one length, such as {"caption": ["a dog"] * 8}; got '
                         f"{sizes or batch!r:.120}.")
    return next(iter(sizes.values()))


def together(batches: list[dict]) -> dict:
    """Several batches as one."""
    return {key: torch.cat([b[key] for b in batches]) if isinstance(batches[0][key], Tensor) else
            [item for b in batches for item in b[key]] for key in batches[0]}


def to_device(batch: dict, device) -> dict:
    """The batch with its tensors on `device`; captions stay as they are. Raises ValueError if it is no dict."""
    if not isinstance(batch, dict):
        raise ValueError(f'a batch must be a dict; got a {type(batch).__name__}. Images alone: {{"image": images}}.')
    # only a GPU need not wait: the CPU would read what has not come yet
    later = str(device) != "cpu"
    return {key: v.to(device, non_blocking=later) if isinstance(v, Tensor) else v for key, v in batch.items()}


class Conditioner(nn.Module):
    """Base of all conditioners. `keys`: the batch entries that it reads."""

    keys: tuple[str, ...] = ()

    @property
    def parts(self):
        """The conditions that it consists of: itself alone, unless it is a combination."""
        return [self]

    @property
    def device(self) -> torch.device | None:
        """Where its weights are; None if it has none, then everything stays where it is."""
        return next((p.device for p in self.parameters()), None)

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

    def remarks(self, batch: dict) -> list[str]:
        """Sentences about what of the batch it cannot read, for `sample` to say. Training does not ask."""
        return []

    def _read(self, batch: dict, key: str):
        if key not in batch:
            raise ValueError(f"{type(self).__name__} reads batch[{key!r}], but the batch has only {sorted(batch)}.")
        return batch[key]

    def _read_numbers(self, batch: dict, key: str, dtype=None) -> Tensor:
        value = self._read(batch, key)
        try:
            return torch.as_tensor(value, device=self.device, dtype=dtype)
        except (TypeError, ValueError, RuntimeError):
            raise ValueError(f"batch[{key!r}] is a tensor, or lists of numbers, all of one length; got "
                             f"{value!r:.80}.") from None

    def _read_captions(self, batch: dict, key: str) -> list[str]:
        captions = self._read(batch, key)
        if isinstance(captions, str) or not all(isinstance(caption, str) for caption in captions):
            raise ValueError(f"batch[{key!r}] is a list of captions, that is of strings; got {captions!r:.80}.")
        return list(captions)


def check_net_inputs(config, x: Tensor, t: Tensor, cond: Cond, context: bool, vector: bool) -> None:
    """Raise a ValueError that says what to change if a network's x, t or cond do not fit its config.

    config has in_channels, concat_channels and min_factor; context and vector: whether the network reads that part.
    """
    if x.ndim != 4 or x.shape[2] % config.min_factor or x.shape[3] % config.min_factor:
        raise ValueError(f"x must be (B,C,h,w), h and w multiples of {config.min_factor}; got {tuple(x.shape)}.")
    joined = 0 if cond.concat is None else cond.concat.shape[1]
    if x.shape[1] + joined != config.in_channels + config.concat_channels:
        raise ValueError(f"x and cond.concat have {x.shape[1]} + {joined} channels; the network has in_channels="
                         f"{config.in_channels} and concat_channels={config.concat_channels}.")
    if t.shape != (len(x),) or t.is_floating_point():
        raise ValueError(f"t must be one integer step per sample, ({len(x)},); got {tuple(t.shape)} {t.dtype}.")
    # a part that nobody reads would be no error of torch's: the picture would just ignore it
    for part, wanted in (("context", context), ("vector", vector)):
        if wanted != (getattr(cond, part) is not None):
            built, given = ("with", "no") if wanted else ("without", "a")
            raise ValueError(f"the network was built {built} {part}, but was given {given} cond.{part}: make its "
                             "config and the conditioner agree.")
    # a single one would be repeated for all samples
    width = () if getattr(config, "num_classes", None) is not None else (config.vector_dim,)
    for part, shape in (("concat", (joined, *x.shape[2:])), ("context", (None, getattr(config, "context_dim", None))),
                        ("vector", width)):
        got = x.shape if (value := getattr(cond, part)) is None else value.shape
        if value is not None and (len(got) != len(shape) + 1 or got[0] != len(x) or any(
                n not in (None, m) for n, m in zip(shape, got[1:]))):
            wanted = ", ".join("any" if n is None else str(n) for n in (len(x), *shape))
            raise ValueError(f"cond.{part} must be ({wanted}), one for each sample of x; got {tuple(got)}.")
