"""Draws what a model keeps of the first samples of a data set, layer by layer, and why.

    python -m madtp.look.visualize --checkpoint output/demo/nlvr_p0.5/checkpoint_best.pth --number 4

Writes `pictures/SPLIT.png`, all samples at a glance, and `pictures/SPLIT-1.png`, ..., each with the importance of its
tokens and the parts that it is made of, into the checkpoint's folder. The samples go through the model in the batch
that they are in when the model is scored.
"""

import logging
import sys
from pathlib import Path

from data import create_dataset, create_loader
from madtp.look.closeup import Closeup, draw
from madtp.look.pictures import Example, draw_tokens
from madtp.look.predict import chosen_temperature, load_from, model_flags, numbered
from madtp.look.predictor import Predictor
from madtp.look.views import closeups
from madtp.method.errors import UserError
from madtp.shared.files import prepare_output

ACROSS = 6  # layers in the overview


def main(argv: list[str] | None = None) -> int:
    """Draws from the command line; the exit status, 2 after one line about what the user has to mend."""
    parser = model_flags("madtp.look.visualize", __doc__)
    parser.add_argument("--split", choices=("val", "test"), default="test", help="of the data set")
    parser.add_argument("--number", type=int, default=4, help="of samples; at most one batch of the evaluation")
    parser.add_argument("--out", help="folder for the pictures; by default `pictures` beside the checkpoint")
    args = parser.parse_args(argv)
    try:
        predictor = load_from(args)
        batch = first_batch(predictor, args.split)
        temperature = chosen_temperature(predictor, [batch], args.temperature, args.p)
        folder = prepare_output(args.out or Path(args.checkpoint).parent / "pictures")
        for path in visualize(predictor, batch, temperature, args.number, folder / f"{args.split}.png"):
            print(path)
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


def first_batch(predictor: Predictor, split: str) -> dict:
    """The first batch of a split, as in the evaluation."""
    config = predictor.task.config
    _, val, test = create_dataset(predictor.task.name, config, evaluate=True)
    return next(iter(create_loader({"val": val, "test": test}[split], config["batch_size_test"], train=False)))


def visualize(predictor: Predictor, batch: dict, temperature: float, number: int, path: Path) -> list[Path]:
    """Draws the first samples of a batch: all into `path`, each into a file of its own; returns the files.

    Raises:
        UserError: nothing is pruned.
    """
    if temperature == 0:
        raise UserError("there is nothing to see of a dense model, which drops nothing; give --temperature or --p")
    forward, task = predictor.run(batch, temperature, record=True), predictor.task
    number = min(number, len(batch["index"]))
    results = forward.results[:number]
    if predictor.retrieves:
        results = [batch["caption"][result.argmax()] for result in results]
    titles = [f"{task.asked(batch, row)} -> {task.answered(result)}".strip() for row, result in enumerate(results)]
    shown = closeups(predictor, batch, forward, titles)
    draw_tokens(path, [example(closeup) for closeup in shown], f"What {task.name} keeps at T {temperature:.4g}")
    files = [Path(numbered(str(path), place)) for place in range(1, number + 1)]
    for file, closeup in zip(files, shown, strict=True):
        draw(file, closeup)
    return [path, *files]


def example(closeup: Closeup) -> Example:
    """A sample at a glance: of a deep tower some layers, evenly spread, the last among them."""
    depth = len(closeup.pictures[0][1].steps)
    layers = sorted({round((place + 1) * depth / min(ACROSS, depth)) - 1 for place in range(min(ACROSS, depth))})
    kept = [[fate.steps[layer].kept for layer in layers] for _, fate in closeup.pictures]
    side = round(len(closeup.pictures[0][1].steps[0].entered) ** 0.5)
    pictures = [picture for picture, _ in closeup.pictures]
    return Example([closeup.title], pictures, kept, side, [layer + 1 for layer in layers])


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    sys.exit(main())
