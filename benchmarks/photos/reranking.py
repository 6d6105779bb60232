"""Re-ranking: features say which captions a photo may have and which photos a caption, a captioner decides.

It judges a pair by how much likelier it finds the caption with the photo than without: the difference of the mean
log-probability of its words.

Shapes: I photos, T captions of theirs, n some captions.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from benchmarks.photos.scoring import recall_by
from benchmarks.photos.world import Photo, texts_of
from madtp.method.layout import Sequences
from models.blip import BlipDecoder
from models.med import next_tokens

SHORT_LIST = 16  # candidates that are judged; k_test of BLIP's configurations
TO_TEXT, TO_PHOTO = 100.0, 5.0  # weights of the cosine beside the captioner's nats a word, from 200 validation photos


def reranked(
    similarity: Tensor, photos: Sequence[Photo], gain: Callable[[int, list[int], list[str]], Tensor]
) -> dict[str, np.ndarray]:
    """Recall of every photo and of its captions, [I] each; see `recall_of_photos`.

    What is on a short list is ranked by similarity and gain, the rest comes after it.

    Args:
        similarity: [I, T or more], cosines of features.
        photos: whose captions these are.
        gain: of a photo by number and n captions by number and text, [n]: how much likelier it makes them.
    """
    captions, owners = texts_of(photos)
    similarity = similarity[:, : len(captions)]
    lists = [short_list(similarity, dim) for dim in (1, 0)]
    gains = torch.zeros_like(similarity)
    for photo, asked in enumerate(lists[0] | lists[1]):
        some = asked.nonzero().flatten().tolist()
        if some:
            gains[photo, some] = gain(photo, some, [captions[one] for one in some]).float().cpu()
    to_text, to_photo = (
        (weight * similarity + gains).masked_fill(~listed, -torch.inf)
        for weight, listed in zip((TO_TEXT, TO_PHOTO), lists, strict=True)
    )
    return recall_by(to_text, to_photo, owners)


def likelihood(captioner: BlipDecoder, captions: list[str], states: Sequences) -> Tensor:
    """The mean log-probability of the words of captions, [n], given the tokens of one photo."""
    text = captioner.tokenize(captions, "[DEC]", max_length=40)
    logits, _ = captioner.text_decoder(text.input_ids, text.attention_mask, states=states)
    targets = next_tokens(text.input_ids, text.attention_mask)
    words = logits[:, :-1].float().log_softmax(dim=-1).gather(-1, targets.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    there = targets >= 0
    return (words * there).sum(dim=1) / there.sum(dim=1)


def short_list(similarity: Tensor, dim: int) -> Tensor:
    """Which pairs are among the most similar along a dimension."""
    best = similarity.topk(min(SHORT_LIST, similarity.shape[dim]), dim=dim).indices
    return torch.zeros_like(similarity, dtype=torch.bool).scatter(dim, best, True)
