"""What a forward pass keeps for its backward pass."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from weakref import WeakSet

import torch
from torch import Tensor


@dataclass(eq=False)
class Held:
    """What autograd holds, which is gone as soon as no backward pass could need it."""

    tensor: Tensor


@contextmanager
def keeping(*known: Tensor) -> Iterator[Callable[[], list[Tensor]]]:
    """Asked, it tells what autograd keeps of all that ran within, each piece of memory once, what is known left out."""
    held = WeakSet()

    def pack(tensor):
        one = Held(tensor.detach())  # alone: what knew its own graph would keep that alive
        held.add(one)
        return one

    def kept():
        places = {tensor.untyped_storage().data_ptr() for tensor in known}
        found = {one.tensor.untyped_storage().data_ptr(): one.tensor for one in held}
        return [tensor for place, tensor in found.items() if place not in places]

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda one: one.tensor):
        yield kept


def size(tensor: Tensor) -> int:
    """Bytes of the memory that a tensor lies in."""
    return tensor.untyped_storage().nbytes()
