"""Reading what users bring, trusted or not: annotation files and images, each error saying where and the way out."""

import re
import warnings
from pathlib import Path, PurePosixPath

from PIL import Image

from utils import UserError, excerpt, read_json

# What pictures come in. Pillow would also hand PostScript to an interpreter.
FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM")

HALF_CHARACTER = re.compile("[\ud800-\udfff]")

warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # `decode_image` refuses, with the name


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
    entries = read_json(path, "put the annotations there or set ann_root in the config")
    if not isinstance(entries, list) or not entries:
        raise UserError(
            f"{path}: expected a list of entries, found {excerpt(entries)}; take the file of BLIP's release"
        )
    return entries


def wrong_field(entry: object, fields: dict[str, type | tuple[type, ...]]) -> str:
    """Says which field of an entry is missing or of another type, if any is.

    Args:
        fields: by name, and their type. A list is one of strings.
    """
    for field, kind in fields.items():
        value = entry.get(field) if isinstance(entry, dict) else None
        if not isinstance(value, kind) or not is_text(value) and not isinstance(value, int):
            return f"{field!r} should be {_name(kind)}, the entry is {excerpt(entry)}"
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
    if not Path(root).is_dir():
        raise UserError(f"{key}: {root} is not a folder; put the images there or set {key} in the config")
    return Path(root)


def leaves_folder(name: str) -> bool:
    """Whether the path of an image leads out of its folder. Links that were put into the folder are not looked at."""
    return name.startswith("/") or ".." in name.split("/")


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
    if leaves_folder(name):
        raise UserError(f"{where}: image {name!r} lies outside {folder}; give a path inside that folder")
    path = folder / PurePosixPath(name)
    try:
        return decode_image(path, wanted)
    except FileNotFoundError as error:
        fault = f"{path}: no such image"
        raise BadImage(f"{fault} ({where}); complete the images or correct the image folder", fault) from error
    except ValueError as error:
        fault = f"{path}: unreadable image"
        raise BadImage(f"{fault} ({where}): {error}; fetch it again", fault) from error


def decode_image(path: Path, wanted: int = 0) -> Image.Image:
    """Decodes an image as RGB.

    Args:
        wanted: pixels on a side that it will be resized to. A JPEG so large that it would still have twice as many on
            both sides is decoded at a half, a quarter or an eighth of its size, which is several times faster and
            leaves the resized image as good as the same. 0 decodes all pixels.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it cannot be decoded or has more pixels than Pillow takes for safe; says why.
    """
    try:
        with Image.open(path, formats=FORMATS) as image:
            if Image.MAX_IMAGE_PIXELS and image.width * image.height > Image.MAX_IMAGE_PIXELS:
                limit = f"more than the {Image.MAX_IMAGE_PIXELS} that Pillow allows"
                raise ValueError(f"it has {image.width} x {image.height} pixels, {limit}")
            if wanted:
                image.draft(None, (2 * wanted, 2 * wanted))
            return image.convert("RGB")
    except FileNotFoundError:
        raise
    except Exception as error:  # there is no telling what a decoder raises over broken bytes
        raise ValueError(str(error) or type(error).__name__) from error


def _name(kind: type | tuple[type, ...]) -> str:
    """Says what a field should be."""
    names = {str: "a string", int: "a number", list: "a list of strings"}
    return " or ".join(names[one] for one in (kind if isinstance(kind, tuple) else (kind,)))
