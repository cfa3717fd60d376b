"""Checks of the assignments: wrong solutions fail with a message that helps; challenges are worth what is said."""

import time
from functools import partial

import pytest
import torch
from solutions import spoiled, try_all, variant
from torch import nn

from ldm_mini import checks
from ldm_mini.autoencoder import Autoencoder, AutoencoderConfig
from ldm_mini.checks import a2_sampler, a3_first_stage
from ldm_mini.cond import Cond, Conditioner, batch_size
from ldm_mini.kl import KLBottleneck
from ldm_mini.samplers import ddim, ddpm, dpm_solver, euler, heun
from ldm_mini.train import TrainState, train_autoencoder


def palette(images, bands, shift=1.0, scale=0.5, order=1, rgb=1, whole=False, columns=False, moved=True):
    images = images.mT if columns else images
    colours = ((images + shift) * scale).reshape(len(images), 3, bands, -1).mean(-1)
    colours = colours[:, ::rgb] if rgb > 0 else colours.flip(1)
    colours = colours if order > 0 else colours.flip(2)
    colours = colours.mean(2, keepdim=True).expand_as(colours) if whole else colours
    return colours.mT if moved else colours


def by_a_loop(images, bands):
    height = images.shape[2] // bands
    return torch.stack([(images[:, :, i * height:(i + 1) * height].mean((2, 3)) + 1) / 2 for i in range(bands)], 1)


def error(images, wanted, absolute=True, power=1, mean=True, each=True, scale=0.5):
    difference = palette(images, wanted.shape[1], shift=1.0 if scale == 0.5 else 0.0, scale=scale) - wanted
    difference = (difference.abs() if absolute else difference) ** power
    out = difference.flatten(1).mean(1) if mean else difference.flatten(1).sum(1)
    return out if each else out.mean()


class Palette(Conditioner):
    keys = ("palette",)

    def __init__(self, bands, vector_dim):
        super().__init__()
        self.read, self.nothing = nn.Linear(3 * bands, vector_dim), nn.Parameter(torch.randn(vector_dim))

    def encode(self, batch):
        return Cond(vector=self.read(batch["palette"].flatten(1)))

    def null(self, batch):
        return Cond(vector=self.nothing.expand(batch_size(batch), -1))


class ByBand(Conditioner):
    """A table of weights for each band, and a row of a table for none."""

    keys = ("palette",)

    def __init__(self, bands, vector_dim):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(bands, 3, vector_dim))
        self.none = nn.Embedding(1, vector_dim)

    def encode(self, batch):
        return Cond(vector=torch.einsum("bkc,kcd->bd", batch["palette"] + 0.5, self.weight))

    def null(self, batch):
        return Cond(vector=self.none(torch.zeros(batch_size(batch), dtype=torch.int64)))


class Mean(Palette):
    """Forgets which colour is on top."""

    def __init__(self, bands, vector_dim):
        super().__init__(1, vector_dim)

    def encode(self, batch):
        return Cond(vector=self.read(batch["palette"].mean(1)))


class Fixed(Palette):
    def __init__(self, bands, vector_dim):
        super().__init__(bands, vector_dim)
        del self.nothing
        self.register_buffer("nothing", torch.randn(vector_dim))


class Unused(Palette):
    def __init__(self, bands, vector_dim):
        super().__init__(bands, vector_dim)
        self.forgotten = nn.Linear(2, 2)


def with_encode(function):
    return variant(Palette, encode=lambda self, batch: function(self, batch["palette"]))


def with_null(function):
    return variant(Palette, null=function)


def first_stage(channels=28, latent=4, patch=4):
    config = AutoencoderConfig(downsample_factor=patch, latent_channels=latent, channels=channels, channel_mults=(1,),
                               patch_size=patch, num_res_blocks=1, mid_attn=False, groups=4)
    return Autoencoder(config, KLBottleneck(latent))


def frozen():
    return first_stage().requires_grad_(False)


