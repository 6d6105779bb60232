"""The command that makes two towers in transformers' form the start of BLIP's tasks."""

import logging

import pytest
import transformers

from madtp.__main__ import main
from madtp.method.errors import UserError
from madtp.run import config as configuration
from models.blip import blip_decoder
from models.blip_nlvr import blip_nlvr
from models.blip_retrieval import blip_retrieval
from models.blip_vqa import blip_vqa
from tests.shared.weights.theirs import bert, dinov2, needs_5, saved

pytestmark = needs_5


@pytest.fixture
def flags(tmp_path):
    theirs = dinov2()
    return [
        "--image",
        str(saved(theirs, tmp_path / "image")),
        "--text",
        str(saved(bert(transformers.BertForMaskedLM), tmp_path / "text", vocabulary=True)),
        "--output_dir",
        str(tmp_path / "towers"),
    ]


def test_every_task_of_blip_starts_from_it(tmp_path, flags, capsys, caplog):
    assert main(["towers", *flags, "--image_size", "56"]) == 0
    told = capsys.readouterr().out
    assert "Dinov2Model, 3 layers, width 48, patches of 14 pixels, 5 x 5 positions; folded: mean 0.485" in told
    assert "layer scale" in told and "202 words with [DEC] and [ENC]" in told and "its prediction head" in told
    fresh = {
        "caption_coco": (blip_decoder, "30 cross-attention, 1 guidance"),
        "vqa": (blip_vqa, "60 cross-attention, 1 guidance"),
        "retrieval_flickr": (blip_retrieval, "30 cross-attention, 4 projection, 2 matching head, 1 guidance, "),
        "nlvr": (blip_nlvr, "54 cross-attention, 4 classifier, 1 guidance"),
    }
    for name, (builder, parts) in fresh.items():
        path = str(tmp_path / "towers" / f"{name}.yaml")
        assert path in told
        config = configuration.resolve(path, configuration.task_of(path))
        assert config["image_size"] == 56 and config["sd_dim"] == 48
        sizes = {key: config[key] for key in ("image_size", "vit", "med_config")}
        caplog.clear()
        with caplog.at_level(logging.INFO):
            model = builder(config["pretrained"], **sizes, config=config)
        assert f"left fresh {parts}" in caplog.text
        assert model.visual_encoder.norm.eps == 1e-3
        if builder is blip_vqa:
            assert "text_decoder starts from the checkpoint's text_encoder" in caplog.text
            same_but_cross_attention(model.text_decoder.bert, model.text_encoder)
            assert model.text_decoder.cls["predictions"].bias.abs().max() > 0


def test_they_are_no_model_to_evaluate(tmp_path, flags):
    assert main(["towers", *flags]) == 0
    path = str(tmp_path / "towers" / "vqa.yaml")
    config = configuration.resolve(path, "vqa")
    sizes = {key: config[key] for key in ("image_size", "vit", "med_config")}
    with pytest.raises(UserError, match="does not fit this model.*crossattention.*is missing"):
        blip_vqa(config["pretrained"], **sizes, config=config, evaluate=True)


@pytest.mark.parametrize(
    "more, said",
    [
        (["--mean", "0.5", "0.5", "0.5"], "--mean and --std belong together"),
        (["--mean", *"000", "--std", *"101"], "std [1.0, 0.0, 1.0] of its pixels, expected std above 0"),
        (["--mean", "nan", *"00", "--std", *"111"], "mean [nan, 0.0, 0.0]"),
        (["--image_size", "60"], "image_size 60 is no multiple of patch_size 14"),
        *((["--image_size", size], f"image_size is {size}, expected an integer, at least 1") for size in ("0", "-14")),
        (["--config", "configs/retrieval_coco_clip.yaml"], "is for CLIP, which has its own two towers"),
        (["--tokenizer", "nowhere"], "nowhere has no vocab.txt and no tokenizer.json; --tokenizer names a folder"),
        (["--image", "nowhere"], "nowhere: no such folder; give one with config.json"),
        (["--text", "nowhere"], "nowhere: no such folder; give one with config.json"),
    ],
)
def test_mistakes_end_in_one_line_and_write_nothing(tmp_path, flags, capsys, more, said):
    assert main(["towers", *flags, *more]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert not (tmp_path / "towers").exists()


def test_towers_of_the_hub_are_named_where_they_were_fetched_to(tmp_path, flags, capsys, monkeypatch):
    folders = {"--image": "owner/image", "--text": "owner/text"}
    fetched = []
    monkeypatch.setattr("madtp.shared.weights.hub.fetch", lambda name: fetched.append(name) or tmp_path / name[6:])
    named = [folders.get(before, word) for before, word in zip(["", *flags], flags, strict=False)]
    assert main(["towers", *named]) == 2
    assert "pretrained/owner/image: no such folder" in capsys.readouterr().err and fetched == []
    assert main(["towers", *named, "--download"]) == 0
    assert fetched == ["owner/image", "owner/text"]


def same_but_cross_attention(left, right):
    pairs = zip(left.named_parameters(), right.parameters(), strict=True)
    assert all(own.equal(other) for (name, own), other in pairs if "crossattention" not in name)
