"""Training of film models: begun as an image model to the bit, fed by step, resumed bit for bit."""

import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch.testing import assert_close

from ldm_mini import hub
from ldm_mini.files import FileError, load_safetensors
from ldm_mini.scenes.films import FilmConfig, random_film
from ldm_mini.text import TextTransformer, load_tokenizer
from ldm_mini.training import build, runs
from ldm_mini.training.latents import LatentCache, cache_latents
from ldm_mini.training.launch import train_stage
from ldm_mini.training.recipes import AUTOENCODERS, DIFFUSIONS, VIDEOS, find_recipe
from ldm_mini.training.video import VideoRun, build_video, give_words, start_video
from ldm_mini.video import VideoDiT, VideoUNet
from ldm_mini.video_diffusion import FilmText, LatentVideoDiffusion

MICRO, EVERY = VIDEOS["micro"], dict(log_every=4, sample_every=10, save_every=4, device="cpu")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Nobody looks at curves here; and the number of threads decides the order of sums."""
    monkeypatch.setattr(runs, "draw_curve", lambda out: None)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def first():
    torch.manual_seed(0)
    return build.build_autoencoder(AUTOENCODERS["micro"]).eval()


@pytest.fixture(scope="module")
def image_model(first):
    """Of all conditions, some joined to the latent; every weight random, so that all of them are heard."""
    torch.manual_seed(1)
    recipe = replace(DIFFUSIONS["micro"], parts=("text", "class", "lowres", "semantic"), p_drop_each=0.5)
    ldm = build.build_diffusion(recipe, first, scale_factor=1.7).eval()
    for p in ldm.net.parameters():
        torch.nn.init.normal_(p, std=0.1)
    return ldm


@pytest.fixture(scope="module")
def saved(first, image_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    hub.save(folder / "first", first)
    image_model.save_pretrained(folder / "images")
    return folder


def test_a_film_model_begins_as_the_image_model(first, image_model):
    """The same captions, classes and noise: every frame is the image model's prediction, but for the order of sums."""
    films = build_video(MICRO, first).eval()
    start_video(image_model, films)
    assert films.scale_factor == image_model.scale_factor
    batch = {"caption": ["a red star on a blue background", ""], "class": torch.tensor([1, -1])}
    x, t = torch.randn(2, 3, 4, 8, 8), torch.tensor([10, 900])
    out = films.net(x, t, films.conditioner.encode({**batch, "latent": x}))
    for k in range(4):
        cond = image_model.conditioner.encode({**batch, "latent": x[:, :, k]})
        assert_close(out[:, :, k], image_model.net(x[:, :, k], t, cond), atol=2e-5, rtol=1e-4)
    assert out.abs().max() > 0.1
    # channels of conditions that films do not have are gone, those of the first frame begin unheard
    stem = films.net.image.down[0][0].weight
    assert stem.shape[1] == 3 + 4 and torch.equal(stem[:, :3], image_model.net.down[0][0].weight[:, :3])
    assert not stem[:, 3:].any()


def test_a_film_model_goes_on_from_another(first):
    source, target = (build_video(replace(MICRO, net="dit"), first) for _ in range(2))
    for p in source.net.parameters():
        torch.nn.init.normal_(p)
    start_video(source, target)
    assert_close(target.state_dict(), source.state_dict(), rtol=0, atol=0)


def test_what_cannot_be_begun_from_is_refused(first, image_model):
    with pytest.raises(ValueError, match="VideoDiT holds no image network.*--text"):
        start_video(image_model, build_video(replace(MICRO, net="dit"), first))
    with pytest.raises(ValueError, match="another shape"):
        start_video(image_model, build_video(replace(MICRO, channels=32), first))
    with pytest.raises(ValueError, match="another first stage"):
        start_video(image_model, build_video(MICRO, build.build_autoencoder(AUTOENCODERS["micro"])))
    with pytest.raises(ValueError, match='told by "text", and maybe "class"'):
        build_video(replace(MICRO, parts=("text", "lowres")), first)
    with pytest.raises(ValueError, match='"unet" or "dit", got .mamba'):
        build_video(replace(MICRO, net="mamba"), first)


