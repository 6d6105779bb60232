"""The rules by which tokens are kept, by name, free of torch for whoever only reads a configuration."""

from madtp.method.errors import UserError

BATCH, SAMPLE, COVERAGE = "batch", "sample", "coverage"
RULES = (BATCH, SAMPLE, COVERAGE)


def refuse_idle_shape(keep: str, shape: float | None) -> None:
    """Raises a UserError where a shape is chosen for a rule that has none."""
    if shape is not None and keep != COVERAGE:
        idle = f"shape is {shape:g}, but tokens are kept by {keep}, which has no shape"
        raise UserError(f"{idle}; prune by coverage (--set keep=coverage), or leave it out (--set shape=null)")


def setting(keep: str, temperature: float, shape: float | None = None) -> str:
    """How much a rule prunes, for people to read: "T 12.5", or "amount 1.2, shape 0.7"."""
    if keep != COVERAGE:
        return f"T {temperature:.4g}"
    return f"amount {temperature:.4g}" + (f", shape {shape:.4g}" if shape else "")
