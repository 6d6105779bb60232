"""What training draws at random: weights of attention, features and layers that are passed over, and nothing else."""

import pytest
import torch

from madtp.method.layout import Sequences
from models.blip import VIT_SIZES, blip_decoder, create_vit
from models.blip_nlvr import blip_nlvr
from models.blip_vqa import blip_vqa
from tests.golden.fill import seeded
from tests.models.test_models import PRUNED, Miniature
from tests.tiny import BERT, CONFIG, SIZES, STATEMENTS, VIT, build, images


@pytest.mark.parametrize("scores", [False, True])
@pytest.mark.parametrize("across", [False, True])
def test_attention_drops_weights_in_training_and_nothing_else(scores, across):
    sizes = BERT | {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.5}
    attention = build(blip_vqa, {"med_config": sizes}).text_encoder.encoder.layer[0]
    attention = attention.crossattention.self if across else attention.attention.self
    hidden, states = Sequences.of(seeded(1, 2, 5, 48).double()), seeded(2, 2, 7, 32).double()

    def attend(training):
        torch.manual_seed(0)
        attention.train(training)
        keys_values = attention.keys_values(states if across else hidden)
        if across:
            return attention.across(hidden, keys_values, None)
        return attention(hidden, keys_values, None, False, scores)[0]

    assert attend(True).equal(attend(True)) and not torch.allclose(attend(True), attend(False))
    attention.dropout = 0.0
    torch.testing.assert_close(attend(True), attend(False))


def dropped_at_last(tower):
    """How often stochastic depth passes over the last layer of a tower."""
    return getattr(tower.blocks[-1].drop_path, "drop_prob", 0.0)


@pytest.mark.parametrize(
    "builder, rate", [(blip_nlvr, 0.1), (blip_vqa, 0.1), (blip_decoder, 0), (Miniature.retrieval, 0)]
)
def test_stochastic_depth_is_the_task_s_own_unless_it_is_chosen(builder, rate):
    own = {name: value for name, value in CONFIG.items() if name != "drop_path"}
    for config, expected in ((own, rate), (own | {"drop_path": 0.0}, 0), (own | {"drop_path": 0.3}, 0.3)):
        assert dropped_at_last(builder(**SIZES, config=config).visual_encoder) == pytest.approx(expected)


@pytest.mark.parametrize("vit, rate", [("large", 0.1), (VIT | {"norm_eps": 1e-5}, 0.1), (VIT | {"depth": 2}, 0)])
def test_large_towers_always_have_stochastic_depth(monkeypatch, vit, rate):
    monkeypatch.setitem(VIT_SIZES, "large", VIT)
    assert dropped_at_last(create_vit(vit, 64, CONFIG | {"drop_path": None})) == pytest.approx(rate)


def test_dropout_of_training_is_the_only_randomness():
    model = build(blip_nlvr, drop_path=0.1).train()

    def losses(seed):
        torch.manual_seed(seed)
        return model(images(4), STATEMENTS[:2], torch.tensor([0, 1]), PRUNED)["loss_task"].item()

    assert losses(0) == losses(0) != losses(1)
    model.eval()
    assert losses(0) == losses(1)
