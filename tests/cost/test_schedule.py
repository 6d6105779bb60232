"""Schedules that cost the same, and which is chosen."""

import logging

import pytest
import torch

from madtp.cost.flops import TowerShape, tower
from madtp.cost.schedule import SHAPES, amounts_for, least_moved, planned, squared_distance
from madtp.cost.temperature import RatioOutOfReach
from madtp.method.coverage import left_by
from madtp.method.merged import Schedule
from madtp.method.rules import COVERAGE

SHAPE = TowerShape(384, 1536.0, 3 * 16 * 16 * 384, prefix=2)


def cost(shape, amount):
    layers = planned(Schedule(12, shape, 196, prefix=2), amount)
    return tower(SHAPE, layers) / tower(SHAPE, planned(Schedule(12, shape, 196, prefix=2), 0.0))


def test_what_is_planned_is_what_every_layer_is_told():
    layers = planned(Schedule(12, 0.7, 196, prefix=2), 1.5)
    assert [layer.left for layer in layers] == [2 + left_by(196, 1.5, 0.7, layer, 12) for layer in range(12)]
    assert [layer.entered for layer in layers] == [198, *(layer.left for layer in layers[:-1])]
    assert {layer.rule for layer in layers} == {COVERAGE}
    assert {(layer.left, layer.scored) for layer in planned(Schedule(12, 0.7, 196, prefix=2), 0.0)} == {(198, False)}


@pytest.mark.parametrize("share", [0.3, 0.5, 0.9])
def test_every_shape_costs_the_share(share):
    amounts = amounts_for(cost, share, 0.002)
    assert list(amounts) == list(SHAPES)
    assert all(abs(cost(shape, amount) - share) <= 0.002 for shape, amount in amounts.items())


def test_shapes_that_cannot_cost_the_share_are_left_out():
    floors = {shape: cost(shape, 1e9) for shape in SHAPES}
    assert len({*floors.values()}) == 1  # one token is left to every layer, whatever the shape
    with pytest.raises(RatioOutOfReach):
        amounts_for(cost, min(floors.values()) - 0.02)
    with pytest.raises(RatioOutOfReach, match="p 0.7 "):
        amounts_for(lambda shape, amount: max(0.5, cost(shape, amount)), 0.3)
    some = amounts_for(lambda shape, amount: max(shape / 2, cost(shape, amount)), 0.6)
    assert list(some) == [shape for shape in SHAPES if shape / 2 <= 0.605]


def test_a_cost_between_two_steps_is_said_of_an_amount(caplog):
    amounts = amounts_for(lambda shape, amount: 0.8 if amount < 3 else 0.4, 0.5, shapes=[1.0])
    assert amounts[1.0] >= 3
    said = f"no amount found that costs 50.0 % of dense; amount {amounts[1.0]:g} costs 40.0 %"
    assert caplog.messages == [said]


def test_the_least_moved_wins(caplog):
    caplog.set_level(logging.INFO)
    assert least_moved({0.5: 6.0, 1.0: 2.0, 2.0: 3.0}, 0.6) == 1.0
    assert least_moved({0.5: 0.0, 1.0: 1.0, 2.0: 0.0}, 0.6) == 0.5
    said = "schedule of shape {} at 60 % of dense; how far each moves the outputs: {}".format
    assert caplog.messages == [said(1, "0.5: 3.00, 1: 1.00, 2: 1.50"), said(0.5, "0.5: 1.00, 1: inf, 2: 1.00")]


def test_outputs_are_apart_by_the_sum_of_squares_also_in_half_precision():
    one = torch.full((2, 3), 300.0, dtype=torch.float16)
    assert squared_distance(one, -one) == 2 * 3 * 600**2
