"""CLIP from every kind of file, and files that are none; downloads are checked, and nothing is fetched here."""

import hashlib
import io
import warnings
import zipfile

import pytest
import torch
from torch import nn

import clip
from clip import download
from clip.clip import read, sizes_of
from clip.model import CLIP, Sizes
from clip.retrieval import ClipRetrieval
from compress_nlvr_dtp import NLVR
from compress_retrieval_clip_dtp import RetrievalClip
from madtp.run.engine import main
from madtp.shared.momentum import QUEUES
from tests.golden.fill import fill
from utils import UserError

SIZES = Sizes(
    embed_dim=24,
    image_resolution=64,
    vision_layers=2,
    vision_width=64,
    vision_patch_size=16,
    context_length=30,
    vocab_size=60,
    transformer_width=128,
    transformer_layers=3,
)
CONFIG = {"sd_num": 6, "sd_dim": 40, "queue_size": 8}


def dense():
    """The weights of a CLIP that knows nothing of pruning."""
    state = fill(CLIP(SIZES, 6, 40)).state_dict()
    return {key: value for key, value in state.items() if "query_model" not in key and key != "space_dict"}


def module_tree(state):
    """A module with these weights and names, that TorchScript takes."""
    parts = {}
    for key, value in state.items():
        part, _, rest = key.partition(".")
        parts.setdefault(part, {})[rest] = value
    tree = nn.ModuleList() if all(part.isdigit() for part in parts) else nn.Module()
    for part, values in parts.items():
        if "" in values:
            tree.register_buffer(part, values[""])
        else:
            tree.add_module(part, module_tree(values))
    return tree


class Archive(nn.Module):
    """What OpenAI published: weights in half precision, and three numbers among them."""

    def __init__(self, state):
        super().__init__()
        numbers = {name: torch.tensor(7) for name in ("input_resolution", "context_length", "vocab_size")}
        for name, part in module_tree({key: value.half() for key, value in state.items()} | numbers)._modules.items():
            self.add_module(name, part)
        for key, value in state.items():
            if "." not in key:
                self.register_buffer(key, value.half())
        for key, value in numbers.items():
            self.register_buffer(key, value)

    def forward(self, x):
        return x


def script(module):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # OpenAI's files stay what they are
        return torch.jit.script(module)


@pytest.fixture
def load(tmp_path):
    """Loads a model from a file with this content."""

    def load(content, evaluate=False, **config):
        path = tmp_path / "clip.pth"
        torch.save(content, path)
        return clip.load(str(path), "cpu", evaluate, CONFIG | config)[0]

    load.path = tmp_path / "clip.pth"
    return load


def assert_holds(model, state):
    own = model.state_dict()
    for key, value in state.items():
        assert own[key].equal(value), key


def assert_momentum_is_online(model):
    pairs = list(zip(*model._twins(), strict=True))
    assert pairs and all(twin.equal(online) for twin, online in pairs)


@pytest.mark.parametrize("evaluate", [True, False])
def test_a_torchscript_archive(tmp_path, evaluate):
    state, path = dense(), tmp_path / "ViT.pt"
    script(Archive(state)).save(path)
    assert "input_resolution" in read(path)["model"]
    model, transform = clip.load(str(path), "cpu", evaluate, CONFIG)
    assert model.sizes == SIZES and transform.transforms[0].size == 64
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    assert_holds(model, {key: value.half().float() for key, value in state.items()})
    assert_momentum_is_online(model)


@pytest.mark.parametrize("wrapped", [True, False])
def test_a_plain_state_dict(load, wrapped):
    state = dense()
    model = load({"model": state, "epoch": 3} if wrapped else state, evaluate=True)
    assert model.sizes == SIZES
    assert_holds(model, state)
    assert_momentum_is_online(model)
    assert model.idx_queue.eq(-100).all()


def test_a_compressed_checkpoint_comes_back_whole(load):
    state = fill(ClipRetrieval(SIZES, 6, 40, queue_size=8)).state_dict()
    assert_holds(load({"model": state, "temperature": 2.5}, evaluate=True), state)
    assert read(load.path)["temperature"] == 2.5


