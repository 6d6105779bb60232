"""Attention with scores: loops over every number beside the ways it is computed, and what it never holds.

Shapes: B batch, H heads, L tokens, E width of a head.
"""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from benchmarks.plain_attention import plain_attend
from madtp.method import attention_blocks
from madtp.method.attention import attend
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


def counts(kind, batch, length):
    """All queries, or only some of them, which differ between samples."""
    return None if kind == "all" else (torch.arange(batch)[:, None] + torch.arange(length)) % 3 > 0


def attend_by_loops(query, key, value, mask, counted):
    """Output, self-attention score and class-attention score, number by number."""
    batch, heads, length, width = value.shape
    counted = (torch.ones(batch, length) if counted is None else counted).tolist()
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
                self_attention[b, j - 1] += max(weights[b][h][i][j] for h in range(heads)) * counted[b][i]
            norms = [math.sqrt(sum(x * x for x in output[b, h, j].tolist())) for h in range(heads)]
            for h in range(heads):
                cls_attention[b, j - 1] += weights[b][h][0][j] * norms[h] / (sum(norms) + 1e-8)
    return output, self_attention, cls_attention


def flat(attended):
    output, scores = attended
    return output, scores.self_attention, scores.cls_attention


def in_blocks(monkeypatch, queries, entries=1):
    """So many queries in a block, and samples as long as the block of the map has no more entries than this."""
    monkeypatch.setattr(attention_blocks, "QUERY_BLOCK", queries)
    monkeypatch.setattr(attention_blocks, "CPU_ENTRIES", entries)


@pytest.mark.parametrize("counted", ["all", "some"])
@pytest.mark.parametrize("mask", ["none", "padding", "causal", "padding and causal"])
@pytest.mark.parametrize("batch, length", [(3, 7), (1, 2), (2, 1)])
def test_whole_and_blocks_equal_loops(monkeypatch, mask, counted, batch, length):
    tensors, mask, counted = inputs(batch, 3, length, 4), masks(mask, batch, length), counts(counted, batch, length)
    expected = attend_by_loops(*tensors, mask, counted)
    dropping_nothing = 1e-30
    torch.testing.assert_close(flat(attend(*tensors, mask, True, dropping_nothing, counted)), expected)
    for block in (1, 2, 3, 192):
        for samples in (1, 2, 100):
            in_blocks(monkeypatch, block, samples * 3 * min(block, length) * length)
            torch.testing.assert_close(flat(attend(*tensors, mask, scores=True, counted=counted)), expected)
    torch.testing.assert_close(attend(*tensors, mask)[0], expected[0])


@pytest.mark.parametrize("mask, counted", [("none", "all"), ("padding", "some")])
def test_the_benchmarks_compare_with_the_same_thing(mask, counted):
    tensors, mask, counted = inputs(2, 3, 9, 4), masks(mask, 2, 9), counts(counted, 2, 9)
    ours, plain = (flat(way(*tensors, mask, scores=True, counted=counted)) for way in (attend, plain_attend))
    torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-5, check_dtype=False)


def test_layout_of_a_shared_projection(monkeypatch):
    in_blocks(monkeypatch, 4)
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


@pytest.mark.parametrize("counted", ["all", "some"])
@pytest.mark.parametrize("mask", ["none", "padding and causal"])
def test_gradients_of_output_and_scores(monkeypatch, mask, counted):
    in_blocks(monkeypatch, 2)
    tensors = tuple(tensor.requires_grad_() for tensor in inputs(2, 2, 5, 3))
    mask, counted = masks(mask, 2, 5), counts(counted, 2, 5)
    assert torch.autograd.gradcheck(
        lambda *qkv: flat(attend(*qkv, mask, scores=True, counted=counted)), tensors, nondet_tol=0.0
    )


def gradients(attended, tensors):
    """Of a sum in which output and scores have random weights."""
    total = sum((result.float() * seeded(5, *result.shape)).sum() for result in flat(attended))
    return torch.autograd.grad(total, tensors)


