"""Predictions, loss, guidance and the ideal denoiser, each against its definition."""

import math

import pytest
import torch
from torch.testing import assert_close

from ldm_mini.cond import Cond
from ldm_mini.diffusion import (
    PREDICTIONS,
    diffusion_loss,
    draw_noise,
    draw_timesteps,
    ideal_denoiser,
    make_denoiser,
    prediction_target,
    to_x0_eps,
)
from ldm_mini.schedule import NoiseSchedule, RectifiedFlow, Schedule, scaled_linear_betas


@pytest.fixture
def schedule():
    return NoiseSchedule(scaled_linear_betas())


class Recorder:
    """out = x + cond.vector: guidance must move exactly that value."""

    def __init__(self):
        self.calls = []

    def __call__(self, x, t, cond):
        self.calls.append((x, t))
        return x + cond.vector[:, :, None, None]


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("schedule", [NoiseSchedule(scaled_linear_betas()), RectifiedFlow(1001),
                                      Schedule(torch.ones(1000), torch.logspace(-1, 1, 1000))], ids=["p", "f", "e"])
def test_a_perfect_prediction_gives_back_x0_and_eps(prediction, schedule):
    x0, eps, t = draw(5, 2, 3, 3), draw(5, 2, 3, 3, seed=1), torch.tensor([0, 10, 300, 700, 999])
    alpha, sigma = schedule.alpha(t).double(), schedule.sigma(t).double()
    out = prediction_target(prediction, x0, eps, alpha, sigma)
    back = to_x0_eps(prediction, out, alpha * x0 + sigma * eps, alpha, sigma)
    assert_close(back, (x0, eps), atol=1e-5, rtol=1e-5)


def test_the_loss_of_a_flow_is_that_of_v_with_other_weights():
    """One net that speaks u or v of the same line: |u error|^2 = |v error|^2 (cos + sin)^2 (the noise level is equal
    where tau = sin / (cos + sin))."""
    flow, x0, eps, t = RectifiedFlow(100), draw(5, 3), draw(5, 3, seed=1), torch.tensor([0, 20, 50, 80, 99])
    cos, sin = (level(t, 2) / (flow.alphas[t] ** 2 + flow.sigmas[t] ** 2).sqrt()[:, None]
                for level in (flow.alpha, flow.sigma))
    x0_hat = x0 + draw(5, 3, seed=2)
    eps_hat = (cos * x0 + sin * eps - cos * x0_hat) / sin
    u, v = (((prediction_target(p, x0_hat, eps_hat, cos, sin) - prediction_target(p, x0, eps, cos, sin)) ** 2).sum(1)
            for p in ("u", "v"))
    assert_close(u, v * (cos + sin).flatten() ** 2, rtol=1e-4, atol=0)


def test_pure_noise_has_no_x0_in_its_eps():
    with pytest.raises(ValueError, match="pure noise"):
        make_denoiser(None, RectifiedFlow(10), Cond())


def test_v_is_the_velocity_of_the_circle():
    phi = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)  # alpha = cos, sigma = sin
    x0, eps = draw(4), draw(4, seed=1)
    velocity = torch.autograd.functional.jacobian(lambda p: p.cos() * x0 + p.sin() * eps, phi)
    assert_close(prediction_target("v", x0, eps, phi.cos(), phi.sin()).detach(), velocity)


def test_unknown_predictions_are_refused():
    with pytest.raises(KeyError, match="noise"):
        prediction_target("noise", *[torch.zeros(1)] * 4)
    with pytest.raises(ValueError, match="prediction must be one of"):
        to_x0_eps("epsilon", *[torch.zeros(1)] * 4)


@pytest.mark.parametrize("prediction, factor", [("eps", lambda snr: snr), ("x0", torch.ones_like),
                                                ("v", lambda snr: snr + 1),
                                                ("u", lambda snr: ((1 + snr.sqrt()) ** 2))])
def test_each_loss_is_a_weighted_loss_on_x0(prediction, factor, schedule):
    x0, eps, t = draw(6, 1, 4, 4).float(), draw(6, 1, 4, 4, seed=1).float(), torch.tensor([30, 100, 200, 400, 600, 800])
    guess = x0 + 0.1 * draw(6, 1, 4, 4, seed=2).float()

    def net(x_t, t, cond):  # believes in `guess`, and says so in its own language
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        return prediction_target(prediction, guess, (x_t - alpha * guess) / sigma, alpha, sigma)

    loss = diffusion_loss(net, schedule, x0, Cond(), prediction, t=t, eps=eps, reduce=False)
    expected = factor(schedule.snr(t)) * (guess - x0).square().mean(dim=(1, 2, 3))
    assert_close(loss, expected, rtol=1e-2, atol=1e-6)
    assert_close(diffusion_loss(net, schedule, x0, Cond(), prediction, t=t, eps=eps), loss.mean())


