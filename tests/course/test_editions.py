"""The learner's edition: what is given out of each notebook, and that nothing a learner wrote is ever lost."""

import ast
import copy
import json
from collections import Counter

import nbformat
import pytest

from ldm_mini.editions import edition_of, exercises, make_edition, read_notebook, source_notebooks, write_notebook
from ldm_mini.editions.hints import hint, outline
from ldm_mini.files import FileError

SOURCES = source_notebooks()


@pytest.mark.parametrize("path", SOURCES, ids=[path.stem for path in SOURCES])
def test_edition_of_a_notebook(path):
    """All solutions are gone from the code and folded below their checks; the rest is as it was."""
    source, tasks = read_notebook(path), exercises(path)
    edition = edition_of(source, path.name)
    nbformat.validate(nbformat.reads(write_notebook(edition).decode(), as_version=4))
    assert json.loads(write_notebook(edition))["cells"][1]["source"] == json.loads(path.read_text("utf-8"))["cells"][0][
        "source"]
    own = {cell["id"]: cell for cell in edition["cells"]}
    assert [id_ for id_ in own if not id_.endswith("-help") and id_ != "your-edition"] == [
        cell["id"] for cell in source["cells"]]
    hidden = {id_ for task in tasks for id_ in (task.cell_id, *task.check_cell_ids)}
    for cell in source["cells"]:
        if cell["id"] not in hidden:
            assert (own[cell["id"]]["source"], own[cell["id"]].get("outputs")) == (cell["source"], cell.get("outputs"))
        else:
            assert own[cell["id"]]["outputs"] == []
        assert cell["cell_type"] == "markdown" or own[cell["id"]]["execution_count"] is None
    assert tasks and not any("SOLUTION" in cell["source"] for cell in edition["cells"])
    for task in tasks:
        stub, ids = own[task.cell_id]["source"], [cell["id"] for cell in edition["cells"]]
        marks = next(c for c in source["cells"] if c["id"] == task.cell_id)["source"].count("### BEGIN SOLUTION")
        raises = [node for node in ast.walk(ast.parse(stub)) if isinstance(node, ast.Raise)]
        assert stub == task.stub and len(raises) == marks == stub.count('raise NotImplementedError("your code here")')
        assert not [line for line in task.answer.splitlines() if len(line.strip()) > 4 and line in stub.splitlines()]
        assert task.check and task.minutes and task.solution in own[task.check_cell_ids[-1] + "-help"]["source"]
        assert ids.index(task.check_cell_ids[-1] + "-help") == ids.index(task.check_cell_ids[-1]) + 1
        assert ast.dump(ast.parse(task.solution)) == ast.dump(ast.parse(own[task.cell_id]["metadata"]["ldm_mini"][
            "solution"]["code"]))


def test_exercises_and_their_checks_are_found_by_name():
    """`checks.solve(name)` looks in all notebooks of a folder."""
    tasks = [task for path in SOURCES for task in exercises(path)]
    names = Counter(name for task in tasks for name in {task.name, task.check})
    assert len(tasks) >= 75 and [name for name, count in names.items() if count > 1] == []


def test_a_hint_names_what_the_solution_uses_and_not_how():
    hints = {task.name: hint(task) for path in SOURCES[:4] for task in exercises(path)}
    assert hints["guide"] == "The course's version takes one line. It puts together `uncond`, `scale`, `cond` with " \
        "`+`, `*`, `-`."
    assert hints["attention"] == "The course's version takes 2 lines. It uses, in this order, `@`, `.transpose`, " \
        "`.softmax`."
    assert hints["box_iou"].endswith("`torch.maximum`, `torch.minimum`, `.clamp`, `.prod`. To see what "
                                     "`torch.maximum` does, run `torch.maximum?` in a cell of your own.")


def test_an_outline_keeps_the_steps_and_leaves_out_what_they_compute():
    outlines = {task.name: outline(task) for path in SOURCES[:4] for task in exercises(path)}
    assert outlines["guide"] == ""  # one step: the outline would be the whole
    assert outlines["attention"] == "def attention(q, k, v):\n    scores = ...  # @, .transpose\n" \
        "    return ...  # .softmax, @"
    assert outlines["place"].splitlines()[4:] == ["    placed[...] = ...  # alpha_over", "    return placed"]


