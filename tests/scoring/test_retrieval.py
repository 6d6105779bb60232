"""BLIP retrieval: recall against slow forms, negatives, and transformers' model with our weights."""

import math

import pytest
import torch
import torch.nn.functional as F
from transformers import BlipForImageTextRetrieval

from data.loading import create_loader
from madtp.cost.flops import paper_table
from madtp.method.layout import RECTANGLE, Sequences
from madtp.scoring.metrics import Matches, recall, retrieval_recall
from madtp.shared.momentum import EMPTY
from models.blip import blip_decoder
from models.blip_retrieval import blip_retrieval, draw_negatives, gather_states
from tests.golden.fill import fill, seeded
from tests.models.test_golden import CONFIG
from tests.models.test_transformers_parity import BERT as THEIR_BERT
from tests.models.test_transformers_parity import IMAGE_SIZE, THEIR_CONFIG, close, our_keys
from tests.models.test_transformers_parity import VIT as THEIR_VIT
from tests.scoring.small import PRUNING, SIZES, Pictures, Recorded
from utils import UserError

# Recall.


def slow_recall(scores, relevant, k):
    hits = 0
    for row, wanted in zip(scores.tolist(), relevant.tolist(), strict=True):
        order = sorted(range(len(row)), key=lambda column: (-row[column], wanted[column]))
        hits += any(wanted[column] and row[column] > -math.inf for column in order[:k])
    return 100 * hits / len(scores)


def test_recall_by_hand():
    scores = torch.tensor([[9.0, 1.0, 2.0], [5.0, 4.0, 3.0], [1.0, 2.0, 3.0], [3.0, 2.0, 1.0]])
    relevant = torch.tensor([[1, 0, 0], [0, 1, 0], [1, 0, 0], [0, 0, 1]]).bool()
    assert recall(scores, relevant, ranks=(1, 2, 3)) == {1: 25, 2: 50, 3: 100}


def test_recall_finds_the_best_of_several():
    scores = torch.tensor([[0.1, 0.9, 0.5, 0.8]])
    assert recall(scores, torch.tensor([[True, False, False, True]]), ranks=(1, 2)) == {1: 0, 2: 100}


def test_recall_is_not_given_away():
    """Equal scores, no candidate, nothing relevant, or no number: not found."""
    relevant = torch.tensor([[False, True, False]])
    assert recall(torch.zeros(1, 3), relevant, ranks=(1, 2, 3)) == {1: 0, 2: 0, 3: 100}
    for scores in ([[-1.0, -math.inf, -math.inf]], [[1.0, math.nan, 2.0]]):
        assert recall(torch.tensor(scores), relevant, ranks=(1, 5)) == {1: 0, 5: 0}
    assert recall(torch.rand(1, 3), torch.zeros(1, 3, dtype=torch.bool), ranks=(5,)) == {5: 0}
    assert recall(torch.tensor([[math.nan, 1.0, 0.0]]), relevant, ranks=(1, 2)) == {1: 0, 2: 100}


@pytest.mark.parametrize("seed", range(5))
def test_recall_equals_sorting(seed):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(0, 12, (20, 15), generator=generator).float()  # many ties
    scores = scores.masked_fill(torch.rand(20, 15, generator=generator) < 0.3, -math.inf)
    relevant = torch.rand(20, 15, generator=generator) < 0.15
    for k, share in recall(scores, relevant).items():
        assert share == pytest.approx(slow_recall(scores, relevant, k))


def test_retrieval_recall_by_hand():
    owners = [0, 0, 1, 2]
    image_to_text = torch.tensor([[1.0, 5.0, 2.0, 3.0], [4.0, 3.0, 2.0, 1.0], [0.0, 0.0, 0.0, 7.0]])
    text_to_image = torch.tensor([[3.0, 2.0, 1.0], [1.0, 2.0, 3.0], [1.0, 5.0, 2.0], [9.0, 8.0, 10.0]])
    scores = retrieval_recall(image_to_text, text_to_image, Matches(owners))
    third = 100 / 3
    expected = {"txt_r1": 2 * third, "txt_r5": 100, "txt_r10": 100, "txt_r_mean": (2 * third + 200) / 3}
    expected |= {"img_r1": 75, "img_r5": 100, "img_r10": 100, "img_r_mean": 275 / 3}
    expected["r_mean"] = (expected["txt_r_mean"] + expected["img_r_mean"]) / 2
    assert scores == pytest.approx(expected)


