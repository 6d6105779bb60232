"""The photos' world in miniature: a few generated pictures, what is said and asked of them, tiny dense models."""

import json
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from benchmarks.comparison.ledger import read_lines
from benchmarks.photos import __main__ as driver
from benchmarks.photos import guides, prepare, running, training, tuning
from benchmarks.photos.world import Places
from madtp.__main__ import main as command
from tests.shared.weights.theirs import bert, dinov2, saved

SPLITS = {"train": 8, "val": 6, "test": 4}
WORDS = ("cat", "dog", "car", "ball", "tree", "man")


def picture(path, number):
    """A plain picture with a square, every number another one."""
    pixels = np.full((70, 70, 3), 40 * (number % 6), dtype=np.uint8)
    pixels[10:40, 5 * (number % 8) : 5 * (number % 8) + 25] = (200, 10 * number, 90)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def official(folder, data):
    """Files in the forms in which people get them, and the pictures."""
    images, lines = [], []
    for number in range(sum(SPLITS.values())):
        split = "train" if number < 8 else "val" if number < 14 else "test"
        picture(data / "flickr8k" / f"a{number}.jpg", number)
        picture(data / "daquar" / f"image{number}.jpg", number)
        texts = [f"a {WORDS[number % 6]} and a {word} in the picture" for word in WORDS[: 2 + number % 2]]
        sentences = [{"raw": text} for text in texts]
        images.append({"filename": f"a{number}.jpg", "imgid": number, "split": split, "sentences": sentences})
        for word in WORDS[: 1 + number % 2]:
            lines += [f"what is left of the {word} in the image{number} ?", WORDS[number % 3]]
    (folder / "dataset_flickr8k.json").write_text(json.dumps({"dataset": "flickr8k", "images": images}))
    (folder / "qa.894.raw.train.txt").write_text("\n".join(lines[:20]) + "\n")
    (folder / "qa.894.raw.test.txt").write_text("\n".join(lines[20:]) + "\n")
    return {"captions": [folder / "dataset_flickr8k.json"], "questions": sorted(folder.glob("qa.*"))}


@contextmanager
def miniature(folder):
    """Everything up to the dense models, and what runs the rest."""
    paths = {name: folder / name for name in ("data", "towers", "output", "results")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare, "QUESTIONS", {"val": 6, "test": 4})
        patch.setattr(training, "FITTING", 3)
        recipes = {task: replace(one, epochs=1, photos=4) for task, one in training.RECIPES.items()}
        patch.setattr(training, "RECIPES", recipes)
        patch.setattr(running, "SEARCHED", 4)
        patch.setattr(tuning, "STRETCH", 2)
        few = {task: replace(one, photos=4) for task, one in tuning.RECIPES.items()}
        patch.setattr(tuning, "RECIPES", few)
        patch.setattr(tuning, "ALONE", replace(tuning.ALONE, recipe=replace(tuning.ALONE.recipe, photos=4), steps=3))
        patch.setattr(running, "TIMED", {1: 1, 32: 4})
        patch.setattr(guides, "STEPS", 3)
        files = official(folder, paths["data"])
        image, text = saved(dinov2(), folder / "dinov2"), saved(bert(), folder / "bert", vocabulary=True)
        flags = ["--image", str(image), "--text", str(text), "--mean", *"000", "--std", *"111"]
        assert command(["towers", *flags, "--image_size", "70", "--output_dir", str(paths["towers"])]) == 0
        flags = [word for name, path in paths.items() for word in (f"--{name}", str(path))]

        def run(*arguments):
            return driver.main([*flags, *arguments])

        named = [word for name, some in files.items() for word in (f"--{name}", *map(str, some))]
        assert run("--prepare", *named) == 0
        assert run("--dense", "retrieval", "caption", "vqa") == 0
        assert run("--dense", "vqa", "--blind") == 0
        yield SimpleNamespace(run=run, places=Places(**paths), **paths)


def lines(small, name):
    return read_lines([small.results / f"{name}.jsonl"])


def tune(small, task, *arguments, steps=3):
    return small.run(
        "--task", task, "--finetuned", "--steps", str(steps), "--schedules", "even", "--p", "0.1", *arguments
    )
