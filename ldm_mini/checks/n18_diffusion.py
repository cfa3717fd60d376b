"""Checks of notebook 18, diffusion and network: a test of a sampler, DDPM's constants, a test of the way through the U,
a weighted loss."""

import torch
import torch.nn.functional as F

from .checking import CheckFailed, attempt, compare, several
from .checking import passed as said
from .n18_clinic import examine
from .properties import fresh, same_gradient


def _walk(how=""):
    """DDIM with one thing changed."""
    def walk(denoise, x, timesteps, alphas, sigmas):
        first = timesteps[0]
        for t, s in zip(timesteps, [*timesteps[1:], None]):
            alpha, sigma = (1.0, 0.0) if s is None else (alphas[s], sigmas[s])
            if s is None and how in ("stops at 0", "wraps"):
                alpha, sigma = (alphas[0], sigmas[0]) if how == "stops at 0" else (alphas[-1], sigmas[-1])
            at = {"asks at s": t if s is None else s, "asks at first": first, "one too late": max(t - 1, 0),
                  "one too early": min(t + 1, len(alphas) - 1)}.get(how, t)
            x0, eps = denoise(x, torch.full((len(x),), at, dtype=torch.int64))
            if how == "no last step" and s is None:
                break
            if how == "squares":
                alpha, sigma = alpha**2, sigma**2
            x = alpha * x0 + (0 if how == "no noise" else sigma) * eps
        return x
    return walk


def _euler(denoise, x, timesteps, alphas, sigmas):
    """The same steps as a flow: y = x / (alpha + sigma)."""
    scale = alphas + sigmas
    y, tau = x / scale[timesteps[0]], sigmas / scale
    for k, t in enumerate(timesteps):
        x0, eps = denoise(scale[t] * y, torch.full((len(x),), t))
        y = y + ((tau[timesteps[k + 1]] if k + 1 < len(timesteps) else 0.0) - tau[t]) * (eps - x0)
    return y


def _dpm(denoise, x, timesteps, alphas, sigmas):
    """DDIM written with x and x0 alone, as DPM-Solver++ has it."""
    for t, s in zip(timesteps, timesteps[1:]):
        x0, _ = denoise(x, torch.full((len(x),), t))
        ratio = sigmas[s] / sigmas[t]
        x = ratio * x + (alphas[s] - alphas[t] * ratio) * x0
    return denoise(x, torch.full((len(x),), timesteps[-1]))[0]


def test_walk(test):
    """`test(walk)`: passes for a healthy walk(denoise, x, timesteps, alphas, sigmas) -> x0, fails for a sick one."""
    look = "Make a denoiser that knows the picture and its noise: of which t was it asked, and where does the walk end?"
    examine(test, "test_walk", {
        "DDIM": (_walk(),), "the same steps as a flow": (_euler,), "with x and x0 alone": (_dpm,),
    }, {
        "the network is asked about the step to come": ((_walk("asks at s"),), look),
        "it is always asked about the first step": ((_walk("asks at first"),), look),
        "t is one too small": ((_walk("one too late"),), "Take few and coarse steps: there one more counts."),
        "t is one too large": ((_walk("one too early"),), "Take few and coarse steps: there one more counts."),
        "the last step goes to alphas[0], not to the clean picture": ((_walk("stops at 0"),), "Where does it end? Let "
                                                                     "alphas[0] differ from 1."),
        "the last step goes to alphas[-1], which is noise": ((_walk("wraps"),), "Where does it end?"),
        "the last step is not taken": ((_walk("no last step"),), "Where does it end?"),
        "amplitudes are squared": ((_walk("squares"),), look),
        "the noise is left out between the steps": ((_walk("no noise"),), look),
    }, "it ends at the picture")


def ddpm_constants(function):
    """`function(alphas_cumprod)`: (T,) -> alphas, betas and the posterior's variances, each (T,)."""
    for T, low in ((40, 0.02), (7, 0.3)):
        betas = torch.linspace(0.01, low, T, dtype=torch.float64) * (1 + 0.3 * fresh()(T).double().tanh())
        alphas = 1 - betas
        cumprod = alphas.cumprod(0)
        before = torch.cat([torch.ones(1, dtype=torch.float64), cumprod[:-1]])
        want = (alphas, betas, betas * (1 - before) / (1 - cumprod))
        got = several(attempt(function, cumprod, name="ddpm_constants"), "ddpm_constants",
                      "three things: alphas, betas, variances")
        slip = (1 - cumprod[1:]) / (1 - before[1:])
        inverse = torch.cat([cumprod[:1], 1 / slip])
        compare(got[0], want[0], "alphas", mistakes=[
            (torch.cat([cumprod[:1], slip]), "this is the note's slip, (1 - abar_t) / (1 - abar_{t-1}), which is above "
             "1. abar is the running *product* of the alphas: how do you get a factor back?"),
            (inverse, "(1 - abar_{t-1}) / (1 - abar_t) is the posterior's factor, not alpha_t."),
            (before / cumprod, "upside down: abar_t = abar_{t-1} alpha_t."),
            (cumprod, "this is their product so far."), (alphas.sqrt(), "no root: amplitudes have one, alphas do not."),
            (torch.cat([torch.ones(1).double(), alphas[1:]]), "the first is abar_0 itself: before it comes 1."),
            (torch.cat([alphas[1:], alphas[-1:]]), "each is one place too early: alpha_t = abar_t / abar_{t-1}."),
        ], shapes={(T - 1,): "one is missing: before the first step nothing is lost, abar = 1."})
        compare(got[1], want[1], "betas", mistakes=[
            (alphas, "beta = 1 - alpha."), (-betas, "its sign: beta = 1 - alpha."),
            (1 - cumprod, "1 - alpha, not 1 - abar."),
        ])
        compare(got[2], want[2], "variances", mistakes=[
            (betas, "this is beta. The posterior knows x0 as well: beta_t (1 - abar_{t-1}) / (1 - abar_t)."),
            (want[2].sqrt(), "the variance, not the deviation."),
            (betas * (1 - cumprod) / (1 - before).clamp(min=1e-20), "upside down: (1 - abar_{t-1}) / (1 - abar_t)."),
            (betas * before / cumprod, "the factor is (1 - abar_{t-1}) / (1 - abar_t)."),
        ])
    said("ddpm_constants: factors of a product, and all between 0 and 1")


