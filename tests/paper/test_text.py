"""The caption transformer: fixed length, padding unheard, order heard, trained from scratch."""

import json

import pytest
import torch
from tiny_tokenizer import WORDS, tiny_tokenizer
from torch.testing import assert_close

from ldm_mini.files import FileError
from ldm_mini.hub import build, describe
from ldm_mini.text import TextTransformer, load_tokenizer, pool

CAPTIONS = ["a red apple left of the dog", "", "a dog"]


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture()
def transformer(tokenizer):
    torch.manual_seed(0)
    return TextTransformer(width=32, layers=2, heads=4, max_length=12, tokenizer=tokenizer)


def test_tokens_have_a_fixed_length_and_a_mask(transformer):
    ids, mask = transformer.tokenize(CAPTIONS)
    word = {w: i for i, w in enumerate(WORDS)}
    assert ids.shape == mask.shape == (3, 12) and ids.dtype == torch.int64 and mask.dtype == torch.bool
    assert ids[2].tolist() == [word["<s>"], word["a"], word["dog"], word["</s>"]] + [word["<pad>"]] * 8
    assert mask.sum(1).tolist() == [9, 2, 4]


def test_context_shape_and_gradients_to_every_weight(transformer):
    context, mask = transformer(CAPTIONS)
    assert context.shape == (3, 12, 32) and mask.shape == (3, 12)
    context[mask].square().sum().backward()
    silent = {key for key, p in transformer.named_parameters() if p.grad is None or p.grad.abs().max() == 0}
    assert all(key.endswith("key.bias") for key in silent)                      # to shift all scores changes no softmax


def test_it_is_pre_norm_with_gelu_and_has_no_pooling_layer(transformer):
    config = transformer.model.config
    assert config.hidden_act == "gelu" and config.intermediate_size == 4 * 32 and transformer.model.pooler is None
    assert "PreLayerNorm" in type(transformer.model).__name__ and transformer.model.dtype == torch.float32


def test_padding_is_not_heard(tokenizer, transformer):
    """The same weights with room for more padding say the same about the real tokens."""
    longer = TextTransformer(width=32, layers=2, heads=4, max_length=20, tokenizer=tokenizer)
    state = transformer.state_dict()
    key = "model.embeddings.position_embeddings.weight"
    state[key] = torch.cat([state[key], longer.state_dict()[key][len(state[key]):]])
    longer.load_state_dict(state)
    short, mask = transformer.eval()(CAPTIONS)
    long, long_mask = longer.eval()(CAPTIONS)
    assert_close(long[long_mask], short[mask], atol=1e-5, rtol=1e-4)


def test_words_order_and_samples_matter_as_they_should(transformer):
    context, mask = transformer.eval()(["a red dog", "a dog red", "a blue dog"])
    vectors = pool(context, mask)
    assert (torch.cdist(vectors, vectors) + torch.eye(3)).min() > 1e-3
    assert_close(transformer(["a blue dog"])[0], context[2:], atol=1e-5, rtol=1e-4)


def test_long_captions_are_cut_but_still_end(transformer):
    ids, mask = transformer.tokenize(["dog " * 50])
    assert ids.shape == (1, 12) and mask.all() and ids[0, -1] == transformer.tokenizer.eos_token_id


def test_pool_is_the_mean_of_real_tokens():
    context, mask = torch.randn(2, 4, 3), torch.tensor([[True, True, False, False], [False] * 4])
    assert_close(pool(context, mask), torch.stack([context[0, :2].mean(0), torch.zeros(3)]))


def test_unknown_words_are_named(transformer):
    assert transformer.unknown_words("a purple dog of the queen") == ["purple", "queen"]
    assert transformer.unknown_words("a red dog") == []


def test_config_rebuilds_it(tokenizer, transformer, monkeypatch):
    monkeypatch.setattr("ldm_mini.text.load_tokenizer", lambda: tokenizer)     # a tokenizer is in no config
    again = build(json.loads(json.dumps(describe(transformer))))
    again.load_state_dict(transformer.state_dict())
    assert_close(again.eval()(CAPTIONS)[0], transformer.eval()(CAPTIONS)[0], atol=0, rtol=0)


def test_dropout_acts_in_training_only(tokenizer):
    transformer = TextTransformer(width=32, layers=1, heads=4, max_length=12, tokenizer=tokenizer, dropout=0.5)
    assert not torch.allclose(transformer(CAPTIONS)[0], transformer(CAPTIONS)[0])
    assert_close(transformer.eval()(CAPTIONS)[0], transformer(CAPTIONS)[0], atol=0, rtol=0)


def test_bad_input_is_explained(tokenizer, transformer):
    for bad in ("a single string", [3, 4]):
        with pytest.raises(ValueError, match="list of strings"):
            transformer(bad)
    with pytest.raises(ValueError, match="heads"):
        TextTransformer(width=30, heads=4, tokenizer=tokenizer)
    with pytest.raises(ValueError, match="vocab_size=3"):
        TextTransformer(width=32, vocab_size=3, tokenizer=tokenizer)


def test_a_missing_tokenizer_is_named(monkeypatch):
    monkeypatch.setattr("ldm_mini.files.checksums", dict)
    load_tokenizer.cache_clear()
    try:
        with pytest.raises(FileError, match="tokenizer/tokenizer.json"):
            load_tokenizer.__wrapped__()
    finally:
        load_tokenizer.cache_clear()


def test_the_shipped_tokenizer_works():
    transformer = TextTransformer(width=32, layers=1, heads=2)
    assert transformer.vocab_size == len(load_tokenizer())
    ids, mask = transformer.tokenize(["a red apple to the left of a dog on a blue background", ""])
    assert transformer.tokenizer.unk_token_id not in ids.tolist()[0] and mask.any(1).all()
    assert ids.shape == (2, transformer.max_length) and not mask[0].all()       # it fits, with room to spare
    assert transformer.unknown_words("a red xylophonist") == ["xylophonist"]
