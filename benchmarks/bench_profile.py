"""Where the time of a forward pass or of a training step goes: `python -m benchmarks.bench_profile --train`.

Dense, and pruned by either rule to one cost, are listened to by PyTorch's profiler. Every operator's own time counts as
one kind of work. The profiler itself takes part of the time of small operators, so that what is `other` looks larger
than it is; `bench_model` has the times without it.
"""

from collections import Counter
from collections.abc import Callable

import torch

from benchmarks.bench_model import settings, title
from benchmarks.timing import arguments, report, told
from benchmarks.workload import model_flags, ratio_of, workload_of

KINDS = {  # kind of work -> parts of the names of its operators, the first that fits
    "attention": ("scaled_dot_product", "bmm", "softmax"),
    "products": ("addmm", "aten::mm", "linear_pointwise", "mkldnn_linear", "convolution"),
    "norms": ("layer_norm",),
    "GELU": ("gelu",),
    "copies": ("copy_", "clone", "cat", "index", "gather", "scatter", "take"),
    "optimizer": ("_foreach", "adam", "Optimizer"),
    "choice": ("sort", "topk", "amax", "max", "min", "cumsum", "where", "argmax", "eq", "norm"),
    "sums": ("add", "sub", "mul", "div", "sum", "mean", "sqrt", "fill_", "zero_"),
}
OTHER = "other"


def kind_of(operator: str) -> str:
    """Which kind of work an operator is."""
    return next((kind for kind, parts in KINDS.items() if any(part in operator for part in parts)), OTHER)


def profiled(work: Callable[[], None]) -> Counter:
    """Milliseconds of a call by kind of work, after one that warms up."""
    work()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        work()
    spent = Counter()
    for event in profile.key_averages():
        spent[kind_of(event.key)] += event.self_cpu_time_total / 1e3
    return spent


def main() -> None:
    """Prints one JSON line per side."""
    parser = model_flags(__doc__)
    parser.add_argument("--train", action="store_true", help="a training step instead of a forward pass")
    args = arguments(parser, batch=2, threads=1)
    workload = workload_of(args)
    found = [row for row in settings(workload, [ratio_of(args)], ["coverage"]) if row["name"] != "plain"]
    if args.train:
        workload.prepare_training()
    setting = {name: getattr(args, name) for name in ("task", "train", "amp", "batch")}
    rows = []
    for row in found:
        spent = profiled(workload.side(row["name"], row["temperature"], args.train))
        print(f"{title(row):<14}", *(f"{kind} {spent[kind]:.0f}" for kind in [*KINDS, OTHER]))
        rows.append({**setting, "name": row["name"], "p": row["p"], "ms": {k: round(v, 1) for k, v in spent.items()}})
    report(rows, args.device, args.output)


if __name__ == "__main__":
    told(main)
