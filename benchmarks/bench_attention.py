"""What the scores of pruning cost on top of attention: `python -m benchmarks.bench_attention`.

Fused attention alone and attention with scores, by the whole map, block by block as training has it, and ours, take
turns; a ratio is the median over the rounds of each round's own ratio.
"""

import argparse

import torch
from torch import Tensor

from benchmarks.plain_attention import plain_attend
from benchmarks.timing import arguments, ratio, report, spread, take_turns, told
from madtp.method.attention import attend
from madtp.method.attention_blocks import attend_without_gradients

DTYPES = ("float32", "bfloat16")


def sides(query: Tensor, key: Tensor, value: Tensor) -> dict:
    """Fused attention without scores, attention and scores from a map held whole, from its blocks, and ours."""
    return {
        "fused": lambda: attend(query, key, value),
        "plain": lambda: plain_attend(query, key, value, scores=True),
        "blocks": lambda: attend_without_gradients(query, key, value, None, None),
        "ours": lambda: attend(query, key, value, scores=True),
    }


def rows(times: dict[str, list[float]], **setting) -> list[dict]:
    """Median and quartiles of each side's time in milliseconds, and the median ratio to fused attention."""
    found = []
    for name, own in times.items():
        low, median, high = (1e3 * seconds for seconds in spread(own))
        row = {"name": name, "median_ms": median, "low_ms": low, "high_ms": high, "ratio": ratio(own, times["fused"])}
        found.append({**setting, **row})
    return found


@torch.no_grad()
def main() -> None:
    """Prints a table and one JSON line per row."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dtype", choices=DTYPES, nargs="+", default=DTYPES, help="of queries, keys and values")
    parser.add_argument("--output", help="JSON-lines file to add the rows to")
    args = arguments(parser, batch=8, heads=12, tokens=577, width=64, rounds=15, threads=2)
    found = []
    for dtype in args.dtype:
        shape, kind = (args.batch, args.tokens, 3, args.heads, args.width), getattr(torch, dtype)
        projected = torch.randn(shape, dtype=kind, device=args.device)
        times = take_turns(sides(*projected.permute(2, 0, 3, 1, 4)), args.rounds, args.device, warm_up=2)
        setting = {name: getattr(args, name) for name in ("batch", "heads", "tokens", "width")}
        found += rows(times, dtype=dtype, **setting)
    print(f"{'dtype':<10}{'attention':<11}{'median ms':>10}{'quartiles ms':>16}{'x fused':>9}")
    for row in found:
        quartiles = f"{row['low_ms']:.1f} - {row['high_ms']:.1f}"
        print(f"{row['dtype']:<10}{row['name']:<11}{row['median_ms']:>10.1f}{quartiles:>16}{row['ratio']:>9.2f}")
    report(found, args.device, args.output)


if __name__ == "__main__":
    told(main)
