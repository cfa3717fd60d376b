"""Test settings: one thread, and notebooks compared strictly in this environment against this checkout."""

import os
import shutil
import tempfile
from pathlib import Path

from course import CALM_THREADS

ROOT = Path(__file__).resolve().parent

# Before anything imports torch; notebook kernels inherit it all. Two threads on a busy machine can be ten times
# slower than one, and change the last digits.
os.environ["OMP_NUM_THREADS"] = "1"
for name, value in CALM_THREADS.items():
    os.environ.setdefault(name, value)
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))

# What a shell or an account may hold and a notebook's output must not: another backend of Matplotlib, its settings,
# profiles of IPython, a home folder that cannot be written. Processes of one run (pytest -n) share the new folders.
HOME = "LDM_TEST_HOME"
FOLDERS = ("MPLCONFIGDIR", "IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR")
OTHERS = ("MPLBACKEND", "MATPLOTLIBRC", "PYTHONSTARTUP", "PYTHONWARNINGS", "PYTHONOPTIMIZE", "PYTHONDEVMODE")
BEGAN_HERE = HOME not in os.environ
if BEGAN_HERE:
    os.environ[HOME] = tempfile.mkdtemp(prefix="ldm_test_")
home = Path(os.environ[HOME])
for name in FOLDERS:
    os.environ[name] = str(home / name.lower())
    Path(os.environ[name]).mkdir(exist_ok=True)
for name in OTHERS:
    os.environ.pop(name, None)


def pytest_configure(config):
    """`pytest --nbval` needs no further options: the running Python is the kernel, patterns and time limit are set."""
    option = config.option
    if not hasattr(option, "nbval_cell_timeout"):               # -p no:nbval, or an install without it: tests alone
        return
    option.nbval_current_env = option.nbval_kernel_name is None
    option.nbval_sanitize_with = option.nbval_sanitize_with or str(ROOT / "tests" / "nbval_sanitize.cfg")
    # A cell ends before pytest-timeout would end its test: the kernel is interrupted, and the next cell runs.
    option.nbval_cell_timeout = min(option.nbval_cell_timeout, 0.9 * float(config.getini("timeout")))
    if option.nbval and BEGAN_HERE:
        # once for all kernels: Matplotlib looks through all fonts, and writes to stderr when there are many
        import matplotlib.font_manager  # noqa: F401


def pytest_unconfigure(config):
    if BEGAN_HERE:
        shutil.rmtree(home, ignore_errors=True)
