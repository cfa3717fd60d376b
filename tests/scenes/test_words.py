"""Which words captions have, and how many: what a model knows of them, and what it can read at once."""

import hashlib
from dataclasses import replace

import build_tokenizer
import pytest

from ldm_mini.scenes import vocabulary as v
from ldm_mini.scenes.captions import ARRANGEMENTS, RELATIONS, Description, write
from ldm_mini.scenes.scene import CENTRED_SCENES, MICRO_SCENES, TINY_SCENES, SceneConfig, random_scene
from ldm_mini.scenes.words import words_of
from ldm_mini.text import TextTransformer, load_tokenizer


@pytest.mark.parametrize("config, never", [
    (TINY_SCENES, {"zebra", "moon", "big", "2", "noto"}), (SceneConfig(p_casual=0.5), {"zebra"}),
    (replace(CENTRED_SCENES, p_casual=0.5), {"big", "three", "corner"}), (MICRO_SCENES, {"rocket", "two", "night"}),
    (replace(TINY_SCENES, p_paraphrase=0.0), {"home", "beside", "style"}),
    (replace(MICRO_SCENES, p_paraphrase=0.0, p_casual=0.4), {"2", "we"})])
def test_all_words_of_captions_and_few_others(config, never):
    known = words_of(config)
    seen = {word for seed in range(600) for word in random_scene(seed, config).caption.replace(",", " , ").split()}
    assert seen <= set(known) and not never & set(known) and len(set(known)) == len(known)
    assert known[:len(config.nouns or v.NOUNS)] == (config.nouns or v.NOUNS)
    if config.nouns:
        assert len(set(known) - seen) <= 10


def test_the_longest_casual_captions_have_at_most_24_tokens():
    def longest(options):
        return max(options, key=lambda way: len(str(way).replace(",", " , ").split()))

    things = (("bird", "red"), ("teddy", "red"), ("bird", "blue"))
    claims = [(1, None, position, size) for position in (None, "middle", "bottom right") for size in (None, "big")]
    claims += [(2, relation, None, None) for relation in (None, *RELATIONS)]
    claims += [(3, relation, None, None) for relation in (None, *ARRANGEMENTS)]
    for count, relation, position, size in claims:
        for background in (None, *v.BACKGROUNDS):
            for style in (None, "noto") if count < 3 else (None,):
                caption = write(Description(things[:count], relation, background, position, style, size), longest, True)
                assert len(caption.replace(",", " , ").split()) <= 22, caption


def test_the_tokenizer_knows_the_grammar_and_keeps_its_numbers():
    """Numbers are rows of trained weights: the first 157 words are those of the first tokenizer, in its order."""
    vocabulary = load_tokenizer().get_vocab()
    first = sorted(vocabulary, key=vocabulary.get)
    assert hashlib.sha256(" ".join(first[:157]).encode()).hexdigest()[:16] == "952567924a9ed86f"
    assert first[157:] == "1 2 3 beneath big centre draw large small tiny with".split()
    assert build_tokenizer.build(vocabulary).to_str() == load_tokenizer().to_str()
    assert build_tokenizer.build({}).get_vocab().keys() | {"stars"} == vocabulary.keys()


def test_every_word_that_is_written_has_a_token_and_captions_are_not_cut():
    text = TextTransformer(8, 1, 1)
    assert [word for word in words_of(SceneConfig(p_casual=0.5)) if text.unknown_words(word)] == []
    casual = SceneConfig(p_casual=1.0)
    assert text.remarks([random_scene(seed, casual).caption.title() + "?" for seed in range(1000)]) == []