def test_words_of_motion_come_behind_the_tokenizers_own(first):
    words = build_video(MICRO, first).conditioner.parts[0].text_transformer
    size = load_tokenizer().get_vocab_size()
    assert len(words.words.weight) == size + len(words.more_words) > size + 10
    known = TextTransformer(16, 1, 2)
    give_words(known, words)
    assert torch.equal(words.words.old, known.words.weight)
    ids, _ = words.tokenize(["a cup moves up, a car goes left"])
    fresh, _ = known.tokenize(["a cup on top, a car is left"])
    # "up" is a word of its own, not the end of "cup"; all other words keep their numbers
    assert ids[0, 2] == fresh[0, 2] and ids[0, 4] == size + words.more_words.index("up")
    unknown = words.tokenizer.token_to_id("[UNK]")
    assert unknown not in ids and words.unknown_words("a cup moves up") == ["cup"]


def test_words_of_motion_keep_what_they_learned_when_there_are_more(first):
    """By name: the table of a model of fewer motions has other places."""
    words = build_video(MICRO, first).conditioner.parts[0].text_transformer
    fewer = FilmText(16, 1, 2, more_words=("up", "goes", "hops"), shared=100)
    fresh = words.words.new.detach().clone()
    give_words(fewer, words)
    for place, word in enumerate(words.more_words):
        known = word in ("up", "goes")
        row = fewer.words.new[fewer.more_words.index(word)] if known else fresh[place]
        assert torch.equal(words.words.new[place], row), word
    assert torch.equal(words.words.old[:100], fewer.words.old) and torch.equal(words.positions, fewer.positions)


@pytest.mark.parametrize("name", VIDEOS)
def test_every_caption_fits_and_is_known(name, first):
    recipe = VIDEOS[name]
    new = build_video(MICRO, first).conditioner.parts[0].text_transformer.more_words
    words = FilmText(16, 1, 2, recipe.max_length, more_words=new)
    captions = [random_film(seed, recipe.films).scene.caption for seed in range(300)] + list(recipe.sample_captions)
    assert not [said for caption in captions for said in words.remarks([caption])]


@pytest.mark.parametrize("name", VIDEOS)
def test_recipes_build_their_networks(name):
    recipe = find_recipe("video", name)
    first = build.build_autoencoder(AUTOENCODERS[name.split("_")[0]])
    films = build_video(recipe, first)
    assert isinstance(films.net, VideoDiT if recipe.net == "dit" else VideoUNet)
    assert films.latent_shape(recipe.scenes.size) == (first.config.latent_channels, recipe.frames, 8, 8)
    assert sum(p.numel() for p in films.net.parameters()) < 11e6
    assert recipe.films == FilmConfig(recipe.scenes, recipe.frames, recipe.motions) and recipe.scenes.split == "train"
    if name in ("small", "small_time"):                         # it can begin as the image model of this name
        start_video(build.build_diffusion(DIFFUSIONS["small"], first), films)
    with pytest.raises(ValueError, match="no video recipe 'tiny'; there are small, small_time, small_motion, "
                                         "small_paths, small_dit, micro"):
        find_recipe("video", "tiny")


def test_frozen_learns_time_and_the_words_of_motion_alone(first, image_model, saved, tmp_path):
    """A picture, a film of one frame, stays the image model's, whatever was learned."""
    recipe = replace(MICRO, frozen=True, image_every=None, steps=4)
    films = build_video(recipe, first)
    trained = {name for name, p in films.named_parameters() if p.requires_grad}
    words = "conditioner.parts.0.text_transformer.words.new"
    assert words in trained and all(name.startswith("net.temporal.") for name in trained - {words})
    given = {"autoencoder": str(saved / "first"), **EVERY}
    with pytest.raises(ValueError, match="frozen keeps an image U-Net as it is, and a dit holds none"):
        build_video(replace(recipe, net="dit"), first)
    with pytest.raises(ValueError, match="keeps an image model as it is: give it with --start-from"):
        train_stage("video", recipe, tmp_path / "alone", **given)
    assert train_stage("video", recipe, tmp_path / "run", start_from=str(saved / "images"), **given)
    films = LatentVideoDiffusion.from_pretrained(tmp_path / "run")
    assert films.net.temporal[1].time_attn.to_out.weight.any() and "val_first_frame" not in runs.read_log(
        tmp_path / "run")[-1]
    # so little more than time is stored, and read only with the image model that it was learned on
    folder = films.save_pretrained(tmp_path / "little", base=saved / "images")
    stored = set(load_safetensors(folder / "model.safetensors"))
    assert stored == {name for name in films.state_dict() if name.startswith("net.temporal.")} | {
        words, "net.image.down.0.0.weight"}
    again = LatentVideoDiffusion.from_pretrained(folder)
    assert_close(again.state_dict(), films.state_dict(), rtol=0, atol=0)
    half = films.save_pretrained(tmp_path / "half", half=True, base=saved / "images")
    assert_close(LatentVideoDiffusion.from_pretrained(half).state_dict(), films.state_dict(), rtol=1e-3, atol=1e-5)
    other = shutil.copytree(saved, tmp_path / "other") / "images"
    folder = films.save_pretrained(tmp_path / "mine", base=other)
    image_model.save_pretrained(other, half=True)
    with pytest.raises(FileError, match="learned on top of .*images, which has other weights now"):
        LatentVideoDiffusion.from_pretrained(folder)
    batch = {"caption": ["a red star on a blue background", ""], "class": torch.tensor([1, -1])}
    x, t = torch.randn(2, 3, 8, 8), torch.tensor([10, 900])
    theirs = image_model.net(x, t, image_model.conditioner.encode({**batch, "latent": x}))
    assert_close(films.net(x[:, :, None], t, films.conditioner.encode(batch))[:, :, 0], theirs)


