"""Checks of notebook 01, one data set, seven tasks."""

import torch

from .checking import attempt, compare, passed, several
from .properties import fresh, same_dtype


def alpha_over(function):
    """`function(sprite, alpha, canvas)`: colour (3,h,w), opacity (1,h,w), canvas (3,h,w) -> composed (3,h,w)."""
    draw, name = fresh(), "alpha_over(sprite, alpha, canvas)"
    jagged = "a hard threshold makes jagged edges: mix in proportion to alpha."
    for h, w in ((5, 4), (3, 8)):
        sprite, canvas = draw(3, h, w).sigmoid(), draw(3, h, w).sigmoid()
        # some places all opaque, some all clear, the rest between
        alpha = (0.5 + 0.5 * draw(1, h, w)).clamp(0, 1)
        right = alpha * sprite + (1 - alpha) * canvas
        got = attempt(function, sprite, alpha, canvas, name="alpha_over")
        compare(got, right, name, shapes={(1, h, w): "the colours are gone: give all three."}, mistakes=[
            (sprite + (1 - alpha) * canvas, "the sprite's colour is not premultiplied here: weigh it by alpha too."),
            ((1 - alpha) * sprite + alpha * canvas,
             "sprite and canvas are swapped: alpha = 1 means the sprite is opaque."),
            (torch.where(alpha > 0.5, sprite, canvas), jagged), (torch.where(alpha > 0, sprite, canvas), jagged),
            (alpha * sprite + canvas, "the canvas must fade where the sprite is opaque: weigh it by 1 - alpha."),
            ((alpha * sprite + canvas).clamp(0, 1),
             "the canvas must fade where the sprite is opaque: weigh it by 1 - alpha."),
            (alpha * sprite, "the canvas is missing: it shows where the sprite is clear, by 1 - alpha."),
            (0.5 * sprite + 0.5 * canvas, "alpha plays no part: mix in proportion to it."),
            (alpha.square() * sprite + (1 - alpha.square()) * canvas, "alpha is weighed twice: once is enough."),
            (alpha**2 * sprite + (1 - alpha) * canvas, "the sprite is weighed by alpha twice: once is enough."),
        ])
        same_dtype(got, sprite, name)
    passed("alpha_over: soft edges, opaque middle")


def box_iou(function):
    """`function(a, b)`: boxes (N,4) and (M,4) as x0, y0, x1, y1 -> (N,M) intersection over union."""
    draw = fresh()
    a = torch.tensor([[0.0, 0.0, 0.5, 0.5], [0.2, 0.1, 0.6, 0.9], [0.7, 0.7, 0.9, 0.8]])
    b = torch.tensor([[0.0, 0.0, 0.5, 0.5], [0.25, 0.25, 0.75, 0.75], [0.0, 0.6, 0.1, 0.9], [0.1, 0.1, 0.2, 0.2]])
    _all_pairs(function, a, b)
    # a ratio of areas does not depend on the unit: the same in pixels, from anywhere
    corner = lambda n: torch.cat([low := 40 * draw(n, 2).sigmoid(), low + 3 + 30 * draw(n, 2).sigmoid()], 1)
    _all_pairs(function, corner(6), corner(2))
    passed("box_iou: 1 for the same box, 0 for boxes apart")


