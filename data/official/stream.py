"""Reading large JSON files an entry at a time: of a gigabyte no more than a window is ever held."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from utils import UserError, excerpt, forbidden

WINDOW = 2**20  # characters read at once
LONGEST = 2**26  # of one entry: what is longer is no entry of a data set

SPACE = re.compile(r"\s*")
AFTER = re.compile(r"[\s,:\]}]")  # what follows a whole value
WAY_OUT = "fetch the file again"


def entries(path: Path, key: str | None = None) -> Iterator:
    """Yields the entries of a list, one after another.

    Args:
        path: of a JSON file.
        key: the list stands under it in an object; None for a file that is a list.

    Raises:
        UserError: no such file, no JSON, or no such list in it.
    """
    with _opened(path) as window:
        if key is None:
            if window.peek() != "[":
                raise UserError(f"{path}: expected a list, found {window.peek()!r}; {WAY_OUT}")
            yield from window.entries()
            return
        for name in _keys(window, path):
            if name == key and window.peek() == "[":
                yield from window.entries()
                return
            window.skip()
    raise UserError(f"{path}: no list {key!r} in it; {WAY_OUT}")


def value(path: Path, key: str) -> object:
    """Returns what stands under a key of the outermost object, no list; None where there is no such key.

    Raises:
        UserError: no such file, no JSON, or no object in it.
    """
    with _opened(path) as window:
        for name in _keys(window, path):
            if name == key and window.peek() != "[":
                return window.value()
            window.skip()
    return None


def first_list(path: Path) -> str | None:
    """Returns the key of the outermost object under which its first list stands; None where there is none.

    Raises:
        UserError: no such file, no JSON, or no object in it.
    """
    with _opened(path) as window:
        for name in _keys(window, path):
            if window.peek() == "[":
                return name
            window.skip()
    return None


def _keys(window: "_Window", path: Path) -> Iterator[str]:
    """The keys of the outermost object."""
    if window.peek() == "[":
        raise UserError(f"{path}: expected an object, found a list; is it a file of this form?")
    return window.keys()


def lines(path: Path) -> Iterator[dict]:
    """Yields the objects of a file of JSON lines.

    Raises:
        UserError: no such file, nothing in it, or a line that is no object.
    """
    empty = True
    with reading(path) as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                entry = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise UserError(f"{path}, line {number}: not JSON: {error}; {WAY_OUT}") from error
            if not isinstance(entry, dict):
                raise UserError(f"{path}, line {number}: expected an object, found {excerpt(entry)}; {WAY_OUT}")
            empty = False
            yield entry
    if empty:
        raise UserError(f"{path}: nothing in it; {WAY_OUT}")


class _Window:
    """The part of a file that is being looked at. Everything before `place` is done with."""

    def __init__(self, file: TextIO):
        self.file, self.text, self.place, self.before = file, "", 0, 0
        self.decoder = json.JSONDecoder()

    def more(self) -> bool:
        """Reads on, as much as there is already if that is more, so that a long entry costs no more than its length."""
        rest = len(self.text) - self.place
        added = self.file.read(max(WINDOW, rest))
        self.before += self.place
        self.text, self.place = self.text[self.place :] + added, 0
        return bool(added)

    def peek(self) -> str:
        """The next character that is no space; an empty string at the end."""
        while True:
            self.place = SPACE.match(self.text, self.place).end()
            if self.place < len(self.text):
                return self.text[self.place]
            if not self.more():
                return ""

    def take(self, allowed: str) -> str:
        """Passes over one of the allowed characters."""
        found = self.peek()
        if not found or found not in allowed:
            raise ValueError(f"expected {' or '.join(allowed)} at character {self.before + self.place}")
        self.place += 1
        return found

    def value(self) -> object:
        """Reads any value, whole."""
        self.peek()
        while True:
            try:
                value, end = self.decoder.raw_decode(self.text, self.place)
            except ValueError as error:
                if len(self.text) - self.place > LONGEST or not self.more():
                    raise ValueError(f"no whole entry at character {self.before + self.place}") from error
                continue
            if isinstance(value, int | float) and not AFTER.match(self.text, end) and self.more():
                continue  # it may go on behind the window
            self.place = min(end, len(self.text))
            return value

    def entries(self) -> Iterator:
        """Yields the values of a list."""
        self.take("[")
        if self.peek() == "]":
            self.take("]")
            return
        while True:
            yield self.value()
            if self.take(",]") == "]":
                return

    def keys(self) -> Iterator[str]:
        """Yields the keys of an object; before it goes on, the value of each has to be read or skipped."""
        self.take("{")
        if self.peek() == "}":
            self.take("}")
            return
        while True:
            name = self.value()
            self.take(":")
            yield name
            if self.take(",}") == "}":
                return

    def skip(self) -> None:
        """Passes over a value, of a list one entry at a time."""
        if self.peek() == "[":
            for _ in self.entries():
                pass
        else:
            self.value()


@contextmanager
def _opened(path: Path) -> Iterator[_Window]:
    """Opens a JSON file and names it in errors over what it holds."""
    with reading(path) as file:
        try:
            yield _Window(file)
        except (UserError, UnicodeDecodeError):
            raise
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}: not JSON: {error}; {WAY_OUT}") from error


@contextmanager
def reading(path: Path) -> Iterator[TextIO]:
    """Opens a text file, with or without a byte order mark, and names it where it cannot be read.

    Raises:
        UserError: it may not be read, is not there, or holds no text.
    """
    try:
        with open(path, encoding="utf-8-sig") as file:
            yield file
    except PermissionError as error:
        raise forbidden(path) from error
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "no text in UTF-8"
        raise UserError(f"{path}: {reason}; name the file as it was downloaded, unpacked") from error
