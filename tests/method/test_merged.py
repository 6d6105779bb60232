"""Tokens that stand for several patches: attention to them, and what a layer hands on to the next.

Shapes: B samples, L tokens, H heads, E width of a head, D width.
"""

import math

import pytest
import torch
import torch.nn.functional as F

from madtp.method.attention import attend
from madtp.method.merged import Merged, Schedule, shortened
from tests.golden.fill import seeded

SIZES = torch.tensor([[1, 3, 1, 2, 1], [1, 1, 4, 1, 1]]).double()
SEEN = torch.tensor([[True, True, False, True, True], [True, False, True, True, True]])


def inputs():
    return seeded(1, 3, 2, 2, 5, 4).double().unbind()


def copied(part, sample, dim=2):
    """Of one sample, each token as often as it has patches."""
    return part[sample : sample + 1].repeat_interleave(SIZES[sample].long(), dim)


@pytest.mark.parametrize("mask", [None, SEEN])
@pytest.mark.parametrize("scores", [False, True])
def test_attention_counts_a_token_as_often_as_it_has_patches(mask, scores):
    query, key, value = inputs()
    layout = Merged(Schedule(3, 1.0, 4), SIZES)
    found, _ = layout.attend(query, key, value, mask, scores=scores)
    outside, _ = attend(query, key, value, layout.seen_from_outside(mask, query.dtype))
    for sample in range(2):
        seen = None if mask is None else copied(mask[:, None, None], sample, dim=3)
        keys, values = (copied(part, sample) for part in (key, value))
        expected, _ = attend(query[sample : sample + 1], keys, values, seen)
        torch.testing.assert_close(found[sample : sample + 1], expected)
        torch.testing.assert_close(outside[sample : sample + 1], expected)


@pytest.mark.parametrize("class_token", [True, False])
def test_dropout_meets_the_output_and_not_what_the_class_token_pays(class_token):
    layout = Merged(Schedule(3, 1.0, 4, class_token=class_token), SIZES)
    output, scores = layout.attend(*inputs(), scores=True)
    dropped, others = layout.attend(*inputs(), scores=True, dropout=0.5)
    assert not torch.allclose(output, dropped)
    assert (scores is not None) == (others is not None) == class_token
    assert not class_token or scores.cls_attention.equal(others.cls_attention)


def test_every_layer_hands_on_the_places_of_all_patches_and_the_schedule():
    """Also one that has nothing to prune."""
    x, layout, lefts = seeded(2, 2, 9, 6), Merged(Schedule(8, 1.0, 8)), []
    for layer in range(8):
        before, places = x, layout.places
        x, layout, kept = layout.prune(x, None, None, 1.0)
        lefts.append(x.shape[1] - 1)
        assert layout.schedule.layer == layer + 1
        assert (kept is None) == (x is before) == (layout.places is places) == (x.shape == before.shape)
        patches = F.one_hot(layout.places, lefts[-1]).sum(dim=1)
        assert layout.sizes_of_tokens[:, 1:].equal(patches.float()) and patches.sum(dim=1).eq(8).all()
    assert lefts == [7, 6, 5, 5, 4, 4, 3, 3]


def test_hidden_tokens_may_stay_and_weigh_nothing():
    x, seen = seeded(3, 2, 9, 6), torch.arange(9).expand(2, 9) < torch.tensor([[6], [9]])
    left, layout, kept = Merged.of(Schedule(1, 1.0, 8), x, seen).prune(x, None, None, math.log(8 / 7))
    assert kept.rows.shape == (2, 8) and left.isfinite().all() and layout.log_sizes.isfinite().all()
    torch.testing.assert_close(layout.sizes_of_tokens.sum(dim=1), torch.tensor([6.0, 9.0]))


def test_sizes_of_halves_are_in_single_precision():
    assert shortened(seeded(4, 1, 9, 6).bfloat16(), None, None, 1, 3)[1].dtype == torch.float32
