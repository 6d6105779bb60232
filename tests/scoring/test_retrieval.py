"""BLIP retrieval: recall and re-ranking against slow forms, negatives, and transformers' model with our weights."""

import math
from random import Random

import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import Dataset
from transformers import BlipForImageTextRetrieval

from data.loading import collate, create_loader
from madtp.budget.flops import paper_table
from madtp.budget.trace import Trace
from madtp.method.keep import keep_batch, keep_sample
from madtp.method.layout import RECTANGLE, Sequences
from madtp.scoring import reranking
from madtp.scoring.judged_retrieval import JudgedRetrieval
from madtp.scoring.metrics import Matches, recall, retrieval_recall
from madtp.scoring.reranking import PAIRS, pack, pack_ragged
from madtp.scoring.retrieval import summary
from madtp.shared.momentum import EMPTY
from models.blip import blip_decoder
from models.blip_retrieval import blip_retrieval, draw_negatives, gather_states
from tests.golden.fill import fill, seeded
from tests.models.test_golden import CONFIG
from tests.models.test_transformers_parity import BERT as THEIR_BERT
from tests.models.test_transformers_parity import IMAGE_SIZE, THEIR_CONFIG, close, our_keys
from tests.models.test_transformers_parity import VIT as THEIR_VIT
from utils import UserError

SIZES = {
    "image_size": 64,
    "vit": {"embed_dim": 32, "depth": 2, "num_heads": 2, "patch_size": 16},
    "med_config": {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "vocab_size": 202,
        "max_position_embeddings": 64,
    },
    "config": {**CONFIG, "sd_num": 8, "sd_dim": 32},
}
WORDS = "a the red blue dog cat man car is on two left road table".split()
PRUNING = 64.0  # a temperature at which both towers of the small models prune


@pytest.fixture(scope="module")
def model():
    return fill(blip_retrieval(**SIZES, embed_dim=16, queue_size=6)).eval().double()


class Pictures(Dataset):
    """Random images with one to four random texts each."""

    collate = staticmethod(collate)

    def __init__(self, size=7):
        random = Random(0)
        self.pixels = seeded(1, size, 3, 64, 64).double()
        self.text_to_image = [image for image in range(size) for _ in range(1 + image % 4)]
        self.same_images, self.same_texts = range(size), range(len(self.text_to_image))
        self.texts = [" ".join(random.choices(WORDS, k=random.randint(1, 12))) for _ in self.text_to_image]

    def __len__(self):
        return len(self.pixels)

    def __getitem__(self, index):
        caption = self.texts[self.text_to_image.index(index)]
        return {"image": self.pixels[index], "caption": caption, "index": torch.tensor(index)}


class Recorded(JudgedRetrieval):
    """A task that remembers what it judged."""

    name = "retrieval"

    def __init__(self, k):
        self.config = {"batch_size_test": 4, "k_test": k, "alpha": 0.4}

    def metrics(self, predictions, dataset):
        self.judged = {
            image: dict(zip(found.texts.tolist(), found.scores, strict=True)) for image, found in predictions
        }
        return super().metrics(predictions, dataset)


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


# Re-ranking.


@pytest.mark.parametrize("counts", [[3, 3, 3], [1, 700, 2, 256, 257], [40] * 9, [5, 0, 2]])
def test_every_pair_is_packed_once(counts):
    packed = pack(counts)
    texts = [(piece.row, text) for pieces in packed for piece in pieces for text in range(piece.start, piece.stop)]
    assert sorted(texts) == [(row, text) for row, count in enumerate(counts) for text in range(count)]
    for pieces in packed:
        lengths = [stop - start for _, start, stop in pieces]
        assert len(pieces) * max(lengths) <= PAIRS and max(lengths) == lengths[0]
    assert all((len(pieces) + 1) * pieces[0].size > PAIRS for pieces in packed[:-1])  # none has room for another
    ragged = pack_ragged(counts)
    assert [(one.row, text) for pieces in ragged for one in pieces for text in range(one.start, one.stop)] == sorted(
        texts
    )
    full, last = divmod(sum(counts), PAIRS)
    assert [sum(piece.size for piece in pieces) for pieces in ragged] == [PAIRS] * full + [last] * (last > 0)


@torch.no_grad()
def slow_evaluation(model, pictures, k, temperature=0.0):
    """Everything one at a time: features, then the ITM score of every pair that a query or a text wants."""
    encoded = (model.encode_image(pixels[None], temperature) for pixels in pictures.pixels)
    states, image_features = zip(*encoded, strict=True)
    texts = [model.encode_captions([text]) for text in pictures.texts]
    text_features = [model.encode_text(*text, temperature) for text in texts]
    similarity = [[(image * text).sum().item() for text in text_features] for image in image_features]

    def score(image, text):
        return model.match(*texts[text], states[image], temperature)[0, 1].item() + similarity[image][text]

    image_to_text = torch.full((len(states), len(texts)), -math.inf, dtype=torch.float64)
    text_to_image = torch.full((len(texts), len(states)), -math.inf, dtype=torch.float64)
    for image, row in enumerate(similarity):
        for text in sorted(range(len(texts)), key=lambda text: -row[text])[:k]:
            image_to_text[image, text] = score(image, text)
    for text in range(len(texts)):
        for image in sorted(range(len(states)), key=lambda image: -similarity[image][text])[:k]:
            text_to_image[text, image] = score(image, text)
    return image_to_text, text_to_image


