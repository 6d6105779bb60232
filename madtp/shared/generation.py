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

from madtp.method.precision import at_least_single


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
        return at_least_single(last)

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
    length_penalty: float = 1.0,
    **limits: int,
) -> list[Tensor]:
    """The best text of every row, prompt included and end token left out.

    Args:
        decoder: see `CachedDecoder`.
        prompt: [B, P].
        states: [B, S, D], what the text attends to.
        states_mask: [B, S], nonzero where it may, or None.
        num_beams: G; 1 is greedy decoding.
        length_penalty: exponent of the length in a score.
        limits: see `decode`.
    """
    text = CachedDecoder(decoder, prompt, states, states_mask, num_beams)
    return decode(text, Beams(len(prompt), num_beams, length_penalty, prompt.device), **limits)


@torch.no_grad()
def nucleus_sampling(
    decoder: nn.Module,
    prompt: Tensor,
    states: Tensor,
    states_mask: Tensor | None = None,
    top_p: float = 0.9,
    repetition_penalty: float = 1.1,
    generator: torch.Generator | None = None,
    **limits: int,
) -> list[Tensor]:
    """One text per row, each token drawn from the smallest set whose probability exceeds `top_p` (Holtzman, 2020).

    Args:
        decoder, prompt, states, states_mask: as for `beam_search`.
        top_p: probability of the nucleus.
        repetition_penalty: how much the logits of tokens already there are divided by (Keskar et al., 2019).
        generator: source of randomness, or None for torch's own.
        limits: see `decode`.
    """
    text = CachedDecoder(decoder, prompt, states, states_mask, beams=1)
    return decode(text, Draws(prompt, top_p, repetition_penalty, generator), **limits)


def decode(
    text: CachedDecoder, choice: "Beams | Draws", max_length: int = 20, min_length: int = 5, eos: int = 102
) -> list[Tensor]:
    """Adds tokens, one to every text at a time, until none of them goes on.

    Args:
        text: the texts so far.
        choice: makes scores [B * G, V] of the logits and chooses by them; it knows when all is done, and what was best.
        max_length: tokens at most, prompt included.
        min_length: no end token before this many tokens.
        eos: the end token.
    """
    while text.tokens.shape[1] < max_length and not choice.done:
        scores = choice.scores(text.step(), text.tokens)
        if text.tokens.shape[1] < min_length:
            scores[:, eos] = -torch.inf
        text.extend(*choice.choose(scores, text.tokens, eos))
    return choice.best(text.tokens)


