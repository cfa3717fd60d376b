"""Latent diffusion of films: frame by frame through the first stage, noise in common, first frames, exact start."""

from dataclasses import replace

import pytest
import torch
from random_nets import randomize
from torch.testing import assert_close

from ldm_mini.autoencoder import Autoencoder, AutoencoderConfig
from ldm_mini.cond import NotRead
from ldm_mini.conditioners import ClassConditioner, CombinedConditioner
from ldm_mini.diffusion import diffusion_loss, ideal_denoiser
from ldm_mini.files import FileError
from ldm_mini.hub import build, describe
from ldm_mini.kl import KLBottleneck
from ldm_mini.latent_diffusion import LatentDiffusion
from ldm_mini.samplers import ddim, dpm_solver, euler
from ldm_mini.schedule import NoiseSchedule, cosine_betas
from ldm_mini.text import TextTransformer, load_tokenizer
from ldm_mini.train import TrainState, train_diffusion
from ldm_mini.unet import UNet, UNetConfig
from ldm_mini.video import VideoDiT, VideoDiTConfig, VideoUNet
from ldm_mini.video_diffusion import FilmText, FirstFrameConditioner, LatentVideoDiffusion, keep_first, mixed_noise

UNET = UNetConfig(4, channels=16, channel_mults=(1, 2), num_res_blocks=1, attn_levels=(1,), head_dim=8, groups=4,
                  context_dim=12)
SCHEDULE = NoiseSchedule(cosine_betas(50))
CLASSES = {"class": torch.tensor([1, 2])}


def first_stage():
    return Autoencoder(AutoencoderConfig(channels=8, groups=4, num_res_blocks=1, downsample_factor=4,
                                         latent_channels=4), KLBottleneck(4))


def image_model():
    torch.manual_seed(0)
    net = randomize(UNet(UNET), 0.1)
    return LatentDiffusion(first_stage(), net, SCHEDULE, ClassConditioner(5, 12), prediction="v", scale_factor=1.5,
                           image_size=32)


def film_model(source=None, joined=0, **options):
    source = source or image_model()
    config = replace(UNET, concat_channels=joined)
    net = VideoUNet(config)
    if not joined:
        net.image.load_state_dict(source.net.state_dict())
    conditioner = source.conditioner
    if joined:
        conditioner = CombinedConditioner([conditioner, FirstFrameConditioner(4, 4)])
    return LatentVideoDiffusion(source.autoencoder, net, SCHEDULE, conditioner, prediction="v", scale_factor=1.5,
                                image_size=32, **{"frames": 4, **options})


def test_at_the_start_every_frame_is_the_image_models_picture():
    """The same noise in a frame and in a picture gives the same picture, to the last bit where sums have one order."""
    images, films = image_model(), film_model()
    batch = {"class": torch.tensor([1])}

    class Told(LatentDiffusion):
        """The image model, with the noise that the film's frames have."""

        def noise(self, like, generator=None):
            return films.noise(torch.empty(1, 4, 4, 8, 8), generator)[0].transpose(0, 1)

    images.__class__ = Told
    film = films.sample(batch, steps=3, guidance_scale=2.0, seed=7)
    pictures = images.sample({"class": torch.tensor([1] * 4)}, steps=3, guidance_scale=2.0, seed=7)
    assert film.shape == (1, 3, 4, 32, 32) and film.std() > 0.01
    assert torch.equal(film[0].transpose(0, 1), pictures)


def test_frames_go_through_the_first_stage_one_by_one():
    films, video = film_model(), torch.rand(2, 3, 4, 32, 32) * 2 - 1
    z = films.encode(video)
    assert z.shape == (2, *films.latent_shape(32)) == (2, 4, 4, 8, 8)
    for k in range(4):
        assert_close(z[:, :, k], films.autoencoder.encode(video[:, :, k], sample=False) * 1.5, atol=1e-6, rtol=1e-5)
        assert_close(films.decode(z)[:, :, k], films.autoencoder.decode(z[:, :, k] / 1.5), atol=1e-5, rtol=1e-5)
    assert_close(films.encode(video[:, :, 0]), z[:, :, :1], atol=1e-6, rtol=1e-5)


