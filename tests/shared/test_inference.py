"""Linear layers made for inference: the same answers, no weight cast twice, and nothing of it left afterwards."""

import weakref

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from madtp.run.precision import autocast, inference
from madtp.shared import inference as made
from madtp.shared.inference import CastLinear, PackedLinear, prepare, prepared
from models.blip import blip_decoder
from models.blip_nlvr import blip_nlvr
from models.blip_retrieval import blip_retrieval
from tests.clip.test_clip import build as build_clip
from tests.clip.test_clip import words
from tests.tiny import STATEMENTS, build, images

CPU = torch.device("cpu")
LIBRARY = torch.backends.mkldnn.is_available()
TAKES = {torch.float32: LIBRARY, torch.bfloat16: LIBRARY and torch.ops.mkldnn._is_mkldnn_bf16_supported()}
UNTAKEN = "PyTorch's library for CPUs does not take it here"
DTYPES = [pytest.param(dtype, marks=pytest.mark.skipif(not taken, reason=UNTAKEN)) for dtype, taken in TAKES.items()]


@pytest.fixture(autouse=True)
def large_enough(monkeypatch):
    """Even these small weights are packed."""
    monkeypatch.setattr(made, "PACKED", 0)


def nlvr():
    model, pictures = build(blip_nlvr).float(), images(6).float()
    return model, lambda temperature=0.0: model(pictures, STATEMENTS, temperature=temperature, train=False)


def caption():
    model, pictures = build(blip_decoder).float(), images(3).float()
    texts = [f"a picture of {text}" for text in STATEMENTS]
    return model, lambda temperature=0.0: model(pictures, texts, temperature, train=False)["loss_task"]


def clip():
    model, pictures = build_clip().float(), images(2).float()
    texts = words([3, 7], [5, 2, 1])
    return model, lambda temperature=0.0: torch.cat(
        [model.encode_image(pictures, temperature), model.encode_text(texts, temperature)]
    )


def replaced(model):
    """What stands in for methods of its modules."""
    return [value for module in model.modules() for value in vars(module).values() if isinstance(value, CastLinear)]


def plainly(dtype, answer, temperature=0.0):
    with torch.inference_mode(), autocast(dtype, CPU):
        return answer(temperature)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("task", [nlvr, caption, clip])
def test_answers_are_those_of_the_layers_as_they_are(task, dtype):
    model, answer = task()
    temperature = 1.0 if dtype == torch.float32 else 0.0  # rounded in another place, halves choose other tokens
    expected = plainly(dtype, answer, temperature)
    with inference(model, dtype):
        found = answer(temperature)
        assert replaced(model) and all(isinstance(one, PackedLinear) for one in replaced(model))
    tolerance = 1e-5 if dtype == torch.float32 else 0.05
    assert found.dtype == expected.dtype
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(plainly(dtype, answer, temperature), expected, rtol=0, atol=0)  # all is as it was


@pytest.mark.parametrize("task", [nlvr, caption, clip])
def test_without_the_library_answers_are_autocasts_bit_for_bit(task, monkeypatch):
    monkeypatch.setattr(made, "_library_packs", lambda dtype: False)
    model, answer = task()
    expected = plainly(torch.bfloat16, answer, 1.0)
    with inference(model, torch.bfloat16):
        assert {type(one) for one in replaced(model)} == {CastLinear}
        torch.testing.assert_close(answer(1.0), expected, rtol=0, atol=0)


def test_small_layers_stay_as_they_are_in_single_precision(monkeypatch):
    monkeypatch.undo()
    model, answer = nlvr()
    with prepared(model, torch.float32):
        assert not replaced(model)


def test_what_is_of_another_precision_stays_as_it_is():
    model = build(blip_nlvr).double()
    with prepared(model, torch.float32):
        assert not replaced(model)


class Casts(TorchDispatchMode):
    """Counts how often matrices of these shapes are cast."""

    def __init__(self, shapes):
        super().__init__()
        self.shapes, self.count = shapes, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function.overloadpacket in (torch.ops.aten._to_copy, torch.ops.aten.to):
            self.count += result.dtype != args[0].dtype and args[0].shape in self.shapes
        return result


def test_no_weight_is_cast_twice():
    model, answer = nlvr()
    shapes = {module.weight.shape for module in model.modules() if isinstance(module, nn.Linear)}
    for context, expected in ((autocast(torch.bfloat16, CPU), True), (inference(model, torch.bfloat16), False)):
        with torch.inference_mode(), context:
            answer()
            with Casts(shapes) as casts:
                answer()
        assert bool(casts.count) == expected


def test_weights_that_moved_in_between_are_copied_anew():
    model, answer = nlvr()
    state = model.state_dict()
    for _ in range(2):
        with inference(model, torch.bfloat16):
            found = answer()
            assert all(value.equal(model.state_dict()[name]) for name, value in state.items())
        torch.testing.assert_close(found, plainly(torch.bfloat16, answer), rtol=0.05, atol=0.05)
        assert not replaced(model) and not any("forward" in vars(module) for module in model.modules())
        before = found
        with torch.no_grad():
            for layer in model.modules():
                if isinstance(layer, nn.Linear):
                    layer.weight *= 1.5
    assert not torch.allclose(before, plainly(torch.bfloat16, answer), rtol=0.05, atol=0.05)


def test_training_goes_on_with_gradients_for_every_weight():
    model, answer = nlvr()
    with inference(model, torch.bfloat16):
        answer()
    model.train()
    losses = model(images(6).float(), STATEMENTS, torch.tensor([0, 1, 1]), temperature=1.0)
    sum(losses.values()).backward()
    assert all(module.weight.grad is not None for module in model.modules() if isinstance(module, nn.Linear))


def test_towers_that_only_training_uses_are_not_copied():
    model = build(blip_retrieval, queue_size=6).float()
    with inference(model, torch.bfloat16):
        model.encode_image(images(2).float())
        for name, tower in model.named_children():
            copied = any("weight" in vars(one) for one in replaced(tower))
            assert copied == (name in ("visual_encoder", "vision_proj")), name


def test_within_itself_nothing_happens_twice():
    model, answer = nlvr()
    undo = prepare(model, torch.bfloat16)
    outer = replaced(model)
    with prepared(model, torch.float32):
        assert replaced(model) == outer
    assert replaced(model) == outer
    undo()
    assert not replaced(model)


def test_an_error_undoes_all_and_no_copy_stays():
    model, _ = nlvr()
    with pytest.raises(ZeroDivisionError), prepared(model, torch.bfloat16):
        raise ZeroDivisionError
    assert not replaced(model)
    undo = prepare(model, torch.bfloat16)
    copies = [weakref.ref(one) for one in replaced(model)]
    undo()
    assert copies and not any(copy() for copy in copies)


class Twice(nn.Linear):
    """A layer that does more than a linear one."""

    def forward(self, x):
        return 2 * super().forward(x)


def test_layers_and_activations_of_another_kind_stay_as_they_are():
    rough = nn.ModuleDict({"fc1": nn.Linear(4, 4), "act": nn.GELU(approximate="tanh")})
    with prepared(nn.ModuleList([Twice(4, 4), rough]), torch.bfloat16) as (twice, _):
        assert "forward" not in vars(twice) and "forward" not in vars(rough["act"])
        assert "forward" in vars(rough["fc1"])
