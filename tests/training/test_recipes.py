"""Recipes: each can be built and trains two steps, their numbers agree, unknown names are answered with names."""

from dataclasses import FrozenInstanceError, replace

import pytest
import torch
from torch.testing import assert_close

from ldm_mini.kl import KLBottleneck
from ldm_mini.scenes.data import scene_stream
from ldm_mini.scenes.scene import random_scene
from ldm_mini.scenes.vocabulary import NOUNS
from ldm_mini.text import load_tokenizer
from ldm_mini.train import TrainState, train_autoencoder, train_diffusion
from ldm_mini.training.build import build_autoencoder, build_diffusion, start_first_stage, start_from
from ldm_mini.training.launch import bf16_pays
from ldm_mini.training.recipe import for_task
from ldm_mini.training.recipes import AUTOENCODERS, DIFFUSIONS, find_recipe


def millions(module):
    """Of parameters."""
    return sum(p.numel() for p in module.parameters()) / 1e6


@pytest.mark.parametrize("name", AUTOENCODERS)
def test_autoencoder_recipe_trains_two_steps(name):
    recipe = AUTOENCODERS[name]
    torch.manual_seed(0)
    model = build_autoencoder(recipe)
    state = TrainState(model, recipe.lr, betas=recipe.betas, weight_decay=recipe.weight_decay,
                       ema_decay=recipe.ema_decay)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    logs = list(train_autoencoder(state, scene_stream(recipe.scenes, 1), 2, perceptual_weight=0, disc_weight=0,
                                  mse_weight=recipe.loss.mse_weight))
    assert len(logs) == 2 and all(0 < log.l1 < 2 for log in logs)
    idle = [n for n, p in model.named_parameters() if torch.equal(p, before[n])]
    assert not idle, f"parameters that two steps did not move: {idle}"


@pytest.mark.parametrize("name, net", [*((name, "unet") for name in DIFFUSIONS), ("small", "dit"), ("micro", "dit")])
def test_diffusion_recipe_trains_two_steps_and_samples(name, net):
    # its true width is built below; here the network only has to have the same parts
    recipe = DIFFUSIONS[name]
    recipe = replace(recipe, net=net, channels=min(recipe.channels, 64), text_width=min(recipe.text_width, 96),
                     dit=replace(recipe.dit, depth=1))
    torch.manual_seed(0)
    ldm = build_diffusion(recipe, build_autoencoder(AUTOENCODERS["micro"]), scale_factor=2.0)
    state = TrainState(ldm, recipe.lr, ema_decay=recipe.ema_decay)
    losses = [log.loss for log in train_diffusion(state, scene_stream(recipe.scenes, 2), 2)]
    assert all(0.1 < loss < 10 for loss in losses)
    images = ldm.sample({"caption": ["an apple"], "class": torch.tensor([0])}, steps=1, seed=0)
    assert images.shape == (1, 3, recipe.scenes.size, recipe.scenes.size) and images.isfinite().all()


def test_the_layout_leg_shows_layouts_and_fits_the_model_of_all_conditions():
    first = build_autoencoder(AUTOENCODERS["tiny"])
    leg, everything = (build_diffusion(DIFFUSIONS[name], first) for name in ("tiny_layouts", "tiny_all"))
    start_from(leg, everything)                                 # and back
    start_from(everything, leg)
    kept = leg.conditioner.draw_subsets(20)
    assert [type(part).__name__ for part, some in zip(leg.conditioner.parts, kept.any(0)) if some] == [
        "LayoutConditioner"]
    assert for_task(DIFFUSIONS["tiny_layouts"], "text").alone is None


