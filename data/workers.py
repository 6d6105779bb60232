"""The processes that load data: how they start, deliver and end, and one line about the one that cannot.

PyTorch prints a traceback and waits for ever where a batch gets lost between a worker and its queue, and raises in the
middle of anything where a worker dies.
"""

import atexit
import errno
import io
import multiprocessing
import os
import re
import shutil
import signal
import sys
import threading
import traceback
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from multiprocessing.queues import Queue
from multiprocessing.util import Finalize

import torch
from torch.utils.data import DataLoader
from torch.utils.data.dataloader import _BaseDataLoaderIter

from utils import SIGNALS, UserError

SHARED_MEMORY = "/dev/shm"
FEWER = "use fewer workers, or none: --num_workers 0"
GRACE = 2.0  # seconds for a worker to end by itself

# What runs out, by the number of the error, and how to have more of it.
WAYS_OUT = {
    errno.ENOSPC: "enlarge shared memory (of a container: docker run --shm-size=8g)",
    errno.EMFILE: "allow more open files (ulimit -n 65535)",
    errno.EAGAIN: "allow more processes (ulimit -u)",
}

_at_work = weakref.WeakSet()  # passes over loaders whose workers are alive


class WorkerFault(UserError):
    """A worker cannot start, deliver or live."""


def begin(worker: int) -> None:
    """What a worker does first.

    It goes on when a terminal or SLURM signals everyone: its process saves first, and then ends it.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    Queue._on_queue_feeder_error = _deliver_the_error
    sys.excepthook = _leave  # of the thread that hands open files over
    Finalize(None, _be_silent, exitpriority=1)


def _be_silent() -> None:
    """Says nothing of what cannot be tidied up at a worker's end, for want of open files: its process says it."""
    sys.stderr = io.StringIO()


def _deliver_the_error(queue: Queue, error: Exception, numbered: tuple[int, object]) -> None:
    """Puts what went wrong in the place of a batch that could not be handed over."""
    number, batch = numbered
    tensors = batch.values() if isinstance(batch, dict) else ()
    size = sum(tensor.nbytes for tensor in tensors if isinstance(tensor, torch.Tensor))
    queue.put((number, WorkerFault(f"a worker cannot deliver a batch of {size / 2**20:.0f} MiB: {reason(error)}")))


def _leave(kind: type, error: BaseException, trace: object) -> None:
    """Ends a worker that can no longer hand anything over; what it lacks is its exit status."""
    os._exit(getattr(error, "errno", None) or 1)


def batches_of(loader: DataLoader, make: Callable[[], Iterator]) -> Iterator:
    """The pass over a loader that `make` begins, its workers started, watched, and ended with it or at exit.

    Raises:
        UserError: the data set met one.
        WorkerFault: a worker cannot start, deliver or live.
    """
    if not loader.num_workers:
        yield from map(_fine, make())
        return
    batches, others = None, set(multiprocessing.active_children())
    try:
        with _blaming_all(), _deferred_signals():
            batches = make()
        _at_work.add(batches)
        atexit.unregister(_end_all)
        atexit.register(_end_all)  # anew: what is registered last comes first
        while True:
            with _blaming_all():
                batch = next(batches, None)
            if batch is None:
                return
            yield _fine(batch)
    except GeneratorExit:  # some batches were enough
        raise
    except BaseException as error:
        loader._iterator = None
        if batches is None:
            _disown(error)
            _end([], set(multiprocessing.active_children()) - others)
        else:
            _end([batches])
        raise


def _disown(error: BaseException) -> None:
    """Keeps a pass that was not made to its end from ending itself: it would trip over what it lacks, and say so."""
    while error is not None:
        for frame, _ in traceback.walk_tb(error.__traceback__):
            if isinstance(unmade := frame.f_locals.get("self"), _BaseDataLoaderIter):
                unmade._shutdown = True
        error = error.__cause__


def _fine(batch: object) -> object:
    """The batch, unless it is an error: then that is raised."""
    if isinstance(batch, UserError):
        raise batch
    return batch


