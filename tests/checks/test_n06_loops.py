"""Checks of notebook 06, the loops: known wrong solutions fail with a message that helps; right ones pass."""

import torch
from solutions import spoiled, try_all
from torch import nn

from ldm_mini import checks
from ldm_mini.cond import Cond
from ldm_mini.diffusion import diffusion_loss, ideal_denoiser
from ldm_mini.samplers import ddpm
from ldm_mini.schedule import NoiseSchedule


def walk(x0, betas, generator, keep=lambda b: (1 - b).sqrt(), add=lambda b: b.sqrt(), source=True, once=False):
    path, noise = [x0], None
    for beta in betas:
        if noise is None or not once:
            noise = torch.randn(x0.shape, generator=generator if source else None)
        path.append(keep(beta) * path[-1] + add(beta) * noise)
    return torch.stack(path)


def walk_at_once(x0, betas, generator):
    """All noise drawn before, and the walk in an array made for it."""
    noise, path = torch.randn(len(betas), len(x0), generator=generator), x0.new_empty(len(betas) + 1, len(x0))
    path[0] = x0
    for t in range(len(betas)):
        path[t + 1] = path[t] * torch.sqrt(1 - betas[t]) + betas[t] ** 0.5 * noise[t]
    return path


def walk_in_place(x0, betas, generator):
    path = [x0]
    for beta in betas:
        x0 *= (1 - beta).sqrt()
        x0 += beta.sqrt() * torch.randn(x0.shape, generator=generator)
        path.append(x0)
    return torch.stack(path)


def walk_from_x0(x0, betas, generator):
    return torch.stack([x0, *((1 - b).sqrt() * x0 + b.sqrt() * torch.randn(x0.shape, generator=generator)
                              for b in betas)])


def library_of(abar):
    return NoiseSchedule(1 - abar.double() / torch.cat([torch.ones(1, dtype=torch.float64), abar[:-1].double()]))


def sample(denoise, z_T, abar, generator, how="", spread=torch.sqrt, end=0.0):
    """DDPM's loop with one thing changed."""
    path, x, first = [], z_T, None
    for t in (range(len(abar)) if how == "forwards" else range(len(abar) - 1, -1, -1)):
        x = z_T if how == "stays" else x
        x0, eps = denoise(x, torch.full((len(x),), min(t + (how == "late"), len(abar) - 1)))
        x0 = eps if how == "eps" else x0
        a, b = abar[t], abar[t - 1] if t else torch.ones(())
        mean = (b.sqrt() * (1 - a / b) * x0 + (a / b).sqrt() * (1 - b) * x) / (1 - a)
        variance = (1 - a / b) * ((1 - b) / (1 - a) if how != "beta" else 1)
        noise = torch.randn(x.shape, generator=None if how == "global" else generator)
        first = noise if first is None else first
        noise = first if how == "same" else noise
        x = mean + (spread(variance) if t else end) * noise
        x = {"x0": x0, "jumps": b.sqrt() * x0 + (1 - b).sqrt() * noise}.get(how, x)
        path.append(x)
    return path


def sample_yields(denoise, z_T, abar, generator):
    yield from ddpm(denoise, z_T, library_of(abar), len(abar), generator)


def sample_stacked(denoise, z_T, abar, generator):
    """With the two neighbours of each step side by side, and one tensor (T, B, D) in the end."""
    x, levels = z_T, torch.cat([torch.ones(1), abar])
    path = []
    for t, (b, a) in reversed(list(enumerate(zip(levels[:-1], levels[1:])))):
        x0 = denoise(x, t * torch.ones(len(x), dtype=torch.long))[0]
        mean, variance = library_of(abar).posterior(x0, x, torch.full((len(x),), t))
        x = mean + variance.sqrt() * torch.randn(x.shape, generator=generator) if t > 0 else mean
        path += [x]
    return torch.stack(path)


def sample_in_place(denoise, z_T, abar, generator):
    x, path = z_T.clone(), []
    for y in sample(denoise, z_T, abar, generator):
        x.copy_(y)
        path.append(x)
    return path


