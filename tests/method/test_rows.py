"""Whole rows are read and added up as `gather` and `scatter_add` do it number by number, and so are their gradients."""

import pytest
import torch

from madtp.method.rows import add_up, followed, take
from tests.golden.fill import seeded
from tests.kept import keeping


def places(batch, rows, length):
    return torch.randint(length, (batch, rows), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("batch", [1, 3])
def test_rows_are_taken_as_gather_does(batch):
    x, rows = seeded(0, batch, 7, 4), places(batch, 5, 7)
    assert take(x, rows).equal(torch.stack([one[chosen] for one, chosen in zip(x, rows, strict=True)]))
    inner, few = x[:, 1:], rows[:, :2].clamp(max=5)
    assert take(inner, few).equal(inner.gather(1, few.unsqueeze(2).expand(-1, -1, 4)))
    assert torch.autograd.gradcheck(lambda x: take(x, rows), [x.double().requires_grad_()])


def test_rows_are_added_up_by_owner():
    x, owner = seeded(0, 3, 9, 4).double(), places(3, 9, 5)
    expected = x.new_zeros(3, 5, 4)
    for b in range(3):
        for row in range(9):
            expected[b, owner[b, row]] += x[b, row]
    torch.testing.assert_close(add_up(x, owner, 5), expected)
    assert torch.autograd.gradcheck(lambda x: add_up(x, owner, 5), [x.requires_grad_()])
    assert torch.autograd.gradgradcheck(lambda x: add_up(x, owner, 5).square(), [x])
    one_by_one = torch.func.vmap(lambda channel: add_up(channel.unsqueeze(2), owner, 5), in_dims=2, out_dims=2)
    torch.testing.assert_close(one_by_one(x.detach()).squeeze(3), expected)


def test_no_samples_have_no_rows():
    assert take(torch.zeros(0, 7, 4), places(0, 5, 7)).shape == (0, 5, 4)
    assert add_up(torch.zeros(0, 7, 4), places(0, 7, 5), 5).shape == (0, 5, 4)


def test_what_has_merged_is_followed_through_every_layer():
    """Rows merge into 9, then 5, then 3: patch by patch."""
    layers = places(2, 12, 9), places(2, 9, 5), places(2, 5, 3)
    found = None
    for owner in layers:
        found = followed(found, owner)
    for b in range(2):
        for patch in range(12):
            row = patch
            for owner in layers:
                row = owner[b, row]
            assert found[b, patch] == row


def test_neither_keeps_what_it_reads():
    x, owner = seeded(0, 3, 9, 4).requires_grad_(), places(3, 9, 5)
    with keeping() as kept:
        results = take(x, owner), add_up(x, owner, 5)
    assert [tensor.dtype for tensor in kept()] == [torch.int64] * 2 and all(result.requires_grad for result in results)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_halves_stay_halves(dtype):
    x, owner = seeded(0, 2, 6, 4).to(dtype), places(2, 6, 3)
    assert take(x, owner).dtype == dtype and add_up(x, owner, 3).dtype == dtype