@pytest.mark.parametrize("path", SOURCES, ids=[path.stem for path in SOURCES])
def test_no_outline_gives_the_answer_away(path):
    """Each is Python, and nothing in it is computed: no operator, no index, nothing handed to a function."""
    for task in exercises(path):
        nodes = list(ast.walk(ast.parse(outline(task))))
        handed = [part for node in nodes if isinstance(node, ast.Call) for part in [*node.args, *node.keywords]]
        places = [node.slice for node in nodes if isinstance(node, ast.Subscript)]
        assert all(isinstance(part, ast.Constant) and part.value is ... for part in handed + places), task.name
        assert not [node for node in nodes if isinstance(node, (ast.BinOp, ast.Compare, ast.GeneratorExp))], task.name


# ---- a small course of its own, changed on both sides

TITLE, STUB, CHECK, AFTER = "# 02 · Doubling", "def double(x):", "checks.double(double)", "print(double(2))"
STUBBED = 'def double(x):\n    raise NotImplementedError("your code here")'


def code(text):
    return nbformat.v4.new_code_cell(text, outputs=[nbformat.v4.new_output("stream", text="4\n")], execution_count=7)


def course_of(*changes, answer="return 2 * x", extra=()):
    """A source notebook; changes: pairs (text, other text) of its cells."""
    markdown = nbformat.v4.new_markdown_cell
    cells = [markdown(TITLE), markdown("### Exercise 1 · Double (★, 5 minutes)"),
             code(f"{STUB}\n    ### BEGIN SOLUTION\n    {answer}\n    ### END SOLUTION"), code(CHECK), code(AFTER),
             markdown("## The end"), *map(code, extra)]
    for number, cell in enumerate(cells):
        cell.id = f"cell-{number:03}"
        for old, new in changes:
            cell.source = cell.source.replace(old, new)
    return nbformat.v4.new_notebook(cells=[cell for cell in cells if cell.source])


@pytest.fixture
def desk(tmp_path):
    """A course and a learner's copy of it."""
    class Desk:
        sources, mine = tmp_path / "notebooks", tmp_path / "my-course"
        path = mine / "02_doubling.ipynb"

        def publish(self, notebook, name="02_doubling.ipynb"):
            self.sources.mkdir(exist_ok=True)
            nbformat.write(notebook, self.sources / name)
            return make_edition(self.mine, self.sources)

        def read(self):
            nbformat.validate(nbformat.read(self.path, 4))
            return read_notebook(self.path)

        def texts(self):
            return [cell["source"] for cell in self.read()["cells"]]

        def edit(self, change):
            notebook = self.read()
            change(notebook["cells"])
            self.path.write_bytes(write_notebook(notebook))

        def write(self, old, new):
            self.edit(lambda cells: [cell.update(source=new) for cell in cells if cell["source"] == old])

    desk = Desk()
    desk.publish(course_of())
    return desk


def test_fresh_and_unchanged(desk):
    texts = desk.texts()
    assert texts[0].startswith("> **Your edition.**") and texts[1] == TITLE and texts[3:5] == [STUBBED, CHECK]
    assert "return 2 * x" in texts[5] and texts[6:] == [AFTER, "## The end"]
    before = desk.path.stat().st_mtime_ns
    assert make_edition(desk.mine, desk.sources) == [] and desk.path.stat().st_mtime_ns == before
    assert "(02_doubling.ipynb)" in read_notebook(desk.mine / "START.ipynb")["cells"][0]["source"]


def test_copies_with_solutions_lie_beside_and_the_source_stays_as_it_came(desk):
    """They follow the course too, around what was changed in them; their links lead where those of the source do."""
    source = (desk.sources / desk.path.name).read_bytes()
    start = read_notebook(desk.mine / "START.ipynb")["cells"][0]["source"]
    assert "(with-solutions/02_doubling.ipynb)" in start and "notebooks/" not in start
    desk.path = desk.mine / "with-solutions" / desk.path.name
    first, *texts = desk.texts()
    assert "(../02_doubling.ipynb)" in first and texts == [
        cell["source"] for cell in read_notebook(desk.sources / desk.path.name)["cells"]]
    desk.write("## The end", "## My end")
    assert (desk.sources / desk.path.name).read_bytes() == source
    told = desk.publish(course_of(("# 02 · Doubling", "# 02 · Twice"), ("The end", "[The end](../README.md)")))
    assert len(told) == 3 and desk.texts()[1] == "# 02 · Twice" and desk.texts()[-2] == "## My end"
    assert "](../../README.md)" in desk.texts()[-1]


