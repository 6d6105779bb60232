"""From a decoded image to what the models take: float [3, S, S], normalised. BLIP and CLIP take the same."""

from torchvision import transforms
from torchvision.transforms import InterpolationMode

from transform.randaugment import RandAugment

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


def evaluation_transform(image_size: int) -> transforms.Compose:
    """Resizes to a square, whatever the shape was, and normalises."""
    return transforms.Compose(
        [transforms.Resize((image_size, image_size), interpolation=InterpolationMode.BICUBIC), *_to_tensor()]
    )


def training_transform(image_size: int) -> transforms.Compose:
    """Crops half to all of the image, flips it every other time, augments it twice at random and normalises."""
    return transforms.Compose(
        [
            transforms.RandomResizedCrop(image_size, scale=(0.5, 1.0), interpolation=InterpolationMode.BICUBIC),
            transforms.RandomHorizontalFlip(),
            RandAugment(count=2, level=5, probability=0.5),
            *_to_tensor(),
        ]
    )


def _to_tensor() -> list:
    return [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
