"""Does a frozen language model understand words that no training caption used? The measurement of notebook 10.

    pip install "ldm_mini[language]" && python data/measurements/unseen_words.py

The U-Net of the shipped model stays as it is. An adapter on top of frozen MiniLM learns to say what its own text
transformer says (the same tokens) for training captions; no picture is needed. Then both draw the same
scenes from the same noise, once in the words of the grammar, once with one noun replaced by a synonym which it does not
contain, and the recogniser says whether that thing is there. About 5 minutes on one thread of a CPU; the results go to
`unseen_words.json` beside this file.
"""

import argparse
import re
from dataclasses import replace
from pathlib import Path

import torch

from ldm_mini.files import write_json
from ldm_mini.hub import find, read_config
from ldm_mini.latent_diffusion import LatentDiffusion
from ldm_mini.measure import Recogniser
from ldm_mini.released.language import LanguageConditioner
from ldm_mini.scenes import NOUN_INDEX, scene_stream, scenes_of
from ldm_mini.tasks import TASKS

# Chosen before anything was drawn. No word for a heart or a star is as plain as these.
SYNONYMS = {"dog": "puppy", "cat": "kitten", "house": "residence", "umbrella": "parasol", "mushroom": "toadstool",
            "rocket": "spaceship", "cake": "gateau", "fish": "salmon", "tree": "oak", "car": "sedan", "sun": "sunshine",
            "owl": "owlet", "apple": "fruit", "balloon": "blimp"}
BATCH, STEPS = 32, 16


def replaceable(caption: str) -> str | None:
    """The noun of a caption that is to be replaced: the first that has a synonym and is named once, in singular."""
    words = re.findall(r"[\w]+", caption)
    return next((word for word in words if word in SYNONYMS and words.count(word) == 1), None)


def with_synonym(caption: str, noun: str) -> str:
    """The caption with the synonym, and the article that it needs."""
    new = SYNONYMS[noun]
    caption = re.sub(rf"\b{noun}\b", new, caption)
    return re.sub(rf"\b(a|an) (?={new}\b)", "an " if new[0] in "aeiou" else "a ", caption)


@torch.no_grad()
def read_all(part: LanguageConditioner, teacher, captions: list[str]):
    """What MiniLM and what the model's own text transformer say: words, mask, context, all of B captions.

    Captions with a plural are left out: the model's own tokenizer cuts it in two ("owl", "s"), here words are whole.
    """
    read, said = [], []
    for i in range(0, len(captions), BATCH):
        read.append(part.read(captions[i:i + BATCH]))
        said.append(teacher.encode({"caption": captions[i:i + BATCH]}))
    words, mask = (torch.cat(values) for values in zip(*read))
    alike = (mask == torch.cat([cond.mask for cond in said])).all(1)
    return words[alike], mask[alike], torch.cat([cond.context for cond in said])[alike]


def error(part: LanguageConditioner, words, mask, context) -> torch.Tensor:
    """Mean squared error of the tokens, as a share of their variance."""
    got, right = part.adapt(words, mask).context[mask], context[mask]
    return (got - right).square().sum() / (right - right.mean(0)).square().sum()


def distil(part: LanguageConditioner, teacher, captions: list[str], steps: int) -> dict:
    """Train the adapter; -> how, and its error on the last 128 captions, which it does not learn from."""
    data = read_all(part, teacher, captions)
    learn, test = [v[:-128] for v in data], [v[-128:] for v in data]
    g = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(part.parameters(), 1e-3, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, steps, pct_start=0.05)
    spread = learn[0][learn[1]].std()
    for step in range(steps):
        words, mask, context = pick(learn, g)
        words = words + 0.5 * spread * torch.randn(words.shape, generator=g)    # near words shall mean nearly the same
        loss = error(part, words, mask, context)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            with torch.no_grad():
                print(step, round(loss.item(), 3), "new captions:", round(error(part, *test).item(), 3), flush=True)
    with torch.no_grad():
        return {"captions": len(learn[0]), "steps": steps, "error": round(error(part, *test).item(), 3)}


