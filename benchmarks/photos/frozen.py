"""What a frozen image tower makes of every photo, computed once and kept on disk: then only the text side is trained.

Shapes: n photos, L tokens of a photo, class token first, D width.
"""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from benchmarks.photos.machine import Machine
from madtp.method.layout import RECTANGLE, Sequences
from madtp.shared.weights import checkpoint
from models.vit import VisionTransformer
from transform.pictures import evaluation_transform, normalised

BATCH = 32

logger = logging.getLogger("photos")


def batches(files: Sequence[Path], size: int, batch: int = BATCH) -> Iterator[Tensor]:
    """Photos as the models take them, [B, 3, size, size]."""
    transform = evaluation_transform(size)
    for start in range(0, len(files), batch):
        pixels = [transform(Image.open(file).convert("RGB")) for file in files[start : start + batch]]
        yield normalised(torch.stack(pixels))


@torch.inference_mode()
def tokens_of(tower: VisionTransformer, files: Sequence[Path], machine: Machine) -> Tensor:
    """Tokens [n, L, D] of photos, in bf16, on the processor."""
    tower.eval()
    store = torch.empty(len(files), tower.shape.length, tower.embed_dim, dtype=torch.bfloat16)
    for number, images in enumerate(batches(files, tower.shape.image_size)):
        with machine.mixed():
            store[number * BATCH : number * BATCH + len(images)] = tower(images.to(machine.device))[0].to(store)
        if number % 20 == 0:
            logger.info("tokens of %d of %d photos", number * BATCH, len(files))
    return store


def kept_tokens(tower: VisionTransformer, folder: Path, file: Path, machine: Machine) -> dict[str, Tensor]:
    """Tokens [L, D] of every photo of a folder by its name; computed where the file is not there yet."""
    if not file.exists():
        photos = sorted(folder.glob("*.jpg"))
        checkpoint.save(file, names=[photo.name for photo in photos], tokens=tokens_of(tower, photos, machine))
    known = torch.load(file, weights_only=True, mmap=True)
    return dict(zip(known["names"], known["tokens"], strict=True))


@torch.inference_mode()
def blank_tokens(tower: VisionTransformer) -> Tensor:
    """Tokens [L, D] of the mean picture: all that a blind model ever sees."""
    size = tower.shape.image_size
    return tower.eval()(torch.zeros(1, 3, size, size, device=tower.cls_token.device))[0][0].to(torch.bfloat16)


class Frozen(nn.Module):
    """Stands in for an image tower while a text side is trained: an "image" is the number of a photo.

    Args:
        tower: whose place it takes.
        tokens: [n, L, D].
    """

    def __init__(self, tower: VisionTransformer, tokens: Tensor):
        super().__init__()
        self.shape, self.embed_dim, self.tokens = tower.shape, tower.embed_dim, tokens

    def encode(self, image: Tensor, *ignored: object) -> tuple[Sequences, None]:
        """The tokens of photos by number [B], as a dense tower returns them."""
        return Sequences(self.tokens[image].float(), RECTANGLE), None
