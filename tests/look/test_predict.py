"""Predictions on own pictures: alone as in company, in any number, whatever else is in their folder."""

import errno
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from madtp.__main__ import main
from madtp.cost.trace import Trace
from madtp.look import predict
from madtp.look.predictor import load
from madtp.look.samples import find_pictures, samples_of
from madtp.method.errors import UserError
from tests.look.small import KEYS, TEMPERATURE, TEXTS, asked


@pytest.mark.parametrize("name", KEYS)
def test_own_pictures_are_answered_alone_as_in_any_company(name, checkpoint, pictures, capsys):
    """By the rule `sample`: each record of a batch is that of its sample asked alone, and costs what its trace says."""
    count = 2 if name == "nlvr" else 1
    flags = ["--checkpoint", checkpoint(name), *(["--text", *TEXTS[name]] if TEXTS[name] else [])]
    together = asked(capsys, *flags, "--image", *pictures[: 3 * count], "--batch_size", "3", "--compare")
    assert len(together) == 3
    for number, record in enumerate(together):
        own = pictures[number * count : (number + 1) * count]
        (alone,) = asked(capsys, *flags, "--image", *own)
        assert record["images"] == own and record["compressed"]["percent"] < 99 < record["dense"]["percent"] < 101
        for entry in ("answer", "tokens"):
            assert alone["compressed"][entry] == record["compressed"][entry]
        assert alone["compressed"]["gflops"] == pytest.approx(record["compressed"]["gflops"], rel=1e-3)
    with torch.inference_mode():
        predictor, trace = load(checkpoint(name)), Trace()
        samples = samples_of(name, list(map(Path, pictures[:count])), TEXTS[name])
        ((_, batch),) = predict.batched(predictor, samples)
        result = predictor.task.predict(predictor.model, batch, TEMPERATURE, trace)[0]
    assert together[0]["compressed"]["answer"] == predictor.task.answered(result)
    assert together[0]["compressed"]["tokens"]["image"][1:] == [float(row.left[0]) for row in trace.layers["image"]]


def test_a_text_is_utf_8_whatever_the_terminal_is_set_to(checkpoint, pictures, capsys):
    """Python hands on bytes that it cannot read, in an ASCII locale all others, as halves of characters."""
    asked_in_ascii = b"a r\xc3\xa9d circle".decode("ascii", "surrogateescape")
    flags = ["--checkpoint", checkpoint("nlvr"), "--image", *pictures[:2], "--text"]
    ours, plain = (asked(capsys, *flags, text)[0] for text in (asked_in_ascii, "a réd circle"))
    assert ours["text"] == plain["text"] and ours["compressed"]["tokens"] == plain["compressed"]["tokens"]
    assert main(["predict", *flags, b"a r\xe9d circle".decode(errors="surrogateescape")]) == 2
    assert capsys.readouterr().err == "error: --text 'a r\\udce9d circle' is no text in UTF-8; set the terminal to it\n"


@pytest.mark.parametrize(
    "name, limit",
    [("vqa", "a question the model reads 35"), ("retrieval", "a caption the model reads 35")]
    + [("retrieval_clip", "a caption the model reads 20"), ("nlvr", "the model reads")],
)
def test_a_text_that_is_cut_is_said(name, limit, checkpoint, pictures, capsys):
    flags = ["--checkpoint", checkpoint(name), "--image", *pictures[: 2 if name == "nlvr" else 1]]
    for words, said in ((36, name != "nlvr"), (18, False)):
        assert main(["predict", *flags, "--text", "a " * words]) == 0
        assert (limit in capsys.readouterr().err) == said


def test_another_batch_size_than_scored_is_said(checkpoint, pictures, capsys):
    flags = ["--image", *pictures[:2], "--text", "a red circle"]
    assert main(["predict", "--checkpoint", checkpoint("nlvr", "batch"), *flags]) == 0
    note = capsys.readouterr().err
    assert note.startswith("note: ") and "batches of 25" in note and "batches of 1" in note and note.count("\n") == 1
    assert main(["predict", "--checkpoint", checkpoint("nlvr"), *flags]) == 0
    assert capsys.readouterr().err == ""


def test_a_batch_is_no_larger_than_what_is_asked(checkpoint, pictures, capsys):
    """However many would fit into it: one sample is a batch of one, and that is said."""
    flags = ["--checkpoint", checkpoint("nlvr", "batch"), "--image", *pictures[:2], "--text", "a red circle"]
    for size in ("25", str(10**20)):
        assert main(["predict", *flags, "--batch_size", size]) == 0
        assert "batches of 25 and is asked in batches of 1:" in capsys.readouterr().err


