"""The names of the rules by which tokens are kept, free of torch for whoever only reads a configuration."""

BATCH, SAMPLE, COVERAGE = "batch", "sample", "coverage"
RULES = (BATCH, SAMPLE, COVERAGE)


def setting(keep: str, temperature: float, shape: float | None = None) -> str:
    """How much a rule prunes, for people to read: "T 12.5", or "amount 1.2, shape 0.7"."""
    if keep != COVERAGE:
        return f"T {temperature:.4g}"
    return f"amount {temperature:.4g}" + (f", shape {shape:.4g}" if shape else "")
