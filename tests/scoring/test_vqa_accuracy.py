"""The challenge's rules on hand-written answers, and against a slow reading of them."""

import random

import pytest

from madtp.scoring.vqa_accuracy import agreement, attainable, normalise, vqa_accuracy


@pytest.mark.parametrize(
    "answer, normalised",
    [
        ("Yes", "yes"),
        (" yes\n", "yes"),
        ("black\tdog", "black dog"),
        ("The dog", "dog"),
        ("a", ""),
        ("an apple a day", "apple day"),
        ("Two", "2"),
        ("none", "0"),
        ("ten", "10"),
        ("eleven", "eleven"),
        ("someone", "someone"),
        ("dont know", "don't know"),
        ("couldn'tve", "couldn't've"),
        ("yall'll", "y'all'll"),
        ("its", "its"),
        ("can't", "can't"),
        ("yes, sir!", "yes sir"),
        ("yes,sir", "yes sir"),
        ("black/white", "black white"),
        ("black / white", "black white"),
        ("t-shirt", "t shirt"),
        ("t-shirt - red", "tshirt red"),
        ("t-shirt\n- red", "tshirt red"),
        (" -t-shirt", "t shirt"),
        ("yes! 1.!5", "yes 1.5"),
        ("1,000 people", "1000 people"),
        ("1,000 t-shirts", "1000 tshirts"),
        ("4.5", "4.5"),
        ("u.s.", "us"),
        ("5.", "5"),
        ("(?)", ""),
        ("one-way", "1 way"),
        ("$5 & more", "$5 & more"),
    ],
)
def test_normalised_answers(answer, normalised):
    assert normalise(answer) == normalised
    assert normalise(normalised) == normalised


@pytest.mark.parametrize("agreeing, expected", [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (10, 1)])
def test_three_of_nine_others_make_it_certain(agreeing, expected):
    """Known values of the rule: ten people, one left out at a time."""
    people = ["red"] * agreeing + [f"other {number}" for number in range(10 - agreeing)]
    assert agreement("red", people) == pytest.approx(expected)


@pytest.mark.parametrize("number", range(1, 13))
def test_everybodys_answer_is_right_however_many_were_asked(number):
    assert vqa_accuracy(["yes"] * 10, [["yes"] * number] * 10) == {"accuracy": 100}
    assert vqa_accuracy(["no"] * 10, [["yes"] * number] * 10) == {"accuracy": 0}


@pytest.mark.parametrize(
    "people, expected", [(["red"], 1), (["red", "blue"], 1 / 2), (["a red", "Red.", "blue"], 2 / 3), (["blue"], 0)]
)
def test_of_one_to_three_the_share_that_agrees(people, expected):
    assert agreement("red", people) == pytest.approx(expected)


def test_people_agree_in_whatever_spelling():
    people = ["2", "two", "Two.", "the two", "3", "4", "5", "6", "7", "8"]
    assert agreement("2", people) == agreement(" TWO!", people) == 1
    assert agreement("3", people) == pytest.approx(0.3)


def test_mean_in_percent():
    given = [["yes"] * 10, ["no"] * 10, ["red"] * 2 + ["blue"] * 8]
    assert vqa_accuracy(["yes", "yes", "red"], given) == {"accuracy": pytest.approx(100 * 1.6 / 3)}


def test_as_many_answers_as_questions():
    with pytest.raises(ValueError):
        vqa_accuracy(["yes"], [["yes"] * 10, ["no"] * 10])


def slow_agreement(answer, people):
    """The rule as it is stated: for each person, the others who gave the answer. Of up to three people their share."""
    if len(people) < 4:
        return sum(normalise(person) == normalise(answer) for person in people) / len(people)
    scores = []
    for left_out in range(len(people)):
        others = [person for index, person in enumerate(people) if index != left_out]
        scores.append(min(sum(normalise(person) == normalise(answer) for person in others) / 3, 1))
    return sum(scores) / len(scores)


def test_against_the_slow_rule():
    draw = random.Random(0)
    for _ in range(200):
        answers = draw.choices(["yes", "Yes", "no", "a no", "two", "2", "maybe"], k=draw.randint(2, 12))
        assert agreement(answers[0], answers[1:]) == pytest.approx(slow_agreement(answers[0], answers[1:]))


def slow_marks(text):
    """Marks one after the other, each judged on the text as it came."""
    number = any(
        text[i : i + 3][0].isdigit() and text[i + 1] == "," and text[i + 2].isdigit() for i in range(len(text) - 2)
    )
    cleaned = text
    for mark in ';/[]"{}()=+\\_-><@`,?!':
        beside_space = mark + " " in text or " " + mark in text
        cleaned = cleaned.replace(mark, "" if number or beside_space else " ")
    letters = list(cleaned)
    kept = [c for i, c in enumerate(letters) if c != "." or (i + 1 < len(letters) and letters[i + 1].isdigit())]
    return "".join(kept).split()


def test_against_slow_marks():
    draw = random.Random(1)
    for _ in range(2000):
        text = "".join(draw.choices("xy  12,.-/?![]\"\\_'", k=draw.randint(1, 12)))
        assert normalise(text).split() == slow_marks(" ".join(text.split()))


def test_what_a_list_of_answers_allows():
    """Against ranking the whole list for every question."""
    draw = random.Random(2)
    words = ["yes", "no", "2", "two", "A dog", "dog", "red"]
    given = [draw.choices(words, k=draw.choice([1, 2, 3, 4, 10])) for _ in range(60)]
    for size in range(len(words)):
        listed = draw.sample(words, size)
        best = [max((slow_agreement(answer, people) for answer in listed), default=0) for people in given]
        share = 100 * sum(score > 0 for score in best) / len(given)
        assert attainable(listed, given) == pytest.approx((share, 100 * sum(best) / len(given)))
