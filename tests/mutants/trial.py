"""One mutant against the tests that call what was changed: which those are, and a process of its own to run them in."""

import hashlib
import json
import os
import resource
import shutil
import signal
import sys
import time
from collections import defaultdict
from itertools import accumulate
from pathlib import Path

import pytest
from change import Change

ROOT = Path(__file__).resolve().parents[2]
TESTS = ("tests/paper", "tests/measure", "tests/released", "tests/training/test_state.py")
# CPU-seconds that the tests of a survivor may take, of the module's own file and of others; longer ones are left out
BUDGETS = (12, 5)


class Recorder:
    """A pytest plugin: who calls which function of the package, and how long each test takes.

    What a fixture or the head of a test file calls, every test of that file depends on.
    """

    def __init__(self, package: Path):
        self.package, self.seconds, self.calls, self.shared, self.now = str(package), {}, {}, defaultdict(set), None
        self.known = {}

    def trace(self, frame, event, arg):
        code = frame.f_code
        if code not in self.known:
            inside = code.co_filename.startswith(self.package) and code.co_flags & 1    # 1: a function, no class body
            self.known[code] = (code.co_filename[len(self.package) + 1:], code.co_firstlineno) if inside else None
        if self.known[code]:
            self.now.add(self.known[code])

    def watch(self, into: set):
        self.now = into
        sys.settrace(self.trace)
        start = time.process_time()
        result = yield
        sys.settrace(None)
        self.last = time.process_time() - start
        return result

    @pytest.hookimpl(wrapper=True)
    def pytest_make_collect_report(self, collector):
        return (yield from self.watch(self.shared[collector.nodeid.split("::")[0]]))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_setup(self, item):
        result = yield from self.watch(self.shared[item.nodeid.split("::")[0]])
        self.seconds[item.nodeid] = self.last
        return result

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item):
        result = yield from self.watch(self.calls.setdefault(item.nodeid, set()))
        self.seconds[item.nodeid] += self.last
        return result

    def report(self) -> dict:
        return {test: {"seconds": round(self.seconds[test], 3),
                       "calls": sorted(calls | self.shared[test.split("::")[0]])} for test, calls in self.calls.items()}


class Chosen:
    """A pytest plugin: only the `wanted` tests, in that order, and which of them failed first."""

    def __init__(self, wanted: list[str]):
        self.order, self.failed = {test: i for i, test in enumerate(wanted)}, None

    def pytest_collection_modifyitems(self, items):
        items[:] = sorted((i for i in items if i.nodeid in self.order), key=lambda item: self.order[item.nodeid])

    def pytest_runtest_logreport(self, report):
        if report.failed:
            self.failed = self.failed or report.nodeid


