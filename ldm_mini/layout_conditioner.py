"""Layout to image (LDM sec. 4.3.1, app. D.2): boxes with labels become tokens for cross attention.

An object is three tokens: its class, its top left and its bottom right corner, each corner a point of a grid. Classes
and corners share one vocabulary; the place in the sequence tells them apart, as in the paper.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .cond import Cond
from .conditioning import Conditioner, batch_size
from .text import pool


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
        self.arguments = {"num_classes": num_classes, "dim": dim, "max_objects": max_objects, "grid": grid,
                          "num_colors": num_colors, "layers": layers, "heads": heads, "vector": vector}
        self.num_classes, self.max_objects, self.grid = num_classes, max_objects, grid
        self.num_colors, self.vector = num_colors, vector
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

    def to_config(self) -> dict:
        return {"kind": "layout", **self.arguments}


def point_codes(grid: int, frequencies: int) -> Tensor:
    """Sines and cosines of the row and the column of each of grid x grid points, (grid^2, 4 * frequencies), std 0.5."""
    place = torch.linspace(0, 1, grid)
    waves = math.pi * torch.logspace(0, math.log2(max(grid / 2, 1)), frequencies, base=2)   # half a wave and up
    code = torch.cat([(place[:, None] * waves).sin(), (place[:, None] * waves).cos()], dim=1) / math.sqrt(2)
    rows, columns = code[:, None].expand(grid, grid, -1), code[None].expand(grid, grid, -1)
    return torch.cat([rows, columns], dim=-1).flatten(0, 1)
