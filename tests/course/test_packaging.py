"""What is declared, pinned, documented and shipped agrees, and the built wheel works without the clone."""

import ast
import importlib
import json
import re
import shutil
import subprocess
import sys
import zipfile
from functools import cache
from hashlib import sha256
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

import course
import ldm_mini

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest brings it

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PYTHONS = ["3.10", "3.11", "3.12", "3.13"]
EXTRAS = {extra: {canonicalize_name(r.name): r for r in map(Requirement, lines)}
          for extra, lines in PROJECT["optional-dependencies"].items()}
RUN = {canonicalize_name(r.name): r for r in map(Requirement, PROJECT["dependencies"])}
COURSE, TEST = EXTRAS["course"], EXTRAS["test"]
ALL = {**RUN, **COURSE, **TEST}  # what course.py installs
CONDA_NAMES = {"pytorch": "torch"}  # where conda's name differs from pip's
IMPORT_NAMES = {"pil": "pillow", "yaml": "pyyaml", "ipython": "ipykernel", "nbformat": "nbval",
                "nbclient": "jupyterlab", "traitlets": "anywidget"}
TOOLS = {"jupyterlab", "nbval", "ipykernel", "ipywidgets", "pytest-timeout", "pytest-xdist", "ruff",
         "hatchling"}  # start or plug in
LOOKED_FOR = {"lpips",  # by find_spec: its file of weights is read, it is never imported
              "ipykernel"}  # IPython shows a figure where a notebook runs; elsewhere matplotlib does


def pins(name, python=None):
    """{package: version} of a constraints file, as pip on that version of Python reads it."""
    lines = [line.split("#")[0].strip() for line in (ROOT / name).read_text(encoding="utf-8").splitlines()]
    requirements = [Requirement(line) for line in lines if line]
    valid = [r for r in requirements if not r.marker or r.marker.evaluate({"python_version": python})]
    names = [canonicalize_name(r.name) for r in valid]
    assert len(set(names)) == len(names), f"{name} pins a package twice for Python {python}"
    for r in valid:
        assert r.url is None and re.fullmatch(r"==[\w.]+", str(r.specifier)), f"{name}: {r} is not an exact version"
    return {canonicalize_name(r.name): str(r.specifier)[2:] for r in valid}


def guarded(tree):
    """[(an import that stands in `with extra("course"):`, "course"), ...] of ldm_mini.extras."""
    return [(node, block.items[0].context_expr.args[0].value) for block in ast.walk(tree) if isinstance(block, ast.With)
            and getattr(getattr(block.items[0].context_expr, "func", None), "id", "") == "extra"
            for node in block.body]


def third_party(files, optional=None):
    """Packages that these Python sources import: {canonical distribution name: a file that does}.

    optional: a list to which (package, extra, file) of guarded imports go instead.
    """
    folders = (ROOT, *(ROOT / "tests").glob("*/"), ROOT / "data/measurements", ROOT / "data/build")
    own = {path.stem for folder in folders for path in folder.glob("*.py")} | {"ldm_mini", "tests"}
    found = {}
    for name, source in files:
        tree = ast.parse(source)
        extras = {} if optional is None else {id(node): extra for node, extra in guarded(tree)}
        for node in ast.walk(tree):
            modules = []
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                modules = [node.module]
            elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") in ("find_spec", "importorskip"):
                modules = [str(a.value) for a in node.args if isinstance(a, ast.Constant)]
            for module in {m.split(".")[0] for m in modules} - own - set(sys.stdlib_module_names):
                package = canonicalize_name(IMPORT_NAMES.get(module.lower(), module))
                if id(node) in extras:
                    optional.append((package, extras[id(node)], name))
                else:
                    found.setdefault(package, name)
    return found


def sources(folder):
    return [(path.name, path.read_text(encoding="utf-8")) for path in sorted((ROOT / folder).rglob("*.py"))]


def notebook_sources():
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
        yield path.name, "\n".join(re.sub(r"(?m)^\s*[%!].*$", "pass", cell) for cell in code)


