"""Ctrl-C and SIGTERM: training saves before it leaves, everything else has nothing to save and leaves at once."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(BaseException):
    """A signal asked this process to leave.

    Attributes:
        status: the exit status that says so, 130 for Ctrl-C and 143 for SIGTERM.
    """

    def __init__(self, status: int):
        super().__init__(f"interrupted, status {status}")
        self.status = status


class Interruption:
    """Turns the first signal into `Interrupted`; a launcher may send several, the others are ignored.

    Within `with interruption:` the signals are caught, in the main thread, where Python delivers them.

    Attributes:
        status: the exit status that a signal asked for, 0 if there was none.
    """

    def __init__(self):
        self.status = 0
        self._postponing = False
        self._handlers = {}

    def __enter__(self) -> "Interruption":
        if threading.current_thread() is threading.main_thread():
            self._handlers = {number: signal.signal(number, self._receive) for number in SIGNALS}
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

    def leave(self) -> None:
        """Raises `Interrupted`, also where another process got the signal."""
        raise Interrupted(self.status or 128 + signal.SIGTERM)

    def _receive(self, number: int, frame: object) -> None:
        if self.status:
            return
        self.status = 128 + number
        if not self._postponing:
            self.leave()
