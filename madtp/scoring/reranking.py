"""Judging pairs of images and texts by ITM, the keys and values of an image computed once for all its texts at a time.

Shapes: I images, T texts, L tokens of a text, B images of a batch, S image tokens, n images in one forward pass with G
texts each.
"""

from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from madtp.cost.measure import CostMeter, device_of
from madtp.cost.trace import LayerTrace
from madtp.method.layout import Sequences
from madtp.method.packed import Packed
from madtp.run.output import progress_bar

PAIRS = 256  # judged in one forward pass


class ImageBatch(NamedTuple):
    """Images as they left the pruned tower.

    Attributes:
        index: numbers of the images.
        states: their tokens on the CPU, [B, S, D] or packed; S is the batch's own.
        layers: what the tower did, without the indices of what it kept.
    """

    index: list[int]
    states: Sequences
    layers: list[LayerTrace]


class Piece(NamedTuple):
    """Some of an image's texts: the image's row in its batch, and which of its texts, from `start` to before `stop`."""

    row: int
    start: int
    stop: int

    @property
    def size(self) -> int:
        """How many texts."""
        return self.stop - self.start


def pack(counts: Sequence[int]) -> list[list[Piece]]:
    """Shares the pairs of a batch of images out to forward passes of at most `PAIRS` pairs.

    Pieces of one forward pass are of similar length, the longest first. What is missing to a rectangle is filled with
    repetitions, which change nothing: the number of tokens kept is a maximum over the pairs.

    Args:
        counts: [B], the number of texts of each image.
    """
    pieces = [
        Piece(row, start, min(start + PAIRS, count))
        for row, count in enumerate(counts)
        for start in range(0, count, PAIRS)
    ]
    pieces.sort(key=lambda piece: -piece.size)
    packed = []
    while pieces:
        together = PAIRS // pieces[0].size
        packed.append(pieces[:together])
        pieces = pieces[together:]
    return packed


def pack_ragged(counts: Sequence[int]) -> list[list[Piece]]:
    """As `pack`, where no pair depends on its company: image after image, every forward pass but the last is full."""
    packed, free = [], 0
    for row, count in enumerate(counts):
        start = 0
        while start < count:
            if not free:
                packed.append([])
                free = PAIRS
            stop = min(count, start + free)
            packed[-1].append(Piece(row, start, stop))
            start, free = stop, free - (stop - start)
    return packed


def join(batches: Sequence[ImageBatch]) -> ImageBatch:
    """Packed images of several batches as one batch, whose pairs may go together as they like."""
    index = list(chain.from_iterable(batch.index for batch in batches))
    layers = [LayerTrace.join(rows) for rows in zip(*(batch.layers for batch in batches), strict=True)]
    return ImageBatch(index, Packed.join(batch.states for batch in batches), layers)


def judge(
    model: nn.Module,
    batches: Sequence[ImageBatch],
    text: tuple[Tensor, Tensor],
    wanted: Tensor,
    temperature: float,
    meter: CostMeter,
) -> dict[int, Tensor]:
    """ITM logits "matches" of the wanted pairs of this process's images, keys and values once per image and forward.

    Args:
        model: whose `match` judges.
        batches: of images, with their tokens.
        text: token ids and mask of all texts, [T, L].
        wanted: [I, T], boolean.
        temperature: pruning temperature of the text.
        meter: of the pairs' cost.

    Returns:
        For each image the logits of its wanted texts, in the order of the texts.
    """
    device = device_of(model)
    ragged = bool(batches) and batches[0].states.layout.ragged
    texts, logits, work = {}, {}, []
    for batch in [join(batches)] if ragged else batches:
        own = {image: wanted[image].nonzero().squeeze(1) for image in batch.index}
        texts |= own
        logits |= {image: batch.states.tokens.new_empty(len(numbers)) for image, numbers in own.items()}
        sizes = [len(numbers) for numbers in own.values()]
        work += [(batch, pieces) for pieces in (pack_ragged if ragged else pack)(sizes)]
    for batch, pieces in progress_bar(work, "pairs"):
        chosen, states, layers = pairs_of(batch, pieces, texts)
        chosen = chosen.to(device)
        with meter.forward(len(chosen)) as trace:
            trace.layers["image"] = layers
            given = (values[chosen] for values in text)
            judged = model.match(*given, states.to(device), temperature=temperature, trace=trace)[:, 1].cpu()
        parts = judged.split([piece.size for piece in pieces]) if ragged else judged.view(len(pieces), -1)
        for (row, start, stop), found in zip(pieces, parts, strict=True):
            logits[batch.index[row]][start:stop] = found[: stop - start]
    return logits


def pairs_of(
    batch: ImageBatch, pieces: Sequence[Piece], texts: dict[int, Tensor]
) -> tuple[Tensor, Sequences, list[LayerTrace]]:
    """What a forward pass judges.

    Returns:
        The numbers of the texts, image after image; the tokens of the images; what their tower did, pair by pair where
        it differs.
    """
    rows, sizes = [piece.row for piece in pieces], [piece.size for piece in pieces]
    states = batch.states.take(rows)
    if not isinstance(states.layout, Packed):
        places = torch.arange(sizes[0])  # [G]
        chosen = [texts[batch.index[row]][(start + places).clamp(max=stop - 1)] for row, start, stop in pieces]
        return torch.cat(chosen), states, batch.layers
    states.layout.readers = sizes
    chosen = torch.cat([texts[batch.index[row]][start:stop] for row, start, stop in pieces])
    pairs = np.repeat(rows, sizes)
    return chosen, states, [layer.take(pairs) for layer in batch.layers]
