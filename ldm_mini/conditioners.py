"""What pictures are conditioned on (LDM sec. 3.3): classes, captions, and any combination of conditions.

The contract and its base class: `conditioning`. Boxes: `layout_conditioner`. Images: `concat_conditioners`.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .cond import Cond, Conditioner, batch_size
from .text import TextTransformer, pool


class LayoutConditioner(Conditioner):
    """Up to `max_objects` labelled boxes per picture -> tokens, through a transformer that trains with the network.

    The order of objects means nothing, so it is shuffled in training. No objects = no condition: every token is masked.
    num_classes, grid: labels are 0 .. num_classes - 1; corners are rounded to grid x grid points (the paper: 90 x 90).
    num_colors: a fourth token per object, its colour from batch["colors"], -1 = natural; None = no such token.
    vector:     also give the mean of the tokens, for the time embedding, as `TextConditioner` does.
    """

    def __init__(self, num_classes: int, dim: int, max_objects: int = 3, grid: int = 16, num_colors: int | None = None,
                 layers: int = 2, heads: int = 4, vector: bool = True):
        super().__init__()
        self.num_classes, self.dim, self.max_objects, self.grid = num_classes, dim, max_objects, grid
        self.num_colors, self.layers, self.heads, self.vector = num_colors, layers, heads, vector
        self.keys = ("labels", "boxes") + (() if num_colors is None else ("colors",))
        self.words = 3 if num_colors is None else 4                             # per object
        self.pad = max(num_classes, grid * grid, (num_colors or 0) + 1)         # the vocabulary's last word
        self.token = nn.Embedding(self.pad + 1, dim)
        self.position = nn.Parameter(torch.empty(max_objects * self.words, dim))
        for weight in (self.token.weight, self.position):
            nn.init.normal_(weight, std=0.5)    # from 0.02 the first layer drowned the corners: box IoU .17, not .20
        with torch.no_grad():                   # neighbours begin alike, so that what one corner learns helps the next
            self.token.weight[:grid * grid, :dim // 4 * 4] = point_codes(grid, dim // 4)
        layer = nn.TransformerEncoderLayer(dim, heads, 4 * dim, dropout=0.0, activation="gelu", batch_first=True,
                                           norm_first=True)
        self.transformer = nn.TransformerEncoder(layer, layers, nn.LayerNorm(dim), enable_nested_tensor=False)

    def tokenize(self, batch: dict) -> Tensor:
        """labels (B,N), -1 = none, and boxes (B,N,4) xyxy in [0,1] -> words (B, max_objects * words), int64."""
        device = self.position.device
        labels = torch.as_tensor(self._read(batch, "labels"), device=device)
        boxes = torch.as_tensor(self._read(batch, "boxes"), device=device, dtype=torch.float32)
        if labels.ndim != 2 or boxes.shape != (*labels.shape, 4) or labels.shape[1] > self.max_objects:
            raise ValueError(f"LayoutConditioner: labels (B,N) and boxes (B,N,4) with N up to {self.max_objects} are "
                             f"wanted; got {tuple(labels.shape)} and {tuple(boxes.shape)}.")
        if labels.device.type == "cpu" and labels.numel() and not -1 <= labels.min() <= labels.max() < self.num_classes:
            raise ValueError(f"LayoutConditioner: labels lie between 0 and {self.num_classes - 1}, -1 for none; got "
                             f"{labels.min()} to {labels.max()}.")
        if boxes.device.type == "cpu" and boxes.numel() and not 0 <= boxes.min() <= boxes.max() <= 1:
            raise ValueError("LayoutConditioner: boxes are x0, y0, x1, y1 as fractions of the picture, in [0, 1]; got "
                             f"{boxes.min():g} to {boxes.max():g}.")
        x0, y0, x1, y1 = (boxes * (self.grid - 1)).round().long().unbind(-1)
        words = [labels, y0 * self.grid + x0, y1 * self.grid + x1]
        if self.num_colors is not None:
            words.append(torch.as_tensor(self._read(batch, "colors"), device=device) + 1)
        words = torch.stack(words, dim=-1).masked_fill((labels < 0)[..., None], self.pad)       # (B,N,words)
        words = F.pad(words, (0, 0, 0, self.max_objects - labels.shape[1]), value=self.pad)
        if self.training:
            order = torch.rand(words.shape[:2], device=device).argsort(dim=1)
            words = words.gather(1, order[..., None].expand_as(words))
        return words.flatten(1)

    def encode(self, batch: dict) -> Cond:
        """-> context (B,M,dim), mask (B,M) with True at the objects' tokens, vector (B,dim); M = max_objects * words"""
        return self._embed(self.tokenize(batch))

    def null(self, batch: dict) -> Cond:
        """The same shapes without any object."""
        size = batch_size(batch)
        return self._embed(torch.full((1, len(self.position)), self.pad, device=self.position.device))[[0] * size]

    def _embed(self, words: Tensor) -> Cond:
        context = self.transformer(self.token(words) + self.position)           # here padding may be read: never empty
        mask = words != self.pad
        return Cond(context=context, mask=mask, vector=pool(context, mask) if self.vector else None)


