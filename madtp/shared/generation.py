"""Beam search and nucleus sampling with cached keys and values.

The ranking is the one that BLIP's published captions came from, not today's: a hypothesis scores the sum of its
log-probabilities over its length to the power of the penalty, a length that counts the prompt and not the end token.

Keys and values of what the text attends to are computed once per row of `states` and shared by its beams, at every
step; keys and values of earlier tokens are kept and follow their beams.

Shapes: B rows of `states` (images or questions), G beams, P prompt tokens, L tokens so far, V vocabulary.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn


@dataclass
class Hypotheses:
    """The best finished texts of one row.

    Attributes:
        beams: how many are held.
        length_penalty: exponent of the length in a score.
        held: (score, tokens), the worst first.
    """

    beams: int
    length_penalty: float
    held: list[tuple[float, Tensor]] = field(default_factory=list)

    def add(self, tokens: Tensor, log_probability: float) -> None:
        """Keeps the text if it is among the best."""
        score = log_probability / len(tokens) ** self.length_penalty
        self.held = sorted([*self.held, (score, tokens)], key=lambda entry: entry[0])[-self.beams :]

    def finished(self, best_log_probability: float, length: int) -> bool:
        """Whether no open beam can still beat the worst text held, judged at the current length."""
        return len(self.held) == self.beams and self.held[0][0] >= best_log_probability / length**self.length_penalty


class CachedDecoder:
    """One text per beam, extended token by token.

    Args:
        decoder: called as `decoder(input_ids, mask, keys_values=, states_mask=, past=)`, returns logits and an output
            whose `past` goes into the next call; `decoder.bert.cross_keys_values(states)` projects the states.
        prompt: [B, P].
        states: [B, S, D].
        states_mask: [B, S] or None.
        beams: G.
    """

    def __init__(self, decoder: nn.Module, prompt: Tensor, states: Tensor, states_mask: Tensor | None, beams: int):
        self.decoder, self.prompt, self.beams = decoder, prompt, beams
        self.tokens = prompt.repeat_interleave(beams, dim=0)  # [B * G, L]
        self.context = {"keys_values": decoder.bert.cross_keys_values(states), "states_mask": states_mask}
        self.past = None

    def step(self) -> Tensor:
        """Logits [B * G, V] of the next token, in at least single precision."""
        first = self.past is None
        new, mask = (self.prompt, self.prompt) if first else (self.tokens[:, -1:], self.tokens)
        logits, output = self.decoder(new, torch.ones_like(mask), past=self.past, **self.context)
        self.past = output.past
        last = logits[:, -1]
        if first:  # the prompt is read once for all beams of a row
            rows = torch.arange(len(last), device=last.device).repeat_interleave(self.beams)
            last = last[rows]
            self._reorder(rows)
        return last.float() if last.dtype.itemsize < 4 else last

    def extend(self, parents: Tensor, tokens: Tensor) -> None:
        """Beam i becomes beam `parents[i]` followed by `tokens[i]`."""
        self.tokens = torch.cat([self.tokens[parents], tokens.unsqueeze(1)], dim=1)
        self._reorder(parents)

    def _reorder(self, rows: Tensor) -> None:
        self.past = [layer.reordered(rows) for layer in self.past]


@torch.no_grad()
def beam_search(
    decoder: nn.Module,
    prompt: Tensor,
    states: Tensor,
    states_mask: Tensor | None = None,
    num_beams: int = 3,
    max_length: int = 20,
    min_length: int = 5,
    eos: int = 102,
    length_penalty: float = 1.0,
) -> list[Tensor]:
    """The best text of every row, prompt included and end token left out.

    Args:
        decoder: see `CachedDecoder`.
        prompt: [B, P].
        states: [B, S, D], what the text attends to.
        states_mask: [B, S], nonzero where it may, or None.
        num_beams: G; 1 is greedy decoding.
        max_length: tokens at most, prompt included.
        min_length: no end token before this many tokens.
        eos: the end token.
        length_penalty: exponent of the length in a score.
    """
    batch, device = len(prompt), prompt.device
    beams = CachedDecoder(decoder, prompt, states, states_mask, num_beams)
    sums = torch.full((batch, num_beams), -1e9, device=device, dtype=torch.float64)
    sums[:, 0] = 0  # all beams start equal; only the first may branch
    finished = [Hypotheses(num_beams, length_penalty) for _ in range(batch)]
    done = [False] * batch
    while beams.tokens.shape[1] < max_length and not all(done):
        scores = beams.step().log_softmax(dim=-1)
        if beams.tokens.shape[1] < min_length:
            scores[:, eos] = -torch.inf
        totals = (sums.view(-1, 1) + scores).view(batch, -1)  # [B, G * V]
        candidates = totals.topk(2 * num_beams, dim=1)
        parents = candidates.indices // scores.shape[1] + torch.arange(batch, device=device)[:, None] * num_beams
        rows = zip(
            candidates.values.tolist(), parents.tolist(), (candidates.indices % scores.shape[1]).tolist(), strict=True
        )
        chosen = []
        for index, row in enumerate(rows):
            chosen += _advance(list(zip(*row, strict=True)), finished[index], beams.tokens, eos, done[index])
            done[index] = done[index] or finished[index].finished(row[0][0], beams.tokens.shape[1])
        sums = torch.tensor([total for total, _, _ in chosen], device=device, dtype=torch.float64).view(batch, -1)
        beams.extend(*(torch.tensor(values, device=device) for values in list(zip(*chosen, strict=True))[1:]))
    return [
        _best(hypotheses, totals, tokens, over)
        for hypotheses, totals, tokens, over in zip(
            finished, sums.tolist(), beams.tokens.view(batch, num_beams, -1), done, strict=True
        )
    ]


def _advance(
    candidates: list[tuple[float, int, int]], finished: Hypotheses, tokens: Tensor, eos: int, done: bool
) -> list[tuple[float, int, int]]:
    """The candidates (sum, parent, token) that stay open; those that end are added to the finished texts."""
    beams = finished.beams
    going_on = []
    for rank, (total, parent, token) in enumerate(candidates):
        if token != eos:
            going_on.append((total, parent, token))
        elif rank < beams and not done:
            finished.add(tokens[parent], total)
        if len(going_on) == beams:
            break
    return going_on


def _best(finished: Hypotheses, totals: list[float], tokens: Tensor, done: bool) -> Tensor:
    """The best text of a row; open beams count where the search was cut off."""
    if not done:
        for total, open_tokens in zip(totals, tokens, strict=True):
            finished.add(open_tokens, total)
    return finished.held[-1][1]


@torch.no_grad()
def nucleus_sampling(
    decoder: nn.Module,
    prompt: Tensor,
    states: Tensor,
    states_mask: Tensor | None = None,
    top_p: float = 0.9,
    max_length: int = 20,
    min_length: int = 5,
    eos: int = 102,
    repetition_penalty: float = 1.1,
    generator: torch.Generator | None = None,
) -> list[Tensor]:
    """One text per row, each token drawn from the smallest set whose probability exceeds `top_p` (Holtzman, 2020).

    Args:
        decoder: see `CachedDecoder`.
        prompt: [B, P].
        states: [B, S, D], what the text attends to.
        states_mask: [B, S], nonzero where it may, or None.
        top_p: probability of the nucleus.
        max_length: tokens at most, prompt included.
        min_length: no end token before this many tokens.
        eos: the end token.
        repetition_penalty: how much the logits of tokens already there are divided by (Keskar et al., 2019).
        generator: source of randomness, or None for torch's own.
    """
    text = CachedDecoder(decoder, prompt, states, states_mask, beams=1)
    lengths = torch.full((len(prompt),), max_length, device=prompt.device)
    while text.tokens.shape[1] < max_length and bool((lengths == max_length).any()):
        length = text.tokens.shape[1]
        logits = penalise(text.step(), text.tokens, repetition_penalty)
        if length < min_length:
            logits[:, eos] = -torch.inf
        token = torch.multinomial(nucleus(logits, top_p), 1, generator=generator).squeeze(1)
        lengths = torch.where((token == eos) & (lengths == max_length), length, lengths)
        text.extend(torch.arange(len(prompt), device=prompt.device), token)
    return [tokens[:length] for tokens, length in zip(text.tokens, lengths.tolist(), strict=True)]


def penalise(logits: Tensor, tokens: Tensor, penalty: float) -> Tensor:
    """Makes tokens that are already there less likely: logits [B, V], tokens [B, L]."""
    seen = logits.gather(1, tokens)
    return logits.scatter(1, tokens, torch.where(seen < 0, seen * penalty, seen / penalty))


def nucleus(logits: Tensor, top_p: float) -> Tensor:
    """Probabilities [B, V] with everything outside the nucleus set to 0 (not normalised again)."""
    probabilities, order = logits.softmax(dim=-1).sort(dim=-1, descending=True)
    outside = probabilities.cumsum(dim=-1) - probabilities > top_p
    return torch.zeros_like(logits).scatter(1, order, probabilities.masked_fill(outside, 0))