@contextmanager
def supervised() -> Iterator[None]:
    """Within, a `WorkerFault` is raised at any moment that a worker dies; no worker that begins within outlives it."""
    before = set(_at_work)
    try:
        yield
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):
            raise
        raise (_death() or WorkerFault(str(error))) from error
    finally:
        _end(set(_at_work) - before)


@contextmanager
def _blaming_all() -> Iterator[None]:
    """Turns whatever goes wrong between workers and their process into a `WorkerFault`.

    What a data set raises in a worker arrives as "Caught ... in DataLoader worker" and passes.
    """
    try:
        yield
    except (OSError, RuntimeError, EOFError) as error:
        if str(error).startswith("Caught "):
            raise
        raise (_death() or WorkerFault(f"no batch comes from the workers: {reason(error)}")) from error


def _death() -> WorkerFault | None:
    """How a worker ended that should not have, if one did."""
    dead = [worker.exitcode for worker in _workers(_at_work) if worker.exitcode]
    if not dead:
        return None
    if dead[0] in WAYS_OUT:
        return WorkerFault(f"a worker cannot deliver a batch: {reason(OSError(dead[0], ''))}")
    if dead[0] > 0:
        return WorkerFault(f"a process that loads data ended with status {dead[0]}; {FEWER}")
    likely = {
        signal.SIGKILL: ": most likely the machine's memory ran out",
        signal.SIGBUS: f": most likely shared memory is too small, {WAYS_OUT[errno.ENOSPC]}",
    }
    how = f"{signal.Signals(-dead[0]).name}{likely.get(-dead[0], '')}"
    return WorkerFault(f"a process that loads data was killed by {how}; {FEWER}")


def reason(error: Exception) -> str:
    """Why a worker cannot start or deliver, and the way out."""
    number = getattr(error, "errno", None) or int((re.findall(r"\((\d+)\)$", str(error)) or ["0"])[0])
    if "open files" in str(error) or "ancdata" in str(error):  # files on their way from one process to another
        number = errno.EMFILE
    lacks = [os.strerror(number) if number else " ".join(str(error).split())]
    if number == errno.ENOSPC and os.path.isdir(SHARED_MEMORY):
        lacks.append(f"{SHARED_MEMORY} holds {shutil.disk_usage(SHARED_MEMORY).total / 2**20:.0f} MiB")
    ways_out = [WAYS_OUT[number]] if number in WAYS_OUT else []
    return f"{', '.join(lacks)}; {', or '.join([*ways_out, FEWER])}"


@contextmanager
def _deferred_signals() -> Iterator[None]:
    """Answers signals after a block only, so that none is answered by a process that it has just forked."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came = []
    handlers = {number: signal.signal(number, lambda number, frame: came.append(number)) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for number in came:
            signal.raise_signal(number)


def _workers(passes: Iterable[Iterator]) -> Iterator[multiprocessing.Process]:
    for batches in list(passes):
        yield from batches._workers


def _end(passes: Iterable[Iterator], others: Iterable[multiprocessing.Process] = ()) -> None:
    """Ends workers: they are asked to leave, and killed if they do not.

    Left to PyTorch they would be asked by a signal, which they ignore, and waited for.
    """
    passes = list(passes)
    processes = [*_workers(passes), *others]
    if not processes:
        return
    told = hasattr(signal, "SIGCHLD") and threading.current_thread() is threading.main_thread()  # not on Windows
    handler = signal.signal(signal.SIGCHLD, signal.SIG_DFL) if told else None  # it would raise over who is killed
    killer = threading.Timer(GRACE, lambda: [process.kill() for process in processes])
    killer.start()
    for process in others:
        process.kill()
    for batches in passes:
        batches._shutdown_workers()
    for process in processes:
        process.join()
    killer.cancel()
    _at_work.difference_update(passes)
    if handler is not None:
        signal.signal(signal.SIGCHLD, handler)


def _end_all() -> None:
    _end(_at_work)
