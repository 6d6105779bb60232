"""How much faster inference is than its plain form: `python -m benchmarks.bench_inference --task caption`.

A base-size model with random weights does the same work both ways, in turns, so that a busy machine disturbs both
alike; the results have to be the same. What both ways share, encoding the images, is timed as well: the factor of a
whole prediction follows from it. The plain forms live here alone.

Shapes: B images or questions, G beams, k candidates, S tokens attended to, L text tokens.
"""

import argparse
import json
import random
import shlex
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.timing import arguments, ratio, timed, told
from madtp.cost.measure import CostMeter
from madtp.cost.trace import dense_layers
from madtp.method.layout import Sequences
from madtp.scoring.reranking import ImageBatch, judge
from madtp.shared.generation import beam_search
from models.answer_ranking import rank_answers
from models.blip import blip_decoder
from models.blip_retrieval import blip_retrieval
from models.blip_vqa import blip_vqa
from models.med import Decoder

WARM_UP = 1
ANSWERS = 3128
CANDIDATES = 256  # texts of an image that ITM judges
WORDS_OF_ANSWERS = {1: 0.78, 2: 0.14, 3: 0.05, 4: 0.02, 6: 0.007, 8: 0.003}  # share of the answers with so many words


@dataclass
class Comparison:
    """The same work done in two ways.

    Attributes:
        shared: what both need first; its result is the argument of both.
        ours: our way.
        plain: the plain one.
        same: whether their results are equal.
    """

    shared: Callable[[], Any]
    ours: Callable[[Any], Any]
    plain: Callable[[Any], Any]
    same: Callable[[Any, Any], bool]


class Recomputing:
    """A decoder that projects what its beams attend to anew for every beam and every step."""

    def __init__(self, decoder: Decoder, beams: int):
        self.decoder, self.beams = decoder, beams

    @property
    def bert(self):
        """Where `beam_search` asks for keys and values."""
        return self

    def cross_keys_values(self, states: Tensor) -> Tensor:
        """No keys and values, but the states themselves, once for every beam."""
        return states.repeat_interleave(self.beams, dim=0)  # [B * G, S, D]

    def __call__(self, input_ids: Tensor, mask: Tensor, keys_values: Tensor, **context: Any):
        copies = len(keys_values) // len(input_ids)  # the prompt comes once for all beams
        inputs = (values.repeat_interleave(copies, dim=0) for values in (input_ids, mask))
        logits, output = self.decoder(*inputs, states=keys_values, **context)
        past = [layer._replace(key=layer.key[::copies], value=layer.value[::copies]) for layer in output.past]
        return logits[::copies], output._replace(past=past)


def caption(batch: int, device: str, folder: str) -> Comparison:
    """Captions by beam search against recomputing keys and values of the image for every beam and step."""
    model = separated(blip_decoder(config=config(folder))).to(device)
    image = torch.randn(batch, 3, 384, 384, device=device)
    prompts = model.tokenize([model.prompt] * batch, "[DEC]").input_ids[:, :-1]
    limits = {"num_beams": 3, "max_length": 20, "min_length": 5, "eos": model.tokenizer.sep_token_id}
    return Comparison(
        shared=lambda: model.visual_encoder(image, align=False)[0],
        ours=lambda states: beam_search(model.text_decoder, prompts, states, **limits),
        plain=lambda states: beam_search(Recomputing(model.text_decoder, 3), prompts, states, **limits),
        same=lambda ours, plain: all(map(torch.equal, ours, plain)),
    )


def vqa(batch: int, device: str, folder: str) -> Comparison:
    """Ranking 128 answers against repeating the question for each and padding each to the longest of the list."""
    model = separated(blip_vqa(config=config(folder))).to(device)
    image = torch.randn(batch, 3, 480, 480, device=device)
    text = model.tokenize(texts({words: 1 / 9 for words in range(5, 14)}, batch), "[ENC]", max_length=35)
    answers = model.encode_answers(texts(WORDS_OF_ANSWERS, ANSWERS)).to(device)

    def encode():
        states, _ = model.visual_encoder(image, align=False)
        return model.text_encoder(text.input_ids, text.attention_mask, states=states)

    return Comparison(
        shared=encode,
        ours=lambda question: rank_answers(model.text_decoder, question, answers, 128),
        plain=lambda question: rank_plainly(model.text_decoder, question, answers, 128),
        same=torch.equal,
    )


def rank_plainly(decoder: Decoder, question, answers, k: int) -> Tensor:
    """`rank_answers` with the states of a question repeated for every candidate, all padded to the longest answer."""
    batch = len(question.states)
    start = answers.input_ids[:1, :1].expand(batch, 1)
    logits, _ = decoder(start, torch.ones_like(start), states=question.states, states_mask=question.mask)
    candidates = logits[:, 0].softmax(dim=-1)[:, answers.input_ids[:, 1]].topk(k, dim=1).indices
    input_ids, mask = answers.input_ids[candidates].flatten(0, 1), answers.attention_mask[candidates].flatten(0, 1)
    repeated = {
        "states": question.states.repeat_interleave(k, dim=0),
        "states_mask": question.mask.repeat_interleave(k, dim=0),
    }
    logits, _ = decoder(input_ids, mask, **repeated)
    targets = input_ids.masked_fill(mask == 0, -100)[:, 1:]
    losses = F.cross_entropy(logits[:, :-1].flatten(0, 1), targets.flatten(), reduction="none", label_smoothing=0.1)
    best = losses.view(batch, k, -1).sum(dim=2).argmin(dim=1, keepdim=True)
    return candidates.gather(1, best).squeeze(1)


