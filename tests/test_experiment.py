"""The experiment's rules, each beside a slow and obvious version, and its bookkeeping on a miniature."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from benchmarks.experiment import cells
from benchmarks.experiment.rules import Merging, Pruning, Static, Whole, by_one_score, by_tower, merge_alike, unguided
from madtp.attention import AttentionScores
from madtp.layout import RECTANGLE
from madtp.pruning import assess, prune_tokens
from madtp.trace import Trace
from models.blip_nlvr import blip_nlvr
from tests.tiny import STATEMENTS, build, images

SAMPLES, TOKENS, WIDTH, LEARNABLE = 4, 24, 8, 5


@pytest.fixture
def given():
    """What a layer hands to its layout."""
    draw = torch.Generator().manual_seed(0)
    normal = lambda *shape: torch.randn(*shape, generator=draw, dtype=torch.float64)  # noqa: E731
    scores = AttentionScores(normal(SAMPLES, TOKENS).exp(), normal(SAMPLES, TOKENS).softmax(dim=1))
    return SimpleNamespace(
        x=normal(SAMPLES, 1 + TOKENS, WIDTH), scores=scores, alignment=normal(SAMPLES, TOKENS, LEARNABLE)
    )


def pruned(layout, given, knob, x=None):
    return layout.prune(given.x if x is None else x, given.scores, given.alignment, knob)


def test_nothing_left_out_is_madtp(given):
    ours, theirs = pruned(Pruning(), given, 2.0), pruned(RECTANGLE, given, 2.0)
    assert torch.equal(ours[0], theirs[0]) and torch.equal(ours[2].rows, theirs[2].rows)


def test_without_the_merged_token_one_more_is_kept(given):
    x, _, kept = pruned(Pruning(merged=False), given, 2.0)
    theirs = prune_tokens(given.x, given.scores, given.alignment, 2.0)[1]
    assert kept.rows.shape == theirs.rows.shape
    for sample in range(SAMPLES):
        assert torch.equal(x[sample], given.x[sample, kept.rows[sample]])
        assert set(theirs.of(sample)) < set(kept.of(sample)) == set(kept.rows[sample, 1:].sub(1).tolist())


@pytest.mark.parametrize("merged", [False, True])
def test_chance_keeps_as_many_as_the_scores_would(given, merged):
    expected = prune_tokens(given.x, given.scores, given.alignment, 2.0)[0].shape
    torch.manual_seed(0)
    draws = [pruned(Pruning(merged=merged, random=True), given, 2.0) for _ in range(20)]
    assert all(x.shape == expected for x, _, _ in draws)
    assert set().union(*(kept.of(0) for _, _, kept in draws)) == set(range(TOKENS))


@pytest.mark.parametrize("share", [0.03, 0.1, 0.125, 0.9])
def test_static_drops_the_same_number_in_every_layer_by_class_attention(given, share):
    x, layout, lengths = given.x, Static.of(given.x), [TOKENS]
    for _ in range(6):
        layout_scores = AttentionScores(*(part[:, : x.shape[1] - 1] for part in given.scores))
        left, layout, kept = layout.prune(x, layout_scores, None, share)
        if kept is not None:
            for sample in range(SAMPLES):
                ranked = sorted(range(x.shape[1] - 1), key=lambda j, s=sample: -layout_scores.cls_attention[s, j])
                wanted = [0, *(1 + j for j in sorted(ranked[: left.shape[1] - 1]))]
                assert torch.equal(left[sample], x[sample, wanted])
        x = left
        lengths.append(x.shape[1] - 1)
    gone = [before - after for before, after in zip(lengths[:-1], lengths[1:], strict=True) if after > 1]
    assert lengths[-1] == max(1, TOKENS - round(min(1, share * 6) * TOKENS))
    assert not gone or max(gone) - min(gone) <= 1  # but for rounding


def test_merging_equals_a_loop_and_loses_nothing(given):
    sizes = torch.randint(1, 4, (SAMPLES, 1 + TOKENS, 1), generator=torch.Generator().manual_seed(1)).double()
    keys, number = given.x[..., :3], 7
    x, after = merge_alike(given.x, keys, sizes, number)
    torch.testing.assert_close((x * after)[:, 1:].sum(dim=1), (given.x * sizes)[:, 1:].sum(dim=1))
    assert torch.equal(x[:, 0], given.x[:, 0]) and torch.equal(after.sum(dim=1), sizes.sum(dim=1))
    for sample in range(SAMPLES):
        sources, targets = range(1, 1 + TOKENS, 2), range(2, 1 + TOKENS, 2)
        alike = lambda i, j: float(F.cosine_similarity(keys[sample, i], keys[sample, j], dim=0))  # noqa: B023, E731
        partner = {i: max(targets, key=lambda j: alike(i, j)) for i in sources}
        going = sorted(sources, key=lambda i: -alike(i, partner[i]))[:number]
        groups = [[i] for i in sources if i not in going] + [
            [j] + [i for i in going if partner[i] == j] for j in targets
        ]
        for group, token in zip(groups, x[sample, 1:], strict=True):
            weights = sizes[sample, group]
            torch.testing.assert_close(token, (given.x[sample, group] * weights).sum(dim=0) / weights.sum())


def test_a_merged_token_is_attended_to_as_often_as_it_stands_for_patches(given):
    heads = given.x.unsqueeze(1)
    repeated = torch.cat([heads, heads[:, :, -1:]], dim=2)  # the last token twice, against once with size 2
    size = torch.ones(SAMPLES, 1 + TOKENS, 1, dtype=torch.float64)
    size[:, -1] = 2
    output, _ = Merging(TOKENS, size=size).attend(heads, heads, heads)
    torch.testing.assert_close(output, F.scaled_dot_product_attention(heads, repeated, repeated))


def test_without_guidance_the_learnable_tokens_decide_nothing(given):
    shares = []
    for temperature in (1e-3, 0.3, 1.0, 1e9):
        significance, passing = unguided(given.scores, None, temperature)
        shares.append(float(passing.double().mean()))
    self_share = given.scores.self_attention / given.scores.self_attention.sum(dim=1, keepdim=True)
    torch.testing.assert_close(significance, (self_share + given.scores.cls_attention) / 2)
    assert torch.equal(passing, significance > significance.mean(dim=1, keepdim=True))  # T without bound: the mean
    assert shares == sorted(shares, reverse=True) and shares[0] == 1 - 1 / TOKENS


def test_the_three_scores_alone_sum_to_the_importance(given):
    alone = [by_one_score(which)(given.scores, given.alignment, 2.0)[0] for which in ("self", "token", "cls")]
    torch.testing.assert_close(sum(alone) / 3, assess(given.scores, given.alignment, 2.0)[0])


def test_a_tower_can_be_left_alone_and_pays_for_nothing():
    model = build(blip_nlvr)
    model.keep = by_tower(lambda x: Whole(), lambda x: RECTANGLE)
    trace = Trace()
    with torch.no_grad():
        model(images(6), STATEMENTS, temperature=30.0, train=False, trace=trace)
    assert {row.left for row in trace.layers["image"]} == {17} and trace.layers["text"][-1].left < 10
    rows = cells.charged(trace, ("text",)).layers
    assert [row.scored for row in rows["image"]] == [False] * 3 and all(row.scored for row in rows["text"])
    assert [row.left for row in rows["image"]] == [row.left for row in trace.layers["image"]]
