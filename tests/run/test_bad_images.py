"""An image that cannot be read stops a run by its name, or is replaced in training alone, always by the same others."""

import json
import pickle
import re
from collections import Counter

import pytest
import torch

from data import create_loader
from data.files import BadImage, read_image
from madtp.shared.weights import checkpoint
from tests.processes import run
from tests.run.test_resume import Mortal, equal, result
from tests.toy import Points, Toy
from utils import UserError

BAD = {3, 4, 20}
TOY = "{batch_size_train: 8, batch_size_test: 8, max_epoch: 2, init_lr: 0.05, calibration_batches: 3}"
BATCHES = 6  # of an epoch


class SomeBad(Points):
    """Points of which some are pictures that cannot be read."""

    def __init__(self, size, seed, bad=BAD):
        super().__init__(size, seed)
        self.bad = bad

    def __getitem__(self, index):
        torch.rand(())  # an augmentation may have drawn before the picture fails
        if index in self.bad:
            raise BadImage(f"picture{index}.png: unreadable image")
        return super().__getitem__(index)


class BadTraining(Mortal):
    """A toy task with bad pictures to train on."""

    def datasets(self, evaluate):
        _, val, test = super().datasets(evaluate)
        return SomeBad(48, 0), val, test


class BadValidation(Toy):
    """A toy task with bad pictures to evaluate on."""

    def datasets(self, evaluate):
        return Points(48, 0), SomeBad(37, 1), Points(20, 2)


@pytest.fixture
def flags(tmp_path):
    (tmp_path / "toy.yaml").write_text(TOY)
    common = ["--config", tmp_path / "toy.yaml", "--device", "cpu", "--p", 0.3, "--save_steps", 1]
    return lambda out, *more: [*common, "--output_dir", tmp_path / out, "--num_workers", 0, *more]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_training_stops_with_the_name_and_the_way_out(flags, capfd, num_workers):
    assert run(BadTraining(), flags=flags("out", "--num_workers", num_workers)) == [2]
    error = capfd.readouterr().err
    assert re.fullmatch(r"error: picture\d+\.png: unreadable image, or train without it: --bad_images skip\n", error)


@pytest.mark.parametrize("more", [[], ["--bad_images", "skip"]])
def test_evaluation_stops_whatever_training_may_do(flags, capfd, more):
    assert run(BadValidation(), flags=flags("out", *more)) == [2]
    assert re.fullmatch(r"error: picture\d+\.png: unreadable image\n", capfd.readouterr().err)


def test_training_goes_on_without_and_counts(tmp_path, flags):
    assert run(BadTraining(), flags=flags("out", "--bad_images", "skip")) == [0]
    records = [json.loads(line) for line in (tmp_path / "out" / "log.txt").read_text().splitlines()]
    log = (tmp_path / "out" / "train.log").read_text()
    counts = [int(count) for count in re.findall(r"(\d+) bad images, 3 different, were replaced by others:", log)]
    assert [record["bad_images"] for record in records] == counts and min(counts) >= 3
    named = re.findall(r"picture(\d+)\.png: unreadable image \((\d+) times\)", log)
    assert [int(number) for number, _ in named] == sorted(BAD, key=str) * 2
    assert sum(int(times) for _, times in named) == sum(counts)


def test_only_one_process_speaks_of_them(flags, capfd):
    assert run(BadTraining(), BadTraining(), flags=flags("out", "--bad_images", "skip", "--epoch", 1)) == [0, 0]
    captured = capfd.readouterr()
    assert captured.out.count("bad images, 3 different") == 1 and captured.err == ""