def asks_twice(denoise, *rest):
    def both(x, t):
        return denoise(x, t)[0], denoise(x, t)[1]
    return sample(both, *rest)


def with_mixed_times(denoise, *rest):
    return sample(lambda x, t: denoise(x, (t - torch.arange(len(t))).clamp(min=0)), *rest)


def bayes(grid, prior, likelihood, whole=lambda p, dx: p / (p.sum() * dx), centre=True, power=1.0, width=True):
    dx = grid[1] - grid[0]
    p = whole(prior * likelihood, dx)
    unit = dx if width else 1
    mean = (p * grid).sum() * unit
    return p, mean, ((p * (grid - mean * centre) ** 2).sum() * unit) ** power


def bayes_by_trapezoids(grid, prior, likelihood):
    p = prior * likelihood
    p = p / torch.trapezoid(p, grid)
    mean = torch.trapezoid(p * grid, grid)
    return [p, float(mean), torch.trapezoid(p * grid**2, grid) - mean**2]


def score(x, points, alpha, sigma, over=2, shrink=True, how="logsumexp", sign=-1):
    x = x.clone().requires_grad_()
    logit = sign * (x[:, None] - (alpha[:, None] if shrink else 1) * points).square().sum(-1) / (over * sigma**2)
    log_p = {"logsumexp": lambda: logit.logsumexp(1), "p": lambda: logit.exp().sum(1), "mean p": lambda:
             logit.exp().mean(1), "sum": lambda: logit.sum(1), "mean": lambda: logit.mean(1)}[how]()
    return torch.autograd.grad(log_p.sum(), x)[0]


def score_closed(x, points, alpha, sigma):
    """From the posterior mean: -eps / sigma."""
    rows = []
    for row, a, s in zip(x, alpha, sigma):
        denoise = ideal_denoiser(points, NoiseSchedule((1 - a**2).double()))
        rows.append(-denoise(row[None], torch.zeros(1, dtype=torch.int64))[1][0] / s)
    return torch.stack(rows)


def levels(schedule, t):
    return schedule.alpha(t, 2), schedule.sigma(t, 2)


def loss(net, schedule, x0, t, eps, target=lambda x0, eps, a, s: a * eps - s * x0, show=lambda x0, eps, a, s:
         a * x0 + s * eps, size=lambda e: e.square().mean(), time=lambda t: t):
    a, s = levels(schedule, t)
    return size(net(show(x0, eps, a, s), time(t)) - target(x0, eps, a, s))


def step(net, optimizer, schedule, x0, generator, how="", loss=loss, size=None, low=0, high=0, back=lambda v: v.item()):
    """One step of training with one thing changed."""
    source = None if how == "global" else generator
    if how == "eps first":
        eps = torch.randn(x0.shape, generator=source)
    t = torch.randint(low, schedule.num_steps + high, (size or len(x0),), generator=source).expand(len(x0))
    if how != "eps first":
        eps = torch.randn(x0.shape, generator=source)
    value = loss(net, schedule, x0, t, eps)
    if how != "keeps":
        optimizer.zero_grad()
    if how != "no backward":
        (-value if how == "uphill" else value).backward()
    if how == "late zero":
        optimizer.zero_grad()
    for _ in range({"no step": 0, "twice": 2}.get(how, 1)):
        optimizer.step()
    return back(loss(net, schedule, x0, t, eps) if how == "after" else value)


def step_by_library(net, optimizer, schedule, x0, generator):
    value = diffusion_loss(net, schedule, x0, Cond(), "v", generator=generator)
    optimizer.zero_grad(set_to_none=False)
    value.backward()
    optimizer.step()
    return value.item()


def step_by_hand(net, optimizer, schedule, x0, generator):
    t = torch.randint(schedule.num_steps, (len(x0),), generator=generator)
    value = loss(net, schedule, x0, t, torch.randn(x0.shape, generator=generator))
    for p, g in zip(net.parameters(), torch.autograd.grad(value, net.parameters())):
        p.grad = g
    optimizer.step()
    return float(value.detach())


