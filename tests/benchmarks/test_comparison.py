"""What both worlds share: rules of keeping beside slow and obvious versions, schedules, intervals, a ledger."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from benchmarks.comparison import merging
from benchmarks.comparison.ledger import add_line, claimed, read_lines
from benchmarks.comparison.merging import Merging, Tokens
from benchmarks.comparison.reporting import COLUMNS, wrapped
from benchmarks.comparison.rules import Pruning, Static, by_one_score, by_tower, unguided
from benchmarks.comparison.schedules import SHAPES, Steps, even, like
from benchmarks.comparison.statistics import paired_difference
from madtp.method.attention import AttentionScores, attend
from madtp.method.layout import RECTANGLE
from madtp.method.pruning import assess, prune_tokens
from models.blip import blip_decoder
from models.blip_nlvr import blip_nlvr
from tests.tiny import STATEMENTS, build, images

SAMPLES, TOKENS, WIDTH, LEARNABLE = 4, 24, 8, 5
RULES = {
    "tome": merging.TOME,
    "within": merging.TOME_WITHIN,
    "important": merging.IMPORTANT,
    "random": merging.RANDOM,
    "pitome": merging.pitome(3),
}


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
    x, layout, lengths = given.x, Static(Steps(even, TOKENS)), [TOKENS]
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


@pytest.fixture
def tokens(given):
    """What a rule of merging chooses by."""
    size = torch.randint(1, 4, (SAMPLES, TOKENS), generator=torch.Generator().manual_seed(1)).double()
    return Tokens(given.x[:, 1:, :3], size, given.scores, layer=1)


def alike(tokens, sample, i, j):
    return float(F.cosine_similarity(tokens.key[sample, i], tokens.key[sample, j], dim=0))


def members(owner):
    """Groups as sets of tokens, in any order."""
    return {frozenset(np.flatnonzero(owner == group)) for group in range(int(owner.max()) + 1)}


@pytest.mark.parametrize("groups", [12, 17, 23])
def test_tome_merges_the_closest_pairs_of_every_other_token(tokens, groups):
    owner = merging.alternating(tokens, groups).numpy()
    for sample in range(SAMPLES):
        first, second = range(0, TOKENS, 2), range(1, TOKENS, 2)
        partner = {i: max(second, key=lambda j: alike(tokens, sample, i, j)) for i in first}  # noqa: B023
        going = sorted(first, key=lambda i: -alike(tokens, sample, i, partner[i]))[: TOKENS - groups]  # noqa: B023
        wanted = {frozenset([i]) for i in first if i not in going}
        wanted |= {frozenset([j, *(i for i in going if partner[i] == j)]) for j in second}
        assert members(owner[sample]) == wanted


@pytest.mark.parametrize("groups", [12, 18])
def test_pitome_merges_within_dense_regions(tokens, groups):
    owner, margin = merging.redundant(3)(tokens, groups).numpy(), 0.9 - 0.9 / 3
    for sample in range(SAMPLES):
        energies = []
        for i in range(TOKENS):
            cosines = [alike(tokens, sample, i, j) for j in range(TOKENS)]
            energies.append(np.mean([c if c >= margin else np.exp(c - margin) - 1 for c in cosines]))
        order = sorted(range(TOKENS), key=lambda i: -energies[i])[: 2 * (TOKENS - groups)]  # noqa: B023
        going, staying = order[::2], order[1::2]
        goes_to = {i: max(staying, key=lambda j: alike(tokens, sample, i, j)) for i in going}  # noqa: B023
        wanted = {frozenset([j, *(i for i in going if goes_to[i] == j)]) for j in range(TOKENS) if j not in going}
        assert members(owner[sample]) == wanted


def test_groups_can_stay_as_long_as_their_tokens(given):
    size = torch.arange(1.0, 2 + TOKENS).double().expand(SAMPLES, -1)
    owner = (torch.arange(TOKENS) % 7).expand(SAMPLES, -1)
    means, total = merging.gather_groups(given.x, size, owner, 7)
    longer, sizes = merging.gather_as_long(given.x, size, owner, 7)
    assert torch.equal(longer[:, 0], means[:, 0]) and torch.equal(sizes, total)
    torch.testing.assert_close(F.normalize(longer, dim=2), F.normalize(means, dim=2))
    lengths = merging.gather_groups(given.x.norm(dim=2, keepdim=True), size, owner, 7)[0]
    torch.testing.assert_close(longer[:, 1:].norm(dim=2, keepdim=True), lengths[:, 1:])


@pytest.mark.parametrize("groups", [1, 9, 23])
def test_what_is_not_important_goes_into_the_most_alike_that_is(tokens, groups):
    owner = merging.important(tokens, groups).numpy()
    shares = [part / part.sum(dim=1, keepdim=True) for part in tokens.scores]
    for sample in range(SAMPLES):
        importance = (shares[0] + shares[1])[sample].tolist()
        kept = sorted(sorted(range(TOKENS), key=lambda i: -importance[i])[:groups])  # noqa: B023
        for i in range(TOKENS):
            wanted = i if i in kept else max(kept, key=lambda j: alike(tokens, sample, i, j))  # noqa: B023
            assert kept[owner[sample, i]] == wanted


@pytest.mark.parametrize("name", RULES)
def test_a_group_is_the_mean_of_all_it_stands_for_and_nothing_is_lost(given, name):
    layout, x, wanted = Merging(Steps(even, TOKENS), RULES[name]), given.x, given.x[:, 1:].sum(dim=1)
    for left in (17, 9, 2):
        least = x.shape[1] - 1 - int(RULES[name].most * (x.shape[1] - 1))
        _, scores = layout.attend(*[x.unsqueeze(1)] * 3, scores=True)
        x, layout, kept = layout.prune(x, scores, None, 0.31)
        assert x.shape[1] - 1 == max(left, least)
        for sample, groups in enumerate(kept.groups.tolist()):
            assert kept.of(sample) == [groups.index(group) for group in range(x.shape[1] - 1)]
        torch.testing.assert_close((x * layout.size.unsqueeze(-1))[:, 1:].sum(dim=1).float(), wanted.float())
        assert layout.size.sum(dim=1).tolist() == [1 + TOKENS] * SAMPLES and torch.equal(x[:, 0], given.x[:, 0])


@pytest.mark.parametrize("scores", [False, True])
def test_a_group_is_attended_to_as_often_as_it_stands_for_patches(given, scores):
    heads = given.x.unsqueeze(1)
    repeated = torch.cat([heads, heads[:, :, -1:]], dim=2)  # the last token twice, against once with size 2
    size = torch.ones(SAMPLES, 1 + TOKENS, dtype=torch.float64)
    size[:, -1] = 2
    output, found = Merging(Steps(even, TOKENS), merging.IMPORTANT, size).attend(heads, heads, heads, scores=scores)
    torch.testing.assert_close(output, F.scaled_dot_product_attention(heads, repeated, repeated))
    if scores:  # both halves of the last token together
        _, wanted = attend(*[repeated] * 3, scores=True)
        torch.testing.assert_close(found.cls_attention[:, :-1], wanted.cls_attention[:, :-2])


def test_scores_without_sizes_are_those_of_the_models(given):
    heads = given.x.unflatten(-1, (2, 4)).transpose(1, 2)
    ours, theirs = merging.attend_and_score(heads, heads, heads, None), attend(heads, heads, heads, scores=True)
    torch.testing.assert_close(ours[0], theirs[0])
    for found, wanted in zip(ours[1], theirs[1], strict=True):
        torch.testing.assert_close(found, wanted, check_dtype=False)


@pytest.mark.parametrize("across", [True, False])
def test_texts_weigh_groups_by_their_size_unless_a_rule_does_without(across):
    """Merging patches that are the same must change nothing: the last patch of a picture stands twice in a row."""
    model = build(blip_decoder).eval()
    rule = merging.Merger(lambda tokens, groups: torch.arange(16).clamp(max=14).expand(2, -1), across=across)
    model.keep = by_tower(Merging.by(lambda layer, amount: 15 / 16, rule), lambda x: RECTANGLE)
    plain = model.visual_encoder.patch_embed.forward
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        model.visual_encoder.pos_embed.zero_()
        twice = lambda image: plain(image)[:, [*range(15), 14]]  # noqa: E731
        patch.setattr(model.visual_encoder.patch_embed, "forward", twice)
        texts = [f"a picture of {statement}" for statement in STATEMENTS[:2]]
        dense, merged = (float(model(images(2), texts, amount)["loss_task"]) for amount in (0.0, 1.0))
    assert (abs(dense - merged) < 1e-5) == across


@pytest.mark.parametrize("name", SHAPES)
def test_a_schedule_never_brings_tokens_back_and_costs_less_the_higher_its_amount(name):
    shares = [[min(1, max(0, SHAPES[name](layer, amount))) for layer in range(6)] for amount in (0, 0.01, 0.2, 0.6, 2)]
    assert shares[0] == [1] * 6
    for less, more in zip(shares[:-1], shares[1:], strict=True):
        assert sum(more) < sum(less) and all(after <= before for before, after in zip(more[:-1], more[1:], strict=True))


def test_a_schedule_can_be_another_methods():
    assert [like([0.5, 0.25])(layer, 1.0) for layer in (0, 1)] == [0.5, 0.25]
    assert like([0.5, 0.25])(1, 2.0) == 0.0625


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("shape", ["even", "front"])
def test_every_rule_of_merging_trains_and_infers(name, shape):
    model = build(blip_nlvr)
    model.keep = by_tower(Merging.by(SHAPES[shape], RULES[name]), lambda x: RECTANGLE)
    losses = model(images(6), STATEMENTS, torch.tensor([0, 1, 1]), temperature=0.2)
    sum(losses.values()).backward()
    gradients = {name: one.grad for name, one in model.named_parameters() if one.grad is not None}
    assert all(gradient.isfinite().all() for gradient in gradients.values())
    assert all(
        gradients[f"visual_encoder.{name}"].any() for name in ("patch_embed.proj.weight", "blocks.0.attn.qkv.weight")
    )


def test_an_interval_is_that_of_the_paired_differences():
    draw = np.random.default_rng(1)
    theirs = draw.normal(50, 30, 400)
    ours = theirs + draw.normal(2, 10, 400)
    found = paired_difference(ours, theirs)
    error = (ours - theirs).std() / 20  # of the mean, by the textbook
    assert found.value == pytest.approx((ours - theirs).mean())
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.05)
    assert str(paired_difference([1, 2], [2, 3])) == "−1.0 [−1.0, −1.0]"


def test_photos_with_many_questions_count_by_their_questions():
    found = paired_difference([10, 0], [0, 0], weights=[4, 1])
    assert found.value == 2 and found.low == 0 and found.high == 2.5  # one of them alone, or both


def test_a_record_is_read_again_and_a_cell_is_claimed_once(tmp_path):
    add_line(tmp_path / "new" / "cells.jsonl", {"name": "a", "score": 1})
    add_line(tmp_path / "new" / "cells.jsonl", {"name": "a", "score": 2})
    record = read_lines([tmp_path / "new" / "cells.jsonl", tmp_path / "none.jsonl"])["a"]
    assert record["score"] == 2 and record["cpu"] and record["versions"]["torch"] == torch.__version__
    with claimed(tmp_path / "lock") as first, claimed(tmp_path / "lock") as second:
        assert first and not second


def test_prose_has_even_lines_whatever_was_filled_in():
    long = "word " * 40
    kept = f"## {long}\n\n| {long} |\n| --- |\n\n```\n{long}\n\n- {long}\n```\n\n![{long}](file)"
    text = wrapped(f"{kept}\n\n{long}\n{long}\n\n- **one** {long}\n  more\n- two\n")
    assert text.startswith(kept) and text.endswith(" more\n- two\n") and "\n- **one** word" in text
    prose = text.removeprefix(kept).splitlines()
    assert max(map(len, prose)) <= COLUMNS and sum(line.startswith("  ") for line in prose) == 1
    assert " ".join(text.split()) == " ".join(f"{kept} {long}{long}- **one** {long} more - two".split())
    assert wrapped(text) == text
