"""The launchers issue the commands that users of the release know, and the environment is made once.

Both are seen through a `python` that writes down what it is asked.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
WRAPPERS = sorted(path.name for path in (ROOT / "scripts").glob("*_p0.*.sh"))

# name of the wrappers, TASK, script, config, uncompressed model, released model without its ratio, epochs, ratios
TABLE = """
nlvr_nlvr2 nlvr compress_nlvr_dtp.py nlvr.yaml model_base_nlvr model_base_nlvr_nlvr2 15 0.3,0.5,0.6,0.7,0.8
caption_coco caption compress_caption_dtp.py caption_coco.yaml model_base_caption_capfilt_large model_base_caption_capfilt_large_coco 5 0.5,0.75
vqa_vqa2 vqa compress_vqa_dtp.py vqa.yaml model_base_vqa_capfilt_large model_base_vqa_capfilt_large_vqa2 3 0.5,0.75
retrieval_coco retrieval compress_retrieval_dtp.py retrieval_coco.yaml model_base_retrieval_coco model_base_retrieval_coco 5 0.5,0.75
retrieval_flickr retrieval_flickr compress_retrieval_flickr_dtp.py retrieval_flickr.yaml model_base_retrieval_flickr model_base_retrieval_flickr 10 0.5,0.75
retrieval_coco_clip retrieval_clip compress_retrieval_clip_dtp.py retrieval_coco_clip.yaml clip_large_retrieval_coco clip_large_retrieval_coco 5 0.5,0.75
retrieval_flickr_clip retrieval_flickr_clip compress_retrieval_clip_dtp.py retrieval_flickr_clip.yaml clip_large_retrieval_flickr clip_large_retrieval_flickr 10 0.5,0.75
"""  # noqa: E501
ROWS = {row.split()[0]: row.split() for row in TABLE.strip().splitlines()}
CASES = [(name, p) for name, row in ROWS.items() for p in row[-1].split(",")]


def expected(name, p, mode):
    """The command of a wrapper, as the README has it."""
    _, _, script, config, model, released, epochs, _ = ROWS[name]
    epochs = "25" if (name, p) == ("nlvr_nlvr2", "0.8") else epochs
    out = f"output/{name}_compression_p{p}"
    flags = f"--p {p} --epoch {epochs} --pretrained pretrained/{model}.pth"
    if mode == "evaluate":
        flags = f"--evaluate --pretrained {out}/{released}_p{p}_compressed.pth"
    launcher = "-m torch.distributed.run --nproc_per_node=8 --"
    return f"{launcher} {script} {flags} --config ./configs/{config} --output_dir {out}"


@pytest.fixture
def run(tmp_path):
    """Runs a launcher from another folder, and returns the arguments that python got and the folder it ran in."""
    stub = tmp_path / "bin" / "python"
    stub.parent.mkdir()
    stub.write_text('#!/bin/sh\npwd\nprintf "%s\\n" "$@"\n')
    stub.chmod(0o755)
    launcher = {"TASK", "P", "MODE", "NPROC", "PORT", "EPOCH", "OUT", "CHECKPOINT", "PYTHON"}
    environment = {name: value for name, value in os.environ.items() if name not in launcher}
    environment["PATH"] = f"{stub.parent}:{environment['PATH']}"

    def run(script, *arguments, **variables):
        command = ["bash", str(ROOT / "scripts" / script), *arguments]
        result = subprocess.run(command, cwd=tmp_path, env=environment | variables, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        folder, *passed = result.stdout.splitlines()
        assert Path(folder) == ROOT
        return passed

    run.environment = environment
    return run


@pytest.mark.parametrize("mode", ["compress", "evaluate"])
@pytest.mark.parametrize("name, p", CASES)
def test_every_row_of_the_table(run, name, p, mode):
    for task in {name, ROWS[name][1]}:
        assert run("run.sh", TASK=task, P=p, MODE=mode) == expected(name, p, mode).split()


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrappers(run, wrapper):
    mode, name, p = re.fullmatch(r"(compress|evaluate)_(\w+)_p(0\.\d+)(?:_compressed)?\.sh", wrapper).groups()
    assert wrapper.endswith("_compressed.sh") == (mode == "evaluate")
    assert (name, p) in CASES
    assert run(wrapper, "--set", "prompt=a photo of ") == [
        *expected(name, p, mode).split(),
        "--set",
        "prompt=a photo of ",
    ]
    assert os.access(ROOT / "scripts" / wrapper, os.X_OK)


def test_wrappers_come_in_pairs():
    compress = [name for name in WRAPPERS if name.startswith("compress")]
    evaluate = [name for name in WRAPPERS if name.startswith("evaluate")]
    assert {name.replace("compress_", "evaluate_").replace(".sh", "_compressed.sh") for name in compress} == set(
        evaluate
    )
    assert {f"compress_nlvr_nlvr2_p{p}.sh" for name, p in CASES if name == "nlvr_nlvr2"} <= set(compress)


def test_variables(run):
    one = run("run.sh", TASK="nlvr", NPROC="1", EPOCH="2", OUT="elsewhere", CHECKPOINT="mine.pth")
    flags = "--p 0.5 --epoch 2 --pretrained mine.pth --config ./configs/nlvr.yaml --output_dir elsewhere"
    assert one == ["compress_nlvr_dtp.py", *flags.split()]
    two = run("run.sh", TASK="nlvr", NPROC="2", PORT="29501")
    assert two[:6] == [
        "-m",
        "torch.distributed.run",
        "--nproc_per_node=2",
        "--master_port=29501",
        "--",
        "compress_nlvr_dtp.py",
    ]


def test_which_checkpoint_is_evaluated(run, tmp_path):
    def evaluated(**variables):
        arguments = run("evaluate_nlvr_nlvr2_p0.5_compressed.sh", OUT=str(tmp_path / "out"), **variables)
        return Path(arguments[arguments.index("--pretrained") + 1]).name

    (tmp_path / "out").mkdir()
    assert evaluated() == "model_base_nlvr_nlvr2_p0.5_compressed.pth"
    (tmp_path / "out" / "checkpoint_best.pth").touch()
    assert evaluated() == "checkpoint_best.pth"
    (tmp_path / "out" / "model_base_nlvr_nlvr2_p0.5_compressed.pth").touch()
    assert evaluated() == "model_base_nlvr_nlvr2_p0.5_compressed.pth"
    assert evaluated(CHECKPOINT="mine.pth") == "mine.pth"


@pytest.mark.parametrize(
    "variables, message",
    [
        ({}, "give TASK"),
        ({"TASK": "nlvr3"}, "TASK=nlvr3 is none of"),
        ({"TASK": "nlvr", "MODE": "train"}, "MODE=train"),
    ],
)
def test_mistakes(run, variables, message):
    result = subprocess.run(
        ["bash", str(ROOT / "scripts" / "run.sh")], env=run.environment | variables, capture_output=True, text=True
    )
    assert result.returncode != 0 and message in result.stderr and result.stdout == ""


def test_a_clone_made_for_windows_keeps_lines_that_bash_reads(tmp_path):
    git = ["git", "-C", str(tmp_path), *"-c core.autocrlf=true -c core.safecrlf=false".split()]
    identity = [*"-c user.name=a -c user.email=a@b -c commit.gpgsign=false".split()]
    shutil.copy(ROOT / ".gitattributes", tmp_path)
    (tmp_path / "run.sh").write_bytes((ROOT / "scripts" / "run.sh").read_bytes())
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\n")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for words in (["init", "-q"], ["add", "."], [*identity, "commit", "-qm", "all"]):
        subprocess.run([*git, *words], check=True, capture_output=True)
    for name in before:
        (tmp_path / name).unlink()
    subprocess.run([*git, "checkout", "-q", "--", "."], check=True)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


# Stands for python3: it is 3.12, and a virtual environment that it makes holds a copy of itself.
PYTHON = """#!/bin/sh
echo "$@" >> "$LOG"
case "$*" in
  *version_info*) exec "$REAL" -c "import sys; sys.version_info = (3, ${MINOR:-12}); $2" ;;
  "-m venv --clear .venv") mkdir -p .venv/bin && cp "$0" .venv/bin/python ;;