def test_the_temperature_of_the_other_rule_is_said_where_it_is_taken(checkpoint, pictures, capsys):
    flags = ["--checkpoint", checkpoint("nlvr", "batch"), "--image", *pictures[:2], "--text", "a red circle"]
    said = {}
    for how in ((), ("--set", "keep=sample"), ("--set", "keep=sample", "--p", "0.1"), ("--temperature", "2")):
        assert main(["predict", *flags, *how]) == 0
        said[how] = "was found for keep=batch; by sample" in capsys.readouterr().err
    assert [how for how, so in said.items() if so] == [("--set", "keep=sample")]


def test_p_finds_a_temperature_for_the_pictures(checkpoint, pictures, capsys):
    """Asked for what some temperature costs, it finds one that costs about as much."""
    flags = ["--checkpoint", checkpoint("nlvr"), "--image", *pictures[:8], "--text", *TEXTS["nlvr"]]

    def percent(*how):
        return np.mean([record["compressed"]["percent"] for record in asked(capsys, *flags, *how)])

    cost = percent("--temperature", "9")
    assert percent("--p", str(1 - cost / 100)) == pytest.approx(cost, abs=1.5)
    (dense, *_) = asked(capsys, *flags, "--p", "0")
    assert dense["dense"]["percent"] == 100 and "compressed" not in dense


def test_retrieval_finds_texts_for_pictures_and_pictures_for_texts(checkpoint, pictures, capsys):
    flags = ["--checkpoint", checkpoint("retrieval"), "--image", *pictures[:3], "--text", *TEXTS["retrieval"]]
    records = asked(capsys, *flags)
    for record in records:
        scores = record["compressed"]["scores"]
        assert record["compressed"]["answer"] == max(scores, key=scores.get) and list(scores) == record["text"]
    assert main(["predict", *flags]) == 0
    last = capsys.readouterr().out.rstrip().splitlines()[-2:]
    for line, text in zip(last, TEXTS["retrieval"], strict=True):
        best = max(records, key=lambda record: record["compressed"]["scores"][text])
        assert line.strip() == f"{text}: {best['images'][0]}"


@pytest.mark.parametrize(
    "name, flags, message",
    [
        ("nlvr", ["--image", "{0}"], "nlvr takes pictures two by two, not 1"),
        ("nlvr", ["--image", "{0}", "{1}"], "nlvr needs a statement; give --text"),
        ("nlvr", ["--image", "{0}", "{1}", "--text", " "], "nlvr needs a statement; give --text"),
        (
            "retrieval",
            ["--image", "{0}", "--text", "a", "!!!"],
            "--text '!!!' has no word; retrieval needs the texts to choose from",
        ),
        ("caption", ["--image", "{0}", "--text", "a"], "caption takes no --text"),
        ("vqa", ["--image", "{0}", "{1}", "{2}", "--text", "a", "b"], "2 texts do not fit 3 pictures"),
        ("caption", ["--image", "nowhere.png"], "nowhere.png: no such picture"),
        ("caption", ["--image", "https://a.b/c.png"], "https://a.b/c.png: no such picture"),
        ("caption", ["--image", "README.md"], "README.md is no picture that can be read"),
        ("caption", ["--image", "configs"], "configs has no pictures in it"),
        ("caption", ["--image", "README.md", "CONTRIBUTING.md"], "of 2 samples none can be read"),
        ("caption", ["--image", "{0}", "--p", "1.5"], "--p is 1.5"),
        ("caption", ["--image", "{0}", "--p", "0.99"], "p 0.99 is out of reach"),
        ("caption", ["--image", "{0}", "--temperature", "-1"], "--temperature is -1.0"),
        ("caption", ["--image", "{0}", "--temperature", "inf"], "--temperature is inf, expected a number"),
        ("caption", ["--image", "{0}", "--device", "gpu"], "--device is 'gpu', expected cpu"),
        ("caption", ["--image", "{0}", "--batch_size", "0"], "--batch_size is 0"),
        ("caption", ["--image", "{0}", "--batch_size", "0", "--p", "0.5"], "--batch_size is 0"),
        ("caption", ["--image", "{0}", "--temperature", "0", "--visualize", "x.png"], "--visualize shows what is"),
        ("caption", ["--image", "{0}", "--visualize", "x.bmp"], "--visualize x.bmp: expected the name of a PNG"),
        ("caption", ["--image", "{0}", "--visualize", "/proc/x/y.png"], "cannot write to /proc/x"),
    ],
)
def test_mistakes_are_one_line(name, flags, message, checkpoint, pictures, capsys):
    flags = [flag.format(*pictures) for flag in flags]
    assert main(["predict", "--checkpoint", checkpoint(name), *flags]) == 2
    *notes, error = capsys.readouterr().err.splitlines()
    assert error.startswith("error: ") and message in error
    assert all(note.startswith("note: left out, ") for note in notes) and len(notes) == 2 * ("none" in message)


