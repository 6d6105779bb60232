"""Caption scores equal pycocoevalcap's own evaluation, and none of them can end a run."""

import math
import shutil
import sys

import pytest

from madtp.scoring import caption_metrics as scoring
from madtp.scoring.caption_metrics import caption_metrics, plain_tokens, stanford_tokens

needs_java = pytest.mark.skipif(shutil.which("java") is None, reason="Java is not installed")

CAPTIONS = ["a man riding a wave on a surfboard", "two dogs in the snow", "a red bus is parked", ""]
REFERENCES = [
    ["A man rides a wave.", "Surfer on a wave, at sea", "the man's surfboard is on a wave"],
    ["Two dogs play in the snow!", "dogs\nrunning"],
    ["A red double-decker bus isn't moving.", "a bus parked on the street", "a red bus", "bus"],
    ["nothing to see"],
]
ALL = list(scoring.SCORERS)
WITHOUT_JAVA = ["Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "ROUGE_L", "CIDEr"]


@pytest.fixture(autouse=True)
def nothing_said_yet():
    scoring.warn_once.cache_clear()


@pytest.fixture
def no_java(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))


@needs_java
def test_equal_to_the_packages_own_evaluation(caplog):
    """COCOEvalCap's chain: its tokenizer class, then its scorers."""
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    scores = caption_metrics(CAPTIONS, REFERENCES, [name for name in ALL if name != "METEOR"])
    said = PTBTokenizer().tokenize({image: [{"caption": text}] for image, text in enumerate(CAPTIONS)})
    given = PTBTokenizer().tokenize(
        {image: [{"caption": " ".join(text.split())} for text in those] for image, those in enumerate(REFERENCES)}
    )
    expected = [*Bleu(4).compute_score(given, said, verbose=0)[0]]
    expected += [scorer.compute_score(given, said)[0] for scorer in (Rouge(), Cider())]
    assert [scores[name] for name in WITHOUT_JAVA] == pytest.approx([100 * value for value in expected])
    assert "SPICE" in scores or "no SPICE (its models are missing" in caplog.text


@needs_java
def test_meteor():
    """One run of it, which takes several seconds to start."""
    assert scoring.meteor({0: ["a red dog runs"], 1: ["a cat"]}, {0: ["a red dog runs"], 1: ["a cat"]}) == [1.0]


def test_perfect_and_hopeless_captions(no_java):
    perfect = caption_metrics([those[0] for those in REFERENCES[:3]], REFERENCES[:3], ALL)
    assert perfect["Bleu_4"] == pytest.approx(100) and perfect["ROUGE_L"] == pytest.approx(100)
    hopeless = caption_metrics(["zebra"] * 3, REFERENCES[:3], ALL)
    assert hopeless["Bleu_1"] == pytest.approx(0, abs=1e-6) and hopeless["CIDEr"] == hopeless["ROUGE_L"] == 0


def test_scores_do_not_depend_on_the_order_of_images(no_java):
    order = [2, 0, 3, 1]
    shuffled = caption_metrics([CAPTIONS[i] for i in order], [REFERENCES[i] for i in order], ALL)
    assert shuffled == pytest.approx(caption_metrics(CAPTIONS, REFERENCES, ALL))


def test_without_java_the_rest_is_reported_and_said_once(no_java, caplog):
    scores = caption_metrics(CAPTIONS, REFERENCES, ALL)
    assert list(scores) == WITHOUT_JAVA
    caption_metrics(CAPTIONS, REFERENCES, ALL)
    assert [record.message for record in caplog.records] == [
        "caption scores: no Stanford's tokenizer, METEOR, SPICE (Java is not installed)"
    ]


@pytest.mark.parametrize("body", ["exit 1", "echo lost", "head -c 1 > /dev/null; printf '\\377'"])
def test_broken_java(tmp_path, monkeypatch, caplog, body):
    """It is there but does not work. METEOR's client would wait for ever for a lock that a failure leaves behind."""
    java = tmp_path / "java"
    java.write_text(f"#!/bin/sh\n{body}\n")
    java.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert list(caption_metrics(CAPTIONS, REFERENCES, ALL)) == WITHOUT_JAVA
    assert len(caplog.records) == 1 and "METEOR" in caplog.text and "Stanford's tokenizer" in caplog.text


