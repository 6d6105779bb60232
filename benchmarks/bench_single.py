"""One request at a time, dense and pruned: `python -m benchmarks.bench_single`, and from which width pruning pays.

NLVR2 models with the depth of the demo's and random weights answer a single pair, from the demo's size, 96 wide with
49 patches, up to wider ones and more patches. Dense and each rule at each p take turns. A row's `steps` are the
operators of PyTorch that a pass launches, `% of bound` is the time of its matrix products by themselves over its own.
With --compile each takes turns with itself, the layers of its image tower compiled.
"""

import argparse
from collections.abc import Iterator
from functools import partial

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.bound import Bound
from benchmarks.gpu.grid import compiled
from benchmarks.timing import arguments, ratio, report, spread, take_turns, timed, told
from benchmarks.workload import BERT, Workload, image_layers
from madtp.run.precision import precision
from utils import UserError

HEAD_WIDTH, DEPTH, PATCH = 32, 4, 12  # of the demo's image tower
RULES = {"pruned": "batch", "sample": "sample", "coverage": "coverage"}  # side of a workload -> rule
REPEATS = 20  # passes that are timed together, since one is short


class Steps(TorchDispatchMode):
    """Counts the operators that are launched within it."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += 1
        return function(*args, **(kwargs or {}))


def sizes(width: int, side: int) -> dict:
    """The demo's model, so wide and with so many patches on a side."""
    text = BERT | {"hidden_size": width, "num_attention_heads": width // HEAD_WIDTH, "intermediate_size": 4 * width}
    vit = {"embed_dim": width, "depth": DEPTH, "num_heads": width // HEAD_WIDTH, "patch_size": PATCH}
    return {"image_size": PATCH * side, "vit": vit, "med_config": text, "sd_num": 16, "sd_dim": width}


def settings(workload: Workload, ratios: list[float]) -> Iterator[dict]:
    """Dense, then every rule at every p that can be reached, one T found for both of MADTP's rules."""
    yield {"name": "dense", "rule": "", "p": 0.0, "temperature": 0.0}
    for p in ratios:
        for name, rule in RULES.items():
            workload.model.keep = workload.rule(name)
            try:
                yield {"name": name, "rule": rule, "p": p, "temperature": workload.temperature(p)}
            except UserError as error:
                print(f"{rule}, p {p:g} is left out: {error}")


def measure(workload: Workload, ratios: list[float], rounds: int) -> list[dict]:
    """A row for every setting."""
    device, rows = str(workload.device), list(settings(workload, ratios))
    passes = [workload.side(row["name"], row["temperature"]) for row in rows]
    bounds = [Bound(work, device) for work in passes]
    sides = {number: repeated(work) for number, work in enumerate(passes)}
    sides |= {number + len(rows): repeated(bound) for number, bound in enumerate(bounds)}
    times = {name: [seconds / REPEATS for seconds in own] for name, own in take_turns(sides, rounds, device).items()}
    for number, (row, bound) in enumerate(zip(rows, bounds, strict=True)):
        workload.model.keep = workload.rule(row["name"])
        share = ratio(bound.seconds(times[number + len(rows)]), times[number])
        row |= {"milliseconds": 1e3 * spread(times[number])[1], "speedup": ratio(times[0], times[number])}
        row |= {"gflops": workload.gflops(row["temperature"]), "percent_of_bound": 100 * share}
        row |= {"percent": 100 * row["gflops"] / rows[0]["gflops"]}
        with Steps() as steps:
            passes[number]()
        row["steps"] = steps.count
    return rows


def measure_compiled(workload: Workload, ratios: list[float], rounds: int) -> list[dict]:
    """A row for every setting, whose speed-up is that of compiled layers over the same layers as they are."""
    workload.unprepare()  # layers that have copies of their own would be compiled one by one
    device, rows, layers = str(workload.device), list(settings(workload, ratios)), image_layers(workload.model)
    with compiled(layers):
        calls = [layer._compiled_call_impl for layer in layers]

        def switched(work, on: bool) -> None:
            for layer, call in zip(layers, calls, strict=True):
                layer._compiled_call_impl = call if on else None
            work()

        for row in rows:
            passed = workload.side(row["name"], row["temperature"])
            sides = {on: partial(switched, passed, on) for on in (False, True)}
            row |= {"compiled": True, "seconds_to_compile": timed(sides[True], device)[1]}
            times = take_turns({on: repeated(work) for on, work in sides.items()}, rounds, device)
            row |= {"milliseconds": 1e3 * spread(times[True])[1] / REPEATS, "speedup": ratio(times[False], times[True])}
    return rows


def repeated(work):
    """A call that makes the same call some times."""
    return lambda: [work() for _ in range(REPEATS)] and None


def main() -> None:
    """Prints one JSON line per row."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--p", type=float, nargs="+", default=[0.3, 0.5], help="shares of the GFLOPs to remove")
    parser.add_argument("--width", type=int, nargs="+", default=[96, 192, 384], help="of the model, a multiple of 32")
    parser.add_argument("--side", type=int, nargs="+", default=[7, 14], help="patches on a side of a picture")
    parser.add_argument("--amp", choices=("off", "bf16", "fp16"), default="off")
    parser.add_argument("--compile", action="store_true", help="measure what torch.compile makes of it instead")
    parser.add_argument("--output", help="JSON-lines file to add the rows to")
    args = arguments(parser, rounds=9, threads=1)
    dtype = precision(args.amp, torch.device(args.device))
    for side in args.side:
        for width in args.width:
            workload = Workload("nlvr", 1, "noise", args.device, dtype, own=sizes(width, side))
            setting = {"width": width, "patches": side**2, "amp": args.amp, "batch": 1}
            rows = (measure_compiled if args.compile else measure)(workload, args.p, args.rounds)
            report([setting | row for row in rows], args.device, args.output)


if __name__ == "__main__":
    told(main)