def pick(data, g) -> list:
    """A batch of the same rows of every tensor."""
    rows = torch.randint(len(data[0]), (BATCH,), generator=g)
    return [value[rows] for value in data]


def scenes(config, count: int) -> tuple[list[str], list[str]]:
    """`count` captions of scenes that no training saw for each noun of SYNONYMS -> (captions, their nouns)."""
    wanted = {noun: [] for noun in SYNONYMS}
    for batch in scene_stream(config, 64):
        for caption in batch["caption"]:
            noun = replaceable(caption)
            if noun and len(wanted[noun]) < count and caption not in wanted[noun]:
                wanted[noun].append(caption)
        if all(len(found) == count for found in wanted.values()):
            break
    return [c for found in wanted.values() for c in found], [noun for noun, found in wanted.items() for _ in found]


def shown(ldm, recogniser, captions: list[str], nouns: list[str]) -> list[bool]:
    """Whether the thing that each caption is about is found in the picture drawn for it. Always the same noise."""
    g, found = torch.Generator().manual_seed(0), []
    for i in range(0, len(captions), 28):
        batch = {"caption": captions[i:i + 28]}
        found += recogniser.detect(ldm.sample(batch, steps=STEPS, guidance_scale=TASKS["text"].guidance_scale,
                                              generator=g))
    return [any(o["noun"] == NOUN_INDEX[noun] for o in f["objects"]) for f, noun in zip(found, nouns)]


def main() -> None:
    """Distil, draw, and keep what was measured so far."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--captions", type=int, default=3_000, help="to learn from")
    parser.add_argument("--steps", type=int, default=1_500, help="of learning")
    parser.add_argument("--per-word", type=int, default=8, help="pictures")
    options = parser.parse_args()
    ldm, recogniser = LatentDiffusion.from_pretrained("emoji-scenes"), Recogniser.load()
    config = scenes_of(read_config(find("emoji-scenes"), "LatentDiffusion"))
    torch.manual_seed(0)
    place = next(i for i, p in enumerate(ldm.conditioner.parts) if hasattr(p, "text_transformer"))
    own = ldm.conditioner.parts[place]
    transformer = own.text_transformer
    known = [word for word in SYNONYMS.values() if not transformer.unknown_words(word)]
    assert not known, f"the captions use {known}"
    captions = []
    for batch in scene_stream(config, 64, seed=1):
        captions = list(dict.fromkeys(captions + batch["caption"]))
        if len(captions) >= options.captions + 128:
            break
    part = LanguageConditioner(transformer.width, 2, transformer.heads, transformer.max_length, vector=False).train()
    result = {"distillation": distil(part, own, ["", *captions], options.steps),
              "synonyms": SYNONYMS, "per_word": options.per_word, "sampling_steps": STEPS,
              "guidance_scale": TASKS["text"].guidance_scale, "shown": {}}
    print(result["distillation"], flush=True)
    part.eval()
    usual, nouns = scenes(replace(config, split="val"), options.per_word)
    unseen = [with_synonym(caption, noun) for caption, noun in zip(usual, nouns)]
    readers = {"transformer": own, "language model": part}
    runs = [("unseen", "language model", unseen), ("unseen", "transformer", unseen), ("known", "transformer", usual),
            ("known", "language model", usual), ("none", "transformer", [""] * len(usual))]
    for words, reader, told in runs:
        ldm.conditioner.parts[place] = readers[reader]
        hits = shown(ldm, recogniser, told, nouns)
        per_noun = {noun: sum(hit for hit, n in zip(hits, nouns) if n == noun) / options.per_word for noun in SYNONYMS}
        result["shown"][f"{words} words, {reader}" if words != "none" else "no words"] = per_noun
        print(words, reader, round(sum(hits) / len(hits), 3), per_noun, flush=True)
        write_json(Path(__file__).with_suffix(".json"), result)


if __name__ == "__main__":
    main()
