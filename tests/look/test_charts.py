"""Charts of runs show the numbers of their logs, at the epochs and costs that they are of."""

import matplotlib.pyplot as plt
import pytest
from matplotlib.colors import to_hex

from madtp.look import charts
from madtp.look.paper import POINTS

RECORDS = [
    {"percent": 75.0, "target": 76.0, "temperature": 1.5, "train_loss_task": 0.9, "val_accuracy": 50.0},
    {"percent": 51.0, "target": 50.0, "temperature": 4.5, "train_loss_task": 0.7, "val_accuracy": 61.0},
]
LAYERS = {"tokens": {"image": [30, 20, 9], "text": [7, 5]}}
BANDS = {"tokens_p10": {"image": [25, 15, 5], "text": [6, 4]}, "tokens_p90": {"image": [35, 25, 15], "text": [8, 6]}}


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def drawn(figure):
    """What the visible charts show: title -> label -> [(x, y), ...]."""
    return {
        axis.get_title(): {
            line.get_label(): list(zip(map(float, line.get_xdata()), map(float, line.get_ydata()), strict=True))
            for line in axis.lines
        }
        for axis in figure.axes
        if axis.get_visible()
    }


def test_the_course_of_a_run_is_its_log():
    shown = drawn(charts.course(RECORDS, "accuracy", LAYERS))
    assert shown == {
        "accuracy": {"val": [(1, 50), (2, 61)]},
        "training losses": {"loss_task": [(1, 0.9), (2, 0.7)]},
        "cost, % of the dense GFLOPs": {"measured": [(1, 75), (2, 51)], "target": [(1, 76), (2, 50)]},
        "temperature T": {"temperature T": [(1, 1.5), (2, 4.5)]},
        "image tokens left": {"image, mean": [(1, 30), (2, 20), (3, 9)]},
        "text tokens left": {"text, mean": [(1, 7), (2, 5)]},
    }


def test_what_a_log_lacks_is_left_out():
    records = [record | {"target": None, "keep": "coverage"} for record in RECORDS]
    shown = drawn(charts.course(records, None, {"tokens": {"image": [30]}}))
    assert list(shown) == ["training losses", "cost, % of the dense GFLOPs", "amount of coverage's schedule",
                           "image tokens left"]  # fmt: skip
    assert list(shown["cost, % of the dense GFLOPs"]) == ["measured"]
    records[1]["val_accuracy"] = None
    assert "accuracy" not in drawn(charts.course(records, "accuracy", LAYERS))


def test_the_band_of_most_samples_is_around_their_mean():
    figure = charts.course(RECORDS, "accuracy", LAYERS | BANDS)
    (band,) = figure.axes[4].collections
    assert {tuple(point) for point in band.get_paths()[0].vertices} == {
        (1, 25), (2, 15), (3, 5), (1, 35), (2, 25), (3, 15)
    }  # fmt: skip


def test_scores_stand_at_their_share_of_dense_beside_the_paper_s():
    runs = [("half", 50.0, 82.0), ("whole", 100.0, 83.0)]
    figure = charts.score_against_cost("CIDEr", runs, POINTS["caption"], "test")
    (axis,) = figure.axes
    points = {line.get_label(): line.get_xydata().tolist() for line in axis.lines}
    assert points["paper: dense"] == [[100, 133.3]]
    assert points["paper: MADTP"] == [
        [pytest.approx(100 * 39.7 / 65.7), 131],
        [pytest.approx(100 * 22.1 / 65.7), 120.1],
    ]
    own = [line for line in axis.lines if not line.get_label().startswith("paper")]
    assert [line.get_xydata().tolist() for line in own] == [[[50, 82]], [[100, 83]]]
    assert [to_hex(line.get_color()) for line in own] == [charts.COMPRESSED, charts.DENSE]
    assert [(text.get_text(), text.xy) for text in axis.texts] == [("half", (50, 82)), ("whole", (100, 83))]
    assert axis.get_legend() and axis.get_ylabel() == "CIDEr (test)"
    alone = charts.score_against_cost("CIDEr", runs, [], "test")
    assert alone.axes[0].get_legend() is None
