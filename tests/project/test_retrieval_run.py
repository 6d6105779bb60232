"""The retrieval scripts from start to end on a miniature of their data, on one process and on two."""

import json

import pytest

from compress_retrieval_dtp import RetrievalCOCO
from compress_retrieval_flickr_dtp import RetrievalFlickr
from madtp.run.engine import main
from tests.miniature import make_data, write_config
from tests.run.test_distributed import assert_same_scores, common, launch, read

KEYS = {"queue_size": 40, "k_test": 6, "max_epoch": 1, "epoch_steps": 3}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("retrieval")
    make_data(folder)
    return folder


def test_dense_then_evaluated(data, tmp_path):
    config = write_config(data, tmp_path / "coco.yaml", "retrieval", dataset="coco", **KEYS)
    assert main(RetrievalCOCO(), [*common(config, tmp_path / "dense"), "--p", "0"]) == 0
    (trained,) = read(tmp_path / "dense" / "log.txt")
    assert trained["percent"] == pytest.approx(100) and trained["temperature"] == 0
    assert {
        "train_loss_ita",
        "train_loss_itm",
        "test_txt_r1",
        "test_img_r10",
        "test_ita_txt_r1",
        "val_ita_r_mean",
    } <= trained.keys()
    assert "train_loss_sim" not in trained
    flags = ["--evaluate", "--pretrained", str(tmp_path / "dense" / "checkpoint_best.pth")]
    assert main(RetrievalCOCO(), [*common(config, tmp_path / "again"), *flags]) == 0
    evaluated = json.loads((tmp_path / "again" / "evaluate.txt").read_text())
    assert_same_scores(evaluated, {name: trained[name] for name in evaluated if name in trained} | {"checkpoint": ""})


def test_compressed_on_two_processes_equals_one(data, tmp_path):
    """Negatives come from both processes, whose images kept different numbers of tokens."""
    keys = {**KEYS, "dataset": "flickr", "negative_all_rank": True, "calibration_batches": 16}
    config = write_config(data, tmp_path / "flickr.yaml", "retrieval_flickr", **keys)
    compressed = launch("compress_retrieval_flickr_dtp.py", *common(config, tmp_path / "two"), "--p", 0.35)
    assert compressed.returncode == 0, compressed.stderr
    (last,) = read(tmp_path / "two" / "log.txt")
    assert last["temperature"] > 0 and last["train_loss_sim"] > 0 and last["train_loss_sim_m"] > 0
    assert abs(last["percent"] - 65) < 1
    flags = ["--evaluate", "--pretrained", str(tmp_path / "two" / "checkpoint_last.pth")]
    assert main(RetrievalFlickr(), [*common(config, tmp_path / "one"), *flags]) == 0
    evaluated = json.loads((tmp_path / "one" / "evaluate.txt").read_text())
    assert_same_scores(evaluated, {name: last[name] for name in evaluated if name in last} | {"checkpoint": ""})