def per_t(denoise, schedule, x0, eps, times, error=lambda x0, eps, said: (said[1] - eps).square().mean(), noisy=True,
          index=lambda k, t: t):
    rows = []
    for k, t in enumerate(times):
        t = index(k, t).expand(len(x0))
        rows.append(error(x0, eps, denoise(schedule.add_noise(x0, eps, t) if noisy else x0, t)))
    return torch.stack(rows)


def per_t_in_one_call(denoise, schedule, x0, eps, times):
    K, B = len(times), len(x0)
    t, x0, both = times.repeat_interleave(B), x0.repeat(K, 1), eps.repeat(K, 1)
    return (denoise(schedule.add_noise(x0, both, t), t)[1] - both).square().view(K, -1).mean(1)


def back(couplings, z, order=-1, undo=lambda b, s, t: (b - t) / s.exp(), places=(0, 1), asked=1, last=None):
    """The flow's way back with one thing changed."""
    for coupling in couplings[::order][:last]:
        a, b = z[:, asked], z[:, 1 - asked]
        z = torch.stack([a, undo(b, *coupling(a))], 1)[:, places]
    return z


def back_in_columns(couplings, z):
    """With slices that stay (B, 1), and exp(-scale)."""
    became, a = z[:, :1], z[:, 1:]
    for coupling in list(couplings)[::-1]:
        scale, shift = coupling(a[:, 0])
        became, a = a, (became - shift[:, None]) * torch.exp(-scale)[:, None]
    return torch.cat([became, a], 1)


def there(couplings, x):
    """A flow's way to the noise, and its change of volume."""
    change = 0
    for coupling in couplings:
        scale, shift = coupling(x[:, 0])
        x, change = torch.stack([scale.exp() * x[:, 1] + shift, x[:, 0]], 1), change + scale
    return x, change


def learn(couplings, sample, steps, seed, every, watch, how="", size=256, due=lambda step, every: (step + 1) % every,
          sign=-1, volume=1, result=lambda said: said):
    """A flow's training with one thing changed."""
    g, said = torch.Generator().manual_seed(seed), []
    optimizer = torch.optim.Adam(couplings.parameters(), 5e-3)
    slower = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    x = None
    for step in range(steps):
        x = sample(size, None if how == "global" else g) if x is None or how != "same batch" else x
        z, change = there(couplings, x)
        loss = sign * (volume * change - z.square().sum(1) / 2).mean()
        if how != "no zero":
            optimizer.zero_grad()
        loss.backward()
        if how == "watch first" and not due(step, every):
            said.append(watch(couplings))
        if how != "no step":
            optimizer.step()
        if how != "same rate":
            slower.step()
        if how != "watch first" and not due(step, every):
            said.append(watch(couplings))
    return result(said)


