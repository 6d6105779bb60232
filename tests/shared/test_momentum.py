"""Momentum contrast: against slow forms of the queue and of the loss, and on two processes as on one."""

import os
import subprocess
import sys
from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from madtp.method.alignment import similarity_loss
from madtp.shared.momentum import EMPTY, QUEUES, MomentumContrast, Views, complete_momentum, ramped_alpha

WIDTH = 5


class Towers(MomentumContrast):
    """A module, and a parameter of its own, with a twin each; and a module without."""

    momentum_towers = ("image", "projection")

    def __init__(self, queue_size=7, momentum=0.9):
        super().__init__()
        self.image = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
        self.projection = nn.Parameter(torch.randn(4, WIDTH))
        self.head = nn.Linear(4, 2)
        self.init_momentum(WIDTH, queue_size, momentum)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Towers()


def scramble(model):
    """Moves the online towers away from their twins."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "_m" not in name:
                parameter.add_(torch.randn_like(parameter))


def features(number, seed):
    return F.normalize(torch.randn(number, WIDTH, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_names(model):
    twins = {"image_m.0.weight", "image_m.0.bias", "image_m.1.weight", "image_m.1.bias", "projection_m"}
    online = {name.replace("_m", "") for name in twins}
    assert set(model.state_dict()) == twins | online | {"head.weight", "head.bias", *QUEUES}


def test_twins_start_equal_and_are_not_trained(model):
    assert torch.equal(model.projection, model.projection_m)
    assert not any(parameter.requires_grad for name, parameter in model.named_parameters() if "_m" in name)
    assert all(parameter.requires_grad for name, parameter in model.named_parameters() if "_m" not in name)


def test_update_and_copy(model):
    scramble(model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.update_momentum()
    for name, value in model.state_dict().items():
        if "_m" in name:
            torch.testing.assert_close(value, 0.9 * before[name] + 0.1 * before[name.replace("_m", "")])
        else:
            assert torch.equal(value, before[name])
    model.copy_params()
    settled = {name: value.clone() for name, value in model.state_dict().items()}
    assert all(torch.equal(settled[name], settled[name.replace("_m", "")]) for name in settled if "_m" in name)
    model.update_momentum()
    assert all(torch.equal(value, settled[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("batches", [[3, 3, 3, 3], [7, 1, 7], [2, 9, 4], [20], [1] * 9])
def test_queue_holds_the_newest(model, batches):
    """Slow form: a list of places, written one sample after the other."""
    image_queue, text_queue = model.image_queue.T.tolist(), model.text_queue.T.tolist()
    numbers, place = [EMPTY] * 7, 0
    for step, size in enumerate(batches):
        image, text, idx = features(size, step), features(size, 100 + step), torch.arange(size) + 50 * step
        model.enqueue(image, text, idx)
        for row in range(size):
            image_queue[place], text_queue[place] = image[row].tolist(), text[row].tolist()
            numbers[place] = int(idx[row])
            place = (place + 1) % 7
    assert model.image_queue.T.tolist() == image_queue
    assert model.text_queue.T.tolist() == text_queue
    assert model.idx_queue.tolist() == [numbers]
    assert model.ptr_queue.tolist() == [place]


def test_what_is_not_finite_stays_out_of_the_queue(model):
    image, text = features(4, 0), features(4, 1)
    image[1, 2], text[3, 0] = torch.nan, torch.inf
    model.enqueue(image, text, torch.arange(4) + 10)
    assert model.idx_queue[0, :4].tolist() == [10, EMPTY, 12, EMPTY]
    for queue, given in ((model.image_queue, image), (model.text_queue, text)):
        assert torch.equal(queue[:, [0, 2]].T, given[[0, 2]]) and not queue[:, [1, 3]].any()


@pytest.mark.parametrize("alpha", [0.0, 0.4])
def test_contrastive_loss(model, alpha):
    """Slow form: one pair of an anchor and a candidate at a time."""
    model.double().enqueue(features(3, 7).double(), features(3, 8).double(), torch.tensor([1, 2, 1]))
    image, text, image_m, text_m = (features(4, seed).double() for seed in range(4))
    idx, scale = torch.tensor([2, 5, 5, 1]), torch.tensor(1 / 0.07, requires_grad=True)
    losses = []
    for feature, feature_m, candidates in (
        (image, image_m, [*text_m, *model.text_queue.T]),
        (text, text_m, [*image_m, *model.image_queue.T]),
    ):
        numbers = [*idx.tolist(), *model.idx_queue[0].tolist()]
        for row in range(4):
            logits = torch.stack([scale * feature[row] @ other for other in candidates])
            opinion = torch.stack([scale.detach() * feature_m[row] @ other for other in candidates]).softmax(dim=0)
            matching = torch.tensor([float(number == idx[row]) for number in numbers])
            target = alpha * opinion + (1 - alpha) * matching / matching.sum()
            losses.append(-sum(target * logits.log_softmax(dim=0)))
    loss = model.contrastive_loss(image, text, image_m, text_m, idx, alpha, scale)
    slow = sum(losses) / len(losses)
    torch.testing.assert_close(loss, slow)
    torch.testing.assert_close(torch.autograd.grad(loss, scale), torch.autograd.grad(slow, scale))


def test_gradients_flow_to_online_features_and_scale_alone(model):
    tensors = [features(2, seed).requires_grad_() for seed in range(4)]
    scale = torch.tensor(2.0, requires_grad=True)
    loss = model.contrastive_loss(*tensors, torch.tensor([0, 1]), 0.4, scale)
    model.enqueue(*tensors[2:], torch.tensor([0, 1]))  # the queue may change before the backward pass
    gradients = torch.autograd.grad(loss, [*tensors[:2], scale])
    assert all(gradient.abs().sum() > 0 for gradient in gradients)


def test_mixed_precision_does_not_round_the_contrastive_loss(model):
    given = *(features(3, seed) for seed in range(4)), torch.arange(3), 0.4, torch.tensor(2.0)
    expected = model.contrastive_loss(*given)
    with torch.autocast("cpu", torch.bfloat16):
        assert model.contrastive_loss(*given).equal(expected)


class Pairs(Towers):
    """Pictures and texts are vectors, and one tower takes both."""

    def bounded_scale(self):
        return torch.tensor(3.0)

    def encode_captions(self, captions):
        return torch.tensor(captions)

    def views(self, image, text, temperature, trace=None, twin=""):
        tower, projection = getattr(self, f"image{twin}"), getattr(self, f"projection{twin}")
        states = tower(image), tower(text)
        features = (F.normalize(x @ projection, dim=-1) for x in states)
        return Views(*features, *(x.unsqueeze(1) for x in states))


def test_a_step_is_what_its_parts_are():
    """The twins move first, learn from nothing, and what they see goes into the queue once the losses are there."""
    torch.manual_seed(0)
    model, image, text, idx = Pairs(), torch.randn(3, 3), torch.randn(3, 3), torch.tensor([4, 5, 4])
    scramble(model)
    slow = deepcopy(model)
    slow.update_momentum()
    online, momentum = (slow.views(image, text, 1.0, twin=twin) for twin in ("", "_m"))
    features = online.image, online.text, momentum.image, momentum.text
    expected = {
        "loss_ita": slow.contrastive_loss(*features, idx, 0.4, torch.tensor(3.0)),
        "loss_sim": similarity_loss(online.image_aligned, online.text_aligned),
        "loss_sim_m": similarity_loss(momentum.image_aligned, momentum.text_aligned),
    }
    losses = model(image, text.tolist(), 0.4, idx, 1.0)
    torch.testing.assert_close(losses, expected)
    assert not losses["loss_sim_m"].requires_grad and losses["loss_ita"].requires_grad
    torch.testing.assert_close((model.image_queue[:, :3].T, model.text_queue[:, :3].T), features[2:])
    assert model.idx_queue[0, :4].tolist() == [4, 5, 4, EMPTY]
    assert model(image, text.tolist(), 0.4, idx).keys() == {"loss_ita"}


def test_alpha_ramps_over_the_first_epoch():
    assert [ramped_alpha(0.4, progress) for progress in (0, 0.5, 1, 3.2)] == [0, 0.2, 0.4, 0.4]


def test_checkpoint_without_momentum(model):
    scramble(model)
    file = {name: value + 1 for name, value in model.state_dict().items() if "_m" not in name and name not in QUEUES}
    complete = complete_momentum(file, model)
    assert torch.equal(complete["image_m.0.weight"], file["image.0.weight"])
    model.load_state_dict(complete)
    assert model.idx_queue.eq(EMPTY).all()


@pytest.mark.parametrize("queue_size, kept", [(7, True), (4, False)])
def test_checkpoint_with_momentum(queue_size, kept):
    """Twins are the file's; the queue as well where its length is the model's."""
    trained, model = Towers(7), Towers(queue_size)
    scramble(trained)
    trained.enqueue(features(3, 0), features(3, 1), torch.tensor([4, 5, 6]))
    model.load_state_dict(complete_momentum(trained.state_dict(), model))
    assert torch.equal(model.projection_m, trained.projection_m)
    assert model.idx_queue.ne(EMPTY).any() == kept


WORKER = """
import sys
from types import SimpleNamespace
import torch
import utils
from madtp.shared.launch import init_distributed, leave_distributed
from tests.shared.test_momentum import Towers, features

