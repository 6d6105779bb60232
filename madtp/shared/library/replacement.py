"""What takes the place of methods of somebody else's modules, on one instance each, and how it goes away again."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from torch import nn

from madtp.method.errors import UserError, excerpt

IMAGE, TEXT = "image", "text"


def check_tower(tower: object) -> None:
    """Raises a UserError about a name that is no tower's."""
    if tower not in (IMAGE, TEXT):
        raise UserError(f"tower {excerpt(tower)} is none: {IMAGE!r} and {TEXT!r} are")


class Replacement:
    """A method of one instance of a module; copied, saved and loaded along with it.

    Attributes:
        tower: which one of the model it prunes, IMAGE or TEXT.
    """

    tower = IMAGE

    def install(self, module: nn.Module, method: str) -> None:
        """Takes the place of the module's own method.

        Raises:
            UserError: somebody else has taken it.
        """
        if method in vars(module):
            raise UserError(f"the {method} of {type(module).__name__} was replaced by somebody else: undo that first")
        setattr(module, method, self)

    def remove(self, module: nn.Module, method: str) -> None:
        """Gives the module's own method back."""
        delattr(module, method)


class Place(NamedTuple):
    """A method of a module, and what replaces it."""

    module: nn.Module
    method: str
    replacement: Replacement


def replaced(model: nn.Module, tower: str | None = None) -> Iterator[Place]:
    """What is replaced in a model; for one tower if it is named.

    Raises:
        UserError: there is no tower of this name.
    """
    if tower is not None:
        check_tower(tower)
    for module in model.modules():
        for name, value in vars(module).items():
            if isinstance(value, Replacement) and tower in (None, value.tower):
                yield Place(module, name, value)


class Refused(Replacement):
    """A method that would go past what prunes, and answer as if nothing were pruned.

    Args:
        asked: what one asks for by calling it.
    """

    def __init__(self, asked: str):
        self.asked = asked

    def __call__(self, *given: Any, **named: Any) -> Any:
        raise UserError(f"a pruned tower gives no {self.asked}: madtp.restore(model) first")
