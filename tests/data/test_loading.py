"""Loaders: which samples a batch holds, and how the workers that read them end."""

import random
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data.loading import BatchSampler, SeededDataset
from utils import UserError

sizes = st.integers(1, 60)


@given(size=sizes, batch=st.integers(1, 9), world=st.integers(1, 5), epoch=st.integers(0, 3))
def test_evaluation_covers_every_sample_once_in_the_same_batches(size, batch, world, epoch):
    alone = [[n for n in range(size)][start : start + batch] for start in range(0, size, batch)]
    dealt = []
    for rank in range(world):
        sampler = BatchSampler(size, batch, train=False, rank=rank, world=world)
        sampler.set_epoch(epoch)
        own = [[index for _, index in one] for one in sampler]
        assert len(own) == len(sampler) and own == alone[rank::world]
        dealt += own
    assert sorted(sum(dealt, [])) == list(range(size))


@given(size=sizes, batch=st.integers(1, 9), world=st.integers(1, 5), seed=st.integers(0, 2**40), data=st.data())
def test_training_takes_equal_steps_and_resumes(size, batch, world, seed, data):
    if size < batch * world:
        with pytest.raises(UserError, match=str(size)):
            BatchSampler(size, batch, train=True, world=world)
        return
    epoch, start = data.draw(st.integers(0, 5)), data.draw(st.integers(0, size // (batch * world)))
    seen = []
    for rank in range(world):
        sampler = BatchSampler(size, batch, True, seed, rank, world)
        sampler.set_epoch(epoch)
        whole = list(sampler)
        assert len(whole) == len(sampler) == size // (batch * world)
        assert all(len(one) == batch and {of for of, _ in one} == {epoch} for one in whole)
        sampler.set_epoch(epoch, start)
        assert list(sampler) == whole[start:]
        short = BatchSampler(size, batch, True, seed, rank, world, steps=3)
        short.set_epoch(epoch, min(start, 3))
        assert len(short) == len(whole[:3]) and list(short) == whole[min(start, 3) : 3]
        seen += [index for one in whole for _, index in one]
    assert len(set(seen)) == len(seen)


def test_every_epoch_has_an_order_of_its_own():
    sampler = BatchSampler(100, 10, train=True, seed=1)
    orders = []
    for epoch in range(3):
        sampler.set_epoch(epoch)
        orders.append([index for batch in sampler for _, index in batch])
        assert sorted(orders[-1]) == list(range(100)) != orders[-1]
    assert orders[0] != orders[1] != orders[2] != orders[0]
    assert [index for batch in BatchSampler(100, 10, train=True, seed=2) for _, index in batch] != orders[0]


class Draws(torch.utils.data.Dataset):
    """Samples that are nothing but random numbers."""

    def __len__(self):
        return 20

    def __getitem__(self, index):
        return {"drawn": (torch.rand(()).item(), random.random())}


def test_every_sample_of_every_epoch_has_random_numbers_of_its_own():
    """From PyTorch and from Python, the same ones whenever it is read, and nobody else's numbers move on."""
    torch.manual_seed(3)
    random.seed(3)
    expected = torch.rand(()).item(), random.random()
    torch.manual_seed(3)
    random.seed(3)
    keys = [(seed, epoch, index) for seed in (1, 2) for epoch in range(3) for index in range(20)]
    drawn = [SeededDataset(Draws(), seed)[epoch, index]["drawn"] for seed, epoch, index in keys]
    assert all(len(set(numbers)) == len(keys) for numbers in zip(*drawn, strict=True))
    assert [SeededDataset(Draws(), seed)[epoch, index]["drawn"] for seed, epoch, index in keys] == drawn
    assert (torch.rand(()).item(), random.random()) == expected


CRASH = """
import torch
from data.loading import collate, create_loader

class Numbers(torch.utils.data.Dataset):
    collate = staticmethod(collate)
    def __len__(self): return 64
    def __getitem__(self, index): return {"number": torch.tensor(index)}

def crash():
    for batch in create_loader(Numbers(), 4, True, num_workers=2):
        raise RuntimeError("half-way")

crash()
"""


def test_a_crash_ends_the_workers():
    """They ignore the signal by which PyTorch would end them, and waiting for them would never end."""
    done = subprocess.run([sys.executable, "-c", CRASH], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.rstrip().endswith("RuntimeError: half-way")
