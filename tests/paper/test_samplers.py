"""Samplers, proved without training: against diffusers step by step, against exact solutions, against each other."""

import math
from functools import partial

import pytest
import torch
from torch.testing import assert_close

from ldm_mini.cond import Cond
from ldm_mini.diffusion import ideal_denoiser, make_denoiser
from ldm_mini.samplers import SAMPLERS, VIEWS, ddim, ddpm, dpm_solver, euler, heun, repaint
from ldm_mini.schedule import NoiseSchedule, RectifiedFlow, Schedule, cosine_betas, scaled_linear_betas

BETAS = dict(num_train_timesteps=1000, beta_schedule="scaled_linear", beta_start=0.0015, beta_end=0.0195)
CLOSE = dict(atol=1e-5, rtol=1e-5)


@pytest.fixture
def schedule():
    return NoiseSchedule(scaled_linear_betas())


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def net(x, t, cond=None):
    """Some smooth eps that depends on everything; not a good one, so that every mistake shows."""
    return torch.tanh(0.7 * x.roll(1, dims=-1) + 0.002 * t.view(-1, 1, 1, 1)) + 0.3 * x


@pytest.fixture
def denoise(schedule):
    return make_denoiser(net, schedule, Cond())


LEADING, TRAILING = dict(timestep_spacing="leading"), dict(timestep_spacing="trailing")
DPM = dict(algorithm_type="dpmsolver++", solver_type="midpoint")
THEIRS = [
    *(("DDPM", LEADING, ddpm, steps, dict(spacing="leading"), {}) for steps in (10, 50)),
    *(("DDIM", {**LEADING, "steps_offset": 1, "set_alpha_to_one": False}, ddim, 20,
       dict(spacing="leading", offset=1, clean_end=False), dict(eta=eta)) for eta in (0.0, 0.5, 1.0)),
    *(("DDIM", spacing, ddim, 20, dict(spacing=spacing["timestep_spacing"]), dict(eta=eta))
      for spacing in (LEADING, TRAILING) for eta in (0.0, 0.5, 1.0)),
    *(("DPMSolverMultistep", {**DPM, **spacing, "solver_order": order}, dpm_solver, steps, dict(order=order), {})
      for spacing in (LEADING, TRAILING, dict(timestep_spacing="linspace")) for order in (1, 2) for steps in (3, 20)),
    *(("EulerDiscrete", LEADING, euler, steps, dict(spacing="leading"), {}) for steps in (5, 20)),
]


@pytest.mark.parametrize("kind, there, sampler, steps, here, both", THEIRS)
def test_every_step_is_that_of_diffusers(kind, there, sampler, steps, here, both, schedule, denoise):
    diffusers = pytest.importorskip("diffusers")
    clip = {"clip_sample": False} if kind in ("DDPM", "DDIM") else {}
    scheduler = getattr(diffusers, f"{kind}Scheduler")(**BETAS, **clip, **there)
    scheduler.set_timesteps(steps)
    # DPM-Solver's other spacings divide otherwise there; its timesteps are handed to ours
    asked = scheduler.timesteps if sampler is dpm_solver and there["timestep_spacing"] != "trailing" else steps
    z_T, generators = noise(3, 2, 4, 4), [torch.Generator().manual_seed(7) for _ in range(2)]
    ours = list(sampler(denoise, z_T, schedule, asked, generators[0], **here, **both))
    assert len(ours) == len(scheduler.timesteps)
    exploding = sampler is euler                                # it works on x / alpha
    x = z_T * scheduler.init_noise_sigma if exploding else z_T
    fresh = {} if exploding or sampler is dpm_solver else {"generator": generators[1]}
    for i, (mine, t) in enumerate(zip(ours, scheduler.timesteps, strict=True)):
        out = net(scheduler.scale_model_input(x, t), t.long().expand(len(x)))
        x = scheduler.step(out, t, x, **fresh, **both).prev_sample
        expected = x / (scheduler.sigmas[i + 1] ** 2 + 1).sqrt() if exploding else x
        assert_close(mine, expected, **CLOSE, msg=lambda m, i=i: f"step {i}: {m}")


