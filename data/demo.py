"""The demo's data set: a generated world of colored shapes in exactly the file formats of the real data sets.

    python -m data.demo --out datasets/demo

Three parts: the world (a scene and its pixels), the language (what is said and asked about scenes), the files.
Everything follows from the seed. A statement about two images can only be judged by looking at both.
"""

import argparse
import json
import sys
import time
from collections import Counter, defaultdict
from itertools import count, product
from pathlib import Path
from typing import NamedTuple
from zlib import Z_HUFFMAN_ONLY

import numpy as np
from PIL import Image

from utils import UserError, prepare_output, write_atomic

# The world.

COLORS = {
    "red": (230, 30, 30),
    "green": (30, 200, 40),
    "blue": (30, 50, 235),
    "yellow": (235, 225, 30),
    "purple": (205, 35, 215),
    "cyan": (30, 215, 225),
}
SHAPES = ("circle", "square", "triangle", "cross")
SIZES = {"small": 1, "large": 2}  # side in cells
BACKGROUND = (45, 45, 50)
CELL = 12  # pixels; the demo's models take one cell as one patch
GRID = 8  # cells to a side
OBJECTS = 3  # in one image, at most
NOISE = np.arange(-12, 13, 4)  # gray levels of the pixel noise: few, so that images fit a palette and files stay small


class Thing(NamedTuple):
    """One object: what it looks like, and its top left cell."""

    size: str
    color: str
    shape: str
    row: int
    column: int


Scene = tuple[Thing, ...]


def sample_scene(rng: np.random.Generator, objects: int = OBJECTS, grid: int = GRID) -> Scene:
    """Draws 1 to `objects` things, no two of one look, on free cells of a `grid` x `grid` board.

    They come in the order of captions: small before large, then by color, then by shape.
    """
    looks = list(product(SIZES, COLORS, SHAPES))
    chosen = rng.choice(len(looks), size=rng.integers(1, objects + 1), replace=False)
    free = np.ones((grid, grid), dtype=bool)
    scene = []
    for look in sorted(chosen):
        size, color, shape = looks[look]
        side = SIZES[size]
        places = np.lib.stride_tricks.sliding_window_view(free, (side, side)).all(axis=(2, 3))
        row, column = (int(cell) for cell in rng.choice(np.argwhere(places)))
        free[row : row + side, column : column + side] = False
        scene.append(Thing(size, color, shape, row, column))
    return tuple(scene)


def sample_splits(
    rng: np.random.Generator, sizes: dict[str, int], objects: int = OBJECTS, grid: int = GRID
) -> dict[str, list[Scene]]:
    """Draws the scenes of every split; no scene occurs twice, in whatever splits."""
    seen, splits = set(), {}
    for split, size in sizes.items():
        splits[split] = []
        while len(splits[split]) < size:
            scene = sample_scene(rng, objects, grid)
            if scene not in seen:
                seen.add(scene)
                splits[split].append(scene)
    return splits


def outline(shape: str, side: int) -> np.ndarray:
    """Returns the pixels of a shape in its square: bool [side, side]."""
    y, x = np.mgrid[:side, :side] - (side - 1) / 2  # measured from the middle
    return {
        "circle": x**2 + y**2 <= (side / 2) ** 2,
        "square": np.ones((side, side), dtype=bool),
        "triangle": abs(x) <= (y + side / 2) / 2,
        "cross": np.minimum(abs(x), abs(y)) <= side / 6,
    }[shape]