def test_the_loss_of_a_film_is_that_of_all_its_values():
    films, video = film_model(p_uncond=0.0), torch.rand(2, 3, 4, 32, 32) * 2 - 1
    z = films.autoencoder.encode(video.transpose(1, 2).flatten(0, 1)).unflatten(0, (2, 4)).transpose(1, 2)
    torch.manual_seed(0)
    loss = films.loss({"latent": z, **CLASSES})
    torch.manual_seed(0)
    cond = films.conditioner.encode(CLASSES)
    assert_close(loss, diffusion_loss(films.net, SCHEDULE, z * 1.5, cond, "v"))


@pytest.mark.parametrize("key, shape", [("image", (2, 3, 32, 32)), ("latent", (2, 4, 8, 8))])
def test_pictures_train_the_image_network_and_nothing_of_time(key, shape):
    films = film_model()
    films.loss({key: torch.rand(shape), **CLASSES}).backward()
    assert all(p.grad is None for p in films.net.temporal.parameters())
    assert all(p.grad is not None for p in films.net.image.parameters())
    films.loss({"latent": torch.randn(2, 4, 3, 8, 8), **CLASSES}).backward()
    assert any(p.grad.abs().max() > 0 for p in films.net.temporal.parameters() if p.grad is not None)


def test_mixed_noise_is_normal_and_frames_correlate_by_their_share():
    like = torch.empty(4000, 2, 3, 2, 2)
    for share in (0.0, 0.5, 0.9):
        eps = mixed_noise(like, share, torch.Generator().manual_seed(0))
        frames = eps.transpose(0, 2).flatten(1)                                                 # (3, ...)
        assert_close(frames.mean(1), torch.zeros(3), atol=0.03, rtol=0)
        assert_close(torch.cov(frames), share + (1 - share) * torch.eye(3), atol=0.03, rtol=0)
    assert torch.equal(mixed_noise(like, 0.0, torch.Generator().manual_seed(0)),
                       torch.randn(like.shape, generator=torch.Generator().manual_seed(0)))
    # of different films, nothing
    eps = mixed_noise(torch.empty(2, 1, 1, 100, 100), 0.9)
    assert abs((eps[0] * eps[1]).mean()) < 0.05


def test_a_model_trains_and_samples_with_its_share(monkeypatch):
    seen = []
    films = film_model(noise_share=0.5)
    monkeypatch.setattr("ldm_mini.video_diffusion.mixed_noise",
                        lambda like, share, generator=None: seen.append((tuple(like.shape), share)) or like * 0)
    films.loss({"latent": torch.zeros(2, 4, 3, 8, 8), **CLASSES})
    films.sample(CLASSES, steps=1)
    assert seen == [((2, 4, 3, 8, 8), 0.5), ((2, 4, 4, 8, 8), 0.5)]


@pytest.mark.parametrize("sampler", [ddim, dpm_solver, euler])
def test_the_first_frame_is_kept_along_the_forward_process(sampler):
    torch.manual_seed(0)
    points, first = torch.randn(5, 2, 3, 2, 2), torch.randn(2, 2, 1, 2, 2)
    z_T, asked = torch.randn(2, 2, 3, 2, 2), []
    inner = ideal_denoiser(points, SCHEDULE)

    def watched(x_t, t):
        asked.append((x_t, t))
        return inner(x_t, t)

    *_, last = sampler(keep_first(watched, first, SCHEDULE), z_T, SCHEDULE, steps=6)
    assert_close(last[:, :, :1], first, atol=1e-5, rtol=0)
    # what the network was shown: the known frame, as noisy as the others, its noise that of z_T
    T = SCHEDULE.num_steps - 1
    alpha_T, sigma_T = SCHEDULE.alphas[T], SCHEDULE.sigmas[T]
    eps = (z_T[:, :, :1] - alpha_T * first) / sigma_T
    for x_t, t in asked:
        noisy = SCHEDULE.alpha(t, 5) * first + SCHEDULE.sigma(t, 5) * eps
        assert_close(x_t[:, :, :1], noisy, atol=1e-4, rtol=1e-4)
    free = list(sampler(inner, z_T, SCHEDULE, steps=6))[-1]
    assert (free[:, :, 0] - first[:, :, 0]).abs().max() > 0.1


