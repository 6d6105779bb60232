"""What the scores of pruning cost on top of attention: `python -m benchmarks.bench_attention`.

Fused attention alone and attention with scores, by the whole map, block by block as training has it, and ours, take
turns; a ratio is the median over the rounds of each round's own ratio. So do their backward passes by themselves, for
which each keeps what it keeps in training.
"""

import argparse
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.plain_attention import plain_attend
from benchmarks.timing import arguments, ratio, report, spread, take_turns, told
from madtp.method.attention import attend
from madtp.method.attention_blocks import attend_without_gradients

DTYPES = ("float32", "bfloat16")


def sides(query: Tensor, key: Tensor, value: Tensor) -> dict:
    """PyTorch's fused attention and ours without scores; with them from a map held whole, from its blocks, and ours."""
    return {
        "fused": lambda: F.scaled_dot_product_attention(query, key, value),
        "own": lambda: attend(query, key, value),
        "plain": lambda: plain_attend(query, key, value, scores=True),
        "blocks": lambda: attend_without_gradients(query, key, value, None, None),
        "ours": lambda: attend(query, key, value, scores=True),
    }


def backward_sides(query: Tensor, key: Tensor, value: Tensor) -> dict:
    """The backward passes of fused attention, of the whole map, and of ours, which goes block by block."""
    inputs = [one.detach().requires_grad_() for one in (query, key, value)]
    return {
        "fused": backward_of(attend(*inputs)[0], inputs),
        "plain": backward_of(plain_attend(*inputs, scores=True), inputs),
        "ours": backward_of(attend(*inputs, scores=True), inputs),
    }


def backward_of(found: Tensor | tuple, inputs: list[Tensor]) -> Callable[[], tuple]:
    """A call that goes back through a graph that stays, from gradients of all that was found."""
    outputs = [found] if isinstance(found, Tensor) else [found[0], *found[1]]
    grads = [torch.randn_like(one) for one in outputs]
    return lambda: torch.autograd.grad(outputs, inputs, grads, retain_graph=True)


def rows(times: dict[str, list[float]], **setting) -> list[dict]:
    """Median and quartiles of each side's time in milliseconds, and the median ratio to fused attention."""
    found = []
    for name, own in times.items():
        low, median, high = (1e3 * seconds for seconds in spread(own))
        row = {"name": name, "median_ms": median, "low_ms": low, "high_ms": high, "ratio": ratio(own, times["fused"])}
        found.append({**setting, **row})
    return found


def main() -> None:
    """Prints a table and one JSON line per row."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dtype", choices=DTYPES, nargs="+", default=DTYPES, help="of queries, keys and values")
    parser.add_argument("--output", help="JSON-lines file to add the rows to")
    args = arguments(parser, batch=8, heads=12, tokens=577, width=64, rounds=15, threads=2)
    found = []
    for dtype in args.dtype:
        shape, kind = (args.batch, args.tokens, 3, args.heads, args.width), getattr(torch, dtype)
        projected = torch.randn(shape, dtype=kind, device=args.device).permute(2, 0, 3, 1, 4)
        setting = {"dtype": dtype} | {name: getattr(args, name) for name in ("batch", "heads", "tokens", "width")}
        with torch.no_grad():
            times = take_turns(sides(*projected), args.rounds, args.device, warm_up=2)
        found += rows(times, direction="forward", **setting)
        times = take_turns(backward_sides(*projected), args.rounds, args.device, warm_up=2)
        found += rows(times, direction="backward", **setting)
    print(f"{'dtype':<10}{'attention':<20}{'median ms':>10}{'quartiles ms':>16}{'x fused':>9}")
    for row in found:
        quartiles, name = f"{row['low_ms']:.1f} - {row['high_ms']:.1f}", f"{row['name']}, {row['direction']}"
        print(f"{row['dtype']:<10}{name:<20}{row['median_ms']:>10.1f}{quartiles:>16}{row['ratio']:>9.2f}")
    report(found, args.device, args.output)


if __name__ == "__main__":
    told(main)
