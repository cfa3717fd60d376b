"""A frozen language model as text encoder: the code on a tiny random BERT; with the extra, on MiniLM itself."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch.testing import assert_close

from ldm_mini import hub, tasks
from ldm_mini.__main__ import main
from ldm_mini.files import FileError, load_safetensors, save_safetensors
from ldm_mini.latent_diffusion import LatentDiffusion
from ldm_mini.released import language
from ldm_mini.released.language import FrozenTextEncoder, LanguageConditioner
from ldm_mini.training import build, recipes

WORDS = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "a", "red", "dog", "toad", "##stool", "##s", "on", ","]
CAPTIONS = ["a red toadstools", "a dog", ""]
installed = pytest.mark.skipif(language.find_language_model() is None, reason='pip install "ldm_mini[language]"')


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A BERT of two small layers with random weights and twelve pieces of words."""
    from transformers import BertConfig, BertModel

    path = tmp_path_factory.mktemp("bert")
    torch.manual_seed(0)
    config = BertConfig(vocab_size=len(WORDS), hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
                        intermediate_size=32, max_position_embeddings=40, hidden_dropout_prob=0.5)
    model = BertModel(config)
    (path / "config.json").write_text(json.dumps(config.to_dict()))
    save_safetensors(path / "model.safetensors", model.state_dict())
    tokenizer = Tokenizer(models.WordPiece({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)])
    tokenizer.enable_padding(length=30)                                         # MiniLM's pads too; ours must not
    tokenizer.save(str(path / "tokenizer.json"))
    return path


@pytest.fixture
def encoder(folder):
    return FrozenTextEncoder(folder)


def conditioner(encoder, seed=0, **options):
    torch.manual_seed(seed)
    return LanguageConditioner(16, 1, 2, 8, encoder=encoder, **options).eval()


def test_a_word_is_the_mean_of_its_pieces_between_begin_and_end(encoder):
    words, mask = encoder(CAPTIONS, 8)
    assert words.shape == (3, 8, 16) and mask.sum(1).tolist() == [5, 4, 2]
    assert not words[~mask].any()
    ids = torch.tensor([[1, 4, 5, 7, 8, 9, 2]])                                 # a red toad ##stool ##s
    hidden = encoder.model(ids).last_hidden_state[0]
    expected = torch.stack([hidden[0], hidden[1], hidden[2], hidden[3:6].mean(0), hidden[6]])
    assert_close(words[0, :5], expected)


def test_neither_neighbours_in_the_batch_nor_dropout_change_a_caption(encoder):
    alone = torch.cat([encoder([caption], 8)[0] for caption in CAPTIONS])
    assert_close(encoder(CAPTIONS, 8)[0], alone)


def test_long_captions_are_cut_and_keep_their_end(encoder):
    long = "a red dog on a red dog on a red toadstools"
    words, mask = encoder([long], 6)
    assert mask.all() and words.shape == (1, 6, 16)
    assert_close(words[0, [0, 1, -1]], encoder([long], 24)[0][0, [0, 1, 12]])
    with pytest.raises(TypeError, match="str"):
        encoder("a dog", 8)                                                     # not letter by letter


def test_what_is_cut_is_told(encoder):
    reader = conditioner(encoder)                               # of 8 places, two of which begin and end
    told = reader.remarks({"caption": ["a red dog on a red dog on a red toadstools", "a red toadstools on a dog", ""]})
    assert told == ['A caption may have 6 words and marks; I do not read "dog on a red toadstools".']


def test_the_contract_of_conditioners(encoder):
    part = conditioner(encoder)
    cond, null = part.encode({"caption": CAPTIONS}), part.null({"caption": CAPTIONS})
    assert cond.context.shape == null.context.shape == (3, 8, 16) and cond.vector.shape == null.vector.shape == (3, 16)
    assert torch.equal(cond.mask[2], null.mask[0])
    assert_close(cond.context[2], null.context[0])
    assert not torch.allclose(cond.context[0], null.context[0])
    assert_close(cond.vector[1], cond.context[1, :4].mean(0))
    assert part.present({"caption": []}) and not part.present({"class": []})


def test_padding_is_not_read(encoder):
    part = conditioner(encoder)
    words, mask = part.read(["a dog"])
    other = words.masked_fill(~mask[:, :, None], 9.0)
    assert_close(part.adapt(words, mask).context[mask], part.adapt(other, mask).context[mask])


