"""Draws what a model keeps of the first samples of a data set, layer by layer, and why.

    python -m madtp visualize --checkpoint output/demo/nlvr_p0.5/checkpoint_best.pth --number 4

Writes `pictures/SPLIT.png`, all samples at a glance, and `pictures/SPLIT-1.png`, ..., each with the importance of its
tokens and the parts that it is made of, into the checkpoint's folder. By coverage the patches that one token stands for
have their mean colour. The samples go through the model in the batch that they are in when the model is scored.
"""

import argparse
from pathlib import Path

from data import create_dataset, create_loader
from madtp.look.closeup import Closeup, draw
from madtp.look.pictures import Example, draw_tokens
from madtp.look.predict import chosen_temperature, load_from, numbered
from madtp.look.predictor import Predictor
from madtp.look.views import closeups
from madtp.method.errors import UserError
from madtp.shared.files import prepare_output, whole_file

ACROSS = 6  # layers in the overview


def run(args: argparse.Namespace) -> None:
    """Draws what the command line asks for.

    Raises:
        UserError: see `draw_split`; or it asks for no sample.
    """
    if args.number < 1:
        raise UserError(f"--number is {args.number}, expected at least 1")
    for path in draw_split(load_from(args), args.split, args.number, args.out, args.temperature, args.p):
        print(path)


def draw_split(
    predictor: Predictor,
    split: str,
    number: int,
    out: str | None = None,
    temperature: float | None = None,
    p: float | None = None,
) -> list[Path]:
    """Draws the first samples of a split; returns the files.

    Args:
        predictor: the model.
        split: "val" or "test".
        number: of samples.
        out: folder, by default `pictures` beside the checkpoint.
        temperature: instead of the checkpoint's.
        p: share of the GFLOPs to remove, instead of a temperature.

    Raises:
        UserError: nothing is pruned, or the data or the folder are not as they should be.
    """
    batch = first_batch(predictor, split)
    temperature = chosen_temperature(predictor, [batch], temperature, p)
    folder = prepare_output(out or Path(predictor.task.config["pretrained"]).parent / "pictures")
    return visualize(predictor, batch, temperature, number, folder / f"{split}.png")


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
    examples = [example(closeup) for closeup in shown]
    with whole_file(path) as file:
        draw_tokens(file, examples, f"What {task.name} keeps at {predictor.at(temperature)}")
    files = [Path(numbered(str(path), place)) for place in range(1, number + 1)]
    for name, closeup in zip(files, shown, strict=True):
        with whole_file(name) as file:
            draw(file, closeup)
    return [path, *files]


def example(closeup: Closeup) -> Example:
    """A sample at a glance: of a deep tower some layers, evenly spread, the last among them."""
    depth = len(closeup.pictures[0][1].steps)
    layers = sorted({round((place + 1) * depth / min(ACROSS, depth)) - 1 for place in range(min(ACROSS, depth))})
    steps = [[fate.steps[layer] for layer in layers] for _, fate in closeup.pictures]
    side = round(len(closeup.pictures[0][1].steps[0].entered) ** 0.5)
    pictures = [picture for picture, _ in closeup.pictures]
    return Example([closeup.title], pictures, steps, side, [layer + 1 for layer in layers])