def test_paper_cost():
    assert round(paper_table()["retrieval"], 1) == 153.2


# Training.


def test_negatives_are_wrong_and_hard():
    torch.manual_seed(0)
    same = torch.tensor([[True, False, False], [False, True, True]]).repeat(500, 1)
    candidates = torch.eye(3)
    feature = torch.tensor([[0.6, 0.0, 0.8], [0.0, 0.6, 0.8]]).repeat(500, 1)
    drawn = draw_negatives(feature, candidates, torch.tensor(0.2), same).view(500, 2)
    assert drawn[:, 1].eq(0).all()
    assert drawn[:, 0].ne(0).all() and drawn[:, 0].eq(2).float().mean() > 0.9 and drawn[:, 0].eq(1).any()


def test_an_image_that_is_no_numbers_costs_its_step_and_not_the_run():
    model = blip_retrieval(**SIZES, embed_dim=16, queue_size=6)
    image = seeded(3, 2, 3, 64, 64)
    image[1] = math.nan
    losses = model(image, ["a dog", "a red cat"], 0.4, torch.tensor([1, 2]))
    assert losses["loss_itm"].isnan() and losses["loss_ita"].isnan()


def test_a_batch_of_one_image_has_no_negatives(model):
    image, captions = seeded(3, 2, 3, 64, 64).double(), ["a dog", "a red cat"]
    with torch.no_grad():
        losses = model(image, captions, 0.4, torch.tensor([4, 4]))
        states, _ = model.encode_image(image)
        logits = model.match(*model.encode_captions(captions), states)
    close(losses["loss_itm"], F.cross_entropy(logits, torch.ones(2, dtype=torch.long)))


def test_the_contrastive_temperature_stays_within_bounds():
    model = blip_retrieval(**SIZES, embed_dim=16, queue_size=6)
    for given, bounded in ((1e-6, 0.001), (0.07, 0.07), (2.0, 0.5)):
        with torch.no_grad():
            model.temp.fill_(given)
        assert model.bounded_scale().item() == pytest.approx(1 / bounded)
        assert model.temp.item() == pytest.approx(bounded)


def test_a_step_moves_twins_and_queue():
    model = fill(blip_retrieval(**SIZES, embed_dim=16, queue_size=6)).double()
    model.copy_params()
    image, idx = seeded(3, 2, 3, 64, 64).double(), torch.tensor([8, 9])
    with torch.no_grad():
        model.vision_proj.weight.add_(1)
        model.temp.fill_(2.0)
    model.eval()
    expected = model.vision_proj_m.weight + 0.005
    losses = model(image, ["a dog", "a red cat"], 0.4, idx, temperature=PRUNING)
    close(model.vision_proj_m.weight, expected)
    states, _ = model.visual_encoder_m(image, model.space_dict, PRUNING)
    close(model.image_queue[:, :2], F.normalize(model.vision_proj_m(states[:, 0]), dim=-1).T)
    assert model.idx_queue.tolist() == [[8, 9] + [EMPTY] * 4]
    assert model.temp.item() == 0.5 and not losses["loss_sim_m"].requires_grad
    sum(losses.values()).backward()
    without = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert without == {name for name, _ in model.named_parameters() if name.partition(".")[0].endswith("_m")}


def test_tokens_of_processes_that_kept_different_numbers(model):
    """What is padded to the longest is not attended to."""
    parts = [seeded(1, 2, 5, 32).double(), seeded(2, 2, 3, 32).double()]
    lengths = torch.tensor([5, 5, 3, 3])
    padded = torch.cat([parts[0], F.pad(parts[1], (0, 0, 0, 2), value=9.0)])
    states = gather_states(Sequences.of(parts[0]), lambda own: padded if own.dim() == 3 else lengths)
    assert states.layout.own.tolist() == [[True] * 5] * 2 + [[True] * 3 + [False] * 2] * 2
    text = model.encode_captions(["a dog", "a cat", "two dog", "man"])
    both = model.match(*text, states)
    close(both[:2], model.match(*(values[:2] for values in text), parts[0]))
    close(both[2:], model.match(*(values[2:] for values in text), parts[1]))
    assert gather_states(Sequences.of(parts[0]), lambda own: own).layout is RECTANGLE


