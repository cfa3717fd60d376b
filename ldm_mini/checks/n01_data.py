"""Checks of notebook 01, one data set, seven tasks."""

import torch

from .checking import attempt, compare, noise, passed, several


def alpha_over(function):
    """`function(sprite, alpha, canvas)`: colour (3,h,w), opacity (1,h,w), canvas (3,h,w) -> composed (3,h,w)."""
    sprite, canvas = noise(3, 5, 5).sigmoid(), noise(3, 5, 5, seed=1).sigmoid()
    alpha = torch.linspace(0, 1, 25).view(1, 5, 5)
    right = alpha * sprite + (1 - alpha) * canvas
    got = attempt(function, sprite, alpha, canvas, name="alpha_over")
    compare(got, right, "alpha_over(sprite, alpha, canvas)", mistakes=[
        (sprite + (1 - alpha) * canvas, "the sprite's colour is not premultiplied here: weigh it by alpha too."),
        ((1 - alpha) * sprite + alpha * canvas, "sprite and canvas are swapped: alpha = 1 means the sprite is opaque."),
        (torch.where(alpha > 0.5, sprite, canvas), "a hard threshold makes jagged edges: mix in proportion to alpha."),
        (alpha * sprite + canvas, "the canvas must fade where the sprite is opaque: weigh it by 1 - alpha."),
    ])
    passed("alpha_over: soft edges, opaque middle")


def box_iou(function):
    """`function(a, b)`: boxes (N,4) and (M,4) as x0, y0, x1, y1 -> (N,M) intersection over union."""
    a = torch.tensor([[0.0, 0.0, 0.5, 0.5], [0.2, 0.1, 0.6, 0.9], [0.7, 0.7, 0.9, 0.8]])
    b = torch.tensor([[0.0, 0.0, 0.5, 0.5], [0.25, 0.25, 0.75, 0.75], [0.0, 0.6, 0.1, 0.9], [0.1, 0.1, 0.2, 0.2]])
    low, high = torch.maximum(a[:, None, :2], b[None, :, :2]), torch.minimum(a[:, None, 2:], b[None, :, 2:])
    # `raw` is what comes out without the clamp: two negative sides make a positive area
    inter, raw = (high - low).clamp(min=0).prod(-1), (high - low).prod(-1)
    area = lambda box: (box[:, 2:] - box[:, :2]).prod(-1)
    total = area(a)[:, None] + area(b)[None]
    compare(attempt(function, a, b, name="box_iou"), inter / (total - inter), "box_iou(a, b)", mistakes=[
        (raw / (total - raw), "boxes that do not touch have a negative side: clamp width and height at 0 first."),
        (inter / total, "the union counts the overlap once: area(a) + area(b) - intersection."),
        (inter, "this is the intersection; divide it by the union."),
    ])
    passed("box_iou: 1 for the same box, 0 for boxes apart")


def inpainting_input(function):
    """`function(image, mask)`: image (B,3,H,W) in [-1,1], mask (B,1,H,W), 1 = hole -> both as the net sees them."""
    image = noise(2, 3, 6, 6).clamp(-1, 1)
    mask = (noise(2, 1, 6, 6, seed=2) > 0).float()
    got = attempt(function, image, mask, name="inpainting_input")
    got = several(got, "inpainting_input", "two tensors: the masked image and the mask")
    hidden = torch.where(mask.bool(), torch.tensor(-1.0), image)
    compare(got[0], hidden, "the masked image", mistakes=[
        (image * (1 - mask), "the hole is 0, which is mid-grey in [-1, 1]. The released model has black (-1) there: "
                             "go to [0, 1], multiply, come back."),
        (torch.where(mask.bool(), image, torch.tensor(-1.0)),
         "you kept the hole and hid the rest: mask = 1 is the *hole*."),
        (image, "the hole still shows the answer: a model trained on this learns to copy."),
    ])
    compare(got[1], mask * 2 - 1, "the mask", mistakes=[
        (mask, "it goes to the network in [-1, 1] like everything else: +1 in the hole, -1 outside."),
        (1 - mask * 2, "the sign is flipped: +1 belongs in the hole."),
    ])
    passed("inpainting_input: what the network sees, and nothing more")
