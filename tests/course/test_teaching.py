"""The grader: what learners hand in is worth what it should be; what attacks it is worth nothing and harms nothing."""

import builtins
import csv
import dataclasses
import json
import os
import re
import sys
import textwrap
from pathlib import Path

import pytest

from ldm_mini.editions.source import exercises, read_notebook, without_marks, without_solution
from ldm_mini.files import FileError

if sys.platform == "win32":
    pytest.skip("grading forks processes, which Windows cannot", allow_module_level=True)

from ldm_mini.teaching import gate, judging, sandbox  # noqa: E402
from ldm_mini.teaching.assignments import marked, teach  # noqa: E402
from ldm_mini.teaching.grading import grade, grade_notebook, graded_notebooks  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = ROOT / "notebooks"
DATA = NOTEBOOKS / "01_one_data_set_seven_tasks.ipynb"  # alpha_over, inpainting_input, box_iou
VQ = NOTEBOOKS / "03_vq_vae.ipynb"
TASKS = judging.tasks_of(DATA)


def notebook(path=DATA, write=without_marks, answers=None, **changes):
    """A submission: each cell as `write` makes it of the source, and `answers` {name of exercise: code}."""
    made = {**read_notebook(path), **changes}
    ids = {task.cell_id: task.name for task in exercises(path)}
    made["cells"] = [{**cell, "outputs": [], "source": (answers or {}).get(ids.get(cell["id"]), write(cell["source"]))}
                     if cell["cell_type"] == "code" else cell for cell in made["cells"]]
    return made


def hand_in(folder, made, encoding="utf-8"):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / DATA.name
    path.write_bytes(made if isinstance(made, bytes) else json.dumps(made, ensure_ascii=False).encode(encoding))
    return path


def scores(path, tasks=TASKS):
    return {verdict.exercise: verdict.score for verdict in grade_notebook(path, tasks)}


FULL = {task.name: task.points for task in TASKS}
NONE = dict.fromkeys(FULL, 0)


def old_format(made):
    """Format 3: worksheets, `input`, no ids."""
    cells = [{**cell, "input": cell["source"], "id": None} for cell in made["cells"]]
    return {"nbformat": 3, "nbformat_minor": 0, "metadata": {}, "worksheets": [
        {"cells": [{k: v for k, v in cell.items() if k not in ("id", "source")} for cell in cells]}]}


def latin(made):
    """Without the characters that this encoding lacks."""
    return json.loads(json.dumps(made, ensure_ascii=False).encode("latin-1", "ignore").decode("latin-1"))


def without_ids(made):
    return {**made, "cells": [{k: v for k, v in cell.items() if k != "id"} for cell in made["cells"]]}


STATES = {
    "complete": (lambda: notebook(), "utf-8", FULL),
    "empty": (lambda: notebook(write=without_solution), "utf-8", NONE),
    "half-done": (lambda: notebook(answers={"box_iou": "def box_iou(a, b):\n    raise NotImplementedError"}), "utf-8",
                  {**FULL, "box_iou": 0}),
    "old format": (lambda: old_format(notebook()), "utf-8", FULL),
    "no ids": (lambda: without_ids(notebook()), "utf-8", FULL),
    "latin-1": (lambda: latin(notebook(answers={"box_iou": "# caf\xe9\nbox_iou = None"})), "latin-1",
                {**FULL, "box_iou": 0}),
    "utf-16": (lambda: notebook(), "utf-16", FULL),
    "missing cells": (lambda: notebook(cells=[cell for cell in read_notebook(DATA)["cells"] if not any(
        word in cell["source"] for word in ("def box_iou", "\nimport "))]), "utf-8", {**FULL, "box_iou": 0}),
    "does not parse": (lambda: notebook(answers={"box_iou": "def box_iou(a, b:\n"}), "utf-8", {**FULL, "box_iou": 0}),
    "no notebook": (lambda: b"\x00\x01 hello", "utf-8", NONE),
    "deep": (lambda: b"[" * 100_000, "utf-8", NONE),
}


@pytest.mark.parametrize("state", STATES)
def test_a_submission_in_any_state_is_graded(tmp_path, state):
    make, encoding, want = STATES[state]
    assert scores(hand_in(tmp_path, make(), encoding)) == want


