"""Time and memory of the dense and the pruned model: `python -m benchmarks.bench_model --task nlvr --p 0.5`.

Base-size models (CLIP: ViT-L/14@336) with random weights do the work that their GFLOPs count, on seeded random inputs:

    dense    T = 0, fused attention
    pruned   T calibrated to p on the very batch
    plain    the same tokens pruned, attention and scores from a map held whole
    sample   with --keep sample: the same T, but every sample keeps its own tokens, packed

They take turns. The speed-up is that over dense; efficiency is the speed-up over the ratio of GFLOPs, so 1 says that
time falls as far as cost does. Memory is what PyTorch's allocator holds at its peak: parameters and, with --train,
the optimizer's state are `fixed`, the rest is `peak`. `x batch` is the time of `pruned`, which keeps in every sample
what the neediest needs, over a row's own, and `GFLOPs` its ratio of costs. --images says how much the samples of a
batch differ in the tokens that they need: as noise does, from flat to busy, or not at all.
"""

import argparse
import random
import sys
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch

from benchmarks.plain_attention import MAXIMA, plain_attention
from benchmarks.timing import arguments, peak_memory, ratio, report, spread, take_turns
from compress_caption_dtp import Caption
from compress_nlvr_dtp import NLVR
from compress_retrieval_clip_dtp import RetrievalClip
from compress_retrieval_dtp import RetrievalCOCO
from compress_vqa_dtp import VQA
from madtp.cost.temperature import calibrate
from madtp.cost.trace import Trace
from madtp.method.keep import Keep, keep_batch, keep_sample
from madtp.run import config as configuration
from madtp.run.optimization import Optimization, autocast, precision
from madtp.run.task import Task
from utils import UserError

TASKS = {"nlvr": NLVR, "caption": Caption, "vqa": VQA, "retrieval": RetrievalCOCO, "clip": RetrievalClip}
WORDS = {"nlvr": 34, "caption": 10, "vqa": 12, "retrieval": 12, "clip": 12}  # of a text, which all have as many
CLIP = {"embed_dim": 768, "vision_width": 1024, "vision_layers": 24, "vision_patch_size": 14}
CLIP |= {"transformer_width": 768, "transformer_layers": 12, "context_length": 77}  # ViT-L/14@336
MEBI = 2**20


class Workload:
    """A task's model, a batch for it, and the forward pass and training step that are timed.

    Args:
        name: of the task.
        batch_size: samples; one of NLVR2 has two images.
        images: "noise", "spread" or "equal", see `random_images`.
        device: where the model runs.
        dtype: of mixed precision.
        folder: where the vocabulary is put.
    """

    def __init__(self, name: str, batch_size: int, images: str, device: str, dtype: torch.dtype, folder: str):
        self.name, self.dtype, self.device = name, dtype, torch.device(device)
        self.task: Task = TASKS[name]()
        keys = ["pretrained=''", f"tokenizer={vocabulary(folder)}", "init_lr=0"]
        keys += [f"clip={CLIP}"] * (name == "clip")
        self.config = configuration.resolve(self.task.default_config, self.task.name, keys)
        self.task.config = self.config
        self.model = self.task.build_model(self.config, evaluate=False).to(self.device).eval()
        self.batch = random_batch(name, batch_size, images, self.config, self.device)
        self.optimization = None

    @torch.inference_mode()
    def forward(self, temperature: float, trace: Trace | None = None) -> None:
        """What the GFLOPs count: one pass over images and texts (retrieval: and pairs, VQA: and one answer)."""
        trace = trace or Trace()
        with autocast(self.dtype, self.device):
            if self.name == "caption":
                self.model(self.batch["image"], self.batch["caption"], temperature, train=False, trace=trace)
            elif self.name == "vqa":
                self.task.probe(self.model, self.batch, temperature, trace)
            elif self.name == "retrieval":
                states, _ = self.model.encode_image(self.batch["image"], temperature, trace)
                text = self.model.encode_captions(self.batch["caption"])
                self.model.encode_text(*text, temperature, trace)
                self.model.match(*text, states, temperature=temperature, trace=trace)
            else:
                self.task.predict(self.model, self.batch, temperature, trace)

    def step(self, temperature: float) -> None:
        """A training step: forward, backward, AdamW."""
        with autocast(self.dtype, self.device):
            parts = self.task.losses(self.model, self.batch, temperature, progress=0.0)
            loss = sum(self.task.loss_weights[name] * part for name, part in parts.items())
        self.optimization.step(loss, 0)

    def prepare_training(self) -> None:
        """Makes the optimizer and its state."""
        self.model.train()
        self.optimization = Optimization(self.model, self.config, self.dtype, accum=1, batches=1)
        self.step(0.0)

    def gflops(self, temperature: float) -> float:
        """Mean cost of the samples."""
        trace = Trace()
        self.forward(temperature, trace)
        return float(np.mean(self.task.cost(self.model, trace)))

    def temperature(self, p: float) -> float:
        """The T at which this batch costs 1 - p of dense.

        Raises:
            UserError: there is none.
        """
        dense = self.gflops(0.0)
        return calibrate(lambda temperature: self.gflops(temperature) / dense, 1 - p, start=1.0)

    def fixed(self) -> int:
        """Bytes of parameters, buffers and optimizer state."""
        tensors = [*self.model.parameters(), *self.model.buffers()]
        if self.optimization:
            states = self.optimization.optimizer.state.values()
            tensors += [value for state in states for value in state.values()]
        return sum(tensor.nbytes for tensor in tensors)


