"""Classes and layouts that begin as words: the words' tokens, and a network that cannot tell them from words."""

from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator
from torch.testing import assert_close

from ldm_mini import hub
from ldm_mini.scenes.scene import random_scene
from ldm_mini.scenes.vocabulary import NOUNS, UNIT
from ldm_mini.text import TextTransformer
from ldm_mini.training import build
from ldm_mini.training.from_words import described, layouts_from_words, word_tokens
from ldm_mini.training.recipes import AUTOENCODERS, DIFFUSIONS
from ldm_mini.training.stages import SecondStageRun

WORDS = replace(DIFFUSIONS["micro"], parts=("text",), text_width=32)
ALL = replace(WORDS, parts=("text", "class", "layout"))


def model(recipe):
    torch.manual_seed(0)
    return build.build_diffusion(recipe, build.build_autoencoder(AUTOENCODERS["micro"]))


def test_where_a_caption_names_an_object():
    words = model(WORDS).conditioner.text_transformer
    layout, captions, places = described(words, WORDS.scenes, 0, 40)
    ids = words.tokenize(captions)[0]
    told = 0
    for i, caption in enumerate(captions):
        for j, label in enumerate(layout["labels"][i].tolist()):
            count = caption.split().count(NOUNS[label]) if label >= 0 else 0
            assert (places[i, j] >= 0) == (count == 1)
            if count == 1:
                assert words.tokenizer.id_to_token(int(ids[i, places[i, j]])) == NOUNS[label]
                told += 1
    assert told > 30
    # a box is the square around its thing, cut at the picture's border
    for i, boxes in enumerate(layout["boxes"]):
        for thing, (x0, y0, x1, y1) in zip(random_scene((1 << 40) + i, WORDS.scenes).objects, boxes.tolist()):
            sides = [thing.x - thing.size / 2, thing.y - thing.size / 2, thing.x + thing.size / 2,
                     thing.y + thing.size / 2]
            assert [x0, y0, x1, y1] == pytest.approx([min(max(v / UNIT, 0), 1) for v in sides], abs=1e-6)


def test_a_class_is_its_word_and_no_class_is_silent():
    source, target = model(WORDS), model(replace(ALL, parts=("text", "class")))
    build.begin_as_words(target, build.start_from(source, target), ALL.scenes)
    words, classes = target.conditioner.parts
    words = words.text_transformer.eval()
    for noun in (3, 60):
        caption = f"a {NOUNS[noun]}"
        place = words.tokenizer.encode(caption).tokens.index(NOUNS[noun])
        assert_close(classes.encode({"class": torch.tensor([noun])}).context[0, 0], words([caption])[0][0, place])
    assert_close(classes.null({"class": torch.tensor([3])}).context[0, 0], words([""])[0][0, 1])


def test_beside_a_text_transformer_that_can_read_all_else_begins_as_words(tmp_path):
    """`--text` alone is enough; without it, and where captions are not read yet, classes begin at random."""
    recipe = replace(ALL, parts=("text", "class"))
    reader = TextTransformer(32, recipe.text_layers, recipe.text_heads, recipe.max_length)
    first, text = hub.save(tmp_path / "first", model(recipe).autoencoder), hub.save(tmp_path / "text", reader)
    accelerator = Accelerator(cpu=True)
    for given in (None, text):
        run = SecondStageRun(recipe, tmp_path / "run", accelerator, 0, 0, None, first, None, given, False)
        words, classes = run.model.conditioner.parts
        begun = classes.encode({"class": torch.arange(64)}).context[:, 0]
        assert torch.allclose(begun, word_tokens(words.text_transformer.eval()), atol=1e-5) == (given is not None)
        same = [torch.equal(a, b) for a, b in zip(words.text_transformer.state_dict().values(),
                                                  reader.state_dict().values())]
        assert all(same) == (given is not None)


def test_layouts_say_what_captions_say():
    """The nouns pass from the start; with steps, the error falls far below the variance of what is said."""
    errors = []
    for steps in (1, 150):
        ldm = model(ALL)
        words, _, layouts = ldm.conditioner.parts
        before = {name: v.clone() for name, v in words.state_dict().items()}
        errors.append(layouts_from_words(words.text_transformer, layouts, ALL.scenes, steps, batch_size=32))
        assert all(torch.equal(v, before[name]) for name, v in words.state_dict().items())
    assert errors[0] > 1 and errors[1] < 0.5, errors  # 0.40; a transformer that can read is at 0.14 after 400
    again = model(ALL).conditioner.parts
    assert layouts_from_words(again[0].text_transformer, again[2], ALL.scenes, 150, batch_size=32) == errors[1]
