"""Checks of notebook 06: known wrong solutions fail with a message that helps; right ones written another way pass."""

import torch
import torch.nn.functional as F
from solutions import spoiled, try_all

from ldm_mini import checks
from ldm_mini.diffusion import ideal_denoiser, to_x0_eps
from ldm_mini.schedule import NoiseSchedule


def jump(x0, eps, a):
    return a.sqrt()[:, None] * x0 + (1 - a).sqrt()[:, None] * eps


def small_steps(x0, eps, t, betas):
    """Composes the steps one after the other, in mean and variance."""
    rows = []
    for i, last in enumerate(t.tolist()):
        mean, variance = torch.ones(()), torch.zeros(())
        for beta in betas[:last + 1]:
            mean, variance = (1 - beta).sqrt() * mean, (1 - beta) * variance + beta
        rows.append(mean * x0[i] + variance.sqrt() * eps[i])
    return torch.stack(rows)


def abar(betas):
    return torch.cumprod(1 - betas, 0)


def before(a):
    return torch.cat([torch.ones_like(a[:1]), a[:-1]])


def letters(a):
    alpha = a / before(a)
    return alpha, 1 - alpha, (1 - alpha) * (1 - before(a)) / (1 - a)


def precise(x0, x_t, t, a):
    """Bayes' rule for two Gaussians about x_{t-1}: precisions add."""
    b = a[t - 1] if t else torch.ones_like(a[0])
    step = a[t] / b
    prior, seen = 1 / (1 - b).clamp(min=1e-12), step / (1 - step)
    variance = 1 / (prior + seen)
    return variance * (prior * b.sqrt() * x0 + seen * x_t / step.sqrt()), variance


def library_posterior(x0, x_t, t, a):
    mean, variance = NoiseSchedule(letters(a)[1]).posterior(x0, x_t, torch.full((len(x0),), t))
    return mean, variance[0, 0]


def textbook(x0, x_t, t, a, first=1.0, root=True, variance="tilde", other=None):
    """The posterior with one thing changed."""
    b = a[t - 1] if t or first is None else torch.full_like(a[0], first)
    alpha = a[t] / b
    beta, r = 1 - alpha, torch.sqrt if root else lambda v: v
    c0, ct = r(a[t] if other == "late" else b) * beta / (1 - a[t]), r(alpha) * (1 - b) / (1 - a[t])
    c0, ct = {"swapped": (ct, c0), "late noise": (c0, r(alpha))}.get(other, (c0, ct))
    tilde = beta * (1 - b) / (1 - a[t])
    return c0 * x0 + ct * x_t, {"tilde": tilde, "beta": beta, "root": tilde.sqrt()}[variance]


def library_ideal(points, x_t, alpha, sigma):
    schedule = NoiseSchedule(torch.tensor([1 - alpha**2], dtype=torch.float64))
    return ideal_denoiser(points, schedule)(x_t, torch.zeros(len(x_t), dtype=torch.int64))[0]


def stable_loop(points, x_t, alpha, sigma):
    rows = []
    for x in x_t:
        logit = torch.stack([-((x - alpha * p) ** 2).sum() / (2 * sigma**2) for p in points])
        weight = (logit - logit.max()).exp()
        rows.append(sum(w * p for w, p in zip(weight, points)) / weight.sum())
    return torch.stack(rows)


def ideal(points, x_t, alpha, sigma, shrink=True, over=lambda s: 2 * s**2, square=True, dim=1, sign=-1.0):
    d = (x_t[:, None] - (alpha if shrink else 1) * points).square().sum(-1)
    return torch.softmax(sign * (d if square else d.sqrt()) / over(sigma), dim) @ points


def weights(points, x_t, alpha, sigma):
    return torch.exp(-torch.cdist(x_t, alpha * points) ** 2 / (2 * sigma**2))


def v_with(sign):
    return lambda p, o, x, a, s: {"eps": (x - s * o) / a, "x0": o, "v": a * x + sign * s * o}[p]


