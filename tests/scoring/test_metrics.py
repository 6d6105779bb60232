"""Scores on hand-written predictions."""

import pytest

from madtp.scoring.metrics import accuracy, exact_match


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