def test_a_queue_of_another_length_starts_anew(load):
    state = fill(ClipRetrieval(SIZES, 6, 40, queue_size=5)).state_dict()
    model = load({"model": state})
    assert model.image_queue.shape == (24, 8) and model.idx_queue.eq(-100).all() and model.ptr_queue.item() == 0
    assert_holds(model, {key: value for key, value in state.items() if key not in QUEUES})


def test_momentum_towers_without_guidance_take_the_online_one_s(load):
    state = dense()
    state |= {f"visual_m.{key.removeprefix('visual.')}": value + 1 for key, value in state.items() if "visual." in key}
    model = load(state)
    assert_holds(model, state)
    for block, twin in zip(model.visual.transformer.resblocks, model.visual_m.transformer.resblocks, strict=True):
        assert twin.query_model.q_map[0].weight.equal(block.query_model.q_map[0].weight)


def test_positions_are_resized_to_another_image_size(load):
    state = dense()
    state["visual.positional_embedding"][1:] = torch.arange(24 * 64 / 24)  # every position alike
    model = load(state, image_size=96)
    for tower in (model.visual, model.visual_m):
        assert tower.positional_embedding.shape == (37, 64) and tower.shape.length == 37
        torch.testing.assert_close(tower.positional_embedding[0], state["visual.positional_embedding"][0])
        torch.testing.assert_close(tower.positional_embedding[1:], torch.arange(64.0).expand(36, 64))
    assert model.encode_image(torch.zeros(1, 3, 96, 96)).shape == (1, 24)
    assert_holds(load(state, image_size=64), state)


