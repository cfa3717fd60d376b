"""Every committed notebook is the record of a clean run, and has the header and the marks that the course promises."""

import ast
import copy
import io
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import compress_figures
import nbformat
import numpy as np
import pytest
from PIL import Image, ImageDraw

import course
from ldm_mini.editions.source import REGION, exercises, without_solution

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted(path for path in (ROOT / "notebooks").glob("*.ipynb") if not path.name.startswith("."))
ASSIGNMENTS = sorted((ROOT / "notebooks" / "assignments").glob("*.ipynb"))  # outside of the course's order and README
MAX_BYTES = 700_000  # each version of a figure stays in the history: data/build/compress_figures.py
TAGS = {"nbval-ignore-output", "nbval-skip", "nbval-raises-exception", "raises-exception", "hide-input", "exercise",
        "solution", "check"}
HEADER = {  # what the first cell must say: how to recognise it
    "a title like '# 03 · Vector quantisation'": r"\A# [A\d]\d · \S",
    "**You build:** what": r"\*\*You build:?\*\*:? +\S",
    "**Before this:** notebooks or knowledge needed": r"\*\*Before this:?\*\*:? +\S",
    "**Read:** minutes": r"\*\*Read:?\*\*:? +\d+ min\n",
    "**Exercises:** minutes, and an open one's": r"\*\*Exercises:\*\* \d+ min, and an open one of \d+ min\n",
    "**Run:** time on 2 CPU cores and on a GPU": r"\*\*Run:?\*\*:? +(?=.*\d+ (s|min))(?=.*CPU)(?=.*GPU)",
    "**Paper:** sections": r"\*\*Paper:?\*\*:? +\S",
    "**In the package:** the files that hold it, finished": r"\*\*In the package:?\*\*:? .*`ldm_mini/\S+`",
}
WITHOUT_A_NOTEBOOK = {"__init__.py", "__main__.py", "options.py", "extras.py",
                      "asked.py", "files.py", "hub.py", "weights.py",  # what the paper's files stand on
                      "muon.py"}  # until 09 tells of it
FORBIDDEN = r"^%%(time|capture)|%matplotlib|^\s*#.*NBVAL_|warnings\.(simplefilter|filterwarnings)"
COLUMNS = 88  # of code, so that a laptop's window shows whole lines
MACHINE = r"/(?:home|root|Users|tmp|work)/[\w.]+|[A-Z]:\\\\?Users"
FIRST_LINES = 25  # of code in a cell that comes before the first picture and is neither folded away nor a solution
OWN_SHARE = 0.15  # of the lines of code that are not folded away: what the learner writes


def text_of(output):
    """All text of an output: streams, reprs, errors."""
    parts = [output.get("text", ""), *output.get("traceback", []), *output.get("data", {}).values()]
    return "\n".join(part if isinstance(part, str) else json.dumps(part) for part in parts)


def in_the_package(nb):
    """The files (and folders/) of the package that the header names."""
    found = re.search(r"^- \*\*In the package:?\*\*(.*)", nb.cells[0].source, re.M)
    return re.findall(r"`(ldm_mini/[^`]+)`", found[1]) if found else []


