"""The pictures of the report: score against cost, beside the paper's own curve, and the tokens left in every layer."""

from pathlib import Path
from statistics import mean, stdev

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from benchmarks.experiment.cells import BATCH
from benchmarks.experiment.methods import COMPARED, METHODS

# The paper's accuracies on NLVR2's test split by percent of dense GFLOPs; some are read off its figure.
PAPER = {100.0: 83.1, 69.8: 83.2, 49.9: 82.9, 39.9: 82.4, 30.0: 81.2, 20.0: 79.2}
MARKERS = dict(zip(COMPARED, "osD^vP<X*", strict=False))
SHOWN_AT = 0.5


def accuracy(results, path: Path, task: str) -> str:
    """Score against cost, fine-tuned and not."""
    figure, (tuned, untuned, paper) = plt.subplots(1, 3, figsize=(14, 4.6))
    for name, method in COMPARED.items():
        for axis, key in ((tuned, "scores"), (untuned, "untuned")):
            points = []
            for p in results.ratios(task):
                found = [
                    r["untuned"] if key == "untuned" else r["scores"][str(BATCH)]
                    for r in results.of(task, name, p).values()
                ]
                if found:
                    points.append([mean(r["percent"] for r in found), *mean_and_spread([r["score"] for r in found])])
            if points:
                axis.errorbar(
                    *zip(*points, strict=True), label=method.title, marker=MARKERS[name], capsize=3, markersize=5
                )
    dense = [r["scores"][str(BATCH)]["score"] for r in results.of(task, "dense", 0.0).values()]
    for axis, title in ((tuned, "fine-tuned"), (untuned, "not fine-tuned")):
        axis.axhline(mean(dense), color="gray", linestyle=":", label="dense")
        axis.set(title=f"{task}, {title}", xlabel="% of the dense GFLOPs", ylabel="score, %")
        axis.grid(alpha=0.3)
    tuned.legend(fontsize=7)
    points = []
    for p in results.ratios(task):
        pairs = [(r, results.of(task, "dense", 0.0)[seed]) for seed, r in results.of(task, "madtp", p).items()]
        if pairs:
            change = [r["scores"][str(BATCH)]["score"] - d["scores"][str(BATCH)]["score"] for r, d in pairs]
            points.append([mean(r["scores"][str(BATCH)]["percent"] for r, _ in pairs), *mean_and_spread(change)])
    paper.errorbar(*zip([100, 0, 0], *points, strict=True), marker="o", capsize=3, label="MADTP here")
    paper.plot(
        PAPER.keys(), [value - PAPER[100.0] for value in PAPER.values()], "ks--", label="the paper, BLIP on NLVR2"
    )
    paper.set(title="change from dense", xlabel="% of the dense GFLOPs", ylabel="points")
    paper.grid(alpha=0.3)
    paper.legend(fontsize=8)
    return finish(figure, path, f"{task}: score against cost")


def tokens(results, path: Path, task: str) -> str:
    """Tokens left after each layer at one cost."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2))
    for axis, tower in zip(axes, ("image", "text"), strict=True):
        for name in ("dense", *COMPARED):
            records = results.of(task, name, 0.0 if name == "dense" else SHOWN_AT).values()
            rows = [left for r in records if (left := r["scores"][str(BATCH)]["tokens"].get(tower))]
            if rows:
                title = METHODS[name].title if name in METHODS else "dense"
                means = [mean(layer) for layer in zip(*rows, strict=True)]
                axis.plot(range(1, len(means) + 1), means, marker=MARKERS.get(name, "."), label=title, markersize=5)
        axis.set(title=f"{tower} tokens left, p {SHOWN_AT}", xlabel="after layer", ylim=(0, None))
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=7)
    return finish(figure, path, f"{task}: tokens left after each layer")


def mean_and_spread(values: list[float]) -> tuple[float, float]:
    """Mean and standard deviation, 0 of a single value."""
    return mean(values), stdev(values) if len(values) > 1 else 0.0


def finish(figure, path: Path, title: str) -> str:
    """Saves a figure and returns its title."""
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    plt.close(figure)
    return title


PLOTS = {"accuracy": accuracy, "tokens": tokens}
