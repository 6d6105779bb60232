"""Alignment guidance: learnable token by learnable token beside it.

Shapes: B batch, N tokens, D width, K learnable tokens, C their width.
"""

import math

import pytest
import torch
from torch.func import grad, vmap

from madtp.method.alignment import QueryModel, aligned_feature, similarity_loss
from madtp.method.layout import RECTANGLE, Masked
from madtp.method.merged import Merged, Schedule
from madtp.method.pruning import own_tokens
from tests.golden.fill import seeded
from tests.kept import keeping


def aligned_by_loops(query, alignment):
    """Every learnable token's mean of the queries, weighted by how well they align with it."""
    batch, tokens, width = query.shape
    rows = []
    for b in range(batch):
        for k in range(alignment.shape[2]):
            powers = [math.exp(alignment[b, j, k].item() / math.sqrt(width)) for j in range(tokens)]
            rows.append(sum(power / sum(powers) * query[b, j] for j, power in enumerate(powers)))
    return torch.stack(rows).view(batch, -1, width)


def similarity_loss_by_loops(image, text):
    losses = []
    for first, second in zip(image.flatten(0, 1).tolist(), text.flatten(0, 1).tolist(), strict=True):
        product = sum(x * y for x, y in zip(first, second, strict=True))
        losses.append(1 - product / math.hypot(*first) / math.hypot(*second))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("batch, tokens, learnable, width", [(1, 1, 1, 1), (2, 1, 3, 4), (3, 6, 4, 5)])
def test_aligned_feature_equals_loops(batch, tokens, learnable, width):
    query, space_dict = seeded(1, batch, tokens, width).double(), seeded(2, learnable, width).double()
    alignment = query @ space_dict.T
    torch.testing.assert_close(aligned_feature(query, alignment), aligned_by_loops(query, alignment))


def test_aligned_feature_of_equal_tokens_is_the_token():
    query = seeded(1, 2, 1, 5).expand(2, 4, 5)
    torch.testing.assert_close(aligned_feature(query, seeded(2, 2, 4, 3)), query[:, :3])


def test_similarity_loss_equals_loops():
    image, text = seeded(1, 3, 4, 5).double(), seeded(2, 3, 4, 5).double()
    torch.testing.assert_close(similarity_loss(image, text).item(), similarity_loss_by_loops(image, text))


def test_similarity_loss_sees_directions_only():
    image = seeded(1, 3, 4, 5).double()
    for factor, expected in ((7.0, 0.0), (1e-6, 0.0), (-0.1, 2.0)):
        assert similarity_loss(image, factor * image).item() == pytest.approx(expected, abs=1e-12)
    assert similarity_loss(image, torch.zeros_like(image)).item() == 1
    half = similarity_loss(image.bfloat16(), image.bfloat16())
    assert half.dtype == torch.float32 and half.abs() < 1e-6


def test_similarity_loss_pulls_both_sides():
    sides = seeded(1, 2, 3, 4).double().requires_grad_(), seeded(2, 2, 3, 4).double().requires_grad_()
    assert torch.autograd.gradcheck(similarity_loss, sides)


Q_MAP = ["q_map.0.bias", "q_map.0.weight"]


@pytest.mark.parametrize("sd_dim, always_map, keys", [(6, False, []), (8, False, Q_MAP), (6, True, Q_MAP)])
def test_queries_are_mapped_where_the_widths_differ_or_always(sd_dim, always_map, keys):
    model, x, space_dict = QueryModel(6, sd_dim, always_map), seeded(1, 2, 6, 6), seeded(2, 3, sd_dim)
    assert sorted(model.state_dict()) == keys
    query = x[:, 1:] @ model.q_map[0].weight.T + model.q_map[0].bias if keys else x[:, 1:]
    alignment, aligned = model(x, RECTANGLE, space_dict, temperature=1.0, align=True)
    torch.testing.assert_close(alignment, query @ space_dict.T)
    torch.testing.assert_close(aligned, aligned_feature(query, alignment))


