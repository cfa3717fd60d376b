"""Which words the captions of some scenes are made of: what a model that was trained on them can know."""

from . import captions as c
from . import vocabulary as v
from .scene import SceneConfig


def words_of(config: SceneConfig) -> tuple[str, ...]:
    """All words of the captions of these scenes, and the comma: first the nouns, then the colours, then all others."""
    counts, casual = range(config.min_objects, config.max_objects + 1), config.p_casual > 0
    varied = casual or config.p_paraphrase > 0
    nouns = config.nouns or v.NOUNS
    colors = v.COLORS if set(nouns) & set(v.RECOLORABLE) else ()
    names = [*nouns, *(c.SYNONYMS[noun] for noun in nouns if varied and noun in c.SYNONYMS)]
    said = [*names, "a", *(["an"] if any(name[0] in "aeiou" for name in (*names, *colors)) else []),
            *_ways("background", _backgrounds(config), casual, varied)]
    if len(counts) > 1 or 1 not in counts:
        said += [*map(c.plural, names), "and", ","]
    said += [word for word, number in (c.NUMBERS | (c.DIGITS if casual else {})).items() if number in counts]
    if 1 in counts:
        said += _ways("position", ["middle"] if config.centred else c.POSITIONS, casual, varied)
        said += [way for ways in c.SIZES.values() for way in ways] if casual and not config.centred else []
    if 2 in counts:
        said += _ways("relation", [r for r in c.RELATIONS if varied or r != "beside"], casual, varied)
    if 3 in counts:
        said += _ways("arrangement", c.ARRANGEMENTS, casual, varied)
    if varied and min(counts) < 3:
        said += [*_ways("style", config.styles, casual, varied), ","]
    if config.p_paraphrase > 0 and min(counts) < 3:
        said += [*c.LEADS, *(["there are"] if 2 in counts else [])]
    if casual:
        said += [*c.ONE, *(c.JOINTS if max(counts) > 1 else ()), *(c.CASUAL_LEADS if min(counts) < 3 else ()), ","]
    words = {word for phrase in said for word in phrase.replace(",", " , ").split()}
    return tuple(dict.fromkeys((*nouns, *colors, *sorted(words))))


def _ways(slot: str, meanings, casual: bool, varied: bool) -> list[str]:
    table = c.WAYS if casual else c.FORMAL
    return [way for meaning in meanings for way in (table[slot][meaning] if varied else table[slot][meaning][:1])]


def _backgrounds(config: SceneConfig) -> tuple:
    if not (config.places and config.plain_backgrounds):
        return v.PLACES if config.places else v.PLAIN
    return (v.PLAIN if config.p_place < 1 else ()) + (v.PLACES if config.p_place > 0 else ())
