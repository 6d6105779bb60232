"""Re-ranking: every pair judged once, and as if it were alone; so are its costs."""

import math

import pytest
import torch

from data.loading import create_loader
from madtp.cost.trace import Trace
from madtp.method.keep import keep_batch, keep_sample
from madtp.scoring import reranking
from madtp.scoring.metrics import Matches, retrieval_recall
from madtp.scoring.reranking import PAIRS, pack, pack_ragged
from madtp.scoring.retrieval import summary
from tests.models.test_transformers_parity import close
from tests.scoring.small import PRUNING, Pictures, Recorded


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


@torch.no_grad()
@pytest.mark.parametrize("pairs, judged", [(3, 1), (8, 2), (15, 3)])
def test_among_many_captions_the_likeliest_of_every_image_are_judged(model, monkeypatch, pairs, judged):
    pictures, task = Pictures(), Recorded(3)
    batch = pictures.collate([pictures[index] for index in range(4)])
    every = task.scores(model, batch, 0.0, Trace())
    monkeypatch.setattr(reranking, "PAIRS", pairs)
    some = task.scores(model, batch, 0.0, Trace())
    similarity = model.encode_image(batch["image"])[1] @ model.encode_text(*model.encode_captions(batch["caption"])).T
    for row, scores, alike in zip(some, every, similarity, strict=True):
        likeliest = sorted(range(4), key=lambda text: -alike[text])[:judged]
        close(row[likeliest], scores[likeliest])
        assert row.isfinite().sum() == judged