def test_a_new_text_replaces_what_was_not_touched_and_results_stay(desk):
    desk.edit(lambda cells: cells[6].update(outputs=[], execution_count=3))
    told = desk.publish(course_of(("The end", "The very end")))
    assert told == ["02_doubling.ipynb: changed: ## The very end"]
    long = "## The very end, in\tmore words than a line of a message can hold on a narrow screen"
    assert desk.publish(course_of(("## The end", long))) == [
        "02_doubling.ipynb: changed: ## The very end, in more words than a line of a message ..."]
    desk.publish(course_of(("The end", "The very end")))
    assert desk.texts()[-1] == "## The very end" and len(desk.texts()) == 8
    assert desk.read()["cells"][6]["execution_count"] == 3  # the learner ran it


def test_a_new_text_is_laid_beside_what_the_learner_wrote(desk):
    desk.write(STUBBED, "def double(x):\n    return x + x")
    told = desk.publish(course_of(("(x)", "(x, y)")))
    assert "stub of exercise double" in " ".join(told) and "yours stays" in " ".join(told)
    texts = desk.texts()
    assert texts[3] == "def double(x):\n    return x + x" and "def double(x, y):" in texts[4]
    assert desk.read()["cells"][4]["cell_type"] == "markdown"  # nothing that runs
    assert make_edition(desk.mine, desk.sources) == [] and desk.texts() == texts
    desk.publish(course_of(("(x)", "(x, y, z)")))  # once more: the older text goes
    assert [text.count("(x, y, z):") for text in desk.texts()[3:6]] == [0, 1, 0] and len(desk.texts()) == len(texts)
    desk.edit(lambda cells: cells.pop(4))  # read, and done with
    assert make_edition(desk.mine, desk.sources) == [] and len(desk.texts()) == len(texts) - 1
    desk.write("def double(x):\n    return x + x", STUBBED.replace("(x)", "(x, y, z)"))  # taken over: no longer touched
    desk.publish(course_of())
    assert desk.texts()[3] == STUBBED


def test_notes_of_the_learner_on_a_laid_text_stay(desk):
    desk.write("## The end", "## My end")
    desk.publish(course_of(("The end", "The very end")))
    desk.write(desk.texts()[-1], "I took the half of it.")
    desk.publish(course_of(("The end", "The last end")))
    assert desk.texts()[-3] == "## My end" and "The last end" in desk.texts()[-2]
    assert desk.texts()[-1] == "I took the half of it."


def test_a_new_solution_comes_along_though_the_learner_wrote_theirs(desk):
    desk.write(STUBBED, "def double(x):\n    return x + x")
    desk.publish(course_of(answer="return x + x + 0"))
    cell = desk.read()["cells"][3]
    assert cell["source"].endswith("return x + x") and "x + x + 0" in cell["metadata"]["ldm_mini"]["solution"]["code"]
    assert "x + x + 0" in desk.texts()[5] and len(desk.texts()) == 8


def test_cells_added_on_both_sides(desk):
    own = nbformat.v4.new_code_cell("my = 1")
    desk.edit(lambda cells: cells.insert(4, copy.deepcopy(own)))
    told = desk.publish(course_of(extra=["print('more')", "print('more')"]))
    assert told == ["02_doubling.ipynb: new: print('more')"] * 2
    assert desk.texts()[4] == "my = 1" and desk.texts()[-3:] == ["## The end", "print('more')", "print('more')"]


