"""A tokenizer of a dozen words, for tests that need their own."""

from tokenizers import Tokenizer, models, pre_tokenizers, processors

WORDS = "[PAD] [UNK] [BOS] [EOS] a red blue apple dog left of the".split()


def tiny_tokenizer():
    """It puts [BOS] and [EOS] around the words it knows."""
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="[BOS] $A [EOS]",
                                                             special_tokens=[("[BOS]", 2), ("[EOS]", 3)])
    return tokenizer