CORRECT = {
    checks.palette: [palette, by_a_loop],
    checks.palette_conditioner: [Palette, ByBand],
    checks.palette_error: [error],
    checks.first_stage_budget: [first_stage, partial(first_stage, 16, 16, 8)],
}
MUTANTS = {
    checks.palette: spoiled(
        palette, ({"shift": 0, "scale": 1}, "colours in"), ({"order": -1}, "top band"), ({"rgb": -1}, "red, green"),
        ({"whole": True}, "its own mean"), ({"columns": True}, "lie across"), ({"moved": False}, "colours come last")),
    checks.palette_conditioner: [
        (variant(Palette, keys=()), "keys should be"),
        (nn.Linear, "should be a Conditioner"),
        (Mean, "does not know which colour is on top"),
        (Fixed, "cannot be learned"),
        (Unused, "no gradient reaches forgotten"),
        (with_encode(lambda self, p: Cond(context=self.read(p.flatten(1))[:, None])), "a vector and nothing else"),
        (with_encode(lambda self, p: self.read(p.flatten(1))), "should return a Cond"),
        (with_encode(lambda self, p: Cond(vector=self.read(p.flatten(1))[:1])), "has shape"),
        (with_encode(lambda self, p: Cond(vector=self.read((p - p.mean(0)).flatten(1)))), "mixes the pictures"),
        (with_encode(lambda self, p: Cond(vector=self.read(p.flatten(1) * torch.rand(1)))), "at each call"),
        (with_encode(lambda self, p: Cond(vector=self.read((p * torch.tensor([1, 1, 0])).flatten(1)))), "channel 2"),
        (with_null(lambda self, b: Cond(vector=self.nothing + b["palette"].mean((1, 2))[:, None])), "must not read"),
        (with_null(lambda self, b: Cond(vector=self.nothing.expand(len(b["palette"]), -1))), "without palettes"),
        (with_null(lambda self, b: Cond(vector=self.read(torch.zeros(batch_size(b), self.read.in_features)))),
         "for black"),
    ],
    checks.palette_error: spoiled(
        error, ({"absolute": False}, "abs"), ({"power": 2}, "not squares"), ({"mean": False}, "a mean, so that"),
        ({"each": False}, "for each picture"), ({"scale": 1.0}, "palettes in")),
    checks.first_stage_budget: [
        (partial(first_stage, 96), "150,000 are allowed"), (partial(first_stage, latent=8), "256 are allowed"),
        (frozen, "no gradient"), (lambda: nn.Linear(2, 2), "encode raised")],
}
test_right_solutions_pass, test_wrong_ones_fail_with_a_hint, test_the_stub_is_named = try_all(CORRECT, MUTANTS)


@pytest.fixture
def small(monkeypatch):
    """Challenges of little work: two pictures; half a second."""
    monkeypatch.setattr(a2_sampler, "PICTURES", 2)
    monkeypatch.setattr(a3_first_stage, "SECONDS", 0.5)


def twice(denoise, z_T, schedule, steps, generator):
    yield from ddim(denoise, z_T, schedule, 2 * steps)


def by_another_copy(denoise, z_T, schedule, steps, generator):
    """A network of another class, asked by a denoiser of its own."""
    from ldm_mini.latent_diffusion import LatentDiffusion

    model = LatentDiffusion.from_pretrained("emoji-scenes")
    model.net.__class__ = type("Mine", (type(model.net),), {})
    more = model.denoiser({"caption": ["a dog"] * len(z_T)}, 3.0)
    more(z_T, torch.full((len(z_T),), 500))
    yield from ddim(denoise, z_T, schedule, steps)


def keeps_the_denoiser(denoise, z_T, schedule, steps, generator, kept=[]):
    """At the second call it goes on with the first one's network too."""
    kept.append(denoise)
    for ask in kept[:-1]:
        ask(z_T, torch.full((len(z_T),), 500))
    yield from ddim(denoise, z_T, schedule, steps)


def gives(value):
    return lambda denoise, z_T, schedule, steps, generator: iter([value(z_T)])


@pytest.mark.parametrize("sampler, hint", [
    (twice, "16 evaluations"), (by_another_copy, "9 evaluations"),
    (gives(lambda z: z), "times as far"), (ddpm, "times as far"),
    (gives(lambda z: z * torch.nan), "finite"), (gives(lambda z: z[:1]), "z_T's shape"),
    (gives(lambda z: None), "shape"), (lambda *inputs, **options: None, "raised TypeError")])
def test_a_sampler_that_breaks_the_rules_has_no_points(small, sampler, hint):
    with pytest.raises(checks.CheckFailed, match=hint):
        checks.eight_evaluations(sampler)


