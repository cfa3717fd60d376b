"""A page to play with a model: drag boxes of things, paint a hole, write a caption, draw, and go on from there.

    from ldm_mini.show.playground import Playground
    page = Playground(model)
    page                                                         # as the last line of a cell, it is shown

An anywidget: the class below is the page's state and all of its logic. `playground.js` beside it shows the state in a
browser and changes it by mouse, touch or keys. Where none runs, as on a web page, the canvas is shown as a picture.
"""

import base64
import io
import time
import warnings
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..extras import extra
from ..scenes.data import EmojiScenes
from ..scenes.scene import SceneConfig
from ..scenes.vocabulary import NOUN_INDEX, NOUNS
from .inputs import tell_contradictions
from .plotting import OUTLINES, to_uint8

with extra("course"):
    import anywidget
    from traitlets import Bool, CBytes, Enum, Float, Int, List, TraitError, Unicode, observe, validate

SIDE = 384                                                       # of the canvas, in screen pixels; as in playground.js
GREY, SEEDS = 0.6, 10**6                                         # of an empty canvas; the last seed
ACTS = ("draw", "real_scene", "undo", "clear")                   # what the page's buttons call


class Playground(anywidget.AnyWidget):
    """The page. Everything that a person does on it can be done from Python too, and the page shows it.

    model: a LatentDiffusion. nouns: what the menus offer. scenes: where "a real scene" takes its pictures from.
    start: traits to begin with, such as boxes=[("house", (0.1, 0.2, 0.6, 0.8))], caption="a house in the snow".
    """

    _esm = Path(__file__).with_name("playground.js")
    _css = Path(__file__).with_name("playground.css")
    # what the page offers
    nouns = List().tag(sync=True)
    reads = List().tag(sync=True)                                # the conditions that the model reads
    most = Int().tag(sync=True)                                  # boxes in a layout
    size = Int().tag(sync=True)                                  # pixels per side
    # what a person asks for
    boxes = List().tag(sync=True)                                # [[noun, [x0, y0, x1, y1]], ...], in [0, 1], y down
    hole = CBytes().tag(sync=True)                               # size * size bytes, row by row; 1 = to be painted
    caption = Unicode().tag(sync=True)
    kind = Enum(("", *NOUNS), "").tag(sync=True)                 # the class: a noun, or "" for none
    guidance = Float(3.0, min=1, max=8).tag(sync=True)
    steps = Int(20, min=4, max=50).tag(sync=True)
    seed = Int(0, min=0, max=SEEDS).tag(sync=True)
    another = Bool(True).tag(sync=True)                          # seed after each picture
    # what it answers
    picture = CBytes().tag(sync=True)                            # the canvas' picture, a PNG
    remarks = List().tag(sync=True)                              # on words that the model does not know
    message = Unicode().tag(sync=True)
    busy = Bool(False).tag(sync=True)

    def __init__(self, model, scenes: SceneConfig = SceneConfig(), nouns=None, **start):
        size = 64 if model.image_size is None else model.image_size[0]
        self.model, self.scenes, self.next_scene = model, replace(scenes, split="val", size=size), 0
        self.parts = [] if model.conditioner is None else list(model.conditioner.parts)
        self.pixels = torch.full((1, 3, size, size), GREY)       # what the canvas shows, in [-1, 1]
        self.past, self.in_step = [], True                       # for undo; the start is no step
        super().__init__(
            nouns=sorted(nouns or scenes.nouns or NOUNS), size=size, hole=bytes(size ** 2), picture=png(self.pixels),
            reads=sorted({key for part in self.parts for key in part.keys}),
            most=max((getattr(part, "max_objects", 0) for part in self.parts), default=0),
            message="Say what you want, and press Draw.", **start)
        self.in_step = False
        self.on_msg(lambda _, content, buffers: self.act(content.get("act")))

    # ---------------------------------------------------------------------------------------------------- what it does

    def act(self, name: str) -> None:
        """What a button of the page does: one of ACTS."""
        if name in ACTS:
            getattr(self, name)()

    def draw(self) -> None:
        """Draw a picture, which then is the canvas; its hole is closed, the boxes stay."""
        told, said, seed, began = self.batch(), self._said(), self.seed, time.perf_counter()
        self.busy, self.message = True, "Drawing ..."
        try:
            with warnings.catch_warnings(record=True) as heard:  # such as a condition without effect
                warnings.simplefilter("always")
                tell_contradictions(told)
                drawn = self.model.sample(told or None, num=1, steps=self.steps, guidance_scale=self.guidance,
                                          seed=seed).cpu()
        except (ValueError, RuntimeError) as error:              # such as a size that the model does not know
            self.message = f"The model says: {error}"
            return
        finally:
            self.busy = False
        with self._step():
            self._show(drawn)
        if self.another:
            self.seed = (seed + 1) % (SEEDS + 1)
        lines = [f"Drawn from {said}, with seed {seed}, in {time.perf_counter() - began:.1f} s."]
        lines += [str(warning.message) for warning in heard if str(warning.message) not in self.remarks]
        self.message = "\n".join(lines)

    def real_scene(self) -> None:
        """A scene that no training saw, to make holes in."""
        self.next_scene += 1
        with self._step():
            self._show(EmojiScenes(self.scenes, length=1, start=self.next_scene)[0]["image"][None], [])
        self.message = "A real scene: paint a hole in it, and let the model fill it."

    def clear(self) -> None:
        """An empty canvas and an empty wish."""
        with self._step():
            self._show(torch.full_like(self.pixels, GREY), [])
        self.caption = self.kind = ""
        self.message = "Cleared."

    def undo(self) -> None:
        """The canvas as it was before its last change."""
        if not self.past:
            self.message = "There is nothing to undo."
            return
        self.in_step = True
        self._show(*self.past.pop())
        self.in_step, self.message = False, "Undone."

    def batch(self) -> dict:
        """What the model is told: only what the page says; where that is nothing, that there is no wish."""
        nothing = {"class": torch.tensor([-1])} if self.reads == ["class"] else {"caption": [""]}
        return self._wish() or (nothing if self.reads else {})

    def _wish(self) -> dict:
        told = {}
        if self.caption.strip() and "caption" in self.reads:
            told["caption"] = [self.caption.strip()]
        if self.kind and "class" in self.reads:
            told["class"] = torch.tensor([NOUN_INDEX[self.kind]])
        if self.boxes:
            told["labels"] = torch.tensor([[NOUN_INDEX[noun] for noun, _ in self.boxes]])
            told["boxes"] = torch.tensor([[box for _, box in self.boxes]])
        if self.mask.any():
            told |= {"image": self.pixels, "mask": self.mask.float()[None, None]}
        return told

    @property
    def mask(self) -> Tensor:
        """The hole (size, size) bool; may be set."""
        return torch.tensor(list(self.hole), dtype=torch.bool).reshape(self.size, self.size)

    @mask.setter
    def mask(self, hole: Tensor) -> None:
        self.hole = hole.to(torch.uint8).numpy().tobytes()

    # ---------------------------------------------------------------------------------- what a person may ask, answered

    @validate("boxes")
    def _check_boxes(self, proposal) -> list:
        boxes = [[noun, [float(v) for v in box]] for noun, box in proposal["value"]]
        if len(boxes) > self.most:
            raise TraitError(f"this model knows layouts of up to {self.most} things; got {len(boxes)}.")
        for noun, box in boxes:
            inside = len(box) == 4 and 0 <= box[0] < box[2] <= 1 and 0 <= box[1] < box[3] <= 1
            if noun not in NOUN_INDEX or not inside:
                raise TraitError("a box is a noun and x0, y0, x1, y1 with 0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1; "
                                 f"got {noun!r} and {box}.")
        return boxes

    @validate("hole")
    def _check_hole(self, proposal) -> bytes:
        if len(proposal["value"]) != self.size ** 2:
            raise TraitError(f"a hole has {self.size} x {self.size} bytes, got {len(proposal['value'])}.")
        return proposal["value"]

    @observe("caption")
    def _remark(self, change) -> None:
        """Unknown words are told while one writes."""
        told = {"caption": [self.caption.strip()]}
        self.remarks = [remark for part in self.parts if "caption" in part.keys and hasattr(part, "remarks")
                        and self.caption.strip() for remark in part.remarks(told)]

    @observe("boxes", "hole")
    def _changed(self, change) -> None:
        """A change by hand can be undone."""
        if self.in_step:
            return
        was = {"boxes": self.boxes, "hole": self.hole, change["name"]: change["old"]}
        self._remember((self.pixels, was["boxes"], was["hole"]))
        now, old = self.boxes, was["boxes"]
        self.message = ("The hole is what Draw fills; all around it is kept." if change["name"] == "hole" else
                        f"Here is to be: {now[-1][0]}." if len(now) > len(old) else
                        "A box was deleted." if len(now) < len(old) else "A box was changed.")

    # ---------------------------------------------------------------------------------------------------- what it shows

    def canvas_image(self) -> Image.Image:
        """The picture, enlarged, with boxes and hole drawn over it."""
        image = Image.fromarray(to_uint8(self.pixels)[0]).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        hole = Image.fromarray(self.mask.numpy()).resize((SIDE, SIDE))
        image.paste(_hatched(SIDE), mask=hole)
        # names that can be read in a figure that shows the canvas at half its size
        pen, font = ImageDraw.Draw(image), ImageFont.load_default(20)
        for i, (noun, box) in enumerate(self.boxes):
            x0, y0, x1, y1 = (round(v * SIDE) for v in box)
            pen.rectangle((x0, y0, x1 - 1, y1 - 1), outline="white", width=4)
            pen.rectangle((x0, y0, x1 - 1, y1 - 1), outline=OUTLINES[i % 3], width=2)  # as in playground.css
            pen.rectangle((x0, y0, x0 + pen.textlength(noun, font) + 8, y0 + 24), fill="black")
            pen.text((x0 + 4, y0), noun, "white", font)
        return image

    def described(self) -> str:
        """The canvas in words, for who does not see it."""
        boxes = [f"a box for {noun} from ({x0:.2f}, {y0:.2f}) to ({x1:.2f}, {y1:.2f})"
                 for noun, (x0, y0, x1, y1) in self.boxes]
        hole = [f"a hole over {self.mask.float().mean():.0%} of the picture"] if self.mask.any() else []
        return "The page's canvas" + (" with " + ", ".join(boxes + hole) if boxes + hole else ", empty") + "."

    def _repr_mimebundle_(self, **options):
        """The page; and for who has no widgets: its canvas, and words."""
        data, metadata = super()._repr_mimebundle_(**options)
        image = base64.b64encode(png(self.canvas_image())).decode()
        data |= {"image/png": image, "text/plain": f"{self.described()} To play, run this cell in JupyterLab."}
        return data, {**metadata, "image/png": {"alt": self.described()}}

    def _said(self) -> str:
        """The wish in words."""
        names = {"caption": "the caption", "class": "the class", "labels": f"the boxes ({len(self.boxes)})",
                 "mask": "what is around the hole"}
        return " and ".join(words for key, words in names.items() if key in self._wish()) or "no wish at all"

    # -------------------------------------------------------------------------------------------------------- its steps

    def _show(self, pixels: Tensor, boxes=None, hole=None) -> None:
        """Another picture; other boxes, if given; a hole, if given, else none."""
        self.pixels, self.picture = pixels, png(pixels)
        self.boxes = self.boxes if boxes is None else boxes
        self.hole = hole or bytes(self.size ** 2)

    @contextmanager
    def _step(self):
        """Whatever changes inside is one step for undo."""
        self._remember((self.pixels, self.boxes, self.hole))
        self.in_step = True
        try:
            yield
        finally:
            self.in_step = False

    def _remember(self, was) -> None:
        self.past = [*self.past[-49:], was]


def png(picture) -> bytes:
    """A PIL picture, or one of a batch (1,3,H,W) in [-1,1], as a PNG file's content."""
    image, file = picture if isinstance(picture, Image.Image) else Image.fromarray(to_uint8(picture)[0]), io.BytesIO()
    image.save(file, format="PNG")
    return file.getvalue()


def _hatched(side: int) -> Image.Image:
    """What a hole looks like: black with grey lines."""
    image = Image.new("RGB", (side, side))
    pen = ImageDraw.Draw(image)
    for start in range(0, 2 * side, 12):
        pen.line((start, 0, start - side, side), fill=(120, 120, 120))
    return image
