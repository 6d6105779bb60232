"""The table of docs/library.md: what pruning without training leaves of a model, and how much faster it is."""

from benchmarks.comparison.reporting import NONE, table
from benchmarks.lines import Lines

SHARES = (0.3, 0.5, 0.7)
RULES = ("coverage", "ToMe")


def features(lines: Lines) -> str:
    """The features of a DINOv2 by each rule: cost, schedule, what is left, and how many times as fast as dense."""
    rows = []
    for p in SHARES:
        for rule in RULES:
            (found,) = (row for row in lines.of("library", rule=rule, p=p) if "cosine" in row)
            left = f"{found['cosine']:.3f}", f"{found['nearest']:.1f}", f"{found['ten_nearest']:.1f}"
            schedule = f"shape {found['shape']:g}" if rule == "coverage" else found["shape"]
            faster = (faster_at(lines, rule, p, batch) for batch in (1, 32))
            rows.append([f"{p:g}", rule, f"{found['percent']:.1f}", schedule, *left, *faster])
    kept = ["cosine", "same nearest, %", "same of ten, %"]
    return table(["p", "rule", "% of GFLOPs", "schedule found", *kept, "faster, batch 1", "batch 32"], rows)


def faster_at(lines: Lines, rule: str, p: float, batch: int) -> str:
    """The speed-up over dense as it was measured last; dashes where it was not."""
    found = [row["faster"] for row in lines.of("library", rule=rule, p=p, batch=batch) if "faster" in row]
    return f"{found[-1]:.2f} x" if found else NONE
