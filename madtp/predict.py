"""Answers about your own pictures, by any checkpoint: dense or compressed, BLIP's, CLIP's, MADTP's or ours.

    python -m madtp.predict --checkpoint output/demo/nlvr_p0.5/checkpoint_best.pth \\
        --image left.png right.png --text "both images contain a red circle" --compare --visualize kept.png
    python -m madtp.predict --task caption --checkpoint model_base_caption_capfilt_large.pth --image folder/ --json

Prints the answer, how many tokens every layer left, the GFLOPs and the milliseconds of each sample. The task and the
sizes come from `config.yaml` beside the checkpoint, from --config, or from --task alone for the paper's models.
"""

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data.transforms import evaluation_transform
from madtp.predictor import SCRIPTS, Forward, Predictor, load
from madtp.samples import Sample, batch_of, find_pictures, read_pictures, samples_of
from madtp.survival import tokens_of
from madtp.temperature import RatioOutOfReach
from utils import UserError


def main(argv: list[str] | None = None) -> int:
    """Answers from the command line; the exit status, 2 after one line about what the user has to mend."""
    try:
        args = command_line().parse_args(argv)
        predictor = load(args.checkpoint, args.task, args.config, args.device, args.set)
        samples = own_samples(predictor, args.image, args.text)
        answers = answer(predictor, samples, args)
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    if args.json:
        print(json.dumps(answers, indent=2))
    else:
        print("\n\n".join(map(readable, answers)))
        print(best_pictures(answers), end="")
    return 0


def command_line() -> argparse.ArgumentParser:
    """The flags."""
    parser = argparse.ArgumentParser(
        prog="python -m madtp.predict", description=__doc__.split("\n", 1)[0], allow_abbrev=False
    )
    flag = parser.add_argument
    flag("--checkpoint", required=True, help="file of the model")
    flag("--image", nargs="+", required=True, metavar="PATH", help="pictures and folders of them; NLVR2: pairs in turn")
    flag("--text", nargs="+", default=[], help="VQA: question; NLVR2: statement; retrieval: texts to choose from")
    flag("--task", choices=list(SCRIPTS), default="", help="what the checkpoint is for, if no configuration says it")
    flag("--config", default="", help="YAML file; the one beside the checkpoint, or else the task's own")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--temperature", type=float, help="pruning temperature instead of the checkpoint's; 0 is dense")
    how.add_argument("--p", type=float, help="share of the GFLOPs to remove from these pictures, by a T found for them")
    flag("--batch_size", type=int, default=1, help="samples that go through the model together")
    flag("--compare", nargs="?", const="", metavar="CHECKPOINT", help="also answer densely, by the same model at T 0 or by another")
    flag("--visualize", metavar="PNG", help="draw what every layer kept; of several samples: PNG-1.png, PNG-2.png, ...")
    flag("--device", default="", help="cpu, cuda or cuda:NUMBER; the GPU if there is one")
    flag("--json", action="store_true", help="print a JSON list instead")
    flag("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="override keys of the configuration")
    return parser


def own_samples(predictor: Predictor, images: Sequence[str], texts: Sequence[str]) -> list[Sample]:
    """The samples of --image and --text."""
    paths = find_pictures(images)
    return samples_of(predictor.task.name, read_pictures(paths), texts, [str(path) for path in paths])


def answer(predictor: Predictor, samples: list[Sample], args: argparse.Namespace) -> list[dict]:
    """One record for each sample: what it asks, and per model what it says, keeps and costs."""
    batches = batched(predictor, samples, args.batch_size)
    temperature = chosen_temperature(predictor, batches, args)
    if note := predictor.stored._replace(temperature=temperature).other_company(args.batch_size):
        print(f"note: {note}", file=sys.stderr)
    models = [("answer", predictor, temperature)]
    if args.compare is not None:
        other = load(args.compare, args.task, args.config, args.device, args.set) if args.compare else predictor
        models = [("dense", other, 0.0), ("compressed", predictor, temperature)]
    records = [{"images": list(sample.names), "text": list(sample.texts)} for sample in samples]
    for name, model, at in models:
        model.run(batches[0], at)  # the first forward pass also sets things up, and would look slow
        found = [(batch, model.run(batch, at)) for batch in batches]
        rows = [row for batch, forward in found for row in described(model, batch, forward, at)]
        for record, row in zip(records, rows, strict=True):
            record[name] = row
    if args.visualize:
        draw(predictor, samples, records, temperature, args)
    return records
