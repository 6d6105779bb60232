"""The error that users see, how it quotes what they wrote, and flags whose mistakes are such errors."""

import errno
import re
import reprlib
from argparse import ArgumentParser
from typing import TextIO


class UserError(ValueError):
    """A mistake the user can mend. Its message is one line: the value, the file and the way out."""


class Flags(ArgumentParser):
    """A command line whose mistakes are a `UserError`, where argparse would print its usage and end the process."""

    def error(self, message: str):
        raise UserError(f"{message}; {self.prog} --help lists the flags")

    def print_help(self, file: TextIO | None = None) -> None:
        """Prints at once, so that an output which is closed or full is met here and not at the interpreter's end."""
        print(self.format_help(), end="", file=file, flush=True)


# How PyTorch says it: of a GPU, of a processor under Linux or macOS and under Windows, of bytes beyond 64 bits.
NO_MEMORY = re.compile(
    "out of memory|can't allocate memory|not enough memory|storage size calculation overflowed", re.IGNORECASE
)

LARGEST = 2**31 - 1  # of sizes, so that none that is made of several is beyond what tensors count

UNSEEN = (errno.EACCES, errno.EPERM, errno.ENAMETOOLONG)  # what is raised already where one asks whether a path exists
FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))  # a disk, or a user's share of it; Windows has no shares


def as_user_error(error: Exception) -> UserError | None:
    """The error if it is the user's to mend, also where memory or a disk ran out or a path cannot be, else None."""
    if isinstance(error, UserError):
        return error
    if isinstance(error, OSError) and error.errno in UNSEEN and error.filename:
        return UserError(f"{error.filename}: {error.strerror}; give a path that can be read and written")
    if isinstance(error, OSError) and error.errno in FULL:
        where = error.filename or "where files are written or the output goes"
        return UserError(f"{where}: {error.strerror}; free some space")
    text = str(error)
    if not (isinstance(error, MemoryError) or NO_MEMORY.search(text)):
        return None
    on_gpu = "CUDA" in text or type(error).__name__ == "OutOfMemoryError"  # of torch, which is not loaded for this
    asked = re.search(r"tried to allocate [\d.]+ \w+", text, re.IGNORECASE)
    size = f" ({asked[0]})" if asked else ""
    way_out = "smaller batches need less, docs/running.md#memory has more ways out"
    return UserError(f"the memory of {'the GPU' if on_gpu else 'this machine'} ran out{size}; {way_out}")


_EXCERPT = reprlib.Repr()
_EXCERPT.maxstring = 60


def excerpt(value: object) -> str:
    """What a user wrote, for an error: one line, never long, however large or deep the value is."""
    try:
        text = _EXCERPT.repr(value)
    except ValueError:  # Python does not print integers of thousands of digits
        text = f"a {type(value).__name__} with too many digits"
    text = " ".join(text.split())
    return text if len(text) <= 120 else f"{text[:120]}..."
