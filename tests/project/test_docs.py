"""The documentation's examples work as they stand, and its links lead somewhere."""

import json
import re
import runpy
import shlex
import sys
from argparse import ArgumentParser
from glob import glob
from pathlib import Path
from pkgutil import resolve_name

import pytest
import timm
import torch
from PIL import Image
from ruamel.yaml import YAML

import madtp
from data import create_dataset, splits
from madtp.__main__ import COMMANDS, main
from madtp.look.scripts import SCRIPTS
from madtp.run import config as configuration
from tests.data import official_files as official

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_and_headings(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if re.match(r"\w+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE)
            slugs = {re.sub(r"[^\w\s-]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in slugs, target


@pytest.fixture(scope="module")
def own_data(tmp_path_factory):
    """The files of docs/own_data.md, those said to be of the same form, and the pictures they name."""
    folder = tmp_path_factory.mktemp("own")
    files = dict(
        re.findall(r"`(\w+\.json)`[^\n]*\n\n```json\n(.*?)```", (ROOT / "docs/own_data.md").read_text(), re.DOTALL)
    )
    assert len(files) == 8
    for same, form in {
        "nlvr_dev": "nlvr_train", "nlvr_test": "nlvr_train", "coco_karpathy_test": "coco_karpathy_val",
        "vqa_val": "vqa_train", "flickr30k_test": "flickr30k_val",
    }.items():  # fmt: skip
        files[f"{same}.json"] = files[f"{form}.json"]
    for name, text in files.items():
        (folder / name).write_text(text)
        for picture in re.findall(r"\w+\.jpg", text):
            Image.new("RGB", (20, 30)).save(folder / picture)
    return folder


@pytest.mark.parametrize("task", ["nlvr", "caption", "vqa", "retrieval"])
def test_the_files_of_own_data_load(task, own_data):
    folder = str(own_data)
    config = {"image_size": 32, "ann_root": folder, "image_root": folder, "vqa_root": folder, "vg_root": folder}
    config |= {"prompt": "a picture of ", "coco_gt_root": folder, "train_files": ["vqa_train"], "inference": "rank"}
    for dataset in create_dataset(task, config | {"dataset": "flickr"}):
        assert len(dataset) == 3
        batch = dataset.collate([dataset[index] for index in range(3)])
        assert len(batch["index"]) == 3
    if task == "vqa":
        assert dataset.answer_list == json.loads((own_data / "answer_list.json").read_text())


def test_the_example_of_another_backbone():
    """It is half as dear, and timm's model again when restored."""
    (code,) = blocks("docs/faq.md", "python")
    names = {}
    exec(code, names)
    model, image = names["model"], torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    plain = timm.create_model("vit_tiny_patch16_224").eval()
    plain.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert model(image).shape == (2, 1000) and abs(madtp.cost(model)["percent"] - 50) < 0.2
        torch.testing.assert_close(madtp.restore(model)(image), plain(image), rtol=0, atol=0)


@pytest.mark.parametrize("example", sorted((ROOT / "examples").glob("*.py")), ids=lambda example: example.stem)
def test_examples_run_and_tell_the_cost(example, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [str(example)])
    torch.manual_seed(0)
    runpy.run_path(str(example), run_name="__main__")
    said = capsys.readouterr().out
    assert abs(float(re.search(r"([\d.]+) % of dense", said)[1]) - 50) < 0.5
    assert len(re.search(r"every layer.*: ([\d ]+)\n", said)[1].split()) in (4, 12)


SOURCES = [path for room in ("madtp", "data", "scripts") for path in (ROOT / room).rglob("*.[ps][yh]")]
BLOCKS = "\n".join(block for page in PAGES for block in blocks(page, "bash"))


def test_every_command_that_is_named_exists():
    for path in [*PAGES, *SOURCES]:
        text = path.read_text()
        assert re.findall(r"-m (?:madtp|data|models|clip)\.\w+", text) == [], path
        assert {*re.findall(r"-m madtp ([a-z]\w*)", text)} <= {*COMMANDS}, path


@pytest.mark.parametrize("words", re.findall(r"python -m madtp ((?:[^\n`]*\\\n)*[^\n`]*)", BLOCKS))
def test_commands_have_the_flags_that_the_pages_give_them(words):
    name, *flags = shlex.split(words.replace("\\\n", " "), comments=True)
    parser = ArgumentParser(allow_abbrev=False)
    resolve_name(COMMANDS[name].flags)(parser)
    parser.parse_args(flags)


@pytest.fixture
def downloads(tmp_path, monkeypatch):
    """Small files under the names by which the page of own data calls the published ones."""
    folder = tmp_path / "downloads"
    folder.mkdir()
    said = [(f"{n}_a.jpg", split, ["A dog."]) for n, split in enumerate(("train", "val", "test"))]
    coco = [(f"COCO_val2014_{n:012d}.jpg", split, captions) for n, (_, split, captions) in enumerate(said)]
    official.karpathy_file(folder, "coco", coco)
    for dataset in ("flickr30k", "flickr8k"):
        official.karpathy_file(folder, dataset, said)
    for subset in ("train2014", "val2014"):
        names = [(f"COCO_{subset}_{n:012d}.jpg", n, ["A dog."]) for n in range(60)]
        official.coco_file(folder, subset, names)
        official.vqa_files(folder, subset, [(7, 3, "Is it a dog?", ["yes"] * 10)])
    official.vqa_files(folder, "test2015", [(8, 4, "Is it a cat?", [""])], answered=False)
    official.write(folder, {"question_answers": [{"id": 1, "qas": [official.genome_question(5, 1, "Who?", "A man.")]}]})
    lists = {split: [name] for split, (name, *_) in zip(("train", "dev", "test"), said, strict=True)}
    official.flickr_files(folder, [(name, captions) for name, _, captions in said], lists)
    for name in ("train", "dev", "test1"):
        official.nlvr2_file(folder, name, [(f"{name}-1-0-0", 3 if name == "train" else None, "A dog.", "True")])
    for split in ("train", "test"):
        asked = (f"what is in the image{n} ?\nlamp\n" for n in range(60))
        (folder / f"qa.894.raw.{split}.txt").write_text("".join(asked))
    (folder / "results_20130124.token").write_text("".join(f"{n}.jpg#0\tA dog .\n" for n in range(90)))
    (folder / "vizwiz").mkdir()
    for split in ("train", "val", "test"):
        answers = None if split == "test" else ["yes"] * 10
        official.write(folder / "vizwiz", {split: [official.vizwiz_question(split, 1, "Is it soap?", answers)]})
    for name in ("coco", "NLVR2", "visual-genome", "flickr", "flickr8k", "vizwiz", "daquar"):
        (tmp_path / "datasets/vision" / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_commands_for_published_sets_make_what_the_tasks_read(downloads):
    """Every conversion of the page, one after the other; and then the files that its runs are going to read."""
    (section,) = re.findall(
        r"## Published sets\n(.*?)\n## ", (ROOT / "docs/own_data.md").read_text() + "\n## ", re.DOTALL
    )
    lines = re.findall(r"^python (?:-m madtp )?((?:[^\n]*\\\n)*[^\n]*)", section, re.MULTILINE)
    commands = [shlex.split(line.replace("\\\n", " "), comments=True) for line in lines]
    for name, *flags in (words for words in commands if words[0] == "convert"):
        assert main([name, *(path for flag in flags for path in sorted(glob(flag)) or [flag])]) == 0
    runs = [flags for flags in commands if flags[0].startswith("compress_")]
    assert len(runs) == 10
    for script, *flags in runs:
        module = script.removesuffix(".py").replace("_flickr", "")
        task = next(name for name, (stem, _) in SCRIPTS.items() if stem == module)
        args = parse_known(flags)
        config = configuration.resolve(str(ROOT / args.config), task, args.set)
        missing = [path for _, paths in splits(task, config).values() for path in paths if not path.exists()]
        assert not missing, flags


def parse_known(flags):
    """Of the flags of a run those that decide what it reads."""
    parser = ArgumentParser()
    parser.add_argument("--config")
    parser.add_argument("--set", nargs="+", default=[])
    return parser.parse_known_args(flags)[0]


def test_one_version_is_installed_cited_and_told():
    def version(file, pattern):
        return re.search(pattern, (ROOT / file).read_text(), re.MULTILINE).groups()

    number, date = version("CHANGELOG.md", r"^## (\S+), (\S+)$")
    assert version("pyproject.toml", r'^version = "(.*)"$') == (number,)
    cited = YAML(typ="safe").load((ROOT / "CITATION.cff").read_text())
    assert (cited["version"], str(cited["date-released"])) == (number, date)
