"""The straight-through gate: the numbers are those of coverage, and a gradient reaches the choice."""

import pytest
import torch

from benchmarks.comparison.gate import Gated, opened, uniquely_covered
from madtp.method import coverage
from madtp.method.attention import AttentionScores
from madtp.method.merged import Merged, Schedule
from madtp.method.pruning import Kept
from tests.golden.fill import seeded

TOKENS, LEFT = 9, 4
SCHEDULE = Schedule(depth=1, shape=1.0, tokens=TOKENS)
AMOUNT = torch.log(torch.tensor(TOKENS / LEFT)).item()


@pytest.fixture
def given():
    """Tokens [2, 10, 6], the class token's attention to nine of them, and sizes."""
    sizes = torch.tensor([[1, 1, 2, 3, 1, 1, 2, 1, 3, 2], [1, 3, 1, 1, 2, 1, 1, 2, 1, 1]]).double()
    attention = seeded(2, 2, TOKENS).double().softmax(dim=1)
    return seeded(1, 2, 1 + TOKENS, 6).double().requires_grad_(), attention.requires_grad_(), sizes


def pruned(layout, x, attention, sizes):
    return layout(SCHEDULE, sizes).prune(x, AttentionScores(None, attention), None, AMOUNT)


def test_what_only_one_token_covers_is_by_hand(given):
    x, attention, sizes = given
    _, _, kept = pruned(Merged, *given)
    cosine = coverage.similarity(x[:, 1:]).detach()
    found = uniquely_covered(cosine, attention.detach(), kept.indices, kept.groups)
    for sample in range(2):
        places, share = kept.indices[sample].tolist(), coverage.importance(attention.detach())[sample]
        for number, place in enumerate(places):
            wanted = 0.0
            for token in range(TOKENS):
                if kept.groups[sample, token] == number:
                    others = [float(cosine[sample, one, token]) for one in places if one != place]
                    wanted += float(share[token] * (cosine[sample, place, token] - max(others)))
            assert float(found[sample, number]) == pytest.approx(wanted, abs=1e-12)


def test_tokens_and_sizes_are_those_of_coverage(given):
    (x, after, kept), (same, plain, alike) = (pruned(layout, *given) for layout in (Gated, Merged))
    assert torch.equal(x, same) and torch.equal(after.sizes_of_tokens, plain.sizes_of_tokens)
    assert torch.equal(after.places, plain.places) and torch.equal(kept.rows, alike.rows)
    assert isinstance(after, Gated) and after.schedule == plain.schedule


def test_without_gradients_there_is_no_gate(given, monkeypatch):
    monkeypatch.setattr("benchmarks.comparison.gate.opened", None)
    with torch.no_grad():
        _, after, _ = pruned(Gated, *given)
    assert not after.sizes_of_tokens.requires_grad


def test_the_gradient_is_that_of_the_gate_and_reaches_importance_and_tokens(given):
    x, attention, _ = given
    _, after, kept = pruned(Gated, *given)
    weights = seeded(3, *after.log_sizes.shape).double()
    found = torch.autograd.grad((weights * after.log_sizes).sum(), (x, attention), retain_graph=True)

    def gates(x, attention):
        covered = uniquely_covered(coverage.similarity(x[:, 1:]), attention, kept.indices, kept.groups)
        still = covered.detach()
        return torch.nn.functional.logsigmoid((covered - still.amin(1, True)) / still.mean(1, True))

    wanted = torch.autograd.grad((weights[:, 1:] * gates(x, attention)).sum(), (x, attention))
    assert all(one.abs().max() > 0 for one in wanted)
    torch.testing.assert_close(found, wanted)
    _, plain, _ = pruned(Merged, *given)
    assert not plain.log_sizes.requires_grad


def test_one_token_that_is_left_has_an_open_gate(given):
    x, attention, _ = given
    rows, groups = torch.tensor([[0, 3], [0, 1]]), torch.zeros(2, TOKENS, dtype=torch.long)
    gates = opened(x[:, 1:], attention, Kept(rows, groups=groups), 1)
    assert gates.tolist() == [[1.0], [1.0]] and gates.requires_grad
