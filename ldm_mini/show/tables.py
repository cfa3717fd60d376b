"""Studies of several seeds as text."""


def study_table(rows, measures: dict, names=None) -> str:
    """A study with several seeds as text, a line for each way: steps, CPU-seconds, mean ± half the range of measures.

    rows:     dicts with "way", "steps", "seconds" and what was measured, one for each way and seed.
    measures: {key: (title, format)}, such as {"psnr": ("PSNR, dB", ".1f")}.
    names:    the ways to show; None = all, as they come.
    """
    ways = {name: [row for row in rows if row["way"] == name] for name in names or {row["way"]: 0 for row in rows}}
    if empty := [name for name, found in ways.items() if not found]:
        known = ", ".join({row["way"]: 0 for row in rows})
        raise ValueError(f"study_table: there is no way {empty[0]!r}; there are {known}.")

    def cell(found, key, how):
        seen = [row[key] for row in found]
        return f"{sum(seen) / len(seen):{how}} ± {(max(seen) - min(seen)) / 2:{how}}"

    table = [["", "steps", "CPU s", *(title for title, _ in measures.values())]]
    for name, found in ways.items():
        seconds = sum(row["seconds"] for row in found) / len(found)
        table.append([name, f"{found[0]['steps']}", f"{seconds:.0f}",
                      *(cell(found, key, how) for key, (_, how) in measures.items())])
    first, *others = (max(map(len, column)) for column in zip(*table))
    return "\n".join(row[0].ljust(first) + "".join(text.rjust(wide + 2) for text, wide in zip(row[1:], others))
                     for row in table)
