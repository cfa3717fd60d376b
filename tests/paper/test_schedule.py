"""The forward process: against diffusers, against the paper's table, and against Bayes' rule done by brute force."""

import json

import pytest
import torch
from torch.testing import assert_close

from ldm_mini.hub import build, describe
from ldm_mini.schedule import NoiseSchedule, RectifiedFlow, Schedule, cosine_betas, linear_betas, scaled_linear_betas

CLOSE = dict(atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("betas, theirs", [
    (linear_betas(), dict(beta_schedule="linear", beta_start=1e-4, beta_end=2e-2)),
    (scaled_linear_betas(), dict(beta_schedule="scaled_linear", beta_start=0.0015, beta_end=0.0195)),
    (scaled_linear_betas(500, 0.00085, 0.012), dict(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)),
    (cosine_betas(), dict(beta_schedule="squaredcos_cap_v2")),
])
def test_betas_and_alphas_are_those_of_diffusers(betas, theirs):
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDPMScheduler(num_train_timesteps=len(betas), **theirs)
    schedule = NoiseSchedule(betas)
    assert_close(schedule.betas, scheduler.betas, **CLOSE)
    assert_close(schedule.alphas_cumprod, scheduler.alphas_cumprod, **CLOSE)


@pytest.mark.parametrize("betas, last", [
    (scaled_linear_betas(1000, 0.0015, 0.0155), 6.69e-4), (scaled_linear_betas(), 1.42e-4),
    (scaled_linear_betas(1000, 0.0015, 0.0205), 9.69e-5), (scaled_linear_betas(1000, 0.00085, 0.012), 4.66e-3),
    (linear_betas(), 4.04e-5)])
def test_the_last_noise_level_is_that_of_the_released_configs(betas, last):
    assert float(f"{NoiseSchedule(betas).alphas_cumprod[-1].item():.2e}") == last


def exploding(steps=100):
    """Karras': the signal keeps its size, the noise grows."""
    return Schedule(torch.ones(steps), torch.logspace(-2, 1.5, steps))


@pytest.fixture(params=["linear", "scaled_linear", "cosine", "flow", "shifted flow", "exploding"])
def schedule(request):
    others = {"flow": RectifiedFlow(100), "shifted flow": RectifiedFlow(100, 3.0), "exploding": exploding()}
    return others.get(request.param) or NoiseSchedule({"kind": request.param, "steps": 100})


def test_the_chain_of_small_steps_is_the_one_big_step():
    schedule = NoiseSchedule(cosine_betas(100))
    mean, variance = 1.0, 0.0  # of x_t, given x_0 = 1
    for t, beta in enumerate(schedule.betas.double().tolist()):  # q(x_t | x_{t-1}): DDPM eq. 2
        mean, variance = (1 - beta) ** 0.5 * mean, (1 - beta) * variance + beta
        now = torch.tensor([t])
        assert schedule.alpha(now).item() == pytest.approx(mean, abs=1e-5)
        assert schedule.sigma(now).item() == pytest.approx(variance**0.5, abs=1e-5)


@pytest.mark.parametrize("t, s", [(1, 0), (50, 49), (50, 20), (99, 3), (99, 98)])
def test_posterior_is_bayes_rule_on_a_grid(schedule, t, s):
    x0, x_t = 0.7, -0.4
    (a_t, b_t), (a_s, b_s) = ((schedule.alphas[u].double(), schedule.sigmas[u].double()) for u in (t, s))
    # x_t = kept x_s + fresh noise, whose variances add up to those of t
    kept, grid = a_t / a_s, torch.linspace(-99, 99, 1_000_001, dtype=torch.float64)
    log = -0.5 * ((grid - a_s * x0) / b_s) ** 2 - 0.5 * (x_t - kept * grid) ** 2 / (b_t**2 - (kept * b_s) ** 2)
    weight = torch.softmax(log, dim=0)
    mean = (weight * grid).sum()
    variance = (weight * (grid - mean) ** 2).sum()
    asked = torch.tensor([[x0]]), torch.tensor([[x_t]]), torch.tensor([t])
    ours = schedule.posterior(*asked, torch.tensor([s]))
    assert_close(ours[0].double().squeeze(), mean, atol=2e-4, rtol=1e-3)
    assert_close(ours[1].double().squeeze(), variance, atol=1e-6, rtol=3e-3)
    if s == t - 1:
        assert_close(schedule.posterior(*asked), ours, rtol=0, atol=0)


def test_posterior_of_the_first_step_is_the_clean_image(schedule):
    x0, x_t = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    mean, variance = schedule.posterior(x0, x_t, torch.zeros(2, dtype=torch.int64))
    assert_close(mean, x0, rtol=1e-4, atol=1e-4)
    assert mean.shape == x0.shape and variance.shape == (2, 1, 1, 1) and not variance.any()


def test_add_noise_scales_every_sample_by_its_own_level(schedule):
    x0, eps, t = torch.randn(3, 2, 4, 4), torch.randn(3, 2, 4, 4), torch.tensor([0, 50, 99])
    x_t = schedule.add_noise(x0, eps, t)
    for i, step in enumerate(t.tolist()):
        assert_close(x_t[i], schedule.alphas[step] * x0[i] + schedule.sigmas[step] * eps[i])
    assert_close(schedule.add_noise(x0, eps, torch.full((3,), -1)), x0, rtol=0, atol=0)
    assert_close(schedule.snr(t), (schedule.alpha(t) / schedule.sigma(t)).flatten() ** 2)
    assert schedule.alpha(t, ndim=2).shape == (3, 1) and schedule.sigma(t, ndim=5).shape == (3, 1, 1, 1, 1)


def test_powers_add_up_to_one_in_ddpm_and_amplitudes_in_a_flow():
    t = torch.arange(-1, 100)
    ddpm, flow = NoiseSchedule(cosine_betas(100)), RectifiedFlow(100)
    assert_close(ddpm.alpha(t) ** 2 + ddpm.sigma(t) ** 2, torch.ones(101, 1, 1, 1))
    assert_close(flow.alpha(t) + flow.sigma(t), torch.ones(101, 1, 1, 1))
    assert torch.equal(ddpm.alphas, ddpm.alphas_cumprod.sqrt())
    assert flow.sigma(t, 1)[[0, 1, -1]].tolist() == pytest.approx([0, 0.01, 1]) and flow.snr(t)[-1] == 0
    # SD3's shift by s: as if sigma / alpha were s times as large
    ratio = lambda schedule: schedule.sigmas[:-1] / schedule.alphas[:-1]
    assert_close(ratio(RectifiedFlow(100, 3.0)), 3 * ratio(flow), rtol=1e-4, atol=0)


@pytest.mark.parametrize("steps", [1, 2, 5, 18, 60, 100])
def test_timesteps_can_be_even_in_the_noise_level(schedule, steps):
    ratio = (schedule.sigmas / schedule.alphas).double()
    top, low, i = ratio[-1].clamp(max=80), ratio[0], torch.arange(steps).double() / max(steps - 1, 1)
    karras = (top ** (1 / 7) + i * (low ** (1 / 7) - top ** (1 / 7))) ** 7        # Karras et al. 2022, eq. 5
    wanted = {"karras": karras / (1 + karras), "flow": ratio_to_time(ratio[-1]) * (1 - torch.arange(steps) / steps)}
    times = ratio_to_time(ratio)
    for spacing, levels in wanted.items():
        t = schedule.timesteps(steps, spacing)
        assert t.shape == (steps,) and t.dtype == torch.int64 and (t.diff() < 0).all() and t[0] == 99 and t[-1] >= 0
        nearest = (times - levels[:, None]).abs().argmin(1)
        if (nearest.diff() < 0).all():
            assert torch.equal(t[1:], nearest[1:]), spacing
        elif steps == 100:
            assert t.tolist() == list(range(99, -1, -1))


def ratio_to_time(ratio):
    return torch.where(ratio.isinf(), 1.0, ratio / (1 + ratio))


def test_even_steps_of_a_flow_are_even_in_its_time():
    flow = RectifiedFlow(1000)
    for steps in (1, 2, 4, 8, 20, 250, 1000):
        assert torch.equal(flow.timesteps(steps, "flow"), flow.timesteps(steps, "trailing"))


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace", "karras", "flow"])
@pytest.mark.parametrize("offset", [0, 1])
def test_timesteps_are_exactly_as_many_as_asked(spacing, offset):
    schedule = NoiseSchedule(scaled_linear_betas())
    for steps in range(1, 1001):
        t = schedule.timesteps(steps, spacing, offset)
        assert t.shape == (steps,) and t.dtype == torch.int64, steps
        assert 0 <= t[-1] and t[0] <= 999 and (t[:-1] > t[1:]).all(), steps
        assert t[0] >= 999 - 1000 // steps - 1, f"{steps} steps begin at {t[0]}, where there is still signal"


def test_timesteps_are_those_of_diffusers():
    diffusers = pytest.importorskip("diffusers")
    schedule = NoiseSchedule(scaled_linear_betas())
    for spacing, offset, counts in (("leading", 0, [1, 2, 10, 20, 50, 100, 250, 500]),
                                    ("leading", 1, [1, 2, 10, 20, 50, 100, 250, 500]),
                                    ("trailing", 0, [1, 3, 7, 20, 33, 50, 150, 400, 999]),
                                    ("linspace", 0, [2, 3, 7, 20, 33, 50, 150, 400, 1000])):
        for steps in counts:
            theirs = diffusers.DDIMScheduler(timestep_spacing=spacing, steps_offset=offset)
            theirs.set_timesteps(steps)
            assert schedule.timesteps(steps, spacing, offset).tolist() == theirs.timesteps.tolist(), (spacing, steps)


def test_timesteps_of_the_released_ddim_where_it_works():
    schedule = NoiseSchedule(scaled_linear_betas())
    for steps in (1, 2, 4, 5, 8, 10, 20, 25, 40, 50, 100, 125, 200, 250, 500):
        theirs = (torch.arange(0, 1000, 1000 // steps) + 1).flip(0)
        assert torch.equal(schedule.timesteps(steps, "leading", offset=1), theirs)


def test_the_rims_of_what_is_allowed():
    """A beta too small for float32 repeats a level; a flow of one step is noise alone."""
    schedule, flow = NoiseSchedule(torch.tensor([0.5, 1e-9], dtype=torch.float64)), RectifiedFlow(1)
    assert schedule.alphas[0] == schedule.alphas[1] and (flow.alphas.item(), flow.sigmas.item()) == (0.0, 1.0)


def test_bad_input_is_refused():
    schedule = NoiseSchedule(linear_betas())
    for steps in (0, -1, 1001, 2.5):
        with pytest.raises(ValueError, match="from 1 to 1000"):
            schedule.timesteps(steps)
    with pytest.raises(ValueError, match="spacing must be"):
        schedule.timesteps(10, "cubic")
    for betas in (torch.tensor([0.1, 1.0]), torch.tensor([0.0, 0.1]), torch.ones(2, 2) / 2):
        with pytest.raises(ValueError, match="betas must be"):
            NoiseSchedule(betas)
    for alphas, sigmas in (([1.0], [0.0]), ([-1.0], [1.0]), ([1.0, 1.0], [1.0]), ([], []), ([0.5, 0.9], [0.5, 0.1]),
                           ([1.0, 0.5], [0.0, 0.5])):
        with pytest.raises(ValueError, match="less signal in the noise"):
            Schedule(torch.tensor(alphas), torch.tensor(sigmas))
    for arguments in ((0,), (10, 0.0), (10, float("inf"))):
        with pytest.raises(ValueError, match="positive number"):
            RectifiedFlow(*arguments)


@pytest.mark.parametrize("betas", [linear_betas(), scaled_linear_betas(400, 0.00085, 0.012), cosine_betas(77),
                                   linear_betas(1), torch.rand(50, dtype=torch.float64) / 3 + 0.01])
def test_config_rebuilds_the_same_schedule(betas):
    schedule = NoiseSchedule(betas)
    again = build(json.loads(json.dumps(describe(schedule))))
    assert torch.equal(schedule.betas, again.betas) and torch.equal(schedule.alphas_cumprod, again.alphas_cumprod)


@pytest.mark.parametrize("schedule", [RectifiedFlow(), RectifiedFlow(50, 3.0), exploding()], ids=["flow", "3", "e"])
def test_other_schedules_are_rebuilt_exactly_too(schedule):
    again = build(json.loads(json.dumps(describe(schedule))))
    assert type(again) is type(schedule) and again.num_steps == schedule.num_steps
    assert torch.equal(schedule.alphas, again.alphas) and torch.equal(schedule.sigmas, again.sigmas)


def test_config_has_names_where_there_are_names():
    scaled_linear = {"kind": "scaled_linear", "steps": 1000, "start": 0.0015, "end": 0.0195}
    assert NoiseSchedule(scaled_linear_betas()).config == scaled_linear
    assert NoiseSchedule(cosine_betas(300)).config == {"kind": "cosine", "steps": 300}


def test_constants_stay_float32_and_out_of_the_weights():
    schedule = NoiseSchedule(scaled_linear_betas())
    before = schedule.alphas_cumprod.clone()
    model = torch.nn.ModuleDict({"schedule": schedule, "net": torch.nn.Linear(2, 2)}).half()
    assert model["net"].weight.dtype == torch.float16 and torch.equal(schedule.alphas_cumprod, before)
    assert schedule.alphas_cumprod.dtype == torch.float32 and not schedule.state_dict()
