"""Nothing is made in the wrong place: all parts train and draw with parameters and pictures on another device."""

from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from elsewhere import Elsewhere, WrongPlace, on_gpu

from ldm_mini.discriminator import PatchDiscriminator
from ldm_mini.dit import DiT, DiTConfig
from ldm_mini.measure import metrics
from ldm_mini.perceptual import PerceptualLoss
from ldm_mini.samplers import SAMPLERS
from ldm_mini.scenes.data import scene_stream
from ldm_mini.schedule import NoiseSchedule, RectifiedFlow, cosine_betas
from ldm_mini.train import TrainState, train_autoencoder, train_diffusion
from ldm_mini.training import build, reading
from ldm_mini.training.recipes import AUTOENCODERS, DIFFUSIONS, TEXTS

PARTS = tuple(part for part in build.PRACTICE if part != "language")
ALL = replace(DIFFUSIONS["micro"], parts=PARTS, muon_lr=1e-3)


@pytest.fixture
def gpu():
    torch.manual_seed(0)
    with Elsewhere() as gpu:
        yield gpu


@pytest.mark.parametrize("wrong", [
    lambda x: x + torch.ones(3), lambda x: torch.cat([x, torch.zeros(3)]), lambda x: F.linear(x, torch.ones(2, 3)),
    lambda x: torch.stack([x, torch.zeros_like(x).cpu()]), lambda x: x.numpy(), lambda x: x.double(),
    lambda x: torch.arange(3.0, device="cpu") * x, lambda x: torch.where(torch.ones(3) > 0, x, x),
    lambda x: torch.ones(3, dtype=torch.float64, device=x.device)])
def test_what_a_gpu_refuses(gpu, wrong):
    with pytest.raises(WrongPlace):
        wrong(gpu.put(torch.ones(3)))


@pytest.mark.parametrize("right", [
    lambda x: x * torch.tensor(2.0) + 1, lambda x: x[torch.arange(2)], lambda x: x + torch.ones(3).to(x),
    lambda x: x + torch.arange(3, device=x.device), lambda x: torch.randn(3).to(x.device) - x,
    lambda x: x.new_ones(3) + x, lambda x: torch.as_tensor([1.0], device=x.device) * x,
    lambda x: torch.zeros(3, device=x.device).copy_(torch.ones(3))])
def test_what_a_gpu_does(gpu, right):
    assert on_gpu(right(gpu.put(torch.ones(3))))
    assert gpu.put(torch.ones(3)).cpu().numpy().sum() == 3


def batches(scenes, gpu, seed=0):
    """As accelerate hands them over: tensors on the device, lists as they are."""
    for batch in scene_stream(scenes, 4, 0, 0, 0, 1, seed=seed):
        yield {key: gpu.put(v) if isinstance(v, torch.Tensor) else v for key, v in batch.items()}


@pytest.fixture
def second_stage(gpu):
    return gpu.put(build.build_diffusion(ALL, build.build_autoencoder(AUTOENCODERS["micro"])))


def trained(loop, model):
    assert all(log.loss > 0 for log in loop)
    assert all(on_gpu(p) for p in model.parameters())


@pytest.mark.parametrize("codebook", [None, 32])
def test_the_first_stage_trains(gpu, codebook):
    """Perceptual loss, critic, adaptive weight, restarts of codes or a posterior, warm up, average."""
    recipe = replace(AUTOENCODERS["micro"], codebook_size=codebook)
    model, critic = gpu.put(build.build_autoencoder(recipe)), gpu.put(PatchDiscriminator(channels=8, num_layers=1))
    state = build.train_state(recipe, model, 0, adversary=TrainState(critic))
    trained(train_autoencoder(state, batches(recipe.scenes, gpu), 2, perceptual=gpu.put(PerceptualLoss("efficientnet")),
                              disc_weight=0.5), model)
    images = next(batches(recipe.scenes, gpu))["image"]
    assert on_gpu(model(images)[0])
    assert on_gpu(model.encode(images, sample=True, generator=torch.Generator().manual_seed(0)))
    if codebook:
        quantizer = model.bottleneck.quantizer
        indices = quantizer(model.encode(images))[1]
        assert on_gpu(indices) and quantizer.perplexity(indices) >= 1 and quantizer.used_fraction() > 0


def test_the_second_stage_trains(gpu, second_stage):
    """All conditions, dropped ones too; Muon and AdamW; the average."""
    state = build.train_state(ALL, second_stage, 0)
    trained(train_diffusion(state, batches(ALL.scenes, gpu), 3, t_power=2.0), second_stage)
    with state.ema.applied(second_stage):
        assert all(on_gpu(p) for p in second_stage.parameters())


def test_words_are_learned(gpu):
    recipe = TEXTS["micro"]
    reader = gpu.put(build.build_reader(recipe))
    state = build.train_state(recipe, reader, 0)
    trained(reading.train_reader(state, reading.facts_stream(recipe.scenes, 4), 2), reader)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_draws(gpu, second_stage, sampler):
    """From a batch of the data set, which lies on the CPU, and from one that is there already."""
    batch = next(iter(scene_stream(ALL.scenes, 4, 0, 0, 0, 1, seed=1)))
    draw = partial(second_stage.sample, steps=3, sampler=sampler, guidance_scale=3.0, seed=0, negative="a car")
    images = draw(batch)
    assert on_gpu(images)
    there = {key: gpu.put(v) if isinstance(v, torch.Tensor) else v for key, v in batch.items()}
    assert torch.equal(draw(there), images)


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace", "karras", "flow"])
@pytest.mark.parametrize("make", [lambda: NoiseSchedule(cosine_betas()), RectifiedFlow])
def test_timesteps_are_the_same_there(gpu, make, spacing):
    here = make().timesteps(7, spacing)
    there = gpu.put(make()).timesteps(7, spacing)
    assert torch.equal(here, there) and not on_gpu(there)


def test_a_transformer_trains_and_draws_pixels(gpu):
    ldm = build.LatentDiffusion(None, DiT(DiTConfig(in_channels=3, width=32, depth=1, num_heads=2, input_size=32)),
                                build.NoiseSchedule(build.BETAS["cosine"]()), image_size=32)
    ldm.loss(next(batches(ALL.scenes, gpu.put(ldm) and gpu))).backward()
    assert on_gpu(ldm.sample(num=2, steps=2, seed=0))


@pytest.mark.parametrize("measure", [
    metrics.psnr, metrics.ssim, lambda x, y: metrics.masked_l1(x, y, torch.ones_like(x[:, :1])),
    lambda x, y: metrics.low_resolution_consistency(x, y[:, :, ::4, ::4]),
    lambda x, y: metrics.frechet_distance(x.flatten(1)[:, :5], y.flatten(1)[:, :5]),
    lambda x, y: metrics.precision_recall(x.flatten(1), y.flatten(1)),
    lambda x, y: metrics.mean_iou((x[:, 0] > 0).long(), (y[:, 0] > 0).long(), 2)])
def test_pictures_are_measured(gpu, measure):
    x, y = gpu.put(torch.rand(6, 3, 32, 32) * 2 - 1), gpu.put(torch.rand(6, 3, 32, 32) * 2 - 1)
    measure(x, y)
