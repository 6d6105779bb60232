"""How models are scored on photos: one number, or several, for every photo, so that differences pair.

Shapes: I photos, T texts, E width of a feature.
"""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from benchmarks.photos.world import FALSE, TRUE, Photo
from madtp.scoring.caption_metrics import java, plain_tokens, stanford_tokens
from madtp.scoring.vqa_accuracy import agreement

TOP = (1, 5, 10)


def recall_of_photos(image: Tensor, text: Tensor, owners: Sequence[int]) -> dict[str, np.ndarray]:
    """Recall of every photo and of its captions, in percent, [I] each.

    Args:
        image: [I, E] features of photos.
        text: [T, E] features of captions.
        owners: [T], the photo of each caption.

    Returns:
        `txt_r1`, ... of the photo that looks for its captions; `img_r1`, ... mean of its captions that look for it;
        `r_mean` of all six.
    """
    similarity = similarities(image, text)
    return recall_by(similarity, similarity, owners)


def similarities(image: Tensor, text: Tensor) -> Tensor:
    """Of features [I, E] and [T, E]: [I, T], in single precision even under autocast, since they are ranked."""
    with torch.autocast("cpu", enabled=False):
        return image.float().cpu() @ text.float().cpu().T


def recall_by(to_text: Tensor, to_photo: Tensor, owners: Sequence[int]) -> dict[str, np.ndarray]:
    """The same by scores [I, T] of all pairs, those by which photos look and those by which captions do."""
    owners = torch.as_tensor(owners)
    own = torch.arange(len(to_text)).unsqueeze(1) == owners  # [I, T]
    best = to_text.masked_fill(~own, -torch.inf).amax(dim=1, keepdim=True)
    before = ((to_text > best) & ~own).sum(dim=1)  # captions of others ahead of the photo's own best
    theirs = to_photo.T.gather(1, owners.unsqueeze(1))  # [T, 1]
    ahead = (to_photo.T > theirs).sum(dim=1)  # photos ahead of the caption's own
    count = own.sum(dim=1)
    scores = {f"txt_r{k}": 100.0 * (before < k).float() for k in TOP}
    scores |= {f"img_r{k}": 100.0 * ((ahead < k).float() * own).sum(dim=1) / count for k in TOP}
    scores["r_mean"] = torch.stack(list(scores.values())).mean(dim=0)
    return {name: values.numpy() for name, values in scores.items()}


def apart_of_photos(likelihoods: Sequence[Tensor], photos: Sequence[Photo]) -> dict[str, np.ndarray]:
    """Of every photo, [I], the percentage of its captions that are likelier with it than with a borrower.

    How likely a caption is without a photo cancels, so that nothing but the photos decides. A tie counts half.

    Args:
        likelihoods: of every photo, of all its texts, its own captions and borrowed ones.
        photos: whose answers say which are which.

    Returns:
        `told_apart`; 50 for a photo that nobody borrows from.
    """
    borrowed = defaultdict(list)
    for likely, photo in zip(likelihoods, photos, strict=True):
        for value, text, answer in zip(likely.tolist(), photo.texts, photo.answers, strict=True):
            borrowed[text] += [value] if answer == FALSE else []
    shares = []
    for likely, photo in zip(likelihoods, photos, strict=True):
        told = [
            100.0 * (own > other) + 50.0 * (own == other)
            for own, text, answer in zip(likely.tolist(), photo.texts, photo.answers, strict=True)
            for other in (borrowed[text] if answer == TRUE else ())
        ]
        shares.append(np.mean(told) if told else 50.0)
    return {"told_apart": np.array(shares)}


def tokenizer_of_captions():
    """Stanford's tokenizer where there is Java, else a plain one; and its name."""
    try:
        java()
        return stanford_tokens, "Stanford's PTB tokenizer"
    except FileNotFoundError:
        return plain_tokens, "plain tokens, without Java"


def cider_of_photos(captions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, np.ndarray | float]:
    """CIDEr of every photo, [I], in percent, and BLEU-4 of all of them together."""
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider

    tokenize, _ = tokenizer_of_captions()
    tokens = iter(tokenize([*captions, *(text for texts in references for text in texts)]))
    said = {photo: [next(tokens)] for photo in range(len(captions))}
    given = {photo: [next(tokens) for _ in texts] for photo, texts in enumerate(references)}
    _, cider = Cider().compute_score(given, said)
    bleu, _ = Bleu(4).compute_score(given, said, verbose=0)
    return {"CIDEr": 100.0 * np.asarray(cider), "Bleu_4": 100.0 * bleu[3]}


def accuracy_of_photos(answers: Sequence[Sequence[str]], given: Sequence[Sequence[str]]) -> dict[str, np.ndarray]:
    """How many of a photo's questions were answered as people did, and how many questions there are: [I] each."""
    right = [
        sum(agreement(answer, [person] * 10) for answer, person in zip(own, people, strict=True))
        for own, people in zip(answers, given, strict=True)
    ]
    return {"right": 100.0 * np.asarray(right), "questions": np.asarray([len(own) for own in answers], dtype=float)}