def test_second_derivatives_are_refused():
    query, key, value = inputs(1, 2, 5, 3)
    output, _ = attend(query.requires_grad_(), key, value, scores=True)
    (gradient,) = torch.autograd.grad(output.square().sum(), query, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_heads_that_attend_equally_share_the_gradient():
    tensors = tuple(tensor[:, :1].repeat(1, 2, 1, 1).requires_grad_() for tensor in inputs(2, 1, 5, 3))
    ours = gradients(attend(*tensors, scores=True), tensors)
    torch.testing.assert_close(ours, gradients(attend(*tensors, scores=True, dropout=1e-30), tensors))


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 0.05)])
def test_gradients_equal_those_through_the_whole_map(dtype, tolerance):
    tensors = tuple(tensor.requires_grad_() for tensor in inputs(3, 4, 300, 16, dtype, gain=1.0))
    exact = tuple(tensor.detach().double().requires_grad_() for tensor in tensors)
    mask, counted = masks("padding", 3, 300), counts("some", 3, 300)
    ours = gradients(attend(*tensors, mask, scores=True, counted=counted), tensors)
    expected = gradients(attend(*exact, mask, True, 1e-30, counted), exact)
    for gradient, true in zip(ours, expected, strict=True):
        assert (gradient.double() - true).norm() <= tolerance * true.norm()


@pytest.mark.parametrize("amp", [False, True])
def test_gradients_repeat_themselves_and_survive_checkpointing(amp):
    tensors = tuple(tensor.requires_grad_() for tensor in inputs(2, 3, 200, 8, torch.float32))

    def run(*qkv):
        with torch.autocast("cpu", torch.bfloat16, enabled=amp):
            return attend(*qkv, scores=True)

    first, again = gradients(run(*tensors), tensors), gradients(run(*tensors), tensors)
    recomputed = gradients(checkpoint(run, *tensors, use_reentrant=False), tensors)
    with torch.autocast("cpu", torch.bfloat16, enabled=amp):  # the backward pass too
        within = gradients(run(*tensors), tensors)
    torch.testing.assert_close((again, recomputed, within), (first, first, first), rtol=0, atol=0)


def test_scores_come_from_the_weights_before_dropout():
    tensors = inputs(2, 3, 9, 4)
    output, scores = attend(*tensors, scores=True, dropout=0.5)
    whole_output, whole_scores = attend(*tensors, scores=True)
    assert not torch.allclose(output, whole_output)
    torch.testing.assert_close(scores.self_attention, whole_scores.self_attention)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@torch.no_grad()
def test_without_gradients_too_only_what_counts_is_counted(dtype):
    tensors, mask, counted = inputs(3, 2, 9, 4, dtype), masks("padding", 3, 9), counts("some", 3, 9)
    found = flat(attend(*tensors, mask, scores=True, counted=counted))
    expected = attend_by_loops(*tensors, mask, counted)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5, check_dtype=False)


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_token_of_which_no_head_makes_anything_is_not_attended_to(dtype, grad):
    query, key, value = inputs(2, 3, 6, 4, dtype)
    value[1, :] = 0
    with torch.set_grad_enabled(grad):
        _, scores = attend(query, key, value, scores=True)
    assert scores.cls_attention[0].gt(0).all() and not scores.cls_attention[1].any()


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
    dtype = torch.float32 if torch.is_grad_enabled() else torch.float64  # which C does not take
    tensors = tuple(tensor.requires_grad_() for tensor in inputs(batch, 4, length, 2, dtype))
    with Largest() as watched:
        attended = attend(*tensors, scores=True, **kwargs)
        if torch.is_grad_enabled():
            gradients(attended, tensors)
    return watched.entries


@pytest.mark.parametrize("grad", [True, False])
def test_the_map_is_never_whole(grad):
    batch, heads, length = 3, 4, 577
    with torch.set_grad_enabled(grad):
        entries = largest(batch, length)
        assert entries <= max(heads * attention_blocks.QUERY_BLOCK * length, attention_blocks.CPU_ENTRIES)
        assert entries < heads * length * length  # not even for one sample
        longer = largest(batch, 2 * length)
        assert longer <= 2 * heads * attention_blocks.QUERY_BLOCK * length  # linear in the length
        assert largest(1, length) < heads * length * length
        assert largest(400, 30) <= attention_blocks.CPU_ENTRIES  # many short ones share no map either
    whole = largest(batch, length, dropout=0.1)
    assert whole == batch * heads * length * length  # what the watch sees when it is


def test_without_scores_there_is_one_fused_call(monkeypatch):
    calls = []
    fused = F.scaled_dot_product_attention
    monkeypatch.setattr(
        F, "scaled_dot_product_attention", lambda *args, **kwargs: calls.append(1) or fused(*args, **kwargs)
    )
    attend(*inputs(2, 3, 5, 4), masks("padding", 2, 5))
    assert calls == [1]
