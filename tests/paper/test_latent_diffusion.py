"""The whole model from its real parts: training loss, condition dropout, sampling, and life on disk."""

import json
import os
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from ldm_mini import files, hub
from ldm_mini.autoencoder import Autoencoder, AutoencoderConfig
from ldm_mini.cond import Cond, Conditioner, NotRead
from ldm_mini.conditioners import ClassConditioner, TextConditioner
from ldm_mini.diffusion import generators
from ldm_mini.files import FileError
from ldm_mini.hub import load_autoencoder, save
from ldm_mini.kl import KLBottleneck
from ldm_mini.latent_diffusion import LatentDiffusion, latent_scale
from ldm_mini.quantizer import VectorQuantizer, VQBottleneck
from ldm_mini.samplers import SAMPLERS, ddim
from ldm_mini.schedule import NoiseSchedule, RectifiedFlow, cosine_betas, linear_betas, scaled_linear_betas
from ldm_mini.text import TextTransformer
from ldm_mini.unet import UNet, UNetConfig
from ldm_mini.weights import INDEX


def autoencoder(kind="vq"):
    vq = kind == "vq"
    bottleneck = VQBottleneck(VectorQuantizer(codebook_size=16, dim=3)) if vq else KLBottleneck(latent_channels=3)
    return Autoencoder(AutoencoderConfig(channels=8, groups=4, num_res_blocks=1), bottleneck)


def unet(**options):
    defaults = dict(in_channels=3, channels=16, channel_mults=(1, 2), attn_levels=(1,), num_res_blocks=1, groups=4,
                    head_dim=16, context_dim=12, vector_dim=8, dropout=0.1)
    return UNet(UNetConfig(**{**defaults, **options}))


def model(kind="vq", conditioner=True, **options):
    torch.manual_seed(0)
    net = unet() if conditioner else unet(context_dim=None, vector_dim=None)
    for p in net.parameters():  # a fresh U-Net has zeros in every block and returns 0, which hides everything
        if not p.any():
            nn.init.normal_(p, std=0.1)
    ldm = LatentDiffusion(autoencoder(kind), net, NoiseSchedule(scaled_linear_betas()),
                          ClassConditioner(5, 12, 8) if conditioner else None, **{"scale_factor": 2.0, **options})
    if kind == "vq":  # its codes start at the first data seen in training
        ldm.autoencoder.bottleneck.quantizer.train()(torch.randn(4, 3, 8, 8))
        ldm.train()
    return ldm


def spied(conditioner=None, **options):
    """A model with a stand-in for its network, which keeps what it was told."""
    return LatentDiffusion(autoencoder(), Spy(), NoiseSchedule(scaled_linear_betas()), conditioner, **options)


def batch(size=32):
    generator = torch.Generator().manual_seed(0)
    return {"image": torch.rand(4, 3, size, size, generator=generator) * 2 - 1, "class": torch.tensor([0, 1, 2, -1])}


def loss_of(ldm, batch, seed=0):
    torch.manual_seed(seed)
    return ldm.loss(batch)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("kind", ["vq", "kl"])
@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
def test_one_step_trains_the_network_and_the_conditioner_only(kind, prediction):
    ldm = model(kind, prediction=prediction)
    frozen = {k: v.clone() for k, v in ldm.autoencoder.state_dict().items()}
    optimizer = torch.optim.SGD(ldm.trainable_parameters(), lr=0.1)
    before = [p.detach().clone() for p in ldm.trainable_parameters()]
    loss = loss_of(ldm, batch())
    loss.backward()
    optimizer.step()
    assert loss.ndim == 0 and loss.isfinite()
    assert all(p.grad is None for p in ldm.autoencoder.parameters())
    assert all(torch.equal(frozen[k], v) for k, v in ldm.autoencoder.state_dict().items())
    moved = [not torch.equal(a, b) for a, b in zip(before, ldm.trainable_parameters(), strict=True)]
    assert sum(moved) > 0.8 * len(moved)
    assert ldm.conditioner.token.weight.grad.abs().sum() > 0 and ldm.conditioner.vector.weight.grad.abs().sum() > 0


def test_the_first_stage_stays_frozen_and_in_evaluation_mode():
    ldm = model()
    for mode in (True, False, True):
        assert ldm.train(mode) is ldm
        assert ldm.net.training is mode and not any(part.training for part in ldm.autoencoder.modules())
    inside = {id(p) for p in ldm.autoencoder.parameters()}
    trainable = ldm.trainable_parameters()
    assert not any(id(p) in inside for p in trainable)
    assert {id(p) for p in trainable} == {id(p) for p in ldm.parameters() if p.requires_grad}


