"""Re-ranking: features say which captions a photo may have and which photos a caption, the matching head decides.

Shapes: I photos, T captions of theirs, E width of a feature.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from benchmarks.photos.scoring import recall_by, similarities
from benchmarks.photos.world import Photo, texts_of
from madtp.method.layout import Sequences
from models.blip_retrieval import BlipRetrieval

SHORT_LIST = 16  # candidates that are judged; k_test of BLIP's configurations


def reranked(
    model: BlipRetrieval, image: Tensor, text: Tensor, photos: Sequence[Photo], states: Sequence[Sequences]
) -> dict[str, np.ndarray]:
    """Recall of every photo and of its captions, [I] each; see `recall_of_photos`.

    What is on a short list scores the sum of the similarity and the logit of "matches"; the rest comes after it.

    Args:
        model: whose matching head judges.
        image: [I, E] features.
        text: [T, E], or more, of photos that are not asked for.
        photos: whose captions these are.
        states: tokens of every photo, one by one.
    """
    captions, owners = texts_of(photos)
    similarity = similarities(image, text[: len(captions)])  # [I, T]
    lists = [short_list(similarity, dim) for dim in (1, 0)]
    judged = torch.zeros_like(similarity)
    for photo, asked in enumerate(lists[0] | lists[1]):
        some = asked.nonzero().flatten()
        if len(some):
            given = model.tokenize([captions[one] for one in some.tolist()], "[CLS]", max_length=35)
            judged[photo, some] = model.match(given.input_ids, given.attention_mask, states[photo])[:, 1].float().cpu()
    to_text, to_photo = ((similarity + judged).masked_fill(~listed, -torch.inf) for listed in lists)
    return recall_by(to_text, to_photo, owners)


def short_list(similarity: Tensor, dim: int) -> Tensor:
    """Which pairs are among the most similar along a dimension."""
    best = similarity.topk(min(SHORT_LIST, similarity.shape[dim]), dim=dim).indices
    return torch.zeros_like(similarity, dtype=torch.bool).scatter(dim, best, True)
