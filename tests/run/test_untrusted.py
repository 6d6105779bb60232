"""Whatever bytes a file holds, its reader returns something or refuses it with an error of ours, never with another."""

import io
import json
from types import SimpleNamespace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from data import create_dataset, splits
from data.files import decode_image
from madtp.look.check import check_entries
from madtp.run import config as configuration
from madtp.run.flags import parse
from madtp.shared.weights import checkpoint
from tests.miniature import make_data, write_config
from utils import UserError

fuzz = settings(max_examples=60, suppress_health_check=list(HealthCheck))

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["vqa", "vg", ".."]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
ANNOTATIONS = {
    "nlvr": ["nlvr_train", "nlvr_dev"],
    "caption": ["coco_karpathy_train", "coco_karpathy_val"],
    "vqa": ["vqa_train", "vqa_test", "vg_qa", "answer_list"],
    "retrieval": ["flickr30k_train", "flickr30k_val"],
}
CASES = [(task, name) for task, names in ANNOTATIONS.items() for name in names]


@st.composite
def damaged(draw, whole):
    """Bytes of a file of which some are cut, exchanged or repeated."""
    start = draw(st.integers(0, len(whole)))
    stop = draw(st.integers(start, min(len(whole), start + 40)))
    return whole[:start] + draw(st.binary(max_size=20)) + whole[draw(st.sampled_from([start, stop, len(whole)])) :]


@st.composite
def altered(draw, value):
    """A JSON value with another in the place of some part of it."""
    if isinstance(value, dict) and value and draw(st.booleans()):
        key = draw(st.sampled_from(sorted(value)))
        rest = {name: part for name, part in value.items() if name != key}
        return rest if draw(st.integers(0, 4)) == 0 else rest | {key: draw(altered(value[key]))}
    if isinstance(value, list) and value and draw(st.booleans()):
        place = draw(st.integers(0, min(2, len(value) - 1)))
        return [*value[:place], draw(altered(value[place])), *value[place + 1 :]]
    return draw(JSON)


def attempt(function, *arguments):
    """Returns what a function does; None for one of our errors, which says something."""
    try:
        return function(*arguments)
    except UserError as error:
        assert str(error)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    make_data(folder)
    return folder


@pytest.mark.parametrize("task, name", CASES)
def test_annotations(data, tmp_path_factory, task, name):
    """Read for training, and checked; what is taken for whole gives samples."""
    path = data / "annotation" / f"{name}.json"
    whole = path.read_bytes()
    entries = json.loads(whole)[:3]
    own = {"vqa": {"train_files": ["vqa_train", "vg_qa"]}, "retrieval": {"dataset": "flickr"}}.get(task, {})
    config = configuration.resolve(
        str(write_config(data, tmp_path_factory.mktemp("config") / "config.yaml", task, **own)), task
    )
    contents = st.binary(max_size=60) | JSON.map(json.dumps).map(str.encode) | damaged(json.dumps(entries).encode())

    @fuzz
    @given(contents | altered(entries).map(json.dumps).map(str.encode))
    def read(content):
        path.write_bytes(content)
        datasets = attempt(create_dataset, task, config)
        for dataset in datasets or ():
            if path in dataset.files:
                attempt(dataset.__getitem__, 0)
                attempt(dataset.__getitem__, len(dataset) - 1)
        for split, files in splits(task, config).values():
            if path in files:
                check_entries(split, [path], config)

    try:
        read()
    finally:
        path.write_bytes(whole)


def test_configurations(tmp_path):
    path = tmp_path / "config.yaml"
    with open("configs/vqa.yaml", "rb") as file:
        whole = file.read()
    task = SimpleNamespace(name="vqa", default_config=str(path))
    values = JSON.map(json.dumps).map(str.encode)

    @fuzz
    @given(
        st.binary(max_size=60) | st.text().map(str.encode) | damaged(whole) | values,
        st.sampled_from(["vit", "betas", "vit.depth", "train_files", "init_lr", "med_config", ""]),
        st.text(max_size=12) | values.map(bytes.decode),
    )
    def read(content, key, value):
        path.write_bytes(content)
        attempt(parse, [], task)
        attempt(configuration.task_of, str(path))
        path.write_bytes(whole)
        attempt(parse, ["--set", f"{key}={value}"], task)

    read()


def test_checkpoints(tmp_path):
    path = tmp_path / "model.pth"
    wholes = []
    for zipped in (True, False):
        file = io.BytesIO()
        content = {"model": {"weight": torch.ones(3), "bias": torch.zeros(2)}, "temperature": 2.0}
        torch.save(content, file, _use_new_zipfile_serialization=zipped)
        wholes.append(file.getvalue())

    @fuzz
    @given(st.binary(max_size=60) | damaged(wholes[0]) | damaged(wholes[1]))
    def read(content):
        path.unlink(missing_ok=True)  # the one before may still be mapped into memory
        path.write_bytes(content)
        attempt(checkpoint.read, path)

    read()


@pytest.mark.filterwarnings("ignore")  # Pillow's, over what it makes the best of
@pytest.mark.parametrize("format", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM"])
def test_images(tmp_path, format):
    path, file = tmp_path / "picture", io.BytesIO()
    Image.linear_gradient("L").resize((9, 7)).convert("RGB").save(file, format)

    @fuzz
    @given(st.binary(max_size=60) | damaged(file.getvalue()))
    def read(content):
        path.write_bytes(content)
        try:
            assert decode_image(path).mode == "RGB"
        except ValueError as error:
            assert str(error)

    read()
