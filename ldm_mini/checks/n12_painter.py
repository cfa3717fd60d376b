"""Checks of notebook 12, layouts: boxes back from words, their encoder, and the little painter that reads them."""

import copy
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..conditioners import LayoutConditioner
from .checking import CheckFailed, attempt, compare, passed, several
from .properties import fresh, generator, own_randomness, same_dtype, same_gradient


def decode_boxes(function):
    """`function(words, grid)`: words (B, 3N) int64, class, corner, corner -> boxes (B,N,4) in [0,1]."""
    for grid, size, objects in ((9, 3, 2), (16, 2, 3), (4, 4, 1)):
        points = torch.randint(grid, (size, objects, 4), generator=generator())
        points[0, 0] = torch.tensor([0, 1, grid - 1, 2])
        x0, y0, x1, y1 = points.unbind(-1)
        label = torch.full_like(x0, 2)
        words = torch.stack([label, y0 * grid + x0, y1 * grid + x1], dim=-1).flatten(1)
        boxes = lambda order=(0, 1, 2, 3), by=grid - 1: points[..., list(order)] / by  # noqa: B023
        got = attempt(function, words, grid, name="decode_boxes")
        compare(got, boxes(), f"decode_boxes(words, {grid})", shapes={
            (size, objects * 4): "one row of four for each thing: (B,N,4).",
            (size, objects, 2, 2): "x0, y0, x1, y1 in one row: (B,N,4).",
            (size, 4, objects): "the four numbers of a box come last: dim=-1.",
        }, mistakes=[
            (boxes(by=grid), "the last point lies on the border, 1.0: divide by grid - 1."),
            (boxes(by=1), "numbers of points; a box is in fractions of the picture: divide by grid - 1."),
            (boxes((1, 0, 3, 2)), "point = row * grid + column, so x = point % grid and y = point // grid."),
            (boxes((2, 3, 0, 1)), "the first point is the top left corner: x0, y0."),
            (boxes((0, 2, 1, 3)), "the order is x0, y0, x1, y1."),
        ])
        if not got.is_floating_point():
            raise CheckFailed("decode_boxes: whole numbers; fractions, please: / and not //.")
    passed("decode_boxes: from words back to boxes")


def encode_layout(function):
    """`function(part, labels, boxes)`: part has token, position, transformer, grid, pad -> tokens (B,3N,D), mask."""
    draw = fresh()
    for kinds, width, grid, objects in ((4, 16, 5, 2), (3, 8, 9, 3)):
        with own_randomness():
            part = LayoutConditioner(kinds, width, max_objects=objects, grid=grid, layers=1, heads=2).eval()
        labels = (draw(3, objects) * 10).long().abs() % kinds
        labels[1, -1], labels[2] = -1, -1
        boxes = draw(3, objects, 4).sigmoid().sort(-1).values
        words = part.tokenize({"labels": labels, "boxes": boxes})
        what = "encode_layout(part, labels, boxes)"
        with own_randomness():
            got = attempt(function, part, labels, boxes, name="encode_layout")
        tokens, mask = several(got, what, "two things: the tokens and the mask")
        rows, place = part.token(words), part.position
        through, there = part.transformer(rows + place), words != part.pad
        compare(tokens, through, f"{what}: the tokens", shapes={
            (3, objects, width): "one token for each thing; here each *word* is one."}, mistakes=[
            (part.transformer(rows), "without positions it is a bag of words: add part.position before the "
                                     "transformer."),
            (part.transformer(rows) + place, "the positions come before the transformer, or no word can use them."),
            (rows + place, "the transformer is missing."),
            (part.transformer(rows * place), "positions are added, not multiplied."),
            (part.transformer(rows + place * there[..., None]), "absent words have a place too."),
            (through * there[..., None], "absent words stay as they are: that nobody looks is said by the mask."),
            (through.mean(1, keepdim=True).expand_as(through), "each word keeps a token of its own."),
        ])
        same_dtype(tokens, through, f"{what}: the tokens")
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
            raise CheckFailed("encode_layout: the mask should be a bool tensor, True where there is a word to read.")
        compare(mask, there, f"{what}: the mask", shapes={
            tuple(labels.shape): "the mask is for words, three to a thing: (B,3N).",
            (3, 3 * objects, 1): "the mask is (B,3N)."}, mistakes=[
            (~there, "True = may be read; the absent are False."),
            (torch.ones_like(there), "absent words are `part.pad`; nobody may look at them.")])
        same_gradient(tokens, through, {"the table": part.token.weight, "the positions": part.position}, what)
    passed("encode_layout: table, place, transformer; and who is not there is not read")