def test_a_model_without_a_conditioner_for_it_keeps_the_first_frame():
    films, first = film_model(), torch.rand(2, 3, 32, 32) * 2 - 1
    film = films.sample({**CLASSES, "first": first}, steps=4, seed=0)
    assert_close(film[:, :, 0], films.decode(films.encode(first))[:, :, 0].clamp(-1, 1), atol=1e-4, rtol=0)


def test_the_first_frame_as_a_condition():
    films = film_model(joined=5)
    part, video = films.conditioner.parts[1], torch.rand(2, 3, 4, 32, 32) * 2 - 1
    latent = films.autoencoder.encode(video[:, :, 0], sample=False)
    cond = part.encode({"first": video[:, :, 0], "video": video})
    assert cond.concat.shape == (2, 5, 4, 8, 8)
    assert_close(cond.concat[:, :4, 0], latent)
    assert (cond.concat[:, 4, 0] == 1).all() and not cond.concat[:, :, 1:].any()
    stored = part.encode({"first_latent": latent, "latent": torch.zeros(2, 4, 4, 8, 8)})
    assert_close(stored.concat, cond.concat)
    assert not part.null({"video": video}).concat.any()
    assert part.null({"latent": torch.zeros(2, 4, 8, 8)}).concat.shape == (2, 5, 1, 8, 8)
    # it is heard, and may be left out
    randomize(films.net, 0.1)
    with_frame, without = (films.sample({**CLASSES, **given}, steps=2, seed=0)
                           for given in ({"first": video[:, :, 0]}, {}))
    assert with_frame.shape == without.shape and (with_frame - without).abs().max() > 1e-3
    assert films.loss({"latent": torch.randn(2, 4, 4, 8, 8), "first_latent": latent, **CLASSES}) > 0
    with pytest.raises(ValueError, match="give a frame of the film's size"):
        part.encode({"first_latent": latent[..., :4], "latent": torch.zeros(2, 4, 4, 8, 8)})


@pytest.mark.parametrize("net", [VideoUNet(UNET, frozen=True),
                                 VideoDiT(VideoDiTConfig(4, width=24, depth=1, num_heads=2, context_dim=12))])
def test_saved_and_loaded(tmp_path, net):
    source = image_model()
    films = LatentVideoDiffusion(source.autoencoder, randomize(net, 0.1), SCHEDULE, source.conditioner, "v",
                                 image_size=32, frames=3, noise_share=0.25)
    films.save_pretrained(tmp_path)
    loaded = LatentVideoDiffusion.from_pretrained(tmp_path)
    assert (loaded.frames, loaded.noise_share, loaded.net.config) == (3, 0.25, net.config)
    assert torch.equal(*(ldm.sample(CLASSES, steps=2, seed=0) for ldm in (films.eval(), loaded)))
    loaded.frames = 5
    assert loaded.sample(CLASSES, steps=1, seed=0).shape == (2, 3, 5, 32, 32)
    with pytest.raises(FileError, match="describes no LatentDiffusion .*LatentVideoDiffusion"):
        LatentDiffusion.from_pretrained(tmp_path)


