"""Random augmentation of training images: a few operations drawn from ten, each applied with probability one half."""

import math
from collections.abc import Callable
from functools import partial

import torch
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as F

TOP_LEVEL = 10  # where an operation is at its strongest
SHEAR = 0.3  # pixels per pixel
SHIFT = 10 / 384  # of the image's side
ROTATION = 30  # degrees
GRAY = [128, 128, 128]  # what shows where the image was moved away


def _translate(image: Image.Image, across: float = 0, down: float = 0) -> Image.Image:
    """Moves the image by parts of its sides, to whole pixels."""
    moved = Image.new(image.mode, image.size, tuple(GRAY))
    moved.paste(image, (round(across * image.width), round(down * image.height)))
    return moved


def _shear(image: Image.Image, across: float = 0, down: float = 0) -> Image.Image:
    """Shears the image away from its top left corner, by pixels per pixel."""
    degrees = [math.degrees(math.atan(slope)) for slope in (across, down)]
    return F.affine(image, 0.0, [0, 0], 1.0, degrees, InterpolationMode.BILINEAR, GRAY, center=[0, 0])


def _blend(enhance: Callable, image: Image.Image, p: float) -> Image.Image:
    """The image blended with a faint one of itself; at a factor of 1 it is what it was, which costs nothing."""
    factor = 1.8 * p + 0.1
    return image if factor == 1 else enhance(image, factor)


# What each does at the part `p` of its full strength.
GEOMETRIC = {
    "shear_x": lambda image, p: _shear(image, across=SHEAR * p),
    "shear_y": lambda image, p: _shear(image, down=SHEAR * p),
    "translate_x": lambda image, p: _translate(image, across=SHIFT * p),
    "translate_y": lambda image, p: _translate(image, down=SHIFT * p),
    "rotate": lambda image, p: F.rotate(image, ROTATION * p, InterpolationMode.BILINEAR, fill=GRAY),
}
OPERATIONS = {
    "identity": lambda image, p: image,
    "autocontrast": lambda image, p: F.autocontrast(image),
    "equalize": lambda image, p: F.equalize(image),
    "brightness": partial(_blend, F.adjust_brightness),
    "sharpness": partial(_blend, F.adjust_sharpness),
    **GEOMETRIC,
}


def augment(image: Image.Image, operation: str, level: float) -> Image.Image:
    """Applies one of `OPERATIONS`; the size stays.

    At level 0 the geometric operations change nothing, a negative level moves the other way. `brightness` and
    `sharpness` run from faint (0.1) at level 0 to strong (1.9) at level 10, so level 5 leaves the image as it is.
    """
    return OPERATIONS[operation](image, level / TOP_LEVEL)


class RandAugment:
    """Draws `count` operations with replacement and applies each with `probability`, geometric ones either way.

    The draws come from torch's generator.
    """

    def __init__(self, count: int = 2, level: float = 5, probability: float = 0.5):
        self.count, self.level, self.probability = count, level, probability

    def __call__(self, image: Image.Image) -> Image.Image:
        for choice in torch.randint(len(OPERATIONS), (self.count,)).tolist():
            operation = list(OPERATIONS)[choice]
            chance, direction = torch.rand(2).tolist()
            if chance < self.probability:
                backwards = operation in GEOMETRIC and direction < 0.5
                image = augment(image, operation, -self.level if backwards else self.level)
        return image

    def __repr__(self) -> str:
        return f"RandAugment(count={self.count}, level={self.level}, probability={self.probability})"