def test_latents_are_scaled_and_cached_latents_are_raw():
    ldm = model().eval()
    images = batch()["image"]
    raw = ldm.autoencoder.encode(images)
    assert_close(ldm.encode(images), 2.0 * raw)
    assert_close(ldm.decode(ldm.encode(images)), ldm.autoencoder.decode(raw))
    from_images = loss_of(ldm, batch())
    from_latents = loss_of(ldm, {"latent": raw, "class": batch()["class"]})
    assert_close(from_images, from_latents)


def test_a_kl_first_stage_trains_on_samples_and_encodes_to_the_mode():
    ldm = model("kl")
    images = batch()["image"]
    assert torch.equal(ldm.encode(images), ldm.encode(images))
    assert not torch.equal(ldm.encode(images, sample=True), ldm.encode(images, sample=True))
    ldm.net, ldm.conditioner = Spy(), None
    ldm.autoencoder.quant_conv.weight.data[3:] = 0
    ldm.autoencoder.quant_conv.bias.data[3:] = 9.0  # log variance: samples are now almost nothing but noise
    loss_of(ldm, batch())
    assert ldm.net.seen[0][0].std() > 10, "the loss must see a sample"


def test_loss_is_repeatable_and_is_the_forward():
    """In training mode too, with dropout and a posterior that is sampled: one source of randomness."""
    ldm = model("kl").train()
    first = loss_of(ldm, batch(), 1)
    torch.manual_seed(1)
    assert torch.equal(first, ldm(batch()))
    assert not torch.equal(loss_of(ldm, batch(), 1), loss_of(ldm, batch(), 2))


class Marked(Conditioner):
    """A condition whose parts all say 1; its null says -1."""

    def encode(self, batch, value=1.0):
        b = len(batch["latent"])
        return Cond(context=torch.full((b, 2, 12), value), vector=torch.full((b, 8), value))

    def null(self, batch):
        return self.encode(batch, -1.0)


