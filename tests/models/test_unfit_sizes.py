"""Sizes of a model that do not fit each other, or are none, are refused in words before anything is built."""

import json

import pytest

from compress_caption_dtp import Caption
from models.bert import read_config
from models.blip import init_tokenizer
from models.blip_nlvr import blip_nlvr
from tests.tiny import BERT, CONFIG, SIZES, VIT, images
from utils import UserError


@pytest.mark.parametrize(
    "sizes, complaint",
    [
        ({"image_size": 70}, "image_size 70 is no multiple of patch_size 16 of vit"),
        ({"vit": VIT | {"num_heads": 5}}, "vit: embed_dim 32 is no multiple of num_heads 5"),
        ({"vit": VIT | {"mlp_ratio": 0.0}}, "vit: an MLP of width 32 x mlp_ratio 0 cannot be"),
        ({"vit": VIT | {"mlp_ratio": 1e300}}, "vit: an MLP of width 32 x mlp_ratio 1e.300 cannot be"),
        ({"vit": "huge"}, "vit: 'huge' is none of tiny, small, base, large"),
        ({"med_config": BERT | {"num_attention_heads": 5}}, "hidden_size 48 is no multiple of num_attention_heads 5"),
        ({"med_config": BERT | {"num_attention_heads": 0}}, "med_config: "),
        ({"med_config": BERT | {"hidden_size": "wide"}}, "med_config: "),
        ({"med_config": BERT | {"hidden_sise": 48}}, "med_config: unknown key 'hidden_sise'"),
        ({"med_config": BERT | {"vocab_size": 20}}, "vocab_size 20 is less than the 202 tokens"),
        ({"med_config": "nowhere.json"}, "nowhere.json: No such file.*med_config"),
    ],
)
def test_sizes_that_do_not_fit(sizes, complaint):
    with pytest.raises(UserError, match=complaint):
        blip_nlvr(**SIZES | sizes, config=CONFIG)


@pytest.mark.parametrize("content", ["", "{", "[]", "3", '{"hidden_size": []}'])
def test_a_file_that_holds_no_sizes_is_named(tmp_path, content):
    (tmp_path / "bert.json").write_text(content)
    with pytest.raises(UserError, match="bert.json"):
        read_config(tmp_path / "bert.json")


def test_a_file_may_be_any_berts(tmp_path):
    path = tmp_path / "bert.json"
    path.write_text(json.dumps(BERT | {"architectures": ["BertModel"], "position_embedding_type": "absolute"}))
    assert read_config(path, encoder_width=32).encoder_width == 32


@pytest.mark.parametrize("vocabulary", [b"", b"\xff\xfe", b"a\nb\n"])
def test_a_vocabulary_that_is_none(tmp_path, vocabulary):
    (tmp_path / "vocab.txt").write_bytes(vocabulary)
    with pytest.raises(UserError, match=f"tokenizer: {tmp_path} cannot be used.*bert-base-uncased"):
        init_tokenizer(str(tmp_path))


@pytest.mark.parametrize("number", [1, 3, 5])
def test_a_statement_has_two_images(number):
    with pytest.raises(UserError, match=f"{number} images for 2 statements, expected two of each"):
        blip_nlvr(**SIZES, config=CONFIG)(images(number).float(), ["a dog", "a man"], train=False)


def test_a_text_longer_than_the_positions():
    model = blip_nlvr(**SIZES | {"med_config": BERT | {"max_position_embeddings": 8}}, config=CONFIG)
    with pytest.raises(UserError, match=r"a text has \d+ tokens, max_position_embeddings of med_config allows 8"):
        model(images(2).float(), ["a dog and a man in a green car driving down the road"], train=False)


@pytest.mark.parametrize(
    "limits, says",
    [
        ({"max_length": 4}, "max_length is 4, but .* the prompt take 4 tokens"),
        ({"max_length": 41}, "max_length is 41, but the position embeddings allow 40"),
        ({"min_length": 21}, "min_length is 21, but max_length 20; lower it"),
    ],
)
def test_lengths_that_no_caption_can_have(limits, says):
    config = {"pretrained": "", "prompt": "a picture of ", "min_length": 5, "max_length": 20} | CONFIG | SIZES | limits
    with pytest.raises(UserError, match=says):
        Caption().build_model(config, evaluate=False)
