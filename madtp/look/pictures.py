"""Pictures of a run: which patches every layer kept, and how score and cost moved from epoch to epoch."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import BinaryIO

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from torch import Tensor

from madtp.look.charts import COMPRESSED, DENSE, finish, plot_cost, plot_scores, whole_numbers
from madtp.look.survival import Step, Token

OUTLINE = "#ff7f0e"
TINT, GOLDEN = 0.25, 0.618  # how strong, and how far along the colours the next one is
GREY, FAINT = 0.55, 0.22  # what a dropped patch fades to, dark pictures and bright ones alike, and what is left of it


@dataclass
class Example:
    """A sample to show.

    Attributes:
        lines: what was asked and what was answered.
        images: pictures [H, W, 3] with values from 0 to 1.
        steps: for each picture, what every layer left of it.
        side: patches in a row of a picture.
        numbers: of the layers that `steps` has, from 1; all of them unless given.
    """

    lines: list[str]
    images: list[np.ndarray]
    steps: list[list[Step]]
    side: int
    numbers: Sequence[int] = ()


def draw_left(axis: Axes, image: np.ndarray, step: Step, side: int) -> None:
    """Draws what a layer left of a picture: the kept patches, or the groups that stand for all of them."""
    if not step.grouped:
        axis.imshow(dim_dropped(image, step.kept, side), interpolation="nearest")
        return
    regions = regions_of(step.left, side)
    axis.imshow(mean_colors(image, regions), interpolation="nearest")
    draw_borders(axis, np.pad(regions, 1, mode="edge"), len(image), "white")


def regions_of(groups: Sequence[Token], side: int) -> np.ndarray:
    """Which group each patch is in: [side, side]."""
    regions = np.zeros(side * side, dtype=int)
    for number, group in enumerate(groups):
        regions[list(group)] = number
    return regions.reshape(side, side)


def mean_colors(image: np.ndarray, regions: np.ndarray) -> np.ndarray:
    """The picture with every region filled with its mean colour, tinted where it is of several patches.

    The tints tell neighbours of one colour apart, and show which patches that do not touch are together.
    """
    patch = len(image) // len(regions)
    wide = np.kron(regions, np.ones((patch, patch), dtype=int))
    colors = np.array([image[wide == region].mean(axis=0) for region in range(regions.max() + 1)])
    several = np.flatnonzero(np.bincount(regions.flat) > 1)
    tints = plt.get_cmap("hsv")(np.arange(len(several)) * GOLDEN % 1)[:, :3]
    colors[several] = (1 - TINT) * colors[several] + TINT * tints
    return colors[wide]


def draw_borders(axis: Axes, regions: np.ndarray, pixels: int, color: str) -> None:
    """Draws the borders between regions of patches: [side + 2, side + 2], the outermost lie beyond the picture."""
    side = len(regions) - 2
    lines = [
        ((column, row), (column + across, row + down))
        for across, down in ((1, 0), (0, 1))
        for row in range(side + across)
        for column in range(side + down)
        if regions[row + 1, column + 1] != regions[row + 1 - across, column + 1 - down]
    ]
    places = np.array(lines).reshape(-1, 2, 2) * pixels / side - 0.5
    axis.add_collection(LineCollection(places, colors=color, linewidths=1.4))


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
    """Undoes the normalisation of a picture [3, H, W], if it has been normalised -> [H, W, 3] from 0 to 1."""
    if image.dtype == torch.uint8:
        return (image.cpu().float() / 255).permute(1, 2, 0).numpy()
    mean, std = (torch.tensor(values)[:, None, None] for values in (mean, std))
    return (image.cpu().float() * std + mean).clamp(0, 1).permute(1, 2, 0).numpy()


def panel(figure: Figure, left: float, top: float, size: float) -> Axes:
    """A square to draw a picture into, placed in inches from the top left."""
    width, height = figure.get_size_inches()
    axis = figure.add_axes((left / width, 1 - (top + size) / height, size / width, size / height))
    axis.set(xticks=[], yticks=[])
    return axis


def draw_tokens(path: str | Path | BinaryIO, examples: Sequence[Example], heading: str) -> None:
    """Draws every example in a row: its pictures, each followed by what is left of it after every layer."""
    size, step, margin = 1.25, 1.4, 0.15  # inches
    columns, title = sum(1 + len(steps) for steps in examples[0].steps), 0.1 + 0.16 * len(examples[0].lines)
    row = title + size + 0.3
    figure = plt.figure(figsize=(max(6, 2 * margin + step * columns), 0.45 + row * len(examples)))
    figure.text(margin / figure.get_figwidth(), 1 - 0.1 / figure.get_figheight(), heading, fontsize=12, va="top")
    for number, example in enumerate(examples):
        axes = (panel(figure, margin + step * i, 0.4 + number * row + title, size) for i in range(columns))
        for place, (image, steps) in enumerate(zip(example.images, example.steps, strict=True)):
            axis = next(axes)
            axis.imshow(image, interpolation="nearest")
            axis.set_xlabel("input", fontsize=8)
            if place == 0:
                axis.set_title("\n".join(example.lines), fontsize=9, loc="left")
            for layer, left in zip(example.numbers or count(1), steps, strict=False):
                axis = next(axes)
                draw_left(axis, image, left, example.side)
                axis.set_xlabel(f"layer {layer}: {len(left.kept)}/{example.side**2}", fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_summary(
    path: str | Path | BinaryIO, dense: list[dict], compressed: list[dict], metric: str, heading: str
) -> None:
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
