"""Test settings: one thread, and notebooks compared strictly in this environment against this checkout."""

import os
from pathlib import Path

from course import CALM_THREADS

ROOT = Path(__file__).resolve().parent

# Before anything imports torch; notebook kernels inherit it all. Two threads on a busy machine can be ten times
# slower than one, and change the last digits.
os.environ["OMP_NUM_THREADS"] = "1"
for name, value in CALM_THREADS.items():
    os.environ.setdefault(name, value)
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))


def pytest_configure(config):
    """`pytest --nbval` needs no further options: the running Python is the kernel, patterns and time limit are set."""
    option = config.option
    if not hasattr(option, "nbval_cell_timeout"):               # -p no:nbval, or an install without it: tests alone
        return
    option.nbval_current_env = option.nbval_kernel_name is None
    option.nbval_sanitize_with = option.nbval_sanitize_with or str(ROOT / "tests" / "nbval_sanitize.cfg")
    # A cell ends before pytest-timeout would end its test: the kernel is interrupted, and the next cell runs.
    option.nbval_cell_timeout = min(option.nbval_cell_timeout, 0.9 * float(config.getini("timeout")))
