"""The weights in the clone: they load without a network, reconstruct, and draw what they are told."""

import json

import pytest
import torch

from ldm_mini.data import EmojiScenes, collate
from ldm_mini.evaluate import scenes_of
from ldm_mini.files import data_path
from ldm_mini.latent_diffusion import LatentDiffusion
from ldm_mini.metrics import psnr
from ldm_mini.recipes import TINY_NOUNS
from ldm_mini.recogniser import Recogniser
from ldm_mini.scoring import score_captions
from ldm_mini.vocabulary import NOUN_INDEX


@pytest.fixture(scope="module")
def ldm():
    return LatentDiffusion.from_pretrained("emoji-scenes")


def test_first_stage_reconstructs(ldm):
    config = scenes_of(json.loads(data_path("weights", "emoji-scenes", "config.json").read_text(encoding="utf-8")))
    scenes = EmojiScenes(config, length=16, start=5_000_000)
    images = collate([scenes[i] for i in range(16)])["image"]
    assert psnr(ldm.decode(ldm.encode(images)).clamp(-1, 1), images).mean() > 25


def test_latents_have_unit_scale(ldm):
    scenes = EmojiScenes(length=16, start=5_000_000)
    assert 0.8 < ldm.encode(collate([scenes[i] for i in range(16)])["image"]).std() < 1.25


@pytest.mark.parametrize("key", ["caption", "class"])
def test_draws_what_it_is_told(ldm, key):
    """One thing each: far above the 1/16 of chance, for captions and for classes alone."""
    captions = [f"{'an' if noun[0] in 'aou' else 'a'} {noun} on a white background" for noun in TINY_NOUNS]
    prompt = {"caption": captions, "class": torch.tensor([NOUN_INDEX[noun] for noun in TINY_NOUNS])}[key]
    images = ldm.sample({key: prompt}, steps=12, guidance_scale=3.0, seed=0)
    scores = score_captions(Recogniser.load().detect(images), captions)
    assert scores["object_recall"] > 0.5
    if key == "caption":
        assert scores["background_accuracy"] > 0.5


def test_a_negative_caption_leaves_the_class_to_be_guided(ldm):
    """The unwanted half has the negative words and no class; else the wanted class would cancel in c - u."""
    batch, words = {"class": torch.tensor([18, 4])}, {"caption": ["a cat", "a cat"]}
    got = ldm._negative(batch, words)
    text, klass = ldm.conditioner.parts
    torch.testing.assert_close(got.vector, text.encode(words).vector + klass.null(batch).vector)
    torch.testing.assert_close(got.context[:, -1:], klass.null(batch).context)