def test_dpm_solver_extrapolates_down_to_the_last_level_above_the_clean_image(schedule, denoise):
    """Where 0 is one of the times, as in "leading", the step to it is of second order, that from it not."""
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DPMSolverMultistepScheduler(**BETAS, **DPM, solver_order=2)
    scheduler.set_timesteps(timesteps=[666, 333, 0])
    x = z_T = noise(3, 2, 4, 4)
    for i, mine in enumerate(dpm_solver(denoise, z_T, schedule, 3, spacing="leading")):
        t = scheduler.timesteps[i]
        x = scheduler.step(net(x, t.expand(len(x))), t, x).prev_sample
        assert_close(mine, x, **CLOSE, msg=lambda m, i=i: f"step {i}: {m}")


@pytest.mark.parametrize("sampler", [ddim, euler])
@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("steps", [1, 2, 4, 10, 50])
def test_on_a_rectified_flow_they_take_the_steps_of_diffusers_flow_matching(sampler, shift, steps):
    diffusers = pytest.importorskip("diffusers")
    schedule = RectifiedFlow(1000, shift)
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    # theirs divides the times before it shifts them; ours are those of the schedule
    times = schedule.timesteps(steps, "trailing")
    scheduler.set_timesteps(sigmas=((times + 1) / 1000).tolist())
    assert_close(schedule.sigmas[times], scheduler.sigmas[:-1], **CLOSE)
    x = z_T = noise(3, 2, 4, 4)
    ours = sampler(make_denoiser(net, schedule, Cond(), prediction="u"), z_T, schedule, steps)
    for mine, t, theirs in zip(ours, times, scheduler.timesteps, strict=True):
        x = scheduler.step(net(x, t.expand(3)), theirs, x).prev_sample
        assert_close(mine, x, **CLOSE)


@pytest.mark.parametrize("steps", [4, 10, 28])
def test_their_default_times_of_a_flow_are_linspace(steps):
    """Whole numbers of a thousandth here, fractions there: equal where 999 divides by steps - 1, else next to them."""
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(steps)
    assert_close(RectifiedFlow().timesteps(steps, "linspace") + 1.0, scheduler.timesteps, **CLOSE)


@pytest.mark.parametrize("steps", [2, 5, 20])
def test_heun_takes_the_steps_of_diffusers(steps, schedule, denoise):
    """Theirs takes every step in two calls, and works on x / alpha."""
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.HeunDiscreteScheduler(**BETAS, timestep_spacing="leading")
    scheduler.set_timesteps(steps)
    x = noise(3, 2, 4, 4)
    ours = list(heun(denoise, x, schedule, steps, view="exploding", spacing="leading"))
    x, ends = x * scheduler.init_noise_sigma, []
    for t in scheduler.timesteps:
        out = net(scheduler.scale_model_input(x, t), t.long().expand(len(x)))
        x = scheduler.step(out, t, x).prev_sample
        ends.append(x)
    sigmas = scheduler.sigmas[1::2]                             # each twice but the first
    theirs = [x / (sigma**2 + 1).sqrt() for x, sigma in zip(ends[1::2] + ends[-1:], sigmas, strict=True)]
    assert len(ours) == len(theirs) == steps
    for mine, expected in zip(ours, theirs, strict=True):
        assert_close(mine, expected, atol=2e-5, rtol=2e-5)


