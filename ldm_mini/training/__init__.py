"""What surrounds the loops of `train`: the numbers (recipes), models from them (build), latents kept (latents), a run
and its folder (launch, stages, runs), and a training that was killed (state).
"""

from .build import start_from
from .latents import LatentCache, cache_latents
from .launch import load_or_train, train_stage
from .recipes import AUTOENCODERS, DIFFUSIONS, find_recipe

__all__ = [
    "AUTOENCODERS", "DIFFUSIONS", "LatentCache", "cache_latents", "find_recipe", "load_or_train", "start_from",
    "train_stage",
]
