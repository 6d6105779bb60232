"""How long the texts of a data set are in a model's own tokens, before a run meets the one that is too long for it."""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import NamedTuple

from torch import nn

from madtp.method.errors import UserError

TOGETHER = 4096  # texts that are tokenized at once

Text = tuple[str, str, str]  # its place in a file, what the model calls it, and itself


class Length(NamedTuple):
    """A text's length.

    Attributes:
        where: its place, of a file and an entry in it.
        kind: what the model calls it.
        tokens: how many there are, before it is cut.
        read: how many the model reads.
    """

    where: str
    kind: str
    tokens: int
    read: int

    def fault(self, model: nn.Module) -> str:
        """What is wrong with it, if the model cannot read it."""
        if self.read <= model.most_tokens:
            return ""
        allowed = f"the position embeddings allow {model.most_tokens} (max_position_embeddings of med_config)"
        return f"{self.where}: the {self.kind} has {self.tokens} tokens, {allowed}; shorten it"


def lengths(model: nn.Module, texts: Iterable[Text], characters: int = 0) -> Iterator[Length]:
    """Measures texts of the model's task.

    Args:
        model: whose tokens count.
        texts: see `Text`.
        characters: leave out texts that have fewer.
    """
    long = (text for text in texts if len(text[-1]) >= characters)
    while some := list(islice(long, TOGETHER)):
        for (where, kind, _), tokens in zip(some, model.text_lengths([text for *_, text in some]), strict=True):
            yield Length(where, kind, tokens, min(tokens, model.text_limits[kind] or tokens))


def refuse_long_texts(model: nn.Module, texts: Iterable[Text]) -> None:
    """Raises a UserError that names the first text which is too long for the model.

    A token has at least one character, and two more are put around a text: so only long texts have to be looked at.
    """
    for length in lengths(model, texts, model.most_tokens - 1):
        if fault := length.fault(model):
            raise UserError(fault)