def test_films_are_cached_frame_by_frame(first):
    videos = torch.rand(3, 3, 2, 32, 32) * 2 - 1
    cache = cache_latents(first, [{"video": videos, "caption": ["a", "b", "c"]}], 2, ("caption",), sample=False)
    assert cache.latents.shape == (2, 3, 2, 8, 8) and cache.latents.dtype == torch.float16
    for k in range(2):
        assert_close(cache[:2]["latent"][:, :, k], first.encode(videos[:2, :, k], sample=False), atol=2e-2, rtol=2e-3)


def test_a_step_has_the_same_batch_wherever_the_run_begins():
    """Every third step single pictures, as many as the frames of the films; else films with their first frames."""
    films = LatentCache(torch.arange(16.).view(16, 1, 1, 1, 1).repeat(1, 1, 3, 1, 1),
                        {"caption": list("abcdefghijklmnop")})
    single = LatentCache(100 + torch.arange(16.).view(16, 1, 1, 1), {"caption": ["x"] * 16})

    def batches(step):
        return list(VideoRun.batches(SimpleNamespace(
            recipe=MICRO, encoded=films, single=single, seed=3, accelerator=SimpleNamespace(num_processes=1),
            state=SimpleNamespace(step=step, rank=0, device="cpu"))))

    straight = batches(0)
    assert len(straight) == 20
    for step, batch in enumerate(straight):
        if step % 3 == 2:
            assert batch["latent"].shape == (12, 1, 1, 1) and batch["latent"].min() >= 100
            assert "first_latent" not in batch
        else:
            assert batch["latent"].shape == (4, 1, 3, 1, 1)
            assert torch.equal(batch["first_latent"], batch["latent"][:, :, 0])
    for a, b in zip(straight[7:], batches(7), strict=True):
        assert torch.equal(a["latent"], b["latent"]) and a["caption"] == b["caption"]


def final(out):
    files = [runs.latest(out / "checkpoints"), *sorted((out / "model").glob("*.safetensors"))]
    return {f"{file.name}:{name}": value for file in files for name, value in load_safetensors(file).items()
            if not name.startswith("rng.")}


@pytest.mark.parametrize("net", ["unet", "dit"])
def test_a_stopped_run_goes_on_bit_by_bit(net, tmp_path, saved):
    recipe = replace(MICRO, net=net, steps=8, image_every=3)
    given = {"autoencoder": str(saved / "first"), **({"start_from": str(saved / "images")} if net == "unet" else {})}
    assert train_stage("video", recipe, tmp_path / "straight", **given, **EVERY)
    out = tmp_path / "stopped"
    assert not train_stage("video", recipe, out, **given, **EVERY, minutes=0.0)
    assert runs.latest(out / "checkpoints").name == "step-00000001.safetensors"
    assert train_stage("video", recipe, out, resume=True, **given, **EVERY)
    a, b = final(tmp_path / "straight"), final(out)
    assert a.keys() == b.keys() and len(a) > 20
    assert [name for name in a if not torch.equal(a[name], b[name])] == []
    record = runs.read_log(out)[-1]
    assert {"val_loss", "val_first_frame", "val_caption_gap"} <= record.keys()
    assert (out / "samples" / "newest.gif").is_file()
    if net == "unet":
        scale = next(value for name, value in a.items() if name.endswith("model.scale_factor"))
        assert scale == pytest.approx(1.7), "the image model's scale of latents"