def _all_pairs(function, a, b):
    low, high = torch.maximum(a[:, None, :2], b[None, :, :2]), torch.minimum(a[:, None, 2:], b[None, :, 2:])
    # `raw` is what comes out without the clamp: two negative sides make a positive area
    inter, raw = (high - low).clamp(min=0).prod(-1), (high - low).prod(-1)
    area = lambda box: (box[:, 2:] - box[:, :2]).prod(-1)
    one, other = area(a)[:, None], area(b)[None]
    total = one + other
    late = "two negative sides have a positive product: clamp each *side* at 0, then multiply."
    hull = (torch.maximum(a[:, None, 2:], b[None, :, 2:]) - torch.minimum(a[:, None, :2], b[None, :, :2])).prod(-1)
    shapes = {(len(b), len(a)): "the axes have changed places: one row for each box of a.",
              **({(len(a),): "one value for each *pair*: (N,M)."} if len(a) != len(b) else {})}
    got = attempt(function, a, b, name="box_iou")
    compare(got, inter / (total - inter), "box_iou(a, b)", rtol=1e-3, shapes=shapes, mistakes=[
        (raw / (total - raw), "boxes that do not touch have a negative side: clamp width and height at 0 first."),
        (raw.clamp(min=0) / (total - raw.clamp(min=0)), late),
        ((raw / (total - raw)).clamp(min=0), late),
        (raw.clamp(min=0) / (total - raw), late), (inter / (total - raw), late),
        (inter / total, "the union counts the overlap once: area(a) + area(b) - intersection."),
        (2 * inter / total, "this is Dice's measure, twice the intersection by the sum of the areas; divide by the "
                            "union."),
        (inter, "this is the intersection; divide it by the union."),
        (total - inter, "this is the union; it divides the intersection."),
        (inter / torch.minimum(one, other), "divide by the union of the two, not by the smaller box."),
        (inter / one.expand_as(inter), "divide by the union of the two, not by the box of a."),
        (inter / other.expand_as(inter), "divide by the union of the two, not by the box of b."),
        (inter / hull, "the union is an area of its own shape, not the box around both."),
        (1 - inter / (total - inter), "this is 1 - IoU: the same box must give 1."),
    ])
    same_dtype(got, a, "box_iou(a, b)")


def inpainting_input(function):
    """`function(image, mask)`: image (B,3,H,W) in [-1,1], mask (B,1,H,W), 1 = hole -> both as the net sees them."""
    draw = fresh()
    for b, h, w in ((2, 6, 5), (3, 4, 8)):
        image, mask = draw(b, 3, h, w).clamp(-1, 1), (draw(b, 1, h, w) > 0).float()
        got = attempt(function, image, mask, name="inpainting_input")
        got = several(got, "inpainting_input", "two tensors: the masked image and the mask")
        hole, black = mask.bool(), torch.tensor(-1.0)
        in_01 = (image + 1) / 2 * (1 - mask)
        compare(got[0], torch.where(hole, black, image), "the masked image", shapes={
            (b, 1, h, w): "the masked image comes first, then the mask.",
            (b, 4, h, w): "return the two apart, not joined."}, mistakes=[
            (image * (1 - mask), "the hole is 0, which is mid-grey in [-1, 1]. The released model has black (-1) "
                                 "there: go to [0, 1], multiply, come back."),
            (torch.where(hole, image, black), "you kept the hole and hid the rest: mask = 1 is the *hole*."),
            (image * mask, "you kept the hole and hid the rest (and 0 is mid-grey): mask = 1 is the *hole*."),
            (image, "the hole still shows the answer: a model trained on this learns to copy."),
            (torch.where(hole, -black, image), "the hole is white: the released model has black (-1) there."),
            (in_01, "come back from [0, 1] to [-1, 1]: times 2, minus 1."),
            (torch.where(hole, torch.tensor(-0.5), image / 2), "twice the picture in [0, 1], minus 1."),
            (torch.where(hole.roll(1, 0), black, image), "each picture has its own mask."),
            (torch.where(hole[:1], black, image), "each picture has its own mask."),
        ])
        compare(got[1], mask * 2 - 1, "the mask", mistakes=[
            (mask, "it goes to the network in [-1, 1] like everything else: +1 in the hole, -1 outside."),
            (1 - mask, "it goes to the network in [-1, 1] like everything else: +1 in the hole, -1 outside."),
            (1 - mask * 2, "the sign is flipped: +1 belongs in the hole."),
            (-mask, "times 2, minus 1: +1 in the hole, -1 outside."),
        ])
        same_dtype(got[0], image, "the masked image")
        same_dtype(got[1], image, "the mask")
    passed("inpainting_input: what the network sees, and nothing more")
