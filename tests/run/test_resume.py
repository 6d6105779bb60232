"""A run that was killed at any moment and resumed ends, bit for bit, like one that never stopped."""

import json
import os
import random
import signal
import time

import pytest
import torch

import models.blip_retrieval  # noqa: F401 - here, not in every process that a test forks
from compress_retrieval_dtp import RetrievalCOCO
from madtp.run.resume import random_state, restore_random_state
from madtp.shared.weights import checkpoint
from tests.miniature import make_data, write_config
from tests.processes import run
from tests.toy import Toy

BATCHES, EPOCHS = 6, 3  # of the toy
WRITES = 17  # files that a run replaces: config, environment, an empty log; per epoch 4 checkpoints or so and the log


class Mortal(Toy):
    """A toy task that gets a signal before some batch of its life, or around some replacement of a file."""

    def __init__(self, moment="batch", number=None, signal=signal.SIGKILL):
        self.moment, self.number, self.signal, self.batches = moment, number, signal, 0

    def datasets(self, evaluate):
        replace, numbers = os.replace, iter(range(1000))

        def replace_or_die(source, target):
            number = next(numbers)
            self.die("before", number)
            replace(source, target)
            self.die("after", number)

        os.replace = replace_or_die  # in this process, which is forked for one run
        return super().datasets(evaluate)

    def losses(self, *args, **keywords):
        self.die("batch", self.batches)
        self.batches += 1
        return super().losses(*args, **keywords)

    def die(self, moment, number):
        if (moment, number) == (self.moment, self.number):
            os.kill(os.getpid(), self.signal)


@pytest.fixture
def flags(tmp_path):
    """The flags of a toy run into some folder, the same run for any number of processes."""

    def flags(out, processes=1, *more):
        config = tmp_path / f"toy{processes}.yaml"
        sizes = f"batch_size_train: {8 // processes}, batch_size_test: 8, max_epoch: {EPOCHS}"
        config.write_text(f"{{{sizes}, init_lr: 0.05, calibration_batches: 3, print_freq: 4}}")
        common = ["--config", config, "--output_dir", tmp_path / out, "--device", "cpu", "--num_workers", "0"]
        return [*common, "--p", 0.4, "--save_steps", 2, *more]

    flags.folder = tmp_path
    return flags


def equal(one, other):
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return one == other


def without_times(records):
    return [{name: value for name, value in record.items() if "second" not in name} for record in records]


def result(folder):
    """All that a run leaves behind, but for the time it took."""
    log = without_times(json.loads(line) for line in (folder / "log.txt").read_text().splitlines())
    last, best = (checkpoint.read(folder / f"checkpoint_{name}.pth") for name in ("last", "best"))
    (best["metrics"],) = without_times([best["metrics"]])
    assert not list(folder.glob("*.tmp"))
    return {"log": log, "last": last, "best": best}


def moments(seed, number):
    """Some of the batches and of the replacements of files, drawn at random."""
    every = [("batch", batch) for batch in range(BATCHES * EPOCHS)]
    every += [(when, write) for when in ("before", "after") for write in range(WRITES)]
    return random.Random(seed).sample(every, number)


def test_killed_at_any_moment(flags):
    assert run(Toy(), flags=flags("whole")) == [0]
    whole = result(flags.folder / "whole")
    assert [record["epoch"] for record in whole["log"]] == [0, 1, 2]
    for moment in moments(seed=0, number=8):
        out = "-".join(map(str, moment))
        assert run(Mortal(*moment), flags=flags(out)) == [-9], moment
        assert run(Mortal("batch", 3), flags=flags(out, 1, "--resume")) in ([-9], [0])  # and once more on the way
        assert run(Toy(), flags=flags(out, 1, "--resume")) == [0]
        assert equal(result(flags.folder / out), whole), moment


@pytest.mark.parametrize("more", [("--accum", 2), ("--amp", "fp16", "--clip_grad", 0.5), ("--controller", "ladder")])
def test_killed_under_other_settings(flags, more):
    assert run(Toy(), flags=flags("whole", 1, *more)) == [0]
    assert run(Mortal("batch", 9), flags=flags("killed", 1, *more)) == [-9]
    assert run(Toy(), flags=flags("killed", 1, *more, "--resume")) == [0]
    step = 0 if more[0] == "--accum" else 2  # where its last checkpoint was written
    assert f"resuming at epoch 1, step {step}" in (flags.folder / "killed" / "train.log").read_text()
    read = [checkpoint.read(flags.folder / out / "checkpoint_last.pth") for out in ("whole", "killed")]
    assert equal(*read)