CORRECT = {
    checks.add_noise: [
        lambda x0, e, t, betas: jump(x0, e, abar(betas)[t]),
        lambda x0, e, t, betas: NoiseSchedule(betas).add_noise(x0, e, t),
        lambda x0, e, t, betas: jump(x0, e, (1 - betas).log().cumsum(0).exp()[t]), small_steps,
        lambda x0, e, t, betas: torch.einsum("kb,kbd->bd", torch.stack(
            [abar(betas)[t], 1 - abar(betas)[t]]).sqrt(), torch.stack([x0, e])),
    ],
    checks.ddpm_letters: [letters, lambda a: list(letters(a.double())), lambda a: torch.stack(letters(a))],
    checks.diffusion_posterior: [
        textbook, precise, library_posterior, lambda *args: (textbook(*args)[0], float(textbook(*args)[1])),
        lambda x0, x_t, t, a: [*textbook(x0, x_t, t, a)] if t else (x0, 0.0),
    ],
    checks.to_x0: [
        lambda *args: to_x0_eps(*args)[0], v_with(-1),
        lambda p, o, x, a, s: {"eps": x / a - o * s / a, "x0": o, "v": (x - s * (s * x + a * o)) / a}[p],
    ],
    checks.ideal_x0: [
        ideal, library_ideal, stable_loop,
        lambda p, x, a, s: torch.softmax(-torch.cdist(x / a, p).square() * a**2 / s**2 / 2, 1) @ p,
        lambda p, x, a, s: (F.log_softmax(-torch.cdist(x, a * p) ** 2 / (2 * s**2), 1).exp()[..., None] * p).sum(1),
    ],
}

