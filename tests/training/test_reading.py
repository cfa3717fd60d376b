"""A text transformer that learns to read: its facts are the scene's, it reads after a few steps, a U-Net gets it."""

from dataclasses import replace

import pytest
import torch

from ldm_mini.scenes.scene import MICRO_SCENES, TINY_SCENES, random_scene
from ldm_mini.scenes.vocabulary import BACKGROUNDS, COLORS, NOUNS
from ldm_mini.text import TextTransformer
from ldm_mini.train import TrainState
from ldm_mini.training.build import build_autoencoder, build_diffusion, give_text
from ldm_mini.training.reading import PLACES, SceneReader, facts_stream, train_reader
from ldm_mini.training.recipes import AUTOENCODERS, DIFFUSIONS


def test_facts_are_the_scenes():
    batch = next(facts_stream(TINY_SCENES, 200, start_step=1))
    for i in range(200):
        scene = random_scene(200 + i, TINY_SCENES)
        assert batch["caption"][i] == scene.caption and BACKGROUNDS[batch["background"][i]] == scene.background
        assert {NOUNS[k] for k in batch["there"][i].nonzero().flatten().tolist()} == {o.noun for o in scene.objects}
        for o in scene.objects:
            noun, alone = NOUNS.index(o.noun), sum(p.noun == o.noun for p in scene.objects) == 1
            assert (None, *COLORS)[batch["color"][i, noun]] == o.color
            assert batch["x"][i, noun] == (o.x * PLACES // 256 if alone else -1)
            assert (batch["size"][i, noun] >= 0) == alone
    again = [next(facts_stream(TINY_SCENES, 8, 3, seed=1)) for _ in range(2)]
    assert torch.equal(again[0]["x"], again[1]["x"])


def test_it_reads_new_captions_after_a_few_steps():
    torch.manual_seed(0)
    torch.set_num_threads(1)
    scenes = replace(MICRO_SCENES, plain_backgrounds=True)
    state = TrainState(SceneReader(TextTransformer(64, 1, 2)), 3e-3, betas=(0.9, 0.99), muon_lr=1e-2)
    new = next(facts_stream(replace(scenes, split="val"), 64))
    before = state.model.loss(new)[1]
    logs = list(train_reader(state, facts_stream(scenes, 32), 150, warmup=5))
    after = state.model.loss(new)[1]
    assert len(logs) == 150 and before["there_right"] < 0.5
    assert after["there_right"] > 0.95 and after["background_right"] > 0.9


def test_a_second_stage_takes_the_transformer_or_says_why_not():
    reads, recipe = TextTransformer(16, 1, 2), DIFFUSIONS["micro"]
    ldm = build_diffusion(recipe, build_autoencoder(AUTOENCODERS["micro"]))
    give_text(reads, ldm)
    mine = ldm.conditioner.parts[0].text_transformer
    assert all(torch.equal(a, b) for a, b in zip(mine.parameters(), reads.parameters(), strict=True))
    with pytest.raises(ValueError, match="another shape"):
        give_text(TextTransformer(32, 1, 2), ldm)
    with pytest.raises(ValueError, match="reads no captions"):
        give_text(reads, build_diffusion(replace(recipe, parts=("class",)), build_autoencoder(AUTOENCODERS["micro"])))
