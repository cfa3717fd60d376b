"""A notebook that was given out, brought up to date around what its owner wrote.

Each cell that is given out carries in its metadata a key (which cell of the course it is) and a hash of its text (was
it touched since?); the notebook lists the keys given (which cells were deleted?). Nothing else is kept.
Notebooks and cells are dicts, as `source.read_notebook` gives them.
"""

import hashlib
from difflib import SequenceMatcher
from textwrap import shorten

OURS = "ldm_mini"  # our place in a cell's and a notebook's metadata


def given_cell(cell: dict, key: str = "", **more) -> dict:
    """A cell as it is given out: named by `key`, or else after its own text."""
    kind = cell["cell_type"][0]
    cell = _with_record(cell, {"key": f"{kind} {key or _hash(cell['source'])}", "hash": _hash(cell["source"]), **more})
    return {**cell, "execution_count": None} if kind == "c" else cell


def given_notebook(cells: list, metadata: dict, **more) -> dict:
    """A notebook of given cells, with the list of them; `more` is recorded beside it."""
    seen: dict = {}
    for cell in cells:  # two cells of the same text
        record = record_of(cell)
        seen[record["key"]] = seen.get(record["key"], 0) + 1
        record["key"] += f" {seen[record['key']]}" * (seen[record["key"]] > 1)
    ours = {"given": [record_of(cell)["key"] for cell in cells], **more}
    return {"cells": cells, "metadata": {**metadata, OURS: ours}, "nbformat": 4, "nbformat_minor": 5}


def record_of(part: dict) -> dict:
    """What was recorded in a cell, or in a notebook: {} if nothing."""
    record = part["metadata"].get(OURS)
    return record if isinstance(record, dict) else {}


def markdown(text: str, id_: str) -> dict:
    return {"cell_type": "markdown", "id": id_, "metadata": {}, "source": text}


def bring_up_to_date(theirs: dict, fresh: dict) -> tuple[dict, list[str]]:
    """A learner's notebook with the texts of a fresh edition around what the learner wrote; and what was done, told.

    Touched cells, own cells, their order and deletions stay as they are.
    """
    new = {record_of(cell)["key"]: cell for cell in fresh["cells"]}
    given = record_of(theirs)["given"]
    partner = _partners(given, list(new))
    cells, told, seen = [], [], set()
    for cell in theirs["cells"]:
        record = record_of(cell)
        key = record.get("key")
        if "beside" in record:
            # an older text that was laid beside a cell goes when there is a newer one
            if _touched(cell) or _laid_hash(new, partner, record["beside"]) == record.get("hash"):
                cells.append(cell)
        elif key not in given or key in seen:  # their own; or a copy of one of ours, and theirs from now on
            cells.append(_with_record(cell, None))
        else:
            seen.add(key)
            cells += _cell_brought(cell, new.get(partner.get(key)), told)
    for key in [key for key in new if key not in partner.values()]:
        cells.insert(_place(cells, key, list(new)), new[key])
        told.append(f"new: {_about(new[key])}")
    metadata = {**theirs["metadata"], OURS: fresh["metadata"][OURS]}
    return {**theirs, "cells": _distinct(cells), "metadata": metadata, "nbformat_minor": 5}, told


def _cell_brought(cell: dict, fresh: dict | None, told: list) -> list[dict]:
    """What takes the place of one given cell; `fresh` is None where the course has no such cell any more."""
    if fresh is None and not _touched(cell):
        told.append(f"gone from the course: {_about(cell)}")
        return []
    if fresh is None:
        told.append(f"gone from the course; yours stays: {_about(cell)}")
        return [_with_record(cell, None)]
    record = record_of(fresh)
    if record["hash"] in (record_of(cell).get("hash"), _hash(cell["source"])):
        return [_with_record(cell, record)]
    if not _touched(cell):
        told.append(f"changed: {_about(fresh)}")
        return [fresh]
    told.append(f"changed in the course; yours stays, the new text is below it: {_about(fresh)}")
    return [_with_record(cell, record), _laid_beside(fresh)]


def _laid_beside(fresh: dict) -> dict:
    """A new text, shown below the cell that the learner changed. It cannot be run by accident."""
    code = fresh["cell_type"] == "code"
    text = f"```python\n{fresh['source']}\n```" if code else fresh["source"]
    cell = markdown("> **The course has a new text for the cell above, which you changed.** Take from it what you "
                    f"want, then delete this cell.\n\n{text}", f"{fresh['id']}-new")
    return _with_record(cell, {"beside": record_of(fresh)["key"], "hash": _hash(cell["source"])})


def _laid_hash(new: dict, partner: dict, key: str):
    """The hash that the text laid beside a cell would have today; None if the course has no such cell."""
    fresh = new.get(partner.get(key))
    return fresh and record_of(_laid_beside(fresh))["hash"]


def _partners(old: list, new: list) -> dict:
    """{key given before: key of the cell in the fresh edition that takes its place}."""
    pairs = {key: key for key in old if key in new}
    for tag, a, b, c, d in SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        # a cell without a name has its text as key: a new text at an old place, of the same kind, is its successor
        rest = [key for key in new[c:d] if key not in pairs] if tag == "replace" else []
        for key in (key for key in old[a:b] if key not in pairs):
            match = next((k for k in rest if k[0] == key[0]), None)
            if match:
                pairs[key] = match
                rest = rest[rest.index(match) + 1:]
    return pairs


def _place(cells: list, key: str, order: list) -> int:
    """Where a new cell belongs: behind the nearest cell that precedes it in the course and is still there."""
    at = {record_of(cell)["key"]: i for i, cell in enumerate(cells) if "key" in record_of(cell)}
    before = [at[k] for k in order[:order.index(key)] if k in at]
    place = before[-1] + 1 if before else 0
    while place < len(cells) and "beside" in record_of(cells[place]):
        place += 1
    return place


def _with_record(cell: dict, record: dict | None) -> dict:
    metadata = {key: value for key, value in cell["metadata"].items() if key != OURS}
    return {**cell, "metadata": {**metadata, **({OURS: record} if record else {})}}


def _touched(cell: dict) -> bool:
    return _hash(cell["source"]) != record_of(cell).get("hash")


def _hash(text: str) -> str:
    return hashlib.sha256(text.strip().encode()).hexdigest()[:16]


def _about(cell: dict) -> str:
    """A cell in a few words, for a message."""
    exercise, comma, part = record_of(cell)["key"].partition(" ")[2].partition(", ")
    if comma:
        return f"{part} of exercise {exercise}"
    first = next((line for line in cell["source"].splitlines() if line.strip()), "an empty cell")
    return shorten(first, 60, placeholder=" ...")


def _distinct(cells: list) -> list:
    """Cells with an id each of its own, as the format demands."""
    seen, out = set(), []
    for cell in cells:
        id_, number = cell["id"], 1
        while id_ in seen:
            number += 1
            id_ = f"{cell['id'][:56]}-{number}"
        seen.add(id_)
        out.append(cell if id_ == cell["id"] else {**cell, "id": id_})
    return out
