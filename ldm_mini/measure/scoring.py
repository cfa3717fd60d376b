"""Does a picture show what was asked for? Detections of the recogniser against known scenes, or against captions.

Every score is a mean in [0, 1]. Read them beside two others: the score of real scenes (the ceiling: what the recogniser
misses is not the model's fault) and of captions that belong to other pictures (the floor: what luck finds).
"""

import math
from collections import defaultdict

from ..scenes.captions import ARRANGEMENTS, Description, parse_caption, position_name
from ..scenes.vocabulary import BACKGROUNDS, COLORS, NOUNS, STYLES
from .metrics import first_come, mean_box_iou

CLAIMS = {"count": "count_accuracy", "colors": "color_accuracy", "relation": "relation_accuracy",
          "position": "position_accuracy", "size": "size_accuracy", "background": "background_accuracy",
          "style": "style_accuracy"}
SIZES = {"small": (0, 136 / 256), "big": (144 / 256, 1)}  # of the longest side; true ones: up to 120, from 160 on


def truth(batch: dict) -> list[dict]:
    """What a batch of scenes truly holds, as `Recogniser.detect` would say it: a list of B dicts."""
    columns = (batch[key].tolist() for key in ("labels", "colors", "boxes", "background", "style"))
    return [{"objects": [{"noun": n, "color": c, "nearest_color": c, "box": tuple(b),
                          "centre": ((b[0] + b[2]) / 2, (b[1] + b[3]) / 2)}
                         for n, c, b in zip(labels, colors, boxes) if n >= 0],
             "background": background, "style": style} for labels, colors, boxes, background, style in zip(*columns)]


def match(found: list[dict], wanted: list[dict]) -> list:
    """For each wanted object the nearest found one of the same noun, each used once; None where there is none."""
    pairs = sorted((math.dist(f["centre"], w["centre"]), i, j)
                   for i, f in enumerate(found) for j, w in enumerate(wanted) if f["noun"] == w["noun"])
    nearest = first_come(pairs)
    return [found[nearest[j][1]] if j in nearest else None for j in range(len(wanted))]


def score_scenes(detections: list[dict], scenes) -> dict:
    """Detections against scenes: a batch of EmojiScenes, or what `truth` makes of it. Keys:

    object_recall, object_precision (same noun); of matched objects color_accuracy (coloured ones), relation_accuracy
    (right side of each other: every pair on its longer axis); box_iou (0 for missed ones); background_accuracy,
    style_accuracy, count_accuracy; exact (all nouns, colours, centres within 8 px of 64, the count, the background).
    """
    scenes = truth(scenes) if isinstance(scenes, dict) else scenes
    tally = defaultdict(list)
    for found, true in zip(detections, scenes, strict=True):
        wanted = true["objects"]
        matched = match(found["objects"], wanted)
        hits = [(m, w) for m, w in zip(matched, wanted) if m is not None]
        colors = [m["nearest_color"] == w["color"] for m, w in hits if w["color"] >= 0]
        count = len(found["objects"]) == len(wanted)
        background = found["background"] == true["background"]
        near = all(math.dist(m["centre"], w["centre"]) <= 8 / 64 for m, w in hits)
        tally["object_recall"] += [m is not None for m in matched]
        tally["object_precision"] += [i < len(hits) for i in range(len(found["objects"]))]
        tally["color_accuracy"] += colors
        tally["relation_accuracy"] += [_side(a["centre"], b["centre"], v["centre"], w["centre"])
                                       for i, (a, v) in enumerate(hits) for b, w in hits[i + 1:]]
        tally["background_accuracy"].append(background)
        tally["style_accuracy"] += [found["style"] == true["style"]] if true["style"] >= 0 else []
        tally["count_accuracy"].append(count)
        tally["exact"].append(count and background and near and len(hits) == len(wanted) and all(colors))
    boxes = [[[(o["noun"], o["box"]) for o in scene["objects"]] for scene in side] for side in (detections, scenes)]
    return {**_means(tally), "box_iou": mean_box_iou(*boxes)}


