"""How good is a model? Distances (metrics), what is in a picture (recogniser), does it agree (scoring), each task's
verdict (judge), and a whole report (evaluate).
"""

from .evaluate import evaluate_autoencoder, evaluate_diffusion, run_evaluate
from .judge import Judge
from .metrics import box_iou, frechet_distance, low_resolution_consistency, psnr, ssim
from .recogniser import Recogniser
from .scoring import score_captions, score_scenes

__all__ = [
    "Judge", "Recogniser", "box_iou", "evaluate_autoencoder", "evaluate_diffusion", "frechet_distance",
    "low_resolution_consistency", "psnr", "run_evaluate", "score_captions", "score_scenes", "ssim",
]