def test_a_model_from_scratch():
    sizes = {name: getattr(SIZES, name) for name in SIZES.__dataclass_fields__ if name != "vocab_size"}
    chosen = {name: value for name, value in sizes.items() if name not in ("image_resolution", "context_length")}
    model, _ = clip.load("", "cpu", config=CONFIG | {"image_size": 32, "clip": chosen})
    assert (model.sizes.image_resolution, model.sizes.context_length, model.sizes.vocab_size) == (32, 77, 49408)
    assert_momentum_is_online(model)
    for size, closest in ((224, 224 // 12 * 12 + 12), (3, 12)):
        wrong = f"image_size {size} is no multiple of the patches of 12 pixels; --set image_size={closest} is one"
        with pytest.raises(UserError, match=wrong):
            clip.load("", "cpu", config=CONFIG | {"image_size": size, "clip": chosen | {"vision_patch_size": 12}})
    with pytest.raises(UserError, match=r"--pretrained.*`clip`.*vision_layers"):
        clip.load("", "cpu", config={"clip": {"embed_dim": 3, "vision_width": 64}})


# Files that are none.


def test_a_resnet(load):
    with pytest.raises(UserError, match="ResNet"):
        load(dense() | {"visual.layer1.0.conv1.weight": torch.zeros(1)})
    for name in ("RN50", "RN50x64"):
        with pytest.raises(UserError, match=f"{name} is a CLIP with ResNet.*ViT-B/16"):
            clip.load(name)


def test_an_image_size_that_patches_do_not_fill(load):
    with pytest.raises(UserError, match="image_size 70 is no multiple of the patches of 16 pixels"):
        load(dense(), image_size=70)


def test_no_clip(load):
    with pytest.raises(UserError, match="is no CLIP: visual.conv1.weight is missing"):
        load({"visual_encoder.cls_token": torch.zeros(1)})


READ_FIRST = [
    "visual.conv1.weight",
    "visual.positional_embedding",
    "positional_embedding",
    "text_projection",
    "token_embedding.weight",
    "visual.transformer.resblocks.0.mlp.c_fc.bias",
]
CHANGES = {
    "an axis more": lambda value: value[None],
    "two axes more": lambda value: value[..., None, None],
    "a number": lambda value: value.flatten()[0],
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", READ_FIRST)
def test_a_weight_of_another_form_is_named(load, monkeypatch, capsys, tmp_path, name, change):
    """Wherever its shape is looked at first: to know the sizes, to resize positions, or to fit it."""
    state = dense()
    state[name] = CHANGES[change](state[name])
    with pytest.raises(UserError, match=rf"{name.replace('.bias', '')}\S* is \[.*\]"):
        load(state)
    flags = ["--p", "0", "--device", "cpu", "--pretrained", str(load.path), "--output_dir", str(tmp_path / "out")]
    monkeypatch.setattr(RetrievalClip, "datasets", lambda self, evaluate: (None, None, None))
    assert main(RetrievalClip(), flags) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {load.path} ") and said.count("\n") == 1


def test_another_guidance(load):
    state = fill(ClipRetrieval(SIZES, 6, 40, queue_size=8)).state_dict()
    with pytest.raises(UserError, match=r"space_dict is \[6, 40\] in the file and \[7, 40\] in the model"):
        load({"model": state}, sd_num=7)


def test_a_missing_layer(load):
    state = dense()
    del state["transformer.resblocks.1.ln_2.bias"]
    with pytest.raises(UserError, match="transformer.resblocks.1.ln_2.bias is missing"):
        load(state, evaluate=True)


def test_a_damaged_archive(tmp_path):
    path = tmp_path / "ViT.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("ViT/constants.pkl", b"chaos")
    with pytest.raises(UserError, match="damaged"):
        clip.load(str(path), "cpu")


@pytest.mark.parametrize(
    "name, message", [("absent.pt", "no such checkpoint"), ("ViT-B/16", "let a script fetch it by --download")]
)
def test_no_file(tmp_path, monkeypatch, name, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        clip.load(name)


def test_sizes_come_from_the_weights():
    assert sizes_of(dense(), "file") == SIZES


# Published models.


@pytest.fixture
def published(monkeypatch):
    """Publishes `weights` as a model called tiny, and answers with what is asked to."""
    digest = hashlib.sha256(b"weights").hexdigest()
    monkeypatch.setattr(download, "MODELS", {"tiny": ("tiny.pt", digest)})
    asked = []

    def answer(content):
        def urlopen(address):
            asked.append(address)
            if isinstance(content, Exception):
                raise content
            return io.BytesIO(content)

        monkeypatch.setattr("urllib.request.urlopen", urlopen)
        return asked

    answer.address = f"https://openaipublic.azureedge.net/clip/models/{digest}/tiny.pt"
    return answer


def test_a_download_is_fetched_once(published, tmp_path):
    asked = published(b"weights")
    for _ in range(2):
        path = download.download("tiny", tmp_path / "pretrained")
        assert path.read_bytes() == b"weights"
    assert asked == [published.address]
    assert [entry.name for entry in path.parent.iterdir()] == ["tiny.pt"]


@pytest.mark.parametrize(
    "content, message", [(b"weight", "6 bytes with other"), (OSError("no route"), "no route"), (b"", "0 bytes")]
)
def test_a_download_that_fails_leaves_nothing(published, tmp_path, content, message):
    published(content)
    with pytest.raises(UserError, match=message):
        download.download("tiny", tmp_path)
    assert not list(tmp_path.iterdir())


def test_other_bytes_are_not_taken_for_the_published_ones(published, tmp_path):
    asked = published(b"weights")
    (tmp_path / "tiny.pt").write_bytes(b"something else")
    with pytest.raises(UserError, match="tiny.pt is not the published tiny"):
        download.download("tiny", tmp_path)
    assert asked == [] and (tmp_path / "tiny.pt").read_bytes() == b"something else"


@pytest.mark.parametrize("flags, fetched", [([], []), (["--download"], ["ViT-B/16"])])
def test_a_script_downloads_only_when_told_to(monkeypatch, tmp_path, capsys, flags, fetched):
    asked = []
    monkeypatch.setattr(download, "download", asked.append)
    assert main(RetrievalClip(), [*flags, "--pretrained", "ViT-B/16", "--output_dir", str(tmp_path)]) == 2
    assert asked == fetched and capsys.readouterr().err.count("\n") == 1


def test_there_is_no_other_model_to_download(tmp_path, capsys):
    assert main(NLVR(), ["--download", "--output_dir", str(tmp_path)]) == 2
    assert "--download fetches CLIP's published models, not 'pretrained/model_base_nlvr.pth'" in capsys.readouterr().err


def test_every_published_model_is_named_by_its_digest():
    for name, (file, digest) in download.MODELS.items():
        assert file == name.replace("/", "-").replace("@", "-") + ".pt" and len(bytes.fromhex(digest)) == 32
