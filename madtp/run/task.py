"""What a task says, so that the engine can train, prune and score it."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path

from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from madtp.cost.flops import Cost
from madtp.cost.measure import CostMeter, device_of, to_device
from madtp.cost.processes import gather_in_order
from madtp.cost.trace import Trace
from madtp.method.errors import UserError
from madtp.method.rules import COVERAGE, OF_COVERAGE
from madtp.run.output import progress_bar
from madtp.shared.weights import architecture, checkpoint, hub
from madtp.shared.weights.stored import Stored
from madtp.shared.weights.transformers_models import class_of, task_of


class Task(ABC):
    """One script: its data, model, losses and score.

    Attributes:
        name: decides which keys the configuration has.
        default_config: the YAML file where --config names none.
        recipe: the released temperature ladder, a key of `temperature.RECIPES`.
        loss_weights: weight of every loss that `losses` may return; see `weights` for that of distillation.
        floor: what besides the temperature's reach keeps the cost up, said when a p is out of reach.
        epoch_splits: what is evaluated after every epoch, where there is such a split.
        fresh_image_size: pixels on a side where neither the configuration nor a checkpoint says them.
        config: the resolved configuration; whoever makes a task sets it before anything else.
    """

    name: str
    default_config: str
    recipe: str
    loss_weights = {"loss_task": 1.0, "loss_sim": 0.1}
    floor = ""
    epoch_splits = ("val", "test")
    fresh_image_size = 384
    config: dict

    def datasets(self, evaluate: bool) -> tuple[Dataset | None, Dataset | None, Dataset | None]:
        """Data for training (not needed where `evaluate`), validation and test; None where there is none."""
        from data import create_dataset  # only now, so that --help and a wrong flag are answered at once

        return create_dataset(self.name, self.config, evaluate)

    @property
    def weights(self) -> dict[str, float]:
        """Weights of all losses, the configured one of distillation with them."""
        return self.loss_weights | {"loss_distil": self.config["distill"]}

    def rule(self, model: nn.Module) -> dict:
        """By which rule a model prunes, as logs and checkpoints say it: `keep`, and of coverage what it alone has."""
        keep = self.config["keep"]
        own = {name: getattr(model.keep, name) for name in OF_COVERAGE} if keep == COVERAGE else {}
        return {"keep": keep, **own}

    def remarks(self, split: str, dataset: Dataset) -> Iterator[str]:
        """What about a split makes a score mean something else than one would think, a line for each."""
        return iter(())

    def download(self, name: str) -> None:
        """Fetches what --pretrained names, where that is a repository of the hub.

        Raises:
            UserError: it is something else, as what is here already, or cannot be fetched.
        """
        if Path(name).exists() or not hub.is_name(name):
            hub_too = "and repositories of the hub by their names, OWNER/NAME"
            what = f"CLIP's published models, not {name!r}, {hub_too}"
            raise UserError(f"--download fetches {what}; docs/tasks.md has other downloads")
        hub.fetch(name)

    @abstractmethod
    def build_model(self, config: dict, evaluate: bool) -> nn.Module:
        """The model with the weights of `config["pretrained"]`, or fresh ones where that is empty.

        Raises:
            UserError: sizes or a checkpoint that do not fit.
        """

    def read(self, path: str) -> dict:
        """What a checkpoint holds, see `checkpoint.read`."""
        return checkpoint.read(path)

    def adopt(self, evaluate: bool = False, own_size: bool = False) -> Stored:
        """Takes into the configuration what the checkpoint that it names says of its own architecture.

        Args:
            evaluate: whether its model is used as it is.
            own_size: whether images also get the checkpoint's size, where nobody chose another.

        Returns:
            How the model prunes.

        Raises:
            UserError: the checkpoint cannot be read, or is of a class for another task and cannot be evaluated at this.
        """
        path = self.config["pretrained"]
        other = task_of(path) if path and evaluate else ""
        if other and not (self.name.startswith(other) or self.name == "nlvr"):  # whose builder says it of its own
            raise UserError(
                f"{path} is a {class_of(path)}, a model of task {other}, and cannot be evaluated at {self.name}"
            )
        content = self.read(path) if path else {}
        stated = {"image_size": self.fresh_image_size} | (architecture.of(content) if content else {})
        self.config |= architecture.adopt(self.config, stated, path, own_size)
        return Stored.of(content)

    @abstractmethod
    def losses(self, model: nn.Module, batch: dict, temperature: float, progress: float) -> dict[str, Tensor]:
        """Named losses of a training batch; `model` may be data-parallel, `progress` counts epochs in fractions."""

    @abstractmethod
    def predict(self, model: nn.Module, batch: dict, temperature: float, trace: Trace) -> list:
        """One inference forward: one picklable result per sample; what every layer did goes into the trace."""

    def probe(self, model: nn.Module, batch: dict, temperature: float, trace: Trace) -> None:
        """The cheapest forward whose trace tells the cost; by default the inference itself."""
        self.predict(model, batch, temperature, trace)

    def answered_by(self, model: nn.Module, batch: dict) -> dict:
        """The batch with what the dense model itself answers, where `outputs` needs an answer; no label is read."""
        return batch

    @abstractmethod
    def outputs(self, model: nn.Module, batch: dict, temperature: float) -> Tensor:
        """What the model's answers are decided by, to see how far pruning moves it: [B, ...].

        Features of length 1, or probabilities; see `madtp.run.schedule`.
        """

    @abstractmethod
    def metrics(self, predictions: list[tuple[int, object]], dataset: Dataset) -> dict:
        """Scores from the (index, result) of every sample, in order.

        An entry "results" is no score but the list of predictions that --evaluate writes to `result/`.
        """

    def result_file(self, split: str) -> str:
        """The name, without ending, of the file for the predictions of a split."""
        return f"{self.name}_{split}"

    def asked(self, batch: dict, row: int) -> str:
        """What a row of a batch asks, for people to read."""
        return ""

    def answered(self, result: object) -> str:
        """What a result of `predict` says, for people to read."""
        return ""

    @abstractmethod
    def score(self, metrics: dict) -> float:
        """What the best checkpoint is chosen by; higher is better."""

    @abstractmethod
    def cost(self, model: nn.Module, trace: Trace) -> Cost:
        """GFLOPs of one sample, from the trace alone; of each, [B], where it counts their tokens apart."""

    def evaluate(self, model: nn.Module, loader: DataLoader, temperature: float) -> dict:
        """Metrics and cost over all processes: one forward per batch, nothing is exchanged before the last."""
        device, meter, predictions = device_of(model), CostMeter(lambda trace: self.cost(model, trace)), []
        for batch in progress_bar(loader, "evaluate"):
            batch = to_device(batch, device)
            with meter.forward(len(batch["index"])) as trace:
                results = self.predict(model, batch, temperature, trace)
            predictions += zip(batch["index"].tolist(), results, strict=True)
        dataset = loader.dataset.dataset
        return {**self.metrics(gather_predictions(predictions, len(dataset)), dataset), **meter.summary()}


def gather_predictions(predictions: list[tuple[int, object]], size: int) -> list[tuple[int, object]]:
    """The (index, result) pairs of all processes in the order of the data set, each of its `size` samples once."""
    everyone = gather_in_order(predictions)
    if [index for index, _ in everyone] != list(range(size)):
        raise RuntimeError(f"{len(everyone)} predictions do not cover the {size} samples exactly once")
    return everyone
