"""Time and memory of the dense and the pruned model: `python -m benchmarks.bench_model --task nlvr --p 0.5`.

The models, their inputs and what is timed are those of `benchmarks.workload`:

    dense     T = 0, fused attention
    pruned    T calibrated to p on the very batch
    plain     the same tokens pruned, attention and scores from a map held whole
    sample    with --keep sample: the same T, but every sample keeps its own tokens, packed
    coverage  with --keep coverage: the same cost by the other rule

They take turns. The speed-up is that over dense; efficiency is the speed-up over the ratio of GFLOPs, so 1 says that
time falls as far as cost does. `% of bound` is the time that a row's matrix products need by themselves, which take
their turns too, over the row's own: see `benchmarks.bound`. Memory is what PyTorch's allocator holds at its peak:
parameters and, with --train, the optimizer's state are `fixed`, the rest is `peak`. `x batch` is the time of `pruned`,
which keeps in every sample what the neediest needs, over a row's own, and `GFLOPs` its ratio of costs. --images says
how much the samples of a batch differ in the tokens that they need: as noise does, from flat to busy, or not at all.
--memory leaves out the clock, and with it all that a busy machine would disturb.
"""

import argparse
import sys
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.bound import Bound
from benchmarks.plain_attention import MAXIMA
from benchmarks.timing import arguments, peak_memory, ratio, report, spread, take_turns, told
from benchmarks.workload import TASKS, Workload
from madtp.run.precision import precision
from utils import UserError

MEBI = 2**20


def settings(workload: Workload, ratios: list[float], rules: list[str]) -> list[dict]:
    """Dense, then pruned, plain and what rules are wanted besides, for every p that can be reached."""
    found = [{"name": "dense", "p": 0.0, "temperature": 0.0}]
    for p in ratios:
        try:
            workload.model.keep = workload.rule("pruned")
            temperature = workload.temperature(p)
            found += [{"name": name, "p": p, "temperature": temperature} for name in ("pruned", "plain")]
            if "sample" in rules:
                found.append({"name": "sample", "p": p, "temperature": temperature})
            if "coverage" in rules:  # whose amount is searched as a temperature is
                workload.model.keep = workload.rule("coverage")
                found.append({"name": "coverage", "p": p, "temperature": workload.temperature(p)})
        except UserError as error:
            print(f"p {p:g} is left out: {error}", file=sys.stderr)
    for setting in found:
        workload.model.keep = workload.rule(setting["name"])
        setting["gflops"] = workload.gflops(setting["temperature"])
        setting["percent"] = 100 * setting["gflops"] / found[0]["gflops"]
    return found


def measure(workload: Workload, found: list[dict], sides: dict[str, Callable[[], Any]], rounds: int) -> None:
    """Adds time and what follows from it to every setting."""
    device, size = str(workload.device), len(workload.batch["index"])
    bounds = {name: Bound(side, device) for name, side in sides.items()}
    products = {f"products of {name}": bound for name, bound in bounds.items()}
    times = take_turns(sides | products, rounds, device)
    dense = times[title(found[0])]
    for setting in found:
        name = title(setting)
        low, median, high = spread(times[name])
        speedup = ratio(dense, times[name])
        setting |= {"samples_per_second": size / median, "low": size / high, "high": size / low, "speedup": speedup}
        setting |= {"efficiency": speedup * setting["percent"] / 100}
        bound = bounds[name].seconds(times[f"products of {name}"])
        setting |= {"percent_of_bound": 100 * ratio(bound, times[name])}
        pruned = next(row for row in found if row["p"] == setting["p"])  # the first of its p
        setting |= {"plain_over_own": ratio(times.get(f"plain {setting['p']:g}", times[name]), times[name])}
        setting |= {"batch_over_own": ratio(times[title(pruned)], times[name])}
        setting |= {"batch_gflops_over_own": pruned["gflops"] / setting["gflops"]}


def weigh(workload: Workload, found: list[dict], sides: dict[str, Callable[[], Any]]) -> None:
    """Adds memory to every setting."""
    fixed, device = workload.fixed(), str(workload.device)
    for setting in found:
        peak = peak_memory(sides[title(setting)], device)
        setting |= {"fixed_mib": fixed / MEBI, "peak_mib": peak / MEBI}


def title(setting: dict) -> str:
    """What a row is called."""
    return f"{setting['name']} {setting['p']:g}"


def table(found: list[dict]) -> str:
    """One aligned line per setting."""
    timed = "speedup" in found[0]
    head = f"{'model':<13}{'T':>9}{'GFLOPs':>8}{'% dense':>9}"
    head += f"{'samples/s':>11}{'quartiles':>15}{'speed-up':>10}{'efficiency':>12}{'% of bound':>12}" * timed
    head += f"{'x plain':>9}{'x batch':>9}{'GFLOPs':>8}" * timed
    lines = [f"{head}{'fixed MiB':>11}{'peak MiB':>10}"]
    for row in found:
        line = f"{title(row):<13}{row['temperature']:>9.4g}{row['gflops']:>8.1f}{row['percent']:>9.1f}"
        if timed:
            quartiles = f"{row['low']:.2f} - {row['high']:.2f}"
            line += f"{row['samples_per_second']:>11.2f}{quartiles:>15}{row['speedup']:>10.2f}"
            line += f"{row['efficiency']:>12.2f}{row['percent_of_bound']:>12.1f}"
            line += f"{row['plain_over_own']:>9.2f}{row['batch_over_own']:>9.2f}{row['batch_gflops_over_own']:>8.2f}"
        lines.append(f"{line}{row['fixed_mib']:>11.0f}{row['peak_mib']:>10.0f}")
    return "\n".join(lines)


def main() -> None:
    """Prints a table and one JSON line per setting."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", choices=TASKS, required=True)
    parser.add_argument("--p", type=float, nargs="+", default=[0.3, 0.5, 0.7], help="shares of the GFLOPs to remove")
    parser.add_argument("--keep", choices=("batch", "sample", "coverage"), nargs="+", default=["batch"], help="rules")
    parser.add_argument("--images", choices=("noise", "spread", "equal"), default="noise")
    parser.add_argument("--amp", choices=("off", "bf16", "fp16"), default="off")
    parser.add_argument("--plain", choices=MAXIMA, default="amax", help="how plain finds the largest weight of a head")
    parser.add_argument("--train", action="store_true", help="training steps instead of inference")
    parser.add_argument("--memory", action="store_true", help="the peak of memory alone, without a clock")
    parser.add_argument("--small", action="store_true", help="two narrow layers, to see that it runs")
    parser.add_argument("--output", help="JSON-lines file to add the rows to")
    args = arguments(parser, batch=8, rounds=5, threads=2)
    dtype = precision(args.amp, torch.device(args.device))
    workload = Workload(args.task, args.batch, args.images, args.device, dtype, args.small)
    found = settings(workload, args.p, args.keep)
    if args.train:
        workload.prepare_training()
    sides = {title(row): workload.side(row["name"], row["temperature"], args.train, args.plain) for row in found}
    if args.memory:
        take_turns(sides, 0, args.device)  # the first call of each sets things up
    else:
        measure(workload, found, sides, args.rounds)
    weigh(workload, found, sides)
    print(table(found))
    setting = {name: getattr(args, name) for name in ("task", "train", "amp", "batch", "images", "plain")}
    report([setting | row for row in found], args.device, args.output)


if __name__ == "__main__":
    told(main)
