"""tau_theta (LDM eq. 3, app. E.2.1): a transformer trained with the U-Net makes captions into context tokens."""

from functools import lru_cache

from torch import Tensor, nn

from .files import checksums, data_path


@lru_cache(maxsize=1)
def load_tokenizer():
    """The shipped tokenizer of the caption grammar: a transformers `PreTrainedTokenizerFast` with pad, unk, bos, eos.

    Raises FileError if one of its files is missing or damaged.
    """
    from transformers import PreTrainedTokenizerFast  # slow to import, hence only here

    folder = data_path("tokenizer", "tokenizer.json").parent
    for name in checksums():
        if name.startswith("tokenizer/"):
            data_path(*name.split("/"))
    return PreTrainedTokenizerFast.from_pretrained(str(folder), local_files_only=True)


class TextTransformer(nn.Module):
    """A pre-LN transformer with learned positions over caption tokens: transformers' RobertaPreLayerNorm, fresh.

    Always max_length tokens, so that a caption and the empty caption stack for guidance; longer captions are cut.
    Padding is masked out (the paper's is not). vocab_size: None = the tokenizer's; tokenizer: None = the shipped one.
    """

    def __init__(self, width: int = 256, layers: int = 4, heads: int = 4, max_length: int = 24,
                 vocab_size: int | None = None, tokenizer=None, dropout: float = 0.0):
        from transformers import RobertaPreLayerNormConfig, RobertaPreLayerNormModel

        super().__init__()
        if width % heads:
            raise ValueError(f"TextTransformer: width {width} cannot be split into {heads} heads.")
        self.tokenizer = load_tokenizer() if tokenizer is None else tokenizer
        if vocab_size is None:
            vocab_size = len(self.tokenizer)
        elif vocab_size < len(self.tokenizer):
            raise ValueError(f"TextTransformer: vocab_size={vocab_size}, but the tokenizer has {len(self.tokenizer)} "
                             "tokens. Weights belong to the tokenizer they were trained with.")
        self.width, self.layers, self.heads, self.max_length = width, layers, heads, max_length
        self.vocab_size, self.dropout, pad = vocab_size, dropout, self.tokenizer.pad_token_id
        self.model = RobertaPreLayerNormModel(RobertaPreLayerNormConfig(
            vocab_size=vocab_size, hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads,
            intermediate_size=4 * width, max_position_embeddings=max_length + pad + 1, type_vocab_size=1,
            pad_token_id=pad, bos_token_id=self.tokenizer.bos_token_id, eos_token_id=self.tokenizer.eos_token_id,
            hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout, layer_norm_eps=1e-5,
        ), add_pooling_layer=False)

    def tokenize(self, captions: list[str]) -> tuple[Tensor, Tensor]:
        """B captions -> ids (B,M) int64, mask (B,M) bool with True at real tokens; M is always max_length."""
        if isinstance(captions, str) or not all(isinstance(caption, str) for caption in captions):
            raise ValueError('TextTransformer: captions must be a list of strings, such as ["a red apple"]; got '
                             f"{str(captions):.80}.")
        tokens = self.tokenizer(list(captions), padding="max_length", truncation=True, max_length=self.max_length,
                                return_tensors="pt")
        device = self.model.embeddings.word_embeddings.weight.device
        return tokens["input_ids"].to(device), tokens["attention_mask"].bool().to(device)

    def forward(self, captions: list[str]) -> tuple[Tensor, Tensor]:
        """B captions -> context (B,M,width), mask (B,M) bool, True at real tokens."""
        ids, mask = self.tokenize(captions)
        return self.model(input_ids=ids, attention_mask=mask.long()).last_hidden_state, mask

    def unknown_words(self, caption: str) -> list[str]:
        """The words of a caption that the tokenizer does not know: the model cannot tell one from another."""
        return [word for word in caption.split() if self.tokenizer.unk_token_id in self.tokenizer(word)["input_ids"]]


def pool(context: Tensor, mask: Tensor) -> Tensor:
    """context (B,M,D), mask (B,M) bool -> (B,D): the mean of the real tokens, one vector for a whole caption."""
    weights = mask.to(context.dtype)[:, :, None]                                # (B,M,1)
    return (context * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)