def in_a_child(work, copy: Path, cpu_seconds: float) -> tuple[dict | None, float]:
    """What `work()` returns (None: it died), computed in a fork that stands in the copy; and its CPU-seconds."""
    answer = copy / "answer.json"
    answer.unlink(missing_ok=True)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    child = os.fork()
    if child == 0:
        try:
            os.setsid()
            os.chdir(copy)
            resource.setrlimit(resource.RLIMIT_CPU, (int(cpu_seconds) + 1, int(cpu_seconds) + 2))
            out = os.open("output.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(out, 1)
            os.dup2(out, 2)
            answer.write_text(json.dumps(work()))
        finally:
            os._exit(0)
    # a process that sleeps uses no CPU: it may take ten times as long, then it is ended
    deadline = time.monotonic() + 10 * cpu_seconds + 60
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        time.sleep(0.02)
        if time.monotonic() > deadline:
            os.killpg(child, signal.SIGKILL)
            deadline = float("inf")
    now = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime
    return json.loads(answer.read_text()) if answer.exists() else None, seconds


def run_pytest(arguments: list[str], plugin, copy: Path) -> int:
    sys.path[:0] = [str(copy)]
    return int(pytest.main(["-q", "-x", "-p", "no:cacheprovider", "--no-header", *arguments], plugins=[plugin]))


def baseline(copy: Path, kept: Path) -> dict:
    """{test: its CPU-seconds and the functions it calls}, and what the tests import; all of them must pass.

    Kept for each test file until it or the package changes.
    """
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sorted((copy / "ldm_mini").rglob("*.py"))))
    files = [path for name in TESTS
             for path in ([copy / name] if name.endswith(".py") else (copy / name).glob("test_*.py"))]
    keys = {}
    for path in sorted(files):
        own = digest.copy()
        own.update(path.read_bytes())
        keys[str(path.relative_to(copy))] = own.hexdigest()
    known = json.loads(kept.read_text()) if kept.exists() else {}
    new = [name for name, key in keys.items() if key not in known]

    def work():
        recorder = Recorder(copy / "ldm_mini")
        status = run_pytest(new, recorder, copy)
        where = {name: str(getattr(module, "__file__", None)) for name, module in list(sys.modules.items())}
        own = [name for name, file in where.items() if file.startswith(str(copy))] + ["__main__"]
        return {"status": status, "tests": recorder.report(), "imports": [name for name in where if name not in own]}

    if new:
        print(f"running {len(new)} test files once, to see which calls what", flush=True)
        found, seconds = in_a_child(work, copy, 3600)
        if not found or found["status"]:
            sys.exit("the tests fail without any change:\n" + (copy / "output.txt").read_text()[-3000:])
        print(f"{len(found['tests'])} tests pass in {seconds:.0f} CPU-seconds", flush=True)
        for name in new:
            known[keys[name]] = {"imports": found["imports"] if name == new[0] else [], "tests": {
                test: entry for test, entry in found["tests"].items() if test.startswith(f"{name}::")}}
        kept.write_text(json.dumps({key: known[key] for key in keys.values()}))
    parts = [known[key] for key in keys.values()]
    return {"tests": {test: entry for part in parts for test, entry in part["tests"].items()},
            "imports": list(dict.fromkeys(name for part in parts for name in part["imports"]))}


def tests_for(change: Change, tests: dict) -> list[list[str]]:
    """Two lists of tests, quickest first: those of the module's own test file, then the others.

    Outside of all functions stand the module's constants: they concern whoever calls any of its functions.
    """
    calls = lambda call: call[0] == change.file and change.function in (0, call[1])
    chosen = sorted((test["seconds"], name) for name, test in tests.items() if any(map(calls, test["calls"])))
    own, lists = f"/test_{Path(change.file).stem}.py::", []
    # a test of defaults looks at a signature, and calls nothing
    chosen[:0] = [(0, name) for name in tests if change.kind == "default" and "/test_defaults.py::" in name]
    for mine, budget in zip((True, False), BUDGETS, strict=True):
        parts = [(seconds, name) for seconds, name in chosen if (own in name) is mine]
        sums = accumulate(seconds for seconds, _ in parts)
        lists.append([name for (_, name), total in zip(parts, sums, strict=True) if total <= budget])
    return lists


def judge(change: Change, tests: dict, copy: Path) -> dict:
    """{"killed": bool, "by": the first test that failed, or why else, "tests": how many ran at most, "seconds"}"""
    path = copy / "ldm_mini" / change.file
    whole = path.read_bytes()
    total, count = 0.0, 0
    try:
        path.write_bytes(change.apply(whole))
        for wanted in filter(None, tests_for(change, tests)):
            def work(wanted=wanted):
                sys.dont_write_bytecode = True
                plugin = Chosen(wanted)
                status = run_pytest(sorted({test.split("::")[0] for test in wanted}), plugin, copy)
                return {"status": status, "failed": plugin.failed}

            limit = 20 + 4 * sum(tests[test]["seconds"] for test in wanted)
            answer, seconds = in_a_child(work, copy, limit)
            total, count = total + seconds, count + len(wanted)
            if answer is None or answer["status"]:
                by = "no end, or a crash" if answer is None else answer["failed"] or "import"
                return {"killed": True, "by": by, "tests": count, "seconds": round(total, 1)}
    finally:
        path.write_bytes(whole)
    return {"killed": False, "by": None, "tests": count, "seconds": round(total, 1)}


def make_copy(folder: Path) -> Path:
    """What the tests need, the package without its old bytecode."""
    copy = folder / "copy"
    for name in ("ldm_mini", "tests"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("conftest.py", "course.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy2(ROOT / name, copy / name)
    for name in ("data", "notebooks"):
        (copy / name).symlink_to(ROOT / name)
    return copy