def score_captions(detections: list[dict], captions: list[str]) -> dict:
    """Detections against the claims of captions; "" claims nothing and is passed over. Keys, if any caption claims it:

    object_recall, object_precision (single objects); then shares of captions: count_accuracy, color_accuracy (all
    named colours, on the named nouns), relation_accuracy (objects missing = wrong), position_accuracy,
    size_accuracy, background_accuracy, style_accuracy, exact (every claim holds). ValueError for a caption outside
    the grammar.
    """
    tally = defaultdict(list)
    for found, caption in zip(detections, captions, strict=True):
        said = parse_caption(caption)
        if not caption.strip():
            continue
        objects = [(NOUNS[o["noun"]], COLORS[o["nearest_color"]], o["centre"], _longest_side(o["box"]))
                   for o in found["objects"]]
        claims = agreement(said, objects, BACKGROUNDS[found["background"]], STYLES[found["style"]])
        wanted, seen = [noun for noun, _ in said.objects], [noun for noun, *_ in objects]
        hits = sum(min(wanted.count(noun), seen.count(noun)) for noun in set(wanted))
        tally["object_recall"] += [i < hits for i in range(len(wanted))]
        tally["object_precision"] += [i < hits for i in range(len(seen))]
        for claim, name in CLAIMS.items():
            tally[name] += [claims[claim]] if claim in claims else []
        tally["exact"].append(all(claims.values()))
    return _means(tally)


def _means(tally: dict) -> dict:
    return {name: sum(values) / len(values) for name, values in tally.items() if values}


def _side(a, b, true_a, true_b) -> bool:
    """Whether b lies on the same side of a as in truth, along the axis on which the true centres differ more."""
    axis = int(abs(true_b[1] - true_a[1]) > abs(true_b[0] - true_a[0]))
    return (b[axis] - a[axis]) * (true_b[axis] - true_a[axis]) > 0


def _longest_side(box) -> float:
    x0, y0, x1, y1 = box
    return max(x1 - x0, y1 - y0)


def relation_holds(relation: str, centres) -> bool:
    """Whether centres [(x, y), ...], in the order mentioned, stand in a relation or arrangement (y points down)."""
    if relation in ARRANGEMENTS:
        along = [centre[relation == "column"] for centre in centres]
        return all(a < b for a, b in zip(along, along[1:]))
    (x1, y1), (x2, y2) = centres
    dx, dy = x2 - x1, y2 - y1
    across = abs(dx) >= abs(dy)
    return {"left": across and dx > 0, "right": across and dx < 0, "above": not across and dy > 0,
            "below": not across and dy < 0, "beside": across}[relation]


def agreement(description: Description, objects, background=None, style=None) -> dict:
    """Score each claim of a description, and only what it says: {"objects": bool, "count": ..., "colors": ..., ...}.

    Keys: objects, count, colors, relation, position, size, background, style. objects: found or true objects, a list of
    (noun, color or None, (x, y) centre in [0, 1]), and for a size the longest side in [0, 1]; the best of equal nouns
    is matched.
    """
    left, found = list(objects), []
    for noun, color in description.objects:
        match = next((o for o in left if o[0] == noun and color in (None, o[1])), None)
        match = match or next((o for o in left if o[0] == noun), None)
        found.append(match)
        if match:
            left.remove(match)
    complete, result = all(found), {}
    if description.objects:
        result |= {"objects": complete, "count": len(objects) == len(description.objects)}
    claims = [(color, match) for (_, color), match in zip(description.objects, found) if color]
    if claims:
        result["colors"] = all(match is not None and match[1] == color for color, match in claims)
    if description.relation:
        result["relation"] = complete and relation_holds(description.relation, [match[2] for match in found])
    if description.position:
        result["position"] = complete and position_name(*found[0][2]) == description.position
    if description.size:
        low, high = SIZES[description.size]
        result["size"] = complete and low <= found[0][3] <= high
    for name, value in (("background", background), ("style", style)):
        if getattr(description, name):
            result[name] = value == getattr(description, name)
    return result