def box_painter(cls):
    """`cls(map_channels=0)`, with parts as in the notebook: `forward(words, maps=None)` -> (B, 1 + kinds, s, s)."""
    for channels in (0, 3):
        with own_randomness():
            net = attempt(cls, name="BoxPainter") if not channels else attempt(
                lambda: cls(map_channels=3), name="BoxPainter")
            if net is None:
                raise CheckFailed("BoxPainter gave None; it should be the class.")
            for p in net.parameters():
                nn.init.normal_(p, std=0.3)
        draw, side = fresh(), round(len(net.pixels) ** 0.5)
        words = torch.randint(net.boxes.pad, (3, len(net.positions)), generator=generator())
        words[1, 3:] = net.boxes.pad
        inputs = (words,) + ((draw(3, channels, side, side),) if channels else ())
        with own_randomness():
            got = attempt(net, *inputs, name="BoxPainter.forward")
        paint = lambda how="": _painted(net, *inputs, how=how)  # noqa: B023
        right = paint()
        compare(got, right, "painter(words, maps)" if channels else "painter(words)", shapes={
            (3, side * side, right.shape[1]): "classes second, then the cells as a picture: .mT.unflatten(2, (6, 6)).",
            (3, right.shape[1], side * side): "the cells as a picture: .unflatten(2, (6, 6)).",
            (3, side, side, right.shape[1]): "the classes come second: (B, classes, 6, 6).",
        }, mistakes=((paint(how), message) for how, message in PAINTER_MISTAKES.items()
                     if channels or "map" not in how))
        same_gradient(got, right, {name: p for name, p in net.named_parameters()}, "painter(words)")
    passed("BoxPainter: pixels ask the boxes, and say what stands there")


PAINTER_MISTAKES = {
    "no mask": "padding was read: the third input of self.look is the mask, words != self.boxes.pad.",
    "mask flipped": "True = may be read: words != self.boxes.pad.",
    "no skip": "what the pixels read is *added* to them: pixels + self.look(...).",
    "twice": "what the pixels read is added once.",
    "no positions": "the words need their positions: self.boxes.position[self.positions].",
    "no transformer": "the words go through self.boxes.transformer.",
    "no join": "the pixels go through self.join, with a map or without.",
    "joined after": "join first, then look: a pixel asks with what it knows of the map.",
    "no map": "the map is not used: join it to the pixels, torch.cat(..., dim=-1), before self.join.",
    "map first": "the pixels come first, then the map's channels.",
    "map turned": "rows and columns of the map have changed places: maps.flatten(2).mT.",
    "map reshaped": "reshape mixes channels and cells: maps.flatten(2).mT is (B, 36, C).",
    "turned": "rows and columns of the answer have changed places.",
}


def _painted(net, words, maps=None, how=""):
    place = 0 if how == "no positions" else net.boxes.position[net.positions]
    tokens = net.boxes.token(words) + place
    tokens = tokens if how == "no transformer" else net.boxes.transformer(tokens)
    pixels = net.pixels.expand(len(words), -1, -1)
    if maps is not None:
        cells = {"map turned": maps.mT.flatten(2).mT, "map reshaped": maps.reshape(len(maps), -1, maps.shape[1]),
                 "no map": torch.zeros_like(maps.flatten(2).mT)}.get(how, maps.flatten(2).mT)
        pixels = torch.cat([cells, pixels] if how == "map first" else [pixels, cells], dim=-1)
    mask = {"no mask": None, "mask flipped": words == net.boxes.pad}.get(how, words != net.boxes.pad)
    if how == "no join" or how == "joined after":
        pixels = pixels[..., :net.pixels.shape[1]]
        pixels = pixels + net.look(pixels, tokens, mask)
        if how == "joined after" and maps is None:
            pixels = net.join(pixels)
    else:
        pixels = net.join(pixels)
        read = net.look(pixels, tokens, mask)
        pixels = read + {"no skip": 0, "twice": pixels + read}.get(how, pixels)
    out = net.say(pixels).mT.unflatten(2, (round(len(net.pixels) ** 0.5),) * 2)
    return out.mT if how == "turned" else out


def train_painter(function):
    """`function(net, optimizer, slower, draw, steps)` trains net on draw() -> (inputs, picture) -> losses, a list."""
    for steps, kinds in ((5, 3), (3, 4)):
        with own_randomness():
            start = nn.Sequential(nn.Flatten(), nn.Linear(8, 4 * kinds), nn.Unflatten(1, (kinds, 2, 2)))
        data = fresh()(steps, 16, 2, 4), torch.randint(kinds, (steps, 16, 2, 2), generator=generator())
        reference, drawn = {}, []
        for how in ("", *LOOP_MISTAKES):
            reference[how] = _trained(copy.deepcopy(start), data, steps, how)
        net, drawn = copy.deepcopy(start), []
        optimizer, slower = _optimizer(net, steps)

        def draw(drawn=drawn, data=data):
            drawn.append(len(drawn) % len(data[0]))
            return (data[0][drawn[-1]],), data[1][drawn[-1]]

        with own_randomness():
            losses = attempt(lambda: function(net, optimizer, slower, draw, steps), name="train_painter")  # noqa: B023
        if len(drawn) != steps:
            raise CheckFailed(f"train_painter drew {len(drawn)} batches in {steps} steps; a new one for each step.")
        if not isinstance(losses, list) or len(losses) != steps or not all(isinstance(x, float) for x in losses):
            raise CheckFailed(f"train_painter should return a list of {steps} numbers, the loss of each step "
                              "(loss.item()).")
        right, weights = reference.pop("")
        got = torch.cat([p.detach().flatten() for p in net.parameters()])
        known = [(value, LOOP_MISTAKES[how]) for how, (_, value) in reference.items()]
        compare(got, weights, f"the network after {steps} steps", rtol=1e-4, mistakes=known)
        compare(torch.tensor(losses), torch.tensor(right), "the losses")
    passed("train_painter: ask, compare, step; and each step a little smaller")