def notebook_problems(nb):
    """What is wrong with the notebook as a whole."""
    code = [cell for cell in nb.cells if cell.cell_type == "code" and cell.source.strip()]
    header = nb.cells[0].source if nb.cells and nb.cells[0].cell_type == "markdown" else ""
    found = [f"the first cell lacks {what}" for what, pattern in HEADER.items() if not re.search(pattern, header)]
    found += [f"there is no {name} in the package" for name in in_the_package(nb) if not (ROOT / name).exists()]
    if nb.metadata.get("kernelspec", {}).get("name") != "python3":
        found.append("the kernel must be python3")
    if "widgets" in nb.metadata:
        found.append("widget state is saved in it: clear it, and draw a static figure beside the slider")
    if [cell.execution_count for cell in code] != list(range(1, len(code) + 1)):
        found.append("execution counts are not 1, 2, 3...: run it top to bottom and save")
    if not any(cell.outputs for cell in code):
        found.append("it has no outputs, so nothing would be compared")
    pictures = [i for i, cell in enumerate(code) if any("image/png" in o.get("data", {}) for o in cell.outputs)]
    early = [cell for cell in code[:pictures[0] if pictures else None]
             if "hide-input" not in cell.metadata.get("tags", []) and "### BEGIN SOLUTION" not in cell.source]
    found += [f"a cell has {lines} lines of code, and there was no picture yet: split it, at most {FIRST_LINES}"
              for cell in early if (lines := len([x for x in cell.source.splitlines() if x.strip()])) > FIRST_LINES]
    opened = re.findall(r"### (BEGIN|END) SOLUTION", "\n".join(cell.source for cell in code))
    if opened != ["BEGIN", "END"] * (len(opened) // 2):
        found.append("### BEGIN SOLUTION and ### END SOLUTION do not pair up")
    return found


def solution_outside_of_a_function(source):
    """Without its solution such a cell stops where it stands, and never gets to the check that would say so."""
    student = re.sub(r"^( *)### BEGIN SOLUTION\n.*?### END SOLUTION", r"\1raise NotImplementedError", source,
                     flags=re.S | re.M)
    try:
        tree = ast.parse(student)
    except SyntaxError:  # a cell with magics
        return False
    bodies = [tree.body, *(node.body for node in ast.walk(tree) if isinstance(node, ast.ClassDef))]
    return student != source and any(isinstance(node, ast.Raise) for body in bodies for node in body)


def cell_problems(cell):
    """What is wrong with one cell."""
    tags = set(cell.metadata.get("tags", []))
    found = [f"unknown tag {tag}" for tag in sorted(tags - TAGS)]
    if "execution" in cell.metadata:
        found.append("the clock of its last run is saved in it: nbconvert leaves that, clear it")
    if cell.cell_type != "code":
        if re.search(r"!\[[^\]]*\]\(https?:|<img[^>]+src=[\"']https?:", cell.source):
            found.append("a picture is linked from the network")
        return found
    if re.search(FORBIDDEN, cell.source, re.M):
        found.append("no %%time, %%capture, %matplotlib, ignored warnings or NBVAL comments (use a tag)")
    if "plt.subplots(" in cell.source and "interact" not in cell.source and "def " not in cell.source \
            and not re.search(r"figure_done\(", cell.source):
        found.append("a figure cell ends with figure_done(what it shows)")
    if solution_outside_of_a_function(cell.source):
        found.append("a solution stands outside of a function: the student's cell would stop at once")
    found += [f"a line of code has {len(line)} columns, more than {COLUMNS}"
              for line in cell.source.splitlines() if len(line) > COLUMNS]
    for output in cell.get("outputs", []):
        if "image/png" in output.get("data", {}) and not output.metadata.get("image/png", {}).get("alt", "").strip():
            found.append("a figure has no alternative text: show it with figure_done(what it shows)")
        if output.get("name") == "stderr":
            found.append("something was written to stderr")
        if output.output_type == "error" and not tags & {"raises-exception", "nbval-raises-exception"}:
            found.append(f"it stopped with {output.ename}")
        if re.search(MACHINE, text_of(output)):
            found.append("an output names a folder of the machine it ran on")
        if re.search(r"\d\.\d{7,}", text_of(output)) and "nbval-ignore-output" not in tags:
            found.append("an output prints digits that differ between machines")
    return found


def problems(nb):
    return notebook_problems(nb) + [f"cell {number}: {problem}" for number, cell in enumerate(nb.cells)
                                    for problem in cell_problems(cell)]


@pytest.mark.parametrize("path", NOTEBOOKS + ASSIGNMENTS, ids=lambda path: path.stem)
def test_notebook(path):
    assert path.stat().st_size <= MAX_BYTES, "too big: fewer or smaller pictures"
    nb = nbformat.read(path, as_version=4)
    nbformat.validate(nb)
    assert problems(nb) == []


def minutes_of(path):
    """What a notebook asks for, by one rule for all: minutes to read, of its exercises, and of its open one.

    Reading: 150 words of text a minute (a formula or a name in code is one), 20 lines of code that are not the
    learner's, and half a minute for a figure. Exercises: what their titles say. The open one: what its title says, or,
    where there is a budget of computing and of lines, that and a minute for a line.
    """
    nb, tasks = nbformat.read(path, as_version=4), exercises(path)
    text = "\n".join(cell.source for cell in nb.cells if cell.cell_type == "markdown")
    code = [cell for cell in nb.cells if cell.cell_type == "code"]
    lines = [line for cell in code for line in without_solution(cell.source).splitlines() if line.strip("# ")]
    figures = sum("image/png" in output.get("data", {}) for cell in code for output in cell.outputs)
    words = re.findall(r"\w+", re.sub(r"\$[^$]*\$|`[^`]*`", "x", text))
    title, task = re.search(r"^### Open([^\n]*)(.*)", text, re.M | re.S).groups()
    own = re.search(r"(\d+) min(?!utes of computing)", title)
    budget = [re.search(rf"(\d+) {word}", title + task) for word in ("minutes of (?:computing|running)", "lines")]
    opened = int(own[1]) if own else sum(int(part[1]) for part in budget)
    read = len(words) / 150 + len(lines) / 20 + figures / 2
    return tuple(5 * round(minutes / 5) for minutes in (read, sum(task.minutes for task in tasks), opened))


@pytest.mark.parametrize("path", NOTEBOOKS + ASSIGNMENTS, ids=lambda path: path.stem)
def test_a_header_says_how_long_it_takes(path):
    header = nbformat.read(path, as_version=4).cells[0].source
    stated = [int(re.search(rf"\*\*{word}.*?(\d+) min$", header, re.M)[1]) for word in ("Read:", "Exercises:")]
    stated.insert(1, int(re.search(r"\*\*Exercises:\*\* (\d+) min", header)[1]))
    read, *rest = minutes_of(path)
    assert stated[1:] == rest and abs(stated[0] - read) <= 5  # texts are mended often


@pytest.mark.parametrize("path", NOTEBOOKS + ASSIGNMENTS, ids=lambda path: path.stem)
def test_the_open_exercise_says_what_is_good(path):
    """An experiment without a check: the minutes that it may take, what to hand in, and by what it is judged."""
    text = "\n\n".join(cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "markdown")
    task, = re.findall(r"^### Open.*?(?=^#{1,3} |\Z)", text, re.M | re.S)
    assert re.search(r"\d+ min", task)
    judged = r"\*Good.*\*Very good.*" if path in NOTEBOOKS else r"\| weight \|"
    assert re.search(judged, task, re.S) and (path not in NOTEBOOKS or re.search("hand in", task, re.I))


def own_share(nb):
    """The part of the lines of code that are not folded away that the learner writes."""
    shown = [cell.source for cell in nb.cells
             if cell.cell_type == "code" and "hide-input" not in cell.metadata.get("tags", [])]
    lines = lambda texts: sum(not re.match(r"\s*(#|$)", line) for text in texts for line in text.splitlines())
    return lines(own for source in shown for _, own in REGION.findall(source)) / lines(shown)


@pytest.mark.parametrize("path", NOTEBOOKS[1:], ids=lambda path: path.stem)
def test_a_learner_meets_ideas_and_writes_code(path):
    """Where less is the learner's: fold the cells that only draw (tag hide-input), or ask for more."""
    assert own_share(nbformat.read(path, as_version=4)) >= OWN_SHARE


def test_folded_lines_do_not_count():
    nb = good_notebook()
    assert own_share(nb) == 1 / 5
    nb.cells[2].metadata.tags.append("hide-input")
    assert own_share(nb) == 1 / 3


def test_the_course_is_complete_and_in_order():
    """One notebook per number, from 00 and 01 on; JupyterLab opens the first one, and the README lists them all."""
    names = [path.name for path in NOTEBOOKS]
    numbers = [int(name[:2]) for name in names]
    assert len(set(numbers)) == len(numbers) and max(numbers) <= 18 and numbers[:2] == [0, 1]
    assert course.FIRST_NOTEBOOK.split("/")[1] == names[0]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [name for name in names if f"(notebooks/{name})" not in readme] == []


def test_the_map_of_notebooks_and_files_reads_both_ways():
    """A notebook's header names the files that hold what it builds; a file's docstring, the notebook that builds it."""
    named = {path.stem[:2]: in_the_package(nbformat.read(path, as_version=4)) for path in NOTEBOOKS}
    files = {path.name: ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
             for path in (ROOT / "ldm_mini").glob("*.py") if path.name not in WITHOUT_A_NOTEBOOK}
    assert [name for name in files if not any(f"ldm_mini/{name}" in others for others in named.values())] == []
    told = [(number, f"ldm_mini/{name}") for name, text in files.items()
            for sentence in re.findall(r"Built in notebooks? [^.]*", text) for number in re.findall(r"\d\d", sentence)]
    assert [(number, name) for number, name in told if name not in named[number]] == []


def good_notebook():
    new = nbformat.v4
    header = ("# 03 · Test\n\n- **You build:** a quantiser\n- **Before this:** 02\n- **Read:** 20 min\n"
              "- **Exercises:** 30 min, and an open one of 40 min\n"
              "- **Run:** 40 s on 2 CPU cores, 10 s on a GPU\n- **Paper:** 3.1\n"
              "- **In the package:** `ldm_mini/quantizer.py`")
    stream = new.new_output("stream", name="stdout", text="0.125\n")
    picture = new.new_output("display_data", metadata={"image/png": {"alt": "An empty frame."}},
                             data={"image/png": "AAAA", "text/plain": "<Figure size 300x200 with 1 Axes>"})
    return new.new_notebook(metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}}, cells=[
        new.new_markdown_cell(header),
        new.new_code_cell("def f():\n    ### BEGIN SOLUTION\n    return 1 / 8\n    ### END SOLUTION\nprint(f())",
                          execution_count=1, outputs=[stream]),
        new.new_code_cell("fig, ax = plt.subplots()\nfigure_done('An empty frame.')",
                          execution_count=2, outputs=[picture],
                          metadata={"tags": ["nbval-ignore-output"]})])


