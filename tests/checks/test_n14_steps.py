"""Checks of notebook 14's walks, reflow and shortcuts: wrong ones fail with a hint; others written differently pass."""

import torch
from solutions import spoiled, try_all

from ldm_mini import checks


def euler(velocity, x, times, how=""):
    path, start, first = [], x, velocity(x, times[0]) if how == "first" else None
    for now, then in zip(times, times[1:]):
        step = {"up": now - then, "even": -1 / (len(times) - 1)}.get(how, then - now)
        at = start if how == "stays" else x
        u = first if how == "first" else velocity(at, then if how == "late" and then > 0 else now)
        x = at + step * u
        path.append(x)
    return path


def euler_yields(velocity, x, times):
    for k in range(len(times) - 1):
        x = x - (times[k] - times[k + 1]) * velocity(x, torch.tensor(times[k]))
        yield x


def heun(velocity, x, times, how=""):
    path, start = [], x
    for now, then in zip(times, times[1:]):
        step = {"up": now - then, "even": -1 / (len(times) - 1)}.get(how, then - now)
        at = start if how == "stays" else x
        u = velocity(at, now)
        if then > 0 or how == "asks at 0":
            there = at + step * u
            again = velocity(at if how == "there" else there, now if how == "same time" else then)
            u = {"sum": u + again, "second": again}.get(how, (u + again) / 2)
            at = there if how == "twice" else at
        x = at + step * u
        path.append(x)
    return path


def heun_by_trapezoid(velocity, x, times):
    for now, then in zip(times[:-1], times[1:]):
        h, first = now - then, velocity(x, now)
        guess = x - h * first
        x = guess if then == 0 else x - 0.5 * h * first - 0.5 * h * velocity(guess, then)
        yield x


def crooked(path, times, *, chord=lambda p: p[0] - p[-1], lasts=lambda t: (t[1:] - t[:-1]).abs(), speed=True,
            error=lambda e: e.square().sum(2).mean(1), end=lambda e: e):
    d = times[1:] - times[:-1]
    u = (path[1:] - path[:-1]) / (d[:, None, None] if speed else 1)
    return end((error(u - chord(path)) * lasts(times)).sum())


def crooked_by_loop(path, times):
    total = 0.0
    for k in range(len(times) - 1):
        d = (times[k] - times[k + 1]).item()
        error = (path[k] - path[k + 1]) / d - (path[0] - path[-1])
        total += d * (error.norm(dim=1) ** 2).mean().item()
    return total


def reflow(net, optimizer, z, x, T, generator, how=""):
    if how == "first t":
        torch.randint(T, (256,), generator=generator)
    which = torch.arange(256) % len(z) if how == "same rows" else torch.randint(len(z), (256,), generator=generator)
    t = torch.randint(T, (256,), generator=generator)
    tau = (t[:, None] + 1) / T
    a, b = z[which], x[which]
    a, b = {"swapped": (b, a), "flipped": (a, x[which.flip(0)])}.get(how, (a, b))
    if how == "new noise":
        a = torch.randn(a.shape, generator=generator)
    loss = (net((1 - tau) * b + tau * a, t) - (a - b)).square().mean()
    if how != "no zero":
        optimizer.zero_grad()
    (-loss if how == "uphill" else loss).backward()
    if how == "zero last":
        optimizer.zero_grad()
    if how != "no step":
        optimizer.step()
    return loss.detach() if how == "tensor" else 2 * loss.item() if how == "doubled" else loss.item()


def target(field, x, tau, d, told, *, back=-1, later=0.5, half=0.5, size=lambda d, told: told,
           join=lambda a, b, x, d: (a + b) / 2, grad=False, stay=False):
    with torch.set_grad_enabled(grad):
        first = field(x, tau, size(d, told))
        there = x if stay else x + back * half * d[:, None] * first
        second = field(there, tau - later * d, size(d, told))
        return join(first, second, x, d)


def target_by_detach(field, x, tau, d, told):
    first = field(x, tau, told)
    end = x - first * d.view(-1, 1) / 2
    end = end - field(end, tau - d / 2, told) * d.view(-1, 1) / 2
    return ((x - end) / d.view(-1, 1)).detach()


def missed(path, times, count, how="", *, measure=lambda e: e.norm(dim=1).mean().item(), every=None):
    every = every or (len(times) - 1) // count
    u, x, found = (path[1:] - path[:-1]) / (times[1:] - times[:-1])[:, None, None], path[0], []
    for k in range(0, len(times) - 1, every):
        end = k + every
        lasts = {"up": times[k] - times[end], "fine": times[k + 1] - times[k], "even": -1 / count}.get(
            how, times[end] - times[k])
        speed = {"first": u[0], "late": u[end - 1],
                 "chord": (path[end] - path[k]) / (times[end] - times[k])}.get(how, u[k])
        x = (x if how == "goes on" else path[k]) + lasts * speed
        found.append(measure(x - path[k if how == "stays" else end]))
    return found


def missed_at_once(path, times, count):
    every = (len(times) - 1) // count
    begin, end = path[:-1:every], path[every::every]
    u = (path[1::every] - begin) / (times[1::every] - times[:-1:every])[:, None, None]
    landed = begin + times[::every].diff()[:, None, None] * u
    return torch.linalg.vector_norm(landed - end, dim=2).mean(1)