def _through(how=""):
    """The way through the U with one thing changed."""
    def through_u(h, down, smaller, middle, larger, up):
        hs = []
        for block, shrink in zip(down, smaller):
            if how == "before the block":
                hs.append(h)
                h = shrink(block(h))
                continue
            h = block(h)
            hs.append(shrink(h) if how == "after shrinking" else h)
            h = shrink(h)
        h = middle(h)
        for k, (grow, block) in enumerate(zip(larger, up)):
            skip = hs.pop()
            if how == "after shrinking":
                h = block(grow(torch.cat([h, skip], dim=1)))
                continue
            h = grow(h)
            gone = how == "none" or how == "no inner" and k == 0 or how == "no outer" and k == len(up) - 1
            skip = {"twice h": h, "blurred": F.interpolate(F.avg_pool2d(skip, 2), scale_factor=2)}.get(how, skip)
            h = block(torch.cat([h, 0 * skip if gone else skip], dim=1))
        return h
    return through_u


def _by_recursion(h, down, smaller, middle, larger, up):
    if not down:
        return middle(h)
    h = down[0](h)
    inner = _by_recursion(smaller[0](h), down[1:], smaller[1:], middle, larger[:-1], up[:-1])
    return up[-1](torch.cat([larger[-1](inner), h], dim=1))


def _by_index(h, down, smaller, middle, larger, up):
    outputs = []
    for k in range(len(down)):
        outputs.append(down[k](h))
        h = smaller[k](outputs[k])
    h = middle(h)
    for k in range(len(up)):
        h = up[k](torch.cat([larger[k](h), outputs[len(down) - 1 - k]], dim=1))
    return h


def test_through_u(test):
    """`test(through_u)`: passes for a healthy through_u(h, down, smaller, middle, larger, up), fails for a sick one."""
    look = "Put in parts that you can calculate (identity, mean of 2 x 2, zero): what must come out, number by number?"
    examine(test, "test_through_u", {
        "a list of skips": (_through(),), "by recursion": (_by_recursion,), "by index": (_by_index,),
    }, {
        "skips are taken after shrinking": ((_through("after shrinking"),), look),
        "the input of each block is kept, not its output": ((_through("before the block"),), "Let a block change what "
                                                           "goes through it: identity cannot tell before from after."),
        "no skip arrives": ((_through("none"),), look),
        "the inner skip does not arrive": ((_through("no inner"),), "Two levels, and an up block that *adds* both of "
                                           "its halves: then each skip is seen."),
        "the outer skip does not arrive": ((_through("no outer"),), look),
        "h stands in the skip's place": ((_through("twice h"),), look),
        "the skip is blurred": ((_through("blurred"),), "Fine detail must survive: use random numbers for h."),
    }, "detail goes around the middle")


def weighted_loss(function):
    """`function(out, target, weight)`: out, target (B,...), weight (B,) -> the mean of weight times error, ()."""
    draw = fresh()
    for shape in ((5, 1), (6, 2), (4, 3, 2, 2), (1, 7)):
        out, target, weight = draw(*shape).requires_grad_(), draw(*shape), draw(shape[0]).square() + 0.1
        each = (out - target).square().flatten(1).mean(1)
        got, what = attempt(function, out, target, weight, name="weighted_loss"), "weighted_loss(out, target, weight)"
        right = (weight * each).mean()
        compare(got, right, what, mistakes=[
            (weight.mean() * each.mean(), "this is mean(weight) * mean(error): (B,) times (B, 1) is (B, B), each "
             "weight times each error. Print the shapes."),
            (each.mean(), "the weights are not used."),
            ((weight * each).sum(), "the mean over the batch, not its sum."),
            ((weight * each).sum() / weight.sum(), "divide by the size of the batch, not by the sum of the weights."),
            ((weight * each.sqrt()).mean(), "the squared error, without a root."),
            ((weight * (out - target).square().flatten(1).sum(1)).mean(), "the mean over the numbers of a sample."),
            ((weight**2 * each).mean(), "the weight is on the error's square already: not squared once more."),
        ], shapes={(shape[0],): "one number: the mean over the batch."} if shape[0] > 1 else None)
        same_gradient(got, right, {"out": out}, what)
    try:
        other = function(draw(4, 3), draw(4, 3), draw(5))
    except Exception:
        other = None
    if other is not None:
        raise CheckFailed("weighted_loss took 5 weights for 4 samples without a word.")
    said("weighted_loss: each error times its own weight")