def test_two_processes_killed_at_any_moment(flags):
    assert run(Toy(), Toy(), flags=flags("whole", 2)) == [0, 0]
    whole = result(flags.folder / "whole")
    assert len(whole["last"]["processes"]) == 2
    for number, (moment, count) in enumerate([("batch", 4), *moments(seed=1, number=4)]):
        victim = number % 2 if moment == "batch" else 0  # the first process writes the files
        tasks = [Mortal(moment, count) if rank == victim else Toy() for rank in range(2)]
        out = f"{moment}-{count}"
        statuses = run(*tasks, flags=flags(out, 2))
        assert statuses[victim] == -9 and statuses[1 - victim] != 0
        assert run(Toy(), Toy(), flags=flags(out, 2, "--resume")) == [0, 0]
        assert equal(result(flags.folder / out), whole), (moment, count)


def test_random_numbers_go_on_after_a_file(tmp_path):
    def draw():
        return [random.gauss(), random.random(), torch.rand(3)]

    random.gauss()  # draws two, of which the next call returns the other
    checkpoint.save(tmp_path / "state.pth", model={"weight": torch.ones(1)}, random=random_state())
    drawn = draw()
    restore_random_state(checkpoint.read(tmp_path / "state.pth")["random"])
    assert equal(draw(), drawn)


def test_momentum_towers_and_queue_survive(tmp_path):
    make_data(tmp_path)
    keys = {"max_epoch": 1, "epoch_steps": 4, "queue_size": 40, "k_test": 8}
    config = write_config(tmp_path, tmp_path / "retrieval.yaml", "retrieval", **keys)

    class Mortal(RetrievalCOCO):
        def losses(self, model, batch, temperature, progress):
            if progress == 0.5:
                os.kill(os.getpid(), signal.SIGKILL)
            return super().losses(model, batch, temperature, progress)

    def flags(out, *more):
        common = ["--config", config, "--output_dir", tmp_path / out, "--device", "cpu", "--num_workers", "0"]
        return [*common, "--temperature", 64, "--save_steps", 1, *more]

    assert run(RetrievalCOCO(), flags=flags("whole")) == [0]
    assert run(Mortal(), flags=flags("killed")) == [-9]
    assert run(RetrievalCOCO(), flags=flags("killed", "--resume")) == [0]
    one, other = (checkpoint.read(tmp_path / out / "checkpoint_last.pth") for out in ("whole", "killed"))
    assert {"image_queue", "ptr_queue", "vision_proj_m.weight"} <= one["model"].keys()
    assert equal(one, other)


