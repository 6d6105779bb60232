"""The output folder of a run: what it holds already, and the lock that keeps a second run out of it."""

import os
import socket
import time
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from madtp.cost.processes import from_main, is_main
from madtp.method.errors import FULL, UserError
from madtp.shared.run_files import BEST, LAST, LOCK, LOG

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None

HANDOVER = 30.0  # seconds that the other processes of a run may need to end when its first one was killed


def left_behind(folder: Path) -> list[str]:
    """What an earlier run left that a new one would replace; a log without an epoch is none."""
    files = [folder / name for name in (LOG, BEST, LAST)]
    return [file.name for file in files if file.exists() and file.stat().st_size]


def run_file(request: str) -> Path:
    """The file that a path given to --resume stands for: of a run's folder the last checkpoint."""
    return Path(request) / LAST if Path(request).is_dir() else Path(request)


def goes_on_here(folder: Path, request: str | None) -> bool:
    """Whether what --resume asks for is a run of this folder."""
    if request == "auto":
        return (folder / LAST).exists()
    return request is not None and run_file(request).resolve().parent == folder.resolve()


def refuse_to_replace(folder: Path, request: str | None, overwrite: bool) -> None:
    """Raises a UserError where a run would replace an earlier one that nobody gave up, or go on with one given up."""
    goes_on, left = goes_on_here(folder, request), left_behind(folder)
    if overwrite and (goes_on or request == "auto"):
        raise UserError(f"--resume goes on with the run in {folder}, --overwrite replaces it; leave one out")
    if overwrite or goes_on or not left:
        return
    resumes = "--resume goes on with it" if LAST in left else f"there is no {LAST} for --resume to go on from"
    replaces = "--overwrite replaces it, another --output_dir leaves it alone"
    raise UserError(f"{folder} holds {' and '.join(left)} of an earlier run: {resumes}, {replaces}")


def begin_anew(folder: Path) -> None:
    """Removes what is left of an earlier run, which a new one would not replace before it has its own.

    Raises:
        UserError: a file cannot be removed.
    """
    for path in (folder / name for name in (LOG, BEST, LAST)):
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise UserError(f"cannot remove {path}: {error.strerror}; choose another --output_dir") from error


@contextmanager
def owned(folder: Path, args: Namespace) -> Iterator[None]:
    """Within, no other run trains into the folder; evaluation needs no such thing, it replaces nothing of a run.

    Every process holds the lock, and so do those that it forks: while one of them lives the folder is taken, and
    however they die it is free.

    Raises:
        UserError: another run trains there, or one has and is not to be replaced.
    """
    if args.evaluate or fcntl is None:
        yield
        return
    with _opened(folder / LOCK) as file:
        if fault := from_main(lambda: _take(file, folder)):
            raise UserError(fault)
        if not is_main():
            with suppress(OSError):  # a file system that has no locks
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        try:
            refuse_to_replace(folder, args.resume, args.overwrite)
            yield
        finally:
            with suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_UN)  # for what was forked, too


def _opened(path: Path) -> BinaryIO:
    try:
        return open(path, "ab+", buffering=0)  # or what does not fit would be tried once more at its end
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; choose another --output_dir") from error


def _take(file: BinaryIO, folder: Path) -> str:
    """Takes the lock for this run's first process, and lets its other ones join; what stands against it, if anything.

    The holder writes its name into the file. Where that process is no more, its others are on their way out.
    """
    deadline = time.monotonic() + HANDOVER
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            file.truncate(0)
            file.write(f"{os.getpid()} {socket.gethostname()}".encode())
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return ""
        except BlockingIOError:
            file.seek(0)
            process, _, machine = file.read().decode().partition(" ")
            if _lives(process, machine) or time.monotonic() > deadline:
                who = f"process {process} on {machine}" if machine else "its process is not known"
                return f"another run is writing to {folder} ({who}): end it, or choose another --output_dir"
            time.sleep(0.2)
        except OSError as error:
            if error.errno in FULL:
                return f"cannot write {folder / LOCK}: {error.strerror}; free some space"
            return ""  # a file system that has no locks


def _lives(process: str, machine: str) -> bool:
    """Whether a process of this machine is there; of another machine's, one has to suppose it."""
    if machine != socket.gethostname() or not process.isdigit():
        return True
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
