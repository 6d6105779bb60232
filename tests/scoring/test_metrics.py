"""Scores on hand-written predictions."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from madtp.scoring.metrics import Matches, accuracy, exact_match, retrieval_recall, similarity_recall


def test_accuracy_counts_hits():
    assert accuracy([1, 0, 1, 1], [1, 1, 1, 0]) == {"accuracy": 50}
    assert accuracy(["a"], ["a"]) == {"accuracy": 100}


def test_accuracy_refuses_predictions_without_a_target():
    with pytest.raises(ValueError):
        accuracy([1, 0], [1])


def test_exact_match_takes_any_reference_and_ignores_spacing_only():
    texts = ["a red square ", "a  blue cross", "a cross", ""]
    references = [["a cross", "a red square"], ["a blue cross"], ["a crosses", "cross"], ["a"]]
    assert exact_match(texts, references) == {"exact_match": 50}


def test_exact_match_leaves_out_whom_nobody_described():
    """References without a word do not count, as they do not in the other scores of captions."""
    assert exact_match(["a cross", "", "a"], [["a cross", ""], ["", " "], ["b"]]) == {"exact_match": 50}
    assert exact_match([""], [[""]]) == {"exact_match": 0}


@given(st.data())
def test_matches_against_every_pair(data):
    """A text is right for an image if it, or the same one, came with it, or with the same one."""
    images = data.draw(st.lists(st.integers(0, 3), min_size=1, max_size=6))
    owners = data.draw(st.lists(st.integers(0, len(images) - 1), min_size=1, max_size=8))
    texts = data.draw(st.lists(st.integers(0, 4), min_size=len(owners), max_size=len(owners)))
    pairs = {(images[owner], text) for owner, text in zip(owners, texts, strict=True)}
    slow = torch.tensor([[(image, text) in pairs for text in texts] for image in images])
    matches = Matches(owners, images, texts)
    assert torch.equal(matches.of_images(), slow) and torch.equal(matches.of_texts(), slow.T)
    start, stop = data.draw(st.integers(0, len(images) - 1)), data.draw(st.integers(1, 7))
    assert torch.equal(matches.of_images(start, start + stop), slow[start : start + stop])


@pytest.mark.parametrize(
    "owners, images, texts",
    [
        ([0, 1], [0, 0], [0, 1]),  # one image with two texts, listed twice
        ([0, 1], [0, 1], [0, 0]),  # two images with one text
        ([0, 0, 1, 2], [0, 1, 1], [0, 1, 2, 2]),
    ],
)
def test_perfect_features_find_everything_although_some_are_the_same(owners, images, texts):
    """Same images have same features, same texts as well, and what belongs together is most similar."""
    basis = torch.eye(8, dtype=torch.float64)
    image = torch.zeros(len(images), 8, dtype=torch.float64)
    for owner, text in zip(owners, texts, strict=True):
        image[[one == images[owner] for one in images], text] = 1
    text = torch.stack([basis[one] for one in texts])
    matches = Matches(owners, images, texts)
    for scores in (similarity_recall(image, text, matches), retrieval_recall(image @ text.T, text @ image.T, matches)):
        assert set(scores.values()) == {100.0}


@pytest.mark.parametrize("block", [1, 3, 4, 7, 100])
def test_features_are_compared_block_by_block(block):
    owners = [0, 0, 1, 2, 3, 3, 4, 5, 6]
    features = torch.randn(16, 5, generator=torch.Generator().manual_seed(0))
    image, text = features[:7], features[7:] + features[owners]
    matches = Matches(owners)
    expected = retrieval_recall(image @ text.T, text @ image.T, matches)
    found = similarity_recall(image, text, matches, block)
    assert found == pytest.approx(expected) and 0 < found["r_mean"] < 100


def test_mixed_precision_does_not_round_the_comparison():
    image, text = torch.eye(2), torch.tensor([[1, 0.999], [0.999, 1]])
    with torch.autocast("cpu", torch.bfloat16):
        assert similarity_recall(image, text, Matches([0, 1]))["txt_r1"] == 100
