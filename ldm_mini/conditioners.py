"""What pictures are conditioned on (LDM sec. 3.3): classes, captions, boxes, and any combination of conditions.

The contract and its base class: `cond`. Images: `concat_conditioners`. Built in notebooks 10 and 12.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .asked import at_least, between
from .cond import Cond, Conditioner, batch_size
from .text import TextTransformer, pool, transformer


class ClassConditioner(Conditioner):
    """One learned token per class, and one for "no class" (-1), as in the paper's ImageNet models (cin256-v2).

    dim: width of the token, None for no token; vector_dim: also (or only) a vector for the time embedding.
    key: the batch entry with the classes, (B,) integers from -1 to num_classes - 1.
    """

    def __init__(self, num_classes: int, dim: int | None, vector_dim: int | None = None, key: str = "class"):
        super().__init__()
        at_least(1, "ClassConditioner", num_classes=num_classes, dim=dim, vector_dim=vector_dim)
        self.num_classes, self.dim, self.vector_dim, self.key, self.keys = num_classes, dim, vector_dim, key, (key,)
        self.token = None if dim is None else nn.Embedding(num_classes + 1, dim)
        self.vector = None if vector_dim is None else nn.Embedding(num_classes + 1, vector_dim)

    def encode(self, batch: dict) -> Cond:
        """batch[key] (B,) -> context (B,1,dim), vector (B,vector_dim)"""
        classes = self._read(batch, self.key)
        if not isinstance(classes, Tensor) and any(isinstance(name, str) for name in classes):
            raise ValueError(f"batch[{self.key!r}] holds names; give indices, as in ldm_mini.scenes.NOUN_INDEX[name].")
        classes = self._read_numbers(batch, self.key)
        # only here: on a GPU, to look is to wait
        if classes.ndim != 1 or classes.is_floating_point() or classes.dtype == torch.bool or (
                classes.is_cpu and not ((-1 <= classes) & (classes < self.num_classes)).all()):
            raise ValueError(f"batch[{self.key!r}] holds classes {classes.min()} to {classes.max()} ({classes.dtype}, "
                             f"{tuple(classes.shape)}); they are (B,), whole numbers below {self.num_classes}, or -1 "
                             "for none.")
        # the last row of the tables stands for no class
        return self._embed(torch.where(classes < 0, self.num_classes, classes))

    def null(self, batch: dict) -> Cond:
        """The same shapes from the "no class" row."""
        return self._embed(torch.full((batch_size(batch),), self.num_classes, device=self.device))

    def _embed(self, rows: Tensor) -> Cond:
        return Cond(context=None if self.token is None else self.token(rows)[:, None],
                    vector=None if self.vector is None else self.vector(rows))


class TextConditioner(Conditioner):
    """Captions as context tokens (LDM app. E.2.1); "" is "no caption".

    vector: also give the mean of the tokens, for the time embedding. The paper has no such part; in a 1.1 M network it
    lowered the validation loss after 400 steps from .240 to .221 for 6% more time (one seed).
    """

    keys = ("caption",)

    def __init__(self, text_transformer: TextTransformer, vector: bool = True):
        super().__init__()
        self.text_transformer, self.vector = text_transformer, vector

    def encode(self, batch: dict) -> Cond:
        """batch["caption"]: B captions -> context (B,M,D), mask (B,M), vector (B,D)"""
        return self._embed(self._read_captions(batch, "caption"))

    def null(self, batch: dict) -> Cond:
        """The same shapes from the empty caption, computed once."""
        return self._embed([""])[[0] * batch_size(batch)]

    def remarks(self, batch: dict) -> list[str]:
        """Of captions: words that it does not know, and what is too long."""
        told = getattr(self.text_transformer, "remarks", lambda captions: [])  # one of your own need not have it
        return told(self._read_captions(batch, "caption"))

    def _embed(self, captions: list[str]) -> Cond:
        context, mask = self.text_transformer(captions)
        return Cond(context=context, mask=mask, vector=pool(context, mask) if self.vector else None)


class LayoutConditioner(Conditioner):
    """Up to `max_objects` labelled boxes per picture -> tokens, through a transformer that trains with the network.

    The order of objects means nothing, so it is shuffled in training. No objects = no condition: every token is masked.
    num_classes, grid: labels are 0 .. num_classes - 1; corners are rounded to grid x grid points (the paper: 90 x 90).
    vector: also give the mean of the tokens, for the time embedding.
    """

    keys = ("labels", "boxes")

    def __init__(self, num_classes: int, dim: int, max_objects: int = 3, grid: int = 16, layers: int = 2,
                 heads: int = 4, vector: bool = True):
        super().__init__()
        at_least(1, "LayoutConditioner", num_classes=num_classes, dim=dim, max_objects=max_objects, grid=grid,
                 layers=layers, heads=heads)
        self.num_classes, self.dim, self.max_objects, self.grid = num_classes, dim, max_objects, grid
        self.layers, self.heads, self.vector = layers, heads, vector
        self.pad = max(num_classes, grid * grid)                                # the vocabulary's last word
        self.token = nn.Embedding(self.pad + 1, dim)
        self.position = nn.Parameter(torch.empty(max_objects * 3, dim))
        # from a deviation of 0.02 the first layer drowned the corners: box IoU .17, not .20
        for weight in (self.token.weight, self.position):
            nn.init.normal_(weight, std=0.5)
        # neighbouring points begin alike, so that what one corner learns helps the next
        with torch.no_grad():
            self.token.weight[:grid * grid, :dim // 4 * 4] = point_codes(grid, dim // 4)
        self.transformer = transformer(dim, layers, heads)

    def tokenize(self, batch: dict) -> Tensor:
        """labels (B,N), -1 = none, and boxes (B,N,4) xyxy in [0,1] -> words (B, max_objects * 3), int64."""
        labels, boxes = self._read_numbers(batch, "labels"), self._read_numbers(batch, "boxes", torch.float32)
        shapes = tuple(labels.shape), tuple(boxes.shape)
        if labels.ndim != 2 or boxes.shape != (*labels.shape, 4) or labels.shape[1] > self.max_objects or (
                labels.is_floating_point()):
            raise ValueError(f"layouts are labels (B,N) and boxes (B,N,4), N up to {self.max_objects}, labels whole "
                             f"numbers; got {shapes}, {labels.dtype}.")
        if boxes.is_cpu and not (((0 <= boxes) & (boxes <= 1)).all() and ((-1 <= labels) & (
                labels < self.num_classes)).all() and (boxes[..., :2] <= boxes[..., 2:])[labels >= 0].all()):
            raise ValueError(f"labels lie below {self.num_classes}, -1 is none; boxes, x0 y0 x1 y1, are fractions of "
                             "the picture, and x0 y0 is the corner at the top left.")
        # an object is its class and two corners, points of the grid in reading order; all from one vocabulary
        x0, y0, x1, y1 = (boxes * (self.grid - 1)).round().long().unbind(-1)
        words = torch.stack([labels, y0 * self.grid + x0, y1 * self.grid + x1], dim=-1)         # (B,N,3)
        # places without an object hold the padding word, so that there are always as many
        words = words.masked_fill((labels < 0)[..., None], self.pad)
        words = F.pad(words, (0, 0, 0, self.max_objects - labels.shape[1]), value=self.pad)
        # whole objects change places, each picture's in its own order
        if self.training:
            order = torch.rand(words.shape[:2], device=words.device).argsort(dim=1)
            words = words.gather(1, order[..., None].expand_as(words))
        return words.flatten(1)

    def encode(self, batch: dict) -> Cond:
        """-> context (B,M,dim), mask (B,M) with True at the objects' tokens, vector (B,dim); M = max_objects * 3"""
        return self._embed(self.tokenize(batch))

    def null(self, batch: dict) -> Cond:
        """The same shapes without any object."""
        return self._embed(torch.full((1, len(self.position)), self.pad, device=self.device))[[0] * batch_size(batch)]

    def _embed(self, words: Tensor) -> Cond:
        # here padding may be read, so that there is always something to read
        context, mask = self.transformer(self.token(words) + self.position), words != self.pad
        return Cond(context=context, mask=mask, vector=pool(context, mask) if self.vector else None)