def test_conda_environment_agrees_with_pyproject():
    environment, conda = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8")), {}
    *specs, rest = environment["dependencies"]
    for spec in specs:
        name, bounds = re.fullmatch(r"([\w.-]+?)\s*([<>=!~].*)?", spec).groups()
        conda[canonicalize_name(CONDA_NAMES.get(name, name))] = SpecifierSet(bounds or "")
    declared = {name: r.specifier for name, r in ALL.items()}
    assert conda == {**declared, "python": SpecifierSet(PROJECT["requires-python"] + ",<3.14"), "pip": SpecifierSet()}
    assert rest == {"pip": ["--editable ."]} and environment["channels"][0] == "conda-forge"


@pytest.mark.parametrize("python", PYTHONS)
def test_constraints_pin_every_dependency_within_its_bounds(python):
    pinned = pins("constraints.txt", python)
    for name, requirement in ALL.items():
        assert name in pinned, f"constraints.txt does not pin {name} for Python {python}"
        assert pinned[name] in requirement.specifier


def test_lower_bounds_are_the_oldest_tested_versions():
    oldest = pins("constraints-oldest.txt")
    bounds = {name: str(r.specifier) for name, r in ALL.items()}
    assert bounds == {name: f">={version}" for name, version in oldest.items()}
    for extra in EXTRAS.values():
        assert {name: str(r.specifier) for name, r in extra.items() if name in ALL}.items() <= bounds.items()


def test_nothing_is_asked_for_twice():
    """An extra names nothing that the library takes anyway."""
    assert [name for extra in EXTRAS.values() for name in extra if name in RUN] == []


def test_supported_pythons_are_the_same_everywhere():
    named = [c.rsplit(" ", 1)[1] for c in PROJECT["classifiers"] if c.startswith("Programming Language :: Python :: ")]
    assert named == PYTHONS == [f"3.{minor}" for minor in range(course.OLDEST[1], course.NEWEST[1] + 1)]
    assert PROJECT["requires-python"] == f">={PYTHONS[0]}"
    workflow = yaml.safe_load((ROOT / ".github/workflows/tests.yml").read_text(encoding="utf-8"))
    tested = {job["python"] for job in workflow["jobs"]["test"]["strategy"]["matrix"]["include"]}
    assert {PYTHONS[0], PYTHONS[-1]} <= tested <= set(PYTHONS)


@cache
def imports():
    """What the library imports, what notebooks do, and what the tests do."""
    return third_party(sources("ldm_mini")), third_party(notebook_sources()), third_party(sources("tests"))


def test_every_declared_dependency_is_used():
    library, notebooks, tests = map(set, imports())
    assert set(RUN) - library == set(), "declared in pyproject.toml, but the library does not import it"
    assert set(COURSE) - library - notebooks - tests - TOOLS == set(), "in the course extra, but nothing imports it"
    assert set(TEST) - tests - TOOLS == set(), "in the test extra, but no test imports it"


def test_every_import_is_declared():
    _, notebooks, tests = imports()
    assert {name: file for name, file in notebooks.items() if name not in {**RUN, **COURSE}} == {}
    assert {name: file for name, file in tests.items() if name not in {**ALL, **EXTRAS["site"], "tomli": 0}} == {}


def test_the_library_imports_what_it_requires_and_guards_the_rest():
    """`with extra("course"): import ...` says what to install; only what that extra brings may stand there."""
    optional = []
    library = third_party(sources("ldm_mini"), optional)
    assert {name: file for name, file in library.items() if name not in {*RUN, *LOOKED_FOR}} == {}
    assert optional and [(name, extra, file) for name, extra, file in optional if name not in EXTRAS[extra]] == []


def test_command_exists():
    module, _, function = PROJECT["scripts"]["ldm-mini"].partition(":")
    assert callable(getattr(importlib.import_module(module), function))


