"""From a decoded image to what the models take. BLIP and CLIP take the same.

Pictures stay integers, uint8 [3, S, S], until they are where the model is: a quarter of the bytes goes from a worker to
its process and from there to the device. The models normalise what comes as integers and take floats as they are.
"""

from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision import transforms
from torchvision.transforms import InterpolationMode

from transform.randaugment import RandAugment

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


def evaluation_transform(image_size: int) -> Callable[[Image.Image], Tensor]:
    """Resizes to a square, whatever the shape was."""
    return transforms.Compose([transforms.PILToTensor(), Square(image_size)])


def training_transform(image_size: int) -> Callable[[Image.Image], Tensor]:
    """Crops half to all of the image, flips it every other time and augments it twice at random.

    Fidelity: Pillow resizes what was cropped, more slowly than `Square`, so that a run which an earlier version began
    goes on with the very pictures that it began with.
    """
    return transforms.Compose(
        [
            transforms.RandomResizedCrop(image_size, scale=(0.5, 1.0), interpolation=InterpolationMode.BICUBIC),
            transforms.RandomHorizontalFlip(),
            RandAugment(count=2, level=5, probability=0.5),
            transforms.PILToTensor(),
        ]
    )


class Square:
    """Resizes uint8 [3, H, W] to [3, S, S] bicubically, within two levels of 255 of what Pillow makes of it.

    PyTorch does that in vectors of integers where the processor has them.
    """

    def __init__(self, side: int):
        self.side = side

    def __call__(self, pixels: Tensor) -> Tensor:
        if pixels.shape[1:] == (self.side, self.side):
            return pixels
        return F.interpolate(pixels[None], (self.side, self.side), mode="bicubic", antialias=True)[0]

    def __repr__(self) -> str:
        return f"Square({self.side})"


def normalised(images: Tensor) -> Tensor:
    """Integers [..., 3, H, W] as the floats that models were trained on; floats as they are."""
    if images.dtype != torch.uint8:
        return images
    mean, std = _statistics(images.device)
    return images.to(torch.float32).div_(255).sub_(mean).div_(std)


@cache
def _statistics(device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each channel, put on a device once: a copy makes the host wait."""
    with torch.inference_mode(False):
        return tuple(torch.tensor(values, device=device)[:, None, None] for values in (MEAN, STD))
