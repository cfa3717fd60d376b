"""The bootstrap script: what it decides, without installing anything."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import course

SCRIPT = Path(course.__file__)


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A made-up clone, and a record of the processes that would have been started instead of started ones."""
    for name in ("pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_text(name)
    monkeypatch.setattr(course, "ROOT", tmp_path)
    monkeypatch.setattr(course, "VENV", tmp_path / ".venv")
    calls, fails = [], []

    def call(words, **options):
        calls.append(words)
        if words[1:3] == ["-m", "venv"]:
            python = course.venv_python()
            python.parent.mkdir(parents=True)
            python.touch()
        if words[1:] == ["-c", "import pip"]:
            return 0 if Path(words[0]).exists() else 1
        return int(any(fail in words for fail in fails))

    monkeypatch.setattr(course.subprocess, "call", call)
    monkeypatch.setattr(course, "start", lambda words, folder: calls.append((words, folder)) or 7)
    return calls, fails


def having(calls, word):
    """The calls with this word among theirs."""
    return [words for words in calls if isinstance(words, list) and word in words]


def test_needs_only_the_standard_library_and_parses_on_old_pythons():
    """An old Python must get as far as saying that it is too old."""
    nodes = list(ast.walk(ast.parse(SCRIPT.read_text(encoding="utf-8"), feature_version=(3, 7))))
    modules = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    modules |= {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
    assert {name.split(".")[0] for name in modules} <= set(sys.stdlib_module_names)


@pytest.mark.parametrize("version", [(3, 6), (3, 9), (2, 7)])
def test_old_python_is_refused_by_name(version):
    with pytest.raises(course.Problem, match=rf"Python {version[0]}\.{version[1]}, and the course needs Python 3\.10"):
        course.check_python(version)


def test_tested_pythons_pass_and_newer_ones_are_warned_about():
    assert [course.check_python((3, minor)) for minor in range(10, 14)] == [None] * 4
    assert "Python 3.14 is newer than the tested ones (3.10 to 3.13)" in course.check_python((3, 14))
    with pytest.raises(course.Problem, match="64"):
        course.check_python((3, 11), bits64=False)


def test_missing_ensurepip_names_the_debian_package(monkeypatch):
    monkeypatch.setattr(course.importlib.util, "find_spec", lambda name: None if name == "ensurepip" else name)
    with pytest.raises(course.Problem, match=r"apt install python3\.\d+-venv"):
        course.check_venv_module()


@pytest.mark.parametrize("words, expected", [
    ([], ("help", None, [])),
    (["--help"], ("help", None, [])),
    (["lab", "--help"], ("help", None, [])),
    (["teach", "--help"], ("teach", None, ["--help"])),
    (["lab"], ("lab", None, [])),
    (["lab", "--cpu", "--no-browser"], ("lab", "cpu", ["--no-browser"])),
    (["test", "--torch", "cu130", "-k", "unet"], ("test", "cu130", ["-k", "unet"])),
    (["test", "-k", "unet", "--cpu"], ("test", None, ["-k", "unet", "--cpu"])),  # pytest's
    (["run", "sample", "a red apple", "--out", "a.png"], ("run", None, ["sample", "a red apple", "--out", "a.png"]))])
def test_words_are_understood_or_passed_on(words, expected):
    assert course.parse(words) == expected


@pytest.mark.parametrize("words, message", [
    (["lba"], "no command 'lba'.*lab, edition, test, run, teach, grade, site, setup"),
    (["lab", "--torch"], "--torch cpu"),
    (["edition"], "name of a folder"), (["edition", "a", "b"], "name of a folder")])
def test_wrong_words_are_explained(words, message):
    with pytest.raises(course.Problem, match=message):
        course.parse(words)


def test_python_of_the_environment_on_both_kinds_of_system():
    assert course.venv_python(windows=False) == SCRIPT.parent / ".venv" / "bin" / "python"
    assert course.venv_python(windows=True) == SCRIPT.parent / ".venv" / "Scripts" / "python.exe"


def test_fingerprint_follows_files_and_folder(tmp_path, monkeypatch):
    prints = set()
    for folder, pyproject, constraints in [("a", "1", "1"), ("a", "2", "1"), ("a", "1", "2"), ("b", "1", "1")]:
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / "pyproject.toml").write_text(pyproject)
        (tmp_path / folder / "constraints.txt").write_text(constraints)
        monkeypatch.setattr(course, "ROOT", tmp_path / folder)
        assert course.fingerprint() == course.fingerprint()
        prints.add(course.fingerprint())
    assert len(prints) == 4


@pytest.mark.parametrize("content", ["", "{", "[1]", "null", None])
def test_damaged_stamp_counts_as_none(clone, content):
    course.VENV.mkdir()
    if content is not None:
        (course.VENV / "course.json").write_text(content)
    assert course.read_stamp() == {}


def test_first_run_installs_and_second_starts_at_once(clone):
    calls, _ = clone
    assert course.main(["test", "-k", "unet"]) == 7  # the exit status of what was started
    python = str(course.venv_python())
    install, = having(calls, "--editable")
    assert install[:4] == [python, "-m", "pip", "install"]
    assert install[-4:] == ["--editable", ".[course,test]", "--constraint", "constraints.txt"]
    assert calls[-1] == ([python, "-m", "pytest", "--nbval", *course.SIDE_BY_SIDE, "-k", "unet"], course.ROOT)
    calls.clear()
    course.main(["lab", "--no-browser"])
    edition, (words, folder) = calls  # nothing else was started
    assert edition == [python, "-m", "ldm_mini.editions", "learner", course.MINE]
    assert words[:3] == [python, "-m", "jupyterlab"] and words[-1] == "--no-browser" and folder == course.ROOT
    assert any(word.endswith(course.START) for word in words)
    assert ("--allow-root" in words) == (hasattr(os, "geteuid") and os.geteuid() == 0)


def test_lab_opens_without_the_learners_copy_if_it_cannot_be_made(clone, capsys):
    calls, fails = clone
    fails.append("learner")
    assert course.main(["lab"]) == 7
    assert any(word.endswith(course.FIRST_NOTEBOOK) for word in calls[-1][0])
    assert "opening the notebooks with solutions" in capsys.readouterr().out


def test_edition_is_made_where_the_user_stands(clone):
    calls, _ = clone
    course.main(["edition", "there"])
    assert calls[-1] == ([str(course.venv_python()), "-m", "ldm_mini.editions", "learner", "there"], None)


def test_site_installs_what_it_needs_once_and_is_made_where_the_user_stands(clone):
    calls, fails = clone
    fails.append("import sphinx_book_theme, myst_nb")
    assert course.main(["site", "there"]) == 7
    assert [words[-3] for words in having(calls, "--editable")] == [".[course,test]", ".[site]"]
    words, folder = calls[-1]
    assert Path(words[1]).parts[-3:] == ("data", "build", "site") and words[2:] == ["there"] and folder is None
    fails.clear()
    calls.clear()
    assert course.main(["site"]) == 7 and having(calls, "--editable") == []


def test_site_says_why_it_cannot_be_made(clone, capsys):
    _, fails = clone
    fails += ["import sphinx_book_theme, myst_nb", ".[site]"]
    assert course.main(["site"]) == 1
    assert "Python 3.11" in capsys.readouterr().out


def test_changed_pins_install_again_without_a_new_environment(clone):
    calls, _ = clone
    course.main(["setup"])
    (course.ROOT / "constraints.txt").write_text("other")
    calls.clear()
    assert course.main(["setup"]) == 0
    assert len(having(calls, "--editable")) == 1 and not having(calls, "venv")


def test_failed_install_is_told_and_done_again(clone, capsys):
    calls, fails = clone
    fails.append("--editable")
    assert course.main(["lab"]) == 1
    assert "Give the same command again" in " ".join(capsys.readouterr().out.split())
    assert course.read_stamp() == {} and not [c for c in calls if isinstance(c, tuple)]  # JupyterLab was not started
    fails.clear()
    assert course.main(["lab"]) == 7
    assert len(having(calls, "--editable")) == 2


def test_interrupted_update_is_not_taken_for_finished(clone):
    calls, fails = clone
    course.main(["setup"])
    (course.ROOT / "pyproject.toml").write_text("other")
    fails.append("--editable")
    course.main(["setup"])
    (course.ROOT / "pyproject.toml").write_text("pyproject.toml")  # back: but half of the other one may be installed
    fails.clear()
    calls.clear()
    course.main(["setup"])
    assert len(having(calls, "--editable")) == 1


def test_cpu_build_comes_first_and_is_remembered(clone):
    calls, _ = clone
    course.main(["setup", "--cpu"])
    (torch,), (rest,) = having(calls, "--torch-backend"), having(calls, "--editable")
    assert torch[torch.index("--torch-backend") + 1] == "cpu" and calls.index(torch) < calls.index(rest)
    calls.clear()
    course.main(["test"])  # no option: keeps the build that is there
    assert len(calls) == 1
    (course.ROOT / "constraints.txt").write_text("other")
    calls.clear()
    course.main(["test"])
    assert len(having(calls, "--torch-backend")) == 1


@pytest.mark.parametrize("broken", ["uv", "--torch-backend"])
def test_cpu_build_falls_back_to_the_usual_one(clone, capsys, broken):
    calls, fails = clone
    fails.append(broken)
    assert course.main(["setup", "--cpu"]) == 0
    assert "taking the usual one" in capsys.readouterr().out and len(having(calls, "--editable")) == 1


def test_run_stays_in_the_folder_of_the_user(clone):
    calls, _ = clone
    words = ["sample", "a red apple", "--out", "grid.png"]
    course.main(["run", *words])
    assert calls[-1] == ([str(course.venv_python()), "-m", "ldm_mini", *words], None)


@pytest.mark.skipif(os.name == "nt", reason="links to Python exist elsewhere")
def test_broken_environment_is_made_again(tmp_path, monkeypatch):
    """For real: the link leads to a Python that was removed, as after a system upgrade."""
    venv = tmp_path / "with a space"
    (venv / "bin").mkdir(parents=True)
    (venv / "bin" / "python").symlink_to(tmp_path / "gone")
    monkeypatch.setattr(course, "VENV", venv)
    assert not course.works(course.venv_python())
    assert course.works(course.ensure_venv())


@pytest.mark.parametrize("own, expected", [(None, 0), ("7", 1)])
def test_threads_sleep_while_they_wait_unless_the_user_says_otherwise(monkeypatch, own, expected):
    for name in course.CALM_THREADS:
        monkeypatch.delenv(name, raising=False)
    if own:
        monkeypatch.setenv("GOMP_SPINCOUNT", own)
    code = "import os, sys; sys.exit(os.environ['GOMP_SPINCOUNT'] != '20000')"
    assert course.start([sys.executable, "-c", code], None) == expected


def test_exit_status_comes_through(tmp_path):
    code = "import os, sys; sys.exit(len(os.getcwd()))"
    assert course.start([sys.executable, "-c", code], tmp_path) == len(str(tmp_path.resolve())) % 256


@pytest.mark.parametrize("words, status, text", [
    ([], 0, "python course.py lab"), (["nonsense"], 1, "no command 'nonsense'")])
def test_command_line_from_another_folder(tmp_path, words, status, text):
    out = subprocess.run([sys.executable, str(SCRIPT), *words], cwd=tmp_path, capture_output=True, text=True)
    assert (out.returncode, text in out.stdout, out.stderr) == (status, True, "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", [["run", "sample", "--help"], ["teach", "-h"], ["grade", "--help"]])
def test_help_installs_nothing(clone, capsys, words):
    calls, _ = clone
    assert course.main(words) == 0 and calls == []
    assert f"course.py {words[0]}" in (told := capsys.readouterr().out) and "course.py setup" in told
    course.main(["setup"])
    calls.clear()
    assert course.main(words) == 7 and len(calls) == 1  # the package's own