LOOP_MISTAKES = {
    "no zero_grad": "gradients of earlier steps were added up: optimizer.zero_grad() in each step.",
    "no slower": "the learning rate stays: slower.step() after optimizer.step().",
    "no step": "nothing was learned: optimizer.step().",
    "softmax": "F.cross_entropy takes the network's numbers as they are; a softmax would come twice.",
    "sum": "the mean over all cells, as F.cross_entropy gives it, not the sum.",
    "square": "classes are no amounts: F.cross_entropy, not a squared distance.",
}


def _optimizer(net, steps):
    optimizer = torch.optim.SGD(net.parameters(), 0.5, momentum=0.5)
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)


def _trained(net, data, steps, how):
    """Losses and weights after training, with one thing changed."""
    optimizer, slower = _optimizer(net, steps)
    measure = {"softmax": lambda out, y: F.cross_entropy(out.softmax(1), y),
               "sum": partial(F.cross_entropy, reduction="sum"),
               "square": lambda out, y: (out - F.one_hot(y, out.shape[1]).movedim(3, 1)).square().mean()}.get(
                   how, F.cross_entropy)
    losses = []
    for x, picture in zip(*data):
        loss = measure(net(x), picture)
        if how != "no zero_grad":
            optimizer.zero_grad()
        loss.backward()
        if how != "no step":
            optimizer.step()
        if how not in ("no slower", "no step"):
            slower.step()
        losses.append(loss.item())
    return losses, torch.cat([p.detach().flatten() for p in net.parameters()])


def with_map(function):
    """`function(words, picture, keep_boxes, keep_map, kinds, pad)`: some samples' words, or map, become absent."""
    for kinds, side, pad in ((4, 6, 49), (2, 3, 9)):
        words = torch.randint(pad, (5, 6), generator=generator())
        picture = torch.randint(kinds, (5, side, side), generator=generator())  # the last kind does not occur
        boxes, here = torch.tensor([1, 0, 1, 0, 1]).bool(), torch.tensor([1, 1, 0, 0, 1]).bool()
        got = attempt(function, words, picture, boxes, here, kinds, pad, name="with_map")
        told, maps = several(got, "with_map(...)", "two things: the words and the maps")
        hide = lambda keep: torch.where(keep[:, None], words, pad)  # noqa: B023
        compare(told, hide(boxes), "with_map: the words", mistakes=[
            (hide(~boxes), "the wrong way round: keep_boxes is True where the words stay."),
            (words, "where keep_boxes is False all words become `pad`."),
            (hide(here), "the words follow keep_boxes, not keep_map."),
            (words * boxes[:, None], "0 is a word like others (a class, a point); what is absent is `pad`."),
        ])
        same_dtype(told, words, "with_map: the words")
        one_hot = F.one_hot(picture, 1 + kinds).permute(0, 3, 1, 2).float()
        keep = here[:, None, None, None].float()
        present = keep.expand(-1, 1, side, side)
        join = lambda maps, last: torch.cat([maps, last], 1)
        compare(maps, join(one_hot * keep, present), "with_map: the maps", shapes={
            tuple(one_hot.shape): "one channel is missing: 1 + kinds (0 is nothing) and one that says present or "
                                  "absent.",
            (5, 1 + kinds + side, side, side): "the channels are dimension 1: join there.",
        }, mistakes=[
            (join(one_hot, present), "an absent map is 0 everywhere."),
            (join(one_hot * keep, 1 - present), "1 = present, 0 = absent."),
            (join(one_hot * keep, torch.ones_like(present)), "the last channel is 1 only where the map is there."),
            (torch.cat([present, one_hot * keep], 1), "the channel that says present comes last."),
            (join(one_hot * (1 - keep), present), "the wrong way round: keep_map is True where the map stays."),
            (join(one_hot * boxes[:, None, None, None], present), "the map follows keep_map, not keep_boxes."),
            (join(F.one_hot(picture, 1 + kinds).reshape(one_hot.shape) * keep, present),
             "reshape mixes classes and cells: permute(0, 3, 1, 2)."),
        ])
        if maps.dtype != torch.float32:
            raise CheckFailed(f"with_map: the maps should be float32, not {maps.dtype}: a linear layer reads them.")
    passed("with_map: what is absent says so")