@pytest.mark.parametrize("number, status", [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_a_signal_saves_first(flags, request, number, status):
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests themselves may run under nohup
    request.addfinalizer(lambda: signal.signal(signal.SIGHUP, before))
    assert run(Toy(), flags=flags("whole")) == [0]
    assert run(Mortal("batch", 8, number), flags=flags("out", 1, "--save_steps", 0)) == [status]
    stopped = checkpoint.read(flags.folder / "out" / "checkpoint_last.pth")
    assert (stopped["epoch"], stopped["step"]) == (1, 3), "the step in which it came is finished and saved"
    assert run(Toy(), flags=flags("out", 1, "--resume")) == [0]
    assert equal(result(flags.folder / "out"), result(flags.folder / "whole"))


def test_a_hangup_that_is_ignored_stays_so(flags):
    """As under nohup, where the terminal may close."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert run(Mortal("batch", 8, signal.SIGHUP), flags=flags("out")) == [0]
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_signal_outside_of_training_leaves_at_once(flags):
    class Signalled(Toy):
        def evaluate(self, model, loader, temperature):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(30)

    started = time.monotonic()
    assert run(Signalled(), flags=flags("out")) == [143]
    assert time.monotonic() - started < 20
    assert checkpoint.read(flags.folder / "out" / "checkpoint_last.pth")["step"] == BATCHES, (
        "the epoch's training stays"
    )
    assert run(Toy(), flags=flags("out", 1, "--resume")) == [0]
    assert run(Toy(), flags=flags("whole")) == [0]
    assert equal(result(flags.folder / "out"), result(flags.folder / "whole"))


def test_processes_agree_on_the_step_to_stop_at(flags):
    assert run(Toy(), Toy(), flags=flags("whole", 2)) == [0, 0]
    assert run(Toy(), Mortal("batch", 7, signal.SIGTERM), flags=flags("out", 2)) == [143, 143]
    assert checkpoint.read(flags.folder / "out" / "checkpoint_last.pth")["step"] == 2
    assert run(Toy(), Toy(), flags=flags("out", 2, "--resume")) == [0, 0]
    assert equal(result(flags.folder / "out"), result(flags.folder / "whole"))


@pytest.mark.parametrize(
    "change, complaint",
    [
        (["--p", 0.3], "--p 0.4 instead of 0.3"),
        (["--seed", 1, "--accum", 2], "--seed 42 instead of 1, --accum 1 instead of 2"),
        (["--temperature", 3], "--temperature None instead of 3.0"),
        (["--set", "init_lr=0.1", "weight_decay=0"], "weight_decay 0.05 instead of 0.0, init_lr"),
        (["--amp", "fp16"], "amp 'off' instead of 'fp16'"),
    ],
)
def test_another_setting_is_named_and_stops(flags, capfd, change, complaint):
    assert run(Mortal("batch", 9), flags=flags("out")) == [-9]
    before = (flags.folder / "out" / "checkpoint_last.pth").read_bytes()
    capfd.readouterr()
    assert run(Toy(), flags=flags("out", 1, "--resume", *change)) == [2]
    error = capfd.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert "checkpoint_last.pth" in error and "--resume_anyway" in error
    assert all(part in error for part in complaint.split(", "))
    assert (flags.folder / "out" / "checkpoint_last.pth").read_bytes() == before
    assert run(Toy(), flags=flags("out", 1, "--resume", "--resume_anyway", *change)) == [0]


class Grown(Toy):
    """Its training set got more samples meanwhile."""

    def datasets(self, evaluate):
        points, *others = super().datasets(evaluate)
        return type(points)(56, 0), *others


def test_a_training_set_of_another_size_is_named_and_stops(flags, capfd):
    assert run(Mortal("batch", 9), flags=flags("out")) == [-9]
    assert run(Grown(), flags=flags("out", 1, "--resume")) == [2]
    error = capfd.readouterr().err
    assert "checkpoint_last.pth is a run with training samples 48 instead of 56" in error
    assert run(Grown(), flags=flags("out", 1, "--resume", "--resume_anyway")) == [0]


def test_the_log_may_be_printed_and_the_weights_come_from_elsewhere(flags):
    assert run(Mortal("batch", 9), flags=flags("out")) == [-9]
    more = ["--set", "print_freq=1", "--pretrained", flags.folder / "out" / "checkpoint_last.pth"]
    assert run(Toy(), flags=flags("out", 1, "--resume", *more)) == [0]


def test_fewer_or_more_processes_go_on_at_the_same_sample(flags):
    assert run(Toy(), Mortal("batch", 10), flags=flags("out", 2))[1] == -9
    stopped = checkpoint.read(flags.folder / "out" / "checkpoint_last.pth")
    assert stopped["step"] == 4 and stopped["batch_size"] == 8, "the size of the batches that it is scored in"
    seen = flags.folder / "seen"

    class Counting(Toy):
        def losses(self, model, batch, temperature, progress):
            with open(seen, "a") as file:
                file.write(f"{progress:.3f}\n")
            return super().losses(model, batch, temperature, progress)

    saved = (flags.folder / "out" / "checkpoint_last.pth").read_bytes()
    more = ["--resume", "--resume_anyway", "--set", "batch_size_train=4"]
    assert run(Counting(), flags=flags("out", 1, *more)) == [0]
    assert seen.read_text().split()[0] == f"{1 + 8 / 12:.3f}"
    seen.unlink()  # and where several batches make a step, at the first of them
    (flags.folder / "out" / "checkpoint_last.pth").write_bytes(saved)
    assert run(Counting(), flags=flags("out", 1, *more, "--accum", "3")) == [0]
    assert seen.read_text().split()[0] == f"{1 + 6 / 12:.3f}"
    (flags.folder / "out" / "checkpoint_last.pth").write_bytes(saved)  # and three, one of which has no state to go on
    assert run(Toy(), Toy(), Toy(), flags=flags("out", 1, *more[:-1], "batch_size_train=2")) == [0] * 3
