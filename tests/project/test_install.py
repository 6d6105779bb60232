"""Installed, it brings `madtp` alone, which needs torch and numpy alone; from a clone the command works everywhere."""

import ast
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
from setuptools.config.pyprojecttoml import load_file

ROOT = Path(__file__).parents[2]
ROOMS = ("method", "cost", "shared")
PROJECT = load_file(ROOT / "pyproject.toml")["project"]

# Pruning in a model of somebody else's, by the functions that the package lends.
FOREIGN = """
import torch
from torch import nn
from torch.nn import functional as F
from madtp import Trace, attend, calibrate, prune_tokens

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.qkv, self.guide = nn.LayerNorm(32), nn.Linear(32, 96), nn.Parameter(torch.randn(40, 32))

    def forward(self, x, temperature, trace):
        query, key, value = self.qkv(self.norm(x)).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)
        output, scores = attend(query, key, value, scores=True)
        x, entered = x + output.transpose(1, 2).flatten(2), x.shape[1]
        if temperature:
            x, _ = prune_tokens(x, scores, x[:, 1:] @ self.guide.T, temperature)
        trace.add("image", entered, x.shape[1], scored=temperature > 0)
        return x

torch.manual_seed(0)
blocks, x = nn.ModuleList(Block() for _ in range(3)), torch.randn(2, 65, 32)

def cost(temperature):
    trace, tokens = Trace(), x
    for block in blocks:
        tokens = block(tokens, temperature, trace)
    return sum(layer.left for layer in trace.layers["image"]) / (3 * 65)

assert cost(0) == 1
assert abs(cost(calibrate(cost, 0.5, 1.0, tolerance=0.03)) - 0.5) < 0.03
"""

# And in one line, in a model of a library that was not imported before.
PRUNED = """
import sys
import torch
import madtp.shared.library.prune, madtp.shared.library.picture
assert not {"timm", "open_clip", "transformers"} & {*sys.modules}
import timm

model = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=2).eval()
madtp.prune(model, p=0.4, batches=torch.randn(2, 3, 64, 64))
assert 50 < madtp.cost(model)["percent"] < 65
assert not {"open_clip", "transformers"} & {*sys.modules}
"""


def made_at_import(tree):
    """The imports that happen when a module is imported: not those of functions, nor those for annotations alone."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
        elif not (
            isinstance(node, ast.FunctionDef) or isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        ):
            yield from made_at_import(node)


def test_what_is_installed_imports_torch_and_numpy_alone():
    own = [ROOT / "madtp/__init__.py", ROOT / "madtp/__main__.py"]
    own += [path for room in ROOMS for path in (ROOT / "madtp" / room).rglob("*.py")]
    for path in own:
        if path.stem == "attention_kernel":
            continue  # imported where there is a GPU; Triton comes with its torch
        for name in made_at_import(ast.parse(path.read_text())):
            first, *rest = name.split(".")
            allowed = rest[:1] in [[], *([room] for room in ROOMS)] if first == "madtp" else first in ("torch", "numpy")
            assert allowed or first in sys.stdlib_module_names, f"{path.relative_to(ROOT)} imports {name}"


def test_requirements_are_what_is_installed_and_what_the_clone_needs():
    lines = (ROOT / "requirements.txt").read_text().split("\n")
    assert sorted(filter(None, lines)) == sorted(PROJECT["dependencies"] + PROJECT["optional-dependencies"]["clone"])
    table = (ROOT / "docs/fidelity.md").read_text().partition("## Packages")[2].partition("\n## ")[0]
    named = set(re.findall(r"`([\w.-]+)`", "".join(re.findall(r"^\| ([^|]*)\|", table, re.MULTILINE))))
    assert named == {re.match(r"[\w.-]+", line)[0] for line in filter(None, lines)}


@pytest.fixture
def install(tmp_path):
    """Installs a copy of the project into an environment that sees this one's packages; returns a way to run there."""
    clone, environment = tmp_path / "clone", tmp_path / "environment"
    parts = "pyproject.toml README.md LICENSE madtp models clip data transform configs utils.py".split()
    for path in [ROOT / part for part in parts] + list(ROOT.glob("compress_*.py")):
        if path.is_dir():
            shutil.copytree(path, clone / path.name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            clone.mkdir(exist_ok=True)
            shutil.copy(path, clone)
    venv.create(environment, symlinks=True)
    site = environment / f"lib/python{sysconfig.get_python_version()}/site-packages"
    (site / "others.pth").write_text(f"{sysconfig.get_path('purelib')}\n{sysconfig.get_path('platlib')}\n")
    (tmp_path / "elsewhere").mkdir()
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}

    def run(program, *words, status=0):
        command = [environment / "bin" / program, *words]
        done = subprocess.run(command, cwd=tmp_path / "elsewhere", env=clean, capture_output=True, text=True)
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout + done.stderr

    def install(*how):
        pip = "-m pip install --quiet --no-deps --no-build-isolation --no-index --disable-pip-version-check".split()
        run("python", *pip, *how, str(clone))
        return site, clone, run

    return install


def test_installed_alone_it_brings_the_method_and_its_cost(install):
    site, _, run = install()
    brought = {path.name for path in site.iterdir()} - {"__pycache__", "others.pth"}
    assert brought == {"madtp", f"madtp-{PROJECT['version']}.dist-info"}
    assert {path.name for path in (site / "madtp").iterdir() if path.suffix != ".pyc"} - {"__pycache__"} == {
        "__init__.py", "__main__.py", *ROOMS,
    }  # fmt: skip
    assert "nlvr 132.540715" in run("madtp", "flops") and "predict" in run("madtp")
    refused = run("madtp", "predict", "--checkpoint", "x.pth", "--image", "x.png", status=2)
    assert refused.startswith("error: predict needs the whole repository") and refused.count("\n") == 1
    run("python", "-c", FOREIGN)
    run("python", "-c", PRUNED)


def test_installed_from_a_clone_the_command_works_from_anywhere(install):
    site, clone, run = install("--editable")
    assert not {path.stem for path in site.iterdir()} & {"models", "clip", "data", "transform", "utils"}
    assert "models" not in run("python", "-c", "import madtp, importlib.util as u; print(u.find_spec('models'))")
    sizes = "--train 50 --val 50 --test 50 --pairs 12".split()
    assert "150 images" in run("madtp", "demo_data", "--out", "made", *sizes)
    assert (clone.parent / "elsewhere/made/images/train/000001.png").is_file()
    moved = [f"{name}=made/{folder}" for name, folder in (("image_root", "images"), ("ann_root", "annotation"))]
    config = clone / "configs/demo/nlvr.yaml"
    said = run("madtp", "check", "--config", config, "--set", *moved, "tokenizer=made/tokenizer", "batch_size_train=8")
    assert "training has all that it needs" in said
    said = run("madtp", "check", "--config", "configs/demo/nlvr.yaml", status=2)
    assert said == "error: configs/demo/nlvr.yaml: no such file; --config names the YAML file to use\n"
    listed = "from madtp.run.config import resolve; print(resolve('made/config.yaml', 'nlvr')['med_config'])"
    shutil.copy(config, clone.parent / "elsewhere/made/config.yaml")
    assert run("python", "-c", listed) == f"{clone}/configs/demo/bert.json\n"