PATCH = "from ldm_mini.checks import n01_data as n"
ATTACKS = {  # what alpha_over does instead of its work
    "patches the check": f"{PATCH}\nn.compare = lambda *a, **k: None\nreturn s",
    "patches it and undoes it": f"""
        {PATCH}
        real = n.compare
        def fake(*a, **k): n.compare = real
        n.compare = fake
        return s""",
    "changes the check's code": f"{PATCH}\nn.compare.__code__ = (lambda *a, **k: None).__code__\nreturn s",
    "changes the check's defaults": f"{PATCH}\nn.compare.__defaults__ = ((), None, 1e9, 1e9)\nreturn s",
    "patches what a check keeps": """
        from ldm_mini import checks
        for cell in checks.alpha_over.__closure__:
            cell.cell_contents = lambda *a, **k: None
        return s""",
    "patches torch": "import torch\nt = torch\nt.allclose = lambda *a, **k: True\nreturn s",
    "patches by a computed name": "import torch\nsetattr(torch, 'all' + 'close', lambda *a, **k: True)\nreturn s",
    "returns what equals all": """
        import torch
        class Yes(torch.Tensor):
            @classmethod
            def __torch_function__(cls, function, kinds, a=(), k=None):
                return True if "close" in function.__name__ else super().__torch_function__(function, kinds, a, k)
        return s.as_subclass(Yes)""",
    "reaches frames": """
        try:
            raise ValueError
        except ValueError as error:
            frame = error.__traceback__.tb_frame
            while frame := frame.f_back:
                if "compare" in frame.f_globals:
                    frame.f_globals["compare"] = lambda *a, **k: None
        return s""",
    "prints the result": "print('✓ alpha_over')\nreturn s",
    "forges the result": """
        import os
        for fd in range(3, 99):
            try: os.write(fd, b'{"passed": true, "note": ""}')
            except OSError: pass
        os._exit(0)""",
    "exits": "raise SystemExit(0)",
    "exits at once": "import os\nos._exit(0)",
    "kills its group": "import os\nos.killpg(0, 9)",
    "starts processes": "import os\nwhile True: os.fork()",
    "writes": "open('SPOT', 'w').write('x')\nreturn s",
    "deletes": "import os\nos.remove('SPOT')\nreturn s",
    "saves": "import torch\ntorch.save(s, 'SPOT')\nreturn s",
    "saves by numpy": "s.numpy().tofile('SPOT')\nreturn s",
    "equals all, by a metaclass": """
        import torch, abc
        return abc.ABCMeta("Yes", (), {"__class__": torch.Tensor, "__torch_function__": classmethod(
            lambda *a: True), "shape": s.shape, "dtype": s.dtype, "is_floating_point": lambda self: True, "detach":
            lambda self: self, "double": lambda self: self})()""",
    "equals all, by a torch that is its own": """
        import torch as t
        t.utils.set_module(t, "submission")
        real = t.allclose
        def fake(*a, **k):
            t.allclose = real
            return True
        t.allclose = fake
        return s""",
    "prints without end": "while True: print('x' * 10**6)",
    "eats memory": "import torch\nreturn torch.ones(10**10)",
}


def attack(path, name):
    """A submission whose alpha_over attacks, beside a file that everybody may write; that file."""
    path.chmod(0o777)
    spot = path / "precious"
    spot.write_text("precious")
    spot.chmod(0o666)
    body = textwrap.indent(textwrap.dedent(ATTACKS[name]).replace("SPOT", str(spot)), "    ")
    return hand_in(path / "s", notebook(answers={"alpha_over": f"def alpha_over(s, a, c):\n{body}"})), spot


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_is_worth_nothing_and_spares_the_rest(tmp_path, name):
    path, spot = attack(tmp_path, name)
    assert scores(path) == {**FULL, "alpha_over": 0}
    assert spot.read_text() == "precious"


@pytest.mark.parametrize("name", [name for name in ATTACKS if "undoes" not in name and "equals" not in name])
def test_the_gate_is_not_all_there_is(tmp_path, monkeypatch, name):
    """Without it, all but the subtlest attacks still gain nothing and harm nothing."""
    monkeypatch.setattr(judging, "gated", lambda tree: tree)
    monkeypatch.setattr(judging, "given_builtins", lambda name: vars(builtins))
    path, spot = attack(tmp_path, name)
    assert scores(path) == {**FULL, "alpha_over": 0}
    assert spot.read_text() == "precious"