CORRECT = {
    checks.flow_walk: [euler, euler_yields, lambda *a: torch.stack(euler(*a))],
    checks.heun_walk: [heun, heun_by_trapezoid],
    checks.crookedness: [crooked, crooked_by_loop],
    checks.reflow_step: [reflow],
    checks.shortcut_target: [target, target_by_detach],
    checks.local_errors: [missed, missed_at_once, lambda *a: tuple(missed(*a))],
}

MUTANTS = {
    checks.local_errors: [
        *spoiled(missed, ("goes on", "\\*on the path\\*"), ("up", "negative"), ("first", "where it begins"),
                 ("chord", "no error is left"), ("late", "at the \\*beginning\\*"), ("fine", "next long one"),
                 ("even", "not even"), ("stays", "at the \\*end\\*"), (dict(every=1), "all steps"),
                 (dict(measure=lambda e: e.norm(dim=1).sum()), "not their sum"),
                 (dict(measure=lambda e: e.norm(dim=1).square().mean()), "not its square"),
                 (dict(measure=lambda e: e.norm(dim=1).square().mean().sqrt()), "root comes before"),
                 (dict(measure=lambda e: e.abs().mean()), "squares over coordinates"),
                 (dict(measure=lambda e: e.norm(dim=1)), "one number")),
        (lambda *a: missed(*a)[::-1], "in order"), (lambda *a: [*missed(*a), 0.0], "none begins there"),
        (lambda *a: missed(*a)[0], "a list of"),
    ],
    checks.flow_walk: [
        *spoiled(euler, ("up", "negative"), ("stays", "the first x"), ("even", "not even"), ("first", "ask anew"),
                 ("late", "where it \\*is\\*")),
        (lambda *a: euler(*a)[-1], "after \\*every\\* step"), (lambda v, x, t: [x, *euler(v, x, t)], "begins with"),
        (lambda v, x, t: euler(lambda x, t: (v(x, t) + v(x, t)) / 2, x, t), "are enough"),
        (lambda *a: [x.double() for x in euler(*a)], "dtype"), (lambda *a: heun(*a), "off by"),
    ],
    checks.heun_walk: [
        *spoiled(heun, ("up", "negative"), ("stays", "the first x"), ("even", "not even"), ("there", "\\*arrives\\*"),
                 ("same time", "\\*next\\* time"), ("sum", "not their sum"), ("second", "not the second"),
                 ("twice", "step anew"), ("asks at 0", "time 0")),
        (euler, "first order"), (lambda *a: [x.double() for x in heun(*a)], "dtype"),
        (lambda v, x, t: heun(lambda x, t: (v(x, t) + v(x, t)) / 2, x, t), "are enough"),
    ],
    checks.crookedness: [
        *spoiled(crooked, (dict(chord=lambda p: p[-1] - p[0]), "its sign"), (dict(chord=lambda p: 0), "away first"),
                 (dict(lasts=lambda t: 1), "as long as it lasts"), (dict(lasts=lambda t: 1 / (len(t) - 1)), "equally"),
                 (dict(lasts=lambda t: t[1:] - t[:-1]), "positive"), (dict(speed=False), "divided"),
                 (dict(error=lambda e: e.square().mean((1, 2))), "sum over the coordinates"),
                 (dict(error=lambda e: e.square().sum((1, 2))), "not their sum"),
                 (dict(error=lambda e: e.norm(dim=2).mean(1)), "squared"), (dict(end=torch.sqrt), "no root")),
        (lambda p, t: crooked(p, t) + 0.01, "off by|line is 0"), (lambda p, t: t, "one number"),
    ],
    checks.reflow_step: [
        *spoiled(reflow, ("swapped", "swapped"), ("flipped", "belong together"), ("new noise", "by chance again"),
                 ("no zero", "step before"), ("zero last", "not changed|lay there"), ("no step", "has not changed"),
                 ("uphill", "uphill"), ("tensor", "as a float"), ("doubled", "returned loss"),
                 ("same rows", "torch.randint"), ("first t", "drawn first|drawn\nfirst|first")),
    ],
    checks.shortcut_target: [
        *spoiled(target, (dict(back=1), "\\*against\\*"), (dict(later=-0.5), "begins at tau"),
                 (dict(back=1, later=-0.5), "time falls"), (dict(later=0), "begins later"),
                 (dict(half=1), "d/2 long"), (dict(half=1, later=1), "d/2 long"), (dict(stay=True), "arrives"),
                 (dict(size=lambda d, told: d), "`told`"), (dict(join=lambda a, b, x, d: a + b), "not their sum"),
                 (dict(join=lambda a, b, x, d: b), "second alone"), (dict(join=lambda a, b, x, d: a), "alone"),
                 (dict(join=lambda a, b, x, d: x - d[:, None] / 2 * (a + b)), "two steps end"),
                 (dict(grad=True), "gradient goes into"),
                 (dict(join=lambda a, b, x, d: ((a + b) / 2).double()), "dtype")),
    ],
}

test_right_solutions_pass, test_wrong_ones_fail_with_a_hint, test_the_stub_is_named = try_all(CORRECT, MUTANTS)
