"""Merged tokens that keep lengths: what a token's becomes, and that copies are merged without a trace."""

import torch
import torch.nn.functional as F

from benchmarks.comparison.lengths import Lengthened
from benchmarks.comparison.merging import TOME, TOME_LENGTHENED, Merging
from benchmarks.comparison.schedules import Steps
from madtp.method.attention import AttentionScores
from madtp.method.merged import Merged, Schedule
from tests.golden.fill import seeded

TOKENS, LEFT = 9, 4
SCHEDULE = Schedule(depth=1, shape=1.0, tokens=TOKENS)
AMOUNT = torch.log(torch.tensor(TOKENS / LEFT)).item()


def pruned(layout, x, sizes=None):
    attention = torch.full((len(x), TOKENS), 1 / TOKENS, dtype=x.dtype)
    return layout(SCHEDULE, sizes).prune(x, AttentionScores(None, attention), None, AMOUNT)


def test_a_token_points_where_the_mean_does_and_is_as_long_as_what_it_stands_for():
    x, sizes = seeded(1, 2, 1 + TOKENS, 6).double(), 1 + seeded(2, 2, 1 + TOKENS).double().abs().round()
    (left, after, kept), (mean, plain, alike) = (pruned(layout, x, sizes) for layout in (Lengthened, Merged))
    assert torch.equal(kept.groups, alike.groups) and torch.equal(after.sizes_of_tokens, plain.sizes_of_tokens)
    assert isinstance(after, Lengthened) and torch.equal(left[:, 0], x[:, 0])
    for sample in range(2):
        for group in range(LEFT):
            members = [1 + place for place in range(TOKENS) if kept.groups[sample, place] == group]
            total = sum(sizes[sample, one] * x[sample, one].norm() for one in members)
            wanted = total / sum(sizes[sample, one] for one in members)
            token, centre = left[sample, 1 + group], mean[sample, 1 + group]
            torch.testing.assert_close(token.norm(), wanted)
            torch.testing.assert_close(token / token.norm(), centre / centre.norm())


def test_copies_of_a_token_become_that_token():
    tokens = seeded(3, 1, LEFT, 6).double()
    x = torch.cat([tokens[:, :1], tokens[:, [0, 1, 2, 3, 0, 1, 1, 3, 3]]], dim=1)
    left, after, _ = pruned(Lengthened, x)
    order = (left[0, 1:, None] - tokens[0]).norm(dim=-1).argmin(dim=0)
    torch.testing.assert_close(left[0, 1:][order], tokens[0])
    assert after.sizes_of_tokens[0, 1:][order].tolist() == [2, 3, 1, 3]


def test_tome_can_keep_lengths_too():
    x, size = seeded(4, 2, 1 + TOKENS, 6).double(), 1 + seeded(5, 2, 1 + TOKENS).double().abs().round()
    plain, kept = (merging(rule, x, size) for rule in (TOME, TOME_LENGTHENED))
    torch.testing.assert_close(F.normalize(plain, dim=-1), F.normalize(kept, dim=-1))
    assert torch.equal(plain[:, 0], kept[:, 0]) and (kept.norm(dim=-1) >= plain.norm(dim=-1) - 1e-12).all()
    assert (kept.norm(dim=-1) > plain.norm(dim=-1) + 0.01).any()


def merging(rule, x, size):
    """The tokens that a layer of ToMe leaves."""
    layout = Merging(Steps(lambda layer, amount: amount, TOKENS), rule, size)
    layout.key = x[..., :3]
    return layout.prune(x, None, None, 6 / TOKENS)[0]
