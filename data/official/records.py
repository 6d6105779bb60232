"""What the readers of official files have in common: the records that they yield, and where they find the split."""

import re
from pathlib import Path
from typing import NamedTuple

from data.files import wrong_field
from data.official.stream import reading
from utils import UserError

SPLITS = ("train", "val", "test")
ALSO = {"dev": "val", "valid": "val"}  # what else a file calls a split


class Source(NamedTuple):
    """A file to convert.

    Attributes:
        path: of the file.
        split: the one that the user named, or an empty string.
    """

    path: Path
    split: str

    def own_split(self, text: str = "") -> str:
        """The split that the user named, or else the only one that `text`, by default the file's name, speaks of.

        Raises:
            UserError: it speaks of none, or of several.
        """
        if self.split:
            return self.split
        found = split_in(text or self.path.name)
        if not found:
            raise UserError(
                f"{self.path}: {text or 'its name'} tells no split; say it: train={self.path.name}, val= or test="
            )
        return found


class Record(NamedTuple):
    """What a data set says about a picture, or about two.

    Attributes:
        split: one of `SPLITS`.
        files: the beginning of the names of the files that it belongs into.
        pictures: for each picture where it may be in the image folder, the published place first.
        content: the fields of the entry, but for its pictures.
    """

    split: str
    files: str
    pictures: tuple[tuple[str, ...], ...]
    content: dict


class LeftOut(NamedTuple):
    """What is not converted: why not, and how many of them."""

    reason: str
    count: int = 1


def split_in(name: str) -> str:
    """The only split that a name speaks of: "val" of `Flickr_8k.devImages.txt`; an empty string if there is no such."""
    words = re.findall("train|valid|val|test|dev", name.lower())
    found = {ALSO.get(word, word) for word in words}
    return found.pop() if len(found) == 1 else ""


def places(name: str, *folders: str) -> tuple[str, ...]:
    """Where a picture may be: in each of the folders, then beside them."""
    return tuple(f"{folder}/{name}" for folder in folders) + (name,)


def coco_places(name: str, *folders: str) -> tuple[str, ...]:
    """Where a picture of COCO may be: as in 2014, or as the archives of 2017 have the same one."""
    number = re.fullmatch(r"COCO_(?:train|val)2014_(\d{12}\.jpg)", name)
    later = (f"train2017/{number[1]}", f"val2017/{number[1]}") if number else ()
    return (*places(name, *folders), *later)


def checked(path: Path, number: int, entry: object, fields: dict[str, type | tuple[type, ...]]) -> dict:
    """Returns an entry that has the fields.

    Raises:
        UserError: it has not; the error names the file and the entry.
    """
    if fault := wrong_field(entry, fields):
        raise UserError(f"{path}, entry {number}: {fault}; is it a file of this form?")
    return entry


def read_lines(path: Path) -> list[str]:
    """The lines of a text file that are not empty.

    Raises:
        UserError: it cannot be read, or there are none.
    """
    with reading(path) as file:
        lines = [line.rstrip("\n") for line in file if line.strip()]
    if not lines:
        raise UserError(f"{path}: nothing in it; fetch the file again")
    return lines
