"""The learner's edition: notebooks with stubs in place of solutions, kept up to date around what a learner wrote.

Beside them lie copies with solutions. Nobody need open those in `notebooks/`: JupyterLab writes into what it opens, and
then `git pull` refuses to bring an update.
"""

from pathlib import Path

from ..files import FileError, write_file
from .hints import hint, outline
from .merge import bring_up_to_date, given_cell, given_notebook, markdown, record_of
from .source import FOLDER, Exercise, exercises_in, read_notebook, source_notebooks, write_notebook

START, SOLVED = "START.ipynb", "with-solutions"
HOW = """\
> **Your edition.** Write in place of `raise NotImplementedError("your code here")`, run your cell, then its check.
> For an exercise that is not written yet, the check puts the course's version in place, so that all below runs.
> Hint, outline and solution are folded below each check: open one, try again, then the next.
> Results that you see before you run a cell are the expected ones."""
READ = "> **With solutions.** A copy to read and to run. [The one to write in]({up}) has the same name, one folder up."
WELCOME = """\
# Latent diffusion models: your copy of the course

**Exercises** opens a notebook to write in; **with solutions** is the same one to read and to run. Take them in order.
Each notebook also has an open exercise of 25 to 60 minutes, which is not counted here.

| notebook | | | exercises | minutes for them |
|:---|:---|:---|---:|---:|
{rows}

* This folder is yours. `python3 course.py lab` brings it up to date and never overwrites a cell that you changed:
  where the course has a new text for it, that is laid below yours.
* Stuck? A check that fails tells the call that puts the course's version of the exercise in place. Give it in a new
  cell above the check, so that you can go on, and *Run All* does too. Delete that cell when you have written yours.
* To begin a notebook again, delete it or move it to another folder, and give the command once more."""


def make_edition(folder, sources=FOLDER) -> list[str]:
    """Make the learner's edition of all notebooks in `folder`, or bring it up to date: what happened, a line each.

    Raises FileError for a folder that cannot hold one.
    """
    folder, paths = Path(folder), source_notebooks(sources)
    if folder.resolve() == Path(sources).resolve():
        raise FileError(f"{folder} holds the notebooks with solutions. Name another folder for the learner's edition.")
    try:
        (folder / SOLVED).mkdir(parents=True, exist_ok=True)
        made, told, index = [], [], []
        for path in paths:
            notebook = read_notebook(path)
            tasks = exercises_in(notebook, path.name)
            index.append((path, notebook["cells"][0]["source"].splitlines()[0].lstrip("# "), tasks))
            _bring(folder, path.name, edition_of(notebook, path.name), made, told)
            _bring(folder / SOLVED, path.name, _solved(notebook, path.name), [], [])  # the same news, told once
        _bring(folder, START, _start(index), made, told)
    except OSError as error:
        raise FileError(f"{folder} cannot hold the learner's edition: {error}.") from None
    return ([f"made {len(made)} notebooks: {made[0]} to {made[-1]}"] if len(made) > 3 else
            [f"made {name}" for name in made]) + told


def edition_of(source: dict, name: str) -> dict:
    """The learner's notebook, as it is given out, of a source with solutions (`read_notebook`) and its file name."""
    tasks = exercises_in(source, name)
    task_of = {task.cell_id: task for task in tasks}
    checked_by = {id_: task for task in tasks for id_ in task.check_cell_ids}
    last = {(task.cell_id, *task.check_cell_ids)[-1]: task for task in tasks}
    cells = [given_cell(markdown(HOW, "your-edition"))] if tasks else []
    for cell in source["cells"]:
        id_ = cell["id"]
        if id_ in task_of:
            task = task_of[id_]
            solution = {"name": task.name, "check": task.check, "code": task.solution}
            cell = {**cell, "source": task.stub, "outputs": []}
            cells.append(given_cell(cell, f"{task.name}, stub", solution=solution))
        elif id_ in checked_by:
            cells.append(given_cell({**cell, "outputs": []}, f"{checked_by[id_].name}, check"))
        else:
            cells.append(given_cell(cell))  # with its output: what is to be expected
        if id_ in last:
            cells.append(given_cell(markdown(_help(last[id_]), f"{id_}-help"), f"{last[id_].name}, hint and solution"))
    return given_notebook(cells, source["metadata"], edition="learner", source=name)


def _solved(source: dict, name: str) -> dict:
    """The copy with solutions, one folder further down than its source."""
    cells = [given_cell(markdown(READ.format(up=f"../{name}"), "with-solutions"))]
    cells += [given_cell({**cell, "source": cell["source"].replace("](../", "](../../")}) for cell in source["cells"]]
    return given_notebook(cells, source["metadata"], edition="solved", source=name)


def _bring(folder: Path, name: str, fresh: dict, made: list, told: list):
    """Write one notebook of the edition, or bring the learner's up to date."""
    path = _theirs(folder, name)
    if not path.exists():
        write_file(path, write_notebook(fresh))
        made.append(path.name)
        return
    try:
        theirs = read_notebook(path)
        if not isinstance(record_of(theirs).get("given"), list):
            raise FileError("it was not made by this command")
    except FileError as error:
        told.append(f"{path.name}: left alone ({error}). Rename it to get a fresh one.")
        return
    (notebook, lines), was = bring_up_to_date(theirs, fresh), path.name
    if path.name == record_of(theirs).get("source") != name:  # renamed in the course, not by the learner
        lines.append(f"is now {name}")
        path = path.rename(folder / name)
    if notebook != theirs:
        write_file(path, write_notebook(notebook))
    told += [f"{was}: {line}" for line in lines]


def _theirs(folder: Path, name: str) -> Path:
    """The learner's file of a notebook: by its name, else, where that was changed on either side, by its number."""
    if (folder / name).exists():
        return folder / name
    for path in sorted(folder.glob("*.ipynb")):
        try:
            source = str(record_of(read_notebook(path)).get("source"))
        except FileError:
            continue
        if source.split("_")[0] == name.split("_")[0]:
            return path
    return folder / name


def _start(index: list) -> dict:
    """The page that JupyterLab opens first: both versions of every notebook."""
    rows = []
    for path, title, tasks in index:
        links = f"[**exercises**]({path.name}) | [with&nbsp;solutions]({SOLVED}/{path.name})"
        minutes = 5 * round(sum(task.minutes for task in tasks) / 5)  # as in the notebook's header
        rows.append(f"| {title} | {links} | {len(tasks)} | {minutes} |")
    kernel = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    page = given_cell(markdown(WELCOME.format(rows="\n".join(rows)), "start"), "start")
    return given_notebook([page], kernel, edition="learner", source=START)


def _help(task: Exercise) -> str:
    """Three steps, each folded: what it is made of, its outline, the course's version."""
    steps = {"Hint": hint(task), "Outline": _python(outline(task)), "Solution": _python(task.solution)}
    return "\n\n".join(f"<details><summary>{name}</summary>\n\n{text}\n</details>"
                       for name, text in steps.items() if text)


def _python(code: str) -> str:
    return code and f"```python\n{code}\n```"