def test_a_short_training_moves_things_where_it_is_told():
    """A bright square goes left or right from the first frame that is given: the class alone says where."""
    def films(num, generator):
        ways, x, y = (torch.randint(high, (num,), generator=generator) for high in (2, 3, 7))
        video = torch.full((num, 1, 3, 8, 8), -1.0)
        for i in range(num):
            for k in range(3):
                at = 2 + x[i] + k * (2 * ways[i] - 1)
                video[i, 0, k, y[i]:y[i] + 2, at:at + 2] = 1.0
        return {"latent": video, "first_latent": video[:, :, 0], "class": ways}

    torch.manual_seed(0)
    net = VideoUNet(UNetConfig(1, channels=16, channel_mults=(1,), num_res_blocks=1, attn_levels=(0,), head_dim=16,
                               groups=4, context_dim=16, concat_channels=2))
    parts = CombinedConditioner([ClassConditioner(2, 16), FirstFrameConditioner(1, 1)])
    ldm = LatentVideoDiffusion(None, net, NoiseSchedule(cosine_betas(100)), parts, "v", p_uncond=0.0, frames=3)
    generator = torch.Generator().manual_seed(0)
    batches = (films(8, generator) for _ in range(200))
    *_, _ = train_diffusion(TrainState(ldm, lr=4e-3, seed=0), batches, 200, warmup=20, decay="cosine")
    new = films(12, generator)
    errors = []
    for ways in (new["class"], 1 - new["class"]):
        drawn = ldm.sample({"class": ways, "first": new["first_latent"]}, steps=8, guidance_scale=1.0, seed=0)
        errors.append((drawn - new["latent"]).square().mean((0, 1, 3, 4)))
    told, other = errors
    assert told[0] < 0.05 and other[0] < 0.05, "the first frame is the one that was given"
    assert (told[1:] < 0.2).all() and (other[1:] > 2 * told[1:]).all()


def test_words_of_its_own_come_behind_the_shared_ones():
    words, pictures = FilmText(12, 1, 2, more_words=("hops", "up")), TextTransformer(12, 1, 2)
    size = load_tokenizer().get_vocab_size()
    assert len(words.words.weight) == size + 2 and words.shared == size
    ids, _ = words.tokenize(["a cup hops up, on red"])
    old, _ = pictures.tokenize(["a cup hops up, on red"])
    unknown = load_tokenizer().token_to_id("[UNK]")
    assert ids[0, 3:5].tolist() == [size, size + 1] and old[0, 3:5].tolist() == [unknown] * 2
    assert torch.equal(ids.masked_fill(ids >= size, unknown), old)
    # built again, also when the tokenizer has got more words since
    earlier = build(describe(FilmText(12, 1, 2, more_words=("hops",), shared=100)))
    assert earlier.tokenize(["hops"])[0][0, 1] == 100 and len(earlier.words.weight) == 101
    assert earlier.unknown_words("hops twemoji") == ["twemoji"]


def test_mistakes():
    with pytest.raises(ValueError, match="frames is a whole number from 1; got 0"):
        film_model(frames=0)
    with pytest.raises(ValueError, match="below 1, got 1.0"):
        film_model(noise_share=1.0)
    with pytest.raises(ValueError, match='needs "image" or "latent"'):
        film_model().loss(dict(CLASSES))
    with pytest.warns(NotRead, match="does not read 'caption'"):
        film_model().sample({**CLASSES, "caption": ["a", "b"]}, steps=1)
    with pytest.raises(ValueError, match="give a frame of the film's size"):
        film_model().sample({**CLASSES, "first": torch.zeros(2, 3, 16, 16)}, steps=1)
    alone = LatentVideoDiffusion(None, VideoUNet(replace(UNET, in_channels=3, context_dim=None, concat_channels=4)),
                                 SCHEDULE, FirstFrameConditioner(3, 1), image_size=8, frames=2)
    with pytest.raises(ValueError, match=r"reads batch\['first'\]"):
        alone.sample({"video": torch.zeros(2, 3, 2, 8, 8)}, steps=1)


def test_a_film_batch_may_hold_more_than_is_read(recwarn):
    """Whole batches of the data set, or of the cache."""
    films = {**CLASSES, "video": torch.zeros(2, 3, 4, 32, 32), "motion": [0, 1], "seed": [3, 4], "caption": ["a", "b"]}
    film_model().sample(films, steps=1)
    film_model(joined=5).sample({**CLASSES, "first_latent": torch.zeros(2, 4, 8, 8)}, steps=1)
    assert not [warning for warning in recwarn if issubclass(warning.category, NotRead)]
