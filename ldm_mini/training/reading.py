"""A text transformer learns to read before it is asked to say anything to a U-Net.

Stable Diffusion's text encoder came from CLIP, where 400 million captions had to find their pictures. Here a caption
has to tell the scene it describes: which things, and of each the colour, the place and the size. No picture is needed,
so a few minutes on one core are enough. Told in notebook 10.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..attention import Attention
from ..scenes.scene import SceneConfig, random_scene
from ..scenes.vocabulary import BACKGROUND_INDEX, BACKGROUNDS, COLOR_INDEX, COLORS, NOUN_INDEX, NOUNS, UNIT
from ..text import TextTransformer
from ..train import Log, TrainState, lr_factor

PLACES, SIZES = 6, 4                            # a centre is told to a sixth of the picture, a size in four steps
SMALLEST, STEP = 72 / UNIT, 24 / UNIT           # of things, and from one step of size to the next
ANSWERS = {"there": 1, "color": len(COLORS) + 1, "x": PLACES, "y": PLACES, "size": SIZES}


class SceneReader(nn.Module):
    """A text transformer with one question per noun, asked by cross attention as a U-Net will: is it there, and how?"""

    def __init__(self, text_transformer: TextTransformer):
        super().__init__()
        width = text_transformer.width
        self.text_transformer = text_transformer
        # one question for each noun, and one for the background
        self.questions = nn.Parameter(torch.randn(len(NOUNS) + 1, width) * 0.5)
        self.attention = Attention(width, width, head_dim=width // text_transformer.heads)
        self.norm = nn.LayerNorm(width)
        self.things, self.background = nn.Linear(width, sum(ANSWERS.values())), nn.Linear(width, len(BACKGROUNDS))

    def forward(self, captions: list[str]) -> dict[str, Tensor]:
        """B captions -> logits: "there" (B,64), "color", "x", "y", "size" (B,64,n), "background" (B,16)."""
        words, mask = self.text_transformer(captions)
        asked = self.questions.expand(len(captions), -1, -1)
        heard = self.norm(self.attention(asked, words, mask))                   # (B, 65, width)
        parts = self.things(heard[:, :-1]).split(list(ANSWERS.values()), dim=-1)
        answers = dict(zip(ANSWERS, parts, strict=True))
        return {**answers, "there": answers["there"][..., 0], "background": self.background(heard[:, -1])}

    def loss(self, batch: dict) -> tuple[Tensor, dict]:
        """A batch of `facts_stream` -> loss (), and for the log how often each answer is right."""
        answers = self(batch["caption"])
        there = batch["there"].to(answers["there"].device)
        loss = F.binary_cross_entropy_with_logits(answers["there"], there.float(), reduction="none").sum(1).mean()
        right = {"there": ((answers["there"] > 0) == there).all(1)}
        for name in ("color", "x", "y", "size", "background"):
            truth, logits = batch[name].to(there.device), answers[name]
            known = truth >= 0
            loss = loss + F.cross_entropy(logits[known], truth[known])
            right[name] = logits.argmax(-1)[known] == truth[known]
        return loss, {f"{name}_right": value.float().mean() for name, value in right.items()}


def facts_stream(config: SceneConfig, batch_size: int, start_step: int = 0, seed: int = 0):
    """Endless batches of captions and what they say; step k always has the same ones.

    "caption": B strings; "there" (B,64) bool; "color" (0 = as it is), "x", "y", "size" (B,64) and "background" (B,),
    int64, -1 where there is nothing to tell.
    """
    step = start_step
    while True:
        first = (seed << 32) + step * batch_size
        scenes = [random_scene(index, config) for index in range(first, first + batch_size)]
        facts = {name: torch.full((batch_size, len(NOUNS)), -1) for name in ("color", "x", "y", "size")}
        for i, scene in enumerate(scenes):
            nouns = [o.noun for o in scene.objects]
            for o in scene.objects:
                noun = NOUN_INDEX[o.noun]
                facts["color"][i, noun] = COLOR_INDEX.get(o.color, -1) + 1
                # of "three stars" nobody can say where "the" star is
                if nouns.count(o.noun) == 1:
                    facts["x"][i, noun], facts["y"][i, noun] = (min(v * PLACES // UNIT, PLACES - 1) for v in (o.x, o.y))
                    facts["size"][i, noun] = min(max(int((o.size / UNIT - SMALLEST) / STEP), 0), SIZES - 1)
        yield {"caption": [scene.caption for scene in scenes], **facts, "there": facts["color"] >= 0,
               "background": torch.tensor([BACKGROUND_INDEX[scene.background] for scene in scenes])}
        step += 1


def train_reader(state: TrainState, batches, steps: int, *, warmup: int = 0, decay: str = "cosine"):
    """Train state.model, a SceneReader, until `steps` steps are done; yields a Log after each."""
    state.model.train()
    for batch in batches:
        if state.step >= steps:
            return
        state.reseed()
        with state.autocast():
            loss, right = state.model.loss(batch)
        measured = state.update(loss, lr_factor(state.step, steps, warmup, decay))
        yield Log(state.step, loss=loss.detach(), **right, **measured)
