"""The caption transformer: fixed length, padding unheard, order heard, trained from scratch, of torch's own parts."""

import subprocess
import sys

import pytest
import torch
from tiny_tokenizer import WORDS, tiny_tokenizer
from torch.testing import assert_close

from ldm_mini import files
from ldm_mini.text import TextTransformer, load_tokenizer, pool, short

CAPTIONS = ["a red apple left of the dog", "", "a dog"]
TOKENIZER = tiny_tokenizer()


@pytest.fixture()
def transformer():
    torch.manual_seed(0)
    return TextTransformer(width=32, layers=2, heads=4, max_length=12, tokenizer=TOKENIZER)


def test_tokens_have_a_fixed_length_and_a_mask(transformer):
    ids, mask = transformer.tokenize(CAPTIONS)
    word = {w: i for i, w in enumerate(WORDS)}
    assert ids.shape == mask.shape == (3, 12) and ids.dtype == torch.int64 and mask.dtype == torch.bool
    assert ids[2].tolist() == [word["[BOS]"], word["a"], word["dog"], word["[EOS]"]] + [word["[PAD]"]] * 8
    assert mask.sum(1).tolist() == [9, 2, 4]
    assert len(TOKENIZER.encode("a dog").ids) == 4 and len(TOKENIZER.encode("dog " * 50).ids) == 52, "it was copied"
    ids, mask = transformer.tokenize(["dog " * 50])
    assert ids.shape == (1, 12) and mask.all() and ids[0, -1] == word["[EOS]"], "it is cut, but still ends"


def test_a_caption_of_full_length_is_read_to_its_last_word():
    """24 tokens are 22 words between begin and end: no padding, nothing cut; one word more is cut, and said."""
    transformer, word = TextTransformer(16, 1, 2, tokenizer=TOKENIZER).eval(), {w: i for i, w in enumerate(WORDS)}
    full = ["red " * 21 + "dog", "red " * 21 + "apple"]
    ids, mask = transformer.tokenize(full)
    assert ids.shape == (2, 24) and mask.all() and transformer.remarks(full) == []
    assert ids[0].tolist() == [word["[BOS]"], *[word["red"]] * 21, word["dog"], word["[EOS]"]]
    with torch.no_grad():
        assert not torch.allclose(*pool(*transformer(full)), atol=1e-4)
    (said,) = transformer.remarks(["red " * 22 + "dog"])
    assert "22 words" in said and said.endswith('I do not read "dog".')


def test_context_shape_and_gradients_to_every_weight(transformer):
    context, mask = transformer(CAPTIONS)
    assert context.shape == (3, 12, 32) and context.dtype == torch.float32 and mask.shape == (3, 12)
    context[mask].square().sum().backward()
    assert not [key for key, p in transformer.named_parameters() if p.grad is None or p.grad.abs().max() == 0]


def test_its_layers_are_pre_norm_with_gelu_and_no_dropout(transformer):
    """Written out: x + attention(norm1(x)), x + mlp(norm2(x)), one norm at the end; training changes nothing."""
    ids, mask = transformer.tokenize(CAPTIONS)
    h = transformer.norm(transformer.words(ids) + transformer.positions)
    for layer in transformer.encoder.layers:
        q, k, v = (t.unflatten(2, (4, 8)).transpose(1, 2) for t in torch.nn.functional.linear(
            layer.norm1(h), layer.self_attn.in_proj_weight, layer.self_attn.in_proj_bias).chunk(3, dim=-1))
        scores = (q @ k.mT / 8**0.5).masked_fill(~mask[:, None, None], -torch.inf)
        h = h + layer.self_attn.out_proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
        h = h + layer.linear2(torch.nn.functional.gelu(layer.linear1(layer.norm2(h))))
        assert layer.linear1.out_features == 4 * 32
    h = transformer.encoder.norm(h)
    assert_close(transformer.train()(CAPTIONS)[0][mask], h[mask], atol=1e-5, rtol=1e-4)
    with torch.no_grad():                                                       # torch has a faster way here
        assert_close(transformer.eval()(CAPTIONS)[0][mask], h[mask], atol=1e-5, rtol=1e-4)


