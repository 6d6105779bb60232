"""Reading what users bring: annotation files and images, each checked, each error saying where and the way out."""

import json
from pathlib import Path, PurePosixPath

from PIL import Image

from utils import UserError


def read_annotations(path: Path, **fields: type | tuple[type, ...]) -> list[dict]:
    """Reads the entries of an annotation file.

    Args:
        fields: what every entry has, by name, and its type. A list is one of strings.

    Raises:
        UserError: no such file, no list of entries in it, or an entry that lacks a field or has another type there.
    """
    entries = read_json(path)
    if not isinstance(entries, list) or not entries:
        raise UserError(
            f"{path}: expected a list of entries, found {_excerpt(entries)}; take the file of BLIP's release"
        )
    for number, entry in enumerate(entries):
        for field, kind in fields.items():
            value = entry.get(field) if isinstance(entry, dict) else None
            if not isinstance(value, kind) or isinstance(value, list) and not _are_strings(value):
                raise UserError(
                    f"{path}, entry {number}: {field!r} should be {_name(kind)}, the entry is {_excerpt(entry)}; "
                    "correct it or take the file of BLIP's release"
                )
    return entries


def read_json(path: Path) -> object:
    """Reads a JSON file.

    Raises:
        UserError: no such file, or no JSON in it.
    """
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or f"not JSON: {error}"
        raise UserError(f"{path}: {reason}; put the annotations there or set ann_root in the config") from error


def image_folder(root: str | Path, key: str) -> Path:
    """Returns the folder of images that the config's `key` names.

    Raises:
        UserError: there is none.
    """
    if not Path(root).is_dir():
        raise UserError(f"{key}: {root} is not a folder; put the images there or set {key} in the config")
    return Path(root)


def read_image(folder: Path, name: str, where: str) -> Image.Image:
    """Decodes an image as RGB.

    Args:
        name: path relative to `folder`, which it must not leave.
        where: the annotation it comes from, for the error.

    Raises:
        UserError: it lies outside the folder, is missing or cannot be decoded.
    """
    relative = PurePosixPath(name)
    if relative.is_absolute() or ".." in relative.parts:
        raise UserError(f"{where}: image {name!r} lies outside {folder}; give a path inside that folder")
    path = folder / relative
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such image ({where}); complete the images or correct the image folder") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{path}: unreadable image ({where}): {error}; fetch it again") from error


def _are_strings(values: list) -> bool:
    return bool(values) and all(isinstance(value, str) for value in values)


def _name(kind: type | tuple[type, ...]) -> str:
    """Says what a field should be."""
    names = {str: "a string", int: "a number", list: "a list of strings"}
    return " or ".join(names[one] for one in (kind if isinstance(kind, tuple) else (kind,)))


def _excerpt(value: object) -> str:
    """The beginning of a value, in one line."""
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:120]}..."
