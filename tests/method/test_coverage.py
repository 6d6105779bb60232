"""Coverage: against greedy facility location, by its properties, and merging equal tokens changes no model's output."""

import math

import pytest
import torch
import torch.nn.functional as F

from madtp.method import coverage
from madtp.method.attention import attend, class_attention
from madtp.method.attention_blocks import attention_map
from madtp.method.coverage import (
    absorb,
    choose,
    exchange,
    importance,
    left_by,
    medoids,
    owners,
    peaks,
    similarity,
)
from tests.golden.fill import seeded


def example(batch=4, tokens=60, width=16, clusters=9, seed=0):
    """Tokens around some centres, as those of a picture are, and their importance."""
    centres = seeded(seed, batch, clusters, width)
    which = torch.arange(tokens) % clusters
    x = centres[:, which] + 0.6 * seeded(seed + 1, batch, tokens, width)
    return x.double(), importance(seeded(seed + 2, batch, tokens).double().exp())


def greedy(cosine, significance, keep):
    """Facility location, one token after the other, one sample after the other."""
    chosen = []
    for similar, weight in zip(cosine, significance, strict=True):
        best, taken = torch.full_like(weight, -1), []
        for _ in range(keep):
            gains = [
                -1.0 if i in taken else float((weight * (similar[i] - best).relu()).sum()) for i in range(len(best))
            ]
            taken.append(max(range(len(gains)), key=gains.__getitem__))
            best = torch.maximum(best, similar[taken[-1]])
        chosen.append(sorted(taken))
    return torch.tensor(chosen)


def objective(cosine, significance, kept):
    """What is left uncovered, sum_j S_j (1 - max over kept i of cos(x_i, x_j)), token by token: [B]."""
    return torch.tensor(
        [
            sum(
                float(significance[b, j]) * (1 - max(float(cosine[b, i, j]) for i in kept[b].tolist()))
                for j in range(significance.shape[1])
            )
            for b in range(len(kept))
        ],
        dtype=torch.float64,
    )


@pytest.mark.parametrize("keep", [1, 3, 9, 20, 45, 59])
def test_it_covers_about_as_well_as_greedy_facility_location(keep):
    x, significance = example()
    cosine = similarity(x)
    ours = objective(cosine, significance, choose(cosine, significance, keep))
    theirs = objective(cosine, significance, greedy(cosine, significance, keep))
    assert ours.mean() <= 1.02 * theirs.mean()


def test_every_round_of_exchange_keeps_as_many_and_covers_no_less():
    x, significance = example(tokens=80)
    cosine = similarity(x)
    kept = peaks(cosine, significance, 20)
    for _ in range(4):
        after = exchange(cosine, significance, kept)
        assert after.shape == (4, 20) and (after.diff(dim=1) > 0).all()
        assert (objective(cosine, significance, after) <= objective(cosine, significance, kept)).all()
        kept = after


def test_medoids_are_the_best_of_their_groups():
    x, significance = example(batch=3, tokens=25)
    cosine = similarity(x)
    found = peaks(cosine, significance, 6)
    for similar, weight, before, after in zip(
        cosine, significance, found, medoids(cosine, significance, found), strict=True
    ):
        kept = before.tolist()
        groups = {i: [] for i in kept}
        for j in range(25):
            groups[j if j in groups else max(kept, key=lambda i: float(similar[i, j]))].append(j)
        best = [
            max(group, key=lambda i: sum(float(weight[j] * similar[i, j]) for j in group)) for group in groups.values()
        ]
        assert after.tolist() == sorted(best)


def test_of_copies_one_stays_before_a_second_does():
    x = seeded(0, 6, 9, 16).repeat_interleave(4, dim=1)[
        :, torch.randperm(36, generator=torch.Generator().manual_seed(1))
    ]
    cosine = similarity(x.double())
    kept = choose(cosine, torch.full((6, 36), 1 / 36).double(), 9)
    assert objective(cosine, torch.ones(6, 36).double(), kept).abs().max() < 1e-9


