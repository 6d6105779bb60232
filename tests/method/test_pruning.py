"""Dynamic token pruning: one sample and one token at a time beside it, and what has to hold whatever the numbers are.

Shapes: B batch, N prunable tokens, D width, K learnable tokens.
"""

import math

import pytest
import torch

from madtp.method.attention import AttentionScores
from madtp.method.layout import RECTANGLE, Masked
from madtp.method.packed import Packed
from madtp.method.pruning import assess, importance, own_tokens, pass_alike, prune_tokens, threshold
from tests.kept import keeping

INFINITY = float("inf")


def inputs(seed, batch=3, tokens=12, width=5, learnable=4):
    """Tokens [B, 1 + N, D], scores and alignment as a layer hands them over."""
    source = torch.Generator().manual_seed(seed)

    def random(*shape, draw=torch.rand):
        return draw(*shape, generator=source, dtype=torch.float64)

    x = random(batch, 1 + tokens, width, draw=torch.randn)
    scores = AttentionScores(random(batch, tokens), random(batch, tokens) / tokens)
    return x, scores, 1 + 3 * random(batch, tokens, learnable, draw=torch.randn)


def importance_by_loops(self_attention, cls_attention, alignment):
    """S of one sample, token by token."""
    tokens = range(len(self_attention))
    best = [max(alignment[j]) for j in tokens]
    return [
        (self_attention[j] / (sum(self_attention) + 1e-8) + best[j] / (sum(best) + 1e-8) + cls_attention[j]) / 3
        for j in tokens
    ]


def threshold_by_loops(significance, alignment, temperature):
    """theta of one sample, learnable token by learnable token."""
    tokens, averages = range(len(significance)), []
    for k in range(len(alignment[0])):
        shift = max(alignment[j][k] for j in tokens)
        powers = [math.exp((alignment[j][k] - shift) / temperature) for j in tokens]
        averages.append(sum(powers[j] / sum(powers) * significance[j] for j in tokens))
    return min(averages)


def prune_by_loops(x, scores, alignment, temperature, min_keep=1, protected=None):
    """The shortened samples and, for each, the kept and the dropped tokens; None where nothing is pruned."""
    samples = range(len(x))
    significances = [
        importance_by_loops(scores.self_attention[b].tolist(), scores.cls_attention[b].tolist(), alignment[b].tolist())
        for b in samples
    ]
    passing = []
    for b in samples:
        theta = threshold_by_loops(significances[b], alignment[b].tolist(), temperature)
        passed = {j for j, significance in enumerate(significances[b]) if significance > theta}
        passing.append(passed if protected is None else passed | {int(protected[b])})
    tokens = len(significances[0])
    keep = max(len(passed) for passed in passing)
    if keep < 1 or keep < min_keep or tokens - keep <= 1:
        return None
    shortened, kept, dropped = [], [], []
    for b in samples:
        ranked = sorted(range(tokens), key=lambda j: -significances[b][j])
        if protected is not None:
            ranked.remove(int(protected[b]))
            ranked.insert(0, int(protected[b]))
        kept.append(sorted(ranked[:keep]))
        dropped.append(ranked[keep:])
        total = sum(significances[b][j] for j in dropped[b]) + 1e-8
        merged = sum(significances[b][j] / total * x[b, 1 + j] for j in dropped[b])
        shortened.append(torch.stack([x[b, 0], *(x[b, 1 + j] for j in kept[b]), merged]))
    return torch.stack(shortened), kept, dropped


