"""The caption grammar: a `Description` says something true about a scene; it is written as English and read back.

    write(Description((("apple", "red"), ("dog", None)), relation="left", background="blue"))
        -> "a red apple to the left of a dog on a blue background"
    parse_caption("a red apple to the left of a dog on a blue background") -> the same Description

`measure.scoring.agreement` says which of its claims hold for the objects found in a picture.
"""

import re
from dataclasses import dataclass

from .vocabulary import COLORS, NOUNS, PLAIN

LEADS = ("", "there is", "a picture of", "we see")
RELATIONS = {
    "left": ("to the left of", "left of", "on the left of"),
    "right": ("to the right of", "right of", "on the right of"),
    "above": ("above", "over"), "below": ("below", "under"), "beside": ("next to", "beside"),
}
ARRANGEMENTS = {"row": ("from left to right", "left to right"), "column": ("from top to bottom", "top to bottom")}
POSITIONS = {"middle": ("in the middle", "in the center"),
             **{edge: (f"at the {edge}", f"near the {edge}") for edge in ("top", "bottom", "left", "right")},
             **{corner: (f"at the {corner}", f"in the {corner} corner")
                for corner in ("top left", "top right", "bottom left", "bottom right")}}
STYLE_WORDS = {"noto": "noto", "twemoji": "twemoji", "fluent_flat": "flat", "fluent_3d": "3d"}
PLACE_WORDS = {"meadow": ("in a meadow", "on the grass"), "beach": ("on the beach", "at the beach", "by the sea"),
               "snow": ("in the snow", "in winter"), "desert": ("in the desert", "in a desert"),
               "night": ("at night", "under the stars"), "under water": ("under water", "underwater", "in the sea")}
NUMBERS = {"two": 2, "three": 3}
SYNONYMS = {"cap": "hat", "gift": "present", "bicycle": "bike", "plane": "airplane", "ladybug": "ladybird",
            "donut": "doughnut", "burger": "hamburger", "teddy": "teddy bear", "bird": "little bird",
            "rabbit": "bunny", "diamond": "gem", "house": "home", "mug": "cup", "pine": "fir", "boat": "sailboat",
            "clock": "alarm clock", "ball": "soccer ball", "car": "automobile"}
PLURALS = {"fish": "fish", "butterfly": "butterflies", "bus": "buses", "octopus": "octopuses",
           "strawberry": "strawberries", "cactus": "cacti", "snowman": "snowmen", "teddy": "teddies",
           "bunny": "bunnies"}


@dataclass(frozen=True)
class Description:
    """What a caption claims. Everything may be left out: Description() is the empty caption, "no condition".

    objects: ((noun, color or None), ...) in the order mentioned. relation: a key of RELATIONS (two objects: the first
    is left of ... the second) or of ARRANGEMENTS (in this order). background: a plain colour or a place. position: a
    key of POSITIONS (one object). style: one of STYLES.
    """

    objects: tuple = ()
    relation: str | None = None
    background: str | None = None
    position: str | None = None
    style: str | None = None


def plural(noun: str) -> str:
    """dog -> dogs, cactus -> cacti."""
    return PLURALS.get(noun, noun + "s")


def _article(words: str) -> str:
    return ("an " if words[0] in "aeiou" else "a ") + words


def background_phrases(background: str) -> tuple:
    """All ways to say it, the usual one first."""
    if background not in PLAIN:
        return PLACE_WORDS[background]
    names = (background,) + (("grey",) if background == "gray" else ())
    return tuple(form for name in names for form in
                 (f"on {_article(name)} background", f"against {_article(name)} background", f"on {name}"))


def _noun_phrase(noun, color, count, pick) -> str:
    words = pick((noun, SYNONYMS[noun])) if noun in SYNONYMS else noun
    words = words if count == 1 else plural(words)
    words = f"{color} {words}" if color else words
    return _article(words) if count == 1 else f"{[*NUMBERS][count - 2]} {words}"


