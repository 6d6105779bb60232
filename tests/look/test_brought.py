"""`predict` and the scripts with the checkpoints that people bring, without a word on what they are."""

import json
import logging

import pytest
import torch
from PIL import Image
from transformers import BlipForConditionalGeneration, BlipForImageTextRetrieval, BlipForQuestionAnswering

from compress_caption_dtp import Caption
from madtp.__main__ import main
from madtp.look.predictor import load
from madtp.run.engine import main as run
from madtp.shared.weights import architecture, checkpoint
from tests import miniature
from tests.clip.test_clip_weights import open_clip_model
from tests.golden.fill import seeded
from tests.shared.weights.theirs import blip, clip, needs_5, saved


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "picture.png"
    Image.fromarray((seeded(4, 50, 80, 3).sigmoid() * 255).byte().numpy()).save(path)
    return str(path)


def answers(capsys, *flags):
    capsys.readouterr()
    assert main(["predict", "--json", *flags]) == 0
    return json.loads(capsys.readouterr().out)


@needs_5
def test_a_folder_of_transformers_needs_no_other_word(tmp_path, picture, capsys, caplog):
    """Task, sizes, pixels and vocabulary are its own."""
    folder = saved(blip(BlipForConditionalGeneration), tmp_path / "caption", vocabulary=True)
    (record,) = answers(capsys, "--checkpoint", str(folder), "--image", picture)
    predictor = load(str(folder))
    assert predictor.task.name == "caption" and predictor.task.config["image_size"] == 64
    assert record["dense"]["tokens"]["image"] == [17] * 4
    assert not [one for one in caplog.records if one.levelno >= logging.WARNING and one.name.startswith("madtp")]


@needs_5
def test_retrieval_by_blip_and_by_clip(tmp_path, picture, capsys):
    texts = ["--text", "two cat", "the red circle"]
    folder = saved(blip(BlipForImageTextRetrieval), tmp_path / "blip", vocabulary=True)
    (record,) = answers(capsys, "--checkpoint", str(folder), "--image", picture, *texts)
    assert set(record["dense"]["scores"]) == {"two cat", "the red circle"}
    folder = saved(clip(), tmp_path / "clip")
    (record,) = answers(capsys, "--checkpoint", str(folder), "--image", picture, *texts)
    assert record["dense"]["tokens"]["image"] == [17] * 4


@needs_5
def test_a_class_of_another_task_is_nothing_to_evaluate(tmp_path, picture, capsys):
    folder = saved(blip(BlipForImageTextRetrieval), tmp_path / "blip", vocabulary=True)
    assert main(["predict", "--task", "caption", "--checkpoint", str(folder), "--image", picture]) == 2
    error = capsys.readouterr().err
    assert "is a BlipForImageTextRetrieval, a model of task retrieval, and cannot be evaluated at caption" in error


def test_a_published_clip_is_known_by_its_name(picture, capsys, tmp_path, monkeypatch):
    """What is missing is its file, not a word on what it is for."""
    monkeypatch.chdir(tmp_path)
    assert main(["predict", "--checkpoint", "ViT-B/16", "--image", picture, "--text", "a dog"]) == 2
    assert "let a script fetch it by --download" in capsys.readouterr().err


@needs_5
def test_questions_without_a_list_of_answers_may_be_answered_freely(tmp_path, picture, capsys, monkeypatch):
    """As the error says; whoever brings a model alone has no list."""
    folder = saved(blip(BlipForQuestionAnswering), tmp_path / "vqa", vocabulary=True)
    monkeypatch.chdir(tmp_path)
    asked = ["predict", "--checkpoint", str(folder), "--image", picture, "--text", "what is it?"]
    assert main(asked) == 2 and "--set inference=generate" in capsys.readouterr().err
    assert main([*asked, "--set", "inference=generate"]) == 0