MUTANTS = {
    checks.add_noise: [
        (lambda x, e, t, b: abar(b)[t][:, None] * x + (1 - abar(b)[t])[:, None] * e, "roots"),
        (lambda x, e, t, b: abar(b)[t].sqrt()[:, None] * x + (1 - abar(b)[t])[:, None] * e, "roots"),
        (lambda x, e, t, b: abar(b)[t][:, None] * x + (1 - abar(b)[t]).sqrt()[:, None] * e, "roots"),
        (lambda x, e, t, b: (r := abar(b)[t].sqrt()[:, None]) * x + (1 - r) * e, "variances add up"),
        (lambda x, e, t, b: (a := abar(b)[t][:, None]).sqrt() * x + a * e, "eps has not"),
        (lambda x, e, t, b: (a := abar(b)[t][:, None]).sqrt() * x + 2 * (1 - a).sqrt() * e, "eps has not"),
        (lambda x, e, t, b: x + (1 - abar(b)[t]).sqrt()[:, None] * e, "x0 has not"),
        (lambda x, e, t, b: jump(x, e, abar(b)[t - 1]), "off by one.*wraps"),
        (lambda x, e, t, b: jump(x, e, before(abar(b))[t]), "off by one"),
        (lambda x, e, t, b: jump(x, e, abar(b)[(t + 1).clamp(max=len(b) - 1)]), r"off by one.*t \+ 1"),
        (lambda x, e, t, b: jump(x, e, abar(b)[t + 1]), "IndexError"),
        (lambda x, e, t, b: jump(x, e, (1 - b).prod().expand(len(x))), "noise of the last step"),
        (lambda x, e, t, b: jump(x, e, 1 - b[t]), "one small step"),
        (lambda x, e, t, b: jump(x, e, (1 - b.cumsum(0)[t]).clamp(min=0)), "multiply"),
        (lambda x, e, t, b: jump(x, e, abar(b)[t]) + 0.01, "off by up to"),
        (lambda x, e, t, b: jump(e, x, abar(b)[t]), "swapped"),
        (lambda x, e, t, b: abar(b)[t].sqrt() @ x + (1 - abar(b)[t]).sqrt() @ e, "shape"),
        (lambda x, e, t, b: (r := abar(b)[t].sqrt())[:, None].sqrt() * x + (1 - r)[:, None].sqrt() * e, "one root too"),
        (lambda x, e, t, b: jump(x, e, b.cumprod(0)[t]), "not over beta"),
        (lambda x, e, t, b: jump(x, e, 1 - b.cumprod(0)[t]), "not over beta"),
        (lambda x, e, t, b: jump(x, e, abar(b)[t[:1]].expand(len(x))), "t of the first one"),
        (lambda x, e, t, b: jump(x, e, abar(torch.linspace(0.002, 0.2, 40))[t]), "off by up to"),  # knows the betas
        (lambda x, e, t, b: jump(x, e, abar(b)[t]).double(), "dtype"),
        (lambda x, e, t, b: jump(x, e, abar(b)[t]).half(), "dtype|off by"),
        (lambda x, e, t, b: jump(x, torch.randn_like(e), abar(b)[t]), "off by up to"),
    ],
    checks.ddpm_letters: [
        (lambda a: ((1 - a) / (1 - before(a)).clamp(min=1e-12), *letters(a)[1:]), "slip of the note"),
        (lambda a: ((1 - a) / (1 - before(a)), *letters(a)[1:]), "slip of the note"),
        (lambda a: ((1 - a) / (1 - a.roll(1)), *letters(a)[1:]), "slip of the note"),
        (lambda a: ((1 - before(a)) / (1 - a), *letters(a)[1:]), "factor of beta_tilde"),
        (lambda a: (a / a.roll(1), *letters(a)[1:]), "last"),
        (lambda a: (before(a) / a, *letters(a)[1:]), "upside down"),
        (lambda a: (a.sqrt(), *letters(a)[1:]), "LDM's alpha"),
        (lambda a: (letters(a)[0].sqrt(), *letters(a)[1:]), "square root"),
        (lambda a: (a, *letters(a)[1:]), "abar itself"),
        (lambda a: (letters(a)[0], 1 - a, letters(a)[2]), "all steps so far"),
        (lambda a: (*letters(a)[:2], letters(a)[1]), "this is beta"),
        (lambda a: (*letters(a)[:2], letters(a)[1] * (1 - a) / (1 - before(a)).clamp(min=1e-12)), "upside down"),
        (lambda a: (*letters(a)[:2], letters(a)[2].sqrt()), "variance"),
        (lambda a: letters(a)[:2], "three tensors"),
        (lambda a: letters(a.float()), "dtype torch.float32"),
        (lambda a: (letters(a)[0], letters(a)[1], letters(a)[2].float()), "beta_tilde has dtype"),
        (lambda a: (torch.cat([torch.ones_like(a[:1]), a[1:] / a[:-1]]), *letters(a)[1:]), "before the first step"),
        (lambda a: (*letters(a)[:2], torch.cat([letters(a)[2][1:2], letters(a)[2][1:]])), "takes a logarithm"),
        (lambda a: (*letters(a)[:2], torch.cat([letters(a)[1][:1], letters(a)[2][1:]])), "nothing left to guess"),
        (lambda a: [v[1:] for v in letters(a)], "shape"),
        (lambda a: [v[:40] if len(a) == 40 else v + 0.01 for v in letters(a)], "off by up to"),  # one length alone
    ],
    checks.diffusion_posterior: [
        *spoiled(textbook, (dict(variance="beta"), "this is beta.*beta_tilde"),
                 (dict(variance="root"), "standard deviation"), (dict(root=False), "roots"),
                 (dict(first=None), "index -1"), (dict(other="swapped"), "swapped"), (dict(other="late"), "off by one"),
                 (dict(other="late noise"), "off by one")),
        (lambda x0, x_t, t, a: textbook(x0, x_t, max(t - 1, 0), a), "off by one.*t - 1"),
        (lambda x0, x_t, t, a: textbook(x0, x_t, min(t + 1, len(a) - 1), a), r"off by one.*t \+ 1"),
        (lambda *args: textbook(*args)[0], "two things"),
        (lambda *args: (textbook(*args)[0] * 1.01, textbook(*args)[1]), "off by up to"),
        (lambda *args: (textbook(*args)[0], textbook(*args)[1].expand_as(args[0])), "one number, the same"),
        (lambda *args: (textbook(*args)[0], textbook(*args)[1].expand_as(args[0]) * (1 + args[0] - args[0][0, 0])),
         "one number, the same"),  # right at [0] alone
        (lambda *args: (textbook(*args)[0], [textbook(*args)[1]]), "one number"),
        (lambda x0, x_t, t, a: (textbook(x0, x_t, t, a)[0] * (1 - a[t]), textbook(x0, x_t, t, a)[1]), "is missing"),
        (lambda x0, x_t, t, a: textbook(x0, x_t, t, a) if t else (x0, torch.tensor(0.01)), "off by up to"),
        (lambda *args: (textbook(*args)[0].double(), textbook(*args)[1]), "dtype"),
        (lambda x0, x_t, t, a: textbook(x0, x_t, t, a) if t > 1 else (x0, 0.0), "posterior\\(x0, x_t, 1"),
    ],
    checks.to_x0: [
        (v_with(1), "sign of v"),
        (lambda p, o, x, a, s: to_x0_eps(p, o, x, a, s)[1], "network's own output"),
        (lambda p, *a: to_x0_eps({"eps": "x0", "x0": "eps", "v": "v"}[p], *a)[0], "network's own output"),
        (lambda p, o, x, a, s: (x - s * o) / a, "as if it were eps"),
        (lambda p, o, x, a, s: to_x0_eps(p, o, x, s, a)[0], "swapped"),
        (lambda p, o, x, a, s: x - s * o if p == "eps" else to_x0_eps(p, o, x, a, s)[0], "division"),
        (lambda p, o, x, a, s: (x + s * o) / a if p == "eps" else o, "taken away"),
        (lambda p, o, x, a, s: (x - s * o) / a if p !="x0" else o, "v as if it were eps"),
        (lambda p, o, x, a, s: (x - s * o) / a if p == "eps" else o, "neither"),
        (lambda p, o, x, a, s: to_x0_eps(p, o, x, a, s)[p == "v"], "this is eps"),
        (lambda p, o, x, a, s: to_x0_eps(p, o, x, *((s, a) if p == "v" else (a, s)))[0], "swapped"),
        (lambda *args: v_with(-1)(*args).clamp(-1, 1), "clipped"),
        (lambda p, o, x, a, s: a * x - s * o, "as if it were v"),
        (lambda p, o, x, a, s: (x - s * o) / a if p == "eps" else a * x - s * o, "as if it were v"),
        (lambda p, o, x, a, s: x - s * o if p == "v" else v_with(-1)(p, o, x, a, s), "x_t carries alpha"),
        (lambda p, o, x, a, s: (x - s**2 * o) / a if p == "eps" else v_with(-1)(p, o, x, a, s), "not squared"),
        (lambda *args: v_with(-1)(*args).double(), "dtype"),
        (lambda p, o, x, a, s: v_with(-1)(p, o, x, a[0], s[0]), "off by up to"),
    ],
    checks.ideal_x0: [
        *spoiled(ideal, (dict(shrink=False), r"alpha \* point"), (dict(over=lambda s: s**2), "the 2 is missing"),
                 (dict(over=lambda s: 2 * s), "variance"), (dict(square=False), "squared"),
                 (dict(sign=1.0), "near points"), (dict(dim=0), "over the points")),
        (lambda p, x, a, s: weights(p, x, a, s) @ p, "add up to 1"),
        (lambda p, x, a, s: (w := weights(p, x, a, s)) @ p / w.sum(1, keepdim=True), "softmax"),
        (lambda p, x, a, s: a * ideal(p, x, a, s), "no alpha"),
        (lambda p, x, a, s: p[torch.cdist(x, a * p).argmin(1)], "nearest point"),
        (lambda p, x, a, s: p.mean(0).expand_as(x), "plain mean"),
        (lambda p, x, a, s: torch.softmax(-(x[:, None] - a * p).square().mean(-1) / (2 * s**2), 1) @ p, "not their"),
        (lambda p, x, a, s: torch.softmax(-torch.cdist(x, a * p) ** 2 / 2, 1) @ p, "sigma is not used"),
        (lambda p, x, a, s: (w := weights(p, x, a, s) + 1e-20) @ p / w.sum(1, keepdim=True), "off by|exp underflows"),
        (lambda p, x, a, s: weights(p, x, a, s) @ p / (weights(p, x, a, s).sum(1, keepdim=True) + 1e-8),
         "exp underflows"),
        (lambda p, x, a, s: torch.softmax(
            (lambda d: (d.amin() - d) / (2 * s**2))(torch.cdist(x, a * p) ** 2), 0) @ p, "over the points"),
        (lambda p, x, a, s: (w := torch.exp(((d := torch.cdist(x, a * p) ** 2).min() - d) / (2 * s**2))) @ p
         / w.sum(1, keepdim=True), "NaN when sigma is small"),  # the smallest of all rows, not of each
        (lambda p, x, a, s: ideal(p, x, a, s).double(), "dtype"),
    ],
}

test_right_solutions_pass, test_wrong_ones_fail_with_a_hint, test_the_stub_is_named = try_all(CORRECT, MUTANTS)
