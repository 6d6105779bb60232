"""What coverage itself takes of the time that it saves: `python -m benchmarks.bench_coverage --p 0.5`.

The image tower of the paper's models (ViT-B/16 at 384 pixels; --image_size, --patch_size and --width change it) encodes
seeded noise, densely and by coverage at the amount at which it costs 1 - p. Dense and pruned passes take turns. During
a pruned one each part is timed where it is called:

    scores        the class token's attention, beside the fused call
    similarities  of all pairs of tokens
    choice        which tokens stay, and which each other one goes into
    merging       the means; without a compiler, which token each other one goes into as well
    together      these three of few short sequences, which one call into C takes
    bias          attention with the sizes against the same call without them

Every part is printed as a share of the dense time.
"""

import argparse
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from statistics import median
from unittest import mock

import torch

from benchmarks.timing import arguments, ratio, report, take_turns, timed, told
from madtp.cost import flops
from madtp.cost.temperature import calibrate
from madtp.cost.trace import Trace
from madtp.method import attention, compiled, coverage, merged
from madtp.method.keep import Coverage
from madtp.run.precision import autocast, precision
from madtp.shared.layers import Guidance
from models.vit import VisionTransformer

DEPTH, HEADS = 12, 12
PARTS = {
    (attention, "class_attention"): "scores",
    (coverage, "similarity"): "similarities",
    (coverage, "choose"): "choice",
    (compiled, "choose"): "choice",
    (coverage, "owners"): "merging",
    (coverage, "absorb"): "merging",
    (compiled, "cover"): "together",
}


class Tower:
    """A tower and the images that it encodes.

    Args:
        args: the flags.
        dtype: of mixed precision.
    """

    def __init__(self, args: argparse.Namespace, dtype: torch.dtype):
        sizes = {"img_size": args.image_size, "patch_size": args.patch_size, "embed_dim": args.width}
        self.vit = VisionTransformer(**sizes, depth=DEPTH, num_heads=HEADS, sd_dim=args.width).to(args.device).eval()
        self.images = torch.randn(args.batch, 3, args.image_size, args.image_size, device=args.device)
        self.rule, self.dtype = Coverage(DEPTH, args.shape), dtype
        self.unused = torch.zeros(1, args.width, device=args.device)  # learnable tokens, which coverage goes without

    @torch.inference_mode()
    def encode(self, amount: float, trace: Trace | None = None) -> None:
        """One forward pass."""
        with autocast(self.dtype, self.images.device):
            self.vit.encode(self.images, Guidance.by(self.unused, amount, False), trace, self.rule)

    def share(self, amount: float) -> float:
        """What it costs, of dense."""
        trace = Trace()
        self.encode(amount, trace)
        rows = trace.layers["image"], trace.dense().layers["image"]
        spent, dense = (flops.vision(self.vit.shape, layers, num_learnable=1) for layers in rows)
        return spent / dense


@contextmanager
def parts_timed(seconds: Counter, device: str) -> Iterator[None]:
    """While this is open, the parts of coverage add what they take to `seconds`; what one calls is part of it."""
    running: list[str] = []

    def clocked(work: Callable, part: str) -> Callable:
        def clocked_work(*inputs):
            running.append(part)
            result, taken = timed(lambda: work(*inputs), device)
            running.pop()
            seconds[part] += 0 if running else taken
            return result

        return clocked_work

    def attend(query, key, value, bias, **named):
        result, taken = timed(lambda: plain(query, key, value, bias, **named), device)
        if bias is not None:
            seconds["bias"] += taken - timed(lambda: plain(query, key, value, None, **named), device)[1]
        return result

    def attend_with_class(query, key, value, bias, prefix, dropout):  # one call of short sequences, two here
        output, _ = attend(query, key, value, bias, dropout=dropout)
        return output, attention.class_attention(query, key, bias, prefix)

    plain = merged.attend
    with ExitStack() as patches:
        for (module, name), part in PARTS.items():
            patches.enter_context(mock.patch.object(module, name, clocked(getattr(module, name), part)))
        for one in (attend, attend_with_class):
            patches.enter_context(mock.patch.object(merged, one.__name__, one))
        yield


def measure(tower: Tower, amount: float, rounds: int, device: str) -> dict:
    """Speed-up, and the parts in shares of the dense time: each round's own ratio, their median."""
    rounds_of_parts: list[Counter] = []

    def in_parts() -> None:
        rounds_of_parts.append(Counter())
        with parts_timed(rounds_of_parts[-1], device):
            tower.encode(amount)

    sides = {"dense": lambda: tower.encode(0.0), "pruned": lambda: tower.encode(amount), "parts": in_parts}
    times = take_turns(sides, rounds, device)
    taken = rounds_of_parts[-rounds:]
    shares = {
        part: 100 * median(own[part] / dense for own, dense in zip(taken, times["dense"], strict=True))
        for part in [*dict.fromkeys(PARTS.values()), "bias"]
    }
    speedup = ratio(times["dense"], times["pruned"])
    return {"speedup": speedup, "dense_seconds": median(times["dense"]), "shares": shares, "sum": sum(shares.values())}


def main() -> None:
    """Prints a table and one JSON line for each p."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--p", type=float, nargs="+", default=[0.5, 0.7], help="shares of the GFLOPs to remove")
    parser.add_argument("--shape", type=float, default=1.0, help="of the schedule")
    parser.add_argument("--amp", choices=("off", "bf16", "fp16"), default="off")
    parser.add_argument("--output", help="JSON-lines file to add the rows to")
    sizes = {"image_size": 384, "patch_size": 16, "width": 768}
    args = arguments(parser, **sizes, batch=8, rounds=5, threads=2)
    tower = Tower(args, precision(args.amp, torch.device(args.device)))
    found = []
    for p in args.p:
        amount = calibrate(tower.share, 1 - p, start=1.0)
        row = measure(tower, amount, args.rounds, args.device)
        percent = 100 * tower.share(amount)
        row |= {"p": p, "amount": amount, "percent": percent, "efficiency": row["speedup"] * percent / 100}
        parts = ", ".join(f"{part} {share:.1f}" for part, share in row["shares"].items())
        print(f"p {p:g}: {percent:.1f} % of dense GFLOPs, {row['speedup']:.2f} x, efficiency {row['efficiency']:.2f}")
        print(f"  % of the dense time: {parts}; in all {row['sum']:.1f}")
        found.append({name: getattr(args, name) for name in ("batch", "amp", "shape", *sizes)} | row)
    report(found, args.device, args.output)


if __name__ == "__main__":
    told(main)
