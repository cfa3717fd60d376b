"""Where the objects of a scene stand, in units of 1/256: things of the sky in the sky, things of the ground on it."""

from .draws import Draws
from .vocabulary import GROUND_TOP, PLACE_KIND, PLACES, UNIT


def line(draws: Draws, sizes) -> list:
    """Centres of intervals of these sizes, in this order, spread at random over the picture without overlap."""
    free = max(UNIT - 8 - sum(sizes), 0)
    cuts = sorted(draws.between(0, free) for _ in sizes)
    ends = [sum(sizes[:i + 1]) for i in range(len(sizes))]
    return [4 + cut + end - size // 2 for cut, end, size in zip(cuts, ends, sizes)]


def height(draws: Draws, noun: str, place: str, size: int, low: int = 0, high: int = UNIT) -> int:
    """Centre height for a noun on a background, near [low, high] if its kind leaves a choice."""
    half, kind = size // 2 + 4, PLACE_KIND.get(noun, "any")
    top, bottom = half, UNIT - half
    if place in PLACES and place != "under water":
        ground = GROUND_TOP[place]
        if kind == "any":
            kind = "sky" if draws.chance(.35) else "ground"
        if kind == "sky":
            bottom = max(half, ground - 24 - size // 4)
        elif kind == "water" and place == "beach":
            top, bottom = max(half, 132 - size // 2), max(half, 164 - size // 2)
        else:
            top = min(bottom, ground + 12 - size // 2)
    elif place == "under water" and kind == "ground":
        top = min(bottom, 190 - size // 2)
    top, bottom = min(max(top, low), bottom), max(min(bottom, high), top)
    return draws.between(top, bottom)


def positions(draws: Draws, nouns, sizes, place, centred=False) -> tuple:
    """Centres of n sprites and the arrangement that was meant: "row", "column" or None."""
    count, plan = len(nouns), draws.choice(("row", "column"))
    on_land = place in PLACES and place != "under water"
    if centred:
        anchors = {1: (128,), 2: (66, 190), 3: (46, 128, 210)}[count]
        points = [(a + draws.between(-6, 6), 128 + draws.between(-6, 6)) for a in anchors]
        return (points if plan == "row" else [(y, x) for x, y in points]), plan
    # three things may also form a triangle: no row, no column
    if count == 3 and not on_land and draws.chance(.4):
        cells = draws.sample(((68, 68), (188, 68), (68, 188), (188, 188)), 3)
        return [(x + draws.between(-12, 12), y + draws.between(-12, 12)) for x, y in cells], None
    kinds = [PLACE_KIND.get(noun) for noun in nouns]
    if on_land and (count != 2 or kinds[0] in ("ground", "water") or kinds[-1] == "sky"):
        plan = "row"  # nothing of the ground above, nothing of the sky below
    # a row: apart in x, and no step so steep that it would read as "above"
    if plan == "row":
        xs = line(draws, sizes)
        ys = [height(draws, nouns[0], place, sizes[0])]
        for i in range(1, count):
            reach = (xs[i] - xs[i - 1]) * (4 if count == 2 else 6) // 5
            ys.append(height(draws, nouns[i], place, sizes[i], ys[-1] - reach, ys[-1] + reach))
        return list(zip(xs, ys)), plan
    # a column, the same upright; on land one flies and one stands
    if on_land:
        ys = [draws.between(sizes[0] // 2 + 4, sizes[0] // 2 + 20), 248 - sizes[1] // 2 - draws.between(0, 16)]
    else:
        ys = line(draws, sizes)
    xs = [draws.between(sizes[0] // 2 + 4, UNIT - 4 - sizes[0] // 2)]
    for i in range(1, count):
        reach = (ys[i] - ys[i - 1]) * 4 // 5
        low, high = sizes[i] // 2 + 4, UNIT - 4 - sizes[i] // 2
        xs.append(draws.between(min(max(low, xs[-1] - reach), high), max(min(high, xs[-1] + reach), low)))
    return list(zip(xs, ys)), plan


def crowded(objects) -> bool:
    """Whether two sprites overlap by more than a tenth."""
    return any(max(abs(a.x - b.x), abs(a.y - b.y)) * 20 < (a.size + b.size) * 9
               for i, a in enumerate(objects) for b in objects[i + 1:])
