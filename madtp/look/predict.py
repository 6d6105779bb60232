"""Answers about your own pictures, by any checkpoint: dense or compressed, BLIP's, CLIP's, MADTP's or ours.

    python -m madtp predict --checkpoint output/demo/nlvr_p0.5/checkpoint_best.pth \\
        --image left.png right.png --text "both images contain a red circle" --compare --visualize kept.png
    python -m madtp predict --task caption --checkpoint model_base_caption_capfilt_large.pth --image folder/ --json

Prints the answer, how many tokens every layer left, the GFLOPs and the milliseconds of each sample as soon as they are
known; a folder may hold any number of pictures, and what cannot be read is named and left out. The task and the sizes
come from `config.yaml` beside the checkpoint, from --config, or from --task alone for the paper's models.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from math import inf, isfinite
from pathlib import Path
from typing import TYPE_CHECKING

from madtp.look.predictor import Forward, Predictor, load
from madtp.look.samples import BadPicture, Sample, as_typed, batch_of, find_pictures, samples_of
from madtp.method.errors import UserError, excerpt
from madtp.method.rules import setting
from madtp.run import config as configuration
from madtp.shared.files import prepare_output, whole_file
from transform.pictures import evaluation_transform

if TYPE_CHECKING:
    from madtp.look.closeup import Closeup

Batch = tuple[list[Sample], dict]
LeaveOut = Callable[[BadPicture], None]

MODELS = "other", "dense", "compressed"  # the first is what --compare names where the model itself is dense
CALIBRATED = 32  # samples that a temperature is found for


def run(args: argparse.Namespace) -> int:
    """Answers what the command line asks; the exit status, 1 if something could not be read."""
    if args.visualize:
        prepare_drawing(args.visualize)
    predictor = load_from(args)
    pictures, left_out = find_pictures(args.image)
    samples = samples_of(predictor.task.name, pictures, [as_typed(text) for text in args.text])
    for line in (*left_out, *cut_texts(predictor, {text for sample in samples for text in sample.texts})):
        note(line)
    bad = []

    def leave_out(error: BadPicture) -> None:
        if len(samples) == 1:
            raise error
        bad.append(error)
        note(f"left out, {error}")

    records = answer(predictor, samples, args, leave_out)
    (print_json if args.json else print_readable)(records)
    return 1 if bad else 0


def note(line: str) -> None:
    """Says something beside the answers."""
    print(f"note: {line}", file=sys.stderr, flush=True)


def cut_texts(predictor: Predictor, texts: Iterable[str]) -> Iterator[str]:
    """What is to be said of texts that the model reads only the beginning of."""
    (kind, most), *_ = predictor.model.text_limits.items()
    for text in sorted(texts):
        (tokens,) = predictor.model.text_lengths([text])
        if tokens > (most or inf):
            yield f"{excerpt(text)} has {tokens} tokens, and of a {kind} the model reads {most}"


def load_from(args: argparse.Namespace, checkpoint: str = "") -> Predictor:
    """The model that the flags name, or another of the same kind."""
    return load(checkpoint or args.checkpoint, args.task, args.config, args.device, args.set)


def answer(
    predictor: Predictor, samples: list[Sample], args: argparse.Namespace, leave_out: LeaveOut
) -> Iterator[dict]:
    """One record for each sample: its pictures and texts, and for each model what it says, keeps and costs.

    Args:
        predictor: the model.
        samples: to answer.
        args: the flags.
        leave_out: is told of a picture that cannot be read.

    Raises:
        UserError: a flag that does not fit, or no sample that can be read.
    """
    if args.batch_size < 1:
        raise UserError(f"--batch_size is {args.batch_size}, expected at least 1")
    size = min(args.batch_size, len(samples))
    batches = batched(predictor, samples, size, leave_out)
    first = list(islice(batches, -(-CALIBRATED // size) if args.p else 1))
    if not first:
        raise UserError(f"of {len(samples)} samples none can be read; give other pictures to --image")
    temperature = chosen_temperature(predictor, [batch for _, batch in first], args.temperature, args.p)
    if company := predictor.prunes_at(temperature).other_company(size):
        note(company)
    if args.visualize and temperature == 0:
        raise UserError("--visualize shows what is dropped, and at T 0 nothing is; give --temperature or --p")
    models = answering(predictor, temperature, args)
    for model, at in models.values():
        model.run(first[0][1], at)  # the first forward pass also sets things up, and would look slow
    number = 0
    for some, batch in chain(first, batches):
        rows = {name: described(model, batch, model.run(batch, at), at) for name, (model, at) in models.items()}
        for row, sample in enumerate(some):
            number += 1
            own = {name: model_rows[row] for name, model_rows in rows.items()}
            if args.visualize:
                path = args.visualize if len(samples) == 1 else numbered(args.visualize, number)
                visualize(path, predictor, sample, own["compressed"], temperature)
            yield {"images": [str(path) for path in sample.pictures], "text": list(sample.texts), **own}


def answering(predictor: Predictor, temperature: float, args: argparse.Namespace) -> dict[str, tuple[Predictor, float]]:
    """The models that answer, by the names of `MODELS`, and at what temperature each does.

    Raises:
        UserError: --compare names a model that cannot be asked the same.
    """
    own = {"compressed" if temperature else "dense": (predictor, temperature)}
    if not args.compare:
        return own if args.compare is None else {"dense": (predictor, 0.0), **own}
    other = load_from(args, args.compare)
    one, two = ((model.task.name, model.task.config["image_size"]) for model in (predictor, other))
    if one != two:
        says = "{} at {} pixels".format
        raise UserError(f"--compare {args.compare} is a model of {says(*two)}, not of {says(*one)}; name another")
    return {"dense" if temperature else "other": (other, 0.0), **own}


def batched(
    predictor: Predictor, samples: Iterable[Sample], size: int = 1, leave_out: LeaveOut | None = None
) -> Iterator[Batch]:
    """Batches of the samples, prepared as in the evaluation, with the samples that are in them.

    Args:
        predictor: the model that they are for.
        samples: to prepare; a picture is read when its batch is asked for.
        size: of a batch.
        leave_out: is told of a picture that cannot be read, whose sample goes; without it that is an error.
    """
    wanted = predictor.task.config["image_size"]
    transform = evaluation_transform(wanted)

    def readable() -> Iterator[tuple[Sample, list]]:
        for sample in samples:
            try:
                yield sample, sample.pixels(transform, wanted)
            except BadPicture as error:
                if leave_out is None:
                    raise
                leave_out(error)

    together = readable()
    while part := list(islice(together, size)):
        some, pixels = map(list, zip(*part, strict=True))
        yield some, batch_of(predictor.task.name, some, pixels)


def chosen_temperature(
    predictor: Predictor, batches: list[dict], temperature: float | None = None, p: float | None = None
) -> float:
    """The temperature asked for, the one that removes p from these batches, or the checkpoint's own.

    Raises:
        UserError: it is none, out of reach, or that of another rule.
    """
    if temperature is not None and not 0 <= temperature < inf:
        raise UserError(f"--temperature is {temperature}, expected a number, at least 0")
    if p is not None and not 0 <= p < 1:
        raise UserError(f"--p is {p}, expected a share of the GFLOPs to remove, at least 0 and below 1")
    configuration.refuse_unsaid_shape(predictor.task.config, temperature)
    if p is not None:
        return predictor.temperature_for(batches, p)
    if temperature is not None:
        return temperature
    temperature = predictor.stored.temperature
    if temperature is None:
        keep = predictor.rule["keep"]
        raise UserError(f"how much this model prunes says nothing by keep={keep}, its own rule is another; give --p")
    if swapped := predictor.stored.other_rule(predictor.rule["keep"]):
        note(f"{swapped}, which --p finds")
    return temperature


def described(predictor: Predictor, batch: dict, forward: Forward, temperature: float) -> list[dict]:
    """What a model says of every sample of a batch, what it kept and what that cost."""
    samples = len(batch["index"])
    gflops, dense = predictor.costs(forward.trace, samples)
    return [
        {
            **spoken(predictor, batch, forward.results[row]),
            "temperature": temperature,
            **predictor.rule,
            "tokens": predictor.tokens(forward.trace, row, samples),
            "gflops": float(gflops[row]),
            "percent": float(100 * gflops[row] / dense[row]),
            "milliseconds": 1000 * forward.seconds / samples,
        }
        for row in range(samples)
    ]


def spoken(predictor: Predictor, batch: dict, result: object) -> dict:
    """The answer; of retrieval the best text, and the scores of all that were judged."""
    if not predictor.retrieves:
        return {"answer": predictor.task.answered(result)}
    scores = {text: score for text, score in zip(batch["asked"], result.tolist(), strict=True) if isfinite(score)}
    return {"answer": max(scores, key=scores.get), "scores": scores}


def readable(record: dict) -> str:
    """A record as people read it."""
    models = {name: record[name] for name in MODELS if name in record}
    lines = [" ".join(record["images"]), *(f'"{text}"' for text in record["text"])]
    for name, row in models.items():
        lines.append(f"  {name:10s}  {row['answer']}")
        lines.append(
            f"  {'':10s}  {row['gflops']:.4g} GFLOPs, {row['percent']:.1f} % of dense ({pruned_at(row)}), "
            f"{row['milliseconds']:.1f} ms"
        )
        for text, score in sorted(row.get("scores", {}).items(), key=lambda pair: -pair[1]):
            lines.append(f"  {'':10s}  {score:8.3f}  {text}")
        for tower, counts in row["tokens"].items():
            lines.append(f"  {'':10s}  {tower} tokens {' '.join(f'{count:g}' for count in counts)}")
    return "\n".join(lines)


def pruned_at(row: dict) -> str:
    """How much the model of a row prunes."""
    return setting(row["keep"], row["temperature"], row.get("shape"), row.get("keep_norm", False))


def print_readable(records: Iterable[dict]) -> None:
    """Prints records as they come and, of retrieval among several pictures, the best picture of every text at last."""
    best: dict[str, tuple[float, str]] = {}
    number = 0
    for number, record in enumerate(records, start=1):
        print("\n" * (number > 1) + readable(record), flush=True)
        scores = record["compressed" if "compressed" in record else "dense"].get("scores", {})
        for text in record["text"] if scores else ():
            found = scores.get(text, -inf), record["images"][0]
            best[text] = max(best.get(text, (-inf, "")), found, key=lambda pair: pair[0])
    if best and number > 1:
        print("\nthe best picture of each text")
        print(*(f"  {text}: {picture}" for text, (_, picture) in best.items()), sep="\n")


def print_json(records: Iterable[dict]) -> None:
    """Prints records as they come, all of them one JSON list."""
    number = -1
    for number, record in enumerate(records):
        print(",\n" if number else "[\n", json.dumps(record, indent=2), sep="", end="", flush=True)
    print("\n]" if number >= 0 else "[]")


def visualize(path: str, predictor: Predictor, sample: Sample, row: dict, temperature: float) -> None:
    """Draws a sample into a file, and what was kept of it."""
    from madtp.look.closeup import draw  # matplotlib takes a second, and is needed here only

    asked = [] if predictor.retrieves else [*sample.texts, "->"]
    title = f"{' '.join([*asked, row['answer']])}   ({row['percent']:.0f} % of dense)"
    closeup = closeup_of(predictor, sample, row["answer"], title, temperature)
    with whole_file(path) as file:
        draw(file, closeup)


def closeup_of(predictor: Predictor, sample: Sample, answer: str, title: str, temperature: float) -> "Closeup":
    """A sample and what is kept of it; retrieval's with the text that was chosen."""
    from madtp.look.views import closeups

    if predictor.retrieves:
        sample = sample._replace(texts=(answer,))
    ((_, batch),) = batched(predictor, [sample])
    return closeups(predictor, batch, predictor.run(batch, temperature, record=True), [title])[0]


def prepare_drawing(path: str) -> None:
    """Makes the folder of a drawing where it is missing.

    Raises:
        UserError: its name is not that of a PNG, or the folder cannot be written.
    """
    if Path(path).suffix.lower() != ".png":
        raise UserError(f"--visualize {path}: expected the name of a PNG, like kept.png")
    prepare_output(Path(path).parent)


def numbered(path: str, number: int) -> str:
    """A file name with a number before its ending."""
    return str(Path(path).with_stem(f"{Path(path).stem}-{number}"))
