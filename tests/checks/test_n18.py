"""Checks of notebook 18: tests that can fail, for sick code alone, pass; those that cry wolf, or sleep, are told so."""

import statistics

import torch
import torch.nn.functional as F
from solutions import spoiled, try_all

from ldm_mini import checks

# ---- tests of a VQ loss


def by_ratio(vq_loss, beta=0.3, look=lambda z, e, b: torch.allclose(z, -b * e) and e.abs().sum() > 0):
    z, codes = torch.randn(2, 6, 3).requires_grad_()
    z, codes = z.detach().requires_grad_(), codes.detach().requires_grad_()
    assert look(*torch.autograd.grad(vq_loss(z, codes, beta), (z, codes)), beta)


def by_backward(vq_loss):
    """Returns False instead of raising; means and sums differ by a factor that it takes from the codes."""
    z, codes = torch.ones(2, 2, requires_grad=True), torch.zeros(2, 2, requires_grad=True)
    vq_loss(z, codes, 2.0).backward()
    return z.grad is not None and codes.grad is not None and bool((z.grad[0, 0] / codes.grad[0, 0] + 2).abs() < 1e-4)


def by_value(vq_loss):
    z, codes = torch.randn(2, 6, 3)
    assert torch.allclose(vq_loss(z, codes, 0.3), 1.3 * F.mse_loss(z, codes))


# ---- tests of a loader


def by_numbers(load_heads, many=3, make=lambda i: torch.rand(1, 4, 1, 1), count=True, some=lambda n: range(n)):
    file = {f"lin{i}.model.1.weight": make(i) for i in range(many)}
    heads = load_heads(file)
    if count:
        assert len(heads) == many
    for i in some(many):
        assert torch.equal(heads[i], list(file.values())[i].flatten())


def by_arange(load_heads):
    file = {f"lin{i}.model.1.weight": torch.arange(3.0).view(1, 3, 1, 1) + 10 * i for i in range(4)}
    return torch.equal(torch.stack(load_heads(file)), torch.stack([w.flatten() for w in file.values()]))


# ---- tests of a sampler


def by_one_picture(walk, first=0.95, steps=(19, 12, 6, 2), right=lambda x, x0: torch.allclose(x, x0, atol=1e-3)):
    alphas = torch.linspace(first, 0.1, 20)
    sigmas = (1 - alphas**2).clamp(min=0).sqrt()
    x0, eps = torch.randn(2, 4, 3)

    def denoise(x, t):
        view = (-1, *[1] * (x.ndim - 1))
        return (x - sigmas[t].view(view) * eps) / alphas[t].view(view), eps

    start = steps[0]
    assert right(walk(denoise, alphas[start] * x0 + sigmas[start] * eps, list(steps), alphas, sigmas), x0)


def by_pictures_of_a_line(walk):
    """On a straight line, with pictures."""
    sigmas = torch.linspace(0.1, 0.9, 12)
    x0, eps = torch.randn(2, 2, 3, 4, 4)
    denoise = lambda x, t: ((x - sigmas[t].view(-1, 1, 1, 1) * eps) / (1 - sigmas[t].view(-1, 1, 1, 1)), eps)
    x = walk(denoise, 0.1 * x0 + 0.9 * eps, [11, 7, 4], 1 - sigmas, sigmas)
    assert (x - x0).abs().max() < 1e-3


def by_asked(walk):
    """Sees which t is asked, and not where the walk ends."""
    asked, steps = [], [19, 12, 6, 2]

    def denoise(x, t):
        asked.append(int(t[0]))
        return x, x

    walk(denoise, torch.randn(3, 2), steps, torch.linspace(0.9, 0.1, 20), torch.linspace(0.1, 0.9, 20))
    assert asked == steps


# ---- the constants of DDPM


