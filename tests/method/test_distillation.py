"""A pruned tower learns from the dense one that it was."""

import pytest
import torch

from madtp.method.distillation import Teacher, cosine_distance, distillation_loss
from madtp.method.keep import Coverage, keep_batch, keep_sample
from madtp.method.layout import Masked, Sequences
from madtp.shared.layers import Guidance
from models.blip_nlvr import blip_nlvr
from tests.tiny import build, images


def left_by(tower, keep, temperature, space_dict):
    return tower.encode(images(3), Guidance.by(space_dict, temperature, False), None, keep)[0]


@pytest.fixture
def model():
    """A model, its image tower, and a teacher that is another tower."""
    model, draw = build(blip_nlvr), torch.Generator().manual_seed(0)
    teacher = Teacher(model.train().visual_encoder)
    model.eval()
    with torch.no_grad():
        for parameter in teacher.tower.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=draw).double())
    return model, model.visual_encoder, teacher


def test_every_patch_is_held_against_the_token_that_it_is_part_of(model):
    model, tower, teacher = model
    left = left_by(tower, Coverage(3, 0.7), 1.5, model.space_dict)
    dense, far = teacher.tower(images(3))[0], []
    assert 2 < left.tokens.shape[1] < 17
    for sample, (tokens, places) in enumerate(zip(left.tokens, left.layout.places, strict=True)):
        pairs = [(tokens[1 + place], dense[sample, 1 + patch]) for patch, place in enumerate(places.tolist())]
        cosines = [torch.dot(x, y) / x.norm() / y.norm() for x, y in [(tokens[0], dense[sample, 0]), *pairs]]
        far.append(1 - cosines[0] / 2 - sum(cosines[1:]) / len(pairs) / 2)
    torch.testing.assert_close(teacher.distance(images(3), left).double(), sum(far) / 3, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("shape", [0.7, 1e-9])  # in every layer, or all in the first
def test_places_say_what_every_token_stands_for(model, shape):
    model, tower, _ = model
    left = left_by(tower, Coverage(3, shape), 1.5, model.space_dict)
    sizes = left.layout.sizes_of_tokens[:, 1:]
    for own, places in zip(sizes, left.layout.places, strict=True):
        assert torch.bincount(places, minlength=len(own)).tolist() == own.tolist()


def test_a_tower_that_keeps_everything_is_as_far_as_its_tokens_are(model):
    model, tower, teacher = model
    left, dense = left_by(tower, keep_batch, 0.0, model.space_dict), teacher.tower(images(3))[0]
    expected = (cosine_distance(left.tokens[:, 0], dense[:, 0]) + cosine_distance(left.tokens[:, 1:], dense[:, 1:])) / 2
    torch.testing.assert_close(teacher.distance(images(3), left), expected)
    assert Teacher(tower).distance(images(3), left).abs() < 1e-6 < expected


@pytest.mark.parametrize("keep", [keep_batch, keep_sample])
def test_of_what_drops_patches_the_class_tokens_are_compared(model, keep):
    model, tower, teacher = model
    left = left_by(tower, keep, 30.0, model.space_dict)
    expected = cosine_distance(left.first, teacher.tower(images(3))[0][:, 0])
    torch.testing.assert_close(teacher.distance(images(3), left), expected)


def test_also_where_only_some_samples_dropped_patches(model):
    """By the rule `sample` these stand to the left of a rectangle that the others fill."""
    model, _, teacher = model
    dense = teacher.tower(images(3))[0]
    own = torch.arange(dense.shape[1]) < torch.tensor([[dense.shape[1]], [4], [dense.shape[1]]])
    left = Sequences(dense.roll(1, dims=1), Masked(own))
    torch.testing.assert_close(teacher.distance(images(3), left), cosine_distance(left.first, dense[:, 0]))


def test_a_teacher_stays_as_it_is_and_no_part_of_the_model(model):
    model, tower, teacher = model
    names, weights = set(model.state_dict()), [value.clone() for value in teacher.tower.state_dict().values()]
    model.teacher = teacher
    model.train()
    left = left_by(tower, Coverage(3, 0.7), 1.5, model.space_dict)
    distillation_loss(teacher, images(3), left)["loss_distil"].backward()
    assert set(model.state_dict()) == names and not teacher.tower.training
    assert tower.blocks[0].attn.qkv.weight.grad.abs().sum() > 0
    assert all(value.grad is None for value in teacher.tower.parameters())
    assert all(map(torch.equal, weights, teacher.tower.state_dict().values()))
    assert distillation_loss(None, images(3), None) == {}