@pytest.mark.parametrize("keep", [1, 5, 39])
def test_as_many_stay_as_asked_even_of_equal_tokens(keep):
    x = seeded(0, 2, 8, 16).repeat_interleave(5, dim=1)
    kept = choose(similarity(x), torch.full((2, 40), 1 / 40), keep)
    assert kept.shape == (2, keep) and (kept.diff(dim=1) > 0).all()


def test_peaks_are_by_their_definition():
    x, significance = example(tokens=15)
    cosine = similarity(x)
    for similar, weight, found in zip(cosine, significance, peaks(cosine, significance, 6), strict=True):
        values = []
        for j in range(15):
            higher = [float(similar[j, i]) for i in range(15) if weight[i] > weight[j]]
            values.append(float(weight[j]) * (1 - max(higher) if higher else coverage.NEVER))
        best = sorted(range(15), key=values.__getitem__, reverse=True)[:6]
        assert found.tolist() == sorted(best)


def test_samples_do_not_see_each_other_and_their_order_does_not_matter():
    x, significance = example(batch=5)
    cosine = similarity(x)
    together = choose(cosine, significance, 13)
    for b in range(5):
        assert choose(cosine[b : b + 1], significance[b : b + 1], 13)[0].equal(together[b])


def test_tokens_in_another_order_are_the_same_tokens():
    x, significance = example()
    order = torch.randperm(x.shape[1], generator=torch.Generator().manual_seed(3))
    kept = choose(similarity(x), significance, 17)
    permuted = choose(similarity(x[:, order]), significance[:, order], 17)
    assert order[permuted].sort(dim=1).values.equal(kept)


def test_a_kept_token_is_the_mean_of_its_group_weighed_by_sizes():
    x, significance = example(batch=2, tokens=14)
    sizes = torch.arange(1.0, 15).double().expand(2, -1)
    cosine = similarity(x)
    kept = choose(cosine, significance, 4)
    owner = owners(cosine, kept)
    merged, total = absorb(x, sizes, owner, 4)
    for b in range(2):
        for j in range(14):
            nearest = max(range(4), key=lambda i: float(cosine[b, kept[b, i], j]))
            assert owner[b, j] == (kept[b].tolist().index(j) if j in kept[b] else nearest)
        for i in range(4):
            members = [j for j in range(14) if owner[b, j] == i]
            weight = sum(float(sizes[b, j]) for j in members)
            mean = sum(float(sizes[b, j]) * x[b, j] for j in members) / weight
            torch.testing.assert_close(merged[b, i], mean)
            assert total[b, i] == pytest.approx(weight)
    torch.testing.assert_close(total.sum(dim=1), sizes.sum(dim=1))


def test_a_token_whose_length_is_kept_points_where_the_mean_does_and_is_as_long_as_what_it_stands_for():
    x, _ = example(batch=2, tokens=14)
    sizes, owner = torch.arange(1.0, 15).double().expand(2, -1), (torch.arange(14) % 4).expand(2, -1)
    (merged, total), (mean, same) = (absorb(x, sizes, owner, 4, keep_norm) for keep_norm in (True, False))
    assert torch.equal(total, same)
    torch.testing.assert_close(F.normalize(merged, dim=2), F.normalize(mean, dim=2))
    for b in range(2):
        for i in range(4):
            members = range(i, 14, 4)
            length = sum(float(sizes[b, j] * x[b, j].norm()) for j in members) / float(total[b, i])
            assert float(merged[b, i].norm()) == pytest.approx(length)


def test_copies_whose_length_is_kept_come_out_as_they_were_and_opposites_as_nothing():
    x = seeded(3, 1, 4, 6).double()
    owner = torch.tensor([[0, 1, 2, 3, 0, 1, 1, 3, 3]])
    torch.testing.assert_close(absorb(x[:, owner[0]], torch.ones(1, 9).double(), owner, 4, keep_norm=True)[0], x)
    opposite = absorb(torch.stack([x[:, 0], -x[:, 0]], dim=1), torch.ones(1, 2).double(), owner[:, [0, 0]], 1, True)[0]
    assert torch.equal(opposite, torch.zeros(1, 1, 6).double()), "no direction, and no division by 0"