def constants(abar, before=lambda a: torch.cat([torch.ones_like(a[:1]), a[:-1]]), alpha=lambda a, b: a / b,
              beta=lambda a: 1 - a, variance=lambda beta, a, b: beta * (1 - b) / (1 - a)):
    b = before(abar)
    alphas = alpha(abar, b)
    return alphas, beta(alphas), variance(beta(alphas), abar, b)


def constants_by_loop(abar):
    rows, last = [], 1.0
    for a in abar.tolist():
        rows.append((a / last, 1 - a / last, (1 - a / last) * (1 - last) / (1 - a)))
        last = a
    return torch.tensor(rows, dtype=abar.dtype).T.unbind()


def slip(a, b):
    alphas = (1 - a) / (1 - b)
    alphas[0] = a[0]
    return alphas


# ---- tests of the way through the U


def by_sum(through_u, block=lambda h: 2 * h + 1, join=lambda both: both[:, :2] + 10 * both[:, 2:], middle=lambda h: -h,
           h=lambda: torch.randn(1, 2, 8, 8)):
    shrink, grow = (lambda h: F.avg_pool2d(h, 2)), (lambda h: F.interpolate(h, scale_factor=2))
    h = h()
    out = through_u(h, [block] * 2, [shrink] * 2, middle, [grow] * 2, [join] * 2)
    outer = block(h)
    inner = block(shrink(outer))
    up = join(torch.cat([grow(middle(shrink(inner))), inner], 1))
    assert torch.allclose(out, join(torch.cat([grow(up), outer], 1)), atol=1e-4)


def by_watching(through_u):
    """Keeps what the up blocks were given."""
    seen = []
    shrink, grow = (lambda h: h[..., ::2, ::2]), (lambda h: h.repeat_interleave(2, 2).repeat_interleave(2, 3))
    up = lambda both: (seen.append(both), both[:, :1])[1]
    h = torch.randn(2, 1, 8, 8)
    through_u(h, [torch.sin, torch.cos], [shrink] * 2, torch.tanh, [grow] * 2, [up] * 2)
    outer = h.sin()
    inner = shrink(outer).cos()
    deep = grow(shrink(inner).tanh())
    assert torch.equal(seen[0], torch.cat([deep, inner], 1)) and torch.equal(seen[1], torch.cat([grow(deep), outer], 1))


# ---- a weighted loss


def loss(out, target, weight, each=lambda e: e.square().flatten(1).mean(1), join=lambda e, w: (e * w).mean()):
    per = each(out - target)
    if len(per) != len(weight):
        raise ValueError
    return join(per, weight)


def loss_by_broadcast(out, target, weight):
    return ((out - target).square() * weight.view(-1, *[1] * (out.ndim - 1)).expand(len(out), *out.shape[1:])).mean()


# ---- tests of dropping


def by_count(drop, p=0.3, low=0.25, high=0.35, count=4000, same=True, kept=True, halves=True):
    labels = torch.arange(count) % 5
    before = labels.clone()
    got = drop(labels, 5, p)
    gone = got == 5
    assert not same or torch.equal(labels, before)
    assert not kept or torch.equal(got[~gone], before[~gone])
    for part in gone.chunk(2) if halves else [gone]:
        assert low < part.float().mean() < high


def by_zero_and_one(drop):
    """p of 0, 1 and between; labels all alike but numbered."""
    labels = torch.arange(3000) % 7
    before, rows = labels.clone(), {p: drop(labels, 9, p) for p in (0.0, 0.2, 1.0)}
    gone = rows[0.2] == 9
    assert torch.equal(labels, before) and torch.equal(rows[0.0], before) and bool((rows[1.0] == 9).all())
    assert torch.equal(torch.where(gone, before, rows[0.2]), before)
    assert all(0.12 < part.float().mean() < 0.28 for part in gone.chunk(3))


# ---- tests of a hole


