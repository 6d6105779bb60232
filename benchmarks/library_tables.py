"""The tables of docs/library.md: what pruning without training leaves of a model, and how much faster it is."""

from benchmarks.comparison.reporting import NONE, table
from benchmarks.lines import Lines
from benchmarks.photos.results import Results, best_schedule, score, score_name, task_name
from benchmarks.photos.world import MODELLED

SHARES = (0.3, 0.5, 0.7)
RULES = ("coverage", "coverage, lengths kept", "ToMe")


def features(lines: Lines) -> str:
    """The features of a DINOv2 by each rule: cost, schedule, what is left, and how many times as fast as dense."""
    rows = []
    for p in SHARES:
        for rule in RULES:
            (found,) = (row for row in lines.of("library", rule=rule, p=p) if "cosine" in row)
            left = f"{found['cosine']:.3f}", f"{found['nearest']:.1f}", f"{found['ten_nearest']:.1f}"
            schedule = found["shape"] if isinstance(found["shape"], str) else f"shape {found['shape']:g}"
            faster = (faster_at(lines, rule, p, batch) for batch in (1, 32))
            rows.append([f"{p:g}", rule, f"{found['percent']:.1f}", schedule, *left, *faster])
    kept = ["cosine", "same nearest, %", "same of ten, %"]
    return table(["p", "rule", "% of GFLOPs", "schedule found", *kept, "faster, batch 1", "batch 32"], rows)


def faster_at(lines: Lines, rule: str, p: float, batch: int) -> str:
    """The speed-up over dense as it was measured last; dashes where it was not."""
    found = [row["faster"] for row in lines.of("library", rule=rule, p=p, batch=batch) if "faster" in row]
    return f"{found[-1]:.2f} x" if found else NONE


def photo_models(lines: Lines) -> str:
    """The photo models by each rule: the cost of all of the model and of its image tower, scores, and their difference.

    Coverage goes by the schedule that is found without labels, ToMe by the one that scored best.
    """
    results, rows = Results(lines.folder, lines.folder), []
    for task in MODELLED:
        dense = results.dense(task)
        for p in SHARES:
            ours = results.of(task, "coverage", "searched", p)
            theirs = results.of(task, "tome", best_schedule(results.known, task, "tome", p), p)
            scores = [f"{score(one):.1f} ({100 * score(one) / score(dense):.0f} %)" for one in (ours, theirs)]
            cost = f"{ours['percent']:.0f} ({ours['image_percent']:.0f})"
            schedule = theirs.get("shape", theirs["schedule"])
            gap = results.against(ours, theirs)
            name = f"{task_name(task)}, {score_name(task)}"
            rows.append([name, cost, f"{score(dense):.1f}", scores[0], f"{scores[1]}, {schedule}", str(gap)])
    costs = "% of GFLOPs (of the tower's)"
    return table(["", costs, "dense", "coverage (of dense)", "ToMe (of dense), best schedule", "difference"], rows)
