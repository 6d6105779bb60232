"""What `madtp.prune` leaves of DINOv2's features, untrained: `python -m benchmarks.bench_library --pictures FOLDER`.

Pictures are described by the class token. Asked is how like the dense feature each one is (cosine), and whether a
picture's nearest neighbours among the others are still the same. ToMe runs in the same loop over the same layers; its
schedule is searched as ours is, on the same other pictures, among all of `benchmarks.comparison.schedules`.

Shapes: B pictures, L tokens with the class token in front, D width.
"""

import argparse
import copy
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from PIL import Image
from torch import Tensor, nn

import madtp
from benchmarks.comparison.merging import TOME, Merging
from benchmarks.comparison.schedules import SHAPES, Schedule, Steps
from benchmarks.timing import arguments, ratio, report, take_turns, told
from madtp.cost import flops
from madtp.cost.temperature import calibrate
from madtp.cost.trace import LayerTrace, Trace
from madtp.method.layout import Sequences
from madtp.shared.layers import Guidance, run_layers
from madtp.shared.library.layer import part
from madtp.shared.library.prune import pruned_of
from madtp.shared.library.tower import Pruned
from utils import UserError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
NEIGHBOURS = 10
AT_ONCE = 50  # pictures
SHARES = (0.3, 0.5, 0.7)


class Tome(Pruned):
    """The tower's forward by ToMe. Attributes `schedule` and `amount` say how much goes where."""

    def __init__(self, pruned: Pruned):
        super().__init__(pruned.of)
        self.schedule: Schedule = SHAPES["even"]

    def run(self, x: Tensor, seen: None = None) -> tuple[Sequences, None]:
        layout = Merging(Steps(self.schedule, x.shape[1] - 1), TOME)
        return run_layers(self.of.layers, Sequences(x, layout), Guidance(None, self.amount), "image").sequences, None

    def cost(self, amount: float) -> float:
        """Share of dense, its own similarities and means included."""
        shape, layer = self.of.shape, self.of.layers[0]
        head = shape.width // part(layer.block, layer.names.heads)
        steps, entered, layers = Steps(self.schedule, self.entered - 1), self.entered, []
        for _ in self.of.layers:
            count = entered - 1
            left = 1 + min(count, max(steps.left(amount), count - int(TOME.most * count)))
            layers.append(LayerTrace(entered, left))
            entered, steps = left, steps.next()
        own = sum(TOME.cost(layer, shape.width, head) for layer in layers)
        return (flops.tower(shape, layers) + own) / flops.tower(shape, Trace({"": layers}).dense().layers[""])


