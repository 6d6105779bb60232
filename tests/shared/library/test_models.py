"""Every kind of model that can be pruned: what it answers, pruned by nothing, by copies, by some; its way back."""

import copy
import io
import math
import pickle

import pytest
import torch

import madtp
from madtp.method.errors import UserError
from madtp.shared.library.prune import pruned_of
from tests.shared.library.theirs import CASES, DEPTH, PATCHES, close, make, noise, repeated, without_positions

AT_ONCE = 1e-9  # a schedule of this shape drops all that it drops in the first layer
COPIES = {"amount": math.log(4), "shape": AT_ONCE}  # each of four patches stands four times

every_model = pytest.mark.parametrize("name", list(CASES))


@torch.no_grad()
def ask(name, model, images):
    return CASES[name].ask(model, images)


@every_model
def test_pruned_by_nothing_it_is_the_model(name):
    model, images = make(name), noise()
    dense = ask(name, model, images)
    assert madtp.prune(model, p=0) is model
    torch.testing.assert_close(ask(name, model, images), dense, **close(name))
    assert madtp.cost(model)["percent"] == 100
    assert madtp.cost(model)["tokens"] == [PATCHES + CASES[name].prefix] * DEPTH


@every_model
def test_merging_equal_tokens_changes_nothing(name):
    model, images = without_positions(make(name)), repeated()
    dense = ask(name, model, images)
    madtp.prune(model, **COPIES)
    torch.testing.assert_close(ask(name, model, images), dense, **close(name))
    assert madtp.cost(model)["tokens"] == [4 + CASES[name].prefix] * DEPTH


@every_model
def test_merging_equal_tokens_changes_no_gradient(name):
    model, images = without_positions(make(name)).train(), repeated()

    def gradients():
        model.zero_grad()
        CASES[name].ask(model, images).double().square().sum().backward()
        return {key: weight.grad for key, weight in model.named_parameters() if weight.grad is not None}

    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    dense = gradients()
    madtp.prune(model, **COPIES)
    merged = gradients()
    assert merged.keys() == dense.keys()
    for key, gradient in dense.items():
        if "pos" not in key:  # whose copies are told apart again
            torch.testing.assert_close(merged[key], gradient, rtol=1e-6, atol=1e-8)


@every_model
def test_it_costs_what_was_asked_and_is_restored(name):
    model, images = make(name), noise()
    dense, state = ask(name, model, images), copy.deepcopy(model.state_dict())
    madtp.prune(model, 0.3, images)
    cost = madtp.cost(model)
    assert abs(cost["percent"] - 70) <= 100 / (PATCHES * DEPTH)
    assert cost["tokens"][-1] < PATCHES and sorted(cost["tokens"], reverse=True) == cost["tokens"]
    assert not torch.allclose(ask(name, model, images), dense, rtol=1e-6, atol=1e-9)
    assert list(model.state_dict()) == list(state)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert madtp.restore(model) is model and torch.equal(ask(name, model, images), dense)
    assert not any("forward" in vars(module) for module in model.modules())
    with pytest.raises(UserError, match="is not pruned"):
        madtp.cost(model)


@every_model
def test_nobody_s_company_matters(name):
    model, images = make(name), noise()
    madtp.prune(model, amount=1.2, shape=0.7)
    together = ask(name, model, images)
    torch.testing.assert_close(ask(name, model, images[:1]), together[:1], **close(name))
    torch.testing.assert_close(ask(name, model, images[:4]), together[:4], **close(name))


@every_model
def test_it_is_copied_and_saved_as_it_is(name):
    model, images = make(name), noise(2)
    madtp.prune(model, amount=1.2, shape=0.7)
    pruned, cost = ask(name, model, images), madtp.cost(model)
    copied = copy.deepcopy(model)
    saved = io.BytesIO()
    torch.save(model, saved)
    saved.seek(0)
    others = [copied, pickle.loads(pickle.dumps(model)), torch.load(saved, weights_only=False)]
    madtp.restore(model)
    for other in others:
        assert pruned_of(other).of.entry is not pruned_of(copied).of.entry or other is copied
        assert torch.equal(ask(name, other, images), pruned) and madtp.cost(other) == cost
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
    assert torch.equal(ask(name, copied, images), pruned)


@every_model
def test_half_precision_keeps_about_the_same(name):
    model, images = without_positions(make(name)).float(), repeated().float()
    with torch.autocast("cpu", torch.bfloat16):
        dense = ask(name, model, images).float()
        madtp.prune(model, **COPIES)
        merged = ask(name, model, images).float()
    assert (merged - dense).norm() <= 0.05 * dense.norm()


@pytest.mark.parametrize("name", ["timm", "timm-eva", "open_clip", "CLIPModel", "BlipForConditionalGeneration"])
def test_it_is_compiled(name):
    """In one graph, whatever code is made of it; of transformers' models others may break the graph."""
    model, images = make(name), noise()
    madtp.prune(model, amount=1.2, shape=0.7)
    plain = ask(name, model, images)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager", fullgraph="timm" in name or "open_clip" in name)
    torch.testing.assert_close(ask(name, compiled, images), plain, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["timm", "timm-average-no-class", "ViTModel"])
def test_it_is_exported_for_any_number_of_images(name):
    """Tracing, ViT's attention has a mask of nothing."""
    model, images = make(name), noise(3)
    madtp.prune(model, amount=1.2, shape=0.7)
    with torch.no_grad():
        batch = torch.export.Dim("batch", max=64)
        exported = torch.export.export(model, (images,), dynamic_shapes=({0: batch},), strict=False).module()
        for number in (1, 6):
            others = noise(number, seed=2)
            torch.testing.assert_close(exported(others), model(others), rtol=1e-9, atol=1e-9)
