"""What a checkpoint says of its model, by itself: which values are taken, which the configuration keeps."""

import json
import logging

import pytest
import torch

from madtp.method.errors import UserError
from madtp.shared.weights import architecture

CONFIG = {"image_size": 384, "vit": "base", "med_config": {"hidden_size": 768}, "tokenizer": "words", "p": 1}


@pytest.mark.parametrize(
    "name, value, fits",
    [
        ("image_size", 224, True),
        ("norm_eps", 1e-5, True),
        ("embed_dim", 0, False),
        ("head_width", True, False),
        ("norm_eps", float("inf"), False),
        ("activation", "gelu", True),
        ("tokenizer", 7, False),
        ("vit", "large", True),
        ("vit", {"depth": 3, "mlp_ratio": 2.5}, True),
        ("vit", {"depth": 0}, False),
        ("vit", {"width": 3}, False),
        ("vit", 3, False),
        ("med_config", {"hidden_size": 48, "pad_token_id": 0}, True),
        ("med_config", {"hidden_size": 0}, False),
        ("med_config", {"hidden_size": 48, "depth": 3}, False),
        ("med_config", {"pad_token_id": -1}, False),
        ("med_config", "bert.json", False),
    ],
)
def test_values_that_a_model_can_have(name, value, fits):
    if fits:
        assert architecture.checked({name: value}, "model.pth") == {name: value}
    else:
        with pytest.raises(UserError, match=f"^model.pth: its architecture says {name} .*, which no model has"):
            architecture.checked({name: value}, "model.pth")


@pytest.mark.parametrize("positions, side", [(17, 32), (2, 8), (1, None), (16, None), (18, None)])
def test_a_square_grid_of_positions_tells_the_image_size(positions, side):
    state = {"visual.positional_embedding": torch.ones(positions, 4), "visual.conv1.weight": torch.ones(4, 3, 8, 8)}
    expected = {} if side is None else {"image_size": side}
    assert architecture.image_size(state) == architecture.of({"model": state}) == expected
    stated = {"image_size": 7, "activation": "gelu"}
    assert architecture.of({"model": state, "architecture": stated}) == stated, "what is said goes before"
    assert architecture.of({"model": state, "architecture": {"norm_eps": 1}}) == {"norm_eps": 1} | expected


def adopted(stated, own_size=False, **config):
    before = CONFIG | config
    after = architecture.adopt(before, stated, "model.pth", own_size)
    assert before == CONFIG | config and after.keys() == before.keys()
    return {name: value for name, value in after.items() if value != before[name]}


def test_sizes_are_the_checkpoints_and_what_is_free_the_configurations(caplog):
    caplog.set_level(logging.INFO)
    assert adopted({}) == adopted({"vit": "base", "image_size": 224, "norm_eps": 1, "unheard": 2}) == {}
    assert caplog.text == "", "nothing changed"
    assert adopted({"vit": "large"}) == {"vit": "large"} and "model.pth says vit large\n" in caplog.text
    assert adopted({"tokenizer": "theirs"}) == {"tokenizer": "theirs"}
    assert adopted({}, own_size=True, activation=None) == {}
    assert adopted({"image_size": 224}, own_size=True) == {"image_size": 224}
    assert adopted({"image_size": 224}, image_size=None) == {"image_size": 224}
    architecture.adopt(CONFIG | {"image_size": None}, {"image_size": 224}, "")
    assert "a fresh model says image_size 224\n" in caplog.text
    assert adopted({"med_config": {"hidden_size": 768}}) == {}
    merged = {"hidden_size": 48, "num_hidden_layers": 3}
    med_config = {"hidden_size": 768, "num_hidden_layers": 3}
    assert adopted({"med_config": {"hidden_size": 48}}, med_config=med_config) == {"med_config": merged}
    clip = {"activation": "gelu", "head_width": 64}
    assert adopted(clip, activation=None, head_width=32) == {"activation": "gelu"}, "what is chosen stays"


def test_a_file_of_sizes_stays_where_it_is_right(tmp_path):
    path = tmp_path / "bert.json"
    path.write_text(json.dumps({"hidden_size": 48, "num_hidden_layers": 3}))
    assert architecture.completed(str(path), {"hidden_size": 48}) == str(path)
    assert architecture.completed(path, {"hidden_size": 48, "num_hidden_layers": 2})["num_hidden_layers"] == 2
    assert architecture.completed(path, {"hidden_size": 32}) == {"hidden_size": 32, "num_hidden_layers": 3}
    assert architecture.completed(tmp_path / "absent.json", {"hidden_size": 32}) == {"hidden_size": 32}


def test_its_own_vocabulary_where_the_configurations_is_not_there(tmp_path):
    stated = {"tokenizer": "theirs"}
    assert architecture.with_vocabulary(CONFIG, stated) == CONFIG | stated
    here = CONFIG | {"tokenizer": str(tmp_path)}
    assert architecture.with_vocabulary(here, stated) == here
    assert architecture.with_vocabulary(CONFIG, {}) == CONFIG


def test_what_goes_without_saying_is_not_said():
    plain = {"embed_dim": 32, "depth": 3, "num_heads": 2, "patch_size": 16, "norm_eps": 1e-6}
    assert architecture.vit_sizes(32, 3, 2, 16, 128, 1e-6) == plain
    assert architecture.vit_sizes(32, 3, 2, 16, 80, 1e-6) == plain | {"mlp_ratio": 2.5}
