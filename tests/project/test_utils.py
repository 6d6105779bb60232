"""Shared helpers: seeds, meters without waiting, files that are whole."""

import errno
import math
import os
import random

import numpy as np
import pytest
import torch

import utils
from data.official import records, stream
from madtp.shared.weights import reading
from utils import UserError


def test_a_seed_repeats_every_draw():
    def draws():
        utils.set_seed(7)
        return random.random(), np.random.rand(), torch.rand(1).item()

    first = draws()
    assert draws() == first
    utils.set_seed(8)
    assert torch.rand(1).item() != first[2]


def test_cosine_schedule():
    rates = [utils.cosine_lr(3.0, 1.0, step, 10) for step in range(11)]
    assert rates[0] == 3.0 and rates[5] == pytest.approx(2.0) and rates[10] == pytest.approx(1.0)
    assert rates == sorted(rates, reverse=True)
    assert all(rates[i] + rates[10 - i] == pytest.approx(4.0) for i in range(11))
    assert utils.cosine_lr(3.0, 1.0, 15, 10) == pytest.approx(1.0)
    assert utils.cosine_lr(3.0, 1.0, 0, 0) == 3.0


class TestMeters:
    def test_mean_is_weighted_by_samples(self):
        meters = utils.Meters()
        meters.update(n=3, loss=torch.tensor(1.0, requires_grad=True), accuracy=0.5)
        meters.update(n=1, loss=torch.tensor(5.0))
        assert meters.means() == {"loss": 2.0, "accuracy": 0.5}
        assert str(meters) == "loss 2  accuracy 0.5"
        meters.synchronize()
        assert meters.means() == {"loss": 2.0, "accuracy": 0.5}

    def test_tensors_are_not_read_before_the_mean_is(self):
        """On the meta device a number cannot be read at all: only an update that does not read passes."""
        meter = utils.AverageMeter()
        meter.update(torch.ones((), device="meta"), n=2)
        meter.update(torch.ones((), device="meta"))
        with pytest.raises(RuntimeError):
            _ = meter.mean

    def test_nothing_yet(self):
        assert math.isnan(utils.AverageMeter().mean)


class TestFiles:
    def test_text_replaces_the_old_file(self, tmp_path):
        path = tmp_path / "log.txt"
        for text in ("old and long", "né\n"):
            utils.write_atomic(path, text)
            assert path.read_text(encoding="utf-8") == text
        assert os.listdir(tmp_path) == ["log.txt"]

    def test_an_interrupted_write_leaves_the_old_file(self, tmp_path):
        path = tmp_path / "log.txt"
        path.write_text("old")
        with pytest.raises(KeyboardInterrupt), utils.whole_file(path) as file:
            file.write(b"new")
            raise KeyboardInterrupt
        assert path.read_text() == "old"
        assert os.listdir(tmp_path) == ["log.txt"]

    def test_all_of_it_is_on_the_disk_before_it_takes_the_name(self, tmp_path, monkeypatch):
        path, seen = tmp_path / "log.txt", []
        monkeypatch.setattr(os, "fsync", lambda file: seen.append((os.fstat(file).st_size, path.exists())))
        utils.write_atomic(path, "text")
        assert seen == [(4, False)]

    def test_a_full_disk_says_so(self, tmp_path):
        with pytest.raises(UserError, match=r"cannot write .*model.pth \(2.0 MiB\): .* free some space"):
            with utils.whole_file(tmp_path / "model.pth", size=2**21):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def test_other_errors_pass(self, tmp_path):
        with pytest.raises(RuntimeError, match="not about files"), utils.whole_file(tmp_path / "a"):
            raise RuntimeError("not about files")

    def test_a_name_that_is_empty_is_said(self):
        with pytest.raises(UserError, match="^an empty name: Is a directory; name the file$"):
            utils.read_json("", "name the file")

    def test_output_folder(self, tmp_path):
        folder = utils.prepare_output(f"{tmp_path}/output/run")
        assert folder.is_dir() and not any(folder.iterdir())
        assert utils.prepare_output(folder) == folder

    @pytest.mark.parametrize("inner", ["file", "file/run"])
    def test_an_output_folder_that_is_a_file(self, tmp_path, inner):
        (tmp_path / "file").write_text("")
        with pytest.raises(
            UserError, match=f"cannot write to .*{inner}: (it is no folder|Not a directory); choose another folder"
        ):
            utils.prepare_output(tmp_path / inner)

    def test_an_output_folder_that_takes_no_files(self):
        with pytest.raises(UserError, match="cannot write to /proc: .*; choose another folder"):
            utils.prepare_output("/proc")


READERS = {
    "JSON": lambda path: utils.read_json(path, "correct it"),
    "weights": reading.read_file,
    "a published list": lambda path: next(stream.entries(path)),
    "published lines": records.read_lines,
}


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
def test_a_file_that_may_not_be_read_is_neither_wrong_nor_damaged(tmp_path, monkeypatch, read):
    """There is nothing in it to correct, and it need not be fetched again."""
    path = tmp_path / "file"
    path.write_text("[1]")

    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    with monkeypatch.context() as patch, pytest.raises(UserError) as error:
        patch.setattr("builtins.open", refuse)  # nobody keeps root out
        patch.setattr("pathlib.Path.read_bytes", refuse)
        read(path)
    assert str(error.value) == f"{path} may not be read; change its permissions"
