"""Checks of notebook 08, whole samplers: the loops around a step, down from noise and up into it."""

import torch

from .checking import CheckFailed, attempt, compare, passed
from .n06_walks import DRAWS, Oracle, asked_at, copied, states
from .n08_samplers import ABARS, RELEASED, SHAPES, _level
from .properties import fresh, generator, same_dtype

# timesteps that end before 0 and at 0, evenly spaced and not
STEPS = ([49, 40, 22, 9, 3], [60, 31, 12, 0])
TO_THE_NEXT = "a step goes from t to the next of `timesteps`, however far that is, not to t - 1."


def ddim_walk(function):
    """`function(denoise, x, timesteps, abar, eta, generator)`: DDIM -> the x (B,...) after each of the steps."""
    draw = fresh()
    for abar, shape, timesteps in zip(ABARS, SHAPES, STEPS):
        for eta in (0.0, 1.0, 0.4):
            x, oracle, source = draw(*shape), Oracle(draw, shape, abar), generator()
            again = copied(source)
            rest = (eta, source) if eta else ()  # both have defaults
            got = states(function, oracle, x, timesteps, abar.float(), *rest, count=len(timesteps), name="walk")
            asked_at(oracle, timesteps, "walk")
            unused = bool(eta) and torch.equal(source.get_state(), again.get_state())
            rows = {change: _ddim(oracle, x, timesteps, abar, eta, copied(again), change)
                    for change in ("", *WRONG_DDIM)}
            _hold_path(got, rows, WRONG_DDIM, f"walk, eta = {eta:g}", timesteps, unused)
    passed("walk: a whole sampler, from any list of timesteps")


WRONG_DDIM = {
    "released": RELEASED,
    "stays": "each step starts from the first x: it should go on from the x of the step before.",
    "next door": TO_THE_NEXT,
    "swapped": "denoise returns x0, then eps.",
    "eta 0": "eta is not used.",
    "eta 1": "eta is not used.",
    "same noise": "every step got the same noise: draw anew in each.",
}


def _ddim(denoise, x, timesteps, abar, eta, source, change):
    """DDIM's loop with one thing changed."""
    path, start = [], x
    first = torch.randn(x.shape, generator=copied(source))
    eta = {"eta 0": 0.0, "eta 1": 1.0}.get(change, eta)
    for t, s in zip(timesteps, [*timesteps[1:], 0 if change == "released" else -1]):
        s = t - 1 if change == "next door" else s
        x0, eps = denoise(start if change == "stays" else x, torch.full((len(x),), t))
        x0, eps = (eps, x0) if change == "swapped" else (x0, eps)
        a, b = abar[t].float(), _level(abar, s).float()
        f = eta * ((1 - b) / (1 - a)).sqrt() * (1 - a / b).clamp(min=0).sqrt()
        noise = torch.randn(x.shape, generator=source)
        noise = first if change == "same noise" else noise
        x = b.sqrt() * x0 + (1 - b - f**2).clamp(min=0).sqrt() * eps + f * noise
        path.append(x)
    return path


def _hold_path(got, rows: dict, hints: dict, name: str, timesteps, unused=False):
    """Hold states against rows[""]; the other rows are those of known mistakes."""
    for k, want in enumerate(rows[""]):
        what = f"{name}: x after the step from t = {timesteps[k]}"
        mistakes = [(rows[change][k], hint) for change, hint in hints.items()] + [(got[k], DRAWS)] * unused
        compare(got[k], want, what, rtol=1e-3, atol=1e-3, mistakes=mistakes)
        same_dtype(got[k], want, what)


def dpm_walk(function):
    """`function(denoise, x, timesteps, abar)`: DPM-Solver++(2M) -> the x (B,...) after each of the steps."""
    draw = fresh()
    for abar, shape, timesteps in zip(ABARS, SHAPES, STEPS):
        x, oracle = draw(*shape), Oracle(draw, shape, abar)
        got = states(function, oracle, x, timesteps, abar.float(), count=len(timesteps), name="dpm")
        asked_at(oracle, timesteps, "dpm")
        if any(isinstance(y, torch.Tensor) and y.isnan().any() for y in got):
            raise CheckFailed("dpm gives NaN. Is `before` the t of this step already? Then the step before has no "
                              "length: remember *after* the step.")
        rows = {change: _dpm(oracle, x, timesteps, abar, change) for change in ("", *WRONG_DPM)}
        _hold_path(got, rows, WRONG_DPM, "dpm", timesteps)
    passed("dpm: one network call a step, and the answer before is remembered")


