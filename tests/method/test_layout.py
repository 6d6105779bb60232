"""However the tokens of a batch lie in memory, every sample has its own: one sample at a time beside it.

Shapes: B samples, L tokens of the longest, D width.
"""

import pytest
import torch

from madtp.method.attention import AttentionScores, attend
from madtp.method.layout import ALONE, RECTANGLE, Masked, Rectangle, Sequences, attention_mask, both
from madtp.method.packed import Packed
from madtp.method.pruning import own_tokens
from tests.golden.fill import seeded

LONGEST = 9
EQUAL, UNEQUAL, IN_PAIRS = [LONGEST] * 4, [LONGEST, 6, LONGEST, 3], [LONGEST, 6, LONGEST, 6]


def masked(x, counts, together=1):
    return Sequences(x, Masked(own_tokens(torch.tensor(counts), LONGEST), together))


def packed(x, counts, together=1):
    return Packed.of(x, None if counts == EQUAL else own_tokens(torch.tensor(counts), LONGEST), together)


WAYS = {
    "rectangle": (lambda x, counts: Sequences.of(x), EQUAL),
    "alone": (lambda x, counts: Sequences(x, ALONE), EQUAL),
    "masked": (masked, UNEQUAL),
    "packed": (packed, UNEQUAL),
    "packed, equally long": (packed, EQUAL),
    "masked, in pairs": (masked, IN_PAIRS),
    "packed, in pairs": (packed, IN_PAIRS),
}


@pytest.fixture(params=WAYS)
def given(request):
    """Tokens in some layout, and each sample's own."""
    make, counts = WAYS[request.param]
    x = seeded(0, 4, LONGEST, 3)
    return make(x, counts), [sample[:count] for sample, count in zip(x, counts, strict=True)]


def of_each(sequences):
    """Every sample's own tokens."""
    tokens, layout = sequences
    if isinstance(layout, Packed):
        return list(tokens[0].split(layout.counts))
    return list(tokens) if layout.own is None else [one[own] for one, own in zip(tokens, layout.own, strict=True)]


def same(found, expected):
    return len(found) == len(expected) and all(map(torch.equal, found, expected))


def test_places_are_each_samples_own(given):
    (x, layout), samples = given
    assert same(of_each(given[0]), samples)
    assert layout.first(x).equal(torch.stack([sample[0] for sample in samples]))
    places = torch.tensor([4, 1, 3, 2])
    assert layout.at(x, places).equal(torch.stack([one[place] for one, place in zip(samples, places, strict=True)]))
    lengths = layout.lengths(x)
    assert [len(sample) for sample in samples] == ([lengths] * 4 if type(layout) is Rectangle else lengths.tolist())


def test_what_may_be_pruned_is_all_but_the_class_token(given):
    (x, layout), samples = given
    found = layout.prunable(x)
    if isinstance(layout, Packed):
        assert found.equal(torch.cat([sample[1:] for sample in samples]).unsqueeze(0))
    else:
        assert found.equal(x[:, 1:])
    memory = [len(sample) for sample in samples] if isinstance(layout, Packed) else [LONGEST] * 4
    assert layout.segment_lengths(x) == memory


def test_parts_of_a_batch_have_the_samples_tokens(given):
    sequences, samples = given
    assert Sequences.of(sequences) is sequences
    first, second = sequences.chunk(2)
    assert same(of_each(first), samples[:2]) and same(of_each(second), samples[2:])
    for numbers in ([2, 0, 2], torch.tensor([3, 1])):
        assert same(of_each(sequences.take(numbers)), [samples[number] for number in numbers])


def test_all_of_it_goes_to_another_device(given):
    sequences, samples = given
    tokens, layout = sequences.to("meta")
    assert tokens.is_meta and (layout.own is None or layout.own.is_meta)
    assert type(layout) is type(sequences.layout)
    assert not isinstance(layout, Packed) or layout.offsets.is_meta and layout.counts == [len(one) for one in samples]


def test_what_belongs_together_and_who_reads_it_go_along():
    layout = Packed(UNEQUAL, torch.device("cpu"), together=2, readers=[1, 2, 1, 3]).to("meta")
    assert (layout.together, layout.readers) == (2, [1, 2, 1, 3])
    assert Masked(own_tokens(torch.tensor(UNEQUAL), LONGEST), together=2).to("meta").together == 2


def test_batches_are_joined_sample_after_sample():
    x, one = seeded(0, 4, LONGEST, 3), seeded(1, 1, 4, 3)
    joined = Packed.join([packed(x, UNEQUAL), Sequences(one, ALONE), packed(x[:1], EQUAL)])
    assert same(of_each(joined), [*of_each(packed(x, UNEQUAL)), one[0], x[0]])


@pytest.mark.parametrize("queries", [1, 2, 5])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("padded", [False, True])
def test_masks_hide_padding_and_the_future(queries, causal, padded):
    """The queries are the last of five tokens."""
    padding = own_tokens(torch.tensor([5, 3]), 5) if padded else None
    mask = attention_mask(padding, causal, queries, torch.zeros(2, 1, 5, 4))
    seen = torch.ones(2, 1, queries, 5, dtype=torch.bool) if mask is None else mask.expand(2, 1, queries, 5)
    for sample in range(2):
        for query in range(queries):
            for key in range(5):
                hidden = causal and key > 5 - queries + query or padded and not padding[sample, key]
                assert seen[sample, 0, query, key] == (not hidden)


