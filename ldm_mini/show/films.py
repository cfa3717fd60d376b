"""Films as pictures that move (an animated GIF, which every browser and notebook plays) and as strips of frames."""

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ..files import write_file
from .plotting import save_grid, to_uint8


def film_gif(videos, frames_per_second: float = 6.0) -> bytes:
    """Videos (B,3,T,H,W) in [-1,1], side by side, as an animated GIF that begins anew at its end.

    In a notebook: `IPython.display.Image(data=film_gif(videos), alt=...)`. ValueError for values that are no numbers.
    """
    videos = _films(videos)
    count, _, frames, height, width = videos.shape
    pixels = to_uint8(videos.transpose(1, 2).flatten(0, 1)).reshape(count, frames, height, width, 3)
    sheets = np.full((frames, height, count * (width + 2) - 2, 3), 255, np.uint8)
    for i, film in enumerate(pixels):
        sheets[:, :, i * (width + 2):i * (width + 2) + width] = film
    # one palette for all frames: else colours that do not change would flicker. It is made of all of them
    every = Image.fromarray(sheets.reshape(frames * height, -1, 3)).quantize(256, dither=Image.Dither.NONE)
    drawn = [Image.fromarray(sheet).quantize(palette=every, dither=Image.Dither.NONE) for sheet in sheets]
    file = io.BytesIO()
    drawn[0].save(file, "GIF", save_all=True, append_images=drawn[1:], loop=0, optimize=False,
                  duration=round(1000 / frames_per_second))
    return file.getvalue()


def film_strip(videos) -> list[torch.Tensor]:
    """Videos (B,3,T,H,W) as rows of their frames, for `save_grid`: B batches (T,3,H,W)."""
    return list(_films(videos).transpose(1, 2))


def save_film(videos, path, frames_per_second: float = 6.0, texts=None) -> list[Path]:
    """Write videos (B,3,T,H,W) in [-1,1]: to a name ending with .gif an animation, and beside it a .png with a row of
    frames for each; to any other picture's name the strip alone. Returns the paths written.

    texts: one each, written in the strip under the first frames."""
    path, rows = Path(path), film_strip(videos)
    under = None if texts is None else [text for first in texts for text in (first, *[""] * (len(rows[0]) - 1))]
    strip = save_grid(rows, path.with_suffix(".png") if path.suffix.lower() == ".gif" else path, texts=under)
    if strip == path:
        return [path]
    write_file(path, film_gif(videos, frames_per_second))
    return [path, strip]


def _films(videos) -> torch.Tensor:
    videos = torch.as_tensor(videos).detach().float().cpu()
    if videos.ndim != 5 or videos.shape[1] != 3:
        raise ValueError(f"films are (B,3,T,H,W) in [-1,1]; got {tuple(videos.shape)}. One film: videos[None].")
    return videos