esac
"""


class TestEnvironment:
    @pytest.fixture
    def use(self, tmp_path):
        """Sources the script in an empty project and returns what it asked of python, and how it ended."""
        (tmp_path / "bin").mkdir()
        (tmp_path / "bin" / "python3").write_text(PYTHON)
        (tmp_path / "bin" / "python3").chmod(0o755)
        (tmp_path / "a.txt").write_text("pytest>=1\nno-such-package[extra]>=2,<3\n")
        (tmp_path / "b.txt").write_text("absent.too\n# absent, a comment\n")
        log = tmp_path / "log"
        script = f'set -euo pipefail; source {ROOT}/scripts/environment.sh; use_environment a.txt b.txt; echo "$python"'
        path = f"{tmp_path}/bin:/usr/bin:/bin"

        def use(**variables):
            log.write_text("")
            environment = {"PATH": path, "LOG": str(log), "REAL": sys.executable} | variables
            result = subprocess.run(
                ["bash", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True
            )
            return re.findall(r"-m venv|-r (\S+)", log.read_text()), result

        return use

    def test_is_made_once_and_filled_when_the_files_change(self, use, tmp_path):
        asked, result = use()
        assert asked == ["", "a.txt", "b.txt"] and result.stdout.endswith("\n.venv/bin/python\n")
        asked, result = use()
        assert asked == [] and result.stdout == ".venv/bin/python\n"
        (tmp_path / "b.txt").write_text("another\n")
        assert use()[0] == ["b.txt"]

    def test_an_active_one_is_used_as_it_is(self, use):
        asked, result = use(VIRTUAL_ENV=sys.prefix)
        assert asked == [] and result.returncode == 1 and result.stdout == ""
        assert f"error: {sys.prefix} lacks no-such-package, absent.too; run: " in result.stderr
        assert "-m pip install -r a.txt -r b.txt" in result.stderr

    def test_an_active_one_that_is_complete(self, use, tmp_path):
        (tmp_path / "a.txt").write_text("pytest\n")
        (tmp_path / "b.txt").write_text("")
        assert use(CONDA_PREFIX=sys.prefix)[1].stdout == f"{sys.prefix}/bin/python\n"

    def test_no_fitting_python(self, use, tmp_path):
        for minor in (11, 12, 13, 10):
            (tmp_path / "bin" / f"python3.{minor}").symlink_to("python3")
        asked, result = use(MINOR="9")
        assert asked == [] and result.returncode == 1 and "error: no Python 3.10-3.13 found" in result.stderr