def write(description: Description, pick=lambda options: options[0]) -> str:
    """Description -> caption. `pick` chooses among the ways to say a thing; the default takes the usual one."""
    d, count = description, len(description.objects)
    if not count:
        return ""
    if count > 1 and len(set(d.objects)) == 1:
        body = _noun_phrase(*d.objects[0], count, pick)
    else:
        phrases = [_noun_phrase(noun, color, 1, pick) for noun, color in d.objects]
        joint = f" {pick(RELATIONS[d.relation])} " if d.relation in RELATIONS else " and "
        body = ", ".join(phrases[:-2] + [joint.join(phrases[-2:])])
    if d.relation in ARRANGEMENTS:
        body += " " + pick(ARRANGEMENTS[d.relation])
    if d.position:
        body += " " + pick(POSITIONS[d.position])
    if count < 3:  # keeps the longest caption within 24 tokens
        lead = pick(LEADS)
        body = f"{'there are' if lead == 'there is' and body.startswith('two') else lead} {body}".strip()
    if d.background:
        phrase = pick(background_phrases(d.background))
        first = count < 3 and pick((False, False, True))
        body = f"{phrase}, {body}" if first else f"{body} {phrase}"
    return body + (f" in {STYLE_WORDS[d.style]} style" if d.style else "")


PHRASES = {  # slot: {phrase: meaning}
    "background": {p: b for b in PLAIN + tuple(PLACE_WORDS) for p in background_phrases(b)},
    "position": {p: name for name, phrases in POSITIONS.items() for p in phrases},
    "arrangement": {p: name for name, phrases in ARRANGEMENTS.items() for p in phrases},
    "relation": {p: name for name, phrases in RELATIONS.items() for p in phrases},
    "style": {f"in {word} style": style for style, word in STYLE_WORDS.items()},
    "noun": {form: (noun, many) for noun in NOUNS for name in {noun, SYNONYMS.get(noun, noun)}
             for form, many in ((name, False), (plural(name), True))},
}


def _cut(text, slot, where) -> tuple:
    """Remove a phrase of this slot at the "start", at the "end" or "between" two others -> (rest, meaning or None)."""
    for phrase, meaning in sorted(PHRASES[slot].items(), key=lambda item: -len(item[0])):  # the longest first
        if where == "end" and text.endswith(" " + phrase):
            return text[:-len(phrase) - 1], meaning
        if where == "start" and text.startswith(phrase + " ,"):
            return text[len(phrase) + 2:].strip(), meaning
        if where == "between" and f" {phrase} " in text:
            return text.replace(f" {phrase} ", " | ", 1), meaning
    return text, None


def _read_noun(phrase: str, caption: str) -> list:
    """"two red apples" -> [("apple", "red"), ("apple", "red")]."""
    words = phrase.split()
    count = NUMBERS.get(words[0], 1) if words else 1
    words = words[1:] if words and words[0] in ("a", "an", "the", "one", *NUMBERS) else words
    color = words.pop(0) if words and words[0] in PLAIN + ("grey",) else None
    noun, many = PHRASES["noun"].get(" ".join(words), (None, False))
    if noun is None or (count == 1 and many and noun != "fish"):
        raise ValueError(f"parse_caption: cannot read {phrase!r} in {caption!r}. Say for example \"a red apple\" or "
                         f"\"two dogs\"; nouns are {', '.join(NOUNS)}; colours are {', '.join(COLORS)}.")
    return [(noun, "gray" if color == "grey" else color)] * count


def parse_caption(caption: str) -> Description:
    """Read any caption of the grammar back, paraphrases included; ValueError names the part that it cannot read."""
    text = " ".join(re.sub(r"[.!]", " ", caption.lower()).replace(",", " , ").split())
    if not text:
        return Description()
    text, style = _cut(text, "style", "end")
    text, background = _cut(text, "background", "start")
    if background is None:
        text, background = _cut(text, "background", "end")
    text = re.sub(rf"^(there are|{'|'.join(LEADS[1:])}) ", "", text)
    text, arrangement = _cut(text, "arrangement", "end")
    text, position = (text, None) if arrangement else _cut(text, "position", "end")
    text, relation = _cut(text, "relation", "between")
    parts = [part for part in re.split(r" \| | , and | , | and ", text) if part.strip()]
    objects = tuple(item for part in parts for item in _read_noun(part, caption))
    if relation and (len(objects) != 2 or arrangement):
        raise ValueError(f"parse_caption: {caption!r} relates {len(objects)} objects; a relation is between two.")
    return Description(objects, arrangement or relation, background, position, style)


def position_name(x: float, y: float) -> str:
    """Where a centre (x, y) in [0, 1] lies: a key of POSITIONS."""
    name = " ".join(word for word in ("top" if y < .42 else "bottom" if y > .58 else "",
                                      "left" if x < .42 else "right" if x > .58 else "") if word)
    return name or "middle"