@pytest.mark.parametrize("processes", [1, 2])
def test_killed_and_resumed_the_same_ones_take_their_place(tmp_path, flags, processes):
    more = ["--bad_images", "skip", "--set", f"batch_size_train={8 // processes}"]
    assert run(*[BadTraining() for _ in range(processes)], flags=flags("whole", *more)) == [0] * processes
    tasks = [BadTraining("batch", BATCHES + 2), *[BadTraining() for _ in range(processes - 1)]]
    assert run(*tasks, flags=flags("killed", *more))[0] == -9
    stopped = checkpoint.read(tmp_path / "killed/checkpoint_last.pth")
    met = [sum(process["bad_images"].values()) for process in stopped["processes"]]
    assert any(met) and len({*met}) == processes, "some were met before, by each process another number"
    assert run(*[BadTraining() for _ in range(processes)], flags=flags("killed", *more, "--resume")) == [0] * processes
    assert equal(result(tmp_path / "killed"), result(tmp_path / "whole"))


def test_a_run_that_stopped_goes_on_without(tmp_path, flags):
    assert run(BadTraining(), flags=flags("out")) == [2]
    assert run(BadTraining(), flags=flags("out", "--resume", "--bad_images", "skip")) == [0]
    assert run(BadTraining(), flags=flags("whole", "--bad_images", "skip")) == [0]
    assert equal(result(tmp_path / "out"), result(tmp_path / "whole"))


def samples(dataset, epoch=0, batch_size=8, start=0, **options):
    """The batches of an epoch as (place in the permutation -> index, point), and what was met on the way."""
    loader = create_loader(dataset, batch_size, True, seed=5, replace=True, **options)
    loader.batch_sampler.set_epoch(epoch, start)
    keys = [index for batch in loader.batch_sampler for _, index in batch]
    found, met = [], Counter()
    for batch in loader:
        met.update(batch["bad_images"])
        found += zip(batch["index"].tolist(), batch["point"].tolist(), strict=True)
    return dict(zip(keys, found, strict=True)), met


def test_replacements_do_not_depend_on_workers_processes_or_resumption():
    dataset = SomeBad(48, 0)
    whole, met = samples(dataset)
    assert (whole, met) == samples(dataset, num_workers=2)
    halves = [samples(dataset, batch_size=4, rank=rank, world=2) for rank in range(2)]
    assert halves[0][0] | halves[1][0] == whole and halves[0][1] + halves[1][1] == met
    resumed, _ = samples(dataset, start=4)
    assert len(resumed) == 16 and resumed.items() <= whole.items()
    others, _ = samples(dataset, epoch=1)
    assert [others[index] for index in BAD] != [whole[index] for index in BAD], "another epoch draws others"


def test_only_bad_ones_are_replaced_by_good_ones():
    dataset, plain = SomeBad(48, 0), Points(48, 0)
    found, met = samples(dataset)
    for key, (index, point) in found.items():
        assert point == plain.points[index].tolist() and index not in BAD
        assert key in BAD or key == index
    assert {int(re.search(r"\d+", fault)[0]) for fault in met} == BAD


def test_a_folder_without_images_stops_all_the_same():
    with pytest.raises(UserError, match=r"picture\d+\.png.*and so with 10 others drawn in its place"):
        samples(SomeBad(48, 0, bad=set(range(48))))


@pytest.mark.parametrize(
    "bad, way_out",
    [
        (BAD, r", or train without it: --bad_images skip"),
        (set(range(48)), r"; nor can 10 of 10 others be read"),
        (set(range(46)), r"; nor can \d+ of 10 others be read"),
    ],
)
def test_doing_without_is_offered_where_it_helps(bad, way_out):
    loader = create_loader(SomeBad(48, 0, bad), 8, True, seed=5)
    with pytest.raises(BadImage, match=rf"picture\d+\.png: unreadable image{way_out}$"):
        list(loader)


def test_an_image_is_one_whichever_entries_name_it(tmp_path):
    (tmp_path / "cut.png").write_bytes(b"cut")
    for name in ("cut.png", "absent.png"):
        errors = []
        for entry in range(2):
            with pytest.raises(BadImage, match=f"entry {entry}") as error:
                read_image(tmp_path, name, f"file.json, entry {entry}")
            errors.append(pickle.loads(pickle.dumps(error.value)))
        assert str(errors[0]) != str(errors[1]) and errors[0].fault == errors[1].fault and name in errors[0].fault
