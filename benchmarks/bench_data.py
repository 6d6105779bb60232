"""Whether the data keep up with the model: `python -m benchmarks.bench_data`.

Makes photographs of its own, JPEGs of 640 x 480 as COCO has them and some of 4000 x 3000 as cameras do, and measures

    decode    reading them, whole and as they are read for a model (large ones at a fraction of their size)
    load      what comes out of a loader, transformed for evaluation or for training, by the number of workers; `in
              floats` as one would write it down, resized by Pillow and normalised by the worker

They take turns, and `faster` is the median over the rounds of a row's rate over that `in floats`.
"""

import argparse
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import transforms

from benchmarks.timing import check_sizes, ratio, report, spread, take_turns, told
from data.files import decode_image
from data.loading import collate, create_loader
from transform.pictures import MEAN, STD, evaluation_transform, training_transform

PLAIN = " in floats"
SHAPES = {"640 x 480": (640, 480), "4000 x 3000": (4000, 3000)}


class Photos(Dataset):
    """Decoded and transformed photographs."""

    collate = staticmethod(collate)

    def __init__(self, paths: list[Path], image_size: int, transform: Callable):
        self.paths, self.image_size, self.transform = paths, image_size, transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"image": self.transform(decode_image(self.paths[index], self.image_size))}


def make_photos(folder: Path, shape: tuple[int, int], number: int) -> list[Path]:
    """Photographs of nothing: shades of every size, and the noise of a sensor."""
    draw, paths = np.random.default_rng(0), []
    for index in range(number):
        shades = np.zeros((shape[1], shape[0], 3), dtype=np.float32)
        for cells in (4, 16, 64):
            coarse = Image.fromarray(draw.integers(0, 255, (cells, cells, 3), dtype=np.uint8))
            shades += np.asarray(coarse.resize(shape, Image.Resampling.BICUBIC)) / 3
        noisy = shades + draw.normal(0, 4, shades.shape).astype(np.float32)
        paths.append(folder / f"{shape[0]}_{index}.jpg")
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(paths[-1], quality=92)
    return paths


def decode_all(paths: list[Path], wanted: int) -> None:
    """Reads every photograph."""
    for path in paths:
        decode_image(path, wanted)


def read_all(loader: torch.utils.data.DataLoader) -> None:
    """Goes through a loader once."""
    for _ in loader:
        pass


def transforms_of(size: int) -> dict[str, Callable]:
    """Ours, and what they are compared with."""
    bicubic = transforms.InterpolationMode.BICUBIC
    resize = transforms.Resize((size, size), interpolation=bicubic)
    crop = transforms.RandomResizedCrop(size, scale=(0.5, 1.0), interpolation=bicubic)
    to_floats = [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    training = training_transform(size)
    return {
        "evaluation": evaluation_transform(size),
        "evaluation" + PLAIN: transforms.Compose([resize, *to_floats]),
        "training": training,
        "training" + PLAIN: transforms.Compose([crop, *training.transforms[1:-1], *to_floats]),
    }


def measure(folder: Path, args: argparse.Namespace) -> list[dict]:
    """One row per kind of work: images per second."""
    size, found = args.image_size, []
    for kind, shape in SHAPES.items():
        paths = make_photos(folder, shape, max(2, args.images * 640 * 480 // (shape[0] * shape[1])))
        whole, drafted = partial(decode_all, paths, 0), partial(decode_all, paths, size)
        work = {("decode", "whole", 0): whole, ("decode", "for the model", 0): drafted}
        if kind == "640 x 480":
            for name, transform in transforms_of(size).items():
                for workers in args.workers:
                    dataset = Photos(paths, size, transform)
                    loader = create_loader(dataset, args.batch, train=False, num_workers=workers)
                    work["load", name, workers] = partial(read_all, loader)
        found_times = take_turns(work, args.rounds, "cpu")
        for (step, name, workers), times in found_times.items():
            low, median, high = spread(times)
            rates = {"images_per_second": len(paths) / median, "low": len(paths) / high, "high": len(paths) / low}
            rates["per_worker"] = rates["images_per_second"] / max(1, workers)
            rates["faster"] = ratio(found_times.get((step, name + PLAIN, workers), times), times)
            found.append({"photos": kind, "step": step, "name": name, "workers": workers, **rates})
    return found


def main() -> None:
    """Prints a table and one JSON line per row."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    sizes = {"image_size": 384, "images": 128, "batch": 16, "rounds": 5}
    for name, default in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=f"default {default}")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2], help="0 loads in the process itself")
    parser.add_argument("--output", help="JSON-lines file to add the rows to")
    args = parser.parse_args()
    check_sizes(args, sizes)
    torch.set_num_threads(1)  # as a data worker has
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), args)
    head = f"{'photos':<13}{'step':<8}{'':<22}{'workers':>8}{'images/s':>10}"
    print(f"{head}{'quartiles':>16}{'per worker':>12}{'faster':>8}")
    for row in found:
        quartiles = f"{row['low']:.0f} - {row['high']:.0f}"
        print(
            f"{row['photos']:<13}{row['step']:<8}{row['name']:<22}{row['workers']:>8}"
            f"{row['images_per_second']:>10.0f}{quartiles:>16}{row['per_worker']:>12.0f}{row['faster']:>8.2f}"
        )
    report(found, "cpu", args.output)


if __name__ == "__main__":
    told(main)
