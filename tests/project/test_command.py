"""One command: what it lists, how soon it answers, how it says what is wrong, and the names that `madtp` lends."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from resource import RUSAGE_CHILDREN, getrusage

import pytest

import madtp
from madtp import __main__ as command
from madtp.__main__ import COMMANDS, Command, main

SLOW = ("torch", "torchvision", "transformers", "timm", "matplotlib", "PIL")


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"]])
def test_the_list_has_a_line_for_each(words, capsys):
    assert main(words) == 0
    first, *lines, last = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(COMMANDS) and all(len(line.split()) > 3 for line in lines)


def test_help_is_answered_at_once():
    """That of all commands together, in one process, within a second of the processor: nothing slow is imported."""
    code = f"""
import sys
from madtp.__main__ import COMMANDS, main
for name in COMMANDS:
    try:
        main([name, "--help"])
    except SystemExit as end:
        assert end.code == 0
assert main([]) == 0
assert {{*{SLOW}}}.isdisjoint(sys.modules)
"""
    before = getrusage(RUSAGE_CHILDREN)
    said = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    after = getrusage(RUSAGE_CHILDREN)
    for name, entry in COMMANDS.items():
        assert f"usage: python -m madtp {name} [-h]" in said and entry.about.split()[0] in said
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1


@pytest.mark.parametrize("name", COMMANDS)
def test_what_stands_behind_a_name_is_there(name):
    module, _, function = COMMANDS[name].run.partition(":")
    assert find_spec(module) is not None and function == "run"


def test_an_unknown_command_is_one_line(capsys):
    assert main(["predikt", "--image", "x"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: there is no command 'predikt', but predict, ") and said.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "flag"),
    [
        (["predict", "--checkpoint", "x.pth", "--image", ""], "--image"),
        (["predict", "--checkpoint", "", "--image", "x"], "--checkpoint"),
        (["convert", "coco", "x.json", "--out", ""], "--out"),
        (["convert", "coco", "x.json", "--out", "x", "--images", ""], "--images"),
        (["export", "--checkpoint", "x.pth", "--output_dir", ""], "--output_dir"),
        (["report", ""], "OUTPUT_DIR"),
    ],
)
def test_an_empty_path_is_not_the_working_directory(words, flag, capsys):
    """As of "$FOLDER" where nobody has set it."""
    assert main(words) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: argument {flag}: the path is empty, ") and said.count("\n") == 1


def test_an_unknown_flag_is_one_line(capsys):
    assert main(["report", "x", "--quik"]) == 2
    flags = "python -m madtp report --help lists the flags"
    assert capsys.readouterr().err == f"error: unrecognized arguments: --quik; {flags}\n"


PRINTING = "-m madtp flops", "-m madtp predict --help", "compress_nlvr_dtp.py --help"


@pytest.mark.parametrize("words", PRINTING)
def test_who_has_read_enough_hears_no_complaint(words):
    """As in `python -m madtp flops | head -1`."""
    command = subprocess.Popen([sys.executable, *words.split()], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    command.stdout.close()
    assert (command.stderr.read(), command.wait()) == (b"", 141)
    command.stderr.close()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device is always full")
@pytest.mark.parametrize("buffering", ["", "1"])
@pytest.mark.parametrize("words", PRINTING)
def test_an_output_that_is_full_is_one_line(words, buffering):
    with open("/dev/full", "w") as full:
        environment = os.environ | {"PYTHONUNBUFFERED": buffering}
        done = subprocess.run([sys.executable, *words.split()], stdout=full, stderr=subprocess.PIPE, env=environment)
    said = b"error: where files are written or the output goes: No space left on device; free some space\n"
    assert (done.stderr, done.returncode) == (said, 2)


def test_without_an_output_nothing_is_missed(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    assert main(["flops"]) == 0


def test_an_error_of_the_user_is_one_line_and_its_status_is_passed_on(monkeypatch, capsys, tmp_path):
    assert main(["report", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and str(tmp_path) in said and said.count("\n") == 1
    monkeypatch.setattr(sys.modules[__name__], "run", lambda args: 7, raising=False)
    monkeypatch.setitem(COMMANDS, "seven", Command("returns seven", f"{__name__}:run"))
    assert main(["seven"]) == 7


@pytest.mark.parametrize("path", ["a" * 300, "a" * 300 + ".pth"])
def test_a_path_that_cannot_be_looked_at_is_one_line(path, capsys):
    """On Python up to 3.13 to ask whether it exists raises, as in somebody else's folder."""
    assert main(["predict", "--checkpoint", path, "--image", "a.jpg"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and path in said and said.count("\n") == 1


@pytest.mark.parametrize("command", ["predict", "visualize", "app"])
def test_a_missing_checkpoint_is_answered_at_once_and_alone(command):
    words = [command, "--checkpoint", "no/such.pth", *(["--image", "a.jpg"] if command == "predict" else [])]
    code = f"""
import sys
from madtp.__main__ import main
assert main({words}) == 2
assert {{*{SLOW}}}.isdisjoint(sys.modules)
"""
    said = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert said.stdout == "" and said.stderr.count("\n") == 1
    assert said.stderr.startswith("error: no/such.pth: no such checkpoint; ")


def test_a_missing_package_is_one_line_and_a_missing_part_of_ours_is_not(monkeypatch, capsys):
    for name, module in {"theirs": "no_such_package.part", "ours": "models.no_such_part"}.items():
        monkeypatch.setitem(COMMANDS, name, Command("imports it", f"{module}:run"))
    assert main(["theirs"]) == 2
    said = capsys.readouterr().err
    assert (
        said.startswith("error: theirs needs the package no_such_package, which is not installed")
        and "requirements.txt" in said
    )
    with pytest.raises(ModuleNotFoundError):
        main(["ours"])


def test_names_are_lent_when_they_are_asked_for():
    code = (
        "import sys, madtp; assert 'torch' not in sys.modules; from madtp import attend; assert 'torch' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    for name in madtp.HOMES:
        assert getattr(madtp, name).__module__ == f"madtp.{madtp.HOMES[name]}" and name in dir(madtp)
    assert callable(madtp.cost) and madtp.cost.flops.GIGA == 1e9 and {*madtp.__all__} == {*madtp.HOMES, "cost"}
    with pytest.raises(AttributeError, match="no attribute 'atend'"):
        _ = madtp.atend


def test_no_name_that_is_lent_is_a_package_too():
    """Else importing a part of the package would put it in the place of the name; `cost` is made to be both."""
    folder = Path(madtp.__file__).parent
    assert not [name for name in madtp.HOMES if (folder / name).exists() or (folder / f"{name}.py").exists()]


def test_files_of_the_project_are_found_from_anywhere(monkeypatch, tmp_path):
    from compress_nlvr_dtp import NLVR
    from madtp.run.clone import own_file
    from madtp.run.config import resolve
    from madtp.run.flags import parse

    assert own_file("configs/nlvr.yaml") == "configs/nlvr.yaml"
    monkeypatch.chdir(tmp_path)
    assert own_file("configs/nlvr.yaml") == str(command.CLONE / "configs/nlvr.yaml")
    assert parse([], NLVR())[1]["image_root"] == "datasets/vision/NLVR2"  # a script's own file too
    assert own_file("nowhere.yaml") == "nowhere.yaml"
    config = resolve(own_file("configs/nlvr.yaml"), "nlvr", ["tokenizer=tests/golden/tokenizer"])
    assert Path(config["tokenizer"]).is_dir() and Path(config["med_config"]).is_file()
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/nlvr.yaml").touch()
    assert own_file("configs/nlvr.yaml") == "configs/nlvr.yaml"
