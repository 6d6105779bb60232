"""Decoding with cached keys and values beside decoding that computes everything anew, one text at a time.

Shapes: B rows of states, S their tokens, G beams, L tokens of a text, V vocabulary.
"""

import math
from itertools import product
from types import SimpleNamespace

import pytest
import torch

from madtp.shared.generation import CachedDecoder, beam_search, nucleus, nucleus_sampling, penalise
from models.bert import KeysValues
from models.blip import blip_decoder
from tests.golden.fill import seeded
from tests.tiny import build

EOS, PROMPT = 23, [200, 30, 84]
ROWS, TOKENS = 4, 7


@pytest.fixture(scope="module")
def decoder():
    """Its end token is likely enough that some texts end early and some are cut off."""
    decoder = build(blip_decoder).text_decoder
    with torch.no_grad():
        decoder.cls["predictions"].bias[EOS] += 4
    return decoder


@pytest.fixture(scope="module")
def states():
    return seeded(1, ROWS, TOKENS, 32).double()


@pytest.fixture(scope="module")
def states_mask():
    return torch.arange(TOKENS) < torch.tensor([[7], [3], [5], [1]])


@pytest.fixture(scope="module")
def following(decoder, states, states_mask):
    """`following(row, tokens)` is the list of logits [V] of what follows, from one whole forward of one text."""
    known = {}

    def logits(row, tokens):
        if (row, *tokens) not in known:
            context = {"states": states[row : row + 1], "states_mask": states_mask[row : row + 1]}
            ids = torch.tensor([tokens])
            with torch.no_grad():
                known[(row, *tokens)] = decoder(ids, torch.ones_like(ids), **context)[0][0, -1]
        return known[(row, *tokens)]

    return logits


def prompt(rows=ROWS):
    return torch.tensor([PROMPT] * rows)


def lists(texts):
    return [text.tolist() for text in texts]


def beam_search_anew(following, row, beams, max_length, min_length, length_penalty, eos=EOS):
    """The best text of one row by the rule of BLIP's time, without caches."""
    running, held = [(0.0, PROMPT)], []

    def hold(total, tokens):
        held.append((total / len(tokens) ** length_penalty, tokens))
        held.sort(key=lambda entry: entry[0], reverse=True)
        del held[beams:]

    for length in range(len(PROMPT), max_length):
        candidates = []
        for total, tokens in running:
            likelihoods = following(row, tokens).log_softmax(dim=0).tolist()
            candidates += [
                (total + likelihood, tokens, token)
                for token, likelihood in enumerate(likelihoods)
                if token != eos or length >= min_length
            ]
        candidates = sorted(candidates, key=lambda candidate: candidate[0], reverse=True)[: 2 * beams]
        for total, tokens, token in candidates[:beams]:
            if token == eos:
                hold(total, tokens)
        if len(held) == beams and held[-1][0] >= candidates[0][0] / length**length_penalty:
            return held[0][1]
        going_on = [(total, [*tokens, token]) for total, tokens, token in candidates if token != eos]
        running = going_on[:beams]
    for total, tokens in running:
        hold(total, tokens)
    return held[0][1]


@pytest.mark.parametrize("beams", [1, 2, 3, 5])
def test_beam_search_equals_computing_anew(decoder, states, states_mask, following, beams):
    ended, cut = 0, 0
    for (min_length, max_length), length_penalty in product(((1, 9), (6, 12)), (0.0, 1.0, 2.5)):
        limits = {"max_length": max_length, "min_length": min_length, "length_penalty": length_penalty}
        found = beam_search(decoder, prompt(), states, states_mask, beams, eos=EOS, **limits)
        assert lists(found) == [beam_search_anew(following, row, beams, **limits) for row in range(ROWS)]
        assert all(min_length <= len(text) <= max_length for text in found)
        ended += sum(len(text) < max_length for text in found)
        cut += sum(len(text) == max_length for text in found)
    assert ended > 0 and cut > 0


