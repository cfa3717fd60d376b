"""The recogniser reads nouns, colours, boxes, background and style off an Emoji Scene: conditioning becomes a number.

A centre heat map per noun with a colour, a style and a box at each centre (as in CenterNet, Zhou et al. 2019), and the
background of the whole image. Trained on degraded scenes (`degrade`): it must judge what a picture shows, not how
sharp it is.
"""

import json
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor, nn

from ..asked import check_pictures
from ..files import data_path, load_safetensors, save_safetensors
from ..hub import build


@dataclass(frozen=True)
class RecogniserConfig:
    """What it can name and how wide it is; the defaults are the shipped one, 0.64M parameters."""

    num_nouns: int = 64
    num_colors: int = 7                                                     # besides "natural", which is colour -1
    num_backgrounds: int = 16                                                # 10 colours, then 6 places
    num_styles: int = 4
    widths: tuple = (32, 64, 96)                                             # at strides 2, 4, 8
    image_size: int = 64                                     # a multiple of 8; other sizes are resized to this one


def _conv(a: int, b: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(a, b, 3, stride, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU(inplace=True))


class _Residual(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.convs = nn.Sequential(_conv(channels, channels), nn.Conv2d(channels, channels, 3, 1, 1, bias=False),
                                   nn.BatchNorm2d(channels))
        nn.init.zeros_(self.convs[-1].weight)                                # starts as the identity

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> the same."""
        return F.relu(x + self.convs(x))


class Recogniser(nn.Module):
    """Images (B, 3, H, W) in [-1, 1] -> what is in them."""

    def __init__(self, config: RecogniserConfig = RecogniserConfig()):
        super().__init__()
        self.config = c = config
        w2, w4, w8 = c.widths
        self.fine = nn.Sequential(_conv(3, w2, 2), _conv(w2, w2), _conv(w2, w4, 2), _Residual(w4), _Residual(w4))
        self.coarse = nn.Sequential(_conv(w4, w8, 2), _Residual(w8), _Residual(w8))
        self.lateral = nn.Conv2d(w8, w4, 1)
        self.fuse = _Residual(w4)
        self.cells = nn.Conv2d(w4, c.num_nouns + c.num_colors + 1 + c.num_styles + 4, 1)
        self.scene = nn.Linear(w8, c.num_backgrounds)
        nn.init.constant_(self.cells.bias[: c.num_nouns], -4.6)              # p = 0.01: most cells are no centre

    def forward(self, x: Tensor) -> dict:
        """(B, 3, S, S) -> maps (B, ., h, w) of heat, colour and style logits and of boxes; background logits (B, .)."""
        c = self.config
        fine = self.fine(x)                                                  # (B, w4, S/4, S/4)
        coarse = self.coarse(fine)                                           # (B, w8, S/8, S/8)
        cells = self.cells(self.fuse(fine + F.interpolate(self.lateral(coarse), scale_factor=2.0)))
        heat, color, style, box = cells.split([c.num_nouns, c.num_colors + 1, c.num_styles, 4], dim=1)
        background = self.scene(coarse.mean((2, 3)))
        return {"heat": heat, "color": color, "style": style, "box": box, "background": background}

    @torch.inference_mode()
    def detect(self, images: Tensor, threshold: float = 0.3) -> list[dict]:
        """What each image (B, 3, H, W) in [-1, 1] shows: a list of B dicts {"objects", "background", "style"}.

        objects: at most 8 by falling score, dicts of noun (index), colour (index, -1 = natural), nearest_color (never
        natural: a plain apple looks like a red one), score in [0, 1], and as fractions of the image box (xyxy) and
        centre (x, y). Two objects cannot have their centres in neighbouring cells.
        """
        check_pictures("detect: images", images)
        training, found = self.training, []
        self.eval()
        for chunk in images.split(64):
            found += self._detect(self.resized(chunk), threshold)
        self.train(training)
        return found

    def resized(self, images: Tensor) -> Tensor:
        """Images of any size (B, 3, H, W) -> as the network wants them, on its device."""
        x, size = images.to(self.cells.weight), (self.config.image_size,) * 2
        return x if x.shape[-2:] == size else F.interpolate(x, size=size, mode="bilinear", antialias=True)

    def _detect(self, x: Tensor, threshold: float) -> list[dict]:
        out = self(x.clamp(-1, 1))
        best, noun = out["heat"].sigmoid().max(1)                            # (B, h, w)
        peak = best.where(best == F.max_pool2d(best, 3, 1, 1), best.new_zeros(()))
        scores, cell = peak.flatten(1).topk(8)                               # (B, n)
        boxes = _boxes(out["box"], cell, self.config.image_size)             # (B, n, 4)
        nouns = noun.flatten(1).gather(1, cell)
        colors = _at(out["color"], cell).argmax(1) - 1
        nearest = _at(out["color"][:, 1:], cell).argmax(1)
        votes = _at(out["style"], cell).log_softmax(1) * scores[:, None]     # all objects of a scene share its style
        scene = (out["background"].argmax(1), votes.sum(2).argmax(1))
        rows = zip(*(v.tolist() for v in (scores, nouns, colors, nearest, boxes, *scene)))
        return [{"objects": [{"noun": n, "color": c, "nearest_color": near, "score": s, "box": tuple(b),
                              "centre": ((b[0] + b[2]) / 2, (b[1] + b[3]) / 2)}
                             for s, n, c, near, b in zip(*objects) if s >= threshold],
                 "background": background, "style": style} for *objects, background, style in rows]

    def save(self, path) -> None:
        """Write one safetensors file with the config in its metadata; convolutions in half precision."""
        tensors = {k: v.half() if v.ndim > 1 else v for k, v in self.state_dict().items()}
        save_safetensors(path, tensors, {"config": json.dumps(asdict(self.config))})

    @classmethod
    def load(cls, path=None) -> "Recogniser":
        """Read one, in eval mode; without a path the shipped one. FileError for a damaged file."""
        path = data_path("weights", "recogniser.safetensors") if path is None else path
        tensors = load_safetensors(path)
        with safe_open(path, "pt") as file:
            config = json.loads(file.metadata()["config"])
        net = cls(RecogniserConfig(**build(config)))
        net.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in tensors.items()})
        return net.eval()


def _at(maps: Tensor, cell: Tensor) -> Tensor:
    """Maps (B, C, h, w) at flat cells (B, n) -> (B, C, n)."""
    return maps.flatten(2).gather(2, cell.unsqueeze(1).expand(-1, maps.shape[1], -1))


def _boxes(maps: Tensor, cell: Tensor, size: int) -> Tensor:
    """Box maps (B, 4, h, w) at flat cells (B, n) -> xyxy (B, n, 4) in [0, 1].

    The maps hold the distances from the cell's middle to the left, top, right and bottom side, in units of 16 px.
    """
    side = maps.shape[-1]
    middle = (torch.stack([cell % side, cell // side], -1) + 0.5) / side
    reach = _at(maps, cell).mT * (16 / size)
    return torch.cat([middle - reach[..., :2], middle + reach[..., 2:]], -1).clamp(0, 1)