def test_training_starts_from_a_captioner(tmp_path):
    captioner = blip_decoder(**SIZES)
    torch.save({"model": captioner.state_dict()}, tmp_path / "captioner.pth")
    model = blip_retrieval(f"{tmp_path}/captioner.pth", **SIZES, queue_size=6)
    for name, parameter in captioner.text_decoder.bert.named_parameters():
        assert torch.equal(model.text_encoder.get_parameter(name), parameter)
    for name, parameter in model.named_parameters():
        tower, _, rest = name.partition(".")
        if tower in model.momentum_towers:
            assert torch.equal(parameter, model.get_parameter(f"{tower}_m.{rest}"))
    with pytest.raises(UserError, match="vision_proj"):
        blip_retrieval(f"{tmp_path}/captioner.pth", **SIZES, queue_size=6, evaluate=True)


def test_a_checkpoint_serves_any_queue(tmp_path, model):
    torch.save({"model": model.state_dict()}, tmp_path / "retrieval.pth")
    other = blip_retrieval(f"{tmp_path}/retrieval.pth", **SIZES, embed_dim=16, queue_size=9, evaluate=True)
    assert torch.equal(other.vision_proj.weight, model.vision_proj.weight.float())
    assert other.idx_queue.tolist() == [[EMPTY] * 9]


# A second opinion.


def test_transformers_agrees():
    theirs = fill(BlipForImageTextRetrieval(THEIR_CONFIG)).eval().double()
    config = {**CONFIG, "sd_dim": 48}
    ours = blip_retrieval(image_size=IMAGE_SIZE, vit=THEIR_VIT, med_config=THEIR_BERT, queue_size=4, config=config)
    report = ours.double().eval().load_state_dict(our_keys(theirs.state_dict()), strict=False)
    assert not report.unexpected_keys
    absent = {name.partition(".")[0] for name in report.missing_keys if "position_ids" not in name}
    assert all(name.endswith(("_m", "_queue")) or name in ("space_dict", "temp") for name in absent)
    image = seeded(7, 3, 3, IMAGE_SIZE, IMAGE_SIZE).double()
    input_ids, mask = ours.encode_captions(["a dog", "a picture of two red cats on a table", "is it a man?"])
    judged = input_ids.clone()
    judged[:, 0] = ours.tokenizer.convert_tokens_to_ids("[ENC]")
    with torch.no_grad():
        states, features = ours.encode_image(image)
        close(features @ ours.encode_text(input_ids, mask).T, theirs(input_ids, image, False, mask).itm_score)
        close(ours.match(input_ids, mask, states), theirs(judged, image, True, mask).itm_score)


@torch.no_grad()
@pytest.mark.parametrize("k_test", [1, 4])
def test_recall_by_the_features_alone_stands_beside_it(model, k_test):
    """Whatever is judged, and however: equal to sorting by the inner products of the features."""
    pictures = Pictures()
    found = Recorded(k_test).evaluate(model, create_loader(pictures, 7, train=False), 0.0)
    image = model.encode_image(pictures.pixels)[1]
    text = model.encode_text(*model.encode_captions(pictures.texts))
    relevant = torch.arange(7).unsqueeze(1) == torch.tensor(pictures.text_to_image)
    for name, scores, belongs in (("txt", image @ text.T, relevant), ("img", text @ image.T, relevant.T)):
        for k in (1, 5, 10):
            assert found[f"ita_{name}_r{k}"] == pytest.approx(slow_recall(scores, belongs, k))
    assert found["ita_r_mean"] == pytest.approx((found["ita_txt_r_mean"] + found["ita_img_r_mean"]) / 2)