@pytest.mark.parametrize("temperature, align", [(0.0, False), (0.0, True), (1.0, False), (1.0, True)])
def test_only_what_is_used_is_computed(temperature, align):
    alignment, aligned = QueryModel(4, 4)(seeded(1, 2, 5, 4), RECTANGLE, seeded(2, 3, 4), temperature, align)
    assert (alignment is not None) == (align or temperature > 0)
    assert (aligned is not None) == align
    assert QueryModel(4, 4)(seeded(1, 2, 5, 4), RECTANGLE, None, temperature, align) == (None, None)
    covered = Merged(Schedule(3, 1.0, 4))  # whose rule goes by no alignment
    alignment, aligned = QueryModel(4, 4)(seeded(1, 2, 5, 4), covered, seeded(2, 3, 4), temperature, align)
    assert (alignment is not None, aligned is not None) == (align, align)


def test_a_token_counts_as_often_as_it_has_patches():
    model, x, space_dict = QueryModel(4, 4), seeded(1, 2, 4, 4).double(), seeded(2, 3, 4).double()
    sizes = torch.tensor([[1.0, 3, 1, 2], [1, 1, 5, 1]])
    _, aligned = model(x, Merged(Schedule(3, 1.0, 3), sizes), space_dict, 1.0, True)
    for row in range(2):
        every_patch = x[row].repeat_interleave(sizes[row].long(), dim=0).unsqueeze(0)
        torch.testing.assert_close(aligned[row], model(every_patch, RECTANGLE, space_dict, 1.0, True)[1][0])


def test_what_is_no_token_has_no_view():
    model, x, space_dict = QueryModel(4, 4), seeded(1, 2, 5, 4).double(), seeded(2, 3, 4).double()
    lengths = torch.tensor([3, 5])
    _, aligned = model(x, Masked(own_tokens(lengths, 5)), space_dict, 1.0, True)
    for row, length in enumerate(lengths):
        alone = model(x[row : row + 1, :length], RECTANGLE, space_dict, 1.0, True)[1]
        torch.testing.assert_close(aligned[row], alone[0])


def aligned_plainly(query, space_dict):
    """Alignment and aligned feature as PyTorch's own operators have them."""
    alignment = query @ space_dict.T.expand(len(query), -1, -1)
    weights = (alignment.transpose(1, 2) / query.shape[-1] ** 0.5).softmax(dim=-1)
    return alignment, weights.to(query.dtype) @ query


@pytest.mark.parametrize("amp", [False, True])
def test_training_keeps_no_copy_of_the_tokens_and_has_the_same_gradients(amp):
    inputs = x, space_dict = seeded(1, 3, 8, 16).requires_grad_(), seeded(2, 2, 16).requires_grad_()
    results = []
    for way in (
        lambda: aligned_plainly(x[:, 1:], space_dict),
        lambda: QueryModel(16, 16)(x, RECTANGLE, space_dict, 1.0, True),
    ):
        with keeping(*inputs) as kept, torch.autocast("cpu", torch.bfloat16, enabled=amp):
            outputs = way()
        wide = [tensor for tensor in kept() if tensor.shape[-1] == 16]
        gradients = torch.autograd.grad(sum(output.float().square().sum() for output in outputs), inputs)
        results.append((outputs, gradients, len(wide)))
    plain, ours = results
    torch.testing.assert_close(ours[:2], plain[:2], rtol=0, atol=0)
    assert (plain[2], ours[2]) == (2 * amp, 0)


@pytest.mark.parametrize("amp", [False, True])
def test_gradients_of_every_sample_by_torch_func_are_those_of_each_alone(amp):
    x, space_dict, model = seeded(1, 3, 8, 16), seeded(2, 2, 16), QueryModel(16, 16)

    def loss(x):
        with torch.autocast("cpu", torch.bfloat16, enabled=amp):
            outputs = model(x.unsqueeze(0), RECTANGLE, space_dict, 1.0, True)
        return sum(output.float().square().sum() for output in outputs)

    slow = torch.stack([grad(loss)(one) for one in x])
    torch.testing.assert_close(vmap(grad(loss))(x), slow, rtol=0.02 * amp + 1e-9, atol=0.02 * amp + 1e-9)
