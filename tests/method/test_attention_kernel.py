"""The Triton kernels against the block-wise path, in Triton's interpreter; and who runs them.

Triton's interpreter does not multiply bfloat16, so half precision is float16 here.
"""

import os
import subprocess
import sys

import pytest
import torch

from madtp.method import attention, compiled
from madtp.method.attention import attend
from madtp.method.attention_blocks import BlockwiseAttention, attend_without_gradients
from tests.method.test_attention import counts, flat, inputs, masks

pytest.importorskip("triton", reason="torch for CPU only comes without Triton: scores are made in blocks there")

COMPILE = """
from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from madtp.method import attention_kernel as kernel

GPU, TYPE, WIDTH, WIDE, MASKED = CASE
KINDS = {TYPE: ("query", "key", "value", "output"), "u8": ("allowed", "counts"), "fp32": ("log_sum", "sums")}
SIZES = {"WIDTH": WIDTH, "WIDE": WIDE, "QUERIES": kernel.QUERIES, "KEYS": kernel.KEYS, "MASKED": MASKED, "GROUP": 512}
POINTERS = {name: f"*{kind}" for kind, names in KINDS.items() for name in names}
for function in (kernel._attend, kernel._sum_largest):
    kinds = POINTERS | dict.fromkeys(SIZES, "constexpr") | {"scale": "fp32"}
    signature = {name: kinds.get(name, "i32") for name in function.arg_names}
    sizes = {(function.arg_names.index(name),): SIZES[name] for name in signature if name in SIZES}
    made = compile(ASTSource(function, signature, sizes), target=GPUTarget("cuda", GPU, 32))
    assert made.asm["cubin"]
    assert made.metadata.shared <= SHARED[GPU], made.metadata.shared
"""
SHARED = {80: 163, 86: 99, 90: 227}  # KiB that one program may have of a GPU's shared memory


@pytest.fixture
def kernels(monkeypatch):
    """`attend` with the kernels, whatever the device, and never in C."""
    from madtp.method.attention_kernel import attend_fused

    monkeypatch.setattr(compiled, "serves_attention", lambda *given: False)
    monkeypatch.setattr(attention, "_inference_path", lambda *where: attend_fused)


@torch.no_grad()
@pytest.mark.parametrize("counted", ["all", "some"])
@pytest.mark.parametrize("mask", ["none", "padding", "causal", "padding and causal"])
@pytest.mark.parametrize("shape, dtype", [((2, 3, 7, 4), torch.float32), ((2, 2, 70, 24), torch.float16)])
def test_kernels_equal_blocks(kernels, monkeypatch, mask, counted, shape, dtype):
    batch, _, length, _ = shape
    tensors = *inputs(*shape, dtype, gain=1.0), masks(mask, batch, length), counts(counted, batch, length)
    *qkv, mask, counted = tensors
    exact = [tensor.double() for tensor in qkv]
    ours = flat(attend(*qkv, mask, scores=True, counted=counted))
    monkeypatch.setattr(attention, "_inference_path", lambda *where: BlockwiseAttention.forward)
    expected = flat(attend(*exact, mask, scores=True, counted=counted))
    rounding = 1e-5 if dtype == torch.float32 else 2e-3
    for mine, true, tolerance in zip(ours, expected, (rounding, 1e-4, rounding), strict=True):
        assert (mine.double() - true).abs().max() <= tolerance * true.abs().max()
    assert ours[1].dtype == torch.float32  # sums of many small numbers


@torch.no_grad()
def test_every_head_may_have_a_mask_of_its_own_and_whole_tiles_may_be_closed(kernels, monkeypatch):
    shape = batch, heads, length, _ = 1, 2, 70, 4
    allowed = torch.rand(batch, heads, length, length, generator=torch.Generator().manual_seed(0)) < 0.5
    allowed[:, :, ::2, :64] = False  # the first tile of keys
    allowed[..., 65] = True
    *qkv, mask, counted = *inputs(*shape, torch.float32), allowed, counts("some", 2, length)[1:]
    before = counted.clone()
    ours = flat(attend(*qkv, mask, scores=True, counted=counted))
    assert counted.equal(before)
    monkeypatch.setattr(attention, "_inference_path", lambda *where: BlockwiseAttention.forward)
    torch.testing.assert_close(ours, flat(attend(*qkv, mask, scores=True, counted=counted)), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_layout_of_a_shared_projection_and_several_groups_of_queries(kernels, monkeypatch):
    from madtp.method import attention_kernel

    monkeypatch.setattr(attention_kernel, "QUERY_GROUP", 64)
    tensors = torch.randn(2, 100, 3, 2, 16, generator=torch.Generator().manual_seed(0)).permute(2, 0, 3, 1, 4)
    ours = flat(attend(*tensors, scores=True))
    monkeypatch.setattr(attention, "_inference_path", lambda *where: BlockwiseAttention.forward)
    torch.testing.assert_close(ours, flat(attend(*tensors, scores=True)), rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("counted", ["all", "some"])
def test_tensors_whose_first_axis_is_the_sequence(kernels, counted):
    tensors = inputs(2, 2, 20, 8, torch.float32)
    counted = counts(counted, 2, 20)
    expected = flat(attend(*tensors, scores=True, counted=counted))
    sequence_first = [tensor.permute(2, 0, 1, 3).contiguous().permute(1, 2, 0, 3) for tensor in tensors]
    if counted is not None:
        counted = counted.T.contiguous().T
    torch.testing.assert_close(flat(attend(*sequence_first, scores=True, counted=counted)), expected)


def test_the_kernels_run_where_they_are_fast():
    choose, cpu, cuda = attention._inference_path.__wrapped__, torch.device("cpu"), torch.device("cuda")
    assert choose(cpu, torch.bfloat16, 64, False) is attend_without_gradients
    assert choose(cuda, torch.float32, 64, False) is attend_without_gradients


def test_training_takes_no_kernel(monkeypatch):
    monkeypatch.setattr(attention, "_inference_path", None)
    attend(*inputs(1, 2, 5, 4), scores=True)


def test_what_keeps_the_kernels_from_running_is_said_once(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "madtp.method.attention_kernel", None)
    path = attention._inference_path.__wrapped__(torch.device("cuda"), torch.bfloat16, 64, True)
    assert path is attend_without_gradients
    assert "scores are made in blocks" in caplog.text


@pytest.mark.parametrize(
    "case", [(80, "bf16", 64, 64, True), (86, "fp16", 80, 128, False), (90, "bf16", 128, 128, True)]
)
def test_the_kernels_compile_and_fit_into_a_gpu(tmp_path, case):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    known = f"CASE = {case}\nSHARED = { {gpu: 1024 * kib for gpu, kib in SHARED.items()} }\n"
    subprocess.run([sys.executable, "-c", known + COMPILE], check=True, env=environment)
