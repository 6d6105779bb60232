"""Statements about photos: balanced, none false of its own photo, and as near to the truth as swaps make them."""

import json
from collections import Counter
from itertools import combinations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.photos.scoring import apart_of_photos
from benchmarks.photos.statements import OWN, exchanged, overlap, prepare_statements, rarity, statements
from benchmarks.photos.world import Photo, Places, read_split

WORDS = ("dog", "cat", "runs", "sleeps", "snow", "beach", "two", "red")


@st.composite
def albums(draw):
    """Some photos, of one to three captions each; some captions are of several photos."""
    caption = st.lists(st.sampled_from(WORDS), min_size=1, max_size=4).map(" ".join)
    several = draw(st.lists(st.lists(caption, min_size=1, max_size=3, unique=True), min_size=2, max_size=9))
    return [Photo(f"{number}.jpg", tuple(texts)) for number, texts in enumerate(several)]


@given(albums())
def test_every_caption_is_true_once_and_false_at_most_once_and_never_of_a_photo_that_it_describes(photos):
    found = list(statements(photos))
    true = [(name, text) for name, text, answer in found if answer == "yes"]
    false = [(name, text) for name, text, answer in found if answer == "no"]
    assert true == [(photo.name, text) for photo in photos for text in photo.texts]
    lent = Counter(text for _, text in false)
    assert all(number <= Counter(text for _, text in true)[text] for text, number in lent.items())
    assert not set(false) & set(true)
    assert found == list(statements(photos))


def test_photos_of_captions_of_their_own_lend_every_one_of_them():
    photos = [Photo(f"{n}.jpg", (f"{WORDS[n]} in the snow", f"{WORDS[n]} on a beach")) for n in range(6)]
    answers = Counter((text, answer) for _, text, answer in statements(photos))
    assert set(answers.values()) == {1} and len(answers) == 2 * 2 * len(photos)


def test_who_is_alone_has_nothing_false():
    found = list(statements([Photo("a.jpg", ("a dog",))]))
    assert found == [("a.jpg", "a dog", "yes")]


@given(
    st.integers(2, 7).flatmap(
        lambda n: st.lists(st.lists(st.floats(0, 1), min_size=n, max_size=n), min_size=n, max_size=n)
    )
)
def test_no_swap_of_two_would_share_more_and_nobody_borrows_its_own(shared):
    for number, row in enumerate(shared):
        row[number] = OWN
    order = exchanged(shared)
    assert sorted(order) == list(range(len(shared))) and all(one != other for one, other in enumerate(order))

    def all_shared(order):
        return sum(shared[one][other] for one, other in enumerate(order))

    for one, two in combinations(range(len(order)), 2):
        swapped = list(order)
        swapped[one], swapped[two] = order[two], order[one]
        assert all_shared(swapped) <= all_shared(order) + 1e-6


def test_what_two_sentences_share_weighs_what_few_photos_are_said_to_show():
    weight = rarity([{"a", "dog"}, {"a", "cat"}, {"a", "dog", "snow"}, {"a"}])
    assert weight["a"] == 0 and weight["snow"] == 2 * weight["dog"] > 0
    assert overlap("a dog snow", {"a", "snow"}, weight) == pytest.approx(2 / 3)
    assert overlap("a", {"a"}, weight) == 0


def test_a_caption_is_held_against_the_photo_that_borrows_it():
    photos = [Photo("a", ("x", "y", "z"), ("yes", "yes", "no")), Photo("b", ("z", "x"), ("yes", "no"))]
    likelihoods = [torch.tensor([-1.0, -2.0, -3.0]), torch.tensor([-3.0, -1.5])]
    found = apart_of_photos(likelihoods, photos)["told_apart"]
    assert found.tolist() == [100.0, 50.0], "x is likelier with a; nobody borrows y; z is as likely with both"
    assert apart_of_photos([torch.tensor([-1.0])], [Photo("a", ("x",), ("yes",))])["told_apart"].tolist() == [50.0]


@given(albums(), st.randoms(use_true_random=False))
def test_what_a_caption_is_worth_without_a_photo_changes_nothing(photos, chance):
    said = {}
    for name, text, answer in statements(photos):
        said.setdefault(name, []).append((text, answer))
    photos = [Photo(name, *zip(*own, strict=True)) for name, own in said.items()]
    likelihoods = [torch.tensor([float(chance.randint(-9, 0)) for _ in photo.texts]) for photo in photos]
    worth = {text: float(chance.randint(-9, 9)) for photo in photos for text in photo.texts}
    moved = [
        likely + torch.tensor([worth[text] for text in photo.texts])
        for likely, photo in zip(likelihoods, photos, strict=True)
    ]
    ours, theirs = (apart_of_photos(one, photos)["told_apart"].tolist() for one in (likelihoods, moved))
    assert ours == theirs


def test_they_are_written_as_questions_and_read_again(tmp_path):
    places = Places(tmp_path, tmp_path, tmp_path, tmp_path)
    (tmp_path / "annotation").mkdir()
    for split in ("train", "val", "test"):
        captions = [
            {"image": f"{n}.jpg", "caption": [f"A {word} , there .", f"the {word}"]} for n, word in enumerate(WORDS)
        ]
        places.annotation(f"flickr30k_{split}").write_text(json.dumps(captions))
    prepare_statements(places)
    photos = read_split(places, "statements", "val")
    assert [photo.answers for photo in photos] == [("yes", "yes", "no", "no")] * len(WORDS)
    assert len({entry["question_id"] for entry in json.loads(places.annotation("statements_val").read_text())}) == 32
