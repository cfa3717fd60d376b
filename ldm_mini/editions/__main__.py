"""`python -m ldm_mini.editions learner FOLDER`: what `course.py edition FOLDER` starts."""

import sys

from ..files import FileError
from .learner import make_edition


def main(words) -> int:
    if len(words) != 2 or words[0] != "learner":
        print("learner FOLDER: make the learner's edition in a folder, or bring it up to date.")
        return 2
    try:
        print(*make_edition(words[1]) or ["nothing new"], sep="\n")
        return 0
    except FileError as error:
        print(error)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