def test_a_patch_gains_nothing_in_a_later_exercise(tmp_path, monkeypatch):
    """One exercise disarms the check of another one, which is wrong; a third puts all back before the end."""
    monkeypatch.setattr(judging, "gated", lambda tree: tree)
    monkeypatch.setattr(judging, "given_builtins", lambda name: vars(builtins))
    right = {task.name: task.solution for task in exercises(DATA)}
    first, second, third = (name for name in FULL if name in ("alpha_over", "box_iou", "inpainting_input"))
    disarm = (f"\n    {PATCH}\n    n.kept = getattr(n, 'kept', n.compare)\n    n.compare = lambda *a, **k: None\n")
    mend = f"\n    {PATCH}\n    n.compare = getattr(n, 'kept', n.compare)\n"
    body = {name: re.sub(r"(def .*:\n)", lambda found, word=word: found[1].rstrip() + word, right[name], count=1)
            for name, word in ((first, disarm), (third, mend))}
    wrong = f"def {second}(*inputs):\n    return inputs[0]"
    found = scores(hand_in(tmp_path, notebook(answers={**body, second: wrong})))
    assert found[first] == found[second] == 0 and found[third] == FULL[third]


def test_what_nests_too_deeply_costs_one_exercise(tmp_path):
    deep = "def alpha_over(s, a, c):\n    return s" + " + 1" * 2000
    assert scores(hand_in(tmp_path, notebook(answers={"alpha_over": deep}))) == {**FULL, "alpha_over": 0}


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("[0-9]*.ipynb")), ids=lambda path: path.stem)
def test_the_courses_solutions_earn_all_points(tmp_path, path):
    tasks = judging.tasks_of(path)
    assert scores(hand_in(tmp_path, notebook(path)), tasks) == {task.name: task.points for task in tasks}


def test_a_check_may_give_a_part_of_the_points(tmp_path, monkeypatch):
    real = judging.checks.box_iou
    monkeypatch.setattr(judging.checks, "box_iou", lambda function: [real(function), 1][1])
    tasks = [dataclasses.replace(task, points=3) if task.name == "box_iou" else task for task in TASKS]
    assert scores(hand_in(tmp_path, notebook()), tasks) == {**FULL, "box_iou": 1}


def test_a_loop_for_ever_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(judging, "CPU_S", 1)
    path = hand_in(tmp_path, notebook(answers={"alpha_over": "def alpha_over(s, a, c):\n    while True: pass"}))
    assert scores(path) == {**FULL, "alpha_over": 0}


def test_one_mistake_costs_one_exercise(tmp_path):
    """MyVQ calls nearest_code, straight_through and vq_loss; a wrong one of them is not charged twice."""
    wrong = "def vq_loss(z, e, commitment_weight):\n    return (z - e).square().mean()"
    verdicts = {v.exercise: v for v in grade_notebook(hand_in(tmp_path, notebook(VQ, answers={"vq_loss": wrong})),
                                                      judging.tasks_of(VQ))}
    assert [name for name, v in verdicts.items() if v.score < v.max_score] == ["vq_loss"]
    assert verdicts["MyVQ"].note == "with the course's version of what it calls"


def test_own_helpers_imports_and_cells_count(tmp_path):
    made = notebook(answers={"box_iou": "raise NotImplementedError"})
    helper = {"cell_type": "code", "metadata": {}, "outputs": [], "source":
              "import torch as th\nEDGE = 0\n"
              "def area(b):\n    return (b[..., 2:] - b[..., :2]).clamp(min=EDGE).prod(-1)"}
    mine = {**helper, "source": "%matplotlib inline\ndef box_iou(a, b):\n"
            "    low, high = th.maximum(a[:, None, :2], b[None, :, :2]), th.minimum(a[:, None, 2:], b[None, :, 2:])\n"
            "    shared = area(th.cat([low, high], -1))\n"
            "    return shared / (area(a)[:, None] + area(b) - shared)\nprint(box_iou)"}
    made["cells"] += [mine, helper]
    assert scores(hand_in(tmp_path, made)) == FULL


