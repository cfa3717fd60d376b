"""Set up the course, then do something with it. Needs nothing but Python 3.10 or newer and its pip.

    python course.py lab           open JupyterLab at your copy of the course, made or updated in my-course/ (what you
                                   wrote stays), and the same notebooks with solutions
    python course.py edition DIR   only make such a copy, or bring it up to date
    python course.py test          run all tests and all notebooks (pytest --nbval, on up to 4 cores: -n 0 is one)
    python course.py run ...       the command line of ldm_mini, e.g. run sample "a red apple" --out grid.png
    python course.py setup         only install
    python course.py site [OUT]    the course as web pages to read, in _build/site: open index.html there
                                   (needs Python 3.11 or newer, and a network the first time)

For teachers:
    python course.py teach OUT     write a course for nbgrader; `teach OUT 03 A1` of these notebooks alone
    python course.py grade FOLDER --out grades.csv
                                   grade FOLDER/<student>/<assignment>/<notebook>.ipynb

On Windows say `py course.py lab`. Whatever follows the first word is passed on: `lab --no-browser`, `test -k unet`.

The first time, everything is installed into the folder .venv beside this file (outside it, pip only keeps what it
downloaded, in its cache): minutes and gigabytes, mostly PyTorch. After that each command starts in seconds, until
pyproject.toml or constraints.txt changes. An install that was interrupted goes on when the command is given again.

Options, before anything to be passed on:
    --cpu             PyTorch without CUDA: far smaller on Linux (elsewhere the usual build has no CUDA anyway)
    --torch BACKEND   another build of PyTorch by its usual name, e.g. cu130 for an NVIDIA card on Windows, or auto
"""

import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
MINE = "my-course"  # the learner's copy; git ignores it
START, FIRST_NOTEBOOK = f"{MINE}/START.ipynb", "notebooks/00_start_here.ipynb"
COMMANDS = ("lab", "edition", "test", "run", "teach", "grade", "site", "setup")
HELP_OF_OTHERS = {  # what can be said of these before the package is there
    "run": """course.py run ...: the command line of ldm_mini, such as run sample "a red apple" --out grid.png.
Its commands: sample, train, evaluate, speedrun, info.""",
    "teach": """course.py teach OUT [NOTEBOOK ...]: write a course for nbgrader into the folder OUT, of all notebooks,
or of those named by number, such as 03 05 A1.""",
    "grade": """course.py grade SUBMISSIONS [--out grades.csv]: grade
SUBMISSIONS/<student>/<assignment>/<notebook>.ipynb and write a table of points."""}
OWN_HELP = tuple(command for command in COMMANDS if command not in HELP_OF_OTHERS)  # `--help` after these is ours
OLDEST, NEWEST = (3, 10), (3, 13)  # the versions of Python that are tested
DISK_GB = 8  # what a CUDA build of PyTorch takes, and its download
# PyTorch's threads spin while they wait for each other, and on a busy machine they spin instead of working: drawing
# takes ten times as long. Let them sleep sooner (GNU's runtime on Linux, LLVM's and Intel's elsewhere).
CALM_THREADS = {"GOMP_SPINCOUNT": "20000", "KMP_BLOCKTIME": "1"}

# Tests run in a process for each core, at most 4 (each may take 2 GB); what is in one file stays in one process.
SIDE_BY_SIDE = ["-n", str(min(4, os.cpu_count() or 1)), "--dist", "loadfile", "--no-loadscope-reorder"]


class Problem(Exception):
    """Something the user can mend; the message says how."""


def say(text):
    print("course: " + text, flush=True)


def check_python(version=None, bits64=sys.maxsize > 2**32):
    """Raise Problem for a Python that cannot work; return a warning, or None, for one that is untested."""
    version = tuple(version or sys.version_info[:2])
    name = "Python {}.{}".format(*version)
    tested = "{}.{} to {}.{}".format(*OLDEST, *NEWEST)
    if version < OLDEST:
        raise Problem(f"this is {name}, and the course needs Python {tested}. "
                      "Install one of those and start this file with it, e.g. `python3.12 course.py lab`.")
    if not bits64:
        raise Problem(f"this is a 32-bit {name}, and PyTorch exists for 64 bits only. Install the 64-bit one.")
    return f"{name} is newer than the tested ones ({tested}); should the install fail, use one of them." \
        if version > NEWEST else None