def test_both_masks_hide():
    one, other = torch.tensor([True, True, False, False]), torch.tensor([True, False, True, False])
    assert both(one, other).tolist() == [True, False, False, False]
    assert both(one, None) is one and both(None, one) is one and both(None, None) is None


def test_what_the_neediest_needs_counts_for_all_only_in_a_rectangle():
    values = torch.tensor([3, 7, 2, 5])
    assert RECTANGLE.in_company(values) == 7
    assert Packed(UNEQUAL, torch.device("cpu")).in_company(values) is values


# Attention and pruning: what the rectangle of one sample gives.


def scored(counts):
    """Scores [B, N], zero where there is no token, and alignments [B, N, K]."""
    own = own_tokens(torch.tensor(counts) - 1, LONGEST - 1)
    return AttentionScores(*seeded(3, 2, 4, LONGEST - 1).abs() * own), 5 * seeded(4, 4, LONGEST - 1, 3), own


def own_heads(x):
    """Query, key and value of tokens, [B, H, L, E]."""
    return [(x @ weights).unflatten(-1, (2, 4)).transpose(1, 2) for weights in seeded(2, 3, 3, 8)]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("padded", [False, True])
def test_attention_is_that_of_every_sample_alone(given, causal, padded):
    (x, layout), samples = given
    mask = own_tokens(torch.tensor([7, 1, 9, 2]), LONGEST) if padded else None  # padding of a text's own
    output, scores = layout.attend(*own_heads(x), mask, causal, scores=True)
    found = of_each(Sequences(output.transpose(1, 2).flatten(2), layout))
    assert scores.self_attention.shape == scores.cls_attention.shape == (4, LONGEST - 1)
    for number, sample in enumerate(samples):
        own = None if mask is None else mask[[number], : len(sample)]
        expected, own_scores = RECTANGLE.attend(*own_heads(sample[None]), own, causal, scores=True)
        torch.testing.assert_close(found[number], expected[0].transpose(0, 1).flatten(1))
        for one, other in zip(scores, own_scores, strict=True):
            torch.testing.assert_close(one[number, : len(sample) - 1], other[0])


@pytest.mark.parametrize("readers", [None, [1, 2, 1, 3]])
@pytest.mark.parametrize("counts", [EQUAL, UNEQUAL, [4]])
def test_others_attend_to_the_sample_that_they_read(counts, readers):
    each = readers[: len(counts)] if readers else [2] * len(counts)
    x, sizes = seeded(0, len(counts), LONGEST, 3), list(range(2, 2 + sum(each)))
    own = own_tokens(torch.tensor(counts), LONGEST)
    layout = Packed(counts, x.device, readers=readers and each)
    query, (_, key, value) = own_heads(seeded(1, 1, sum(sizes), 3))[0], own_heads(x[own][None])
    found = layout.across(query, key, value, sizes).split(sizes, dim=2)
    read = [sample for sample, count in enumerate(each) for _ in range(count)]
    for sample, one, output in zip(read, query.split(sizes, dim=2), found, strict=True):
        _, key, value = own_heads(x[sample, : counts[sample]][None])
        torch.testing.assert_close(output, attend(one, key, value)[0])


@pytest.mark.parametrize("way", ["rectangle", "masked"])
@pytest.mark.parametrize("padded", [False, True])
def test_others_see_what_is_there_and_not_hidden(way, padded):
    make, counts = WAYS[way]
    mask = own_tokens(torch.tensor([7, 1, 9, 2]), LONGEST)
    found = make(seeded(0, 4, LONGEST, 3), counts).layout.seen_from_outside(mask if padded else None, torch.float64)
    seen = own_tokens(torch.tensor(counts), LONGEST) & (mask | (not padded))
    assert seen.all() if found is None else found.equal(seen[:, None, None])


@pytest.mark.parametrize("way", ["masked, in pairs", "packed, in pairs", "packed, equally long"])
@pytest.mark.parametrize("temperature", [0.0, 1.0, 4.0, 30.0])
@pytest.mark.parametrize("protects, together", [(False, 1), (True, 1), (False, 2)])
@pytest.mark.parametrize("min_keep", [1, 5])
def test_pruning_is_that_of_every_sample_alone(way, temperature, protects, together, min_keep):
    """Or of the two that belong together, which are as far apart as there are others."""
    make, counts = WAYS[way]
    x, (scores, alignment, own) = seeded(0, 4, LONGEST, 3), scored(counts)
    protected = torch.tensor([[5], [0], [2], [1]]) if protects else None
    tokens, layout = make(x, counts, together)
    aligned = alignment[own].unsqueeze(0) if isinstance(layout, Packed) else alignment
    shortened, after, _ = layout.prune(tokens, scores, aligned, temperature, min_keep, protected)
    found = of_each(Sequences(shortened, after))
    assert after.together == together
    for first in range(4 // together):
        numbers = [first, first + 2][:together]
        length = counts[first]
        *both_scores, others = (part[numbers, : length - 1] for part in (*scores, alignment))
        given = x[numbers, :length], AttentionScores(*both_scores), others, temperature, min_keep
        expected, _, _ = RECTANGLE.prune(*given, None if protected is None else protected[numbers])
        for number, one in zip(numbers, expected, strict=True):
            torch.testing.assert_close(found[number], one)
