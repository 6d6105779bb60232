"""Vocabularies in both forms of file, and held against what a checkpoint was trained with."""

import json
import logging
import shutil

import pytest
import torch

from madtp.method.errors import UserError
from madtp.shared.weights import architecture
from models.blip import blip_decoder
from models.tokenizer import UNCASED, UNCASED_WORDS, check_uncased, check_vocabulary, fingerprint, init_tokenizer
from tests.models.test_golden import GOLDEN
from tests.tiny import CONFIG, SIZES, build

SENTENCE = "the picture of two cat"


@pytest.fixture
def golden():
    return init_tokenizer(str(GOLDEN / "tokenizer"))


def vocabulary(folder, words):
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    return str(folder)


class TestFiles:
    def test_tokenizer_json_alone(self, tmp_path, golden):
        """What transformers 5 saves, with and without the added words in it."""
        for name, tokenizer in (("with", golden), ("without", type(golden).from_pretrained(GOLDEN / "tokenizer"))):
            tokenizer.save_pretrained(tmp_path / name)
            (tmp_path / name / "vocab.txt").unlink(missing_ok=True)
            assert (tmp_path / name / "tokenizer.json").is_file()
            again = init_tokenizer(str(tmp_path / name))
            assert again(SENTENCE).input_ids == golden(SENTENCE).input_ids
            assert fingerprint(again) == fingerprint(golden)
            assert again.convert_tokens_to_ids(["[DEC]", "[ENC]"]) == [200, 201]
            assert again.decode([200, 30, 201], skip_special_tokens=True) == again.decode([30])

    def test_neither(self, tmp_path):
        with pytest.raises(
            UserError, match="no vocab.txt in .*, and no tokenizer.json; put the files of bert-base-uncased"
        ):
            init_tokenizer(str(tmp_path))

    def test_a_vocabulary_that_git_lfs_did_not_fetch(self, tmp_path):
        (tmp_path / "vocab.txt").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 231508\n")
        with pytest.raises(UserError, match=f"{tmp_path}/vocab.txt is a pointer of Git LFS: run `git lfs pull`"):
            init_tokenizer(str(tmp_path))

    def test_a_tokenizer_of_another_kind(self, tmp_path):
        """A byte-pair tokenizer has no [CLS]."""
        model = {"type": "BPE", "vocab": {"<s>": 0, "a": 1}, "merges": []}
        (tmp_path / "tokenizer.json").write_text(json.dumps({"version": "1.0", "added_tokens": [], "model": model}))
        with pytest.raises(UserError, match=f"tokenizer: {tmp_path} cannot be used: .*type BPE, not WordPiece"):
            init_tokenizer(str(tmp_path))


class TestFingerprint:
    def test_words_and_their_order_decide(self, tmp_path, golden):
        words = (GOLDEN / "tokenizer" / "vocab.txt").read_text().split()
        same = init_tokenizer(vocabulary(tmp_path / "same", words))
        moved = init_tokenizer(vocabulary(tmp_path / "moved", [*words[:-2], words[-1], words[-2]]))
        fewer = init_tokenizer(vocabulary(tmp_path / "fewer", words[:-1]))
        assert fingerprint(same) == fingerprint(golden) and fingerprint(golden).startswith("202 words, ")
        assert len({fingerprint(tokenizer) for tokenizer in (golden, moved, fewer)}) == 3