def check_venv_module():
    """Debian and Ubuntu ship Python in parts; without ensurepip a virtual environment would have no pip."""
    if not all(importlib.util.find_spec(name) for name in ("venv", "ensurepip")):
        package = "python{}.{}-venv".format(*sys.version_info[:2])
        raise Problem("this Python cannot make virtual environments: a part of it is missing. On Debian or Ubuntu "
                      f"install it with\n    sudo apt install {package}\nand give the same command again.")


def parse(arguments):
    """(command, torch backend or None, arguments to pass on) of the words after `course.py`."""
    command, backend, rest = (*arguments[:1], "help")[0], None, list(arguments[1:])
    if command in ("help", "-h", "--help") or command in OWN_HELP and {"-h", "--help"} & {*rest}:
        return "help", None, []
    if command not in COMMANDS:
        raise Problem(f"there is no command {command!r}; there are: {', '.join(COMMANDS)}. `--help` tells more.")
    while rest and rest[0] in ("--cpu", "--torch"):
        option = rest.pop(0)
        if option == "--torch" and not rest:
            raise Problem("--torch needs the name of a build of PyTorch, e.g. `--torch cpu`.")
        backend = "cpu" if option == "--cpu" else rest.pop(0)
    if command == "edition" and len(rest) != 1:
        raise Problem("edition needs the name of a folder: `course.py edition my-course`.")
    return command, backend, rest


def venv_python(windows=os.name == "nt"):
    return VENV / "Scripts" / "python.exe" if windows else VENV / "bin" / "python"


def fingerprint():
    """Changes when the install is out of date: other dependencies, other pins, or the folder was moved."""
    digest = hashlib.sha256(str(ROOT).encode())
    for name in ("pyproject.toml", "constraints.txt"):
        digest.update((ROOT / name).read_bytes())
    return digest.hexdigest()