@pytest.mark.parametrize("temperature", [0.0, PRUNING])
@pytest.mark.parametrize("k, pairs, size", [(3, 256, 4), (3, 2, 4), (4, 5, 3), (100, 7, 1)])
def test_reranking_equals_pair_by_pair(model, monkeypatch, k, pairs, size, temperature):
    """Dense, and where every sample keeps its own tokens: then too pairs may go together as they like.

    Of seven images in batches of three the last is alone.
    """
    monkeypatch.setattr(reranking, "PAIRS", pairs)
    monkeypatch.setattr(model, "keep", keep_sample)
    pictures, task = Pictures(), Recorded(k)
    with torch.no_grad():
        metrics = task.evaluate(model, create_loader(pictures, size, train=False), temperature)
    monkeypatch.setattr(model, "keep", keep_batch)
    image_to_text, text_to_image = slow_evaluation(model, pictures, k, temperature)
    wanted = (image_to_text > -math.inf) | (text_to_image.T > -math.inf)
    either = torch.maximum(image_to_text, text_to_image.T)
    assert {(image, text) for image, found in task.judged.items() for text in found} == set(
        map(tuple, wanted.nonzero().tolist())
    )
    for image, found in task.judged.items():
        for text, score in found.items():
            close(score, either[image, text])
    expected = retrieval_recall(image_to_text, text_to_image, Matches(pictures.text_to_image))
    assert {name: metrics[name] for name in expected} == expected
    assert metrics["percent"] == pytest.approx(100) if temperature == 0 else metrics["percent"] < 90


@pytest.mark.parametrize("pairs", [256, 5])
def test_reranking_with_pruning_equals_repeated_images(model, monkeypatch, pairs):
    """The slow form gets the same pairs, but an image for each, and none of the repetitions that fill a rectangle."""
    monkeypatch.setattr(reranking, "PAIRS", pairs)
    match, forwards = model.match, []

    def checked(input_ids, mask, states, temperature, trace):
        logits = match(input_ids, mask, states, temperature=temperature, trace=trace)
        rows = input_ids.view(len(states.tokens), -1, input_ids.shape[1]).tolist()
        kept = [g + b * len(own) for b, own in enumerate(rows) for g, ids in enumerate(own) if ids not in own[:g]]
        repeated = states.tokens.repeat_interleave(len(rows[0]), dim=0)
        slow = Trace()
        close(logits[kept], match(input_ids[kept], mask[kept], repeated[kept], temperature=temperature, trace=slow))
        assert [layer.left for layer in slow.layers["multimodal"]] == [
            layer.left for layer in trace.layers["multimodal"]
        ]
        forwards.append((len(rows), len(rows[0]), len(kept)))
        return logits

    monkeypatch.setattr(model, "match", checked)
    with torch.no_grad():
        metrics = Recorded(4).evaluate(model, create_loader(Pictures(), 4, train=False), PRUNING)
    assert metrics["percent"] < 90
    assert all(tokens[-1] < tokens[0] for tokens in metrics["tokens"].values())
    assert set(metrics["tokens"]) == {"image", "text", "multimodal"}
    assert any(images > 1 for images, _, _ in forwards) and any(
        images * texts > kept for images, texts, kept in forwards
    )


def test_cost_of_evaluation_is_that_of_one_sample(model):
    """Dense, where every forward costs the same: mean cost of image, text and pair; and the forward that calibrates."""
    pictures, task, trace = Pictures(), Recorded(3), Trace()
    loader = create_loader(pictures, 4, train=False)
    with torch.no_grad():
        metrics = task.evaluate(model, loader, 0.0)
        task.probe(model, next(iter(loader)), 0.0, trace)
    assert metrics["gflops"] == pytest.approx(task.cost(model, trace)) == pytest.approx(metrics["gflops_dense"])


@torch.no_grad()
def test_cost_of_pruned_evaluation_is_that_of_all_alone(model, monkeypatch):
    """Every image, every text and every judged pair in a forward pass of its own, by the same meters."""
    monkeypatch.setattr(reranking, "PAIRS", 5)
    monkeypatch.setattr(model, "keep", keep_sample)
    pictures, task = Pictures(5), Recorded(2)
    found = task.evaluate(model, create_loader(pictures, 4, train=False), PRUNING)
    monkeypatch.setattr(model, "keep", keep_batch)
    image_meter, text_meter, pair_meter = task.meters(model)
    texts, states, layers = [model.encode_captions([text]) for text in pictures.texts], [], []
    for pixels in pictures.pixels:
        with image_meter.forward(1) as trace:
            states.append(model.encode_image(pixels[None], PRUNING, trace)[0])
        layers.append(trace.layers["image"])
    for text in texts:
        with text_meter.forward(1) as trace:
            model.encode_text(*text, PRUNING, trace)
    for image, judged in task.judged.items():
        for text in judged:
            with pair_meter.forward(1) as trace:
                trace.layers["image"] = layers[image]
                model.match(*texts[text], states[image], PRUNING, trace)
    slow = summary(pair_meter, text_meter, image_meter)
    for name in ("gflops", "gflops_dense", "percent", "percent_p10", "percent_p90"):
        assert found[name] == pytest.approx(slow[name])
    for tower in ("image", "text", "multimodal"):
        assert found["tokens"][tower] == pytest.approx(slow["tokens"][tower])


def test_predicts_within_the_batch(model):
    """Few enough captions are all judged: the best by score, one pair at a time."""
    pictures = Pictures()
    batch = pictures.collate([pictures[index] for index in range(4)])
    with torch.no_grad():
        captions = Recorded(3).predict(model, batch, 0.0, Trace())
        pictures.pixels, pictures.texts = batch["image"], batch["caption"]
        scores, _ = slow_evaluation(model, pictures, 4)
    assert captions == [batch["caption"][text] for text in scores.argmax(dim=1)]


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
