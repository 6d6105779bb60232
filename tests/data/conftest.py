"""What the tests of official files share."""

import json

import pytest

from madtp.__main__ import main


@pytest.fixture
def converted(tmp_path, capsys):
    """Runs the command; returns the files that it wrote and what it said."""

    def run(form, files, *flags):
        out = tmp_path / "annotation"
        assert main(["convert", form, *map(str, files), "--out", str(out), *map(str, flags)]) == 0
        written = {path.stem: json.loads(path.read_text()) for path in out.glob("*.json")}
        return written, capsys.readouterr().out

    return run
