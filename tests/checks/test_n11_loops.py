"""Checks of notebook 11's loops and losses: known wrong ones fail with a message that helps; right ones pass."""

import copy

import torch
from solutions import spoiled, try_all
from torch.nn import functional as F

from ldm_mini import checks
from ldm_mini.concat_conditioners import paste
from ldm_mini.diffusion import diffusion_loss, make_denoiser
from ldm_mini.samplers import ddim, repaint


def loss(net, schedule, z0, cond, generator, how="right"):
    size, source = len(z0), None if how == "own noise" else generator
    high = {"half": schedule.num_steps // 2, "short": 10}.get(how, schedule.num_steps)
    t = torch.randint(high, (1,) if how == "one t" else (size,), generator=generator).expand(size)
    t = t.float() if how == "float t" else t
    eps = (torch.rand if how == "uniform" else torch.randn)(z0.shape, generator=source)
    level = t.long()
    alpha, sigma = schedule.alpha(level), schedule.sigma(level)
    z_t = {"clean": z0, "squares": alpha**2 * z0 + sigma**2 * eps}.get(how, schedule.add_noise(z0, eps, level))
    asked = torch.cat([z_t, cond.concat], 1) if how == "joined" else z_t
    out = net(asked, t, copy.copy(cond) if how == "other cond" else cond)
    if how == "twice":
        out = net(z_t, t, cond)
    target = {"eps": eps, "x0": z0, "minus": sigma * z0 - alpha * eps, "swapped": sigma * eps - alpha * z0,
              "plus": alpha * eps + sigma * z0, "z_t": z_t}.get(how, alpha * eps - sigma * z0)
    off = (out - target).square()
    if how == "cut":
        off = off.detach()
    return {"sum": off.sum(), "samples": off.mean((1, 2, 3)), "root": off.mean().sqrt(), "batch": off.mean() * size,
            "absolute": (out - target).abs().mean(), "item": off.mean().item()}.get(how, off.mean())


def noise_first(net, schedule, z0, cond, generator):
    """The same with the draws in another order."""
    eps = torch.empty_like(z0).normal_(generator=generator)
    t = (torch.rand(len(z0), generator=generator) * schedule.num_steps).long()
    v = schedule.alpha(t) * eps - schedule.sigma(t) * z0
    return F.mse_loss(net(schedule.add_noise(z0, eps, t), t, cond), v)


def planted(old, new, how="right"):
    weights = new.state_dict() if how == "first only" else dict(old.state_dict())
    first, wide = old.down[0][0], new.down[0][0].weight.detach().clone()
    if how != "random":
        wide[:, 4:] = 0.5 if how == "halves" else 0
    wide[:, :4] = 0 if how == "zeros" else first.weight.detach()
    if how == "in front":
        wide = wide.roll(-4, 1)
    weights |= {"down.0.0.weight": wide, "down.0.0.bias": first.bias}
    if how == "no bias":
        weights["down.0.0.bias"] = new.down[0][0].bias.detach().clone()
    if how == "old untouched":
        return new
    if how == "no last":
        weights = {name: value for name, value in weights.items() if not name.startswith("up")}
    new.load_state_dict(weights, strict=how != "no last", assign=how == "assign")
    if how == "old layer":
        new.down[0][0] = first
    if how == "spoils":
        old.down[0][0].weight.data.zero_()
    if how == "frozen":
        new.requires_grad_(False)
    return {"nothing": None, "weights": weights, "old": old}.get(how, new)


def planted_by_name(old, new):
    with torch.no_grad():
        for (name, mine), theirs in zip(new.named_parameters(), old.parameters()):
            mine[:, :theirs.shape[1]].copy_(theirs) if name == "down.0.0.weight" else mine.copy_(theirs)
        new.down[0][0].weight[:, 4:] = 0
    return new


def enlarger(rows, image, how="right"):
    a, b = rows.flatten(0, 1).double(), F.pixel_unshuffle(image, 4)
    cells = b.unflatten(1, (3, 4, 4))
    b = {"channels last": cells.movedim(1, 3).flatten(1, 3), "turned": cells.transpose(2, 3).flatten(1, 3),
         "small": F.avg_pool2d(image, 4)}.get(how, b)
    y = (b.reshape(-1, 48) if how == "reshape" else b.flatten(2).mT.flatten(0, 1)).double()
    if how == "mean":
        a, y = a / len(a) ** 0.5, y / len(a) ** 0.5
    matrix, right = a.mT @ a, a.mT @ y
    if how != "no ridge":
        matrix = matrix + (1.0 if how == "one" else 0.1) * torch.eye(len(matrix), dtype=matrix.dtype)
    if how == "each":
        a, y = rows.double(), b.flatten(2).mT.double()
        return torch.linalg.solve(a.mT @ a + 0.1 * torch.eye(a.shape[2]), a.mT @ y).float()
    if how == "not solved":
        return right.float()
    weights = torch.linalg.lstsq(matrix, right).solution if how == "no ridge" else torch.linalg.solve(matrix, right)
    return {"upside down": weights.mT.float(), "double": weights}.get(how, weights.float())


def more_rows(rows, image):
    """The ridge as more rows of the same least squares."""
    a, y = rows.flatten(0, 1).double(), F.unfold(image, 4, stride=4).mT.flatten(0, 1).double()
    k = a.shape[1]
    return torch.linalg.lstsq(torch.cat([a, 0.1**0.5 * torch.eye(k)]), F.pad(y, (0, 0, 0, k))).solution.to(rows)


def sampled(net, schedule, cond, z_T, steps, how="right"):
    times = schedule.timesteps(steps, "leading" if how == "leading" else "trailing").tolist()
    times = times[::-1] if how == "upwards" else times * 2 if how == "twice" else times
    z = z_T
    for t, s in zip(times, [*times[1:], times[-1] if how == "stays noisy" else -1]):
        t, s = torch.full((len(z),), t), torch.full((len(z),), s)
        alpha, sigma, alpha_s, sigma_s = (level(u) for u in (t, s) for level in (schedule.alpha, schedule.sigma))
        v = net(z, t[:1] if how == "one time" else t, None if how == "no cond" else cond)
        x0, eps = alpha * z - sigma * v, sigma * z + alpha * v
        if how == "sign":
            x0, eps = alpha * z + sigma * v, sigma * z - alpha * v
        elif how == "eps":
            x0, eps = (z - sigma * v) / alpha, v
        elif how == "x0":
            x0, eps = v, (z - alpha * v) / sigma
        elif how == "fresh":
            eps = torch.randn_like(z)
        elif how == "old noise":
            eps = z_T
        if how == "same level":
            alpha_s, sigma_s = alpha, sigma
        z = sigma_s * x0 + alpha_s * eps if how == "swapped" else x0 if how == "x0 only" else (
            alpha_s * x0 + sigma_s * eps)
    return z.double() if how == "double" else z


def by_the_library(net, schedule, cond, z_T, steps):
    denoise = make_denoiser(net, schedule, cond, prediction="v")
    *_, z = ddim(denoise, z_T, schedule, steps, spacing="trailing")
    return z


def known(encode, image, mask, f, how="right"):
    hole = mask > 0.5
    share = mask.mean((2, 3), keepdim=True)
    color = (image * (1 - mask)).mean((2, 3), keepdim=True) / (1 - share)
    color = {"peeps": image.mean((2, 3), keepdim=True), "by all": color * (1 - share), "black": torch.tensor(-1.0),
             "grey": torch.tensor(0.0), "one grey": color.mean(1, keepdim=True)}.get(how, color)
    filled = torch.where(~hole if how == "inverted" else hole, color, image)
    z = encode(image if how == "leak" else filled)
    cells = {"nearest": mask[..., ::f, ::f], "majority": F.avg_pool2d(mask, f), "large": mask,
             "all hole": (F.avg_pool2d(mask, f) == 1).float(), "four": F.max_pool2d(mask, 4)}.get(
                 how, F.max_pool2d(mask, f)) > 0.5
    cells = {"known": ~cells, "float": cells.float()}.get(how, cells)
    return z if how == "one" else (z, cells)


def known_by_pasting(encode, image, mask, f):
    n = (1 - mask).sum((2, 3))
    color = ((image * (1 - mask)).sum((2, 3)) / n)[..., None, None].expand_as(image)
    hole = mask.unflatten(3, (-1, f)).unflatten(2, (-1, f)).amax((3, 5)).bool()
    return [encode(paste(color, image, mask)), hole]


def noised(x, a_t, s_t, a_s, s_s, eps, how="right"):
    kept = {"alpha_t": a_t, "not": torch.ones(()), "square": (a_t / a_s) ** 2}.get(how, a_t / a_s)
    left = a_t / a_s * s_s
    amount = {"all": s_t, "variance": s_t**2 - left**2, "amplitudes": s_t - left, "no shrink": (s_t**2 - s_s**2) ** 0.5,
              "none": 0, "jump": s_t}.get(how, (s_t**2 - left**2) ** 0.5)
    out = (a_t if how == "jump" else kept) * x + amount * (torch.randn_like(eps) if how == "own" else eps)
    return out.double() if how == "double" else out


def redrawn(denoise, x, schedule, steps, g, known, hole, repeats=1, how="right"):
    times = schedule.timesteps(steps, "leading" if how == "leading" else "trailing").tolist()
    for t, s in zip(times, [*times[1:], times[-1] if how == "never clean" else -1]):
        t, s = torch.full((len(x),), t), torch.full((len(x),), s)
        count = 1 if how == "once" or s[0] < 0 and how != "last too" else repeats
        for left in reversed(range(count)):
            mean, variance = schedule.posterior(denoise(x, t)[0], x, t, s)
            noises = [torch.randn(x.shape, generator=None if how == "global" else g) for _ in range(2)]
            one, two = noises[::-1] if how == "other order" else noises
            x = mean + {"variance": variance, "no noise": 0}.get(how, variance.sqrt()) * one
            at = t if how == "level t" else s
            outside = known if how == "clean" else schedule.alpha(at) * known + schedule.sigma(at) * two
            if how == "inverted":
                x = torch.where(hole, outside, x)
            elif how not in ("ddpm", "ddpm to the end") or how == "ddpm" and s[0] < 0:
                x = torch.where(hole, x, outside)
            if left and how != "stays at s":
                kept = schedule.alpha(t) / schedule.alpha(s)
                x = kept * x + (schedule.sigma(t) ** 2 - (kept * schedule.sigma(s)) ** 2) ** 0.5 * torch.randn(
                    x.shape, generator=g)
    return x.double() if how == "double" else x


def by_repaint(denoise, x, schedule, steps, g, known, hole, repeats=1):
    *_, x = repaint(denoise, x, schedule, steps, g, known=known, hole=hole, repeats=repeats)
    return x


CORRECT = {
    checks.superres_loss: [loss, noise_first, lambda net, schedule, z0, cond, g: diffusion_loss(
        net, schedule, z0, cond, "v", generator=g)],
    checks.transplant: [planted, planted_by_name],
    checks.linear_enlarger: [enlarger, more_rows],
    checks.superres_sample: [sampled, torch.no_grad()(by_the_library)],
    checks.known_latents: [known, known_by_pasting],
    checks.noise_again: [noised, lambda x, a_t, s_t, a_s, s_s, eps:
                         a_t * (x / a_s + (s_t**2 / a_t**2 - s_s**2 / a_s**2).sqrt() * eps)],
    checks.replace_and_draw: [redrawn, by_repaint],
}

MUTANTS = {
    checks.superres_loss: spoiled(
        loss, ("own noise", "does not decide"), ("half", "should come from all"), ("short", "should come from all"),
        ("one t", "same t"), ("float t", "int64"), ("uniform", "mean"), ("clean", "without noise"),
        ("squares", "amplitudes"), ("joined", "by itself"), ("other cond", "not given `cond`"), ("twice", "once"),
        ("eps", "target is the noise"), ("x0", "target is z0"), ("minus", "sign of v"), ("swapped", "swapped"),
        ("plus", r"\*minus\*"), ("z_t", "see already"), ("sum", "the sum"), ("samples", "one number"),
        ("root", "root"), ("batch", "over the batch too"), ("absolute", r"mean \*square\*"), ("cut", "no gradient"),
        ("item", "no gradient")),
    checks.transplant: spoiled(
        planted, ("nothing", "return `new`"), ("weights", "return `new`"), ("old", "return `new`"),
        ("first only", "have not arrived"), ("random", "begin at zero"), ("halves", "begin at zero"),
        ("zeros", "in front"), ("in front", "in front"), ("no bias", "have not arrived"),
        ("old untouched", "nothing of the old"), ("no last", "have not arrived"), ("assign", "share weights|requires"),
        ("old layer", "lost its channels"), ("spoils", "changed the old"), ("frozen", "cannot learn")),
    checks.linear_enlarger: spoiled(
        enlarger, ("reshape", "mixes channels"), ("channels last", "another order"), ("turned", "changed places"),
        ("small", "one pixel per"), ("mean", "sums, not means"), ("no ridge", "without the ridge|NaN|singular"),
        ("one", "0.1 times"), ("each", "one for all"), ("not solved", "still has to be solved"),
        ("upside down", "upside down"), ("double", "dtype")),
    checks.superres_sample: spoiled(
        sampled, ("leading", "trailing"), ("upwards", "go up"), ("twice", "once a step"),
        ("stays noisy", "clean latent"), ("one time", "the same time for each"), ("no cond", "not given `cond`"),
        ("sign", r"\*minus\*"), ("eps", "v, not the noise"), ("x0", "v, not x0"), ("fresh", "off by up to"),
        ("old noise", "its own eps"), ("same level", "not at t"), ("swapped", "swapped"), ("x0 only", "ended at x0"),
        ("double", "dtype")) + [
        (lambda net, schedule, cond, z, steps: sampled(net, schedule, cond, z, 5), "once a step"),
        (lambda net, schedule, cond, z, steps: sampled(net, schedule, cond, torch.randn_like(z), steps), "off by"),
    ],
    checks.known_latents: spoiled(
        known, ("peeps", "peeps into"), ("by all", "pixels are \\*known\\*"), ("black", "hole is black"),
        ("grey", "hole is grey"), ("one grey", "one grey"), ("inverted", "wrong way round"), ("leak", "nothing hidden"),
        ("nearest", "nearest"), ("majority", "majority"), ("large", "size of the picture"), ("all hole", "all hole"),
        ("four", "shape"), ("known", "True is the hole"), ("float", "bool"), ("one", "two things")) + [
        (lambda encode, image, mask, f: known(lambda x: F.avg_pool2d(x, f), image, mask, f), "never called encode")],
    checks.noise_again: spoiled(
        noised, ("all", "noise already"), ("jump", r"jump from the \*clean\*"), ("alpha_t", "shrunk to alpha_s"),
        ("not", "must shrink"), ("square", "not its square"), ("variance", "root of the difference"),
        ("amplitudes", "do not subtract"), ("no shrink", "shrinks as well"), ("none", "noise is missing"),
        ("own", "off by"), ("double", "dtype")),
    checks.replace_and_draw: spoiled(
        redrawn, ("leading", "asked at the times"), ("once", "asked at the times"), ("last too", "asked at the times"),
        ("never clean", "known part is not"), ("global", "off by"), ("other order", "another order"),
        ("variance", "variance.sqrt"), ("no noise", "draws noise"), ("level t", "as noisy as at t|known part is not"),
        ("clean", "put there clean"), ("inverted", "known part is not"), ("ddpm", "nothing of what is known"),
        ("ddpm to the end", "known part is not"), ("stays at s", "go back to t"), ("double", "dtype")),
}

test_right_solutions_pass, test_wrong_ones_fail_with_a_hint, test_the_stub_is_named = try_all(CORRECT, MUTANTS)
