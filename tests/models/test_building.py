"""Checkpoints that say themselves what they are, and what is said where they run as something else."""

import logging
import math
import shutil

import pytest
import torch

from madtp.method.errors import UserError
from madtp.run.keys import COMMON_KEYS
from madtp.shared.weights import architecture
from models.blip import blip_decoder
from models.blip_retrieval import blip_retrieval
from models.blip_vqa import blip_vqa
from models.building import DEFAULTS
from tests.models.test_models import STATEMENTS
from tests.tiny import BERT, CONFIG, SIZES, VIT, build, images


def test_without_a_configuration_a_model_is_the_paper_s(tmp_path, monkeypatch):
    """As with BLIP's own builders, which take none."""
    shutil.copytree(CONFIG["tokenizer"], tmp_path / "pretrained" / "bert-base-uncased")
    monkeypatch.chdir(tmp_path)
    assert {name: COMMON_KEYS[name].default for name in DEFAULTS} == DEFAULTS, "as the scripts have them"
    assert blip_decoder(**SIZES).space_dict.shape == (100, 768)
    assert blip_decoder(**SIZES, config={"sd_num": 6}).space_dict.shape == (6, 768)


def test_a_rule_that_is_none_is_named():
    with pytest.raises(UserError, match="keep is 'all', expected one of batch, sample, coverage"):
        blip_decoder(**SIZES, config=CONFIG | {"keep": "all"})


def test_the_checkpoint_s_own_sizes_go_before_the_configuration_s(tmp_path):
    """Heads and norms stand in no shape: a model that ran with others would be another one."""
    own = {"vit": VIT | {"num_heads": 4, "norm_eps": 1e-3}, "med_config": BERT | {"num_attention_heads": 6}}
    source = build(blip_retrieval, own | {"embed_dim": 20, "queue_size": 6}).float()
    torch.save({"model": source.state_dict(), **architecture.entry(source)}, tmp_path / "model.pth")
    again = blip_retrieval(f"{tmp_path}/model.pth", **SIZES, queue_size=6, evaluate=True, config=CONFIG).eval()
    text = source.encode_captions(STATEMENTS)
    with torch.no_grad():
        for one, other in zip(
            source.encode_image(images(3).float()), again.encode_image(images(3).float()), strict=True
        ):
            one, other = (getattr(value, "tokens", value) for value in (one, other))
            assert one.equal(other)
        assert source.encode_text(*text).equal(again.encode_text(*text))


@pytest.mark.parametrize("evaluate", [True, False])
def test_images_of_another_size_are_said(tmp_path, caplog, evaluate):
    torch.save(build(blip_decoder).float().state_dict(), tmp_path / "model.pth")
    with caplog.at_level(logging.INFO):
        blip_decoder(f"{tmp_path}/model.pth", **SIZES, evaluate=evaluate, config=CONFIG)
        assert "resized" not in caplog.text
        blip_decoder(f"{tmp_path}/model.pth", **SIZES | {"image_size": 96}, evaluate=evaluate, config=CONFIG)
    (record,) = [record for record in caplog.records if "resized" in record.getMessage()]
    assert record.getMessage().endswith("model.pth is for images of 64 pixels and gets 96: its positions are resized")
    assert record.levelno == (logging.WARNING if evaluate else logging.INFO)


@pytest.mark.parametrize("builder", [blip_decoder, blip_vqa, blip_retrieval])
def test_lavis_s_checkpoints(tmp_path, builder):
    """Its runs save under the same names, without what needs no gradient, beside optimizer and configuration."""
    sizes = {"queue_size": 6} if builder is blip_retrieval else {}
    source = build(builder, sizes).float()
    parameters = dict(source.named_parameters())
    state = {
        name: value
        for name, value in source.state_dict().items()
        if (name not in parameters or parameters[name].requires_grad)
        and not any(own in name for own in ("query_model", "space_dict"))
    }
    content = {
        "model": state,
        "optimizer": {"state": {}},
        "config": {"run": {"task": "captioning"}},
        "scaler": None,
        "epoch": 4,
    }
    torch.save(content, tmp_path / "checkpoint_4.pth")
    again = builder(f"{tmp_path}/checkpoint_4.pth", **SIZES | sizes, evaluate=True, config=CONFIG)
    assert all(value.equal(state[name]) for name, value in again.state_dict().items() if name in state)


def test_an_activation_that_ours_does_not_have():
    with pytest.raises(UserError, match="med_config: hidden_act 'relu' is not supported"):
        blip_decoder(**SIZES | {"med_config": BERT | {"hidden_act": "relu"}}, config=CONFIG)


@pytest.mark.parametrize(
    "name, value, expected",
    [
        ("num_hidden_layers", 0, "at least 1 and at most"),
        ("num_attention_heads", 0, "at least 1 and at most"),
        ("num_attention_heads", -3, "at least 1 and at most"),
        ("max_position_embeddings", 0, "at least 1 and at most"),
        ("intermediate_size", 10**22, "at least 1 and at most"),
        ("hidden_dropout_prob", 7, "at least 0 and at most 1"),
        ("attention_probs_dropout_prob", math.nan, "at least 0 and at most 1"),
        ("layer_norm_eps", math.nan, "at least 0 and at most"),
        ("initializer_range", -0.1, "at least 0 and at most"),
    ],
)
def test_sizes_that_no_text_tower_has(name, value, expected):
    with pytest.raises(UserError, match=f"med_config: {name} is {value}, expected {expected}"):
        blip_decoder(**SIZES | {"med_config": BERT | {name: value}}, config=CONFIG)


def test_a_dropout_may_be_written_without_a_point():
    blip_decoder(**SIZES | {"med_config": BERT | {"hidden_dropout_prob": 0}}, config=CONFIG)


def test_an_architecture_that_no_model_has(tmp_path):
    torch.save(
        {"model": build(blip_decoder).state_dict(), "architecture": {"vit": {"depth": -1}}}, tmp_path / "model.pth"
    )
    with pytest.raises(UserError, match="its architecture says vit {'depth': -1}, which no model has"):
        blip_decoder(f"{tmp_path}/model.pth", **SIZES, config=CONFIG)
