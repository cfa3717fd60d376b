"""Who asks a run to stop, and how it says that it did."""

import signal
import sys
import threading
from contextlib import contextmanager

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


class Stopped(KeyboardInterrupt):
    """A run was asked to stop, and did: its checkpoint is written. `status` is the exit status that says why."""

    def __init__(self, number: int):
        super().__init__("the run was stopped; continue it with --resume")
        self.status = 128 + number


class Requests:
    """Who asks a run to stop: Ctrl-C, SIGTERM, SIGHUP as its terminal closes, or a pipe that nobody reads any more.

    `number` is the first one's signal, None before. A step is never cut in two; a second Ctrl-C interrupts at once.
    """

    def __init__(self):
        self.number = None

    def ask(self, number: int) -> None:
        """Note the first request."""
        self.number = self.number or number

    @contextmanager
    def from_signals(self):
        """Listen to signals inside. Those that are ignored already, as under nohup, stay so."""
        def handle(number, frame):
            self.ask(number)
            signal.signal(signal.SIGINT, signal.default_int_handler)

        main = threading.current_thread() is threading.main_thread()
        before = {number: signal.signal(number, handle) for number in SIGNALS
                  if main and signal.getsignal(number) is not signal.SIG_IGN}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def from_output(self):
        """Inside, what is printed may fail: that is a request, too."""
        before, number = (sys.stdout, sys.stderr), getattr(signal, "SIGPIPE", 13)
        sys.stdout, sys.stderr = (_Output(stream, lambda: self.ask(number)) for stream in before)
        try:
            yield
        finally:
            sys.stdout, sys.stderr = before


class _Output:
    """A stream that tells when nobody reads it any more, in place of an error."""

    def __init__(self, stream, gone):
        self.stream, self.gone = stream, gone

    def __getattr__(self, name):
        return getattr(self.stream, name)

    def write(self, text):
        """As the stream does."""
        return self._try(self.stream.write, text)

    def flush(self):
        """As the stream does."""
        self._try(self.stream.flush)

    def _try(self, function, *arguments):
        try:
            return function(*arguments)
        except OSError:
            self.gone()
            return 0
