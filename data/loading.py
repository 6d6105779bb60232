"""How samples become batches: which ones, in which order, on which process, and with which random numbers.

An augmented sample depends on the seed, the epoch and its index alone, not on workers, processes or resumption.
"""

import random
import warnings
from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from data.files import BadImage
from data.workers import batches_of, begin
from utils import UserError

REPLACEMENTS = 10  # tried for a sample with a bad image

warnings.filterwarnings("ignore", message="This DataLoader will create")  # more workers than processors


class BatchSampler:
    """Batches of `(epoch, index)` for one process of `world`.

    Training goes through a permutation that depends on seed and epoch, in equally many full batches on every process.
    Evaluation cuts the data set into consecutive batches and deals them out in turn, each sample once: a batch holds
    the same samples however many processes share the work. `steps` ends an epoch of training early; 0 goes through all.

    Raises:
        UserError: not one full batch to train on for every process.
    """

    def __init__(
        self, size: int, batch_size: int, train: bool, seed: int = 0, rank: int = 0, world: int = 1, steps: int = 0
    ):
        if train and size < batch_size * world:
            raise UserError(
                f"{size} training samples are less than one batch of {batch_size} on {world} process(es); "
                "lower the batch size"
            )
        self.size, self.batch_size, self.train = size, batch_size, train
        self.seed, self.rank, self.world = seed, rank, world
        self.steps = steps
        self.epoch, self.start_step = 0, 0

    def set_epoch(self, epoch: int, start_step: int = 0) -> None:
        """Chooses the permutation, and the batch to begin with when an epoch is resumed."""
        self.epoch, self.start_step = epoch, start_step

    def __len__(self) -> int:
        """Batches of this process in a whole epoch, also when it is entered at a later step."""
        if self.train:
            whole = self.size // (self.batch_size * self.world)
            return min(whole, self.steps) if self.steps else whole
        return len(range(self.rank * self.batch_size, self.size, self.batch_size * self.world))

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        if self.train:
            generator = torch.Generator().manual_seed(_mix(self.seed, self.epoch))
            order = torch.randperm(self.size, generator=generator).tolist()
        else:
            order = range(self.size)
        for step in range(self.start_step, len(self)):
            start = (step * self.world + self.rank) * self.batch_size
            yield [(self.epoch, index) for index in order[start : start + self.batch_size]]


class SeededDataset(Dataset):
    """Reads samples of `dataset` by `(epoch, index)`, with random numbers of their own for each.

    A `UserError` is returned instead of raised: a worker's exception would reach the user as a traceback.

    Args:
        dataset: of samples, each a dict; they get an entry "bad_images", what was wrong with those they replace.
        seed: of every random number.
        train: whether an image that cannot be read may be done without.
        replace: if so, put another, drawn by the sample's own random numbers, in the place of one with a bad image.
    """

    def __init__(self, dataset: Dataset, seed: int, train: bool = False, replace: bool = False):
        self.dataset, self.seed, self.train, self.replace = dataset, seed, train, replace

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: tuple[int, int]) -> dict | UserError:
        epoch, index = key
        seed = _mix(self.seed, epoch, index)
        python_state = random.getstate()
        try:
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed the GPUs as well
                random.seed(seed)
                return self._sample(index)
        except UserError as error:
            return error
        finally:
            random.setstate(python_state)

    def _sample(self, index: int) -> dict:
        bad_images = []
        while True:
            try:
                return {**self.dataset[index], "bad_images": bad_images}
            except BadImage as error:
                if not self.train:
                    raise
                if not self.replace:
                    raise BadImage(f"{error}{self._way_out()}") from error
                if len(bad_images) == REPLACEMENTS:
                    raise UserError(f"{error}; and so with {REPLACEMENTS} others drawn in its place") from error
                bad_images.append(error.fault)
                index = random.randrange(len(self))

    def _way_out(self) -> str:
        """Whether training could do without an image: only if most others can be read."""
        others, bad = range(REPLACEMENTS), 0
        for _ in others:
            try:
                self.dataset[random.randrange(len(self))]
            except BadImage:
                bad += 1
        if bad > len(others) / 2:
            return f"; nor can {bad} of {len(others)} others be read"
        return ", or train without it: --bad_images skip"


class Loader(DataLoader):
    """A DataLoader that raises, in this process, the `UserError` that a worker met, and whose workers end with it."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, worker_init_fn=begin, **options)

    def __iter__(self) -> Iterator[dict]:
        return batches_of(self, super().__iter__)


class Collate:
    """Applies a data set's own `collate`, unless a sample is an error: then that error is the batch.

    The batch has an entry "bad_images" more: what was wrong with those that samples of it replace.
    """

    def __init__(self, collate):
        self.collate = collate

    def __call__(self, samples: list[dict | UserError]) -> dict | UserError:
        if error := next((sample for sample in samples if isinstance(sample, UserError)), None):
            return error
        bad_images = [fault for sample in samples for fault in sample["bad_images"]]
        return {**self.collate(samples), "bad_images": bad_images}


def collate(samples: list[dict]) -> dict:
    """Gathers samples into a batch: tensors are stacked along a new first axis, anything else is listed."""
    batch = {key: [sample[key] for sample in samples] for key in samples[0]}
    return {key: torch.stack(column) if torch.is_tensor(column[0]) else column for key, column in batch.items()}


def create_loader(
    dataset: Dataset,
    batch_size: int,
    train: bool,
    seed: int = 0,
    num_workers: int = 0,
    rank: int = 0,
    world: int = 1,
    steps: int = 0,
    replace: bool = False,
    pin: bool = False,
) -> DataLoader:
    """Returns the batches of one process. `loader.batch_sampler.set_epoch(epoch, start_step)` says where to begin.

    Args:
        dataset: one with a `collate`; it stays reachable as `loader.dataset.dataset`.
        batch_size: samples on each process.
        train: shuffled, with equal steps on every process; otherwise in order, each sample once.
        steps: batches of a training epoch at most; 0 for all there are.
        replace: while training, put other samples in the place of those whose images cannot be read.
        pin: keep batches in memory that a GPU reads by itself.
    """
    return Loader(
        SeededDataset(dataset, seed, train, replace),
        batch_sampler=BatchSampler(len(dataset), batch_size, train, seed, rank, world, steps),
        collate_fn=Collate(dataset.collate),
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        pin_memory=pin,
        generator=torch.Generator(),  # else every pass draws a number that nobody uses from the global one
    )


def _mix(*numbers: int) -> int:
    """One seed out of several numbers; neighbors get unrelated ones."""
    state = np.random.SeedSequence([number % 2**32 for number in numbers]).generate_state(1, np.uint64)
    return int(state[0]) >> 1