def read_stamp():
    """What the last finished install wrote: {} if there was none."""
    try:
        return dict(json.loads((VENV / "course.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}


def write_stamp(stamp):
    (VENV / "course.json").write_text(json.dumps(stamp), encoding="utf-8")


def works(python):
    """Is this the Python of a complete virtual environment, with pip?"""
    try:
        return subprocess.call([str(python), "-c", "import pip"], stderr=subprocess.DEVNULL) == 0
    except OSError:  # missing, or a link to a Python that is gone
        return False


def ensure_venv():
    """Make the virtual environment, or make it again if it is broken. Returns its Python."""
    python = venv_python()
    if not works(python):
        check_venv_module()
        say(f"making a virtual environment in {VENV}")
        if subprocess.call([sys.executable, "-m", "venv", "--clear", str(VENV)]):
            raise Problem(f"could not make {VENV} (the reason is above).")
    return python


def pip(python, *arguments):
    """Run pip in the virtual environment; its chatter only where somebody is watching. True if it went well."""
    quiet = [] if sys.stdout.isatty() else ["--quiet"]
    return subprocess.call([str(python), "-m", "pip", "install", "--disable-pip-version-check", *quiet, *arguments],
                           cwd=str(ROOT), env=dict(os.environ, PIP_USER="0")) == 0


def install_torch(python, backend):
    """A chosen build of PyTorch, fetched by uv, which knows where each is kept. Falls back to the usual build."""
    say(f"getting PyTorch for {backend!r}")
    done = pip(python, "uv") and subprocess.call(
        [str(python), "-m", "uv", "pip", "install", "--python", str(python), "--torch-backend", backend,
         "--constraint", "constraints.txt", "--reinstall-package", "torch", "--reinstall-package", "torchvision",
         "torch", "torchvision"], cwd=str(ROOT)) == 0
    if not done:
        say(f"that build of PyTorch ({backend!r}) cannot be had here (the reason is above); taking the usual one.")
    return done


def ensure_installed(backend=None):
    """Install what is missing. Returns the Python to run things with."""
    stamp, python = read_stamp(), venv_python()
    wanted = backend or stamp.get("torch")
    if stamp == {"fingerprint": fingerprint(), "torch": wanted} and python.exists():
        return python
    if shutil.disk_usage(str(ROOT)).free < DISK_GB * 1e9:
        say(f"less than {DISK_GB} GB are free on this disk; that may not be enough (--cpu takes less on Linux).")
    say("installing into .venv: 3 to 10 minutes and up to 6 GB the first time, seconds when little has changed.")
    start = time.time()
    python = ensure_venv()
    (VENV / "course.json").unlink(missing_ok=True)  # until all is done
    if not pip(python, "--upgrade", "pip"):
        say("could not bring pip up to date; going on with the one there is.")
    if wanted:
        install_torch(python, wanted)
    if not pip(python, "--editable", ".[course,test]", "--constraint", "constraints.txt"):
        raise Problem("installing failed; the reason is above. No network? A full disk? A proxy (set HTTPS_PROXY)?\n"
                      "Give the same command again: it goes on with what is there. To start over, delete .venv.")
    write_stamp({"fingerprint": fingerprint(), "torch": wanted})
    say(f"installed in {time.time() - start:.0f} s.")
    return python


def ensure_sphinx(python):
    """Install what only the site needs, if it is missing."""
    found = subprocess.call([str(python), "-c", "import sphinx_book_theme, myst_nb"], stderr=subprocess.DEVNULL) == 0
    if not found and not pip(python, "--editable", ".[site]", "--constraint", "constraints.txt"):
        raise Problem("what makes the site could not be installed; the reason is above. It needs Python 3.11 or newer.")


def make_my_course(python):
    """Make the learner's copy, or bring it up to date. True if it is there."""
    say(f"your copy of the course, {MINE}:")
    done = subprocess.call([str(python), "-m", "ldm_mini.editions", "learner", MINE], cwd=str(ROOT)) == 0
    if not done:
        say("that failed (the reason is above); opening the notebooks with solutions.")
    return done


def command_line(command, python, rest):
    """The process to start, and the folder to start it in (None: where the user is)."""
    if command == "lab":
        first = START if make_my_course(python) else FIRST_NOTEBOOK
        # as in most containers; Jupyter would refuse, and listens to this computer alone anyway
        root = ["--allow-root"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
        return [str(python), "-m", "jupyterlab", f"--ServerApp.root_dir={ROOT}",
                f"--LabApp.default_url=/lab/tree/{first}",
                "--LabApp.news_url=None",                       # else a pop-up that asks for news hides a corner
                *root, *rest], ROOT
    if command == "edition":
        return [str(python), "-m", "ldm_mini.editions", "learner", *rest], None
    if command == "test":
        return [str(python), "-m", "pytest", "--nbval", *SIDE_BY_SIDE, *rest], ROOT
    if command == "site":
        return [str(python), str(ROOT / "data" / "build" / "site"), *rest], None
    if command in ("teach", "grade"):
        return [str(python), "-m", "ldm_mini.teaching", command, *rest], None
    return [str(python), "-m", "ldm_mini", *rest], None


def start(words, folder):
    """Run to the end and return the exit status; Ctrl-C is the program's to answer, not ours."""
    environment = {**CALM_THREADS, **os.environ}
    environment.pop("MPLBACKEND", None)  # clusters set it to Agg, and then no notebook shows a figure
    process = subprocess.Popen(words, cwd=folder and str(folder), env=environment)
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            pass


def main(arguments):
    try:
        command, backend, rest = parse(arguments)
        if command == "help":
            print(__doc__)
            return 0
        if command in HELP_OF_OTHERS and {"-h", "--help"} & {*rest} and not read_stamp():
            print(HELP_OF_OTHERS[command])
            print("Its full help needs the course's environment, which is not there yet. `python3 course.py setup`\n"
                  "(Windows: `py course.py setup`) makes it: 3 to 10 minutes, up to 6 GB. Then ask again.")
            return 0
        warning = check_python()
        if warning:
            say(warning)
        python = ensure_installed(backend)
        if command == "setup":
            say(f"ready: {python}")
            return 0
        if command == "site":
            ensure_sphinx(python)
        words, folder = command_line(command, python, rest)
        say({"lab": "starting JupyterLab; stop it with Ctrl-C.", "run": "starting ldm_mini.", "edition": "making it.",
             "test": "running tests and notebooks: about 20 minutes for all of them, on two cores.",
             "teach": "writing a course for nbgrader.", "grade": "grading.", "site": "writing pages."}[command])
        return start(words, folder)
    except Problem as problem:
        say(str(problem))
        return 1
    except KeyboardInterrupt:
        say("stopped. Give the same command again to go on.")
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