class Spy(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.seen = []

    def forward(self, x, t, cond):
        self.seen.append((x, t, cond))
        return self.weight * x


@pytest.mark.parametrize("p_uncond", [0.0, 0.1, 0.5])
def test_conditions_are_dropped_jointly_as_often_as_asked(p_uncond):
    ldm = spied(Marked(), p_uncond=p_uncond)
    loss_of(ldm, {"latent": torch.zeros(4000, 3, 1, 1)})
    cond = ldm.net.seen[0][2]
    dropped = cond.vector[:, 0] == -1
    assert abs(dropped.double().mean() - p_uncond) < 0.03
    assert torch.equal(cond.context == -1, dropped[:, None, None].expand_as(cond.context)), "parts were dropped apart"


def test_without_a_conditioner_the_network_hears_of_no_condition():
    ldm = spied()
    ldm.loss({"latent": torch.zeros(2, 3, 4, 4)})
    assert all(value is None for value in vars(ldm.net.seen[0][2]).values())


@pytest.mark.parametrize("name, value", [("p_uncond", 1.0), ("p_uncond", -0.1), *(
    ("scale_factor", float(word)) for word in ("0", "nan", "inf"))])
def test_bad_settings_are_refused(name, value):
    with pytest.raises(ValueError, match=f"{name} is .*got {value}"):
        spied(**{name: value})


def test_latent_scale_keeps_no_graph():
    ae = autoencoder("kl")
    graphs, encode = [], ae.encode
    ae.encode = lambda *args, **options: graphs.append(torch.is_grad_enabled()) or encode(*args, **options)
    latent_scale(ae, [{"image": torch.rand(2, 3, 32, 32)}])
    assert graphs == [False]


@pytest.mark.parametrize("kind", ["vq", "kl"])
def test_latent_scale_gives_unit_variance(kind):
    ae = autoencoder(kind).train()
    batches = [{"image": 2 * torch.rand(4, 3, 32, 32) - 1} for _ in range(3)]
    scale = latent_scale(ae, batches)
    z = torch.cat([ae.eval().encode(b["image"]) for b in batches])
    if kind == "vq":  # nothing is random
        assert scale * z.double().std().item() == pytest.approx(1, abs=1e-5)
        cached = [{"latent": ae.encode(b["image"]).detach()} for b in batches]
        assert latent_scale(ae, cached) == pytest.approx(scale, rel=1e-5)
        assert latent_scale(ae, (b["image"] for b in batches)) == pytest.approx(scale, rel=1e-5)
        endless = iter(lambda: torch.rand(2, 3, 16, 16), None)
        assert latent_scale(ae.train(), endless, limit=3) > 0 and ae.training and ae.encoder.training
    assert 0 < scale < float("inf")
    with pytest.raises(ValueError, match="latents that vary"):
        latent_scale(ae, [{"latent": torch.ones(2, 3, 4, 4)}])


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_makes_images(sampler):
    ldm = model(image_size=32)
    images = ldm.sample({"class": [1, 2, -1]}, steps=4, sampler=sampler, seed=0)
    assert images.shape == (3, 3, 32, 32) and images.abs().max() <= 1 and images.isfinite().all()
    assert not images.requires_grad


def test_same_seed_same_pictures():
    ldm = model(image_size=32)
    args = dict(batch={"class": [1, 2]}, steps=3, sampler="ddpm")
    for draw in (lambda n: ldm.sample(**args, seed=n), lambda n: ldm.sample(**args, generator=seeded(n))):
        torch.manual_seed(1)
        first = draw(3)
        torch.manual_seed(2)
        assert torch.equal(first, draw(3)) and not torch.equal(first, draw(4))
    assert ldm.sample(**args, seed=2**64 - 1).isfinite().all()
    with pytest.raises(ValueError, match="seed is a whole number from 0 to"):
        ldm.sample(**args, seed=2**64)


def test_a_sampler_of_your_own_gets_one_generator():
    def own(denoise, z_T, schedule, steps, generator):
        yield torch.randn(z_T.shape, generator=generator)

    ldm = model(image_size=32)
    pictures = [ldm.sample({"class": [1, 2]}, seed=n, sampler=own) for n in (3, 3, 4)]
    assert torch.equal(*pictures[:2]) and not torch.equal(*pictures[1:])


@pytest.mark.parametrize("options", [{"sampler": "ddpm"}, {"sampler": "ddim", "eta": 0.5}, {"sampler": "dpm"}])
def test_the_first_picture_is_the_same_however_many_there_are(options):
    ldm = model(image_size=32)
    few, many = (ldm.sample({"class": [1] * n}, steps=3, seed=3, **options) for n in (1, 3))
    assert_close(few[0], many[0])
    assert not torch.equal(many[0], many[1])


def test_sampling_is_the_sampler_the_guidance_and_the_decoder():
    ldm = model(image_size=32).eval()
    classes = {"class": torch.tensor([1, 2])}
    images = ldm.sample(classes, steps=5, guidance_scale=3.0, sampler="ddim", seed=0, eta=0.5)
    z_T = torch.randn(2, 3, 8, 8, generator=seeded())
    *_, z0 = ddim(ldm.denoiser(classes, 3.0), z_T, ldm.schedule, 5, generators(0, 2), eta=0.5)
    assert_close(images, ldm.autoencoder.decode(z0 / 2.0).clamp(-1, 1))
    assert torch.equal(images, ldm.sample(classes, steps=5, guidance_scale=3.0, sampler=ddim, seed=0, eta=0.5))


def test_sampling_keeps_no_graph():
    """Neither a learner's own sampler nor the condition, which is computed before the sampler's first step."""
    ldm, seen = model(image_size=32), []

    def sampler(denoise, z_T, schedule, steps, generator):
        seen.extend([torch.is_grad_enabled(), *(part.requires_grad for part in denoise(z_T, torch.tensor([9, 9])))])
        yield z_T

    ldm.sample({"class": [1, 2]}, sampler=sampler, seed=0)
    assert seen == [False] * 3


def test_guidance_and_negative_prompts_use_what_they_say():
    ldm = model(image_size=32)
    x, t = torch.randn(2, 3, 8, 8), torch.tensor([500, 500])

    def eps(classes, *args, **options):
        with torch.no_grad():
            return ldm.eval().denoiser({"class": torch.tensor(classes)}, *args, **options)(x, t)[1]

    c, null, other = eps([1, 2]), eps([-1, -1]), eps([3, 4])
    close = dict(atol=1e-4, rtol=1e-4)
    assert_close(eps([1, 2], 4.0), null + 4 * (c - null), **close)
    steered = eps([1, 2], 4.0, negative={"class": torch.tensor([3, 4])})
    assert_close(steered, other + 4 * (c - other), **close)
    assert (c - null).abs().max() > 1e-3


class Words(Conditioner):
    def encode(self, batch):
        return Cond(vector=torch.tensor([[float(len(caption))] * 8 for caption in batch["caption"]]))

    def null(self, batch):
        return Cond(vector=torch.zeros(len(batch["caption"]), 8))


def test_what_the_condition_cannot_read_is_said_each_time_but_not_in_training():
    text = TextConditioner(TextTransformer(16, 1, 2, known=("dog", "red", "a")))
    config = UNetConfig(3, channels=8, channel_mults=(1,), attn_levels=(0,), head_dim=8, groups=2, context_dim=16,
                        vector_dim=16)
    ldm = LatentDiffusion(None, UNet(config), NoiseSchedule(linear_betas(10)), text, image_size=8)
    for _ in range(2):
        with pytest.warns(NotRead) as said:
            ldm.sample({"caption": ["a red dgo", "a dgo"]}, steps=1, negative="a rocket")
        assert [str(one.message) for one in said] == ['I do not know "dgo"; did you mean "dog"?',
                                                      'I do not know "rocket". I know: dog, red, a ...']
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ldm.sample({"caption": ["A red dog!"]}, steps=1)
        ldm.loss({"image": torch.zeros(1, 3, 8, 8), "caption": ["a zebra"]})


def test_a_negative_prompt_may_be_one_caption():
    ldm = spied(Words(), image_size=16)
    ldm.sample({"caption": ["abc", "a"]}, steps=1, negative="no")
    assert ldm.net.seen[0][2].vector[:, 0].tolist() == [2, 2, 3, 1]


def test_sampling_runs_in_evaluation_mode_and_gives_every_mode_back():
    ldm = model(image_size=32).train()
    ldm.net.eval()  # a mixed state, which must survive
    before = [part.training for part in ldm.modules()]
    ldm.sample({"class": [1]}, steps=2)
    assert [part.training for part in ldm.modules()] == before and any(before)
    with pytest.raises(ZeroDivisionError):
        ldm.sample({"class": [1]}, sampler=lambda *a, **k: iter([1 / 0]))
    assert [part.training for part in ldm.modules()] == before
    ldm.train()
    assert torch.equal(ldm.sample({"class": [1]}, steps=2, seed=0), ldm.eval().sample({"class": [1]}, steps=2, seed=0))


def test_size_is_that_of_training_unless_given():
    ldm = model()
    ldm.loss(batch(32))
    assert ldm.sample({"class": [1]}, steps=1).shape == (1, 3, 32, 32)
    assert ldm.sample({"class": [1]}, steps=1, size=(16, 48)).shape == (1, 3, 16, 48)
    cached = model()
    cached.loss({"latent": torch.zeros(2, 3, 8, 16), "class": torch.tensor([1, 2])})
    assert cached.image_size == (32, 64)


def test_a_model_without_the_null_condition_is_sampled_unguided():
    ldm = model(p_uncond=0.0, image_size=32)
    with pytest.raises(ValueError, match="never learned the null"):
        ldm.sample({"class": [1]})
    assert ldm.sample({"class": [1]}, steps=1, guidance_scale=1).shape == (1, 3, 32, 32)


@pytest.mark.parametrize("size, make", [(32, lambda: model(conditioner=False)), (16, lambda: LatentDiffusion(
    None, unet(context_dim=None, vector_dim=None), NoiseSchedule(cosine_betas(100)), prediction="v"))])
def test_unconditional_and_pixel_diffusion(size, make, tmp_path):
    ldm = make()
    assert ldm.loss(batch(size)).isfinite() and ldm.train().sample(num=2, steps=2).shape == (2, 3, size, size)
    again = LatentDiffusion.from_pretrained(ldm.save_pretrained(tmp_path))
    assert torch.equal(ldm.sample(num=1, steps=2, seed=0), again.sample(num=1, steps=2, seed=0))
    assert again.schedule.config == ldm.schedule.config
    assert sorted(os.listdir(tmp_path)) == ["SHA256SUMS", "config.json", "model.safetensors"]
    assert str(tmp_path) not in (tmp_path / "config.json").read_text(), "a path of this machine"


def test_the_smallest_picture_is_one_latent():
    for ldm, f in ((model(), 4), (LatentDiffusion(None, unet(), NoiseSchedule(cosine_betas(100))), 1)):
        assert ldm.latent_shape(f) == (3, 1, 1) and ldm.latent_shape((f, 2 * f)) == (3, 1, 2)
        for size in (0, (f, 0), (0, f)):
            with pytest.raises(ValueError, match="a side is a whole number from 1; got 0"):
                ldm.latent_shape(size)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_makes_the_same_picture():
    ldm = model("kl", image_size=32)
    args = dict(batch={"class": torch.tensor([1, 2])}, steps=5, seed=0, sampler="ddpm")
    expected, loss = ldm.sample(**args), loss_of(ldm.eval(), batch())
    ldm.to("cuda")
    assert_close(ldm.sample(**args).cpu(), expected, atol=2e-2, rtol=0)
    assert_close(loss_of(ldm, batch()).cpu(), loss, atol=1e-2, rtol=0)


@pytest.mark.parametrize("kind", ["vq", "kl"])
@pytest.mark.parametrize("shard_bytes", [2**24, 50_000])
def test_a_saved_model_makes_the_same_pictures(tmp_path, kind, shard_bytes):
    ldm = model(kind, image_size=(32, 16), prediction="v", p_uncond=0.2)
    ldm.save_pretrained(tmp_path, shard_bytes=shard_bytes, card={"data": "noise"})
    again = LatentDiffusion.from_pretrained(tmp_path)
    assert again is not ldm and not any(part.training for part in again.modules())
    assert all(torch.equal(a, b) for a, b in zip(ldm.state_dict().values(), again.state_dict().values(), strict=True))
    assert (again.prediction, again.p_uncond, again.image_size) == ("v", 0.2, (32, 16)) and again.scale_factor == 2.0
    args = dict(batch={"class": [1, 2]}, steps=3, seed=0)
    assert torch.equal(ldm.sample(**args), again.sample(**args))
    assert (tmp_path / INDEX).exists() == (shard_bytes < 2**20)
    assert json.loads((tmp_path / "config.json").read_text())["card"] == {"data": "noise"}


def test_a_rectified_flow_in_latents_trains_samples_and_is_kept(tmp_path):
    ldm = model(image_size=32, prediction="u")
    ldm = LatentDiffusion(ldm.autoencoder, ldm.net, RectifiedFlow(100, 2.0), ldm.conditioner, "u", image_size=32)
    ldm.loss({"image": torch.rand(2, 3, 32, 32) * 2 - 1, "class": [1, 2]}).backward()
    assert all(p.grad.isfinite().all() for p in ldm.net.parameters() if p.grad is not None)
    again = LatentDiffusion.from_pretrained(ldm.save_pretrained(tmp_path))
    assert (again.schedule.num_steps, again.schedule.shift, again.prediction) == (100, 2.0, "u")
    for sampler in SAMPLERS:
        args = dict(batch={"class": [1, 2]}, steps=3, seed=0, sampler=sampler)
        images = ldm.sample(**args)
        assert images.isfinite().all() and torch.equal(images, again.sample(**args))


def test_half_precision_halves_the_file_and_barely_moves_the_picture(tmp_path):
    ldm = model(image_size=32, scale_factor=0.18215)
    ldm.save_pretrained(tmp_path / "full")
    ldm.save_pretrained(tmp_path / "half", half=True)
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("half", "full")]
    assert sizes[0] < 0.65 * sizes[1]
    again = LatentDiffusion.from_pretrained(tmp_path / "half")
    assert again.scale_factor.item() == ldm.scale_factor.item()
    assert all(p.dtype == torch.float32 for p in again.parameters())
    x, t, args = torch.randn(1, 3, 8, 8), torch.tensor([300]), ({"class": torch.tensor([1])}, 4.0)
    with torch.no_grad():
        eps = [m.denoiser(*args)(x, t)[1] for m in (again, ldm.eval())]
    assert_close(*eps, atol=2e-2, rtol=0)


