"""What an evaluation cost, against a list of its samples; and the batches on which a temperature is measured."""

import time

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from madtp.cost import measure
from madtp.cost.measure import CalibrationSample, CostMeter
from madtp.cost.schedule import squared_distance
from tests.golden.fill import seeded

BATCHES = [(3, 30, [9, 4, 7]), (5, 20, 11), (2, 30, [30, 16]), (7, 40, 6), (1, 24, [24])]  # samples, tokens, those left


def spent(trace):
    """Tokens left of both layers."""
    return sum(layer.left for layer in trace.layers["image"])


def written_down(meter, batches=BATCHES):
    for samples, entered, left in batches:
        with meter.forward(samples) as trace:
            left = left if isinstance(left, int) else np.array(left)
            trace.add("image", entered, (entered + left) // 2, True)
            trace.add("image", (entered + left) // 2, left, True)
    return meter


def by_sample(batches=BATCHES):
    """Tokens that entered, and those left by both layers, of every sample by itself."""
    lefts = [
        (entered, left)
        for samples, entered, lefts in batches
        for left in ([lefts] * samples if isinstance(lefts, int) else lefts)
    ]
    return [(entered, (entered + left) // 2, left) for entered, left in lefts]


def at_rank(values, share):
    """The smallest value that this share of the values do not exceed."""
    return next(value for value in sorted(values) if sum(other <= value for other in values) >= share * len(values))


def test_a_summary_is_that_of_the_samples_one_by_one():
    found, samples = written_down(CostMeter(spent)).summary(), by_sample()
    costs, dense = [first + second for _, first, second in samples], [2 * entered for entered, _, _ in samples]
    assert found["gflops"] == pytest.approx(sum(costs) / len(samples))
    assert found["gflops_dense"] == pytest.approx(sum(dense) / len(samples))
    assert found["percent"] == pytest.approx(100 * sum(costs) / sum(dense))
    shares = [100 * cost / whole for cost, whole in zip(costs, dense, strict=True)]
    columns = [list(column) for column in zip(*samples, strict=True)][1:]
    assert found["tokens"]["image"] == pytest.approx([sum(column) / len(samples) for column in columns])
    for end, share in (("p10", 0.1), ("p90", 0.9)):
        assert found[f"percent_{end}"] == at_rank(shares, share)
        assert found[f"tokens_{end}"]["image"] == [at_rank(column, share) for column in columns]


@pytest.mark.parametrize("count", [1, 4, 10, 11])
def test_percentiles_are_among_the_numbers(count):
    for rank in (10, 50, 90, 100):
        numbers = [3 * number for number in range(count)]
        assert measure.percentile(dict.fromkeys(numbers, 1), rank) == at_rank(numbers, rank / 100)


def test_processes_count_together_and_the_slowest_says_the_time(monkeypatch):
    meters = [written_down(CostMeter(spent), batches) for batches in (BATCHES[:2], BATCHES[2:])]
    for meter, seconds in zip(meters, (2.0, 3.0), strict=True):
        meter.seconds = seconds
    one = written_down(CostMeter(spent))
    one.seconds = 3.0
    gathered = [(meter.costs, meter.tokens, meter.seconds) for meter in meters]
    expected = one.summary()
    monkeypatch.setattr(measure, "all_gather_objects", lambda mine: gathered)
    assert meters[0].summary() == expected and expected["samples_per_second"] == pytest.approx(18 / 3)


def test_time_adds_up():
    meter = CostMeter(spent)
    for _ in range(3):
        with meter.forward(1) as trace:
            trace.add("image", 2, 2, False)
            time.sleep(0.01)
    assert meter.seconds >= 0.03


class Numbers(Dataset):
    """Numbers, whose number of tokens each decides what they cost."""

    def __len__(self):
        return 23

    def __getitem__(self, index):
        return {"index": torch.tensor(index)}


class Halving:
    """A task whose model keeps half of the tokens of a sample, and none of every third one's."""

    def probe(self, model, batch, temperature, trace):
        entered = 10 + batch["index"].numpy()
        left = np.where(batch["index"] % 3 == 0, 0, entered // 2) if temperature else entered
        trace.add("image", entered, left, temperature > 0)

    def cost(self, model, trace):
        return trace.layers["image"][0].left


def loader():
    return DataLoader(Numbers(), batch_size=4)  # of the last batch one sample is missing


def numbers(sample):
    return [batch["index"].tolist() for batch in sample.batches]


@pytest.mark.parametrize("count", [1, 2, 3, 5, 6, 100])
def test_calibration_batches_are_evenly_spread(count):
    chosen = [batch[0] // 4 for batch in numbers(CalibrationSample(loader(), count))]
    assert len(chosen) == min(count, 6) and chosen == sorted(set(chosen))
    gaps = np.diff([*chosen, 6 + chosen[0]])  # round the whole
    assert gaps.max() - gaps.min() <= 1


@pytest.mark.parametrize("count", [2, 3, 5])
def test_any_number_of_processes_share_the_same_batches(monkeypatch, count):
    expected, found = numbers(CalibrationSample(loader(), count)), []
    for rank in range(2):
        own = DataLoader(Numbers(), batch_sampler=list(loader().batch_sampler)[rank::2])
        monkeypatch.setattr(measure, "rank", lambda rank=rank: rank)
        monkeypatch.setattr(measure, "world_size", lambda: 2)
        monkeypatch.setattr(measure, "all_reduce_sum", lambda value: 6)
        found += numbers(CalibrationSample(own, count))
    assert sorted(found) == expected


def test_the_cost_is_that_of_all_samples_together(monkeypatch):
    sample, task, model = CalibrationSample(loader(), 100), Halving(), nn.Linear(1, 1)
    entered = [10 + index for index in range(23)]
    left = [0 if index % 3 == 0 else tokens // 2 for index, tokens in enumerate(entered)]
    assert sample.cost(task, model, 1.0) == pytest.approx(sum(left) / sum(entered))
    assert sample.cost(task, model, 0.0) == 1.0
    others = iter([50.0, 70.0])  # of another process
    monkeypatch.setattr(measure, "all_reduce_sum", lambda mine: mine + next(others))
    assert sample.cost(task, model, 1.0) == pytest.approx((sum(left) + 50) / (sum(entered) + 70))


def test_calibration_leaves_the_random_numbers_of_training_alone():
    before = torch.get_rng_state()
    assert numbers(CalibrationSample(loader(), 3))
    assert torch.get_rng_state().equal(before)


def test_distances_of_outputs_are_sums_over_all_numbers_in_double_precision():
    one, other = seeded(1, 2, 3, 4), seeded(2, 2, 3, 4)
    pairs = zip(one.flatten().tolist(), other.flatten().tolist(), strict=True)
    assert squared_distance(one, other) == pytest.approx(sum((x - y) ** 2 for x, y in pairs), rel=1e-12)
