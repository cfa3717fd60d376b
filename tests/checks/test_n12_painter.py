"""Checks of notebook 12's painter: right solutions in several styles pass, known mistakes fail with a hint."""

import torch
from solutions import spoiled, try_all, variant
from torch import nn
from torch.nn import functional as F

from ldm_mini import checks
from ldm_mini.attention import Attention
from ldm_mini.conditioners import LayoutConditioner


def boxes_of(words, grid, how="right"):
    first, last = words.unflatten(1, (-1, 3))[..., 1:].unbind(-1)
    parts = [first % grid, first // grid, last % grid, last // grid]
    order = {"y first": (1, 0, 3, 2), "last first": (2, 3, 0, 1), "x x y y": (0, 2, 1, 3)}.get(how, (0, 1, 2, 3))
    if how == "class":
        first, last = words.unflatten(1, (-1, 3))[..., :2].unbind(-1)
        parts = [first % grid, first // grid, last % grid, last // grid]
    boxes = torch.stack([parts[i] for i in order], dim=-2 if how == "second" else -1)
    boxes = {"whole": boxes // (grid - 1), "points": boxes.float(), "grid": boxes / grid, "nine": boxes / 8}.get(
        how, boxes / (grid - 1))
    return boxes.flatten(1) if how == "flat" else boxes


def boxes_in_loops(words, grid):
    rows = []
    for row in words.tolist():
        rows.append([[v / (grid - 1) for p in row[i + 1:i + 3] for v in divmod(p, grid)[::-1]]
                     for i in range(0, len(row), 3)])
    return torch.tensor(rows)


def encoded(part, labels, boxes, how="right"):
    words = part.tokenize({"labels": labels, "boxes": boxes})
    there = words != part.pad
    rows, place = part.token(words), part.position
    tokens = {"no place": lambda: part.transformer(rows), "late": lambda: part.transformer(rows) + place,
              "no transformer": lambda: rows + place, "times": lambda: part.transformer(rows * place),
              "zeroed": lambda: part.transformer(rows + place) * there[..., None],
              "pooled": lambda: part.transformer(rows + place).unflatten(1, (-1, 3)).mean(2),
              }.get(how, lambda: part.transformer(rows + place))()
    mask = {"flipped": ~there, "all": torch.ones_like(there), "things": labels >= 0, "float": there.float(),
            "none": None}.get(how, there)
    if how == "cut":
        tokens = tokens.detach()
    return tokens if how == "tokens alone" else (tokens, mask)


def by_the_conditioner(part, labels, boxes):
    cond = part.encode({"labels": labels, "boxes": boxes})
    return [cond.context, cond.mask]


class BoxPainter(nn.Module):
    def __init__(self, positions=range(6), map_channels=0):
        super().__init__()
        self.boxes = LayoutConditioner(4, 16, max_objects=2, grid=7, layers=1)
        self.positions = list(positions)
        self.pixels = nn.Parameter(torch.randn(36, 16))
        self.join = nn.Linear(16 + map_channels, 16)
        self.look = Attention(16, 16, num_heads=2)
        self.say = nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 5))

    def forward(self, words, maps=None, how="right"):
        place = self.boxes.position[self.positions] * (how != "no positions")
        tokens = self.boxes.token(words) + place
        tokens = tokens if how == "no transformer" else self.boxes.transformer(tokens)
        pixels = self.pixels.expand(len(words), -1, -1)
        if maps is not None:
            cells = {"map turned": maps.mT.flatten(2).mT, "map lost": torch.zeros_like(maps.flatten(2).mT),
                     "map reshaped": maps.reshape(len(words), 36, -1)}.get(how, maps.flatten(2).mT)
            pixels = torch.cat([cells, pixels] if how == "map first" else [pixels, cells], dim=-1)
        pixels = pixels[..., :16] if how == "no join" else self.join(pixels)
        mask = {"no mask": None, "flipped": words == self.boxes.pad}.get(how, words != self.boxes.pad)
        read = self.look(pixels, tokens, mask)
        read = read.detach() if how == "cut" else read
        out = self.say({"no skip": read, "twice": pixels + 2 * read}.get(how, pixels + read))
        if how in ("flat", "last"):
            return out if how == "flat" else out.unflatten(1, (6, 6))
        out = out.mT.unflatten(2, (6, 6))
        return out.mT if how == "turned" else out


