"""What the scores of pruning cost on top of attention: `python -m benchmarks.bench_attention`.

Fused attention alone, attention by its whole map with the scores, and ours in blocks take turns, so that a busy machine
disturbs all three alike; a ratio is the median over the rounds of each round's own ratio.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from madtp.attention import attend

WARM_UP = 2


def fused(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention without scores."""
    return F.scaled_dot_product_attention(query, key, value)


def plain(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Attention and scores as the method writes them, from a map held whole."""
    weights = (query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5).softmax(dim=-1)
    output = weights @ value
    norms = output[:, :, 1:].norm(dim=-1)
    cls_attention = (weights[:, :, 0, 1:] * norms / (norms.sum(dim=1, keepdim=True) + 1e-8)).sum(dim=1)
    return output, weights[:, :, 1:, 1:].amax(dim=1).sum(dim=1), cls_attention


def blocks(query: Tensor, key: Tensor, value: Tensor):
    """Ours."""
    return attend(query, key, value, scores=True)


CONTESTANTS = (fused, plain, blocks)


@torch.no_grad()
def rounds(inputs: tuple[Tensor, ...], number: int, device: str) -> dict[str, list[float]]:
    """Seconds of each contestant, round by round, warm-up left out."""
    times = {contestant.__name__: [] for contestant in CONTESTANTS}
    for _ in range(WARM_UP + number):
        for contestant in CONTESTANTS:
            times[contestant.__name__].append(seconds(contestant, inputs, device))
    return {name: values[WARM_UP:] for name, values in times.items()}


def seconds(contestant: Callable, inputs: tuple[Tensor, ...], device: str) -> float:
    """Wall-clock time of one call."""
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    wait()
    start = time.perf_counter()
    contestant(*inputs)
    wait()
    return time.perf_counter() - start


def summary(dtype: str, name: str, times: dict[str, list[float]]) -> dict:
    """Median and quartiles of the time in milliseconds, and the median ratio to fused attention."""
    low, median, high = (1e3 * value for value in statistics.quantiles(times[name], n=4))
    ratio = statistics.median(ours / theirs for ours, theirs in zip(times[name], times["fused"], strict=True))
    return {"dtype": dtype, "name": name, "median_ms": median, "low_ms": low, "high_ms": high, "ratio": ratio}


def main() -> None:
    """Prints a table and one JSON line per row."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    sizes = {"batch": 8, "heads": 12, "tokens": 577, "width": 64, "rounds": 15, "threads": 2}
    for name, default in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=f"default {default}")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = []
    for dtype in (torch.float32, torch.bfloat16):
        projected = torch.randn(args.batch, args.tokens, 3, args.heads, args.width, dtype=dtype, device=args.device)
        times = rounds(projected.permute(2, 0, 3, 1, 4).unbind(), args.rounds, args.device)
        rows += [summary(str(dtype).removeprefix("torch."), name, times) for name in times]
    print(f"{'dtype':<10}{'attention':<11}{'median ms':>10}{'quartiles ms':>16}{'x fused':>9}")
    for row in rows:
        quartiles = f"{row['low_ms']:.1f} - {row['high_ms']:.1f}"
        print(f"{row['dtype']:<10}{row['name']:<11}{row['median_ms']:>10.1f}{quartiles:>16}{row['ratio']:>9.2f}")
    for row in rows:
        print(json.dumps({key: round(value, 3) if isinstance(value, float) else value for key, value in row.items()}))


if __name__ == "__main__":
    main()