def test_a_good_notebook_passes():
    assert problems(good_notebook()) == []


def output(kind, **values):
    return lambda nb: nb.cells[1].outputs.append(nbformat.v4.new_output(kind, **values))


def source(index, old, new):
    return lambda nb: nb.cells[index].update(source=nb.cells[index].source.replace(old, new))


@pytest.mark.parametrize("spoil, told", [
    (source(0, "# 03 · ", "# "), "title"),
    (source(0, "**You build:**", "You build"), "You build"),
    (source(0, "Before this", "Before"), "Before this"),
    (source(0, "20 min", "a while"), r"\*\*Read:\*\*"),
    (source(0, "one of 40 min", "one"), "Exercises"),
    (source(0, "GPU", "card"), r"\*\*Run:\*\*"),
    (source(0, "CPU cores", "cores"), r"\*\*Run:\*\*"),
    (source(0, "**Paper:** 3.1", ""), "Paper"),
    (source(0, "In the package", "In the house"), "In the package"),
    (source(0, "quantizer.py", "quantiser.py"), "no ldm_mini/quantiser.py"),
    (source(0, "**Paper:**", "![](https://example.org/a.png) **Paper:**"), "linked from the network"),
    (source(1, "### END SOLUTION", ""), "pair up"),
    (source(1, "### BEGIN SOLUTION", "### END SOLUTION"), "pair up"),
    (source(1, "print", "%%time\nprint"), "%%time"),
    (lambda nb: nb.cells[1].update(source="### BEGIN SOLUTION\nprint(1 / 8)\n### END SOLUTION"), "outside of a"),
    (source(1, "def f():", "class f:"), "outside of a function"),
    (source(2, "figure_done", "print"), "figure_done"),
    (lambda nb: nb.cells[2].outputs[0].update(metadata={}), "no alternative text"),
    (lambda nb: nb.cells[2].outputs[0].metadata["image/png"].update(alt=" "), "no alternative text"),
    (source(1, "print(f())", "print(f(" + 79 * " " + "))"), "89 columns"),
    (lambda nb: nb.cells[1].update(source="x = 1\n\n" * 26), "26 lines of code, and there was no picture"),
    (output("stream", name="stderr", text="UserWarning: something"), "stderr"),
    (output("error", ename="ValueError", evalue="no", traceback=[]), "stopped with ValueError"),
    (output("stream", name="stdout", text="saved in /home/me/ldm_mini/a.png"), "folder of the machine"),
    (output("execute_result", data={"text/plain": "0.30000000000000004"}), "digits"),
    (lambda nb: nb.cells[2].update(execution_count=3), "execution counts"),
    (lambda nb: nb.cells[2].update(execution_count=None), "execution counts"),
    (lambda nb: nb.cells[2].metadata.update(tags=["nbval_ignore_output"]), "unknown tag"),
    (lambda nb: nb.cells[2].metadata.update(execution={"iopub.status.busy": "2026"}), "clock of its last run"),
    (lambda nb: nb.metadata["kernelspec"].update(name="ldm"), "kernel must be python3"),
    (lambda nb: nb.metadata.update(widgets={}), "widget state"),
    (lambda nb: [cell.update(outputs=[]) for cell in nb.cells[1:]], "no outputs"),
])
def test_a_spoiled_notebook_is_caught(spoil, told):
    nb = copy.deepcopy(good_notebook())
    spoil(nb)
    assert len(problems(nb)) == 1 and re.search(told, problems(nb)[0])