def painter(how):
    return variant(BoxPainter, forward=lambda self, words, maps=None: BoxPainter.forward(self, words, maps, how))


class Explicit(BoxPainter):
    """The same, written out."""

    def forward(self, words, maps=None):
        tokens = self.boxes.transformer(self.boxes.token(words) + self.boxes.position[self.positions][None])
        pixels = self.pixels[None].repeat(len(words), 1, 1)
        if maps is not None:
            pixels = torch.cat((pixels, maps.permute(0, 2, 3, 1).reshape(len(words), 36, -1)), -1)
        pixels = self.join(pixels)
        pixels = self.look(pixels, tokens, mask=words.ne(self.boxes.pad)) + pixels
        return self.say(pixels).transpose(1, 2).reshape(len(words), -1, 6, 6)


def trained(net, optimizer, slower, draw, steps, how="right"):
    losses, first = [], draw() if how == "one batch" else None
    for _ in range(steps + (how == "one more")):
        inputs, picture = first or draw()
        if how != "no zero_grad":
            optimizer.zero_grad()
        out = net(*inputs)
        if how == "square":
            loss = (out - F.one_hot(picture, out.shape[1]).movedim(3, 1)).square().mean()
        else:
            loss = F.cross_entropy(out.softmax(1) if how == "softmax" else out, picture,
                                   reduction="sum" if how == "sum" else "mean")
        loss.backward()
        if how == "zero_grad late":
            optimizer.zero_grad()
        if how != "no step":
            optimizer.step()
        if how != "no slower":
            slower.step()
        losses.append(loss.detach() if how == "tensors" else loss.item())
    return {"last": losses[-1], "nothing": None, "shorter": losses[1:],
            "running": [sum(losses[:i + 1]) / (i + 1) for i in range(steps)]}.get(how, losses)


def trained_by_hand(net, optimizer, slower, draw, steps):
    """Gradients from torch.autograd.grad."""
    losses, weights = [], list(net.parameters())
    while len(losses) < steps:
        (x,), picture = draw()
        loss = -net(x).log_softmax(1).gather(1, picture[:, None]).mean()
        for p, grad in zip(weights, torch.autograd.grad(loss, weights)):
            p.grad = grad
        optimizer.step(), slower.step(), losses.append(float(loss))
    return losses


def absent(words, picture, keep_boxes, keep_map, kinds, pad, how="right"):
    told = {"boxes flipped": ~keep_boxes, "by map": keep_map, "words stay": torch.ones_like(keep_boxes)}.get(
        how, keep_boxes)
    told = words * told[:, None] if how == "zero words" else torch.where(told[:, None], words, pad)
    classes = {"no nothing": kinds, "seen": int(picture.max()) + 1}.get(how, 1 + kinds)
    one_hot = F.one_hot(picture.clamp(max=classes - 1), classes)
    maps = (one_hot.reshape(len(words), -1, *picture.shape[1:]) if how == "reshape" else
            one_hot.permute(0, 3, 1, 2)).float()
    keep = {"map flipped": ~keep_map, "by boxes": keep_boxes, "map stays": torch.ones_like(keep_map)}.get(
        how, keep_map)[:, None, None, None]
    said = {"sign": ~keep_map, "always": torch.ones_like(keep_map)}.get(how, keep_map)
    said = said[:, None, None, None].expand(-1, 1, *picture.shape[1:]).float()
    parts = [said, maps * keep] if how == "first" else [maps * keep, said]
    maps = maps * keep if how == "no channel" else torch.cat(parts, 1)
    return maps if how == "maps alone" else (told, maps.double() if how == "double" else maps)


