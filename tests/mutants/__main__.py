"""Do the tests hold the mathematics? One token of it is changed at random, many times: some test must fail each time.

    python tests/mutants --number 300 --seed 0 --minutes 60        # goes on where it was stopped
    python tests/mutants --number 300 --retry                      # tries again what no test noticed
    python tests/mutants --only samplers.py:119,ema.py             # every mutant of a line, of a file

Each mutant is written into a copy of the package. Against it run the tests that call the changed function (found once,
by running all of them), those of the module's own test file first, the quickest first, up to the first failure.
A mutant that takes far longer than the package itself counts as noticed. Needs POSIX (fork); not collected by pytest.
Results, a JSON line a mutant, are kept in `runs/mutants/`; the table and the survivors are printed at the end, those
that were judged in `data/measurements/mutants.json` with the reason why no test can notice, or need not.
"""

import argparse
import importlib
import json
import random
import tempfile
import time
from collections import Counter, defaultdict
from dataclasses import asdict
from pathlib import Path

from change import Change, Finder
from trial import ROOT, baseline, judge, make_copy

# what the paper computes; not the files, the command line, what a person hands over, the tables of names
OUT_OF_SCOPE = {"__init__.py", "__main__.py", "asked.py", "extras.py", "files.py", "hub.py", "options.py", "tasks.py"}
MEASURES = ("measure/metrics.py",)
MEASURED = ROOT / "data/measurements/mutants.json"


def modules() -> list[str]:
    """The files that are mutated, as paths inside the package."""
    paper = sorted(path.name for path in (ROOT / "ldm_mini").glob("*.py"))
    return [name for name in paper if name not in OUT_OF_SCOPE] + list(MEASURES)


def all_changes() -> list[Change]:
    return [change for name in modules() for change in Finder(name, (ROOT / "ldm_mini" / name).read_bytes()).found]


def report(rows: list[dict], judged: list[dict]) -> dict:
    """Counts by module and by kind, and the survivors: each with its line of code, and `why`, if somebody judged it."""
    counts = {"module": defaultdict(Counter), "kind": defaultdict(Counter)}
    survivors, same = [], ("file", "code", "old", "new")
    for row in rows:
        for by, key in (("module", row["file"]), ("kind", row["kind"])):
            counts[by][key].update(made=1, killed=int(row["killed"]))
        if not row["killed"]:
            code = (ROOT / "ldm_mini" / row["file"]).read_text(encoding="utf-8").splitlines()[row["line"] - 1].strip()
            survivor = {key: {**row, "code": code}[key] for key in ("file", "line", "kind", "old", "new", "code")}
            known = [old["why"] for old in judged if all(old[key] == survivor[key] for key in same)]
            survivors.append({**survivor, "why": known[0] if known else ""})
    return {"made": len(rows), "killed": sum(row["killed"] for row in rows),
            **{by: {key: dict(count) for key, count in sorted(of.items())} for by, of in counts.items()},
            "survivors": sorted(survivors, key=lambda one: (one["file"], one["line"], one["old"]))}


def table(found: dict) -> str:
    row = lambda name, count: f"{name:<26}{count['made']:>6}{count['killed']:>8}{count['made'] - count['killed']:>10}"
    lines = [f"{'':<26}{'made':>6}{'killed':>8}{'survived':>10}", *(row(*of) for of in found["module"].items()), "",
             *(row(*of) for of in found["kind"].items()), "", row("all", found), ""]
    lines += [f"{one['file']}:{one['line']}  {one['old']!r} -> {one['new']!r} in `{one['code']}`"
              + (f"\n    {one['why']}" if one["why"] else "") for one in found["survivors"]]
    return "\n".join(lines)


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--number", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--retry", action="store_true", help="also those that survived before")
    parser.add_argument("--only", default="", help="FILE or FILE:LINE, or several with commas: all their mutants")
    parser.add_argument("--save", action="store_true", help=f"write {MEASURED.name}; its reasons stay")
    parser.add_argument("--out", type=Path, default=ROOT / "runs/mutants")
    args = parser.parse_args()
    if args.only and args.save:
        parser.error("--save keeps what a random choice of all mutants tells, not --only some of them")
    return args


def main() -> None:
    args = read_arguments()
    end = time.monotonic() + 60 * args.minutes
    changes = all_changes()
    random.Random(args.seed).shuffle(changes)
    if args.only:
        wanted = set(args.only.split(","))
        changes = [c for c in changes if wanted & {c.file, f"{c.file}:{c.line}"}]
    changes = changes[:None if args.only else args.number]
    args.out.mkdir(parents=True, exist_ok=True)
    results = args.out / "results.jsonl"
    done = {}
    for line in results.read_text().splitlines() if results.exists() else ():
        row = json.loads(line)
        done[json.dumps(row["change"])] = row
    key = lambda change: json.dumps(asdict(change))
    todo = [c for c in changes if key(c) not in done or args.retry and not done[key(c)]["killed"]]
    print(f"{len(changes)} mutants, of which {len(todo)} are to be tried", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        if todo:
            copy = make_copy(Path(folder))
            found = baseline(copy, args.out / "baseline.json")
            for name in found["imports"]:  # once, here, so that a mutant's process begins with them
                try:
                    importlib.import_module(name)
                except Exception:
                    pass
        for i, change in enumerate(todo):
            if time.monotonic() > end:
                print(f"the time is over; {len(todo) - i} are left for the next call")
                break
            row = {"change": asdict(change), **judge(change, found["tests"], copy)}
            done[key(change)] = row
            with results.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(f"{i + 1:4d} {change.file}:{change.line} {change.old!r} -> {change.new!r}: "
                  f"{row['by'] or 'SURVIVED'} ({row['seconds']} s)", flush=True)
    rows = [{**done[key(c)]["change"], **done[key(c)]} for c in changes if key(c) in done]
    found = report(rows, json.loads(MEASURED.read_text())["survivors"] if MEASURED.exists() else [])
    print(table(found))
    if args.save:
        MEASURED.write_text(json.dumps({"seed": args.seed, **found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
