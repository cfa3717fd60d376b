"""Pictures of pictures: grids, boxes, maps, curves (plotting), a task's inputs (inputs), where words act
(attention_maps), films that move (films), studies as text (tables), and a page to play with (playground, imported by
its own name for it needs anywidget).
"""

from .attention_maps import record_attention
from .films import film_gif, film_strip, save_film
from .inputs import scenes_for, show_inputs
from .plotting import (
    LINE_STYLES,
    PALETTE,
    draw_boxes,
    figure_done,
    plot_curve,
    save_grid,
    show_images,
    show_semantic,
    to_uint8,
)
from .tables import study_table

__all__ = [
    "LINE_STYLES", "PALETTE", "draw_boxes", "figure_done", "film_gif", "film_strip", "plot_curve", "record_attention",
    "save_film", "save_grid", "scenes_for", "show_images", "show_inputs", "show_semantic", "study_table",
    "to_uint8",
]
