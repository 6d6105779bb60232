"""Repositories by their names, from a server on this machine that answers as the hub does."""

import hashlib
import json
import threading
from contextlib import nullcontext
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from urllib.parse import unquote

import pytest

from compress_caption_dtp import Caption
from compress_retrieval_clip_dtp import RetrievalClip
from madtp.method.errors import UserError
from madtp.run.engine import main
from madtp.shared.weights import checkpoint, fetching, folders, hub
from tests.shared.weights.theirs import blip, needs_5, saved

REVISION = "0123abcd"


class Server(BaseHTTPRequestHandler):
    """Lists and gives the files of one repository, `owner/name`; remembers what it was asked."""

    def __init__(self, files, asked, *arguments):
        self.files, self.asked = files, asked
        super().__init__(*arguments)

    def do_GET(self):
        self.asked.append(self.path)
        content = self.found(self.path)
        self.send_response(200 if content is not None else 404)
        self.end_headers()
        self.wfile.write(content or b"")

    def found(self, path):
        if path == "/api/models/owner/name?blobs=true":
            return json.dumps({"sha": REVISION, "siblings": [self.listed(name) for name in self.files]}).encode()
        prefix = f"/owner/name/resolve/{REVISION}/"
        return self.files.get(unquote(path.removeprefix(prefix))) if path.startswith(prefix) else None

    def listed(self, name):
        said = self.files.get(f"as said of {name}", self.files[name])
        large = {"lfs": {"sha256": hashlib.sha256(said).hexdigest(), "size": len(said)}} if name.endswith("s") else {}
        return {"rfilename": name, "size": len(said), **large}

    def log_message(self, *arguments):
        """Stays silent."""


@pytest.fixture
def serve(monkeypatch, tmp_path):
    """Serves files by name, in a folder that is empty but for what is fetched; gives the list of what is asked."""
    servers = []

    def serve(files):
        asked = []
        server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Server, files, asked))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}/")
        return asked

    monkeypatch.chdir(tmp_path)
    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


FILES = {
    "config.json": b'{"model_type": "blip"}',
    "tokenizer.json": b"{}",
    "two words.json": b"{}",
    "model.safetensors": b"weights",
    "pytorch_model.bin": b"a pickle",
    "tf_model.h5": b"another",
    "README.md": b"words",
    "onnx/model.safetensors": b"elsewhere",
    "onnx/config.json": b"{}",
    "../config.json": b"{}",
    ".hidden.json": b"{}",
    ".gitattributes": b"",
}


def test_json_and_safetensors_only(serve):
    serve(FILES)
    folder = hub.fetch("owner/name")
    assert str(folder) == "pretrained/owner/name"
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        name: FILES[name] for name in ("config.json", "tokenizer.json", "two words.json", "model.safetensors")
    }
    assert [path.name for path in folder.parent.iterdir()] == ["name"]


@pytest.mark.parametrize("transformers_too", [False, True])
def test_weights_of_open_clip_where_there_are_none_for_transformers(serve, transformers_too):
    names = ["open_clip_model.safetensors", *["model.safetensors"] * transformers_too]
    serve({"open_clip_config.json": b"{}", **dict.fromkeys(names, b"weights")})
    folder = hub.fetch("owner/name")
    assert sorted(path.name for path in folder.iterdir()) == sorted(["open_clip_config.json", names[-1]])


def test_what_is_there_is_not_fetched_again(serve):
    asked = serve(FILES)
    hub.fetch("owner/name")
    asked.clear()
    hub.fetch("owner/name")
    assert asked == ["/api/models/owner/name?blobs=true"]


def test_weights_in_parts(serve):
    parts = {f"model-0000{number}-of-00002.safetensors": f"part {number}".encode() for number in (1, 2)}
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    serve({"config.json": b"{}", "model.safetensors.index.json": json.dumps(index).encode(), **parts})
    folder = hub.fetch("owner/name")
    assert {name: (folder / name).read_bytes() for name in parts} == parts


@pytest.mark.parametrize(
    "index, says",
    [(b"[]", "expected a weight_map"), (b'{"weight_map": {"a": "../b"}}', "'../b' is not a file beside it")],
)
def test_an_index_that_is_none(serve, index, says):
    serve({"config.json": b"{}", "model.safetensors.index.json": index})
    with pytest.raises(UserError, match=f"model.safetensors.index.json: {says}.*; fetch the folder again"):
        hub.fetch("owner/name")


def test_no_safetensors(serve):
    serve({"config.json": b"{}", "pytorch_model.bin": b"a pickle"})
    with pytest.raises(UserError, match="owner/name has no safetensors at the hub; fetch its weights by other means"):
        hub.fetch("owner/name")


def test_a_part_that_the_hub_lacks(serve):
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    serve({"model.safetensors.index.json": json.dumps(index).encode(), "model-1.safetensors": b"part 1"})
    with pytest.raises(UserError, match="owner/name has no safetensors at the hub"):
        hub.fetch("owner/name")


@pytest.mark.parametrize("listing", [{}, {"siblings": ["a.json", {}, {"rfilename": 3}]}])
def test_a_listing_of_nothing(serve, monkeypatch, listing):
    serve({})
    monkeypatch.setattr(Server, "found", lambda server, path: json.dumps(listing).encode())
    with pytest.raises(UserError, match="owner/name has no safetensors at the hub"):
        hub.fetch("owner/name")