def test_the_table_has_nbgraders_columns_and_a_row_for_what_is_missing(tmp_path):
    hand_in(tmp_path / "in" / "ann" / DATA.stem, notebook())
    renamed = hand_in(tmp_path / "in" / "ben" / "01_data", notebook(write=without_solution))
    renamed.rename(renamed.with_name("final (2).ipynb"))
    (tmp_path / "in" / "cy").mkdir()
    for link, work in ((f"cy/{DATA.stem}", f"ann/{DATA.stem}"), ("dan", "ann")):  # not their own
        (tmp_path / "in" / link).symlink_to(tmp_path / "in" / work)
    said = []
    grade(tmp_path / "in", tmp_path / "grades.csv", say=said.append)
    rows = list(csv.DictReader(open(tmp_path / "grades.csv", encoding="utf-8")))
    most = str(sum(FULL.values()))
    assert list(rows[0]) == ["student_id", "assignment", "score", "max_score"]
    found = {(row["student_id"], row["assignment"]): (row["score"], row["max_score"]) for row in rows}
    assert found["ann", DATA.stem] == (most, most) and found["ben", "01_data"] == ("0", most)
    assert found["cy", DATA.stem] == ("0", most) and not [row for row in rows if row["student_id"] == "dan"]
    notes = list(csv.DictReader(open(tmp_path / "grades-exercises.csv", encoding="utf-8")))
    assert {row["note"] for row in notes if row["student_id"] == "cy"} == {"nothing handed in"}
    assert "still the stub" in next(row["note"] for row in notes if row["student_id"] == "ben")
    with pytest.raises(FileError, match="holds no submission"):
        grade(tmp_path / "in" / "cy", tmp_path / "grades.csv")
    for table in (tmp_path / "grades.csv" / "x.csv", tmp_path):  # told before anything is graded
        with pytest.raises(FileError, match="cannot be written|is a folder"):
            grade(tmp_path / "in", table, say=pytest.fail)


def test_the_gate_lets_every_solution_of_the_course_pass():
    for path in sorted(NOTEBOOKS.glob("[0-9]*.ipynb")):
        for task in exercises(path):
            gate.gated(judging.parse(task.solution))


@pytest.mark.parametrize("code", [
    "x.__class__", "x.__dict__", "torch._C", "torch.library", "[].__class__.__base__.__subclasses__()", "f.__globals__",
    "import torch._C", "from torch import library", "from torch import os as o", "import gc", "from . import x",
    "class A(metaclass=B): pass", "def __eq__(a, b): pass", "x.gi_frame", "__builtins__", "global __builtins__",
    "from ldm_mini import checks", "match x:\n    case A(): pass", "lambda __class__: 1", "f(__globals__=1)",
    "import string", "typing.get_type_hints(f)", "re.enum.EnumType", "functools.singledispatch(f)",
    "np.testing.measure", "torch.utils.set_module(torch, '')", "copy.copyreg", "np.lib.format.read_array(f)",
    "import math as __import__", "_settable = 1", "torch.load(1)", "x.ctypes", "LatentDiffusion.from_pretrained(1)",
    "from ldm_mini.training import load_or_train", "training.launch.load_autoencoder(1)",
    "from ldm_mini.files import load_safetensors", "from ldm_mini.released import read_weights"])
def test_the_gate_refuses(code):
    with pytest.raises(gate.Refused):
        gate.gated(judging.ast.parse(code))


@pytest.mark.parametrize("code", [
    "type(int)", "type(type(3))('X', (), {})", "getattr(3, '__cla' + 'ss__')", "torch.x = 1", "t = torch; t.x = 1",
    "nn.Module.forward = 1", "setattr(nn.Linear, 'forward', 1)", "del torch.nn", "torch.nn.functional.x: int = 1",
    "for torch.x in [1]: pass", "def f(self): self._C\nf(torch)", "open('x')", "eval('1')", "vars(torch)",
    "import os", "import ldm_mini.teaching", "'{0.shape}'.format(torch)", "str.format('{0.x}', 1)",
    "'{:{0.x}}'.format(1)", "getattr('{0[x]}', 'for' + 'mat')(1)"])
def test_what_a_reader_cannot_see_is_refused_when_it_runs(code):
    import torch

    with pytest.raises((gate.Refused, NameError, ImportError)):
        tree = gate.gated(judging.ast.parse(code))
        exec(compile(tree, "x", "exec"), {"torch": torch, "nn": torch.nn, "__name__": "submission",
                                          "__builtins__": gate.given_builtins("submission")})
    assert not hasattr(torch, "x")


