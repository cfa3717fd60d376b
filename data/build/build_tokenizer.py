"""Build the tokenizer of the scene captions: every word of the caption grammar, known once and whole.

    python data/build/build_tokenizer.py && python data/checksums.py

WordPiece with a closed vocabulary: regular plurals are the noun plus "##s" or "##es", a word outside the grammar is one
[UNK], [BOS] and [EOS] stand around a caption. Written to `data/tokenizer/tokenizer.json`, as `tokenizers` reads it. The
words of that file keep their numbers, which are rows of trained weights; new words come behind them.
"""

from pathlib import Path

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

from ldm_mini.files import read_json
from ldm_mini.scenes.captions import PUNCTUATION
from ldm_mini.scenes.scene import SceneConfig
from ldm_mini.scenes.words import words_of

FILE = Path(__file__).resolve().parents[1] / "tokenizer" / "tokenizer.json"
SPECIAL = ("[PAD]", "[UNK]", "[BOS]", "[EOS]")


def grammar_words() -> list:
    """Every word and punctuation mark that a caption can contain, sorted; regular plurals left to their endings."""
    words = set(words_of(SceneConfig(p_casual=0.5)))
    return sorted(words - {word + ending for word in words for ending in ("s", "es")})


def build(old: dict) -> Tokenizer:
    """The tokenizer, not yet saved. old: {word: number}, kept."""
    words = dict.fromkeys((*sorted(old, key=old.get), *SPECIAL, "##s", "##es", *grammar_words()))
    vocabulary = {word: index for index, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), normalizers.Replace(Regex(PUNCTUATION), " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    around = [(name, vocabulary[name]) for name in ("[BOS]", "[EOS]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[BOS] $A [EOS]", special_tokens=around)
    tokenizer.add_special_tokens(list(SPECIAL))
    return tokenizer


if __name__ == "__main__":
    result = build(read_json(FILE)["model"]["vocab"] if FILE.is_file() else {})
    result.save(str(FILE))
    print(f"{result.get_vocab_size()} tokens written to {FILE.name}. Now run: python data/checksums.py")