def test_parts_of_ones_own_are_passed(tmp_path):
    ldm = spied(Words(), image_size=16)
    ldm.net.weight.data.fill_(0.3)
    ldm.save_pretrained(tmp_path)
    with pytest.raises(FileError, match=r"config.json, net: a Spy is no part of ldm_mini.*pass it.*net="):
        LatentDiffusion.from_pretrained(tmp_path, conditioner=Words())
    with pytest.raises(FileError, match=r"config.json, conditioner: a Words is no part.*pass it.*conditioner="):
        LatentDiffusion.from_pretrained(tmp_path, net=Spy())
    again = LatentDiffusion.from_pretrained(tmp_path, net=Spy(), conditioner=Words())
    assert again.net.weight.item() == pytest.approx(0.3)
    with pytest.raises(FileError, match="another model"):
        LatentDiffusion.from_pretrained(tmp_path, net=unet(), conditioner=Words())


def test_a_first_stage_comes_out_of_a_second_stage(tmp_path):
    ldm = model("kl")
    again = load_autoencoder(ldm.save_pretrained(tmp_path / "both"))
    torch.testing.assert_close(again.state_dict(), ldm.autoencoder.state_dict(), rtol=0, atol=0)
    assert not again.training and all(p.requires_grad for p in again.parameters()), "it can be trained further"
    LatentDiffusion(None, unet(), NoiseSchedule(cosine_betas(100))).save_pretrained(tmp_path / "pixels")
    with pytest.raises(FileError, match="draws pixels: it has no first stage"):
        load_autoencoder(tmp_path / "pixels")


