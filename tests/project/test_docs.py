"""The documentation's examples work as they stand, and its links lead somewhere."""

import json
import re
import runpy
import shlex
import sys
from argparse import ArgumentParser
from glob import glob
from importlib import import_module
from importlib.util import find_spec
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
from madtp.run import flags
from madtp.run.keys import COMMON_KEYS, TASK_KEYS
from tests.data import official_files as official

ROOT = Path(__file__).parents[2]
FRONT = [ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "CHANGELOG")]
PAGES = [*FRONT, *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: str, *languages: str) -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", (ROOT / page).read_text(), re.DOTALL | re.MULTILINE)
    return [code for language, code in found if language in languages]


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


def test_every_key_of_a_configuration_is_told_with_its_default():
    sections = re.findall(r"^## ([^\n]*)\n(.*?)(?=^## |\Z)", (ROOT / "docs/configuration.md").read_text(), re.M | re.S)
    told = {}
    for heading, section in sections:
        for names, default in re.findall(r"^\| (`[^|]*`) \| (?:`([^|]*)`)? ?\| ", section, re.M):
            value = YAML(typ="safe").load(default) if default else ""
            told |= {(heading, name): value for name in re.findall(r"\w+", names)}
    owners = {"Every task": COMMON_KEYS, "Captioning": TASK_KEYS["caption"]}
    owners |= {"Visual question answering": TASK_KEYS["vqa"], "Retrieval": TASK_KEYS["retrieval_clip"]}
    assert told == {(heading, name): key.default for heading, keys in owners.items() for name, key in keys.items()}


def test_every_page_stands_in_the_index():
    index = (ROOT / "docs/README.md").read_text()
    assert all(f"({page.name})" in index for page in (ROOT / "docs").glob("*.md") if page.name != "README.md")


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


@pytest.mark.parametrize("page", ["README.md", "docs/library.md"])
def test_the_one_line_prunes_a_model_of_somebody_else(page):
    (code,) = blocks(page, "python")
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    model = timm.create_model("vit_tiny_patch16_224", img_size=64).eval()
    exec(code, {"model": model, "images": images})
    assert abs(madtp.cost(model)["percent"] - 50) < 1


@pytest.mark.parametrize("example", sorted((ROOT / "examples").glob("*.py")), ids=lambda example: example.stem)
def test_examples_run_and_tell_the_cost(example, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [str(example)])
    torch.manual_seed(0)
    runpy.run_path(str(example), run_name="__main__")
    said = capsys.readouterr().out
    assert abs(float(re.search(r"([\d.]+) % of dense", said)[1]) - 50) < 0.5
    assert len(re.search(r"every layer.*: ([\d ]+)\n", said)[1].split()) in (4, 12)


SOURCES = [path for room in ("madtp", "data", "scripts") for path in (ROOT / room).rglob("*.[ps][yh]")]
BLOCKS = "\n".join(block for page in PAGES for block in blocks(page, "bash", ""))


def test_every_command_that_is_named_exists():
    for path in [*PAGES, *SOURCES]:
        text = path.read_text()
        assert re.findall(r"-m (?:madtp|data|models|clip)\.\w+", text) == [], path
        assert {*re.findall(r"-m madtp ([a-z]\w*)", text)} <= {*COMMANDS}, path


PLACES = {"$amp": "bf16", "$batch": "8", "$task": "retrieval"}  # what loops over commands put in
MAINS = {name: f"{name}.__main__" for name in ("benchmarks.photos", "benchmarks.experiment")}


def commands(beginning: str) -> list[list[str]]:
    """The words of every command that begins so, behind that, once each; of `[--flag]` and `this|that` the first."""
    found = re.findall(rf"{beginning} ?((?:[^\n`]*\\\n)*[^\n`]*)", BLOCKS)
    plain = (re.sub(r"\[(?=--)|(?<=\w)\](?=\s|$)|(?<=\w)\|\S+|;.*", "", words.replace("\\\n", " ")) for words in found)
    lists = (shlex.split(words, comments=True) for words in dict.fromkeys(plain))
    return [[PLACES.get(word, word) for word in words if word != "FLAGS"] for words in lists]


