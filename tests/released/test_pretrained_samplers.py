"""Our samplers beside diffusers' schedulers, step by step: whatever the network predicts, with guidance, on Stable
Diffusion's schedule and timesteps. More about samplers: test_samplers.py."""

import pytest
import torch

from ldm_mini.cond import Cond
from ldm_mini.diffusion import make_denoiser
from ldm_mini.samplers import ddim, ddpm, dpm_solver, euler
from ldm_mini.schedule import NoiseSchedule, linear_betas, scaled_linear_betas

diffusers = pytest.importorskip("diffusers")
THEIRS = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}
BETAS = {"sd": (scaled_linear_betas(1000, 0.00085, 0.012), dict(beta_schedule="scaled_linear", beta_start=0.00085,
                                                                beta_end=0.012)),
         "ddpm": (linear_betas(), dict(beta_schedule="linear", beta_start=1e-4, beta_end=0.02))}
SCHEDULERS = {
    "ddpm": ("DDPMScheduler", dict(clip_sample=False), ddpm, {}),
    "ddim": ("DDIMScheduler", dict(clip_sample=False, set_alpha_to_one=False), ddim, dict(clean_end=False)),
    "dpm 1": ("DPMSolverMultistepScheduler", dict(solver_order=1, algorithm_type="dpmsolver++"), dpm_solver,
              dict(order=1)),
    "dpm 2": ("DPMSolverMultistepScheduler", dict(solver_order=2, algorithm_type="dpmsolver++"), dpm_solver,
              dict(order=2)),
    "euler": ("EulerDiscreteScheduler", {}, euler, {}),
}
STEPS, SCALE = 20, 3.0
CONTEXT, NULL = (Cond(context=torch.full((3, 1, 1), value)) for value in (0.4, -0.2))


def net(x, t, cond):
    """Some smooth function of everything; no good network, so that every mistake shows."""
    return torch.tanh(0.7 * x.roll(1, dims=-1) + 0.002 * t.view(-1, 1, 1, 1) + cond.context[..., None]) + 0.3 * x


@pytest.mark.parametrize("betas", BETAS)
@pytest.mark.parametrize("prediction", THEIRS)
@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_step_is_that_of_diffusers(name, prediction, betas):
    kind, options, sampler, ours = SCHEDULERS[name]
    values, described = BETAS[betas]
    scheduler = getattr(diffusers, kind)(num_train_timesteps=1000, timestep_spacing="leading", steps_offset=1,
                                         prediction_type=THEIRS[prediction], **described, **options)
    scheduler.set_timesteps(STEPS)
    schedule = NoiseSchedule(values)
    assert schedule.timesteps(STEPS, "leading", offset=1).tolist() == [
        t for t in range(951, 0, -50)], "leading, offset 1: 951, 901, ..., 1"
    # DPM-Solver's "leading" divides otherwise there; its timesteps are handed to ours
    steps = scheduler.timesteps.long().tolist() if name.startswith("dpm") else STEPS
    z = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    draws = [torch.Generator().manual_seed(7) for _ in range(2)]
    denoise = make_denoiser(net, schedule, CONTEXT, NULL, SCALE, prediction)
    path = list(sampler(denoise, z, schedule, steps, draws[0], spacing="leading", offset=1, **ours))
    assert len(path) == len(scheduler.timesteps) == STEPS
    exploding = name == "euler"                                 # it works on x / alpha
    x, extra = z * (scheduler.init_noise_sigma if exploding else 1), {"generator": draws[1]} if name == "ddpm" else {}
    for i, (mine, t) in enumerate(zip(path, scheduler.timesteps, strict=True)):
        scaled, here = scheduler.scale_model_input(x, t), t.long().expand(3)
        u, c = net(scaled, here, NULL), net(scaled, here, CONTEXT)
        x = scheduler.step(u + SCALE * (c - u), t, x, **extra).prev_sample
        there = x / (scheduler.sigmas[i + 1] ** 2 + 1).sqrt() if exploding else x
        torch.testing.assert_close(mine, there, atol=5e-5, rtol=5e-5, msg=lambda m, i=i: f"step {i}: {m}")
