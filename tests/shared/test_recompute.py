"""Steps whose results are made anew: the same gradients, less kept, and no product repeated."""

from weakref import WeakSet

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from madtp.shared.recompute import through


class Operations(TorchDispatchMode):
    """Writes down what runs."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(function.overloadpacket.__name__)
        return function(*args, **(kwargs or {}))


def plainly(x, *steps):
    for step in steps:
        x = step(x)
    return x


def run(way, steps, amp):
    """Gradients, how many numbers were kept beside the input and the weights, and the operations of both passes."""
    x = torch.linspace(-1, 1, 60).view(2, 3, 10).requires_grad_()
    known = {tensor.data_ptr() for tensor in (x, *steps.parameters())}
    kept = {}

    def keep(tensor):
        kept[tensor.data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), Operations() as forward:
        with torch.autocast("cpu", torch.bfloat16, enabled=amp):
            total = way(x, *steps).float().square().sum()
    with Operations() as backward:
        gradients = torch.autograd.grad(total, [x, *steps.parameters()])
    return gradients, sum(size for place, size in kept.items() if place not in known), forward.names, backward.names


@pytest.mark.parametrize("amp", [False, True])
def test_gradients_are_the_same_and_no_product_is_repeated(amp):
    torch.manual_seed(0)
    steps = nn.Sequential(nn.LayerNorm(10), nn.GELU(), nn.Linear(10, 4))
    plain, plain_kept, _, plain_backward = run(plainly, steps, amp)
    ours, ours_kept, forward, backward = run(through, steps, amp)
    torch.testing.assert_close(ours, plain, rtol=0, atol=0)
    assert ours_kept < plain_kept
    assert forward.count("addmm") == 1 and "addmm" not in backward
    assert backward.count("mm") == plain_backward.count("mm")


def test_without_gradients_nothing_is_recorded():
    x, steps = torch.linspace(-1, 1, 30).view(3, 10).requires_grad_(), nn.Sequential(nn.GELU(), nn.Linear(10, 4))
    kept = []
    with torch.no_grad(), torch.autograd.graph.saved_tensors_hooks(kept.append, lambda tensor: tensor):
        output = through(x, *steps)
    assert output.grad_fn is None and not output.requires_grad and not kept
    torch.testing.assert_close(output, plainly(x, *steps))


class Casts(TorchDispatchMode):
    """Which copies in another type are still there."""

    def __init__(self):
        super().__init__()
        self.left = WeakSet()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function is torch.ops.aten._to_copy.default:
            self.left.add(result.untyped_storage())
        return result


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("way, copies", [(plainly, 2), (through, 0)])
def test_mixed_precision_leaves_no_copies_of_weights_to_the_rest_of_the_forward_pass(way, copies, dtype):
    x, linear = torch.linspace(-1, 1, 30, dtype=dtype).view(3, 10).requires_grad_(), nn.Linear(10, 4)
    with torch.autocast("cpu", dtype), Casts() as casts:
        output = way(x, nn.GELU(), linear)
        assert output.dtype == dtype and len(casts.left) == copies
        assert torch.is_autocast_cache_enabled()
