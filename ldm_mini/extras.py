"""What is optional, and what to install for it. `pip install ldm_mini` brings what drawing and training need.

    course    what notebooks need: JupyterLab, ipywidgets, anywidget, transformers, lpips with torchvision, diffusers,
              nbval
    language  MiniLM, and transformers to read it with
    teach     nbgrader
    test      what the tests compare with
"""

from contextlib import contextmanager


class NotInstalled(ImportError):
    """An optional package is not there; the message is one line that says what brings it."""


@contextmanager
def extra(name: str):
    """Around imports of optional packages: who lacks one reads which extra has it."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise NotInstalled(f'{error.name} is not installed: pip install "ldm_mini[{name}]"') from None
