"""Ctrl-C, SIGTERM, a closed terminal: training saves before it leaves, all else has nothing to save and just leaves."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from utils import HANGUP, SIGNALS


class Interrupted(BaseException):
    """A signal asked this process to leave.

    Attributes:
        status: the exit status that says so, 130 for Ctrl-C, 143 for SIGTERM, 129 for SIGHUP.
    """

    def __init__(self, status: int):
        super().__init__(f"interrupted, status {status}")
        self.status = status


ECHO = 1.0  # seconds in which a signal is an echo of the one before: a launcher may send several


class Interruption:
    """Turns the first signal into `Interrupted`, and a later one if that got lost in code that lets nothing through.

    Within `with interruption:` the signals are caught, in the main thread, where Python delivers them; but no
    hangup that is ignored, as under `nohup`.

    Attributes:
        status: the exit status that a signal asked for, 0 if there was none.
    """

    def __init__(self):
        self.status = 0
        self._postponing = False
        self._patience = None
        self._left = 0.0
        self._handlers = {}

    def __enter__(self) -> "Interruption":
        if threading.current_thread() is threading.main_thread():
            ignored = {HANGUP} if HANGUP and signal.getsignal(HANGUP) is signal.SIG_IGN else set()
            self._handlers = {number: signal.signal(number, self._receive) for number in {*SIGNALS} - ignored}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, signal.SIG_IGN if self.status else handler)  # who is leaving is not disturbed

    @contextmanager
    def postponed(self) -> Iterator[None]:
        """Within, a signal only sets `status`; whoever asks for this looks there and calls `leave` after saving."""
        self._postponing = True
        try:
            yield
        finally:
            self._postponing = False
        if self.status:
            self.leave()

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Within, signals end this process without Python, which is not asked while others are waited for in C++."""
        caught = {number: signal.signal(number, signal.SIG_DFL) for number in self._handlers}
        try:
            yield
        finally:
            for number, handler in caught.items():
                signal.signal(number, handler)

    @contextmanager
    def awaiting(self, patience: float) -> Iterator[None]:
        """Within, what is awaited may never come: also where signals are postponed, one ends it after some seconds."""
        self._patience = patience
        if self.status:
            self._give_up_later()
        try:
            yield
        finally:
            self._patience = None
            self._set_alarm(0)

    def leave(self) -> None:
        """Raises `Interrupted`, also where another process got the signal."""
        self._left = time.monotonic()
        raise Interrupted(self.status or 128 + signal.SIGTERM)

    def _receive(self, number: int, frame: object) -> None:
        first = not self.status
        self.status = self.status or 128 + number
        if not self._postponing:
            if first or time.monotonic() > self._left + ECHO:
                self.leave()
        elif first and self._patience is not None:
            self._give_up_later()

    def _give_up_later(self) -> None:
        if self._patience == 0:
            self.leave()
        self._set_alarm(self._patience)

    def _set_alarm(self, seconds: float) -> None:
        """Leaves after some seconds; 0 puts that off. Not on Windows, which has no alarms."""
        if self._handlers and hasattr(signal, "setitimer"):
            signal.signal(signal.SIGALRM, lambda number, frame: self.leave())
            signal.setitimer(signal.ITIMER_REAL, seconds)