def learn_by_blocks(couplings, sample, steps, seed, every, watch):
    """The steps between two looks in a loop of their own, with the density from torch.distributions."""
    g, normal = torch.Generator().manual_seed(seed), torch.distributions.Normal(0, 1)
    optimizer, said = torch.optim.Adam(couplings.parameters(), 5e-3), []
    slower = torch.optim.lr_scheduler.LinearLR(optimizer, 1, 0, steps)
    for _ in range(steps // every):
        for _ in range(every):
            z, change = there(couplings, sample(256, g))
            optimizer.zero_grad(set_to_none=False)
            (normal.log_prob(z).sum(1) + change).mean().neg().backward()
            optimizer.step()
            slower.step()
        said += [watch(couplings)]
    return said


CORRECT = {
    checks.flow_back: [back, back_in_columns],
    checks.flow_training: [learn, learn_by_blocks],
    checks.noising_walk: [walk, walk_at_once, lambda x, b, g: walk(x, b, g).clone().contiguous()],
    checks.ddpm_sampling: [sample, sample_yields, sample_stacked],
    checks.grid_bayes: [bayes, bayes_by_trapezoids],
    checks.mixture_score: [score, score_closed, lambda *a: score(*a).clone()],
    checks.v_loss: [
        loss, lambda net, s, x0, t, eps: diffusion_loss(net, s, x0, Cond(), "v", t, eps),
        lambda net, s, x0, t, eps: nn.functional.mse_loss(
            net(s.add_noise(x0, eps, t), t), s.alpha(t, 2) * eps - s.sigma(t, 2) * x0),
    ],
    checks.denoiser_step: [step, step_by_library, step_by_hand],
    checks.loss_per_t: [per_t, per_t_in_one_call, torch.no_grad()(per_t)],
}

MUTANTS = {
    checks.flow_back: [
        *spoiled(back, (dict(order=1), "the last one comes first"), (dict(asked=0), "changed places"),
                 (dict(undo=lambda b, s, t: b / s.exp() - t), "the last thing first"),
                 (dict(undo=lambda b, s, t: b * s.exp() + t), "goes forward"),
                 (dict(undo=lambda b, s, t: (b - t) * s.exp()), "divide by exp"),
                 (dict(undo=lambda b, s, t: (b - t) / s), "never 0"),
                 (dict(undo=lambda b, s, t: (b + t) / s.exp()), "subtract it"),
                 (dict(places=(1, 0)), "wrong order|off by"), (dict(last=1), "only one"), (dict(last=3), "off by")),
        (lambda c, z: back(c, z).double(), "dtype"), (lambda c, z: back(c, z.detach()), "no gradient"),
        (lambda c, z: z, "off by up to"), (lambda c, z: 1.01 * back(c, z), "off by up to"),
    ],
    checks.flow_training: spoiled(
        learn, (dict(sign=1), "the sign"), ("no zero", "steps before were added"), ("no step", "nothing has moved"),
        ("same rate", "never fell"), ("same batch", "draw anew"), (dict(volume=0), "change of volume"),
        ("watch first", "before the step"), (dict(size=128), r"sample\(256, g\)"), ("global", r"sample\(256, g\)"),
        (dict(due=lambda step, every: step % every), "before the step|off by|times"),
        (dict(due=lambda step, every: 0), "times in 6 steps"), (dict(due=lambda step, every: 1), "0 times"),
        (dict(result=lambda said: said[-1]), "a list of all"), (dict(result=lambda said: None), "a list of all")),
    checks.noising_walk: [
        *spoiled(walk, (dict(keep=lambda b: 1), "does not shrink"), (dict(keep=lambda b: 1 - b), "the \\*root\\* of 1"),
                 (dict(add=lambda b: b), "the \\*root\\* of beta"), (dict(add=lambda b: 0), "no noise"),
                 (dict(keep=lambda b: 1 - b, add=lambda b: b), "both factors"), (dict(once=True), "same noise"),
                 (dict(keep=lambda b: b.sqrt(), add=lambda b: (1 - b).sqrt()), "swapped"),
                 (dict(add=lambda b: 1 - (1 - b).sqrt()), "variances add up"),
                 (dict(source=False), "nothing was drawn")),
        (walk_from_x0, "each step starts at x0"), (walk_in_place, "in place"),
        (lambda x, b, g: walk(x, b.flip(0), g), "wrong order"),
        (lambda x, b, g: walk(x, b, g)[1:], "the start is missing"),
        (lambda x, b, g: walk(x, b, g)[-1], "end alone"),
        (lambda x, b, g: walk(x, b, g).T, "time comes first"),
        (lambda x, b, g: list(walk(x, b, g)), "not list"),
        (lambda x, b, g: walk(x, b, g).double(), "dtype"),
        (lambda x, b, g: walk(x, torch.linspace(0.002, 0.2, 40), g)[:len(b) + 1], "off by up to"),
    ],
    checks.ddpm_sampling: [
        *spoiled(sample, ("forwards", "the other way round"), ("stays", "starts from z_T"), ("late", "where x is"),
                 ("eps", "wants x0"), ("beta", "a step forward"), ("global", "nothing was drawn"),
                 ("same", "same noise"), ("x0", "the network's guess"), ("jumps", "noised anew"),
                 (dict(spread=lambda v: v), "the \\*root\\*"), (dict(spread=lambda v: 0), "mean alone"),
                 (dict(spread=lambda v: 1), "multiplied by the root"), (dict(end=0.1), "off by up to")),
        (lambda d, z, a, g: [*sample(d, z, a, g)[:-1], sample(d, z, a, g)[-1] + 1], "once a step|off by"),
        (lambda d, z, a, g: [z, *sample(d, z, a, g)], "begins with the noise"),
        (lambda d, z, a, g: sample(d, z, a, g)[:-1], "39 states"),
        (lambda d, z, a, g: sample(d, z, a, g)[-1], "after \\*every\\* step"),
        (lambda d, z, a, g: [v.double() for v in sample(d, z, a, g)], "dtype"),
        (lambda d, z, a, g: sample(lambda x, t: d(x, t[0]), z, a, g), "int64 t for each row"),
        (sample_in_place, "one and the same"), (asks_twice, "once a step"), (with_mixed_times, "in one call"),
    ],
    checks.grid_bayes: [
        *spoiled(bayes, (dict(whole=lambda p, dx: p), "not normalised"),
                 (dict(whole=lambda p, dx: p / p.sum()), "width"),
                 (dict(whole=lambda p, dx: p / p.max()), "largest"), (dict(centre=False), "take the mean away"),
                 (dict(power=0.5), "standard deviation"), (dict(width=False), "times the width"),
                 (dict(whole=lambda p, dx: p * dx / p.sum()), "not multiply|off by")),
        (lambda g, p, q: bayes(g, p, 1 + 0 * q), "prior alone"), (lambda g, p, q: bayes(g, 1 + 0 * p, q), "likelihood"),
        (lambda g, p, q: bayes(g, p + q, 1 + 0 * q), "multiplies"),
        (lambda g, p, q: bayes(g, p, q)[:2], "three things"),
        (lambda g, p, q: (bayes(g, p, q)[0], g.mean(), bayes(g, p, q)[2]), "middle of the grid"),
        (lambda g, p, q: (bayes(g, p, q)[0], g[(p * q).argmax()], bayes(g, p, q)[2]), "most likely"),
        (lambda g, p, q: (*bayes(g, p, q)[:2], bayes(g, p, q)[0].var()), "density"),
        (lambda g, p, q: (*bayes(g, p, q)[:2], g.var()), "weigh each place"),
        (lambda g, p, q: bayes(torch.linspace(-3, 2, len(g), dtype=torch.float64), p, q), "mean is off|off by|width"),
    ],
    checks.mixture_score: [
        *spoiled(score, (dict(how="p"), "logarithm"), (dict(how="mean p"), "logarithm"), (dict(how="sum"), "logsumexp"),
                 (dict(how="mean"), "logsumexp"), (dict(over=1), "2 is missing"), (dict(over=4), "no other factor"),
                 (dict(shrink=False), "shrinks the points")),
        (lambda *a: -score(*a), "denser"), (lambda *a: score(*a) * a[3], "-eps"),
        (lambda *a: score(*a) * a[3] ** 2, "the variance"),
        (lambda *a: score(*a).sum(1, keepdim=True), "one number|off"),
        (lambda *a: score(*a).sum(0).expand_as(a[0]), "mixed"), (lambda *a: score(*a).double(), "dtype"),
        (lambda *a: 1.01 * score(*a), "off by up to"),
    ],
    checks.v_loss: [
        *spoiled(loss, (dict(target=lambda x0, e, a, s: e), "target is eps"),
                 (dict(target=lambda x0, e, a, s: x0), "target is x0"),
                 (dict(target=lambda x0, e, a, s: a * e + s * x0), "sign of v"),
                 (dict(target=lambda x0, e, a, s: s * x0 - a * e), "other way"),
                 (dict(target=lambda x0, e, a, s: s * e - a * x0), "swapped in v"),
                 (dict(show=lambda x0, e, a, s: s * x0 + a * e), "signal and noise swapped"),
                 (dict(show=lambda x0, e, a, s: x0), "clean x0"),
                 (dict(show=lambda x0, e, a, s: x0 + s * e), "signal of full size"),
                 (dict(show=lambda x0, e, a, s: a * x0 + e), "noise of full size"),
                 (dict(size=lambda e: e.square().sum()), "the sum"), (dict(size=lambda e: e.abs().mean()), "absolute"),
                 (dict(size=lambda e: e.square().mean().sqrt()), "no root"),
                 (dict(size=lambda e: e.square().sum(1).mean()), "numbers of each row"),
                 (dict(size=lambda e: e.square().mean(1)), "numbers; it is one"),
                 (dict(time=lambda t: 0 * t), "another t"),
                 (dict(time=lambda t: t.float()), "int64"), (dict(time=lambda t: t[:1]), "int64"),
                 (dict(size=lambda e: e.detach().square().mean()), "no gradient"),
                 (dict(size=lambda e: e.square().mean().double()), "dtype"),
                 (dict(size=lambda e: e.square().mean().item()), "not float")),
        (lambda net, s, x0, t, eps: (x0 - eps).square().mean(), "never asked"),
        (lambda net, s, x0, t, eps: loss(net, NoiseSchedule(torch.linspace(0.002, 0.2, 40)), x0, t, eps), "off by"),
    ],
    checks.denoiser_step: [
        *spoiled(step, ("global", "nothing was drawn"), ("eps first", "order of the draws"), ("keeps", "step before"),
                 ("no backward", "has not changed|lay there"), ("late zero", "has not changed"), ("no step", "changed"),
                 ("uphill", "uphill"), ("twice", "twice as far"), ("after", "\\*after\\*"), (dict(size=1), "same t"),
                 (dict(low=1), "did not make"), (dict(back=lambda v: v), "not Tensor"),
                 (dict(back=lambda v: None), "None"),
                 (dict(high=-1), "did not make|timesteps"), (dict(high=1), "IndexError|did not make")),
        (lambda *a: step(*a, loss=lambda *b: loss(*b, target=lambda x0, e, a, s: e)), "target is eps"),
        (lambda *a: step(*a, loss=lambda *b: loss(*b, size=lambda e: e.square().sum())), "the sum"),
        (lambda *a: step(*a, loss=lambda net, s, x0, t, e: loss(net, s, x0, t.clamp(max=2), e)), "did not make"),
    ],
    checks.loss_per_t: [
        *spoiled(per_t, (dict(error=lambda x0, e, said: (said[0] - x0).square().mean()), "error of x0"),
                 (dict(error=lambda x0, e, said: (said[0] - e).square().mean()), "compare the second"),
                 (dict(error=lambda x0, e, said: (said[1] - x0).square().mean()), "not with x0"),
                 (dict(error=lambda x0, e, said: (said[1] - e).square().sum()), "\\*mean\\*"),
                 (dict(error=lambda x0, e, said: (said[1] - e).square().sum(1).mean()), "numbers of each row"),
                 (dict(error=lambda x0, e, said: (said[1] - e).square().mean().sqrt()), "no root"),
                 (dict(error=lambda x0, e, said: (said[1] - e).abs().mean()), "is squared"),
                 (dict(noisy=False), "clean"),
                 (dict(error=lambda x0, e, said: (said[1] - e).square().mean(1)), "over the rows"),
                 (dict(index=lambda k, t: torch.tensor(k)), r"times\[k\]")),
        (lambda *a: per_t(*a).cumsum(0), "added up"), (lambda *a: per_t(*a).flip(0), "the order"),
        (lambda *a: per_t(*a).mean(), "each"), (lambda *a: list(per_t(*a)), "torch.stack"),
        (lambda *a: per_t(*a).double(), "dtype"),
    ],
}

test_right_solutions_pass, test_wrong_ones_fail_with_a_hint, test_the_stub_is_named = try_all(CORRECT, MUTANTS)
