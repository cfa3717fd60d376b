"""How the released models are conditioned, where that differs from the ways of `conditioners`: the parts whose weights
come with a published U-Net. `compvis_model` fits weights with CompVis names to them."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..attention import Attention
from ..concat_conditioners import ConcatConditioner
from ..cond import Cond, Conditioner, batch_size
from ..extras import extra
from ..files import FileError
from ..text import short

BERT, CLIP = "bert-base-uncased", "openai/clip-vit-large-patch14"              # tokenizers, by their name on the Hub
CLIP_FIELDS = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
               "max_position_embeddings", "hidden_act", "layer_norm_eps", "bos_token_id", "eos_token_id")


class ClassTable(Conditioner):
    """One token per class (cin256, cin256-v2). has_null: the last row is "no class", 1000 of cin256-v2; -1 means it."""

    def __init__(self, rows: int, dim: int, has_null: bool = True, key: str = "class"):
        super().__init__()
        self.rows, self.dim, self.has_null, self.key, self.keys = rows, dim, has_null, key, (key,)
        self.table = nn.Embedding(rows, dim)

    def encode(self, batch: dict) -> Cond:
        """batch[key] (B,) integers -> context (B,1,dim)"""
        classes = self._read_numbers(batch, self.key)
        # without a row for none, the table is asked for one that it does not have, and says so
        none = self.rows - 1 if self.has_null else self.rows
        return Cond(context=self.table(torch.where(classes < 0, none, classes))[:, None])

    def null(self, batch: dict) -> Cond:
        """The last row."""
        return self.encode({self.key: [-1] * batch_size(batch)})


class Labels(Conditioner):
    """The classes themselves, for a DiT that has its own table of them; num_classes, or -1, is "no class"."""

    def __init__(self, num_classes: int, key: str = "class"):
        super().__init__()
        self.num_classes, self.key, self.keys = num_classes, key, (key,)

    def encode(self, batch: dict) -> Cond:
        """batch[key] (B,) integers -> vector (B,) int64"""
        classes = self._read_numbers(batch, self.key)
        return Cond(vector=torch.where(classes < 0, self.num_classes, classes))

    def null(self, batch: dict) -> Cond:
        """num_classes for all."""
        device = getattr(batch.get(self.key), "device", None)
        return Cond(vector=torch.full((batch_size(batch),), self.num_classes, device=device))


class Words(Conditioner):
    """Base of text as tokens of a fixed number, padding and all, with no mask. batch[key]: B captions, or their ids.

    `tokens(ids)` makes (B,M,D) of ids (B,M).
    tokenizer: a transformers tokenizer, or a folder or name to load one from when the first caption comes; None if
    there are no captions, only ids (layouts).
    """

    def __init__(self, length: int, tokenizer, key: str):
        super().__init__()
        self.length, self.tokenizer, self.key, self.keys = length, tokenizer, key, (key,)
        self.arguments = {"tokenizer": getattr(tokenizer, "name_or_path", tokenizer and str(tokenizer))}   # for `hub`

    def encode(self, batch: dict) -> Cond:
        """-> context (B,M,D)"""
        ids = batch.get(self.key)
        ids = ids if isinstance(ids, Tensor) else self.tokenize(self._read_captions(batch, self.key))
        return Cond(context=self.tokens(ids.to(self.device)))

    def null(self, batch: dict) -> Cond:
        """The empty caption, computed once."""
        return self.encode({self.key: [""]})[[0] * batch_size(batch)]

    def tokenize(self, captions: list[str]) -> Tensor:
        """B captions -> ids (B,length)"""
        if self.tokenizer is None:
            raise ValueError(f"this model has no tokenizer: batch[{self.key!r}] must be ids (B,{self.length}).")
        return self._ids(captions, self.length)

    def _ids(self, captions: list[str], length: int) -> Tensor:
        return self.load_tokenizer()(captions, padding="max_length", truncation=True, max_length=length,
                                     return_tensors="pt")["input_ids"]

    def remarks(self, batch: dict) -> list[str]:
        """Of captions with more tokens than there are places."""
        if isinstance(batch[self.key], Tensor) or self.tokenizer is None:
            return []
        captions = list(dict.fromkeys(self._read_captions(batch, self.key)))
        # in twice the room, is there other than here, or more than padding behind it?
        room, here = self._ids([*captions, ""], 2 * self.length), self.tokenize(captions)
        more = (room[:-1, :self.length] != here).any(1) | (room[:-1, self.length:] != room[-1, self.length:]).any(1)
        return [f'A caption may have {self.length} tokens; I do not read the end of "{short(caption)}".'
                for caption, cut in zip(captions, more.tolist()) if cut]

    def load_tokenizer(self):
        """The tokenizer, which is loaded only when it is needed."""
        if not callable(self.tokenizer):
            with extra("course"):
                from transformers import AutoTokenizer

            try:
                self.tokenizer = AutoTokenizer.from_pretrained(self.tokenizer)
            except Exception as error:  # not there, no network, no access: its many classes differ between versions
                raise FileError(f"the tokenizer {self.tokenizer} could not be loaded ({type(error).__name__}); pass "
                                "tokenizer=, a folder or a transformers tokenizer.") from error
        return self.tokenizer


class TextEncoder(Words):
    """The paper's tau_theta (app. E.2.1): a pre-LN transformer with learned positions, 8 heads of 64 at any width.

    txt2img-1p4B: 32 layers of 1280, text2img256: of 640, both on BERT's tokens; layouts: 16 of 512 on their own.
    """

    def __init__(self, width: int, layers: int, vocabulary: int = 30522, length: int = 77, tokenizer=BERT,
                 key: str = "caption"):
        super().__init__(length, tokenizer, key)
        self.width, self.layers, self.vocabulary = width, layers, vocabulary
        self.words, self.positions = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        self.blocks = nn.ModuleList(TextBlock(width) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def tokens(self, ids: Tensor) -> Tensor:
        """ids (B,M) -> (B,M,width)"""
        # padding is read like words, as it was in the training of these
        h = self.words(ids) + self.positions.weight[:ids.shape[1]]
        for block in self.blocks:
            h = block(h)
        return self.norm(h)


class TextBlock(nn.Module):
    """Self-attention and a plain GELU MLP, each behind a LayerNorm and added to its input."""

    def __init__(self, width: int):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = Attention(width, num_heads=8, head_dim=64)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """(B,M,width) -> (B,M,width)"""
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ClipText(Words):
    """CLIP's text encoder, frozen, as Stable Diffusion uses it: the last layer's tokens, normed.

    config: of a transformers CLIPTextConfig, of which CLIP_FIELDS matter.
    """

    def __init__(self, config: dict, tokenizer=CLIP, key: str = "caption"):
        with extra("course"):
            from transformers import CLIPTextConfig, CLIPTextModel  # slow to import, hence only here

        config = {name: config[name] for name in CLIP_FIELDS if name in config}
        text_config = CLIPTextConfig(**config)
        super().__init__(text_config.max_position_embeddings, tokenizer, key)
        self.config, self.model = config, CLIPTextModel(text_config).eval().requires_grad_(False)

    def tokens(self, ids: Tensor) -> Tensor:
        """ids (B,M) -> (B,M,hidden_size)"""
        return self.model(input_ids=ids).last_hidden_state


class RescaledMap(ConcatConditioner):
    """A semantic map, halved `halvings` times, then mixed into few channels by a 1x1 convolution (sec. 4.3.2).

    batch[key]: (B,H,W) classes, or one channel per class (B,classes,H,W).
    """

    def __init__(self, classes: int, channels: int, halvings: int = 2, bias: bool = False, key: str = "semantic"):
        super().__init__(channels, 2**halvings, presence=False)
        self.classes, self.halvings, self.bias, self.key, self.keys = classes, halvings, bias, key, (key,)
        self.mix = nn.Conv2d(classes, channels, 1, bias=bias)

    def maps(self, batch: dict) -> Tensor:
        """-> (B,channels,h,w)"""
        maps = self._read(batch, self.key).to(self.device)
        if maps.ndim == 3:
            maps = F.one_hot(maps.long(), self.classes).movedim(3, 1).to(self.mix.weight.dtype)
        for _ in range(self.halvings):
            maps = F.interpolate(maps, scale_factor=0.5, mode="bilinear")
        return self.mix(maps)

    def image_size(self, batch: dict) -> tuple[int, int]:
        """The map's."""
        return tuple(batch[self.key].shape[-2:])
