"""Files that are there whole or not at all, and JSON that a user brought."""

import json
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from madtp.method.errors import FULL, UserError

ENDINGS = (".pth", ".pt", ".bin", ".ckpt", ".safetensors")  # of files of weights
POINTER = b"version https://git-lfs"  # the beginning of a file that stands for one that Git LFS was to fetch
PIPE_CLOSED = 141  # status of a shell's 128 and the signal, which Windows does not have
# How files begin that gzip, zip, bzip2, xz and zstd made.
PACKED = (b"\x1f\x8b", b"PK\x03\x04", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")
FETCH = "a pointer of Git LFS: run `git lfs pull` in its folder"


@contextmanager
def writing_to(path: str | Path, size: int = 0) -> Iterator[None]:
    """Within, a file is written, and what keeps it from being written is named.

    Args:
        path: of the file.
        size: the bytes it is going to have, where known, for the message.

    Raises:
        UserError: the folder cannot be written, or the disk is full.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        cause = error if isinstance(error, OSError) else error.__context__  # torch.save hides what failed midway
        if not isinstance(cause, OSError):
            raise
        needed = f" ({size / 2**20:.1f} MiB)" if size >= 2**20 else f" ({size} bytes)" if size else ""
        way_out = "free some space" if cause.errno in FULL else "choose another folder"
        raise UserError(f"cannot write {path}{needed}: {cause.strerror or cause}; {way_out}") from error


@contextmanager
def whole_file(path: str | Path, size: int = 0) -> Iterator[BinaryIO]:
    """Opens `path` for writing bytes so that it is replaced only by a complete file; a failure leaves the old one.

    Args:
        path: where the file ends up; until then it is `path` with `.tmp` behind it.
        size: the bytes it is going to have, where known, for the message.

    Raises:
        UserError: the folder cannot be written, or the disk is full.
    """
    temporary = f"{path}.tmp"
    try:
        with writing_to(path, size):
            with open(temporary, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
    finally:
        with suppress(OSError):
            os.remove(temporary)


def no_checkpoint(path: str | Path, flag: str) -> UserError:
    """What to raise about weights that are not there, given the flag that names others."""
    return UserError(f"{path}: no such checkpoint; docs/tasks.md lists the downloads, {flag} names another")


def forbidden(path: str | Path) -> UserError:
    """What to raise about a file that is there, but not for this user: neither to be corrected nor to be fetched."""
    return UserError(f"{path} may not be read; change its permissions")


def read_json(path: str | Path, way_out: str) -> object:
    """Reads a JSON file that a user brought.

    Raises:
        UserError: no such file, or no JSON in it; the message ends with `way_out`. Or it may not be read.
    """
    content = b""
    try:
        content = Path(path).read_bytes()
        return json.loads(content)
    except PermissionError as error:
        raise forbidden(path) from error
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or _why_no_json(content, error)
        raise UserError(f"{path or 'an empty name'}: {reason}; {way_out}") from error


def _why_no_json(content: bytes, error: Exception) -> str:
    if content.startswith(POINTER):
        return f"no JSON but {FETCH}"
    if content.startswith(PACKED):
        return "it is packed, unpack it"
    if not content.strip():
        return "nothing in it"
    if isinstance(error, UnicodeDecodeError):
        return f"no text in UTF-8 (byte {error.start} is of another encoding), save it as such"
    return f"not JSON: {error}"


def is_pointer(path: str | Path) -> bool:
    """Whether a file stands for one that Git LFS was to fetch."""
    with open(path, "rb") as file:
        return file.read(len(POINTER)) == POINTER


def write_atomic(path: str | Path, text: str) -> None:
    """Writes `text` to `path` in one step: readers see the old file or the new one, never half.

    Names of files that the locale has no letters for are written as the bytes that they are.

    Raises:
        UserError: the folder cannot be written, or the disk is full.
    """
    content = text.encode(errors="surrogateescape")
    with whole_file(path, len(content)) as file:
        file.write(content)


def prepare_output(path: str | Path) -> Path:
    """Makes the output folder where it is missing and tries that it can be written.

    Raises:
        UserError: it cannot be made or written.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        reason = "it is no folder" if isinstance(error, FileExistsError) else error.strerror
        raise UserError(f"cannot write to {folder}: {reason}; choose another folder") from error
    return folder


def print_any_text() -> None:
    """Lets the standard streams escape what their encoding has no letters for, where they would fail."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # not what a test or a notebook puts in its place
            stream.reconfigure(errors="backslashreplace")


def stop_printing() -> None:
    """Sends the standard output nowhere from here on, be it full or closed: the interpreter's end would try again."""
    with suppress(OSError, AttributeError):  # there may be none, or one that is no file
        nowhere, number = os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno()
        with suppress(OSError):
            sys.stdout.flush()
        os.dup2(nowhere, number)