def test_only_the_adapter_trains_and_is_saved(encoder):
    part = conditioner(encoder).train()
    assert not any("encoder" in name for name in part.state_dict())
    before = {name: value.clone() for name, value in encoder.model.state_dict().items()}
    optimizer = torch.optim.SGD(part.parameters(), 0.1)
    part.encode({"caption": CAPTIONS}).vector.square().mean().backward()
    optimizer.step()
    assert all(p.grad is not None for p in part.parameters()) and not encoder.model.training
    assert all(torch.equal(value, before[name]) for name, value in encoder.model.state_dict().items())


def test_saved_and_loaded_with_the_same_language_model_only(folder, encoder, monkeypatch):
    part = conditioner(encoder)
    monkeypatch.setattr(language, "find_language_model", lambda: folder)        # as if it were in the wheel
    again = hub.build(json.loads(json.dumps(hub.describe(part))))
    again.load_state_dict(part.state_dict())
    assert_close(again.encode({"caption": CAPTIONS}).context, part.encode({"caption": CAPTIONS}).context)
    with pytest.raises(FileError, match="another language model"):
        hub.build({**hub.describe(part), "sha256": "0" * 64})
    with pytest.raises(FileError, match="another language model"):        # not MiniLM, though in its place
        FrozenTextEncoder()


def test_damaged_or_foreign_folders_are_refused(folder, tmp_path):
    with pytest.raises(FileError, match="model.safetensors does not exist"):
        FrozenTextEncoder(tmp_path)
    weights = load_safetensors(folder / "model.safetensors")
    save_safetensors(tmp_path / "model.safetensors", {k: v for k, v in weights.items() if "layer.1" not in k})
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    with pytest.raises(FileError, match="lacks 16 weights of a BERT"):
        FrozenTextEncoder(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')             # its config would build some BERT
    with pytest.raises((FileError, RuntimeError), match="BERT|size mismatch"):
        FrozenTextEncoder(tmp_path)


def test_without_the_extra_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setattr(language, "WHEEL", "no_such_wheel")
    with pytest.raises(ImportError, match=r'pip install "ldm_mini\[language\]"'):
        LanguageConditioner(16)


def test_nothing_of_it_is_imported_unless_asked():
    code = "import sys, ldm_mini.training.recipes, ldm_mini.hub; print('ldm_mini.released.language' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"


def test_a_model_trains_with_it_from_the_command_line(folder, encoder, monkeypatch, tmp_path):
    monkeypatch.setattr(language, "find_language_model", lambda: folder)
    monkeypatch.setattr(language, "MINILM_SHA256", encoder.sha256)
    quick = ["--recipe", "micro", "--device", "cpu", "--steps", "2", "--log-every", "2"]
    assert main(["train", "autoencoder", *quick, "--out", str(tmp_path / "a")]) == 0
    assert main(["train", "diffusion", *quick, "--latents", "8", "--language", "--out", str(tmp_path / "d"),
                 "--autoencoder", str(tmp_path / "a" / "model")]) == 0
    ldm = LatentDiffusion.from_pretrained(tmp_path / "d" / "model")
    kinds = [type(part).__name__ for part in ldm.conditioner.parts]
    assert kinds == ["LanguageConditioner", "ClassConditioner"]
    assert tasks.possible(ldm) == ["unconditional", "class", "text"]
    first, second = (ldm.sample({"caption": [caption]}, steps=2, seed=0) for caption in ("a dog", "a red toadstools"))
    assert first.shape == (1, 3, 32, 32) and first.isfinite().all()


def test_recipes_that_cannot_use_it_are_refused(capsys, encoder):
    assert main(["train", "autoencoder", "--recipe", "micro", "--language", "--out", "unused"]) != 0
    assert "--language is for diffusion" in capsys.readouterr().err and not Path("unused").exists()
    with pytest.raises(ValueError, match='in place of "text"'):
        build.build_conditioner(replace(recipes.MICRO_DIFFUSION, parts=("text", "language")),
                                recipes.MICRO_AUTOENCODER.model)
    recipe = replace(recipes.MICRO_DIFFUSION, parts=("language", "class"))
    assert build.cached_inputs(recipe.parts, None) == (("caption", "class"), None)


@installed
def test_minilm_knows_that_a_puppy_is_a_dog():
    encoder = FrozenTextEncoder()
    words, mask = encoder(["a dog", "a puppy", "a house", "a residence"], 8)
    assert encoder.width == 384 and encoder.sha256 == language.MINILM_SHA256
    dog, puppy, house, residence = torch.nn.functional.normalize(words[:, 2], dim=-1)
    assert dog @ puppy > dog @ residence and house @ residence > house @ puppy
