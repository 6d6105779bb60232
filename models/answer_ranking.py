"""Ranking a list of answers by their likelihood, without doing anything twice (Li et al., 2022, VQA).

The keys and values of a question are computed once and shared by its candidates. So is the step from [DEC], the same
for all of them: it gives the loss of every first word, and its own keys and values go on. What follows is run with
candidates of one length together, and without the last token, after which nothing is predicted.

Shapes: B questions, A answers of the list, k candidates of a question, C of them at a time, L tokens, V vocabulary.
"""

from collections.abc import Iterator
from itertools import groupby

import torch
from torch import Tensor
from transformers import BatchEncoding

from models.bert import TextOutput
from models.med import Decoder, next_tokens, smoothed_cross_entropy, token_losses

TOKENS_AT_A_TIME = 4096  # bounds the logits that are held, [TOKENS_AT_A_TIME, V]


@torch.no_grad()
def rank_answers(decoder: Decoder, question: TextOutput, answers: BatchEncoding, k: int) -> Tensor:
    """The likeliest answer among the k with the likeliest first word.

    Args:
        decoder: of answers.
        question: states [B, S, D] and their mask.
        answers: ids and mask [A, L], from [DEC] to [SEP], padded on the right.
        k: how many are ranked to the end.

    Returns:
        [B], indices into the list.
    """
    candidates, losses = candidate_losses(decoder, question, answers, min(k, len(answers.input_ids)))
    return candidates.gather(1, losses.argmin(dim=1, keepdim=True)).squeeze(1)


def candidate_losses(decoder: Decoder, question: TextOutput, answers: BatchEncoding, k: int) -> tuple[Tensor, Tensor]:
    """The k answers with the likeliest first word, the shortest first, and their losses: [B, k] each."""
    batch = len(question.first)
    context = {"keys_values": decoder.bert.cross_keys_values(question.sequences), "states_mask": question.mask}
    start = answers.input_ids[:1, :1].expand(batch, 1)
    logits, output = decoder(start, torch.ones_like(start), **context)
    first_words = answers.input_ids[:, 1]
    candidates = logits[:, 0].softmax(dim=-1)[:, first_words].topk(k, dim=1).indices
    lengths, order = answers.attention_mask.sum(dim=1)[candidates].sort(dim=1, stable=True)
    candidates = candidates.gather(1, order)
    losses = smoothed_cross_entropy(logits[:, 0], first_words[candidates])
    for columns, length in batches(lengths.amax(dim=0).tolist(), TOKENS_AT_A_TIME // batch):
        chosen = candidates[:, columns]  # [B, C]
        input_ids = answers.input_ids[chosen, :length].flatten(0, 1)
        mask = answers.attention_mask[chosen, :length].flatten(0, 1)
        past = [layer.repeated(chosen.shape[1]) for layer in output.past]
        logits, _ = decoder(input_ids[:, 1:-1], mask[:, :-1], past=past, **context)
        targets = next_tokens(input_ids[:, 1:], mask[:, 1:])
        losses[:, columns] += token_losses(logits, targets).sum(dim=1).view(batch, -1)
    return candidates, losses


def batches(lengths: list[int], tokens: int) -> Iterator[tuple[slice, int]]:
    """Cuts columns, sorted by length, into runs of one length that feed at most `tokens` tokens, or a single column."""
    start = 0
    for length, run in groupby(lengths):
        stop, fed = start + len(list(run)), length - 2
        if fed > 0:  # an empty answer is known from the step that all share
            size = max(1, tokens // fed)
            yield from ((slice(first, min(first + size, stop)), length) for first in range(start, stop, size))
        start = stop
