"""Looking at models: closeups, the page about runs and the page to play with.

A small model of every task, made here; what it answers and keeps is held to the task and its trace themselves.
"""

import json
import os
import re
import shutil
import socket
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from madtp.__main__ import main
from madtp.cost.trace import LayerTrace
from madtp.look import app, closeup, paper, predict, runs
from madtp.look.predictor import load
from madtp.look.recording import _importance
from madtp.look.samples import samples_of
from madtp.look.survival import follow
from madtp.look.views import closeups
from madtp.method.attention import AttentionScores
from madtp.method.pruning import Kept, importance
from tests.look.small import TEMPERATURE, TEXTS, asked
from transform.pictures import evaluation_transform
from utils import UserError

# What the layers kept, and why.


def test_tokens_are_followed_by_name():
    """Six tokens: the second layer drops a merged one again, the third nothing."""
    kept = [Kept(torch.tensor([[0, 1, 3, 5, 2]])), None, Kept(torch.tensor([[0, 2, 3, 1]]))]
    layers = [LayerTrace(7, 5, True, kept[0]), LayerTrace(5, 5, True), LayerTrace(5, 4, True, kept[2])]
    steps = follow(layers, 0)
    assert steps[0].left == [(0,), (2,), (4,), (1, 3, 5)] and steps[0].merged == [1, 3, 5]
    assert not steps[1].prunes and steps[1].kept == [0, 2, 4]
    assert steps[2].left == [(2,), (4,), (0, 1, 3, 5)] and steps[2].merged == [0]
    assert [step.kept for step in steps] == [[0, 2, 4], [0, 2, 4], [2, 4]]


@pytest.mark.parametrize("keep", ["batch", "sample"])
@pytest.mark.parametrize("name", ["nlvr", "vqa", "retrieval", "retrieval_clip"])
def test_recording_changes_nothing_and_explains_what_was_kept(name, keep, checkpoint, pictures):
    """Whatever was kept is at least as important as whatever was dropped; every layer of every tower is recorded."""
    predictor = load(checkpoint(name, keep))
    count = 2 if name == "nlvr" else 1
    samples = samples_of(name, list(map(Path, pictures[: 3 * count])), TEXTS[name])
    ((_, batch),) = predict.batched(predictor, samples, 3)
    forward = predictor.run(batch, TEMPERATURE, record=True)
    plain = predictor.run(batch, TEMPERATURE)
    assert str(forward.results) == str(plain.results) and not plain.towers
    explained = 0
    for (tower, rows), layers in zip(forward.trace.layers.items(), forward.towers, strict=True):
        assert len(rows) == len(layers)
        for sample in range(len(layers[0].total)):
            for step, layer in zip(follow(rows, sample), layers, strict=True):
                values = dict(zip(step.entered, layer.total[sample], strict=False))
                dropped = [token for token in step.entered if token not in step.left]
                if dropped and tower != "text":  # CLIP keeps its end of text, whatever it is worth
                    least = min(values[token] for token in step.left if token in values)
                    assert least >= max(values[token] for token in dropped)
                    explained += 1
    assert explained


