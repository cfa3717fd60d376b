"""Write or check `data/SHA256SUMS`, the list that `ldm_mini.files.data_path` verifies every data file against.

    python data/checksums.py            # rewrite it, after you changed a sprite sheet, the tokenizer or weights
    python data/checksums.py --check    # exit status 1 and one line per difference

Listed: every file under sprites/, tokenizer/, weights/ and measurements/ (hidden files, texts and scripts excepted), as
"<digest>  <name>", names relative to this folder with forward slashes, sorted. Needs nothing but the standard library.
"""

import argparse
import hashlib
import sys
from pathlib import Path

DATA = Path(__file__).resolve().parent
FOLDERS = ("sprites", "tokenizer", "weights", "measurements")
SUMS = "SHA256SUMS"


def listed_files(data=DATA):
    """Names of all files that the package may load at run time, sorted."""
    files = [path.relative_to(data) for folder in FOLDERS for path in (data / folder).rglob("*") if path.is_file()]
    return sorted(path.as_posix() for path in files
                  if path.suffix not in (".md", ".py") and not any(part.startswith(".") for part in path.parts))


def compute(data=DATA):
    """{name: sha256 hex digest} of the files as they are now."""
    return {name: hashlib.sha256((data / name).read_bytes()).hexdigest() for name in listed_files(data)}


def read(data=DATA):
    """{name: sha256 hex digest} as written down; empty if there is no list yet."""
    if not (data / SUMS).is_file():
        return {}
    lines = (data / SUMS).read_text(encoding="utf-8").splitlines()
    return {name: digest for digest, name in (line.split(maxsplit=1) for line in lines if line.strip())}


def differences(data=DATA):
    """One line per file that is missing, new or changed."""
    written, now = read(data), compute(data)
    return ([f"missing: {name}" for name in sorted(written.keys() - now.keys())]
            + [f"not listed: {name}" for name in sorted(now.keys() - written.keys())]
            + [f"changed: {name}" for name in sorted(written.keys() & now.keys()) if written[name] != now[name]])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    if parser.parse_args().check:
        found = differences()
        print("\n".join(found) or f"{len(read())} files are as listed.")
        sys.exit(bool(found))
    sums = compute()
    text = "".join(f"{digest}  {name}\n" for name, digest in sums.items())
    (DATA / SUMS).write_bytes(text.encode("utf-8"))
    print(f"{len(sums)} files listed in {SUMS}.")


if __name__ == "__main__":
    main()