def test_a_listing_that_says_little(serve, monkeypatch):
    """No revision, no sizes, no digest: what is there is taken for whole."""
    asked = serve({})
    siblings = [{"rfilename": "config.json"}, {"rfilename": "model.safetensors", "lfs": None}]
    listing = json.dumps({"siblings": siblings}).encode()
    monkeypatch.setattr(Server, "found", lambda server, path: listing if "/api/" in path else b"{}")
    hub.fetch("owner/name")
    assert asked[1:] == [f"/owner/name/resolve/main/{name}" for name in ("config.json", "model.safetensors")]
    hub.fetch("owner/name")
    assert len(asked) == 4


def test_a_file_of_another_size_is_fetched_again(serve):
    serve(FILES)
    config = hub.fetch("owner/name") / "config.json"
    config.write_bytes(b"half of it")
    hub.fetch("owner/name")
    assert config.read_bytes() == FILES["config.json"]


def test_other_bytes_are_not_kept(serve, tmp_path):
    serve(FILES | {"as said of model.safetensors": b"WEIGHTS"})
    with pytest.raises(UserError, match="7 bytes with other contents than published; try again"):
        hub.fetch("owner/name")
    assert sorted(path.name for path in (tmp_path / "pretrained/owner/name").iterdir()) == [
        "config.json",
        "tokenizer.json",
        "two words.json",
    ]


def test_half_a_file_is_not_kept(serve, tmp_path):
    serve(FILES | {"as said of config.json": 2 * FILES["config.json"]})
    with pytest.raises(UserError, match="config.json: 22 bytes with other contents than published; try again"):
        hub.fetch("owner/name")
    assert not list((tmp_path / "pretrained/owner/name").iterdir())


def test_no_such_repository(serve):
    serve(FILES)
    says = "cannot fetch repository owner/other from http://[^/]*/api/.*: there is no such thing, or it wants a login"
    with pytest.raises(UserError, match=says):
        hub.fetch("owner/other")


def test_no_connection(serve, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(
        UserError, match="cannot fetch repository owner/name from http://127.0.0.1:9.*: .*; fetch it by other means"
    ):
        hub.fetch("owner/name")


def test_what_is_no_address_and_what_is_no_hub(serve, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "hub.example")
    with pytest.raises(UserError, match="cannot fetch repository owner/name from hub.example/api.*: unknown url type"):
        hub.fetch("owner/name")
    serve(FILES)
    monkeypatch.setattr(Server, "found", lambda server, path: b"<html>welcome</html>")
    with pytest.raises(UserError, match="answers b'<html>welcome</html>'; is HF_ENDPOINT a hub?"):
        hub.fetch("owner/name")


def test_a_connection_that_breaks_is_not_taken_for_a_full_disk(monkeypatch, tmp_path):
    def read(count):
        raise ConnectionResetError("the other side hung up")

    monkeypatch.setattr("urllib.request.urlopen", lambda address: nullcontext(SimpleNamespace(read=read)))
    with pytest.raises(UserError, match="cannot fetch .*/a.json from hub:a: the other side hung up; fetch it by other"):
        fetching.fetch("hub:a", tmp_path / "a.json")
    assert not list(tmp_path.iterdir())


def test_names():
    assert hub.is_name("Salesforce/blip-vqa-base") and hub.is_name("openai/clip-vit-large-patch14-336")


@pytest.mark.parametrize("path", ["model", "a/b/c", "../model", "./model", "/model", "a/.model", "a/mo..del", "a/b c"])
def test_paths_are_no_names(path):
    assert not hub.is_name(path)


@pytest.mark.parametrize("ending", ["pth", "pt", "bin", "ckpt", "safetensors", "json"])
def test_files_are_no_names(ending):
    assert not hub.is_name(f"pretrained/model_base.{ending}")


def test_a_name_that_was_not_fetched(serve):
    asked = serve(FILES)
    with pytest.raises(
        UserError, match="owner/name: no such checkpoint, nor is it at pretrained/owner/name, where a script's --down"
    ):
        folders.located("owner/name")
    assert asked == []


@pytest.mark.parametrize("task", [Caption, RetrievalClip])
@pytest.mark.parametrize("flags, fetched", [([], False), (["--download"], True)])
def test_a_script_fetches_only_when_told_to(serve, tmp_path, capsys, task, flags, fetched):
    asked = serve(FILES)
    (tmp_path / "config.yaml").write_text("max_epoch: 1\n")
    assert main(task(), ["--config", "config.yaml", "--pretrained", "owner/name", "--output_dir", "out", *flags]) == 2
    assert bool(asked) == fetched and capsys.readouterr().err.count("\n") == 1


def test_what_is_here_is_not_asked_for(serve, tmp_path, capsys):
    asked = serve(FILES)
    (tmp_path / "config.yaml").write_text("max_epoch: 1\n")
    (tmp_path / "output/run").mkdir(parents=True)
    flags = ["--config", "config.yaml", "--pretrained", "output/run", "--output_dir", "out", "--download"]
    assert main(Caption(), flags) == 2
    assert hub.folder_of("output/run", download=True) == "output/run"
    assert asked == [] and "--download fetches CLIP's published models, not 'output/run'" in capsys.readouterr().err


@needs_5
def test_a_repository_is_a_checkpoint_by_its_name(serve, tmp_path):
    from transformers import BlipForConditionalGeneration

    source = saved(blip(BlipForConditionalGeneration), tmp_path / "source")
    serve({path.name: path.read_bytes() for path in source.iterdir()})
    hub.fetch("owner/name")
    content, expected = checkpoint.read("owner/name"), checkpoint.read(source)
    assert content["model"].keys() == expected["model"].keys()
    assert all(value.equal(expected["model"][name]) for name, value in content["model"].items())
