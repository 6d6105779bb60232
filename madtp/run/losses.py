"""The losses of a run: summed where they are, read rarely, and watched for what is not finite."""

import logging
import math

import torch
from torch import Tensor

from madtp.cost.processes import all_gather_objects
from madtp.method.errors import UserError
from madtp.run.optimization import Gradients
from utils import Meters

logger = logging.getLogger(__name__)


class NonFinite(UserError):
    """A loss or gradient is infinite or not a number; the weights are those of the steps that were fine."""


class Losses:
    """Collects every batch's losses on their device, so that the host need not wait for them.

    A step whose loss or gradient is not finite has left the weights alone (see `Optimization.step`); that is noticed
    when the losses are read, a few steps later, by all processes alike.

    Args:
        allowed: steps without a finite loss and gradient to pass over in a run.
        accum: batches whose gradients make one step.
        scaled: whether losses are scaled for float16. A gradient that overflows is then only a sign to scale less.
        clipped: whether the norm of the gradient is limited.

    Attributes:
        meters: means over the running epoch, of this process.
        skipped: steps of the run that left the weights alone.
        nonfinite: those of them that count against `allowed`.
    """

    def __init__(self, allowed: int, accum: int, scaled: bool, clipped: bool = False):
        self.allowed, self.accum, self.scaled, self.clipped = allowed, accum, scaled, clipped
        self.meters, self.skipped, self.nonfinite = Meters(), 0, 0
        self._unread = {}

    def add(
        self,
        batch: int,
        losses: dict[str, Tensor],
        skipped: Tensor,
        samples: Tensor,
        gradients: Gradients | None = None,
    ) -> None:
        """Takes in one batch.

        Args:
            batch: its number in the epoch.
            losses: scalars by name, always the same names.
            skipped: 1 if a step has just been passed over, else 0, as a scalar.
            samples: numbers of the batch's samples.
            gradients: of the last step, to name the one that is not finite.
        """
        self._unread[batch] = ({name: loss.detach() for name, loss in losses.items()}, skipped, samples, gradients)

    def read(self, where: str) -> None:
        """Moves the losses from their device into the meters, in one transfer; all processes call it together.

        Raises:
            NonFinite: more steps than allowed were not finite on some process; `where` tells epoch and temperature.
        """
        if not self._unread:
            return
        names = list(next(iter(self._unread.values()))[0])
        rows = [
            torch.stack([*(losses[name].double() for name in names), skipped.double()])
            for losses, skipped, *_ in self._unread.values()
        ]
        broken = []
        for (batch, (_, _, samples, gradients)), row in zip(
            self._unread.items(), torch.stack(rows).tolist(), strict=True
        ):
            losses, skipped = dict(zip(names, row, strict=False)), bool(row[-1])
            finite = all(map(math.isfinite, row))
            self.meters.update(**losses) if finite else self.meters.update(0, **dict.fromkeys(names, 0.0))
            self.skipped += skipped
            if not finite or skipped and not self.scaled:
                what = "the loss" if not finite else gradients.fault() if gradients else "the gradient"
                broken.append((batch // self.accum, finite, batch, losses, samples.tolist(), what))
        self._unread.clear()
        self._judge(broken, where)

    def _judge(self, broken: list[tuple], where: str) -> None:
        """Counts the steps that were not finite on any process, and stops at one too many."""
        steps = {}
        for process, found in enumerate(all_gather_objects(broken)):
            for step, *rest in found:
                steps.setdefault(step, []).append((*rest[:2], process, *rest[2:]))
        for _, found in sorted(steps.items()):
            _, batch, process, losses, samples, what = min(found, key=lambda one: one[:3])
            values = ", ".join(f"{name} {loss:.4g}" for name, loss in losses.items())
            report = (
                f"{what} is not finite at step {batch} of {where}: {values}; samples {samples} of process {process}"
            )
            self.nonfinite += 1
            if self.nonfinite > self.allowed:
                raise NonFinite(
                    f"{report}. The weights are saved as without that step: go on behind it with --resume and "
                    f"--skip_nonfinite, or with --resume --resume_anyway and another setting: {self._ways_out()}"
                )
            logger.warning("%s; passed over (%d of %d)", report, self.nonfinite, self.allowed)

    def _ways_out(self) -> str:
        """Settings that may keep losses and gradients finite, and are not made yet."""
        clip, leave = ["set --clip_grad"] * (not self.clipped), ["leave float16: --amp bf16 or off"] * self.scaled
        return " or ".join(["lower init_lr", *clip, *leave])

    def state_dict(self) -> dict:
        """What a resumed run needs of this process; everything has been read."""
        sums = {name: (float(meter.total), meter.count) for name, meter in self.meters.items()}
        return {"sums": sums, "skipped": self.skipped, "nonfinite": self.nonfinite}

    def load_state_dict(self, state: dict) -> None:
        """Goes on from `state_dict`."""
        self.skipped, self.nonfinite = state["skipped"], state["nonfinite"]
        for name, (total, count) in state["sums"].items():
            self.meters[name].total, self.meters[name].count = total, count

    def finish_epoch(self) -> dict[str, float]:
        """The mean of every loss over batches and processes; the meters begin anew."""
        self.meters.synchronize()
        means = self.meters.means()
        self.meters.clear()
        return means

    def __str__(self) -> str:
        return f"{self.meters}  skipped {self.skipped}" if self.skipped else str(self.meters)
