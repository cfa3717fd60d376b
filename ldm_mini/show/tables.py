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

    wide, title = max(map(len, ways)), "".join(f"{title:>15}" for title, _ in measures.values())
    lines = [f"{name:{wide}} {found[0]['steps']:6} {sum(row['seconds'] for row in found) / len(found):6.0f}"
             + "".join(f"{cell(found, key, how):>15}" for key, (_, how) in measures.items())
             for name, found in ways.items()]
    return "\n".join([f"{'':{wide}} {'steps':>6} {'CPU s':>6}{title}", *lines])