def test_importance_is_the_mean_of_its_parts(checkpoint, pictures):
    scores, alignment = AttentionScores(torch.rand(2, 5), torch.rand(2, 5)), torch.randn(2, 5, 3)
    recorded = _importance(scores, alignment)
    np.testing.assert_allclose(recorded.total, importance(scores, alignment), rtol=1e-5)
    np.testing.assert_allclose(recorded.parts["self_attention"].sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(recorded.of(1).parts["alignment"], recorded.parts["alignment"][1])


@pytest.mark.parametrize("name, samples", [("nlvr", 1), ("retrieval", 2)])
def test_closeups_are_drawn(name, samples, checkpoint, pictures, tmp_path):
    own = pictures[: samples * (2 if name == "nlvr" else 1)]
    flags = ["--checkpoint", checkpoint(name), "--image", *own, "--text", *TEXTS[name]]
    assert main(["predict", *flags, "--visualize", str(tmp_path / "a.png")]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == (["a.png"] if samples == 1 else ["a-1.png", "a-2.png"])
    orange = np.array([int(closeup.OUTLINE[at : at + 2], 16) for at in (1, 3, 5)])
    for path in tmp_path.iterdir():
        with Image.open(path) as drawn:
            distance = np.abs(np.asarray(drawn.convert("RGB")).astype(int) - orange).max(axis=2)
        assert (distance < 12).sum() > 100


@pytest.mark.parametrize("name, count", [("nlvr", 2), ("vqa", 1)])
def test_a_closeup_shows_a_sample_s_own_pictures_and_words_also_among_others(name, count, checkpoint, pictures):
    predictor, paths = load(checkpoint(name)), list(map(Path, pictures[: 3 * count]))
    texts = "is there a red circle?", "a cross", "is a large green square and a blue cross?"
    samples = [
        sample._replace(texts=(text,)) for sample, text in zip(samples_of(name, paths, TEXTS[name]), texts, strict=True)
    ]

    def closeups_of(samples):
        ((_, batch),) = predict.batched(predictor, samples, len(samples))
        return closeups(predictor, batch, predictor.run(batch, TEMPERATURE, record=True), texts[: len(samples)])

    seen = evaluation_transform(predictor.task.config["image_size"])
    for row, together in enumerate(closeups_of(samples)):
        (alone,) = closeups_of([samples[row]])
        own = [seen(Image.open(path).convert("RGB")) for path in paths[row * count :][:count]]
        for (picture, _), image in zip(together.pictures, own, strict=True):
            np.testing.assert_allclose(picture, image.permute(1, 2, 0) / 255, atol=1e-5)
        ((words, _),) = together.texts
        assert "".join(words).replace("##", "").removesuffix("[SEP]") == texts[row].replace(" ", "")
        pairs = zip(together.pictures + together.texts, alone.pictures + alone.texts, strict=True)
        for (_, fate), (_, lonely) in pairs:
            assert fate.name == lonely.name in ("image", "text") and fate.steps == lonely.steps
            for one, other in zip(fate.importance, lonely.importance, strict=True):
                np.testing.assert_allclose(one.total[: len(other.total)], other.total, rtol=1e-3)


def test_a_closeup_greys_what_is_gone_and_outlines_what_goes():
    step = follow([LayerTrace(5, 4, True, Kept(torch.tensor([[0, 1, 2, 3]])))], 0)[0]
    assert step.kept == [0, 1] and step.merged == [2, 3]
    white = np.ones((8, 8, 3))
    shaded = closeup.shaded(white, step, side=2)
    assert (shaded[:4] == 1).all() and (shaded[4:] < 1).all()
    heat = closeup.heat(np.array([1.0, 2.0, 3.0, 4.0]), step, side=2)
    assert heat.tolist() == [[1, 2], [3, 4]]


def test_words_stand_on_lines_that_fit():
    words = ["word"] * 50
    lines = list(closeup.lines_of(words, width=8))
    assert [number for line in lines for number in line] == list(range(50)) and len(lines) > 1
    assert all(sum(closeup.word_width("word") for _ in line) <= 8 for line in lines)


@pytest.mark.parametrize("keep, temperature", [("sample", TEMPERATURE), ("coverage", 1.5)])
def test_samples_of_a_data_set_are_drawn(keep, temperature, checkpoint, data, capsys):
    folder = data / f"drawn_{keep}"
    flags = ["--checkpoint", checkpoint("nlvr", keep, temperature), "--number", "2", "--out", str(folder)]
    assert main(["visualize", *flags]) == 0
    assert sorted(path.name for path in folder.iterdir()) == ["test-1.png", "test-2.png", "test.png"]
    assert main(["visualize", *flags, "--temperature", "0"]) == 2
    assert "drops nothing" in capsys.readouterr().err
    assert main(["visualize", *flags, "--number", "0"]) == 2
    assert "--number is 0" in capsys.readouterr().err
    if Path("/dev/full").exists():
        for name in ("test.png", "test-2.png"):
            whole = (folder / name).read_bytes()
            (folder / f"{name}.tmp").symlink_to("/dev/full")
            assert main(["visualize", *flags]) == 2
            assert f"cannot write {folder / name}: No space left" in capsys.readouterr().err
            assert (folder / name).read_bytes() == whole


# The page about runs.


@pytest.fixture(scope="module")
def run_folder(data, checkpoint):
    """What a run leaves: its log is written by hand, its checkpoint is a real one."""
    folder = Path(checkpoint("nlvr")).parent
    record = {"gflops": 0.5, "gflops_dense": 1.0, "keep": "sample", "lr": 0.1, "train_loss_task": 0.7}
    record |= {"tokens": {"image": [30, 20, 9], "text": [7, 5]}, "val_samples_per_second": 321.0, "target": 50.0}
    lines = [
        record | {"epoch": epoch, "percent": percent, "val_accuracy": score, "temperature": 12.5, "best": epoch == 1}
        for epoch, (percent, score) in enumerate([(70, 51), (50, 77.25), (49, 60)])
    ]
    (folder / "log.txt").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return folder


def test_the_page_tells_rules_apart(run_folder, tmp_path):
    other = tmp_path / "coverage"
    shutil.copytree(run_folder, other)
    lines = [json.loads(line) for line in (run_folder / "log.txt").read_text().splitlines()]
    rule = {"keep": "coverage", "shape": 0.7, "keep_norm": True, "temperature": 1.25}
    lines = [json.dumps(line | rule) for line in lines]
    (other / "log.txt").write_text("\n".join(lines))
    path = tmp_path / "report.html"
    assert main(["report", str(run_folder), str(other), "--out", str(path), "--no_drawing"]) == 0
    page = path.read_text()
    for cell in ("<th>T or amount</th><th>shape</th>", "<td>sample</td><td>12.5</td><td></td>"):
        assert cell in page
    assert "<td>coverage, lengths kept</td><td>1.25</td><td>0.7</td>" in page


def test_runs_are_read(run_folder):
    (run,) = runs.read([run_folder])
    assert run.task == "nlvr" and run.split == "val" and run.scores == {"accuracy": 77.25}
    assert run.cost("percent") == 50 and run.cost("samples_per_second") == 321
    assert run_folder in [run.folder for run in runs.read([run_folder.parent])]
    with pytest.raises(UserError, match="no run"):
        runs.read([run_folder / "pictures"])


def test_a_run_without_an_epoch_keeps_no_other_from_the_page(run_folder, tmp_path, capsys):
    """One that has just begun, or was refused, as for a p out of reach."""
    shutil.copytree(run_folder, tmp_path / "done")
    shutil.copytree(run_folder, tmp_path / "begun")
    (tmp_path / "begun" / "log.txt").write_text("")
    assert [run.folder.name for run in runs.read([tmp_path])] == ["done"]
    assert main(["report", str(tmp_path / "begun")]) == 2
    assert "its log is empty; wait for the first epoch to end" in capsys.readouterr().err


@pytest.mark.parametrize("file, content", [("log.txt", "{"), ("config.yaml", "{["), ("config.yaml", "nonsense: 1")])
def test_a_run_that_cannot_be_read_keeps_no_other_from_the_page(run_folder, tmp_path, capsys, file, content):
    for name in ("done", "damaged"):
        shutil.copytree(run_folder, tmp_path / name)
    (tmp_path / "damaged" / file).write_text(content)
    assert [run.folder.name for run in runs.read([tmp_path])] == ["done"]
    said = capsys.readouterr().err
    assert said.startswith(f"note: left out, {tmp_path}/damaged/{file}") and said.count("\n") == 1
    with pytest.raises(UserError, match=file):
        runs.read([tmp_path / "damaged"])


def test_the_folder_of_a_page_is_made_before_anything_is_drawn(run_folder, tmp_path, capsys):
    page = tmp_path / "new" / "page.html"
    assert main(["report", str(run_folder), "--out", str(page), "--no_drawing"]) == 0 and page.is_file()
    (tmp_path / "file").write_text("")
    assert main(["report", str(run_folder), "--out", str(tmp_path / "file" / "page.html")]) == 2
    assert f"cannot write to {tmp_path / 'file'}: " in capsys.readouterr().err


@pytest.mark.parametrize("line, says", [("5", "not from this"), ('{"a": 1}', "not from this"), ("{", "damaged")])
def test_a_log_of_others_is_named(line, says, run_folder, tmp_path, capsys):
    shutil.copy(run_folder / "config.yaml", tmp_path)
    (tmp_path / "log.txt").write_text(line)
    assert main(["report", str(tmp_path)]) == 2
    assert f"{tmp_path}/log.txt is {says}" in capsys.readouterr().err


def test_the_page_says_what_the_log_says_and_needs_no_network(run_folder, tmp_path):
    path = tmp_path / "report.html"
    assert main(["report", str(run_folder), "--out", str(path)]) == 0
    page = path.read_text()
    for cell in ("77.25", "50.0", "12.5", "321"):
        assert f"<td>{cell}</td>" in page
    assert re.findall(r"""(?:src|href)=["'](?!data:)""", page) == [] and "url(" not in page
    assert page.count("data:image/svg+xml") == 2 and page.count("data:image/png") == 4


def test_pictures_of_an_earlier_model_are_drawn_anew(run_folder, tmp_path):
    shutil.copytree(run_folder, tmp_path / "run", ignore=shutil.ignore_patterns("pictures"))
    best, picture = tmp_path / "run" / "checkpoint_best.pth", tmp_path / "run" / "pictures" / "test.png"

    def drawn():
        assert main(["report", str(tmp_path / "run")]) == 0
        return picture.stat().st_mtime_ns

    os.utime(best, (1000, 1000))
    first = drawn()
    assert drawn() == first, "once for each model"
    best.touch()
    assert drawn() > first, "the run went on, or another took its place"


def browser():
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.mark.skipif(browser() is None, reason="no Chromium is installed")
def test_the_page_opens_in_a_browser(run_folder, tmp_path):
    """All pictures are decoded: a script, added for the test, writes their widths into the page."""
    path = tmp_path / "report.html"
    assert main(["report", str(run_folder), "--out", str(path), "--no_drawing"]) == 0
    script = "<script>onload = () => document.title = [...document.images].map(i => i.naturalWidth)</script>"
    path.write_text(path.read_text().replace("</body>", f"{script}</body>"))
    flags = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-sync"
    flags += f" --disable-component-update --user-data-dir={tmp_path / 'profile'} --dump-dom"
    shown = subprocess.run([browser(), *flags.split(), path.as_uri()], capture_output=True, text=True, timeout=60)
    widths = re.search(r"<title>([\d,]+)</title>", shown.stdout)[1].split(",")
    assert len(widths) >= 2 and all(int(width) > 100 for width in widths)


def test_the_papers_points_stand_beside_its_own_models_alone():
    base = {"image_size": 384, "vit": "base", "clip": None, "dataset": "flickr"}
    assert {point.method for point in paper.points_for("nlvr", base)} == {
        "dense", "MADTP", "UPop", "static pruning",
    }  # fmt: skip
    assert paper.points_for("retrieval", base)[0].scores == {"txt_r1": 96.8, "img_r1": 86.9}
    assert paper.points_for("nlvr", base | {"vit": "large"}) == [] == paper.points_for("vqa", base)
    for task, points in paper.POINTS.items():
        assert points[0].method == "dense" and max(points, key=lambda point: point.gflops) is points[0], task


# The page to play with.


def test_the_app_answers_as_predict_does(checkpoint, pictures, capsys):
    gradio_client = pytest.importorskip("gradio_client")
    pytest.importorskip("gradio")
    path = checkpoint("nlvr")
    page = app.build({path: load(path)})
    _, url, _ = page.launch(server_name="127.0.0.1", prevent_thread_lock=True, quiet=True, **app.look())
    try:
        client = gradio_client.Client(url, verbose=False)
        files = [gradio_client.handle_file(picture) for picture in pictures[:2]]
        table, note, kept = client.predict(path, *files, TEXTS["nlvr"][0], app.OWN, 0.5, api_name="/ask")
    finally:
        page.close(verbose=False)
    flags = ["--checkpoint", path, "--image", *pictures[:2], "--text", *TEXTS["nlvr"]]
    (expected,) = asked(capsys, *flags, "--compare")
    for row, name in zip(table["data"], ("dense", "compressed"), strict=True):
        assert row[:2] == [name, expected[name]["answer"]] and row[3] == f"{expected[name]['percent']:.1f}"
    with Image.open(kept) as drawn:
        assert min(drawn.size) > 300


def test_a_port_that_cannot_be_had_is_said():
    with socket.socket() as taken:
        taken.bind((app.HERE, 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"--port {port}: Address already in use; give another"):
            app.check_port(port)
    app.check_port(port)
    with pytest.raises(UserError, match="--port 70000: no port has this number; give another"):
        app.check_port(70000)
