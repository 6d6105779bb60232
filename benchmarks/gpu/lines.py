"""Parts of a section, run one after the other within a time; each result is a line of JSON as soon as it is there."""

import importlib.util
import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.timing import environment

GPU = "a GPU"


@dataclass(frozen=True)
class Part:
    """A piece of work that may fail without the others.

    Attributes:
        name: for its lines.
        work: makes the results, each a dict.
        needs: `GPU` or modules without which it is skipped.
        least: seconds that have to be left for it to be begun.
    """

    name: str
    work: Callable[[], Iterable[dict]]
    needs: tuple[str, ...] = ()
    least: float = 1.0


@dataclass(frozen=True)
class Lines:
    """Where results go.

    Attributes:
        path: of the file that they are added to.
        section: that they belong to.
        device: they come from.
        until: when the time is over, in seconds since the epoch.
    """

    path: Path
    section: str
    device: str
    until: float

    @property
    def left(self) -> float:
        """Seconds."""
        return self.until - time.time()

    def write(self, **row) -> None:
        """Prints a row and adds it to the file, at once."""
        row = {key: float(f"{value:.5g}") if isinstance(value, float) else value for key, value in row.items()}
        text = json.dumps({"section": self.section, **row})
        print(text, flush=True)
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(text + "\n")

    def begin(self) -> None:
        """Says what the lines that follow belong to."""
        self.write(part="machine", device=self.device, **environment(self.device))

    def run(self, parts: Iterable[Part]) -> None:
        """Runs parts as they come; what is skipped or fails is a line too."""
        for part in parts:
            started, absent = time.time(), missing(part.needs)
            if absent:
                self.write(part=part.name, skipped=f"needs {', '.join(absent)}")
            elif self.left < part.least:
                self.write(part=part.name, skipped=f"no time: {max(self.left, 0):.0f} s were left")
            else:
                try:
                    for row in part.work():
                        self.write(part=part.name, **row)
                    self.write(part=part.name, seconds=time.time() - started)
                except Exception as error:  # whatever it is, the other parts are still worth their time
                    self.write(part=part.name, failed=f"{type(error).__name__}: {error}".partition("\n")[0])


def missing(needs: Iterable[str]) -> list[str]:
    """What of these is not here."""
    absent = {GPU: not torch.cuda.is_available()}
    return [need for need in needs if absent.get(need, need != GPU and importlib.util.find_spec(need) is None)]
