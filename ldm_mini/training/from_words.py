"""Classes and layouts begin as words: a network that listens to captions understands them from the first step.

A U-Net that has learned words has large keys and so sharp attention. Tokens that are new to it and random are hardly
looked at, so they get hardly a gradient, so they stay random (measured: after 64,000 pictures the loss with a class or
a layout was that without any, to a thousandth). A class is therefore begun as the token of its word, and a layout's
transformer is first taught to say of each object what a caption would say of it.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..conditioners import ClassConditioner, LayoutConditioner
from ..scenes.scene import SceneConfig, random_scene
from ..scenes.vocabulary import NOUN_INDEX, NOUNS, UNIT
from ..text import TextTransformer


@torch.no_grad()
def word_tokens(words: TextTransformer) -> Tensor:
    """(64,width): of each noun, its token in "a dog"."""
    return words([f"a {noun}" for noun in NOUNS])[0][:, 2]                      # after the start and the article


def from_words(words: TextTransformer, parts: list, scenes: SceneConfig) -> None:
    """Begin these fresh parts of a conditioner as words, where they can be."""
    for part in parts:
        if isinstance(part, ClassConditioner) and part.token is not None:
            classes_from_words(words, part)
        if isinstance(part, LayoutConditioner):
            layouts_from_words(words, part, scenes)


@torch.no_grad()
def classes_from_words(words: TextTransformer, classes: ClassConditioner) -> None:
    """Each class is its word; no class is how an empty caption ends, which a network does not heed."""
    classes.token.weight[:len(NOUNS)] = word_tokens(words)
    classes.token.weight[-1] = words([""])[0][0, 1]


def layouts_from_words(words: TextTransformer, layouts: LayoutConditioner, scenes: SceneConfig, steps: int = 400,
                       batch_size: int = 64, lr: float = 2e-3) -> float:
    """Teach a fresh layout transformer, by `steps` batches of scenes that are never drawn, to say what captions say.

    Never drawn, so a box is the square around a thing, not its outline's. The token of an object is to be its noun's in
    the scene's caption, wherever that has it once; those of its corners, the token that begins a caption. A minute on
    one core. Returns the last batch's error of the objects, as a part of the variance of their words' tokens: 1 is no
    better than their mean.
    """
    was_training = words.training, layouts.training
    words.eval(), layouts.eval()                                                # objects in their order
    # the noun passes through from the start; what is around it is learned
    with torch.no_grad():
        last = words.encoder.norm
        layouts.token.weight[:len(NOUNS)] = (word_tokens(words) - last.bias) / last.weight
        layouts.transformer.norm.load_state_dict(last.state_dict())
        layouts.position.mul_(0.3)
        for layer in layouts.transformer.layers:
            for weight in (layer.self_attn.out_proj.weight, layer.linear2.weight):
                weight.mul_(0.3)
    optimizer = torch.optim.AdamW(layouts.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1, (step + 1) / 20) * 0.5 * (1 + math.cos(math.pi * step / steps))
        layout, captions, places = described(words, scenes, step * batch_size, batch_size)
        with torch.no_grad():
            said = words(captions)[0]                                           # (B,M,D)
        got = layouts.encode(layout).context.unflatten(1, (-1, 3))              # (B,N,3,D): noun and two corners
        got = got[:, :places.shape[1]]                                          # the rest is padding
        told, there = places >= 0, layout["labels"].to(places.device) >= 0
        wanted = said.gather(1, places.clamp_min(0)[..., None].expand(-1, -1, said.shape[-1]))
        error = F.mse_loss(got[:, :, 0][told], wanted[told])
        silent = said[0, 0].expand_as(got[:, :, 1:])
        loss = error + F.mse_loss(got[:, :, 1:][there], silent[there])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(layouts.parameters(), 1.0)
        optimizer.step()
    words.train(was_training[0]), layouts.train(was_training[1])
    return (error / wanted[told].var(0).mean()).item()


def described(words: TextTransformer, scenes: SceneConfig, first: int, count: int) -> tuple[dict, list[str], Tensor]:
    """Scenes as a layout {"labels" (B,N), "boxes" (B,N,4)}, their captions, and where in those each object is (B,N).

    -1 where a caption does not have an object's noun exactly once.
    """
    drawn = [random_scene((1 << 40) + first + i, scenes) for i in range(count)]
    captions, most = [scene.caption for scene in drawn], scenes.max_objects
    labels, boxes = torch.full((count, most), -1), torch.zeros(count, most, 4)
    for i, scene in enumerate(drawn):
        for j, thing in enumerate(scene.objects):
            labels[i, j], half = NOUN_INDEX[thing.noun], thing.size / 2
            boxes[i, j] = torch.tensor([thing.x - half, thing.y - half, thing.x + half, thing.y + half])
    ids = words.tokenize(captions)[0]
    noun_ids = torch.tensor([words.tokenizer.token_to_id(noun) for noun in NOUNS], device=ids.device)
    of_label = noun_ids[labels.clamp_min(0)].masked_fill(labels.to(ids.device) < 0, -1)
    found = ids[:, None] == of_label[..., None]                                 # (B,N,M)
    places = torch.where(found.sum(-1) == 1, found.int().argmax(-1), -1)
    return {"labels": labels, "boxes": (boxes / UNIT).clamp(0, 1)}, captions, places
