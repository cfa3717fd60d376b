"""Strict nbval compares what a notebook does, not what the shell or the account holds."""

import os
import subprocess
import sys
from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_notebook, new_output

ROOT = Path(__file__).resolve().parents[2]
FIGURE = new_output("display_data", {"image/png": "iVBORw0KGgo=", "text/plain": "<Figure size 640x480 with 1 Axes>"})
PROFILE = "c.InlineBackend.figure_formats = {'svg'}\nc.InteractiveShell.ast_node_interactivity = 'all'\n"


def test_a_figure_is_the_same_in_every_account(tmp_path):
    profile = tmp_path / "ipython" / "profile_default"
    profile.mkdir(parents=True)
    (profile / "ipython_config.py").write_text("c = get_config()\n" + PROFILE)
    (profile / "ipython_kernel_config.py").write_text("c = get_config()\n" + PROFILE)
    (tmp_path / "matplotlibrc").write_text("figure.figsize: 2, 2\n")
    (tmp_path / "startup.py").write_text("print('hello')\n")
    (tmp_path / "home").write_text("a file, so that no folder can be made in it")
    account = {"MPLBACKEND": "Agg", "MATPLOTLIBRC": str(tmp_path / "matplotlibrc"), "HOME": str(tmp_path / "home"),
               "IPYTHONDIR": str(tmp_path / "ipython"), "MPLCONFIGDIR": str(tmp_path / "home" / "matplotlib"),
               "PYTHONSTARTUP": str(tmp_path / "startup.py"), "PYTHONWARNINGS": "always", "PYTHONOPTIMIZE": "1",
               "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0",
               "JUPYTER_RUNTIME_DIR": str(tmp_path / "home" / "runtime")}
    cells = [new_code_cell("import matplotlib.pyplot as plt\n\n1 + 1\nplt.plot([1, 2])\nplt.show()", execution_count=1,
                           outputs=[FIGURE]),
             new_code_cell("try:\n    assert False\nexcept AssertionError:\n    print('Fréchet')", execution_count=2,
                           outputs=[new_output("stream", name="stdout", text="Fréchet\n")])]
    metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(new_notebook(cells=cells, metadata=metadata), tmp_path / "figure.ipynb")
    inherited = {k: v for k, v in os.environ.items() if k != "LDM_TEST_HOME" and not k.startswith("PYTEST_")}
    run = subprocess.run([sys.executable, "-m", "pytest", "--nbval", "-q", "-p", "no:cacheprovider", "-c",
                          str(ROOT / "pyproject.toml"), "--rootdir", str(ROOT), "--confcutdir", str(ROOT),
                          "-p", "conftest", str(tmp_path / "figure.ipynb")],
                         env=inherited | account, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "2 passed" in run.stdout
