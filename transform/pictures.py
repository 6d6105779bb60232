"""From a decoded image to what the models take. BLIP and CLIP take the same.

Pictures stay integers, uint8 [3, S, S], until they are where the model is: a quarter of the bytes goes from a worker to
its process and from there to the device. The models normalise what comes as integers and take floats as they are.
"""

from collections.abc import Callable
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision import transforms

from transform.randaugment import RandAugment

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


def evaluation_transform(image_size: int) -> Callable[[Image.Image], Tensor]:
    """Resizes to a square, whatever the shape was."""
    return Square(image_size)


def training_transform(image_size: int) -> Callable[[Image.Image], Tensor]:
    """Crops half to all of the image, flips it every other time and augments it twice at random."""
    return transforms.Compose(
        [
            SquareCrop(image_size, scale=(0.5, 1.0)),
            transforms.RandomHorizontalFlip(),
            RandAugment(count=2, level=5, probability=0.5),
            transforms.PILToTensor(),
        ]
    )


class Square:
    """Resizes an RGB image to integers [3, S, S], bicubically, within two levels of 255 of what Pillow makes of it.

    PyTorch does that in vectors of integers where the processor has them.
    """

    def __init__(self, side: int):
        self.side = side

    def __call__(self, image: Image.Image) -> Tensor:
        pixels = torch.from_numpy(np.array(image))
        height, width, channels = pixels.shape
        if height == width == self.side:
            return pixels.permute(2, 0, 1)
        # The strides of channels that lie together, which indexing loses in a batch of one: they are resized at once.
        batch = pixels.as_strided((1, channels, height, width), (pixels.numel(), 1, width * channels, channels))
        return F.interpolate(batch, (self.side, self.side), mode="bicubic", antialias=True)[0]


class SquareCrop(transforms.RandomResizedCrop):
    """Crops a part of an RGB image, drawn as torchvision draws it, and resizes that as `Square` does."""

    def forward(self, image: Image.Image) -> Image.Image:
        top, left, height, width = self.get_params(image, self.scale, self.ratio)
        square = Square(self.size[0])(image.crop((left, top, left + width, top + height)))
        return Image.fromarray(square.permute(1, 2, 0).numpy())


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