def test_readme_links_lead_somewhere():
    links = re.findall(r"\]\((?!https?://|#)([^)\s]+)\)", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_readme_draws_the_tree_that_there_is():
    """A line for each file of the root and each folder, in the README and nowhere else."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    tree = re.search(r"```\nldm_mini/\n(.*?)```", readme, re.S)[1]
    drawn = [name for line in tree.splitlines() for name in re.findall(r"\w+(?:\.py|/)", line[:26])]
    there = [path.name for path in (ROOT / "ldm_mini").glob("*.py") if path.name != "__init__.py"]
    wings = [f"{path.parent.name}/" for path in (ROOT / "ldm_mini").glob("*/__init__.py")]
    assert sorted(drawn) == sorted(there + wings)


def checksum_lines():
    return [line.split(maxsplit=1) for line in (ROOT / "data" / "SHA256SUMS").read_text(encoding="utf-8").splitlines()]


@pytest.mark.skipif(not (ROOT / ".git").exists() or not shutil.which("git"), reason="not a git clone")
def test_checksums_survive_a_windows_checkout():
    """git may turn LF into CRLF on Windows; the attributes must forbid it for every file that has a checksum."""
    names = [f"data/{name}" for _, name in checksum_lines()] + ["data/SHA256SUMS"]
    command = ["git", "check-attr", "-z", "text", "eol", "--", *names]
    words = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    attributes = {}
    for name, attribute, value in zip(words[0::3], words[1::3], words[2::3], strict=False):
        attributes.setdefault(name, {})[attribute] = value
    for name in names:
        kept = attributes[name]["text"] == "unset"
        assert kept or attributes[name]["eol"] == "lf", f"{name} may change its line ends"
        assert kept or b"\r\n" not in (ROOT / name).read_bytes(), f"{name} has CRLF line ends; git would change them"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from this checkout and unpacked."""
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)], cwd=ROOT, check=True,
                   capture_output=True)
    archive, = folder.glob("*.whl")
    with zipfile.ZipFile(archive) as file:
        file.extractall(folder / "site")
    return folder / "site"


def test_wheel_carries_the_data_and_nothing_else(wheel):
    for digest, name in checksum_lines():
        assert sha256((wheel / "ldm_mini" / "_data" / name).read_bytes()).hexdigest() == digest, name
    assert sorted(path.name for path in wheel.iterdir()) == ["ldm_mini", f"ldm_mini-{ldm_mini.__version__}.dist-info"]
    kinds = (".py", ".js", ".css", ".md")
    sources, packed = ({p.relative_to(top) for p in top.rglob("*") if p.suffix in kinds and "_data" not in p.parts}
                       for top in (ROOT / "ldm_mini", wheel / "ldm_mini"))
    assert sources == packed
    assert not (wheel / "ldm_mini" / "_data" / "build").exists()


def test_the_wheel_alone_finds_its_data_and_the_measurements_that_notebooks_read(wheel, tmp_path):
    """By name, from the installed package, in any folder, without a clone: nothing is opened beside the notebook."""
    cells = [c for path in (ROOT / "notebooks").glob("*.ipynb") for c in json.loads(path.read_text("utf-8"))["cells"]]
    source = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    names = sorted(set(re.findall(r"\bmeasurement\(\"([\w/]+)\"\)", source)))
    assert len(names) >= 8 and not re.search(r"[\"'](\.\./)?(data|figures|notebooks)/", source)
    code = ("import sys; sys.path.insert(0, sys.argv[1]); import ldm_mini.files as files; "
            "print(*(files.data_path(*name.split('/')) for name in files.checksums()), sep='\\n'); "
            "print(*map(bool, map(files.measurement, sys.argv[2:])))")
    command = [sys.executable, "-I", "-c", code, str(wheel), *names]
    said = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    *found, read = said.splitlines()
    assert {Path(line).resolve() for line in found} == {
        (wheel / "ldm_mini" / "_data" / name).resolve() for _, name in checksum_lines()}
    assert read.split() == ["True"] * len(names)


def test_ruff_is_clean():
    out = subprocess.run([sys.executable, "-m", "ruff", "check", "--no-cache", "--output-format", "concise", "."],
                         cwd=ROOT, capture_output=True, text=True)
    assert out.returncode == 0, out.stdout + out.stderr
