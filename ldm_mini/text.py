"""tau_theta (LDM eq. 3, app. E.2.1): a transformer, trained with the U-Net, makes context tokens of a caption.

Built in notebook 10.
"""

import difflib
from functools import lru_cache

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from .asked import at_least
from .files import data_path


def transformer(width: int, layers: int, heads: int) -> nn.TransformerEncoder:
    """(B,M,width) -> (B,M,width): pre-LN layers, one more norm at the end. Of captions and of layouts."""
    layer = nn.TransformerEncoderLayer(width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True,
                                       norm_first=True)
    return nn.TransformerEncoder(layer, layers, nn.LayerNorm(width), enable_nested_tensor=False)


@lru_cache(maxsize=1)
def load_tokenizer() -> Tokenizer:
    """The shipped tokenizer of the caption grammar. Raises FileError if its file is missing or damaged."""
    return Tokenizer.from_file(str(data_path("tokenizer", "tokenizer.json")))


class TextTransformer(nn.Module):
    """Learned positions and a transformer over the tokens of a caption. Padding is masked out (the paper's is not).

    Always max_length tokens, so that a caption and the empty caption stack for guidance; longer captions are cut.
    tokenizer: one of `tokenizers` with an [UNK], whose token 0 stands for padding; None = the shipped one.
    known: the words that it was trained on, nouns first; None = all that the tokenizer has.
    vocabulary: how many of the tokenizer's words have a row in its table; None = all. A model that was trained before
    words were added keeps its number: later ones are unknown to it.
    """

    def __init__(self, width: int = 256, layers: int = 4, heads: int = 4, max_length: int = 24,
                 tokenizer: Tokenizer | None = None, known: tuple[str, ...] | None = None,
                 vocabulary: int | None = None):
        super().__init__()
        at_least(1, "TextTransformer", width=width, layers=layers, heads=heads)
        at_least(2, "TextTransformer", max_length=max_length)                   # where a caption begins and ends
        self.width, self.layers, self.heads, self.max_length = width, layers, heads, max_length
        self.known = None if known is None else tuple(known)
        # a copy, since the one that was given need not pad and cut as this one must
        self.tokenizer = Tokenizer.from_str((tokenizer or load_tokenizer()).to_str())
        self.tokenizer.enable_padding(length=max_length)
        self.tokenizer.enable_truncation(max_length)
        self.vocabulary = vocabulary or self.tokenizer.get_vocab_size()
        self.words = nn.Embedding(self.vocabulary, width)
        self.positions = nn.Parameter(torch.empty(max_length, width))
        # words and places weigh the same at first: from words of deviation 1 the order was hardly learned
        for weight in (self.words.weight, self.positions):
            nn.init.normal_(weight, std=0.02)
        self.norm = nn.LayerNorm(width)
        self.encoder = transformer(width, layers, heads)

    def tokenize(self, captions: list[str]) -> tuple[Tensor, Tensor]:
        """B captions -> ids (B,M) int64, mask (B,M) bool with True at real tokens; M is always max_length."""
        coded, device = self.tokenizer.encode_batch(captions), self.positions.device
        ids = torch.tensor([caption.ids for caption in coded], device=device)
        ids = ids.masked_fill(ids >= self.vocabulary, self.tokenizer.token_to_id("[UNK]"))
        return ids, torch.tensor([caption.attention_mask for caption in coded], device=device).bool()

    def forward(self, captions: list[str]) -> tuple[Tensor, Tensor]:
        """B captions -> context (B,M,width), mask (B,M) bool, True at real tokens."""
        ids, mask = self.tokenize(captions)
        h = self.norm(self.words(ids) + self.positions)                         # (B,M,width)
        # every word reads every other; torch's mask has True where NOT to look
        return self.encoder(h, src_key_padding_mask=~mask), mask

    def unknown_words(self, caption: str) -> list[str]:
        """The words of a caption, as the tokenizer divides it, that this model was never trained on."""
        normalizer, divide = self.tokenizer.normalizer, self.tokenizer.pre_tokenizer
        text = caption if normalizer is None else normalizer.normalize_str(caption)
        words = text.split() if divide is None else [word for word, _ in divide.pre_tokenize_str(text)]
        unknown = self.tokenizer.token_to_id("[UNK]")
        return [word for word in words if (self.known is not None and word not in self.known)
                or unknown in self.tokenizer.encode(word).ids]

    def remarks(self, captions: list[str]) -> list[str]:
        """Sentences about what of these captions is not read: unknown words, and what is beyond max_length."""
        captions = dict.fromkeys(captions)
        unknown = list(dict.fromkeys(w for c in captions for w in self.unknown_words(c)))
        said = [self._unknown(short(word)) for word in unknown[:8]]
        if more := unknown[8:]:
            said.append(f"I do not know {len(more)} more words either.")
        for caption in captions:
            if (coded := self.tokenizer.encode(caption)).overflowing:
                rest = short(caption[max(end for _, end in coded.offsets):].strip(" ,"))
                said.append(f'A caption may have {self.max_length - 2} words and commas; I do not read "{rest}".')
        return said

    def _unknown(self, word: str) -> str:
        words = self.known or [w for w in self.tokenizer.get_vocab() if w.isalnum()]
        if near := difflib.get_close_matches(word, words, n=1, cutoff=0.65):
            return f'I do not know "{word}"; did you mean "{near[0]}"?'
        return f'I do not know "{word}".' + (f" I know: {', '.join(self.known[:8])} ..." if self.known else "")


def short(text: str, most: int = 60) -> str:
    """For a message: no more than so many letters of it."""
    return text if len(text) <= most else f"{text[:most]} ..."


def pool(context: Tensor, mask: Tensor) -> Tensor:
    """context (B,M,D), mask (B,M) bool -> (B,D): the mean of the real tokens, one vector for a whole caption."""
    weights = mask.to(context.dtype)[:, :, None]                                # (B,M,1)
    return (context * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)