def test_a_sampler_may_keep_nothing_that_evaluates(small):
    checks.eight_evaluations(keeps_the_denoiser)
    with pytest.raises(checks.CheckFailed, match="9 evaluations"):
        checks.eight_evaluations(keeps_the_denoiser)


def spaced(sampler, spacing="flow"):
    return lambda denoise, z_T, schedule, steps, generator: sampler(denoise, z_T, schedule, steps, spacing=spacing)


def predict_and_correct(denoise, z_T, schedule, steps, generator):
    """As UniPC: each evaluation mends the step that led to it, and leads the next one."""
    def step(x, t, s, x0):
        (a_t, b_t), (a_s, b_s) = ((schedule.alpha(u, 4), schedule.sigma(u, 4)) for u in (t, s))
        return b_s / b_t * x + (a_s - a_t * b_s / b_t) * x0

    times = [torch.full((len(z_T),), t) for t in [*schedule.timesteps(steps, "flow").tolist(), -1]]
    x, before = z_T, None
    for t, s in zip(times, times[1:]):
        x0 = denoise(x, t)[0]
        if before is not None:
            x_before, t_before, x0_before = before
            x = step(x_before, t_before, t, (x0_before + x0) / 2)
        before = x, t, x0
        x = step(x, t, s, x0)
        yield x


def jittered(denoise, z_T, schedule, steps, generator):
    """DDIM with timesteps moved by chance: luck."""
    times = schedule.timesteps(steps, "trailing")
    moved = times[1:] + torch.randint(-9, 10, (steps - 1,), generator=generator)
    yield from ddim(denoise, z_T, schedule, [int(times[0]), *moved.tolist()])


def two_evaluations_a_step(denoise, z_T, schedule, steps, generator):
    yield from heun(denoise, z_T, schedule, steps // 2, spacing="flow")


@pytest.mark.parametrize("sampler, points", [
    (ddim, 2), (euler, 2),  # as far as itself, by another way
    (jittered, (1, 2)), (two_evaluations_a_step, (1, 2)), (spaced(ddim, "leading"), (1, 2)),
    (dpm_solver, 2), (spaced(ddim), 2),  # a better order or better timesteps alone
    (spaced(dpm_solver), 3), (predict_and_correct, 3)])
def test_a_better_solver_earns_more_and_luck_does_not(sampler, points):
    assert checks.eight_evaluations(sampler) in (points if isinstance(points, tuple) else (points,))


def test_three_points_need_to_be_sure(monkeypatch):
    ratios = {"sure": torch.tensor([0.5, 0.6, 0.7]), "not": torch.tensor([0.1, 1.2, 1.3])}
    for name, points in (("sure", 3), ("not", 2)):
        monkeypatch.setattr(a2_sampler, "distances", lambda *given: ratios[name])
        assert checks.eight_evaluations(ddim) == points


def training(model, batches, seconds, factor=0.9):
    state, begin = TrainState(model, 4e-3), time.process_time()
    for _ in train_autoencoder(state, batches, 10**6, perceptual_weight=0, disc_weight=0, mse_weight=1):
        if time.process_time() - begin > factor * seconds:
            return


@pytest.mark.parametrize("train, hint", [
    (lambda model, batches, seconds: None, "dB nearer"), (partial(training, factor=2), "CPU-seconds of"),
    (lambda model, batches, seconds: setattr(model, "more", nn.Linear(999, 999)), "larger than 150,000")])
def test_a_training_that_breaks_the_rules_has_no_points(small, train, hint):
    with pytest.raises(checks.CheckFailed, match=hint):
        checks.first_stage_training(train, first_stage)


class Keeps(nn.Module):
    """A latent of nothing: the pictures go past it."""

    def encode(self, x):
        self.kept = x
        return torch.zeros(len(x), 1)

    def decode(self, z):
        return self.kept


def test_what_goes_past_the_latent_gains_nothing():
    assert a3_first_stage.gain(Keeps()) < 0


def test_a_trainings_points_follow_the_rule(small, monkeypatch):
    monkeypatch.setattr(a3_first_stage, "RULE", (-100, 100))
    assert checks.first_stage_training(training, first_stage) == 1
    monkeypatch.setattr(a3_first_stage, "RULE", (-100, -50, -10))
    assert checks.first_stage_training(training, first_stage) == 3
