"""From the records of official files to the files that the tasks read: the split, the pictures' places, the counts."""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path, PurePosixPath
from typing import BinaryIO, NamedTuple

from data.official.records import LeftOut, Record, read_lines
from utils import UserError, prepare_output, whole_file

MISSING = "entries whose pictures are missing"

Rows = Callable[[Record, Sequence[str]], Iterator[tuple[str, dict]]]


class Pictures:
    """Where pictures are in a folder.

    Attributes:
        found: the name of each, by the places where it may be.
        missing: the names of those that are in none.

    Raises:
        UserError: there is no such folder.
    """

    def __init__(self, folder: Path | None):
        self.folder = folder
        self.found: dict[tuple[str, ...], str] = {}
        self.missing: dict[str, None] = {}
        if folder is not None and not folder.is_dir():
            raise UserError(f"--images: {folder} is not a folder")

    def find(self, places: tuple[str, ...]) -> str:
        """The first place where the picture is; the first of all if it is nowhere, or nobody is to look."""
        if places not in self.found:
            there = (name for name in places if self.folder is None or (self.folder / name).is_file())
            self.found[places] = next(there, places[0])
            if self.folder is not None and not (self.folder / self.found[places]).is_file():
                self.missing[places[0]] = None
        return self.found[places]


class EntryFile:
    """A file of entries that is being written, an entry a line.

    Attributes:
        path: where it will be.
        entries: how many there are.
        pictures: the names of those in it, in the order in which they came.
    """

    def __init__(self, path: Path, file: BinaryIO):
        self.path, self.file, self.entries = path, file, 0
        self.pictures: dict[str, None] = {}

    def write(self, entry: dict, names: Sequence[str]) -> None:
        """Adds an entry that speaks of pictures of these names."""
        self.file.write(b",\n" if self.entries else b"[")
        self.file.write(json.dumps(entry, ensure_ascii=False).encode())
        self.entries += 1
        self.pictures |= dict.fromkeys(names)


class Converted(NamedTuple):
    """What was written, and what was not.

    Attributes:
        files: what was written, by the name of the file.
        left_out: how many of what, by the reason.
        looked_for: where every picture is, or should be.
    """

    files: dict[str, EntryFile]
    left_out: Counter[str]
    looked_for: Pictures


def convert(
    records: Iterable[Record | LeftOut],
    rows: Rows,
    out: Path,
    images: Path | None = None,
    split: Callable[[Record], str] = lambda record: record.split,
    drop_missing: bool = False,
) -> Converted:
    """Writes the files that the tasks read, each whole or not at all.

    Args:
        records: of any number.
        rows: which entries of which files a record becomes, given the names of its pictures.
        out: the folder to write to. Files in it are not replaced.
        images: the folder of pictures, to look for each; None to take the published places for granted.
        split: of a record.
        drop_missing: leave out what speaks of pictures that are not there.

    Raises:
        UserError: a file cannot be read or written, is there already, or is not of its form.
    """
    prepare_output(out)
    done = Converted({}, Counter(), Pictures(images))
    with ExitStack() as stack:
        for record in records:
            if isinstance(record, LeftOut):
                done.left_out[record.reason] += record.count
                continue
            names = [done.looked_for.find(places) for places in record.pictures]
            if drop_missing and not done.looked_for.missing.keys().isdisjoint(names):
                done.left_out[MISSING] += 1
                continue
            for name, entry in rows(record._replace(split=split(record)), names):
                if name not in done.files:
                    path = out / f"{name}.json"
                    done.files[name] = EntryFile(path, stack.enter_context(_new_file(path)))
                done.files[name].write(entry, names)
        for written in done.files.values():
            written.file.write(b"]\n")
    return done


def _new_file(path: Path):
    if path.exists():
        raise UserError(f"{path} is there already; remove it or name another folder with --out")
    return whole_file(path)


class Draw:
    """Gives pictures another split, each with all that is said about it.

    Args:
        wanted: for "val" and "test" a share of the training pictures, drawn by the MD5 of their names, or a file that
            lists pictures by name or by the number that their name ends with, wherever they come from.

    Attributes:
        unmet: for each list what of it no picture was called.

    Raises:
        UserError: no share and no file, or shares that leave nothing to train on; when called, for a picture that two
            lists name.
    """

    def __init__(self, wanted: dict[str, str]):
        self.shares, self.listed, self.unmet = {}, {}, {}
        for split, text in wanted.items():
            try:
                self.shares[split] = float(text)
            except ValueError as error:
                if not Path(text).is_file():
                    expected = "a part of the training pictures, like 0.1, or a file that lists some"
                    raise UserError(f"--{split} {text}: expected {expected}") from error
                self.listed[split] = {_plain(line) for line in read_lines(Path(text))}
                self.unmet[text] = set(self.listed[split])
        if not all(share > 0 for share in self.shares.values()) or not sum(self.shares.values()) < 1:
            raise UserError(f"shares {self.shares}: expected parts of the training pictures, together below 1")

    def __call__(self, record: Record) -> str:
        if not self.listed and not self.shares:
            return record.split
        path = PurePosixPath(record.pictures[0][0])
        number = re.search(r"\d+$", path.stem)
        names = {path.name, path.stem, *([str(int(number[0]))] if number else [])}
        splits = [split for split, listed in self.listed.items() if not names.isdisjoint(listed)]
        if len(splits) > 1:
            raise UserError(f"{path.name} is in the lists for {' and '.join(splits)}; a picture has one split")
        if splits:
            for unmet in self.unmet.values():
                unmet -= names
            return splits[0]
        if record.split != "train":
            return record.split
        place = int(hashlib.md5(path.name.encode()).hexdigest(), 16) / 16**32
        for split, share in self.shares.items():
            if place < share:
                return split
            place -= share
        return "train"


def _plain(line: str) -> str:
    """A line of a list as pictures are held against it."""
    name = PurePosixPath(line.strip()).name
    return str(int(name)) if name.isdigit() else name
