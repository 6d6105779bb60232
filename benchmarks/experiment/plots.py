"""The pictures of the report: score against cost, beside the paper's own curve, and the tokens left in every layer."""

from itertools import cycle
from pathlib import Path
from statistics import mean, stdev

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from benchmarks.comparison.methods import COMPARED, TOWERS
from benchmarks.comparison.reporting import cost_name
from benchmarks.experiment.results import NAMES, final
from madtp.look.paper import POINTS

LOOKS = {
    name: {"marker": marker, "color": plt.get_cmap("tab20")(number), "label": method.title, "markersize": 5}
    for number, ((name, method), marker) in enumerate(zip(COMPARED.items(), "osD^vP<X*ph>Hd", strict=True))
}
LOOKS["coverage"] |= {"color": "black", "linewidth": 2}
LOOKS["madtp"] |= {"linewidth": 2}
DENSE = {"color": "gray", "linestyle": ":", "label": "dense"}
SHOWN_AT = 0.5
SIZE = (14, 5)  # inches, as wide as the legend


def accuracy(results, path: Path, task: str) -> str:
    """Score against cost, fine-tuned and not, and what share of the dense score we and the paper keep."""
    figure, (tuned, untuned, kept) = plt.subplots(1, 3, figsize=SIZE)
    dense = {seed: final(record)["score"] for seed, record in results.of(task, "dense", 0.0).items()}
    for axis, title, pick in (
        (tuned, "fine-tuned", final),
        (untuned, "not fine-tuned", lambda record: record["untuned"]),
    ):
        for name in COMPARED:
            found = [results.of(task, name, p) for p in results.ratios(task)]
            draw(axis, [[pick(record) for record in records.values()] for records in found], **LOOKS[name])
        axis.axhline(mean(dense.values()), **DENSE)
        axis.set(title=f"{NAMES[task]}, {title}", ylabel="score, %")
    for name in ("madtp", "sample"):
        found = [results.of(task, name, p) for p in results.ratios(task)]
        shares = [
            [{**final(record), "score": 100 * final(record)["score"] / dense[seed]} for seed, record in records.items()]
            for records in found
        ]
        draw(kept, shares, **LOOKS[name])
    draw_paper(kept, task)
    kept.set(title="beside the paper", ylabel="% of the dense score")
    for axis in (tuned, untuned, kept):
        axis.set(xlabel="% of the dense GFLOPs", xlim=(15, 105))
    return finish(figure, path, f"{NAMES[task]}: score against cost")


def draw_paper(axis, task: str) -> None:
    """Draws the curves of the paper's own model and data."""
    dense, *others = POINTS[task]
    metric = next(iter(dense.scores))
    for method, marker in zip(dict.fromkeys(point.method for point in others), cycle("os^")):
        curve = [dense, *(point for point in others if point.method == method)]
        costs = [100 * point.gflops / dense.gflops for point in curve]
        shares = [100 * point.scores[metric] / dense.scores[metric] for point in curve]
        axis.plot(costs, shares, f"k{marker}--", markersize=5, label=f"the paper: {method}, {metric}")


def tokens(results, path: Path, task: str) -> str:
    """Tokens left after each layer at one cost."""
    dense = next(iter(results.of(task, "dense", 0.0).values()))
    towers = [tower for tower in TOWERS if tower in final(dense)["tokens"]]
    figure, axes = plt.subplots(1, len(towers), figsize=SIZE, squeeze=False)
    for axis, tower in zip(axes[0], towers, strict=True):
        for name, p, look in [("dense", 0.0, DENSE), *((name, SHOWN_AT, LOOKS[name]) for name in COMPARED)]:
            found = [final(record)["tokens"].get(tower) for record in results.of(task, name, p).values()]
            if any(found):
                left = [mean(layer) for layer in zip(*found, strict=True)]
                axis.plot(range(1, len(left) + 1), left, **look)
        axis.set(title=f"{NAMES[task]}, {tower} tokens left at {cost_name(SHOWN_AT)} of the cost", xlabel="after layer")
        axis.set_ylim(bottom=0)
        axis.xaxis.get_major_locator().set_params(integer=True)
    return finish(figure, path, f"{NAMES[task]}: tokens left after each layer, at {cost_name(SHOWN_AT)} of the cost")


def draw(axis, points: list[list[dict]], **look) -> None:
    """Draws scores over costs: a point, with its spread, for every list of seeds that is not empty."""
    rows = [
        (mean(one["percent"] for one in seeds), *mean_and_spread([one["score"] for one in seeds]))
        for seeds in points
        if seeds
    ]
    if rows:
        cost, score, spread = zip(*rows, strict=True)
        axis.errorbar(cost, score, spread, capsize=3, **look)


def mean_and_spread(values: list[float]) -> tuple[float, float]:
    """Mean and standard deviation, 0 of a single value."""
    return mean(values), stdev(values) if len(values) > 1 else 0.0


def finish(figure, path: Path, title: str) -> str:
    """Puts a legend below all panels, saves the figure and returns its title."""
    for axis in figure.axes:
        axis.grid(alpha=0.3)
    shown = {
        label: handle for axis in figure.axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.legend(shown.values(), shown.keys(), loc="lower center", ncol=5, fontsize=9, frameon=False)
    figure.tight_layout(rect=(0, 0.11, 1, 1))
    figure.savefig(path, dpi=100)
    plt.close(figure)
    return title


PLOTS = {"accuracy": accuracy, "tokens": tokens}
