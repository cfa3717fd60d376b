"""The library alone, without the extras: everything imports and draws, and what is optional says what to install.

A process of its own sees only what `pip install .` would have brought: import finds no other distribution.
"""

import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from test_packaging import PROJECT

REFUSED = ("anywidget", "ipykernel", "jupyterlab", "lpips", "nbval", "torchvision", "transformers")  # some of them
CODE = '''
import contextlib, importlib, io, json, pkgutil, sys
refused = set(json.loads(sys.argv[1]))


class Without:
    """A finder that does not find what is refused."""

    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in refused else self.finder.find_spec(name, path, target)


assert not refused & set(sys.modules), refused & set(sys.modules)
sys.meta_path[:] = map(Without, sys.meta_path)

import ldm_mini
from ldm_mini.extras import NotInstalled


def said(act):
    """What it says if something is not installed."""
    try:
        act()
    except NotInstalled as error:
        return str(error)


names = [m.name for m in pkgutil.walk_packages(ldm_mini.__path__, "ldm_mini.", onerror=print)]
told = {name: said(lambda: importlib.import_module(name)) for name in names}

from ldm_mini.__main__ import main
from ldm_mini.perceptual import PerceptualLoss
from ldm_mini.released.conditioners import ClipText, TextEncoder
from ldm_mini.released.language import FrozenTextEncoder

uses = {"language": said(FrozenTextEncoder), "clip": said(lambda: ClipText({"hidden_size": 8})),
        "tokenizer": said(TextEncoder(8, 1, 10).load_tokenizer)}
perceptual, status = PerceptualLoss().kind, {}
with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as lines:
    status["sample"] = main(["sample", "an owl", "--num", "1", "--steps", "1", "--out", "owl.png", "--device", "cpu"])
    written = lines.getvalue()
    status["train"] = main(["train", "diffusion", "--recipe", "micro", "--language", "--autoencoder", "emoji-vq-f4",
                            "--device", "cpu", "--out", "new"])
    refusal = lines.getvalue()[len(written):]
print(json.dumps({"told": told, "uses": uses, "perceptual": perceptual, "status": status, "refusal": refusal,
                  "seen": sorted(refused & set(sys.modules))}))
'''


def closure(requirements):
    """The distributions that these requirements bring, and what those require, with the extras they ask for."""
    seen, waiting = set(), [(canonicalize_name(r.name), frozenset(r.extras)) for r in requirements]
    while waiting:
        name, extras = waiting.pop()
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        try:
            wanted = map(Requirement, importlib.metadata.distribution(name).requires or [])
        except importlib.metadata.PackageNotFoundError:  # for another system, or another Python
            continue
        waiting += [(canonicalize_name(r.name), frozenset(r.extras)) for r in wanted
                    if r.marker is None or any(r.marker.evaluate({"extra": extra}) for extra in ("", *extras))]
    return {name for name, _ in seen}


@pytest.fixture(scope="module")
def lean():
    return closure(map(Requirement, PROJECT["dependencies"]))


@pytest.fixture(scope="module")
def alone(lean, tmp_path_factory):
    """What a process says that finds nothing but the lean set."""
    places = importlib.metadata.packages_distributions()
    other = {module for module, names in places.items()
             if not {canonicalize_name(name) for name in names} & {*lean, "ldm-mini"}} - set(sys.stdlib_module_names)
    assert {name for name in REFUSED if name in places} <= other
    # what an environment imports as it starts is not ours to refuse
    started = subprocess.run([sys.executable, "-c", "import sys; print(*sys.modules)"], capture_output=True, text=True)
    other -= set(started.stdout.split())
    folder = tmp_path_factory.mktemp("lean")
    out = subprocess.run([sys.executable, "-c", CODE, json.dumps(sorted(other))], cwd=folder, capture_output=True,
                         text=True)
    assert out.returncode == 0, out.stdout + out.stderr
    return {**json.loads(out.stdout.splitlines()[-1]), "folder": folder}


def test_no_requirement_brings_jupyter_or_another_extra_in(lean):
    assert {name for name in lean if name.startswith(("jupyter", "nb", "ipy"))} | lean & set(REFUSED) == set()


def test_every_module_imports_or_says_what_to_install(alone):
    package = Path(__file__).resolve().parents[2] / "ldm_mini"
    parts = [path.relative_to(package.parent).with_suffix("").parts for path in package.rglob("*.py")]
    modules = {".".join(part for part in names if part != "__init__") for names in parts if "_data" not in names}
    assert set(alone["told"]) == modules - {"ldm_mini"}
    assert {name: said for name, said in alone["told"].items() if said} == {
        "ldm_mini.show.playground": 'anywidget is not installed: pip install "ldm_mini[course]"'}
    assert alone["seen"] == []


def test_parts_that_need_more_say_what_to_install(alone):
    course = 'transformers is not installed: pip install "ldm_mini[course]"'
    assert alone["uses"] == {"language": 'transformers is not installed: pip install "ldm_mini[language]"',
                             "clip": course, "tokenizer": course}
    assert alone["perceptual"] == "efficientnet"


def test_commands_draw_or_refuse_in_one_line(alone):
    assert alone["status"] == {"sample": 0, "train": 2}
    assert (alone["folder"] / "owl.png").is_file() and not (alone["folder"] / "new").exists()
    assert alone["refusal"] == 'error: transformers is not installed: pip install "ldm_mini[language]"\n'