NBVAL_CELLS = [  # source, stored output, verdict of strict nbval with our settings
    ("print('same')", "same\n", "passed"),
    ("print('now')", "then\n", "failed"),
    ("object()", "<object at 0x7f0000000000>", "passed"),
    ("'size 200x200'", "'size 300x300'", "failed"),
    ("0.3", "0.30000000000000004", "failed"),
    ("import os; print(os.environ['OMP_NUM_THREADS'])", "1\n", "passed"),
    ("import os; print(os.environ['GOMP_SPINCOUNT'])", "20000\n", "passed"),
    ("import os; print(os.path.basename(os.getcwd()))", "notebooks\n", "passed"),
    ("import ldm_mini, pathlib; print(pathlib.Path(ldm_mini.__file__).parts[-3])", "copy\n", "passed"),
]


def test_nbval_compares_strictly_with_our_settings(tmp_path):
    """The committed conftest.py and patterns, on a notebook with planted right and wrong outputs."""
    new, copied = nbformat.v4, tmp_path / "copy"
    for name in ("notebooks", "tests", "ldm_mini"):
        (copied / name).mkdir(parents=True)
    (copied / "ldm_mini" / "__init__.py").touch()
    for name in ("conftest.py", "course.py", "pyproject.toml"):
        shutil.copy(ROOT / name, copied)
    shutil.copy(ROOT / "tests" / "nbval_sanitize.cfg", copied / "tests")
    cells = []
    for text, stored, _ in NBVAL_CELLS:
        stream = text.startswith(("print", "import"))
        cells.append(new.new_code_cell(text, execution_count=len(cells) + 1, outputs=[
            new.new_output("stream", name="stdout", text=stored) if stream else
            new.new_output("execute_result", data={"text/plain": stored}, execution_count=len(cells) + 1)]))
    nb = new.new_notebook(cells=cells, metadata={"kernelspec": {"name": "not-a-kernel-here", "display_name": "x"}})
    nbformat.write(nb, copied / "notebooks" / "00_planted.ipynb")
    words, _ = course.command_line("test", sys.executable, ["-n", "1", "-rA", "-p", "no:cacheprovider", "notebooks"])
    out = subprocess.run(words, cwd=copied, capture_output=True, text=True)
    verdicts = dict((int(n), v.lower()) for v, n in re.findall(r"^(PASSED|FAILED) .*Cell (\d+)", out.stdout, re.M))
    assert [verdicts.get(n) for n in range(len(cells))] == [verdict for *_, verdict in NBVAL_CELLS], out.stdout


def test_compressed_figures_look_the_same():
    """Pictures keep their colours to 3 of 255; a plot gets a palette; both get smaller."""
    ramp = np.linspace(0, 255, 128, dtype=np.uint8)
    picture = np.stack([*np.meshgrid(ramp, ramp), np.random.default_rng(0).integers(0, 256, (128, 128), np.uint8)], -1)
    plot = Image.new("RGB", (256, 128), "white")
    ImageDraw.Draw(plot).line([(0, 0), (256, 100)], fill="red", width=5)
    ImageDraw.Draw(plot).text((20, 90), "a step", fill="black")
    for page, palette in ((Image.fromarray(picture), False), (plot, True)):
        stored = io.BytesIO()
        page.convert("RGBA").save(stored, "PNG", compress_level=1)
        small = compress_figures.compressed(stored.getvalue())
        now = Image.open(io.BytesIO(small))
        assert len(small) < len(stored.getvalue()) and now.size == page.size and (now.mode == "P") == palette
        assert np.abs(np.asarray(now.convert("RGB"), int) - np.asarray(page, int)).max() <= (10 if palette else 3)