@pytest.mark.parametrize("keep_norm", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_means_of_halves_are_summed_in_single_precision(dtype, keep_norm):
    x, significance = example(batch=2, tokens=40)
    x, sizes = x.to(dtype), torch.arange(1.0, 41).expand(2, -1)
    owner = torch.arange(40).expand(2, -1) % 3
    merged, _ = absorb(x, sizes, owner, 3, keep_norm)
    assert merged.dtype == dtype
    assert torch.equal(merged, absorb(x.float(), sizes, owner, 3, keep_norm)[0].to(dtype))


@pytest.mark.parametrize("keep_norm", [False, True])
def test_gradients_flow_through_the_means(keep_norm):
    x, significance = example(batch=2, tokens=8)
    x.requires_grad_()
    owner = owners(similarity(x.detach()), choose(similarity(x.detach()), significance, 3))
    assert torch.autograd.gradcheck(lambda x: absorb(x, torch.ones(2, 8).double(), owner, 3, keep_norm)[0], [x])


@pytest.mark.parametrize("masked", [False, True])
def test_the_class_token_s_attention_is_a_row_of_the_map(masked):
    query, key, value = (seeded(seed, 2, 3, 9, 4).double() for seed in range(3))
    bias = seeded(5, 2, 1, 1, 9).double()
    mask = torch.arange(9).expand(2, 1, 1, 9) < 7
    given = mask if masked else bias
    logits = query @ key.transpose(-2, -1) / 2
    logits = logits.masked_fill(~mask, -math.inf) if masked else logits + bias
    expected = logits.softmax(dim=-1)[:, :, 0, 1:].mean(dim=1)
    torch.testing.assert_close(class_attention(query, key, given), expected)
    if masked:
        torch.testing.assert_close(attention_map(query, key, mask)[:, :, 0, 1:].mean(dim=1), expected)
    else:
        torch.testing.assert_close(attend(query, key, value, bias)[0], logits.softmax(dim=-1) @ value)


def test_without_attention_all_tokens_are_alike():
    torch.testing.assert_close(importance(torch.zeros(2, 4)), torch.full((2, 4), 1 / 8))


def test_the_schedule_falls_from_all_tokens_to_one():
    for shape in (0.35, 1.0, 2.0, 500.0):
        assert [left_by(144, 0.0, shape, layer, 12) for layer in range(12)] == [144] * 12
        assert [left_by(144, math.inf, shape, layer, 12) for layer in range(12)] == [1] * 12
        counts = [left_by(144, 2.0, shape, layer, 12) for layer in range(12)]
        assert counts == sorted(counts, reverse=True) and counts[-1] == round(144 * math.exp(-2))
    early, late = ([left_by(144, 2.0, shape, layer, 12) for layer in range(12)] for shape in (0.35, 2.0))
    assert all(few <= many for few, many in zip(early, late, strict=True))
    for amount in (0.1, 1.0, 10.0):
        more = [left_by(144, 2 * amount, 1.0, layer, 12) for layer in range(12)]
        assert all(
            m <= n for m, n in zip(more, (left_by(144, amount, 1.0, layer, 12) for layer in range(12)), strict=True)
        )


def test_cosines_are_their_definition_in_halves_too():
    x = (example(tokens=30, width=64)[0] + 5 * seeded(9, 4, 1, 64)).float()  # much in common
    expected = torch.nn.functional.cosine_similarity(x.unsqueeze(1), x.unsqueeze(2), dim=-1)
    torch.testing.assert_close(similarity(x), expected, rtol=0, atol=1e-6)
    with torch.autocast("cpu", torch.bfloat16):
        rough = similarity(x)
    plain = torch.nn.functional.normalize(x, dim=-1).bfloat16()
    plain = (plain @ plain.transpose(1, 2)).float()
    assert rough.dtype == torch.float32
    assert 4 * (rough - expected).abs().mean() < (plain - expected).abs().mean()
