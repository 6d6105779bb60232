"""The numbers of every epoch for TensorBoard and Weights & Biases, beside the run's own log."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path

from madtp.cost.processes import is_main
from madtp.method.errors import UserError

PROJECT = "madtp"

Write = Callable[[dict], None]


def check_installed(flag: str) -> None:
    """Refuses a flag whose package, of the same name, is not there."""
    if find_spec(flag) is None:
        raise UserError(f"--{flag}: the package {flag} is not installed; python -m pip install {flag}, or leave it out")


def scalars(record: dict) -> dict[str, float]:
    """The numbers of a line of `log.txt`, grouped by split: `train/loss_task`, `val/accuracy`, `tokens/image/3`, ..."""
    numbers = {}
    for name, value in record.items():
        group, _, rest = name.partition("_")
        if name.endswith("tokens"):
            prefix = "tokens" if name == "tokens" else f"{group}/tokens"
            layers = ((tower, number, left) for tower, row in value.items() for number, left in enumerate(row, start=1))
            numbers |= {f"{prefix}/{tower}/{number}": left for tower, number, left in layers}
        elif isinstance(value, int | float):
            numbers[f"{group}/{rest}" if group in ("train", "val", "test") and rest else name] = float(value)
    return numbers


@contextmanager
def writing(folder: Path, config: dict, tensorboard: bool, wandb: bool) -> Iterator[Write]:
    """What writes the record of an epoch to where it is wanted; only the main process does.

    TensorBoard's files go to `folder/tensorboard`; a run of Weights & Biases is named after the folder.

    Raises:
        UserError: Weights & Biases does not begin.
    """
    with ExitStack() as stack:
        writers = [_tensorboard(folder, stack)] if tensorboard and is_main() else []
        writers += [_wandb(folder, config, stack)] if wandb and is_main() else []

        def write(record: dict) -> None:
            for writer in writers:
                writer(record["epoch"], scalars(record))

        yield write


def _tensorboard(folder: Path, stack: ExitStack) -> Callable[[int, dict], None]:
    from torch.utils.tensorboard import SummaryWriter

    opened = []

    def write(epoch: int, numbers: dict[str, float]) -> None:
        if not opened:  # only now it is known from which epoch on a resumed run replaces what was written
            opened.append(SummaryWriter(str(folder / "tensorboard"), purge_step=epoch))
            stack.callback(opened[0].close)
        for name, value in numbers.items():
            opened[0].add_scalar(name, value, epoch)
        opened[0].flush()

    return write


def _wandb(folder: Path, config: dict, stack: ExitStack) -> Callable[[int, dict], None]:
    import wandb

    try:
        run = wandb.init(project=PROJECT, name=folder.name, dir=str(folder), config=config)
    except wandb.Error as error:
        raise UserError(f"--wandb: {error}; log in with `wandb login`, or set WANDB_MODE=offline") from error
    stack.callback(run.finish)
    return lambda epoch, numbers: run.log(numbers, step=epoch)