def test_min_snr_is_one_line(schedule):
    x0, t = torch.zeros(2, 1, 2, 2), torch.tensor([0, 900])
    loss = diffusion_loss(lambda x, t, cond: 0 * x, schedule, x0, Cond(), t=t, eps=torch.ones(2, 1, 2, 2), reduce=False,
                          weight=lambda snr: snr.clamp(max=5) / snr)
    assert_close(loss, torch.tensor([5 / schedule.snr(t)[0], 1]))


def test_loss_draws_uniform_steps_and_the_same_ones_from_the_same_seed(schedule):
    net = Recorder()
    for seed in (0, 0, 1):
        diffusion_loss(net, schedule, torch.zeros(4000, 1, 1, 1), Cond(vector=torch.zeros(4000, 1)),
                       generator=torch.Generator().manual_seed(seed))
    (x, t), again, (_, other) = net.calls
    assert torch.equal(x, again[0]) and torch.equal(t, again[1]) and not torch.equal(t, other)
    assert t.min() >= 0 and t.max() <= 999 and len(t.unique()) > 900 and abs(t.double().mean() - 499.5) < 20


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_steps_come_from_the_generator_alone(power, schedule):
    def drawn(global_seed, seed):
        torch.manual_seed(global_seed)
        return draw_timesteps(schedule, 50, "cpu", torch.Generator().manual_seed(seed), power).tolist()

    assert drawn(0, 3) == drawn(1, 3) != drawn(1, 4)


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0, 4.0])
def test_steps_to_a_power_have_the_distribution_they_should(power, schedule):
    t = draw_timesteps(schedule, 20_000, "cpu", torch.Generator().manual_seed(0), power)
    assert t.dtype == torch.int64 and t.min() >= 0 and t.max() <= 999
    at = torch.linspace(0.05, 0.95, 19)                         # P(t < a T) = a^power; 2% is four standard errors
    found = torch.stack([(t < 1000 * a).double().mean() for a in at])
    assert (found - at**power).abs().max() < 0.02
    # there float32 rounds u^(1 / power) to 1, and T is no step
    assert draw_timesteps(schedule, 100, "cpu", torch.Generator().manual_seed(0), 1e9).eq(999).all()


def test_the_loss_of_a_half_precision_network_is_counted_in_float32(schedule):
    """Errors of 300 have a square of 90,000, beyond float16; the mean of 4096 small ones would lose its digits."""
    for factor in (300.0, 0.001):
        x0 = torch.zeros(1, 1, 64, 64, dtype=torch.float16)
        loss = diffusion_loss(lambda x, t, cond: torch.zeros_like(x0), schedule, x0, Cond(), t=torch.tensor([500]),
                              eps=torch.full_like(x0, factor))
        assert loss.dtype == torch.float32
        assert_close(loss, torch.tensor(factor).half().float() ** 2)


def test_loss_refuses_an_output_that_would_broadcast(schedule):
    with pytest.raises(ValueError, match="out_channels"):
        diffusion_loss(lambda x, t, cond: x[:, :1], schedule, torch.zeros(2, 3, 4, 4), Cond())


@pytest.mark.parametrize("scale", [0.0, 0.5, 2.0, 7.5])
def test_guidance_is_u_plus_s_times_c_minus_u_in_one_call(scale, schedule):
    net, c, u = Recorder(), Cond(vector=torch.tensor([[1.0], [2.0]])), Cond(vector=torch.tensor([[-3.0], [0.5]]))
    x, t = torch.randn(2, 1, 4, 4), torch.tensor([100, 700])
    x0, eps = make_denoiser(net, schedule, c, u, guidance_scale=scale)(x, t)
    expected = x + (u.vector + scale * (c.vector - u.vector))[:, :, None, None]
    assert_close(eps, expected)
    assert_close(x0, (x - schedule.sigma(t) * expected) / schedule.alpha(t))
    assert len(net.calls) == 1 and net.calls[0][1].tolist() == [100, 700, 100, 700]


