"""A process of its own for code that nobody has read: limits on time and memory, and no way to the machine.

What the system holds, whatever Python does: the limits, and on Linux 5.13 and newer (Landlock) that nothing is written,
removed or sent. Root's processes become nobody's, unless the Python lies where nobody may read it. Elsewhere an audit
hook refuses what Python itself would open, remove, start or signal, and files may have no content; what a C library
does is not seen there.
"""

import ctypes
import json
import os
import secrets
import select
import signal
import sys
import time
from functools import lru_cache
from types import FunctionType

from ..files import FileError

NOBODY = 65534
LONGEST = 1_000_000  # bytes of a result
MANY = 1 << 16  # file descriptors
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
AUDITED = ("ctypes.", "os.chmod", "os.chown", "os.exec", "os.fork", "os.kill", "os.link", "os.mkdir", "os.posix_spawn",
           "os.remove", "os.rename", "os.rmdir", "os.setxattr", "os.spawn", "os.symlink", "os.system",
           "os.truncate", "os.utime", "pty.", "shutil.", "signal.", "socket.", "subprocess.")
CHANGES, MADE_OF = ("object.__setattr__", "object.__delattr__"), ("__code__", "__defaults__", "__kwdefaults__")


class Died(Exception):
    """A process ended without a result; the message says why."""


def run_apart(work, seconds: float, prepare=lambda: None):
    """`work()` in a forked process, after `prepare()`: what it returns, through JSON. Raises Died.

    The process may end itself, print, or fill the pipe: only what follows a word made for this call is a result.
    """
    if not hasattr(os, "fork"):
        raise FileError("grading needs Linux or macOS (on Windows: WSL), where processes can be forked.")
    word, (reading, writing) = secrets.token_hex(16), os.pipe()
    pid = os.fork()
    if pid == 0:
        _child(work, prepare, word.encode(), writing)
    os.close(writing)
    try:
        written, late = _read(reading, time.monotonic() + seconds)
    finally:
        os.close(reading)
        status = _end(pid)
    before, found, result = written.partition(word.encode())
    if found and not late:
        return json.loads(result)
    if late or status == -signal.SIGXCPU:
        raise Died("took too long")
    raise Died("ended without a result" if status >= 0 else f"was ended by {signal.Signals(-status).name}")


def _child(work, prepare, word, writing):
    try:
        os.setsid()
        # what else is open here is not its own
        os.closerange(3, writing)
        os.closerange(writing + 1, MANY)
        prepare()
        result = word + json.dumps(work()).encode()
        while result:
            result = result[os.write(writing, result):]
    finally:
        os._exit(0)


def _read(reading, deadline) -> tuple[bytes, bool]:
    """All that is written to a pipe until it is closed, or too much is, or time is over; and whether it was."""
    written = b""
    while len(written) < LONGEST:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([reading], [], [], left)[0]:
            return written, True
        part = os.read(reading, 1 << 16)
        if not part:
            break
        written += part
    return written, False


def _end(pid) -> int:
    """End a process and all of its group; its status, or minus the signal that ended it."""
    for _ in range(100):  # one that closed its end of the pipe is about to leave by itself
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            break
        time.sleep(0.001)
    try:
        os.killpg(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass
    if not done:
        _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)


def leave_privileges(folder):
    """Make this process one that cannot write, send or be heard, in `folder`, and if root's, nobody's. For good."""
    os.chdir(folder)
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    sys.stdout = sys.stderr = open(1, "w", closefd=False)
    if os.geteuid() == 0 and _read_by_nobody(os.__file__, sys.executable, __file__):
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
    if sys.platform == "linux":
        _landlock()


def _read_by_nobody(*paths) -> bool:
    """Not so for a Python in root's own folders: what it has yet to import could then not be read."""
    os.seteuid(NOBODY)
    try:
        return all(os.access(path, os.R_OK, effective_ids=True) for path in paths)
    finally:
        os.seteuid(0)


def _landlock() -> bool:
    """Forbid this process and its children all writing, TCP, and signals to others. False where the kernel cannot."""
    libc = ctypes.CDLL(None, use_errno=True)
    create, restrict = 444, 446  # the same numbers on every architecture
    abi = libc.syscall(create, None, 0, 1)
    if abi < 1:
        return False
    writes = 1 << 1 | sum(1 << bit for bit in range(4, 13 + (abi >= 2) + (abi >= 3)))
    rules = (ctypes.c_uint64 * 3)(writes, 0b11, 0b11)  # files, TCP (from 4 on), signals and abstract sockets (from 6)
    fd = libc.syscall(create, rules, ctypes.c_size_t(8 if abi < 4 else 16 if abi < 6 else 24), 0)
    no_new_privileges = 38
    done = fd >= 0 and libc.prctl(no_new_privileges, 1, 0, 0, 0) == 0 and libc.syscall(restrict, fd, 0) == 0
    if fd >= 0:
        os.close(fd)
    return done


def limit(cpu_s: int, memory_bytes: int, held=frozenset()):
    """Limits for this process, for good: seconds, memory on top of today's, no files, no further processes.

    The functions in `held` keep their code and their defaults.
    """
    import resource

    limits = {"CPU": cpu_s, "FSIZE": 0, "CORE": 0, "NPROC": 0}
    if sys.platform == "linux":
        with open("/proc/self/statm") as file:
            limits["AS"] = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE") + memory_bytes
    for name, value in limits.items():
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (value, value))
    signal.signal(signal.SIGXCPU, signal.SIG_DFL)
    sys.addaudithook(_audit(held))


@lru_cache(maxsize=1000)
def _leads_out(event) -> bool:
    return event.startswith(AUDITED)


def _audit(held):
    def audit(event, arguments):
        if event in CHANGES and type(arguments[0]) is FunctionType and arguments[0] in held and arguments[1] in MADE_OF:
            raise PermissionError(f"graded code may not change {arguments[0].__name__}")
        if _leads_out(event) or event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITING:
            raise PermissionError(f"graded code may not: {event}")
    return audit
