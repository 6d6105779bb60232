"""The controller: the search holds for any falling cost, the ceiling is named, the ladder is the released one."""

import math

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from madtp.cost.temperature import (
    LOWEST,
    RECIPES,
    RESOLUTION,
    TOLERANCE,
    ClosedLoop,
    Fixed,
    Ladder,
    RatioOutOfReach,
    calibrate,
    target,
)
from madtp.look.paper import POINTS


def smooth(midpoint, ceiling, slope=1.0):
    """A cost that falls from 1 to `ceiling`, half of the way at `midpoint`."""
    return lambda t: ceiling + (1 - ceiling) / (1 + (t / midpoint) ** slope)


def counted(cost):
    asked = []

    def count(t):
        asked.append(t)
        return cost(t)

    return count, asked


@settings(max_examples=200)
@given(
    midpoint=st.floats(1, 1e4),
    start=st.floats(0.1, 1e5),
    slope=st.floats(1, 4),
    depth=st.floats(0.05, 0.95),
)
def test_search_reaches_any_target_between_dense_and_ceiling(midpoint, start, slope, depth):
    cost, asked = counted(smooth(midpoint, 0.3, slope))
    goal = 1 - depth * 0.7
    found = calibrate(cost, goal, start)
    assert abs(smooth(midpoint, 0.3, slope)(found) - goal) <= TOLERANCE
    assert len(asked) == len(set(asked)) <= 24
    assert math.isfinite(found) and found > 0


@pytest.mark.parametrize("start", [1e-9, 1e12])
def test_a_start_beyond_all_bounds_is_brought_back(start):
    cost = smooth(64, 0.4)
    assert abs(cost(calibrate(cost, 0.7, start)) - 0.7) <= TOLERANCE


@pytest.mark.parametrize("evaluations", [1, 2, 3, 5, 8])
def test_the_search_asks_no_more_than_it_may(evaluations):
    cost, asked = counted(lambda t: 1.0 if t < 1e4 else 0.5)
    calibrate(cost, 0.7, 1.0, evaluations=evaluations)
    assert len(asked) == len(set(asked)) <= evaluations


def test_the_search_ends_where_it_has_closed_in_on_a_step():
    cost, asked = counted(lambda t: 1.0 if t < 50 else 0.5)
    assert calibrate(cost, 0.7, 1.0, evaluations=1000) >= 50 and len(asked) < 30
    assert min(t for t in asked if t >= 50) / max(t for t in asked if t < 50) < RESOLUTION


def test_a_warm_start_that_still_fits_costs_one_evaluation():
    cost, asked = counted(smooth(64, 0.4))
    assert calibrate(cost, cost(50.0), 50.0) == 50.0
    assert asked[1:] == [50.0]


@settings(max_examples=100)
@given(st.lists(st.floats(0.3, 1), min_size=1, max_size=8), st.floats(0.35, 0.99), st.floats(0.5, 500))
@example([0.4], 0.7, 1.0)
def test_steps_leave_the_closest_temperature_at_or_below_the_target(levels, goal, start):
    levels = sorted(levels, reverse=True) + [0.3]

    def cost(t):
        return 1.0 if t < 10 else levels[min(int(math.log2(t / 10)), len(levels) - 1)] if t < math.inf else 0.3

    found = cost(calibrate(cost, goal, start))
    reachable = [1.0, *levels]
    if any(abs(level - goal) <= TOLERANCE / 2 for level in reachable):
        assert abs(found - goal) <= TOLERANCE
    else:
        assert found == max(level for level in reachable if level <= goal) or abs(found - goal) <= TOLERANCE


@pytest.mark.parametrize("goal", [0.9, 0.7, 0.5, 0.45])
@pytest.mark.parametrize("start", [1.0, 37.0, 5000.0])
def test_ripples_do_not_mislead_the_search(goal, start):
    def cost(t):
        return round(smooth(64, 0.4)(t) + 0.01 * math.sin(40 * math.log(min(t, 1e9))), 3)

    assert abs(cost(calibrate(cost, goal, start)) - goal) <= TOLERANCE


def test_a_target_beyond_the_ceiling_is_an_error_that_names_it():
    cost, asked = counted(smooth(64, 0.4884))
    with pytest.raises(RatioOutOfReach, match=r"p 0\.7 .* 48\.8 % .* at most 0\.511") as error:
        calibrate(cost, 0.3, 1.0)
    assert "\n" not in str(error.value)
    assert len(asked) <= 4


@pytest.mark.parametrize("share, percent", [(1.5, "150.0"), (1.0, "100.0")])
def test_a_model_too_small_to_prune_has_no_largest_p(share, percent):
    says = f"still costs {percent} % of dense, pruning spends more than it saves$"
    with pytest.raises(RatioOutOfReach, match=says):
        calibrate(lambda temperature: share, 0.5, 1.0)


def test_slack_moves_the_target_onto_the_ceiling(caplog):
    cost = smooth(64, 0.52)
    found = calibrate(cost, 0.5, 64.0, slack=0.04)
    assert math.isfinite(found) and abs(cost(found) - 0.52) <= TOLERANCE
    assert caplog.messages == ["nothing reaches 50.0 % of dense now; aiming at the least, 52.0 %"]
    with pytest.raises(RatioOutOfReach):
        calibrate(cost, 0.47, 64.0, slack=0.04)


