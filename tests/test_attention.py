"""Attention with scores: loops over every number beside the two ways it is computed, and what it never holds.

Shapes: B batch, H heads, L tokens, E width of a head.
"""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from madtp import attention
from madtp.attention import attend
from tests.golden.fill import seeded


def inputs(batch, heads, length, width, dtype=torch.float64, gain=1.5):
    return tuple((gain * seeded(seed, batch, heads, length, width)).to(dtype) for seed in (1, 2, 3))


def masks(kind, batch, length):
    """Padding hides the end of every other sample; causal hides the future, of all samples alike."""
    if kind == "none":
        return None
    if kind == "causal":
        return torch.ones(length, length, dtype=torch.bool).tril()
    lengths = torch.tensor([length if index % 2 else max(1, length - 3) for index in range(batch)])
    padding = (torch.arange(length) < lengths[:, None])[:, None, None, :]
    return padding if kind == "padding" else padding & masks("causal", batch, length)


def weights_by_loops(query, key, mask):
    """The attention map as nested lists, [B][H][L][L]."""
    batch, heads, length, width = query.shape
    allowed = torch.ones(batch, heads, length, length, dtype=torch.bool)
    allowed = (allowed if mask is None else allowed & mask).tolist()
    query, key = query.tolist(), key.tolist()

    def row(b, h, i):
        powers = [
            math.exp(sum(x * y for x, y in zip(query[b][h][i], key[b][h][j], strict=True)) / math.sqrt(width))
            * allowed[b][h][i][j]
            for j in range(length)
        ]
        return [power / sum(powers) for power in powers]

    return [[[row(b, h, i) for i in range(length)] for h in range(heads)] for b in range(batch)]


def attend_by_loops(query, key, value, mask):
    """Output, self-attention score and class-attention score, number by number."""
    batch, heads, length, width = value.shape
    weights, value = weights_by_loops(query, key, mask), value.tolist()
    output = torch.zeros(batch, heads, length, width, dtype=torch.float64)
    self_attention = torch.zeros(batch, length - 1, dtype=torch.float64)
    cls_attention = torch.zeros(batch, length - 1, dtype=torch.float64)
    for b in range(batch):
        for h in range(heads):
            for i in range(length):
                for e in range(width):
                    output[b, h, i, e] = sum(weights[b][h][i][j] * value[b][h][j][e] for j in range(length))
        for j in range(1, length):
            for i in range(1, length):
                self_attention[b, j - 1] += max(weights[b][h][i][j] for h in range(heads))
            norms = [math.sqrt(sum(x * x for x in output[b, h, j].tolist())) for h in range(heads)]
            for h in range(heads):
                cls_attention[b, j - 1] += weights[b][h][0][j] * norms[h] / (sum(norms) + 1e-8)
    return output, self_attention, cls_attention


def flat(attended):
    output, scores = attended
    return output, scores.self_attention, scores.cls_attention


@pytest.mark.parametrize("mask", ["none", "padding", "causal", "padding and causal"])
@pytest.mark.parametrize("batch, length", [(3, 7), (1, 2), (2, 1)])
def test_whole_and_blocks_equal_loops(monkeypatch, mask, batch, length):
    tensors, mask = inputs(batch, 3, length, 4), masks(mask, batch, length)
    expected = attend_by_loops(*tensors, mask)
    torch.testing.assert_close(flat(attend(*tensors, mask, scores=True)), expected)
    with torch.no_grad():
        for block in (1, 2, 3, 192):
            for samples in (1, 2, 100):
                monkeypatch.setattr(attention, "QUERY_BLOCK", block)
                monkeypatch.setattr(attention, "CPU_ENTRIES", samples * 3 * min(block, length) * length)
                torch.testing.assert_close(flat(attend(*tensors, mask, scores=True)), expected)
    torch.testing.assert_close(attend(*tensors, mask)[0], expected[0])


def test_layout_of_a_shared_projection(monkeypatch):
    monkeypatch.setattr(attention, "QUERY_BLOCK", 4)
    tensors = seeded(4, 2, 11, 3, 3, 8).double().permute(2, 0, 3, 1, 4).unbind()
    expected = flat(attend(*tensors, scores=True))
    with torch.no_grad():
        torch.testing.assert_close(flat(attend(*tensors, scores=True)), expected)


