"""However the tokens of a batch lie in memory, every sample has its own: one sample at a time beside it.

Shapes: B samples, L tokens of the longest, D width.
"""

import pytest
import torch

from madtp.method.layout import ALONE, RECTANGLE, Masked, Rectangle, Sequences, attention_mask, both
from madtp.method.packed import Packed
from madtp.method.pruning import own_tokens
from tests.golden.fill import seeded

EQUAL, UNEQUAL = [5, 5, 5, 5], [5, 2, 5, 3]


def masked(x, counts):
    return Sequences(x, Masked(own_tokens(torch.tensor(counts), 5)))


def packed(x, counts):
    return Packed.of(x, None if counts == EQUAL else own_tokens(torch.tensor(counts), 5))


WAYS = {
    "rectangle": (lambda x, counts: Sequences.of(x), EQUAL),
    "alone": (lambda x, counts: Sequences(x, ALONE), EQUAL),
    "masked": (masked, UNEQUAL),
    "packed": (packed, UNEQUAL),
    "packed, equally long": (packed, EQUAL),
}


@pytest.fixture(params=WAYS)
def given(request):
    """Tokens in some layout, and each sample's own."""
    make, counts = WAYS[request.param]
    x = seeded(0, 4, 5, 3)
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
    memory = [len(sample) for sample in samples] if isinstance(layout, Packed) else [5] * 4
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
    assert Masked(own_tokens(torch.tensor(UNEQUAL), 5), together=2).to("meta").together == 2


def test_batches_are_joined_sample_after_sample():
    x, one = seeded(0, 4, 5, 3), seeded(1, 1, 4, 3)
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
