"""What is not finite never reaches the weights, stops the run or is counted, on all processes alike."""

import json
import math
import re

import pytest
import torch

from madtp.run.losses import Losses, NonFinite
from madtp.run.optimization import Gradients
from madtp.shared.weights import checkpoint
from tests.kept import keeping
from tests.processes import run
from tests.run.linear import optimization
from tests.toy import Toy

CONFIG = "{{batch_size_train: {}, batch_size_test: 8, max_epoch: 2, init_lr: 0.05, calibration_batches: 3}}"


def step(optimization, batch, scale=1.0):
    inputs = torch.randn(4, 3, generator=torch.Generator().manual_seed(batch))
    return optimization.step(optimization.model(inputs).square().mean() * scale, batch)


def snapshot(optimization):
    weights = [parameter.detach().clone() for parameter in optimization.parameters]
    return weights + [value.clone() for state in optimization.optimizer.state.values() for value in state.values()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("limit", [0.0, 1.0])
@pytest.mark.parametrize("scale", [math.nan, math.inf, -math.inf])
def test_a_step_that_is_not_finite_changes_nothing(dtype, limit, scale):
    one = optimization(dtype, clip_grad=limit)
    assert step(one, 0) == 0
    before = snapshot(one)
    assert step(one, 1, scale) == 1
    assert all(torch.equal(old, new) for old, new in zip(before, snapshot(one), strict=True))
    assert step(one, 2) == 0
    assert not torch.equal(before[0], one.model.weight)


def test_a_loss_whose_gradient_is_fine_is_not_trusted_either():
    one = optimization()
    before = snapshot(one)
    assert one.step(one.model(torch.ones(1, 3)).mean() + math.inf, 0) == 1
    assert torch.equal(before[0], one.model.weight)


def test_a_group_of_batches_is_skipped_as_a_whole():
    one = optimization(accum=2)
    before = snapshot(one)
    assert [step(one, 0, math.nan), step(one, 1)] == [0, 1]
    assert torch.equal(before[0], one.model.weight)
    assert [step(one, 2), step(one, 3)] == [0, 0]
    assert not torch.equal(before[0], one.model.weight)


def test_float16_scales_less_after_an_overflow():
    one = optimization(torch.float16)
    step(one, 0)
    scale = one.scaler.get_scale()
    assert step(one, 1, 1e36) == 1, "finite, but its scaled gradient is not"
    assert one.scaler.get_scale() == scale / 2
    resumed = optimization(torch.float16)
    resumed.load_state_dict(one.state_dict())
    assert resumed.scaler.get_scale() == scale / 2
    assert not any(optimization(dtype).scaler.is_enabled() for dtype in (torch.float32, torch.bfloat16))


def collect(rows, allowed=0, accum=1, scaled=False):
    """Adds (loss, skipped) of consecutive batches and reads them."""
    losses = Losses(allowed, accum, scaled)
    for batch, (loss, skipped) in enumerate(rows):
        losses.add(batch, {"loss_task": torch.tensor(loss)}, torch.tensor(float(skipped)), torch.arange(2) + 10 * batch)
    losses.read("epoch 7, T 3.5")
    return losses


def test_the_mean_is_that_of_the_finite_losses():
    assert collect([(1.0, 0), (3.0, 0)]).finish_epoch() == {"loss_task": 2.0}
    losses = collect([(1.0, 0), (math.nan, 1), (3.0, 0)], allowed=1)
    assert (losses.skipped, losses.nonfinite) == (1, 1) and str(losses).endswith("skipped 1")
    assert losses.finish_epoch() == {"loss_task": 2.0}


def test_every_batch_counts_once_and_in_its_own_epoch():
    losses = collect([(1.0, 0), (3.0, 0)])
    losses.read("again")
    assert losses.finish_epoch() == {"loss_task": 2.0}
    losses.add(0, {"loss_task": torch.tensor(5.0)}, torch.tensor(0.0), torch.arange(2))
    losses.read("the next one")
    assert losses.finish_epoch() == {"loss_task": 5.0}


def test_losses_go_on_as_they_stopped():
    rows = [(1.0, 0), (math.nan, 1), (2.0, 0)]
    stopped, resumed = collect(rows, allowed=1), Losses(1, 1, False)
    resumed.load_state_dict(stopped.state_dict())
    assert (resumed.skipped, resumed.nonfinite) == (1, 1)
    for losses in (stopped, resumed):
        losses.add(3, {"loss_task": torch.tensor(6.0)}, torch.tensor(0.0), torch.arange(2))
        losses.read("the rest")
        assert losses.finish_epoch() == {"loss_task": 3.0}


def test_a_loss_that_was_never_finite_has_its_name_on_every_process():
    assert collect([(math.nan, 1)], allowed=1).meters.keys() == {"loss_task"}


def test_losses_that_wait_keep_nothing_of_their_batch():
    weights, losses = torch.ones(3, requires_grad=True), Losses(0, 1, False)
    with keeping(weights) as kept:
        loss = weights.exp().sum()
        assert kept()
        losses.add(0, {"loss_task": loss}, torch.tensor(0.0), torch.arange(2))
        del loss
        assert not kept()


def test_one_too_many_is_named_with_its_samples():
    with pytest.raises(
        NonFinite, match=r"loss is not finite at step 2 of epoch 7, T 3.5: loss_task inf; samples \[20, 21\]"
    ):
        collect([(1.0, 0), (2.0, 0), (math.inf, 1)])
    with pytest.raises(NonFinite, match="step 4"):
        collect([(math.nan, 1)] + [(1.0, 0)] * 3 + [(math.nan, 1)], allowed=1)
    with pytest.raises(NonFinite, match="step 2 "):
        collect([(1.0, 0), (1.0, 0), (math.nan, 0), (1.0, 1)], accum=2)


def test_a_gradient_that_overflows_counts_but_for_float16():
    with pytest.raises(NonFinite, match="the gradient is not finite at step 1 "):
        collect([(1.0, 0), (2.0, 1)])
    losses = collect([(1.0, 0), (2.0, 1)], scaled=True)
    assert (losses.skipped, losses.nonfinite) == (1, 0)
    with pytest.raises(NonFinite, match="the loss"):
        collect([(math.nan, 1)], scaled=True)


def test_the_whole_norm_is_pytorchs():
    one = optimization(clip_grad=1e-3)
    one.model(torch.randn(4, 3)).square().mean().backward()
    theirs = torch.nn.utils.get_total_norm([parameter.grad for parameter in one.parameters])
    assert torch.equal(one._norm(), theirs)


@pytest.mark.parametrize("clip_grad", [0.0, 1.0])
def test_the_gradient_that_is_not_finite_is_named(clip_grad):
    one = optimization(clip_grad=clip_grad)
    losses = Losses(0, 1, scaled=False, clipped=clip_grad > 0)
    one.model.bias.register_hook(lambda gradient: gradient * math.inf)
    for batch in range(2):
        loss = one.model(torch.ones(1, 3)).square().mean()
        losses.add(batch, {"loss_task": loss}, one.step(loss, batch), torch.arange(1), one.gradients)
    with pytest.raises(NonFinite, match=r"the gradient of bias \(1 of 2 parameters\) is not finite at step 0") as error:
        losses.read("epoch 7")
    assert ("set --clip_grad" in str(error.value)) == (clip_grad == 0)


def test_several_gradients_and_none_alone():
    norms = {"a": 1.0, "b": math.nan, "c": 2.0, "d": math.inf}
    assert Gradients(list(norms), torch.tensor(list(norms.values()))).fault() == (
        "the gradient of b to d (2 of 4 parameters)"
    )
    assert "most of it that of c," in Gradients(["a", "c"], torch.tensor([1e30, 3e38])).fault()


def test_a_group_counts_once():
    assert collect([(math.nan, 0), (math.nan, 1)], allowed=1, accum=2).nonfinite == 1


class Poisoned(Toy):
    """A toy task whose loss is not finite in some batches."""

    def __init__(self, *batches):
        self.batches, self.seen = batches, -1

    def losses(self, model, batch, temperature, progress):
        self.seen += 1
        scale = math.nan if self.seen in self.batches else 1.0
        return {name: loss * scale for name, loss in super().losses(model, batch, temperature, progress).items()}


@pytest.fixture
def flags(tmp_path):
    def flags(out, processes, *more):
        config = tmp_path / "toy.yaml"
        config.write_text(CONFIG.format(8 // processes))
        common = ["--config", config, "--output_dir", tmp_path / out, "--device", "cpu", "--num_workers", "0"]
        return [*common, "--p", 0.4, *more]

    flags.folder = tmp_path
    return flags


@pytest.mark.parametrize("processes", [1, 2])
def test_the_run_stops_with_whole_weights_and_goes_on_behind(flags, capfd, processes):
    healthy = [Toy() for _ in range(processes - 1)]
    assert set(run(*healthy, Poisoned(4), flags=flags("out", processes, "--set", "print_freq=2"))) <= {2, -9}
    error = next(line for line in capfd.readouterr().err.splitlines() if line.startswith("error"))
    samples = json.loads(re.search(r"step 4 of epoch 0, T .*samples (\[.*\]) of process (\d)", error)[1])
    assert len(samples) == 8 // processes and f"of process {processes - 1}" in error
    stopped = checkpoint.read(flags.folder / "out" / "checkpoint_last.pth")
    assert (stopped["epoch"], stopped["step"]) == (0, 6)
    assert all(value.isfinite().all() for value in stopped["model"].values())
    healthy = [Toy() for _ in range(processes)]
    assert run(*healthy, flags=flags("out", processes, "--resume", "--set", "print_freq=2")) == [0] * processes


def test_some_steps_may_be_passed_over_on_all_processes(flags, capfd):
    assert run(Poisoned(2), Poisoned(4, 8), flags=flags("out", 2, "--skip_nonfinite", 3)) == [0, 0]
    assert capfd.readouterr().out.count("passed over") == 3
    records = [json.loads(line) for line in (flags.folder / "out" / "log.txt").read_text().splitlines()]
    assert [record["skipped"] for record in records] == [2, 3]
    assert all(math.isfinite(record["train_loss_task"]) for record in records)
    assert 2 in run(Poisoned(2), Poisoned(4, 8), flags=flags("less", 2, "--skip_nonfinite", 2))
