"""Coverage against the best rival of every task and cost on generated pictures; differences are paired by seed."""

from collections.abc import Iterable
from statistics import mean

from benchmarks.comparison.methods import METHODS, VARIANTS
from benchmarks.comparison.statistics import Difference, difference_by_seed
from benchmarks.comparison.verdicts import MARGIN, UNDECIDED, Case, as_long, at, case_by_case, counted, verdict
from benchmarks.experiment.cells import TASKS
from benchmarks.experiment.ledger import SEEDS
from benchmarks.experiment.results import NAMES, Results, final
from benchmarks.experiment.running import SCORED
from benchmarks.experiment.untuned import SEARCHED
from madtp.method.rules import COVERAGE

IN_THE_END = "test"
SIDES = ("dense", "coverage", "best rival")
Scores = dict[str, dict[int, float]]  # of one method, by split and seed


def against_the_best(results: Results) -> str:
    """A row for every task and cost that coverage reaches, not fine-tuned and fine-tuned."""
    return case_by_case(judged(results), *SIDES)


def verdicts(results: Results, *ratios: str) -> str:
    """How often coverage is what at some p, in words."""
    return counted(at(judged(results), ratios))


def level(results: Results, *ratios: str) -> str:
    """In how many cases of some p both sides score what the dense models do, to within a point."""
    cases = at(judged(results), ratios)
    return f"{sum(case.level for case in cases)} of {len(cases)}"


def too_wide(results: Results, *ratios: str) -> str:
    """In how many cases of some p there is an interval, but it says nothing."""
    gaps = [case.gap for case in at(judged(results), ratios)]
    return f"{sum(gap.bounded and verdict(gap) == UNDECIDED for gap in gaps)} of {len(gaps)}"


def of_all_seeds(results: Results) -> str:
    """The cases without an interval once more, against the best rival that has all seeds."""
    few = {case.place for case in judged(results) if not case.gap.bounded}
    return case_by_case((case for case in judged(results, len(SEEDS)) if case.place in few), *SIDES)


def judged(results: Results, seeds: int = 1) -> list[Case]:
    """Both sides and their difference, wherever both reach the cost.

    Args:
        results: of generated pictures.
        seeds: how many a rival must have in common with coverage.
    """
    found = []
    for task in TASKS:
        whole = dense(results, task)
        for p in results.ratios(task):
            for is_tuned, known in ((False, untuned(results, task, p)), (True, tuned(results, task, p))):
                ours = known.get(COVERAGE, {})
                others = {name: one for name, one in known.items() if name not in (COVERAGE, *VARIANTS)}
                rivals = {name: one for name, one in others.items() if len(in_common(ours, one)[1]) >= seeds}
                if rivals:
                    rival = best(rivals, whole)
                    sides, gap, is_level = beside(whole, ours, rivals[rival], named(rival))
                    found.append(Case(NAMES[task], p, is_tuned, sides, gap, is_level))
    return found


def beside(whole: Scores, ours: Scores, theirs: Scores, title: str) -> tuple[list[str], Difference, bool]:
    """Dense models, coverage and a rival for readers, the difference, and whether both score as the dense ones do."""
    split, seeds = in_common(ours, theirs)
    scores = [[one[split][seed] for seed in seeds] for one in (whole, ours, theirs)]
    reference, own, other = map(mean, scores)
    few = "" if len(seeds) == len(SEEDS) else f" ({len(seeds)} of {len(SEEDS)} seeds)"
    sides = [f"{reference:.1f}", f"{own:.1f}", f"{title}, {other:.1f}{few}"]
    return sides, difference_by_seed(*scores[1:]), min(own, other) > reference - MARGIN


def named(method: str) -> str:
    """A method for readers, where the row of MADTP is not near."""
    title = METHODS[method].title
    return f"MADTP {title}" if title.startswith("without") else title


def in_common(ours: Scores, theirs: Scores) -> tuple[str, list[int]]:
    """The split and the experiment's seeds that both were scored on, the test split's where there are any."""
    for split in (IN_THE_END, SEARCHED):
        if seeds := ours.get(split, {}).keys() & theirs.get(split, {}).keys() & {*SEEDS}:
            return split, sorted(seeds)
    return "", []


def best(rivals: dict[str, Scores], whole: Scores) -> str:
    """The rival that loses least against the dense models of its own seeds; of equals that of more seeds.

    It is chosen on validation where it was scored there, and by what is compared where not.
    """

    def rank(name: str) -> tuple[float, int]:
        split = SEARCHED if SEARCHED in rivals[name] else IN_THE_END
        gains = [score - whole[split][seed] for seed, score in rivals[name][split].items()]
        return mean(gains), len(gains)

    return max(rivals, key=rank)


def dense(results: Results, task: str) -> Scores:
    """The dense models, as they are."""
    own = ((SCORED[task], one, final(one)) for one in results.of(task, "dense", 0.0).values())
    return by_method([*own, *scored_as_they_are(results, task, 0.0)]).get("dense", {})


def tuned(results: Results, task: str, p: float) -> dict[str, Scores]:
    """Models that were fine-tuned for as many steps, by method."""
    return by_method((SCORED[task], one, final(one)) for one in trained(results, task, p))


def untuned(results: Results, task: str, p: float) -> dict[str, Scores]:
    """Models as they are, by method, of whatever was scored before it was fine-tuned too."""
    before = ((SCORED[task], one, one["untuned"]) for one in trained(results, task, p))
    return by_method([*before, *scored_as_they_are(results, task, p)])


def trained(results: Results, task: str, p: float) -> list[dict]:
    """Records of as many steps as most have that reached a cost."""
    own = (one for one in results.known.values() if (one["task"], one["p"]) == (task, p))
    return as_long([one for one in own if "scores" in one])


def scored_as_they_are(results: Results, task: str, p: float) -> Iterable[tuple[str, dict, dict]]:
    """Split, record and outcome of what was scored without training."""
    for split, records in ((SEARCHED, results.as_they_are), (IN_THE_END, results.in_the_end)):
        for one in records:
            if (one["task"], one["p"]) == (task, p) and "untuned" in one:
                yield split, one, one["untuned"]


def by_method(outcomes: Iterable[tuple[str, dict, dict]]) -> dict[str, Scores]:
    """Scores by method, split and seed; of what was scored twice the later one."""
    found: dict[str, Scores] = {}
    for split, record, outcome in outcomes:
        found.setdefault(record["method"], {}).setdefault(split, {})[record["seed"]] = outcome["score"]
    return found
