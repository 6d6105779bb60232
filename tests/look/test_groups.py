"""Looking at coverage: whom every patch went with, what it is worth, and how a group is painted."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from madtp.__main__ import main
from madtp.cost.trace import LayerTrace
from madtp.look import closeup, predict
from madtp.look import pictures as drawing
from madtp.look.predictor import load
from madtp.look.samples import samples_of
from madtp.look.survival import follow
from madtp.method.pruning import Kept
from madtp.run.schedule import find_shape
from tests.look.small import KEYS, TEXTS, asked


def test_groups_are_followed_by_name():
    """Six tokens: the first layer makes three groups of them, the second nothing, the third two."""
    kept = Kept(torch.tensor([[0, 2, 4, 6]]), groups=torch.tensor([[0, 0, 2, 1, 1, 2]]))
    last = Kept(torch.tensor([[0, 1, 3]]), groups=torch.tensor([[0, 1, 1]]))
    layers = [LayerTrace(7, 4, True, kept), LayerTrace(4, 4, True), LayerTrace(4, 3, True, last)]
    steps = follow([layer._replace(rule="coverage") for layer in layers], 0)
    assert [step.left for step in steps] == [[(1, 0), (3, 4), (5, 2)]] * 2 + [[(1, 0), (5, 2, 3, 4)]]
    assert [step.prunes for step in steps] == [True, False, True] and all(step.grouped for step in steps)
    assert [step.kept for step in steps] == [[1, 3, 5], [1, 3, 5], [1, 5]]


@pytest.mark.parametrize("name", KEYS)
def test_recording_changes_nothing_and_knows_the_groups(name, checkpoint, pictures):
    predictor = load(checkpoint(name, "coverage", 1.5))
    samples = samples_of(name, list(map(Path, pictures[: 6 if name == "nlvr" else 3])), TEXTS[name])
    ((_, batch),) = predict.batched(predictor, samples, 3)
    forward, plain = (predictor.run(batch, 1.5, record=record) for record in (True, False))
    assert str(forward.results) == str(plain.results)
    (image,) = forward.towers  # texts stay whole
    for sample in range(len(image[0].total)):
        for step, layer in zip(follow(forward.trace.layers["image"], sample), image, strict=True):
            values = layer.total[sample]
            assert sorted(sum(step.left, ())) == list(range(len(image[0].total[0])))
            assert len(values) == len(step.entered) and values.min() >= 0.5 / len(values)
            np.testing.assert_allclose(values.sum(), 1, rtol=1e-5)


def test_groups_have_their_mean_colour_and_a_border():
    regions = drawing.regions_of([(1, 0), (3,), (2,)], side=2)
    assert regions.tolist() == [[0, 0], [2, 1]]
    picture = np.random.default_rng(0).random((8, 8, 3))
    painted = drawing.mean_colors(picture, regions)
    for place, patches in {(4, 0): picture[4:, :4], (7, 7): picture[4:, 4:]}.items():
        np.testing.assert_allclose(painted[place], patches.mean(axis=(0, 1)))
    assert (painted[:4] == painted[0, 0]).all()
    np.testing.assert_array_less(abs(painted[0, 0] - picture[:4].mean(axis=(0, 1))), drawing.TINT + 1e-9)
    two = drawing.mean_colors(np.full((4, 4, 3), 0.5), np.array([[0, 1], [0, 1]]))
    assert (two[0, 0] != two[0, 3]).any() and (two[0, 0] == two[3, 0]).all()
    axis = drawing.plt.figure().add_subplot()
    drawing.draw_borders(axis, np.pad(regions, 1, mode="edge"), pixels=8, color="white")
    across, down, right = sorted(line.tolist() for line in axis.collections[0].get_segments())
    assert across == [[-0.5, 3.5], [3.5, 3.5]] and right == [[3.5, 3.5], [7.5, 3.5]]
    assert down == [[3.5, 3.5], [3.5, 7.5]]


def test_all_patches_of_a_group_have_its_importance():
    kept = Kept(torch.tensor([[0, 1, 4]]), groups=torch.tensor([[0, 0, 1, 1]]))
    layers = [LayerTrace(5, 3, True, kept, "coverage"), LayerTrace(3, 3, True, None, "coverage")]
    first, second = follow(layers, 0)
    assert closeup.heat(np.array([1.0, 2.0, 3.0, 4.0]), first, side=2).tolist() == [[1, 2], [3, 4]]
    assert closeup.heat(np.array([1.0, 2.0]), second, side=2).tolist() == [[1, 1], [2, 2]]


def test_a_dense_model_is_asked_by_coverage(checkpoint, pictures, capsys):
    """Its schedule is found on the pictures themselves, unless one is given; nobody's company matters."""
    flags = ["--checkpoint", checkpoint("nlvr", "batch", 0), "--image", *pictures[:4], "--text", *TEXTS["nlvr"]]
    predictor = load(flags[1], assignments=["keep=coverage"])
    samples = samples_of("nlvr", list(map(Path, pictures[:4])), TEXTS["nlvr"])
    batches = [batch for _, batch in predict.batched(predictor, samples, 2)]
    sample = SimpleNamespace(batches=batches, cost=lambda task, model, amount: predictor.share(batches, amount))
    predictor.temperature_for(batches, 0.4)
    shape = predictor.rule["shape"]
    assert shape == find_shape(predictor, sample, 0.6)
    for record in asked(capsys, *flags, "--p", "0.4", "--set", "keep=coverage", "--compare", "--batch_size", "2"):
        assert record["compressed"]["keep"] == "coverage" and record["compressed"]["shape"] == shape
        assert record["compressed"]["percent"] == pytest.approx(60, abs=1.1) and record["dense"]["percent"] == 100
    assert main(["predict", *flags, "--p", "0.4", "--set", "keep=coverage", "shape=0.5"]) == 0
    said = capsys.readouterr()
    assert "shape 0.5)" in said.out and "note:" not in said.err
