"""The demo's world: scenes of colored shapes, their pixels, and what is said and asked about them.

A statement about two images can only be judged by looking at both.
"""

from collections import Counter, defaultdict
from itertools import product
from typing import NamedTuple

import numpy as np
from PIL import Image

from utils import UserError

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
GRID = 7  # cells to a side
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


def sample_scene(rng: np.random.Generator, objects: int, grid: int = GRID) -> Scene:
    """Draws `objects` things, no two of one look, on free cells of a `grid` x `grid` board.

    They come in the order of captions: small before large, then by color, then by shape.
    """
    looks = list(product(SIZES, COLORS, SHAPES))
    free = np.ones((grid, grid), dtype=bool)
    scene = []
    for look in sorted(rng.choice(len(looks), objects, replace=False)):
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
    """Draws the scenes of every split; none occurs twice, in whatever splits.

    Scenes of one thing are half as frequent as those of 2, 3, ... `objects`: there are only so many.

    Raises:
        UserError: more scenes than there are, or more things than always fit.
    """
    # Each thing takes at most 9 places from a large one, of (grid - 1) squared.
    if objects < 1 or objects * 9 >= (grid - 1) ** 2:
        raise UserError(f"{objects} objects do not always fit a grid of {grid}: ask for 1 or more on a larger grid")
    alone = sum(sizes.values()) / (2 * objects - 1)
    different = len(COLORS) * len(SHAPES) * (grid**2 + (grid - 1) ** 2)
    if alone > 0.95 * different:
        raise UserError(f"{alone:.0f} images of one object, of {different} there are: ask for fewer images")

    seen, splits = set(), {}
    for split, size in sizes.items():
        splits[split] = []
        for _ in range(size):
            number = 1 + (1 + rng.integers(2 * objects - 1)) // 2  # one chance for 1 thing, two for each other number
            scene = sample_scene(rng, number, grid)
            while scene in seen:
                scene = sample_scene(rng, number, grid)
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
    + "a picture of and is are there does how many what color shape the object objects yes no".split()
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
    """Asks at most one question of each kind, with its answer; color and shape only of a thing that can be told.

    Half of the questions go without their question mark.
    """
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
    asked = ("is there a {} {}?", "does the image contain a {} {}?")[rng.integers(2)]
    found["existence"] = (asked.format(color, shape), answer)
    # Statements carry no question mark: a model that leans on it could not go on from questions to statements.
    return {
        kind: (question if rng.random() < 0.5 else question.removesuffix("?"), answer)
        for kind, (question, answer) in found.items()
    }


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
