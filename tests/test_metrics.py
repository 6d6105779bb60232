"""Scores on hand-written predictions."""

import pytest

from madtp.metrics import accuracy, answer_agreement, exact_match


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


def test_answers_are_held_against_the_majority_and_against_everyone():
    given = [["yes"] * 7 + ["no"] * 3, ["two"] * 5 + ["2"] * 5, ["red"] * 10, ["a", "b", "b"]]
    scores = answer_agreement(["no", "2", "blue", "b"], given)
    assert scores["accuracy"] == pytest.approx(50)
    assert scores["agreement"] == pytest.approx(100 * (0.3 + 0.5 + 0 + 2 / 3) / 4)