class Table:
    """A decoder whose next token hangs on a seed, the row and the text so far: eight words, the last one ends.

    By an odd seed it is so sure of itself that a second beam is far behind the first.
    """

    def __init__(self, seed):
        self.seed, self.bert = seed, SimpleNamespace(cross_keys_values=lambda states: states)

    def following(self, row, tokens):
        logits = torch.randn(8, generator=torch.Generator().manual_seed(hash((self.seed, row, *tokens)) % 2**60))
        logits[7] += 1
        return (20 if self.seed % 2 else 1) * logits.double()

    def __call__(self, input_ids, mask, keys_values, states_mask, past):
        tokens = input_ids if past is None else torch.cat([past[0].key, input_ids], dim=1)
        beams = len(tokens) // len(keys_values)
        logits = [self.following(index // beams, text) for index, text in enumerate(tokens.tolist())]
        return torch.stack(logits).unsqueeze(1), SimpleNamespace(past=[KeysValues(tokens, tokens)])


@pytest.mark.parametrize("beams", [1, 2, 3, 4])
def test_beam_search_of_many_random_texts(beams):
    for seed, length_penalty in product(range(30), (0.0, 1.0, 2.0)):
        table, limits = Table(seed), {"max_length": 8, "min_length": 4, "length_penalty": length_penalty}
        given = {name: limit for name, limit in limits.items() if limit != 1.0}  # which the penalty is by itself
        found = beam_search(table, prompt(2), torch.zeros(2, 1, 1), num_beams=beams, eos=7, **given)
        assert lists(found) == [beam_search_anew(table.following, row, beams, **limits, eos=7) for row in range(2)]


class Halves(Table):
    """The same, as mixed precision answers."""

    def __call__(self, *inputs, **context):
        logits, output = super().__call__(*inputs, **context)
        return logits.bfloat16(), output


def test_logits_of_halves_are_summed_in_single_precision():
    text = CachedDecoder(Halves(0), prompt(2), torch.zeros(2, 1, 1), None, beams=2)
    for _ in range(2):
        assert text.step().dtype == torch.float32
        text.extend(torch.arange(4), torch.arange(4))


def test_one_beam_takes_the_likeliest_token(decoder, states, states_mask, following):
    found = beam_search(decoder, prompt(), states, states_mask, num_beams=1, max_length=15, min_length=6, eos=EOS)
    for row, text in enumerate(found):
        tokens = list(PROMPT)
        while len(tokens) < 15:
            logits = following(row, tokens).clone()
            if len(tokens) < 6:
                logits[EOS] = -math.inf
            if logits.argmax() == EOS:
                break
            tokens.append(int(logits.argmax()))
        assert text.tolist() == tokens


def test_rows_do_not_disturb_each_other(decoder, states, states_mask):
    together = beam_search(decoder, prompt(), states, states_mask, eos=EOS, max_length=14)
    order = [2, 0, 3, 1]
    permuted = beam_search(decoder, prompt(), states[order], states_mask[order], eos=EOS, max_length=14)
    assert lists(permuted) == [lists(together)[row] for row in order]
    for row in range(ROWS):
        one = slice(row, row + 1)
        alone = beam_search(decoder, prompt(1), states[one], states_mask[one], eos=EOS, max_length=14)
        assert lists(alone) == [together[row].tolist()]


def test_no_room_for_more_than_the_prompt(decoder, states):
    assert lists(beam_search(decoder, prompt(), states, max_length=3, eos=EOS)) == [PROMPT] * ROWS
    assert lists(nucleus_sampling(decoder, prompt(), states, max_length=3, eos=EOS)) == [PROMPT] * ROWS


@pytest.mark.parametrize("beams", [1, 3])
@torch.no_grad()
def test_steps_equal_the_whole_forward(decoder, states, states_mask, beams):
    """Beams that swap places included: their keys and values follow them."""
    text = CachedDecoder(decoder, prompt(), states, states_mask, beams)
    owner = torch.arange(ROWS).repeat_interleave(beams)
    for step in range(5):
        context = {"states": states[owner], "states_mask": states_mask[owner]}
        logits, _ = decoder(text.tokens, torch.ones_like(text.tokens), **context)
        torch.testing.assert_close(text.step(), logits[:, -1])
        parents = torch.arange(ROWS * beams).view(ROWS, beams).roll(step, dims=1).flatten()
        text.extend(parents, 25 + (torch.arange(ROWS * beams) + step) % 20)


@torch.no_grad()
def test_steps_of_several_tokens_equal_the_whole_forward(decoder, states, states_mask):
    ids = torch.arange(ROWS * 9).view(ROWS, 9) + 25
    mask = torch.arange(9) < torch.tensor([[9], [5], [7], [9]])
    context = {"states": states, "states_mask": states_mask}
    whole, _ = decoder(ids, mask, **context)
    parts, past = [], None
    for part in (slice(0, 4), slice(4, 5), slice(5, 9)):
        logits, output = decoder(ids[:, part], mask[:, : part.stop], past=past, **context)
        past = output.past
        parts.append(logits)
    torch.testing.assert_close(torch.cat(parts, dim=1)[mask], whole[mask])


def nucleus_by_loops(probabilities, top_p):
    """The likeliest tokens, until their probability exceeds `top_p`."""
    inside, total = set(), 0.0
    for token in sorted(range(len(probabilities)), key=lambda token: -probabilities[token]):
        if total > top_p:
            break
        inside.add(token)
        total += probabilities[token]
    return inside


@pytest.mark.parametrize("top_p", [0.0, 0.3, 0.9, 1.0])
def test_nucleus_equals_loops(top_p):
    logits = 2 * seeded(5, 6, 40).double()
    probabilities = logits.softmax(dim=1)
    for kept, row in zip(nucleus(logits, top_p), probabilities, strict=True):
        inside = nucleus_by_loops(row.tolist(), top_p)
        assert set(kept.nonzero().squeeze(1).tolist()) == inside
        torch.testing.assert_close(kept[list(inside)], row[list(inside)])


def test_seen_tokens_become_less_likely():
    logits = seeded(5, 3, 10).double()
    seen = torch.tensor([[1, 4, 4], [0, 9, 2], [3, 3, 3]])
    penalised = penalise(logits, seen, 1.5)
    for row, token in product(range(3), range(10)):
        if token in seen[row]:
            assert penalised[row, token] < logits[row, token]
            factor = penalised[row, token] / logits[row, token]
            assert factor.item() == pytest.approx(1 / 1.5 if logits[row, token] > 0 else 1.5)
        else:
            assert penalised[row, token] == logits[row, token]


@pytest.mark.parametrize("top_p", [0.0, 0.5, 0.9])
def test_samples_never_leave_the_nucleus(decoder, states, states_mask, following, top_p):
    limits = {"max_length": 12, "min_length": 6}
    drawn = set()
    for seed in range(5):
        source = torch.Generator().manual_seed(seed)
        texts = lists(
            nucleus_sampling(decoder, prompt(), states, states_mask, top_p, eos=EOS, generator=source, **limits)
        )
        drawn.add(str(texts))
        for row, text in enumerate(texts):
            assert text[:3] == PROMPT and 6 <= len(text) <= 12 and EOS not in text
            ended = [*text, EOS] if len(text) < 12 else text
            for length in range(3, len(ended)):
                logits = following(row, ended[:length]).clone()
                for token in set(ended[:length]):
                    logits[token] *= 1.1 if logits[token] < 0 else 1 / 1.1
                if length < 6:
                    logits[EOS] = -math.inf
                assert ended[length] in nucleus_by_loops(logits.softmax(dim=0).tolist(), top_p)
    assert (len(drawn) == 1) == (top_p == 0)


def test_a_generator_repeats_its_texts(decoder, states):
    def drawn(seed):
        source = torch.Generator().manual_seed(seed)
        return lists(nucleus_sampling(decoder, prompt(), states, eos=EOS, max_length=8, generator=source))

    assert drawn(3) == drawn(3) != drawn(4)
