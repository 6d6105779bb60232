"""Attention on a CPU, and pruning of a few short sequences, in C.

MADTP takes some seventy small steps a layer, coverage two hundred. In a model that answers within milliseconds their
launches would take more than the dropped tokens save. Here they are two calls a layer (`attention.c`; `pruning.c`,
`coverage.c`), which a machine's own compiler translates when they are first needed and which are then kept in the
user's cache. Of long sequences too attention, with scores or without, is one call, which makes the logits of a few
queries at a time and all that comes of them while they are in the processor's cache, in single precision or in bf16;
and so is the choice by coverage, whose steps would each read and write all pairs of tokens. Without a compiler, for
numbers that are not finite, and for everything that `serves` refuses, the steps of `madtp.method.attention`, `pruning`
and `coverage` do the work.

Shapes: B batch, H heads, L tokens, of which F in front stay (MADTP: the class token) and N are prunable, E width of a
head, D of a token, K learnable tokens, k tokens kept.
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
from math import gcd, inf
from pathlib import Path

import torch
from torch import Tensor

from madtp.method import processor
from madtp.method.transforms import is_transformed

logger = logging.getLogger(__name__)

SOURCES = [Path(__file__).with_name(name) for name in ("attention.c", "pruning.c", "coverage.c")]
HEADERS = [Path(__file__).with_name(name) for name in ("vectors.h", "attention.h")]
FLAGS = ("-O3", "-fno-trapping-math", "-fno-math-errno", "-shared", "-fPIC")
THREADS = "-fopenmp", "-fopenmp-simd"  # with threads, those of PyTorch itself where its OpenMP is GNU's, and without
VECTORS = {"AVX2": ("-mavx2", "-mfma"), "AVX512": ("-mavx512f", "-mfma", "-mprefer-vector-width=512")}
HALVES = ("-mavx512bf16",)  # where the processor multiplies bf16 and the compiler knows it
ATTENTION, COVERAGE = 2**20, 2**25  # multiplications of all pairs of tokens, up to which this is the faster way
ALONE = 2**19  # up to which one thread is
SHARE = 64  # queries that are worth a thread
COMPILER_TIMEOUT = 60  # seconds that a compiler has
NOTHING_PRUNED = -1
_THREE, _FOUR = ctypes.c_int64 * 3, ctypes.c_int64 * 4


def serves(x: Tensor, *others: Tensor | None, most: float = ATTENTION, dtype: torch.dtype = torch.float32) -> bool:
    """Whether this is for C: few tokens, and nobody wants gradients, a graph or another transform of what is done.

    Args:
        x: [..., L, width].
        others: what else must be on a CPU and of that type.
        most: multiplications of all pairs of tokens.
        dtype: of all of them.
    """
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or is_transformed():
        return False
    for one in (x, *others):  # the numbers of a subclass need not lie in memory as C has them
        if one is not None and not (type(one) is Tensor and one.dtype is dtype and one.is_cpu):
            return False
    return x.numel() * x.shape[-2] <= most and library() is not None


def serves_attention(query: Tensor, *others: Tensor | None) -> bool:
    """As `serves`, for attention with scores in single precision or bf16.

    It asks for the compiler last, which training and GPUs do without.
    """
    dtype = torch.bfloat16 if query.dtype is torch.bfloat16 else torch.float32
    return serves(query, *others, most=inf, dtype=dtype) and query.numel() * query.shape[-2] <= most_attention()


def serves_plain_attention(query: Tensor, key: Tensor, *others: Tensor | None) -> bool:
    """As `serves_attention`, where no scores are wanted: of long sequences, since PyTorch's fused attention is slower.

    In bf16 that is the faster one where the processor has a unit for products of matrices.
    """
    if not serves_attention(query, key, *others):  # first of all, since it asks for no sizes while a graph is made
        return False
    long = query.shape == key.shape and query.numel() * query.shape[-2] > ALONE
    return long and not (query.dtype is torch.bfloat16 and multiplies_tiles())


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Self-attention [B, H, L, E] and what it says of every prunable token, [B, N] each.

    As `madtp.method.attention.attend`.
    """
    return _attend(query, key, value, mask, None, 1, True)