def test_a_network_of_eps_is_sampled_as_a_flow_without_training(schedule, denoise):
    """y = x / (alpha + sigma) lies at tau = sigma / (alpha + sigma) of a straight line, and goes by (eps - x0) dtau."""
    times = schedule.timesteps(8, "flow").tolist()
    scale = lambda t: (schedule.alphas[t] + schedule.sigmas[t]).item() if t >= 0 else 1.0
    tau = lambda t: schedule.sigmas[t].item() / scale(t) if t >= 0 else 0.0
    y = noise(3, 2, 4, 4) / scale(999)
    for (t, s), x in zip(zip(times, [*times[1:], -1]), ddim(denoise, noise(3, 2, 4, 4), schedule, times), strict=True):
        x0, eps = denoise(y * scale(t), torch.full((3,), t))
        y = y + (tau(s) - tau(t)) * (eps - x0)
        assert_close(y * scale(s), x, **CLOSE)
    gaps = torch.tensor([tau(a) - tau(b) for a, b in zip(times, [*times[1:], -1])])
    assert (gaps - 1 / 8).abs().max() < 0.01                    # even, as far as a thousand levels allow


@pytest.mark.parametrize("other, options, eta", [(ddpm, {}, 1.0), (dpm_solver, {"order": 1}, 0.0),
                                                 *((euler, {"view": view}, 0.0) for view in VIEWS)])
def test_others_are_ddim(other, options, eta, schedule, denoise):
    ours, theirs = (list(sampler(denoise, noise(2, 1, 4, 4), schedule, 25, torch.Generator().manual_seed(1), **given))
                    for sampler, given in ((ddim, {"eta": eta}), (other, options)))
    assert_close(ours, theirs, **CLOSE)


@pytest.mark.parametrize("other, options, eta", [(ddpm, {}, 1.0), (dpm_solver, {"order": 1}, 0.0), (euler, {}, 0.0)])
def test_others_are_ddim_on_a_flow_too(other, options, eta):
    flow = RectifiedFlow(200)
    denoise = make_denoiser(net, flow, Cond(), prediction="u")
    ours, theirs = (list(sampler(denoise, noise(2, 1, 4, 4), flow, 25, torch.Generator().manual_seed(1), **given))
                    for sampler, given in ((ddim, {"eta": eta}), (other, options)))
    assert_close(ours, theirs, **CLOSE)


SCHEDULES = {"ddpm": NoiseSchedule(scaled_linear_betas()), "flow": RectifiedFlow(), "shifted": RectifiedFlow(1000, 2.0)}


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("name", SAMPLERS)
def test_with_the_ideal_denoiser_every_sampler_draws_the_data(name, schedule):
    """2-D points of unequal weight: every sample ends on a point, in the right proportions."""
    points = torch.tensor([[1.0, 0.0], [0.0, 1.5], [-1.0, -1.0], [-1.0, -1.0], [2.0, -2.0]])
    generator = torch.Generator().manual_seed(0)
    steps = 250 if name == "heun" else 500
    *_, x = SAMPLERS[name](ideal_denoiser(points, schedule), noise(1500, 2), schedule, steps, generator)
    distance, nearest = torch.cdist(x, points[[0, 1, 2, 4]]).min(dim=1)
    assert (distance < 0.05).double().mean() > 0.995 and distance.max() < 1.2, distance.max()
    share = torch.bincount(nearest, minlength=4) / len(x)
    assert_close(share, torch.tensor([0.2, 0.2, 0.4, 0.2]), atol=0.04, rtol=0)


def test_noise_may_explode_instead():
    """Karras' own schedule, where the signal keeps its size: the noise comes as large as its last sigma."""
    schedule = Schedule(torch.ones(400), torch.logspace(-2, 1.6, 400))
    points = torch.tensor([[1.0, 0.0], [-1.0, -1.0]])
    for sampler, steps in ((ddim, 100), (heun, 50), (dpm_solver, 50), (ddpm, 400)):
        *_, x = sampler(ideal_denoiser(points, schedule), schedule.sigmas[-1] * noise(500, 2), schedule, steps,
                        torch.Generator().manual_seed(0), spacing="karras")
        distance, nearest = torch.cdist(x, points).min(dim=1)
        assert distance.quantile(0.98) < 0.05 and abs(nearest.float().mean() - 0.5) < 0.08


