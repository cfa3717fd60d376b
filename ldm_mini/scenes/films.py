"""Moving Emoji Scenes: a `Film` is a scene whose things move along simple paths, drawn from a seed, frame by frame.

    film = random_film(seed, config)        # what is where, and how it moves; no pixels yet
    frames = render_film(film, config)      # video (T,H,W,3) uint8, boxes (T,3,4): numpy
    item = EmojiFilms(config)[seed]         # both, as a training's tensors

After `collate`, a batch is: video (B,3,T,H,W) float in [-1,1]; caption, a list of B strings; motion (B,), an index of
MOTIONS; boxes (B,T,3,4) xyxy in [0,1], 0 none; and, as of scenes, labels (B,3), colors (B,3), background (B,),
style (B,), class (B,), seed (B,).
"""

import re
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from . import captions, layout
from . import vocabulary as v
from .data import ENDLESS, EPOCH, Seeded, stream, to_tensor
from .draws import Draws
from .scene import SPLITS, TINY_SCENES, Scene, SceneConfig, facts, random_scene, render
from .words import words_of

# How it is said, the usual way first: nine plain motions, and what came later.
PHRASES = {
    "left": ("moves to the left", "goes left"), "right": ("moves to the right", "goes right"),
    "up": ("moves up", "rises"), "down": ("moves down", "falls"),
    "grows": ("grows", "gets larger"), "shrinks": ("shrinks", "gets smaller"),
    "still": ("stands still", "does not move"),
    "together": ("move towards each other", "come together"), "apart": ("move apart", "move away from each other"),
    "enters left": ("enters from the left", "comes in from the left"),
    "enters right": ("enters from the right", "comes in from the right"),
    "leaves left": ("leaves to the left", "goes out to the left"),
    "leaves right": ("leaves to the right", "goes out to the right"),
    "turns left": ("goes to the left and turns round", "goes left and comes back"),
    "turns right": ("goes to the right and turns round", "goes right and comes back"),
    "left of": ("moves to the left of", "goes left of"), "right of": ("moves to the right of", "goes right of"),
}
STILL = ("stand still", "do not move")                          # of two things
MOTIONS = tuple(PHRASES)                                        # index = `motion` of a batch
PLAIN_MOTIONS = MOTIONS[:9]
BESIDE = ("left of", "right of")                                # said between the two: the first moves, not the second
OF_TWO = ("still", "together", "apart", *BESIDE)
OF_ONE = tuple(motion for motion in MOTIONS if motion == "still" or motion not in OF_TWO)
OPPOSITE = {"left": "right", "right": "left", "up": "down", "down": "up", "grows": "shrinks", "shrinks": "grows"}
MEANINGS = dict(sorted(((phrase, motion) for motion, ways in [*PHRASES.items(), ("still", STILL)] for phrase in ways),
                       key=lambda item: -len(item[0])))         # {phrase: motion}, the longest first
MOTION_WORDS = tuple(sorted({word for phrase in MEANINGS for word in phrase.split()}))

