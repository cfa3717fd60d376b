"""A check is worth what it kills: known wrong solutions must fail with a hint; other right ones must pass."""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from solutions import spoiled, try_all

from ldm_mini import checks
from ldm_mini.checks.checking import CheckFailed
from ldm_mini.checks.properties import SEED


def picture(x, low=-1.0, scale=127.5, last=(0, 2, 3, 1), end=torch.round, dtype=torch.uint8):
    return end((x.clamp(low, 1) - low) * scale).to(dtype).permute(*last)


def iou_from(a, b, sides=lambda size: size.clamp(min=0), product=lambda area: area,
             ratio=lambda inter, one, other: inter / (one + other - inter), pixel=0):
    size = torch.minimum(a[:, None, 2:], b[None, :, 2:]) - torch.maximum(a[:, None, :2], b[None, :, :2]) + pixel
    inter = product(sides(size).prod(-1))
    one, other = ((t[:, 2:] - t[:, :2] + pixel).prod(-1) for t in (a, b))
    return ratio(inter, one[:, None], other[None])


def iou_in_loops(a, b):
    rows = []
    for p in a.tolist():
        rows.append([])
        for q in b.tolist():
            w, h = min(p[2], q[2]) - max(p[0], q[0]), min(p[3], q[3]) - max(p[1], q[1])
            both = max(0.0, w) * max(0.0, h)
            areas = [(r[2] - r[0]) * (r[3] - r[1]) for r in (p, q)]
            rows[-1].append(both / (sum(areas) - both + 1e-7))
    return torch.tensor(rows)


def hide(x, m, hole=-1.0, keep=lambda m: m.bool(), mask=lambda m: 2 * m - 1):
    return x.masked_fill(keep(m), hole), mask(m)


