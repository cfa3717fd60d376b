"""Build the tokenizer of the scene captions: every word of the caption grammar, known once and whole.

    python data/build/build_tokenizer.py && python data/checksums.py

WordPiece with a closed vocabulary: regular plurals are the noun plus "##s" or "##es", a word outside the grammar is one
[UNK], [BOS] and [EOS] stand around a caption. Written to `data/tokenizer/tokenizer.json`, as `tokenizers` reads it.
"""

from pathlib import Path

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

from ldm_mini.scenes import captions
from ldm_mini.scenes.vocabulary import COLORS, NOUNS, PLAIN

FILE = Path(__file__).resolve().parents[1] / "tokenizer" / "tokenizer.json"
SPECIAL = ("[PAD]", "[UNK]", "[BOS]", "[EOS]")


def grammar_words() -> list:
    """Every word and punctuation mark that a caption can contain, sorted; regular plurals left to their endings."""
    phrases = ["a an the one and , there are in style", *captions.LEADS, *captions.NUMBERS, *COLORS]
    for table in (captions.RELATIONS, captions.ARRANGEMENTS, captions.POSITIONS):
        phrases += [phrase for options in table.values() for phrase in options]
    phrases += [phrase for name in (*PLAIN, *captions.PLACE_WORDS) for phrase in captions.background_phrases(name)]
    phrases += [*captions.STYLE_WORDS.values(), *NOUNS, *captions.SYNONYMS.values()]
    words = {word for phrase in phrases for word in phrase.replace(",", " , ").split()}
    for noun in (*NOUNS, *captions.SYNONYMS.values()):
        many = captions.plural(noun).split()[-1]
        if not any(many == word + ending for word in words for ending in ("s", "es")):
            words.add(many)
    return sorted(words)


def build() -> Tokenizer:
    """The tokenizer, not yet saved."""
    vocabulary = {word: index for index, word in enumerate((*SPECIAL, "##s", "##es", *grammar_words()))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), normalizers.Replace(Regex(r"[.!]"), " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    around = [(name, vocabulary[name]) for name in ("[BOS]", "[EOS]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[BOS] $A [EOS]", special_tokens=around)
    tokenizer.add_special_tokens(list(SPECIAL))
    return tokenizer


if __name__ == "__main__":
    result = build()
    result.save(str(FILE))
    print(f"{result.get_vocab_size()} tokens written to {FILE.name}. Now run: python data/checksums.py")
