"""How the model of a checkpoint prunes, and by which rule to ask it."""

from collections.abc import Collection, Mapping
from typing import NamedTuple

from madtp.method.errors import UserError
from madtp.method.rules import BATCH, COVERAGE, OF_COVERAGE, refuse_idle


class Stored(NamedTuple):
    """How the model of a checkpoint prunes; a file that does not say is dense, or a released one.

    Attributes:
        temperature: 0 for the dense model.
        keep: the rule by which it keeps tokens, one of `RULES`.
        batch_size: what it was scored with; None where the file does not say.
        shape: of the schedule by which tokens go, where the rule has one.
        keep_norm: whether merged tokens are as long as what they stand for.
    """

    temperature: float = 0.0
    keep: str = BATCH
    batch_size: int | None = None
    shape: float | None = None
    keep_norm: bool = False

    @classmethod
    def of(cls, content: Mapping) -> "Stored":
        """From a checkpoint's content."""
        return cls(**{name: content[name] for name in cls._fields if name in content})

    def prunes_by(self, keep: str) -> bool:
        """Whether this model prunes, by this rule."""
        return self.temperature > 0 and self.keep == keep

    def rule(self, keep: str | None, temperature: float | None, config: Mapping, named: Collection[str] = ()) -> dict:
        """The rule to ask the model by, `keep` and `OF_COVERAGE` of a configuration: its own unless another is named.

        A model that prunes by no rule yet is asked by the configuration's.

        Args:
            keep: the rule that is named, or None.
            temperature: that is named, or None.
            config: has `keep` and the keys of `OF_COVERAGE`.
            named: the keys that somebody asked for, and that do not just stand in a file.

        Raises:
            UserError: it was pruned by coverage, whose amount is no temperature of the rule that is named; or what
                coverage alone has is asked for by another rule.
        """
        if keep not in (None, COVERAGE) and self.prunes_by(COVERAGE) and temperature is None:
            raise UserError(f"this model prunes by coverage; --keep {keep} needs a temperature: --temperature or --p 0")
        keep = keep or (self.keep if self.temperature else config["keep"])
        asked = {name: config[name] if name in named else absent for name, absent in OF_COVERAGE.items()}
        refuse_idle(keep, **asked)
        own = self._asdict() if keep == COVERAGE and self.prunes_by(COVERAGE) else config
        return {"keep": keep} | {name: (config if name in named else own)[name] for name in OF_COVERAGE}

    def other_rule(self, keep: str) -> str:
        """One line where the model would be asked at its own temperature by the paper's other rule, else nothing."""
        if self.temperature == 0 or keep == self.keep or COVERAGE in (keep, self.keep):
            return ""
        return (
            f"T {self.temperature:.4g} was found for keep={self.keep}; by {keep} it leaves another cost, and the same "
            "one needs another --temperature"
        )

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