def draw(scene: Scene, rng: np.random.Generator, grid: int = GRID) -> Image.Image:
    """Paints a scene: shapes 11 or 22 pixels wide, at most one pixel off the middle of their cells, and gray noise."""
    paint = np.zeros((grid * CELL, grid * CELL), dtype=np.uint8)  # 0 background, then the colors in order
    for thing in scene:
        cells = SIZES[thing.size] * CELL
        side = cells * 11 // 12
        top, left = np.array([thing.row, thing.column]) * CELL + rng.integers(0, cells - side + 1, size=2)
        paint[top : top + side, left : left + side][outline(thing.shape, side)] = 1 + list(COLORS).index(thing.color)
    step = NOISE[1] - NOISE[0]
    noise = np.rint(rng.normal(0, 4, paint.shape) / step).clip(NOISE[0] // step, NOISE[-1] // step)
    shade = (noise + len(NOISE) // 2).astype(np.uint8)
    image = Image.fromarray(paint * np.uint8(len(NOISE)) + shade)
    image.putpalette(np.add.outer([BACKGROUND, *COLORS.values()], NOISE).swapaxes(1, 2).astype(np.uint8).tobytes())
    return image


# The language.

PLURALS = {"circle": "circles", "square": "squares", "triangle": "triangles", "cross": "crosses"}
FAMILIES = {
    "both": "both images contain a {}",
    "any": "at least one image contains a {}",
    "left": "the left image contains a {}",
}
VOCABULARY = (
    ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    + list("?,.'-")
    + [str(digit) for digit in range(10)]
    + [*COLORS, *SHAPES, *PLURALS.values(), *SIZES]
    + "a picture of and is are there how many what color shape the object objects yes no".split()
    + "both images contain contains at least one image left right".split()
)


def captions(scene: Scene) -> list[str]:
    """Says what is in a scene: the things in their order first, then the same with another one in front."""
    phrases = [f"a {thing.size} {thing.color} {thing.shape}" for thing in scene]
    return [" and ".join(phrases[first:] + phrases[:first]) for first in range(len(phrases))]


def contains(scene: Scene, color: str, shape: str) -> bool:
    """Whether a thing of this color and shape is in the scene."""
    return any((thing.color, thing.shape) == (color, shape) for thing in scene)


def nearly_contains(scene: Scene, color: str, shape: str) -> bool:
    """Whether it is not there, but something of its color or of its shape is: a near miss."""
    return not contains(scene, color, shape) and any(thing.color == color or thing.shape == shape for thing in scene)


def questions(scene: Scene, rng: np.random.Generator) -> dict[str, tuple[str, str]]:
    """Asks at most one question of each kind, with its answer; color and shape only of a thing that can be told."""
    found = {}
    colors, shapes = Counter(thing.color for thing in scene), Counter(thing.shape for thing in scene)
    if telling := [thing for thing in scene if shapes[thing.shape] == 1]:
        thing = telling[rng.integers(len(telling))]
        found["color"] = (f"what color is the {thing.shape}?", thing.color)
    if telling := [thing for thing in scene if colors[thing.color] == 1]:
        thing = telling[rng.integers(len(telling))]
        found["shape"] = (f"what shape is the {thing.color} object?", thing.shape)

    here = scene[rng.integers(len(scene))]  # half of the counts and of the existences are about something present
    color, shape = (here.color, here.shape) if rng.random() < 0.5 else (rng.choice(list(COLORS)), rng.choice(SHAPES))
    found["count"] = [
        ("how many objects are there?", str(len(scene))),
        (f"how many {color} objects are there?", str(colors[color])),
        (f"how many {PLURALS[shape]} are there?", str(shapes[shape])),
    ][rng.integers(3)]

    color, shape, answer = here.color, here.shape, "yes"
    if rng.random() < 0.5:
        missed = [look for look in product(COLORS, SHAPES) if nearly_contains(scene, *look)]
        (color, shape), answer = missed[rng.integers(len(missed))], "no"
    found["existence"] = (f"is there a {color} {shape}?", answer)
    return found


def answer_list(objects: int = OBJECTS) -> list[str]:
    """Lists every answer there is."""
    return [*COLORS, *SHAPES, *(str(count) for count in range(objects + 1)), "yes", "no"]


def ten_answers(kind: str, answer: str, rng: np.random.Generator) -> list[str]:
    """Asks ten people; for one question in ten, one of them gives another answer of the same kind."""
    answers = [answer] * 10
    if rng.random() < 0.1:
        possible = {"color": COLORS, "shape": SHAPES, "count": "0123", "existence": ("yes", "no")}[kind]
        answers[-1] = str(rng.choice([other for other in possible if other != answer]))
    return answers


def statements(scenes: list[Scene], number: int, rng: np.random.Generator) -> list[tuple[int, int, str, bool]]:
    """Makes statements about pairs of scenes: (left index, right index, sentence, label), in random order.

    Each family gets `number / 3` of them, half true and half false; a false one differs from a true one in a single
    image, and that image is a near miss. Under each sentence the label leans on neither image alone:
    knowing one of the two leaves a quarter of `both` and `any` wrong, and not knowing which is which, half of `left`.

    Raises:
        UserError: too few scenes for any thing to be present, and nearly present, twice.
    """
    present, near = defaultdict(list), defaultdict(list)
    for look, (index, scene) in product(product(COLORS, SHAPES), enumerate(scenes)):
        if contains(scene, *look):
            present[look].append(index)
        elif nearly_contains(scene, *look):
            near[look].append(index)
    looks = [look for look in product(COLORS, SHAPES) if min(len(present[look]), len(near[look])) > 1]
    if not looks:
        raise UserError(f"{len(scenes)} images are too few to make pairs of: ask for 50 or more in every split")

    made = []
    for (family, sentence), label, turn in product(FAMILIES.items(), (True, False), range(number // 6)):
        look = looks[rng.integers(len(looks))]
        first, second = {
            ("both", True): (present, present),
            ("both", False): (present, near),
            ("any", True): (present, near),
            ("any", False): (near, near),
            ("left", True): (present, near),
            ("left", False): (near, present),
        }[family, label]
        left, right = _two_of(first[look], second[look], rng)
        if family != "left" and turn % 2:
            left, right = right, left
        made.append((left, right, sentence.format(" ".join(look)), label))
    return [made[index] for index in rng.permutation(len(made))]


def _two_of(first: list[int], second: list[int], rng: np.random.Generator) -> tuple[int, int]:
    """Picks one of each list, never the same image."""
    left = right = first[rng.integers(len(first))]
    while right == left:
        right = second[rng.integers(len(second))]
    return left, right


# The files.

TRAIN, VAL, TEST = "train", "val", "test"


def make(
    folder: str | Path,
    *,
    seed: int,
    train: int,
    val: int,
    test: int,
    pairs: int,
    objects: int = OBJECTS,
    grid: int = GRID,
) -> dict[str, int]:
    """Writes the whole data set: `images/`, `annotation/`, `tokenizer/`, and last of all `demo.json`.

    Args:
        train, val, test: images of the splits.
        pairs: NLVR2 statements to train on; validation and test have about one per image.
        objects: things in an image, at most.
        grid: side of an image in cells of 12 pixels.

    Returns:
        Entries by annotation file.

    Raises:
        UserError: sizes that cannot be, or a folder that cannot be written.
    """
    _check(train, val, test, pairs, objects, grid)
    folder = Path(folder)
    rng = np.random.default_rng(seed)
    splits = sample_splits(rng, {TRAIN: train, VAL: val, TEST: test}, objects, grid)
    names = write_images(folder / "images", splits, rng, grid)

    files = {}
    for split, scenes in splits.items():
        said = statements(scenes, pairs if split == TRAIN else len(scenes), rng)
        files |= nlvr_files(split, names[split], said)
        files |= caption_files(split, names[split], scenes)
        files |= vqa_files(split, names[split], scenes, rng)
    files["answer_list"] = answer_list(objects)
    for name, entries in files.items():
        prepare_output((folder / "annotation" / name).parent)
        write_atomic(folder / "annotation" / f"{name}.json", json.dumps(entries, separators=(",", ":")))
    prepare_output(folder / "tokenizer")
    write_atomic(folder / "tokenizer" / "vocab.txt", "\n".join(VOCABULARY) + "\n")
    return {name: len(entries) for name, entries in files.items() if isinstance(entries, list)}


def _check(train: int, val: int, test: int, pairs: int, objects: int, grid: int) -> None:
    """Refuses sizes that cannot be drawn."""
    if min(train, val, test) < 50 or pairs < 6:
        raise UserError(
            f"--train {train} --val {val} --test {test} --pairs {pairs}: ask for 50 images and 6 pairs or more"
        )
    # Each thing keeps at most 9 places from a large one, of (grid - 1) squared.
    if objects < 1 or objects * 9 >= (grid - 1) ** 2:
        raise UserError(f"--objects {objects} do not always fit --grid {grid}: ask for fewer objects or a larger grid")


def write_images(
    folder: Path, splits: dict[str, list[Scene]], rng: np.random.Generator, grid: int
) -> dict[str, list[str]]:
    """Draws every scene into a PNG file; numbers run on through the splits. Returns names relative to `folder`."""
    numbers = count(1)
    names = {}
    for split, scenes in splits.items():
        prepare_output(folder / split)
        names[split] = [f"{split}/{next(numbers):06d}.png" for _ in scenes]
        for name, scene in zip(names[split], scenes, strict=True):
            draw(scene, rng, grid).save(folder / name, compress_type=Z_HUFFMAN_ONLY)  # noise repeats nothing
    return names


def nlvr_files(split: str, names: list[str], said: list[tuple[int, int, str, bool]]) -> dict[str, list]:
    """Returns the annotation file of the pairs."""
    entries = [
        {"images": [names[left], names[right]], "sentence": sentence, "label": str(label)}
        for left, right, sentence, label in said
    ]
    return {f"nlvr_{'dev' if split == VAL else split}": entries}


def caption_files(split: str, names: list[str], scenes: list[Scene]) -> dict[str, list | dict]:
    """Returns the files of captioning and retrieval.

    COCO trains on the sorted caption alone, which makes an exact match learnable, Flickr on every one. Outside training
    only the first image of each caption is listed: two that are described alike cannot be told apart by retrieval.
    """
    described = [(name, captions(scene)) for name, scene in zip(names, scenes, strict=True)]
    if split == TRAIN:
        flickr = [
            {"image": name, "caption": caption, "image_id": f"flickr_{image_number(name)}"}
            for name, texts in described
            for caption in texts
        ]
        coco = [
            {"image": name, "caption": texts[0], "image_id": f"coco_{image_number(name)}"} for name, texts in described
        ]
        return {"coco_karpathy_train": coco, "flickr30k_train": flickr}

    first = {texts[0]: (name, texts) for name, texts in reversed(described)}
    entries = [{"image": name, "caption": texts} for name, texts in reversed(first.values())]
    truth = [
        {"image_id": image_number(entry["image"]), "caption": caption}
        for entry in entries
        for caption in entry["caption"]
    ]
    coco_gt = {
        "info": {},
        "licenses": [],
        "type": "captions",
        "images": [{"id": image_number(entry["image"])} for entry in entries],
        "annotations": [{**annotation, "id": number} for number, annotation in enumerate(truth, start=1)],
    }
    return {
        f"coco_karpathy_{split}": entries,
        f"flickr30k_{split}": entries,
        f"coco_gt/coco_karpathy_{split}_gt": coco_gt,
    }


def image_number(name: str) -> int:
    """The number in an image's file name."""
    return int(Path(name).stem)


def vqa_files(split: str, names: list[str], scenes: list[Scene], rng: np.random.Generator) -> dict[str, list]:
    """Returns the files of the questions; those of the test split come without answers, as VQAv2's do.

    A question's id is its image's number and two digits. Visual Genome's part asks a tenth of the images once more.
    """
    asked, genome = [], []
    for name, scene in zip(names, scenes, strict=True):
        for number, (kind, (question, answer)) in enumerate(questions(scene, rng).items()):
            entry = {"question_id": image_number(name) * 100 + number, "question": question}
            answers = {} if split == TEST else {"answer": ten_answers(kind, answer, rng)}
            asked.append({**entry, **answers, "image": name, "dataset": "vqa"})
        if split == TRAIN and rng.random() < 0.1:
            question, answer = questions(scene, rng)["existence"]
            question_id = image_number(name) * 100 + 99
            genome.append(
                {"question_id": question_id, "question": question, "answer": answer, "image": name, "dataset": "vg"}
            )
    return {f"vqa_{split}": asked} | ({"vg_qa": genome} if split == TRAIN else {})


def main(argv: list[str] | None = None) -> int:
    """Makes the data set, or keeps the one that is there if it was made the same way."""
    parser = argparse.ArgumentParser(description="Generate the demo's data set.")
    parser.add_argument("--out", default="datasets/demo", help="folder to write")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--train", type=int, default=6000, help="training images")
    parser.add_argument("--val", type=int, default=512, help="validation images")
    parser.add_argument("--test", type=int, default=1000, help="test images")
    parser.add_argument("--pairs", type=int, default=15000, help="statements about two images to train on")
    parser.add_argument("--objects", type=int, default=OBJECTS, help="things in an image, at most")
    parser.add_argument("--grid", type=int, default=GRID, help="side of an image in cells of 12 pixels")
    arguments = vars(parser.parse_args(argv))
    folder = Path(arguments.pop("out"))
    manifest = folder / "demo.json"
    try:
        if manifest.exists():
            if json.loads(manifest.read_text())["arguments"] != arguments:
                raise UserError(f"{folder} holds a demo made with other arguments: delete it or choose another --out")
            print(f"kept {folder}, which was made with the same arguments")
            return 0
        start = time.perf_counter()
        prepare_output(folder)
        entries = make(folder, **arguments)
        write_atomic(manifest, json.dumps({"arguments": arguments, "entries": entries}, indent=1))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    images = arguments["train"] + arguments["val"] + arguments["test"]
    seconds = time.perf_counter() - start
    print(f"{images} images, {sum(entries.values())} annotations in {seconds:.1f} s: {folder}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