def numbers(h, w, f, c):
    return 3 * h * w, (h // f) * (w // f) * c


CORRECT = {
    checks.to_picture: [
        picture, lambda x: picture(x, end=lambda t: t), lambda x: (picture(x, end=torch.floor)).contiguous(),
        lambda x: ((x.clamp(-1, 1) / 2 + 0.5) * 255).to(torch.uint8).movedim(1, -1),
        lambda x: x.mul(127.5).add(127.5).clamp(0, 255).round().byte().permute(0, 2, 3, 1),
        lambda x: (F.hardtanh(x) * 127.5 + 127.5).transpose(1, 2).transpose(2, 3).type(torch.uint8),
        lambda x: torch.from_numpy(((x.numpy().clip(-1, 1) + 1) / 2 * 255).astype("uint8")).permute(0, 2, 3, 1),
        lambda x: torch.stack([torch.stack([c for c in picture(p[None])[0].permute(2, 0, 1)], -1) for p in x]),
    ],
    checks.guidance: [
        lambda u, c, s: torch.lerp(u, c, float(s)), lambda u, c, s: s * c + (1 - s) * u, torch.lerp,
        lambda u, c, s: torch.add(u, c - u, alpha=s), lambda u, c, s: c + (s - 1) * (c - u),
        lambda u, c, s: c if s == 1 else u + torch.tensor(s) * (c - u),
    ],
    checks.latent_numbers: [
        numbers, lambda h, w, f, c: (3 * h * w, h * w * c // f**2), lambda *a: list(numbers(*a)),
        lambda h, w, f, c: (3 * h * w, h / f * w / f * c), lambda *a: tuple(map(torch.tensor, numbers(*a))),
        lambda h, w, f, c: (math.prod((3, h, w)), torch.empty(c, h // f, w // f).numel()),
        lambda *a: torch.tensor(numbers(*a)).unbind(),
    ],
    checks.alpha_over: [
        lambda s, a, c: c + a * (s - c), lambda s, a, c: torch.lerp(c, s, a), lambda s, a, c: a * s + (1 - a) * c,
        lambda s, a, c: torch.stack([a[0] * x + (1 - a[0]) * y for x, y in zip(s, c)]),
        lambda s, a, c: torch.einsum("chw,hw->chw", s, a[0]) + torch.einsum("chw,hw->chw", c, 1 - a[0]),
        lambda s, a, c: torch.where(a >= 1, s, torch.addcmul(c, a, s - c)),
    ],
    checks.box_iou: [
        iou_from, iou_in_loops, lambda a, b: torch.tensor([[iou_from(x[None], y[None]) for y in b] for x in a]),
        partial(iou_from, sides=F.relu), lambda a, b: iou_from(b, a).T,
        partial(iou_from, ratio=lambda i, one, other: i / (one + other - i).clamp(min=1e-6)),
        partial(iou_from, sides=lambda size: size * (size > 0).all(-1, keepdim=True)),
        partial(iou_from, sides=lambda size: torch.where(size > 0, size, 0.0)),
    ],
    checks.inpainting_input: [
        hide, lambda x, m: (((x + 1) / 2 * (1 - m)) * 2 - 1, m * 2 - 1), lambda x, m: list(hide(x, m)),
        lambda x, m: [x.masked_fill(m.bool(), -1), torch.where(m > 0, 1.0, -1.0)],
        lambda x, m: (x * (1 - m) - m, m - (1 - m)), lambda x, m: (torch.lerp(x, -torch.ones_like(x), m), 2 * m - 1),
        lambda x, m: (x - m * (x + 1), torch.sign(m - 0.5)),
        lambda x, m: (torch.cat([torch.where(m == 1, -1.0, x[:, i:i + 1]) for i in range(3)], 1), 2 * m - 1),
    ],
}

MUTANTS = {
    checks.to_picture: [
        *spoiled(picture, (dict(low=0.0, scale=255), r"\[0, 1\]"), (dict(last=(0, 1, 2, 3)), "colours come last"),
                 (dict(last=(0, 3, 2, 1)), "height and width have changed places"), (dict(last=(0, 3, 1, 2)), "shape"),
                 (dict(dtype=torch.float32), "dtype"), (dict(dtype=torch.int64), "dtype"), (dict(low=-2.0), "off by"),
                 (dict(dtype=torch.int8), "dtype"), (dict(scale=127), "should be 255"),
                 (dict(end=torch.ceil, scale=126.9), "should be 255")),
        (lambda x: ((x + 1) * 127.5).round().long().to(torch.uint8).permute(0, 2, 3, 1), "wrapped"),
        (lambda x: ((x + 1) * 127.5).long().to(torch.uint8).permute(0, 2, 3, 1), "wrapped"),
        (lambda x: (x * 255).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1), r"\[0, 1\]"),
        (lambda x: (x.clamp(-1, 1).abs() * 255).byte().permute(0, 2, 3, 1), "do not fold"),
        (lambda x: picture(x, last=(0, 1, 2, 3)).reshape(len(x), *x.shape[2:], 3), "permute"),
        (lambda x: picture(x).reshape(2, 4, 7, 3), "RuntimeError"),
        (lambda x: picture(x)[0], "batch axis is lost"),
        (lambda x: picture(-x), "inverted"),
        (lambda x: picture(x).flip(-1), "red and blue"),
        (lambda x: (((x - x.min()) / (x.max() - x.min())) * 255).byte().permute(0, 2, 3, 1), "stretched"),
        (lambda x: picture(x / x.abs().max()), "off by"),
        (lambda x: x.clamp_(-1, 1).add(1).mul(127.5).to(torch.uint8).permute(0, 2, 3, 1), "in place"),
        (lambda x: None, "return"),
        (lambda x: x[:, 7], "IndexError"),
    ],
    checks.guidance: [
        (lambda u, c, s: c + s * (c - u), "convention"),
        (lambda u, c, s: (1 + s) * c - s * u, "convention"),
        (lambda u, c, s: u + (s - 1) * (c - u), "one step short"),
        (lambda u, c, s: u + s * (u - c), "wrong way"),
        (lambda u, c, s: u + s * c, "difference"),
        (lambda u, c, s: s * (c - u), "arrow alone"),
        (lambda u, c, s: u + 4 * (c - u), "stays at 4"),
        (lambda u, c, s: u + s * (c - u).abs(), "no absolute"),
        (lambda u, c, s: (u + s * (c - u)).clamp(-1, 1), "do not clamp"),
        (lambda u, c, s: u + int(s) * (c - u), "off by"),
        (lambda u, c, s: u + min(s, 4) * (c - u), "as it is"),
        (lambda u, c, s: (u + s * (c - u)).double(), "dtype"),
        (lambda u, c, s: u.lerp_(c, float(s)), "in place"),
        (lambda u, c, s: c, "off by"),
        (lambda u, c, s: (u + s * (c - u)).mean(), "shape"),
    ],
    checks.latent_numbers: [
        (lambda h, w, f, c: (3 * h * w, h * w // f * c), "squared"),
        (lambda h, w, f, c: (h * w, (h // f) * (w // f) * c), "three numbers"),
        (lambda h, w, f, c: numbers(h, w, f, c)[::-1], "first the picture"),
        (lambda h, w, f, c: (3 * h * w, h // f * (w // f)), "holds `channels`"),
        (lambda h, w, f, c: (3 * h * w, 3 * (h // f) * (w // f)), "not three"),
        (lambda h, w, f, c: (3 * h * w, h * w * c), "smaller"),
        (lambda h, w, f, c: (c * h * w, numbers(h, w, f, c)[1]), "the latent's"),
        (lambda h, w, f, c: ((3, h, w), (c, h // f, w // f)), "multiply them out"),
        (lambda h, w, f, c: (3 * h * h, (h // f) ** 2 * c), "should be"),
        (lambda h, w, f, c: {64: (12288, 768), 256: (196608, 4096), 512: (393216, 8192)}[h], "KeyError|should be"),
        (lambda h, w, f, c: 3 * h * w, "two numbers"),
    ],
    checks.alpha_over: [
        (lambda s, a, c: s + (1 - a) * c, "premultiplied"),
        (lambda s, a, c: (1 - a) * s + a * c, "swapped"),
        (lambda s, a, c: torch.where(a > 0.5, s, c), "jagged"),
        (lambda s, a, c: torch.where(a > 0, s, c), "jagged"),
        (lambda s, a, c: a * s + c, "must fade"),
        (lambda s, a, c: (a * s + c).clamp(0, 1), "must fade"),
        (lambda s, a, c: a * s, "canvas is missing"),
        (lambda s, a, c: (s + c) / 2, "no part"),
        (lambda s, a, c: a**2 * s + (1 - a**2) * c, "twice"),
        (lambda s, a, c: a**2 * s + (1 - a) * c, "twice"),
        (lambda s, a, c: torch.lerp(c, s, a)[:1], "all three"),
        (lambda s, a, c: torch.lerp(c, s, a.mean()), "off by"),
        (lambda s, a, c: torch.lerp(c, s, a.clamp(0.1, 0.9)), "off by"),
        (lambda s, a, c: torch.lerp(c, s, a.flip(-1)), "off by"),
        (lambda s, a, c: torch.lerp(c, s, a).double(), "dtype"),
        (lambda s, a, c: c.lerp_(s, a), "in place"),
    ],
    checks.box_iou: [
        *spoiled(iou_from, (dict(sides=lambda size: size), "negative side"),
                 (dict(sides=lambda s: s, product=F.relu), "each .side."),
                 (dict(sides=torch.abs), "off by"), (dict(pixel=1), "off by"),
                 (dict(ratio=lambda i, one, other: i / (one + other)), "once"),
                 (dict(ratio=lambda i, one, other: 2 * i / (one + other)), "Dice"),
                 (dict(ratio=lambda i, one, other: i), "is the intersection"),
                 (dict(ratio=lambda i, one, other: one + other - i), "is the union"),
                 (dict(ratio=lambda i, one, other: i / torch.minimum(one, other)), "smaller box"),
                 (dict(ratio=lambda i, one, other: i / torch.maximum(one, other)), "off by"),
                 (dict(ratio=lambda i, one, other: i / one), "box of a"),
                 (dict(ratio=lambda i, one, other: i / (other + 0 * one)), "box of b"),
                 (dict(ratio=lambda i, one, other: 1 - i / (one + other - i)), "is 1 - IoU")),
        (lambda a, b: iou_from(a, b, sides=lambda s: s).clamp(min=0), "each .side."),
        (lambda a, b: iou_from(a.clamp(0, 1), b.clamp(0, 1)), "NaN|off by"),
        (lambda a, b: iou_from(b, a), "changed places"),
        (lambda a, b: iou_from(a, b).amax(1), "each .pair."),
        (lambda a, b: iou_from(a, b).double(), "dtype"),
        (lambda a, b: iou_from(a, b).tolist(), "torch.Tensor, not list"),
        (lambda a, b: iou_from(a, b) > 0, "dtype"),
    ],
    checks.inpainting_input: [
        *spoiled(hide, (dict(hole=0.0), "mid-grey"), (dict(hole=1.0), "white"), (dict(keep=lambda m: m < 0), "copy"),
                 (dict(keep=lambda m: ~m.bool()), "hid the rest"), (dict(mask=lambda m: m), r"\[-1, 1\]"),
                 (dict(mask=lambda m: 1 - m), r"\[-1, 1\]"), (dict(mask=lambda m: 1 - 2 * m), "sign"),
                 (dict(mask=lambda m: m > 0), "dtype"), (dict(mask=lambda m: -m), "minus 1"),
                 (dict(mask=lambda m: (2 * m - 1).double()), "dtype"), (dict(mask=lambda m: m[:1]), "shape"),
                 (dict(keep=lambda m: m[:1].bool()), "own mask"), (dict(keep=lambda m: m.bool().any()), "off by")),
        (lambda x, m: (x * (1 - m), m * 2 - 1), "mid-grey"),
        (lambda x, m: (x * m, m * 2 - 1), "0 is mid-grey"),
        (lambda x, m: ((x + 1) / 2 * (1 - m), m * 2 - 1), "come back"),
        (lambda x, m: ((x + 1) / 2 * (1 - m) - 0.5, m * 2 - 1), "minus 1"),
        (lambda x, m: hide(x, m)[::-1], "comes first"),
        (lambda x, m: torch.cat(hide(x, m), 1), "two tensors"),
        (lambda x, m: (torch.cat(hide(x, m), 1), m), "not joined"),
        (lambda x, m: (x.masked_fill_(m.bool(), -1), 2 * m - 1), "in place"),
    ],
}

test_right_solutions_pass, test_wrong_ones_fail_with_a_hint, test_the_stub_is_named = try_all(CORRECT, MUTANTS)


def test_what_a_solution_raised_is_told_with_its_inputs():
    """By the learner's own names, without the addresses of objects, and no shape broken where the message wraps."""
    def jump(x0, eps, t, betas):
        return x0 @ eps

    with pytest.raises(checks.CheckFailed, match=r"called with x0 \(6, 3\), eps \(6, 3\), t \(6,\), betas"):
        checks.add_noise(jump)
    told = CheckFailed("The shapes differ by one: " + "(12, 34), " * 12)._render_traceback_()[0].splitlines()
    assert len(told) > 1 and all(line.endswith("),") for line in told)
    with pytest.raises(checks.CheckFailed, match=r"'posterior' is not defined: run the cells above first; or is it m"):
        checks.add_noise(lambda x0, eps, t, betas: posterior(x0))  # noqa: F821
    with pytest.raises(checks.CheckFailed, match=r"called with \(5,\), \(40,\), Generator\)"):
        checks.noising_walk(lambda *inputs: 1 / 0)


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


@pytest.mark.parametrize("check, right", [(checks.guidance, lambda u, c, s: torch.lerp(u, c, float(s))),
                                          (checks.alpha_over, lambda s, a, c: torch.lerp(c, s, a)),
                                          (checks.box_iou, iou_from), (checks.to_picture, picture)])
def test_who_knows_the_answers_by_heart_fails(check, right, monkeypatch):
    """Inputs are drawn anew at every call: answers written down at the first are wrong at the second."""
    monkeypatch.delenv(SEED)
    answers = []
    check(lambda *inputs: answers.append(right(*inputs)) or answers[-1])
    written = iter(answers)
    with pytest.raises(checks.CheckFailed):
        check(lambda *inputs: next(written))


def test_a_check_leaves_the_random_numbers_that_follow_alone():
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    checks.restart_dead(lambda codes, idle, vectors, patience: (
        torch.where((dead := idle >= patience)[:, None], vectors[torch.randperm(len(vectors))[:len(codes)]], codes),
        idle.masked_fill(dead, 0)))
    assert torch.equal(torch.rand(2), expected)


def test_a_stub_anywhere_in_a_class_is_named():
    class LPIPS(torch.nn.Module):
        def __init__(self, net, heads, shift, scale):
            super().__init__()
            self.eval()

        def train(self, mode=True):
            raise NotImplementedError

    with pytest.raises(checks.CheckFailed, match="calls LPIPS.train, which is still a stub"):
        checks.lpips(LPIPS)