def test_only_what_is_wanted_is_computed(no_java, caplog):
    """The others would not even be missing."""
    assert list(caption_metrics(CAPTIONS, REFERENCES, ["CIDEr", "Bleu"])) == [*WITHOUT_JAVA[:4], "CIDEr"]
    assert "METEOR" not in caplog.text and "SPICE" not in caplog.text


def test_a_failing_scorer_is_left_out(no_java, monkeypatch, caplog):
    def fails(given, said):
        raise MemoryError

    scorers = {"CIDEr": fails, "ROUGE_L": lambda given, said: [math.nan], "SPICE": lambda given, said: [0.25]}
    monkeypatch.setattr(scoring, "SCORERS", scorers)
    assert caption_metrics(CAPTIONS, REFERENCES, ALL) == {"SPICE": 25}
    assert "no CIDEr (MemoryError)" in caplog.text and "no ROUGE_L (it is not a number)" in caplog.text


class Refuse:
    """An importer that finds no pycocoevalcap."""

    def find_spec(self, name, path=None, target=None):
        if name.startswith("pycocoevalcap"):
            raise ModuleNotFoundError("No module named 'pycocoevalcap'")


def test_without_the_package(monkeypatch, caplog):
    monkeypatch.setattr(sys, "meta_path", [Refuse(), *sys.meta_path])
    for name in [name for name in sys.modules if name.startswith("pycocoevalcap")]:
        monkeypatch.delitem(sys.modules, name)
    assert caption_metrics(CAPTIONS, REFERENCES, ALL) == {}
    assert len(caplog.records) == 1 and caplog.text.count("No module named") == 1


@needs_java
def test_spice_never_downloads(monkeypatch):
    def refuse(*_):
        raise AssertionError("a download was tried")

    monkeypatch.setattr("urllib.request.urlretrieve", refuse)
    monkeypatch.setattr("pycocoevalcap.spice.get_stanford_models.urlretrieve", refuse)
    with pytest.raises(FileNotFoundError, match="get_stanford_models downloads them"):
        scoring.spice({0: ["a dog"]}, {0: ["a cat"]})


@needs_java
def test_tokens():
    texts = ["A man's dog, running (fast)!", "", "don't\u2028 stop", "a\nb", "", "it isn't a t-shirt - it's 3.5 m."]
    expected = [
        "a man 's dog running -lrb- fast -rrb-",
        "",
        "do n't stop",
        "a b",
        "",
        "it is n't a t-shirt it 's 3.5 m.",
    ]
    assert stanford_tokens(texts) == expected


@needs_java
def test_plain_tokens_of_plain_captions_are_stanfords():
    texts = [text for those in REFERENCES for text in those] + [
        "They don't know what's in it.",
        "A 3-year old, well...",
    ]
    assert plain_tokens(texts) == stanford_tokens(texts)


def test_plain_tokens_drop_punctuation_and_case():
    assert plain_tokens(["  A MAN; two-dogs?! ", "...", ""]) == ["a man two-dogs", "", ""]


@pytest.mark.parametrize("tokenize", [pytest.param(stanford_tokens, marks=needs_java), plain_tokens])
def test_references_without_a_word_do_not_count(tokenize, monkeypatch, caplog):
    """Neither beside others nor where an image has no other: the scores are those of what is left."""
    monkeypatch.setattr(scoring, "stanford_tokens", tokenize)
    names = ["Bleu", "ROUGE_L", "CIDEr"]
    expected = caption_metrics(CAPTIONS[:3], REFERENCES[:3], names)
    assert "CIDEr" in expected and not caplog.text
    padded = [["", *REFERENCES[0], " . "], *REFERENCES[1:3]]
    assert caption_metrics(CAPTIONS[:3], padded, names) == pytest.approx(expected) and not caplog.text
    assert caption_metrics(CAPTIONS, [*padded, ["", "!"]], names) == pytest.approx(expected)
    assert "without 1 of 4 images, whose references have no words" in caplog.text
    assert caption_metrics(["a"], [[""]], names) == {}
