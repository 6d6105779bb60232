"""How the model of a checkpoint prunes, and by which rule to ask it."""

from collections.abc import Mapping
from typing import NamedTuple

from madtp.method.errors import UserError
from madtp.method.rules import BATCH, COVERAGE, refuse_idle_shape


class Stored(NamedTuple):
    """How the model of a checkpoint prunes; a file that does not say is dense, or a released one.

    Attributes:
        temperature: 0 for the dense model.
        keep: the rule by which it keeps tokens, one of `RULES`.
        batch_size: what it was scored with; None where the file does not say.
        shape: of the schedule by which tokens go, where the rule has one.
    """

    temperature: float = 0.0
    keep: str = BATCH
    batch_size: int | None = None
    shape: float | None = None

    @classmethod
    def of(cls, content: Mapping) -> "Stored":
        """From a checkpoint's content."""
        return cls(**{name: content[name] for name in cls._fields if name in content})

    def prunes_by(self, keep: str) -> bool:
        """Whether this model prunes, by this rule."""
        return self.temperature > 0 and self.keep == keep

    def rule(self, keep: str | None, shape: float | None, temperature: float | None, shape_named: bool = False) -> dict:
        """The rule to ask the model by, `keep` and `shape` of a configuration: its own unless another is named.

        Args:
            keep: the rule that is named, or None.
            shape: of the configuration.
            temperature: that is named, or None.
            shape_named: whether somebody asked for this shape, and it does not just stand in a file.

        Raises:
            UserError: it was pruned by coverage, whose amount is no temperature of the rule that is named; or a shape
                is asked for where the rule has none.
        """
        if keep not in (None, COVERAGE) and self.prunes_by(COVERAGE) and temperature is None:
            raise UserError(f"this model prunes by coverage; --keep {keep} needs a temperature: --temperature or --p 0")
        keep = keep or self.keep
        if shape_named:
            refuse_idle_shape(keep, shape)
        own = keep == COVERAGE and self.prunes_by(COVERAGE) and not shape_named
        return {"keep": keep, "shape": self.shape if own else shape}

    def other_company(self, batch_size: int) -> str:
        """One line where the model would be asked in batches of another size than it was scored with, else nothing.

        By the rule `batch` its answers and its cost depend on that.
        """
        if self.keep != BATCH or self.temperature == 0 or self.batch_size in (None, batch_size):
            return ""
        return (
            f"this model was scored in batches of {self.batch_size} and is asked in batches of {batch_size}: by its "
            "rule all keep as many as the one that needs most, so answers and cost differ; `keep: sample` does not"
        )