def absent_by_filling(words, picture, keep_boxes, keep_map, kinds, pad):
    maps = torch.zeros(len(words), kinds + 2, *picture.shape[1:])
    for b in range(len(words)):
        if keep_map[b]:
            maps[b, :-1].scatter_(0, picture[b][None], 1.0)
            maps[b, -1] = 1
    return words.masked_fill(~keep_boxes[:, None], pad), maps


CORRECT = {
    checks.decode_boxes: [boxes_of, boxes_in_loops],
    checks.encode_layout: [encoded, by_the_conditioner],
    checks.box_painter: [BoxPainter, Explicit],
    checks.train_painter: [trained, trained_by_hand],
    checks.with_map: [absent, absent_by_filling],
}

MUTANTS = {
    checks.decode_boxes: spoiled(
        boxes_of, ("y first", "x = point % grid"), ("last first", "top left"), ("x x y y", "order is"),
        ("class", "off by"), ("second", "come last"), ("whole", "dtype|whole"), ("points", "fractions"),
        ("grid", "divide by grid - 1"), ("nine", "off by|grid"), ("flat", "one row of four")),
    checks.encode_layout: spoiled(
        encoded, ("no place", "bag of words"), ("late", "before the transformer"),
        ("no transformer", "transformer is missing"), ("times", "not multiplied"), ("zeroed", "said by the mask"),
        ("pooled", r"each \*word\*"), ("flipped", "True = may be read"), ("all", "nobody may look"),
        ("things", "three to a thing"), ("float", "bool"), ("none", "bool"), ("cut", "no gradient"),
        ("tokens alone", "two things")),
    checks.box_painter: [(painter(how), hint) for how, hint in (
        ("no positions", "need their positions"), ("no transformer", "self.boxes.transformer"),
        ("map turned", "rows and columns of the map"), ("map lost", "map is not used"),
        ("map reshaped", "mixes channels"), ("map first", "pixels come first"), ("no join", "self.join"),
        ("no mask", "padding was read"), ("flipped", "True = may"), ("cut", "gradient"), ("no skip", r"\*added\*"),
        ("twice", "added once"), ("flat", "classes second"), ("last", "classes come second"),
        ("turned", "rows and columns of the answer"))],
    checks.train_painter: spoiled(
        trained, ("one batch", "drew 1"), ("one more", "drew 6"), ("no zero_grad", "added up"), ("square", "amounts"),
        ("softmax", "come twice"), ("sum", "not the sum"), ("zero_grad late", "nothing was learned"),
        ("no step", "nothing was learned"), ("no slower", "rate stays"), ("tensors", "numbers"), ("last", "list"),
        ("nothing", "list"), ("shorter", "list"), ("running", "the losses")),
    checks.with_map: spoiled(
        absent, ("boxes flipped", "wrong way round"), ("by map", "follow keep_boxes"), ("words stay", "become `pad`"),
        ("zero words", "0 is a word"), ("no nothing", "0 is nothing|shape"), ("seen", "shape|present"),
        ("reshape", "mixes classes"),
        ("map flipped", "wrong way round"), ("by boxes", "follows keep_map"), ("map stays", "0 everywhere"),
        ("sign", "1 = present"), ("always", "only where the map"), ("first", "comes last"),
        ("no channel", "one channel is missing"), ("maps alone", "two things"), ("double", "float32")),
}


class Unwritten(BoxPainter):
    def forward(self, *inputs):
        raise NotImplementedError


def test_a_painter_without_its_forward_is_named_as_a_stub():
    try:
        checks.box_painter(Unwritten)
    except checks.CheckFailed as error:
        assert "still the stub" in str(error)
    else:
        raise AssertionError("passed")


test_right_solutions_pass, test_wrong_ones_fail_with_a_hint, test_the_stub_is_named = try_all(CORRECT, MUTANTS)
