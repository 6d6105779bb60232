"""Draws what every method keeps of some photos, for whoever has them; nothing of it belongs into the documentation.

python -m benchmarks.photos --task retrieval --p 0.5 --pictures output/photos/pictures
"""

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from benchmarks.photos.cells import Cell
from benchmarks.photos.running import Bench
from madtp.cost.temperature import RatioOutOfReach
from madtp.cost.trace import Trace
from madtp.look.pictures import Example, draw_tokens, readable_image
from madtp.look.survival import Step, follow
from transform.pictures import MEAN, STD
from utils import UserError, prepare_output

DOCS = Path(__file__).parents[2] / "docs"
SHOWN, ACROSS = 4, 6  # photos, and layers of each


def draw(bench: Bench, cells: Sequence[Cell], known: dict[str, dict], folder: Path, number: int = 0) -> list[Path]:
    """Draws the first photos of the split, one file each, a row for every method; returns the files.

    Args:
        bench: whose model prunes.
        cells: what is drawn; the dense model, what is trained first and what does not reach its cost are left out.
        known: records, of which amounts are taken where there are any.
        folder: of the files.
        number: of photos; 0 is a few.

    Raises:
        UserError: the folder belongs to the documentation.
    """
    if folder.resolve().is_relative_to(DOCS):
        raise UserError(f"--pictures {folder} is in {DOCS}, where no photo may go; name another folder")
    prepare_output(folder)
    photos = bench.subject.photos
    images = next(bench.subject.images(photos))  # the first batch: some rules look at all photos of one
    shown = [cell for cell in cells if cell.p and not cell.trained]
    rows = [(cell, found) for cell in shown if (found := steps_of(bench, cell, known, images))]
    files = []
    for photo in range(min(number or SHOWN, len(images))):
        picture = readable_image(images[photo], MEAN, STD)
        examples = [example(cell, picture, steps[photo]) for cell, steps in rows]
        files.append(folder / f"{bench.task}-{bench.split}-{photo + 1}.png")
        draw_tokens(files[-1], examples, f"What every method keeps, photo {photo + 1}")
    return files


def steps_of(bench: Bench, cell: Cell, known: dict[str, dict], images: Tensor) -> list[list[Step]]:
    """What every layer left of each photo of a batch; nothing where the cost is out of reach."""
    trace = Trace()
    try:
        schedule, _ = bench.schedule(cell, known)
        with bench.on_trial(cell, schedule):
            amount = known.get(cell.name, {}).get("amount") or bench.amount(cell.p, schedule is not None)
            bench.subject.encode(images, amount, trace)
    except RatioOutOfReach:
        return []
    merges = bool(cell.schedule)  # the other rules drop
    steps = [follow(trace.layers["image"], photo) for photo in range(len(images))]
    return [[step._replace(grouped=merges) for step in own] for own in steps]


def example(cell: Cell, picture, steps: list[Step]) -> Example:
    """A row: the photo, and what some layers, evenly spread, left of it."""
    layers = sorted({round((place + 1) * len(steps) / ACROSS) - 1 for place in range(ACROSS)} - {-1})
    side = round(len(steps[0].entered) ** 0.5)
    title = f"{cell.title}, {100 - 100 * cell.p:g} % of the cost"
    return Example([title], [picture], [[steps[layer] for layer in layers]], side, [layer + 1 for layer in layers])