def vocabulary(folder: str) -> str:
    """Writes a vocabulary of BERT's size and returns its folder."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "picture", "of"]
    words = [f"w{number}" for number in range(30522 - len(special))]
    (Path(folder) / "vocab.txt").write_text("\n".join(special + words))
    return folder


def random_images(kind: str, size: int, side: int, generator: torch.Generator) -> torch.Tensor:
    """Noise [size, 3, side, side]: all over every image, over more and more of each next one, or the same in all."""
    images = torch.randn(size, 3, side, side, generator=generator)
    if kind == "spread":
        for image, busy in zip(images, torch.linspace(0.1, 1, size), strict=True):
            image[:, int(busy * side) :] *= 0.05
    return images[:1].expand_as(images) if kind == "equal" else images


def random_batch(name: str, size: int, kind: str, config: dict, device: torch.device) -> dict:
    """Noise and words of a task's kind."""
    generator, draw = torch.Generator().manual_seed(0), random.Random(0)
    side = config.get("image_size", 336)
    images = [random_images(kind, size, side, generator).to(device) for _ in "01"]
    known = ("a", "red", "dog", "car") if name == "clip" else [f"w{number}" for number in range(20000)]
    texts = [" ".join(draw.choices(known, k=WORDS[name])) for _ in range(size)]
    texts = texts[:1] * size if kind == "equal" else texts
    return {
        "image": images[0],
        "image0": images[0],
        "image1": images[1],
        "text": texts,
        "question": texts,
        "caption": [f"{config['prompt']}{text}" if name == "caption" else text for text in texts],
        "answer": [f"w{number}" for number in range(size)],
        "n": [1] * size,
        "weights": torch.ones(size, device=device),
        "target": torch.arange(size, device=device) % 2,
        "idx": torch.arange(size, device=device),
        "index": torch.arange(size),
    }


def settings(workload: Workload, ratios: list[float], sample: bool) -> list[dict]:
    """Dense, then pruned, plain and, where wanted, sample for every p that can be reached."""
    names = ("pruned", "plain", "sample") if sample else ("pruned", "plain")
    found = [{"name": "dense", "p": 0.0, "temperature": 0.0}]
    for p in ratios:
        try:
            temperature = workload.temperature(p)
        except UserError as error:
            print(f"p {p:g} is left out: {error}", file=sys.stderr)
            continue
        found += [{"name": name, "p": p, "temperature": temperature} for name in names]
    for setting in found:
        workload.model.keep = rule(setting)
        setting["gflops"] = workload.gflops(setting["temperature"])
    return found


def side(workload: Workload, setting: dict, train: bool, maximum: str) -> Callable[[], None]:
    """What is timed for a setting."""

    def work() -> None:
        workload.model.keep = rule(setting)
        with plain_attention(maximum) if setting["name"] == "plain" else nullcontext():
            (workload.step if train else workload.forward)(setting["temperature"])

    return work


