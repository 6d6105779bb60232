"""Files that the project brings, wherever the command is started, and paths of the command line."""

from argparse import ArgumentTypeError
from pathlib import Path

CLONE = Path(__file__).parents[2]


def own_file(path: str) -> str:
    """Where a file of the project is: as named, from the working directory, or else in the project's own folder."""
    return path if Path(path).exists() or not (CLONE / path).exists() else str(CLONE / path)


def named_path(text: str) -> str:
    """A path as a flag names it, never the empty one, which would stand for the working directory.

    Raises:
        ArgumentTypeError: it is empty.
    """
    if not text:
        raise ArgumentTypeError("the path is empty, as by a variable of the shell that is not set")
    return text