def test_a_first_stage_lives_alone(tmp_path):
    for kind in ("vq", "kl"):
        ae = autoencoder(kind).eval()
        again = load_autoencoder(save(tmp_path / kind, ae, card={"psnr": 30}))
        images = batch()["image"]
        assert not again.training and torch.equal(ae.encode(images), again.encode(images))
        assert torch.equal(ae.decode(ae.encode(images)), again.decode(again.encode(images)))
    with pytest.raises(FileError, match="no LatentDiffusion of ldm_mini: its class is autoencoder.Autoencoder"):
        LatentDiffusion.from_pretrained(tmp_path / "vq")
    (tmp_path / "config.json").write_text('{"_class_name": "UNet2DModel"}')
    with pytest.raises(FileError, match="describes no LatentDiffusion of ldm_mini"):
        LatentDiffusion.from_pretrained(tmp_path)


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    """A data folder with one small model in it, as the package carries it."""
    folder = tmp_path / "data"
    model(image_size=16).save_pretrained(folder / "weights" / "tiny", shard_bytes=50_000)
    lines = [f"{files.sha256(p)}  {p.relative_to(folder).as_posix()}" for p in sorted(folder.rglob("*")) if p.is_file()]
    (folder / "SHA256SUMS").write_text("\n".join(lines) + "\n")
    caches = (files.data_dir, files.checksums, files.data_path)
    for cached in caches:
        cached.cache_clear()
    monkeypatch.setattr(files, "__file__", str(tmp_path / "ldm_mini" / "files.py"))
    monkeypatch.chdir(tmp_path)
    yield folder
    for cached in caches:
        cached.cache_clear()