class Beams:
    """The likeliest texts of every row, of which the open ones are extended.

    Args:
        rows: B.
        num_beams: G.
        length_penalty: exponent of the length in a score.
        device: where the scores are.
    """

    def __init__(self, rows: int, num_beams: int, length_penalty: float, device: torch.device):
        self.num_beams = num_beams
        self.sums = torch.full((rows, num_beams), -1e9, device=device, dtype=torch.float64)
        self.sums[:, 0] = 0  # all beams start equal; only the first may branch
        self.finished = [Hypotheses(num_beams, length_penalty) for _ in range(rows)]
        self.over = [False] * rows

    @property
    def done(self) -> bool:
        """Whether no open beam of any row can become the best."""
        return all(self.over)

    def scores(self, logits: Tensor, tokens: Tensor) -> Tensor:
        """Log-probabilities."""
        return logits.log_softmax(dim=-1)

    def choose(self, scores: Tensor, tokens: Tensor, eos: int) -> tuple[Tensor, Tensor]:
        """For every open beam its parent and its next token; texts that end are put aside."""
        rows, vocabulary = len(self.sums), scores.shape[1]
        totals = (self.sums.view(-1, 1) + scores).view(rows, -1)  # [B, G * V]
        likeliest = totals.topk(2 * self.num_beams, dim=1)
        first = torch.arange(rows, device=scores.device).unsqueeze(1) * self.num_beams
        parents, words = first + likeliest.indices // vocabulary, likeliest.indices % vocabulary
        chosen = []
        columns = (values.tolist() for values in (likeliest.values, parents, words))
        for row, candidates in enumerate(zip(*columns, strict=True)):
            chosen += self._go_on(row, list(zip(*candidates, strict=True)), tokens, eos)
        totals, parents, words = zip(*chosen, strict=True)
        self.sums = self.sums.new_tensor(totals).view(rows, -1)
        return torch.tensor(parents, device=scores.device), torch.tensor(words, device=scores.device)

    def _go_on(
        self, row: int, candidates: list[tuple[float, int, int]], tokens: Tensor, eos: int
    ) -> list[tuple[float, int, int]]:
        """The candidates (sum, parent, token) of a row that stay open."""
        open_ones, finished = [], self.finished[row]
        for rank, (total, parent, token) in enumerate(candidates):
            if token != eos:
                open_ones.append((total, parent, token))
            elif rank < self.num_beams and not self.over[row]:
                finished.add(tokens[parent], total)
            if len(open_ones) == self.num_beams:
                break
        self.over[row] = self.over[row] or finished.finished(candidates[0][0], tokens.shape[1])
        return open_ones

    def best(self, tokens: Tensor) -> list[Tensor]:
        """The best text of every row; open beams count where the search was cut off."""
        rows = zip(self.finished, self.over, self.sums.tolist(), tokens.view(*self.sums.shape, -1), strict=True)
        for finished, over, totals, beams in rows:
            for total, beam in zip(totals, beams, strict=True):
                if not over:
                    finished.add(beam, total)
        return [finished.held[-1][1] for finished in self.finished]


class Draws:
    """One text per row, drawn token by token.

    Args:
        prompt: [B, P].
        top_p: probability of the nucleus.
        repetition_penalty: how much the logits of tokens already there are divided by.
        generator: source of randomness, or None for torch's own.
    """

    def __init__(
        self, prompt: Tensor, top_p: float, repetition_penalty: float, generator: torch.Generator | None = None
    ):
        self.top_p, self.repetition_penalty, self.generator = top_p, repetition_penalty, generator
        self.rows = torch.arange(len(prompt), device=prompt.device)
        self.goes_on = torch.ones_like(self.rows, dtype=torch.bool)
        self.lengths = torch.full_like(self.rows, prompt.shape[1])

    @property
    def done(self) -> bool:
        """Whether every text has its end token."""
        return not self.goes_on.any()

    def scores(self, logits: Tensor, tokens: Tensor) -> Tensor:
        """Logits, those of tokens already there smaller."""
        return penalise(logits, tokens, self.repetition_penalty)

    def choose(self, scores: Tensor, tokens: Tensor, eos: int) -> tuple[Tensor, Tensor]:
        """Every text is its own parent."""
        token = torch.multinomial(nucleus(scores, self.top_p), 1, generator=self.generator).squeeze(1)
        self.goes_on = self.goes_on & (token != eos)
        self.lengths = self.lengths + self.goes_on
        return self.rows, token

    def best(self, tokens: Tensor) -> list[Tensor]:
        """The texts up to their end tokens."""
        return [text[:length] for text, length in zip(tokens, self.lengths.tolist(), strict=True)]


def penalise(logits: Tensor, tokens: Tensor, penalty: float) -> Tensor:
    """Makes tokens that are already there less likely: logits [B, V], tokens [B, L]."""
    seen = logits.gather(1, tokens)
    return logits.scatter(1, tokens, torch.where(seen < 0, seen * penalty, seen / penalty))


def nucleus(logits: Tensor, top_p: float) -> Tensor:
    """Probabilities [B, V] with everything outside the nucleus set to 0 (not normalised again)."""
    probabilities, order = logits.softmax(dim=-1).sort(dim=-1, descending=True)
    share = (probabilities.double() * 2**52).long()  # whole numbers have one sum in any order, also on a GPU
    outside = share.cumsum(dim=-1) - share > top_p * 2**52
    return torch.zeros_like(logits).scatter(1, order, probabilities.masked_fill(outside, 0))