def point_codes(grid: int, frequencies: int) -> Tensor:
    """Sines and cosines of the row and the column of each of grid x grid points, (grid^2, 4 * frequencies), std 0.5."""
    place = torch.linspace(0, 1, grid)
    waves = math.pi * torch.logspace(0, math.log2(max(grid / 2, 1)), frequencies, base=2)   # half a wave and up
    code = torch.cat([(place[:, None] * waves).sin(), (place[:, None] * waves).cos()], dim=1) / math.sqrt(2)
    rows, columns = code[:, None].expand(grid, grid, -1), code[None].expand(grid, grid, -1)
    return torch.cat([rows, columns], dim=-1).flatten(0, 1)


class CombinedConditioner(Conditioner):
    """Several conditions of the same picture: concat joins on channels, context on tokens, vectors add.

    In training each sample sees a random subset of its conditions (besides the drop of all together, p_uncond), so that
    any subset can be asked for later: a part whose keys the batch lacks is null.
    p_drop_each: each part is dropped to its null on its own with this probability.
    p_single:    with this probability instead, one part is kept and all others are dropped; `weights` are the parts'
                 relative chances to be the one, all equal unless given.
    """

    def __init__(self, parts: list[Conditioner], p_drop_each: float = 0.0, p_single: float = 0.0, weights=None):
        super().__init__()
        between(0, 1, "CombinedConditioner", p_drop_each=p_drop_each, p_single=p_single)
        self.weights = [1.0] * len(parts) if weights is None else [float(weight) for weight in weights]
        if not parts or not all(isinstance(part, Conditioner) for part in parts) or (
                len(self.weights) != len(parts) or min(self.weights) < 0 or not 0 < sum(self.weights) < math.inf):
            raise ValueError("CombinedConditioner: parts are one Conditioner or more, with a weight >= 0 for each; got "
                             f"{[type(part).__name__ for part in parts]} and {self.weights}.")
        self.parts, self.p_drop_each, self.p_single = nn.ModuleList(parts), p_drop_each, p_single
        self.keys = tuple(dict.fromkeys(key for part in parts for key in part.keys))

    @property
    def parts(self) -> nn.ModuleList:
        """The conditions that it consists of."""
        return self._modules["parts"]  # where torch keeps it; this property hides it

    def encode(self, batch: dict) -> Cond:
        """The joint condition; at least one of the parts must find its keys in the batch."""
        if not self.present(batch):
            raise ValueError(f"the batch has {sorted(batch)}, no condition: give some of {list(self.keys)}.")
        kept = self.draw_subsets(batch_size(batch)) if self.training and (self.p_drop_each or self.p_single) else None
        conds = []
        for i, part in enumerate(self.parts):
            # what the batch does not have is null ...
            cond = part.encode(batch) if part.present(batch) else part.null(batch)
            # ... and so is, in training, what a sample may not see
            if kept is not None and part.present(batch):
                cond = cond.where(kept[:, i], part.null(batch))
            conds.append(cond)
        return Cond.join(conds)

    def null(self, batch: dict) -> Cond:
        """The joint null condition."""
        return Cond.join([part.null(batch) for part in self.parts])

    def draw_subsets(self, size: int) -> Tensor:
        """Which parts each of `size` samples keeps in training: (size, number of parts) bool."""
        # either a coin for each part, or one part alone: else a part would hardly ever be seen without all others
        each = torch.rand(size, len(self.parts)) >= self.p_drop_each
        chosen = torch.multinomial(torch.tensor(self.weights), size, replacement=True)
        single = torch.arange(len(self.parts)) == chosen[:, None]
        return torch.where(torch.rand(size, 1) < self.p_single, single, each)

    def present(self, batch: dict) -> bool:
        """Whether the batch holds any of the conditions."""
        return any(part.present(batch) for part in self.parts)

    def image_size(self, batch: dict) -> tuple[int, int] | None:
        """The size that the batch's images and maps ask for. Raises ValueError if they disagree."""
        sizes = {size for part in self.parts if part.present(batch) and (size := part.image_size(batch)) is not None}
        if len(sizes) > 1:
            raise ValueError(f"the batch's conditions are for pictures of different sizes: {sorted(sizes)}.")
        return next(iter(sizes), None)

    def use_first_stage(self, autoencoder) -> None:
        """Every part's."""
        for part in self.parts:
            part.use_first_stage(autoencoder)

    def finish(self, images: Tensor, batch: dict) -> Tensor:
        """What each part that is present knows for certain."""
        for part in self.parts:
            images = part.finish(images, batch) if part.present(batch) else images
        return images
