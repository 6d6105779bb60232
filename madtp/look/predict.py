"""Answers about your own pictures, by any checkpoint: dense or compressed, BLIP's, CLIP's, MADTP's or ours.

    python -m madtp predict --checkpoint output/demo/nlvr_p0.5/checkpoint_best.pth \\
        --image left.png right.png --text "both images contain a red circle" --compare --visualize kept.png
    python -m madtp predict --task caption --checkpoint model_base_caption_capfilt_large.pth --image folder/ --json

Prints the answer, how many tokens every layer left, the GFLOPs and the milliseconds of each sample. The task and the
sizes come from `config.yaml` beside the checkpoint, from --config, or from --task alone for the paper's models.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from math import inf, isfinite
from pathlib import Path

from madtp.look.predictor import Forward, Predictor, load
from madtp.look.samples import Sample, batch_of, clean_text, find_pictures, read_pictures, samples_of
from madtp.method.errors import UserError
from transform.pictures import evaluation_transform


def run(args: argparse.Namespace) -> None:
    """Answers what the command line asks."""
    predictor = load_from(args)
    samples = own_samples(predictor, args.image, args.text)
    answers = answer(predictor, samples, args)
    if args.json:
        print(json.dumps(answers, indent=2))
    else:
        print("\n\n".join(map(readable, answers)))
        print(best_pictures(answers), end="")


def load_from(args: argparse.Namespace, checkpoint: str = "") -> Predictor:
    """The model that the flags name, or another of the same kind."""
    return load(checkpoint or args.checkpoint, args.task, args.config, args.device, args.set)


def own_samples(predictor: Predictor, images: Sequence[str], texts: Sequence[str]) -> list[Sample]:
    """The samples of --image and --text."""
    paths = find_pictures(images)
    return samples_of(predictor.task.name, read_pictures(paths), texts, [str(path) for path in paths])


def answer(predictor: Predictor, samples: list[Sample], args: argparse.Namespace) -> list[dict]:
    """One record for each sample: its pictures and texts, and for each model what it says, keeps and costs."""
    batches = batched(predictor, samples, args.batch_size)
    temperature = chosen_temperature(predictor, batches, args.temperature, args.p)
    if note := predictor.stored._replace(temperature=temperature).other_company(args.batch_size):
        print(f"note: {note}", file=sys.stderr)
    models = {"compressed" if temperature else "dense": (predictor, temperature)}
    if args.compare is not None:
        other = load_from(args, args.compare) if args.compare else predictor
        models = {"dense": (other, 0.0), **models}
    records = [{"images": list(sample.names), "text": list(sample.texts)} for sample in samples]
    for name, (model, at) in models.items():
        model.run(batches[0], at)  # the first forward pass also sets things up, and would look slow
        rows = [row for batch in batches for row in described(model, batch, model.run(batch, at), at)]
        for record, row in zip(records, rows, strict=True):
            record[name] = row
    if args.visualize:
        visualize(args.visualize, predictor, samples, records, temperature)
    return records


def batched(predictor: Predictor, samples: Sequence[Sample], size: int = 1) -> list[dict]:
    """Batches of the samples, prepared as in the evaluation."""
    if size < 1:
        raise UserError(f"--batch_size is {size}, expected at least 1")
    transform = evaluation_transform(predictor.task.config["image_size"])
    parts = [samples[start : start + size] for start in range(0, len(samples), size)]
    return [batch_of(predictor.task.name, part, transform) for part in parts]


def chosen_temperature(
    predictor: Predictor, batches: list[dict], temperature: float | None = None, p: float | None = None
) -> float:
    """The temperature asked for, the one that removes p from these batches, or the checkpoint's own."""
    if temperature is not None and not temperature >= 0:
        raise UserError(f"--temperature is {temperature}, expected at least 0")
    if p is not None and not 0 <= p < 1:
        raise UserError(f"--p is {p}, expected a share of the GFLOPs to remove, at least 0 and below 1")
    if p is not None:
        return predictor.temperature_for(batches, p)
    return predictor.stored.temperature if temperature is None else temperature


def described(predictor: Predictor, batch: dict, forward: Forward, temperature: float) -> list[dict]:
    """What a model says of every sample of a batch, what it kept and what that cost."""
    samples = len(batch["index"])
    gflops, dense = predictor.costs(forward.trace, samples)
    return [
        {
            **spoken(predictor, batch, forward.results[row]),
            "temperature": temperature,
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
    scores = {text: score for text, score in zip(batch["caption"], result.tolist(), strict=True) if isfinite(score)}
    return {"answer": max(scores, key=scores.get), "scores": scores}


def readable(record: dict) -> str:
    """A record as people read it."""
    models = {name: record[name] for name in ("dense", "compressed") if name in record}
    lines = [" ".join(record["images"]), *(f'"{text}"' for text in record["text"])]
    for name, row in models.items():
        lines.append(f"  {name:10s}  {row['answer']}")
        lines.append(
            f"  {'':10s}  {row['gflops']:.4g} GFLOPs, {row['percent']:.1f} % of dense (T {row['temperature']:.4g}), "
            f"{row['milliseconds']:.1f} ms"
        )
        for text, score in sorted(row.get("scores", {}).items(), key=lambda pair: -pair[1]):
            lines.append(f"  {'':10s}  {score:8.3f}  {text}")
        for tower, counts in row["tokens"].items():
            lines.append(f"  {'':10s}  {tower} tokens {' '.join(f'{count:g}' for count in counts)}")
    return "\n".join(lines)


def best_pictures(records: list[dict]) -> str:
    """Of retrieval among several pictures, the best one for every text."""
    name = "compressed" if "compressed" in records[0] else "dense"
    if len(records) == 1 or "scores" not in records[0][name]:
        return ""
    lines = ["", "the best picture of each text"]
    for text in records[0]["text"]:
        found = {record["images"][0]: record[name]["scores"].get(clean_text(text), -inf) for record in records}
        lines.append(f"  {text}: {max(found, key=found.get)}")
    return "\n".join(lines) + "\n"


def visualize(
    path: str, predictor: Predictor, samples: Sequence[Sample], records: list[dict], temperature: float
) -> None:
    """Draws every sample by itself; retrieval's with the text that was chosen."""
    from madtp.look.closeup import draw  # matplotlib takes a second, and is needed here only
    from madtp.look.views import closeups

    if temperature == 0:
        raise UserError("--visualize shows what is dropped, and at T 0 nothing is; give --temperature or --p")
    for number, (sample, record) in enumerate(zip(samples, records, strict=True), start=1):
        row = record["compressed"]
        if predictor.retrieves:
            sample = sample._replace(texts=(row["answer"],))
        (batch,) = batched(predictor, [sample])
        said = [] if predictor.retrieves else ["->", row["answer"]]
        title = f"{' '.join([*sample.texts, *said])}   ({row['percent']:.0f} % of dense)"
        (closeup,) = closeups(predictor, batch, predictor.run(batch, temperature, record=True), [title])
        draw(path if len(samples) == 1 else numbered(path, number), closeup)


def numbered(path: str, number: int) -> str:
    """A file name with a number before its ending."""
    return str(Path(path).with_stem(f"{Path(path).stem}-{number}"))
