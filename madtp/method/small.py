"""Scores and pruning of a few short sequences on a CPU, where a step's launch takes longer than its numbers.

MADTP takes some seventy small steps a layer. In a model that answers within milliseconds they would take more than the
dropped tokens save. Here they are two calls into C (`small.c`), which a machine's own compiler translates when they are
first needed and which are then kept in the user's cache. Without a compiler, the steps of `madtp.method.pruning` do the
work.

Shapes: B batch, H heads, N prunable tokens, L = N + 1 with the class token in front, E width of a head, D of a token, K
learnable tokens, k tokens kept.
"""

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

SOURCE = Path(__file__).with_suffix(".c")
FLAGS = ("-O3", "-fopenmp-simd", "-fno-trapping-math", "-fno-math-errno", "-shared", "-fPIC")
VECTORS = {"AVX2": ("-mavx2", "-mfma"), "AVX512": ("-mavx512f", "-mfma", "-mprefer-vector-width=512")}
WORK = 2**20  # multiplications of an attention, up to which this is the faster way
PATIENCE = 60  # seconds that a compiler has
_THREE = ctypes.c_int64 * 3


def serves(x: Tensor) -> bool:
    """Whether tokens [..., L, width] are few, in single precision on a CPU, and nobody wants gradients or a graph."""
    if torch.is_grad_enabled() or x.dtype != torch.float32 or x.device.type != "cpu":
        return False
    return x.numel() * x.shape[-2] <= WORK and not torch.compiler.is_compiling() and library() is not None


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Self-attention [B, H, L, E] and what it says of every prunable token, [B, N] each.

    As `madtp.method.attention.attend`.
    """
    batch, heads, length, width = query.shape
    if not (query.stride() == key.stride() == value.stride() and query.stride(3) == 1):
        query, key, value = (x.contiguous() for x in (query, key, value))
    output = query.new_empty(batch, length, heads, width)
    sums, cls_attention = query.new_empty(batch, length - 1), query.new_empty(batch, length - 1)
    strides, steps = query.stride()[:3], (0, 0, 0)
    if mask is not None:
        mask = mask.expand(batch, 1, length, length)
        steps = (mask.stride(0), mask.stride(2), mask.stride(3))
    short_of_memory = library().madtp_attend(
        query.data_ptr(), key.data_ptr(), value.data_ptr(), _THREE(*strides),
        _address(mask), _THREE(*steps),
        batch, heads, length, width, output.data_ptr(), sums.data_ptr(), cls_attention.data_ptr(),
    )  # fmt: skip
    if short_of_memory:
        raise MemoryError(f"attention of {length} tokens by {heads} heads of width {width}")
    return output.transpose(1, 2), sums, cls_attention


def prune(
    x: Tensor,
    self_attention: Tensor,
    cls_attention: Tensor,
    alignment: Tensor,
    temperature: float,
    min_keep: int,
    protected: Tensor | None,
) -> tuple[Tensor, Tensor] | None:
    """The shortened tokens [B, k + 2, D] and the rows [B, k + 2] that they were in; None where nothing is pruned.

    Args:
        x: [B, L, D].
        self_attention: [B, N].
        cls_attention: [B, N].
        alignment: [B, N, K].
        temperature: above 0.
        min_keep: nothing is pruned if fewer tokens than this would be kept.
        protected: [B, 1], index among the N of a token that is always kept, or None.
    """
    (batch, length, width), learnable = x.shape, alignment.shape[2]
    rows, shortened = x.new_empty(batch * (length + 1), dtype=torch.long), x.new_empty(batch * (length + 1), width)
    alignment = alignment.float()  # halves come from mixed precision
    if alignment.stride()[1:] != (learnable, 1):
        alignment = alignment.contiguous()
    x, self_attention, cls_attention = (part.float().contiguous() for part in (x, self_attention, cls_attention))
    protected = None if protected is None else protected.contiguous()
    keep = library().madtp_prune(
        *map(_address, (x, self_attention, cls_attention, alignment)), alignment.stride(0),
        _address(protected),
        temperature, min_keep, batch, length - 1, width, learnable, _address(rows), _address(shortened),
    )  # fmt: skip
    if keep < 0:
        return None
    left = batch * (keep + 2)
    return shortened[:left].view(batch, -1, width), rows[:left].view(batch, -1)


@cache
def library() -> ctypes.CDLL | None:
    """The functions of `small.c`, compiled if that has not been done yet; None where it cannot be."""
    try:
        found = ctypes.CDLL(str(_compiled()))
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:  # RuntimeError: nobody is at home
        logger.info("pruning takes its small steps one by one, for want of a C compiler: %s", error)
        return None
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    found.madtp_attend.argtypes = [*[pointer] * 3, _THREE, pointer, _THREE, *[number] * 4, *[pointer] * 3]
    found.madtp_prune.argtypes = [*[pointer] * 4, number, pointer, ctypes.c_double, *[number] * 5, *[pointer] * 2]
    found.madtp_prune.restype = number
    return found


def _compiled() -> Path:
    """The file of the compiled functions, named by what it was made of."""
    source = SOURCE.read_bytes()
    flags = (*FLAGS, *VECTORS.get(torch.backends.cpu.get_cpu_capability(), ()))
    made_of = hashlib.sha256(source + repr((flags, platform.platform())).encode()).hexdigest()[:16]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "madtp"
    file = folder / f"small-{made_of}.so"
    if not file.exists():
        compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
        if not compiler:
            raise FileNotFoundError("there is none on the path")
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as draft:
            made = Path(draft) / file.name
            command = [*compiler.split(), *flags, "-o", str(made), str(SOURCE), "-lm"]
            subprocess.run(command, check=True, capture_output=True, timeout=PATIENCE)
            made.replace(file)  # at once, whoever else does the same
    return file


def _address(x: Tensor | None) -> int | None:
    return None if x is None else x.data_ptr()
