"""What inference gains by preparing linear layers: `python -m benchmarks.bench_prepared --task nlvr --amp bf16`.

The same forward pass, dense and pruned, with the layers as training leaves them and as inference makes them (see
`madtp.shared.inference`) takes turns. Time is the processor's own, of all threads together, so that a machine on which
others compute says the same; a ratio is the median over the rounds of each round's own.
"""

import time
from collections.abc import Callable
from functools import partial

from torch import nn

from benchmarks.timing import arguments, ratio, report, take_turns, told
from benchmarks.workload import Workload, model_flags, ratio_of, workload_of

METHODS = ("forward", "in_proj")  # that are replaced


class Layers:
    """The linear layers of a prepared model, to be switched to and fro.

    Args:
        model: prepared.
    """

    def __init__(self, model: nn.Module):
        own = [(module, vars(module)) for module in model.modules()]
        self.made = [(module, name, made[name]) for module, made in own for name in METHODS if name in made]

    def switch(self, prepared: bool) -> None:
        """Makes them prepared or plain."""
        for module, name, replacement in self.made:
            vars(module).pop(name, None)
            if prepared:
                setattr(module, name, replacement)

    def run(self, prepared: bool, work: Callable[[], None]) -> None:
        """A call with the layers prepared or plain."""
        self.switch(prepared)
        work()


def measure(workload: Workload, p: float, rounds: int) -> list[dict]:
    """A row each for the dense and for the pruned model."""
    temperatures = {"dense": 0.0, "pruned": workload.temperature(p)}
    layers, rows = Layers(workload.model), []
    sides: dict[str, Callable[[], None]] = {}
    for name, temperature in temperatures.items():
        work = workload.side(name, temperature)
        sides |= {
            f"{name}, plain": partial(layers.run, False, work),
            f"{name}, prepared": partial(layers.run, True, work),
        }
    times = take_turns(sides, rounds, workload.device, clock=time.process_time)
    for name, temperature in temperatures.items():
        plain, made = times[f"{name}, plain"], times[f"{name}, prepared"]
        row = {"name": name, "p": p, "temperature": temperature, "plain_seconds": min(plain), "seconds": min(made)}
        rows.append(row | {"faster": ratio(plain, made)})
    return rows


def main() -> None:
    """Prints one JSON line per row."""
    parser = model_flags(__doc__)
    args = arguments(parser, batch=1, rounds=3, threads=1)
    workload = workload_of(args)
    setting = {name: getattr(args, name) for name in ("task", "amp", "batch")}
    report([setting | row for row in measure(workload, ratio_of(args), args.rounds)], args.device, args.output)


if __name__ == "__main__":
    told(main)