@pytest.mark.parametrize(
    "words", commands(r"(?<!srun )python (?:-m torch[^\n]*(?:\\\n[^\n]*)?-- )?(?=compress_)"), ids=" ".join
)
def test_scripts_take_what_the_pages_give_them(words, monkeypatch):
    """Flags, and the configuration with what is set in it; but for the one that another command writes."""
    script, *given = words
    monkeypatch.chdir(ROOT)
    (kind,) = (kind for stem, kind in SCRIPTS.values() if f"{stem}.py" == script)
    task = getattr(import_module(script.removesuffix(".py")), kind)()
    written = [word for word in given if word.startswith("pretrained/") and word.endswith(".yaml")]
    args = flags.command_line(task).parse_args(given)
    assert written or flags.parse(given, task)[0].p == args.p
    assert all(Path(word).exists() for word in given if word.endswith(".yaml") and word not in written)


class Understood(Exception):
    """A parser that was about to read a command line, and was stopped."""


def parser_of(module, monkeypatch):
    """The command line of a benchmark."""
    found = []

    def stop(parser, *_):
        found.append(parser)
        raise Understood

    with monkeypatch.context() as patch, pytest.raises(Understood):
        patch.setattr(ArgumentParser, "parse_args", stop)
        resolve_name(MAINS.get(module, module)).main()
    return found[0]


@pytest.mark.parametrize("words", commands(r"python -m (?=benchmarks\.)"), ids=" ".join)
def test_benchmarks_have_the_flags_that_the_pages_give_them(words, monkeypatch):
    module, *given = words
    parser_of(module, monkeypatch).parse_args(given)


INLINE = [
    " ".join(code.split()) for page in PAGES for code in re.findall(r"(?<!`)`(python -m [^`]+)`", page.read_text())
]


@pytest.mark.parametrize("command", sorted({code for code in INLINE if "--" in code}))
def test_flags_that_are_named_within_a_sentence_exist(command, monkeypatch):
    module, *words = command.removeprefix("python -m ").split()
    parser = ArgumentParser()
    if module == "madtp":
        resolve_name(COMMANDS[words[0]].flags)(parser)
    else:
        parser = parser_of(module, monkeypatch)
    assert {word for word in words if word.startswith("--")} <= {*parser._option_string_actions}


def test_scripts_and_modules_that_are_named_exist():
    for page in PAGES:
        text = page.read_text()
        assert all(
            (ROOT / name).exists() for name in re.findall(r"(?<![\w/])scripts/\w[\w.]*\.sh", text) if "_X_" not in name
        )
        assert all((ROOT / name).exists() for name in re.findall(r"bash (benchmarks/\S+\.sh)", text))
        for module in re.findall(r"python -m ((?:benchmarks|tests)(?:\.\w+)+)", text):
            assert find_spec(module), module


@pytest.mark.parametrize("words", commands(r"python -m madtp"), ids=" ".join)
def test_commands_have_the_flags_that_the_pages_give_them(words):
    name, *given = words
    parser = ArgumentParser(allow_abbrev=False)
    resolve_name(COMMANDS[name].flags)(parser)
    parser.parse_args(given)


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
    for subset in ("test2015", "test-dev2015"):  # which are in one archive
        official.vqa_files(folder, subset, [(8, 4, "Is it a cat?", [""])], answered=False)
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
    for name, *given in (words for words in commands if words[0] == "convert"):
        assert main([name, *(path for flag in given for path in sorted(glob(flag)) or [flag])]) == 0
    runs = [words for words in commands if words[0].startswith("compress_")]
    assert len({words[words.index("--output_dir") + 1] for words in runs}) == len(runs) == 10
    for script, *given in runs:
        module = script.removesuffix(".py").replace("_flickr", "")
        task = next(name for name, (stem, _) in SCRIPTS.items() if stem == module)
        args = parse_known(given)
        config = configuration.resolve(str(ROOT / args.config), task, args.set)
        missing = [path for _, paths in splits(task, config).values() for path in paths if not path.exists()]
        assert not missing, given


def parse_known(given):
    """Of the flags of a run those that decide what it reads."""
    parser = ArgumentParser()
    parser.add_argument("--config")
    parser.add_argument("--set", nargs="+", default=[])
    return parser.parse_known_args(given)[0]


def test_one_version_is_installed_cited_and_told(capsys):
    def version(file, pattern):
        return re.search(pattern, (ROOT / file).read_text(), re.MULTILINE).groups()

    number, date = version("CHANGELOG.md", r"^## (\S+), (\S+)$")
    assert version("pyproject.toml", r'^version = "(.*)"$') == (number,) == (madtp.__version__,)
    assert main(["--version"]) == 0 and capsys.readouterr().out == f"madtp {number}\n"
    cited = YAML(typ="safe").load((ROOT / "CITATION.cff").read_text())
    assert (cited["version"], str(cited["date-released"])) == (number, date)