def test_queries_and_keys_of_two_sequences():
    query, key, value = seeded(1, 2, 3, 5, 4), seeded(2, 2, 3, 9, 4), seeded(3, 2, 3, 9, 4)
    weights = (query @ key.transpose(2, 3) / 2).softmax(dim=-1)
    output, scores = attend(query, key, value)
    torch.testing.assert_close(output, weights @ value)
    assert scores is None


@pytest.mark.parametrize("grad", [True, False])
def test_half_precision_stays_close(grad):
    tensors = inputs(2, 3, 300, 16, torch.bfloat16, gain=1.0)
    expected = flat(attend(*(tensor.double() for tensor in tensors), scores=True))
    with torch.set_grad_enabled(grad):
        output, scores = attend(*tensors, scores=True)
    assert (output.dtype, *(score.dtype for score in scores)) == (torch.bfloat16, torch.float32, torch.float32)
    for ours, exact in zip((output, *scores), expected, strict=True):
        assert (ours.double() - exact).abs().max() <= 0.02 * exact.abs().max()


@pytest.mark.parametrize("grad", [True, False])
def test_autocast_does_not_touch_the_scores(grad):
    tensors = inputs(2, 3, 20, 8, torch.float32)
    with torch.set_grad_enabled(grad):
        expected = flat(attend(*tensors, scores=True))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            torch.testing.assert_close(flat(attend(*tensors, scores=True)), expected, rtol=0, atol=0)


def test_gradients_of_output_and_scores():
    tensors = tuple(tensor.requires_grad_() for tensor in inputs(1, 2, 4, 3))
    mask = masks("padding and causal", 1, 4)
    assert torch.autograd.gradcheck(lambda *qkv: flat(attend(*qkv, mask, scores=True)), tensors)


def test_scores_come_from_the_weights_before_dropout():
    tensors = inputs(2, 3, 9, 4)
    output, scores = attend(*tensors, scores=True, dropout=0.5)
    whole_output, whole_scores = attend(*tensors, scores=True)
    assert not torch.allclose(output, whole_output)
    torch.testing.assert_close(scores.self_attention, whole_scores.self_attention)


def test_inputs_stay_as_they_were():
    tensors = inputs(2, 3, 9, 4)
    before = [tensor.clone() for tensor in tensors]
    with torch.no_grad():
        attend(*tensors, masks("padding", 2, 9), scores=True)
    torch.testing.assert_close(list(tensors), before, rtol=0, atol=0)


class Largest(TorchDispatchMode):
    """Watches how many numbers the largest tensor that any operation returns has room for."""

    def __init__(self):
        super().__init__()
        self.entries = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.entries = max(self.entries, tensor.untyped_storage().nbytes() // tensor.element_size())
        return result


def largest(batch, length, **kwargs):
    with Largest() as watched:
        attend(*inputs(batch, 4, length, 2, torch.float32), **kwargs)
    return watched.entries


def test_the_map_is_never_whole_without_gradients():
    batch, heads, length = 3, 4, 577
    with torch.no_grad():
        entries = largest(batch, length, scores=True)
        assert entries <= max(heads * attention.QUERY_BLOCK * length, attention.CPU_ENTRIES)
        assert entries < heads * length * length  # not even for one sample
        longer = largest(batch, 2 * length, scores=True)
        assert longer <= 2 * heads * attention.QUERY_BLOCK * length  # linear in the length
    assert largest(batch, length, scores=True) == batch * heads * length * length  # what the watch sees when it is


def test_without_scores_there_is_one_fused_call(monkeypatch):
    calls = []
    fused = F.scaled_dot_product_attention
    monkeypatch.setattr(
        F, "scaled_dot_product_attention", lambda *args, **kwargs: calls.append(1) or fused(*args, **kwargs)
    )
    attend(*inputs(2, 3, 5, 4), masks("padding", 2, 5))
    assert calls == [1]
