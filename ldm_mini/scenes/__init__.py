"""Emoji Scenes, the data set: what a picture shows is known exactly. To read in this order:
vocabulary, draws; captions, sprites, backgrounds, masks; layout; scene; data, own_pictures; films.
"""

from .captions import Description, parse_caption
from .data import EmojiScenes, collate, scene_batches, scene_stream, to_tensor
from .films import MOTIONS, EmojiFilms, FilmConfig, film_batches, film_stream, parse_film, random_film, render_film
from .own_pictures import ImageFolderDataset
from .scene import (
    CENTRED_SCENES,
    LOWRES_FACTOR,
    MICRO_SCENES,
    TINY_NOUNS,
    TINY_SCENES,
    SceneConfig,
    compose,
    is_heldout,
    random_scene,
    render,
    scenes_of,
    scenes_to_test,
)
from .vocabulary import (
    BACKGROUNDS,
    COLORS,
    HELDOUT_COLORS,
    NOUN_INDEX,
    NOUNS,
    PLAIN,
    RECOLORABLE,
    SEMANTIC,
    STUFF,
    STYLES,
)

__all__ = [
    "BACKGROUNDS", "CENTRED_SCENES", "COLORS", "Description", "EmojiFilms", "EmojiScenes", "FilmConfig",
    "HELDOUT_COLORS", "ImageFolderDataset", "LOWRES_FACTOR", "MICRO_SCENES", "MOTIONS", "NOUNS", "NOUN_INDEX", "PLAIN",
    "RECOLORABLE", "SEMANTIC", "STUFF", "STYLES", "SceneConfig", "TINY_NOUNS", "TINY_SCENES", "collate", "compose",
    "film_batches", "film_stream", "is_heldout", "parse_caption", "parse_film", "random_film", "random_scene", "render",
    "render_film", "scene_batches", "scene_stream", "scenes_of", "scenes_to_test", "to_tensor",
]
