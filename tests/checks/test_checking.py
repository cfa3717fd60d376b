"""A check is worth what it kills: known wrong solutions must fail with a hint; other right ones must pass."""

import pytest
import torch
from solutions import spoiled, try_all

from ldm_mini import checks


def iou_from(a, b, clamp=True, union=True):
    size = torch.minimum(a[:, None, 2:], b[None, :, 2:]) - torch.maximum(a[:, None, :2], b[None, :, :2])
    inter = (size.clamp(min=0) if clamp else size).prod(-1)
    area = ((a[:, 2:] - a[:, :2]).prod(-1))[:, None] + ((b[:, 2:] - b[:, :2]).prod(-1))[None]
    return inter / (area - inter if union else area)


CORRECT = {
    checks.to_picture: [
        lambda x: ((x.clamp(-1, 1) / 2 + 0.5) * 255).to(torch.uint8).movedim(1, -1),
        lambda x: x.mul(127.5).add(127.5).clamp(0, 255).round().byte().permute(0, 2, 3, 1),
    ],
    checks.guidance: [lambda u, c, s: torch.lerp(u, c, s), lambda u, c, s: s * c + (1 - s) * u],
    checks.latent_numbers: [lambda h, w, f, c: (3 * h * w, h * w * c // f**2)],
    checks.alpha_over: [lambda s, a, c: c + a * (s - c), lambda s, a, c: torch.lerp(c, s, a)],
    checks.box_iou: [iou_from, lambda a, b: torch.tensor([[iou_from(x[None], y[None]) for y in b] for x in a])],
    checks.inpainting_input: [
        lambda x, m: (((x + 1) / 2 * (1 - m)) * 2 - 1, m * 2 - 1),
        lambda x, m: [x.masked_fill(m.bool(), -1), torch.where(m > 0, 1.0, -1.0)],
    ],
}

MUTANTS = {
    checks.to_picture: [
        (lambda x: ((x + 1) * 127.5).round().long().to(torch.uint8).permute(0, 2, 3, 1), "wrapped"),
        (lambda x: (x.clamp(0, 1) * 255).to(torch.uint8).permute(0, 2, 3, 1), r"\[0, 1\]"),
        (lambda x: ((x.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8), "shape"),
        (lambda x: ((x.clamp(-1, 1) + 1) * 127.5).round().byte().reshape(2, 4, 6, 3), "permute"),
        (lambda x: ((x.clamp(-1, 1) + 1) * 127.5).permute(0, 2, 3, 1), "dtype"),
        (lambda x: x.clamp_(-1, 1).add(1).mul(127.5).to(torch.uint8).permute(0, 2, 3, 1), "in place"),
        (lambda x: None, "return"),
        (lambda x: x[:, 7], "IndexError"),
    ],
    checks.guidance: [
        (lambda u, c, s: c + s * (c - u), "convention"),
        (lambda u, c, s: u + s * (u - c), "wrong way"),
        (lambda u, c, s: u + s * c, "difference"),
        (lambda u, c, s: c, "off by"),
    ],
    checks.latent_numbers: [
        (lambda h, w, f, c: (3 * h * w, h * w // f * c), "squared"),
        (lambda h, w, f, c: (h * w, (h // f) * (w // f) * c), "three numbers"),
        (lambda h, w, f, c: 3 * h * w, "two numbers"),
    ],
    checks.alpha_over: [
        (lambda s, a, c: s + (1 - a) * c, "premultiplied"),
        (lambda s, a, c: (1 - a) * s + a * c, "swapped"),
        (lambda s, a, c: torch.where(a > 0.5, s, c), "jagged"),
    ],
    checks.box_iou: [
        *spoiled(iou_from, (dict(clamp=False), "negative side"), (dict(union=False), "once")),
        (lambda a, b: iou_from(b, a), "shape"),
    ],
    checks.inpainting_input: [
        (lambda x, m: (x * (1 - m), m * 2 - 1), "mid-grey"),
        (lambda x, m: (x, m * 2 - 1), "copy"),
        (lambda x, m: (x.masked_fill(~m.bool(), -1), m * 2 - 1), "hid the rest"),
        (lambda x, m: (x.masked_fill(m.bool(), -1), m), r"\[-1, 1\]"),
        (lambda x, m: (x.masked_fill(m.bool(), -1), 1 - 2 * m), "sign"),
    ],
}

test_right_solutions_pass, test_wrong_ones_fail_with_a_hint, test_the_stub_is_named = try_all(CORRECT, MUTANTS)


def test_a_stub_further_down_is_named():
    """Who skipped exercise 1 and solved exercise 2 with it should not be told that exercise 2 is missing."""
    def nearest(z, codebook):
        raise NotImplementedError

    class MyVQ(torch.nn.Module):
        def __init__(self, codebook_size, dim, commitment_weight):
            super().__init__()
            self.codebook = torch.nn.Parameter(torch.rand(codebook_size, dim))

        def forward(self, z):
            return nearest(z, self.codebook)

    with pytest.raises(checks.CheckFailed, match="MyVQ's forward calls nearest, which is still a stub"):
        checks.vector_quantizer(MyVQ)