def test_a_bare_name_means_shipped_weights_checked_by_hash(shipped):
    assert LatentDiffusion.from_pretrained("tiny").sample({"class": [1]}, steps=1).shape == (1, 3, 16, 16)
    files.data_path.cache_clear()
    shard = sorted((shipped / "weights" / "tiny").glob("model-*.safetensors"))[1]
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1  # one bit
    shard.write_bytes(content)
    with pytest.raises(files.FileError, match=shard.name):
        LatentDiffusion.from_pretrained("tiny")


def test_a_folder_here_does_not_stand_in_for_shipped_weights(shipped):
    Path("tiny").mkdir()
    with pytest.warns(UserWarning, match=r"tiny means the shipped weights; the folder of that name here is \./tiny"):
        assert hub.find("tiny") == shipped / "weights" / "tiny"
    assert hub.find("./tiny") == Path("tiny")


@pytest.mark.parametrize("name", ["tinny", "./nowhere", "a/b/c", "/no/where", "../x", "data/nothing"])
def test_an_unknown_name_lists_what_is_shipped(shipped, name):
    with pytest.raises(FileError, match=r"shipped are \['tiny'\]"):
        hub.find(name)


def test_owner_and_name_go_to_the_hub(shipped, monkeypatch):
    import huggingface_hub

    asked, revisions = [], []

    def download(name, **options):
        asked.append(name)
        revisions.append(options["revision"])
        if name == "someone/offline":
            raise ConnectionError("no network")
        target = shipped.parent / "cache"
        shutil.copytree(shipped / "weights" / "tiny", target)
        return str(target)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert LatentDiffusion.from_pretrained("someone/model@v2").image_size == (16, 16) and asked == ["someone/model"]
    assert revisions == ["v2"]
    with pytest.raises(FileError, match="could not be had from the Hugging Face Hub.*no network"):
        LatentDiffusion.from_pretrained("someone/offline")