def rule(setting: dict) -> Keep:
    """The rule of keeping tokens of a setting."""
    return keep_sample if setting["name"] == "sample" else keep_batch


def measure(workload: Workload, found: list[dict], rounds: int, train: bool, maximum: str) -> None:
    """Adds time, memory and what follows from them to every setting."""
    if train:
        workload.prepare_training()
    device, size = str(workload.device), len(workload.batch["index"])
    sides = {f"{setting['name']} {setting['p']:g}": side(workload, setting, train, maximum) for setting in found}
    times, fixed = take_turns(sides, rounds, device), workload.fixed()
    dense = next(iter(times.values()))
    for setting, (name, own) in zip(found, times.items(), strict=True):
        low, median, high = spread(own)
        speedup = ratio(dense, own)
        setting |= {"percent": 100 * setting["gflops"] / found[0]["gflops"]}
        setting |= {"samples_per_second": size / median, "low": size / high, "high": size / low, "speedup": speedup}
        setting |= {"efficiency": speedup * setting["percent"] / 100}
        pruned = next(row for row in found if row["p"] == setting["p"])  # the first of its p
        setting |= {"plain_over_own": ratio(times.get(f"plain {setting['p']:g}", own), own)}
        setting |= {"batch_over_own": ratio(times[f"{pruned['name']} {setting['p']:g}"], own)}
        setting |= {"batch_gflops_over_own": pruned["gflops"] / setting["gflops"]}
        setting |= {"fixed_mib": fixed / MEBI, "peak_mib": peak_memory(sides[name], device) / MEBI}


def table(found: list[dict]) -> str:
    """One aligned line per setting."""
    lines = [
        f"{'model':<13}{'T':>9}{'GFLOPs':>8}{'% dense':>9}{'samples/s':>11}{'quartiles':>15}{'speed-up':>10}"
        f"{'efficiency':>12}{'x plain':>9}{'x batch':>9}{'GFLOPs':>8}{'fixed MiB':>11}{'peak MiB':>10}"
    ]
    for row in found:
        name, quartiles = f"{row['name']} {row['p']:g}", f"{row['low']:.2f} - {row['high']:.2f}"
        lines.append(
            f"{name:<13}{row['temperature']:>9.4g}{row['gflops']:>8.1f}{row['percent']:>9.1f}"
            f"{row['samples_per_second']:>11.2f}{quartiles:>15}{row['speedup']:>10.2f}{row['efficiency']:>12.2f}"
            f"{row['plain_over_own']:>9.2f}{row['batch_over_own']:>9.2f}{row['batch_gflops_over_own']:>8.2f}"
            f"{row['fixed_mib']:>11.0f}{row['peak_mib']:>10.0f}"
        )
    return "\n".join(lines)


def main() -> None:
    """Prints a table and one JSON line per setting."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", choices=TASKS, required=True)
    parser.add_argument("--p", type=float, nargs="+", default=[0.3, 0.5, 0.7], help="reduce ratios")
    parser.add_argument("--keep", choices=("batch", "sample"), default="batch", help="sample: time that rule too")
    parser.add_argument("--images", choices=("noise", "spread", "equal"), default="noise")
    parser.add_argument("--amp", choices=("off", "bf16", "fp16"), default="off")
    parser.add_argument("--plain", choices=MAXIMA, default="amax", help="how plain finds the largest weight of a head")
    parser.add_argument("--train", action="store_true", help="training steps instead of inference")
    parser.add_argument("--output", help="JSON-lines file to add the rows to")
    args = arguments(parser, batch=8, rounds=5, threads=2)
    dtype = precision(args.amp, torch.device(args.device))
    with tempfile.TemporaryDirectory() as folder:
        workload = Workload(args.task, args.batch, args.images, args.device, dtype, folder)
    found = settings(workload, args.p, args.keep == "sample")
    measure(workload, found, args.rounds, args.train, args.plain)
    print(table(found))
    setting = {name: getattr(args, name) for name in ("task", "train", "amp", "batch", "images", "plain")}
    report([setting | row for row in found], args.device, args.output)


if __name__ == "__main__":
    main()
