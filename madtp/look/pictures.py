"""Pictures of a run: which patches every layer kept, and how score and cost moved from epoch to epoch."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from madtp.cost.trace import LayerTrace
from madtp.look.charts import COMPRESSED, DENSE, finish, plot_cost, plot_scores, whole_numbers
from madtp.look.survival import follow

GREY, FAINT = 0.55, 0.22  # what a dropped patch fades to, dark pictures and bright ones alike, and what is left of it


@dataclass
class Example:
    """A sample to show.

    Attributes:
        lines: what was asked and what was answered.
        images: pictures [H, W, 3] with values from 0 to 1.
        kept: for each picture, the patches that are left after every layer.
        side: patches in a row of a picture.
        numbers: of the layers that `kept` has, from 1; all of them unless given.
    """

    lines: list[str]
    images: list[np.ndarray]
    kept: list[list[list[int]]]
    side: int
    numbers: Sequence[int] = ()


def patches_left(layers: Sequence[LayerTrace], row: int) -> list[list[int]]:
    """The image patches, by number, that are left in one row of the batch after every layer.

    Merged tokens are no patch: once a patch is merged into another token it is gone from the list.
    """
    return [step.kept for step in follow(layers, row)]


def dim_dropped(image: np.ndarray, kept: Sequence[int], side: int) -> np.ndarray:
    """The picture with all patches but the kept ones faded to grey; patches are square and count row by row."""
    return np.where(mask_of(kept, side, len(image)), image, FAINT * image + (1 - FAINT) * GREY)


def mask_of(patches: Sequence[int], side: int, pixels: int) -> np.ndarray:
    """True on the pixels of some patches: [pixels, pixels, 1]."""
    chosen = np.zeros(side * side, dtype=bool)
    chosen[list(patches)] = True
    patch = pixels // side
    return np.kron(chosen.reshape(side, side), np.ones((patch, patch), dtype=bool))[..., None]


def readable_image(image: Tensor, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """Undoes the normalisation of a picture [3, H, W] -> [H, W, 3] from 0 to 1."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (mean, std))
    return (image.cpu().float() * std + mean).clamp(0, 1).permute(1, 2, 0).numpy()


def panel(figure: Figure, left: float, top: float, size: float) -> Axes:
    """A square to draw a picture into, placed in inches from the top left."""
    width, height = figure.get_size_inches()
    axis = figure.add_axes((left / width, 1 - (top + size) / height, size / width, size / height))
    axis.set(xticks=[], yticks=[])
    return axis


def draw_tokens(path: str | Path, examples: Sequence[Example], heading: str) -> None:
    """Draws every example in a row: its pictures, each followed by what is left of it after every layer."""
    size, step, margin = 1.25, 1.4, 0.15  # inches
    columns, title = sum(1 + len(layers) for layers in examples[0].kept), 0.1 + 0.16 * len(examples[0].lines)
    row = title + size + 0.3
    figure = plt.figure(figsize=(max(6, 2 * margin + step * columns), 0.45 + row * len(examples)))
    figure.text(margin / figure.get_figwidth(), 1 - 0.1 / figure.get_figheight(), heading, fontsize=12, va="top")
    for number, example in enumerate(examples):
        panels = []
        for image, layers in zip(example.images, example.kept, strict=True):
            panels.append((image, "input"))
            panels += [
                (dim_dropped(image, kept, example.side), f"layer {layer}: {len(kept)}/{example.side**2}")
                for layer, kept in zip(example.numbers or count(1), layers, strict=False)
            ]
        axes = [panel(figure, margin + step * i, 0.4 + number * row + title, size) for i in range(len(panels))]
        for axis, (picture, label) in zip(axes, panels, strict=True):
            axis.imshow(picture, interpolation="nearest")
            axis.set_xlabel(label, fontsize=8)
        axes[0].set_title("\n".join(example.lines), fontsize=9, loc="left")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_summary(path: str | Path, dense: list[dict], compressed: list[dict], metric: str, heading: str) -> None:
    """Draws score and cost of every epoch, of the dense training and then of the compression.

    Args:
        path: the picture to write.
        dense: the records of the dense model's `log.txt`.
        compressed: the records of the compression's.
        metric: name of the score in both, without its split.
        heading: what the picture is about.
    """
    figure, (score, cost, tokens) = plt.subplots(1, 3, figsize=(13, 3.8))
    after = len(dense) + 1
    plot_scores(score, dense, metric, DENSE, "dense training")
    plot_scores(score, compressed, metric, COMPRESSED, "compression", after)
    plot_cost(cost, dense, DENSE, "dense training")
    plot_cost(cost, compressed, COMPRESSED, "compression", after)
    for record, alpha in zip(compressed, np.linspace(0.3, 1, len(compressed)), strict=True):
        for tower, marker in (("image", "o-"), ("text", "s--")):
            left = record["tokens"].get(tower)
            if left:
                label = f"{tower} tokens" if record is compressed[-1] else None
                tokens.plot(range(1, len(left) + 1), left, marker, color=COMPRESSED, alpha=alpha, label=label)
    tokens.set(title="tokens left after each layer (later epochs darker)", xlabel="layer")
    tokens.set_ylim(bottom=0)
    for axis in (score, cost, tokens):
        finish(axis)
        whole_numbers(axis)
    figure.suptitle(heading, x=0.01, ha="left")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