class TestCheckpoint:
    """A model's own vocabulary goes with it."""

    @pytest.fixture
    def path(self, tmp_path):
        model = build(blip_decoder)
        torch.save({"model": model.state_dict(), **architecture.entry(model)}, tmp_path / "model.pth")
        return tmp_path / "model.pth"

    def test_its_own(self, path, caplog):
        blip_decoder(str(path), **SIZES, evaluate=True, config=CONFIG)
        assert not [record for record in caplog.records if record.levelno >= logging.WARNING]

    @pytest.mark.parametrize("evaluate", [True, False])
    def test_another_one_of_the_same_length(self, path, tmp_path, evaluate):
        words = (GOLDEN / "tokenizer" / "vocab.txt").read_text().split()
        folder = vocabulary(tmp_path / "other", [*words[:-2], words[-1], words[-2]])
        with pytest.raises(
            UserError, match=f"model.pth was trained with 202 words, .*, and {folder} has 202 words, .*; point"
        ):
            blip_decoder(str(path), **SIZES, evaluate=evaluate, config=CONFIG | {"tokenizer": folder})

    def test_a_file_whose_table_of_words_is_none(self, path):
        words = [
            f"text_decoder.{name}.weight" for name in ("bert.embeddings.word_embeddings", "cls.predictions.decoder")
        ]
        torch.save(torch.load(path)["model"] | dict.fromkeys(words, torch.tensor(1.0)), path)
        with pytest.raises(UserError, match=r"word_embeddings.weight is \[\] in the file"):
            blip_decoder(str(path), **SIZES, evaluate=True, config=CONFIG)

    def test_a_file_that_does_not_say_it_and_another_number_of_words(self, path, tmp_path, caplog):
        content = torch.load(path)
        torch.save(content["model"], path)
        words = (GOLDEN / "tokenizer" / "vocab.txt").read_text().split()
        folder = vocabulary(tmp_path / "fewer", words[:-9])
        blip_decoder(str(path), **SIZES, evaluate=True, config=CONFIG | {"tokenizer": folder})
        assert f"{path} has 202 words and {folder} 193: if they are not those that it was trained with" in caplog.text
        caplog.clear()
        (path.parent / "vocab.txt").write_text("\n".join(words[:-9]) + "\n")
        blip_decoder(str(path), **SIZES, evaluate=True, config=CONFIG | {"tokenizer": str(path.parent)})
        assert "words" not in caplog.text, "it lies beside the weights"


class TestUncased:
    """BLIP's released models do not say their vocabulary, but it is known."""

    @pytest.fixture(scope="class")
    def words(self):
        words = [f"[unused{number}]" for number in range(UNCASED_WORDS)]
        for word, number in UNCASED.items():
            words[number] = word
        return words

    @pytest.fixture(scope="class")
    def released(self):
        return {"model": {"text_encoder.embeddings.word_embeddings.weight": torch.zeros(UNCASED_WORDS + 2, 1)}}

    def test_the_right_one(self, tmp_path, words, released, caplog):
        folder = vocabulary(tmp_path / "right", words)
        check_vocabulary(init_tokenizer(folder), folder, released, "model_base.pth")
        assert not caplog.records

    @pytest.mark.parametrize(
        "change, found",
        [
            (
                lambda words: (
                    words[1:6] + ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz"]
                ),
                "36 words",
            ),
            (lambda words: [*words, "another"], "30523 words"),
            (lambda words: [word if word != "dog" else "Hund" for word in words], "'dog' has number None"),
        ],
        ids=["letters", "longer", "another language"],
    )
    def test_others_are_refused(self, tmp_path, words, released, change, found):
        folder = vocabulary(tmp_path / "wrong", change(words))
        tokenizer = init_tokenizer(folder)
        message = f"model_base.pth was trained with the 30522 words of bert-base-uncased, and {folder} has others"
        with pytest.raises(UserError, match=message):
            check_vocabulary(tokenizer, folder, released, "model_base.pth")
        with pytest.raises(UserError, match=found):
            check_uncased(tokenizer, folder, "model_base.pth")

    def test_earlier_checkpoints_of_ours_may_have_their_own(self, tmp_path, released, caplog):
        folder = shutil.copytree(GOLDEN / "tokenizer", tmp_path / "own")
        check_vocabulary(init_tokenizer(str(folder)), str(folder), released | {"keep": "batch"}, "checkpoint_best.pth")
        assert "checkpoint_best.pth has 30524 words" in caplog.text
