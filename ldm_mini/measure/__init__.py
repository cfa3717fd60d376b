"""How good is a model? Distances (metrics), what is in a picture (recogniser), does it agree (scoring), each task's
verdict (judge), films (films), and a whole report (evaluate).
"""

from .evaluate import evaluate_autoencoder, evaluate_diffusion, run_evaluate
from .films import evaluate_films, read_films, score_films
from .judge import Judge
from .metrics import box_iou, frechet_distance, low_resolution_consistency, psnr, ssim
from .recogniser import Recogniser
from .scoring import score_captions, score_scenes

__all__ = [
    "Judge", "Recogniser", "box_iou", "evaluate_autoencoder", "evaluate_diffusion", "evaluate_films",
    "frechet_distance", "low_resolution_consistency", "psnr", "read_films", "run_evaluate", "score_captions",
    "score_films", "score_scenes", "ssim",
]
