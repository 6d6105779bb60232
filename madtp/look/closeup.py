"""A sample seen closely: what every layer kept of its pictures and words, and why.

Bright is what is kept, outlined what the layer merges into one token, greyed what went before; by coverage, which drops
nothing, every group of patches has its mean colour. Below the pictures stand the importance S and, where it is the mean
of several parts, these.

Shapes: N tokens that enter a layer.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from madtp.look.pictures import OUTLINE, dim_dropped, draw_borders, draw_left, mask_of, panel
from madtp.look.recording import Importance
from madtp.look.survival import Step

GONE, HEAT, WORD_HEAT = "#e4e4e4", "magma", "YlOrBr"
TOTAL = "importance\nS"
PARTS = {
    "self_attention": "self-attention\n$S_{self}$",
    "alignment": "alignment\n$S_{token}$",
    "cls_attention": "class token\n$S_{cls}$",
}
ACROSS = 6  # layers side by side
PANEL, GAP, LABEL, MARGIN = 1.45, 0.1, 1.25, 0.3  # inches
LINE, CHARACTER = 0.27, 0.092  # inches: height of a line of words, width of a letter
LEGEND = (
    "Clear: kept. Orange border: merged into one token by this layer. Grey: gone before.\n"
    "Maps and colours behind words: from dark (words: light), the layer's least important, to the most important."
)
LEGEND_OF_GROUPS = (
    "Every group of patches, one token from this layer on, in its mean colour, tinted where it has several.\n"
    "Maps: from dark, the layer's least important token, to the most important; all its patches have its colour."
)


@dataclass
class Fate:
    """What happened to the tokens of one picture or text.

    Attributes:
        name: of the tower.
        steps: layer by layer.
        importance: of each layer, of the tokens that entered it, [N] each.
    """

    name: str
    steps: list[Step]
    importance: list[Importance]

    @property
    def pruning(self) -> list[tuple[int, Step, Importance]]:
        """The layers that dropped something, numbered from 1."""
        rows = zip(self.steps, self.importance, strict=True)
        return [(number, *row) for number, row in enumerate(rows, start=1) if row[0].prunes]

    @property
    def maps(self) -> int:
        """How many heat maps a layer has."""
        return 1 + len(self.importance[0].parts)


@dataclass
class Closeup:
    """A sample to draw.

    Attributes:
        title: what was asked and what was answered.
        pictures: [H, W, 3] with values from 0 to 1, each with its fate.
        texts: words, each with their fate.
    """

    title: str
    pictures: list[tuple[np.ndarray, Fate]]
    texts: list[tuple[list[str], Fate]]


def draw(path: str | Path | BinaryIO, closeup: Closeup) -> None:
    """Draws a sample from top to bottom: its pictures, then its texts."""
    columns = min(ACROSS, max([4, *(len(fate.pruning) for _, fate in closeup.pictures)]))
    width = 2 * MARGIN + PANEL + LABEL + columns * (PANEL + GAP)
    height = MARGIN * 2 + 0.8 + sum(picture_height(fate) for _, fate in closeup.pictures)
    height += sum(text_height(words, fate, width) for words, fate in closeup.texts)
    figure = plt.figure(figsize=(width, height))
    figure.text(MARGIN / width, 1 - MARGIN / height, closeup.title, fontsize=13, weight="bold", va="top", wrap=True)
    legend = LEGEND_OF_GROUPS if closeup.pictures[0][1].steps[0].grouped else LEGEND
    figure.text(MARGIN / width, 1 - (MARGIN + 0.35) / height, legend, fontsize=10, color="#555555", va="top")
    top = MARGIN + 0.95
    for number, (picture, fate) in enumerate(closeup.pictures):
        name = f"picture {number + 1}" if len(closeup.pictures) > 1 else "picture"
        draw_picture(figure, top, picture, fate, name)
        top += picture_height(fate)
    for words, fate in closeup.texts:
        draw_text(figure, top, words, fate)
        top += text_height(words, fate, width)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def picture_height(fate: Fate) -> float:
    """Inches that a picture's rows take."""
    blocks = max(1, -(-len(fate.pruning) // ACROSS))
    rows = 1 + fate.maps if fate.pruning else 1
    return blocks * (rows * (PANEL + GAP) + 0.45)


def draw_picture(figure: Figure, top: float, picture: np.ndarray, fate: Fate, name: str) -> None:
    """What each pruning layer left of a picture, above the heat maps of the importance that decided."""
    side = round(len(fate.steps[0].entered) ** 0.5)
    axis = panel(figure, MARGIN, top + 0.3, PANEL)
    axis.imshow(picture, interpolation="nearest")
    axis.set_title(f"{name}\n{side**2} patches", fontsize=10)
    if not fate.pruning:
        figure.text(0.3, 1 - (top + 1) / figure.get_figheight(), "no layer drops a patch", fontsize=11)
    for block in range(0, len(fate.pruning), ACROSS):
        for place, (number, step, importance) in enumerate(fate.pruning[block : block + ACROSS]):
            left = MARGIN + PANEL + LABEL + place * (PANEL + GAP)
            axis = panel(figure, left, top + 0.3, PANEL)
            draw_step(axis, picture, step, side)
            axis.set_title(f"layer {number}\n{len(step.kept)} of {side**2} kept", fontsize=10)
            maps = {TOTAL: importance.total} | {PARTS[name]: part for name, part in importance.parts.items()}
            for row, (label, values) in enumerate(maps.items(), start=1):
                axis = panel(figure, left, top + 0.3 + row * (PANEL + GAP), PANEL)
                axis.imshow(heat(values, step, side), cmap=plt.get_cmap(HEAT).with_extremes(bad=GONE))
                if place == 0:
                    axis.set_ylabel(label, fontsize=11, rotation=0, ha="right", va="center", labelpad=8)
        top += (1 + fate.maps) * (PANEL + GAP) + 0.45


def draw_step(axis: plt.Axes, picture: np.ndarray, step: Step, side: int) -> None:
    """What a layer left of a picture, and what it merges into one token."""
    if step.grouped:
        draw_left(axis, picture, step, side)
        return
    axis.imshow(shaded(picture, step, side), interpolation="nearest")
    merges = np.zeros(side * side, dtype=bool)
    merges[step.merged] = True
    draw_borders(axis, np.pad(merges.reshape(side, side), 1), len(picture), OUTLINE)


def shaded(picture: np.ndarray, step: Step, side: int) -> np.ndarray:
    """The picture with what went greyed, and what goes now less so."""
    gone = dim_dropped(picture, step.kept, side)
    return np.where(mask_of(step.merged, side, len(picture)), (picture + gone) / 2, gone)


def heat(values: np.ndarray, step: Step, side: int) -> np.ndarray:
    """Values of the patches that entered a layer, each its token's, [side, side]; NaN where it had gone before."""
    grid = np.full(side * side, np.nan)
    for token, value in zip(step.entered, values, strict=False):  # shorter samples are filled up
        if step.grouped or len(token) == 1:
            grid[list(token)] = value
    return grid.reshape(side, side)


def text_height(words: Sequence[str], fate: Fate, width: float) -> float:
    """Inches that the lines of a text take in a figure of this width."""
    return 0.55 + len(list(lines_of(words, width))) * ((1 + len(fate.pruning)) * LINE + 0.15)


def lines_of(words: Sequence[str], width: float) -> Iterator[list[int]]:
    """Numbers of the words that stand side by side in a figure of this width."""
    line, used = [], 0.0
    for number, word in enumerate(words):
        if line and used + word_width(word) > width - 2 * MARGIN - LABEL:
            yield line
            line, used = [], 0.0
        line.append(number)
        used += word_width(word)
    if line:
        yield line


def word_width(word: str) -> float:
    """Inches of a word with space around it."""
    return (len(word) + 1.6) * CHARACTER


def draw_text(figure: Figure, top: float, words: Sequence[str], fate: Fate) -> None:
    """The words after every layer that prunes, on the colour of the importance that decided."""
    width, height = figure.get_size_inches()
    axis = figure.add_axes((0, 0, 1, 1))
    axis.set(xlim=(0, width), ylim=(height, 0))
    axis.axis("off")
    note = "" if fate.pruning else ": no layer drops a word"
    axis.text(MARGIN, top + 0.3, f"{fate.name}{note}", fontsize=11, weight="bold", va="center")
    top += 0.5
    for line in lines_of(words, width):
        draw_line(axis, top, "input", words, line, range(len(words)), [], {})
        top += LINE
        for number, step, importance in fate.pruning:
            values = {token[0]: v for token, v in zip(step.entered, importance.total, strict=False) if len(token) == 1}
            draw_line(axis, top, f"layer {number}", words, line, step.kept, step.merged, values)
            top += LINE
        top += 0.15


def draw_line(axis, top: float, label: str, words, line: list[int], kept, merged, values: dict[int, float]) -> None:
    """One line of words: kept black, merged outlined, gone grey."""
    left, middle = MARGIN + LABEL, top + LINE / 2
    axis.text(left - 0.12, middle, label, fontsize=10, ha="right", va="center", color="#555555")
    low, high = min(values.values(), default=0), max(values.values(), default=1)
    colors = plt.get_cmap(WORD_HEAT)
    for number in line:
        width = word_width(words[number])
        if number in values:
            share = (values[number] - low) / (high - low) if high > low else 0.5
            box = {"facecolor": colors(0.05 + 0.5 * share), "edgecolor": OUTLINE if number in merged else "none"}
            axis.add_patch(Rectangle((left + 0.02, top + 0.03), width - 0.04, LINE - 0.06, linewidth=1.4, **box))
        style = {"color": "black"} if number in kept else {"color": "#8a5a2b" if number in merged else "#cfcfcf"}
        axis.text(left + width / 2, middle, words[number], fontsize=10, ha="center", va="center", **style)
        left += width
