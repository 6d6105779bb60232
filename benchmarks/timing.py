"""How the benchmarks measure: in turns, so that a busy machine disturbs all sides alike, warm-up left out."""

import argparse
import datetime
import json
import os
import platform
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from madtp.run.flags import check_device
from utils import UserError, prepare_output

os.environ.setdefault("KINETO_LOG_LEVEL", "5")  # the profiler says that there is no GPU; nobody asked


def told(main: Callable[[], None]) -> None:
    """Runs a benchmark; what the user has to mend is one line, and exit status 2."""
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def arguments(parser: argparse.ArgumentParser, **sizes: int) -> argparse.Namespace:
    """Reads the command line with what most benchmarks ask for besides: sizes, `threads` among them, and the device.

    Raises:
        UserError: a size below 1, a p that is no share, a device that is not there, a file that cannot be written.
    """
    for name, default in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=f"default {default}")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    check_sizes(args, sizes)
    ratios = getattr(args, "p", [])
    check_ratios(ratios if isinstance(ratios, list) else [ratios])
    check_device(args.device)
    if output := getattr(args, "output", None):
        prepare_output(Path(output).parent)  # before hours of measuring, not after them
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    return args


def check_sizes(args: argparse.Namespace, names: Iterable[str]) -> None:
    """Refuses what is counted and is none."""
    for name in names:
        if getattr(args, name) < 1:
            raise UserError(f"--{name} is {getattr(args, name)}, expected at least 1")


def check_ratios(ratios: Iterable[float]) -> None:
    """Refuses a p that leaves everything or nothing."""
    for p in ratios:
        if not 0 < p < 1:
            raise UserError(f"--p is {p:g}, expected a share of the GFLOPs to remove, above 0 and below 1")


def timed(work: Callable[[], Any], device: str, clock: Callable[[], float] = time.perf_counter) -> tuple[Any, float]:
    """A result, and the seconds it took by a clock, the device's included."""
    wait = torch.cuda.synchronize if torch.device(device).type == "cuda" else lambda: None
    wait()
    start = clock()
    result = work()
    wait()
    return result, clock() - start


def take_turns(
    sides: dict[str, Callable[[], Any]],
    rounds: int,
    device: str,
    warm_up: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list]:
    """Seconds of each side, round by round; a round asks every side once."""
    times = {name: [] for name in sides}
    for turn in range(warm_up + rounds):
        for name, work in sides.items():
            seconds = timed(work, device, clock)[1]
            if turn >= warm_up:
                times[name].append(seconds)
    return times


def spread(times: list[float]) -> tuple[float, float, float]:
    """Lower quartile, median and upper quartile."""
    return tuple(statistics.quantiles(times, n=4, method="inclusive")) if len(times) > 1 else (times[0],) * 3


def ratio(numerators: list[float], denominators: list[float]) -> float:
    """Median over the rounds of each round's own ratio: what slows a whole round down cancels."""
    return statistics.median(map(lambda a, b: a / b, numerators, denominators))


def peak_memory(work: Callable[[], Any], device: str) -> int:
    """Bytes at most that PyTorch's allocator holds during a call, beyond what it held before.

    On a CPU they come from the profiler's record of every allocation, so this call is slow.
    """
    if torch.device(device).type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        work()
        return torch.cuda.max_memory_allocated(device) - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        work()
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        profile.export_chrome_trace(file.name)
        events = json.loads(Path(file.name).read_text())["traceEvents"]
    return max((event["args"]["Total Allocated"] for event in events if event.get("name") == "[memory]"), default=0)


def environment(device: str) -> dict[str, Any]:
    """What a result depends on: command, date, versions and hardware."""
    cuda = torch.device(device).type == "cuda"
    return {
        "command": shlex.join(["python", "-m", command(Path(sys.argv[0])), *without_output(sys.argv[1:])]),
        "date": datetime.date.today().isoformat(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "hardware": torch.cuda.get_device_name(device) if cuda else processor(),
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],  # of the last minute: beyond the number of cores only ratios mean something
    }


def command(script: Path) -> str:
    """The module that was run; of a package its `__main__` goes without saying."""
    return f"benchmarks.{script.parent.name if script.stem == '__main__' else script.stem}"


def without_output(flags: list[str]) -> list[str]:
    """The flags but for --output: where lines went says nothing of what they hold, only of somebody's folders."""
    output = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    output.add_argument("--output")
    return output.parse_known_args(flags)[1]


def processor() -> str:
    """The CPU's name and its vector instructions, as far as PyTorch uses them."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {torch.backends.cpu.get_cpu_capability()}"


def report(rows: list[dict], device: str, output: str | None) -> None:
    """Prints one JSON line per row; the file, if there is one, gets them with the environment."""
    for row in rows:
        row.update({key: round(value, 4) for key, value in row.items() if isinstance(value, float)})
        print(json.dumps(row))
    if output:
        with open(output, "a", encoding="utf-8") as file:
            file.writelines(json.dumps({**row, **environment(device)}) + "\n" for row in rows)