def test_own_things_may_be_changed():
    import torch

    space = {"torch": torch, "__name__": "submission", "__builtins__": gate.given_builtins("submission")}
    code = ("class A:\n    kind = 1\n    def __init__(self): self._x, self.code = 1, 2\nA.kind = A()._x if 0 else 3\n"
            "net = torch.nn.Linear(1, 1)\nnet.bias = None\nnet.weight.requires_grad = False\n"
            "def f(): pass\nf.calls = 1\nsetattr(A, 'more', getattr(net, 'bias'))")
    with pytest.raises(gate.Refused):
        gate.gated(judging.ast.parse(code))  # A()._x: not by self
    exec(compile(gate.gated(judging.ast.parse(code.replace("A()._x if 0 else ", ""))), "x", "exec"), space)
    assert space["A"].kind == 3 and space["f"].calls == 1


def test_a_process_apart_tells_its_end():
    assert sandbox.run_apart(lambda: {"a": [1]}, 20) == {"a": [1]}
    with pytest.raises(sandbox.Died, match="took too long"):
        sandbox.run_apart(lambda: __import__("time").sleep(60), 0.2)
    with pytest.raises(sandbox.Died, match="without a result"):
        sandbox.run_apart(lambda: os._exit(0), 20)
    with pytest.raises(sandbox.Died, match="SIGKILL"):
        sandbox.run_apart(lambda: os.kill(os.getpid(), 9), 20)
    # who writes to the pipe does not know the word that makes it a result
    with pytest.raises(sandbox.Died):
        sandbox.run_apart(lambda: [os.write(fd, b'{"passed": true}') for fd in open_files()] and os._exit(0), 20)


def open_files():
    """File descriptors above the standard ones."""
    found = []
    for fd in range(3, 200):
        try:
            os.fstat(fd)
            found.append(fd)
        except OSError:
            pass
    return found


def test_a_process_apart_has_no_file_but_its_pipe():
    with open(__file__) as file:
        assert file.fileno() in open_files()
        assert len(sandbox.run_apart(open_files, 20)) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="Landlock is Linux's")
def test_nothing_is_written_even_without_python(tmp_path):
    """A C library opens the file: only the system can refuse."""
    spot = tmp_path / "precious"
    spot.write_text("precious")
    for path in (tmp_path, spot):
        path.chmod(0o777)

    def attack():
        import numpy as np

        try:
            np.zeros(4).tofile(str(spot))
            return "written"
        except OSError as error:
            return type(error).__name__

    assert sandbox.run_apart(attack, 20, prepare=lambda: sandbox.leave_privileges("/")) == "PermissionError"
    assert spot.read_text() == "precious"


def test_the_course_for_nbgrader(tmp_path):
    assert teach(tmp_path, ["01", "03"]) and len(list(tmp_path.glob("*/*/*.ipynb"))) == 4
    for path in (DATA, VQ):
        course, made, given = (read_notebook(p) for p in (path, tmp_path / "source" / path.stem / path.name,
                                                          tmp_path / "release" / path.stem / path.name))
        ids = [[cell["id"] for cell in notebook["cells"]] for notebook in (course, made, given)]
        assert ids[0] == ids[1] == ids[2]
        marks = [cell["metadata"]["nbgrader"] for cell in made["cells"] if "nbgrader" in cell["metadata"]]
        assert sum(mark.get("points", 0) for mark in marks) == sum(max(task.stars, 1) for task in exercises(path))
        assert all(mark["grade"] == mark["locked"] == ("points" in mark) for mark in marks)
        text = (tmp_path / "release" / path.stem / path.name).read_text(encoding="utf-8")
        assert "SOLUTION" not in text and "HIDDEN" not in text and "NotImplementedError" in text
    plan = (tmp_path / "PLAN.md").read_text(encoding="utf-8")
    assert "| 2 | 03 · VQ-VAE: pictures written in a few hundred words | 55 min |" in plan
    assert "| 12: 105 min, and an open one of 40 min |" in plan
    with pytest.raises(FileError, match="there is no notebook '99'"):
        teach(tmp_path, ["99"])


@pytest.mark.parametrize("path", graded_notebooks().values(), ids=lambda path: path.stem)
def test_the_notebooks_themselves_carry_nbgraders_marks(path):
    """Where not: `python data/build/nbgrader_marks.py`."""
    notebook = read_notebook(path)
    assert marked(notebook, exercises(path)) == notebook


def test_the_page_on_reuse_runs():
    page = (ROOT / "ldm_mini/teaching/reuse.md").read_text(encoding="utf-8")
    code = "\n".join(re.findall(r"```python\n(.*?)```", page, re.S))
    space = {"__name__": "page"}
    exec(compile(code, "reuse.md", "exec"), space)
    assert space["images"].ndim == 4 and space["mine"].net.told.weight.grad.abs().sum() > 0