@pytest.mark.parametrize("sampler, options, order", [
    (ddim, {}, 1), (euler, {}, 1), (dpm_solver, {"order": 1}, 1), (dpm_solver, {"order": 2}, 2),
    *((heun, {"view": view}, 2) for view in VIEWS)])
@pytest.mark.parametrize("s", [0.5, 1.5])
@pytest.mark.parametrize("kind", ["ddpm", "flow"])
def test_order_of_convergence_on_a_gaussian(sampler, options, order, s, kind):
    """Data N(0, s^2), whose denoiser and probability flow are known: half the step, 1 / 2**order of the error."""
    if kind == "flow":
        schedule, tau = RectifiedFlow(1025), (torch.arange(1025).double() + 1) / 1100   # up to 0.93: alpha is not 0
        schedule.alphas, schedule.sigmas = 1 - tau, tau                             # in float64
    else:
        schedule, a = NoiseSchedule(scaled_linear_betas(1025)), torch.cumprod(1 - scaled_linear_betas(1025), dim=0)
        schedule.alphas, schedule.sigmas = a.sqrt(), (1 - a).sqrt()

    def denoise(x, t):
        alpha, sigma = schedule.alpha(t, 2), schedule.sigma(t, 2)
        x0 = alpha * s**2 / (alpha**2 * s**2 + sigma**2) * x
        return x0, (x - alpha * x0) / sigma

    # from t = 1024 to 256, where lambda is smooth; x keeps its place in the distribution
    start, end = ((schedule.alphas[t] * s) ** 2 + schedule.sigmas[t] ** 2 for t in (1024, 256))
    exact = (end / start).sqrt().item()
    errors = []
    for stride in (32, 16, 8, 4):
        z_T, steps = torch.ones(1, 1, dtype=torch.float64), range(1024, 255, -stride)
        *_, at_256, _ = sampler(denoise, z_T, schedule, steps, **options)
        errors.append(abs(at_256.item() - exact))
    orders = [math.log2(a / b) for a, b in zip(errors[:-1], errors[1:], strict=True)]
    assert abs(orders[-1] - order) < 0.15 and all(abs(o - order) < 0.3 for o in orders), (errors, orders)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("steps", [1, 2, 7, 1000])
def test_any_number_of_steps_gives_that_many_states(name, steps, schedule):
    seen = []

    def denoise(x, t):
        seen.append(t)
        return 0.5 * x, torch.zeros_like(x)

    assert len(list(SAMPLERS[name](lambda x, t: (x, x), torch.ones(1, 1), schedule, min(steps, 7)))) == min(steps, 7)
    assert all(x.isfinite().all() for x in SAMPLERS[name](lambda x, t: (x.tanh(), x), noise(2, 1), RectifiedFlow(),
                                                          min(steps, 7)))
    path = list(SAMPLERS[name](denoise, torch.ones(2, 1), schedule, steps))
    assert len(path) == steps and all(x.isfinite().all() for x in path)
    assert len(seen) == (2 * steps - 1 if name == "heun" else steps)
    assert all(t.shape == (2,) and t.dtype == torch.int64 for t in seen) and seen[0][0] == 999


@pytest.mark.parametrize("name", [*SAMPLERS, "repaint"])
def test_noise_only_from_the_generator_and_no_gradient(name, schedule):
    weight = torch.ones(1, requires_grad=True)
    all_hole = torch.ones(2, 1, dtype=torch.bool)
    sampler = {**SAMPLERS, "repaint": partial(repaint, known=noise(2, 3), hole=all_hole)}[name]

    def denoise(x, t):
        return weight * x.tanh(), weight * x

    def run(seed):
        torch.manual_seed(seed)
        return list(sampler(denoise, noise(2, 3), schedule, 10, torch.Generator().manual_seed(5)))[-1]

    assert torch.equal(run(0), run(1)) and not run(0).requires_grad
    grads = [torch.is_grad_enabled() for _ in sampler(denoise, noise(2, 3), schedule, 2)]
    assert grads == [True, True], "a sampler must not switch gradients off for whoever looks at its steps"