def test_a_transformer_takes_new_conditions_as_a_unet_does():
    """What is joined to the latent and new has no say; tokens that are absent are masked."""
    first = build_autoencoder(AUTOENCODERS["micro"])
    words = replace(DIFFUSIONS["micro"], net="dit", vector=False)
    source, target = build_diffusion(words, first), build_diffusion(for_task(words, "all"), first)
    awake = {name: torch.randn_like(value) * 0.1 for name, value in source.net.state_dict().items()}
    source.net.load_state_dict(awake)
    assert len(start_from(source, target)) == 4
    batch = next(iter(scene_stream(words.scenes, 2, 0, 0, 0, 1, seed=1)))
    x, t = torch.randn(2, 3, 8, 8), torch.tensor([10, 700])
    words = {"caption": batch["caption"], "image": batch["image"]}
    before, after = (m.eval().net(x, t, m.conditioner.encode(words)) for m in (source, target))
    assert_close(after, before, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", DIFFUSIONS)
def test_every_caption_fits_the_text_transformer(name):
    recipe, tokenizer = DIFFUSIONS[name], load_tokenizer()
    captions = [random_scene(seed, recipe.scenes).caption for seed in range(300)] + list(recipe.sample_captions)
    coded = tokenizer.encode_batch(captions)
    assert max(len(caption.ids) for caption in coded) <= recipe.max_length
    assert not any("[UNK]" in caption.tokens for caption in coded)


def test_sizes_are_what_the_recipes_say():
    """A CPU's nets stay small; the latents of both stages fit together."""
    for name, most, most_net, latent in (("tiny", 2.5, 10, (4, 16, 16)), ("small", 7.5, 8, (12, 8, 8)),
                                         ("base", 20, 80, (16, 8, 8))):
        first = build_autoencoder(AUTOENCODERS[name])
        ldm = build_diffusion(DIFFUSIONS[name], first)
        assert millions(first) < most and millions(ldm.net) < most_net
        tokens = build_diffusion(replace(DIFFUSIONS[name], net="dit"), first).net
        assert 0.7 < millions(tokens) / millions(ldm.net) < 1.3
        assert tokens.config.input_size // tokens.config.patch_size == 8
        assert ldm.latent_shape(DIFFUSIONS[name].scenes.size) == latent
        assert set(DIFFUSIONS[name].scenes.nouns or NOUNS) <= set(AUTOENCODERS[name].scenes.nouns or NOUNS)


def test_l1_twin_differs_in_its_losses_only():
    tiny, twin = AUTOENCODERS["tiny"], AUTOENCODERS["tiny_l1"]
    same = replace(twin.loss, perceptual_weight=tiny.loss.perceptual_weight, disc_weight=tiny.loss.disc_weight)
    assert replace(twin, name="tiny", loss=same) == tiny
    assert twin.loss.perceptual_weight == twin.loss.disc_weight == 0
    with pytest.raises(FrozenInstanceError):
        tiny.steps = 1


def test_training_never_sees_what_is_held_out():
    for recipe in [*AUTOENCODERS.values(), *DIFFUSIONS.values()]:
        assert recipe.scenes.split == "train", recipe.name


def test_kl_first_stage():
    ae = build_autoencoder(replace(AUTOENCODERS["micro"], codebook_size=None))
    assert ae.encode(torch.zeros(1, 3, 32, 32)).shape == (1, 3, 8, 8)
    assert isinstance(ae.bottleneck, KLBottleneck) and ae.bottleneck.weight == 1e-6


def test_unknown_names_are_answered_with_names():
    with pytest.raises(ValueError, match="tiny, tiny_l1, small, small_fine, speedrun, base"):
        find_recipe("autoencoder", "huge")
    with pytest.raises(ValueError, match="autoencoder, text, diffusion"):
        find_recipe("vae", "tiny")
    assert find_recipe("diffusion", "base") is DIFFUSIONS["base"]
    with pytest.raises(ValueError, match='"unet" or "dit", got "?\'mamba'):
        build_diffusion(replace(DIFFUSIONS["micro"], net="mamba"), build_autoencoder(AUTOENCODERS["micro"]))
    with pytest.raises(ValueError, match=r"no parts \['txt'\].*text, language, class"):
        build_diffusion(replace(DIFFUSIONS["micro"], parts=("txt",)), build_autoencoder(AUTOENCODERS["micro"]))


def test_a_first_stage_goes_on_with_more_blocks_and_begins_as_it_was():
    small = replace(AUTOENCODERS["micro"], codebook_size=None)
    larger = replace(small, model=replace(small.model, num_res_blocks=2, decoder_channels=(8, 8, 16),
                                          decoder_blocks=(0, 1, 2)))
    small = replace(small, model=replace(larger.model, num_res_blocks=1))
    torch.manual_seed(0)
    source, target = build_autoencoder(small).eval(), build_autoencoder(larger).eval()
    start_first_stage(source, target)
    x = torch.rand(2, 3, 32, 32) * 2 - 1
    assert_close(target.decode(target.encode(x)), source.decode(source.encode(x)), atol=1e-6, rtol=0)
    assert len(target.state_dict()) > len(source.state_dict())
    for other in (replace(small, model=replace(small.model, channels=32)), AUTOENCODERS["micro"]):
        with pytest.raises(ValueError, match="more than residual blocks"):
            start_first_stage(build_autoencoder(other), target)


def test_a_decoder_with_levels_of_its_own_paints_every_pixel():
    ae = build_autoencoder(AUTOENCODERS["small"])
    assert ae.encode(torch.zeros(1, 3, 128, 128)).shape == (1, 12, 8, 8)
    assert ae.decode(torch.zeros(1, 12, 8, 8)).shape == (1, 3, 128, 128) and ae.last_layer.shape == (3, 24, 3, 3)
    model = AUTOENCODERS["small"].model
    for wrong in ({"decoder_channels": (24, 48)}, {"decoder_blocks": (1,)}, {"decoder_channels": None}):
        with pytest.raises(ValueError, match="decoder_channels"):
            replace(model, **wrong)


def test_bfloat16_is_measured_on_a_cpu():
    assert bf16_pays(torch.device("cpu")) in (True, False) and bf16_pays(torch.device("cuda"))
