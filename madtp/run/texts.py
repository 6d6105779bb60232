"""How long the texts of a data set are in a model's own tokens, before a run meets the one that is too long for it."""

from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

from torch import nn
from torch.utils.data import Dataset

from madtp.method.errors import UserError

TOGETHER = 4096  # texts that are tokenized at once


class Length(NamedTuple):
    """A text's length.

    Attributes:
        index: of its entry in the data set.
        kind: what the model calls it.
        tokens: how many there are, before it is cut.
        read: how many the model reads.
    """

    index: int
    kind: str
    tokens: int
    read: int

    def fault(self, dataset: Dataset, model: nn.Module) -> str:
        """What is wrong with it, if the model cannot read it."""
        if self.read <= model.most_tokens:
            return ""
        allowed = f"the position embeddings allow {model.most_tokens} (max_position_embeddings of med_config)"
        return f"{dataset.where(self.index)}: the {self.kind} has {self.tokens} tokens, {allowed}; shorten it"


def lengths(model: nn.Module, dataset: Dataset, characters: int = 0) -> Iterator[Length]:
    """Measures the texts of a data set.

    Args:
        model: whose tokens count.
        dataset: of the model's task, with `texts_of`.
        characters: leave out texts that have fewer.
    """
    texts = (
        (index, kind, text)
        for index in range(len(dataset))
        for kind, several in dataset.texts_of(index).items()
        for text in several
        if len(text) >= characters
    )
    while some := list(islice(texts, TOGETHER)):
        for (index, kind, _), tokens in zip(some, model.text_lengths([text for *_, text in some]), strict=True):
            yield Length(index, kind, tokens, min(tokens, model.text_limits[kind] or tokens))


def refuse_long_texts(model: nn.Module, dataset: Dataset) -> None:
    """Raises a UserError that names the first text which is too long for the model.

    A token has at least one character, and two more are put around a text: so only long texts have to be looked at.
    """
    for length in lengths(model, dataset, model.most_tokens - 1):
        if fault := length.fault(dataset, model):
            raise UserError(fault)
