"""Emoji Scenes: a `Scene` is drawn from a seed, rendered to an image, and everything true about it is known.

    scene = random_scene(seed, config)      # what is where, in units of 1/256 of the picture; no pixels yet
    sample = render(scene, config)          # image, boxes, semantic map, low-resolution image, inpainting mask: numpy
    sample = compose(seed, config)          # both steps, with all keys of a training batch
"""

from dataclasses import dataclass, fields, replace

import numpy as np

from . import captions, layout, masks
from . import vocabulary as v
from .backgrounds import LOOKS, VARIANTS, paint
from .draws import Draws
from .sprites import noun_stamp, put

MAX_OBJECTS = 3
SPLITS = ("train", "val", "heldout", "all")  # each has its own stream of seeds
LOWRES_FACTOR = 4
SIZES = {1: (112, 168), 2: (96, 144), 3: (72, 104)}  # longest side of a sprite in units, by number of objects
SMALL, BIG = 120, 160  # a single thing of at most, at least so many units is called small, big; between them, neither


@dataclass(frozen=True)
class SceneConfig:
    """Which scenes to draw. The same seed gives the same scene at every `size`.

    split: "train" and "val" never contain a held-out combination, "heldout" always does, "all" may.
    centred: one object stands in the middle, two or three on fixed places, nearly equal in size: for short trainings.
    """

    size: int = 64  # pixels, a multiple of 16
    nouns: tuple | None = None  # None = all 64
    styles: tuple = v.STYLES
    min_objects: int = 1
    max_objects: int = MAX_OBJECTS
    places: bool = True  # meadow, beach, ...
    plain_backgrounds: bool = True
    looks: tuple = LOOKS  # gradients and patterns of plain backgrounds
    centred: bool = False
    flips: bool = True
    split: str = "train"
    p_paraphrase: float = 0.3  # in other words, some leaving the colours or the background out, some naming the style
    p_place: float = 0.4  # where both kinds of background are on
    p_same: float = 0.12  # several objects that are all alike: "three blue stars"
    p_casual: float = 0.0  # captions as people type them: "red apple, blue background"

    def __post_init__(self):
        def require(good, text):
            if not good:
                raise ValueError(f"SceneConfig: {text}")

        for name, known in (("nouns", v.NOUNS), ("styles", v.STYLES), ("looks", LOOKS)):
            given = getattr(self, name)
            if given is None:
                continue
            require(not isinstance(given, str), f"{name} must be a tuple of names, got the string {given!r}.")
            object.__setattr__(self, name, tuple(given))
            unknown = [item for item in given if item not in known]
            require(given and not unknown, f"{name} must name some of {known}; unknown: {unknown or 'empty'}.")
        require(self.size >= 16 and self.size % 16 == 0, f"size must be a positive multiple of 16, got {self.size}.")
        require(1 <= self.min_objects <= self.max_objects <= MAX_OBJECTS,
                f"1 <= min_objects <= max_objects <= {MAX_OBJECTS}, got {self.min_objects} and {self.max_objects}.")
        require(self.places or self.plain_backgrounds, "places and plain_backgrounds cannot both be off.")
        require(self.split in SPLITS, f"split must be one of {SPLITS}, got {self.split!r}.")
        for name in ("p_paraphrase", "p_place", "p_same", "p_casual"):
            require(0 <= getattr(self, name) <= 1, f"{name} must be between 0 and 1, got {getattr(self, name)}.")


@dataclass(frozen=True)
class SceneObject:
    """One sprite: longest side `size` and centre (x, y) in units of 1/256; color None = as drawn."""

    noun: str
    color: str | None
    size: int
    x: int
    y: int
    flip: bool = False


@dataclass(frozen=True)
class Scene:
    """Everything needed to render. relation "row" / "column": objects from left to right / top to bottom."""

    objects: tuple
    background: str
    style: str
    look: str = "flat"
    variant: int = 0
    relation: str | None = None
    caption: str = ""
    mask: tuple = ()
    seed: int = 0


def _order(a: SceneObject, b: SceneObject):
    """("row" or "column", first, second) where one direction clearly dominates, else None."""
    dx, dy = b.x - a.x, b.y - a.y
    if 4 * abs(dx) >= 5 * abs(dy):
        return ("row", a, b) if dx > 0 else ("row", b, a)
    if 4 * abs(dy) >= 5 * abs(dx):
        return ("column", a, b) if dy > 0 else ("column", b, a)
    return None


def heldout_combinations(scene: Scene) -> list:
    """The held-out combinations in a scene: (noun, colour), (noun, place) and (noun, "row" | "column", noun) tuples."""
    found = [(o.noun, o.color) for o in scene.objects if o.color in v.HELDOUT_COLORS.get(o.noun, ())]
    found += [(o.noun, scene.background) for o in scene.objects if v.HELDOUT_PLACE[o.noun] == scene.background]
    pairs = [(a, b) for i, a in enumerate(scene.objects) for b in scene.objects[i + 1:] if a.noun != b.noun]
    orders = [order for a, b in pairs if (order := _order(a, b))]
    orders += [(scene.relation, a, b) for a, b in pairs if scene.relation]
    found += [(a.noun, relation, b.noun) for relation, a, b in orders if v.heldout_relation(a.noun, b.noun, relation)]
    return list(dict.fromkeys(found))