# Each thing has one of the first six motions that training never shows it in; of pairs of things, one in eight never
# comes together, and one in eight never parts.
HELDOUT_MOTION = {noun: OF_ONE[(5 * i + i // 6) % 6] for i, noun in enumerate(v.NOUNS)}

PATH = (96, 136)                                                # how far a thing goes, in units of 1/256
INSIDE, OUTSIDE = (112, 168), 12                                # how far in; how far its edge is from the picture's
ONE, TWO = (72, 104), (64, 80)                                  # longest side of a thing alone, of one of two
SMALL, LARGE = (64, 80), (128, 152)                             # of a thing that grows, at both ends
FILM_SCENES = replace(TINY_SCENES, max_objects=2, p_paraphrase=0.2)


@dataclass(frozen=True)
class FilmConfig:
    """Which films to draw: the things, backgrounds and split of `scenes`, which has at most two things; `frames` of
    each; and which of MOTIONS. The same seed gives the same film at every size and number of frames."""

    scenes: SceneConfig = field(default=FILM_SCENES)
    frames: int = 8
    motions: tuple = MOTIONS

    def __post_init__(self):
        object.__setattr__(self, "motions", tuple(self.motions))
        unknown = [motion for motion in self.motions if motion not in MOTIONS]
        if unknown or not self.motions:
            raise ValueError(f"FilmConfig: motions must name some of {MOTIONS}; unknown: {unknown or 'empty'}.")
        if self.frames < 1 or self.scenes.max_objects > 2:
            raise ValueError(f"FilmConfig: a film has 1 or more frames and scenes of at most 2 things; got "
                             f"{self.frames} frames and max_objects={self.scenes.max_objects}.")


@dataclass(frozen=True)
class Film:
    """A scene as it is in the first frame, caption included; its motion; and where it leads.

    path: (x, y, size) of each thing, once or at several times, equally far apart; the last at the end.
    """

    scene: Scene
    motion: str
    path: tuple


def heldout_motion(nouns, motion: str) -> bool:
    """Whether training never shows these things, one or two, in this motion."""
    if len(nouns) == 1:
        return HELDOUT_MOTION[nouns[0]] == motion
    return motion in ("together", "apart") and sum(map(v.NOUN_INDEX.get, nouns)) % 8 == 4 * (motion == "apart")


def random_film(seed: int, config: FilmConfig = FilmConfig()) -> Film:
    """The film of a seed. ValueError if the configuration leaves none.

    Splits are those of scenes, with things and motions as what is combined: "heldout" shows things as training does,
    each in a motion that it was never seen in.
    """
    split = config.scenes.split
    for again in range(200):
        # the scenes of "heldout" are none of training's, though every one of them could be
        scenes = replace(config.scenes, split="val") if split == "heldout" else config.scenes
        scene = random_scene(seed + (again << 64), scenes)
        nouns, draws = [o.noun for o in scene.objects], Draws(seed, SPLITS.index(split), 3, again)
        options = [m for m in config.motions if m in (OF_ONE if len(nouns) == 1 else OF_TWO)
                   and (split == "all" or heldout_motion(nouns, m) == (split == "heldout"))
                   and (m not in BESIDE or len(set(nouns)) == 2)]
        if options:
            motion = draws.choice(options)
            begin, *path = _path(draws, scene, motion)
            things = tuple(replace(o, x=x, y=y, size=size) for o, (x, y, size) in zip(scene.objects, begin))
            said = write_film(*_describe(scene, draws, config.scenes.p_paraphrase), motion)
            return Film(replace(scene, objects=things, relation=None, caption=said, seed=seed, mask=()), motion,
                        tuple(path))
    raise ValueError(f"random_film: no film of {config.scenes.nouns} in motions {config.motions} fits split={split!r}; "
                     "allow more nouns or motions.")


def _path(draws: Draws, scene: Scene, motion: str) -> tuple:
    """((x, y, size) of each thing) at the beginning, then at equal times. Within the picture, but for what enters or
    leaves."""
    if len(scene.objects) == 2:
        return _path_of_two(draws, motion)
    if motion in ("grows", "shrinks"):
        ends = [(128 + draws.between(-24, 24), 128 + draws.between(-24, 24))] * 2
        sizes = [draws.between(low // 8, high // 8) * 8 for low, high in (SMALL, LARGE)]
        sizes = sizes if motion == "grows" else sizes[::-1]
        return tuple(((x, y, size),) for (x, y), size in zip(ends, sizes))
    size = draws.between(ONE[0] // 8, ONE[1] // 8) * 8
    low, high = size // 2 + 4, v.UNIT - 4 - size // 2
    way = min(draws.between(*PATH), high - low)
    across = draws.between(low, high)
    sideways = layout.height(draws, scene.objects[0].noun, scene.background, size)
    start, (how, _, side) = draws.between(low, high - way), motion.partition(" ")
    if how in ("enters", "leaves"):
        along = [-size // 2 - OUTSIDE, draws.between(*INSIDE)][::1 if how == "enters" else -1]
        along = along if side == "left" else [v.UNIT - x for x in along]
    elif how == "turns":
        along = [start, start + way, start] if side == "right" else [start + way, start, start + way]
    elif motion == "still":
        along = [start, start]
    else:
        along = [start, start + way] if motion in ("right", "down") else [start + way, start]
    return tuple(((across, a, size),) if motion in ("up", "down") else ((a, sideways, size),) for a in along)


def _path_of_two(draws: Draws, motion: str) -> tuple:
    sizes = [draws.between(low // 8, high // 8) * 8 for low, high in (TWO, TWO)]
    if motion in BESIDE:
        # a quarter of the way round the other, from above or from below it
        reach, side = draws.between(112, 120), -1 if motion == "left of" else 1
        corner, upright = draws.between(reach + 44, 212), draws.between(reach + 44, 212)
        from_above = draws.below(2)
        x, y = corner if side < 0 else v.UNIT - corner, upright if from_above else v.UNIT - upright
        first = -reach if from_above else reach
        ways = ((0, first), (side * reach * 3 // 4, first * 3 // 4), (side * reach, 0))
        return tuple(((x + dx, y + dy, sizes[0]), (x, y, sizes[1])) for dx, dy in ways)
    # side by side, or one above the other; near is as near as they come without touching
    middle, axis = 128 + draws.between(-24, 24), draws.below(2)
    near, far = (sum(sizes) // 2 + 8) // 2, 128 - max(sizes) // 2 - 4 - draws.between(0, 8)
    reach = {"together": (far, near), "apart": (near, far), "still": (far, far)}[motion]
    points = [[(128 - r, middle), (128 + r, middle)] for r in reach]
    return tuple(tuple((*point[::1 - 2 * axis], size) for point, size in zip(pair, sizes)) for pair in points)


def _describe(scene: Scene, draws: Draws, p_paraphrase: float) -> tuple:
    """Something true to say of it, without its motion: a Description, and how to pick words."""
    said, background, pick = [(o.noun, o.color) for o in scene.objects], scene.background, lambda options: options[0]
    if draws.chance(p_paraphrase):
        pick = draws.choice
        if draws.chance(.15):
            said = [(noun, None) for noun, _ in said]
        if draws.chance(.1):
            background = None
    return captions.Description(tuple(said), background=background), pick


def write_film(description: captions.Description, pick, motion: str) -> str:
    """What is to be seen and how it moves -> "a red apple moves to the right on a blue background"."""
    things, ways = description.objects, STILL if motion == "still" and len(description.objects) > 1 else PHRASES[motion]
    if motion in BESIDE:
        first, second = (captions.write(captions.Description((thing,))) for thing in things)
        said = f"{first} {pick(ways)} {second}"
    else:
        said = f"{captions.write(captions.Description(things))} {pick(ways)}"
    if not description.background:
        return said
    where = pick(captions.background_phrases(description.background))
    return f"{where}, {said}" if pick((False, False, True)) else f"{said} {where}"


def parse_film(caption: str) -> tuple[captions.Description, str | None]:
    """What a film's caption claims: a Description, and a key of PHRASES, None if no motion is told.

    ValueError names the part that it cannot read, and a motion of two things that is told of one.
    """
    text = " ".join(re.sub(captions.PUNCTUATION, " ", caption.lower()).replace(",", " , ").split())
    phrase = next((phrase for phrase in MEANINGS if f" {phrase} " in f" {text} "), None)
    if phrase is None:
        return captions.parse_caption(caption), None
    motion = MEANINGS[phrase]
    said = captions.parse_caption(f" {text} ".replace(f" {phrase} ", " and " if motion in BESIDE else " ", 1))
    if motion not in (OF_ONE if len(said.objects) == 1 else OF_TWO if len(said.objects) == 2 else ()):
        raise ValueError(f"parse_film: {caption!r} tells \"{phrase}\" of {len(said.objects)} things. One thing can "
                         f"{', '.join(PHRASES[m][0] for m in OF_ONE)}; two can "
                         f"{', '.join((*STILL[:1], *(PHRASES[m][0] for m in OF_TWO[1:])))}.")
    return said, motion


def film_words(config: FilmConfig) -> tuple[str, ...]:
    """All words of the captions of these films and of single pictures of their scenes; nouns first."""
    said = {word for phrase, motion in MEANINGS.items() if motion in config.motions for word in phrase.split()}
    return tuple(dict.fromkeys((*words_of(config.scenes), ",", *sorted(said))))


def scene_at(film: Film, frame: int, frames: int) -> Scene:
    """The scene in one of `frames` frames, from 0: every thing has gone its part of the way, to the nearest unit."""
    last, points = max(frames - 1, 1), (tuple((o.x, o.y, o.size) for o in film.scene.objects), *film.path)
    part = min(frame * len(film.path) // last, len(film.path) - 1)
    gone = frame * len(film.path) - part * last                 # of `last`, from this point to the next

    def between(a: int, b: int) -> int:
        return a + (2 * (b - a) * gone + last) // (2 * last)

    here, there = points[part:part + 2]
    things = (replace(o, **dict(zip(("x", "y", "size"), map(between, *ends))))
              for o, *ends in zip(film.scene.objects, here, there))
    return replace(film.scene, objects=tuple(things))


def render_film(film: Film, config: FilmConfig = FilmConfig()) -> dict:
    """Film -> video (T,H,W,3) uint8, boxes (T,3,4) float32, xyxy in [0,1] around each thing, 0 none."""
    drawn = [render(scene_at(film, k, config.frames), config.scenes) for k in range(config.frames)]
    return {"video": np.stack([frame["image"] for frame in drawn]), "boxes": np.stack([f["boxes"] for f in drawn])}


class EmojiFilms(Seeded):
    """Films with the seeds start ... start + length - 1 as items of tensors."""

    def __init__(self, config: FilmConfig = FilmConfig(), length: int = EPOCH, start: int = 0):
        super().__init__(config, length, start)

    def draw(self, seed: int) -> dict:
        """The film of a seed."""
        film = random_film(seed, self.config)
        drawn, known = render_film(film, self.config), facts(film.scene)
        video = torch.stack([to_tensor(frame) for frame in drawn["video"]], dim=1)
        return {"video": video, "boxes": torch.from_numpy(drawn["boxes"]), "motion": MOTIONS.index(film.motion),
                **known, **{key: torch.from_numpy(known[key]) for key in ("labels", "colors")}}


def film_batches(config: FilmConfig, num: int, start: int = 0, batch_size: int = 8):
    """Batches of the films with the seeds start ... start + num - 1, to measure on."""
    return EmojiFilms(config, num, start).batches(batch_size)


def film_stream(config: FilmConfig, batch_size: int, start_step: int = 0, num_workers: int = 0, rank: int = 0,
                world_size: int = 1, seed: int = 0):
    """Endless batches of films to train on, which can be entered at any step: `data.scene_stream` of films."""
    return stream(EmojiFilms(config, ENDLESS), batch_size, start_step, num_workers, rank, world_size, seed)