@pytest.mark.parametrize("temperature", [1e-3, 0.5, 2.0, 8.0, 100.0, INFINITY])
@pytest.mark.parametrize("tokens", [1, 2, 3, 4, 9, 40])
def test_equals_loops(temperature, tokens):
    pruned = 0
    for seed in range(6):
        x, scores, alignment = inputs(seed, batch=1 + seed % 3, tokens=tokens)
        protected = torch.full((len(x), 1), tokens // 2) if seed % 2 else None
        min_keep = 1 + 2 * (seed == 5)
        expected = prune_by_loops(x, scores, alignment, temperature, min_keep, protected)
        shortened, kept = prune_tokens(x, scores, alignment, temperature, min_keep, protected)
        if expected is None:
            assert shortened is x and kept is None
            continue
        torch.testing.assert_close(shortened, expected[0])
        assert kept.indices.tolist() == expected[1]
        assert (kept.rows[:, -1] - 1).tolist() == [sample[0] for sample in expected[2]]
        pruned += 1
    assert tokens in (3, 4) or (pruned > 0) == (tokens > 2)


@pytest.mark.parametrize("temperature", [0, 0.0, -1.0])
def test_temperature_zero_prunes_nothing_and_needs_no_scores(temperature):
    x = inputs(0)[0]
    shortened, kept = prune_tokens(x, None, None, temperature)
    assert shortened is x and kept is None


@pytest.mark.parametrize("seed", range(5))
def test_the_threshold_goes_from_one_token_to_the_mean(seed):
    _, scores, alignment = inputs(seed)
    significance = importance(scores, alignment)
    best = significance.gather(1, alignment.argmax(dim=1)).amin(dim=1, keepdim=True)
    torch.testing.assert_close(threshold(significance, alignment, 1e-4), best)
    mean = significance.mean(dim=1, keepdim=True)
    torch.testing.assert_close(threshold(significance, alignment, 1e9), mean)
    torch.testing.assert_close(threshold(significance, alignment, INFINITY), mean)


@pytest.mark.parametrize("seed", range(5))
def test_without_bound_the_neediest_sample_keeps_what_is_above_its_mean(seed):
    x, scores, alignment = inputs(seed, tokens=30)
    significance = importance(scores, alignment)
    above = (significance > significance.mean(dim=1, keepdim=True)).sum(dim=1)
    assert prune_tokens(x, scores, alignment, INFINITY)[1].indices.shape[1] == above.max()


def test_equal_tokens_are_all_kept():
    x, scores, alignment = torch.ones(2, 7, 3), AttentionScores(torch.ones(2, 6), torch.ones(2, 6)), torch.ones(2, 6, 4)
    assert prune_tokens(x, scores, alignment, INFINITY)[1] is None


@pytest.mark.parametrize("seed", range(5))
def test_nothing_is_changed_in_place(seed):
    x, scores, alignment = inputs(seed)
    before = [tensor.clone() for tensor in (x, *scores, alignment)]
    assert prune_tokens(x, scores, alignment, 4.0)[1] is not None
    torch.testing.assert_close([x, *scores, alignment], before, rtol=0, atol=0)


@pytest.mark.parametrize("seed", range(5))
def test_class_token_and_order_are_kept(seed):
    x, scores, alignment = inputs(seed)
    shortened, kept = prune_tokens(x, scores, alignment, 4.0)
    assert (kept.indices.diff(dim=1) > 0).all()
    assert shortened.shape == (3, kept.indices.shape[1] + 2, 5)
    for sample, tokens, indices in zip(shortened, x, kept.indices, strict=True):
        assert sample[0].equal(tokens[0])
        assert sample[1:-1].equal(tokens[1:][indices])


@pytest.mark.parametrize("seed", range(5))
def test_values_are_shortened_as_the_tokens_were(seed):
    """A token's number goes where the token goes; the merged token has the most important dropped one's."""
    _, scores, alignment = inputs(seed)
    numbers = torch.arange(13.0, dtype=torch.float64).expand(3, 13)
    shortened, kept = prune_tokens(numbers.unsqueeze(-1), scores, alignment, 4.0)
    gathered = kept.gather(numbers)
    assert gathered[:, :-1].equal(shortened[:, :-1, 0])
    significance = importance(scores, alignment).scatter(1, kept.indices, -INFINITY)
    assert gathered[:, -1].tolist() == (1 + significance.argmax(dim=1)).tolist()
    mask = numbers % 3 == 0
    assert kept.gather(mask).equal(gathered % 3 == 0)


@pytest.mark.parametrize("seed", range(5))
def test_permuting_the_batch_permutes_the_result(seed):
    x, scores, alignment = inputs(seed)
    permutation = torch.tensor([2, 0, 1])
    shortened, kept = prune_tokens(x, scores, alignment, 4.0)
    permuted_scores = AttentionScores(*(values[permutation] for values in scores))
    permuted, permuted_kept = prune_tokens(x[permutation], permuted_scores, alignment[permutation], 4.0)
    torch.testing.assert_close(permuted, shortened[permutation])
    assert permuted_kept.indices.equal(kept.indices[permutation])


@pytest.mark.parametrize("seed", range(5))
def test_a_protected_token_is_always_kept(seed):
    x, scores, alignment = inputs(seed)
    least = importance(scores, alignment).argmin(dim=1, keepdim=True)
    _, free = prune_tokens(x, scores, alignment, 4.0)
    _, kept = prune_tokens(x, scores, alignment, 4.0, protected=least)
    assert not (free.indices == least).any()
    assert (kept.indices == least).any(dim=1).all()
    assert not (kept.rows[:, -1:] - 1 == least).any()


def test_no_layer_keeps_fewer_than_asked():
    x, scores, alignment = inputs(0)
    keep = prune_tokens(x, scores, alignment, 4.0)[1].indices.shape[1]
    assert prune_tokens(x, scores, alignment, 4.0, min_keep=keep)[1] is not None
    assert prune_tokens(x, scores, alignment, 4.0, min_keep=keep + 1)[1] is None


@pytest.mark.parametrize("seed", range(5))
def test_the_merged_token_is_a_weighted_mean(seed):
    x, scores, alignment = inputs(seed)
    merged = prune_tokens(torch.ones_like(x), scores, alignment, 4.0)[0][:, -1]
    torch.testing.assert_close(merged, torch.ones_like(merged), rtol=0, atol=1e-6)


def test_tokens_of_no_importance_merge_into_nothing():
    """Neither what nobody attends to nor what aligns with nothing makes a sum that cannot be divided by."""
    x = torch.randn(1, 7, 4, generator=torch.Generator().manual_seed(0))
    best = torch.tensor([[3.0, 2.0, 0, 0, 0, 0]])
    scores, alignment = AttentionScores(torch.zeros(1, 6), best / 10), best.unsqueeze(2).expand(-1, -1, 3)
    with torch.inference_mode():
        ways = prune_tokens(x, scores, alignment, INFINITY)[0], RECTANGLE.prune(x, scores, alignment, INFINITY)[0]
    for shortened in ways:
        assert shortened[:, :3].equal(x[:, :3]) and shortened[:, 3:].eq(0).all() and shortened.shape[1] == 4


def own_of(lengths):
    return own_tokens(torch.tensor(lengths), 12)


@pytest.mark.parametrize("temperature", [0.5, 4.0, INFINITY])
@pytest.mark.parametrize("seed", range(5))
def test_what_is_no_token_is_not_important_and_passes_nowhere(seed, temperature):
    """Also where importance is negative, as that of what aligns with nothing may be."""
    _, scores, alignment = inputs(seed, batch=4)
    alignment, own = alignment - 3, own_of([12, 7, 3, 1])
    scores = AttentionScores(*(values * own for values in scores))
    significance, passing = assess(scores, alignment, temperature, own=own)
    assert not significance[~own].any() and not passing[~own].any()
    for row, length in enumerate(own.sum(dim=1).tolist()):
        alone = AttentionScores(*(values[row : row + 1, :length] for values in scores))
        expected = assess(alone, alignment[row : row + 1, :length], temperature)
        torch.testing.assert_close(significance[row, :length], expected[0][0])
        assert passing[row, :length].equal(expected[1][0])


@pytest.mark.parametrize("seed", range(5))
def test_of_one_sample_all_sequences_pass_as_many_as_the_neediest(seed):
    draw = torch.Generator().manual_seed(seed)
    own = own_of([12, 7, 5] * 2)
    significance = torch.randn(6, 12, generator=draw) * own
    passing = (torch.rand(6, 12, generator=draw) < 0.4) & own
    found = pass_alike(significance, passing, 2, own)
    for row in range(6):
        count = max(int(passing[row % 3].sum()), int(passing[row % 3 + 3].sum()))
        tokens = sorted(range(int(own[row].sum())), key=lambda j: -float(significance[row, j]))
        assert found[row].nonzero().squeeze(1).tolist() == sorted(tokens[:count])


def test_gradients_flow_through_the_merged_token():
    x, scores, alignment = inputs(0, batch=2, tokens=7)
    guides = tuple(tensor.requires_grad_() for tensor in (*scores, alignment))

    def pruned(x, self_attention, cls_attention, alignment):
        return prune_tokens(x, AttentionScores(self_attention, cls_attention), alignment, 4.0)[0]

    shortened = pruned(x, *guides)
    assert shortened.shape[1] < x.shape[1]
    gradients = torch.autograd.grad(shortened[:, -1].square().sum(), guides)
    assert all(gradient[sample].any() for gradient in gradients for sample in range(2))
    assert torch.autograd.gradcheck(pruned, (x.requires_grad_(), *guides))


def test_training_keeps_of_the_tokens_those_that_are_dropped():
    x, scores, alignment = inputs(1, tokens=40, width=100)
    x.requires_grad_(), scores.self_attention.requires_grad_()
    with keeping(x) as kept:
        _, pruned = prune_tokens(x, scores, alignment, 8.0)
    dropped = 40 - pruned.indices.shape[1]
    assert [tensor.shape for tensor in kept() if tensor.shape[-1] == 100] == [(3, dropped, 100)]


def test_autocast_does_not_move_the_threshold():
    x, scores, alignment = inputs(0, tokens=200)
    x, alignment = x.float(), alignment.float()
    scores = AttentionScores(*(values.float() for values in scores))
    shortened, kept = prune_tokens(x, scores, alignment, 4.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast, same = prune_tokens(x, scores, alignment, 4.0)
    assert under_autocast.equal(shortened) and same.indices.equal(kept.indices)
    own = torch.arange(201) < torch.tensor([[201], [150], [180]])
    scores = AttentionScores(*(values * own[:, 1:] for values in scores))
    packed = Packed.of(x, own)
    for tokens, layout, given in ((x, Masked(own), alignment), (*packed, alignment[own[:, 1:]].unsqueeze(0))):
        shortened, _, kept = layout.prune(tokens, scores, given, 4.0)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            under_autocast, _, same = layout.prune(tokens, scores, given, 4.0)
        assert under_autocast.equal(shortened) and same.rows.equal(kept.rows)