WRONG_DPM = {
    "forgets": "this is first order everywhere: after each step, remember t and x0 for the next one.",
    "old": "x0_before stays that of the first step: remember anew after *each* step.",
    "stays": "each step starts from the first x: it should go on from the x of the step before.",
    "next door": TO_THE_NEXT,
    "noisy end": RELEASED,
    "x for x0": "remember x0, what the network said, not x.",
}


def _dpm(denoise, x, timesteps, abar, change):
    """DPM-Solver++(2M)'s loop with one thing changed."""
    path, start, before, lam = [], x, None, (abar / (1 - abar)).sqrt().log().float()
    for t, s in zip(timesteps, [*timesteps[1:], 0 if change == "noisy end" else -1]):
        s = t - 1 if change == "next door" else s
        now = start if change == "stays" else x
        x0, D = denoise(now, torch.full((len(x),), t))[0], None
        if s < 0 or s == t:
            x = x0
        else:
            h, D = lam[s] - lam[t], x0
            if before is not None and change != "forgets":
                D = x0 + h / (2 * (lam[t] - lam[before[0]])) * (x0 - before[1])
            x = (((1 - abar[s]) / (1 - abar[t])).sqrt() * now - abar[s].sqrt() * torch.expm1(-h) * D).float()
        if before is None or change != "old":
            before = t, x if change == "x for x0" else x0
        path.append(x)
    return path


def ddim_inversion(function):
    """`function(denoise, x, timesteps, abar)`: from the first of ascending timesteps to the last -> x there."""
    draw = fresh()
    for abar, shape, timesteps in zip(ABARS, SHAPES, STEPS):
        x, oracle, up = draw(*shape), Oracle(draw, shape, abar), timesteps[::-1]
        got = attempt(function, oracle, x, up, abar.float(), name="invert")
        right, *wrong = (_inverted(oracle, x, up, abar, change) for change in ("", *WRONG_INVERSION))
        what = f"invert(denoise, x, {up}, abar)"
        compare(got, right, what, rtol=1e-3, atol=1e-3, mistakes=[*zip(wrong, WRONG_INVERSION.values())])
        same_dtype(got, x, what)
    passed("invert: the same steps, up into noise")


WRONG_INVERSION = {
    "down": "this goes down again: from timesteps[0], which is the smallest, up.",
    "same level": "x comes out as it went in: ask about t, where x is *now*, and put the answer together at the level "
                  "of s, the *next* timestep.",
    "stays": "each step starts from the first x: it should go on from the x of the step before.",
    "too far": "the last of `timesteps` is where to arrive: no step follows, and none to s = -1.",
    "too short": "the last step is missing: arrive at the last of `timesteps`.",
    "swapped": "x0 goes with sqrt(abar_s), eps with sqrt(1 - abar_s).",
    "squares": "abar_s and 1 - abar_s are variances: x_s has their square roots.",
    "from clean": "x counts as that of timesteps[0], not of the clean image: the first step leaves from there.",
}


def _inverted(denoise, x, up, abar, change):
    start, abar = x, abar.float()
    pairs = {"down": [*zip(up[:0:-1], up[-2::-1])], "too far": [*zip(up, [*up[1:], -1])],
             "too short": [*zip(up, up[1:-1])], "from clean": [*zip([0, *up], up)]}.get(change, [*zip(up, up[1:])])
    for t, s in pairs:
        x0, eps = denoise(start if change == "stays" else x, torch.full((len(x),), t))
        b = _level(abar, t if change == "same level" else s).float()
        signal, noise = (b, 1 - b) if change == "squares" else (b.sqrt(), (1 - b).sqrt())
        x = noise * x0 + signal * eps if change == "swapped" else signal * x0 + noise * eps
    return x
