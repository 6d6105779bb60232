"""What draws the picture of the front page runs, on a small model with random weights."""

import sys

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import Dinov2Config, Dinov2Model

from benchmarks import picture
from benchmarks.timing import told


def test_the_picture_is_drawn_three_times(tmp_path, capsys):
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 6, "num_attention_heads": 2, "image_size": 56, "patch_size": 14}
    Dinov2Model(Dinov2Config(**sizes)).save_pretrained(tmp_path / "model")
    pixels = np.random.default_rng(0).integers(0, 256, (80, 120, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    flags = {"--model": tmp_path / "model", "--image": tmp_path / "photo.png", "--out": tmp_path / "kept.png"}
    picture.main([str(word) for pair in flags.items() for word in pair] + ["--pixels", "224"])
    drawn = np.array(Image.open(tmp_path / "kept.png"))
    assert drawn.shape == (224, 672, 3)
    whole, half, less = np.split(drawn, 3, axis=1)
    assert (whole != half).any() and (half != less).any()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and all("of dense" in line for line in lines)


def test_what_is_not_there_is_said_in_one_line_and_nothing_is_fetched(tmp_path, monkeypatch, capsys):
    Image.new("RGB", (60, 60)).save(tmp_path / "photo.png")
    known = {"--model": tmp_path / "model", "--image": tmp_path / "photo.png", "--out": tmp_path / "kept.png"}
    for wrong, fault in (("--model", "--download fetches it"), ("--image", "No such file")):
        asked = known | {wrong: tmp_path / "absent"}
        monkeypatch.setattr(sys, "argv", ["picture", *(str(word) for pair in asked.items() for word in pair)])
        with pytest.raises(SystemExit, match="2"):
            told(picture.main)
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"error: {wrong} {tmp_path / 'absent'}: ") and fault in line