def test_ids_that_moved_on_in_the_course_do_not_matter(desk):
    """Whoever writes the course may number its cells anew."""
    desk.write(STUBBED, "def double(x):\n    return x + x")
    shifted = course_of(extra=["print('more')"])
    shifted.cells.insert(1, shifted.cells.pop())
    for number, cell in enumerate(shifted.cells):
        cell.id = f"cell-{number:03}"
    assert desk.publish(shifted) == ["02_doubling.ipynb: new: print('more')"]
    assert desk.texts()[2] == "print('more')" and desk.texts()[4] == "def double(x):\n    return x + x"
    ids = [cell["id"] for cell in desk.read()["cells"]]
    assert len(set(ids)) == len(ids)


def test_what_the_course_removed_goes_and_what_the_learner_changed_in_it_stays(desk):
    desk.write("## The end", "## My end")
    told = desk.publish(course_of((AFTER, ""), ("## The end", "")))
    assert len(told) == 2 and AFTER not in desk.texts() and desk.texts()[-1] == "## My end"
    assert make_edition(desk.mine, desk.sources) == []


def test_what_the_learner_deleted_stays_deleted(desk):
    desk.edit(lambda cells: [cells.remove(cell) for cell in cells[-2:]])
    assert make_edition(desk.mine, desk.sources) == []
    desk.publish(course_of(("The end", "The very end")))
    assert desk.texts()[-1] == desk.texts()[5] and len(desk.texts()) == 6


def test_a_copy_of_a_cell_is_the_learners_own(desk):
    desk.edit(lambda cells: cells.insert(4, {**copy.deepcopy(cells[3]), "source": "def double(x):\n    return 3"}))
    desk.publish(course_of(("(x)", "(x, y)")))
    assert desk.texts()[3] == STUBBED.replace("(x)", "(x, y)") and desk.texts()[4] == "def double(x):\n    return 3"


def test_a_cell_that_moved_in_the_course_is_still_the_same(desk):
    desk.write("## The end", "## My end")
    moved = course_of()
    moved.cells.insert(1, moved.cells.pop())
    assert desk.publish(moved) == [] and desk.texts()[-1] == "## My end"


def test_a_renamed_notebook_is_found_by_its_number(desk):
    desk.write("## The end", "## My end")
    desk.path = desk.path.rename(desk.mine / "doubling, first try.ipynb")  # by the learner: keeps the name
    desk.publish(course_of(("Doubling", "Twice")))
    assert desk.texts()[1] == "# 02 · Twice" and sorted(p.name for p in desk.mine.iterdir()) == [
        "START.ipynb", "doubling, first try.ipynb", "with-solutions"]
    desk.path = desk.path.rename(desk.mine / "02_doubling.ipynb")
    (desk.sources / "02_doubling.ipynb").unlink()
    told = desk.publish(course_of(), "02_twice.ipynb")  # in the course: its links lead to the new name
    desk.path = desk.mine / "02_twice.ipynb"
    assert "02_doubling.ipynb: is now 02_twice.ipynb" in told and desk.texts()[-1] == "## My end"
    assert not (desk.mine / "02_doubling.ipynb").exists()


@pytest.mark.parametrize("content", [
    b"", b"{", b"[]", b"null", b'{"cells": 3, "nbformat": 4}', b'{"cells": [{}], "nbformat": 4, "metadata": {}}',
    b'{"worksheets": [], "nbformat": 3}', "{\"été\"}".encode("latin-1"), b'{"cells": [], "nbformat": 4}',
    b'{"cells": [], "nbformat": 4, "metadata": {"ldm_mini": 1}}', write_notebook(dict(course_of()))])
def test_a_file_that_is_no_edition_is_left_alone(desk, content):
    desk.path.write_bytes(content)
    told, = desk.publish(course_of(("The end", "The very end")))
    assert "left alone" in told and desk.path.read_bytes() == content


def test_a_folder_that_cannot_hold_an_edition_is_told(desk, tmp_path):
    with pytest.raises(FileError, match="holds the notebooks with solutions"):
        make_edition(desk.sources, desk.sources)
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match="cannot hold"):
        make_edition(tmp_path / "file", desk.sources)
    with pytest.raises(FileError, match="in a clone"):
        make_edition(tmp_path / "other", tmp_path)
    assert [path.name for path in desk.sources.iterdir()] == ["02_doubling.ipynb"]