def by_change(condition, leak=True, outside=True, mask_told=True):
    image, other = torch.rand(2, 2, 3, 8, 8)
    mask = (torch.rand(2, 1, 8, 8) < 0.5).float()
    told = condition(image, mask)
    if leak:
        assert torch.equal(told, condition(torch.where(mask > 0, other, image), mask))
    if outside == "any":
        assert not torch.equal(told, condition(torch.where(mask > 0, image, other), mask))
    elif outside:
        for c in range(3):
            changed = image.clone()
            changed[:, c] += 1 - mask[:, 0]
            assert (condition(changed, mask) != told).sum() == (1 - mask).sum()
    if mask_told:
        for colour in (0.0, -1.0):
            plain = torch.full_like(image, colour)
            assert not torch.equal(condition(plain, mask), condition(plain, 1 - mask))


def by_gradient(condition):
    image, mask = torch.rand(1, 3, 6, 6).requires_grad_(), torch.zeros(1, 1, 6, 6)
    mask[..., 1:4, 2:5] = 1
    slope, = torch.autograd.grad((condition(image, mask) * torch.rand(1, 4, 6, 6)).sum(), image)
    assert torch.equal((slope != 0).float(), (1 - mask).expand_as(slope))
    grey = [condition(torch.full((1, 3, 6, 6), c), m) for c in (0.0, -1.0) for m in (mask, mask.flip(2))]
    assert not torch.equal(*grey[:2]) and not torch.equal(*grey[2:])
    values = condition(image, mask).unbind(1)
    assert all(any(torch.equal(v * (1 - mask[:, 0]), c * (1 - mask[:, 0])) for v in values) for c in image.unbind(1))


def by_one_answer(condition):
    image, mask = torch.rand(2, 3, 4, 4), (torch.rand(2, 1, 4, 4) < 0.5).float()
    assert torch.equal(condition(image, mask), torch.cat([image * (1 - mask), mask], 1))


# ---- gauges and mends


def spread(context, dim=0, top=lambda c, d: c.var(d, unbiased=False).mean(), below=lambda c: c.square().mean(),
           end=lambda s: s):
    return end(top(context, dim) / below(context))


def spread_by_pairs(context):
    """The mean over pairs of captions, the half of it."""
    pairs = (context[:, None] - context[None]).square().mean() / 2
    return pairs / context.square().mean()


def silent(loss, module, frozen=False, none=True, zero=True):
    named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    found = torch.autograd.grad(loss, [p for _, p in named], retain_graph=True, allow_unused=True)
    names = [name for (name, _), g in zip(named, found) if none and g is None or zero and g is not None and not g.any()]
    return names + frozen * [name for name, p in module.named_parameters() if not p.requires_grad]


