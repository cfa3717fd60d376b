"""The caption grammar: a `Description` says something true about a scene; it is written as English and read back.

    write(Description((("apple", "red"), ("dog", None)), relation="left", background="blue"))
        -> "a red apple to the left of a dog on a blue background"
    parse_caption("a red apple to the left of a dog on a blue background") -> the same Description
    parse_caption("Red apple left of dog, blue background.") -> the same: people write casually

`measure.scoring.agreement` says which of its claims hold for the objects found in a picture.
"""

import re
from dataclasses import dataclass

from .vocabulary import COLORS, NOUNS, PLAIN


def _article(words: str) -> str:
    return ("an " if words[0] in "aeiou" else "a ") + words


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
SIZES = {"big": ("big", "large"), "small": ("small", "little", "tiny")}  # of one thing alone
DIGITS = {"2": 2, "3": 3}
ONE = ("", "a", "the", "one", "1")  # casually, an article may be missing
JOINTS = ("and", "with")
CASUAL_LEADS = ("", "picture of", "draw")
CASUAL = {  # slot: {meaning: what people write besides, the shortest way first}
    "relation": {"left": ("left of",), "right": ("right of",), "below": ("beneath",), "beside": ("next to", "near")},
    "arrangement": {"row": ("left to right",), "column": ("top to bottom",)},
    "position": {"middle": ("middle", "in middle", "center", "centre", "in the centre"),
                 **{edge: (edge, f"at {edge}") for edge in ("top", "bottom")},
                 **{edge: (edge, f"on the {edge}", f"to the {edge}") for edge in ("left", "right")},
                 **{corner: (corner, f"at {corner}", f"{corner} corner")
                    for corner in ("top left", "top right", "bottom left", "bottom right")}},
    "background": {"meadow": ("meadow", "in meadow", "on grass"), "beach": ("beach", "on beach"),
                   "snow": ("snow", "in snow"), "desert": ("desert", "in desert"), "night": ("night",),
                   **{name: tuple(form for word in (name, "grey")[:1 + (name == "gray")] for form in
                                  (f"{word} background", f"on {word} background", f"with {word} background",
                                   f"with {_article(word)} background"))
                      for name in PLAIN}},
    "style": {style: (f"{word} style",) for style, word in STYLE_WORDS.items()},
}
PUNCTUATION = r"[.!?:;\"'()…“”‘’-]"  # what is not read; a comma is
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
    key of POSITIONS (one object). style: one of STYLES. size: a key of SIZES (one object).
    """

    objects: tuple = ()
    relation: str | None = None
    background: str | None = None
    position: str | None = None
    style: str | None = None
    size: str | None = None


def plural(noun: str) -> str:
    """dog -> dogs, cactus -> cacti."""
    return PLURALS.get(noun, noun + "s")


def background_phrases(background: str) -> tuple:
    """All ways to say it, the usual one first."""
    if background not in PLAIN:
        return PLACE_WORDS[background]
    names = (background,) + (("grey",) if background == "gray" else ())
    return tuple(form for name in names for form in
                 (f"on {_article(name)} background", f"against {_article(name)} background", f"on {name}"))


def _noun_phrase(noun, color, count, pick, size=None, casual=False) -> str:
    words = pick((noun, SYNONYMS[noun])) if noun in SYNONYMS else noun
    words = words if count == 1 else plural(words)
    words = f"{color} {words}" if color else words
    if size:  # a "little bird" is the other name of a bird
        words = f"{pick([way for way in SIZES[size] if (way, noun) != ('little', 'bird')])} {words}"
    if count > 1:
        ways = [[*table][count - 2] for table in ((DIGITS, NUMBERS) if casual else (NUMBERS,))]
        return f"{ways[0] if len(ways) == 1 else pick(ways)} {words}"
    article = pick(("",) * 3 + ONE) if casual else "a"
    return _article(words) if article == "a" else f"{article} {words}".strip()


def write(description: Description, pick=lambda options: options[0], casual: bool = False) -> str:
    """Description -> caption. `pick` chooses among the ways to say a thing; the default takes the usual one.

    casual: as people type, with no article, digits, and commas in place of grammar.
    """
    if not description.objects:
        return ""
    if casual:
        return _write_casually(description, pick)
    d, count = description, len(description.objects)
    if count > 1 and len(set(d.objects)) == 1:
        body = _noun_phrase(*d.objects[0], count, pick)
    else:
        phrases = [_noun_phrase(noun, color, 1, pick, d.size) for noun, color in d.objects]
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


def _write_casually(d: Description, pick) -> str:
    count = len(d.objects)
    gaps = (" ",) if len(set(d.objects)) == 3 else (", ", " ")  # 24 tokens, again

    def say(slot, meaning):
        return pick(WAYS[slot][meaning])

    if count > 1 and len(set(d.objects)) == 1:
        body = _noun_phrase(*d.objects[0], count, pick, casual=True)
    else:
        phrases = [_noun_phrase(noun, color, 1, pick, d.size, casual=True) for noun, color in d.objects]
        related = d.relation in RELATIONS
        joint = f" {say('relation', d.relation)} " if related else pick((" and ", ", ", " and ", ", ", " with "))
        body = ", ".join(phrases[:-2] + [joint.join(phrases[-2:])])
    if count < 3 and not d.style:
        body = f"{pick(('',) * 6 + CASUAL_LEADS)} {body}".strip()
    for slot, meaning in (("arrangement", d.relation in ARRANGEMENTS and d.relation), ("position", d.position)):
        body += pick(gaps) + say(slot, meaning) if meaning else ""
    if d.background:
        phrase = say("background", d.background)
        first = count < 3 and pick((False, False, False, True))
        body = f"{phrase}, {body}" if first else body + pick(gaps) + phrase
    return body + (pick(gaps) + say("style", d.style) if d.style else "")


FORMAL = {"background": {b: background_phrases(b) for b in PLAIN + tuple(PLACE_WORDS)}, "position": POSITIONS,
          "arrangement": ARRANGEMENTS, "relation": RELATIONS,
          "style": {style: (f"in {word} style",) for style, word in STYLE_WORDS.items()}}
WAYS = {  # slot: {meaning: all ways to say it, the most casual first}
    slot: {meaning: tuple(dict.fromkeys(CASUAL[slot].get(meaning, ()) + ways)) for meaning, ways in table.items()}
    for slot, table in FORMAL.items()}
PHRASES = {  # slot: {phrase: meaning}, the longest first
    **{slot: dict(sorted(((way, meaning) for meaning, ways in table.items() for way in ways),
                         key=lambda item: -len(item[0]))) for slot, table in WAYS.items()},
    "noun": {form: (noun, many) for noun in NOUNS for name in {noun, SYNONYMS.get(noun, noun)}
             for form, many in ((name, False), (plural(name), True))},
}


def _cut(text, slot, where) -> tuple:
    """Remove a phrase of this slot at the "start", at the "end" or "between" two others -> (rest, meaning or None)."""
    for phrase, meaning in PHRASES[slot].items():
        if where == "end" and text.endswith(" " + phrase):
            return text[:-len(phrase) - 1].rstrip(" ,"), meaning
        if where == "start" and text.startswith(phrase + " ,"):
            return text[len(phrase) + 2:].strip(), meaning
        if where == "between" and f" {phrase} " in text:
            return text.replace(f" {phrase} ", " | ", 1), meaning
    return text, None


def _read_noun(phrase: str, caption: str) -> tuple:
    """"two red apples" -> ([("apple", "red"), ("apple", "red")], size or None)."""
    words, size, color = phrase.split(), None, None
    count = (NUMBERS | DIGITS).get(words[0], 1)
    words = words[1:] if words[0] in ("an", *ONE, *NUMBERS, *DIGITS) else words
    # a size and a colour, in any order; but a "little bird" is the other name of a bird
    while words and " ".join(words) not in PHRASES["noun"]:
        told = next((name for name, ways in SIZES.items() if words[0] in ways), None)
        if told and not size:
            size = told
        elif words[0] in PLAIN + ("grey",) and not color:
            color = "gray" if words[0] == "grey" else words[0]
        else:
            break
        words = words[1:]
    noun, many = PHRASES["noun"].get(" ".join(words), (None, False))
    if noun is None or (count == 1 and many and noun != "fish"):
        raise ValueError(f"parse_caption: cannot read {phrase!r} in {caption!r}. Say for example \"a red apple\" or "
                         f"\"two dogs\"; nouns are {', '.join(NOUNS)}; colours are {', '.join(COLORS)}.")
    return [(noun, color)] * count, size


def parse_caption(caption: str) -> Description:
    """Read any caption of the grammar back, paraphrases and casual ones included, in capitals or not.

    ValueError names the part that it cannot read.
    """
    text = " ".join(re.sub(PUNCTUATION, " ", caption.lower()).replace(",", " , ").split()).strip(" ,")
    if not text:
        return Description()
    found = dict.fromkeys(("style", "background"))
    # from the outside in; a style may come before or after the background
    for slot, where in (("style", "end"), ("style", "start"), ("background", "start"), ("background", "end"),
                        ("style", "end"), ("style", "start")):
        if found[slot] is None:
            text, found[slot] = _cut(text, slot, where)
    text = re.sub(rf"^({'|'.join(['there are', *LEADS[1:], *CASUAL_LEADS[1:]])}) ", "", text)
    text, arrangement = _cut(text, "arrangement", "end")
    text, position = (text, None) if arrangement else _cut(text, "position", "end")
    text, relation = _cut(text, "relation", "between")
    parts = [part for part in re.split(rf" \| | , (?:{'|'.join(JOINTS)}) | , | (?:{'|'.join(JOINTS)}) ", text)
             if part.strip()]
    read = [_read_noun(part, caption) for part in parts]
    objects, sizes = tuple(item for items, _ in read for item in items), [size for _, size in read if size]
    if relation and (len(objects) != 2 or arrangement):
        raise ValueError(f"parse_caption: {caption!r} relates {len(objects)} objects; a relation is between two.")
    if sizes and len(objects) != 1:
        raise ValueError(f"parse_caption: {caption!r} has {len(objects)} objects; a size is told of one thing alone.")
    return Description(objects, arrangement or relation, found["background"], position, found["style"], *sizes)


def position_name(x: float, y: float) -> str:
    """Where a centre (x, y) in [0, 1] lies: a key of POSITIONS."""
    name = " ".join(word for word in ("top" if y < .42 else "bottom" if y > .58 else "",
                                      "left" if x < .42 else "right" if x > .58 else "") if word)
    return name or "middle"