def retrieval(batch: int, device: str, folder: str) -> Comparison:
    """Judging 256 candidate texts of each image against repeating the image's tokens for every one of them."""
    model = blip_retrieval(queue_size=CANDIDATES, config=config(folder)).to(device).eval()
    image = torch.randn(batch, 3, 384, 384, device=device)
    text = model.encode_captions(texts({words: 0.1 for words in range(6, 16)}, CANDIDATES))

    def judged(states: Sequences) -> Tensor:
        images = ImageBatch(list(range(batch)), states.to("cpu"), dense_layers(1, states.tokens.shape[1]))
        wanted = torch.ones(batch, CANDIDATES, dtype=torch.bool)
        return torch.stack(list(judge(model, [images], text, wanted, 0.0, CostMeter(lambda trace: 0.0)).values()))

    def judged_plainly(states: Sequences) -> Tensor:
        logits = [model.match(*text, own.expand(CANDIDATES, -1, -1))[:, 1] for own in states.tokens]
        return torch.stack(logits).cpu()

    return Comparison(
        shared=lambda: model.encode_image(image)[0],
        ours=judged,
        plain=judged_plainly,
        same=lambda ours, plain: (ours - plain).abs().max() < 1e-3 * plain.std(),
    )


TASKS = {"caption": caption, "vqa": vqa, "retrieval": retrieval}


def config(folder: str) -> dict:
    """A model's configuration, with a vocabulary of BERT's size in `folder`."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "picture", "of"]
    words = [f"w{number}" for number in range(30522 - len(special))]
    (Path(folder) / "vocab.txt").write_text("\n".join(special + words))
    return {"sd_num": 100, "sd_dim": 768, "tokenizer": folder}


def texts(shares: dict[int, float], number: int) -> list[str]:
    """Texts of random words, so many words long."""
    draw = random.Random(0)
    lengths = draw.choices(list(shares), list(shares.values()), k=number)
    return [" ".join(f"w{draw.randrange(20000)}" for _ in range(length)) for length in lengths]


@torch.no_grad()
def separated(model: nn.Module) -> nn.Module:
    """The model ready for inference, its words spread out so that rounding does not decide between two of them."""
    model.text_decoder.bert.embeddings.word_embeddings.weight.mul_(5)
    return model.eval()


@torch.inference_mode()
def rounds(comparison: Comparison, number: int, device: str) -> dict[str, list[float]]:
    """Seconds of each part, round by round, warm-up left out.

    Raises:
        RuntimeError: the two ways come to different results.
    """
    times = {"shared": [], "ours": [], "plain": []}
    for _ in range(WARM_UP + number):
        given, seconds = timed(comparison.shared, device)
        times["shared"].append(seconds)
        ours, seconds = timed(lambda: comparison.ours(given), device)  # noqa: B023
        times["ours"].append(seconds)
        plain, seconds = timed(lambda: comparison.plain(given), device)  # noqa: B023
        times["plain"].append(seconds)
        if not comparison.same(ours, plain):
            raise RuntimeError("the results differ")
    return {name: values[WARM_UP:] for name, values in times.items()}


def main() -> None:
    """Prints the medians, the factors and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", choices=TASKS, required=True)
    args = arguments(parser, batch=4, rounds=3, threads=2)
    with tempfile.TemporaryDirectory() as folder:
        times = rounds(TASKS[args.task](args.batch, args.device, folder), args.rounds, args.device)
    medians = {name: statistics.median(values) for name, values in times.items()}
    rows = list(zip(*times.values(), strict=True))
    medians["factor"] = ratio(times["plain"], times["ours"])
    medians["whole_factor"] = statistics.median((shared + plain) / (shared + ours) for shared, ours, plain in rows)
    print(
        f"{args.task}, batch {args.batch}, {args.threads} threads: ours {medians['ours']:.2f} s, "
        f"plain {medians['plain']:.2f} s, "
        f"{medians['factor']:.1f} x faster;\nencoding before it {medians['shared']:.2f} s for both, "
        f"whole prediction {medians['whole_factor']:.1f} x faster; same results"
    )
    command = f"python -m benchmarks.bench_inference {shlex.join(sys.argv[1:])}"
    origin = {"command": command, "date": date.today().isoformat(), "torch": torch.__version__}
    print(json.dumps({**origin, **vars(args), **{name: round(value, 3) for name, value in medians.items()}}))


if __name__ == "__main__":
    told(main)
