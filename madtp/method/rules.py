"""The rules by which tokens are kept, by name, free of torch for whoever only reads a configuration."""

from madtp.method.errors import UserError

BATCH, SAMPLE, COVERAGE = "batch", "sample", "coverage"
RULES = (BATCH, SAMPLE, COVERAGE)
OF_COVERAGE = {"shape": None, "keep_norm": False}  # the keys that it alone has, and what they are by default


def knob(keep: str) -> str:
    """What people call that by which a rule prunes more or less."""
    return "amount" if keep == COVERAGE else "temperature"


def refuse_idle(keep: str, shape: float | None, keep_norm: bool) -> None:
    """Raises a UserError where a shape, or lengths that are kept, are chosen for a rule that has none."""
    if keep == COVERAGE:
        return
    if shape is not None:
        idle = f"shape is {shape:g}, but tokens are kept by {keep}, which has no shape"
        raise UserError(f"{idle}; prune by coverage (--set keep=coverage), or leave it out (--set shape=null)")
    if keep_norm:
        idle = f"keep_norm is true, but tokens are kept by {keep}, which keeps no lengths"
        raise UserError(f"{idle}; prune by coverage (--set keep=coverage), or leave it out (--set keep_norm=false)")


def setting(keep: str, temperature: float, shape: float | None = None, keep_norm: bool = False) -> str:
    """How much a rule prunes, for people to read: "T 12.5", or "amount 1.2, shape 0.7, lengths kept"."""
    if keep != COVERAGE:
        return f"T {temperature:.4g}"
    return f"amount {temperature:.4g}" + (f", shape {shape:.4g}" if shape else "") + ", lengths kept" * keep_norm
