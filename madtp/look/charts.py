"""Charts of runs: score against cost, and what moved from epoch to epoch and from layer to layer."""

from collections.abc import Sequence

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from madtp.look.paper import Point
from madtp.method.rules import COVERAGE

DENSE, COMPRESSED, PAPER = "#4c6a92", "#c8553d", "#8a8a8a"
MARKERS = {"dense": "s", "MADTP": "o", "UPop": "^", "static pruning": "v"}


def plot_scores(axis: Axes, records: Sequence[dict], metric: str, color: str, name: str = "", first: int = 1) -> None:
    """The score of every epoch on every split that has one."""
    for split, style in (("val", "o-"), ("test", "s--")):
        values = [record.get(f"{split}_{metric}") for record in records]
        if all(value is not None for value in values):
            label = f"{name}, {split}" if name else split
            axis.plot(epochs(records, first), values, style, color=color, label=label, markersize=4)
    axis.set(title=metric.replace("_", " "), xlabel="epoch")


def plot_cost(axis: Axes, records: Sequence[dict], color: str, name: str = "measured", first: int = 1) -> None:
    """The cost of every epoch, in percent of dense, and what it was to be."""
    axis.plot(epochs(records, first), [record["percent"] for record in records], "o-", color=color, label=name, ms=4)
    targets = [record.get("target") for record in records]
    if all(target is not None for target in targets):
        axis.plot(epochs(records, first), targets, "k:", label="target")
    axis.set(title="cost, % of the dense GFLOPs", xlabel="epoch", ylim=(0, 108))


def epochs(records: Sequence[dict], first: int = 1) -> range:
    """Numbers of the epochs for people."""
    return range(first, first + len(records))


def finish(axis: Axes) -> None:
    """What all charts have."""
    axis.grid(alpha=0.3)
    if axis.has_data():
        axis.legend(fontsize=8)


def whole_numbers(axis: Axes) -> None:
    """Ticks at whole epochs or layers alone."""
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def score_against_cost(
    metric: str, runs: Sequence[tuple[str, float, float]], paper: Sequence[Point], where: str
) -> Figure:
    """Score against cost in percent of dense.

    Args:
        metric: name of the score.
        runs: name, percent of dense and score of each.
        paper: points to compare with, the dense one first.
        where: the split.
    """
    figure, axis = plt.subplots(figsize=(7.2, 4.2))
    for method in dict.fromkeys(point.method for point in paper):
        points = [point for point in paper if point.method == method and metric in point.scores]
        shares = [100 * point.gflops / paper[0].gflops for point in points]
        style = {"color": PAPER, "mfc": "white", "ms": 6, "lw": 1, "ls": "--"}
        axis.plot(shares, [p.scores[metric] for p in points], MARKERS[method], label=f"paper: {method}", **style)
    for place, (name, percent, score) in enumerate(sorted(runs, key=lambda run: run[1])):
        axis.plot(percent, score, "o", color=DENSE if percent > 99.9 else COMPRESSED, ms=8, zorder=3)
        side = {"xytext": (0, 21 if place % 2 else 9), "ha": "right" if percent > 85 else "center"}
        axis.annotate(name, (percent, score), textcoords="offset points", fontsize=9, **side)
    axis.set(xlabel="cost, % of the dense GFLOPs", ylabel=f"{metric.replace('_', ' ')} ({where})", xlim=(0, 108))
    axis.margins(y=0.18)
    axis.grid(alpha=0.3)
    if paper:
        axis.legend(fontsize=8, loc="lower right")
    figure.tight_layout()
    return figure


def course(records: Sequence[dict], metric: str | None, layers: dict) -> Figure:
    """Six charts of a run: score, losses, cost, temperature; tokens per layer of pictures and of texts.

    Args:
        records: of its log.
        metric: name of the score, None where no split has one.
        layers: by statistic, `tokens`, `tokens_p10` and `tokens_p90`: tokens left by tower and layer.
    """
    figure, axes = plt.subplots(2, 3, figsize=(12.5, 6.2))
    score, losses, cost, temperature, image, text = axes.flat
    if metric:
        plot_scores(score, records, metric, COMPRESSED)
    for name in [name for name in records[-1] if name.startswith("train_")]:
        losses.plot(epochs(records), [record.get(name, np.nan) for record in records], "o-", label=name[6:], ms=4)
    losses.set(title="training losses", xlabel="epoch")
    plot_cost(cost, records, COMPRESSED)
    knob = "amount of coverage's schedule" if records[-1].get("keep") == COVERAGE else "temperature T"
    amounts = [record["temperature"] for record in records]
    temperature.plot(epochs(records), amounts, "o-", color=DENSE, label=knob, ms=4)
    temperature.set(title=knob, xlabel="epoch")
    temperature.set_ylim(bottom=0)
    plot_tokens(image, layers, ["image"], "image tokens left")
    plot_tokens(text, layers, [tower for tower in layers["tokens"] if tower != "image"], "text tokens left")
    for axis in axes.flat:
        finish(axis)
        whole_numbers(axis)
        axis.set_visible(axis.has_data())
    figure.tight_layout()
    return figure


def plot_tokens(axis: Axes, layers: dict, towers: Sequence[str], title: str) -> None:
    """Tokens left after each layer, and the band in which most samples are."""
    for tower, color in zip(towers, (COMPRESSED, DENSE), strict=False):
        left = layers["tokens"].get(tower)
        if not left:
            continue
        numbers = range(1, len(left) + 1)
        axis.plot(numbers, left, "o-", color=color, label=f"{tower}, mean", markersize=4)
        if layers.get("tokens_p10") and layers.get("tokens_p90"):
            low, high = (layers[name][tower] for name in ("tokens_p10", "tokens_p90"))
            axis.fill_between(numbers, low, high, color=color, alpha=0.15, lw=0, label="10th to 90th percentile")
    axis.set(title=title, xlabel="layer")
    axis.set_ylim(bottom=0)
