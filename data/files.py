"""Reading what users bring, trusted or not: annotation files and images, each error saying where and the way out."""

import os
import re
import unicodedata
from functools import lru_cache
from pathlib import Path, PurePosixPath

from PIL import Image

from data.decoding import Exhausted, UnfitImage, decode_image
from data.forms import form_of, is_json_lines
from utils import UserError, excerpt, read_json

CONVERT = "make it of the published files: python -m madtp convert"
ROOT = re.compile(r"(?:[A-Za-z][\w+.-]*:)?[\\/]+")  # of a path on this machine or another one, or of an address
HALF_CHARACTER = re.compile("[\ud800-\udfff]")


class BadImage(UserError):
    """An image that is missing or cannot be decoded.

    Attributes:
        fault: which one and what is wrong, the same whichever entry names it.
    """

    def __init__(self, message: str, fault: str = ""):
        super().__init__(message)
        self.fault = fault or message


def read_entries(path: Path) -> list:
    """Reads an annotation file, of which it only checks that it is a list with something in it.

    Raises:
        UserError: no such file, no JSON, or something else in it.
    """
    entries = read_json(path, correction(path) if path.is_file() else f"put it there, set ann_root, or {CONVERT}")
    if not isinstance(entries, list) or not entries:
        found = "an empty one" if entries == [] else excerpt(entries)
        raise UserError(f"{path}: expected a list of entries, found {found}; {correction(path)}")
    return entries


def correction(path: Path) -> str:
    """What to do about an annotation file that is not as it should be."""
    if form := form_of(path):
        return f"{form} is published so, convert it: python -m madtp convert {form} {path} --out FOLDER"
    if is_json_lines(path):
        return "these are JSON lines, make a list of them: [ENTRY, ENTRY, ...]"
    return "correct it, docs/own_data.md shows its form"


def wrong_field(entry: object, fields: dict[str, type | tuple[type, ...]]) -> str:
    """Says which field of an entry is missing or of another type, if any is.

    Args:
        fields: by name, and their type. A list is one of strings.
    """
    for field, kind in fields.items():
        value = entry.get(field) if isinstance(entry, dict) else None
        right = isinstance(value, kind)
        if right and (isinstance(value, int) or is_text(value)):
            continue
        if right and isinstance(value, str):
            fault = "has half a character in it"
        elif right and not value:
            fault = "is an empty list"
        else:
            fault = f"should be {_name(kind)}"
        return f"{field!r} {fault}, the entry is {excerpt(entry)}"
    return ""


def is_text(value: object) -> bool:
    """Whether it is a string, or a list of some strings; none with half a character in it, which JSON can hold."""
    if isinstance(value, list):
        return bool(value) and all(isinstance(item, str) for item in value) and is_text("".join(value))
    return isinstance(value, str) and not HALF_CHARACTER.search(value)


def image_folder(root: str | Path, key: str) -> Path:
    """Returns the folder of images that the config's `key` names.

    Raises:
        UserError: there is none.
    """
    if not str(root) or not Path(root).is_dir():
        raise UserError(
            f"{key}: {root or 'an empty name'} is not a folder; put the images there or set {key} in the config"
        )
    return Path(root)


def leaves_folder(name: str) -> bool:
    """Whether the path of an image leads up and out of its folder. Links that were put there are not looked at."""
    return ".." in name.replace("\\", "/").split("/")


def on_disk(folder: Path, name: str) -> str:
    """The name of an image as it is spelled in its folder; as it was given if it is not there, but without a root.

    Backslashes may stand for slashes, and accents may be joined to their letters or apart from them, which look alike.
    Of a path from the root of this machine or another, as others wrote it, the end counts that is in this folder.
    """
    root = ROOT.match(name)
    if not root and name.isascii() and "\\" not in name:
        return name
    inside = name[root.end() :] if root else name
    slashed = inside.replace("\\", "/")
    spellings = [inside, slashed, *(unicodedata.normalize(form, slashed) for form in ("NFC", "NFD"))]
    drops = range(slashed.count("/") + 1 if root else 1)  # of the folders in front, the fewest first
    ends = dict.fromkeys(spelling.split("/", drop)[-1] for drop in drops for spelling in spellings)
    return next((end for end in ends if is_file(folder / end)), inside)


def namesake(path: Path) -> str:
    """The name of a file that differs from an absent one in the case of letters alone, if there is one beside it."""
    return _names(path.parent).get(path.name.casefold(), "")


@lru_cache(maxsize=16)
def _names(folder: Path) -> dict[str, str]:
    """The names in a folder, by what they are in small letters."""
    try:
        return {name.casefold(): name for name in os.listdir(folder)}
    except (OSError, ValueError):
        return {}


def is_file(path: Path) -> bool:
    """Whether there is such a file; no path that cannot be is one."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def read_image(folder: Path, name: str, where: str, wanted: int = 0) -> Image.Image:
    """Decodes an image as RGB.

    Args:
        name: path relative to `folder`, which it must not leave.
        where: the annotation it comes from, for the error.
        wanted: see `decode_image`.

    Raises:
        BadImage: it is missing or cannot be decoded.
        UserError: it lies outside the folder.
    """
    if leaves_folder(name) or ROOT.match(name):
        raise UserError(f"{where}: image {name!r} lies outside {folder}; give a path inside that folder")
    path = folder / PurePosixPath(name)
    try:
        return decode_image(path, wanted)
    except FileNotFoundError as error:
        fault = f"{path}: no such image"
        hint = f", but {other} is there" if (other := namesake(path)) else ""
        raise BadImage(f"{fault}{hint} ({where}); complete the images or correct the image folder", fault) from error
    except Exhausted:
        raise
    except ValueError as error:
        fault = f"{path}: unreadable image"
        way_out = "" if isinstance(error, UnfitImage) else "; fetch it again"
        raise BadImage(f"{fault} ({where}): {error}{way_out}", fault) from error


def _name(kind: type | tuple[type, ...]) -> str:
    """Says what a field should be."""
    names = {str: "a string", int: "a number", list: "a list of strings"}
    return " or ".join(names[one] for one in (kind if isinstance(kind, tuple) else (kind,)))