def test_words_and_places_begin_alike(transformer):
    for weight in (transformer.words.weight, transformer.positions):
        assert_close(weight.std(), torch.tensor(0.02), atol=0.004, rtol=0)


def test_padding_is_not_heard(transformer):
    """The same weights with room for more padding say the same about the real tokens."""
    longer = TextTransformer(width=32, layers=2, heads=4, max_length=20, tokenizer=TOKENIZER)
    state = transformer.state_dict()
    state["positions"] = torch.cat([state["positions"], longer.positions.detach()[12:]])
    longer.load_state_dict(state)
    short, mask = transformer.eval()(CAPTIONS)
    long, long_mask = longer.eval()(CAPTIONS)
    assert_close(long[long_mask], short[mask], atol=1e-5, rtol=1e-4)


def test_words_order_and_samples_matter_as_they_should(transformer):
    context, mask = transformer.eval()(["a red dog", "a dog red", "a blue dog"])
    vectors = pool(context, mask)
    assert (torch.cdist(vectors, vectors) + torch.eye(3)).min() > 1e-3
    assert_close(transformer(["a blue dog"])[0], context[2:], atol=1e-5, rtol=1e-4)


def test_pool_is_the_mean_of_real_tokens():
    context, mask = torch.randn(2, 4, 3), torch.tensor([[True, True, False, False], [False] * 4])
    assert_close(pool(context, mask), torch.stack([context[0, :2].mean(0), torch.zeros(3)]))


def test_unknown_words_are_named(transformer):
    assert transformer.unknown_words("a purple dog of the queen") == ["purple", "queen"]
    assert transformer.unknown_words("a red dog") == []


def test_what_is_not_read_is_said(transformer):
    assert transformer.remarks(["a red dog", ""]) == []
    assert transformer.remarks(["a dgo", "a zebra", "zebra"]) == ['I do not know "dgo"; did you mean "dog"?',
                                                             'I do not know "zebra".']
    assert transformer.remarks(["a reed dog"]) == ['I do not know "reed"; did you mean "red"?']
    (only,) = transformer.remarks(["a dog left of the red apple left of the blue apple"])
    assert "10 words" in only and only.endswith('I do not read "blue apple".')
    many = transformer.remarks([" ".join(f"zq{i}" for i in range(10))])         # eight are named, and what is too long
    assert len(many) == 9 and many[8] == "I do not know 2 more words either."
    assert [short("x" * n) for n in (60, 61)] == ["x" * 60, "x" * 60 + " ..."]
    narrow = TextTransformer(32, 1, 2, 12, TOKENIZER, known=("dog", "red", "a"))        # has seen less than is there
    assert narrow.unknown_words("a red dog left of the apple") == ["left", "of", "the", "apple"]
    assert narrow.remarks(["a blue dog"]) == ['I do not know "blue". I know: dog, red, a ...']


def test_a_missing_tokenizer_is_named(monkeypatch):
    monkeypatch.setattr(files, "checksums", dict)
    files.data_path.cache_clear()
    with pytest.raises(files.FileError, match="tokenizer/tokenizer.json"):
        load_tokenizer.__wrapped__()


def test_the_shipped_tokenizer_works():
    transformer = TextTransformer(width=32, layers=1, heads=2)
    assert len(transformer.words.weight) == load_tokenizer().get_vocab_size()
    assert load_tokenizer().token_to_id("[PAD]") == 0
    ids, mask = transformer.tokenize(["a red apple to the left of a dog on a blue background", ""])
    assert transformer.tokenizer.token_to_id("[UNK]") not in ids.tolist()[0] and mask.any(1).all()
    assert ids.shape == (2, transformer.max_length) and not mask[0].all()       # it fits, with room to spare
    assert transformer.unknown_words("a red xylophonist") == ["xylophonist"]


def test_the_shipped_model_draws_captions_without_transformers():
    """`import transformers` takes longer than everything else together."""
    code = ("import sys; from ldm_mini.latent_diffusion import LatentDiffusion as L; "
            "L.from_pretrained('emoji-scenes').sample({'caption': ['a red apple']}, steps=1, seed=0); "
            "assert 'transformers' not in sys.modules")
    subprocess.run([sys.executable, "-c", code], check=True)