init_distributed(SimpleNamespace(device="cpu", dist_url=sys.argv[1], world_size=1))
torch.manual_seed(0)
model = Towers(queue_size=5)
mine = slice(2 * utils.rank(), 2 * utils.rank() + 2)
for step in range(2):
    model.enqueue(features(4, step)[mine], features(4, 9 + step)[mine], torch.arange(4)[mine] + 10 * step)

x = torch.tensor([[1.0 + utils.rank()]], requires_grad=True)
weights = torch.tensor([[3.0], [5.0]]) * (1 + utils.rank())  # differ, so that gradients of both have to arrive
(weights * utils.all_gather(x).square()).sum().backward()
assert x.grad.item() == [18.0, 60.0][utils.rank()], x.grad
if utils.is_main():
    torch.save(model.state_dict(), sys.argv[2])
leave_distributed(together=True)
"""


def test_two_processes_fill_the_queue_like_one(tmp_path):
    command = [sys.executable, "-c", WORKER, f"file://{tmp_path}/meeting", f"{tmp_path}/state.pth"]
    environment = {"WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    workers = [
        subprocess.Popen(command, env=os.environ | environment | {"RANK": str(rank)}, stderr=subprocess.PIPE)
        for rank in range(2)
    ]
    for worker in workers:
        _, errors = worker.communicate(timeout=120)
        assert worker.returncode == 0, errors.decode()
    torch.manual_seed(0)
    model = Towers(queue_size=5)
    for step in range(2):
        model.enqueue(features(4, step), features(4, 9 + step), torch.arange(4) + 10 * step)
    together = torch.load(tmp_path / "state.pth", weights_only=True)
    assert all(torch.equal(together[name], value) for name, value in model.state_dict().items())