@pytest.fixture
def folder(pictures, tmp_path):
    """Four pictures, one of them below, and what else people have in such folders."""
    (tmp_path / "mine/sub").mkdir(parents=True)
    for name, picture in zip(("a.png", "b.png", "sub/c.webp", "d.jfif"), pictures, strict=False):
        Image.open(picture).convert("RGB").save(tmp_path / "mine" / name, "JPEG" if name == "d.jfif" else None)
    (tmp_path / "mine/._a.png").write_bytes(b"of another system")
    (tmp_path / "mine/notes.txt").write_text("two dogs")
    return tmp_path / "mine"


def test_a_folder_is_answered_whatever_else_is_in_it(checkpoint, folder, capsys):
    content = (folder / "b.png").read_bytes()
    (folder / "b.png").write_bytes(content[: len(content) // 2])
    flags = ["predict", "--checkpoint", checkpoint("caption"), "--image", str(folder)]
    assert main([*flags, "--json"]) == 1
    said = capsys.readouterr()
    assert [record["images"] for record in json.loads(said.out)] == [
        [str(folder / name)] for name in ("a.png", "d.jfif", "sub/c.webp")
    ]
    others, left_out = said.err.splitlines()
    assert others == f"note: {folder}: 2 files are no pictures by their names (1 hidden, 1 .txt)"
    assert left_out.startswith(f"note: left out, {folder}/b.png is no picture that can be read: ")
    assert main(flags) == 1
    assert [line for line in capsys.readouterr().out.splitlines() if line.startswith(str(folder))] == [
        str(folder / name) for name in ("a.png", "d.jfif", "sub/c.webp")
    ]


def test_a_folder_that_may_not_be_read_is_not_called_empty(folder, monkeypatch):
    def scandir(path):
        if Path(path).name in closed:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return really(path)

    really = os.scandir  # nobody keeps root out
    monkeypatch.setattr("os.scandir", scandir)
    closed = {"sub"}
    pictures, (left_out, _) = find_pictures([folder])
    assert pictures == [folder / name for name in ("a.png", "b.png", "d.jfif")]
    assert left_out == f"{folder}/sub is left out: Permission denied"
    closed = {folder.name}
    with pytest.raises(UserError, match=f"^{folder} cannot be read: Permission denied; change its permissions$"):
        find_pictures([folder])


def test_a_pair_goes_with_its_bad_picture(checkpoint, folder, capsys):
    (folder / "a.png").write_bytes(b"")
    flags = ["predict", "--checkpoint", checkpoint("nlvr"), "--image", str(folder), "--text", "a dog", "--json"]
    assert main(flags) == 1
    (record,) = json.loads(capsys.readouterr().out)
    assert record["images"] == [str(folder / "d.jfif"), str(folder / "sub/c.webp")]


def test_a_picture_is_read_when_its_turn_comes(checkpoint, folder):
    """So memory does not grow with their number, and an answer is there before the next picture is read."""
    predictor = load(checkpoint("caption"))
    pictures, _ = find_pictures([folder])
    args = SimpleNamespace(batch_size=1, p=None, temperature=None, compare=None, visualize=None)
    bad = []
    records = predict.answer(predictor, samples_of("caption", pictures, []), args, bad.append)
    next(records)
    pictures[2].unlink()
    assert [record["images"] for record in records] == [[str(picture)] for picture in pictures[1:2] + pictures[3:]]
    assert str(pictures[2]) in str(bad[0]) and len(bad) == 1


def test_a_dense_model_is_compared_with_another_one(checkpoint, pictures, capsys):
    dense, other = checkpoint("caption", temperature=0.0), checkpoint("caption")
    image = ["--image", pictures[0]]
    (record,) = asked(capsys, "--checkpoint", dense, *image, "--compare", other)
    (alone,) = asked(capsys, "--checkpoint", other, *image, "--temperature", "0")
    assert record["other"]["answer"] == alone["dense"]["answer"] and record["other"]["temperature"] == 0
    assert main(["predict", "--checkpoint", dense, *image, "--compare", other]) == 0
    said = capsys.readouterr().out
    assert "  other  " in said and "  dense  " in said
    assert main(["predict", "--checkpoint", dense, *image, "--compare", checkpoint("vqa")]) == 2
    assert "is a model of vqa at 72 pixels, not of caption at 72 pixels" in capsys.readouterr().err


@pytest.mark.parametrize("trained, asked_by", [("sample", "coverage"), ("coverage", "batch")])
def test_another_rule_is_not_passed_over(trained, asked_by, checkpoint, pictures, capsys):
    flags = ["--checkpoint", checkpoint("caption", trained), "--image", *pictures[:2], "--set", f"keep={asked_by}"]
    assert main(["predict", *flags]) == 2
    assert f"says nothing by keep={asked_by}" in capsys.readouterr().err
    for record in asked(capsys, *flags, "--p", "0.2"):
        assert record["compressed"]["keep"] == asked_by
    if asked_by == "coverage":
        assert main(["predict", *flags, "--temperature", "0.5"]) == 2
        assert "needs a shape" in capsys.readouterr().err
        flags.append("shape=1")
    (record, _) = asked(capsys, *flags, "--temperature", "0.5")
    assert (record["compressed"]["keep"], record["compressed"]["temperature"]) == (asked_by, 0.5)


def test_the_rules_of_the_paper_share_their_temperature_and_a_shape_may_be_chosen(checkpoint, pictures, capsys):
    flags = ["--checkpoint", checkpoint("caption"), "--image", pictures[0], "--set", "keep=batch"]
    (record,) = asked(capsys, *flags)
    assert (record["compressed"]["keep"], record["compressed"]["temperature"]) == ("batch", TEMPERATURE)
    assert main(["predict", *flags, "shape=2"]) == 2
    assert "shape is 2, but tokens are kept by batch" in capsys.readouterr().err
    flags = ["--checkpoint", checkpoint("caption", "coverage", 1.0), "--image", pictures[0]]
    own, chosen = (asked(capsys, *flags, *shape)[0]["compressed"] for shape in ([], ["--set", "shape=2"]))
    assert (own["shape"], chosen["shape"]) == (0.7, 2.0) and own["tokens"] != chosen["tokens"]


def test_a_pipe_among_the_pictures_is_not_waited_for(checkpoint, folder, capsys):
    os.mkfifo(folder / "pipe.png")
    assert main(["predict", "--checkpoint", checkpoint("caption"), "--image", str(folder)]) == 1
    assert f"note: left out, {folder}/pipe.png is no picture that can be read: it is no file" in capsys.readouterr().err


def test_a_size_that_the_checkpoint_decides_is_said(checkpoint, pictures, tmp_path, capsys, caplog):
    own = Path(checkpoint("caption"))
    shutil.copy(own.with_name("config.yaml"), tmp_path)
    vit = {"embed_dim": 32, "depth": 3, "num_heads": 2, "patch_size": 12}
    torch.save(torch.load(own) | {"architecture": {"vit": vit}}, tmp_path / "own.pth")
    flags = ["--checkpoint", str(tmp_path / "own.pth"), "--image", pictures[0], "--set", "vit.num_heads=2"]
    plain = asked(capsys, *flags)[0]["compressed"]
    assert "no effect" not in caplog.text
    assert asked(capsys, *flags, "vit.depth=5")[0]["compressed"]["tokens"] == plain["tokens"]
    assert f"--set vit has no effect: {tmp_path}/own.pth says vit {{embed_dim: 32, depth: 3, " in caplog.text


def test_no_checkpoint_is_not_one_without_a_configuration(pictures, tmp_path, capsys):
    missing = str(tmp_path / "missing")
    assert main(["predict", "--checkpoint", missing, "--image", pictures[0]]) == 2
    assert f"error: {missing}: no such checkpoint; " in capsys.readouterr().err
    flags = ["--checkpoint", str(tmp_path), "--image", pictures[0], "--compare", f"{missing}.pth"]
    assert main(["predict", *flags]) == 2
    assert f"error: {missing}.pth: no such checkpoint; " in (error := capsys.readouterr().err)
    assert error.endswith("--compare names another\n")
    (tmp_path / "config.json").write_text('{"model_type": "siglip"}')
    assert main(["predict", "--checkpoint", str(tmp_path), "--image", pictures[0]]) == 2
    assert f"{tmp_path} is a model of type 'siglip'; of transformers' these are read: " in capsys.readouterr().err


def test_a_checkpoint_without_a_configuration_says_so(checkpoint, pictures, tmp_path, capsys):
    shutil.copy(checkpoint("caption"), tmp_path / "alone.pth")
    flags = ["--checkpoint", str(tmp_path / "alone.pth"), "--image", pictures[0]]
    assert main(["predict", *flags]) == 2
    assert "no config.yaml beside it; say what it is with --task or --config" in capsys.readouterr().err
    config = str(Path(checkpoint("caption")).parent / "config.yaml")
    assert main(["predict", *flags, "--config", config]) == 0


def test_an_answer_that_the_model_cannot_read_is_named_before_it_is_ranked(checkpoint, pictures, tmp_path, capsys):
    (tmp_path / "answer_list.json").write_text(json.dumps(["yes", "1," * 40]))
    asked = ["--image", pictures[0], "--text", "is it?", "--set", f"ann_root={tmp_path}", "inference=rank"]
    assert main(["predict", "--checkpoint", checkpoint("vqa"), *asked]) == 2
    said = capsys.readouterr().err
    assert (
        said.startswith(f"error: {tmp_path}/answer_list.json, entry 1: the answer has 82 tokens")
        and said.count("\n") == 1
    )