def silent_by_backward(loss, module, restore=True, clear=True):
    before = {name: p.grad for name, p in module.named_parameters()}
    for p in module.parameters():
        p.grad = None if clear else p.grad
    loss.backward(retain_graph=True, inputs=[p for p in module.parameters() if p.requires_grad])
    names = [name for name, p in module.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    for name, p in module.named_parameters():
        p.grad = before[name] if restore else p.grad
    return names


def look(net, ema, sample, z, evaluate=True, averages=True, grad=False, back="own", twice=False, restore=True):
    modes = [(part, part.training) for part in net.modules()]
    if evaluate:
        net.eval()
    with torch.set_grad_enabled(grad):
        if averages and restore:
            with ema.applied(net):
                out = sample(net, z)
        else:
            if averages:
                for name, p in net.named_parameters():
                    p.data.copy_(ema.averages.get(name, p.data))
            out = sample(net, z)
        if twice:
            out = sample(net, z)
    if back == "own":
        for part, mode in modes:
            part.training = mode
    elif back == "train":
        net.train()
    return out


def look_by_states(net, ema, sample, z):
    trained = {name: value.clone() for name, value in net.state_dict().items()}
    was = {name: part.training for name, part in net.named_modules()}
    net.load_state_dict({**trained, **ema.state_dict()})
    net.eval()
    with torch.inference_mode():
        out = sample(net, z).clone()
    net.load_state_dict(trained)
    for name, part in net.named_modules():
        part.training = was[name]
    return out


def watch(run, clock, warmup, repeats, pick=statistics.median, warm=True, sign=1, more=0):
    for _ in range(warmup if warm else 0):
        run()
    times = []
    for _ in range(repeats + more + (0 if warm else warmup)):
        before = clock()
        run()
        times.append(sign * (clock() - before))
    return pick(times)


def watch_by_sorting(run, clock, warmup, repeats):
    marks = []
    for number in range(warmup + repeats):
        start = clock()
        run()
        marks += [clock() - start] * (number >= warmup)
    return sorted(marks)[len(marks) // 2]


# ---- tests of scales and of stored latents


def round_trip(encode, decode, images, back=True, size=True, low=0.8, high=1.25):
    z = encode(images)
    assert not back or (decode(z) - images).square().mean() < 0.1 * images.var()
    assert not size or low < z.std() < high


def round_trip_twice(encode, decode, images):
    """By the largest difference, and by each half of the batch."""
    for part in images.chunk(2):
        z = encode(part)
        if (decode(z) - part).abs().max() > 0.2 or not 0.85 < z.square().mean().sqrt() < 1.2:
            return False


def all_rows(cache, encode, images, rows=slice(None), limit=1e-3):
    z = encode(images)[rows]
    assert ((cache.float()[rows] - z).square().mean((1, 2, 3)) / z.var()).max() < limit


def statistics_alone(cache, encode, images):
    z = encode(images)
    assert abs(cache.float().mean() - z.mean()) < 0.1 and abs(cache.float().std() / z.std() - 1) < 0.05


# ---- the mended ones

def vq(z, codes, beta, on_z=lambda b: b, on_codes=lambda b: 1, stop=True, norm=lambda d: d.square().mean()):
    cut = (lambda t: t.detach()) if stop else (lambda t: t)
    return on_z(beta) * norm(z - cut(codes)) + on_codes(beta) * norm(cut(z) - codes)


def vq_in_one(z, codes, beta):
    weights = beta * (z - codes.detach()).pow(2) + (codes - z.detach()).pow(2)
    return weights.sum() / z.numel()


def through(h, down, smaller, middle, larger, up, how=""):
    """By recursion."""
    if not down:
        return middle(h)
    h = down[0](h)
    less = smaller[0](h)
    skip = larger[-1](less) if how == "blurred" else 0 * h if how == "none" else h
    inner = larger[-1](through(less, down[1:], smaller[1:], middle, larger[:-1], up[:-1], how))
    return up[-1](torch.cat([skip, inner] if how == "swapped" else [inner, skip], dim=1))


def through_stack(h, down, smaller, middle, larger, up):
    kept = []
    for k, block in enumerate(down):
        kept.append(block(h))
        h = smaller[k](kept[-1])
    h = middle(h)
    for k, block in enumerate(up):
        h = block(torch.cat((larger[k](h), kept.pop(-1)), 1))
    return h


def walked(denoise, x, timesteps, alphas, sigmas, at=0, end=(1.0, 0.0), noise=1.0):
    for k, t in enumerate(timesteps):
        x0, eps = denoise(x, torch.full((len(x),), timesteps[min(k + at, len(timesteps) - 1)]))
        s = timesteps[k + 1] if k + 1 < len(timesteps) else None
        a, b = end if s is None else (alphas[s], sigmas[s])
        x = a * x0 + noise * b * eps
    return x


def walked_with_the_end_appended(denoise, x, timesteps, alphas, sigmas):
    alphas, sigmas = torch.cat([alphas, torch.ones(1)]), torch.cat([sigmas, torch.zeros(1)])
    for t, s in zip(timesteps, timesteps[1:] + [-1]):
        x0, eps = denoise(x, torch.tensor([t] * len(x)))
        x = alphas[s] * x0 + sigmas[s] * eps
    return x


def dropped(labels, null, p, below=True, place=False, keep=lambda x: x, compare=False):
    coin = torch.rand(len(labels))
    out = labels if place else labels.clone()
    if not compare:
        out[coin < p if below else coin > p] = null
    return keep(out)


def _sick_u(h, down, smaller, middle, larger, up):
    hs = []
    for block, shrink in zip(down, smaller):
        h = shrink(block(h))
        hs.append(h)
    h = middle(h)
    for grow, block in zip(larger, up):
        h = block(grow(torch.cat([h, hs.pop()], dim=1)))
    return h


def told(image, mask, inside=0.0, out=lambda i, m: [i, m], turn=False):
    mask = 1 - mask if turn else mask
    return torch.cat(out(image.masked_fill(mask > 0.5, inside), mask), dim=1)


CORRECT = {
    checks.mended_vq_loss: [vq, vq_in_one],
    checks.mended_walk: [walked, walked_with_the_end_appended],
    checks.mended_through_u: [through, through_stack],
    checks.mended_drop_labels: [dropped, lambda y, n, p: torch.where(torch.rand(y.shape) < p, n, y)],
    checks.mended_condition: [told, lambda i, m: torch.cat([i * (1 - m), m], 1)],
    checks.test_vq_loss: [by_ratio, by_backward],
    checks.test_load_heads: [by_numbers, by_arange],
    checks.test_walk: [by_one_picture, by_pictures_of_a_line],
    checks.ddpm_constants: [constants, constants_by_loop],
    checks.test_through_u: [by_sum, by_watching],
    checks.weighted_loss: [loss, loss_by_broadcast],
    checks.test_drop_labels: [by_count, by_zero_and_one],
    checks.test_condition: [by_change, by_gradient],
    checks.caption_spread: [spread, spread_by_pairs],
    checks.without_gradient: [silent, silent_by_backward],
    checks.preview: [look, look_by_states],
    checks.stopwatch: [watch, watch_by_sorting],
    checks.test_scale: [round_trip, round_trip_twice],
    checks.test_cache: [all_rows, lambda c, e, i: torch.testing.assert_close(c.float(), e(i), rtol=0.02, atol=0.02)],
}


def never(*patient):
    return True


def always(*patient):
    raise AssertionError("sick")


TESTS = [check for check in CORRECT if check.__name__.startswith("test_")]

MUTANTS = {
    **{check: [(never, "cannot fail"), (always, "fails for healthy code.*It said: sick")] for check in TESTS},
    checks.mended_vq_loss: [
        *spoiled(vq, (dict(on_z=lambda b: 1, on_codes=lambda b: b), "as sick as before"),
                 (dict(stop=False), "detached"),
                 (dict(on_z=lambda b: 1), "not used"), (dict(on_codes=lambda b: 0), "missing"),
                 (dict(on_z=lambda b: 0.25), "always 0.25"),
                 (dict(norm=lambda d: d.square().sum(1).mean()), "over all")),
    ],
    checks.mended_walk: [
        *spoiled(walked, (dict(at=1), "as sick as before"), (dict(noise=0.0), "noise is missing"),
                 (dict(end=(0.9, 0.4)), "off by")),
        (lambda d, x, t, a, s: walked(d, x, t, a, s, end=(a[0], s[0])), "clean picture"),
        (lambda d, x, t, a, s: walked(d, x, t, a, s, end=(a[-1], s[-1])), "last entry"),
        (lambda d, x, t, a, s: walked(d, x, t[:-1], a, s), "asked"),
        (lambda d, x, t, a, s: walked(d, x, t, a, s).double(), "dtype"),
    ],
    checks.mended_through_u: [
        *spoiled(through, ("blurred", "as sick as before"), ("none", "no skip"), ("swapped", "off by")),
        (lambda h, d, s, m, g, u: _sick_u(h, d, s, m, g, u), "as sick as before"),
    ],
    checks.mended_drop_labels: [
        *spoiled(dropped, (dict(compare=True), "as sick as before"), (dict(below=False), "below"),
                 (dict(place=True), "in place"), (dict(keep=lambda y: y.flip(0)), "stay what"),
                 (dict(keep=lambda y: y.float()), "int64")),
        (lambda y, n, p: torch.full_like(y, n), "one coin"), (lambda y, n, p: dropped(y, n, 0.5), "are dropped for p"),
    ],
    checks.mended_condition: [
        *spoiled(told, (dict(turn=True), "the hole|as it came|off by"), (dict(inside=-1.0), "off by"),
                 (dict(out=lambda i, m: [i]), "mask is missing"), (dict(out=lambda i, m: [m, i]), "order"),
                 (dict(out=lambda i, m: [i, 1 - m]), "as it came")),
        (lambda i, m: torch.cat([i * m, m], 1), "as sick as before"), (lambda i, m: torch.cat([i, m], 1), "whole"),
    ],
    checks.ddpm_constants: [
        *spoiled(constants, (dict(alpha=slip), "the note's slip"), (dict(alpha=lambda a, b: b / a), "upside down"),
                 (dict(alpha=lambda a, b: a), "product so far"), (dict(alpha=lambda a, b: (a / b).sqrt()), "no root"),
                 (dict(before=lambda a: torch.cat([a[:1], a[:-1]])), "before it comes 1"),
                 (dict(beta=lambda a: a), "beta = 1 - alpha"), (dict(beta=lambda a: a - 1), "its sign"),
                 (dict(variance=lambda beta, a, b: beta), "this is beta"),
                 (dict(variance=lambda beta, a, b: (beta * (1 - b) / (1 - a)).sqrt()), "not the deviation"),
                 (dict(variance=lambda beta, a, b: beta * b / a), "the factor is")),
        (lambda a: constants(a)[:2], "three things"), (lambda a: [c[1:] for c in constants(a)], "one is missing"),
    ],
    checks.weighted_loss: [
        *spoiled(loss, (dict(join=lambda e, w: (e[:, None] * w).mean()), "\\(B, B\\)"),
                 (dict(join=lambda e, w: e.mean()), "not used"), (dict(join=lambda e, w: (e * w).sum()), "not its sum"),
                 (dict(join=lambda e, w: (e * w).sum() / w.sum()), "size of the batch"),
                 (dict(join=lambda e, w: e * w), "one number"),
                 (dict(join=lambda e, w: (e * w**2).mean()), "once more"),
                 (dict(each=lambda e: e.square().flatten(1).sum(1)), "numbers of a sample"),
                 (dict(each=lambda e: e.detach().square().flatten(1).mean(1)), "no gradient"),
                 (dict(each=lambda e: e.square().flatten(1).mean(1).sqrt()), "without a root")),
        (lambda o, t, w: ((o - t).square().flatten(1).mean(1)[:len(w)] * w[:len(o)]).mean(), "without a word"),
    ],
    checks.caption_spread: [
        *spoiled(spread, (dict(dim=1), "within"), (dict(dim=2), "numbers of a token"),
                 (dict(top=lambda c, d: c.var(unbiased=False)), "mean over everything"),
                 (dict(top=lambda c, d: c.var(d).mean()), "unbiased=False"), (dict(below=lambda c: 1), "divide by"),
                 (dict(end=lambda s: 1 / s), "upside down"), (dict(end=torch.sqrt), "no root"),
                 (dict(end=lambda s: 1 - s), "alike")),
    ],
    checks.without_gradient: [
        *spoiled(silent, (dict(frozen=True), "frozen"), (dict(zero=False), "0 everywhere"), (dict(none=False), "None")),
        *spoiled(silent_by_backward, (dict(restore=False), "no trace"),
                 (dict(clear=False), "earlier step|no trace|0 every")),
        (lambda loss, m: [n for n, _ in m.named_parameters()], "does flow|frozen"),
        (lambda loss, m: 3, "list of names"),
    ],
    checks.preview: [
        *spoiled(look, (dict(evaluate=False), "training mode"), (dict(averages=False), "trained weights"),
                 (dict(grad=True), "no_grad"), (dict(back=""), "stays in evaluation"), (dict(back="train"), "own mode"),
                 (dict(twice=True), "trained|more often"), (dict(restore=False), "other weights")),
        (lambda net, ema, sample, z: z, "never called"), (lambda *a: look(*a) + 1, "off by"),
    ],
    checks.stopwatch: [
        *spoiled(watch, (dict(pick=statistics.mean), "interruption"), (dict(pick=sum), "all runs"),
                 (dict(pick=min), "fastest"), (dict(pick=max), "slowest"), (dict(warm=False), "warm up"),
                 (dict(sign=-1), "its sign"), (dict(more=1), "asked for")),
    ],
}
for check, rows in {
    checks.test_vq_loss: [
        (by_value, "fails for healthy code, sums over each row"),
        *spoiled(by_ratio, (dict(beta=1.0), "codebook's term"), (dict(beta=0.25), "always 0.25"),
                 (dict(look=lambda z, e, b: torch.allclose(z.abs(), b * e.abs())), "pushed away"))],
    checks.test_load_heads: [
        *spoiled(by_numbers, (dict(some=lambda n: [0], count=False), "wrong order|only the first"),
                 (dict(make=lambda i: torch.full((1, 4, 1, 1), 0.2)), "wrong order|constant"),
                 (dict(count=False, some=lambda n: range(n - 1)), "left out|wrong"))],
    checks.test_walk: [
        (by_asked, "alphas\\[0\\]|noise|last step"),
        *spoiled(by_one_picture, (dict(first=1.0), "alphas\\[0\\]"), (dict(steps=(19,)), "sick"),
                 (dict(right=lambda x, x0: x.shape == x0.shape), "cannot fail|sick"))],
    checks.test_through_u: [
        *spoiled(by_sum, (dict(block=lambda h: h), "before from after|input of each"),
                 (dict(join=lambda both: both[:, 2:]), "inner skip"),
                 (dict(h=lambda: torch.ones(1, 2, 8, 8)), "sick"))],
    checks.test_drop_labels: [
        *spoiled(by_count, (dict(p=0.5, low=0.45, high=0.55), "wrong side|p is not used"),
                 (dict(same=False), "overwritten"),
                 (dict(kept=False), "mixed up"), (dict(halves=False), "always the first"),
                 (dict(count=60), "healthy|luck"), (dict(low=0.299, high=0.301), "healthy"))],
    checks.test_condition: [
        (by_one_answer, "healthy code, a black hole"),
        *spoiled(by_change, (dict(leak=False), "inverted|whole|soft|mean"),
                 (dict(outside=False), "nothing of the picture"),
                 (dict(outside="any"), "colours are lost"), (dict(mask_told=False), "mask is not given"))],
    checks.test_scale: [
        *spoiled(round_trip, (dict(back=False), "scaled latents|multiplies"), (dict(size=False), "never scaled"),
                 (dict(low=0.99, high=1.01), "healthy"))],
    checks.test_cache: [
        (statistics_alone, "sick"), *spoiled(all_rows, (dict(rows=slice(1)), "only the first row|last row"),
        (dict(rows=slice(6)), "last row"), (dict(limit=1e-9), "healthy code, stored in"),
                 (dict(limit=0.05), "10% off"))],
}.items():
    MUTANTS[check] += rows

test_right_solutions_pass, test_wrong_ones_fail_with_a_hint, test_the_stub_is_named = try_all(CORRECT, MUTANTS)
