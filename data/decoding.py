"""From a picture's file, whatever camera, scanner or microscope it comes from, to upright RGB with 8 bits."""

import errno
import re
import stat
import warnings
from contextlib import suppress
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, PngImagePlugin, UnidentifiedImageError

from utils import FETCH, POINTER, UserError

# What pictures come in, the last two where they can be read. Pillow would also hand PostScript to an interpreter.
FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "AVIF", "HEIF")
ENDINGS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".gif", ".webp", ".bmp", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".avif", ".heic", ".heif", ".hif"),
)
HEIC = (".heic", ".heif", ".hif")  # what phones of one maker write; a package beside Pillow reads it

EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)  # what says nothing about the file that was to be read

MOST_PIXELS = 2**28  # of a decoded picture, which then takes 805 MB
TOO_MANY = f"more than the {MOST_PIXELS} that are decoded; save it smaller"

ORIENTATION = 0x112
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# COCO's pictures (and so VQAv2's), NLVR2's and Flickr30k's, by their names in BLIP's annotations.
PUBLISHED = re.compile(
    r"COCO_(?:train|val|test)201[45]_\d{12}\.jpg$|(?:train|dev|test1)-\d+-\d+-img[01]\.png$|flickr30k-images/\d+\.jpg$"
)

TRANSPARENT = ("RGBA", "RGBa", "LA", "La", "PA")

# What is found in place of a picture, by the beginning of the file in small letters.
INSTEAD = {
    POINTER: FETCH,
    b"<!doctype html": "a web page, as servers send for a picture that they do not give",
    b"<html": "a web page, as servers send for a picture that they do not give",
    b"<svg": "a drawing of lines, save it as PNG",
    b"<?xml": "a drawing of lines or another XML file, save it as PNG",
}

PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY  # programs that make pictures write their settings there
Image.MAX_IMAGE_PIXELS = MOST_PIXELS  # Pillow refuses twice as many before anything is decoded
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # `decode_image` refuses, with the name
warnings.filterwarnings("ignore", message="Corrupt EXIF data")  # such a picture stays as it is


class Exhausted(UserError):
    """The machine has no room to read a picture, which may be a good one."""


class UnfitImage(ValueError):
    """A picture that is whole but cannot be used; says why, and what to do."""


def decode_image(path: Path, wanted: int = 0) -> Image.Image:
    """Decodes an image as upright RGB.

    It is turned as its camera noted, and numbers of other ranges are scaled, see `eight_bits`.

    Args:
        wanted: pixels on a side that it will be resized to. A JPEG so large that it would still have twice as many on
            both sides is decoded at a half, a quarter or an eighth of its size, which is several times faster and
            leaves the resized image as good as the same. 0 decodes all pixels.

    Raises:
        FileNotFoundError: there is none.
        Exhausted: no more files can be opened, or no more memory be had.
        UnfitImage: it is whole, but too large, of a kind that cannot be read here, or not for this user to read.
        ValueError: it cannot be decoded; says why.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise UnfitImage("it is a folder" if path.is_dir() else "it is no file")  # a pipe would be waited for
        with Image.open(path, formats=readable_formats()) as image:
            if wanted:
                image.draft(None, (2 * wanted, 2 * wanted))
            if image.width * image.height > MOST_PIXELS:
                raise UnfitImage(f"it has {image.width} x {image.height} pixels, {TOO_MANY}")
            image.load()
            return image.convert("RGB") if is_published(path.as_posix()) else as_rgb(upright(image))
    except (FileNotFoundError, UnfitImage):
        raise
    except Image.DecompressionBombError as error:
        raise UnfitImage(f"it has more than {2 * MOST_PIXELS} pixels, {TOO_MANY}") from error
    except Exception as error:  # there is no telling what a decoder raises over broken bytes
        if getattr(error, "errno", None) in EXHAUSTED:
            raise Exhausted(f"{path} is not read: {error.strerror}; allow more, or lower --num_workers") from error
        if isinstance(error, PermissionError):
            raise UnfitImage("it may not be read; change its permissions") from error
        if path.suffix.lower() in HEIC and "HEIF" not in readable_formats():
            raise UnfitImage("HEIC takes another package, pip install pillow-heif; or save it as JPEG") from error
        raise ValueError(_instead(path, error) or str(error) or type(error).__name__) from error


def _instead(path: Path, error: Exception) -> str:
    """What a file is that is no picture, where its beginning tells."""
    if not isinstance(error, UnidentifiedImageError):
        return ""
    with open(path, "rb") as file:
        beginning = file.read(64).lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not beginning:
        return "there is nothing in the file"
    return next((f"it is {what}" for sign, what in INSTEAD.items() if beginning.startswith(sign)), "")


@cache
def readable_formats() -> tuple[str, ...]:
    """Those of `FORMATS` that this Pillow reads, with pillow-heif where it is installed."""
    with suppress(ImportError):
        from pillow_heif import register_heif_opener

        register_heif_opener()
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def is_published(name: str) -> bool:
    """Whether a path ends as one of a published test set.

    Fidelity: those pictures are decoded as they are stored, since the published numbers were taken so.
    """
    return PUBLISHED.search(name) is not None


def upright(image: Image.Image) -> Image.Image:
    """Turns a decoded image as its EXIF says, if it says anything that makes sense."""
    try:
        orientation = image.getexif().get(ORIENTATION, 1)
    except Exception:  # broken EXIF is no reason to lose a picture
        return image
    return image.transpose(TURNS[orientation]) if orientation in TURNS else image


def as_rgb(image: Image.Image) -> Image.Image:
    """Makes RGB of 8 bits of a decoded image of any mode, in front of white where one can see through it.

    Raises:
        UnfitImage: its numbers are of no range that is known.
    """
    if image.mode.startswith("I") or image.mode == "F":
        sixteen = image.mode.startswith("I;16") or image.mode == "I" and image.format in ("PNG", "PPM")
        image = Image.fromarray(eight_bits(np.asarray(image), sixteen))
    elif image.mode in TRANSPARENT or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGB", image.size, "white")
        white.paste(image, mask=image)
        return white
    return image.convert("RGB")


def eight_bits(values: np.ndarray, sixteen: bool = False) -> np.ndarray:
    """Scales grey values to 0 ... 255.

    Args:
        values: integers or floats.
        sixteen: they range from 0 to 65535. Else the largest says whether they range to 1 (floats only), to 255 or to
            65535.

    Raises:
        UnfitImage: values below 0 or above 65535, or what is no number.
    """
    low, high = values.min(), values.max()
    tops = [65535] if sixteen else [255, 65535] if values.dtype.kind in "iu" else [1, 255, 65535]
    top = next((top for top in tops if 0 <= low and high <= top), None)
    if top is None:
        raise UnfitImage(f"its values go from {low:g} to {high:g}, expected 0 to 1, 255 or 65535; save it with 8 bits")
    return (values.astype(np.float32) * (255 / top)).round().astype(np.uint8)