def read(paths: list[Path], size: int) -> Tensor:
    """Pictures as the model takes them, [B, 3, size, size]."""
    pictures = [np.asarray(Image.open(path).convert("RGB").resize((size, size), Image.BICUBIC)) for path in paths]
    values = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255
    return (values - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


@torch.no_grad()
def features(model: nn.Module, pictures: Tensor) -> Tensor:
    """Class tokens of length 1, [B, D]."""
    return torch.cat([F.normalize(model(part).pooler_output, dim=-1) for part in pictures.split(AT_ONCE)])


def neighbours(found: Tensor) -> Tensor:
    """The nearest other pictures of each, nearest first: [B, NEIGHBOURS]."""
    return (found @ found.T).fill_diagonal_(-2).topk(NEIGHBOURS).indices


def compared(found: Tensor, dense: Tensor) -> dict[str, float]:
    """What is left of the dense features."""
    ours, theirs = neighbours(found), neighbours(dense)
    common = (ours.unsqueeze(2) == theirs.unsqueeze(1)).any(dim=2).float().mean()
    return {
        "cosine": float((found * dense).sum(dim=1).mean()),
        "nearest": 100 * float((ours[:, 0] == theirs[:, 0]).float().mean()),
        "ten_nearest": 100 * float(common),
    }


def prune_by_tome(model: nn.Module, p: float, pictures: Tensor) -> dict:
    """Gives the model the schedule of ToMe that moves its features least, as `madtp.prune` does with its own."""
    dense = features(model, pictures)
    madtp.prune(model, 0)
    features(model, pictures[:1])
    pruned = pruned_of(model)
    tome, found = Tome(pruned), []
    tome.entered = pruned.entered
    pruned.of.entry.forward = tome
    for name, schedule in SHAPES.items():
        tome.schedule = schedule
        try:
            tome.amount = calibrate(tome.cost, 1 - p, 0.05, 0.001)
        except UserError:
            continue
        if abs(tome.cost(tome.amount) - (1 - p)) < 0.01:
            moved = float((features(model, pictures) - dense).square().sum())
            found.append((moved, name, tome.amount))
    _, name, tome.amount = min(found)
    tome.schedule = SHAPES[name]
    return {"percent": 100 * tome.cost(tome.amount), "shape": name}


def prune_by_coverage(model: nn.Module, p: float, pictures: Tensor, keep_norm: bool = False) -> dict:
    """`madtp.prune`, and what it found."""
    madtp.prune(model, p, pictures, keep_norm=keep_norm)
    return {name: value for name, value in madtp.cost(model).items() if name in ("percent", "shape")}


def speed(models: dict[str, nn.Module], pictures: Tensor, p: float, rounds: int, device: str) -> list[dict]:
    """How much faster the pruned models are, at one picture and at 32, all in turns with the dense one.

    On a CPU seconds are those that the processor worked for us, since others may use it too.
    """
    clock, rows = time.process_time if device == "cpu" else time.perf_counter, []
    for batch in (1, 32):
        some = pictures[torch.arange(batch) % len(pictures)]
        sides = {name: lambda model=model, some=some: features(model, some) for name, model in models.items()}
        times = take_turns(sides, rounds * (8 if batch == 1 else 1), device, clock=clock)
        for rule in [name for name in models if name != "dense"]:
            rows.append({"rule": rule, "p": p, "batch": batch, "faster": ratio(times["dense"], times[rule])})
    return rows


def pictures_in(folder: Path, number: int) -> list[Path]:
    """The photos of a folder, in order, at least so many."""
    found = sorted(folder.glob("*.jpg"))
    if len(found) < number:
        ways_out = "name another folder with --pictures, or ask for less with --first, --number and --search"
        raise UserError(f"{folder} has {len(found)} .jpg, and {number} are asked for: {ways_out}")
    return found


def weights_of(folder: str) -> nn.Module:
    """A Dinov2Model from its folder; nothing is fetched."""
    try:
        return transformers.Dinov2Model.from_pretrained(folder, torch_dtype=torch.float32, local_files_only=True)
    except OSError as error:
        raise UserError(f"--weights {folder}: no folder with a Dinov2Model, its config.json and weights") from error


def main() -> None:
    """Prints one JSON line for every rule at every p, and for its speed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--weights", default="datasets/photos/dinov2-small", help="folder of a Dinov2Model")
    parser.add_argument("--pictures", default="datasets/photos/flickr8k", help="folder of pictures, taken in order")
    parser.add_argument("--output", help="file to append JSON lines to")
    for name, default in {"first": 6000, "number": 1000, "rounds": 0}.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=f"default {default}")
    args = arguments(parser, threads=1, search=64, size=168)
    paths = pictures_in(Path(args.pictures), max(args.search, args.first + args.number if args.number else 0))
    model = weights_of(args.weights).eval().to(args.device)
    load = partial(read, size=args.size)
    others = load(paths[: args.search]).to(args.device)
    pictures = load(paths[args.first : args.first + args.number]).to(args.device) if args.number else others[:0]
    dense = features(model, pictures) if args.number else None
    lengths_kept = partial(prune_by_coverage, keep_norm=True)
    rules = {"coverage": prune_by_coverage, "coverage, lengths kept": lengths_kept, "ToMe": prune_by_tome}
    for p in SHARES:
        models = {"dense": model}
        for name, prune in rules.items():
            models[name] = copy.deepcopy(model)
            found = prune(models[name], p, others)
            left = compared(features(models[name], pictures), dense) if args.number else {}
            report([{"rule": name, "p": p, "pictures": len(pictures), **found, **left}], args.device, args.output)
        if args.rounds:
            report(speed(models, others, p, args.rounds, args.device), args.device, args.output)


if __name__ == "__main__":
    told(main)