def test_bad_input_is_refused(schedule):
    z_T = torch.zeros(1, 1)
    for sampler, bad, told in (*((ddim, {"steps": steps}, "timesteps must")
                                 for steps in ([], [5, 5], [1, 2], [1000, 1], [3, -1], [2.5])),
                               (ddpm, {"steps": 0}, "from 1 to 1000"), (ddpm, {"steps": 1001}, "from 1 to 1000"),
                               (ddim, {"eta": 1.5}, "eta must"), (dpm_solver, {"order": 3}, "order must")):
        with pytest.raises(ValueError, match=told):
            next(sampler(None, z_T, schedule, **bad))


@pytest.mark.parametrize("repeats, low, high", [(1, 0.6, 0.9), (10, 0.93, 1.0)])
def test_repaint_keeps_what_is_known_and_needs_repeats_to_agree_with_it(repeats, low, high):
    """Pictures all black or all white; one row of four is known to be white. An ideal denoiser makes no mistake."""
    g = torch.Generator().manual_seed(0)
    sign = torch.where(torch.rand(200, 1, generator=g) < 0.5, -1.0, 1.0)
    schedule = NoiseSchedule(cosine_betas())
    denoise = ideal_denoiser((sign + 0.1 * torch.randn(200, 16, generator=g)).view(-1, 1, 4, 4), schedule)
    known, hole = torch.ones(200, 1, 4, 4), (torch.arange(16) >= 4).view(1, 1, 4, 4)
    z_T = torch.randn(200, 1, 4, 4, generator=g)
    path = list(repaint(denoise, z_T, schedule, 40, g, known=known, hole=hole, repeats=repeats))
    assert len(path) == 40 and path[-1][:, :, 0].equal(known[:, :, 0])
    assert low <= (path[-1][:, :, 1:].mean((1, 2, 3)) > 0).float().mean() <= high
    halfway, level = path[19][:, :, 0], schedule.alpha(torch.tensor([499]), 1)
    assert halfway.mean() == pytest.approx(level.item(), abs=0.1)                # as noisy as the rest is
    assert halfway.std() == pytest.approx((1 - level**2).sqrt().item(), abs=0.1)


@pytest.mark.parametrize("until, batch", [(300, 3), (0, 1)])
def test_a_step_is_gone_again_through_the_forward_process(until, batch, schedule):
    """RePaint, algorithm 1, a step from 600 gone twice: back by q(x_t | x_s), whose variance is 1 - a_t / a_s."""
    z_T, known, hole = noise(batch, 2, 4, 4), noise(batch, 2, 4, 4, seed=1), noise(batch, 1, 4, 4, seed=2) > 0
    denoise = lambda x, t: (0.5 * x.tanh(), None)
    path = list(repaint(denoise, z_T, schedule, [600, until], torch.Generator().manual_seed(5), known=known, hole=hole,
                        repeats=2))
    g, x = torch.Generator().manual_seed(5), z_T
    draw = lambda: torch.randn(z_T.shape, generator=g)
    t, s, end = (torch.full((batch,), step) for step in (600, until, -1))
    a_t, a_s = schedule.alphas_cumprod[[600, until]]
    for left in (1, 0):
        mean, variance = schedule.posterior(denoise(x, t)[0], x, t, s)
        made = mean + variance.sqrt() * draw()
        x = torch.where(hole, made, a_s.sqrt() * known + (1 - a_s).sqrt() * draw())
        if left:
            x = (a_t / a_s).sqrt() * x + (1 - a_t / a_s).sqrt() * draw()
    assert_close(path[0], x, **CLOSE)
    x0, _ = denoise(x, s)                                       # to the clean image once, without noise
    assert_close(path[1], torch.where(hole, schedule.posterior(x0, x, s, end)[0], known), **CLOSE)
