"""Pictures of pictures: grids, boxes, semantic maps, curves. Colours are told apart with any kind of colour vision.

The `show_*`, `draw_*` and `plot_*` functions draw into matplotlib axes and return them; `figure_done` ends a cell of a
notebook: it shows what was drawn, with words for those who cannot see it.
"""

import math
import textwrap
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from ..files import checksums, measurement

# Black, orange, sky blue, bluish green, yellow, blue, vermilion, reddish purple: the hues of Okabe & Ito 2008, darkened
# until a line shows on white (3:1, WCAG 2); green, blue and vermilion are dark enough for text (4.5:1) too
PALETTE = ("#000000", "#C18A13", "#119AE9", "#006B3F", "#8E782E", "#166FB8", "#A83202", "#C75A87")
LINE_STYLES = ("-", "--", "-.", ":")
PAGE = 900                                                          # pixels that a page of JupyterLab is wide, at least
OUTLINES = tuple(PALETTE[k] for k in (5, 6, 3, 7))  # of boxes and curves; they show on a light grey too
GROUND, INK = "#EBEBEB", "#282828"  # that grey, and what is written on it
# of semantic maps: plain, sky, grass, sea, sand, snow, night sky, dark ground, then the nouns: data/build/map_colors.py
MAP_COLORS = """
#D0D0D0 #56B4E9 #009E73 #0072B2 #DCC882 #FFFFFF #2A1A5E #3A3A3A #FF3C0F #A54B00 #C31EFF #0000D2
#96FF00 #780096 #964B78 #B469FF #7800F0 #FF78B4 #960F78 #78694B #B4782D #96B400 #C31E96 #5A1EB4
#C3FF87 #8778E1 #780F00 #A51E00 #3C3CD2 #C378B4 #D21E3C #784B5A #F05A69 #D21EC3 #96D200 #784BE1
#A5A54B #FF96A5 #78FFB4 #873C2D #87B487 #5A0087 #5AF000 #5A0F00 #693CA5 #E16996 #4B4B78 #A587FF
#E13CE1 #781E5A #C396C3 #69E1FF #0000A5 #005A1E #FF8700 #A5FFD2 #5A692D #E10FA5 #966987 #691E78
#A5C3FF #B44B5A #78C35A #B4005A #A578C3 #E1A5C3 #FF78E1 #3C69FF #870FC3 #5A3C87 #FFC3FF #B4694B
""".split()


