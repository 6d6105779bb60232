"""A checkpoint that answers, whatever the task: which task it is for, its model, and forward passes with their cost."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from clip.download import available_models
from data.vqa_dataset import listed, read_answer_list
from madtp.cost.measure import CostMeter, to_device, traces
from madtp.cost.temperature import calibrate
from madtp.cost.trace import Trace
from madtp.look.recording import TowerImportance, recording
from madtp.look.scripts import task_named
from madtp.method.errors import UserError
from madtp.method.rules import COVERAGE, knob, setting
from madtp.run import config as configuration
from madtp.run.clone import own_file
from madtp.run.flags import check_device
from madtp.run.precision import autocast, precision
from madtp.run.schedule import find_shape, set_shape
from madtp.run.task import Task
from madtp.run.texts import refuse_long_texts
from madtp.shared.files import no_checkpoint
from madtp.shared.inference import prepare
from madtp.shared.launch import take_gpu
from madtp.shared.run_files import CONFIG
from madtp.shared.weights.architecture import shown
from madtp.shared.weights.folders import located
from madtp.shared.weights.stored import Stored
from madtp.shared.weights.transformers_models import check_kind, task_of
from utils import set_seed

logger = logging.getLogger(__name__)


class Forward(NamedTuple):
    """One forward pass.

    Attributes:
        results: one per sample, of `Task.predict` or, of retrieval, a score for every text.
        trace: what the layers did.
        seconds: what it took.
        towers: the importance that the towers recorded, in the order of the trace's; empty unless asked for.
    """

    results: list
    trace: Trace
    seconds: float
    towers: list[TowerImportance]


class Predictor:
    """A model with its task, ready to answer.

    Args:
        task: whose `config` is set.
        model: built for evaluation, on its device.
        stored: how it prunes.
        dtype: of mixed precision, float32 for none.
    """

    def __init__(self, task: Task, model: nn.Module, stored: Stored, dtype: torch.dtype):
        self.task, self.model, self.stored, self.dtype = task, model.eval(), stored, dtype
        self.retrieves = task.name.startswith("retrieval")
        self.device = next(model.parameters()).device
        prepare(model, dtype)

    @property
    def rule(self) -> dict:
        """By which rule the model prunes."""
        return self.task.rule(self.model)

    def prunes_at(self, temperature: float) -> Stored:
        """How the model prunes at a temperature, by the rule that it is asked by."""
        return self.stored._replace(temperature=temperature, keep=self.rule["keep"])

    def at(self, temperature: float) -> str:
        """How much is pruned at a temperature, for people to read."""
        return setting(temperature=temperature, **self.rule)

    @contextmanager
    def inference(self) -> Iterator[nn.Module]:
        """The model without gradients, in mixed precision."""
        with torch.inference_mode(), autocast(self.dtype, self.device):
            yield self.model

    def run(self, batch: dict, temperature: float, record: bool = False) -> Forward:
        """Answers a batch; `record` also keeps what the importance of its tokens is made of."""
        batch, meter = to_device(batch, self.device), CostMeter(lambda trace: 0.0)
        watching = recording(self.model) if record else nullcontext([])
        with self.inference() as model, watching as towers, meter.forward(len(batch["index"])) as trace:
            answer = self.task.scores if self.retrieves else self.task.predict
            results = answer(model, batch, temperature, trace)
        return Forward(list(results), trace, meter.seconds, towers)

    def words(self, batch: dict) -> list[list[str]]:
        """The prunable tokens of a batch's texts, as the tokenizer cuts them; none of captioning."""
        texts = next((batch[name] for name in ("text", "question", "caption") if name in batch), [])
        if self.task.name == "retrieval_clip":
            from clip.tokenizer import words

            return [words(text) for text in texts]
        tokenizer = self.model.tokenizer
        return [tokenizer.convert_ids_to_tokens(tokenizer(text).input_ids[1:]) for text in texts]

    def costs(self, trace: Trace, samples: int) -> tuple[np.ndarray, np.ndarray]:
        """GFLOPs of each sample [B], and what they would be without pruning."""
        trace = texts_averaged(trace) if self.retrieves else trace
        spent, dense = (self.task.cost(self.model, one) for one in (trace, trace.dense()))
        return np.broadcast_to(spent, samples), np.broadcast_to(dense, samples)

    def tokens(self, trace: Trace, row: int, samples: int) -> dict[str, list[float]]:
        """For each tower the tokens of a sample that entered it and that every layer left, the class token included.

        Retrieval's texts, and the pairs of a picture with them, count as their mean.
        """
        trace = texts_averaged(trace) if self.retrieves else trace

        def own(tower: str, counts: int | np.ndarray) -> float:
            if np.ndim(counts):
                counts = counts.reshape(samples, -1)[row].mean() if tower == "multimodal" else counts[row]
            return float(counts)

        return {
            tower: [own(tower, counts) for counts in (rows[0].entered, *(layer.left for layer in rows))]
            for tower, rows in trace.layers.items()
        }

    def share(self, batches: Sequence[dict], temperature: float, known: list[Trace] | None = None) -> float:
        """Share of dense that these batches cost at a temperature.

        Args:
            batches: to be answered.
            temperature: or amount.
            known: what the dense model does to them, see `madtp.cost.measure.traces`.
        """
        spent = dense = 0.0
        with self.inference() as model:
            found = traces(self.task, model, batches, temperature, [] if known is None else known)
            for batch, trace in zip(batches, found, strict=True):
                costs = self.costs(trace, len(batch["index"]))
                spent, dense = spent + costs[0].sum(), dense + costs[1].sum()
        return float(spent / dense)

    def temperature_for(self, batches: list[dict], p: float) -> float:
        """The temperature at which these batches cost 1 - p of dense, or as close to it as their tokens allow.

        A schedule that nobody has set goes by these batches, too.

        Raises:
            RatioOutOfReach: no temperature does.
        """
        if p == 0:
            return 0.0
        known: list[Trace] = []
        if self.rule["keep"] == COVERAGE and self.task.config["shape"] is None:
            set_shape(self.model, find_shape(self, _Asked(self, batches, known), 1 - p))
        start, named = self.stored.temperature or 1.0, knob(self.rule["keep"])
        return calibrate(lambda amount: self.share(batches, amount, known), 1 - p, start, tolerance=0.01, knob=named)