class TestImageSize:
    @pytest.fixture
    def path(self, tmp_path):
        """A CLIP for 64 pixels, while the task's own configuration is for 336."""
        content = {
            "state_dict": open_clip_model(True, 128, 64).state_dict(),
            "architecture": {"activation": "quick_gelu"},
        }
        torch.save(content, tmp_path / "clip.pt")
        return str(tmp_path / "clip.pt")

    def test_the_file_s_own_is_the_default(self, path, caplog):
        predictor = load(path, "retrieval_clip")
        assert predictor.task.config["image_size"] == predictor.model.sizes.image_resolution == 64
        assert "resized" not in caplog.text

    def test_another_one_is_said(self, path, caplog):
        assert load(path, "retrieval_clip", assignments=["image_size=96"]).model.sizes.image_resolution == 96
        assert f"{path} is for images of 64 pixels and gets 96: its positions are resized" in caplog.text


@needs_5
class TestScripts:
    """A run from transformers' weights: its folder says what they were, and is a checkpoint itself."""

    @pytest.fixture(scope="class")
    def data(self, tmp_path_factory):
        folder = tmp_path_factory.mktemp("data")
        miniature.make_data(folder)
        return folder

    def test_a_run_and_what_comes_after_it(self, data, tmp_path, picture, capsys):
        words = (data / "tokenizer" / "vocab.txt").read_text().split()
        text = {"vocab_size": len(words) + 2, "bos_token_id": len(words)}
        theirs = saved(blip(BlipForConditionalGeneration, text=text), tmp_path / "theirs")
        config = miniature.write_config(data, tmp_path / "config.yaml", "caption", image_size=48, max_epoch=1)
        flags = ["--config", str(config), "--num_workers", "0", "--p", "0"]
        out = str(tmp_path / "run")
        assert run(Caption(), [*flags, "--pretrained", str(theirs), "--output_dir", out]) == 0
        log = (tmp_path / "run" / "train.log").read_text()
        assert "converted from transformers' names by" in log and "is for images of 64 pixels and gets 48" in log
        assert f"{theirs} says vit {{embed_dim: 48, depth: 3, num_heads: 3" in log
        # The run's folder is a checkpoint, whatever another configuration says of heads and norms.
        own = checkpoint.read(out)["architecture"]
        assert own["vit"]["norm_eps"] == 1e-4 and own["image_size"] == 48
        again = str(tmp_path / "again")
        assert run(Caption(), [*flags, "--evaluate", "--pretrained", out, "--output_dir", again]) == 0
        (record,) = answers(capsys, "--checkpoint", out, "--image", picture)
        assert record["dense"]["tokens"]["image"] == [10] * 4
        assert main(["export", "--checkpoint", out, "--output_dir", str(tmp_path / "back")]) == 0
        back = BlipForConditionalGeneration.from_pretrained(tmp_path / "back")
        assert back.config.vision_config.layer_norm_eps == 1e-4

    def test_another_vocabulary_ends_in_one_line(self, data, tmp_path, capsys):
        model = load_tiny(data, tmp_path)
        torch.save({"model": model.state_dict(), **architecture.entry(model)}, tmp_path / "model.pth")
        words = (data / "tokenizer" / "vocab.txt").read_text().split()
        (tmp_path / "other").mkdir()
        (tmp_path / "other" / "vocab.txt").write_text("\n".join([*words[:-2], words[-1], words[-2]]))
        config = miniature.write_config(data, tmp_path / "config.yaml", "caption", tokenizer=str(tmp_path / "other"))
        flags = ["--config", str(config), "--evaluate", "--pretrained", str(tmp_path / "model.pth")]
        assert run(Caption(), [*flags, "--output_dir", str(tmp_path / "out")]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and "was trained with" in error and "point the key `tokenizer`" in error


def load_tiny(data, tmp_path):
    from madtp.run import config as configuration

    path = miniature.write_config(data, tmp_path / "tiny.yaml", "caption")
    config = configuration.resolve(str(path), "caption")
    return Caption().build_model(config, evaluate=False)
