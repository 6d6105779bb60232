"""MADTP: token pruning for vision-language transformers, guided by how well tokens align with the other modality.

The names below are what other people's models build on. Each is imported when it is first asked for, torch with it.
"""

from importlib import import_module
from types import ModuleType

from madtp import cost as costs

__version__ = "2.0.0"

HOMES = {
    "prune": "shared.library.prune",
    "restore": "shared.library.prune",
    "picture": "shared.library.picture",
    "attend": "method.attention",
    "prune_tokens": "method.pruning",
    "QueryModel": "method.alignment",
    "aligned_feature": "method.alignment",
    "similarity_loss": "method.alignment",
    "keep_batch": "method.keep",
    "keep_sample": "method.keep",
    "Trace": "cost.trace",
    "CostMeter": "cost.measure",
    "calibrate": "cost.temperature",
}

__all__ = [*HOMES, "cost"]


class Costs(ModuleType):
    """The room `madtp.cost`, which is also a function: the name says both."""

    def __call__(self, model, tower: str | None = None) -> dict:
        """See `madtp.shared.library.prune.cost`."""
        return import_module(f"{__name__}.shared.library.prune").cost(model, tower)


costs.__class__ = Costs


def __getattr__(name: str):
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *HOMES]