def test_a_ceiling_within_the_tolerance_leaves_the_target_where_it_is(caplog):
    cost = smooth(64, 0.504)
    assert abs(cost(calibrate(cost, 0.5, 64.0, slack=0.04)) - 0.5) <= TOLERANCE and not caplog.messages


def test_a_cost_that_never_comes_near_dense_ends_the_search_at_the_closest(caplog):
    cost, asked = counted(lambda t: 0.8 + 1e-4 / (1 + t))
    found = cost(calibrate(cost, 0.95, 1.0))
    assert abs(found - 0.8) < 1e-3 and len(asked) <= 25 and min(asked) >= LOWEST
    assert "costs 80.0 %, and a lower one hardly more" in caplog.text
    calibrate(lambda t: 1.0 if t < 10 else 0.5, 0.7, 1.0)
    assert caplog.text.endswith("costs 50.0 %\n")


@given(st.integers(1, 30), st.floats(0.05, 0.9), st.floats(0, 1))
def test_the_target_falls_from_below_dense_to_what_was_asked(epochs, p, ramp):
    targets = [target(epoch, epochs, p, ramp) for epoch in range(epochs)]
    assert 1 > targets[0] and targets == sorted(targets, reverse=True)
    assert targets[-1] == pytest.approx(1 - p)


def test_the_target_of_the_paper_run():
    assert target(0, 10, 0.5, 0.5) == pytest.approx(0.9)
    assert target(4, 10, 0.5, 0.5) == target(9, 10, 0.5, 0.5) == pytest.approx(0.5)
    assert target(0, 10, 0.5, ramp=0) == pytest.approx(0.5)


def test_the_closed_loop_follows_the_weights():
    loop = ClosedLoop(p=0.4, epochs=4, ramp=0.5, slack=0.0)
    temperature = None
    for epoch in range(4):
        temperature = loop.before_epoch(smooth(40 + epoch, 0.4), epoch, temperature)
        moved = smooth(60 - epoch, 0.4)
        temperature = loop.after_epoch(moved, epoch, temperature)
        assert abs(moved(temperature) - loop.target(epoch)) <= TOLERANCE


def test_the_closed_loop_refuses_before_training_what_it_would_tolerate_later():
    loop = ClosedLoop(p=0.5, epochs=4, ramp=0.5, slack=0.04)
    with pytest.raises(RatioOutOfReach):
        loop.before_epoch(smooth(64, 0.52), 0, None)
    assert loop.before_epoch(smooth(64, 0.503), 0, None) > 0
    assert loop.before_epoch(smooth(64, 0.52), 3, 64.0) > 0


def test_fixed_never_asks():
    def never(t):
        raise AssertionError("asked")

    fixed = Fixed(3.0)
    assert fixed.before_epoch(never, 0, None) == fixed.after_epoch(never, 0, 3.0) == 3.0
    assert fixed.target(0) is None


@pytest.mark.parametrize(
    "task, gap, step",
    [
        ("nlvr", 40, 1), ("nlvr", 12, 0.5), ("nlvr", 6, 0.25), ("nlvr", 2, 0.1), ("nlvr", 0.5, 0.01),
        ("nlvr", -12, -0.5), ("caption", 55, 0.5), ("caption", 31, 0.3), ("caption", 1, 0.01), ("retrieval", 11, 0.1),
        ("retrieval_clip", 3, 0.02), ("vqa", 60, 0.25), ("vqa", 31, 0.15), ("vqa", -3, -0.01), ("vqa", 1, 0),
    ],
)  # fmt: skip
def test_the_ladder_takes_the_released_steps(task, gap, step):
    ladder = Ladder(p=0.3, recipe=RECIPES[task])
    share = 0.7 + gap / RECIPES[task].dense
    assert ladder.step(share) == pytest.approx(step)
    assert ladder.before_epoch(lambda t: share, 3, 4.0) == pytest.approx(4.0 + step)
    assert ladder.after_epoch(lambda t: share, 3, 4.0) == 4.0


def test_the_ladder_s_gaps_are_in_gflops_of_the_paper_s_dense_models():
    dense = {name.split()[0]: points[0].gflops for name, points in POINTS.items()}
    assert {name: round(recipe.dense, 1) for name, recipe in RECIPES.items()} == dense


def test_the_ladder_begins_at_the_released_temperature_and_stays_above_zero():
    assert Ladder(0.5, RECIPES["nlvr"]).before_epoch(lambda t: 1.0, 0, None) == 1.0
    assert Ladder(0.5, RECIPES["vqa"]).before_epoch(lambda t: 1.0, 0, None) == 0.5
    assert Ladder(0.5, RECIPES["nlvr"]).before_epoch(lambda t: 0.1, 1, 0.2) > 0


def test_what_is_searched_has_the_name_that_its_rule_gives_it(caplog):
    loop = ClosedLoop(p=0.5, epochs=1, ramp=0.0, slack=0.0, knob="amount")
    loop.after_epoch(lambda amount: 0.6 if amount < 1 else 0.4, 0, 2.0)
    (message,) = caplog.messages
    assert message.startswith("no amount found that costs 50.0 % of dense; amount ")
