"""Time and memory of NLVR2 and CLIP L/14@336: batch by batch, dense and by both rules, fused and plain, compiled."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from unittest import mock

import torch
from torch import nn

from benchmarks.gpu.lines import GPU, Part
from benchmarks.timing import peak_memory, spread, timed
from benchmarks.workload import Workload, image_layers
from madtp.method import layout, merged
from utils import UserError

MODELS = ("nlvr", "clip")
BATCHES, TRAINED = (64, 8, 1), 16
RATIOS, SMALL_RATIOS = (0.5, 0.7), (0.15,)
SIDES = ("pruned", "plain", "coverage")
SECONDS, ROUNDS = 1.0, 20  # that a side takes at most, and how often it is asked
MEBI = 2**20


class Grid:
    """One model, built when it is first asked for, and how its sides are measured.

    Args:
        name: of the model's task.
        device: where it runs.
        small: two narrow layers.
        clock: whether time is measured too, or memory alone.
    """

    def __init__(self, name: str, device: str, small: bool, clock: bool):
        self.name, self.device, self.small, self.clock = name, device, small, clock
        self.workload: Workload | None = None
        self.temperatures: dict[tuple[str, float], float] = {}

    def parts(self) -> Iterator[Part]:
        """The batches by worth, then those of compiled layers."""
        batches, trained = ((2,), 2) if self.small else (BATCHES, TRAINED)
        yield Part(f"{self.name} model", self.build, least=15)
        for batch in batches:
            yield Part(f"{self.name} inference {batch}", partial(self.measure, batch, train=False), least=5)
        yield Part(f"{self.name} training {trained}", partial(self.measure, trained, train=True), least=8)

    def compiled(self) -> Iterator[Part]:
        """The same with compiled layers, where there is a GPU."""
        batches, trained = ((2,), 2) if self.small else (BATCHES, TRAINED)
        for batch in batches:
            work = partial(self.measure, batch, train=False, compile_layers=True)
            yield Part(f"{self.name} compiled inference {batch}", work, (GPU, "triton"), least=10)
        work = partial(self.measure, trained, train=True, compile_layers=True)
        yield Part(f"{self.name} compiled training {trained}", work, (GPU, "triton"), least=15)

    def build(self) -> Iterator[dict]:
        """Makes the model, with random weights, in bfloat16."""
        self.workload = Workload(self.name, 1, "noise", self.device, torch.bfloat16, self.small)
        yield {"parameters": sum(parameter.numel() for parameter in self.workload.model.parameters())}

    def free(self) -> None:
        """Lets the model go."""
        self.workload = None
        if torch.device(self.device).type == "cuda":
            torch.cuda.empty_cache()

    def measure(self, batch: int, train: bool, compile_layers: bool = False) -> Iterator[dict]:
        """A row for every side that the batch can be brought to."""
        workload = self.workload
        if workload is None:
            raise UserError("there is no model")
        workload.resize(batch)
        workload.model.eval()
        found = self.settings(batch)
        if train:
            workload.prepare_training()
        elif compile_layers:
            workload.unprepare()  # layers that have copies of their own would be compiled one by one
        dense: list[float] = []
        with compiled(image_layers(workload.model)) if compile_layers else nullcontext():
            for name, p, temperature, gflops in found:
                if not (compile_layers and name == "plain"):
                    row = self.time(workload.side(name, temperature, train), dense)
                    setting = {"task": self.name, "batch": batch, "train": train, "compiled": compile_layers}
                    setting |= {"name": name, "p": p, "percent": 100 * gflops / found[0][3]}
                    yield setting | row | samples_per_second(batch, row)

    def settings(self, batch: int) -> list[tuple[str, float, float, float]]:
        """Name, p, temperature and GFLOPs of every side; temperatures are searched once for each batch."""
        workload, found, ratios = self.workload, [], SMALL_RATIOS if self.small else RATIOS
        for name, p in [("dense", 0.0), *((name, p) for p in ratios for name in SIDES)]:
            rule = "coverage" if name == "coverage" else "pruned"
            workload.model.keep = workload.rule(rule)
            try:
                if p and (rule, p, batch) not in self.temperatures:
                    self.temperatures[rule, p, batch] = workload.temperature(p)
            except UserError:
                continue  # a model so small cannot be brought there
            temperature = self.temperatures[rule, p, batch] if p else 0.0
            found.append((name, p, temperature, workload.gflops(temperature)))
        return found

    def time(self, side, dense: list[float]) -> dict:
        """Peak memory and, with a clock, quartiles of the time and the speed-up over `dense`, filled by the first."""
        side()  # what is made once is made now
        row = {"peak_mib": peak_memory(side, self.device) / MEBI} if self.on_gpu or not self.clock else {}
        if not self.clock:
            return row
        once = timed(side, self.device)[1]
        rounds = 2 if self.small else max(3, min(ROUNDS, int(SECONDS / once)))
        times = [timed(side, self.device)[1] for _ in range(rounds)]
        dense.extend(times if not dense else [])
        low, median, high = (1e3 * seconds for seconds in spread(times))
        speedup = spread(dense)[1] / spread(times)[1]
        return row | {"median_ms": median, "low_ms": low, "high_ms": high, "speedup": speedup}

    @property
    def on_gpu(self) -> bool:
        """Whether memory is counted at no cost."""
        return torch.device(self.device).type == "cuda"


def samples_per_second(batch: int, row: dict) -> dict:
    """The rate that follows from a median, if there is one."""
    return {"samples_per_second": 1e3 * batch / row["median_ms"]} if "median_ms" in row else {}


@contextmanager
def compiled(layers: nn.ModuleList) -> Iterator[None]:
    """Within it the layers are compiled for any number of tokens, but for attention and pruning.

    How many tokens are left is known on the host only once it has waited for it, which ends what can be compiled.
    """
    left_alone = [(layout, "attend"), (merged, "attend"), (merged, "attend_with_class")]
    left_alone += [(layout.Rectangle, "prune"), (merged.Merged, "prune")]
    with ExitStack() as patches:
        patches.enter_context(torch._dynamo.config.patch(recompile_limit=64))  # beyond it nothing would be compiled
        for place, name in left_alone:
            patches.enter_context(mock.patch.object(place, name, torch.compiler.disable(getattr(place, name))))
        for layer in layers:
            layer.compile(dynamic=True)
        try:
            yield
        finally:
            for layer in layers:
                layer._compiled_call_impl = None


def memory_parts(device: str, small: bool) -> Iterator[Part]:
    """The grid without a clock."""
    for name in MODELS:
        grid = Grid(name, device, small, clock=False)
        yield from grid.parts()
        grid.free()


def speed_parts(device: str, small: bool) -> Iterator[Part]:
    """The grid with its clock, layer by kernel, and last what has to be compiled first."""
    from benchmarks.gpu.layer import parts as layer_parts

    grids = [Grid(name, device, small, clock=True) for name in MODELS]
    for grid in grids:
        yield from grid.parts()
        yield from layer_parts(device, small) if grid is grids[0] else ()
    for grid in grids:
        yield from grid.compiled()
