"""`python -m ldm_mini.teaching teach OUT [03 A1 ...]` and `... grade SUBMISSIONS --out grades.csv`."""

import argparse
import sys

from ..files import FileError
from . import grade, teach


def main(words=None) -> int:
    parser = argparse.ArgumentParser(prog="course.py", description="For teachers.")
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("teach", help="write a course for nbgrader")
    command.add_argument("out", help="folder for source/, release/, nbgrader_config.py, PLAN.md, REUSE.md")
    command.add_argument("notebooks", nargs="*", help="numbers, e.g. 03 05 A1; all without")
    command = commands.add_parser("grade", help="grade SUBMISSIONS/<student>/<assignment>/<notebook>.ipynb")
    command.add_argument("submissions")
    command.add_argument("--out", default="grades.csv", help="the table; NAME-exercises.csv beside it says why")
    options = parser.parse_args(words)
    try:
        if options.command == "teach":
            print(*teach(options.out, options.notebooks), sep="\n")
        else:
            grade(options.submissions, options.out)
        return 0
    except FileError as error:
        print(error)
        return 1


if __name__ == "__main__":
    sys.exit(main())