def to_uint8(images) -> np.ndarray:
    """Images (B, C, H, W) or (C, H, W) in [-1, 1] -> uint8 (B, H, W, 3), clamped; one channel becomes grey."""
    images = torch.as_tensor(images).detach().float().cpu()
    images = images[None] if images.ndim == 3 else images
    if images.ndim != 4 or images.shape[1] not in (1, 3) or not images.numel():
        raise ValueError("images must be (B, C, H, W) or (C, H, W) with 1 or 3 channels in [-1, 1], "
                         f"got shape {tuple(images.shape)}.")
    _check_finite(images)
    pixels = ((images.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1)
    return pixels.expand(-1, -1, -1, 3).numpy()


def _check_finite(images: torch.Tensor) -> None:
    if bad := int((~images.isfinite()).flatten(1).any(dim=1).sum()):
        raise ValueError(f"{bad} of {len(images)} pictures hold values that are no numbers (NaN or infinite): there is "
                         "nothing to show.")


def save_grid(images, path, columns: int | None = None, texts=None) -> Path:
    """Write images (B, C, H, W) in [-1, 1] side by side to a file, its folder made if needed; returns the path.

    A list of equally large batches becomes one row per batch: originals above reconstructions, one row per step, ...;
    else the grid is about twice as wide as high unless `columns` says how wide.
    texts: what is written under each picture, in their order; what the font cannot write, by its code point.
    Raises ValueError for pictures of NaN, and for too few texts.
    """
    from matplotlib import get_data_path  # for its font; slow to import, hence only here
    from matplotlib.ft2font import FT2Font

    if not isinstance(images, torch.Tensor):
        if len(shapes := {(len(batch), *batch.shape[2:]) for batch in images}) != 1:
            raise ValueError(f"save_grid: rows are equally many pictures of one size; got {sorted(shapes)}.")
        columns = columns or len(images[0])
        images = torch.cat([batch.detach().float().cpu().expand(-1, 3, -1, -1) for batch in images])
    pixels = to_uint8(images)
    count, height, width, _ = pixels.shape
    columns = min(columns or math.ceil(math.sqrt(2 * count)), count)
    texts = [""] * count if texts is None else list(texts)
    if len(texts) != count:
        raise ValueError(f"save_grid: {len(texts)} texts for {count} pictures; give one each.")
    file = Path(get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    font, has = ImageFont.truetype(file, max(9, width // 12)), FT2Font(str(file)).get_char_index
    # Chinese, say, by its code points: empty boxes would tell less
    texts = ["".join(c if has(ord(c)) else ascii(c)[1:-1] for c in text) for text in texts]
    texts = [_wrapped(text, font, width) for text in texts]
    line = sum(font.getmetrics())
    # white lines of two pixels between the pictures, below a row its texts, white where the last row has no picture
    rows = [range(first, min(first + columns, count)) for first in range(0, count, columns)]
    room = [line * max(len(texts[i]) for i in row) for row in rows]
    sheet = Image.new("RGB", (columns * (width + 2) - 2, sum(room) + len(rows) * (height + 2) - 2), "white")
    pen, top = ImageDraw.Draw(sheet), 0
    for row, below in zip(rows, room):
        for column, i in enumerate(row):
            left = column * (width + 2)
            sheet.paste(Image.fromarray(pixels[i]), (left, top))
            for k, words in enumerate(texts[i]):
                pen.text((left, top + height + k * line), words, "black", font)
        top += height + below + 2
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)
    return path


def texts_under(rows: dict, said: dict) -> list[str]:
    """A text for each picture of named rows, for `save_grid`: what is `said` of a row's pictures, else its name."""
    return [text for name, row in rows.items() for text in said.get(name) or [name] * len(row)]


def _wrapped(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """A text in lines of at most `width` pixels; a word that is wider is cut."""
    lines = []
    for word in text.split():
        joined = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(joined) <= width:
            lines[-1] = joined
            continue
        lines.append("")
        for letter in word:
            if lines[-1] and font.getlength(lines[-1] + letter) > width:
                lines.append("")
            lines[-1] += letter
    return lines


def figure_done(alt: str) -> None:
    """Show the figure that was drawn last, as `plt.show()` does, and close it.

    alt: what it shows, in one or two sentences: the alternative text that a screen reader speaks. It becomes the
    picture's `alt` in the saved notebook, in pages made from it, and on the course's site. ValueError for no words.
    Beside it stands the width on the page, in pixels: 100 for an inch, however finely the picture is stored; a grid of
    `show_images` gets more, so that each picture has 130, as far as the page goes.
    """
    import matplotlib.pyplot as plt

    if not str(alt).strip():
        raise ValueError("say in a sentence what the figure shows: a screen reader has nothing else.")
    figure = plt.gcf()
    try:
        from IPython.display import display
    except ModuleNotFoundError:                 # a script, without the course's packages
        plt.show()
    else:
        inches = figure.get_figwidth()
        width = min(round(getattr(figure, "per_inch", 100) * inches), max(PAGE, round(100 * inches)))
        display(figure, metadata={"image/png": {"alt": " ".join(alt.split()), "width": width}})
    plt.close(figure)


def plain(text) -> str:
    """Text for a figure as it is: a dollar is no formula's begin."""
    return str(text).replace("$", r"\$")


def show_images(images, titles=None, columns: int | None = None, size: float = 1.6, title_width: int = 22,
                row_labels=None):
    """Images (B, C, H, W) in [-1, 1], a title below each, a label left of each row -> matplotlib Figure.

    titles: one per image, or one per column, which then stand under the last row; wrapped at `title_width`
            letters, or where the picture ends.
    """
    import matplotlib.pyplot as plt

    pixels = to_uint8(images)
    columns = min(len(pixels), columns or 8)
    rows = math.ceil(len(pixels) / columns)
    if titles is not None and len(titles) == columns < len(pixels):
        titles = [""] * (len(pixels) - columns) + list(titles)
    if titles is not None and len(titles) != len(pixels):
        raise ValueError(f"show_images: {len(titles)} titles for {len(pixels)} images; give one each, "
                         "or one per column.")
    width = min(title_width, int(15 * size))                                # letters of 9 points that stand below one
    texts = ["\n".join(textwrap.wrap(plain(title), max(width, 1))) for title in titles or ()]
    lines = sum(max(text.count("\n") + bool(text) for text in texts[i:i + columns])
                for i in range(0, len(texts), columns))
    figure, axes = plt.subplots(rows, columns, squeeze=False, layout="constrained",
                                figsize=(columns * size + (row_labels is not None), rows * size + 0.16 * lines + 0.1))
    figure.per_inch = max(100, 130 / size)                                  # for `figure_done`
    for axis in axes.flat:
        axis.set_axis_off()
    for i, (axis, image) in enumerate(zip(axes.flat, pixels)):
        _show(axis, image)
        if texts:
            axis.text(0.5, -0.04, texts[i], transform=axis.transAxes, ha="center", va="top", fontsize=9)
    for axis, label in zip(axes[:, 0], row_labels, strict=True) if row_labels is not None else ():
        axis.text(-0.06, 0.5, plain(label), transform=axis.transAxes, ha="right", va="center", fontsize=9)
    return figure


def draw_boxes(image, boxes, labels=None, ax=None):
    """One image (C, H, W) with its xyxy boxes (n, 4) in [0, 1] and their names -> Axes. Empty boxes are padding."""
    from matplotlib.patches import Rectangle

    ax = _axes(ax)
    pixels = to_uint8(image)[0]
    height, width = pixels.shape[:2]
    _show(ax, pixels)
    boxes = torch.as_tensor(boxes).detach().float().cpu().reshape(-1, 4).tolist()
    for i, (x0, y0, x1, y1) in enumerate(boxes):
        if x1 <= x0 or y1 <= y0:
            continue
        corner, extent = (x0 * width - 0.5, y0 * height - 0.5), ((x1 - x0) * width, (y1 - y0) * height)
        for color, line, style in (("white", 3, "-"), (OUTLINES[i % 4], 1.5, LINE_STYLES[i % 4])):
            ax.add_patch(Rectangle(corner, *extent, fill=False, edgecolor=color, linewidth=line, linestyle=style))
        if labels is not None:
            ax.text(corner[0], corner[1], plain(labels[i]), fontsize=9, va="bottom",
                    bbox={"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 0.6})
    return ax


def class_colors(count: int) -> np.ndarray:
    """(count, 3) uint8: MAP_COLORS, which can be told apart, for any two can meet in a map; then they begin anew."""
    from matplotlib.colors import to_rgb

    colors = np.array([to_rgb(color) for color in MAP_COLORS])
    return (np.resize(colors, (count, 3)) * 255).round().astype(np.uint8)


def show_semantic(semantic, names, ax=None):
    """One integer map (H, W) in colours, each region's name written on it -> Axes. Class k is called `names[k]`."""
    ax = _axes(ax)
    semantic = np.asarray(torch.as_tensor(semantic).cpu())
    if semantic.ndim != 2:
        raise ValueError(f"show_semantic: one map (H, W) is needed, got shape {semantic.shape}; pass semantic[i].")
    _show(ax, class_colors(len(names))[semantic])
    for k in np.unique(semantic):
        ys, xs = np.nonzero(semantic == k)
        if len(ys) >= 12:  # a name on less would hide it
            nearest = np.argmin((ys - ys.mean()) ** 2 + (xs - xs.mean()) ** 2)   # inside the class, not in a hole of it
            ax.text(xs[nearest], ys[nearest], plain(names[k]), ha="center", va="center", fontsize=9,
                    bbox={"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 0.6})
    return ax


def plot_curve(records, key: str = "loss", band=None, x: str = "step", smooth: int = 1, label=None, ax=None,
               log: bool = False):
    """A quantity of log records over time -> Axes; call again with `ax` for a second curve (other colour and line).

    records: dicts or objects with `x` and `key`, or plain numbers, one per step; records without `key` are passed over.
    smooth:  running mean over so many.
    band:    where a healthy run lies, drawn grey: the name of a reference curve (made with the same `smooth` by
             `python data/measurements/reference_curves.py NAME`), or its columns {x, "low", "high"} of equal length.
    """
    xs, ys = curve_points(records, key, x, smooth)
    ax = _axes(ax, figsize=(5, 3))
    if band is not None:
        band = reference_curve(band) if isinstance(band, str) else band
        low, high = (np.interp(xs, band[x], band[side]) for side in ("low", "high"))
        inside = np.mean((ys >= low) & (ys <= high))
        count = f"{band['seeds']} " if "seeds" in band else ""
        ax.fill_between(band[x], band["low"], band["high"], facecolor=GROUND, edgecolor="0.5", linewidth=0.8, zorder=0,
                        label=f"{count}reference runs ({inside:.0%} of yours inside)")
    n = len([line for line in ax.lines if line.get_gid() == "curve"])
    ax.plot(xs, ys, color=(*OUTLINES, PALETTE[0])[n % 5], linestyle=LINE_STYLES[n % 4], label=plain(label or key),
            gid="curve")
    name = plain(key)
    ax.set(xlabel=plain(x), ylabel=name if n == 0 or ax.get_ylabel() == name else "")
    if log:
        ax.set_yscale("log")
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, fontsize=9)
    return ax


def curve_points(records, key: str = "loss", x: str = "step", smooth: int = 1):
    """What `plot_curve` draws: arrays xs, ys; each y is the mean of the last `smooth` values."""
    def read(record, name):
        return record.get(name) if isinstance(record, dict) else getattr(record, name, None)

    records = [{x: i + 1, key: r} if isinstance(r, (int, float)) else r for i, r in enumerate(records)]
    points = [(read(r, x), float(read(r, key))) for r in records if read(r, key) is not None]
    if not points:
        raise ValueError(f"plot_curve: no record has {key!r}.")
    xs, ys = np.array(points, dtype=float).T
    smooth = max(1, min(smooth, len(ys)))
    return xs[smooth - 1:], np.convolve(ys, np.ones(smooth) / smooth, mode="valid")


def reference_curve(name: str) -> dict:
    """The columns of a shipped reference curve. Raises ValueError that lists the names there are."""
    prefix = "measurements/curves/"
    known = sorted(file[len(prefix):-len(".json")] for file in checksums() if file.startswith(prefix))
    if name not in known:
        raise ValueError(f"there is no reference curve {name!r}; there are {', '.join(known) or 'none'}. Make it with "
                         f"`python data/measurements/reference_curves.py {name}`.")
    return measurement(f"curves/{name}")


def _axes(ax, figsize=(2.4, 2.4)):
    if ax is not None:
        return ax
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=figsize, layout="constrained")[1]


def _show(ax, pixels) -> None:
    # small pictures are enlarged and keep their pixels' edges; large ones are made smaller, and averaged
    ax.imshow(pixels, interpolation="nearest" if len(pixels) < 128 else None)
    ax.set_axis_off()
