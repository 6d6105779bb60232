"""The optimizer's steps: rates over epochs, accumulated batches, clipped gradients, and what a resumed run needs."""

import copy
import math

import pytest
import torch

from tests.run.linear import optimization


def rates(optimization, epochs=4, batches=6):
    taken = []
    for epoch in range(epochs):
        for batch in range(batches):
            optimization.schedule(epoch, batch)
            taken.append(optimization.rate)
    return taken


def cosine(progress):
    return 0.01 + 0.09 * (1 + math.cos(math.pi * progress)) / 2


def test_the_rate_falls_along_a_cosine_by_epochs_or_by_steps():
    assert rates(optimization()) == pytest.approx([cosine(epoch / 4) for epoch in range(4) for _ in range(6)])
    by_steps = rates(optimization(lr_schedule="step"))
    assert by_steps == pytest.approx([cosine(step / 24) for step in range(24)])
    assert rates(optimization(accum=2, lr_schedule="step"))[::2] == pytest.approx([cosine(n / 12) for n in range(12)])
    uneven = rates(optimization(accum=4, lr_schedule="step"))  # four batches a step, and then two
    assert uneven == pytest.approx([cosine((2 * epoch + (batch > 3)) / 8) for epoch in range(4) for batch in range(6)])


def test_the_warm_up_is_linear():
    taken = rates(optimization(lr_schedule="step", warmup_steps=4))
    assert taken[:4] == pytest.approx([0.1 * (step + 1) / 5 for step in range(4)])
    assert taken[4:] == pytest.approx([cosine(step / 20) for step in range(20)])


def losses(model, batches):
    return [(model(batch) - 1).square().mean() for batch in batches]


def test_accumulated_batches_make_the_step_of_one_large_batch():
    batches = torch.randn(5, 8, 3, generator=torch.Generator().manual_seed(1))
    apart, together = optimization(accum=3, batches=5), optimization(batches=2)
    for number, batch in enumerate(batches):
        apart.step(losses(apart.model, [batch])[0], number)
    for number, group in enumerate((batches[:3], batches[3:])):
        together.step(losses(together.model, [group.flatten(0, 1)])[0], number)
    for one, other in zip(apart.parameters, together.parameters, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("limit", [0.0, 0.5, 1e6])
def test_gradients_are_clipped_to_their_limit(limit):
    taken, free = optimization(clip_grad=limit), optimization()
    for one in (taken, free):
        one.step(100 * losses(one.model, [torch.ones(2, 3)])[0], 0)
    norms = [
        math.sqrt(sum(float(state["exp_avg"].square().sum()) for state in one.optimizer.state.values())) / 0.1
        for one in (taken, free)
    ]
    assert norms[0] == pytest.approx(min(norms[1], limit) if limit else norms[1], rel=1e-4)


def test_training_resumes_its_optimizer():
    one, other = optimization(), optimization()
    one.step(losses(one.model, [torch.ones(2, 3)])[0], 0)
    other.load_state_dict(copy.deepcopy(one.state_dict()))
    other.model.load_state_dict(one.model.state_dict())
    for each in (one, other):
        each.step(losses(each.model, [torch.randn(2, 3, generator=torch.Generator().manual_seed(1))])[0], 1)
    assert torch.equal(one.model.weight, other.model.weight)


def test_the_optimizer_is_the_configuration_s():
    defaults = optimization(weight_decay=0.2, betas=[0.8, 0.9]).optimizer.defaults
    assert (defaults["lr"], defaults["weight_decay"], defaults["betas"]) == (0.1, 0.2, (0.8, 0.9))


def test_processes_exchange_gradients_where_a_step_follows():
    one, silent = optimization(accum=2, batches=5), object()
    one.model.no_sync = lambda: silent
    assert [one.accumulate(batch) is silent for batch in range(5)] == [True, False, True, False, False]


def test_what_the_loss_does_not_reach_stays():
    model = torch.nn.Linear(3, 1)
    model.unused = torch.nn.Parameter(torch.ones(2))
    one = optimization(model=model)
    assert one.step(losses(model, [torch.ones(2, 3)])[0], 0) == 0
    assert one.gradients.names == ["weight", "bias"] and model.unused.eq(1).all()