def point_codes(grid: int, frequencies: int) -> Tensor:
    """Sines and cosines of the row and the column of each of grid x grid points, (grid^2, 4 * frequencies), std 0.5."""
    place = torch.linspace(0, 1, grid)
    waves = math.pi * torch.logspace(0, math.log2(max(grid / 2, 1)), frequencies, base=2)   # half a wave and up
    code = torch.cat([(place[:, None] * waves).sin(), (place[:, None] * waves).cos()], dim=1) / math.sqrt(2)
    rows, columns = code[:, None].expand(grid, grid, -1), code[None].expand(grid, grid, -1)
    return torch.cat([rows, columns], dim=-1).flatten(0, 1)


class ClassConditioner(Conditioner):
    """One learned token per class, and one for "no class" (-1), as in the paper's ImageNet models (cin256-v2).

    dim: width of the token, None for no token; vector_dim: also (or only) a vector for the time embedding.
    key: the batch entry with the classes, (B,) integers from -1 to num_classes - 1.
    """

    def __init__(self, num_classes: int, dim: int | None, vector_dim: int | None = None, key: str = "class"):
        super().__init__()
        if dim is None and vector_dim is None:
            raise ValueError("ClassConditioner: give dim (a context token), vector_dim (a vector) or both.")
        self.num_classes, self.dim, self.vector_dim, self.key, self.keys = num_classes, dim, vector_dim, key, (key,)
        self.token = None if dim is None else nn.Embedding(num_classes + 1, dim)
        self.vector = None if vector_dim is None else nn.Embedding(num_classes + 1, vector_dim)

    def encode(self, batch: dict) -> Cond:
        """batch[key] (B,) -> context (B,1,dim), vector (B,vector_dim)"""
        classes = self._read(batch, self.keys[0])
        if isinstance(classes, str) or isinstance(classes, (list, tuple)) and any(isinstance(c, str) for c in classes):
            raise ValueError(f"ClassConditioner: batch[{self.keys[0]!r}] holds names; it must hold their indices, "
                             "for Emoji Scenes ldm_mini.scenes.NOUN_INDEX[name].")
        classes = torch.as_tensor(classes)
        if classes.ndim != 1 or classes.is_floating_point():
            raise ValueError(f"ClassConditioner: batch[{self.keys[0]!r}] must be integers of shape (B,), got "
                             f"{tuple(classes.shape)} {classes.dtype}.")
        on_host = classes.device.type == "cpu"                                  # elsewhere, to look is to wait
        if on_host and len(classes) and not -1 <= classes.min() <= classes.max() < self.num_classes:
            raise ValueError(f"ClassConditioner: batch[{self.keys[0]!r}] must lie between 0 and {self.num_classes - 1} "
                             f"or be -1 for no class; got {classes.min()} to {classes.max()}.")
        return self._embed(torch.where(classes < 0, self.num_classes, classes))

    def null(self, batch: dict) -> Cond:
        """The same shapes from the "no class" row."""
        return self._embed(torch.full((batch_size(batch),), self.num_classes))

    def _embed(self, rows: Tensor) -> Cond:
        rows = rows.to(next(self.parameters()).device)
        return Cond(context=None if self.token is None else self.token(rows)[:, None],
                    vector=None if self.vector is None else self.vector(rows))