class _Asked(NamedTuple):
    """Own batches as a sample to find a schedule on."""

    predictor: Predictor
    batches: list[dict]
    known: list[Trace]

    def cost(self, task: Task, model: nn.Module, temperature: float) -> float:
        return self.predictor.share(self.batches, temperature, self.known)


def texts_averaged(trace: Trace) -> Trace:
    """The trace of images and texts that are not one to one, its texts counted as their mean."""
    texts = [layer._replace(entered=np.mean(layer.entered), left=np.mean(layer.left)) for layer in trace.layers["text"]]
    return Trace({**trace.layers, "text": texts})


def load(
    checkpoint: str, task: str = "", config: str = "", device: str = "", assignments: Iterable[str] = ()
) -> Predictor:
    """The model of a checkpoint, ready to answer.

    Args:
        checkpoint: dense or compressed, BLIP's, CLIP's, MADTP's, transformers' or ours; or a run's folder.
        task: as `task_named` takes it; if empty that of transformers' class, or the configuration's.
        config: a YAML file; by default the one beside the checkpoint, or else the task's own, whose image size then
            gives way to the checkpoint's.
        device: by default the GPU, if there is one.
        assignments: KEY=VALUE, keys of the configuration to override.

    Raises:
        UserError: a file is missing or does not fit.
    """
    if device:
        check_device(device)
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    take_gpu(device)
    chosen, model, stored = built(checkpoint, task, config, assignments)
    if chosen.name == "vqa":
        ranks = chosen.config["inference"] == "rank"
        root = own_file(chosen.config["ann_root"])
        answers = read_answer_list(root) if ranks else []
        refuse_long_texts(model, listed(root, answers))
        chosen.choose_from(answers, model.to(device))
    amp = "off" if chosen.config["amp"] == "off" else "auto"  # else what the run was trained in may be slow here
    return Predictor(chosen, model.to(device), stored, precision(amp, device))


def built(checkpoint: str, task: str, config: str, assignments: Iterable[str]) -> tuple[Task, nn.Module, Stored]:
    """The task of a checkpoint, its model and how it prunes; see `load`.

    Raises:
        UserError: a file is missing or does not fit, or nothing says what the checkpoint is for.
    """
    set_seed(0)  # guidance that a dense checkpoint lacks is drawn, and drawn alike every time
    published = checkpoint in available_models()
    checkpoint = checkpoint if published else str(located(checkpoint))
    config = config or beside(checkpoint)
    task = task or ("retrieval_clip" if published else task_of(checkpoint))
    if not (task or config):
        checkpoint_there(checkpoint)
        raise UserError(f"{checkpoint}: no config.yaml beside it; say what it is with --task or --config")
    chosen = task_named(exact_name(task or configuration.task_of(config), checkpoint))
    chosen.config = configuration.resolve(config or own_file(chosen.default_config), chosen.name, assignments)
    chosen.config["pretrained"] = checkpoint
    named = configuration.named(assignments)
    asked = {name: chosen.config[name] for name in sorted(named & chosen.config.keys())}
    stored = chosen.adopt(evaluate=True, own_size=not config and "image_size" not in named)
    say_overruled(asked, chosen.config, checkpoint)
    stored = asked_by_rule(stored, chosen.config, named)
    return chosen, chosen.build_model(chosen.config, evaluate=True), stored


def checkpoint_there(checkpoint: str) -> None:
    """Refuses what is no checkpoint, or is one of a class that no task is for, which no --task would mend.

    Raises:
        UserError: says which of the two.
    """
    if not Path(checkpoint).exists():
        raise no_checkpoint(checkpoint, "--checkpoint")
    if Path(checkpoint).is_dir():
        check_kind(checkpoint)


def say_overruled(asked: dict, config: dict, checkpoint: str) -> None:
    """Says which values that a user named gave way to the checkpoint, whose weights are of sizes of their own."""
    for name, value in asked.items():
        if value and config[name] != value:
            logger.warning("--set %s has no effect: %s says %s %s", name, checkpoint, name, shown(config[name]))


def asked_by_rule(stored: Stored, config: dict, named: set[str]) -> Stored:
    """How a model prunes here: as it was trained to, unless it is dense or the user named another rule or shape.

    The configuration gets the rule. The temperature is None where it is that of a rule which has another kind of it.
    """
    config |= stored.rule(config["keep"] if "keep" in named else None, 0.0, config, named)
    keep = config["keep"]
    another = stored.temperature > 0 and (keep == COVERAGE) != (stored.keep == COVERAGE)
    return stored._replace(temperature=None if another else stored.temperature)


def beside(checkpoint: str) -> str:
    """The configuration that a run left beside its checkpoint, or an empty string."""
    path = Path(checkpoint)
    path = (path if path.is_dir() else path.parent) / CONFIG
    return str(path) if path.is_file() else ""


def exact_name(task: str, checkpoint: str) -> str:
    """The task, CLIP's retrieval where the checkpoint is a CLIP."""
    if task != "retrieval":
        return task
    from clip.clip import locate, read

    return "retrieval_clip" if "visual.conv1.weight" in read(locate(checkpoint))["model"] else task
