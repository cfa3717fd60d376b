"""The forward process: against diffusers, against the paper's table, and against Bayes' rule done by brute force."""

import json

import pytest
import torch
from torch.testing import assert_close

from ldm_mini.hub import build, describe
from ldm_mini.schedule import NoiseSchedule, cosine_betas, linear_betas, scaled_linear_betas

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


@pytest.fixture(params=["linear", "scaled_linear", "cosine"])
def schedule(request):
    return NoiseSchedule({"kind": request.param, "steps": 100})


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
    a = schedule.alphas_cumprod.double()
    grid = torch.linspace(-12, 12, 200_001, dtype=torch.float64)
    step = a[t] / a[s]  # q(x_t | x_s) = N(sqrt(step) x_s, 1 - step)
    log = -0.5 * (grid - a[s].sqrt() * x0) ** 2 / (1 - a[s]) - 0.5 * (x_t - step.sqrt() * grid) ** 2 / (1 - step)
    weight = torch.softmax(log, dim=0)
    mean = (weight * grid).sum()
    variance = (weight * (grid - mean) ** 2).sum()
    asked = torch.tensor([[x0]]), torch.tensor([[x_t]]), torch.tensor([t])
    ours = schedule.posterior(*asked, torch.tensor([s]))
    assert_close(ours[0].double().squeeze(), mean, atol=2e-4, rtol=1e-3)
    assert_close(ours[1].double().squeeze(), variance, atol=1e-6, rtol=2e-3)
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
        a = schedule.alphas_cumprod[step]
        assert_close(x_t[i], a.sqrt() * x0[i] + (1 - a).sqrt() * eps[i])
    assert_close(schedule.add_noise(x0, eps, torch.full((3,), -1)), x0, rtol=0, atol=0)
    assert_close(schedule.snr(t), (schedule.alpha(t) / schedule.sigma(t)).flatten() ** 2)
    assert schedule.alpha(t, ndim=2).shape == (3, 1) and schedule.sigma(t, ndim=5).shape == (3, 1, 1, 1, 1)


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
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


@pytest.mark.parametrize("betas", [linear_betas(), scaled_linear_betas(400, 0.00085, 0.012), cosine_betas(77),
                                   linear_betas(1), torch.rand(50, dtype=torch.float64) / 3 + 0.01])
def test_config_rebuilds_the_same_schedule(betas):
    schedule = NoiseSchedule(betas)
    again = build(json.loads(json.dumps(describe(schedule))))
    assert torch.equal(schedule.betas, again.betas) and torch.equal(schedule.alphas_cumprod, again.alphas_cumprod)


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