def attend_with_class(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, prefix: int = 1, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Self-attention [B, H, L, E] with a bias that is added to the logits, and what its class token pays, [B, N].

    As `madtp.method.attention.attend_with_class`; where a boolean mask is False no attention goes.
    """
    output, _, cls_attention = _attend(query, key, value, mask, bias, prefix, False)
    return output, cls_attention


def _attend(query, key, value, mask, bias, prefix, scored):
    batch, heads, length, width = query.shape
    if not (query.stride() == key.stride() == value.stride() and query.stride(3) == 1):
        query, key, value = (x.contiguous() for x in (query, key, value))
    threads = torch.get_num_threads() if query.numel() * length > ALONE else 1
    parts = max(1, min(threads // gcd(batch, threads), length // SHARE))  # so that all threads end together
    output = query.new_empty(batch, length, heads, width)
    cls_attention = query.new_empty(batch, length - prefix, dtype=torch.float32)
    sums = query.new_empty(parts, batch, length - prefix, dtype=torch.float32) if scored else None
    mask = None if mask is None else mask.expand(batch, heads, length, length)
    strides, steps = query.stride()[:3], (0, 0, 0, 0) if mask is None else mask.stride()
    bias = None if bias is None else bias.expand(batch, 1, 1, length).float().contiguous()
    call = library().madtp_attend_of_halves if query.dtype is torch.bfloat16 else library().madtp_attend_of_floats
    short_of_memory = call(
        query.data_ptr(), key.data_ptr(), value.data_ptr(), _THREE(*strides),
        _address(mask), _FOUR(*steps), _address(bias),
        batch, heads, length, width, prefix, parts, threads,
        output.data_ptr(), _address(sums), cls_attention.data_ptr(),
    )  # fmt: skip
    if short_of_memory:
        raise MemoryError(f"attention of {length} tokens by {heads} heads of width {width}")
    if scored:
        sums = sums[0] if parts == 1 else sums.sum(dim=0)
    return output.transpose(1, 2), sums, cls_attention


def prune(
    x: Tensor,
    self_attention: Tensor,
    cls_attention: Tensor,
    alignment: Tensor,
    temperature: float,
    min_keep: int,
    protected: Tensor | None,
) -> tuple[Tensor, Tensor | None] | None:
    """The shortened tokens [B, k + 2, D] and the rows [B, k + 2] that they were in.

    The tokens as they are and None where nothing is pruned; None alone where not all numbers are finite.

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
    tokens, self_attention, cls_attention = (part.float().contiguous() for part in (x, self_attention, cls_attention))
    protected = None if protected is None else protected.contiguous()
    keep = library().madtp_prune(
        *map(_address, (tokens, self_attention, cls_attention, alignment)), alignment.stride(0),
        _address(protected),
        temperature, min_keep, batch, length - 1, width, learnable, _address(rows), _address(shortened),
    )  # fmt: skip
    if keep < 0:
        return (x, None) if keep == NOTHING_PRUNED else None
    left = batch * (keep + 2)
    return shortened[:left].view(batch, -1, width), rows[:left].view(batch, -1)


def cover(
    x: Tensor, cls_attention: Tensor | None, sizes: Tensor | None, prefix: int, keep: int, keep_norm: bool = False
) -> tuple[Tensor, Tensor, Tensor, Tensor] | None:
    """What the rule `coverage` leaves; see `madtp.method.merged.shortened`. None where not all numbers are finite."""
    x, cls_attention, sizes = (None if one is None else one.contiguous() for one in (x, cls_attention, sizes))
    batch, width, tokens = x.shape[0], x.shape[2], x.shape[1] - prefix
    shortened, left = x.new_empty(batch, prefix + keep, width), x.new_empty(batch, prefix + keep)
    rows, owner = x.new_empty(left.shape, dtype=torch.long), x.new_empty(batch, tokens, dtype=torch.long)
    failed = library().madtp_cover(
        *map(_address, (x, cls_attention, sizes)), batch, prefix, tokens, width, keep, keep_norm,
        *map(_address, (shortened, left, rows, owner)),
    )  # fmt: skip
    return None if failed else (shortened, left, rows, owner)


def choose(cosine: Tensor, significance: Tensor, keep: int) -> tuple[Tensor, Tensor] | None:
    """The tokens that stay [B, k], and which of them each goes into [B, N]. None where not all numbers are finite.

    As `madtp.method.coverage.choose` and `owners`, the samples shared out among as many threads as PyTorch has.
    """
    cosine, significance = cosine.contiguous(), significance.contiguous()
    kept = cosine.new_empty(len(cosine), keep, dtype=torch.long)
    owner = cosine.new_empty(significance.shape, dtype=torch.long)
    failed = library().madtp_choose(
        cosine.data_ptr(), significance.data_ptr(), *cosine.shape[:2], keep, torch.get_num_threads(),
        kept.data_ptr(), owner.data_ptr(),
    )  # fmt: skip
    return None if failed else (kept, owner)


def class_attention(query: Tensor, key: Tensor, bias: Tensor | None, prefix: int) -> Tensor:
    """What the class token pays to every prunable token, [B, N].

    As `madtp.method.attention.class_attention`, with a bias that is added to the logits.
    """
    batch, heads, length, width = key.shape
    query, key = (x if x.stride(3) == 1 else x.contiguous() for x in (query, key))
    bias = None if bias is None else bias.expand(batch, 1, 1, length).contiguous()
    attention = key.new_empty(batch, length - prefix)
    library().madtp_class_attention(
        query.data_ptr(), _THREE(*query.stride()[:3]), key.data_ptr(), _THREE(*key.stride()[:3]), _address(bias),
        batch, heads, length, width, prefix, attention.data_ptr(),
    )  # fmt: skip
    return attention


@cache
def library() -> ctypes.CDLL | None:
    """The functions in C, compiled if that has not been done yet; None where it cannot be."""
    try:
        found = ctypes.CDLL(str(_compiled()))
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:  # RuntimeError: nobody is at home
        logger.info("pruning takes its small steps one by one, since those in C could not be compiled: %s", error)
        return None
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    for attend in (found.madtp_attend_of_floats, found.madtp_attend_of_halves):
        attend.argtypes = [*[pointer] * 3, _THREE, pointer, _FOUR, pointer, *[number] * 7, *[pointer] * 3]
    found.madtp_prune.argtypes = [*[pointer] * 4, number, pointer, ctypes.c_double, *[number] * 5, *[pointer] * 2]
    found.madtp_prune.restype = number
    found.madtp_cover.argtypes = [*[pointer] * 3, *[number] * 6, *[pointer] * 4]
    found.madtp_choose.argtypes = [*[pointer] * 2, *[number] * 4, *[pointer] * 2]
    found.madtp_class_attention.argtypes = [pointer, _THREE, pointer, _THREE, pointer, *[number] * 5, pointer]
    found.madtp_class_attention.restype = None
    return found


def most_attention() -> float:
    """Multiplications of all pairs of tokens up to which attention with scores is faster in C.

    There is no bound on processors with wide vectors, if the compiler makes use of threads.
    """
    found, wide = library(), torch.backends.cpu.get_cpu_capability() in VECTORS
    return inf if wide and found is not None and found.madtp_threads() else ATTENTION


@cache
def multiplies_tiles() -> bool:
    """Whether the processor has a unit for products of matrices in bf16."""
    return processor.TILES in processor.features()


def _compiled() -> Path:
    """The file of the compiled functions, named by what it was made of."""
    source = b"".join(path.read_bytes() for path in (*HEADERS, *SOURCES))
    vectors = torch.backends.cpu.get_cpu_capability()
    flags = (*FLAGS, *VECTORS.get(vectors, ()))
    halves = HALVES if vectors == "AVX512" and processor.BF16 in processor.features() else ()
    made_of = hashlib.sha256(source + repr((flags, halves, THREADS, platform.platform())).encode()).hexdigest()[:16]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "madtp"
    file = folder / f"method-{made_of}.so"
    if not file.exists():
        found = [path for name in ("cc", "gcc", "clang") if (path := shutil.which(name))]
        compiler = os.environ.get("CC", "").split() or found[:1]  # whose path may have spaces in it
        if not compiler:
            raise FileNotFoundError("there is none on the path")
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as draft:
            made = Path(draft) / file.name
            _compile([*compiler, *flags, "-o", str(made), *map(str, SOURCES), "-lm"], made, halves)
            made.replace(file)  # at once, whoever else does the same
    return file


def _compile(command: list[str], made: Path, halves: tuple[str, ...]) -> None:
    """Compiles with what the processor has, or with as much of it as the compiler knows."""
    attempts = [(*known, threads) for known in dict.fromkeys((halves, ())) for threads in THREADS]
    for attempt in attempts:
        try:
            subprocess.run([*command, *attempt], check=True, capture_output=True, timeout=COMPILER_TIMEOUT)
            ctypes.CDLL(str(made))  # OpenMP may be there for the compiler alone
            return
        except (OSError, subprocess.CalledProcessError):
            if attempt == attempts[-1]:
                raise


def _address(x: Tensor | None) -> int | None:
    return None if x is None else x.data_ptr()
