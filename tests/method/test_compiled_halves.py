"""Attention in bf16 in C: as exact as PyTorch's fused attention, whatever the processor multiplies bf16 by.

Shapes: B batch, H heads, L tokens, E width of a head.
"""

from functools import cache

import pytest
import torch
import torch.nn.functional as F

from madtp.method import attention, compiled, processor
from madtp.method.attention import attend, attend_with_class
from tests.method.test_compiled import heads_of, masks, needs_compiler

SHAPES = [(1, 1, 2, 1), (2, 3, 50, 32), (3, 2, 33, 5), (1, 4, 7, 40), (2, 2, 230, 64)]


@pytest.fixture(params=[False, True], ids=["shifts", "products of pairs"])
def library(request, monkeypatch, tmp_path):
    """Compiled for a processor that multiplies bf16, or for one that does not."""
    has = request.param
    if has and processor.BF16 not in processor.features():
        pytest.skip("this processor does not multiply bf16")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(compiled, "HALVES", compiled.HALVES if has else ())
    monkeypatch.setattr(compiled, "library", cache(compiled.library.__wrapped__))
    return compiled.library()


def halves_of(*shape):
    return [part.bfloat16() for part in heads_of(*shape)]


@needs_compiler
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", range(4))
@torch.inference_mode()
def test_scores_are_those_of_double_precision_and_the_output_is_nearest_to_it(library, shape, kind):
    parts, mask = halves_of(*shape), masks(*shape[:3])[kind]
    exact, exact_scores = attend(*(part.double() for part in parts), mask, scores=True)
    assert compiled.serves_attention(*parts)
    output, scores = attend(*parts, mask, scores=True)
    assert output.dtype is torch.bfloat16 and scores.cls_attention.dtype is torch.float32
    torch.testing.assert_close(scores.self_attention.double(), exact_scores.self_attention, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(scores.cls_attention.double(), exact_scores.cls_attention, rtol=1e-2, atol=1e-4)
    torch.testing.assert_close(output.double(), exact, rtol=1e-2, atol=1e-2 * exact.abs().max().item())


@needs_compiler
@torch.inference_mode()
def test_it_is_as_exact_as_fused_attention(library):
    parts = halves_of(2, 4, 200, 64)
    exact = F.scaled_dot_product_attention(*(part.double() for part in parts))
    error = [(found.double() - exact).norm() for found in (attend(*parts, scores=True)[0], fused(*parts))]
    assert 0 < error[0] < 1.1 * error[1]


def fused(query, key, value, mask=None):
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", range(4))
@torch.inference_mode()
def test_long_sequences_without_scores_are_for_c_too(library, dtype, kind, monkeypatch):
    monkeypatch.setattr(compiled, "multiplies_tiles", lambda: False)
    monkeypatch.setattr(compiled, "most_attention", lambda: float("inf"))
    shape = 2, 3, 130, 32
    parts, mask = [part.to(dtype) for part in heads_of(*shape)], masks(*shape[:3])[kind]
    bias = None if kind else torch.linspace(-1, 1, 130).expand(2, 1, 1, -1)
    exact = fused(*(part.double() for part in parts), mask if bias is None else bias.double())
    expected_class = attention.class_attention(*(part.double() for part in parts[:2]), mask if bias is None else bias)
    with monkeypatch.context() as patch:
        patch.setattr(F, "scaled_dot_product_attention", None)
        if bias is None:
            output = attend(*parts, mask)[0]
        else:
            output, paid = attend_with_class(*parts, bias.to(dtype))
            assert torch.equal(attend(*parts, bias.to(dtype))[0], output)
            torch.testing.assert_close(paid.double(), expected_class, rtol=1e-2, atol=1e-4)
    close = 1e-5 if dtype is torch.float32 else 1e-2
    torch.testing.assert_close(output.double(), exact, rtol=close, atol=close * exact.abs().max().item())


@needs_compiler
@torch.inference_mode()
def test_what_pytorch_is_faster_at_is_left_to_it(monkeypatch):
    monkeypatch.setattr(compiled, "most_attention", lambda: float("inf"))
    monkeypatch.setattr(compiled, "multiplies_tiles", lambda: False)
    long, short = heads_of(1, 2, 150, 64), heads_of(1, 2, 20, 16)
    assert compiled.serves_plain_attention(*long) and not compiled.serves_plain_attention(*short)
    query, key, value = long
    assert not compiled.serves_plain_attention(query[:, :, :140], key, value)  # of another sequence
    assert not compiled.serves_plain_attention(*(part.half() for part in long))
    monkeypatch.setattr(compiled, "multiplies_tiles", lambda: True)
    assert compiled.serves_plain_attention(*long)
    assert not compiled.serves_plain_attention(*(part.bfloat16() for part in long))


@needs_compiler
@torch.inference_mode()
def test_what_is_no_number_stays_none(library):
    query, key, value = halves_of(1, 2, 40, 8)
    value[0, 1, 7] = float("nan")
    assert attend(query, key, value, scores=True)[0][:, 1].isnan().all()
    assert attend(query, key, value, scores=True)[0][:, 0].isfinite().all()
    query[0, 0, 3] = float("nan")
    output, scores = attend(query, key, value, scores=True)
    assert output[0, 0, 3].isnan().all() and output[0, 0, 4].isfinite().all()
    assert scores.self_attention.isnan().all()


@needs_compiler
def test_a_compiler_that_does_not_know_bf16_serves_all_the_same(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(compiled, "HALVES", ("-munknown",))
    monkeypatch.setattr(compiled.processor, "features", lambda: {processor.BF16})
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    monkeypatch.setattr(compiled.ctypes, "CDLL", lambda file: None)  # which need not run here
    assert compiled._compiled().is_file()