class TextConditioner(Conditioner):
    """Captions as context tokens (LDM app. E.2.1); "" is "no caption".

    vector: also give the mean of the tokens, for the time embedding. The paper has no such part; in a 1.1 M network it
    lowered the validation loss after 400 steps from .240 to .221 for 6% more time (one seed).
    """

    def __init__(self, text_transformer: TextTransformer, vector: bool = True, key: str = "caption"):
        super().__init__()
        self.text_transformer, self.vector, self.key, self.keys = text_transformer, vector, key, (key,)

    def encode(self, batch: dict) -> Cond:
        """batch[key]: B captions -> context (B,M,D), mask (B,M), vector (B,D)"""
        return self._embed(self._read(batch, self.keys[0]))

    def null(self, batch: dict) -> Cond:
        """The same shapes from the empty caption, computed once."""
        return self._embed([""])[[0] * batch_size(batch)]

    def _embed(self, captions: list[str]) -> Cond:
        context, mask = self.text_transformer(captions)
        return Cond(context=context, mask=mask, vector=pool(context, mask) if self.vector else None)


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
        self.weights = [1.0] * len(parts) if weights is None else [float(weight) for weight in weights]
        if len(self.weights) != len(parts) or min(self.weights, default=0) < 0 or parts and not any(self.weights):
            raise ValueError(f"CombinedConditioner: weights must be {len(parts)} numbers, none below 0 and not all 0; "
                             f"got {weights}.")
        for name, p in (("p_drop_each", p_drop_each), ("p_single", p_single)):
            if not 0.0 <= p <= 1.0:
                raise ValueError(f"CombinedConditioner: {name} must be a probability, got {p}.")
        self.parts, self.p_drop_each, self.p_single = nn.ModuleList(parts), p_drop_each, p_single
        self.keys = tuple(dict.fromkeys(key for part in parts for key in part.keys))

    def encode(self, batch: dict) -> Cond:
        """The joint condition; at least one of the parts must find its keys in the batch."""
        if not self.present(batch):
            raise ValueError(f"CombinedConditioner: the batch has {sorted(batch)}, none of which is a condition. "
                             f"Give one or more of {list(self.keys)}.")
        kept = self.draw_subsets(batch_size(batch)) if self.training and (self.p_drop_each or self.p_single) else None
        return Cond.join([self._encode_part(part, batch, None if kept is None else kept[:, i])
                          for i, part in enumerate(self.parts)])

    def null(self, batch: dict) -> Cond:
        """The joint null condition."""
        return Cond.join([part.null(batch) for part in self.parts])

    def draw_subsets(self, size: int) -> Tensor:
        """Which parts each of `size` samples keeps in training: (size, number of parts) bool."""
        each = torch.rand(size, len(self.parts)) >= self.p_drop_each
        chosen = torch.multinomial(torch.tensor(self.weights), size, replacement=True)
        single = torch.arange(len(self.parts)) == chosen[:, None]
        return torch.where(torch.rand(size, 1) < self.p_single, single, each)

    def _encode_part(self, part: Conditioner, batch: dict, keep: Tensor | None) -> Cond:
        if not part.present(batch):
            return part.null(batch)
        cond = part.encode(batch)
        if keep is None:
            return cond
        device = next(value.device for value in vars(cond).values() if value is not None)
        return cond.where(keep.to(device), part.null(batch))

    def present(self, batch: dict) -> bool:
        """Whether the batch holds any of the conditions."""
        return any(part.present(batch) for part in self.parts)

    def image_size(self, batch: dict) -> tuple[int, int] | None:
        """The size that the batch's images and maps ask for. Raises ValueError if they disagree."""
        sizes = {size for part in self.parts if part.present(batch) and (size := part.image_size(batch)) is not None}
        if len(sizes) > 1:
            raise ValueError(f"the batch's conditions are made for pictures of different sizes: {sorted(sizes)}.")
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