def is_heldout(scene: Scene) -> bool:
    """Whether a scene contains a combination that training never shows."""
    return bool(heldout_combinations(scene))


def _choose(draws: Draws, config: SceneConfig, count: int):
    """One try at a scene of `count` objects; None if the choices do not fit together."""
    strict, pool = config.split in ("train", "val"), config.nouns or v.NOUNS
    # what: things all alike, or all different
    same = count > 1 and (len(pool) < count or draws.chance(config.p_same))
    nouns = [draws.choice(pool)] * count if same else draws.sample(pool, count)
    # before what: nothing that hides one of them, nothing held out
    never = {v.HELDOUT_PLACE[noun] for noun in nouns} if strict else ()
    places = [place for place in v.PLACES if place not in never] if config.places else []
    plain = v.PLAIN if config.plain_backgrounds else ()
    options = (places or plain) if not plain or draws.chance(config.p_place) else plain
    options = [b for b in options if not any(n in v.CLASHES[b] for n in nouns)]
    if not options:
        return None
    # a colour for what may have one, never that of its background
    background, colors = draws.choice(options), []
    for noun in nouns:
        never = v.CLASHES[background] | (v.HELDOUT_COLORS.get(noun, set()) if strict else set())
        palette = [c for c in v.COLORS if c not in never] if noun in v.RECOLORABLE else [None]
        colors.append(draws.choice(palette))
    colors = [colors[0]] * count if same else colors
    # how large and where: all must fit side by side
    low, high = SIZES[count] if not config.centred else {1: (136, 152), 2: (96, 104), 3: (72, 80)}[count]
    sizes = [draws.between(low // 8, high // 8) * 8 for _ in nouns]
    while sum(sizes) > v.UNIT - 16 and count > 1:
        sizes[sizes.index(max(sizes))] -= 8
    points, plan = layout.positions(draws, nouns, sizes, background, config.centred)
    objects = tuple(SceneObject(noun, color, size, x, y, config.flips and draws.chance(.5))
                    for noun, color, size, (x, y) in zip(nouns, colors, sizes, points))
    if layout.crowded(objects):
        return None
    # in the order in which a caption names them
    relation = (_order(*objects) or [None])[0] if count == 2 else plan if count == 3 else None
    objects = tuple(sorted(objects, key=lambda o: o.y if relation == "column" else o.x)) if relation else objects
    return Scene(objects, background, draws.choice(config.styles), draws.choice(config.looks), draws.below(VARIANTS),
                 relation)


def random_scene(seed: int, config: SceneConfig = SceneConfig()) -> Scene:
    """The scene of a seed. ValueError if the configuration leaves no scene (of the held-out kind, say)."""
    if seed < 0:
        raise ValueError(f"random_scene: seed must not be negative, got {seed}.")
    draws = Draws(seed, SPLITS.index(config.split), 0)
    count = draws.between(config.min_objects, config.max_objects)
    for _ in range(2000):
        scene = _choose(draws, config, count)
        if scene and (config.split == "all" or is_heldout(scene) == (config.split == "heldout")):
            extra = Draws(seed, SPLITS.index(config.split), 1)  # other words and masks never change the picture
            mask, said = masks.random_mask(extra, count), describe(scene, extra, config.p_paraphrase)
            if config.p_casual:  # a stream of their own, so that all other captions stay as they are
                more = Draws(seed, SPLITS.index(config.split), 2)
                said = describe(scene, more, casual=True) if more.chance(config.p_casual) else said
            return replace(scene, seed=seed, mask=mask, caption=captions.write(*said))
    raise ValueError(f"random_scene: no scene with {count} objects fits split={config.split!r}, nouns={config.nouns}, "
                     f"places={config.places}; allow more nouns or backgrounds.")


def describe(scene: Scene, draws: Draws, p_paraphrase: float = 0.0, casual: bool = False) -> tuple:
    """Something true to say about a scene: (Description, how to pick words, casual), what `captions.write` takes.

    casual: in few words, and the size of a single thing, if it is clearly big or small.
    """
    objects, count = scene.objects, len(scene.objects)
    relation, position, style = scene.relation if len({o.noun for o in objects}) > 1 else None, None, None
    size = None
    if count == 1 and draws.chance(.3):
        x, y = objects[0].x, objects[0].y
        if min(abs(place - edge) for place in (x, y) for edge in (108, 148)) > 4:  # not on the border between two names
            position = captions.position_name(x / v.UNIT, y / v.UNIT)
    if count == 2 and relation:
        order = draws.choice((1, -1))
        relation = (("left", "right") if relation == "row" else ("above", "below"))[order == -1]
        objects = objects[::order]
    said, background, pick = [(o.noun, o.color) for o in objects], scene.background, lambda options: options[0]
    if casual or draws.chance(p_paraphrase):
        pick = draws.choice
        if draws.chance(.15):
            said = [(noun, None) for noun, _ in said]
        if draws.chance(.25 if casual else .1):
            background = None
        if draws.chance(.15):
            relation = "beside" if relation in ("left", "right") else None
        if count < 3 and draws.chance(.2):
            style = scene.style
        if casual and count == 1 and draws.chance(.7):
            size = "small" if objects[0].size <= SMALL else "big" if objects[0].size >= BIG else None
    return captions.Description(tuple(said), relation, background, position, style, size), pick, casual


def render(scene: Scene, config: SceneConfig = SceneConfig()) -> dict:
    """Scene -> image (H,W,3), semantic (H,W), lowres (H/4,W/4,3) uint8; boxes (3,4) float32; mask (H,W) bool.

    Boxes are tight around what is at least half opaque, also where a later object covers it.
    """
    size = config.size
    image, semantic = paint(scene.background, scene.look, scene.variant, size)
    boxes = np.zeros((MAX_OBJECTS, 4), np.float32)
    # who stands lower is nearer, and painted later
    for index in sorted(range(len(scene.objects)), key=lambda i: scene.objects[i].y + scene.objects[i].size // 2):
        o = scene.objects[index]
        stamp = noun_stamp(scene.style, o.noun, o.color, max(2, (o.size * size + v.UNIT // 2) // v.UNIT), o.flip, size)
        x0, y0, x1, y1 = stamp.box
        x, y = o.x * size // v.UNIT - (x0 + x1) // 2, o.y * size // v.UNIT - (y0 + y1) // 2
        there, here = put(image, stamp, x, y)
        semantic[there][stamp.solid[here]] = len(v.STUFF) + v.NOUN_INDEX[o.noun]
        box = max(x + x0, 0), max(y + y0, 0), min(x + x1, size), min(y + y1, size)
        boxes[index] = box if box[0] < box[2] and box[1] < box[3] else 0  # of a film, a thing may be outside
    # means of 4 x 4 pixels, rounded, in whole numbers; first down, then across: faster than both at once
    side, factor = size // LOWRES_FACTOR, LOWRES_FACTOR
    rows = image.reshape(side, factor, size * 3).sum(1, dtype=np.uint16)
    sums = rows.reshape(side, side, factor, 3).sum(2, dtype=np.uint16)
    lowres = ((sums + factor ** 2 // 2) // factor ** 2).astype(np.uint8)
    return {"image": image, "boxes": boxes / size, "semantic": semantic, "lowres": lowres,
            "mask": masks.draw_mask(scene.mask, size, boxes)}


def facts(scene: Scene) -> dict:
    """The batch keys that need no pixels: caption, class, style, labels (3,), colors (3,), background, seed."""
    pad = [-1] * (MAX_OBJECTS - len(scene.objects))
    labels = [v.NOUN_INDEX[o.noun] for o in scene.objects]
    return {"caption": scene.caption, "class": labels[0] if len(labels) == 1 else -1,
            "style": v.STYLE_INDEX[scene.style], "labels": np.array(labels + pad),
            "background": v.BACKGROUND_INDEX[scene.background], "seed": scene.seed,
            "colors": np.array([v.COLOR_INDEX.get(o.color, -1) for o in scene.objects] + pad)}


def compose(seed: int, config: SceneConfig = SceneConfig()) -> dict:
    """The sample of a seed: `render` and `facts` of its scene, and the scene itself under "scene"."""
    scene = random_scene(seed, config)
    return {**render(scene, config), **facts(scene), "scene": scene}


# Sixteen nouns of simple, distinct shape: what a CPU learns to draw in an hour.
TINY_NOUNS = ("apple", "star", "fish", "car", "heart", "balloon", "umbrella", "mushroom", "dog", "cat", "owl", "tree",
              "house", "rocket", "cake", "sun")
# One or two of them, in one of the four styles: pictures that are good rather than many.
TINY_SCENES = SceneConfig(nouns=TINY_NOUNS, styles=("fluent_flat",), max_objects=2, looks=("flat", "gradient", "glow"),
                          p_place=0.35)
# The same with one thing in the middle or two in fixed places. Where things stand anywhere, the tiny network knew
# backgrounds, but not yet what each noun looks like, after 80,000 pictures.
CENTRED_SCENES = replace(TINY_SCENES, centred=True, p_same=0.05)
# Seconds on any machine, nothing worth looking at: to see a run from beginning to end, and for tests.
MICRO_SCENES = SceneConfig(size=32, nouns=("apple", "star", "car"), styles=("fluent_flat",), max_objects=1,
                           looks=("flat",), places=False, centred=True)


def scenes_to_test(config: SceneConfig, task: str, split: str = "val") -> SceneConfig:
    """The scenes of a split that a task is tried on: with one object each where the condition is a class."""
    return replace(config, split=split, **({"min_objects": 1, "max_objects": 1} if task == "class" else {}))


def scenes_of(stored: dict) -> SceneConfig:
    """The scenes a model was trained on, from the card in its config; all of Emoji Scenes if it says nothing."""
    said = ((stored.get("card") or {}).get("recipe") or {}).get("scenes") or {}
    return SceneConfig(**{f.name: said[f.name] for f in fields(SceneConfig) if f.name in said})
