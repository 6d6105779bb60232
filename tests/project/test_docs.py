"""The documentation's examples work as they stand, and its links lead somewhere."""

import json
import re
import shlex
from argparse import ArgumentParser
from pathlib import Path
from pkgutil import resolve_name

import pytest
import timm
import torch
from PIL import Image

from data import create_dataset
from madtp.__main__ import COMMANDS

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
    """At T = 0 it is timm's model; at T = 5 its layers drop tokens; its parameters are trained."""
    (code,) = blocks("docs/faq.md", "python")
    names = {}
    exec(code, names)
    model, image = names["model"].eval(), torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    lengths = []
    model.blocks[-1].register_forward_hook(lambda block, inputs, output: lengths.append(output.shape[1]))
    plain = timm.create_model("vit_tiny_patch16_224").eval()
    plain.load_state_dict(model.state_dict(), strict=False)
    logits = model(image)
    assert logits.shape == (2, 1000) and lengths == [lengths[0]] and lengths[0] < 100
    logits.sum().backward()
    assert names["space_dict"].grad.abs().sum() > 0
    for block in model.blocks:
        block.temperature = 0.0
    with torch.no_grad():
        torch.testing.assert_close(model(image), plain(image), rtol=1e-4, atol=1e-4)
    assert lengths[1] == 197


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
