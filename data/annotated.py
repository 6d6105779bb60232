"""What all data sets share: the entries of annotation files, each checked, and the images that they name."""

import logging
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate, chain
from pathlib import Path

from torch import Tensor
from torch.utils.data import Dataset

from data.files import correction, image_folder, leaves_folder, on_disk, read_entries, read_image, wrong_field
from data.loading import collate
from utils import UserError

logger = logging.getLogger(__name__)


class AnnotatedDataset(Dataset):
    """A sample for every entry of some annotation files.

    Args:
        transform: makes a tensor [3, S, S] of a decoded image.
        files: of annotations, whose entries follow each other.
        config: the folders of images, by their keys; `image_size`, what they will be resized to.

    Attributes:
        fields: what every entry has, by name, and its type. A list is one of strings.
        identity: the fields that tell one entry from another.

    Raises:
        UserError: a missing file or folder, or a wrong entry.
    """

    fields: dict[str, type | tuple[type, ...]]
    identity: tuple[str, ...]
    collate = staticmethod(collate)

    def __init__(self, transform: Callable, files: list[Path], config: dict):
        self.transform, self.files, self.image_size = transform, files, config.get("image_size", 0)
        read = [self.read(file) for file in files]
        self.ends = list(accumulate(len(entries) for entries in read))
        self.entries = list(chain.from_iterable(read))
        named = {image: None for entry in self.entries for image in self.images_of(entry)}
        self.folders = {key: image_folder(config[key], key) for key in sorted({key for key, _ in named})}
        self.respelled = respelled(named, self.folders)
        if self.respelled:
            (_, name), spelling = next(iter(self.respelled.items()))
            count = f"{len(self.respelled)} of {len(named)} images"
            logger.info("%s: %s are spelled otherwise on the disk, like %r: %r", files[0], count, name, spelling)

    def __len__(self) -> int:
        return len(self.entries)

    @classmethod
    def read(cls, file: Path) -> list[dict]:
        """Reads a file all of whose entries are right.

        Raises:
            UserError: it cannot be read, or one of them is not; names the first.
        """
        entries = read_entries(file)
        for number, entry in enumerate(entries):
            if fault := cls.wrong_form(entry) or cls.wrong_label(entry):
                raise UserError(f"{file}, entry {number}: {fault}; {correction(file)}")
        return entries

    @classmethod
    def wrong_form(cls, entry: object) -> str:
        """What is wrong with an entry's fields or images, if anything."""
        if fault := wrong_field(entry, cls.fields) or cls.wrong_value(entry):
            return fault
        outside = (name for _, name in cls.images_of(entry) if leaves_folder(name))
        return next((f"image {name!r} lies outside the image folder, give a path inside it" for name in outside), "")

    @classmethod
    def wrong_value(cls, entry: dict) -> str:
        """What is wrong with fields of the right types, if anything."""
        return ""

    @classmethod
    def wrong_label(cls, entry: dict) -> str:
        """What is wrong with the answer that an entry of the right form gives, if anything."""
        return ""

    @staticmethod
    def images_of(entry: dict) -> list[tuple[str, str]]:
        """The images of an entry: their folder's key in the configuration, and their name in that folder."""
        return [("image_root", entry["image"])]

    def texts_of(self, index: int) -> dict[str, list[str]]:
        """The texts of an entry as the model reads them, by what the model calls them."""
        return {}

    def all_texts(self) -> Iterator[tuple[str, str, str]]:
        """Every text that the model will read: where it stands, what the model calls it, and itself."""
        for index in range(len(self)):
            where = self.where(index)
            yield from ((where, kind, text) for kind, several in self.texts_of(index).items() for text in several)

    def image(self, index: int, number: int = 0) -> Tensor:
        """Reads an image of an entry and transforms it: [3, S, S]."""
        key, name = self.images_of(self.entries[index])[number]
        name = self.respelled.get((key, name), name)
        return self.transform(read_image(self.folders[key], name, self.where(index), self.image_size))

    def where(self, index: int) -> str:
        """Names the file and the entry in it, for errors."""
        file = bisect_right(self.ends, index)
        return f"{self.files[file]}, entry {index - (self.ends[file - 1] if file else 0)}"


def respelled(images: Iterable[tuple[str, str]], folders: dict[str, Path]) -> dict[tuple[str, str], str]:
    """Those of some images whose file is there, but under another spelling: that spelling."""
    return {
        (key, name): spelling
        for key, name in images
        if folders.get(key) and (spelling := on_disk(folders[key], name)) != name
    }
