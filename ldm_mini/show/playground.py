"""A page to play with a model in JupyterLab: mark boxes and holes on a picture, write a caption, sample, and go on.

    from ldm_mini.playground import Playground
    page = Playground(model)
    page.widget                                                  # as the last line of a cell, it is shown

Two clicks on the canvas are two opposite corners of a rectangle. All is made of ipywidgets' own parts: the canvas is a
16 x 16 grid of buttons one sees through, with the picture as the background behind them.
"""

import base64
import html
import io
import time
import warnings
from dataclasses import replace

import torch
from PIL import Image, ImageDraw

from ..extras import extra
from ..scenes.data import EmojiScenes
from ..scenes.scene import SceneConfig
from ..scenes.vocabulary import NOUN_INDEX, NOUNS
from .inputs import tell_contradictions
from .plotting import PALETTE, to_uint8

with extra("course"):
    import ipywidgets as widgets

CELLS, ZOOM = 16, 6                                              # cells per side; screen pixels per pixel of 64
BOX, HOLE = "a thing", "a hole"
OUTLINES = (PALETTE[5], PALETTE[6], PALETTE[3])


class Playground:
    """The page's state and widgets; everything a person does can be done from Python too, as the tests do.

    model: a LatentDiffusion. nouns: what the menu offers. scenes: where "a scene" takes its pictures from.
    """

    def __init__(self, model, scenes: SceneConfig = SceneConfig(), nouns=None):
        self.model, self.scenes, self.next_scene = model, replace(scenes, split="val"), 0
        self.parts = [] if model.conditioner is None else list(model.conditioner.parts)
        self.keys = {key for part in self.parts for key in part.keys}
        self.size = 64 if model.image_size is None else model.image_size[0]
        self.picture = torch.full((1, 3, self.size, self.size), 0.6)     # what the canvas shows
        self.boxes, self.hole = [], torch.zeros(CELLS, CELLS, dtype=torch.bool)
        self.corner, self.undo = None, []
        self._build(sorted(nouns or scenes.nouns or NOUNS))
        self._show("Click two opposite corners of a box, write what you like, and press Sample.")

    # ------------------------------------------------------------------------------------------------------- what it is

    def _build(self, nouns) -> None:
        wide, words = widgets.Layout(width="330px"), {"description_width": "84px"}

        def button(text, act, style="", tip=""):
            made = widgets.Button(description=text, button_style=style, tooltip=tip or text,
                                  layout=widgets.Layout(width="105px"))
            made.on_click(lambda _: act())
            return made

        self.style = widgets.HTML()                              # the canvas' background, and how its cells look
        cell = widgets.Layout(width="auto", height="auto", margin="0", padding="0")
        self.cells = [widgets.Button(layout=cell, tooltip=f"row {i // CELLS + 1}, column {i % CELLS + 1}")
                      for i in range(CELLS * CELLS)]
        for i, one in enumerate(self.cells):
            one.on_click(lambda _, i=i: self.click(i // CELLS, i % CELLS))
        side, part = f"{64 * ZOOM}px", f"repeat({CELLS}, {64 * ZOOM // CELLS}px)"
        self.canvas = widgets.GridBox(self.cells, layout=widgets.Layout(
            width=side, height=side, grid_template_columns=part, grid_template_rows=part, grid_gap="0",
            overflow="hidden", flex="0 0 auto"))
        self.canvas.add_class(f"ldm-canvas-{id(self)}")
        modes = [mode for mode, key in ((BOX, "labels"), (HOLE, "mask")) if key in self.keys]
        self.mode = widgets.ToggleButtons(options=modes, description="mark", style={
            **words, "button_width": "110px"}, layout=wide)
        self.noun = widgets.Dropdown(options=nouns, description="the thing", layout=wide, style=words)
        self.caption = widgets.Text(placeholder="a red apple at night", description="caption", layout=wide, style=words,
                                    continuous_update=False)
        self.guidance = widgets.FloatSlider(3.0, min=1, max=8, step=0.5, description="guidance", layout=wide,
                                            style=words)
        self.steps = widgets.IntSlider(20, min=4, max=50, description="steps", layout=wide, style=words)
        self.seed = widgets.BoundedIntText(0, min=0, max=10 ** 6, description="seed", layout=wide, style=words)
        self.again = widgets.Checkbox(True, description="another seed after each picture", layout=wide, style=words)
        self.sample_button = button("Sample", self.sample, "primary", "draw a picture from what you asked for")
        self.scene_button = button("A real scene", self.real_scene, tip="put a scene of the data on the canvas")
        self.undo_button = button("Undo", self.go_back, tip="the canvas as it was")
        self.clear_button = button("Clear", self.clear, "warning", "no boxes, no hole, no picture")
        self.message = widgets.HTML(layout=wide)
        rows = [self.mode, self.noun, self.caption, self.guidance, self.steps, self.seed, self.again,
                widgets.HBox([self.sample_button, self.scene_button]),
                widgets.HBox([self.undo_button, self.clear_button]), self.message]
        rows = [row for row in rows if self._useful(row)]
        controls = widgets.VBox(rows, layout=widgets.Layout(margin="0 0 0 14px"))
        self.widget = widgets.HBox([widgets.VBox([self.style, self.canvas]), controls])

    def _useful(self, row) -> bool:
        """Leave out what the model cannot be told."""
        needs = {self.caption: "caption", self.noun: "labels"}
        return needs.get(row) in (None, *self.keys)

    # ---------------------------------------------------------------------------------------------------- what it does

    def click(self, row: int, column: int) -> None:
        """The first click marks a corner, the second completes a box or a hole."""
        if not self.mode.options:
            return self._show("This model reads neither boxes nor holes.")
        if self.corner is None:
            self.corner = (row, column)
            return self._show("Now the opposite corner.")
        (top, bottom), (left, right) = (sorted(pair) for pair in zip(self.corner, (row, column)))
        self.corner = None
        self._remember()
        if self.mode.value == HOLE:
            self.hole[top:bottom + 1, left:right + 1] = True
            return self._show("A hole: Sample fills it, and keeps all around it.")
        if len(self.boxes) == self._most:
            self.undo.pop()
            return self._show(f"This model knows layouts of up to {self._most} things: Undo or Clear first.")
        box = (left / CELLS, top / CELLS, (right + 1) / CELLS, (bottom + 1) / CELLS)
        self.boxes = [*self.boxes, (self.noun.value, box)]
        self._show(f"Here is to be: {self.noun.value}.")

    def batch(self) -> dict:
        """What the model is told: only what the page says. Nothing at all is the empty caption."""
        told = {}
        if self.caption.value.strip() and "caption" in self.keys:
            told["caption"] = [self.caption.value.strip()]
        if self.boxes:
            told["labels"] = torch.tensor([[NOUN_INDEX[noun] for noun, _ in self.boxes]])
            told["boxes"] = torch.tensor([[box for _, box in self.boxes]])
        if self.hole.any():
            mask = self.hole.float()[None, None]
            told |= {"image": self.picture, "mask": mask.repeat_interleave(self.size // CELLS, 2).repeat_interleave(
                self.size // CELLS, 3)}
        return told or {"caption": [""]}

    def sample(self) -> None:
        """Draw a picture, which then is the canvas; its hole is closed, the boxes stay."""
        told, began = self.batch(), time.perf_counter()
        self.sample_button.disabled, self.sample_button.description = True, "drawing ..."
        try:
            with warnings.catch_warnings(record=True) as heard:  # such as a word that it does not know
                warnings.simplefilter("always")
                tell_contradictions(told)
                drawn = self.model.sample(told, steps=self.steps.value, guidance_scale=self.guidance.value,
                                          seed=self.seed.value).cpu()
        except ValueError as error:                              # such as a size that the model does not know
            return self._show(f"The model says: {error}")
        finally:
            self.sample_button.disabled, self.sample_button.description = False, "Sample"
        self._remember()
        self.picture, self.hole, self.corner = drawn, torch.zeros_like(self.hole), None
        seed, seconds = self.seed.value, time.perf_counter() - began
        if self.again.value:
            self.seed.value += 1
        self._show(f"Drawn from {self._said(told)}, with seed {seed}, in {seconds:.1f} s.",
                   *(str(warning.message) for warning in heard))

    def real_scene(self) -> None:
        """A scene that no training saw, to make holes in."""
        self._remember()
        self.next_scene += 1
        scene = EmojiScenes(self.scenes, length=1, start=self.next_scene)[0]
        self.picture, self.boxes, self.corner = scene["image"][None], [], None
        self.hole = torch.zeros_like(self.hole)
        self._show("A real scene: make a hole, and let the model fill it.")

    def clear(self) -> None:
        """An empty canvas and an empty wish."""
        self._remember()
        self.picture, self.boxes, self.corner = torch.full_like(self.picture, 0.6), [], None
        self.hole, self.caption.value = torch.zeros_like(self.hole), ""
        self._show("Cleared.")

    def go_back(self) -> None:
        """Undo the last change of the canvas."""
        if self.corner is None and self.undo:
            self.picture, self.boxes, self.hole = self.undo.pop()
        self.corner = None
        self._show("Undone.")

    def _remember(self) -> None:
        self.undo = [*self.undo[-49:], (self.picture, list(self.boxes), self.hole.clone())]

    @property
    def _most(self) -> int:
        """How many things a layout may have."""
        return max((getattr(part, "max_objects", 0) for part in self.parts), default=0)

    def _said(self, told: dict) -> str:
        """The wish in words."""
        if told.get("caption") == [""]:
            return "no wish at all"
        parts = [name for name, key in (("the caption", "caption"), (f"the boxes ({len(self.boxes)})", "labels"),
                                        ("what is around the hole", "mask")) if key in told]
        return " and ".join(parts)

    # ---------------------------------------------------------------------------------------------------- what it shows

    def canvas_image(self) -> Image.Image:
        """The picture, enlarged, with boxes, hole and the first corner drawn over it."""
        side = 64 * ZOOM
        image = Image.fromarray(to_uint8(self.picture)[0]).resize((side, side), Image.Resampling.BICUBIC)
        pen, cell = ImageDraw.Draw(image, "RGBA"), side // CELLS
        for row, column in self.hole.nonzero().tolist():
            x, y = column * cell, row * cell
            pen.rectangle((x, y, x + cell - 1, y + cell - 1), fill=(0, 0, 0, 215))
            pen.line((x, y + cell, x + cell, y), fill=(255, 255, 255, 110))
        for i, (noun, box) in enumerate(self.boxes):
            corners = [round(v * side) for v in box]
            pen.rectangle([c - (k > 1) for k, c in enumerate(corners)], outline="white", width=4)
            pen.rectangle([c - (k > 1) for k, c in enumerate(corners)], outline=OUTLINES[i % 3], width=2)
            width = pen.textlength(noun)
            pen.rectangle((corners[0], corners[1], corners[0] + width + 8, corners[1] + 14), fill=OUTLINES[i % 3])
            pen.text((corners[0] + 4, corners[1] + 1), noun, fill="white")
        if self.corner is not None:
            y, x = (v * cell for v in self.corner)
            pen.rectangle((x, y, x + cell - 1, y + cell - 1), fill=(255, 255, 255, 170), outline="black", width=2)
        return image

    def _show(self, *lines: str) -> None:
        file, name = io.BytesIO(), f".ldm-canvas-{id(self)}"
        self.canvas_image().save(file, format="PNG")
        data = base64.b64encode(file.getvalue()).decode()
        self.style.value = (
            f"<style>{name} {{background: url(data:image/png;base64,{data}) 0 0 / {64 * ZOOM}px no-repeat;}}"
            f"{name} button {{background: transparent; border: 0.5px solid rgba(255,255,255,.13); box-shadow: none;"
            "min-width: 0; cursor: crosshair;} "
            f"{name} button:hover {{background: rgba(255,255,255,.45);}}</style>")
        self.message.value = f"<p style='line-height: 1.3'>{'<br>'.join(map(html.escape, lines))}</p>"