def test_without_guidance_there_is_no_second_half(schedule):
    net, cond = Recorder(), Cond(vector=torch.ones(2, 1))
    _, eps = make_denoiser(net, schedule, cond)(torch.zeros(2, 1, 4, 4), torch.tensor([5, 5]))
    assert len(net.calls[0][0]) == 2
    assert_close(eps, torch.ones(2, 1, 4, 4))
    with pytest.raises(ValueError, match="needs `null`"):
        make_denoiser(net, schedule, cond, guidance_scale=2.0)


def test_guidance_means_the_same_for_every_prediction(schedule):
    """x0, eps and v are affine in each other at fixed x_t, so guiding one guides all."""
    c, u = Cond(vector=torch.ones(1, 1)), Cond(vector=-torch.ones(1, 1))
    x, t = torch.randn(1, 1, 4, 4), torch.tensor([400])
    alpha, sigma = schedule.alpha(t).repeat(2, 1, 1, 1), schedule.sigma(t).repeat(2, 1, 1, 1)
    results = []
    for prediction in PREDICTIONS:
        def net(x_t, t, cond, prediction=prediction):
            eps = torch.tanh(x_t + cond.vector[:, :, None, None])
            return prediction_target(prediction, (x_t - sigma * eps) / alpha, eps, alpha, sigma)
        results.append(make_denoiser(net, schedule, c, u, 3.0, prediction)(x, t))
    for result in results[1:]:
        assert_close(result, results[0], atol=1e-4, rtol=1e-4)


def test_clipping_keeps_x0_and_eps_consistent(schedule):
    x, t = 3 * torch.randn(2, 1, 4, 4), torch.tensor([200, 800])
    x0, eps = make_denoiser(lambda x, t, cond: 0.1 * x, schedule, Cond(), clip_x0=1.0)(x, t)
    assert x0.abs().max() == 1.0
    assert_close(schedule.add_noise(x0, eps, t), x, atol=1e-5, rtol=1e-5)


def test_ideal_denoiser_of_two_points_is_tanh(schedule):
    """For x0 = +1 or -1 with equal chance, E[x0 | x_t] = tanh(alpha x_t / sigma^2)."""
    t = torch.arange(0, 1000, 50)
    x_t = torch.linspace(-2, 2, len(t))[:, None]
    x0, eps = ideal_denoiser(torch.tensor([[1.0], [-1.0]]), schedule)(x_t, t)
    a = schedule.alphas_cumprod[t][:, None]
    assert_close(x0, torch.tanh(a.sqrt() * x_t / (1 - a)), atol=1e-4, rtol=1e-4)
    assert_close(a.sqrt() * x0 + (1 - a).sqrt() * eps, x_t, atol=1e-5, rtol=1e-5)


def test_ideal_denoiser_is_finite_far_from_all_points(schedule):
    points = torch.randn(10, 3, 2, 2)
    x0, eps = ideal_denoiser(points, schedule)(points[:4] + 1000, torch.tensor([0, 1, 500, 999]))
    assert x0.isfinite().all() and eps.isfinite().all() and x0.shape == (4, 3, 2, 2)


def test_no_denoiser_has_a_lower_loss_than_the_ideal_one(schedule):
    points = draw(5, 2).float()
    which = torch.arange(4000) % 5
    denoise = ideal_denoiser(points, schedule)
    args = dict(t=torch.full((4000,), 300), eps=draw(4000, 2, seed=3).float(), prediction="x0")

    def loss(change):
        net = lambda x, t, cond: change(denoise(x, t)[0])
        return diffusion_loss(net, schedule, points[which], Cond(), **args).item()

    best = loss(lambda x0: x0)
    assert best > 0.01, "at this noise level nobody can know"
    for change in (lambda x0: x0 + 0.1, lambda x0: 0.9 * x0, lambda x0: 1.1 * x0):
        assert loss(change) > best * 1.01


def test_noise_comes_from_the_generators_device(schedule):
    generator = torch.Generator().manual_seed(3)
    noise = draw_noise(torch.empty(2, 3, dtype=torch.float64), generator)
    expected = torch.randn(2, 3, generator=torch.Generator().manual_seed(3)).double()
    assert_close(noise, expected, rtol=0, atol=0)
    assert draw_timesteps(schedule, 3, "cpu", generator).shape == (3,) and math.isfinite(draw_noise(noise).sum())
