"""The demos: chains of commands that exist and follow from one another, and what their pictures show."""

import importlib
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.image import imread

from madtp.look import demo, pictures
from madtp.look.stages import DEMOS, command
from madtp.look.survival import Step
from madtp.run.flags import parse
from madtp.run.keys import keys_of


@pytest.mark.parametrize("name", DEMOS)
@pytest.mark.parametrize("quick", [False, True])
def test_every_stage_is_a_command_that_its_script_takes(name, quick):
    chain, done = DEMOS[name], {}
    for stage in chain.stages:
        script, *flags = command(stage, Path("out"), "data", quick)
        module = importlib.import_module(script.removesuffix(".py"))
        (task,) = (value for value in vars(module).values() if getattr(value, "__module__", "") == module.__name__
                   and hasattr(value, "default_config"))  # fmt: skip
        args, config = parse(flags, task())
        assert stage.start == "" or config["pretrained"] == f"{done[stage.start]}/checkpoint_best.pth"
        assert keys_of(task.name).keys() == config.keys()
        done[stage.name] = args.output_dir
    assert args.p == (0.2 if quick else 0.5) and config["ramp"] == 0 and task.__name__ == chain.task
    assert stage.start == chain.stages[-2].name, "the last two are compared"


def test_the_first_estimate_is_the_whole_demo_at_the_machine_s_pace(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo.subprocess, "run", lambda *arguments, **named: None)
    demo.run_stages(DEMOS["nlvr"], tmp_path, False, pace=1.5)
    whole = 484  # seconds from its first line to its last, where the stages were timed
    assert f"=== 1/5 make the pictures - about {1.5 * whole / 60:.1f} min to go" in capsys.readouterr().out


def test_dropped_patches_fade():
    image = np.random.default_rng(0).random((4, 4, 3))
    faded = pictures.dim_dropped(image, kept=[0, 3], side=2)
    assert (faded[:2, :2] == image[:2, :2]).all() and (faded[2:, 2:] == image[2:, 2:]).all()
    for dropped in (np.s_[:2, 2:], np.s_[2:, :2]):
        assert 0 < faded[dropped].std() < 0.5 * image[dropped].std()


def test_an_image_comes_back_from_its_normalisation():
    pixels, mean, std = torch.rand(3, 2, 2), (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    normalised = (pixels - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    assert np.allclose(pictures.readable_image(normalised, mean, std), pixels.permute(1, 2, 0), atol=1e-6)


def test_pictures_are_drawn(tmp_path):
    steps = [
        Step([(0,), (1,), (2,), (3,)], [(0,), (1, 2, 3)]),
        Step([(0,), (1, 2, 3)], [(0,), (1, 2, 3)], grouped=True),
    ]
    example = pictures.Example(["what is it?", "dense: a dog", "compressed: a dog"], [np.ones((4, 4, 3))], [steps], 2)
    pictures.draw_tokens(tmp_path / "tokens.png", [example] * 2, "heading")
    record = {"val_accuracy": 50, "percent": 60, "target": 50, "tokens": {"image": [3, 2]}}
    pictures.draw_summary(tmp_path / "summary.png", [record], [record] * 2, "accuracy", "heading")
    for name in ("tokens", "summary"):
        assert imread(tmp_path / f"{name}.png").std() > 0
